"""MA-CQL: conservative Q-learning (Kumar et al. 2020), each agent for itself, as OMAR compares with (Pan et al. 2022).

    y_i = r_i + γ (1 - d_i) min_k Q̄_ik(o'_i, π̄_i(o'_i))
    L_Q = Σ_k mean (Q_ik(o_i, a_i) - y_i)² + α mean [log Σ_m exp(Q_ik(o_i, u_m) - log p(u_m)) - Q_ik(o_i, a_i)]
    L_π = -mean Q_i1(o_i, π_i(o_i)) + w mean π_i(o_i)²

The u_m are uniform in [-1, 1]^A. With `policy_samples`, as many again are drawn around π_i(o_i) and around π_i(o'_i),
the form that the published code uses for MuJoCo; there it subtracts the density of the noise where its logarithm
belongs, which `published_density` reproduces. There is no target noise and no delay, as in the published code. All
agents of a round learn from one joint batch (published: a fresh one each).

With `centralised`, one critic, learning the mean reward, sees all observations and actions; agent i's policy is judged
with the other agents' actions from the data (`MATD3CC` in the code of Shao et al. 2023). That code, to which the
published centralised scores belong, updates its critic five times a round and adds noise of 0.05 to target actions;
here, as everywhere, a round is one update.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from omarl_jax import networks
from omarl_jax.algorithms.formulas import (
    bootstrapped,
    clipped_adam,
    conservative_penalty,
    cql_actions,
    minimise,
    require_not_negative,
    saturation,
    seen,
    soft_update,
    team,
    validate_sampling,
    validate_value_learner,
    with_own,
)
from omarl_jax.networks import InputNorm, Network, Policy
from omarl_jax.types import Algorithm, Metrics, Needs, Stats, TaskSpec, Transition, config


@config
class Config:
    """Hyperparameters of MA-CQL; the defaults are those of the particle tasks."""

    lr: float = 0.01
    """Adam's learning rate, of policies and critics."""
    gamma: float = 0.95
    """Discount."""
    tau: float = 0.01
    """Soft update of the targets."""
    grad_clip: float = 0.5
    """Largest norm of a network's gradient."""
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
    validate_value_learner("cql", config, spec)
    validate_sampling(config)
    require_not_negative(config, "policy_penalty")


def cql(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-CQL for a continuous task."""
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
        next_q = jax.vmap(critic.apply)(state.target_critic, view(batch.next_obs), view(next_actions), critic_norm)
        rewards, terminal = team(batch, groups)  # (G, B)
        target = bootstrapped(rewards, terminal, next_q.min(axis=1), config.gamma)

        # --- critic ---
        around = ()
        if config.policy_samples:
            act_on = jax.vmap(policy.apply, (0, 0, 0), 1)
            around = tuple(view(act_on(state.policy.params, seen(x, n), norm)) for x in (batch.obs, batch.next_obs))

        critics, critic_optimiser, critic_metrics = jax.vmap(conservative_step(critic, optimiser, config))(
            state.critic,
            state.critic_optimiser,
            view(batch.obs),
            view(batch.actions),
            target,
            critic_norm,
            around,
            jax.random.split(key, groups),
        )

        # --- policy ---
        def policy_loss(params: Any, agent: Any, obs: Any, norm: Any, judge: Any) -> tuple[chex.Array, Metrics]:
            critic_params, critic_obs, critic_norm = judge
            own = policy.apply(params, obs, norm)  # (B, A)
            judged = with_own(own, batch.actions, agent, config.centralised)
            q = critic.apply(critic_params, critic_obs, judged, critic_norm, heads=1)[0]
            loss = -q.mean() + config.policy_penalty * jnp.square(own).mean()
            return loss, {"policy_loss": loss, "saturation": saturation(own)}

        judges = jax.tree.map(lambda x: jnp.repeat(x, n // groups, axis=0), (critics, view(batch.obs), critic_norm))
        policies, policy_optimiser, policy_metrics = jax.vmap(minimise(policy_loss, optimiser))(
            state.policy.params, state.policy_optimiser, jnp.arange(n), seen(batch.obs, n), norm, judges
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


def conservative_step(critic: Network, optimiser: optax.GradientTransformation, config: Any) -> Callable[..., Any]:
    """One gradient step of a critic on L_Q.

    Args:
        critic: the double critic.
        optimiser: how to step.
        config: with `cql_alpha`, and what `cql_actions` needs.

    Returns:
        a function (params, optimiser state, obs (B, O), actions (B, A), target (B,), norm, around, key) -> params,
        optimiser state, metrics, where `around` is as in `cql_actions`.
    """

    def loss(params: Any, obs: Any, actions: Any, target: Any, sampled: Any, norms: Any) -> tuple[chex.Array, Metrics]:
        q = critic.apply(params, obs, actions, norms[0])  # (2, B)
        q_sampled = [  # (2, K, B) each, less the log density
            critic.apply(params, obs, candidates, norm) - log_density
            for (candidates, log_density), norm in zip(sampled, norms[1:], strict=True)
        ]
        td_loss = jnp.square(q - target).mean(axis=1).sum()
        penalty = jax.vmap(conservative_penalty)(jnp.concatenate(q_sampled, axis=1), q).sum()
        metrics = {"critic_loss": td_loss, "cql_penalty": penalty, "q": q.mean()}
        return td_loss + config.cql_alpha * penalty, metrics

    def step(
        params: Any, optimiser_state: Any, obs: Any, actions: Any, target: Any, norm: Any, around: Any, key: Any
    ) -> tuple[Any, Any, Metrics]:
        sampled = cql_actions(key, actions, around, config)
        # The statistics are those of the whole batch, the gradient is taken block by block.
        norms = [networks.statistics(norm, obs, x) for x in (actions, *(candidates for candidates, _ in sampled))]
        minimised = minimise(loss, optimiser, batch_axes=(0, 0, 0, 1, None))
        return minimised(params, optimiser_state, obs, actions, target, sampled, norms)

    return step
