"""MA-ICQ: implicit constraint Q-learning (Yang et al. 2021), each agent for itself, as OMAR compares with.

Critics evaluate nothing but actions of the data; better ones count more, by a softmax over the batch:

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
from omarl_jax.algorithms._actor_critic import ActorCriticConfig, critic_of
from omarl_jax.algorithms._checks import check_value_learner, require_kind, require_positive
from omarl_jax.algorithms._losses import critic_td_target, saturation, softmax_weights, td_loss
from omarl_jax.algorithms._steps import per_agent, soft_update
from omarl_jax.networks import InputNorm, Net
from omarl_jax.types import Algorithm, Context, Metrics, Needs, TaskSpec, Transition, View, config


@config
class Config(ActorCriticConfig):
    """Hyperparameters of MA-ICQ; the temperatures are those of the code for one agent, the rest as in OMAR."""

    critic_temperature: float = 100.0
    """β_Q, of the weights of next values."""
    policy_temperature: float = 100.0
    """β_π, of the weights of actions."""
    published_clip: bool = False
    """Cut the weights of next values off at 1, as the published code does."""
    published_advantage: bool = False
    """Weigh actions by the temporal difference, not by their value, as the published code does."""
    input_norm: InputNorm = "dataset"
    """Normalisation of the networks' inputs."""


class State(NamedTuple):
    """Every leaf of separate networks begins with (N,), that of a joint critic with (1,)."""

    policy: Net
    critic: Any
    target_critic: Any
    policy_optimiser: Any
    critic_optimiser: Any


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    require_kind("icq", "continuous", spec)
    check_value_learner(config)
    require_positive(config, "critic_temperature", "policy_temperature")


def icq(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-ICQ for a continuous task."""
    policy = networks.stochastic_policy(spec, config.hidden, config.input_norm, config.sharing)
    critic = critic_of(config, spec)
    policy_step = per_agent(policy, config.lr, config.grad_clip)
    critic_step = per_agent(critic, config.lr, config.grad_clip)

    def init(key: chex.PRNGKey, context: Context) -> State:
        policy_key, critic_key = jax.random.split(key)
        net, critics = policy.init(policy_key), critic.init(critic_key)
        return State(net, critics, critics, policy_step.init(net.params), critic_step.init(critics))

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        # --- target ---
        next_q = critic(state.target_critic, batch.next_obs, batch.next_actions).min(axis=0)  # (B, G)
        next_q *= 1.0 - critic.group(batch.terminal, "all")
        weights = softmax_weights(next_q, config.critic_temperature)
        if config.published_clip:
            weights = jnp.minimum(weights, 1.0)
        target = critic_td_target(critic, batch, weights * next_q, config.gamma)

        # --- critic ---
        def critic_loss(params: Any) -> tuple[chex.Array, Metrics]:
            q = critic(params, batch.obs, batch.actions)  # (2, B, G)
            loss = td_loss(q, target)
            return loss.sum(), {"critic_loss": loss, "q": q}

        critics, critic_optimiser, critic_metrics = critic_step(critic_loss, state.critic, state.critic_optimiser)

        # --- policy ---
        advantage = critic(critics, batch.obs, batch.actions).min(axis=0)  # (B, G)
        if config.published_advantage:
            next_q = critic(critics, batch.next_obs, batch.next_actions).min(axis=0)
            advantage = critic_td_target(critic, batch, next_q, config.gamma) - advantage
        action_weights = softmax_weights(advantage, config.policy_temperature)

        def policy_loss(params: Any) -> tuple[chex.Array, Metrics]:
            pi = policy(params, batch.obs)
            loss = -(action_weights * pi.log_prob(batch.actions)).mean(axis=0)  # (N,)
            return loss.sum(), {"policy_loss": loss, "saturation": saturation(pi.mode(), spec)}

        params, policy_optimiser, policy_metrics = policy_step(policy_loss, state.policy.params, state.policy_optimiser)

        # --- targets ---
        state = State(
            policy=policy.observe(state.policy._replace(params=params), batch.obs),
            critic=critics,
            target_critic=soft_update(state.target_critic, critics, config.tau),
            policy_optimiser=policy_optimiser,
            critic_optimiser=critic_optimiser,
        )
        return state, jax.tree.map(jnp.mean, critic_metrics | policy_metrics)

    def act(net: Net, view: View, carry: Any, key: chex.PRNGKey, explore: bool = False) -> tuple[chex.Array, Any]:
        pi, carry = policy.act(net, view.obs)
        return pi.sample(key) if explore else pi.mode(), carry

    def values(state: State, batch: Transition) -> chex.Array:
        return critic(state.critic, batch.obs, batch.actions)

    return Algorithm(init, update, act, Needs(config.batch_size, next_actions=True), explores=True, values=values)
