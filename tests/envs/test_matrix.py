"""The matrix games."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jumanji.types import StepType
from omarl_envs import make
from omarl_envs.base import MultiAgentEnv
from omarl_envs.matrix import MatrixGame


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
