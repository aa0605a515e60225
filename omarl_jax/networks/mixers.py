"""Mixers: from the values of N agents to a value of the team."""

import dataclasses
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from omarl_envs.spec import TaskSpec

from omarl_jax.networks import modules

MixerKind = Literal["hyper", "identity", "stochastic"]


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


@dataclasses.dataclass(frozen=True)
class SquareMixer:
    """N values Q_k = Σ_j w_kj(s) Q_j + b_k(s) of the team with w_kj >= 0, which belong to one agent each.

    Attributes:
        spec: the task.
        module: the layers.
        kind: `hyper`: weights from the state. `stochastic`: w_kj = s_kj α_j / α_k with Σ_k s_kj = 1, so Σ_k α_k Q_k
            weighs each agent's value by its own α. `identity`: Q_k is the agent's own value, without parameters.
    """

    spec: TaskSpec
    module: modules.SquareMixing
    kind: MixerKind

    def init(self, key: chex.PRNGKey) -> Any:
        """Fresh parameters. Biases start at 0."""
        if self.kind == "identity":
            return {}
        return self.module.init(key, jnp.zeros((1, self.spec.state_dim)))["params"]

    def weights(self, params: Any, state: chex.Array, alpha: chex.Array) -> tuple[chex.Array, chex.Array]:
        """w (B, N, N) and b (B, N) of states (B, S), with α (N,)."""
        n = self.spec.n_agents
        if self.kind == "identity":
            return jnp.broadcast_to(jnp.eye(n), (len(state), n, n)), jnp.zeros((len(state), n))
        w, b = self.module.apply({"params": params}, state)
        if self.kind == "stochastic":
            return jax.nn.softmax(w, axis=-2) * alpha / alpha[:, None], b
        return jnp.abs(w), b

    def __call__(self, params: Any, state: chex.Array, alpha: chex.Array, x: chex.Array) -> chex.Array:
        """The N values (B, N) in states (B, S), from the agents' values x (B, N), with α (N,)."""
        return mix(*self.weights(params, state, alpha), x)


def square_mixer(spec: TaskSpec, hidden: int, kind: MixerKind) -> SquareMixer:
    """N values of the team from those of N agents, by one hidden layer of the global state."""
    return SquareMixer(spec, modules.SquareMixing(hidden, spec.n_agents), kind)


def mix(w: chex.Array, b: chex.Array, x: chex.Array) -> chex.Array:
    """Σ_i w_i x_i + b: w (B, M, N), b (B, M), x (B, N) -> (B, M)."""
    return jnp.einsum("bmn,bn->bm", w, x) + b
