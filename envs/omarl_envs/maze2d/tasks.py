"""A ball that should reach a goal in a maze and stay there: D4RL's maze2d, for a team of one."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omarl_envs.base import Behaviour, Journeys, MultiAgentEnv, Observation, TimeStep
from omarl_envs.maze2d import mazes, physics
from omarl_envs.maze2d.waypoints import NOISE, Journey, Plan, Planner, Traveller
from omarl_envs.mujoco.models import Engine
from omarl_envs.spec import ScoreReference, TaskSpec

FASTEST = 5.0  # m/s along each axis, before a step
REACH = 0.5  # m, within which the goal is worth a sparse reward
DIRECTIONS = np.array([(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)], np.float32)

_LENGTHS = {"umaze": 300, "medium": 600, "large": 800}
_RETURNS = {  # of uniform actions and of D4RL's controller, sparse and dense, from D4RL's registrations (v1)
    "umaze": ((23.85, 161.86), (68.537689, 193.66285642381482)),
    "medium": ((13.13, 277.39), (44.264742, 297.4552547777125)),
    "large": ((6.7, 273.99), (30.569041, 303.4857382709002)),
    "eval-umaze": ((36.63, 141.4), (56.95455, 178.21373133248397)),
    "eval-medium": ((13.07, 204.93), (42.28578, 235.5658957482388)),
    "eval-large": ((16.4, 302.22), (56.95455, 326.09647655082637)),
}


class State(NamedTuple):
    """One ball.

    Attributes:
        key: the randomness of the episode; only its start uses any.
        step: () int32, steps made.
        position: (2,) m, along the rows of the maze and along its columns.
        velocity: (2,) m/s.
    """

    key: chex.PRNGKey
    step: chex.Array
    position: chex.Array
    velocity: chex.Array


class Maze2d(MultiAgentEnv[State]):
    """`maze2d/umaze` and its kin, as D4RL (Fu et al. 2020) has them in version 1.

    One agent pushes a ball of 4.19 kg with up to 100 N along each axis, 100 steps a second, and sees its position and
    velocity: (1, 4). Velocities are clipped to ± 5 m/s along each axis before a step. An episode starts in any free
    cell, within 0.1 of its whole numbers, with velocities of σ = 0.1. The reward is that of the position after a step:

        sparse: 1 within 0.5 of the goal, else 0        dense: exp(-distance to the goal)

    Nothing ends an episode but the time limit: 300 steps in `umaze`, 600 in `medium`, 800 in `large`. So a ball earns
    as long as it stays. The goal does not move, and is not seen. The walls are soft, see `physics`.

    `waypoints` are data of the planner in `waypoints`, with noise of σ = 0.5 on its actions, which goes to one target
    after the other without resets: reaching it, or the time limit, ends a stretch. Every stretch is stored as a
    truncated episode. `waypoints-d4rl` are the same by D4RL's script, with its slips: the step after a new target sees,
    acts on and stores what the one before it saw, the last step of a stretch is no transition, and a reward is that of
    the position before the step. `expert` goes to the goal, without noise.

    With `discrete` there are nine actions, no force or the largest along each axis; behaviours round theirs.

    Args:
        name: of the task, after `maze2d/`.
        maze: the maze as text, see `mazes.parse`.
        length: steps of an episode.
        reward: `sparse` or `dense`.
        goal: row and column of the goal; by default where the maze has a G.
        discrete: whether actions are one of nine.
        engine: the MuJoCo whose contacts the walls have: `2.0`, of published data, or `current`.
        time_limit_is_terminal: report the time limit as a termination.

    Raises:
        ValueError: if the maze or the goal is none, or the reward or the engine is not one of these.
    """

    dt = physics.TIMESTEP

    def __init__(
        self,
        name: str,
        maze: str,
        length: int,
        reward: Literal["sparse", "dense"] = "sparse",
        goal: Sequence[int] | None = None,
        discrete: bool = False,
        engine: Engine = "2.0",
        time_limit_is_terminal: bool = False,
    ):
        choices = {"reward": (reward, ("sparse", "dense")), "engine": (str(engine), get_args(Engine))}
        for option, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{option} of 'maze2d/{name}' must be {' or '.join(known)}, not {value!r}.")
        if not isinstance(maze, str):
            raise ValueError(f"maze of 'maze2d/{name}' must be text, rows of #, O and G, not {maze!r}.")
        if goal is not None and np.shape(goal) != (2,):
            raise ValueError(f"goal of 'maze2d/{name}' must be a row and a column, not {goal!r}.")
        self.reward, self.discrete, self.engine = reward, discrete, cast(Engine, str(engine))  # a shell makes it 2.0
        self.time_limit_is_terminal = time_limit_is_terminal
        self.maze = mazes.parse(maze, None if goal is None else (goal[0], goal[1]))
        self._near = physics.neighbours(self.maze.walls)
        self.task_spec = TaskSpec(
            name=f"maze2d/{name}",
            kind="discrete" if discrete else "continuous",
            n_agents=1,
            obs_dim=4,
            action_dim=len(DIRECTIONS) if discrete else 2,
            state_dim=4,
            episode_length=length,
            state_is_obs=True,
        )
        self.reference = self._reference(name)
        planner = Planner(self.maze)
        at_goal = planner.to(np.array(self.maze.goal[0] * planner.width + self.maze.goal[1], np.int32))
        self.behaviours = {
            "waypoints": self._journeys(Traveller(planner, length, repeats=False)),
            "waypoints-d4rl": self._journeys(Traveller(planner, length, repeats=True)),
            "expert": Behaviour(partial(self._steer, planner), "the planner, to the goal", memory=at_goal),
        }
        super().__init__()

    def _reference(self, name: str) -> ScoreReference | None:
        """D4RL's reference returns, where the maze is D4RL's."""
        usual = mazes.parse(mazes.TEXTS[name])
        same = np.array_equal(self.maze.walls, usual.walls) and self.maze.goal == usual.goal
        if not same or self.task_spec.episode_length != _LENGTHS[name.removeprefix("eval-")]:
            return None
        random, expert = _RETURNS[name][("sparse", "dense").index(self.reward)]
        source = f"D4RL's registration of maze2d-{name}{'-dense' if self.reward == 'dense' else ''}-v1"
        return ScoreReference(random, expert, source, published=not self.discrete)

    def reset(self, key: chex.PRNGKey) -> tuple[State, TimeStep[Observation]]:
        """Puts the ball into a random free cell."""
        key, cell_key, place_key, speed_key = jax.random.split(key, 4)
        cell = jax.random.choice(cell_key, jnp.asarray(self.maze.free, jnp.float32))
        position = cell + jax.random.uniform(place_key, (2,), minval=-0.1, maxval=0.1)
        velocity = 0.1 * jax.random.normal(speed_key, (2,))
        state = State(key, jnp.zeros((), jnp.int32), position, velocity)
        return state, self.first(self._observe(state))

    def step(self, state: State, actions: chex.Array) -> tuple[State, TimeStep[Observation]]:
        """Pushes for 0.01 s. actions: (1, 2) shares of the largest force, clipped to [-1, 1], or (1,) int32 below 9."""
        push = jnp.asarray(DIRECTIONS)[actions[0]] if self.discrete else jnp.clip(actions[0], -1.0, 1.0)
        velocity = jnp.clip(state.velocity, -FASTEST, FASTEST)
        position, velocity = physics.step(self._near, self.engine, state.position, velocity, push)
        state = State(state.key, state.step + 1, position, velocity)
        return state, self.next(state.step, self._observe(state), self.reward_at(position)[None])

    def reward_at(self, position: chex.Array) -> chex.Array:
        """The reward () at a position (2,)."""
        distance = jnp.linalg.norm(position - jnp.asarray(self.maze.goal, jnp.float32))
        return jnp.exp(-distance) if self.reward == "dense" else (distance <= REACH).astype(jnp.float32)

    def _observe(self, state: State) -> Observation:
        view = jnp.concatenate([state.position, state.velocity])
        mask = jnp.ones((1, len(DIRECTIONS)), bool) if self.discrete else None
        return Observation(view[None], view, mask)

    def _as_taken(self, action: chex.Array) -> chex.Array:
        """An action (2,) in [-1, 1] as the agent takes it: (1, 2), or the number (1,) of the nearest."""
        if not self.discrete:
            return action[None]
        return jnp.square(jnp.asarray(DIRECTIONS) - action).sum(axis=1).argmin()[None].astype(jnp.int32)

    def _steer(self, planner: Planner, obs: chex.Array, plan: Plan, key: chex.PRNGKey) -> tuple[chex.Array, Plan]:
        action, plan = planner.steer(plan, obs[0], key)
        return self._as_taken(action), plan

    def _journeys(self, traveller: Traveller) -> Journeys:
        def act(obs: chex.Array, journey: Journey, key: chex.PRNGKey) -> tuple[chex.Array, Journey]:
            action, journey = traveller.step(journey, obs[0], key)
            return self._as_taken(action), journey

        def note(journey: Journey) -> tuple[chex.Array, chex.Array]:
            return journey.seen[None], journey.ends

        def reward(obs: chex.Array) -> chex.Array:
            return self.reward_at(obs[0, :2])[None]

        slips = ", by D4RL's script with its slips" if traveller.repeats else ""
        words = f"the planner, to one target after the other, noise σ = {NOISE:g}{slips}"
        return Journeys(act, words, traveller.start, note, reward if traveller.repeats else None)

    def render(self, state: State) -> np.ndarray:
        """The maze from above, its rows downwards: (H, W, 3) uint8."""
        from omarl_envs import rendering

        picture = self._picture(f"step {int(state.step)}/{self.task_spec.episode_length}")
        picture.mover(self._seen(state.position), _turned(state.velocity), physics.RADIUS, rendering.BLUE)
        return picture.image()

    def render_path(self, states: Sequence[State]) -> np.ndarray:
        """The way of the ball, from dark to light with time: (H, W, 3) uint8."""
        from matplotlib import colormaps

        picture = self._picture(f"{len(states) - 1} steps, from dark to light")
        points = np.stack([self._seen(state.position) for state in states])
        colours = colormaps["viridis"](np.linspace(0.0, 0.95, max(len(points) - 1, 1)))
        for start, end, colour in zip(points[:-1], points[1:], colours, strict=False):
            picture.line([start, end], colour, width=2.5)
        for point, colour in ((points[0], colours[0]), (points[-1], colours[-1])):
            picture.disc(point, physics.RADIUS, colour, edge="white")
        return picture.image()

    def _seen(self, position: Any) -> np.ndarray:
        """A point of the maze in its picture, whose middle is that of the maze."""
        middle = (np.array(self.maze.walls.shape) - 1) / 2 + 0.5 - physics.CORNER
        return _turned(np.asarray(position) - middle)

    def _picture(self, caption: str) -> Any:
        from omarl_envs import rendering

        rows, columns = self.maze.walls.shape
        picture = rendering.Picture(max(rows, columns) / 2 + 0.6, caption)
        for cell in np.argwhere(self.maze.walls):
            picture.square(self._seen(cell + 0.5 - physics.CORNER), 1.0, fill=rendering.GREY)
        picture.disc(self._seen(self.maze.goal), REACH, rendering.GREEN, alpha=0.4)
        return picture


def _turned(vector: Any) -> np.ndarray:
    """Rows go down in a picture, and columns to the right."""
    return np.array([vector[1], -vector[0]])


TASKS = {
    name: partial(Maze2d, name, maze=text, length=_LENGTHS[name.removeprefix("eval-")])
    for name, text in mazes.TEXTS.items()
}
