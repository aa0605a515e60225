"""Formulas that several methods share, each of a few lines."""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from optax.microbatching import AccumulationType

from omarl_jax.errors import UserError
from omarl_jax.types import SATURATED, Metrics, TaskSpec, Transition


def bootstrapped(rewards: chex.Array, terminal: chex.Array, next_value: chex.Array, gamma: chex.Array) -> chex.Array:
    """y = r + γ (1 - d) V(s'), all of one shape; d is termination, not truncation."""
    return rewards + gamma * (1.0 - terminal) * next_value


def minimise(
    loss: Callable[..., Any], optimiser: optax.GradientTransformation, batch_axes: tuple[int | None, ...] = ()
) -> Callable[..., Any]:
    """One gradient step on `loss(params, *inputs) -> value, metrics`, for one network; `vmap` makes it many.

    Args:
        loss: what to minimise.
        optimiser: how.
        batch_axes: if the loss is large and a mean over the batch: the axis of the batch in every input, None in those
            that have none. The gradient is then taken block by block (`in_blocks`).

    Returns:
        a function (params, optimiser state, *inputs) -> params, optimiser state, metrics.
    """
    gradient_of = jax.grad(loss, has_aux=True)
    if batch_axes:
        gradient_of = in_blocks(gradient_of, (None, *batch_axes), AccumulationType.MEAN)

    def step(params: Any, optimiser_state: Any, *inputs: Any) -> tuple[Any, Any, Metrics]:
        gradient, metrics = gradient_of(params, *inputs)
        change, optimiser_state = optimiser.update(gradient, optimiser_state)
        return optax.apply_updates(params, change), optimiser_state, metrics

    return step


def in_blocks(function: Callable[..., Any], batch_axes: tuple[int | None, ...], joined: Any) -> Callable[..., Any]:
    """The same function, computed on CPUs for a few transitions after the other, so that what it computes on the way
    stays in the cache. Networks with many candidate actions are twice as fast so. Other devices take the whole batch.

    Args:
        function: a function of inputs whose outputs are independent for each transition, or means of such.
        batch_axes: the axis of the batch in every input, None in those that have none.
        joined: how the results of the blocks are joined, as in `optax.microbatch`.
    """
    batched = [i for i, axis in enumerate(batch_axes) if axis is not None]

    def of_batch(*inputs: Any) -> Any:
        batch_size = jax.tree.leaves(inputs[batched[0]])[0].shape[batch_axes[batched[0]]]
        block = math.gcd(batch_size, _BLOCK)
        if block == batch_size or block < _BLOCK // 4:
            return function(*inputs)
        blocked = optax.microbatch(function, batched, block, joined, in_axes=[batch_axes[i] for i in batched])
        return jax.lax.platform_dependent(*inputs, cpu=blocked, default=function)

    return of_batch


_BLOCK = 32  # times 10 candidates, 64 features, 2 critics and 3 agents: half of the 1 or 2 MB of a core's cache


def clipped_adam(lr: chex.Array, max_norm: chex.Array) -> optax.GradientTransformation:
    """Adam after clipping the gradient's global norm."""
    return optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(lr))


def soft_update(target: chex.ArrayTree, online: chex.ArrayTree, tau: chex.Array) -> chex.ArrayTree:
    """τ θ + (1 - τ) θ̄."""
    return optax.incremental_update(online, target, tau)


def seen(x: chex.Array, groups: int) -> chex.Array:
    """What critics see: (B, N, X) -> (groups, B, X N / groups).

    N groups are decentralised critics, each with its own agent's part; one group is a centralised critic, which sees
    the parts of all agents in a row.
    """
    return jnp.moveaxis(x.reshape(x.shape[0], groups, -1), 1, 0)


def team(batch: Transition, groups: int) -> tuple[chex.Array, chex.Array]:
    """Rewards and terminations as the critics learn them, each (groups, B).

    A centralised critic learns the mean reward, which is what the return sums (published code takes the first
    agent's), and the episode ends for it when it has ended for all.
    """
    if groups == 1:
        return batch.rewards.mean(axis=1)[None], batch.terminal.all(axis=1)[None]
    return batch.rewards.T, batch.terminal.T


def with_own(own: chex.Array, actions: chex.Array, agent: chex.Array, centralised: bool) -> chex.Array:
    """The action a critic judges when one agent does something else than the data.

    Args:
        own: (…, B, A) what the agent does.
        actions: (B, N, A) what all did.
        agent: () int, which agent.
        centralised: whether the critic sees the actions of all agents.

    Returns:
        `own`, or (…, B, N A) the joint action with the agent's part replaced.
    """
    if not centralised:
        return own
    is_agent = (jnp.arange(actions.shape[1]) == agent)[:, None]
    joint = jnp.where(is_agent, own[..., None, :], actions)
    return joint.reshape(*own.shape[:-1], -1)


def softmax_weights(values: chex.Array, temperature: chex.Array) -> chex.Array:
    """B softmax(values / temperature) over a batch, (B,): positive weights whose mean is 1."""
    return values.shape[0] * jax.nn.softmax(values / temperature)


def quantile_huber(
    atoms: chex.Array, targets: chex.Array, fractions: chex.Array, kappa: chex.Array, of_targets: bool = False
) -> chex.Array:
    """Σ_j mean_j' |τ_j - 1{δ_jj' < 0}| H_κ(δ_jj') / κ, δ_jj' = y_j' - θ_j (Dabney et al. 2018, eq. 10).

    Args:
        atoms: θ, (…, Q).
        targets: y, (…, Q').
        fractions: τ, (Q,).
        kappa: where the loss turns from squares to lines.
        of_targets: a known mistake: the fractions belong to the targets, and Q' = Q.

    Returns:
        (…,).
    """
    delta = targets[..., None, :] - atoms[..., :, None]  # (…, Q, Q')
    weights = jnp.abs((fractions if of_targets else fractions[:, None]) - (delta < 0))
    return (weights * optax.losses.huber_loss(delta, delta=kappa) / kappa).mean(axis=-1).sum(axis=-1)


def legal(values: chex.Array, mask: chex.Array | None) -> chex.Array:
    """Values of actions, (…, A), those of illegal ones -inf; no mask: all are legal."""
    # To add is cheaper than to select: what is added is small, and vectorises.
    return values if mask is None else values + jnp.where(mask, 0.0, -jnp.inf)


def conservative_penalty(q_sampled: chex.Array, q_data: chex.Array) -> chex.Array:
    """CQL's penalty, the mean of log Σ_k exp(Q(o, u_k) - log p(u_k)) - Q(o, a) (Kumar et al. 2020, eq. 4).

    Args:
        q_sampled: (K, B) values of sampled actions, less the log density that each was sampled with.
        q_data: (B,) values of the data's actions.

    As published, the sum over samples is not divided by K: that only shifts the penalty by log K.
    """
    return jnp.mean(jax.nn.logsumexp(q_sampled, axis=0) - q_data)


def cql_actions(
    key: chex.PRNGKey, actions: chex.Array, around: tuple[chex.Array, ...], config: Any
) -> list[tuple[chex.Array, chex.Array]]:
    """The actions that CQL holds down: uniform ones, and noisy ones around each of the given actions.

    Args:
        key: randomness.
        actions: (B, A) of the data, for their shape.
        around: actions (B, A) of the policy, in this observation and in the next; none for uniform samples only.
        config: with `cql_samples` K, `sample_noise` and `published_density`.

    Returns:
        for each kind, actions (K, B, A) and their log density (K, B).
    """
    shape = (config.cql_samples, *actions.shape)
    uniform_key, *keys = jax.random.split(key, 1 + len(around))
    uniform = jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
    kinds = [(uniform, jnp.full(shape[:-1], shape[-1] * jnp.log(0.5)))]
    for key, centre in zip(keys, around, strict=True):
        noise = jax.random.normal(key, shape)
        log_density = jax.scipy.stats.norm.logpdf(noise).sum(axis=-1) - shape[-1] * jnp.log(config.sample_noise)
        if config.published_density:
            log_density = jnp.exp(log_density)
        noisy = jnp.clip(centre + config.sample_noise * noise, -1.0, 1.0)
        kinds.append((jax.lax.stop_gradient(noisy), log_density))
    return kinds


def saturation(actions: chex.Array) -> chex.Array:
    """The share of |a| > `SATURATED`: a policy that sits in the corners has stopped learning."""
    return jnp.mean(jnp.abs(actions) > SATURATED)


def validate_learner(name: str, config: Any, spec: TaskSpec, kind: str = "continuous") -> None:
    """The checks that every method shares; `kind` is that of the actions."""
    require_kind(name, kind, spec)
    require_positive(config, "lr", "grad_clip")
    require(config.batch_size >= 2, f"batch_size must be at least 2, not {config.batch_size}.")
    sensible = len(config.hidden) > 0 and min(config.hidden) > 0
    require(sensible, f"hidden must hold positive widths, not {config.hidden}.")


def validate_value_learner(name: str, config: Any, spec: TaskSpec, kind: str = "continuous") -> None:
    """The checks that every method with bootstrapped values shares."""
    validate_learner(name, config, spec, kind)
    require(0 <= config.gamma <= 1, f"gamma must lie in [0, 1], not {config.gamma}.")
    require(0 < config.tau <= 1, f"tau must lie in (0, 1], not {config.tau}.")


def validate_sampling(config: Any) -> None:
    """The checks that every method with `cql_actions` shares."""
    require_not_negative(config, "cql_alpha")
    require_positive(config, "cql_samples", "sample_noise")
    has_density = config.policy_samples or not config.published_density
    require(has_density, "published_density is about actions around the policy's: it needs policy_samples.")


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raises a `UserError` unless all these hyperparameters are greater than 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be positive, not {value}.")


def require_not_negative(config: Any, *names: str) -> None:
    """Raises a `UserError` unless all these hyperparameters are at least 0."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{name} must not be negative, not {value}.")


def require_kind(name: str, kind: str, spec: TaskSpec) -> None:
    """Raises a `UserError` if a method for one kind of actions meets a task of the other."""
    require(spec.kind == kind, f"'{name}' needs {kind} actions, but the task '{spec.name}' has {spec.kind} ones.")
