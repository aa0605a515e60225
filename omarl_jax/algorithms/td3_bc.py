"""MA-TD3+BC: TD3+BC (Fujimoto and Gu 2021), each agent for itself, in the form OMAR compares with.

    y_i = r_i + γ (1 - d_i) min_k Q̄_ik(o'_i, clip(π̄_i(o'_i) + clip(ε, ±c), ±1)),   ε ~ N(0, σ²)
    L_Q = Σ_k mean (Q_ik(o_i, a_i) - y_i)²
    L_π = -λ mean Q_i1(o_i, π_i(o_i)) + mean |π_i(o_i) - a_i|² + w mean π_i(o_i)²,   λ = α / sg[mean |Q_i1|]

The gradient of λ is stopped: without that, Q of one sign cancels and plain behaviour cloning remains. The published
multi-agent code of this baseline is not available. Like the rest of that family it is taken to use no target noise
(σ = 0 by default) and no delayed policy.

With `centralised`, one critic, learning the mean reward, sees all observations and actions; agent i's policy is judged
with the other agents' actions from the data.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms.formulas import (
    bootstrapped,
    clipped_adam,
    minimise,
    require_not_negative,
    saturation,
    seen,
    soft_update,
    team,
    validate_value_learner,
    with_own,
)
from omarl_jax.networks import InputNorm, Policy
from omarl_jax.types import Algorithm, Metrics, Needs, Stats, TaskSpec, Transition, config


@config
class Config:
    """Hyperparameters of MA-TD3+BC; the defaults are those of the particle tasks."""

    lr: float = 0.01
    """Adam's learning rate, of policies and critics."""
    gamma: float = 0.95
    """Discount."""
    tau: float = 0.01
    """Soft update of the targets."""
    grad_clip: float = 0.5
    """Largest norm of a network's gradient."""
    alpha: float = 2.5
    """Weight of the values against the cloning."""
    target_noise: float = 0.0
    """Standard deviation of the noise on target actions (0.2 in TD3+BC)."""
    target_noise_clip: float = 0.5
    """Its bound."""
    policy_penalty: float = 1e-3
    """Weight of the mean squared action."""
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
    validate_value_learner("td3_bc", config, spec)
    require_not_negative(config, "alpha", "target_noise", "target_noise_clip", "policy_penalty")


def td3_bc(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-TD3+BC for a continuous task."""
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
        norm = networks.training_norm(config.input_norm, state.policy.norm)
        critic_norm = None if norm is None else norm.of_critics(view, spec.action_dim)

        # --- target ---
        next_actions = jax.vmap(policy.apply, out_axes=1)(state.target_policy, seen(batch.next_obs, n), norm)
        noise = config.target_noise * jax.random.normal(key, next_actions.shape)
        noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
        next_actions = jnp.clip(next_actions + noise, -1.0, 1.0)  # (B, N, A)
        next_q = jax.vmap(critic.apply)(state.target_critic, view(batch.next_obs), view(next_actions), critic_norm)
        rewards, terminal = team(batch, groups)  # (G, B)
        target = bootstrapped(rewards, terminal, next_q.min(axis=1), config.gamma)

        # --- critic ---
        def critic_loss(params: Any, obs: Any, actions: Any, norm: Any, target: Any) -> tuple[chex.Array, Metrics]:
            q = critic.apply(params, obs, actions, norm)  # (2, B)
            loss = jnp.square(q - target).mean(axis=1).sum()
            return loss, {"critic_loss": loss, "q": q.mean()}

        critics, critic_optimiser, critic_metrics = jax.vmap(minimise(critic_loss, optimiser))(
            state.critic, state.critic_optimiser, view(batch.obs), view(batch.actions), critic_norm, target
        )

        # --- policy ---
        def policy_loss(
            params: Any, agent: Any, obs: Any, actions: Any, norm: Any, judge: Any
        ) -> tuple[chex.Array, Metrics]:
            critic_params, critic_obs, critic_norm = judge
            own = policy.apply(params, obs, norm)  # (B, A)
            judged = with_own(own, batch.actions, agent, config.centralised)
            q = critic.apply(critic_params, critic_obs, judged, critic_norm, heads=1)[0]
            weight = config.alpha / jnp.maximum(jax.lax.stop_gradient(jnp.abs(q).mean()), 1e-6)
            loss = -weight * q.mean() + jnp.square(own - actions).mean()
            loss += config.policy_penalty * jnp.square(own).mean()
            return loss, {"policy_loss": loss, "saturation": saturation(own)}

        judges = jax.tree.map(lambda x: jnp.repeat(x, n // groups, axis=0), (critics, view(batch.obs), critic_norm))
        policies, policy_optimiser, policy_metrics = jax.vmap(minimise(policy_loss, optimiser))(
            state.policy.params,
            state.policy_optimiser,
            jnp.arange(n),
            seen(batch.obs, n),
            seen(batch.actions, n),
            norm,
            judges,
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
