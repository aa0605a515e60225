"""The shared formulas against closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.microbatching import AccumulationType
from problems import STATS, A, N, batch, make

from omarl_jax.algorithms import cql, formulas


def test_bootstraps_unless_terminal() -> None:
    next_value = jnp.array([10.0, 10.0])
    y = formulas.bootstrapped(jnp.array([1.0, 2.0]), jnp.array([False, True]), next_value, jnp.float32(0.9))
    np.testing.assert_allclose(y, [10.0, 2.0])


@pytest.mark.parametrize("rows", [32, 64, 80, 9])
def test_blocks_of_a_batch_are_joined_to_the_whole(rows: int) -> None:
    """Wherever the axis of the batch is; 32 rows are one block, which is the whole, and 9 cannot be divided."""
    weights = jnp.arange(1.0, 5.0)
    x, y = jax.random.normal(jax.random.key(0), (rows, 4)), jax.random.normal(jax.random.key(1), (3, rows))
    seen = []

    def products(weights: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        seen.append(x.shape[0])
        return y.T * (x @ weights)[:, None]

    each = jax.jit(formulas.in_blocks(products, (None, 0, 1), AccumulationType.CONCAT))(weights, x, y)
    np.testing.assert_allclose(each, y.T * (x @ weights)[:, None], rtol=1e-5)
    assert min(seen) == {32: 32, 64: 32, 80: 16, 9: 9}[rows]
    assert (len(seen) == 1) == (rows in (32, 9))  # otherwise CPUs have a program of their own
    mean = formulas.in_blocks(lambda *inputs: products(*inputs).mean(axis=0), (None, 0, 1), AccumulationType.MEAN)
    np.testing.assert_allclose(mean(weights, x, y), products(weights, x, y).mean(axis=0), rtol=1e-4)


def test_blocks_change_no_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch normalisation too uses the statistics of the whole batch."""
    config, method = make("omar", input_norm="batch", policy_samples=True)
    state = method.init(jax.random.key(0), STATS)
    whole, blocks = [], []
    for states, size in ((whole, 64), (blocks, 16)):
        monkeypatch.setattr(formulas, "_BLOCK", size)
        update = jax.jit(lambda *inputs: method.update(*inputs))
        states += jax.tree.leaves(update(state, batch(0, config.batch_size), jax.random.key(1)))
    for one, other in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_adam_sees_gradients_cut_to_the_norm_of_all_of_them() -> None:
    """Two steps by hand: the first gradient, of norm 13 over both arrays, is cut to 1, the second is short enough."""
    optimiser = formulas.clipped_adam(jnp.float32(0.1), jnp.float32(1.0))
    first, second = np.array([3.0, -4.0, 12.0]), np.array([0.3, 0.6, -0.2])

    @jax.jit
    def steps(params: Any, *gradients: Any) -> list[Any]:
        state, changes = optimiser.init(params), []
        for gradient in gradients:
            change, state = optimiser.update(gradient, state)
            changes.append(change)
        return changes

    split = [{"w": jnp.float32(g[:2]), "b": jnp.float32(g[2:])} for g in (np.zeros(3), first, second)]
    changes = [np.concatenate([change["w"], change["b"]]) for change in steps(*split)]
    np.testing.assert_allclose(changes[0], [-0.1, 0.1, -0.1], rtol=1e-5)  # 0.1 g / √g²
    cut = first / 13
    mean = (0.9 * 0.1 * cut + 0.1 * second) / (1 - 0.9**2)
    square = (0.999 * 0.001 * cut**2 + 0.001 * second**2) / (1 - 0.999**2)
    np.testing.assert_allclose(changes[1], -0.1 * mean / np.sqrt(square), rtol=1e-3)


def test_softmax_weights_are_relative_and_sum_to_the_batch() -> None:
    values = 30 * jax.random.normal(jax.random.key(0), (50,))
    weights = formulas.softmax_weights(values, jnp.float32(10))
    np.testing.assert_allclose(weights.sum(), 50, rtol=1e-5)
    np.testing.assert_allclose(weights[3] / weights[4], np.exp((values[3] - values[4]) / 10), rtol=1e-4)
    np.testing.assert_allclose(formulas.softmax_weights(values + 1e3, jnp.float32(10)), weights, rtol=1e-3)
    np.testing.assert_allclose(formulas.softmax_weights(values, jnp.float32(1e9)), 1, rtol=1e-5)


def test_penalty_of_uniform_samples_is_an_integral() -> None:
    """Of Q(a) = w·a, log ∫ exp Q da = Σ log(2 sinh(w) / w); the sum over K samples adds log K."""
    w, samples, rows = np.array([1.5, -0.7]), 20_000, 20
    config = cql.Config(cql_samples=samples)
    [(actions, log_density)] = formulas.cql_actions(jax.random.key(0), jnp.zeros((rows, A)), (), config)
    assert actions.shape == (samples, rows, A)
    penalty = formulas.conservative_penalty(actions @ w - log_density, jnp.full((rows,), 0.25))
    expected = np.log(2 * np.sinh(w) / w).sum() + np.log(samples) - 0.25
    np.testing.assert_allclose(penalty, expected, atol=0.01)


def test_samples_around_the_policy_weigh_by_their_density() -> None:
    """With exact importance weights, samples around any action estimate the same integral as uniform ones."""
    rows, samples = 50, 20_000
    config = cql.Config(cql_samples=samples, sample_noise=0.15)
    kinds = formulas.cql_actions(jax.random.key(0), jnp.zeros((rows, A)), (jnp.full((rows, A), 0.2),), config)
    assert len(kinds) == 2
    inside = [jnp.abs(actions - 0.2).max(axis=-1) < 0.3 for actions, _ in kinds]  # of volume 0.6²
    for (_, log_density), is_inside in zip(kinds, inside, strict=True):
        np.testing.assert_allclose((is_inside * jnp.exp(-log_density)).mean(), 0.6**A, rtol=0.02)


def test_published_density_is_the_density_itself() -> None:
    centre = jnp.zeros((5, A))
    kinds = [
        formulas.cql_actions(jax.random.key(0), centre, (centre,), cql.Config(published_density=published))
        for published in (False, True)
    ]
    (actions, log_density), (same, published) = (kind[1] for kind in kinds)
    np.testing.assert_array_equal(actions, same)
    np.testing.assert_allclose(published, np.exp(log_density), rtol=1e-5)
    inside = np.abs(actions).max(axis=-1) < 1  # where the noise was not clipped away
    density = np.prod(np.exp(-0.5 * np.square(actions / 0.2)) / (0.2 * np.sqrt(2 * np.pi)), axis=-1)
    np.testing.assert_allclose(published[inside], density[inside], rtol=1e-3)
    np.testing.assert_array_equal(kinds[0][0][1], kinds[1][0][1])  # uniform samples are as they were


def test_what_critics_see() -> None:
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # (B, N, X)
    own = formulas.seen(x, 3)
    assert own.shape == (3, 2, 4)
    np.testing.assert_array_equal(own[1, 0], x[0, 1])
    joint = formulas.seen(x, 1)
    assert joint.shape == (1, 2, 12)
    np.testing.assert_array_equal(joint[0, 1], np.concatenate(x[1]))


def test_team_learns_the_mean_reward_until_all_have_ended() -> None:
    one = batch(0, 2, rewards=jnp.array([[1.0, 3.0], [0.0, 5.0]]), terminal=jnp.array([[True, False], [True, True]]))
    rewards, terminal = formulas.team(one, 1)
    np.testing.assert_allclose(rewards, [[2.0, 2.5]])
    np.testing.assert_array_equal(terminal, [[False, True]])
    rewards, terminal = formulas.team(one, N)
    np.testing.assert_allclose(rewards, [[1.0, 0.0], [3.0, 5.0]])
    np.testing.assert_array_equal(terminal, [[True, True], [False, True]])


@pytest.mark.parametrize("leading", [(), (7,)])
def test_own_action_takes_its_place_in_the_joint_one(leading: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    own, actions = rng.normal(size=(*leading, 5, 2)), rng.normal(size=(5, 3, 2))
    np.testing.assert_array_equal(formulas.with_own(own, actions, jnp.int32(1), False), own)
    joint = np.asarray(formulas.with_own(own, actions, jnp.int32(1), True))
    assert joint.shape == (*leading, 5, 6)
    np.testing.assert_allclose(joint[..., 2:4], own, rtol=1e-6)
    np.testing.assert_allclose(joint[..., :2], np.broadcast_to(actions[:, 0], own.shape), rtol=1e-6)
    np.testing.assert_allclose(joint[..., 4:], np.broadcast_to(actions[:, 2], own.shape), rtol=1e-6)


def test_saturation_counts_the_corners() -> None:
    np.testing.assert_allclose(formulas.saturation(jnp.array([[1.0, -0.995], [0.5, 0.98]])), 0.5)


def test_soft_update_moves_a_little() -> None:
    np.testing.assert_allclose(formulas.soft_update(jnp.array(1.0), jnp.array(3.0), jnp.float32(0.1)), 1.2)
