"""BC: behaviour cloning, each agent for itself.

    L_π = mean |π_i(o_i) - a_i|²                (deterministic, the default)
    L_π = -mean log π_i(a_i | o_i)              (stochastic: a Gaussian squashed by tanh)

Acting deterministically, the stochastic policy takes tanh of the Gaussian's mean.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms.formulas import clipped_adam, minimise, saturation, seen, validate_learner
from omarl_jax.networks import InputNorm, Policy
from omarl_jax.types import Algorithm, Metrics, Needs, Stats, TaskSpec, Transition, config


@config
class Config:
    """Hyperparameters of BC."""

    lr: float = 1e-3
    """Adam's learning rate."""
    grad_clip: float = 0.5
    """Largest norm of a network's gradient."""
    stochastic: bool = False
    """Maximise the likelihood of a squashed Gaussian, not minimise the squared error."""
    batch_size: int = 1024
    """Transitions a batch."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    input_norm: InputNorm = "dataset"
    """Normalisation of the networks' inputs."""


class State(NamedTuple):
    """Every leaf begins with (N,)."""

    policy: Policy
    policy_optimiser: Any


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    validate_learner("bc", config, spec)


def bc(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes BC for a continuous task."""
    n = spec.n_agents
    kind = networks.gaussian_policy if config.stochastic else networks.deterministic_policy
    policy = kind(spec, config.hidden, config.input_norm)
    optimiser = clipped_adam(config.lr, config.grad_clip)

    def init(key: chex.PRNGKey, stats: Stats) -> State:
        norm = networks.initial_norm(config.input_norm, stats)
        policies = policy.init(key, n, jnp.zeros((1, spec.obs_dim)), norm.of(0))
        return State(Policy(policies, norm), jax.vmap(optimiser.init)(policies))

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        # --- policy ---
        def policy_loss(params: Any, obs: Any, actions: Any, norm: Any) -> tuple[chex.Array, Metrics]:
            out = policy.apply(params, obs, norm)  # (B, A), or mean and log standard deviation
            own = jnp.tanh(out[0]) if config.stochastic else out
            if config.stochastic:
                loss = -networks.tanh_gaussian_log_prob(out[0], out[1], actions).mean()
            else:
                loss = jnp.square(out - actions).mean()
            return loss, {"policy_loss": loss, "saturation": saturation(own)}

        norm = networks.training_norm(config.input_norm, state.policy.norm)
        policies, policy_optimiser, metrics = jax.vmap(minimise(policy_loss, optimiser))(
            state.policy.params, state.policy_optimiser, seen(batch.obs, n), seen(batch.actions, n), norm
        )
        moved = Policy(policies, networks.moved_norm(config.input_norm, state.policy.norm, batch.obs))
        return State(moved, policy_optimiser), jax.tree.map(jnp.mean, metrics)

    def act(
        policies: Policy, obs: chex.Array, mask: Any, carry: Any, key: chex.PRNGKey, explore: bool = False
    ) -> tuple[chex.Array, Any]:
        out = jax.vmap(policy.apply)(policies.params, obs, policies.norm)
        if not config.stochastic:
            return out, carry
        return networks.tanh_gaussian_sample(out[0], out[1], key) if explore else jnp.tanh(out[0]), carry

    return Algorithm(init, update, act, Needs(config.batch_size))
