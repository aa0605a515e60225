"""The matrix games, and the game of levers."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jumanji.types import StepType
from omarl_envs import make
from omarl_envs.base import MultiAgentEnv
from omarl_envs.matrix import LeverGame, MatrixGame


def _payoffs(env: MultiAgentEnv) -> np.ndarray:
    """(A, A) what both agents get for each pair of actions."""
    n = env.task_spec.action_dim
    pairs = jnp.array(list(itertools.product(range(n), repeat=2)), jnp.int32)
    state, _ = env.reset(jax.random.key(0))
    _, timestep = jax.vmap(env.step, in_axes=(None, 0))(state, pairs)
    np.testing.assert_array_equal(timestep.reward[:, 0], timestep.reward[:, 1])
    return np.asarray(timestep.reward[:, 0]).reshape(n, n)


def test_xor_pays_for_different_actions() -> None:
    np.testing.assert_array_equal(_payoffs(make("matrix/xor")), [[0, 1], [1, 0]])


def test_climbing_is_the_game_of_claus_and_boutilier() -> None:
    np.testing.assert_array_equal(_payoffs(make("matrix/climbing")), [[11, -30, 0], [-30, 7, 6], [0, 0, 5]])


def test_rows_are_the_first_agents_actions() -> None:
    np.testing.assert_array_equal(_payoffs(MatrixGame("mine", [[1, 2], [3, 4]])), [[1, 2], [3, 4]])


@pytest.mark.parametrize("name", ["matrix/xor", "matrix/climbing"])
def test_one_move_ends_the_game(name: str) -> None:
    env = make(name)
    state, first = env.reset(jax.random.key(0))
    assert first.step_type == StepType.FIRST
    np.testing.assert_array_equal(first.discount, [1.0, 1.0])
    np.testing.assert_array_equal(first.observation.agents_view, [[1.0], [1.0]])
    assert first.observation.action_mask is not None
    assert first.observation.action_mask.all()
    state, last = env.step(state, jnp.array([1, 0], jnp.int32))
    assert last.step_type == StepType.LAST
    np.testing.assert_array_equal(last.discount, [0.0, 0.0])  # an end, not a cut
    assert state.step == 1


@pytest.mark.parametrize(("name", "random", "expert"), [("matrix/xor", 0.5, 1.0), ("matrix/climbing", -31 / 9, 11.0)])
def test_reference_scores_are_uniform_play_and_the_best_cell(name: str, random: float, expert: float) -> None:
    reference = make(name).reference
    assert reference is not None
    assert (reference.random, reference.expert) == pytest.approx((random, expert))


@pytest.mark.parametrize("payoff", [[[1, 2, 3], [4, 5, 6]], [1, 2], [[1, np.nan], [0, 0]]])
def test_a_payoff_that_is_no_game_is_refused(payoff: list) -> None:
    with pytest.raises(ValueError, match="matrix/mine needs a square payoff matrix of finite numbers"):
        MatrixGame("mine", payoff)


LEVERS = ["matrix/lever", "matrix/lever-continuous"]
PLACES = np.arange(-4, 5) / 4  # of a discrete lever


def _rewards(env: MultiAgentEnv, cues: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """(B,) the reward of each joint action (B, N) at its cue; all agents get the same."""
    state, _ = env.reset(jax.random.key(0))
    states = state._replace(cue=jnp.asarray(cues, jnp.float32))
    moves = jnp.asarray(actions) if env.task_spec.kind == "discrete" else jnp.asarray(actions, jnp.float32)[..., None]
    axes = state._replace(**dict.fromkeys(state._fields, None))._replace(cue=0)
    _, timestep = jax.vmap(env.step, in_axes=(axes, 0))(states, moves)
    assert (np.ptp(timestep.reward, axis=1) == 0).all()
    return np.asarray(timestep.reward[:, 0])


@pytest.mark.parametrize(
    ("cue", "actions", "reward"),
    [
        (0.5, [0.5, 0.5, 0.5], 8.0),  # the best
        (0.5, [-0.5, 0.5, 0.5], 0.0),  # the first agent, 1 away, earns nothing
        (0.5, [0.5, 0.0, 0.5], 7.75),  # another one, half away: a tenth of the stake times a quarter
        (-0.25, [0.75, 1.0, -1.0], 0.0 - 1.5625 - 0.5625),
    ],
)
@pytest.mark.parametrize("name", LEVERS)
def test_the_first_lever_earns_and_the_others_harm(name: str, cue: float, actions: list, reward: float) -> None:
    moves = np.searchsorted(PLACES, [actions]) if name == "matrix/lever" else np.array([actions])
    np.testing.assert_allclose(_rewards(make(name), np.array([cue]), moves), [reward], atol=1e-5)


def test_each_agent_makes_its_part_of_the_way_from_uniform_to_best_play() -> None:
    env = make("matrix/lever", n_agents=4, influence=0.7)
    cue, move = (x.ravel() for x in np.meshgrid(PLACES, np.arange(9), indexing="ij"))
    best = np.searchsorted(PLACES, cue)
    assert env.reference is not None
    returns = env.reference.expert - env.reference.random
    for agent, part in enumerate((0.7, 0.1, 0.1, 0.1)):
        actions = np.tile(best[:, None], 4)
        actions[:, agent] = move  # this agent plays uniformly, at every cue, and the others play best
        lost = env.reference.expert - 5 * _rewards(env, cue, actions).mean()
        assert lost / returns == pytest.approx(part, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "random", "expert"),
    [
        ("matrix/lever", {}, 40 - 50 * 5 / 6, 40.0),
        ("matrix/lever-continuous", {}, 40 - 50 * 2 / 3, 40.0),
        ("matrix/lever-continuous", {"influence": 0.25, "n_agents": 4, "length": 2}, 5 - 20 * 2 / 3, 5.0),
    ],
)
def test_reference_returns_of_levers_are_exact(name: str, options: dict, random: float, expert: float) -> None:
    env = make(name, **options)
    assert env.reference is not None
    assert (env.reference.random, env.reference.expert) == pytest.approx((random, expert))


def _play(env: MultiAgentEnv, act: Callable[[Any, Any], Any], games: int) -> tuple[np.ndarray, ...]:
    """Cues (games, T), levers (games, T, N) and returns (games,) of a policy (obs, key) -> actions."""

    def game(key: Any) -> Any:
        reset_key, play_key = jax.random.split(key)

        def move(now: Any, key: Any) -> Any:
            state, obs = now
            after, timestep = env.step(state, act(obs, (), key)[0])
            return (after, timestep.observation.agents_view), (state.cue, after.levers, timestep.reward.mean())

        state, timestep = env.reset(reset_key)
        keys = jax.random.split(play_key, env.task_spec.episode_length)
        _, (cues, levers, rewards) = jax.lax.scan(move, (state, timestep.observation.agents_view), keys)
        return cues, levers, rewards.sum()

    played = jax.jit(jax.vmap(game))(jax.random.split(jax.random.key(0), games))
    return tuple(np.asarray(x, np.float64) for x in played)


def _error(center: float, spread: float, cue: float, discrete: bool) -> float:
    """E (a - cue)² of a normal distribution cut off at ±1, by its moments, or of its like on the places."""
    if discrete:
        odds = [math.exp(-(((a - center) / spread) ** 2) / 2) for a in PLACES]
        return sum(p * (a - cue) ** 2 for p, a in zip(odds, PLACES, strict=True)) / sum(odds)
    low, high = (-1 - center) / spread, (1 - center) / spread
    density = [math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in (low, high)]
    mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    first = (density[0] - density[1]) / mass
    second = 1 - (high * density[1] - low * density[0]) / mass
    return (center - cue) ** 2 + 2 * (center - cue) * spread * first + spread**2 * second


@pytest.mark.parametrize("name", LEVERS)
@pytest.mark.parametrize(("quality", "follow", "spread"), [("medium", 0.0, 0.3), ("expert", 1.0, 0.1)])
def test_teams_that_the_game_knows_play_as_they_say(name: str, quality: str, follow: float, spread: float) -> None:
    env, discrete = make(name), name == "matrix/lever"
    all_cues = PLACES if discrete else (np.arange(1_000) + 0.5) / 500 - 1
    error = np.mean([_error(follow * cue, spread, cue, discrete) for cue in all_cues])
    behaviour = env.behaviours[quality]
    assert behaviour.mean_return == pytest.approx(40 - 50 * error, abs=1e-3)
    assert behaviour.words == f"levers around {follow:g} times the cue, σ = {spread:g}"
    cues, levers, returns = _play(env, behaviour.act, 10_000)
    assert abs(returns.mean() - behaviour.mean_return) < 3 * returns.std() / 100
    errors = np.square(levers - cues[..., None]).mean(axis=(0, 1))  # of each agent
    np.testing.assert_allclose(errors, error, rtol=0.03)
    apart = (levers - follow * cues[..., None]).reshape(-1, 3)
    np.testing.assert_allclose(np.corrcoef(apart.T), np.eye(3), atol=0.05)  # each for itself


@pytest.mark.parametrize("name", LEVERS)
def test_a_game_of_levers_shows_new_cues_and_ends_after_its_last_move(name: str) -> None:
    env = make(name, length=3)
    actions = env.action_spec.generate_value()
    state, timestep = env.reset(jax.random.key(0))
    for left in (1.0, 2 / 3, 1 / 3):
        assert not timestep.last()
        np.testing.assert_allclose(timestep.observation.agents_view, np.tile([float(state.cue), left], (3, 1)))
        state, timestep = env.step(state, actions)
    assert timestep.last()
    np.testing.assert_array_equal(timestep.discount, np.zeros(3))  # an end, not a cut
    cut = make(name, length=1, time_limit_is_terminal=False)
    np.testing.assert_array_equal(cut.step(cut.reset(jax.random.key(0))[0], actions)[1].discount, np.ones(3))
    cues = _play(env, lambda obs, memory, key: (actions, memory), 10_000)[0]
    assert abs(np.corrcoef(cues.T) - np.eye(3)).max() < 0.04
    if name == "matrix/lever":
        np.testing.assert_array_equal(np.unique(cues), PLACES)
        assert np.square(cues).mean() == pytest.approx(5 / 12, rel=0.03)
    else:
        assert np.abs(cues).max() < 1
        assert np.square(cues).mean() == pytest.approx(1 / 3, rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_agents": 1}, "matrix/mine needs at least 2 agents, not 1"),
        ({"influence": 1.5}, "The influence in matrix/mine must be from 0 to 1, not 1.5"),
        ({"influence": float("nan")}, "from 0 to 1, not nan"),
        ({"length": 0}, "episode_length of task 'matrix/mine' must be from 1"),
        ({"places": 1}, "at least 2 places, or 0 if it is continuous, not 1"),
    ],
)
def test_a_game_of_levers_that_is_none_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeverGame(**({"name": "mine", "places": 3} | options))
