"""The formulas that methods share, against closed forms."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import SPEC, A, N, batch

from omarl_jax import networks
from omarl_jax.algorithms import _losses, cql
from omarl_jax.networks import CriticInputs


def critic(joint: bool = False) -> networks.Critic:
    return networks.critic(SPEC, (4,), "none", view="all" if joint else "own", joint=joint)


def test_bootstraps_unless_terminal() -> None:
    next_value = jnp.array([10.0, 10.0])
    y = _losses.td_target(jnp.array([1.0, 2.0]), jnp.array([False, True]), next_value, jnp.float32(0.9))
    np.testing.assert_allclose(y, [10.0, 2.0])


def test_team_learns_the_mean_reward_until_all_have_ended() -> None:
    rewards = jnp.array([[1.0, 3.0], [0.0, 5.0], [2.0, 4.0]])
    terminal = jnp.array([[True, False], [True, True], [False, False]])
    one = batch(0, 3, rewards=rewards, terminal=terminal)
    team = _losses.critic_td_target(critic(joint=True), one, jnp.full((3, 1), 10.0), jnp.float32(0.5))
    np.testing.assert_allclose(team, [[2.0 + 5.0], [2.5], [3.0 + 5.0]])
    alone = _losses.critic_td_target(critic(), one, jnp.full((3, N), 10.0), jnp.float32(0.5))
    np.testing.assert_allclose(alone, [[1.0, 3.0 + 5.0], [0.0, 5.0], [2.0 + 5.0, 4.0 + 5.0]])


def test_squared_errors_are_means_over_the_batch_and_sums_over_heads() -> None:
    q = jnp.array([[[1.0, 5.0], [3.0, 5.0]], [[0.0, 6.0], [0.0, 6.0]]])  # (heads, B, G)
    np.testing.assert_allclose(_losses.td_loss(q, jnp.array([[0.0, 5.0], [0.0, 5.0]])), [5.0, 1.0])


def test_noise_is_clipped() -> None:
    noise = np.asarray(_losses.clipped_noise(jax.random.key(0), (10_000,), jnp.float32(0.5), jnp.float32(0.5)))
    assert np.abs(noise).max() == 0.5
    np.testing.assert_allclose((np.abs(noise) < 0.5).mean(), 0.683, atol=0.02)  # within one deviation


def test_softmax_weights_are_relative_and_sum_to_the_batch() -> None:
    """Agent by agent: the softmax is over the batch alone."""
    values = 30 * jax.random.normal(jax.random.key(0), (50, N))
    weights = _losses.softmax_weights(values, jnp.float32(10))
    np.testing.assert_allclose(weights.sum(axis=0), [50] * N, rtol=1e-5)
    np.testing.assert_allclose(weights[3] / weights[4], np.exp((values[3] - values[4]) / 10), rtol=1e-4)
    np.testing.assert_allclose(_losses.softmax_weights(values + 1e3, jnp.float32(10)), weights, rtol=1e-3)
    np.testing.assert_allclose(_losses.softmax_weights(values, jnp.float32(1e9)), 1, rtol=1e-5)


@pytest.mark.parametrize("of_targets", [False, True])
def test_quantile_loss_in_loops(of_targets: bool) -> None:
    rng = np.random.default_rng(0)
    quantiles, kappa, fractions = rng.normal(size=(4, 3)), 0.6, np.array([0.2, 0.5, 0.7])
    targets = rng.normal(size=(4, 3 if of_targets else 5))
    expected = np.zeros(4)
    for b in range(4):
        for j in range(3):
            for i, target in enumerate(targets[b]):
                delta = target - quantiles[b, j]
                huber = 0.5 * delta**2 if abs(delta) <= kappa else kappa * (abs(delta) - 0.5 * kappa)
                fraction = fractions[i if of_targets else j]
                expected[b] += abs(fraction - (delta < 0)) * huber / kappa / len(targets[b])
    found = _losses.quantile_huber(*map(jnp.float32, (quantiles, targets, fractions)), kappa, of_targets)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def samples(config: cql.Config, rows: int, around: tuple[Any, ...] = (), joint: bool = False) -> list[_losses.Samples]:
    around = tuple(jnp.full((rows, N, A), centre) for centre in around)
    return _losses.conservative_samples(jax.random.key(0), critic(joint), batch(0, rows), around, config, SPEC)


@pytest.mark.parametrize("joint", [False, True])
def test_penalty_of_uniform_samples_is_an_integral(joint: bool) -> None:
    """Of Q(a) = w·a, log ∫ exp Q da = Σ log(2 sinh(w) / w); the sum over K samples adds log K."""
    count, rows = 20_000, 20
    w = np.array([1.5, -0.7, 0.4, 0.9]) if joint else np.array([1.5, -0.7])
    kinds = samples(cql.Config(cql_samples=count), rows, joint=joint)
    groups = 1 if joint else N
    assert [kind.actions.shape for kind in kinds] == [(count, rows, groups, len(w))]
    assert [kind.log_density.shape for kind in kinds] == [(count, rows, groups)]
    linear: Any = SimpleNamespace(apply=lambda params, inputs: (inputs.actions @ w)[None])
    data = CriticInputs(jnp.zeros((rows, groups, 1)), jnp.full((rows, groups, len(w)), 0.25))
    target = jnp.full((rows, groups), 0.25 * w.sum())  # nothing is left to learn but the penalty
    loss, metrics = _losses.cql_critic_loss(linear, None, data, target, kinds, jnp.float32(3.0))
    expected = np.log(2 * np.sinh(w) / w).sum() + np.log(count) - 0.25 * w.sum()
    np.testing.assert_allclose(metrics["cql_penalty"], [expected] * groups, atol=0.02)
    np.testing.assert_allclose(loss, 3.0 * metrics["cql_penalty"].sum(), rtol=1e-5)


def test_samples_around_the_policy_weigh_by_their_density() -> None:
    """With exact importance weights, samples around any action estimate the same integral as uniform ones."""
    kinds = samples(cql.Config(cql_samples=20_000, sample_noise=0.15), 50, around=(0.2,))
    assert len(kinds) == 2
    for actions, log_density in kinds:
        inside = jnp.abs(actions - 0.2).max(axis=-1) < 0.3  # of volume 0.6²
        np.testing.assert_allclose((inside * jnp.exp(-log_density)).mean(), 0.6**A, rtol=0.02)


def test_published_density_is_the_density_itself() -> None:
    kinds = [samples(cql.Config(published_density=published), 5, around=(0.0,)) for published in (False, True)]
    (actions, log_density), (same, published) = (kind[1] for kind in kinds)
    np.testing.assert_array_equal(actions, same)
    np.testing.assert_allclose(published, np.exp(log_density), rtol=1e-5)
    inside = np.abs(actions).max(axis=-1) < 1  # where the noise was not clipped away
    density = np.prod(np.exp(-0.5 * np.square(actions / 0.2)) / (0.2 * np.sqrt(2 * np.pi)), axis=-1)
    np.testing.assert_allclose(published[inside], density[inside], rtol=1e-3)
    np.testing.assert_array_equal(kinds[0][0].log_density, kinds[1][0].log_density)  # uniform samples are as they were


def test_saturation_counts_the_corners() -> None:
    found = _losses.saturation(jnp.array([[[1.0, -0.995], [0.5, 0.98], [-1.0, 0.0]]]), SPEC)
    np.testing.assert_allclose(found, [[1.0, 0.0, 0.5]])
