"""Mixers: from the values of N agents to a value of the team."""

import dataclasses
from typing import Any

import chex
import jax.numpy as jnp
from omarl_envs.spec import TaskSpec

from omarl_jax.networks import modules


@dataclasses.dataclass(frozen=True)
class LinearMixer:
    """Q_tot = Σ_i w_i(s) Q_i + b(s) with w_i >= 0 (OMIGA, eq. 8): a linear layer, ReLU, and a linear layer each.

    Attributes:
        spec: the task.
        module: the layers.
    """

    spec: TaskSpec
    module: modules.LinearMixing

    def init(self, key: chex.PRNGKey) -> Any:
        """Fresh parameters."""
        return self.module.init(key, jnp.zeros((1, self.spec.state_dim)))["params"]

    def weights(self, params: Any, state: chex.Array) -> tuple[chex.Array, chex.Array]:
        """w (B, 1, N) and b (B, 1) of states (B, S)."""
        w, b = self.module.apply({"params": params}, state)
        return w[:, None], b

    def __call__(self, params: Any, state: chex.Array, x: chex.Array) -> chex.Array:
        """The team's value (B, 1) in states (B, S), from the agents' values x (B, N)."""
        return mix(*self.weights(params, state), x)


def linear_mixer(spec: TaskSpec, hidden: int) -> LinearMixer:
    """Weights and a bias from the global state, by one hidden layer."""
    return LinearMixer(spec, modules.LinearMixing(hidden, spec.n_agents))


def mix(w: chex.Array, b: chex.Array, x: chex.Array) -> chex.Array:
    """Σ_i w_i x_i + b: w (B, M, N), b (B, M), x (B, N) -> (B, M)."""
    return jnp.einsum("bmn,bn->bm", w, x) + b
