"""MATD3: multi-agent twin delayed deterministic policy gradient (Ackermann et al. 2019, after Lowe et al. 2017).

The online method that makes the behaviour policies of the offline datasets; trained offline it is the baseline
without conservatism. Each agent i has its own policy π_i(o_i) and its own critics Q_i, which see the observations and
actions of all agents:

    y_i = r_i + γ (1 - d_i) min_k Q̄_ik(o', ã'),   ã'_j = clip(π̄_j(o'_j) + clip(ε, ±c), ±1),   ε ~ N(0, σ²)
    L_Q = Σ_k mean (Q_ik(o, a) - y_i)²
    L_π = -mean Q_i1(o, (π_i(o_i), a_-i)) + w mean π_i(o_i)²,   every `policy_delay` updates

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
from omarl_jax.algorithms._actor_critic import ActorCriticConfig, State, follow, start
from omarl_jax.algorithms._checks import check_value_learner, require_kind, require_not_negative, require_positive
from omarl_jax.algorithms._losses import clipped_noise, saturation, td_loss, td_target
from omarl_jax.algorithms._steps import per_agent
from omarl_jax.networks import Net
from omarl_jax.types import Algorithm, Context, Metrics, Needs, TaskSpec, Transition, View, config


@config
class Config(ActorCriticConfig):
    """Hyperparameters of MATD3; the defaults are those of the particle tasks."""

    centralised: bool = True
    """Whether critics see all agents, or only their own."""
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


class DelayedState(NamedTuple):
    """The networks, and how often they were updated."""

    networks: State
    updates: chex.Array

    @property
    def policy(self) -> Net:
        """What acting and export need."""
        return self.networks.policy


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    require_kind("matd3", "continuous", spec)
    check_value_learner(config)
    require_not_negative(config, "target_noise", "target_noise_clip", "exploration_noise", "policy_penalty")
    require_positive(config, "gain", "policy_delay", "n_critics")


def matd3(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MATD3 for a continuous task."""
    policy = networks.deterministic_policy(spec, config.hidden, config.input_norm, config.sharing)
    critic = networks.critic(
        spec,
        config.hidden,
        config.input_norm,
        config.sharing,
        view="all" if config.centralised else "own",
        heads=config.n_critics,
    )
    policy_step = per_agent(policy, config.lr, config.grad_clip)
    critic_step = per_agent(critic, config.lr, config.grad_clip)

    def init(key: chex.PRNGKey, context: Context) -> DelayedState:
        return DelayedState(start(key, policy, critic, policy_step, critic_step), jnp.zeros((), jnp.int32))

    def update(state: DelayedState, batch: Transition, key: chex.PRNGKey) -> tuple[DelayedState, Metrics]:
        nets, updates = state

        # --- target ---
        noise = clipped_noise(key, batch.actions.shape, config.target_noise, config.target_noise_clip)
        next_actions = jnp.clip(policy(nets.target_policy, batch.next_obs) + noise, -1.0, 1.0)  # (B, N, A)
        next_q = critic(nets.target_critic, batch.next_obs, next_actions).min(axis=0)  # (B, N)
        target = td_target(batch.rewards, batch.terminal, next_q, config.gamma)

        # --- critic ---
        def critic_loss(params: Any) -> tuple[chex.Array, Metrics]:
            q = critic(params, batch.obs, batch.actions)  # (n_critics, B, N)
            loss = td_loss(q, target)
            return loss.sum(), {"critic_loss": loss, "q": q}

        critics, critic_optimiser, critic_metrics = critic_step(critic_loss, nets.critic, nets.critic_optimiser)
        nets = nets._replace(critic=critics, critic_optimiser=critic_optimiser)

        # --- policy ---
        def policy_loss(params: Any) -> tuple[chex.Array, Metrics]:
            own = policy(params, batch.obs)  # (B, N, A)
            q = critic.own(critics, batch.obs, own, batch.actions)  # (B, N)
            size = networks.mean_over_actions(jnp.square(own), spec)
            loss = (config.policy_penalty * size - q).mean(axis=0)  # (N,)
            return loss.sum(), {"policy_loss": loss, "saturation": saturation(own, spec)}

        params, policy_optimiser, policy_metrics = policy_step(policy_loss, nets.policy.params, nets.policy_optimiser)

        # --- targets, and what waits with them ---
        net = policy.observe(nets.policy._replace(params=params), batch.obs)
        after = follow(nets._replace(policy=net, policy_optimiser=policy_optimiser), config.tau)
        due = updates % config.policy_delay == 0
        nets = jax.tree.map(lambda new, old: jnp.where(due, new, old), after, nets)
        return DelayedState(nets, updates + 1), jax.tree.map(jnp.mean, critic_metrics | policy_metrics)

    def act(net: Net, view: View, carry: Any, key: chex.PRNGKey, explore: bool = False) -> tuple[chex.Array, Any]:
        actions, carry = policy.act(networks.scale_logits(net, config.gain), view.obs)
        if explore:
            noise = config.exploration_noise * jax.random.normal(key, actions.shape)
            actions += networks.without_padding(noise, spec)
        return jnp.clip(actions, -1.0, 1.0), carry

    def values(state: DelayedState, batch: Transition) -> chex.Array:
        return critic(state.networks.critic, batch.obs, batch.actions)

    return Algorithm(init, update, act, Needs(config.batch_size), explores=True, values=values)
