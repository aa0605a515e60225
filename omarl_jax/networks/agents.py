"""How one module serves N agents: each with parameters of its own, or all with the same."""

import dataclasses
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from omarl_envs.spec import TaskSpec

from omarl_jax.networks.normalisation import InputNorm, Net, Norm, batch_statistics, normalise, running_statistics

Sharing = Literal["separate", "shared"]
CriticView = Literal["own", "all", "state"]


@dataclasses.dataclass(frozen=True)
class Agents:
    """A module for all agents at once.

    Attributes:
        module: from inputs (…, X) to outputs (…, Y).
        n: N, agents (or critics).
        sharing: `separate`: every leaf of the parameters begins with (N,). `shared`: there is one set of parameters,
            and the last input has the agent's one-hot number appended.
    """

    module: nn.Module
    n: int
    sharing: Sharing = "separate"

    def init(self, key: chex.PRNGKey, *inputs: chex.Array) -> Any:
        """Parameters, for example inputs (…, N, X)."""
        if self.sharing == "shared":
            return self.module.init(key, *self._with_ids(inputs))["params"]
        of_one = [x[..., 0, :] for x in inputs]
        return jax.vmap(lambda key: self.module.init(key, *of_one)["params"])(jax.random.split(key, self.n))

    def apply(self, params: Any, *inputs: chex.Array, out_axis: int = -2, **options: Any) -> Any:
        """Inputs (…, N, X) -> outputs (…, N, Y); `out_axis` is the agents' axis in them."""

        def module(params: Any, *inputs: chex.Array) -> Any:
            return self.module.apply({"params": params}, *inputs, **options)

        if self.sharing == "shared":
            return module(params, *self._with_ids(inputs))
        return jax.vmap(module, (0, *[-2] * len(inputs)), out_axis)(params, *inputs)

    def apply_joint(self, params: Any, *inputs: chex.Array, out_axis: int = -2, **options: Any) -> Any:
        """The one network of n = 1, applied to inputs (…, N, X) of N agents."""

        def module(*inputs: chex.Array) -> Any:
            return self.module.apply({"params": jax.tree.map(lambda x: x[0], params)}, *inputs, **options)

        return jax.vmap(module, -2, out_axis)(*inputs)

    def _with_ids(self, inputs: tuple[chex.Array, ...]) -> tuple[chex.Array, ...]:
        *others, x = inputs
        ids = jnp.broadcast_to(jnp.eye(self.n, dtype=x.dtype), (*x.shape[:-1], self.n))
        return (*others, jnp.concatenate([x, ids], axis=-1))


@dataclasses.dataclass(frozen=True)
class OfObservations:
    """A network that sees each agent's own observation.

    Attributes:
        spec: the task.
        agents: the network.
        input_norm: normalisation of observations.
    """

    spec: TaskSpec
    agents: Agents
    input_norm: InputNorm

    def init(self, key: chex.PRNGKey) -> Net:
        """Fresh parameters, and running statistics that begin with mean 0 and variance 1."""
        obs = jnp.zeros((self.spec.n_agents, self.spec.obs_dim))
        stats = Norm(obs, jnp.ones_like(obs)) if self.input_norm == "batch" else None
        return Net(self._init(key, obs), stats)

    def fits(self, net: Any) -> bool:
        """Whether parameters and statistics are of this network, by their names and shapes."""
        shapes = [jax.tree.map(jnp.shape, one) for one in (net, jax.eval_shape(self.init, jax.random.key(0)))]
        return shapes[0] == shapes[1]

    def observe(self, net: Net, *passes: chex.Array) -> Net:
        """Moves the running statistics of batch normalisation, one step for each pass of observations (…, N, O)."""
        return net if net.stats is None else net._replace(stats=running_statistics(net.stats, *passes))

    def _init(self, key: chex.PRNGKey, obs: chex.Array) -> Any:
        return self.agents.init(key, obs)

    def _in_update(self, obs: chex.Array) -> chex.Array:
        return normalise(obs, batch_statistics(obs)) if self.input_norm == "batch" else obs

    def _in_play(self, net: Net, obs: chex.Array) -> chex.Array:
        return obs if net.stats is None else normalise(obs, net.stats)


def view_of(view: CriticView, x: chex.Array, n: int) -> chex.Array:
    """What each of n agents (or critics) sees.

    Args:
        view: `own` or `all`: x is (…, N, X), the parts of all agents; `state`: x is (…, S), the global state.
        x: observations, actions or states.
        n: agents, or 1 for a joint critic.

    Returns:
        (…, n, X'): the own part, X' = X; those of all agents in a row, X' = N X; or the state, X' = S.
    """
    if view == "own":
        return x
    x = x if view == "state" else x.reshape(*x.shape[:-2], -1)
    return jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], n, x.shape[-1]))


def real_actions(spec: TaskSpec) -> np.ndarray | None:
    """(N, A) bool, False for action entries that an agent does not have; None where all agents have the same."""
    if not spec.action_dims:
        return None
    return np.arange(spec.action_dim) < np.array(spec.action_dims)[:, None]


def without_padding(x: chex.Array, spec: TaskSpec) -> chex.Array:
    """x (…, N, A) with 0 in place of action entries that an agent does not have."""
    real = real_actions(spec)
    return x if real is None else jnp.where(real, x, 0.0)


def mean_over_actions(x: chex.Array, spec: TaskSpec) -> chex.Array:
    """The mean of x (…, N, A) over the action entries that each agent has, (…, N)."""
    sizes = np.array(spec.action_dims or spec.action_dim, np.float32)
    return without_padding(x, spec).sum(axis=-1) / sizes


def sum_over_actions(x: chex.Array, spec: TaskSpec) -> chex.Array:
    """The sum of x (…, N, A) over the action entries that each agent has, (…, N)."""
    return without_padding(x, spec).sum(axis=-1)


def illegal_to_minus_infinity(values: chex.Array, legal: Any) -> chex.Array:
    """Values of discrete actions, those of illegal ones -inf; `legal` broadcasts against them, None: all are legal."""
    # To add is cheaper than to select: what is added is small, and vectorises.
    return values if legal is None else values + jnp.where(legal, 0.0, -jnp.inf)
