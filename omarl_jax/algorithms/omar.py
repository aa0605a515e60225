"""OMAR: offline multi-agent RL with actor rectification (Pan, Huang, Ma and Xu, ICML 2022).

The critics are those of MA-CQL (see cql.py). Their landscape has bad local optima that stop the policy's gradient, the
more so the more agents there are, so the policy is also drawn towards the best action that a zeroth-order search
finds:

    L_π = c mean |π_i(o_i) - sg[â_i]|² - (1 - c) mean Q_i1(o_i, π_i(o_i)) + w mean π_i(o_i)²     (eq. 5)
    â_i = the better of π_i(o_i) and the best candidate of the search's last iteration, by Q_i1

The search starts at N(0, σ₀²) for every observation. `omar`, the default: each iteration draws K actions, clips them,
and moves the mean to their average weighted by softmax(Q) and the standard deviation to their spread around it (eq. 4).
Ablations: `cem` fits both to the elites, which stay in the pool (the published code for MuJoCo); `random_shooting`
draws as many actions uniformly. As published, π_i(o_i) and the candidates of an iteration are evaluated
in separate passes, each with its own batch statistics; the policy's running ones move as in MA-CQL. Published scores
use `search_steps` 3 and K 10 (particle tasks), or `cem` with 2, 20 and 5 elites (MuJoCo).

Note the published c: it is 1 in five of the twelve particle datasets, which leaves no policy gradient at all. The
published code ignores the configured γ of 0.99 on MuJoCo and uses 0.95; set `gamma` to choose.
"""

from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms import cql
from omarl_jax.algorithms._actor_critic import State, critic_of, follow, greedy_algorithm, start
from omarl_jax.algorithms._checks import (
    check_conservative,
    check_value_learner,
    require,
    require_kind,
    require_not_negative,
    require_positive,
)
from omarl_jax.algorithms._losses import conservative_samples, cql_critic_loss, critic_td_target, saturation
from omarl_jax.algorithms._steps import per_agent
from omarl_jax.types import Algorithm, Context, Metrics, TaskSpec, Transition, config


@config
class Config(cql.Config):
    """Hyperparameters of OMAR, beside those of MA-CQL; the defaults are those of the particle tasks."""

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


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    require_kind("omar", "continuous", spec)
    check_value_learner(config)
    check_conservative(config)
    require_not_negative(config, "policy_penalty")
    require_positive(config, "search_std", "search_steps")
    require(0 <= config.omar_coef <= 1, f"omar_coef must lie in [0, 1], not {config.omar_coef}.")
    require(config.search_samples >= 2, f"search_samples must be at least 2, not {config.search_samples}.")
    few = config.search != "cem" or 2 <= config.search_elites <= config.search_samples
    require(few, f"search_elites must lie between 2 and search_samples, not {config.search_elites}.")


def omar(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes OMAR for a continuous task."""
    policy = networks.deterministic_policy(spec, config.hidden, config.input_norm, config.sharing)
    critic = critic_of(config, spec)
    policy_step = per_agent(policy, config.lr, config.grad_clip)
    critic_step = per_agent(critic, config.lr, config.grad_clip)

    def init(key: chex.PRNGKey, context: Context) -> State:
        return start(key, policy, critic, policy_step, critic_step)

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        samples_key, search_key = jax.random.split(key)

        # --- target ---
        next_q = critic(state.target_critic, batch.next_obs, policy(state.target_policy, batch.next_obs)).min(axis=0)
        target = critic_td_target(critic, batch, next_q, config.gamma)  # (B, G)

        # --- critic ---
        around = (batch.obs, batch.next_obs) if config.policy_samples else ()
        proposals = tuple(policy(state.policy.params, obs) for obs in around)  # (B, N, A)
        samples = conservative_samples(samples_key, critic, batch, proposals, config, spec)

        def critic_loss(params: Any, data: Any, target: Any, samples: Any) -> tuple[chex.Array, Metrics]:
            return cql_critic_loss(critic, params, data, target, samples, config.cql_alpha)

        data = critic.inputs(batch.obs, batch.actions)
        critics, critic_optimiser, critic_metrics = critic_step(
            critic_loss, state.critic, state.critic_optimiser, data, target, samples, batch_axes=(0, 0, 1)
        )

        # --- policy ---
        def candidate_values(candidates: chex.Array) -> chex.Array:  # (K, B, N, A) -> (K, B, N)
            return critic.own(critics, batch.obs, candidates, batch.actions)

        def policy_loss(params: Any) -> tuple[chex.Array, Metrics]:
            own = policy(params, batch.obs)  # (B, N, A)
            q = critic.own(critics, batch.obs, own, batch.actions)  # (B, N)
            found, found_q = search(candidate_values, search_key, own.shape, config)
            best = jax.lax.stop_gradient(jnp.where((found_q > q)[..., None], found, own))
            omar_loss = networks.mean_over_actions(jnp.square(own - best), spec)  # (B, N)
            size = networks.mean_over_actions(jnp.square(own), spec)
            loss = config.omar_coef * omar_loss - (1.0 - config.omar_coef) * q + config.policy_penalty * size
            metrics = {"omar_loss": omar_loss, "saturation": saturation(own, spec)}
            return loss.mean(axis=0).sum(), metrics | {"policy_loss": loss}

        params, policy_optimiser, policy_metrics = policy_step(policy_loss, state.policy.params, state.policy_optimiser)

        # --- targets ---
        net = policy.observe(state.policy._replace(params=params), *around, batch.obs)
        state = state._replace(
            policy=net, critic=critics, policy_optimiser=policy_optimiser, critic_optimiser=critic_optimiser
        )
        return follow(state, config.tau), jax.tree.map(jnp.mean, critic_metrics | policy_metrics)

    return greedy_algorithm(config, policy, critic, init, update)


def search(
    q: Callable[[chex.Array], chex.Array], key: chex.PRNGKey, shape: tuple[int, ...], config: Config
) -> tuple[chex.Array, chex.Array]:
    """The zeroth-order search for a good action of each agent, independently in each observation.

    Args:
        q: values of candidates, (K, B, N, A) -> (K, B, N).
        key: randomness.
        shape: (B, N, A).
        config: how to search.

    Returns:
        the best candidate of the last iteration, (B, N, A), and its value, (B, N).
    """
    if config.search == "random_shooting":
        candidates = jax.random.uniform(key, (config.search_steps * config.search_samples, *shape), minval=-1.0)
        return best_of(candidates, q(candidates))
    # Inside, candidates are (K, A, N, B) and values (K, N, B): to reduce arrays whose last axis is short is slow.
    reverse = (0, 3, 2, 1)
    mean, std = jnp.zeros(shape[::-1]), jnp.full(shape[::-1], config.search_std)
    elites: list[tuple[chex.Array, chex.Array]] = []
    for step_key in jax.random.split(key, config.search_steps):
        noise = jax.random.normal(step_key, (config.search_samples, *shape[::-1]))
        candidates = jnp.clip(mean + std * noise, -1.0, 1.0)
        pool = [(candidates, q(candidates.transpose(reverse)).swapaxes(1, 2)), *elites]
        candidates, values = (jnp.concatenate(parts) for parts in zip(*pool, strict=True))
        if config.search == "cem":
            values, elite = jax.lax.top_k(values.T, config.search_elites)  # (B, N, elites)
            candidates, values = jnp.take_along_axis(candidates, elite.T[:, None], axis=0), values.T
            elites = [(candidates, values)]
            mean, std = candidates.mean(axis=0), candidates.std(axis=0, ddof=1)
        else:
            weights = jax.nn.softmax(values, axis=0)[:, None]
            mean = jnp.sum(weights * candidates, axis=0)
            std = jnp.sqrt(jnp.square(candidates - mean).mean(axis=0))
    return best_of(candidates.transpose(reverse), values.swapaxes(1, 2))


def best_of(candidates: chex.Array, values: chex.Array) -> tuple[chex.Array, chex.Array]:
    """The candidate of the highest value, and that value: (K, B, N, A), (K, B, N) -> (B, N, A), (B, N)."""
    best = values.argmax(axis=0)[None, ..., None]
    return jnp.take_along_axis(candidates, best, axis=0)[0], values.max(axis=0)
