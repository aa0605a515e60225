"""OMIGA: implicit global-to-local value regularisation (Wang, Xu, Zheng and Zhan, NeurIPS 2023).

The team maximises its return less α times the log ratio of its policy and the behaviour μ. A mixer with non-negative
weights w_i(s) makes that problem fall apart into local ones, which are solved on the actions of the data alone:

    z_i = clip(w̄_i(s) (Q̄_i(o_i, a_i) - V_i(o_i)) / α, ±10)
    y   = r + γ (1 - d) [Σ_i w̄_i(s') V̄_i(o'_i) + b̄(s')]
    L_Q = mean (Σ_i w_i(s) Q_i(o_i, a_i) + b(s) - y)²
    L_V = mean exp(z_i - m) + exp(-m) w̄_i(s) V_i(o_i) / α,   m = max(max z, -1)
    L_π = -mean exp(z_i) log π_i(a_i | o_i)

Bars are targets; w̄, Q̄, m and exp(z_i) in L_π carry no gradient. The best V_i is (α / w_i) log E_μ exp(w_i Q_i / α);
exp(-m) only keeps L_V in range. All losses are taken at the old parameters. Policies, Q with its mixer, and V are each
clipped and stepped as one.

As published, agents share their networks and see their number, α is 10 everywhere, and the clip of z is in L_V too:
beyond 10 only the linear term is left, which pushes V further down, so scale rewards such that w (Q - V) < 10 α.
Policies of discrete tasks are normalised over all actions in training, and over the legal ones when they act.
`global_weights` false is the ablation without global information: w̄ = 1 in z and L_V. `published_rewards` bootstraps
with returns to go as rewards, as published for SMAC. Episodes do not end one step early, as they do in that code.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms._checks import check_value_learner, require_positive
from omarl_jax.algorithms._local_values import LocalValuesConfig, local_algorithm
from omarl_jax.algorithms._losses import team_td_target
from omarl_jax.algorithms._steps import per_agent, soft_update, together
from omarl_jax.networks import Net
from omarl_jax.types import Algorithm, Context, Metrics, Needs, TaskSpec, Transition, config


@config
class Config(LocalValuesConfig):
    """Hyperparameters of OMIGA; the defaults are the published ones of all tasks."""

    alpha: float = 10.0
    """α, the weight of the divergence from the behaviour, in units of the reward."""
    global_weights: bool = True
    """Whether the mixer's weights enter the local problems."""
    published_rewards: bool = False
    """Learn from returns to go as if they were rewards, as the published code does on SMAC."""


class State(NamedTuple):
    """Policies, Q with the mixer's parameters, V, their targets and the optimisers' states."""

    policy: Net
    q: tuple[Any, Any]
    v: Any
    target_q: tuple[Any, Any]
    target_v: Any
    optimisers: tuple[Any, Any, Any]


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    check_value_learner(config)
    require_positive(config, "alpha", "mixer_hidden")


def omiga(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes OMIGA."""
    options = spec, config.hidden, config.input_norm, config.sharing
    policy, q, v = networks.stochastic_policy(*options), networks.q_network(*options), networks.state_values(*options)
    mixer = networks.linear_mixer(spec, config.mixer_hidden)
    limits = config.lr, config.grad_clip
    policy_step, q_step, v_step = per_agent(policy, *limits), together(*limits), per_agent(v, *limits)

    def init(key: chex.PRNGKey, context: Context) -> State:
        policy_key, q_key, v_key, mixer_key = jax.random.split(key, 4)
        net, q_params, v_params = policy.init(policy_key), (q.init(q_key), mixer.init(mixer_key)), v.init(v_key)
        optimisers = policy_step.init(net.params), q_step.init(q_params), v_step.init(v_params)
        return State(net, q_params, v_params, q_params, v_params, optimisers)

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        target_q, target_mixer = state.target_q
        rewards = batch.returns_to_go if config.published_rewards else batch.rewards
        next_v = mixer(target_mixer, batch.next_state, v(state.target_v, batch.next_obs))  # (B, 1)
        target = team_td_target(rewards, batch.terminal, next_v, config.gamma)
        weights = mixer.weights(target_mixer, batch.state)[0][:, 0] if config.global_weights else 1.0  # (B, N)
        old_q = q(target_q, batch.obs, batch.actions)[0]  # (B, N)

        def exponent(values: chex.Array) -> chex.Array:  # z of V (B, N)
            return jnp.clip(weights * (old_q - values) / config.alpha, -10.0, 10.0)

        def q_loss(params: Any) -> tuple[chex.Array, Metrics]:
            q_params, mixer_params = params
            total = mixer(mixer_params, batch.state, q(q_params, batch.obs, batch.actions)[0])  # (B, 1)
            loss = jnp.square(total - target).mean()
            return loss, {"critic_loss": loss, "q": total.mean()}

        def v_loss(params: Any) -> tuple[chex.Array, Metrics]:
            values = v(params, batch.obs)  # (B, N)
            z = exponent(values)
            shift = jnp.maximum(jax.lax.stop_gradient(z).max(), -1.0)
            loss = (jnp.exp(z - shift) + jnp.exp(-shift) * weights * values / config.alpha).mean()
            return loss, {"value_loss": loss, "v": values.mean(), "exponent": z.mean()}

        def policy_loss(params: Any) -> tuple[chex.Array, Metrics]:
            loss = -(jnp.exp(z) * policy(params, batch.obs).log_prob(batch.actions)).mean()
            return loss, {"policy_loss": loss}

        z = exponent(v(state.v, batch.obs))
        policy_optimiser, q_optimiser, v_optimiser = state.optimisers
        policy_params, policy_optimiser, metrics = policy_step(policy_loss, state.policy.params, policy_optimiser)
        q_params, q_optimiser, q_metrics = q_step(q_loss, state.q, q_optimiser)
        v_params, v_optimiser, v_metrics = v_step(v_loss, state.v, v_optimiser)
        state = State(
            policy=policy.observe(state.policy._replace(params=policy_params), batch.obs),
            q=q_params,
            v=v_params,
            target_q=soft_update(state.target_q, q_params, config.tau),
            target_v=soft_update(state.target_v, v_params, config.tau),
            optimisers=(policy_optimiser, q_optimiser, v_optimiser),
        )
        return state, metrics | q_metrics | v_metrics

    needs = Needs(config.batch_size, state=True, returns_to_go=config.published_rewards)
    return local_algorithm(policy, q, mixer, init, update, needs, lambda state: state.q)
