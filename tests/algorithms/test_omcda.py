"""OMCDA on games that are small enough for sums over all that can happen, and the schedules of its allocation.

In these games each agent walks on a graph of its own, and rewards are sums of what each walk pays: values of agents add
up to those of the team without error, so what OMCDA should find is known exactly.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.spec import TaskSpec
from problems import DISCRETE_SPEC, SPEC, context, jit

from omarl_jax import networks
from omarl_jax.algorithms import find, omcda, untrained
from omarl_jax.errors import UserError
from omarl_jax.networks import Net
from omarl_jax.presets import preset
from omarl_jax.types import Context, Stats, Transition

METHOD = find("omcda")
PLACES, A, COPIES, HIDDEN = 2, 3, 4, 8
TABULAR = {"sharing": "separate", "hidden": (HIDDEN,), "mixer_hidden": 1, "grad_clip": 1e9}


class Game(NamedTuple):
    """Walks of N agents, each on X places.

    Attributes:
        behaviour: (N, X, A) probabilities, multiples of a quarter.
        rewards: (N, X, A); the team gets the sum.
        following: (N, X, A) int, the place after an action.
        gamma: discount.
        w: (N,) weights of the reward mixer, wherever agents are.
        wc: (N, N) parameters of the conservative mixer, wherever agents are.
    """

    behaviour: np.ndarray
    rewards: np.ndarray
    following: np.ndarray
    gamma: float
    w: np.ndarray
    wc: np.ndarray

    @property
    def spec(self) -> TaskSpec:
        n = len(self.w)
        return TaskSpec("toy/walks", "discrete", n, PLACES, A, n * PLACES, episode_length=10)


def game(n: int, seed: int, gamma: float = 0.7) -> Game:
    rng = np.random.default_rng(seed)
    counts = np.array([[2, 1, 1], [1, 2, 1]])
    behaviour = np.stack([rng.permuted(counts, axis=-1) for _ in range(n)]) / COPIES
    following = rng.integers(PLACES, size=(n, PLACES, A))
    wc = rng.uniform(0.5, 1.5, (n, n)) + np.eye(n)
    return Game(behaviour, rng.normal(size=(n, PLACES, A)), following, gamma, rng.uniform(0.5, 1.5, n), wc)


def everything(game: Game) -> Transition:
    """All transitions, as often as the behaviour makes them: agents are equally often at all places."""
    n = len(game.w)
    drawn = [np.repeat(np.arange(A), np.int64(COPIES * row)) for agent in game.behaviour for row in agent]
    of_agent = [
        [(place, action) for place in range(PLACES) for action in drawn[agent * PLACES + place]] for agent in range(n)
    ]
    joint = np.array(list(itertools.product(*of_agent)))  # (rows, N, 2)
    places, actions = joint[..., 0], joint[..., 1]
    agents, rows = np.arange(n), len(joint)
    rewards = game.rewards[agents, places, actions].sum(axis=1, keepdims=True)
    obs, next_obs = (np.eye(PLACES)[x] for x in (places, game.following[agents, places, actions]))
    return Transition(
        obs=obs,
        actions=actions.astype(np.int32),
        rewards=np.repeat(rewards, n, axis=1),
        next_obs=next_obs,
        terminal=np.zeros((rows, n), bool),
        truncated=np.zeros(rows, bool),
        state=obs.reshape(rows, -1),
        next_state=next_obs.reshape(rows, -1),
    )


class Solution(NamedTuple):
    """What solves a game for prices α (N,): values (N, X, A) and (N, X), policies (N, X, A), divergences (N, X)."""

    q: np.ndarray
    v: np.ndarray
    cost_q: np.ndarray
    cost_v: np.ndarray
    policy: np.ndarray
    kl: np.ndarray


def mixed(game: Game, kind: str, alpha: np.ndarray) -> np.ndarray:
    """The weights w_kj (N, N) of a conservative mixer."""
    n = len(alpha)
    if kind == "identity":
        return np.eye(n)
    if kind == "hyper":
        return game.wc
    return np.exp(game.wc) / np.exp(game.wc).sum(axis=0) * alpha / alpha[:, None]


def solution(game: Game, alpha: np.ndarray, c: np.ndarray) -> Solution:
    """By value iteration; c (N,) are the weights of conservative values in each agent's exponent."""
    n = len(alpha)
    q, cost_q = np.zeros((2, n, PLACES, A))
    agents = np.arange(n)[:, None, None]
    scale, c = (game.w / alpha)[:, None, None], c[:, None, None]
    for _ in range(300):
        raised = game.behaviour * np.exp(scale * q + c * cost_q)
        policy = raised / raised.sum(axis=-1, keepdims=True)
        v = (policy * q).sum(axis=-1)
        cost_v = (np.log(raised.sum(axis=-1)) - scale[..., 0] * v) / c[..., 0]
        q = game.rewards / game.w[:, None, None] + game.gamma * v[agents, game.following]
        cost_q = game.gamma * cost_v[agents, game.following]
    kl = (policy * np.log(policy / game.behaviour)).sum(axis=-1)
    return Solution(q, v, cost_q, cost_v, policy, kl)


def table(values: np.ndarray) -> dict[str, Any]:
    """Networks of the places' one-hot codes that hold tables, (N, X, outputs): each place has a hidden unit.

    No unit stands at its kink, where rounding would decide.
    """
    n, _, outputs = values.shape
    kernel = np.tile(2 * np.eye(PLACES, HIDDEN), (n, 1, 1))
    last = np.concatenate([values, np.zeros((n, HIDDEN - PLACES, outputs))], axis=1)
    return {
        "layer_0": {"kernel": kernel, "bias": -np.ones((n, HIDDEN))},
        "layer_1": {"kernel": last, "bias": np.zeros((n, outputs))},
    }


def constants(spec: TaskSpec, weights: np.ndarray, biases: int) -> dict[str, Any]:
    """A mixer with the same weights in every state, and without biases."""
    return {
        "layer_0": {"kernel": np.zeros((spec.state_dim, 1)), "bias": np.ones(1)},
        "weights": {"kernel": np.zeros((1, weights.size)), "bias": weights.ravel()},
        "bias": {"kernel": np.zeros((1, biases)), "bias": np.zeros(biases)},
    }


def solved(game: Game, found: Solution, state: Any, kind: str, alpha: np.ndarray) -> Any:
    """A state whose networks and targets hold a solution."""
    n = len(alpha)
    square = {} if kind == "identity" else constants(game.spec, game.wc, n)
    rewards = (table(found.q), constants(game.spec, game.w, 1)), table(found.v[..., None])
    costs = (table(found.cost_q), square), table(found.cost_v[..., None])
    return state._replace(
        policy=Net(table(np.log(found.policy)), None),
        behaviour=Net(table(np.log(game.behaviour)), None),
        rewards=state.rewards._replace(q=rewards[0], v=rewards[1], target_q=rewards[0], target_v=rewards[1]),
        costs=state.costs._replace(q=costs[0], v=costs[1], target_q=costs[0], target_v=costs[1]),
        log_alpha=np.log(alpha),
    )


def exact(game: Game, alpha: Any, **overrides: Any) -> tuple[Any, Any, Solution, np.ndarray]:
    """A config, a state at the solution in float64, the solution, and the mixer's weights."""
    alpha, spec = np.array(alpha), game.spec
    config = METHOD.configure(spec, TABULAR | {"gamma": game.gamma, "smoothing": 0.0, "warm_start": 0.0} | overrides)
    w = mixed(game, config.conservative_mixer, alpha)
    found = solution(game, alpha, alpha @ w / alpha)
    method = METHOD.make(config, spec)
    state = method.init(jax.random.key(0), context(method, spec)._replace(updates=100))
    state = solved(game, found, state, config.conservative_mixer, alpha)
    state = jax.tree.map(lambda x: jnp.asarray(x, float if jnp.issubdtype(x.dtype, jnp.floating) else None), state)
    return config, state, found, w


def compiled(game: Game, config: Any) -> Callable[[Any], tuple[Any, Any]]:
    """An update by all that can happen, of a state -> state, metrics."""
    update, batch = jax.jit(METHOD.make(config, game.spec).update), jax.tree.map(jnp.asarray, everything(game))
    return lambda state: update(state, batch, jax.random.key(1))


def trained(state: Any) -> dict[str, Any]:
    """What gradients move."""
    halves = {"rewards": state.rewards, "costs": state.costs}
    parts = {f"{name} {part}": getattr(half, part) for name, half in halves.items() for part in ("q", "v")}
    return parts | {"policy": state.policy.params}


def moved(before: Any, after: Any) -> float:
    return max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (before, after)), strict=True))


@pytest.mark.parametrize(("n", "kind"), [(2, "identity"), (2, "hyper"), (3, "stochastic")])
def test_what_solves_a_game_stays_as_it_is_and_what_does_not_moves(n: int, kind: str) -> None:
    """Every gradient is 0 at the solution of the equations, and not beside it."""
    walks, alpha = game(n, seed=n), np.array([0.6, 1.5, 0.9])[:n]
    with jax.enable_x64(True):
        config, state, found, w = exact(walks, alpha, conservative_mixer=kind, lr=0.1)
        c = alpha @ w / alpha
        np.testing.assert_allclose(omcda.own_weight(w[None], alpha)[0], c, rtol=1e-12)
        if kind != "hyper":
            np.testing.assert_allclose(c, 1.0, rtol=1e-12)

        # E_μ exp z = 1, Vc = E Qc - KL / c, and Σ_k α_k Vc_k is what divergence costs the team from now on.
        scale = (walks.w / alpha)[:, None, None]
        z = scale * (found.q - found.v[..., None]) + c[:, None, None] * (found.cost_q - found.cost_v[..., None])
        np.testing.assert_allclose((walks.behaviour * np.exp(z)).sum(axis=-1), 1.0, rtol=1e-12)
        np.testing.assert_allclose(walks.behaviour * np.exp(z), found.policy, rtol=1e-12)
        of_policy = (found.policy * found.cost_q).sum(axis=-1)
        np.testing.assert_allclose(found.cost_v, of_policy - found.kl / c[:, None], rtol=1e-10)
        to_come, agents = np.zeros((n, PLACES)), np.arange(n)[:, None, None]
        for _ in range(300):
            to_come = found.kl + walks.gamma * (found.policy * to_come[agents, walks.following]).sum(axis=-1)
        for places in itertools.product(range(PLACES), repeat=n):
            of_team = w @ found.cost_v[np.arange(n), list(places)]  # Vc_k
            np.testing.assert_allclose(alpha @ of_team, -alpha @ to_come[np.arange(n), list(places)], rtol=1e-10)

        update = compiled(walks, config)
        after, metrics = update(state)
        for name, x, y in zip(trained(state), trained(state).values(), trained(after).values(), strict=True):
            assert moved(x, y) < 1e-6 * config.lr, name
        np.testing.assert_allclose(metrics["kl"], found.kl.mean(axis=1), rtol=1e-10)
        np.testing.assert_allclose(metrics["v_r"], found.v.mean(axis=1), rtol=1e-10)
        np.testing.assert_allclose([metrics["critic_loss"], metrics["conservative_loss"]], 0.0, atol=1e-20)

        def beside(tree: Any) -> Any:  # other tables
            other = {**tree["layer_1"], "kernel": tree["layer_1"]["kernel"] + 0.1 * jnp.arange(HIDDEN)[:, None]}
            return {**tree, "layer_1": other}

        for half, part in itertools.product(("rewards", "costs"), ("q", "v")):
            values = getattr(state, half)
            learned = getattr(values, part)
            other = (beside(learned[0]), learned[1]) if part == "q" else beside(learned)
            wrong = state._replace(**{half: values._replace(**{part: other})})
            assert moved(other, getattr(getattr(update(wrong)[0], half), part)) > 0.5 * config.lr
        wrong = state._replace(policy=Net(beside(state.policy.params) | {}, None))
        wrong.policy.params["layer_1"]["kernel"] *= jnp.arange(A)  # a constant would change no softmax
        assert moved(wrong.policy.params, update(wrong)[0].policy.params) > 0.5 * config.lr


@pytest.mark.parametrize("influence", ["gradient", "covariance", "in_sample"])
def test_without_divergence_to_come_influence_at_the_solution_is_the_price(influence: str) -> None:
    """The envelope theorem; with divergence to come it is not. 1e-6 in the denominators is what is missing."""
    alpha = np.array([0.5, 0.8])
    with jax.enable_x64(True):
        for gamma, equal in ((0.0, True), (0.7, False)):
            walks = game(2, seed=4, gamma=gamma)
            config, state, _, _ = exact(walks, alpha, influence=influence)
            found = compiled(walks, config)(state)[1]["influence"]
            assert np.allclose(found, alpha, rtol=1e-4) == equal, found


def test_the_best_policies_beat_a_thousand_others() -> None:
    """Of three agents with five actions each, on Σ_i w_i Qr_i + Σ_k α_k Qc_k less Σ_i α_i KL_i, in one state."""
    rng = np.random.default_rng(0)
    n, actions = 3, 5
    q, cost_q, behaviour = rng.normal(size=(3, n, actions))
    behaviour = np.exp(behaviour) / np.exp(behaviour).sum(axis=-1, keepdims=True)
    w, wc, alpha = rng.uniform(0.2, 2.0, n), rng.uniform(0.2, 2.0, (n, n)), rng.uniform(0.3, 3.0, n)
    c = np.asarray(omcda.own_weight(wc[None], alpha)[0])

    def normalised(x: np.ndarray) -> np.ndarray:
        return x / x.sum(axis=-1, keepdims=True)

    def objective(policy: np.ndarray) -> np.ndarray:  # (…, N, A)
        gain, saved = (policy * q).sum(axis=-1), (policy * cost_q).sum(axis=-1)
        kl = (policy * np.log(policy / behaviour)).sum(axis=-1)
        return gain @ w + saved @ wc.T @ alpha - kl @ alpha

    best = normalised(behaviour * np.exp((w / alpha)[:, None] * q + c[:, None] * cost_q))
    scale = 10.0 ** rng.uniform(-3, 0.5, (1000, 1, 1))
    others = normalised(best * np.exp(scale * rng.normal(size=(1000, n, actions))))
    assert (objective(others) < objective(best)).all()


def test_the_printed_exponent_is_ours_summed_over_agents_but_depends_on_what_others_do() -> None:
    rng = np.random.default_rng(0)
    n = 3
    q, cost_q = rng.normal(size=(2, n, A))
    v, cost_v, w = rng.normal(size=(3, n))
    wc, alpha = rng.uniform(0.2, 2.0, (n, n)), rng.uniform(0.3, 3.0, n)
    joint = np.array(list(itertools.product(range(A), repeat=n)))  # (27, N)
    gain = (w / alpha) * (np.take_along_axis(q.T, joint, axis=0) - v)  # (27, N)
    saved = np.take_along_axis(cost_q.T, joint, axis=0) - cost_v
    rows = np.tile(wc, (len(joint), 1, 1))
    ours = gain + np.asarray(omcda.own_weight(rows, alpha)) * saved
    printed = gain + np.asarray(networks.mix(rows, 0.0, saved))
    of_team = (alpha * gain).sum(axis=1) + saved @ wc.T @ alpha  # Qr_tot - Vr_tot + Σ_k α_k (Qc_k - Vc_k)
    for exponent in (ours, printed):
        np.testing.assert_allclose(exponent @ alpha, of_team, rtol=1e-5)
    assert np.abs(ours - printed).max() > 0.5
    for i, action in itertools.product(range(n), range(A)):
        same = joint[:, i] == action
        assert np.ptp(ours[same, i]) < 1e-6 < 0.5 < np.ptp(printed[same, i])


D_TOTS = (1e-6, 0.2, 50.0)


class Learned(NamedTuple):
    states: Any
    metrics: Any  # of the last update


@functools.cache
def learned(kind: str) -> Learned:
    """Learning from fresh values, and from the behaviour itself: without rewards, and with each d_tot."""
    walks = game(2, seed=2)
    spec, updates = walks.spec, 2500
    overrides = {"lr": 0.01, "conservative_mixer": kind, "gamma": walks.gamma, "tau": 0.02, "mixer_hidden": 4}
    config = METHOD.configure(spec, TABULAR | overrides | {"grad_clip": 1.0, "alpha_rate": 50.0})
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == float else None), everything(walks))
    behaviour = jax.tree.map(jnp.float32, Net(table(np.log(walks.behaviour)), None))

    def learn(d_tot: jax.Array, rewarded: jax.Array) -> tuple[Any, Any]:
        data = batch._replace(rewards=rewarded * batch.rewards)

        def update(state: Any, number: jax.Array) -> tuple[Any, Any]:
            now = dataclasses.replace(config, d_tot=d_tot, lr=config.lr * (1 - number / updates))
            return METHOD.make(now, spec).update(state, data, jax.random.key(0))

        given = Context(Stats.unknown(spec), updates, {"behaviour": behaviour})
        state = METHOD.make(config, spec).init(jax.random.key(0), given)
        return jax.lax.scan(update, state, jnp.arange(updates))

    states, metrics = jit(jax.vmap(learn))(jnp.array((1.2, *D_TOTS)), jnp.array([0.0, 1.0, 1.0, 1.0]))
    return Learned(states, jax.tree.map(lambda x: x[:, -1], metrics))


def policies(net: Net, lane: int) -> np.ndarray:
    """Probabilities (N, X, A)."""
    spec = game(2, seed=2).spec
    policy = networks.stochastic_policy(spec, (HIDDEN,), "none")
    params = jax.tree.map(lambda x: x[lane], net.params)
    obs = jnp.eye(PLACES)[:, None].repeat(2, axis=1)  # (X, N, X)
    return np.moveaxis(
        np.exp([policy(params, obs).log_prob(jnp.full((PLACES, 2), a)) for a in range(A)]), 0, -1
    ).swapaxes(0, 1)


@pytest.mark.parametrize("kind", ["identity", "stochastic"])
def test_budgets_from_nothing_to_everything(kind: str) -> None:
    """Hardly any divergence is behaviour cloning; a budget that cannot be spent ends at the lowest price."""
    walks, (states, metrics) = game(2, seed=2), learned(kind)
    alpha, kl, budget, at_bound = (np.asarray(metrics[x])[1:] for x in ("alpha", "kl", "budget", "at_bound"))
    np.testing.assert_allclose(alpha[0], 100.0, rtol=1e-5)
    np.testing.assert_allclose(policies(states.policy, 1), walks.behaviour, atol=0.02)
    np.testing.assert_allclose(kl[1], budget[1], rtol=0.02)
    np.testing.assert_allclose(kl[1].sum(), 0.2, rtol=0.02)
    assert (at_bound == np.array([[1], [0], [1]])).all()
    expected = solution(walks, alpha[1].astype(float), np.ones(2))  # whatever the mixer, c = 1
    np.testing.assert_allclose(policies(states.policy, 2), expected.policy, atol=0.02)

    # At the lowest price, the behaviour times exp z, z being clipped.
    np.testing.assert_allclose(alpha[2], 0.1, rtol=1e-5)
    expected = solution(walks, np.full(2, 0.1), np.ones(2))
    z = np.maximum(np.log(expected.policy / walks.behaviour), -10.0)
    assert (z == -10.0).any()
    clipped = walks.behaviour * np.exp(z)
    clipped /= clipped.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(policies(states.policy, 3), clipped, atol=0.02)


@pytest.mark.parametrize("kind", ["identity", "hyper", "stochastic"])
def test_without_rewards_nothing_diverges_and_divergence_costs_nothing(kind: str) -> None:
    found = learned(kind)
    spec, walks = game(2, seed=2).spec, game(2, seed=2)
    np.testing.assert_allclose(policies(found.states.policy, 0), walks.behaviour, atol=0.01)
    np.testing.assert_allclose(found.metrics["kl"][0], 0.0, atol=1e-3)
    costs, log_alpha = (jax.tree.map(lambda x: x[0], x) for x in (found.states.costs, found.states.log_alpha))
    batch = jax.tree.map(jnp.float32, everything(walks))
    local = networks.state_values(spec, (HIDDEN,), "none")(costs.v, batch.obs)
    of_team = networks.square_mixer(spec, 4, kind)(costs.q[1], batch.state, jnp.exp(log_alpha), local)
    np.testing.assert_allclose(of_team, 0.0, atol=0.02)
    if kind == "identity":
        np.testing.assert_allclose(local, 0.0, atol=0.02)


def test_one_agent_has_it_all_and_equal_agents_have_equal_shares() -> None:
    with jax.enable_x64(True):
        alone = game(1, seed=0)
        config, state, _, _ = exact(alone, [0.7])
        assert compiled(alone, config)(state)[1]["share"] == 1.0
        walks = game(2, seed=0)
        twins = Game(*(np.repeat(x[:1], 2, axis=0) for x in walks[:3]), walks.gamma, np.ones(2), np.ones((2, 2)))
        config, state, _, _ = exact(twins, [0.7, 0.7])
        kernel = state.rewards.v["layer_1"]["kernel"]
        state.rewards.v["layer_1"]["kernel"] = kernel + 0.3 * jnp.arange(HIDDEN)[:, None]  # not yet learned
        method, batch = METHOD.make(config, twins.spec), jax.tree.map(jnp.asarray, everything(twins))
        key = jax.random.key(0)
        state = jax.jit(lambda start: jax.lax.fori_loop(0, 50, lambda _, s: method.update(s, batch, key)[0], start))(
            state
        )
        assert state.influence[0] > 0.1
        np.testing.assert_allclose(state.share, 0.5, rtol=1e-10)
        np.testing.assert_allclose(state.log_alpha[0], state.log_alpha[1], rtol=1e-10)
        assert state.log_alpha[0] != np.log(0.7)


# --- Schedules ---


@pytest.mark.parametrize("updates", [2_000, 10_000, 1_000_000])
def test_prices_can_cross_their_bounds_in_a_tenth_of_training(updates: int) -> None:
    """By default, and as the preset has it for short runs."""
    bounds = np.log([0.1, 100.0])
    short = preset("omcda", "particle/spread", "medium").overrides["alpha_rate"]
    assert preset("omcda", "mujoco/hopper-3x1", "medium").overrides["alpha_rate"] == omcda.Config().alpha_rate == 300

    @jax.jit
    def after(start: Any, kl: Any, rate: Any) -> Any:
        step = lambda _, x: omcda.dual_step(x, kl, jnp.full(2, 0.5), rate / updates, tuple(bounds))  # noqa: E731
        return jax.lax.fori_loop(0, updates // 10, step, start)

    for rate in (300.0, short):
        np.testing.assert_allclose(after(jnp.full(2, bounds[1]), jnp.zeros(2), rate), bounds[0])
        np.testing.assert_allclose(after(jnp.full(2, bounds[0]), jnp.full(2, 1e6), rate), bounds[1])


def test_a_price_rises_where_more_is_spent_than_given_and_rests_where_as_much() -> None:
    bounds = (np.log(0.1), np.log(100.0))
    kl, budget = jnp.array([0.0, 0.3, 0.6, 1e9, 0.0]), jnp.array([0.3, 0.3, 0.3, 0.3, 0.0])
    change = omcda.dual_step(jnp.zeros(5), kl, budget, 0.01, bounds)
    np.testing.assert_allclose(change, [-0.01, 0.0, 0.01 / 3, 0.01, 0.0], rtol=1e-5)


def measured(updates: int, chunk: int, first: int = 0, **overrides: Any) -> dict[str, np.ndarray]:
    """Metrics of the first updates of a run whose networks do not learn, each (chunk, N)."""
    walks = game(2, seed=4)
    config, state, _, _ = exact(walks, [0.5, 0.8], **({"lr": 1e-12} | overrides))
    method, batch = METHOD.make(config, walks.spec), jax.tree.map(jnp.asarray, everything(walks))
    state = state._replace(all_updates=jnp.int32(updates), updates=jnp.int32(first))

    @jax.jit
    def run(state: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), chunk)
        return jax.lax.scan(lambda state, key: method.update(state, batch, key), state, keys)[1]

    return jax.tree.map(np.asarray, run(state))


@pytest.mark.parametrize("updates", [2_000, 20_000])
def test_shares_settle_within_a_fiftieth_of_training(updates: int) -> None:
    with jax.enable_x64(True):
        smoothing = omcda.Config().smoothing
        share = measured(updates, updates // 50, smoothing=smoothing, alpha_rate=0.0)["share"]
        final = measured(updates, 1, smoothing=0.0, alpha_rate=0.0)["share"][0]
    assert abs(final[0] - 0.5) > 0.03
    np.testing.assert_allclose(share[-1], final, atol=1e-3)


def test_in_a_million_updates_the_schedules_are_those_of_the_derivation() -> None:
    """Influence every 100 updates, smoothed with a rate of 0.05; 3e-4 of ln α; equal shares for the first 100,000."""
    defaults = {name: getattr(omcda.Config(), name) for name in ("smoothing", "warm_start", "influence_period")}
    with jax.enable_x64(True):
        once = measured(1_000_000, 1, smoothing=0.0)["influence"][0]
        found = measured(1_000_000, 201, **defaults)
        for number, rate in ((0, 0.05), (99, 0.05), (100, 1 - 0.95**2), (199, 1 - 0.95**2), (200, 1 - 0.95**3)):
            np.testing.assert_allclose(found["influence"][number], rate * once, rtol=1e-5)
        np.testing.assert_array_equal(found["share"], 0.5)
        change = 3e-4 * (found["kl"] - found["budget"]) / (found["kl"] + found["budget"])
        np.testing.assert_allclose(np.diff(np.log(found["alpha"]), axis=0), change[1:], rtol=1e-6)
        around = measured(1_000_000, 2, first=99_999, **defaults)["share"]
    np.testing.assert_array_equal(around[0], 0.5)
    assert around[1, 0] != 0.5


def test_ablations_share_as_they_say() -> None:
    with jax.enable_x64(True):
        share = {
            name: measured(100, 20, influence_period=0.05, **find(name).fixed, conservative_mixer="identity")["share"]
            for name in ("omcda_wo_cda", "omcda_rd", "omcda_rd_once")
        }
    np.testing.assert_array_equal(share["omcda_wo_cda"], 0.5)
    once, anew = share["omcda_rd_once"], share["omcda_rd"]
    assert (once == once[0]).all()
    assert once[0, 0] != 0.5
    assert len(np.unique(anew[:, 0])) == 4  # in 20 updates, one for each period of 5
    assert (anew.reshape(4, 5, 2) == anew.reshape(4, 5, 2)[:, :1]).all()
    np.testing.assert_allclose([x.sum(axis=1) for x in share.values()], 1.0)


def test_a_fixed_price_stays_and_one_value_has_no_conservative_critics() -> None:
    fixed, entangled = (find(name) for name in ("omcda_fixed_alpha", "omcda_wo_dq"))
    with jax.enable_x64(True):
        found = measured(100, 20, **fixed.fixed)
    np.testing.assert_allclose(found["alpha"], np.tile([0.5, 0.8], (20, 1)))
    assert not found["at_bound"].any()
    spec = game(2, 0).spec
    method = entangled.make(entangled.configure(spec, TABULAR), spec)
    assert method.init(jax.random.key(0), context(method, spec)).costs is None


# --- Bad input ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"d_tot": 0.0}, r"d_tot must be positive, not 0\.0\."),
        ({"d_tot": -1.2}, r"d_tot must be positive, not -1\.2\."),
        ({"alpha_min": 10.0, "alpha_max": 0.1}, r"alpha_min must be less than alpha_max, not 10\.0 and 0\.1\."),
        ({"alpha": 1000.0}, r"alpha must lie between alpha_min and alpha_max, not at 1000\.0\."),
        ({"alpha_rate": -1.0}, r"alpha_rate must not be negative, not -1\.0\."),
        ({"warm_start": 100.0}, r"warm_start is a part of training, at most 1, not 100\.0\."),
        ({"influence_period": 0.0}, r"influence_period must be positive, not 0\.0\."),
        ({"temperature": 0.0}, r"temperature must be positive, not 0\.0\."),
        ({"influence": "covariance"}, r"A covariance needs influence_samples of at least 2\."),
        ({"decoupled": False, "published_exponent": True}, r"published_exponent .* needs decoupled\."),
        ({"conservative_mixer": "vdn"}, r"There is no conservative_mixer 'vdn'"),
        ({"behaviour_updates": 0}, r"behaviour_updates must be positive, not 0\."),
    ],
)
def test_hyperparameters_that_make_no_sense_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        METHOD.configure(SPEC, overrides)


def test_a_covariance_of_discrete_actions_needs_no_samples() -> None:
    assert METHOD.configure(DISCRETE_SPEC, {"influence": "covariance"}).influence_samples == 1


@pytest.mark.parametrize(
    ("spec", "overrides"),
    [
        (dataclasses.replace(SPEC, obs_dim=4), {}),
        (dataclasses.replace(SPEC, n_agents=3), {}),
        (dataclasses.replace(SPEC, kind="discrete"), {}),
        (SPEC, {"hidden": (16, 16)}),
        (SPEC, {"sharing": "separate"}),
        (SPEC, {"input_norm": "batch"}),
        (SPEC, {"stochastic": False}),
        (SPEC, {"memory": 8}),
    ],
)
def test_a_behaviour_policy_of_another_task_kind_or_shape_is_refused(spec: TaskSpec, overrides: dict[str, Any]) -> None:
    method = METHOD.make(METHOD.configure(SPEC, {"hidden": (16,)}), SPEC)
    part = method.needs.parts["behaviour"]
    other = part._replace(hyperparameters={**part.hyperparameters, **overrides})
    with pytest.raises(UserError, match=r"The behaviour policy does not fit: for 'toy/continuous' it must be a stoch"):
        method.init(jax.random.key(0), Context(Stats.unknown(SPEC), parts=untrained({"behaviour": other}, spec)))


def test_a_behaviour_policy_that_is_missing_is_named() -> None:
    method = METHOD.make(METHOD.configure(SPEC, {}), SPEC)
    with pytest.raises(UserError, match=r"starts from a policy that is trained before: behaviour\."):
        method.init(jax.random.key(0), Context(Stats.unknown(SPEC)))
