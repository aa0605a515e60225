"""Critics and values of all agents at once."""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from omarl_envs.spec import TaskSpec

from omarl_jax.networks import agents, modules
from omarl_jax.networks.agents import Agents, CriticView, OfObservations, Sharing, view_of
from omarl_jax.networks.blocks import CONCAT, in_blocks
from omarl_jax.networks.normalisation import InputNorm, Net, batch_statistics, normalise


class CriticInputs(NamedTuple):
    """What G critics see, normalised.

    Attributes:
        obs: (B, G, X).
        actions: (…, B, G, A'), possibly many candidates for each observation.
    """

    obs: chex.Array
    actions: chex.Array


@dataclasses.dataclass(frozen=True)
class Critic:
    """Action values of continuous actions, as pure functions.

    Attributes:
        spec: the task.
        agents: the network of G critics: one of each agent, or one for all (`joint`).
        view: whether a critic sees its own agent, all agents, or all actions and the global state. Then every `obs`
            here is the state (B, S).
        input_norm: normalisation of observations and actions.
    """

    spec: TaskSpec
    agents: Agents
    view: CriticView
    input_norm: InputNorm

    @property
    def joint(self) -> bool:
        """Whether one critic learns for all agents, G = 1; else G = N."""
        return self.agents.n < self.spec.n_agents

    def init(self, key: chex.PRNGKey) -> Any:
        """Fresh parameters of G critics."""
        n, a = self.spec.n_agents, self.spec.action_dim
        obs = jnp.zeros((1, self.spec.state_dim) if self.view == "state" else (1, n, self.spec.obs_dim))
        return self.agents.init(key, *self.inputs(obs, jnp.zeros((1, n, a))))

    def inputs(self, obs: chex.Array, actions: chex.Array) -> CriticInputs:
        """What critics see of obs (B, N, O) and actions (…, B, N, A).

        Batch normalisation takes the statistics of this very call, candidates and batch together, so a loss that is
        computed in blocks of the batch has its inputs made before.
        """
        seen_actions = "all" if self.view == "state" else self.view
        actions = view_of(seen_actions, agents.without_padding(actions, self.spec), self.agents.n)
        return self._normalised(view_of(self.view, obs, self.agents.n), actions)

    def apply(self, params: Any, inputs: CriticInputs) -> chex.Array:
        """Values (heads, …, B, G)."""
        return self.agents.apply(params, *inputs, out_axis=-1)

    def __call__(self, params: Any, obs: chex.Array, actions: chex.Array) -> chex.Array:
        """Values (heads, …, B, G) of actions (…, B, N, A) in observations (B, N, O)."""
        return self.apply(params, self.inputs(obs, actions))

    def own(self, params: Any, obs: chex.Array, own: chex.Array, others: chex.Array) -> chex.Array:
        """The first head's value of what each agent alone does, while the others act as given.

        Candidates, (K, B, N, A), are evaluated in blocks on CPUs.

        Args:
            params: parameters.
            obs: (B, N, O).
            own: (…, B, N, A), the action of each agent; the gradient of entry i goes to its own action only.
            others: (B, N, A), what the other agents do.

        Returns:
            (…, B, N).
        """
        n, actions = self.spec.n_agents, own
        if self.view != "own":
            # (…, B, N, N, A): the agents' axis of critics, then that of actions
            actions = jnp.where(jnp.eye(n, dtype=bool)[..., None], own[..., None, :, :], others[:, None])
        actions = agents.without_padding(actions, self.spec)
        actions = actions.reshape(*own.shape[:-1], -1)
        inputs = self._normalised(view_of(self.view, obs, n), actions)
        network = self.agents.apply_joint if self.joint else self.agents.apply

        def values(params: Any, obs: chex.Array, actions: chex.Array) -> chex.Array:
            return network(params, obs, actions, out_axis=-1, heads=1)[0]

        if own.ndim == others.ndim:
            return values(params, *inputs)
        batch_first = in_blocks(lambda *x: values(*x).swapaxes(0, 1), (None, 0, 1), CONCAT)
        return batch_first(params, *inputs).swapaxes(0, 1)

    def group(self, x: chex.Array, how: Literal["mean", "sum", "all"]) -> chex.Array:
        """Quantities of agents (…, N) as the critics learn them, (…, G)."""
        return group(x, self.joint, how)

    def _normalised(self, obs: chex.Array, actions: chex.Array) -> CriticInputs:
        if self.input_norm == "batch":
            obs, actions = (normalise(x, batch_statistics(x)) for x in (obs, actions))
        return CriticInputs(obs, actions)


def group(x: chex.Array, joint: bool, how: Literal["mean", "sum", "all"]) -> chex.Array:
    """Quantities of agents (…, N) as they are; of a team that learns as one their mean, sum or logical and, (…, 1)."""
    return getattr(x, how)(axis=-1, keepdims=True) if joint else x


def critic(
    spec: TaskSpec,
    hidden: tuple[int, ...],
    input_norm: InputNorm,
    sharing: Sharing = "separate",
    view: CriticView = "own",
    joint: bool = False,
    heads: int = 2,
) -> Critic:
    """Critics of continuous actions.

    Args:
        spec: the task.
        hidden: widths of the hidden layers.
        input_norm: `batch` normalises observations and actions, all heads of a critic alike (as published).
        sharing: whether agents share parameters; a joint critic has nobody to share with.
        view: what a critic sees.
        joint: one critic for all agents instead of one for each.
        heads: networks of a critic that differ in their parameters.
    """
    module = modules.Heads(hidden, input_norm == "batch", heads)
    agents_of_critic = Agents(module, 1, "separate") if joint else Agents(module, spec.n_agents, sharing)
    return Critic(spec, agents_of_critic, view, input_norm)


@dataclasses.dataclass(frozen=True)
class ActionValues(OfObservations):
    """Values of discrete actions. Actions that an agent does not have are worth -inf.

    Attributes:
        quantiles: Q, values of an action.
    """

    quantiles: int

    def __call__(self, params: Any, obs: chex.Array) -> chex.Array:
        """(…, N, Q, A) in an update, obs (…, N, O): batch normalisation takes the statistics of this very call."""
        return self._shaped(self.agents.apply(params, self._in_update(obs)), self.quantiles)

    def act(self, net: Net, obs: chex.Array) -> chex.Array:
        """(…, N, Q, A) when acting: batch normalisation takes the running statistics."""
        return self._shaped(self.agents.apply(net.params, self._in_play(net, obs)), self.quantiles)

    def act_average(self, net: Net, obs: chex.Array, weights: chex.Array) -> chex.Array:
        """(…, N, A), the average of quantiles with weights (Q,).

        It averages the parameters of the last layer, which is cheaper than to average its outputs wherever there are
        more than a few observations.
        """
        last = modules.last_layer(net.params)

        def averaged(x: chex.Array) -> chex.Array:
            return weights @ x.reshape(*x.shape[:-1], self.quantiles, -1)

        params = {**net.params, last: jax.tree.map(averaged, net.params[last])}
        one = dataclasses.replace(self.agents, module=self.agents.module.clone(outputs=self.spec.action_dim))
        return self._shaped(one.apply(params, self._in_play(net, obs)), 1)[..., 0, :]

    def _shaped(self, x: chex.Array, quantiles: int) -> chex.Array:
        real = agents.real_actions(self.spec)
        x = x.reshape(*x.shape[:-1], quantiles, self.spec.action_dim)
        return agents.illegal_to_minus_infinity(x, None if real is None else real[:, None])


def action_values(
    spec: TaskSpec, hidden: tuple[int, ...], input_norm: InputNorm, sharing: Sharing = "separate", quantiles: int = 1
) -> ActionValues:
    """Values of discrete actions: obs (…, N, O) -> (…, N, Q, A)."""
    module = modules.MLP(hidden, quantiles * spec.action_dim, input_norm == "batch")
    return ActionValues(spec, Agents(module, spec.n_agents, sharing), input_norm, quantiles)


@dataclasses.dataclass(frozen=True)
class StateValues:
    """Values of observations.

    Attributes:
        network: with one output.
    """

    network: OfObservations

    @property
    def agents(self) -> Agents:
        """Whose parameters they are."""
        return self.network.agents

    def init(self, key: chex.PRNGKey) -> Any:
        """Fresh parameters."""
        return self.network.init(key).params

    def __call__(self, params: Any, obs: chex.Array) -> chex.Array:
        """obs (…, N, O) -> (…, N)."""
        return self.network.agents.apply(params, self.network._in_update(obs))[..., 0]


def state_values(
    spec: TaskSpec, hidden: tuple[int, ...], input_norm: InputNorm, sharing: Sharing = "separate"
) -> StateValues:
    """Values of observations: obs (…, N, O) -> (…, N)."""
    module = modules.MLP(hidden, 1, input_norm == "batch")
    return StateValues(OfObservations(spec, Agents(module, spec.n_agents, sharing), input_norm))


@dataclasses.dataclass(frozen=True)
class DiscreteCritic:
    """Action values of discrete actions, called as a `Critic` with one head.

    Attributes:
        network: values of all actions.
    """

    network: ActionValues

    @property
    def agents(self) -> Agents:
        """Whose parameters they are."""
        return self.network.agents

    def init(self, key: chex.PRNGKey) -> Any:
        """Fresh parameters."""
        return self.network.init(key).params

    def __call__(self, params: Any, obs: chex.Array, actions: chex.Array) -> chex.Array:
        """Values (1, …, B, N) of actions (…, B, N) in observations (B, N, O)."""
        return take_action(self.network(params, obs), actions)[None, ..., 0]


def q_network(
    spec: TaskSpec, hidden: tuple[int, ...], input_norm: InputNorm, sharing: Sharing = "separate"
) -> Critic | DiscreteCritic:
    """One critic of each agent for whatever actions the task has: (params, obs, actions) -> (1, …, B, N)."""
    if spec.kind == "discrete":
        return DiscreteCritic(action_values(spec, hidden, input_norm, sharing))
    return critic(spec, hidden, input_norm, sharing, heads=1)


def take_action(values: chex.Array, actions: chex.Array) -> chex.Array:
    """The values (…, Q, A) of actions (…), (…, Q); actions may have further axes before those of the values."""
    values = values.reshape(*[1] * (actions.ndim + 2 - values.ndim), *values.shape)
    return jnp.take_along_axis(values, actions[..., None, None], axis=-1)[..., 0]
