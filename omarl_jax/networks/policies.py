"""Policies of all agents at once."""

import dataclasses
from typing import Any, Protocol

import chex
import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn
from omarl_envs.spec import TaskSpec

from omarl_jax.networks import agents, modules
from omarl_jax.networks.agents import Agents, OfObservations, Sharing
from omarl_jax.networks.normalisation import InputNorm, Net

_LOG_STD = (-5.0, 2.0)
_LARGEST_MEAN = 9.0  # tanh is 1 in float32 beyond that


class Distribution(Protocol):
    """What a stochastic policy returns. It lives inside one traced function, and never crosses `jit` or `vmap`."""

    def log_prob(self, actions: chex.Array) -> chex.Array:
        """log π(a|o), (…, N), of actions (…, N, A) or (…, N)."""

    def sample(self, key: chex.PRNGKey) -> chex.Array:
        """One action of each agent."""

    def mode(self) -> chex.Array:
        """What acting greedily takes: tanh of the Gaussian's mean, or the most likely legal action."""

    def kl(self, other: Any) -> chex.Array:
        """KL(self || other), (…, N), of a distribution of the same kind."""

    def support(self, key: chex.PRNGKey, samples: int) -> tuple[chex.Array, chex.Array]:
        """Actions (K, …, N, A) or (K, …, N) and weights (K, …, N) whose sums over K are expectations.

        These are all discrete actions with their probabilities, or so many samples, all with the weight 1/K. Gradients
        flow through either.
        """


class TanhGaussian:
    """A Gaussian squashed by tanh, for actions (…, N, A). Entries that an agent does not have count for nothing."""

    def __init__(self, mean: chex.Array, log_std: chex.Array, spec: TaskSpec):
        self._mean, self._spec = mean, spec
        self._normal = distrax.Normal(mean, jnp.exp(log_std))
        self._entries = distrax.Transformed(self._normal, distrax.Tanh())

    def log_prob(self, actions: chex.Array) -> chex.Array:
        """(…, N); actions of exactly ±1 count as ±(1 - 1e-6)."""
        clipped = jnp.clip(actions, -1.0 + 1e-6, 1.0 - 1e-6)
        return agents.sum_over_actions(self._entries.log_prob(clipped), self._spec)

    def sample(self, key: chex.PRNGKey) -> chex.Array:
        """(…, N, A)."""
        return agents.without_padding(self._entries.sample(seed=key), self._spec)

    def mode(self) -> chex.Array:
        """tanh of the mean, (…, N, A)."""
        return agents.without_padding(jnp.tanh(self._mean), self._spec)

    def kl(self, other: "TanhGaussian") -> chex.Array:
        """(…, N), exact: tanh changes both densities alike."""
        return agents.sum_over_actions(self._normal.kl_divergence(other._normal), self._spec)

    def support(self, key: chex.PRNGKey, samples: int) -> tuple[chex.Array, chex.Array]:
        """Samples (K, …, N, A), each with the weight 1/K."""
        actions = agents.without_padding(self._entries.sample(seed=key, sample_shape=(samples,)), self._spec)
        return actions, jnp.full(actions.shape[:-1], 1.0 / samples)


class Categorical:
    """A distribution over the legal of A discrete actions."""

    def __init__(self, logits: chex.Array, legal: Any):
        self._distribution = distrax.Categorical(logits=agents.illegal_to_minus_infinity(logits, legal))

    def log_prob(self, actions: chex.Array) -> chex.Array:
        """(…, N) of actions (…, N)."""
        return self._distribution.log_prob(actions)

    def sample(self, key: chex.PRNGKey) -> chex.Array:
        """(…, N) int32."""
        return self._distribution.sample(seed=key).astype(jnp.int32)

    def mode(self) -> chex.Array:
        """(…, N) int32."""
        return self._distribution.mode().astype(jnp.int32)

    def kl(self, other: "Categorical") -> chex.Array:
        """(…, N), over the actions that are legal in both."""
        return self._distribution.kl_divergence(other._distribution)

    def support(self, key: chex.PRNGKey, samples: int) -> tuple[chex.Array, chex.Array]:
        """All actions (A, …, N) with their probabilities, those of illegal ones 0; nothing is drawn."""
        probabilities = jnp.moveaxis(self._distribution.probs, -1, 0)
        numbers = jnp.arange(len(probabilities), dtype=jnp.int32)
        numbers = numbers.reshape(-1, *[1] * (probabilities.ndim - 1))
        return jnp.broadcast_to(numbers, probabilities.shape), probabilities


@dataclasses.dataclass(frozen=True)
class Policy(OfObservations):
    """The policies of all agents as pure functions.

    Attributes:
        kind: `deterministic` or `gaussian` for continuous actions, `categorical` for discrete ones.
        memory: width of the recurrent state, 0 for policies without memory.
    """

    kind: str
    memory: int = 0

    def __call__(self, params: Any, obs: chex.Array, mask: Any = None) -> Any:
        """The policy in an update: batch normalisation takes the statistics of this very call.

        Args:
            params: parameters.
            obs: (…, N, O); for policies with memory windows (B, T, N, O), each of which begins without memory.
            mask: (…, N, A) legal actions of discrete tasks, or None.

        Returns:
            actions (…, N, A), or a distribution over them.
        """
        return self.of_outputs(self.outputs(params, obs), mask)

    def outputs(self, params: Any, obs: chex.Array) -> chex.Array:
        """What `of_outputs` makes actions or distributions of, (…, N, X), in an update; obs as in a call."""
        x = self._in_update(obs)
        if not self.memory:
            return self.agents.apply(params, x)
        steps = jnp.moveaxis(x, 1, 0)  # (T, B, N, O)
        _, outputs = jax.lax.scan(lambda carry, x: self.agents.apply(params, carry, x), self.start(len(obs)), steps)
        return jnp.moveaxis(outputs, 0, 1)

    def of_outputs(self, x: chex.Array, mask: Any = None) -> Any:
        """Actions, or a distribution, from the last layer (…, N, X): before the tanh, mean and log std, or logits."""
        if self.kind == "deterministic":
            return agents.without_padding(jnp.tanh(x), self.spec)
        if self.kind == "gaussian":
            mean, log_std = jnp.split(x, 2, axis=-1)
            return TanhGaussian(jnp.clip(mean, -_LARGEST_MEAN, _LARGEST_MEAN), jnp.clip(log_std, *_LOG_STD), self.spec)
        return Categorical(agents.illegal_to_minus_infinity(x, agents.real_actions(self.spec)), mask)

    def act(self, net: Net, obs: chex.Array, mask: Any = None, carry: Any = ()) -> tuple[Any, Any]:
        """The policy when it acts: batch normalisation takes the running statistics.

        Args:
            net: parameters and statistics.
            obs: (…, N, O).
            mask: (…, N, A) legal actions of discrete tasks, or None.
            carry: (…, N, memory), what a policy with memory remembers; otherwise anything.

        Returns:
            actions (…, N, A) or a distribution over them; and the next carry.
        """
        x = self._in_play(net, obs)
        if not self.memory:
            return self.of_outputs(self.agents.apply(net.params, x), mask), carry
        carry, outputs = self.agents.apply(net.params, carry, x)
        return self.of_outputs(outputs, mask), carry

    def start(self, *shape: int) -> Any:
        """The carry (*shape, N, memory) of policies that remember nothing yet; () for policies without memory."""
        return jnp.zeros((*shape, self.spec.n_agents, self.memory)) if self.memory else ()

    def _init(self, key: chex.PRNGKey, obs: chex.Array) -> Any:
        return self.agents.init(key, self.start(), obs) if self.memory else self.agents.init(key, obs)


def deterministic_policy(
    spec: TaskSpec, hidden: tuple[int, ...], input_norm: InputNorm, sharing: Sharing = "separate", memory: int = 0
) -> Policy:
    """tanh of an MLP whose last weights start within ±3e-3: obs (…, N, O) -> actions (…, N, A)."""
    return _policy(spec, hidden, input_norm, sharing, memory, "deterministic", spec.action_dim, 3e-3)


def stochastic_policy(
    spec: TaskSpec, hidden: tuple[int, ...], input_norm: InputNorm, sharing: Sharing = "separate", memory: int = 0
) -> Policy:
    """A squashed Gaussian for continuous actions, a categorical distribution over discrete ones.

    The log standard deviation is clipped to [-5, 2] and the mean to ±9.
    """
    if spec.kind == "discrete":
        return _policy(spec, hidden, input_norm, sharing, memory, "categorical", spec.action_dim)
    return _policy(spec, hidden, input_norm, sharing, memory, "gaussian", 2 * spec.action_dim)


def _policy(
    spec: TaskSpec,
    hidden: tuple[int, ...],
    input_norm: InputNorm,
    sharing: Sharing,
    memory: int,
    kind: str,
    outputs: int,
    last_kernel_bound: float | None = None,
) -> Policy:
    module: nn.Module = (
        modules.GRU(memory, outputs, input_norm == "batch", last_kernel_bound)
        if memory
        else modules.MLP(hidden, outputs, input_norm == "batch", last_kernel_bound)
    )
    return Policy(spec, Agents(module, spec.n_agents, sharing), input_norm, kind, memory)


def scale_logits(net: Net, gain: chex.Array) -> Net:
    """A policy whose last layer is multiplied by `gain`, before the tanh."""
    last = modules.last_layer(net.params)
    return net._replace(params={**net.params, last: jax.tree.map(lambda x: gain * x, net.params[last])})
