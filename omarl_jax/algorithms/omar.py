"""OMAR: offline multi-agent RL with actor rectification (Pan, Huang, Ma and Xu, ICML 2022).

The critics are those of MA-CQL (see cql.py). Their landscape has bad local optima that stop the policy's gradient, the
more so the more agents there are, so the policy is also drawn towards the best action that a zeroth-order search
finds:

    L_π = c mean |π_i(o_i) - sg[â_i]|² - (1 - c) mean Q_i1(o_i, π_i(o_i)) + w mean π_i(o_i)²     (eq. 5)
    â_i = the better of π_i(o_i) and the best candidate of the search's last iteration, by Q_i1

The search starts at N(0, σ₀²) for every observation. `omar`, the default: each iteration draws K actions, clips them,
and moves the mean to their average weighted by softmax(Q) and the standard deviation to their spread around it (eq. 4).
Ablations: `cem` fits both to the elites, which stay in the pool (the published code for MuJoCo); `random_shooting`
draws as many actions uniformly. As published, π_i(o_i) and the candidates of an iteration are each judged in a pass of
their own, with the batch statistics of that pass. Published scores use `search_steps` 3 and K 10 (particle tasks), or
`cem` with 2, 20 and 5 elites (MuJoCo).

Note the published c: it is 1 in five of the twelve particle datasets, which leaves no policy gradient at all. The
published code never passes MuJoCo's γ of 0.99 on and runs with 0.95; set `gamma` for either.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from optax.microbatching import AccumulationType

from omarl_jax import networks
from omarl_jax.algorithms.cql import conservative_step
from omarl_jax.algorithms.formulas import (
    bootstrapped,
    clipped_adam,
    in_blocks,
    minimise,
    require,
    require_not_negative,
    require_positive,
    saturation,
    seen,
    soft_update,
    team,
    validate_sampling,
    validate_value_learner,
    with_own,
)
from omarl_jax.networks import InputNorm, Policy
from omarl_jax.types import Algorithm, Metrics, Needs, Stats, TaskSpec, Transition, config


@config
class Config:
    """Hyperparameters of OMAR; the defaults are those of the particle tasks."""

    lr: float = 0.01
    """Adam's learning rate, of policies and critics."""
    gamma: float = 0.95
    """Discount."""
    tau: float = 0.01
    """Soft update of the targets."""
    grad_clip: float = 0.5
    """Largest norm of a network's gradient."""
    cql_alpha: float = 1.0
    """α, the weight of the conservative penalty."""
    sample_noise: float = 0.2
    """Standard deviation of the samples around the policy's actions."""
    policy_penalty: float = 1e-3
    """Weight of the mean squared action."""
    omar_coef: float = 1.0
    """c, the weight of the search's action against the values."""
    search_std: float = 2.0
    """σ₀, the standard deviation that the search starts with."""
    search: Literal["omar", "cem", "random_shooting"] = "omar"
    """How the search moves."""
    search_steps: int = 3
    """Its iterations."""
    search_samples: int = 10
    """K, the candidates of an iteration."""
    search_elites: int = 5
    """Candidates that `cem` keeps."""
    cql_samples: int = 10
    """Actions sampled for the penalty, of each kind."""
    policy_samples: bool = False
    """Sample around the policy's actions too, not only uniformly."""
    published_density: bool = False
    """Subtract the noise's density, not its logarithm, as the published code does."""
    centralised: bool = False
    """One critic that sees all agents."""
    batch_size: int = 1024
    """Transitions a batch."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    input_norm: InputNorm = "batch"
    """Normalisation of the networks' inputs."""


class State(NamedTuple):
    """Every leaf begins with (N,), those of critics with (1,) if there is one for all."""

    policy: Policy
    critic: Any
    target_policy: Any
    target_critic: Any
    policy_optimiser: Any
    critic_optimiser: Any


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    validate_value_learner("omar", config, spec)
    validate_sampling(config)
    require_not_negative(config, "policy_penalty")
    require_positive(config, "search_std", "search_steps")
    require(0 <= config.omar_coef <= 1, f"omar_coef must lie in [0, 1], not {config.omar_coef}.")
    require(config.search_samples >= 2, f"search_samples must be at least 2, not {config.search_samples}.")
    few = config.search != "cem" or 2 <= config.search_elites <= config.search_samples
    require(few, f"search_elites must lie between 2 and search_samples, not {config.search_elites}.")


def omar(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes OMAR for a continuous task."""
    n = spec.n_agents
    groups = 1 if config.centralised else n  # G critics, each seeing N / G agents
    policy = networks.deterministic_policy(spec, config.hidden, config.input_norm)
    critic = networks.critic(config.hidden, config.input_norm)
    optimiser = clipped_adam(config.lr, config.grad_clip)

    def view(x: chex.Array) -> chex.Array:  # (B, N, X) -> (G, B, X N / G)
        return seen(x, groups)

    def init(key: chex.PRNGKey, stats: Stats) -> State:
        policy_key, critic_key = jax.random.split(key)
        norm = networks.initial_norm(config.input_norm, stats)
        obs, actions = jnp.zeros((1, n, spec.obs_dim)), jnp.zeros((1, n, spec.action_dim))
        policies = policy.init(policy_key, n, obs[:, 0], norm.of(0))
        critics = critic.init(critic_key, groups, view(obs)[0], view(actions)[0], None)
        return State(
            policy=Policy(policies, norm),
            critic=critics,
            target_policy=policies,
            target_critic=critics,
            policy_optimiser=jax.vmap(optimiser.init)(policies),
            critic_optimiser=jax.vmap(optimiser.init)(critics),
        )

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        cql_key, search_key = jax.random.split(key)
        norm = networks.training_norm(config.input_norm, state.policy.norm)
        critic_norm = None if norm is None else norm.of_critics(view, spec.action_dim)

        # --- target ---
        next_actions = jax.vmap(policy.apply, out_axes=1)(state.target_policy, seen(batch.next_obs, n), norm)
        next_q = jax.vmap(critic.apply)(state.target_critic, view(batch.next_obs), view(next_actions), critic_norm)
        rewards, terminal = team(batch, groups)  # (G, B)
        target = bootstrapped(rewards, terminal, next_q.min(axis=1), config.gamma)

        # --- critic ---
        around = ()
        if config.policy_samples:
            act_on = jax.vmap(policy.apply, (0, 0, 0), 1)
            around = tuple(view(act_on(state.policy.params, seen(x, n), norm)) for x in (batch.obs, batch.next_obs))

        critics, critic_optimiser, critic_metrics = jax.vmap(conservative_step(critic, optimiser, config))(
            state.critic,
            state.critic_optimiser,
            view(batch.obs),
            view(batch.actions),
            target,
            critic_norm,
            around,
            jax.random.split(cql_key, groups),
        )

        # --- policy ---
        def policy_loss(
            params: Any, agent: Any, obs: Any, norm: Any, judge: Any, key: Any
        ) -> tuple[chex.Array, Metrics]:
            critic_params, critic_obs, critic_norm = judge

            def judged(actions: chex.Array) -> chex.Array:
                return with_own(actions, batch.actions, agent, config.centralised)

            def q(params: Any, obs: chex.Array, candidates: chex.Array, norm: Any) -> chex.Array:  # (B, K)
                return critic.apply(params, obs, candidates, norm, heads=1)[0].T

            def values(candidates: chex.Array) -> chex.Array:  # (K, B, A) -> (K, B)
                candidates = judged(candidates)
                norm = networks.statistics(critic_norm, critic_obs, candidates)
                blocks = in_blocks(q, (None, 0, 1, None), AccumulationType.CONCAT)
                return blocks(critic_params, critic_obs, candidates, norm).T

            own = policy.apply(params, obs, norm)  # (B, A)
            value = critic.apply(critic_params, critic_obs, judged(own), critic_norm, heads=1)[0]
            found, found_value = search(values, key, own.shape, config)
            best = jnp.where((found_value > value)[:, None], found, own)
            imitation = jnp.square(own - jax.lax.stop_gradient(best)).mean()
            loss = config.omar_coef * imitation - (1.0 - config.omar_coef) * value.mean()
            loss += config.policy_penalty * jnp.square(own).mean()
            return loss, {"policy_loss": loss, "imitation": imitation, "saturation": saturation(own)}

        judges = jax.tree.map(lambda x: jnp.repeat(x, n // groups, axis=0), (critics, view(batch.obs), critic_norm))
        policies, policy_optimiser, policy_metrics = jax.vmap(minimise(policy_loss, optimiser))(
            state.policy.params,
            state.policy_optimiser,
            jnp.arange(n),
            seen(batch.obs, n),
            norm,
            judges,
            jax.random.split(search_key, n),
        )
        moved = Policy(policies, networks.moved_norm(config.input_norm, state.policy.norm, batch.obs))

        # --- targets ---
        state = State(
            policy=moved,
            critic=critics,
            target_policy=soft_update(state.target_policy, policies, config.tau),
            target_critic=soft_update(state.target_critic, critics, config.tau),
            policy_optimiser=policy_optimiser,
            critic_optimiser=critic_optimiser,
        )
        return state, jax.tree.map(jnp.mean, critic_metrics | policy_metrics)

    def act(
        policies: Policy, obs: chex.Array, mask: Any, carry: Any, key: chex.PRNGKey, explore: bool = False
    ) -> tuple[chex.Array, Any]:
        return jax.vmap(policy.apply)(policies.params, obs, policies.norm), carry

    return Algorithm(init, update, act, Needs(config.batch_size))


def search(
    q: Callable[[chex.Array], chex.Array], key: chex.PRNGKey, shape: tuple[int, ...], config: Config
) -> tuple[chex.Array, chex.Array]:
    """The zeroth-order search for a good action, independently for each observation.

    Args:
        q: values of candidates, (K, B, A) -> (K, B).
        key: randomness.
        shape: (B, A).
        config: how to search.

    Returns:
        the best candidate of the last iteration, (B, A), and its value, (B,).
    """
    if config.search == "random_shooting":
        candidates = jax.random.uniform(key, (config.search_steps * config.search_samples, *shape), minval=-1.0)
        return best_of(candidates, q(candidates))
    # The batch comes last here: reducing an array whose last axis is a handful of coordinates is slow everywhere.
    (b, a), k = shape, config.search_samples
    mean, std = jnp.zeros((a, b)), jnp.full((a, b), config.search_std)
    kept: list[tuple[chex.Array, chex.Array]] = []
    for step_key in jax.random.split(key, config.search_steps):
        candidates = jnp.clip(mean + std * jax.random.normal(step_key, (k, a, b)), -1.0, 1.0)
        pool = [(candidates, q(candidates.swapaxes(1, 2))), *kept]
        candidates, values = (jnp.concatenate(parts) for parts in zip(*pool, strict=True))
        if config.search == "cem":
            values, elite = jax.lax.top_k(values.T, config.search_elites)  # (B, elites)
            candidates, values = jnp.take_along_axis(candidates, elite.T[:, None], axis=0), values.T
            kept = [(candidates, values)]
            mean, std = candidates.mean(axis=0), candidates.std(axis=0, ddof=1)
        else:
            weights = jax.nn.softmax(values, axis=0)[:, None]
            mean = jnp.sum(weights * candidates, axis=0)
            std = jnp.sqrt(jnp.square(candidates - mean).mean(axis=0))
    return best_of(candidates.swapaxes(1, 2), values)


def best_of(candidates: chex.Array, values: chex.Array) -> tuple[chex.Array, chex.Array]:
    """The candidate of the highest value, and that value: (K, B, A), (K, B) -> (B, A), (B,)."""
    best = values.argmax(axis=0)[None, :, None]
    return jnp.take_along_axis(candidates, best, axis=0)[0], values.max(axis=0)
