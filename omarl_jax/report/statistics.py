"""Statistics of few runs: aggregates, intervals and comparisons (Agarwal et al., 2021, arXiv:2108.13264).

Scores are a mapping from task to an array of one score per run, so tasks may have different numbers of runs. Every
statistic reduces the last axis and keeps the axes before it: that is how the bootstrap computes all its resamples in
one call, and how a curve of E evaluations, (E, runs), gets E intervals.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Scores = Mapping[str, np.ndarray]


class Interval(NamedTuple):
    """A percentile interval; both ends have the shape of the statistic."""

    low: np.ndarray
    high: np.ndarray


def mean(scores: Scores) -> np.ndarray:
    """The mean over tasks of the mean over runs.

    Args:
        scores: task -> (..., runs).

    Returns:
        (...).
    """
    return np.mean([values.mean(axis=-1) for values in _checked(scores)], axis=0)


def iqm(scores: Scores) -> np.ndarray:
    """The interquartile mean: the mean over all runs of all tasks without the lowest and the highest quarter.

    Of n runs, floor(n / 4) are left out at either end, so with fewer than four it is the plain mean.

    Args:
        scores: task -> (..., runs).

    Returns:
        (...).
    """
    pooled = np.sort(np.concatenate(_checked(scores), axis=-1), axis=-1)
    runs = pooled.shape[-1]
    return pooled[..., runs // 4 : runs - runs // 4].mean(axis=-1)


def histogram_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Edges of equally wide bins, (bins + 1,); values that are all but equal get bins around them."""
    values = np.asarray(values, np.float64)
    low, high = values.min(), values.max()
    margin = 1e-6 * max(abs(low), abs(high), 1e-300)
    if high - low < margin:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """The share of all runs of all tasks that score above each threshold.

    Args:
        scores: task -> (..., runs).
        thresholds: (thresholds,).

    Returns:
        (..., thresholds), between 0 and 1.
    """
    pooled = np.concatenate(_checked(scores), axis=-1)
    return np.stack([(pooled > threshold).mean(axis=-1) for threshold in thresholds], axis=-1)


def probability_of_improvement(ours: Scores, theirs: Scores) -> np.ndarray:
    """How likely a run of ours beats a run of theirs on the same task, averaged over tasks; a tie counts one half.

    Within a task this is the Mann-Whitney U statistic over the number of pairs.

    Args:
        ours: task -> (..., runs).
        theirs: the same tasks -> (..., runs), not necessarily as many runs.

    Returns:
        (...), between 0 and 1.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"Both methods need the same tasks, not {sorted(ours)} and {sorted(theirs)}.")
    pairs = zip(_checked(ours), _checked({task: theirs[task] for task in ours}), strict=True)
    balance = [np.sign(x[..., :, None] - y[..., None, :]).mean(axis=(-2, -1)) for x, y in pairs]  # won - lost
    return 0.5 + 0.5 * np.mean(balance, axis=0)


def bootstrap_interval(
    statistic: Callable[..., np.ndarray], *scores: Scores, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """A stratified percentile bootstrap: runs are drawn again, with replacement, within each task.

    Args:
        statistic: any of the functions above, called with as many arguments as there are `scores`; it has to keep
            leading axes.
        scores: task -> (..., runs), one mapping per method, each resampled independently.
        level: share of the resamples inside the interval.
        resamples: how many times all runs are drawn.
        seed: of the draws; equal seeds give equal intervals.

    Returns:
        the interval; NaN if no task has a second run, since one run does not tell how far runs lie apart.
    """
    if all(values.shape[-1] == 1 for method in scores for values in method.values()):
        nothing = np.full_like(statistic(*scores), np.nan)
        return Interval(nothing, nothing)
    rng = np.random.default_rng(seed)

    def draw(values: np.ndarray) -> np.ndarray:
        runs = values.shape[-1]
        drawn = values[..., rng.integers(runs, size=(resamples, runs))]
        return np.moveaxis(drawn, -2, 0)  # (..., resamples, runs) -> (resamples, ..., runs)

    resampled = [{task: draw(values) for task, values in method.items()} for method in scores]
    low, high = np.quantile(statistic(*resampled), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(low, high)


def cvar(returns: np.ndarray, xi: float) -> np.ndarray:
    """Conditional value at risk: the mean of the lowest share `xi` of the returns.

    If xi n is not an integer, the last return counts with the remaining fraction. xi = 1 gives the mean.

    Args:
        returns: (..., n) in any units.
        xi: risk level in (0, 1].

    Returns:
        (...) in the same units.
    """
    if not 0 < xi <= 1:
        raise ValueError(f"The risk level must lie in (0, 1], not at {xi}.")
    count = xi * returns.shape[-1]
    weights = np.clip(count - np.arange(returns.shape[-1]), 0, 1)  # (n,): ones, a fraction, zeros
    return (np.sort(returns, axis=-1) * weights).sum(axis=-1) / count


def _checked(scores: Scores) -> list[np.ndarray]:
    """The arrays of all tasks. Sorting and comparing would swallow a NaN without a trace, so there must be none."""
    arrays = list(scores.values())
    if not arrays or any(values.shape[-1] == 0 for values in arrays):
        raise ValueError("A statistic needs at least one task, and at least one run of every task.")
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueError("Scores must be finite: leave diverged runs out, and report them.")
    return arrays
