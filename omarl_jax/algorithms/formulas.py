"""Formulas that several methods share, each of a few lines."""

import chex
import jax
import jax.numpy as jnp
import optax

from omarl_jax.errors import UserError
from omarl_jax.types import TaskSpec


def bootstrapped(rewards: chex.Array, terminal: chex.Array, next_value: chex.Array, gamma: chex.Array) -> chex.Array:
    """y = r + γ (1 - d) V(s'), all of one shape; d is termination, not truncation."""
    return rewards + gamma * (1.0 - terminal) * next_value


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


def saturation(actions: chex.Array) -> chex.Array:
    """The share of |a| > 0.99: a policy that sits in the corners has stopped learning."""
    return jnp.mean(jnp.abs(actions) > 0.99)


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_kind(name: str, kind: str, spec: TaskSpec) -> None:
    """Raises a `UserError` if a method for one kind of actions meets a task of the other."""
    require(
        spec.kind == kind, f"'{name}' needs {kind} actions, but the task '{spec.name}' has {spec.kind} ones."
    )
