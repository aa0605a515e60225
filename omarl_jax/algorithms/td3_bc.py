"""MA-TD3+BC: TD3+BC (Fujimoto and Gu 2021), each agent for itself, in the form OMAR compares with.

    y_i = r_i + γ (1 - d_i) min_k Q̄_ik(o'_i, clip(π̄_i(o'_i) + clip(ε, ±c), ±1)),   ε ~ N(0, σ²)
    L_Q = Σ_k mean (Q_ik(o_i, a_i) - y_i)²
    L_π = -λ mean Q_i1(o_i, π_i(o_i)) + mean |π_i(o_i) - a_i|² + w mean π_i(o_i)²,   λ = α / sg[mean |Q_i1|]

The gradient of λ is stopped: without that, Q of one sign cancels and plain behaviour cloning remains. The published
multi-agent code of this baseline is not available. Like the rest of that family it is taken to use no target noise
(σ = 0 by default) and no delayed policy.

With `centralised`, one critic, learning the mean reward, sees all observations and actions. Agent i's policy is
evaluated with the other agents' actions from the data.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms._actor_critic import ActorCriticConfig, State, critic_of, follow, greedy_algorithm, start
from omarl_jax.algorithms._checks import check_value_learner, require_kind, require_not_negative
from omarl_jax.algorithms._losses import clipped_noise, critic_td_target, saturation, td_loss
from omarl_jax.algorithms._steps import per_agent
from omarl_jax.types import Algorithm, Context, Metrics, TaskSpec, Transition, config


@config
class Config(ActorCriticConfig):
    """Hyperparameters of MA-TD3+BC; the defaults are those of the particle tasks."""

    alpha: float = 2.5
    """Weight of the values against the cloning."""
    target_noise: float = 0.0
    """Standard deviation of the noise on target actions (0.2 in TD3+BC)."""
    target_noise_clip: float = 0.5
    """Its bound."""
    policy_penalty: float = 1e-3
    """Weight of the mean squared action."""


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    require_kind("td3_bc", "continuous", spec)
    check_value_learner(config)
    require_not_negative(config, "alpha", "target_noise", "target_noise_clip", "policy_penalty")


def td3_bc(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-TD3+BC for a continuous task."""
    policy = networks.deterministic_policy(spec, config.hidden, config.input_norm, config.sharing)
    critic = critic_of(config, spec)
    policy_step = per_agent(policy, config.lr, config.grad_clip)
    critic_step = per_agent(critic, config.lr, config.grad_clip)

    def init(key: chex.PRNGKey, context: Context) -> State:
        return start(key, policy, critic, policy_step, critic_step)

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        # --- target ---
        noise = clipped_noise(key, batch.actions.shape, config.target_noise, config.target_noise_clip)
        next_actions = jnp.clip(policy(state.target_policy, batch.next_obs) + noise, -1.0, 1.0)  # (B, N, A)
        next_q = critic(state.target_critic, batch.next_obs, next_actions).min(axis=0)  # (B, G)
        target = critic_td_target(critic, batch, next_q, config.gamma)

        # --- critic ---
        def critic_loss(params: Any) -> tuple[chex.Array, Metrics]:
            q = critic(params, batch.obs, batch.actions)  # (2, B, G)
            loss = td_loss(q, target)
            return loss.sum(), {"critic_loss": loss, "q": q}

        critics, critic_optimiser, critic_metrics = critic_step(critic_loss, state.critic, state.critic_optimiser)

        # --- policy ---
        def policy_loss(params: Any) -> tuple[chex.Array, Metrics]:
            own = policy(params, batch.obs)  # (B, N, A)
            q = critic.own(critics, batch.obs, own, batch.actions)  # (B, N)
            weight = config.alpha / jnp.maximum(jax.lax.stop_gradient(jnp.abs(q).mean(axis=0)), 1e-6)
            error = jnp.square(own - batch.actions) + config.policy_penalty * jnp.square(own)
            loss = -weight * q.mean(axis=0) + networks.mean_over_actions(error, spec).mean(axis=0)  # (N,)
            return loss.sum(), {"policy_loss": loss, "saturation": saturation(own, spec)}

        params, policy_optimiser, policy_metrics = policy_step(policy_loss, state.policy.params, state.policy_optimiser)

        # --- targets ---
        net = policy.observe(state.policy._replace(params=params), batch.obs)
        state = state._replace(
            policy=net, critic=critics, policy_optimiser=policy_optimiser, critic_optimiser=critic_optimiser
        )
        return follow(state, config.tau), jax.tree.map(jnp.mean, critic_metrics | policy_metrics)

    return greedy_algorithm(config, policy, critic, init, update)
