"""MA-CIQR: conservative quantile regression for discrete actions, each agent for itself (Eldeeb et al. 2024, MA-CQR).

Each of N agents i learns M atoms θ_ij(o_i, a) at the fractions τ_j = ξ (2j + 1) / 2M, j = 0 … M - 1:

    y_j' = r_i + γ (1 - d) θ̄_ij'(o'_i, a*),   a* = argmax_a Σ_j θ̄_ij(o'_i, a)
    L_TD = ½ mean Σ_j 1/M Σ_j' |τ_j - 1{δ_jj' < 0}| H_κ(δ_jj') / κ,   δ_jj' = y_j' - θ_ij(o_i, a_i)
    L = L_TD + α mean Σ_j [log Σ_a exp θ_ij(o_i, a) - θ_ij(o_i, a_i)]

and acts greedily by the mean of its atoms: by the mean of the return for ξ = 1, and by an estimate of its CVaR at level
ξ below that. The tail is taken in every step anew, which is more cautious than the CVaR of the whole return. With
`greedy_risk` ζ it acts by the atoms of the lowest fractions instead, a share ζ of all, which estimate the CVaR at level
ζ ξ of what the policy that is greedy by all atoms would get. Nothing keeps atoms from crossing; they stay in the order
of their fractions.

Within κ of its target the Huber loss is a square, which draws quantiles that lie closer together than κ to their mean:
they are right where returns spread over a hundred κ or more. Where they do not, raise `reward_scale`, which multiplies
the rewards and thereby that spread, or lower `huber` to the same effect. Returns of thousands are learned sooner with a
`reward_scale` below 1, as long as it leaves that spread. A `reward_scale` also changes what α weighs, since the penalty
parts actions by a few units of the scaled values.

The whole family is here; `presets/variants.toml` names its members:

    method               variant                       method                variant
    MA-CIQR (-CVaR)      ciqr (ciqr-cvar)              MA-CIQL               ciql
    MA-CCQR (-CVaR)      ccqr (ccqr-cvar)              MA-CCQL               ccql
    MA-QR-DIQN, -DCQN    qr-diqn, qr-dcqn              MA-DIQN, MA-DCQN      diqn, dcqn

`centralised` adds the atoms of all agents up, one by one, and learns the sum from the team's reward, with one gradient
clip for all (value decomposition). `quantiles` 0 learns the mean alone, by half the squared error.

Known errors of the published code, each an option: `published_axis` gives the fractions to the targets and not to the
atoms, so that all atoms of an action learn the same number; `published_adam` starts Adam afresh in every round, which
leaves the sign of the gradient; `published_penalty` subtracts the number of the action where its value belongs;
`published_reward` counts the reward N (`ccqr`) or N/2 (`ccql`) times; `published_targets` starts the targets elsewhere.
Different without an option: there the networks of all agents start alike, here each starts elsewhere; there an epoch is
a shuffle of the data, whose last batch is short, here every batch is drawn with replacement.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms.formulas import (
    bootstrapped,
    clipped_adam,
    legal,
    minimise,
    quantile_huber,
    require,
    require_not_negative,
    require_positive,
    soft_update,
    team,
    validate_value_learner,
)
from omarl_jax.networks import InputNorm
from omarl_jax.types import Algorithm, Metrics, Needs, Stats, TaskSpec, Transition, config


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
    """Largest norm of a gradient; by default there is none so large."""
    cql_alpha: float = 1.0
    """α, the weight of the conservative penalty."""
    risk: float = 1.0
    """ξ: the share of the worst outcomes that counts."""
    greedy_risk: float = 1.0
    """ζ: the share of the atoms, those of the lowest fractions, that it acts by."""
    huber: float = 1.0
    """κ, where the loss of quantiles turns from squares to lines."""
    reward_scale: float = 1.0
    """Factor of the rewards."""
    quantiles: int = 8
    """M, atoms of an action; 0 learns the mean alone."""
    centralised: bool = False
    """Learn the sum of all agents' values."""
    first_epsilon: float = 1.0
    """Share of random actions when exploring, at first."""
    last_epsilon: float = 0.01
    """The same in the end."""
    epsilon_rounds: float = 10_000.0
    """Rounds in between."""
    published_axis: bool = False
    """Give the fractions to the targets."""
    published_adam: bool = False
    """Start Adam afresh in every round."""
    published_penalty: bool = False
    """Subtract the actions' numbers in the penalty."""
    published_reward: bool = False
    """Count the reward more than once."""
    published_targets: bool = False
    """Start the targets elsewhere."""
    batch_size: int = 128
    """Transitions a batch."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    input_norm: InputNorm = "none"
    """Normalisation of the networks' inputs."""


class GreedyPolicy(NamedTuple):
    """What acting needs.

    Attributes:
        params: of N networks, stacked.
        norm: statistics that normalise their inputs.
        epsilon: () share of random actions when exploring.
    """

    params: Any
    norm: networks.Norm
    epsilon: chex.Array


class State(NamedTuple):
    """Every leaf of networks begins with (N,), those of `optimiser` with the number of teams."""

    policy: GreedyPolicy
    target: Any
    optimiser: Any
    round: chex.Array


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    validate_value_learner("ciqr", config, spec, kind="discrete")
    for option in ("risk", "greedy_risk"):
        share = getattr(config, option)
        require(0 < share <= 1, f"{option} must lie in (0, 1], not {share}.")
        require(config.quantiles > 0 or share == 1, f"ciqr learns no quantiles here, so {option} must be 1.")
    require_positive(config, "huber", "reward_scale", "epsilon_rounds")
    require_not_negative(config, "cql_alpha", "quantiles", "first_epsilon", "last_epsilon")
    for option, has, who in (
        ("published_axis", config.quantiles > 0, "methods with quantiles"),
        ("published_adam", config.centralised, "centralised methods"),
        ("published_reward", config.centralised, "centralised methods"),
        ("published_targets", config.quantiles == 0, "methods without quantiles"),
        ("published_penalty", config.centralised and config.quantiles == 0, "centralised methods without quantiles"),
    ):
        told = f"ciqr has no {option}: in the published code only {who} do that."
        require(has or not getattr(config, option), told)
    most = max(config.first_epsilon, config.last_epsilon)
    require(most <= 1, f"Not more than all actions can be random: epsilon must lie in [0, 1], not {most}.")


def fractions(config: Config) -> chex.Array:
    """(Q,) the fractions of the return's distribution that the atoms stand for; Q = 1 without quantiles."""
    atoms = max(config.quantiles, 1)
    return config.risk * (2 * jnp.arange(atoms) + 1) / (2 * atoms)


def _network(config: Config, spec: TaskSpec) -> networks.Network:
    return networks.action_values(spec, config.hidden, config.input_norm, max(config.quantiles, 1))


def ciqr(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-CIQR for a discrete task."""
    n = spec.n_agents
    groups = 1 if config.centralised else n  # G teams of N / G agents, which learn together
    network = _network(config, spec)
    mixture = networks.action_values(spec, config.hidden, config.input_norm, atoms=1)
    optimiser = clipped_adam(config.lr, config.grad_clip)
    lowest = config.greedy_risk * max(config.quantiles, 1)  # so many atoms, the last one in part
    shares = jnp.clip(lowest - jnp.arange(max(config.quantiles, 1)), 0.0, 1.0) / lowest  # (Q,)
    counted = 1.0
    if config.published_reward:
        counted = n if config.quantiles else n / 2

    def teams(tree: Any) -> Any:  # every leaf (N, …) -> (G, N / G, …)
        return jax.tree.map(lambda x: x.reshape(groups, n // groups, *x.shape[1:]), tree)

    def agents(x: chex.Array | None) -> chex.Array | None:  # (B, N, …) -> (N, B, …)
        return None if x is None else jnp.moveaxis(x, 1, 0)

    def of_actions(values: chex.Array, actions: chex.Array) -> chex.Array:  # (…, Q, A), (…) -> (…, Q)
        return jnp.take_along_axis(values, actions[..., None, None], axis=-1)[..., 0]

    def epsilon(round: chex.Array) -> chex.Array:
        done = jnp.minimum(round / config.epsilon_rounds, 1.0)
        return config.first_epsilon + done * (config.last_epsilon - config.first_epsilon)

    def init(key: chex.PRNGKey, stats: Stats) -> State:
        key, target_key = jax.random.split(key)
        norm = networks.initial_norm(config.input_norm, stats)
        params, others = (network.init(k, n, jnp.zeros((1, spec.obs_dim)), norm.of(0)) for k in (key, target_key))
        return State(
            policy=GreedyPolicy(params, norm, epsilon(jnp.zeros(()))),
            target=others if config.published_targets else params,
            optimiser=jax.vmap(optimiser.init)(teams(params)),
            round=jnp.zeros((), jnp.int32),
        )

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        params = state.policy.params
        norm = networks.training_norm(config.input_norm, state.policy.norm)

        # --- target ---
        next_values = jax.vmap(network.apply)(state.target, agents(batch.next_obs), norm)  # (N, B, Q, A)
        next_actions = legal(next_values.mean(axis=-2), agents(batch.next_action_mask)).argmax(axis=-1)
        next_atoms = teams(of_actions(next_values, next_actions)).sum(axis=1)  # (G, B, Q)
        rewards, terminal = team(batch, groups)  # (G, B)
        rewards = counted * config.reward_scale * rewards
        target = bootstrapped(rewards[..., None], terminal[..., None], next_atoms, config.gamma)

        # --- critic ---
        def loss(params: Any, obs: Any, actions: Any, mask: Any, target: Any, norm: Any) -> tuple[chex.Array, Metrics]:
            values = jax.vmap(network.apply)(params, obs, norm)  # (N / G, B, Q, A)
            own = of_actions(values, actions)
            total = own.sum(axis=0)  # (B, Q)
            if config.quantiles:
                td_loss = (
                    0.5 * quantile_huber(total, target, fractions(config), config.huber, config.published_axis).mean()
                )
            else:
                td_loss = 0.5 * jnp.square(total - target).mean()
            data = actions[..., None].astype(jnp.float32) if config.published_penalty else own
            soft = jax.nn.logsumexp(legal(values, None if mask is None else mask[..., None, :]), axis=-1)
            penalty = (soft - data).sum(axis=-1).mean(axis=1).sum()
            metrics = {"critic_loss": td_loss, "cql_penalty": penalty, "q": total.mean() / config.reward_scale}
            return td_loss + config.cql_alpha * penalty, metrics

        before = jax.vmap(optimiser.init)(teams(params)) if config.published_adam else state.optimiser
        learned, after, metrics = jax.vmap(minimise(loss, optimiser))(
            teams(params),
            before,
            teams(agents(batch.obs)),
            teams(agents(batch.actions)),
            teams(agents(batch.action_mask)),
            target,
            teams(norm),
        )
        learned = jax.tree.map(lambda new, old: new.reshape(old.shape), learned, params)

        # --- targets ---
        moved = networks.moved_norm(config.input_norm, state.policy.norm, batch.obs)
        state = State(
            policy=GreedyPolicy(learned, moved, epsilon(state.round + 1)),
            target=soft_update(state.target, learned, config.tau),
            optimiser=after,
            round=state.round + 1,
        )
        return state, jax.tree.map(jnp.mean, metrics)

    def act(
        policies: GreedyPolicy, obs: chex.Array, mask: Any, carry: Any, key: chex.PRNGKey, explore: bool = False
    ) -> tuple[chex.Array, Any]:
        params = networks.mixed_atoms(policies.params, shares)
        values = jax.vmap(mixture.apply)(params, obs, policies.norm)[:, 0]  # (N, A)
        actions = legal(values, mask).argmax(axis=-1)
        if explore:
            random_key, which_key = jax.random.split(key)
            random = jax.random.categorical(random_key, legal(jnp.zeros_like(values), mask))
            actions = jnp.where(jax.random.bernoulli(which_key, policies.epsilon, actions.shape), random, actions)
        return actions.astype(jnp.int32), carry

    def return_quantiles(policy: GreedyPolicy, obs: chex.Array) -> tuple[chex.Array, chex.Array]:
        atoms = jax.vmap(network.apply)(policy.params, obs, policy.norm)  # (N, Q, A)
        chosen = of_actions(atoms, act(policy, obs, None, (), jax.random.key(0))[0])  # (N, Q)
        # Where values were decomposed, those of single agents mean nothing.
        return fractions(config), chosen.reshape(groups, -1, chosen.shape[-1]).sum(axis=1) / config.reward_scale

    hook = return_quantiles if config.quantiles else None
    return Algorithm(init, update, act, Needs(config.batch_size), return_quantiles=hook)
