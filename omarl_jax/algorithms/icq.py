"""MA-ICQ: implicit constraint Q-learning (Yang et al. 2021), each agent for itself, as OMAR compares with.

Critics judge nothing but actions of the data; better ones count more, by a softmax over the batch:

    V̄_i = (1 - d_i) min_k Q̄_ik(o'_i, a'_i)
    L_Q = Σ_k mean (Q_ik(o_i, a_i) - r_i - γ W_i V̄_i)²,   W_i = B softmax(V̄_i / β_Q)
    L_π = -mean B softmax(min_k Q_ik(o_i, a_i) / β_π) log π_i(a_i | o_i)

The policy is a Gaussian squashed by tanh. The published multi-agent code for continuous actions is not available; the
authors' code for one agent differs from this:

- It cuts W off at 1, which shrinks every value above the average; `published_clip` does the same. It is needed where
  returns are as large as β_Q: a value with γ W > 1 feeds itself. On `particle/tag` values passed 10⁶ without it, so the
  presets use it.
- It weighs actions by the temporal difference r + γ (1 - d) Q(o', a') - Q(o, a), not by Q as the paper does. The more
  the critic has learned, the less that depends on the action; `published_advantage` does the same.
- Values after a termination, which mean nothing, take part in its softmax; here they are 0.
- It has one critic, a Gaussian that is not squashed, and weight decay of 1e-4 on the policy.

With `centralised`, one critic, learning the mean reward, sees all observations and actions, and its values weigh the
actions of every agent.
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
    require_positive,
    saturation,
    seen,
    soft_update,
    softmax_weights,
    team,
    validate_value_learner,
)
from omarl_jax.networks import InputNorm, Policy
from omarl_jax.types import Algorithm, Metrics, Needs, Stats, TaskSpec, Transition, config


@config
class Config:
    """Hyperparameters of MA-ICQ; the temperatures are those of the code for one agent, the rest as in OMAR."""

    lr: float = 0.01
    """Adam's learning rate, of policies and critics."""
    gamma: float = 0.95
    """Discount."""
    tau: float = 0.01
    """Soft update of the targets."""
    grad_clip: float = 0.5
    """Largest norm of a network's gradient."""
    critic_temperature: float = 100.0
    """β_Q, of the weights of next values."""
    policy_temperature: float = 100.0
    """β_π, of the weights of actions."""
    published_clip: bool = False
    """Cut the weights of next values off at 1, as the published code does."""
    published_advantage: bool = False
    """Weigh actions by the temporal difference, not by their value, as the published code does."""
    centralised: bool = False
    """One critic that sees all agents."""
    batch_size: int = 1024
    """Transitions a batch."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    input_norm: InputNorm = "dataset"
    """Normalisation of the networks' inputs."""


class State(NamedTuple):
    """Every leaf begins with (N,), those of critics with (1,) if there is one for all."""

    policy: Policy
    critic: Any
    target_critic: Any
    policy_optimiser: Any
    critic_optimiser: Any


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    validate_value_learner("icq", config, spec)
    require_positive(config, "critic_temperature", "policy_temperature")


def icq(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-ICQ for a continuous task."""
    n = spec.n_agents
    groups = 1 if config.centralised else n  # G critics, each seeing N / G agents
    policy = networks.gaussian_policy(spec, config.hidden, config.input_norm)
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
            target_critic=critics,
            policy_optimiser=jax.vmap(optimiser.init)(policies),
            critic_optimiser=jax.vmap(optimiser.init)(critics),
        )

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        norm = networks.training_norm(config.input_norm, state.policy.norm)
        critic_norm = None if norm is None else norm.of_critics(view, spec.action_dim)

        def values(critics: Any, obs: chex.Array, actions: chex.Array) -> chex.Array:  # (B, N, …) -> (G, B)
            return jax.vmap(critic.apply)(critics, view(obs), view(actions), critic_norm).min(axis=1)

        # --- target ---
        rewards, terminal = team(batch, groups)  # (G, B)
        next_value = (1.0 - terminal) * values(state.target_critic, batch.next_obs, batch.next_actions)
        weights = jax.vmap(softmax_weights, (0, None))(next_value, config.critic_temperature)
        if config.published_clip:
            weights = jnp.minimum(weights, 1.0)
        target = bootstrapped(rewards, terminal, weights * next_value, config.gamma)

        # --- critic ---
        def critic_loss(params: Any, obs: Any, actions: Any, norm: Any, target: Any) -> tuple[chex.Array, Metrics]:
            q = critic.apply(params, obs, actions, norm)  # (2, B)
            loss = jnp.square(q - target).mean(axis=1).sum()
            return loss, {"critic_loss": loss, "q": q.mean()}

        critics, critic_optimiser, critic_metrics = jax.vmap(minimise(critic_loss, optimiser))(
            state.critic, state.critic_optimiser, view(batch.obs), view(batch.actions), critic_norm, target
        )

        # --- policy ---
        worth = values(critics, batch.obs, batch.actions)
        if config.published_advantage:
            following = values(critics, batch.next_obs, batch.next_actions)
            worth = bootstrapped(rewards, terminal, following, config.gamma) - worth
        weights = jax.vmap(softmax_weights, (0, None))(worth, config.policy_temperature)  # (G, B)

        def policy_loss(params: Any, obs: Any, actions: Any, norm: Any, weights: Any) -> tuple[chex.Array, Metrics]:
            mean, log_std = policy.apply(params, obs, norm)  # (B, A)
            loss = -(weights * networks.tanh_gaussian_log_prob(mean, log_std, actions)).mean()
            return loss, {"policy_loss": loss, "saturation": saturation(jnp.tanh(mean))}

        policies, policy_optimiser, policy_metrics = jax.vmap(minimise(policy_loss, optimiser))(
            state.policy.params,
            state.policy_optimiser,
            seen(batch.obs, n),
            seen(batch.actions, n),
            norm,
            jnp.repeat(weights, n // groups, axis=0),
        )
        moved = Policy(policies, networks.moved_norm(config.input_norm, state.policy.norm, batch.obs))

        # --- targets ---
        state = State(
            policy=moved,
            critic=critics,
            target_critic=soft_update(state.target_critic, critics, config.tau),
            policy_optimiser=policy_optimiser,
            critic_optimiser=critic_optimiser,
        )
        return state, jax.tree.map(jnp.mean, critic_metrics | policy_metrics)

    def act(
        policies: Policy, obs: chex.Array, mask: Any, carry: Any, key: chex.PRNGKey, explore: bool = False
    ) -> tuple[chex.Array, Any]:
        mean, log_std = jax.vmap(policy.apply)(policies.params, obs, policies.norm)
        return networks.tanh_gaussian_sample(mean, log_std, key) if explore else jnp.tanh(mean), carry

    return Algorithm(init, update, act, Needs(config.batch_size, next_actions=True))
