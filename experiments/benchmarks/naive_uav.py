"""The UAV task as one would first write it in JAX: one UAV after the other, all from their formulas."""

import chex
import jax
import jax.numpy as jnp
from jumanji.types import TimeStep
from omarl_envs.base import Observation
from omarl_envs.uav import DEVICES, GAIN, HEIGHT, MAX_AGE, MOVES, PITCH, RISK_REGION, State, UavIot


class NaiveUav(UavIot):
    """`uav/iot` with another `step`, for one environment; many are a `jax.vmap` of it."""

    def step(self, state: State, actions: chex.Array) -> tuple[State, TimeStep[Observation]]:
        """Moves, serves and punishes. actions: (U,) int32 below 5 (M + 1)."""
        devices, region = jnp.array(DEVICES), jnp.array(RISK_REGION)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(actions))
        ages, cells, cost = jnp.minimum(state.ages + 1, MAX_AGE), state.cells, 0.0
        for u in range(len(actions)):
            device, move = actions[u] // len(MOVES), actions[u] % len(MOVES)
            cell = jnp.clip(cells[u] + jnp.array(MOVES)[move], 0, self.side - 1)
            serves = device < len(devices)
            distance = PITCH * jnp.linalg.norm((cell - devices[device]).astype(jnp.float32))
            power = (distance**2 + HEIGHT**2) * (2.0 ** (5e6 / 1e6) - 1.0) * self.noise / GAIN
            cost += jnp.where(serves, 500.0 * power, 0.0)
            ages = jnp.where(serves, ages.at[device].set(1), ages)
            risky = (cell == region).all(axis=1).any()
            cost += jnp.where(risky & jax.random.bernoulli(keys[u], self.risk_probability), self.risk_penalty, 0.0)
            cells = cells.at[u].set(cell)
        age = ages.mean()
        state = state._replace(step=state.step + 1, cells=cells, ages=ages)
        rewards = jnp.full((len(actions),), -cost - age)
        metrics = {"return": -cost / len(actions) - age}
        return state, self.next(state.step, self._observe(state), rewards, metrics=metrics)
