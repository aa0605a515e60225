"""MA-CIQR: conservative quantile regression for discrete actions, each agent for itself (Eldeeb et al. 2024, MA-CQR).

Each of N agents i learns M quantiles θ_ij(o_i, a) at the fractions τ_j = ξ (2j + 1) / 2M, j = 0 … M - 1:

    y_j' = r_i + γ (1 - d) θ̄_ij'(o'_i, a*),   a* = argmax_a Σ_j θ̄_ij(o'_i, a)
    L_TD = ½ mean Σ_j 1/M Σ_j' |τ_j - 1{δ_jj' < 0}| H_κ(δ_jj') / κ,   δ_jj' = y_j' - θ_ij(o_i, a_i)
    L = L_TD + α mean Σ_j [log Σ_a exp θ_ij(o_i, a) - θ_ij(o_i, a_i)]

It acts greedily by the mean of its quantiles: by the mean return for ξ = 1, and by an estimate of its CVaR at level ξ
below that. The tail is taken anew in every step, which is more cautious than the CVaR of the whole return. With
`act_cvar` ζ it acts by the quantiles of the lowest fractions instead, a share ζ of all, which estimate the CVaR at
level ζ ξ of the policy that is greedy by all quantiles. Quantiles may cross; they stay in the order of their fractions.

For errors below κ the Huber loss is quadratic and biases quantiles towards the mean: they are accurate only if returns
span at least about 100 κ. Where they do not, raise `reward_scale`, which multiplies the rewards and thereby that span,
or lower `huber_kappa` to the same effect. Returns of thousands are learned sooner with a `reward_scale` below 1, as
long as it leaves that span. It also changes the weight of α, since the penalty separates actions by a few units of the
scaled values.

One file serves the whole family (see `presets/variants.toml`). `mixer` `vdn` adds the quantiles of all agents, one by
one, and learns the sum from the team's reward, with one gradient clip for all (value decomposition): MA-CCQR.
`quantiles` 0 learns the mean alone, by half the squared error: MA-CIQL and MA-CCQL. `cql_alpha` 0 makes QR-DQN and DQN.

Known errors of the published code, each an option: `published_axis` gives the fractions to the targets and not to the
quantiles, so that all quantiles of an action learn the same number; `published_adam` resets Adam at every update, which
leaves the sign of the gradient; `published_penalty` subtracts the number of the action where its value belongs;
`published_reward` counts the reward N (`ccqr`) or N/2 (`ccql`) times; `published_targets` initialises the targets
independently. Different without an option: there the networks of all agents start alike, here each starts elsewhere;
there an epoch is a shuffle of the data, whose last batch is short, here every batch is drawn with replacement.
"""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms._checks import (
    check_value_learner,
    require,
    require_kind,
    require_not_negative,
    require_positive,
)
from omarl_jax.algorithms._losses import quantile_huber, td_target
from omarl_jax.algorithms._steps import per_agent, soft_update, together
from omarl_jax.networks import InputNorm, Net, Sharing, illegal_to_minus_infinity, take_action
from omarl_jax.types import Algorithm, Context, Metrics, Needs, TaskSpec, Transition, View, config


@config
class Config:
    """Hyperparameters of MA-CIQR; the defaults are those of the UAV task."""

    lr: float = 1e-5
    """Adam's learning rate."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.01
    """Soft update of the targets."""
    grad_clip: float = 1e9
    """Largest norm of a gradient; the default clips nothing."""
    cql_alpha: float = 1.0
    """α, the weight of the conservative penalty."""
    cvar_level: float = 1.0
    """ξ: the share of the worst outcomes that is learned."""
    act_cvar: float = 1.0
    """ζ: the share of the quantiles, those of the lowest fractions, that it acts by."""
    huber_kappa: float = 1.0
    """κ, where the loss of quantiles turns from squares to lines."""
    reward_scale: float = 1.0
    """Factor of the rewards."""
    quantiles: int = 8
    """M, quantiles of an action; 0 learns the mean alone."""
    mixer: Literal["none", "vdn"] = "none"
    """`vdn` learns the sum of all agents' values."""
    epsilon_start: float = 1.0
    """Share of random actions when exploring, at first."""
    epsilon_end: float = 0.01
    """The same in the end."""
    epsilon_updates: float = 10_000.0
    """Updates in between."""
    published_axis: bool = False
    """Give the fractions to the targets."""
    published_adam: bool = False
    """Reset Adam at every update."""
    published_penalty: bool = False
    """Subtract the actions' numbers in the penalty."""
    published_reward: bool = False
    """Count the reward more than once."""
    published_targets: bool = False
    """Initialise the targets independently."""
    batch_size: int = 128
    """Transitions a batch."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    input_norm: InputNorm = "none"
    """Normalisation of the networks' inputs."""
    sharing: Sharing = "separate"
    """Whether agents have parameters of their own, or share one set and see their number."""


class EpsilonGreedy(NamedTuple):
    """What acting needs.

    Attributes:
        net: the networks.
        epsilon: () share of random actions when exploring.
    """

    net: Net
    epsilon: chex.Array


class State(NamedTuple):
    """Every leaf of separate networks begins with (N,)."""

    policy: EpsilonGreedy
    target: Any
    optimiser: Any
    updates: chex.Array


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    require_kind("ciqr", "discrete", spec)
    check_value_learner(config)
    for option in ("cvar_level", "act_cvar"):
        share = getattr(config, option)
        require(0 < share <= 1, f"{option} must lie in (0, 1], not {share}.")
        require(config.quantiles > 0 or share == 1, f"Without quantiles {option} must be 1.")
    require_positive(config, "huber_kappa", "reward_scale", "epsilon_updates")
    require_not_negative(config, "cql_alpha", "quantiles", "epsilon_start", "epsilon_end")
    mixed = config.mixer == "vdn"
    for option, has, who in (
        ("published_axis", config.quantiles > 0, "methods with quantiles"),
        ("published_adam", mixed, "methods with a mixer"),
        ("published_reward", mixed, "methods with a mixer"),
        ("published_targets", config.quantiles == 0, "methods without quantiles"),
        ("published_penalty", mixed and config.quantiles == 0, "methods with a mixer and without quantiles"),
    ):
        require(has or not getattr(config, option), f"In the published code only {who} have the error {option}.")
    most = max(config.epsilon_start, config.epsilon_end)
    require(most <= 1, f"epsilon is a share of actions and must lie in [0, 1], not {most}.")


def fractions(config: Config) -> chex.Array:
    """(Q,) the fractions of the return's distribution that the quantiles stand for; Q = 1 without quantiles."""
    quantiles = max(config.quantiles, 1)
    return config.cvar_level * (2 * jnp.arange(quantiles) + 1) / (2 * quantiles)


def ciqr(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-CIQR for a discrete task."""
    mixed, q = config.mixer == "vdn", max(config.quantiles, 1)
    network = networks.action_values(spec, config.hidden, config.input_norm, config.sharing, q)
    limits = config.lr, config.grad_clip
    step = together(*limits) if mixed else per_agent(network, *limits)
    lowest = config.act_cvar * q  # so many quantiles, the last one in part
    act_weights = jnp.clip(lowest - jnp.arange(q), 0.0, 1.0) / lowest  # (Q,)
    reward_factor: float = 1
    if config.published_reward:
        reward_factor = spec.n_agents if config.quantiles else spec.n_agents / 2

    def total(values: chex.Array) -> chex.Array:  # (B, N, Q) -> (B, G, Q)
        return values.sum(axis=1, keepdims=True) if mixed else values

    def epsilon(updates: chex.Array) -> chex.Array:
        done = jnp.minimum(updates / config.epsilon_updates, 1.0)
        return config.epsilon_start + done * (config.epsilon_end - config.epsilon_start)

    def init(key: chex.PRNGKey, context: Context) -> State:
        key, target_key = jax.random.split(key)
        net = network.init(key)
        target = network.init(target_key).params if config.published_targets else net.params
        return State(
            EpsilonGreedy(net, epsilon(jnp.zeros(()))), target, step.init(net.params), jnp.zeros((), jnp.int32)
        )

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        net = state.policy.net

        # --- target ---
        next_values = network(state.target, batch.next_obs)  # (B, N, Q, A)
        next_actions = illegal_to_minus_infinity(next_values.mean(axis=-2), batch.next_action_mask).argmax(axis=-1)
        next_quantiles = total(take_action(next_values, next_actions))  # (B, G, Q)
        rewards = reward_factor * config.reward_scale * networks.group(batch.rewards, mixed, "mean")
        terminal = networks.group(batch.terminal, mixed, "all")
        target = td_target(rewards[..., None], terminal[..., None], next_quantiles, config.gamma)

        # --- critic ---
        def critic_loss(params: Any) -> tuple[chex.Array, Metrics]:
            values = network(params, batch.obs)  # (B, N, Q, A)
            own = take_action(values, batch.actions)  # (B, N, Q)
            quantiles = total(own)  # (B, G, Q)
            if config.quantiles:
                loss = quantile_huber(
                    quantiles, target, fractions(config), config.huber_kappa, config.published_axis
                ).mean(axis=0)  # (G,)
            else:
                loss = jnp.square(quantiles - target).mean(axis=(0, 2))
            mask = None if batch.action_mask is None else batch.action_mask[..., None, :]
            soft = jax.nn.logsumexp(illegal_to_minus_infinity(values, mask), axis=-1)  # (B, N, Q)
            data = batch.actions[..., None].astype(own.dtype) if config.published_penalty else own
            penalty = networks.group((soft - data).sum(axis=-1).mean(axis=0), mixed, "sum")  # (G,)
            metrics = {"critic_loss": 0.5 * loss, "cql_penalty": penalty, "q": quantiles / config.reward_scale}
            return (0.5 * loss + config.cql_alpha * penalty).sum(), metrics

        before = step.init(net.params) if config.published_adam else state.optimiser
        params, optimiser, metrics = step(critic_loss, net.params, before)

        # --- targets ---
        net = network.observe(net._replace(params=params), batch.obs)
        updates = state.updates + 1
        policy = EpsilonGreedy(net, epsilon(updates))
        state = State(policy, soft_update(state.target, params, config.tau), optimiser, updates)
        return state, jax.tree.map(jnp.mean, metrics)

    def act(
        policy: EpsilonGreedy, view: View, carry: Any, key: chex.PRNGKey, explore: bool = False
    ) -> tuple[chex.Array, Any]:
        values = network.act_average(policy.net, view.obs, act_weights)  # (N, A)
        values = illegal_to_minus_infinity(values, view.action_mask)
        actions = values.argmax(axis=-1)
        if explore:
            random_key, which_key = jax.random.split(key)
            random = jax.random.categorical(random_key, jnp.where(values > -jnp.inf, 0.0, -jnp.inf))
            actions = jnp.where(jax.random.bernoulli(which_key, policy.epsilon, actions.shape), random, actions)
        return actions.astype(jnp.int32), carry

    def values(state: State, batch: Transition) -> chex.Array:
        own = take_action(network(state.policy.net.params, batch.obs), batch.actions).mean(axis=-1)  # (B, N)
        return networks.group(own, mixed, "sum")[None] / config.reward_scale

    def return_quantiles(policy: EpsilonGreedy, view: View) -> tuple[chex.Array, chex.Array]:
        actions = act(policy, view, (), jax.random.key(0))[0]
        chosen = take_action(network.act(policy.net, view.obs), actions)  # (N, Q)
        # With a mixer, the values of single agents mean nothing.
        return fractions(config), total(chosen[None])[0] / config.reward_scale

    hook = return_quantiles if config.quantiles else None
    needs = Needs(config.batch_size)
    return Algorithm(init, update, act, needs, explores=True, values=values, return_quantiles=hook)
