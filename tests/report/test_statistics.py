"""Statistics against closed forms and sums done by hand."""

import functools
import statistics as stdlib

import numpy as np
import pytest

from omarl_jax.report.statistics import (
    bootstrap_interval,
    cvar,
    iqm,
    mean,
    performance_profile,
    probability_of_improvement,
)


def scores(**tasks: list[float]) -> dict[str, np.ndarray]:
    return {task: np.array(values, dtype=float) for task, values in tasks.items()}


def test_mean_weighs_tasks_equally_however_many_runs_they_have() -> None:
    assert mean(scores(a=[0, 2], b=[10, 10, 10, 14])) == pytest.approx((1 + 11) / 2)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ({"a": [1000, 1, 2, 3, 4, 5, 6, 7, 8, -500]}, 4.5),  # ten runs: two left out at either end
        ({"a": [100, 0, 1, 2, 3]}, 2.0),  # five runs: one left out at either end
        ({"a": [0, 3, 9]}, 4.0),  # three: none
        ({"a": [0, 0, 0, 0], "b": [1, 2, 3, 4]}, 0.75),  # pooled; trimmed task by task it would be 1.25
    ],
)
def test_iqm_by_hand(tasks: dict[str, list[float]], expected: float) -> None:
    assert iqm(scores(**tasks)) == pytest.approx(expected)


def test_profile_counts_what_is_strictly_above() -> None:
    profile = performance_profile(scores(a=[1, 2], b=[2, 5]), np.array([0.0, 1.5, 2.0, 5.0]))
    np.testing.assert_allclose(profile, [1, 0.75, 0.25, 0])


def test_probability_of_improvement_by_hand() -> None:
    ours = scores(a=[1, 2, 3], b=[5])
    theirs = scores(b=[1, 9, 4], a=[2, 2])  # a: two wins and two ties of six pairs; b: two wins of three
    assert probability_of_improvement(ours, theirs) == pytest.approx((0.5 + 2 / 3) / 2)
    assert probability_of_improvement(theirs, ours) == pytest.approx(1 - (0.5 + 2 / 3) / 2)


def test_statistics_keep_leading_axes() -> None:
    values = {"a": np.arange(12.0).reshape(2, 6) ** 2, "b": np.arange(6.0).reshape(2, 3)}
    for statistic in (mean, iqm, functools.partial(performance_profile, thresholds=np.array([1.0, 3.0]))):
        one_by_one = [statistic({task: part[i] for task, part in values.items()}) for i in range(2)]
        np.testing.assert_allclose(statistic(values), one_by_one)


def test_interval_of_two_runs_is_exact() -> None:
    """The mean of a resample of {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
    coin = scores(a=[0, 1])
    assert bootstrap_interval(mean, coin, level=0.6) == (0, 1)  # quantiles at 0.2 and 0.8
    assert bootstrap_interval(mean, coin, level=0.4) == (0.5, 0.5)  # quantiles at 0.3 and 0.7


def test_interval_of_the_mean_of_many_runs_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(mean, {"a": values})
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_runs_are_drawn_within_their_task() -> None:
    assert bootstrap_interval(mean, scores(a=[0, 0, 0, 0], b=[100, 100, 100])) == (50, 50)


def test_two_methods_are_drawn_independently() -> None:
    """x all 0 and y all 1 has probability 1/16; drawn together, x and y would tie on average in every resample."""
    low, high = bootstrap_interval(probability_of_improvement, scores(a=[0, 1]), scores(a=[0, 1]), level=0.9)
    assert (low, high) == (0, 1)


def test_each_point_of_a_curve_gets_its_interval() -> None:
    curve = np.array([[5.0, 5.0, 5.0], [0.0, 10.0, 20.0]])  # (E, runs)
    low, high = bootstrap_interval(mean, {"a": curve}, level=0.999)
    np.testing.assert_allclose(low, [5, 0])  # all three draws equal: 1/27 on either side
    np.testing.assert_allclose(high, [5, 20])


def test_interval_depends_on_the_seed_alone() -> None:
    values = {"a": np.random.default_rng(0).normal(size=10)}
    first = bootstrap_interval(iqm, values, resamples=100, seed=3)
    assert first == bootstrap_interval(iqm, values, resamples=100, seed=3)
    assert first != bootstrap_interval(iqm, values, resamples=100, seed=4)


def test_one_run_has_no_interval() -> None:
    assert np.isnan(bootstrap_interval(mean, scores(a=[4], b=[7]))).all()


@pytest.mark.parametrize("statistic", [mean, iqm, lambda s: probability_of_improvement(s, s)])
@pytest.mark.parametrize("tasks", [{}, {"a": []}, {"a": [1, np.nan]}, {"a": [1], "b": [-np.inf]}])
def test_scores_that_would_be_swallowed_are_refused(statistic, tasks) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"needs at least one|must be finite"):
        statistic(scores(**tasks))


def test_methods_on_different_tasks_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(scores(a=[1]), scores(b=[1]))


@pytest.mark.parametrize(
    ("xi", "expected"),
    [(0.25, (1 + 2 + 0.5 * 3) / 2.5), (0.2, 1.5), (0.05, 1.0), (1.0, 5.5)],
)
def test_cvar_counts_fractions_of_a_return(xi: float, expected: float) -> None:
    returns = np.array([7.0, 3, 10, 1, 5, 8, 2, 9, 4, 6])
    assert cvar(returns, xi) == pytest.approx(expected)
    np.testing.assert_allclose(cvar(np.stack([returns, returns + 100]), xi), [expected, expected + 100])


def test_cvar_of_a_normal_sample() -> None:
    """The closed form is -density(quantile) / xi."""
    normal = stdlib.NormalDist()
    sample = np.array([normal.inv_cdf((i + 0.5) / 5000) for i in range(5000)])
    assert cvar(sample, 0.1) == pytest.approx(-normal.pdf(normal.inv_cdf(0.1)) / 0.1, abs=2e-3)


@pytest.mark.parametrize("xi", [0.0, -0.1, 1.5])
def test_cvar_refuses_impossible_levels(xi: float) -> None:
    with pytest.raises(ValueError, match="risk level"):
        cvar(np.ones(3), xi)
