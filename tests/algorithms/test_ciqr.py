"""The MA-CQR family against NumPy, and on problems whose answers are known."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from omarl_envs.spec import TaskSpec
from problems import METHODS, float64, jit, of
from reference import outputs, policy_network

from omarl_jax import networks
from omarl_jax.errors import UserError
from omarl_jax.types import Context, Stats, Transition, View

N, O, A = 2, 2, 3  # noqa: E741  # the letters of the shapes
SPEC = TaskSpec("toy/discrete", "discrete", n_agents=N, obs_dim=O, action_dim=A, state_dim=N * O, episode_length=5)
CONTEXT = Context(Stats.unknown(SPEC))
FAMILY = ("ciql", "ccql", "ciqr", "ccqr")
FAST = {"lr": 0.01, "tau": 0.05, "hidden": (16,), "gamma": 0.5, "cql_alpha": 0.0}


@pytest.fixture(params=[2, 3])
def n(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of the team, for tests of what holds for any."""
    monkeypatch.setitem(globals(), "N", request.param)
    spec = dataclasses.replace(SPEC, n_agents=request.param, state_dim=request.param * O)
    monkeypatch.setitem(globals(), "SPEC", spec)
    monkeypatch.setitem(globals(), "CONTEXT", Context(Stats.unknown(spec)))
    return request.param


def make(name: str, **overrides: Any) -> tuple[Any, Any]:
    config = METHODS[name].configure(SPEC, FAST | overrides)
    return config, METHODS[name].make(config, SPEC)


def rows(actions: Any, rewards: Any, **fields: Any) -> Transition:
    """(B, …) transitions of one state that end there; actions (B, N), rewards (B,)."""
    b = len(rewards)
    columns = {
        "obs": np.ones((b, N, O), np.float32),
        "actions": np.asarray(actions, np.int32),
        "rewards": np.repeat(np.asarray(rewards, np.float32)[:, None], N, axis=1),
        "next_obs": np.ones((b, N, O), np.float32),
        "terminal": np.ones((b, N), bool),
        "truncated": np.zeros(b, bool),
    }
    return jax.tree.map(jnp.asarray, Transition(**(columns | fields)))


def learned(name: str, batch: Transition, rounds: int, target: Any = None, **overrides: Any) -> Any:
    """The state after learning on the same batch again and again, the learning rate falling to nothing.

    `target` replaces the parameters that the targets begin with.
    """
    config, _ = make(name, **overrides)
    return _learned(name, config, batch, rounds, target)


@functools.partial(jit, static_argnames="name")
def _learned(name: str, config: Any, batch: Transition, rounds: int, target: Any) -> Any:
    """Compiled once for all rewards and all float hyperparameters."""
    state = METHODS[name].make(config, SPEC).init(jax.random.key(0), CONTEXT)

    def step(number: jax.Array, state: Any) -> Any:
        now = METHODS[name].make(dataclasses.replace(config, lr=config.lr * (1 - number / rounds)), SPEC)
        return now.update(state, batch, jax.random.key(0))[0]

    return jax.lax.fori_loop(0, rounds, step, state if target is None else state._replace(target=target))


def values(name: str, state: Any, obs: Any = None, **overrides: Any) -> np.ndarray:
    """(N, Q, A) quantiles in a state."""
    config, _ = make(name, **overrides)
    network = networks.action_values(SPEC, config.hidden, config.input_norm, quantiles=max(config.quantiles, 1))
    return np.asarray(network.act(state.policy.net, jnp.ones((N, O)) if obs is None else obs))


def with_params(state: Any, params: Any) -> Any:
    """A state whose networks have these parameters."""
    return state._replace(policy=state.policy._replace(net=state.policy.net._replace(params=params)))


def with_last_biases(params: Any, biases: Any) -> Any:
    """Parameters of networks whose outputs are these biases, broadcast to (N, Q, A), whatever they see."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    bias = zeros["layer_1"]["bias"]
    shape = (N, bias.shape[-1] // A, A)
    zeros["layer_1"]["bias"] = jnp.broadcast_to(jnp.asarray(biases, jnp.float32), shape).reshape(bias.shape)
    return zeros


def greedy(method: Any, state: Any, mask: Any = None) -> np.ndarray:
    """(N,) actions."""
    return np.asarray(method.act(state.policy, View(jnp.ones((N, O)), mask), (), jax.random.key(0))[0])


def varied(seed: int, rewards: float) -> Transition:
    """Random transitions: agents end at different times, many actions are illegal, and most rewards negative."""
    rng, b = np.random.default_rng(seed), 32
    actions, next_actions = rng.integers(A, size=(2, b, N))
    masks = rng.random((2, b, N, A)) < 0.5
    for mask, chosen in zip(masks, (actions, next_actions), strict=True):  # one of them, at least
        np.put_along_axis(mask, chosen[..., None], True, axis=-1)
    terminal = rng.random((b, N)) < 0.5
    columns = {
        "obs": rng.normal(1.0, 2.0, (b, N, O)),
        "rewards": rng.normal(-rewards, rewards, (b, N)),
        "next_obs": rng.normal(-1.0, 2.0, (b, N, O)),
        "terminal": terminal,
        "truncated": ~terminal.all(axis=1) & (rng.random(b) < 0.4),
        "action_mask": masks[0],
        "next_action_mask": masks[1],
    }
    return rows(actions, np.zeros(b))._replace(**jax.tree.map(jnp.asarray, columns))


def np_atoms(config: Any, stats: Stats, params: Any, agent: int, obs: np.ndarray) -> np.ndarray:
    """One agent's atoms (B, Q, A)."""
    if config.input_norm == "dataset":
        obs = (obs - stats.obs_mean[agent]) / stats.obs_std[agent]
    return outputs(policy_network(params), obs, (0.0, 1.0))[0].reshape(len(obs), max(config.quantiles, 1), A)


def np_targets(config: Any, stats: Stats, targets: list[Any], team: list[int], one: Transition) -> np.ndarray:
    """What the sum of a team's atoms should be, (B, Q)."""
    reward, ended = one.rewards[:, team].mean(axis=1), one.terminal[:, team].min(axis=1)
    y = np.repeat(config.reward_scale * reward[:, None], max(config.quantiles, 1), axis=1)
    for agent in team:
        atoms = np_atoms(config, stats, targets[agent], agent, one.next_obs[:, agent])
        for b in np.flatnonzero(ended == 0):
            can = np.flatnonzero(one.next_action_mask[b, agent])
            y[b] += config.gamma * atoms[b, :, can[atoms[b].mean(axis=0)[can].argmax()]]
    return y


def np_loss(
    config: Any, stats: Stats, params: list[Any], team: list[int], one: Transition, y: np.ndarray
) -> tuple[float, dict[str, float]]:
    """A team's loss and metrics; `params` of all agents."""
    total, penalty, td_loss = np.zeros_like(y), 0.0, 0.0
    for agent in team:
        atoms = np_atoms(config, stats, params[agent], agent, one.obs[:, agent])
        own = atoms[np.arange(len(y)), :, one.actions[:, agent].astype(int)]
        total += own
        can = np.where(one.action_mask[:, agent, None] > 0, atoms, -np.inf)
        penalty += (np.logaddexp.reduce(can, axis=-1) - own).sum(axis=1).mean()
    for j in range(config.quantiles):
        fraction = config.cvar_level * (2 * j + 1) / (2 * config.quantiles)
        for target in y.T:
            delta = target - total[:, j]
            size, kappa = np.abs(delta), config.huber_kappa
            huber = np.where(size <= kappa, 0.5 * size**2, kappa * (size - 0.5 * kappa)) / kappa
            weight = np.where(delta < 0, 1 - fraction, fraction)
            td_loss += 0.5 * (weight * huber).mean() / config.quantiles
    if not config.quantiles:
        td_loss = 0.5 * np.square(total - y).mean()
    metrics = {"critic_loss": td_loss, "cql_penalty": penalty, "q": total.mean() / config.reward_scale}
    return td_loss + config.cql_alpha * penalty, metrics


def np_slopes(loss: Callable[[], tuple[float, Any]], leaves: list[np.ndarray]) -> list[np.ndarray]:
    """The gradient of a loss that depends on these arrays, by differences."""
    slopes = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, slope in zip(leaves, slopes, strict=True):
        for index in np.ndindex(leaf.shape):
            begun = leaf[index]
            for sign in (1, -1):
                leaf[index] = begun + sign * 1e-6
                slope[index] += sign * loss()[0] / 2e-6
            leaf[index] = begun
    return slopes


def learner(state: Any) -> Any:
    """The state without what standardises inputs."""
    return getattr(state, "learner", state)


def replaced(state: Any, **fields: Any) -> Any:
    """A state with other fields of the learner."""
    if hasattr(state, "learner"):
        return state._replace(learner=replaced(state.learner, **fields))
    return state._replace(**fields)


@pytest.mark.parametrize(
    ("name", "overrides", "n"),
    [
        ("ciqr", {"input_norm": "none", "cvar_level": 0.4, "quantiles": 3, "grad_clip": 0.55}, 2),
        ("ciqr", {"input_norm": "batch", "cvar_level": 0.4, "quantiles": 3, "grad_clip": 0.35}, 3),
        ("ccqr", {"input_norm": "none", "cvar_level": 0.4, "quantiles": 3, "grad_clip": 1.0}, 3),
        ("ccqr", {"input_norm": "dataset", "cvar_level": 0.4, "quantiles": 3, "grad_clip": 0.5}, 2),
        ("ciql", {"input_norm": "dataset", "grad_clip": 3.0}, 3),
        ("ccql", {"input_norm": "batch", "grad_clip": 3.0}, 3),
    ],
    indirect=["n"],
)
def test_two_updates_in_numpy(name: str, overrides: dict[str, Any], n: int) -> None:
    """The first gradient is longer than it may be, and the second is not: Adam alone would forget how it was cut."""
    settings = {"hidden": (5,), "gamma": 0.9, "cql_alpha": 0.2, "reward_scale": 2.5, "huber_kappa": 1.5}
    config, method = make(name, **settings | overrides)
    rng = np.random.default_rng(0)
    stats = Stats(rng.normal(size=(n, O)), rng.uniform(0.5, 3.0, (n, O)))
    init, update = jax.jit(method.init), jax.jit(method.update)
    state, other = (init(jax.random.key(seed), Context(stats)) for seed in (0, 1))
    state = replaced(state, target=learner(other).target)  # far from what is learned
    begun = learner(state).policy.net.params, learner(state).target
    params, targets = ([of(float64(tree), i) for i in range(n)] for tree in begun)
    teams = [list(range(n))] if config.mixer == "vdn" else [[i] for i in range(n)]
    moments = {id(leaf): (0.0, 0.0) for leaf in jax.tree.leaves(params)}
    for number, spread in enumerate((5.0, 0.2), start=1):
        batch = varied(number, spread)
        state, found = update(state, batch, jax.random.key(0))
        one = float64(batch)
        told = []
        for team in teams:
            y = np_targets(config, stats, targets, team, one)
            anything = one._replace(next_action_mask=np.ones_like(one.next_action_mask))
            assert (y != np_targets(config, stats, targets, team, anything)).any()  # the masks of the batch matter
            loss = functools.partial(np_loss, config, stats, params, team, one, y)
            told.append(loss()[1])
            leaves = jax.tree.leaves([params[i] for i in team])
            slopes = np_slopes(loss, leaves)
            norm = np.sqrt(sum(np.square(slope).sum() for slope in slopes))
            assert (norm > config.grad_clip) == (number == 1)
            for leaf, slope in zip(leaves, slopes, strict=True):
                cut = slope * min(1.0, config.grad_clip / norm)
                mean, square = moments[id(leaf)]
                mean, square = moments[id(leaf)] = 0.9 * mean + 0.1 * cut, 0.999 * square + 0.001 * cut**2
                leaf -= config.lr * mean / (1 - 0.9**number) / (np.sqrt(square / (1 - 0.999**number)) + 1e-8)
        for target, online in zip(jax.tree.leaves(targets), jax.tree.leaves(params), strict=True):
            target += config.tau * (online - target)
        assert found.keys() == told[0].keys()
        for metric, value in found.items():
            mean = np.mean([of_team[metric] for of_team in told])
            np.testing.assert_allclose(value, mean, rtol=1e-4, atol=1e-5, err_msg=metric)
        for i in range(n):
            now = learner(state)
            for after, expected in ((now.policy.net.params, params[i]), (now.target, targets[i])):
                jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), of(after, i), expected)


@pytest.mark.parametrize("level", [1.0, 0.15])
def test_the_quantiles_of_the_rewards_are_learned(level: float) -> None:
    """Of 1,000 rewards evenly spread over 400 κ / ξ; within 1 % of the spread of the quantiles that are asked for."""
    rewards = 400 * (np.arange(1_000) + 0.5) / 1_000 - 100
    batch = rows(np.zeros((1_000, N)), rewards)
    options = {"cvar_level": level, "lr": 0.3, "huber_kappa": level}
    atoms = values("ciqr", learned("ciqr", batch, 3_000, **options), **options)[:, :, 0]
    expected = -100 + 400 * level * (2 * np.arange(8) + 1) / 16
    np.testing.assert_allclose(atoms, np.tile(expected, (N, 1)), atol=4 * level)


@pytest.mark.parametrize("level", [1.0, 0.15])
def test_with_the_published_axis_all_quantiles_are_one(level: float) -> None:
    """The sum of the losses at all fractions has one minimum: the quantile at their mean, ξ / 2."""
    rewards = 400 * (np.arange(1_000) + 0.5) / 1_000 - 100
    options = {"lr": 0.3, "published_axis": True, "cvar_level": level}
    state = learned("ciqr", rows(np.zeros((1_000, N)), rewards), 3_000, **options)
    atoms = values("ciqr", state, **options)[:, :, 0]
    np.testing.assert_allclose(atoms, -100 + 400 * level / 2, atol=4)


@pytest.mark.parametrize(("level", "choice"), [(1.0, 1), (0.15, 0)])
def test_the_cvar_level_decides_between_the_safe_and_the_better_arm(level: float, choice: int) -> None:
    """Arm 0 pays 10; arm 1 pays 30, but in a tenth of the cases -100, on average 17; arm 2 pays nothing."""
    rare = np.where(np.arange(100) % 10 == 0, -100.0, 30.0)
    rewards = np.concatenate([np.full(100, 10.0), rare, np.zeros(100)])
    actions = np.repeat([0, 1, 2], 100)[:, None].repeat(N, axis=1)
    options = {"cvar_level": level, "lr": 0.1}
    state = learned("ciqr", rows(actions, rewards), 3_000, **options)
    _, method = make("ciqr", **options)
    np.testing.assert_array_equal(greedy(method, state), [choice] * N)


@pytest.mark.parametrize("name", FAMILY)
def test_conservatism_keeps_unseen_actions_below_those_of_the_data(name: str) -> None:
    """Only actions 0 and 1 are in the data; without the penalty the third stays where it began."""
    actions = np.array([[0, 1], [1, 0]] * 32)
    batch = rows(actions, np.full(64, -5.0))
    cautious = values(name, learned(name, batch, 800, cql_alpha=1.0)).mean(axis=1)
    assert (cautious[:, 2] < cautious[:, :2].min(axis=1) - 1).all()
    bold = values(name, learned(name, batch, 800)).mean(axis=1)
    assert (bold[:, 2] > bold[:, :2].max(axis=1)).all()


@pytest.mark.parametrize("name", FAMILY)
def test_bootstraps_through_truncation_but_not_through_the_end(name: str) -> None:
    actions = np.zeros((32, N), int)
    for terminal in (True, False):
        batch = rows(actions, np.ones(32), terminal=np.full((32, N), terminal), truncated=np.full(32, not terminal))
        options = {"lr": 0.03}
        atoms = values(name, learned(name, only_the_first(batch), 1_500, **options), **options)[:, :, 0]
        total = atoms.sum(axis=0) if name.startswith("cc") else atoms
        np.testing.assert_allclose(total, 1.0 if terminal else 2.0, atol=0.1)


def only_the_first(batch: Transition) -> Transition:
    """The same, with one legal action in what follows: others are not in the data, and nothing is known of them."""
    return batch._replace(next_action_mask=jnp.zeros((len(batch.rewards), N, A), bool).at[..., 0].set(True))


@pytest.mark.parametrize("name", FAMILY)
def test_reward_is_credited_one_step_back(name: str) -> None:
    """The first state leads to the second, that one with a reward to the end."""
    first, states = np.arange(32) % 2 == 0, np.eye(O, dtype=np.float32)[:, None].repeat(N, axis=1)  # (2, N, O)
    obs = states[np.where(first, 0, 1)]
    batch = rows(np.zeros((32, N)), 1.0 - first, obs=obs, next_obs=obs[::-1], terminal=np.tile(~first[:, None], N))
    state = learned(name, only_the_first(batch), 2_000, lr=0.03)
    for obs, expected in zip(states, (0.5, 1.0), strict=True):
        atoms = values(name, state, obs)[:, :, 0]
        total = atoms.sum(axis=0) if name.startswith("cc") else atoms
        np.testing.assert_allclose(total, expected, atol=0.1)


@pytest.mark.parametrize("name", FAMILY)
def test_stays_finite_on_any_data(name: str) -> None:
    """One observation, observations of thousands, returns of ten thousands, ends everywhere and nowhere."""
    zeros, signs = np.zeros((32, N)), np.where(np.arange(32) % 2 == 0, 1.0, -1.0)
    for scale, reward, terminal in ((0.0, 0.0, True), (1e3, 0.0, False), (1.0, 1e4, True), (1e3, 1e4, False)):
        obs = np.float32(scale * np.ones((32, N, O)))
        batch = rows(zeros, reward * signs, obs=obs, next_obs=-obs, terminal=np.full((32, N), terminal))
        state = learned(name, only_the_first(batch), 300, cql_alpha=1.0)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.policy.net.params, state.target)))


@pytest.mark.parametrize("name", FAMILY)
def test_bootstraps_from_the_action_that_is_best_by_the_mean_of_its_quantiles(name: str) -> None:
    """Targets that never move: action 0 is best by the mean, 1 and 2 have single quantiles that are higher."""
    atoms = np.array([[-900.0, 0.0, 100.0], [0.0, 500.0, 350.0], [900.0, 100.0, 100.0], [900.0, 100.0, 100.0]])
    options = {"quantiles": 4, "lr": 0.3, "tau": 1e-12}
    if name.endswith("ql"):
        atoms, options = np.array([[300.0, -500.0, 100.0]]), options | {"quantiles": 0}
    _, method = make(name, **options)
    batch = rows(np.zeros((32, N)), np.full(32, 10.0), terminal=np.zeros((32, N), bool))
    target = with_last_biases(method.init(jax.random.key(0), CONTEXT).target, atoms)

    found = values(name, learned(name, batch, 3_000, target, **options), **options)[:, :, 0]
    team = N if name.startswith("cc") else 1
    found = found.sum(axis=0, keepdims=True) if name.startswith("cc") else found
    np.testing.assert_allclose(found, np.tile(10 + 0.5 * team * atoms[:, 0], (len(found), 1)), atol=5)


@pytest.mark.parametrize("name", ["ciqr", "ccql"])
def test_bootstraps_from_the_best_of_the_next_actions_that_are_legal(name: str) -> None:
    """Targets of 5, 3 and 1, whatever the observation; the best is forbidden to agent 0, and all but it to agent 1."""
    _, method = make(name, gamma=0.9)
    state = method.init(jax.random.key(0), CONTEXT)
    state = with_params(state, with_last_biases(state.target, 0.0))
    target = with_last_biases(state.target, [5.0, 3.0, 1.0])
    batch = rows(np.zeros((8, N)), np.zeros(8), terminal=np.zeros((8, N), bool))._replace(
        next_action_mask=jnp.tile(jnp.array([[False, True, True], [True, False, False]]), (8, 1, 1))
    )
    _, metrics = jax.jit(method.update)(state._replace(target=target), batch, jax.random.key(0))
    y = np.array([0.9 * (3 + 5)] if name.startswith("cc") else [0.9 * 3, 0.9 * 5])
    # The atoms are 0. Beyond κ = 1 the loss of 8 quantiles is half of the sum of their fractions, 4, times y - 1/2.
    expected = 0.5 * y**2 if name.endswith("ql") else 2 * (y - 0.5)
    np.testing.assert_allclose(metrics["critic_loss"], expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["ciqr", "ccql"])
def test_quantiles_learn_scaled_rewards_but_values_are_told_unscaled(name: str) -> None:
    """Three times the reward of 4 is where nothing is left to learn."""
    _, method = make(name, reward_scale=3.0)
    state, update = method.init(jax.random.key(0), CONTEXT), jax.jit(method.update)
    for total, learns in ((12.0, False), (4.0, True)):
        params = with_last_biases(state.target, total / (N if name.startswith("cc") else 1))
        batch = rows(np.zeros((8, N)), np.full(8, 4.0))
        after, metrics = update(with_params(state, params), batch, jax.random.key(0))
        np.testing.assert_allclose(method.values(with_params(state, params), batch), total / 3, rtol=1e-5)
        np.testing.assert_allclose(metrics["q"], total / 3, rtol=1e-5)
        assert (metrics["critic_loss"] > 1) == learns
        assert (after.policy.net.params["layer_1"]["bias"] > params["layer_1"]["bias"]).any() == learns


@pytest.mark.parametrize("name", ["ciql", "ccql"])
def test_gradients_are_clipped_for_each_agent_or_for_the_team(name: str) -> None:
    """Adam's mean after one update is a tenth of the gradient, which far from its target is as long as it may be."""
    _, method = make(name, grad_clip=0.3)
    state, _ = jax.jit(method.update)(
        method.init(jax.random.key(0), CONTEXT), rows(np.zeros((8, N)), np.full(8, 100.0)), jax.random.key(0)
    )
    mean = jax.tree.map(lambda x: x.reshape(N, -1), optax.tree_utils.tree_get(state.optimiser, "mu"))
    lengths = np.linalg.norm(np.concatenate(jax.tree.leaves(mean), axis=1), axis=1)  # (N,)
    if name.startswith("cc"):
        assert lengths.min() > 0
        lengths = np.linalg.norm(lengths)
    np.testing.assert_allclose(lengths, 0.03, rtol=1e-4)


@pytest.mark.parametrize(("name", "share"), [("ccqr", 1.0), ("ccql", 0.5)])
def test_the_published_reward_counts_more_than_once(name: str, share: float, n: int) -> None:
    options = {"published_reward": True, "lr": 0.03}
    state = learned(name, rows(np.zeros((32, N)), np.full(32, 3.0)), 1_500, **options)
    atoms = values(name, state, **options)[:, :, 0]
    np.testing.assert_allclose(atoms.sum(axis=0), 3 * share * n, atol=0.15)


def test_value_decomposition_finds_what_each_agent_adds(n: int) -> None:
    """Rewards are a sum of one part for each agent, and so are the best actions."""
    actions = np.stack(np.meshgrid(*[np.arange(A)] * n), axis=-1).reshape(-1, n)
    parts = np.array([[0.0, 4.0, 1.0], [2.0, -3.0, 5.0], [1.0, 0.0, -2.0]])[:n]
    rewards = parts[np.arange(n), actions].sum(axis=1)
    total = values("ccql", learned("ccql", rows(actions, rewards), 2_000))[:, 0]  # (N, A)
    np.testing.assert_allclose(total - total[:, :1], parts - parts[:, :1], atol=0.1)


def test_adam_afresh_leaves_the_sign() -> None:
    config, method = make("ccql", published_adam=True, lr=1e-3)
    state, update = method.init(jax.random.key(0), CONTEXT), jax.jit(method.update)
    for _ in range(3):
        before, (state, _) = state, update(state, rows(np.zeros((8, N)), np.ones(8)), jax.random.key(0))
        moved = [
            np.abs(new - old).ravel()
            for new, old in zip(
                jax.tree.leaves(state.policy.net.params), jax.tree.leaves(before.policy.net.params), strict=True
            )
        ]
        moved = np.concatenate(moved)
        np.testing.assert_allclose(moved[moved > 0], config.lr, rtol=0.02)


def test_targets_start_as_copies_or_as_published_elsewhere() -> None:
    for published in (False, True):
        _, method = make("ciql", published_targets=published)
        state = method.init(jax.random.key(0), CONTEXT)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state.target, state.policy.net.params)
        assert all(jax.tree.leaves(same)) is not published


def test_the_published_penalty_pushes_nothing_up() -> None:
    """Only what it takes off all actions is left of its gradient, so that the data's own value falls."""
    batch = rows(np.zeros((32, N)), np.zeros(32))
    values_of = {
        flag: values("ccql", learned("ccql", batch, 500, cql_alpha=1.0, published_penalty=flag))[:, 0, 0].sum()
        for flag in (False, True)
    }
    assert values_of[True] < values_of[False] - 0.5


@pytest.mark.parametrize("name", FAMILY)
def test_illegal_actions_are_never_taken(name: str) -> None:
    _, method = make(name)
    state = method.init(jax.random.key(0), CONTEXT)
    mask = jnp.array([[True, False, True], [False, True, False]])
    act = jax.vmap(lambda key: method.act(state.policy, View(jnp.ones((N, O)), mask), (), key, True)[0])
    taken = np.asarray(act(jax.random.split(jax.random.key(1), 200)))
    assert set(taken[:, 0]) == {0, 2}
    assert set(taken[:, 1]) == {1}
    # Greedily neither, though the illegal actions have the highest values.
    params = with_last_biases(state.target, np.array([[1.0, 9.0, 2.0], [9.0, 1.0, 9.0]])[:, None])
    np.testing.assert_array_equal(greedy(method, with_params(state, params), mask), [2, 1])


@pytest.mark.parametrize("name", FAMILY)
def test_illegal_actions_cost_nothing(name: str) -> None:
    """The penalty of a lone legal action is 0, whatever the others would be worth."""
    _, method = make(name, cql_alpha=1.0)
    state = method.init(jax.random.key(0), CONTEXT)
    for legal in (True, False):
        mask = jnp.ones((8, N, A), bool).at[..., 1:].set(not legal)
        _, metrics = jax.jit(method.update)(
            state, rows(np.zeros((8, N)), np.ones(8), action_mask=mask), jax.random.key(0)
        )
        assert (abs(float(metrics["cql_penalty"])) < 1e-5) == legal


@pytest.mark.parametrize(("share", "choice"), [(1.0, 0), (0.5, 1), (0.375, 2)])
def test_it_can_act_by_the_lowest_quantiles(share: float, choice: int) -> None:
    """Four quantiles of three actions: their means are best for 0, two lowest for 1, one and a half for 2."""
    atoms = np.array([[-9.0, 0.0, 1.0], [0.0, 5.0, 3.5], [19.0, 5.5, 3.6], [19.0, 6.0, 3.7]])
    _, method = make("ciqr", quantiles=4, act_cvar=share)
    state = method.init(jax.random.key(0), CONTEXT)
    params = with_last_biases(state.target, atoms)
    np.testing.assert_array_equal(greedy(method, with_params(state, params)), [choice] * N)


def test_exploration_falls_from_all_to_few() -> None:
    _, method = make("ciql", epsilon_updates=10.0)
    state, update = method.init(jax.random.key(0), CONTEXT), jax.jit(method.update)
    shares = [float(state.policy.epsilon)]
    for _ in range(12):
        state, _ = update(state, rows(np.zeros((8, N)), np.ones(8)), jax.random.key(0))
        shares.append(float(state.policy.epsilon))
    np.testing.assert_allclose(shares, np.maximum(1 - 0.099 * np.arange(13), 0.01), rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cvar_level": 0.0}, r"cvar_level must lie in \(0, 1\]"),
        ({"cvar_level": 1.5}, r"cvar_level must lie in \(0, 1\]"),
        ({"act_cvar": 0.0}, r"act_cvar must lie in \(0, 1\]"),
        ({"quantiles": 0, "cvar_level": 0.5}, "Without quantiles cvar_level must be 1"),
        ({"quantiles": 0, "act_cvar": 0.5}, "Without quantiles act_cvar must be 1"),
        ({"quantiles": 0, "published_axis": True}, "only methods with quantiles have the error published_axis"),
        ({"quantiles": -1}, "quantiles must not be negative"),
        ({"huber_kappa": 0.0}, "huber_kappa must be positive"),
        ({"epsilon_start": 1.2}, "epsilon is a share"),
        ({"reward_scale": -1.0}, "reward_scale must be positive"),
        ({"published_reward": True}, "only methods with a mixer have the error published_reward"),
        ({"published_adam": True}, "only methods with a mixer have the error published_adam"),
        ({"published_targets": True}, "only methods without quantiles have the error published_targets"),
        ({"published_penalty": True, "mixer": "vdn"}, "without quantiles have the error published_penalty"),
    ],
)
def test_nonsense_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        METHODS["ciqr"].configure(SPEC, overrides)
