"""Sums up finished runs in rows, one for each method with one config on one dataset, and says which rows compare.

The headline of a run is its last policy, never its best one: choosing a policy by its returns would bias them upwards.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from omarl_jax.errors import UserError
from omarl_jax.report import published, statistics
from omarl_jax.report.load import FinishedRun

CVAR_LEVEL = 0.1
TAILS = (0.05, CVAR_LEVEL, 0.15, 0.25, 0.5)
MOST_SATURATED = 0.9
_QUALITIES = ("random", "early", "medium-replay", "middle", "medium", "mixed", "late", "expert")  # from bad to good
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Row:
    """The runs of one method with one config on one dataset. Those without a result are only counted.

    Attributes:
        task, dataset, algorithm, config_hash: what the runs have in common.
        differs: hyperparameters, options of the task, updates and size of the data in which this row differs from
            others of the same task, dataset and algorithm.
        runs: the runs that have a result.
        started: the number of runs, including runs without a result (see `FinishedRun.failure`).
        normalised: whether numbers are scores or, if some row of the dataset has no reference, raw returns.
        finals: (runs,) mean over episodes of the last policy of each run.
        best: the best mean over episodes that each run reached during training, averaged over runs.
        tails: level -> CVaR, the mean over this share of the worst episodes of each run's last policy, averaged over
            runs.
        interval: 95 % bootstrap interval of the IQM.
        paper: the published score, or None.
        as_published: whether hyperparameters, updates and size of the data equal the paper's.
        data_mean: mean of the data, or None where unknown.
        comparable: whether the data are the paper's, or made the same way.
        metrics: task metrics of the last policies, averaged over episodes and runs; `length` is in steps.
        data_metrics: task metrics of the data, where known.
        updates_to_data: after how many updates each run was first evaluated above the mean of the data, or infinity.
        violating: for each `risk…` metric of the task the share of episodes in which it was not zero.
        saturation: of the most saturated run, or None.
        logged: (L,) updates after which all runs logged a chunk of training.
        per_agent: name -> (L, N, runs) metrics with a number for each agent, where all runs have them.
        at_bound: share of updates and agents with α at a bound, over the whole training, or None if it was not logged.
        kl_over_budget: (N,) divergence over budget in the last chunk, averaged over runs, or None.
    """

    task: str
    dataset: str
    algorithm: str
    config_hash: str
    differs: dict[str, Any]
    runs: list[FinishedRun]
    started: int
    normalised: bool
    finals: np.ndarray
    best: float
    tails: dict[float, float]
    interval: statistics.Interval
    paper: published.Published | None
    as_published: bool
    data_mean: float | None
    comparable: bool
    metrics: dict[str, float]
    data_metrics: dict[str, float]
    updates_to_data: np.ndarray
    violating: dict[str, float]
    saturation: float | None
    logged: np.ndarray
    per_agent: dict[str, np.ndarray]
    at_bound: float | None
    kl_over_budget: np.ndarray | None

    @property
    def saturated(self) -> bool:
        """Whether a policy sits in the corners of its actions, where it cannot learn: then the row is no result."""
        return self.saturation is not None and self.saturation > MOST_SATURATED

    @property
    def method(self) -> str:
        """The algorithm, with the hyperparameters that tell it from others in the same cell."""
        if not self.differs:
            return self.algorithm
        return f"{self.algorithm} ({', '.join(f'{key}={_brief(value)}' for key, value in self.differs.items())})"

    @property
    def mean(self) -> float:
        """The mean of the last policies over runs; NaN without runs."""
        return float(self.finals.mean()) if self.runs else np.nan

    @property
    def sd(self) -> float:
        """The sample standard deviation over runs; NaN of fewer than two."""
        return float(self.finals.std(ddof=1)) if len(self.runs) > 1 else np.nan

    @property
    def iqm(self) -> float:
        """The interquartile mean over runs; NaN without runs."""
        return float(statistics.iqm({self.task: self.finals})) if self.runs else np.nan


def summarise(runs: Sequence[FinishedRun]) -> list[Row]:
    """Groups runs by task, dataset, algorithm and config, and sums each group up.

    Raises:
        UserError: two folders hold the same run.
    """
    # Runs that trained for another number of updates are another method, whatever their config says.
    groups = grouped(runs, lambda run: (run.task, run.dataset, run.algorithm, run.config_hash, run.updates))
    cells = grouped(groups.values(), lambda group: (group[0].task, group[0].dataset, group[0].algorithm))
    # Scores and returns in one cell could not be compared.
    unknown = {(run.task, run.dataset) for run in runs if run.reference is None}
    rows = []
    for cell in cells.values():
        normalised = (cell[0][0].task, cell[0][0].dataset) not in unknown
        options = _task_options([group[0] for group in cell])
        settings = [
            {"updates": group[0].updates, "size": group[0].data.get("size"), **options_of, **group[0].config}
            for group, options_of in zip(cell, options, strict=True)
        ]
        if any(one == other for one, other in itertools.combinations(settings, 2)):
            hashes = [{"hash": group[0].config_hash[:8]} for group in cell]  # nothing else tells them apart
            settings = [setting | name for setting, name in zip(settings, hashes, strict=True)]
        keys = list(dict.fromkeys(itertools.chain.from_iterable(settings)))
        differing = [key for key in keys if any(other.get(key) != settings[0].get(key) for other in settings)]
        rows += [
            _row(group, {key: setting.get(key) for key in differing}, normalised)
            for group, setting in zip(cell, settings, strict=True)
        ]
    return sorted(rows, key=order)


def _task_options(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """The options of the task in each run: every option that some run sets, with its default in the other runs."""
    given = dict.fromkeys(option for run in runs for option in run.options)
    return [{option: (run.task_defaults | run.options).get(option) for option in given} for run in runs]


def _row(group: Sequence[FinishedRun], differs: dict[str, Any], normalised: bool) -> Row:
    first = group[0]
    for same in grouped(group, lambda run: (run.seed, run.data_seed)).values():
        if len(same) > 1:
            raise UserError(f"The same run lies in '{same[0].folder}' and in '{same[1].folder}': leave one out.")
    runs = [run for run in group if run.failure is None]
    comparable = all(run.data.get("comparable", False) for run in group)

    def unit(run: FinishedRun, returns: np.ndarray) -> np.ndarray:
        return run.scores(returns) if normalised else returns

    finals = np.array([unit(run, run.final_returns).mean() for run in runs])
    best = [unit(run, run.returns).mean(axis=1).max() for run in runs if run.returns.size]
    tails = {xi: _mean([float(unit(run, statistics.cvar(run.final_returns, xi))) for run in runs]) for xi in TAILS}
    saturations = [run.saturation for run in runs if run.saturation is not None]
    logged, per_agent = _of_agents(runs)
    metrics = [name for name in first.final_metrics if runs and all(name in run.final_metrics for run in runs)]
    return Row(
        task=first.task,
        dataset=first.dataset,
        algorithm=first.algorithm,
        config_hash=first.config_hash[:8],
        differs=differs,
        runs=runs,
        started=len(group),
        normalised=normalised,
        finals=finals,
        best=_mean(best),
        tails=tails,
        interval=_iqm_interval(finals),
        paper=published.lookup(first.task, first.dataset, first.algorithm) if normalised else None,
        as_published=first.as_published and first.data.get("size") == first.default_size,
        data_mean=data_mean(group, "mean_score" if normalised else "mean_return"),
        comparable=comparable,
        metrics={name: _mean([run.final_metrics[name].mean() for run in runs]) for name in metrics},
        data_metrics=_data_metrics(group, [*first.final_metrics, "length"]),
        updates_to_data=np.array([_updates_to_data_mean(run) for run in runs]),
        violating={
            name: _mean([(run.final_metrics[name] != 0).mean() for run in runs])
            for name in metrics
            if name.startswith("risk")
        },
        saturation=max(saturations, default=None),
        logged=logged,
        per_agent=per_agent,
        at_bound=_mean([_share_at_bound(run) for run in runs]) if "at_bound" in per_agent else None,
        kl_over_budget=per_agent["kl_over_budget"][-1].mean(axis=1) if "kl_over_budget" in per_agent else None,
    )


def _of_agents(runs: Sequence[FinishedRun]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The fields `logged` and `per_agent` of a row; without metrics that are not finite."""
    if not runs:
        return np.zeros(0, int), {}
    updates = functools.reduce(np.intersect1d, [run.logged for run in runs])
    shared = [name for name in runs[0].per_agent if len(updates) and all(name in run.per_agent for run in runs)]
    found = {}
    for name in shared:
        values = [run.per_agent[name][np.isin(run.logged, updates)] for run in runs]
        if len({value.shape for value in values}) == 1 and np.isfinite(values).all():
            found[name] = np.stack(values, axis=-1)
    return updates, found


def _share_at_bound(run: FinishedRun) -> float:
    updates = np.diff(run.logged, prepend=0)  # of each chunk
    return float(np.average(run.per_agent["at_bound"].mean(axis=1), weights=updates))


def _updates_to_data_mean(run: FinishedRun) -> float:
    mean = run.data.get("mean_return")
    above = [] if mean is None else run.evaluations[run.returns.mean(axis=1) > mean]
    return float(min(above, default=np.inf))


def data_mean(runs: Sequence[FinishedRun], name: str) -> float | None:
    """The mean over different datasets; runs that share one do not make it count more."""
    known = [data[name] for data in _datasets(runs) if data.get(name) is not None]
    return _mean(known) if known else None


def _data_metrics(runs: Sequence[FinishedRun], names: Sequence[str]) -> dict[str, float]:
    known = [data.get("metrics") or {} for data in _datasets(runs)]
    return {name: _mean([metrics[name] for metrics in known]) for name in names if all(name in m for m in known)}


def _datasets(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """The metadata of these runs' data, each dataset once."""
    return list({run.data.get("hash"): run.data for run in runs}.values())


def _iqm_interval(finals: np.ndarray) -> statistics.Interval:
    if finals.size == 0:
        return statistics.Interval(np.array(np.nan), np.array(np.nan))
    return statistics.bootstrap_interval(statistics.iqm, {"": finals})


def violation_rate(metrics: Mapping[str, float], name: str = "risk") -> float:
    """The share of steps that an agent (`risk_0`), or an agent on average (`risk`), is at risk."""
    agents = 1 if name != "risk" else max(sum(re.fullmatch(r"risk_\d+", other) is not None for other in metrics), 1)
    return metrics[name] / metrics.get("length", 1.0) / agents


def order(row: Row) -> tuple[Any, ...]:
    """Tasks and methods by name, datasets by quality, grids by value."""
    quality = _QUALITIES.index(row.dataset) if row.dataset in _QUALITIES else len(_QUALITIES)
    grid = [(0, value, "") if isinstance(value, int | float) else (1, 0, str(value)) for value in row.differs.values()]
    return row.task, quality, row.dataset, row.algorithm, grid, row.config_hash


def grouped(items: Iterable[_T], key: Callable[[_T], Any]) -> dict[Any, list[_T]]:
    """Key -> items, both in the order in which they come."""
    groups: dict[Any, list[_T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(values)) if len(values) else np.nan


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def methods(rows: Iterable[Row]) -> list[str]:
    """All methods in one order, by which they are coloured."""
    return list(dict.fromkeys(row.method for row in sorted(rows, key=lambda row: (row.algorithm, order(row)))))


def finals(rows: Iterable[Row], method: str) -> dict[str, np.ndarray]:
    """Dataset, with options of the task and size of the data -> final scores of a method's runs."""
    return {_learned(row): row.finals for row in rows if row.method == method and row.runs}


def _learned(row: Row) -> str:
    run = row.runs[0]
    unit = "score" if row.normalised else "return"
    return json.dumps([row.task, row.dataset, run.options, run.data.get("size"), unit], sort_keys=True)


def in_words(learned: str) -> str:
    """A key of `finals` as a person says it."""
    task, dataset, options, *_ = json.loads(learned)
    given = ", ".join(f"{name}={_brief(value)}" for name, value in options.items())
    return f"{task} {dataset}" + (f" with {given}" if given else "")


def same_data(cell: Sequence[Row]) -> bool:
    """Whether all rows learned from the same data: these change with size and options of the task."""
    hashes = [{str(run.data.get("hash")) for run in row.runs} for row in cell]
    return all(some <= max(hashes, key=len) for some in hashes)  # runs that diverged are missing from some rows


def same_data_mean(cell: Sequence[Row]) -> float | None:
    """The mean of the data, if all rows learned from the same."""
    return cell[0].data_mean if same_data(cell) else None


def shared_scores(rows: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    """Normalised scores of all methods on the datasets that they share, or nothing to compare."""
    rows = [row for row in rows if row.normalised and row.runs]
    scores = {method: finals(rows, method) for method in methods(rows)}
    if len(scores) < 2:
        return {}
    shared = set.intersection(*(set(cells) for cells in scores.values()))
    if not shared:
        return {}
    return {method: {cell: cells[cell] for cell in sorted(shared)} for method, cells in scores.items()}
