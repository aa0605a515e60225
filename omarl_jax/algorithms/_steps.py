"""Gradient steps: what is clipped and stepped as one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import optax

from omarl_jax.networks import MEAN, in_blocks
from omarl_jax.types import Metrics

Loss = Callable[..., tuple[chex.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class Step:
    """Adam after clipping the gradient's global norm, for a loss (params, *inputs) -> value, metrics.

    Attributes:
        optimiser: how to step.
        mapped: whether every leaf of the parameters begins with (N,), and each agent is clipped and stepped alone. The
            loss is then the sum of the agents' losses, whose gradient by one agent's parameters is that of its own.
    """

    optimiser: optax.GradientTransformation
    mapped: bool

    def init(self, params: Any) -> Any:
        """The optimiser's state for fresh parameters."""
        return jax.vmap(self.optimiser.init)(params) if self.mapped else self.optimiser.init(params)

    def __call__(
        self, loss: Loss, params: Any, state: Any, *inputs: Any, batch_axes: tuple[int | None, ...] = ()
    ) -> tuple[Any, Any, Metrics]:
        """One gradient step.

        Args:
            loss: what to minimise.
            params: parameters.
            state: of the optimiser.
            *inputs: what the loss is given besides.
            batch_axes: declares that the loss is a mean over the batch: the batch axis of every input, None for inputs
                without one. On CPUs the gradient is then taken in blocks that fit into the cache.

        Returns:
            parameters, optimiser state, metrics.
        """
        gradient_of = jax.grad(loss, has_aux=True)
        if batch_axes:
            gradient_of = in_blocks(gradient_of, (None, *batch_axes), MEAN)
        gradient, metrics = gradient_of(params, *inputs)
        update = jax.vmap(self.optimiser.update) if self.mapped else self.optimiser.update
        change, state = update(gradient, state)
        return optax.apply_updates(params, change), state, metrics


def together(lr: chex.Array, max_norm: chex.Array) -> Step:
    """One clip and one Adam for whatever the loss couples."""
    return Step(_clipped_adam(lr, max_norm), mapped=False)


def per_agent(network: Any, lr: chex.Array, max_norm: chex.Array) -> Step:
    """One clip and one Adam for each agent's parameters, or for all agents where the network shares its parameters."""
    return Step(_clipped_adam(lr, max_norm), mapped=network.agents.sharing == "separate")


def _clipped_adam(lr: chex.Array, max_norm: chex.Array) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(lr))


def soft_update(target: chex.ArrayTree, online: chex.ArrayTree, tau: chex.Array) -> chex.ArrayTree:
    """τ θ + (1 - τ) θ̄."""
    return optax.incremental_update(online, target, tau)
