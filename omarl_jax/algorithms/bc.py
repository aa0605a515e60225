"""BC: behaviour cloning, each agent for itself.

    L_π = mean |π_i(o_i) - a_i|²                (deterministic)
    L_π = -mean log π_i(a_i | o_i)              (stochastic: a Gaussian squashed by tanh; discrete actions: categorical)

Acting greedily, a stochastic policy takes tanh of the Gaussian's mean, or the most likely legal action.

With `memory`, policies are recurrent (a GRU of that width). They learn from windows of `window` consecutive steps,
each of which begins without memory, so an agent can use what it saw in the `window` steps before.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms._checks import check_learner, require, require_not_negative
from omarl_jax.algorithms._losses import saturation
from omarl_jax.algorithms._steps import per_agent
from omarl_jax.networks import InputNorm, Net, Sharing
from omarl_jax.types import Algorithm, Context, Metrics, Needs, TaskSpec, Transition, View, config


@config
class Config:
    """Hyperparameters of BC."""

    lr: float = 1e-3
    """Adam's learning rate."""
    grad_clip: float = 0.5
    """Largest norm of a network's gradient."""
    stochastic: bool = False
    """Maximise the likelihood of a squashed Gaussian, not minimise the squared error; discrete actions always do."""
    memory: int = 0
    """Width of the recurrent state; 0 for policies without memory."""
    window: int = 16
    """Consecutive steps that policies with memory learn from."""
    batch_size: int = 1024
    """Transitions a batch, or windows."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of policies without memory."""
    input_norm: InputNorm = "dataset"
    """Normalisation of the networks' inputs."""
    sharing: Sharing = "separate"
    """Whether agents have parameters of their own, or share one set and see their number."""


class State(NamedTuple):
    """Every leaf of separate policies begins with (N,)."""

    policy: Net
    optimiser: Any


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    check_learner(config)
    require_not_negative(config, "memory")
    require(not config.memory or config.window >= 2, f"window must be at least 2, not {config.window}.")
    normalised = config.input_norm != "batch"  # whose statistics would count the steps after the end of an episode
    require(not config.memory or normalised, "Policies with memory learn without batch normalisation.")


def bc(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes BC."""
    stochastic = config.stochastic or spec.kind == "discrete"
    network = networks.stochastic_policy if stochastic else networks.deterministic_policy
    policy = network(spec, config.hidden, config.input_norm, config.sharing, config.memory)
    step = per_agent(policy, config.lr, config.grad_clip)

    def init(key: chex.PRNGKey, context: Context) -> State:
        net = policy.init(key)
        return State(net, step.init(net.params))

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        weights = jnp.ones(()) if batch.valid is None else (batch.valid / batch.valid.mean())[..., None]  # (B, T, 1)

        def policy_loss(params: Any) -> tuple[chex.Array, Metrics]:
            out = policy(params, batch.obs, batch.action_mask)
            if stochastic:
                error = -out.log_prob(batch.actions)  # (B, N), with memory (B, T, N)
            else:
                error = networks.mean_over_actions(jnp.square(out - batch.actions), spec)
            loss = (weights * error).mean(axis=range(error.ndim - 1))  # (N,)
            metrics = {"policy_loss": loss}
            if spec.kind == "continuous":
                metrics["saturation"] = weights * saturation(out.mode() if stochastic else out, spec)
            return loss.sum(), metrics

        params, optimiser, metrics = step(policy_loss, state.policy.params, state.optimiser)
        net = policy.observe(state.policy._replace(params=params), batch.obs)
        return State(net, optimiser), jax.tree.map(jnp.mean, metrics)

    def act(net: Net, view: View, carry: Any, key: chex.PRNGKey, explore: bool = False) -> tuple[chex.Array, Any]:
        out, carry = policy.act(net, view.obs, view.action_mask, carry)
        if not stochastic:
            return out, carry
        return out.sample(key) if explore else out.mode(), carry

    needs = Needs(config.batch_size, length=config.window if config.memory else None)
    return Algorithm(init, update, act, needs, policy.start(), explores=stochastic)
