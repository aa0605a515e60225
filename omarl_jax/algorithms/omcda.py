"""OMCDA: conservatism where it hurts least (Who Matters Matters, ICLR 2026). This is its first public implementation.

All agents together may diverge from the behaviour μ by d_tot nats. The influence m_i of agent i on the team's value
earns it a share of them, and α_i is its price of a nat. Values come in two halves, Qr of rewards and Qc of divergence:
Q = Qr + Σ_k α_k Qc_k. Numbers are the paper's equations as far as they are known; its text and code are not public.
[d] is derived, for product policies and linear mixers; [o] is our own choice.

    y     = r + γ (1 - d) [Σ_i w̄_i(s') V̄r_i(o'_i) + b̄(s')]       L_Qr = mean (Σ_i w_i Qr_i + b - y)²            (13)
    y_k   =     γ (1 - d) [Σ_j w̄c_kj(s') V̄c_j(o'_j) + b̄c_k(s')]   L_Qc = mean_k (Σ_j wc_kj Qc_j + bc_k - y_k)²   (14)
    z_i   = (w̄_i / α_i) (Q̄r_i - Vr_i) + c_i (Q̄c_i - Vc_i),   c_i = Σ_k α_k w̄c_ki / α_i                           [d]
    L_Vc  = mean exp(-m) [g(z_i) + c_i Vc_i],   g'(z) = exp(clip(z, ±10)),   m = max(max z, -1)            (20, 25)
    L_Vr  = mean u_i (Q̄r_i - Vr_i)² / mean u_i,   u_i = min(exp(z_i), 100)                                       [o]
    L_π   = -mean exp(clip(z_i, ±10)) log π_i(a_i | o_i)                                                         (23)
    m_i   = ∂ Σ_j w̄_j Vr_j / ∂ KL_i, smoothed;   d_i = d_tot softmax(m_i / (T mean_j |m_j|))                     (18)
    α_i   : min α_i (d_i - KL_i);   ln α_i += η (KL_i - d_i) / (KL_i + d_i)                                  (55, [o])

Qc leaves out its own step, so KL_i enters by Vc_i = E_π Qc_i - KL_i / c_i alone, which is what E_μ exp(z) = 1 says [d].
Bars are targets; L_Vc trains Vc alone, L_Vr Vr alone. g goes on as a line where z is clipped, so Vc rises there, where
it would fall with OMIGA's loss. Networks, steps and clips are OMIGA's, at the old parameters; π starts as μ. Steps of α
are normalised, since Adam remembers a large gradient for thousands of updates, which is too long in a short run [o].

*Exponent.* Proposition 3.2 prints Σ_j w̄c_ij (Q̄c_j - Vc_j) for the last term of z (`published_exponent`). Σ_i α_i z_i
is the same, but ours depends on agent i's action alone [d]. The mixer `identity` makes both one, `stochastic` makes c_i
1, and with `hyper` c_i grows with the ratios of α, which may be unstable [o].
*Influence* is a chain rule through the policy's outputs φ. `gradient` solves ∂(w̄_i E_π Q̄r_i)/∂φ = m ∂KL_i/∂φ by least
squares; `covariance` is Cov(w̄_i Q̄r_i, ρ) / Var ρ under π with ρ = log π/μ; both are means over states. `in_sample` is
the latter over the data's actions, weighed by u [o]. Without Qc all three are α_i at the optimum [d].
*Schedules* are parts of the run's updates. In a million, by default, ln α moves by at most 3e-4 an update, influence is
measured every 100 updates and smoothed with a rate of 0.05, and shares are even for the first 100,000 [o].
*Ablations* are variants: `omcda_wo_cda`, `omcda_wo_dq` (one Q, whose V has the loss of Vc), `omcda_rd` and others.
"""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from omarl_jax import networks
from omarl_jax.algorithms._checks import check_value_learner, require, require_not_negative, require_positive
from omarl_jax.algorithms._local_values import LocalValuesConfig, Values, local_algorithm
from omarl_jax.algorithms._losses import covariance_ratio, expected, least_squares, team_td_target
from omarl_jax.algorithms._steps import per_agent, together
from omarl_jax.networks import MixerKind, Net
from omarl_jax.types import Algorithm, Context, Metrics, Needs, Part, TaskSpec, Transition, config

_EXPONENTS, _LARGEST_WEIGHT = (-10.0, 10.0), 100.0
_BEHAVIOUR = {"stochastic": True, "lr": 5e-4, "grad_clip": 1.0, "batch_size": 128}


@config
class Config(LocalValuesConfig):
    """Hyperparameters of OMCDA. Of its own only d_tot is published, as three values for each benchmark."""

    d_tot: float = 1.2
    """Nats by which all agents together may diverge from the behaviour."""
    allocation: Literal["influence", "uniform", "random", "random_once"] = "influence"
    """How d_tot is shared out; random shares are drawn anew in each influence period, or once for the whole run."""
    influence: Literal["gradient", "covariance", "in_sample"] = "gradient"
    """How influence is estimated."""
    influence_samples: int = 1
    """Actions of a continuous policy, in each state, by which influence is estimated."""
    influence_period: float = 1e-4
    """Time between two estimates of influence, as a part of training."""
    smoothing: float = 2e-3
    """Time constant of the moving average of influence, as a part of training."""
    temperature: float = 1.0
    """T, of the shares."""
    warm_start: float = 0.1
    """Part of training in which d_tot is shared evenly."""
    alpha: float = 10.0
    """α_i at the start, in units of the reward; it stays so if alpha_rate is 0."""
    alpha_rate: float = 300.0
    """The most that ln α can move in the whole training."""
    alpha_min: float = 0.1
    """Lower bound of α_i."""
    alpha_max: float = 100.0
    """Upper bound of α_i."""
    decoupled: bool = True
    """Learn divergence apart from rewards."""
    conservative_mixer: MixerKind = "stochastic"
    """Mixer of the conservative critics."""
    published_exponent: bool = False
    """The exponent of policies as the paper prints it."""
    behaviour_updates: int = 20_000
    """Updates of the behaviour's clone, of 128 transitions."""


class State(NamedTuple):
    """Networks, and what allocates: ln α, influence and shares, (N,) each; updates made, and all that are to be made.

    `costs` is the conservative half of the values, None if divergence is not learned apart.
    """

    policy: Net
    optimiser: Any
    behaviour: Net
    rewards: Values
    costs: Values | None
    log_alpha: chex.Array
    influence: chex.Array
    share: chex.Array
    updates: chex.Array
    all_updates: chex.Array


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    check_value_learner(config)
    positive = "d_tot", "influence_samples", "influence_period", "temperature", "alpha_min", "behaviour_updates"
    require_positive(config, *positive, "mixer_hidden")
    require_not_negative(config, "smoothing", "warm_start", "alpha_rate")
    low, high = config.alpha_min, config.alpha_max
    require(low < high, f"alpha_min must be less than alpha_max, not {low} and {high}.")
    require(low <= config.alpha <= high, f"alpha must lie between alpha_min and alpha_max, not at {config.alpha}.")
    for name in ("influence_period", "smoothing", "warm_start"):
        part = getattr(config, name)
        require(part <= 1, f"{name} is a part of training, at most 1, not {part}.")
    sampled = spec.kind == "continuous" and config.influence == "covariance"
    require(not sampled or config.influence_samples >= 2, "A covariance needs influence_samples of at least 2.")
    apart = config.decoupled or not config.published_exponent
    require(apart, "published_exponent is about divergence that is learned apart: it needs decoupled.")


def own_weight(w: chex.Array, alpha: chex.Array) -> chex.Array:
    """c_i = Σ_k α_k w_ki / α_i, (B, N), of a conservative mixer's weights (B, N, N)."""
    return jnp.einsum("k,bki->bi", alpha, w) / alpha


def normalisation(z: chex.Array, due: chex.Array) -> chex.Array:
    """mean exp(-m) [g(z) + due], whose slope by V is 0 if E exp(clip(z)) = 1; `due` is the part of -z that V makes."""
    clipped = jnp.clip(z, *_EXPONENTS)
    shift = jnp.maximum(jax.lax.stop_gradient(clipped).max(), -1.0)
    return (jnp.exp(clipped - shift) * (1.0 + z - clipped) + jnp.exp(-shift) * due).mean()


def shares(influence: chex.Array, temperature: chex.Array) -> chex.Array:
    """softmax(m_i / (T mean_j |m_j|)), (N,): whatever the units of influence."""
    return jax.nn.softmax(influence / (temperature * (jnp.abs(influence).mean() + 1e-6)))


def dual_step(
    log_alpha: chex.Array, kl: chex.Array, budget: chex.Array, size: chex.Array, bounds: tuple[chex.Array, chex.Array]
) -> chex.Array:
    """ln α, (N,), after a step of at most `size`: up where the divergence is over the budget, and down where under."""
    return jnp.clip(log_alpha + size * (kl - budget) / (kl + budget + 1e-12), *bounds)


def omcda(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes OMCDA."""
    options = spec, config.hidden, config.input_norm, config.sharing
    policy, q, v = networks.stochastic_policy(*options), networks.q_network(*options), networks.state_values(*options)
    mixer = networks.linear_mixer(spec, config.mixer_hidden)
    cost_mixer = networks.square_mixer(spec, config.mixer_hidden, config.conservative_mixer)
    limits = config.lr, config.grad_clip
    policy_step, q_step, v_step = per_agent(policy, *limits), together(*limits), per_agent(v, *limits)
    bounds = jnp.log(config.alpha_min), jnp.log(config.alpha_max)
    each, even = jnp.ones(spec.n_agents), jnp.full(spec.n_agents, 1.0 / spec.n_agents)

    def init(key: chex.PRNGKey, context: Context) -> State:
        behaviour, keys = context.parts["behaviour"], jax.random.split(key, 7)
        needed = "a stochastic 'bc' of this task with the same hidden, input_norm and sharing"
        require(policy.fits(behaviour), f"The behaviour policy does not fit: for '{spec.name}' it must be {needed}.")
        rewards = Values.start((q.init(keys[0]), mixer.init(keys[1])), v.init(keys[2]), q_step, v_step)
        costs = Values.start((q.init(keys[3]), cost_mixer.init(keys[4])), v.init(keys[5]), q_step, v_step)
        nets = behaviour, policy_step.init(behaviour.params), behaviour, rewards, costs if config.decoupled else None
        share, counts = jax.random.dirichlet(keys[6], each), (jnp.int32(0), jnp.asarray(context.updates, jnp.int32))
        return State(*nets, jnp.log(config.alpha) * each, 0.0 * each, share, *counts)

    def update(state: State, batch: Transition, key: chex.PRNGKey) -> tuple[State, Metrics]:
        rewards, costs, alpha = state.rewards, state.costs, jnp.exp(state.log_alpha)
        obs, actions, mask = batch.obs, batch.actions, batch.action_mask
        measure_key, draw_key = jax.random.split(key)
        # --- target ---
        old_q, old_mixer = rewards.target_q
        next_v = mixer(old_mixer, batch.next_state, v(rewards.target_v, batch.next_obs))  # (B, 1)
        target = team_td_target(batch.rewards, batch.terminal, next_v, config.gamma)
        w = mixer.weights(old_mixer, batch.state)[0][:, 0]  # (B, N)
        of_data, value = q(old_q, obs, actions)[0], v(rewards.v, obs)  # (B, N)
        if costs is not None:
            old_cost_q, old_cost_mixer = costs.target_q
            next_vc = cost_mixer(old_cost_mixer, batch.next_state, alpha, v(costs.target_v, batch.next_obs))  # (B, N)
            cost_target = team_td_target(jnp.zeros_like(next_vc), batch.terminal, next_vc, config.gamma)
            wc = cost_mixer.weights(old_cost_mixer, batch.state, alpha)[0]  # (B, N, N)
            cost_of_data, cost = q(old_cost_q, obs, actions)[0], v(costs.v, obs)  # (B, N)

        def weighed(x: chex.Array) -> chex.Array:  # conservative values (B, N) as they enter z
            return networks.mix(wc, 0.0, x) if config.published_exponent else own_weight(wc, alpha) * x

        def exponent(values: chex.Array) -> tuple[chex.Array, chex.Array]:  # z, and its part -z due to these values
            if costs is None:
                return w / alpha * (of_data - values), w / alpha * values
            return w / alpha * (of_data - value) + weighed(cost_of_data - values), weighed(values)

        z = jnp.clip(exponent(value if costs is None else cost)[0], *_EXPONENTS)
        weights = jnp.minimum(jnp.exp(z), _LARGEST_WEIGHT)
        outputs, behaviour = policy.outputs(state.policy.params, obs), policy(state.behaviour.params, obs, mask)

        def reward_loss(params: Any) -> tuple[chex.Array, Metrics]:
            q_params, mixer_params = params
            total = mixer(mixer_params, batch.state, q(q_params, obs, actions)[0])  # (B, 1)
            loss = jnp.square(total - target).mean()
            return loss, {"critic_loss": loss, "q": total.mean()}

        def cost_loss(params: Any) -> tuple[chex.Array, Metrics]:
            q_params, mixer_params = params
            totals = cost_mixer(mixer_params, batch.state, alpha, q(q_params, obs, actions)[0])  # (B, N)
            loss = jnp.square(totals - cost_target).mean()
            return loss, {"conservative_loss": loss}

        def normalisation_loss(params: Any) -> tuple[chex.Array, Metrics]:
            loss = normalisation(*exponent(v(params, obs)))
            return loss, {"normalisation_loss": loss}

        def expectation_loss(params: Any) -> tuple[chex.Array, Metrics]:
            loss = (weights * jnp.square(of_data - v(params, obs))).mean() / weights.mean()
            return loss, {"value_loss": loss}

        def policy_loss(params: Any) -> tuple[chex.Array, Metrics]:
            pi = policy(params, obs, mask)
            loss = -(jnp.exp(z) * pi.log_prob(actions)).mean()
            return loss, {"policy_loss": loss, "kl": pi.kl(behaviour).mean(axis=0)}

        # --- influence ---
        def gain(pi: Any) -> tuple[chex.Array, chex.Array, chex.Array]:  # weights and values (K, B, N) of actions
            taken, probabilities = pi.support(measure_key, config.influence_samples)
            return probabilities, w * q(old_q, obs, taken)[0], taken

        def team_value(outputs: chex.Array) -> chex.Array:
            return expected(*gain(policy.of_outputs(outputs, mask))[:2]).sum()

        def divergence(outputs: chex.Array) -> chex.Array:
            return policy.of_outputs(outputs, mask).kl(behaviour).sum()

        def influences() -> chex.Array:  # (N,)
            pi = policy.of_outputs(outputs, mask)
            if config.influence == "in_sample":
                ratio = pi.log_prob(actions) - behaviour.log_prob(actions) - pi.kl(behaviour)
                return least_squares(w * (of_data - value), ratio, weights, axis=0)
            if config.influence == "covariance":
                probabilities, values, taken = gain(pi)
                ratio = pi.log_prob(taken) - behaviour.log_prob(taken)
                return covariance_ratio(values, ratio, probabilities).mean(axis=0)
            slopes = jax.grad(team_value)(outputs), jax.grad(divergence)(outputs)  # (B, N, X)
            return least_squares(*slopes, jnp.ones(()), axis=-1).mean(axis=0)

        # --- steps ---
        params, optimiser, metrics = policy_step(policy_loss, state.policy.params, state.optimiser)
        value_loss = expectation_loss if config.decoupled else normalisation_loss
        rewards, more = rewards.learn(q_step, reward_loss, v_step, value_loss, config.tau)
        if costs is not None:
            costs, of_costs = costs.learn(q_step, cost_loss, v_step, normalisation_loss, config.tau)
            more |= of_costs

        # --- allocation ---
        period = jnp.maximum(jnp.round(config.influence_period * state.all_updates), 1.0).astype(jnp.int32)
        due = state.updates % period == 0
        rate = jnp.minimum(period / (config.smoothing * state.all_updates), 1.0)
        change = jax.lax.cond(due, lambda: influences() - state.influence, lambda: 0.0 * even)
        influence = state.influence + rate * change
        share = {
            "influence": shares(influence, config.temperature),
            "uniform": even,
            "random": jnp.where(due, jax.random.dirichlet(draw_key, each), state.share),
            "random_once": state.share,
        }[config.allocation]
        given = jnp.where(state.updates < config.warm_start * state.all_updates, even, share)
        kl, budget = metrics["kl"], config.d_tot * given
        log_alpha = dual_step(state.log_alpha, kl, budget, config.alpha_rate / state.all_updates, bounds)
        metrics |= more | {"influence": influence, "share": given, "budget": budget, "alpha": jnp.exp(log_alpha)}
        metrics |= {"v_r": value.mean(axis=0), "kl_over_budget": kl / (budget + 1e-12)}
        metrics["at_bound"] = (log_alpha <= bounds[0]) | (log_alpha >= bounds[1])
        net = policy.observe(state.policy._replace(params=params), obs)
        nets, counts = (net, optimiser, state.behaviour, rewards, costs), (state.updates + 1, state.all_updates)
        return State(*nets, log_alpha, influence, share, *counts), metrics

    same = {"hidden": config.hidden, "input_norm": config.input_norm, "sharing": config.sharing}
    parts = {"behaviour": Part("bc", _BEHAVIOUR | same, config.behaviour_updates)}
    needs = Needs(config.batch_size, state=True, parts=parts)
    return local_algorithm(policy, q, mixer, init, update, needs, lambda state: state.rewards.q)
