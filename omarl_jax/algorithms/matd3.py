"""MATD3: multi-agent twin delayed deterministic policy gradient (Ackermann et al. 2019, after Lowe et al. 2017).

The online method that makes the behaviour policies of the offline datasets; trained offline it is the baseline
without conservatism. Each agent i has its own policy π_i(o_i) and its own critics Q_i, which see the observations and
actions of all agents:

    y_i = r_i + γ (1 - d_i) min_k Q̄_ik(o', ã'),   ã'_j = clip(π̄_j(o'_j) + clip(ε, ±c), ±1),   ε ~ N(0, σ²)
    L_Q = Σ_k mean (Q_ik(o, a) - y_i)²
    L_π = -mean Q_i1(o, (π_i(o_i), a_-i)) + w mean π_i(o_i)²,   every `policy_delay` rounds

The program that collected OMAR's datasets was never published. Input batch normalisation and the penalty on π² are
those of its offline code. A critic that normalises its inputs over the batch does not see how large the policy's own
actions are, only how they differ from each other: so the loss says nothing of their scale, and forces stay at a
fraction of what is possible. With a `gain` above 1, which multiplies before the tanh when the policy acts, learning and
playing alike, the buffer holds forces of full size, and teams learn faster and get further.
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
    require_positive,
    saturation,
    seen,
    soft_update,
    validate_value_learner,
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
    """Largest norm of a network's gradient."""
    target_noise: float = 0.2
    """Standard deviation of the noise on target actions."""
    target_noise_clip: float = 0.5
    """Its bound."""
    exploration_noise: float = 0.1
    """Standard deviation of the noise on actions when exploring."""
    gain: float = 1.0
    """What acting multiplies by before the tanh."""
    policy_penalty: float = 1e-3
    """Weight of the mean squared action."""
    policy_delay: int = 2
    """Critic updates for each policy update."""
    n_critics: int = 2
    """Critics of an agent; the least of them counts in targets."""
    centralised: bool = True
    """Whether critics see all agents, or only their own."""
    batch_size: int = 1024
    """Transitions a batch."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    input_norm: InputNorm = "batch"
    """Normalisation of the networks' inputs."""


class State(NamedTuple):
    """Every leaf begins with (N,), but `round`."""

    policy: Policy
    critic: Any
    target_policy: Any
    target_critic: Any
    policy_optimiser: Any
    critic_optimiser: Any
    round: chex.Array


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    validate_value_learner("matd3", config, spec)
    require_not_negative(config, "target_noise", "target_noise_clip", "exploration_noise", "policy_penalty")
    require_positive(config, "gain", "policy_delay", "n_critics")


def matd3(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MATD3 for a continuous task."""
    n = spec.n_agents
    policy = networks.deterministic_policy(spec, config.hidden, config.input_norm)
    critic = networks.critic(config.hidden, config.input_norm, config.n_critics)
    optimiser = clipped_adam(config.lr, config.grad_clip)

    def view(x: chex.Array) -> chex.Array:  # (B, N, X) -> (N, B, N X), or (N, B, X) if decentralised
        return jnp.repeat(seen(x, 1), n, axis=0) if config.centralised else seen(x, n)

    def init(key: chex.PRNGKey, stats: Stats) -> State:
        policy_key, critic_key = jax.random.split(key)
        norm = networks.initial_norm(config.input_norm, stats)
        obs, actions = jnp.zeros((1, n, spec.obs_dim)), jnp.zeros((1, n, spec.action_dim))
        policies = policy.init(policy_key, n, obs[:, 0], norm.of(0))
        critics = critic.init(critic_key, n, view(obs)[0], view(actions)[0], None)
        return State(
            policy=Policy(policies, norm),
            critic=critics,
            target_policy=policies,
            target_critic=critics,
            policy_optimiser=jax.vmap(optimiser.init)(policies),
            critic_optimiser=jax.vmap(optimiser.init)(critics),
            round=jnp.zeros((), jnp.int32),
        )

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        obs, critic_obs, critic_actions = seen(batch.obs, n), view(batch.obs), view(batch.actions)
        norm = networks.training_norm(config.input_norm, state.policy.norm)
        critic_norm = None if norm is None else norm.of_critics(view, spec.action_dim)

        # --- target ---
        next_actions = jax.vmap(policy.apply, out_axes=1)(state.target_policy, seen(batch.next_obs, n), norm)
        noise = config.target_noise * jax.random.normal(key, next_actions.shape)
        noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
        next_actions = jnp.clip(next_actions + noise, -1.0, 1.0)  # (B, N, A)
        next_q = jax.vmap(critic.apply)(state.target_critic, view(batch.next_obs), view(next_actions), critic_norm)
        target = bootstrapped(batch.rewards.T, batch.terminal.T, next_q.min(axis=1), config.gamma)  # (N, B)

        # --- critic ---
        def critic_loss(params: Any, obs: Any, actions: Any, norm: Any, target: Any) -> tuple[chex.Array, Metrics]:
            q = critic.apply(params, obs, actions, norm)  # (n_critics, B)
            loss = jnp.square(q - target).mean(axis=1).sum()
            return loss, {"critic_loss": loss, "q": q.mean()}

        critics, critic_optimiser, critic_metrics = jax.vmap(minimise(critic_loss, optimiser))(
            state.critic, state.critic_optimiser, critic_obs, critic_actions, critic_norm, target
        )

        # --- policy ---
        def policy_loss(
            params: Any, critic_params: Any, agent: Any, obs: Any, critic_obs: Any, norm: Any, critic_norm: Any
        ) -> tuple[chex.Array, Metrics]:
            own = policy.apply(params, obs, norm)  # (B, A)
            judged = with_own(own, batch.actions, agent, config.centralised)
            q = critic.apply(critic_params, critic_obs, judged, critic_norm, heads=1)[0]
            loss = -q.mean() + config.policy_penalty * jnp.square(own).mean()
            return loss, {"policy_loss": loss, "saturation": saturation(own)}

        policies, policy_optimiser, policy_metrics = jax.vmap(minimise(policy_loss, optimiser))(
            state.policy.params, state.policy_optimiser, critics, jnp.arange(n), obs, critic_obs, norm, critic_norm
        )
        moved = Policy(policies, networks.moved_norm(config.input_norm, state.policy.norm, batch.obs))

        # --- targets ---
        new = State(
            policy=moved,
            critic=critics,
            target_policy=soft_update(state.target_policy, policies, config.tau),
            target_critic=soft_update(state.target_critic, critics, config.tau),
            policy_optimiser=policy_optimiser,
            critic_optimiser=critic_optimiser,
            round=state.round + 1,
        )
        due = state.round % config.policy_delay == 0
        delayed = jax.tree.map(lambda now, before: jnp.where(due, now, before), new, state)
        new = delayed._replace(critic=critics, critic_optimiser=critic_optimiser, round=new.round)
        return new, jax.tree.map(jnp.mean, critic_metrics | policy_metrics)

    def act(
        policies: Policy, obs: chex.Array, mask: Any, carry: Any, key: chex.PRNGKey, explore: bool = False
    ) -> tuple[chex.Array, Any]:
        actions = jax.vmap(policy.apply)(networks.sharpened(policies.params, config.gain), obs, policies.norm)
        if explore:
            actions += config.exploration_noise * jax.random.normal(key, actions.shape)
        return jnp.clip(actions, -1.0, 1.0), carry

    return Algorithm(init, update, act, Needs(config.batch_size))
