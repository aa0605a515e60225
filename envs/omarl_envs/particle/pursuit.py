"""Predator-prey (`tag`) and its larger sister with food and forests (`world`)."""

import dataclasses
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omarl_envs.base import MultiAgentEnv, Observation, TimeStep
from omarl_envs.particle import physics
from omarl_envs.particle.physics import State, Vec
from omarl_envs.particle.prey import load_prey
from omarl_envs.spec import ScoreReference, TaskSpec

N_PREDATORS = 3
PREDATOR_RADIUS = 0.075
PREDATOR_GAIN, PREY_GAIN = 9.0, 16.0  # the published accelerations 3 and 4, applied twice as the published code does
PREDATOR_SPEED, PREY_SPEED = 1.0, 1.3
SHAPING = 0.1  # weight of the distances between predators and prey
AGENT_BOX, LANDMARK_BOX = 1.0, 0.9  # half sides of the squares things start in


@dataclasses.dataclass(frozen=True)
class Scenario:
    """The differences between tag and world.

    Attributes:
        prey_radius: of the prey.
        obstacle_radius: of the first `n_obstacles` landmarks, which collide with everyone.
        n_food, food_radius: landmarks the prey eats.
        n_forests, forest_radius: landmarks that predators know to be in or not.
        touch_reward: reward of the predators for a contact with the prey, and its cost for the prey.
        border_cost: weight of the prey's cost of leaving the square.
        released: published returns that scores are normalised with, against the prey released with OMAR's datasets.
        released_digest: the `Prey.digest` of that prey.
        shipped: returns that scores are normalised with, against the bundled prey.
    """

    name: str
    prey_radius: float
    touch_reward: float
    border_cost: float
    n_obstacles: int
    released: ScoreReference
    released_digest: str
    shipped: ScoreReference | None = None
    obstacle_radius: float = 0.2
    n_food: int = 0
    food_radius: float = 0.03
    n_forests: int = 0
    forest_radius: float = 0.3

    @property
    def n_landmarks(self) -> int:
        """L."""
        return self.n_obstacles + self.n_food + self.n_forests

    @property
    def predator_obs_dim(self) -> int:
        """16 in tag, 24 in world."""
        return 4 + 2 * self.n_landmarks + 2 * N_PREDATORS + 2 + self.n_forests

    @property
    def prey_obs_dim(self) -> int:
        """14 in tag, 22 in world: the prey does not see its own velocity a second time."""
        return self.predator_obs_dim - 2


_OMAR = "OMAR, published constants (released prey)"
_OURS = "shipped prey; uniform actions and the expert behaviour, 10,000 episodes each"
TAG = Scenario(
    name="tag",
    prey_radius=0.05,
    touch_reward=10.0,
    border_cost=1.0,
    n_obstacles=2,
    released=ScoreReference(-4.1, 185.6, _OMAR, published=True),
    shipped=ScoreReference(-6.10, 148.91, _OURS),
    released_digest="da6fe9cda6e1cf0644a29c67bdeae11eb6b49ff39ddc3cb873fc819c33f5c620",
)
WORLD = Scenario(
    name="world",
    prey_radius=0.045,
    touch_reward=5.0,
    border_cost=2.0,
    n_obstacles=1,
    n_food=2,
    n_forests=2,
    released=ScoreReference(-6.8, 79.5, _OMAR, published=True),
    shipped=ScoreReference(-8.43, 70.23, _OURS),
    released_digest="428ecef4f66eaf5f77f6cc530446f7c64b4632e5085a358ccb754161897163c6",
)


class Pursuit(MultiAgentEnv[State]):
    """`particle/tag` and `particle/world`, as OMAR changed them (Pan et al. 2022; `simple_tag`, `simple_world`).

    Three predators chase one faster prey among obstacles. Every predator gets the same reward: `touch_reward` for each
    predator in contact with the prey, less 0.1 times the sum of their distances to it. The observation of a predator,
    positions relative to it, is velocity (2), own position (2), landmarks (2L), the three others (6), the prey's
    velocity (2) and, for each forest, +1 inside or -1 outside. An episode is cut off after 25 steps.

    Args:
        scenario: TAG or WORLD.
        prey: `"shipped"` is the prey trained with this package; a path to an `.npz` loads another, for example the one
            released with OMAR's datasets, with which the published reference returns apply; `"learner"` makes the prey
            a fourth agent, its observation padded with zeros to the length of the others.
        time_limit_is_terminal: report the end of the episode as a termination.
    """

    def __init__(
        self,
        scenario: Scenario,
        prey: str | pathlib.Path = "shipped",
        time_limit_is_terminal: bool = False,
    ):
        self.scenario = scenario
        learner = prey == "learner"
        n_agents = N_PREDATORS + learner
        self.task_spec = TaskSpec(
            name=f"particle/{scenario.name}",
            kind="continuous",
            n_agents=n_agents,
            obs_dim=scenario.predator_obs_dim,
            action_dim=2,
            state_dim=n_agents * scenario.predator_obs_dim,
            episode_length=physics.EPISODE_LENGTH,
            state_is_obs=True,
        )
        shipped = pathlib.Path(__file__).parent / f"prey_{scenario.name}.npz"
        self.prey = None if learner else load_prey(shipped if prey == "shipped" else prey, scenario.prey_obs_dim)
        if prey == "shipped":
            self.reference = scenario.shipped
        elif self.prey is not None and self.prey.digest == scenario.released_digest:
            self.reference = scenario.released
        self.time_limit_is_terminal = time_limit_is_terminal
        super().__init__()

    def reset(self, key: chex.PRNGKey) -> tuple[State, TimeStep[Observation]]:
        """Puts everything uniformly into its square, at rest."""
        key, agents_key, landmarks_key = jax.random.split(key, 3)
        agents, landmarks = (N_PREDATORS + 1, 2), (self.scenario.n_landmarks, 2)
        state = State(
            key=key,
            step=jnp.zeros((), jnp.int32),
            position=jax.random.uniform(agents_key, agents, minval=-AGENT_BOX, maxval=AGENT_BOX),
            velocity=jnp.zeros(agents),
            landmarks=jax.random.uniform(landmarks_key, landmarks, minval=-LANDMARK_BOX, maxval=LANDMARK_BOX),
        )
        return state, self.first(self._observe(state))

    def step(self, state: State, actions: chex.Array) -> tuple[State, TimeStep[Observation]]:
        """Moves everyone by one step. actions: (N, 2) forces in [-1, 1]."""
        forces = physics.vectors(actions)
        if self.prey is not None:
            forces.append(Vec(*jnp.moveaxis(self.prey.act(self._prey_view(state)), -1, 0)))
        position, velocity = self._move(state, forces)
        state = state._replace(step=state.step + 1, position=position, velocity=velocity)
        rewards = self._rewards(state)
        metrics = {"return": rewards[0]}  # the published return is that of the first predator
        return state, self.next(state.step, self._observe(state), rewards, metrics=metrics)

    def _move(self, state: State, forces: list[Vec]) -> tuple[chex.Array, chex.Array]:
        agents, obstacles = physics.vectors(state.position), self._landmarks(state)[0]
        radii = [PREDATOR_RADIUS] * N_PREDATORS + [self.scenario.prey_radius]
        gains = [PREDATOR_GAIN] * N_PREDATORS + [PREY_GAIN]
        speeds = [PREDATOR_SPEED] * N_PREDATORS + [PREY_SPEED]
        forces = [force * gain for force, gain in zip(forces, gains, strict=True)]
        for i, agent in enumerate(agents):
            for j in range(i + 1, len(agents)):
                push = physics.contact_force(agent - agents[j], radii[i] + radii[j])
                forces[i], forces[j] = forces[i] + push, forces[j] - push
            for obstacle in obstacles:
                reach = radii[i] + self.scenario.obstacle_radius
                forces[i] = forces[i] + physics.contact_force(agent - obstacle, reach)
        bodies = zip(agents, physics.vectors(state.velocity), forces, speeds, strict=True)
        moved = [physics.integrate(*body) for body in bodies]
        return physics.stack([p for p, _ in moved]), physics.stack([v for _, v in moved])

    def _rewards(self, state: State) -> chex.Array:
        """(N,) rewards, the prey's last where it learns."""
        scenario = self.scenario
        *predators, prey = physics.vectors(state.position)
        distances = [(predator - prey).norm for predator in predators]
        touches = sum((d < PREDATOR_RADIUS + scenario.prey_radius).astype(jnp.float32) for d in distances)
        chase = scenario.touch_reward * touches - SHAPING * sum(distances)
        if self.prey is not None:
            return jnp.stack([chase] * N_PREDATORS)
        flight = -chase - scenario.border_cost * (_border(prey.x) + _border(prey.y))
        if scenario.n_food:
            food = [(landmark - prey).norm for landmark in self._landmarks(state)[1]]
            eaten = sum((d < scenario.prey_radius + scenario.food_radius).astype(jnp.float32) for d in food)
            # The sign of the last term is the published one: it pays the prey to stay away from the food.
            flight += 2.0 * eaten + 0.05 * jnp.stack(food).min()
        return jnp.stack([chase] * N_PREDATORS + [flight])

    def _observe(self, state: State) -> Observation:
        views = [self._predator_view(state, i) for i in range(N_PREDATORS)]
        if self.prey is None:
            views.append(jnp.concatenate([self._prey_view(state), jnp.zeros((2,))]))
        agents_view = jnp.stack(views)
        return Observation(agents_view, agents_view.reshape(-1))

    def _predator_view(self, state: State, i: int) -> chex.Array:
        seen = [*self._seen_by(state, i), physics.vectors(state.velocity)[-1]]
        return jnp.concatenate([physics.flatten(seen), *self._in_forests(state, i)])

    def _prey_view(self, state: State) -> chex.Array:
        seen = self._seen_by(state, N_PREDATORS)
        return jnp.concatenate([physics.flatten(seen), *self._in_forests(state, N_PREDATORS)])

    def _seen_by(self, state: State, i: int) -> list[Vec]:
        agents, velocity = physics.vectors(state.position), physics.vectors(state.velocity)[i]
        landmarks = [landmark - agents[i] for landmark in physics.vectors(state.landmarks)]
        others = [other - agents[i] for j, other in enumerate(agents) if j != i]
        return [velocity, agents[i], *landmarks, *others]

    def _in_forests(self, state: State, i: int) -> list[chex.Array]:
        agent = physics.vectors(state.position)[i]
        radius = PREDATOR_RADIUS if i < N_PREDATORS else self.scenario.prey_radius
        reach = radius + self.scenario.forest_radius
        forests = self._landmarks(state)[2]
        return [jnp.where((agent - forest).norm < reach, 1.0, -1.0)[None] for forest in forests]

    def _landmarks(self, state: State) -> tuple[list[Vec], list[Vec], list[Vec]]:
        """Obstacles, food, forests."""
        landmarks, scenario = physics.vectors(state.landmarks), self.scenario
        food = scenario.n_obstacles + scenario.n_food
        return landmarks[: scenario.n_obstacles], landmarks[scenario.n_obstacles : food], landmarks[food:]

    def render(self, state: State) -> np.ndarray:
        """Predators blue, outlined red where they touch the red prey; obstacles, food, forests: (H, W, 3) uint8."""
        from omarl_envs import rendering

        scenario, position, velocity = self.scenario, np.asarray(state.position), np.asarray(state.velocity)
        ends = [scenario.n_obstacles, scenario.n_obstacles + scenario.n_food]
        obstacles, food, forests = np.split(np.asarray(state.landmarks), ends)
        touching = np.linalg.norm(position[:-1] - position[-1], axis=-1) < PREDATOR_RADIUS + scenario.prey_radius
        picture = rendering.Picture(1.5 * AGENT_BOX, f"step {int(state.step)}/{physics.EPISODE_LENGTH}")
        picture.square((0.0, 0.0), 2 * AGENT_BOX, edge=rendering.GREY)
        for obstacle in obstacles:
            picture.disc(obstacle, scenario.obstacle_radius, rendering.GREY)
        for forest in forests:
            picture.disc(forest, scenario.forest_radius, rendering.GREEN, alpha=0.25)
        for bite in food:
            picture.disc(bite, scenario.food_radius, rendering.GOLD)
        for i, touches in enumerate(touching):
            edge = rendering.RED if touches else None
            picture.mover(position[i], velocity[i], PREDATOR_RADIUS, rendering.BLUE, edge)
        picture.mover(position[-1], velocity[-1], scenario.prey_radius, rendering.RED)
        return picture.image()


def _border(coordinate: chex.Array) -> chex.Array:
    """The cost for the prey of being near the edge of the square or beyond it."""
    outside = jnp.abs(coordinate)
    far = jnp.minimum(jnp.exp(2.0 * outside - 2.0), 10.0)
    return jnp.where(outside < 0.9, 0.0, jnp.where(outside < 1.0, 10.0 * (outside - 0.9), far))
