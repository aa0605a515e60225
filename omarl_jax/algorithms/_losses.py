"""Formulas that several methods share, each of a few lines."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from omarl_envs.spec import TaskSpec

from omarl_jax import networks
from omarl_jax.networks import Critic, CriticInputs
from omarl_jax.types import SATURATED, Metrics, Transition


def td_target(rewards: chex.Array, terminal: chex.Array, next_value: chex.Array, gamma: chex.Array) -> chex.Array:
    """y = r + γ (1 - d) V(s'), all of one shape; d is termination, not truncation."""
    return rewards + gamma * (1.0 - terminal) * next_value


def critic_td_target(critic: Critic, batch: Transition, next_value: chex.Array, gamma: chex.Array) -> chex.Array:
    """The TD target (B, G) of critics, each of its own agent or joint, for the values (B, G) of what follows."""
    if critic.joint:
        return team_td_target(batch.rewards, batch.terminal, next_value, gamma)
    return td_target(batch.rewards, batch.terminal, next_value, gamma)


def team_td_target(rewards: chex.Array, terminal: chex.Array, next_value: chex.Array, gamma: chex.Array) -> chex.Array:
    """The TD target (B, 1) of a value for the whole team, from rewards and terminals (B, N) and the next value (B, 1).

    The team learns the mean reward, which is what the return sums (published code takes the first agent's), and the
    episode ends when it has ended for all.
    """
    return td_target(rewards.mean(axis=1, keepdims=True), terminal.all(axis=1, keepdims=True), next_value, gamma)


def td_loss(q: chex.Array, target: chex.Array) -> chex.Array:
    """Σ_k mean (Q_k - y)², the loss of each critic: q (heads, B, G), target (B, G) -> (G,)."""
    return jnp.square(q - target).mean(axis=1).sum(axis=0)


def clipped_noise(key: chex.PRNGKey, shape: tuple[int, ...], std: chex.Array, bound: chex.Array) -> chex.Array:
    """clip(ε, ±bound) with ε ~ N(0, std²)."""
    return jnp.clip(std * jax.random.normal(key, shape), -bound, bound)


def softmax_weights(values: chex.Array, temperature: chex.Array) -> chex.Array:
    """B softmax(values / temperature) over the batch, (B, …): positive weights whose mean is 1."""
    return values.shape[0] * jax.nn.softmax(values / temperature, axis=0)


def expected(weights: chex.Array, x: chex.Array) -> chex.Array:
    """Σ_k weights_k x_k over the first axis, (K, …) -> (…); x may be anything where its weight is 0."""
    return (weights * jnp.where(weights > 0, x, 0.0)).sum(axis=0)


def least_squares(x: chex.Array, y: chex.Array, weights: chex.Array, axis: int) -> chex.Array:
    """The m that minimises Σ weights (x - m y)² over an axis; 0 where y hardly differs from 0 (1e-6 is added below)."""
    x, y = (jnp.where(weights > 0, each, 0.0) for each in (x, y))
    return (weights * x * y).sum(axis=axis) / ((weights * jnp.square(y)).sum(axis=axis) + 1e-6)


def covariance_ratio(x: chex.Array, y: chex.Array, weights: chex.Array) -> chex.Array:
    """Cov(x, y) / Var y over the first axis under weights that sum to 1, (K, …) -> (…)."""
    x, y = (each - expected(weights, each) for each in (x, y))
    return least_squares(x, y, weights, axis=0)


def quantile_huber(
    quantiles: chex.Array, targets: chex.Array, fractions: chex.Array, kappa: chex.Array, of_targets: bool = False
) -> chex.Array:
    """Σ_j mean_j' |τ_j - 1{δ_jj' < 0}| H_κ(δ_jj') / κ, δ_jj' = y_j' - θ_j (Dabney et al. 2018, eq. 10).

    Args:
        quantiles: θ, (…, Q).
        targets: y, (…, Q').
        fractions: τ, (Q,).
        kappa: where the loss turns from squares to lines.
        of_targets: a known mistake: the fractions belong to the targets, and Q' = Q.

    Returns:
        (…,).
    """
    delta = targets[..., None, :] - quantiles[..., :, None]  # (…, Q, Q')
    weights = jnp.abs((fractions if of_targets else fractions[:, None]) - (delta < 0))
    return (weights * optax.losses.huber_loss(delta, delta=kappa) / kappa).mean(axis=-1).sum(axis=-1)


class Samples(NamedTuple):
    """Actions that CQL holds down.

    Attributes:
        actions: (K, B, G, A'), as critics see them.
        log_density: (K, B, G), with which they were sampled.
    """

    actions: chex.Array
    log_density: chex.Array


def conservative_samples(
    key: chex.PRNGKey,
    critic: Critic,
    batch: Transition,
    around: tuple[chex.Array, ...],
    config: Any,
    spec: TaskSpec,
) -> list[Samples]:
    """The actions that CQL holds down: uniform ones, and noisy ones around each of the given actions.

    Args:
        key: randomness.
        critic: whose inputs they become.
        batch: the data.
        around: actions (B, N, A) of the policy, in this observation and in the next; none for uniform samples only.
        config: with `cql_samples` K, `sample_noise` and `published_density`.
        spec: the task.

    Returns:
        the samples of each kind.
    """
    shape = (config.cql_samples, *batch.actions.shape)
    uniform_key, *keys = jax.random.split(key, 1 + len(around))
    uniform = jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
    kinds = [(uniform, jnp.full(shape, jnp.log(0.5)))]
    for key, centre in zip(keys, around, strict=True):
        noise = jax.random.normal(key, shape)
        log_density = jax.scipy.stats.norm.logpdf(noise) - jnp.log(config.sample_noise)
        kinds.append((jnp.clip(centre + config.sample_noise * noise, -1.0, 1.0), log_density))
    samples = []
    for i, (actions, log_densities) in enumerate(kinds):
        log_density = critic.group(networks.sum_over_actions(log_densities, spec), "sum")  # (K, B, G)
        if config.published_density and i > 0:
            log_density = jnp.exp(log_density)
        samples.append(Samples(critic.inputs(batch.obs, jax.lax.stop_gradient(actions)).actions, log_density))
    return samples


def cql_critic_loss(
    critic: Critic, params: Any, data: CriticInputs, target: chex.Array, samples: list[Samples], alpha: chex.Array
) -> tuple[chex.Array, Metrics]:
    """L_Q = Σ_k mean (Q_k - y)² + α mean [log Σ_m exp(Q_k(o, u_m) - log p(u_m)) - Q_k(o, a)], summed over critics.

    Kumar et al. 2020, eq. 4. As published, the sum over samples is not divided by their number: that only shifts the
    penalty by a constant.

    Args:
        critic: the critics.
        params: their parameters.
        data: the data's observations and actions.
        target: y, (B, G).
        samples: the actions u_m.
        alpha: α.
    """
    q = critic.apply(params, data)  # (heads, B, G)
    sampled = [  # (heads, K, B, G) each
        critic.apply(params, data._replace(actions=kind.actions)) - kind.log_density for kind in samples
    ]
    penalty = (jax.nn.logsumexp(jnp.concatenate(sampled, axis=1), axis=1) - q).mean(axis=1).sum(axis=0)  # (G,)
    loss = td_loss(q, target)
    return (loss + alpha * penalty).sum(), {"critic_loss": loss, "cql_penalty": penalty, "q": q.mean()}


def saturation(actions: chex.Array, spec: TaskSpec) -> chex.Array:
    """The share of |a| > 0.99 in (…, N, A), (…, N): a policy that sits in the corners has stopped learning."""
    return networks.mean_over_actions(jnp.abs(actions) > SATURATED, spec)
