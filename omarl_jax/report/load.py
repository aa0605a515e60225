"""What finished runs say: their folders read, and summed up in rows, one for each method on a dataset.

The headline of a run is its last policy, never its best one: to pick that by its returns is to look at the answer.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from omarl_envs import registry
from omarl_envs.registry import UnknownTask
from omarl_envs.spec import ScoreReference

from omarl_jax import algorithms, presets, published, statistics
from omarl_jax.data.recipes import default_size
from omarl_jax.errors import UserError
from omarl_jax.files import read_arrays, read_run_config, require_trusted_task

CVAR_LEVEL = 0.1
TAILS = (0.05, CVAR_LEVEL, 0.15, 0.25, 0.5)
MOST_SATURATED = 0.9
_QUALITIES = ("random", "early", "medium-replay", "middle", "medium", "mixed", "late", "expert")  # from bad to good
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """One finished run, as its folder tells it.

    Attributes:
        folder: where it lies.
        algorithm: the method or variant.
        base: the method that it is a variant of, or itself.
        task, dataset, seed, data_seed, updates, options, config, config_hash, data: as in `config.json`.
        reference: returns to normalise with, or None.
        evaluations: (E,) updates after which the policy was evaluated.
        returns: (E, episodes) raw returns.
        final_returns: (episodes,) raw returns of the last policy.
        final_metrics: name -> (episodes,) task metrics of the last policy.
        record: `run.json`: status, versions, device, updates per second …
        saturation: share of actions at their bounds in the last chunk of training, or None where it was not logged.
        failure: why the run counts for nothing, or None.
    """

    folder: Path
    algorithm: str
    base: str
    task: str
    dataset: str
    seed: int
    data_seed: int
    updates: int
    options: dict[str, Any]
    config: dict[str, Any]
    config_hash: str
    data: dict[str, Any]
    reference: ScoreReference | None
    evaluations: np.ndarray
    returns: np.ndarray
    final_returns: np.ndarray
    final_metrics: dict[str, np.ndarray]
    record: dict[str, Any]
    saturation: float | None
    failure: str | None

    def scores(self, returns: np.ndarray) -> np.ndarray:
        """Normalised scores of raw returns, or the returns themselves where no reference is known."""
        return returns if self.reference is None else self.reference.normalise(returns)


@dataclasses.dataclass(frozen=True)
class Row:
    """The runs of one method with one config on one dataset. Those without a result are only counted.

    Attributes:
        task, dataset, algorithm, config_hash: what the runs have in common.
        differs: hyperparameters, options of the task, updates and size of the data in which this row differs from
            others of the same task, dataset and algorithm.
        runs: the runs that have a result.
        started: the number of runs, with those that have none (see `FinishedRun.failure`).
        normalised: whether numbers are scores or, if some row of the dataset has no reference, raw returns.
        finals: (runs,) mean over episodes of the last policy of each run.
        best: the best mean over episodes that each run reached during training, averaged over runs.
        tails: level -> CVaR: the mean of that share of the episodes of the last policy of each run that are the lowest,
            averaged over runs.
        interval: 95 % bootstrap interval of the IQM.
        paper: what was published, or None.
        as_published: whether hyperparameters, updates and size of the data are those of the paper's number.
        data_mean: mean of the data, or None where unknown.
        comparable: whether the data are those of the paper, or made the same way.
        metrics: task metrics of the last policies, averaged over episodes and runs; `length` is that of the episodes.
        data_metrics: the same of the data, as far as it is known.
        convergence: after how many updates each run was first evaluated above the mean of the data, or infinity.
        exposed: share of the episodes in which a `risk…` metric of the task was not zero.
        saturation: that of the most saturated run, or None.
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
    convergence: np.ndarray
    exposed: dict[str, float]
    saturation: float | None

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


def load_runs(folder: Path) -> list[FinishedRun]:
    """Reads all finished runs in a folder and below; those that are not finished are left out with a warning."""
    if missing := unfinished(folder):
        names = ", ".join(str(run.relative_to(folder)) for run in missing)
        logging.getLogger(__name__).warning("Left out %d unfinished runs: %s", len(missing), names)
    return [load_run(path) for path in _run_folders(folder) if (path / "DONE").exists()]


def unfinished(folder: Path) -> list[Path]:
    """The folders of the runs in a folder and below that are still going on, or were stopped."""
    return [path for path in _run_folders(folder) if not (path / "DONE").exists()]


def table(runs: Sequence[FinishedRun]) -> list[Row]:
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
        forms = _forms([group[0] for group in cell])
        settings = [
            {"updates": group[0].updates, "size": group[0].data.get("size"), **form, **group[0].config}
            for group, form in zip(cell, forms, strict=True)
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


def _forms(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """The options of the task in each run, those that only other runs give among them, with their defaults."""
    given = dict.fromkeys(option for run in runs for option in run.options)
    usual: dict[str, Any] = {}
    if given:
        with contextlib.suppress(UnknownTask, UserError):  # one of the user's own, which is not there today
            require_trusted_task(runs[0].task, allow_import=False)
            usual = registry.defaults(runs[0].task)
    return [{option: run.options.get(option, usual.get(option)) for option in given} for run in runs]


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}'.")
    return sorted(config.parent for config in folder.rglob("config.json"))


def load_run(folder: Path) -> FinishedRun:
    """Reads one finished run.

    Raises:
        UserError: if the folder is damaged.
    """
    config = read_run_config(folder)
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        arrays = read_arrays(folder / "evaluations.npz")
        return FinishedRun(
            folder=folder,
            algorithm=config["algorithm"],
            base=config["base"],
            **{name: config[name] for name in ("task", "dataset", "seed", "data_seed", "updates")},
            **{name: config[name] for name in ("options", "config", "config_hash", "data")},
            reference=None if config["reference"] is None else ScoreReference(**config["reference"]),
            evaluations=arrays["updates"],
            returns=arrays["returns"] if arrays["returns"].size else np.zeros((0, 1)),
            final_returns=arrays["final_returns"],
            final_metrics={
                name.removeprefix("final_"): values
                for name, values in arrays.items()
                if name.startswith("final_") and name != "final_returns"
            },
            record=record,
            saturation=_last_metrics(folder / "metrics.jsonl").get("saturation"),
            failure=_failure(record, arrays),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The run in '{folder}' cannot be read ({type(error).__name__}: {error}).") from error


def _last_metrics(path: Path) -> dict[str, Any]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}


def _failure(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str | None:
    if record["status"] == "diverged":
        return f"diverged at update {record['diverged_at']}: {record.get('reason') or 'no reason given'}"
    if arrays["final_returns"].size == 0:
        return "the last policy was not evaluated"
    if not all(np.isfinite(arrays[name]).all() for name in ("returns", "final_returns")):
        return "returns are not finite"
    return None


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
        as_published=_as_published(first),
        data_mean=data_mean(group, "mean_score" if normalised else "mean_return"),
        comparable=comparable,
        metrics={name: _mean([run.final_metrics[name].mean() for run in runs]) for name in metrics},
        data_metrics=_data_metrics(group, [*first.final_metrics, "length"]),
        convergence=np.array([_updates_to_data(run) for run in runs]),
        exposed={
            name: _mean([(run.final_metrics[name] != 0).mean() for run in runs])
            for name in metrics
            if name.startswith("risk")
        },
        saturation=max(saturations, default=None),
    )


def _updates_to_data(run: FinishedRun) -> float:
    mean = run.data.get("mean_return")
    above = [] if mean is None else run.evaluations[run.returns.mean(axis=1) > mean]
    return float(min(above, default=np.inf))


def _as_published(run: FinishedRun) -> bool:
    if published.lookup(run.task, run.dataset, run.algorithm) is None:
        return False
    preset = presets.preset(run.algorithm, run.task, run.dataset)
    config = dataclasses.asdict(algorithms.find(run.algorithm).defaults) | preset.overrides
    same = json.loads(json.dumps(config)) == run.config and preset.updates == run.updates
    return same and run.data.get("size") == default_size(run.task, run.dataset)


def data_mean(runs: Sequence[FinishedRun], name: str) -> float | None:
    """The mean over different datasets; runs that share one do not make it count more."""
    known = [data[name] for data in _datasets(runs) if data.get(name) is not None]
    return _mean(known) if known else None


def _data_metrics(runs: Sequence[FinishedRun], names: Sequence[str]) -> dict[str, float]:
    known = [data.get("metrics") or {} for data in _datasets(runs)]
    return {name: _mean([metrics[name] for metrics in known]) for name in names if all(name in m for m in known)}


def _datasets(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """What is known of the data of these runs, each dataset once."""
    return list({run.data.get("hash"): run.data for run in runs}.values())


def _iqm_interval(finals: np.ndarray) -> statistics.Interval:
    if finals.size == 0:
        return statistics.Interval(np.array(np.nan), np.array(np.nan))
    return statistics.bootstrap_interval(statistics.iqm, {"": finals})


def exposure(metrics: Mapping[str, float], name: str = "risk") -> float:
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
