"""MA-CQL: conservative Q-learning (Kumar et al. 2020), each agent for itself, as OMAR compares with (Pan et al. 2022).

    y_i = r_i + γ (1 - d_i) min_k Q̄_ik(o'_i, π̄_i(o'_i))
    L_Q = Σ_k mean (Q_ik(o_i, a_i) - y_i)² + α mean [log Σ_m exp(Q_ik(o_i, u_m) - log p(u_m)) - Q_ik(o_i, a_i)]
    L_π = -mean Q_i1(o_i, π_i(o_i)) + w mean π_i(o_i)²

The u_m are uniform in [-1, 1]^A. With `policy_samples`, as many again are drawn around π_i(o_i) and around π_i(o'_i),
the form that the published code uses for MuJoCo; there it subtracts the density of the noise where its logarithm
belongs, which `published_density` reproduces. As published, each pass of the learned policy moves the running
statistics of batch normalisation: with `policy_samples` those of o, o' and o again, in this order, otherwise that of o
alone. Passes of o' are no mistake, since o' is the observation of the next step; they only make the statistics follow
the batches faster. There is no target noise and no delay, as in the published code. All agents learn from one
joint batch (published: a fresh one each).

With `centralised`, one critic, learning the mean reward, sees all observations and actions. Agent i's policy is
evaluated with the other agents' actions from the data (`MATD3CC` in the code of Shao et al. 2023). That code, to which
the published centralised scores belong, updates its critic five times for each policy update and adds noise of 0.05 to
target actions; here each update steps every network once.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms._actor_critic import ActorCriticConfig, State, critic_of, follow, greedy_algorithm, start
from omarl_jax.algorithms._checks import check_conservative, check_value_learner, require_kind, require_not_negative
from omarl_jax.algorithms._losses import conservative_samples, cql_critic_loss, critic_td_target, saturation
from omarl_jax.algorithms._steps import per_agent
from omarl_jax.types import Algorithm, Context, Metrics, TaskSpec, Transition, config


@config
class Config(ActorCriticConfig):
    """Hyperparameters of MA-CQL; the defaults are those of the particle tasks."""

    cql_alpha: float = 1.0
    """α, the weight of the conservative penalty."""
    sample_noise: float = 0.2
    """Standard deviation of the samples around the policy's actions."""
    policy_penalty: float = 1e-3
    """Weight of the mean squared action."""
    cql_samples: int = 10
    """Actions sampled for the penalty, of each kind."""
    policy_samples: bool = False
    """Sample around the policy's actions too, not only uniformly."""
    published_density: bool = False
    """Subtract the noise's density, not its logarithm, as the published code does."""


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    require_kind("cql", "continuous", spec)
    check_value_learner(config)
    check_conservative(config)
    require_not_negative(config, "policy_penalty")


def cql(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-CQL for a continuous task."""
    policy = networks.deterministic_policy(spec, config.hidden, config.input_norm, config.sharing)
    critic = critic_of(config, spec)
    policy_step = per_agent(policy, config.lr, config.grad_clip)
    critic_step = per_agent(critic, config.lr, config.grad_clip)

    def init(key: chex.PRNGKey, context: Context) -> State:
        return start(key, policy, critic, policy_step, critic_step)

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        # --- target ---
        next_q = critic(state.target_critic, batch.next_obs, policy(state.target_policy, batch.next_obs)).min(axis=0)
        target = critic_td_target(critic, batch, next_q, config.gamma)  # (B, G)

        # --- critic ---
        around = (batch.obs, batch.next_obs) if config.policy_samples else ()
        proposals = tuple(policy(state.policy.params, obs) for obs in around)  # (B, N, A)
        samples = conservative_samples(key, critic, batch, proposals, config, spec)

        def critic_loss(params: Any, data: Any, target: Any, samples: Any) -> tuple[chex.Array, Metrics]:
            return cql_critic_loss(critic, params, data, target, samples, config.cql_alpha)

        data = critic.inputs(batch.obs, batch.actions)
        critics, critic_optimiser, critic_metrics = critic_step(
            critic_loss, state.critic, state.critic_optimiser, data, target, samples, batch_axes=(0, 0, 1)
        )

        # --- policy ---
        def policy_loss(params: Any) -> tuple[chex.Array, Metrics]:
            own = policy(params, batch.obs)  # (B, N, A)
            q = critic.own(critics, batch.obs, own, batch.actions)  # (B, N)
            size = networks.mean_over_actions(jnp.square(own), spec)
            loss = (config.policy_penalty * size - q).mean(axis=0)  # (N,)
            return loss.sum(), {"policy_loss": loss, "saturation": saturation(own, spec)}

        params, policy_optimiser, policy_metrics = policy_step(policy_loss, state.policy.params, state.policy_optimiser)

        # --- targets ---
        net = policy.observe(state.policy._replace(params=params), *around, batch.obs)
        state = state._replace(
            policy=net, critic=critics, policy_optimiser=policy_optimiser, critic_optimiser=critic_optimiser
        )
        return follow(state, config.tau), jax.tree.map(jnp.mean, critic_metrics | policy_metrics)

    return greedy_algorithm(config, policy, critic, init, update)
