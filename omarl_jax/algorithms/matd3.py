"""MATD3: multi-agent twin delayed deterministic policy gradient (Ackermann et al. 2019, after Lowe et al. 2017).

The online method that makes the behaviour policies of the offline datasets; trained offline it is the baseline
without conservatism. Each agent i has its own policy π_i(o_i) and its own critics Q_i, which see the observations and
actions of all agents:

    y_i = r_i + γ (1 - d_i) min_k Q̄_ik(o', ã'),   ã'_j = clip(π̄_j(o'_j) + clip(ε, ±c), ±1),   ε ~ N(0, σ²)
    L_Q = Σ_k mean (Q_ik(o, a) - y_i)²
    L_π = -mean Q_i1(o, (π_i(o_i), a_-i)) + 1e-3 mean π_i(o_i)²,   every `policy_delay` rounds

Differences from the OMAR family's collection script, which was never published: none known; the input batch
normalisation and the penalty on π² are those of its offline code.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from omarl_jax import networks
from omarl_jax.algorithms.formulas import (
    bootstrapped,
    clipped_adam,
    require,
    require_kind,
    saturation,
    seen,
    soft_update,
    with_own,
)
from omarl_jax.networks import InputNorm, Policy
from omarl_jax.types import Algorithm, Metrics, Needs, Stats, TaskSpec, Transition, config


@config
class Config:
    """Hyperparameters of MATD3; the defaults are those of the particle tasks."""

    lr: float = 0.01
    """Adam's learning rate, of policies and critics."""
    gamma: float = 0.95
    """Discount."""
    tau: float = 0.01
    """Soft update of the targets."""
    grad_clip: float = 0.5
    """Largest norm of a gradient, per network."""
    target_noise: float = 0.2
    """Standard deviation of the noise on target actions."""
    target_noise_clip: float = 0.5
    """Its bound."""
    exploration_noise: float = 0.1
    """Standard deviation of the noise on actions when exploring."""
    policy_penalty: float = 1e-3
    """Weight of the mean squared action."""
    policy_delay: int = 2
    """Critic updates for each policy update."""
    n_critics: int = 2
    """Critics an agent; the least of them counts in targets."""
    centralised: bool = True
    """Whether critics see all agents, or only their own."""
    batch_size: int = 1024
    """Transitions a batch."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    input_norm: InputNorm = "batch"
    """Normalisation of the networks' inputs."""


class State(NamedTuple):
    """All leaves begin with (N,) but `round`."""

    policy: Policy
    critic: Any
    target_policy: Any
    target_critic: Any
    policy_optimiser: Any
    critic_optimiser: Any
    round: chex.Array


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    require_kind("matd3", "continuous", spec)
    require(config.lr > 0, f"lr must be positive, not {config.lr}.")
    require(0 <= config.gamma <= 1, f"gamma must lie in [0, 1], not {config.gamma}.")
    require(0 < config.tau <= 1, f"tau must lie in (0, 1], not {config.tau}.")
    require(config.policy_delay >= 1, f"policy_delay must be at least 1, not {config.policy_delay}.")


def matd3(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MATD3 for a continuous task."""
    n = spec.n_agents
    agents = jnp.arange(n)
    policy = networks.DeterministicPolicy(config.hidden, spec.action_dim, config.input_norm)
    critic = networks.Critic(config.hidden, config.input_norm, config.n_critics)
    optimiser = clipped_adam(config.lr, config.grad_clip)

    def init(key: chex.PRNGKey, stats: Stats) -> State:
        policy_key, critic_key = jax.random.split(key)
        norm = networks.initial_norm(config.input_norm, stats)
        obs, actions = jnp.zeros((1, n, spec.obs_dim)), jnp.zeros((1, n, spec.action_dim))
        own_norm = jax.tree.map(lambda x: x[0], norm)
        policies = networks.stacked_init(policy, policy_key, n, obs[:, 0], own_norm)
        critics = networks.stacked_init(
            critic, critic_key, n, views(obs)[0], views(actions)[0], jax.tree.map(lambda x: views(x[None])[0, 0], norm)
        )
        return State(
            policy=Policy(policies, norm),
            critic=critics,
            target_policy=policies,
            target_critic=critics,
            policy_optimiser=jax.vmap(optimiser.init)(policies),
            critic_optimiser=jax.vmap(optimiser.init)(critics),
            round=jnp.zeros((), jnp.int32),
        )

    def views(x: chex.Array) -> chex.Array:  # (B, N, X) -> (N, B, X) or (N, B, N X)
        return jnp.repeat(seen(x, 1), n, axis=0) if config.centralised else seen(x, n)

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        norm = networks.training_norm(config.input_norm, state.policy.norm)  # (N, O) or None
        critic_norm = jax.tree.map(lambda x: views(x[None])[:, 0], norm)
        obs, actions, next_obs = views(batch.obs), views(batch.actions), views(batch.next_obs)

        # --- target ---
        next_actions = jax.vmap(act_one, (0, 1, 0), 1)(state.target_policy, batch.next_obs, norm)  # (B, N, A)
        noise = config.target_noise * jax.random.normal(key, next_actions.shape)
        noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
        next_actions = jnp.clip(next_actions + noise, -1.0, 1.0)
        next_q = jax.vmap(value)(state.target_critic, next_obs, views(next_actions), critic_norm).min(axis=1)  # (N, B)
        target = bootstrapped(batch.rewards.T, batch.terminal.T, next_q, config.gamma)

        # --- critic ---
        def critic_loss(params: Any, obs: Any, actions: Any, norm: Any, target: Any) -> tuple[chex.Array, Metrics]:
            q = value(params, obs, actions, norm)  # (n_critics, B)
            loss = jnp.mean(jnp.square(q - target), axis=1).sum()
            return loss, {"critic_loss": loss, "q": q.mean()}

        gradient, critic_metrics = jax.vmap(jax.grad(critic_loss, has_aux=True))(
            state.critic, obs, actions, critic_norm, target
        )
        critics, critic_optimiser = jax.vmap(step)(gradient, state.critic_optimiser, state.critic)

        # --- policy ---
        def policy_loss(
            params: Any, critic_params: Any, own_obs: Any, obs: Any, norm: Any, critic_norm: Any, agent: Any
        ) -> tuple[chex.Array, Metrics]:
            own = act_one(params, own_obs, norm)  # (B, A)
            joint = with_own(own, batch.actions, agent, config.centralised)
            q = value(critic_params, obs, joint, critic_norm, heads=1)[0]
            loss = -q.mean() + config.policy_penalty * jnp.square(own).mean()
            return loss, {"policy_loss": loss, "saturation": saturation(own)}

        gradient, policy_metrics = jax.vmap(jax.grad(policy_loss, has_aux=True), (0, 0, 1, 0, 0, 0, 0))(
            state.policy.params, critics, batch.obs, obs, norm, critic_norm, agents
        )
        policies, policy_optimiser = jax.vmap(step)(gradient, state.policy_optimiser, state.policy.params)
        moved = Policy(policies, networks.moved_norm(config.input_norm, state.policy.norm, batch.obs))

        # --- targets ---
        due = state.round % config.policy_delay == 0
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(due, a, b), new, old)  # noqa: E731
        state = State(
            policy=keep(moved, state.policy),
            critic=critics,
            target_policy=keep(soft_update(state.target_policy, policies, config.tau), state.target_policy),
            target_critic=keep(soft_update(state.target_critic, critics, config.tau), state.target_critic),
            policy_optimiser=keep(policy_optimiser, state.policy_optimiser),
            critic_optimiser=critic_optimiser,
            round=state.round + 1,
        )
        return state, jax.tree.map(jnp.mean, critic_metrics | policy_metrics)

    def act(
        policies: Policy, obs: chex.Array, mask: Any, carry: Any, key: chex.PRNGKey, explore: bool = False
    ) -> tuple[chex.Array, Any]:
        actions = jax.vmap(act_one)(policies.params, obs, policies.norm)
        if explore:
            noise = config.exploration_noise * jax.random.normal(key, actions.shape)
            actions = jnp.clip(actions + noise, -1.0, 1.0)
        return actions, carry

    def act_one(params: Any, obs: chex.Array, norm: Any) -> chex.Array:
        return policy.apply({"params": params}, obs, norm)

    def value(params: Any, obs: chex.Array, actions: chex.Array, norm: Any, heads: int | None = None) -> chex.Array:
        return critic.apply({"params": params}, obs, actions, norm, heads)

    def step(gradient: Any, optimiser_state: Any, params: Any) -> tuple[Any, Any]:
        change, optimiser_state = optimiser.update(gradient, optimiser_state)
        return optax.apply_updates(params, change), optimiser_state

    return Algorithm(init, update, act, Needs(config.batch_size))
