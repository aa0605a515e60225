"""Spread as one would first write it in JAX: positions as (N, 2) arrays, pairs as (N, N, 2) tensors.

What is measured against it is what writing one coordinate and one pair at a time is worth in `particle/spread`.
"""

import chex
import jax.numpy as jnp
import numpy as np
from jumanji.types import TimeStep
from omarl_envs.base import Observation
from omarl_envs.particle import physics
from omarl_envs.particle.physics import State
from omarl_envs.particle.spread import AGENT_RADIUS, COLLISION_COST, GAIN, MAX_COVER, Spread


class NaiveSpread(Spread):
    """`particle/spread` with another `step`, for one environment; many are a `jax.vmap` of it."""

    def step(self, state: State, actions: chex.Array) -> tuple[State, TimeStep[Observation]]:
        """Moves everyone by one step. actions: (N, 2) forces in [-1, 1]."""
        forces = GAIN * actions + _contact_forces(state.position)
        velocity = state.velocity * (1.0 - physics.DAMPING) + forces * physics.TIME_STEP
        position = state.position + velocity * physics.TIME_STEP
        state = state._replace(step=state.step + 1, position=position, velocity=velocity)
        return state, self.next(state.step, self._observe(state), _rewards(position, state.landmarks))

    def _observe(self, state: State) -> Observation:
        n = self.task_spec.n_agents
        others = np.array([[j for j in range(n) if j != i] for i in range(n)])  # (N, N-1)
        landmarks = state.landmarks[None] - state.position[:, None]  # (N, N, 2)
        agents = (state.position[None] - state.position[:, None])[np.arange(n)[:, None], others]  # (N, N-1, 2)
        silence = jnp.zeros((n, 2 * (n - 1)))
        parts = [state.velocity, state.position, landmarks.reshape(n, -1), agents.reshape(n, -1), silence]
        agents_view = jnp.concatenate(parts, axis=-1)
        return Observation(agents_view, agents_view.reshape(-1))


def _contact_forces(position: chex.Array) -> chex.Array:
    """(N, 2) positions -> (N, 2) forces."""
    delta = position[:, None] - position[None]  # (N, N, 2), zero with oneself
    distance = jnp.sqrt(jnp.maximum(jnp.sum(delta**2, axis=-1, keepdims=True), 1e-18))
    overlap = (2 * AGENT_RADIUS - distance) / physics.CONTACT_MARGIN
    penetration = physics.CONTACT_MARGIN * jnp.logaddexp(0.0, overlap)
    return jnp.sum(physics.CONTACT_FORCE * delta / distance * penetration, axis=1)


def _rewards(position: chex.Array, landmarks: chex.Array) -> chex.Array:
    """(N,) rewards."""
    from_landmarks = jnp.linalg.norm(landmarks[:, None] - position[None], axis=-1)  # (N, N)
    covered = jnp.sum(jnp.minimum(1.0 / jnp.min(from_landmarks, axis=1), MAX_COVER))
    apart = jnp.linalg.norm(position[:, None] - position[None], axis=-1)  # (N, N)
    touching = (apart < 2 * AGENT_RADIUS) & ~jnp.eye(position.shape[0], dtype=bool)
    return covered - COLLISION_COST * jnp.sum(touching, axis=1)
