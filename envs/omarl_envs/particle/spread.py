"""Cooperative navigation: N agents cover N landmarks without running into each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omarl_envs.base import MultiAgentEnv, Observation, TimeStep
from omarl_envs.particle import physics
from omarl_envs.particle.physics import State, Vec
from omarl_envs.spec import ScoreReference, TaskSpec

AGENT_RADIUS = 0.15
LANDMARK_RADIUS = 0.05  # in pictures; landmarks touch nothing
GAIN = 5.0  # force of a full action
MAX_COVER = 10.0  # the most one landmark pays
COLLISION_COST = 5.0

# Pairs are unrolled for small teams, whose compilation stays in seconds; larger ones use (N, N) arrays.
_UNROLLED_AGENTS = 10


class Spread(MultiAgentEnv[State]):
    """`particle/spread`, as OMAR changed it (Pan et al. 2022; scenario `simple_spread`).

    Actions are forces in [-1, 1]². The reward of agent i is Σ_landmarks min(1 / distance of the nearest agent, 10),
    less 5 for every other agent it touches. The observation of agent i, all positions relative to it, is
    velocity (2), own position (2), landmarks (2N), other agents (2(N-1)), zeros (2(N-1)). The zeros are the silent
    communication channel of the original; with them published datasets fit. An episode is cut off after 25 steps.

    Args:
        n_agents: N, from 2 to 64. Agents and landmarks start in a square of half side 1 (N <= 3), 2 (N <= 10) as
            published, and beyond that 2 sqrt(N / 10), which keeps the density of ten agents.
        time_limit_is_terminal: report the end of the episode as a termination.
    """

    def __init__(self, n_agents: int = 3, time_limit_is_terminal: bool = False):
        if not 2 <= n_agents <= 64:
            raise ValueError(f"particle/spread takes 2 to 64 agents, not {n_agents}.")
        self.task_spec = TaskSpec(
            name="particle/spread",
            kind="continuous",
            n_agents=n_agents,
            obs_dim=6 * n_agents,
            action_dim=2,
            state_dim=6 * n_agents * n_agents,
            episode_length=physics.EPISODE_LENGTH,
            state_is_obs=True,
        )
        if n_agents == 3:
            self.reference = ScoreReference(159.8, 516.8, "OMAR, published constants", published=True)
        self.time_limit_is_terminal = time_limit_is_terminal
        self.half_side = 1.0 if n_agents <= 3 else 2.0 if n_agents <= 10 else 2.0 * (n_agents / 10.0) ** 0.5
        super().__init__()

    def reset(self, key: chex.PRNGKey) -> tuple[State, TimeStep[Observation]]:
        """Puts agents and landmarks uniformly into the square, at rest."""
        key, agents_key, landmarks_key = jax.random.split(key, 3)
        shape = (self.task_spec.n_agents, 2)
        state = State(
            key=key,
            step=jnp.zeros((), jnp.int32),
            position=jax.random.uniform(agents_key, shape, minval=-self.half_side, maxval=self.half_side),
            velocity=jnp.zeros(shape),
            landmarks=jax.random.uniform(landmarks_key, shape, minval=-self.half_side, maxval=self.half_side),
        )
        return state, self.first(self._observe(state))

    def step(self, state: State, actions: chex.Array) -> tuple[State, TimeStep[Observation]]:
        """Moves everyone by one step. actions: (N, 2) forces in [-1, 1]."""
        small = self.task_spec.n_agents <= _UNROLLED_AGENTS
        move, reward = (_move, _rewards) if small else (_move_many, _rewards_many)
        position, velocity = move(state.position, state.velocity, actions)
        state = state._replace(step=state.step + 1, position=position, velocity=velocity)
        return state, self.next(state.step, self._observe(state), reward(position, state.landmarks))

    def _observe(self, state: State) -> Observation:
        observe = _observe if self.task_spec.n_agents <= _UNROLLED_AGENTS else _observe_many
        agents_view = observe(state)
        return Observation(agents_view, agents_view.reshape(-1))

    def render(self, state: State) -> np.ndarray:
        """Agents, outlined red where they touch, and landmarks, golden where they pay most: (H, W, 3) uint8.

        The halo of a landmark shows how near the centre of an agent has to be for that.
        """
        from omarl_envs import rendering

        agents, landmarks = np.asarray(state.position), np.asarray(state.landmarks)
        between = np.linalg.norm(agents[:, None] - agents, axis=-1)  # (N, N)
        touching = (between < 2 * AGENT_RADIUS).sum(axis=1) > 1
        covered = np.linalg.norm(landmarks[:, None] - agents, axis=-1).min(axis=1) <= 1.0 / MAX_COVER
        picture = rendering.Picture(1.5 * self.half_side, f"step {int(state.step)}/{physics.EPISODE_LENGTH}")
        picture.square((0.0, 0.0), 2 * self.half_side, edge=rendering.GREY)
        for agent, velocity, touches in zip(agents, np.asarray(state.velocity), touching, strict=True):
            picture.mover(agent, velocity, AGENT_RADIUS, rendering.BLUE, rendering.RED if touches else None)
        for landmark, is_covered in zip(landmarks, covered, strict=True):
            picture.disc(landmark, 1.0 / MAX_COVER, rendering.GOLD if is_covered else rendering.GREY)
            picture.disc(landmark, LANDMARK_RADIUS, rendering.INK)
        return picture.image()


# Of a few agents every pair is taken by itself; of many (`…_many`) all pairs are arrays.


def _move(position: chex.Array, velocity: chex.Array, actions: chex.Array) -> tuple[chex.Array, chex.Array]:
    agents = physics.vectors(position)
    forces = [action * GAIN for action in physics.vectors(actions)]
    for i, j in _pairs(len(agents)):
        push = physics.contact_force(agents[i] - agents[j], 2 * AGENT_RADIUS)
        forces[i], forces[j] = forces[i] + push, forces[j] - push
    moved = [physics.integrate(*body) for body in zip(agents, physics.vectors(velocity), forces, strict=True)]
    return physics.stack([p for p, _ in moved]), physics.stack([v for _, v in moved])


def _rewards(position: chex.Array, landmarks: chex.Array) -> chex.Array:
    agents = physics.vectors(position)
    covered = jnp.zeros(())
    for landmark in physics.vectors(landmarks):
        nearest: chex.Array | float = jnp.inf
        for agent in agents:
            nearest = jnp.minimum(nearest, (agent - landmark).squared_norm)
        covered += _cover(nearest)
    rewards = [covered] * len(agents)
    for i, j in _pairs(len(agents)):
        cost = COLLISION_COST * _touch(agents[i] - agents[j])
        rewards[i], rewards[j] = rewards[i] - cost, rewards[j] - cost
    return jnp.stack(rewards)


def _observe(state: State) -> chex.Array:
    agents, landmarks = physics.vectors(state.position), physics.vectors(state.landmarks)
    silence = [Vec(jnp.zeros(()), jnp.zeros(()))] * (len(agents) - 1)
    views = []
    for i, (agent, velocity) in enumerate(zip(agents, physics.vectors(state.velocity), strict=True)):
        others = [other - agent for j, other in enumerate(agents) if j != i]
        views.append([velocity, agent, *(landmark - agent for landmark in landmarks), *others, *silence])
    return jnp.stack([physics.flatten(view) for view in views])


def _pairs(n: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def _move_many(position: chex.Array, velocity: chex.Array, actions: chex.Array) -> tuple[chex.Array, chex.Array]:
    push = physics.contact_force(_between(position, position), 2 * AGENT_RADIUS)  # (N, N), zero with oneself
    force = Vec(*actions.T) * GAIN + Vec(push.x.sum(axis=1), push.y.sum(axis=1))
    moved = physics.integrate(Vec(*position.T), Vec(*velocity.T), force)
    return jnp.stack(moved[0], axis=-1), jnp.stack(moved[1], axis=-1)


def _rewards_many(position: chex.Array, landmarks: chex.Array) -> chex.Array:
    covered = _cover(_between(landmarks, position).squared_norm.min(axis=1)).sum()
    touching = _touch(_between(position, position)) & ~jnp.eye(position.shape[0], dtype=bool)
    return covered - COLLISION_COST * touching.sum(axis=1)


def _observe_many(state: State) -> chex.Array:
    n = state.position.shape[0]
    others = np.array([[j for j in range(n) if j != i] for i in range(n)])  # (N, N-1)
    landmarks = state.landmarks[None] - state.position[:, None]  # (N, N, 2)
    agents = state.position[others] - state.position[:, None]  # (N, N-1, 2)
    silence = jnp.zeros((n, 2 * (n - 1)))
    parts = [state.velocity, state.position, landmarks.reshape(n, -1), agents.reshape(n, -1), silence]
    return jnp.concatenate(parts, axis=-1)


def _between(ends: chex.Array, starts: chex.Array) -> Vec:
    delta = ends[:, None] - starts[None]
    return Vec(delta[..., 0], delta[..., 1])


def _cover(squared_distance: chex.Array) -> chex.Array:
    return jnp.minimum(jax.lax.rsqrt(squared_distance), MAX_COVER)


def _touch(delta: Vec) -> chex.Array:
    return delta.norm < 2 * AGENT_RADIUS
