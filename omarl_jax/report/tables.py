"""The tables of a report, cell by cell, and the notes below them."""

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omarl_jax.report import statistics
from omarl_jax.report.load import FinishedRun
from omarl_jax.report.summarise import (
    CVAR_LEVEL,
    MOST_SATURATED,
    Row,
    finals,
    grouped,
    methods,
    same_data,
    violation_rate,
)

_BASELINES = ("bc", "cql", "ciql", "ccql")

_DAGGER = "† trained on data of our own that differ from the paper's: not comparable with the paper."
_OTHERWISE = "¶ other hyperparameters, updates or amount of data than the paper's number stands for."
_SATURATED = (
    f"§ no result: more than {100 * MOST_SATURATED:g} % of a policy's actions are at their bounds (saturation)."
)
_RAW = "‡ raw returns, since no reference returns are known to normalise with."
_ALLOCATION = ("α at a bound", "KL/d")  # columns of methods that give each agent a budget
_BUDGETS = (
    "α at a bound: share of all updates and agents. "
    "KL/d: divergence over budget at the end of training, mean over seeds, of the lowest agent and of the highest."
)
_NOTHING = "\u2013"  # an en dash, where there is no number


def cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The cells of rows as they are printed, everywhere but in the CSV file; all have the same columns."""
    lines = [_cells(row) for row in rows]
    empty = {name for name in _ALLOCATION if all(line[name] == _NOTHING for line in lines)}
    return [{name: cell for name, cell in line.items() if name not in empty} for line in lines]


def _cells(row: Row) -> dict[str, str]:
    paper = _NOTHING if row.paper is None else _plus_minus(row.paper.mean, row.paper.sd)
    seeds = f"{len(row.runs)}" if len(row.runs) == row.started else f"{len(row.runs)} of {row.started}"
    return {
        "dataset": row.dataset,
        "method": row.method,
        "last checkpoint": _plus_minus(row.mean, row.sd) + " ‡" * (not row.normalised) + " §" * row.saturated,
        "IQM [95 %]": f"{_number(row.iqm)} [{_number(row.interval.low)}, {_number(row.interval.high)}]",
        "paper": paper + _marks(row),
        "data": _number(row.data_mean),
        "best during training": _number(row.best),
        f"CVaR {CVAR_LEVEL:g}": _number(row.tails[CVAR_LEVEL]),
        **dict(zip(_ALLOCATION, (_percent(row.at_bound), _range(row.kl_over_budget)), strict=True)),
        "seeds": seeds,
        "config": row.config_hash,
    }


def _marks(row: Row) -> str:
    """The marks that qualify the paper's number, where there is one."""
    return "" if row.paper is None else " †" * (not row.comparable) + " ¶" * (not row.as_published)


def footnotes(rows: Sequence[Row]) -> list[str]:
    """Explanations of the marks that occur in `cells`."""
    notes = [
        "Mean ± standard deviation over seeds; scores are 100 (return - random) / (expert - random). "
        "IQM: interquartile mean over seeds, with its bootstrap interval. "
        "Best during training was picked by its own returns: it is no result. "
        f"CVaR {CVAR_LEVEL:g}: mean of the lowest {100 * CVAR_LEVEL:g} % of the last policy's episodes."
    ]
    marks = "".join(map(_marks, rows))
    if "†" in marks:
        notes.append(_DAGGER)
    if "¶" in marks:
        notes.append(_OTHERWISE)
    if any(not row.normalised for row in rows):
        notes.append(_RAW)
    if any(row.saturated for row in rows):
        notes.append(_SATURATED)
    if any(row.at_bound is not None or row.kl_over_budget is not None for row in rows):
        notes.append(_BUDGETS)
    if any(len(row.runs) < row.started for row in rows):
        notes.append("n of m seeds: the others diverged, or were not evaluated, and are in none of the numbers.")
    return notes


def markdown(runs: Sequence[FinishedRun], rows: Sequence[Row], unfinished: int) -> str:
    """The tables of each task as Markdown, with their notes.

    Args:
        runs: finished runs.
        rows: of `summarise`, in the order of the tables.
        unfinished: how many runs have not finished, or cannot be read.
    """
    parts = []
    for task, of_task in grouped(rows, lambda row: row.task).items():
        parts += [f"## {_one_line(task)}", _markdown(cells(of_task))]
        for title, lines in details(of_task).items():
            parts += [f"{title}:", _markdown(lines)]
    missing = [f"Not finished or damaged, and in none of the numbers: {unfinished} of the runs."] if unfinished else []
    return "\n\n".join([*parts, *footnotes(rows), *missing, *sources(runs, rows)]) + "\n"


def _markdown(lines: Sequence[Mapping[str, str]]) -> str:
    return markdown_table(list(lines[0]), [list(line.values()) for line in lines])


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; `|` and line breaks in cells are escaped."""
    written = [header, *lines]
    texts = [f"| {' | '.join(_one_line(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in written]
    return "\n".join([texts[0], f"|{' --- |' * len(header)}", *texts[1:]])


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def rows_as_csv(rows: Sequence[Row]) -> str:
    """All numbers of all rows, unrounded."""
    records = [
        {
            "task": row.task,
            "dataset": row.dataset,
            "algorithm": row.algorithm,
            "hyperparameters": json.dumps(row.differs) if row.differs else "",
            "config_hash": row.config_hash,
            "unit": "score" if row.normalised else "return",
            "mean": row.mean,
            "sd": row.sd,
            "iqm": row.iqm,
            "iqm_low": float(row.interval.low),
            "iqm_high": float(row.interval.high),
            "paper_mean": row.paper.mean if row.paper else None,
            "paper_sd": row.paper.sd if row.paper else None,
            "paper_source": row.paper.source if row.paper else None,
            "comparable_with_paper": row.comparable,
            "as_published": row.as_published,
            "data_mean": row.data_mean,
            "best_during_training": row.best,
            **{f"cvar_{xi:g}": value for xi, value in row.tails.items()},
            "saturation": row.saturation,
            "at_bound": row.at_bound,
            "kl_over_budget_lowest": None if row.kl_over_budget is None else row.kl_over_budget.min(),
            "kl_over_budget_highest": None if row.kl_over_budget is None else row.kl_over_budget.max(),
            "updates_to_data_mean": float(np.mean(row.updates_to_data))
            if row.runs and np.isfinite(row.updates_to_data).all()
            else None,
            "seeds": len(row.runs),
            "seeds_started": row.started,
            **{f"final_{name}": value for name, value in row.metrics.items()},
            **{f"episodes_with_{name}": value for name, value in row.violating.items()},
        }
        for row in rows
    ]
    return _csv(records)


def runs_as_csv(runs: Sequence[FinishedRun], rows: Sequence[Row]) -> str:
    """One line for each run, in the order of the rows, and then those without a result."""
    records = [
        {
            **_origin(run),
            "hyperparameters": json.dumps(row.differs) if row.differs else "",
            "unit": "score" if row.normalised else "return",
            "mean": final,
            "return": run.final_returns.mean(),
            "updates_to_data_mean": updates if np.isfinite(updates) else None,
            "saturation": run.saturation,
        }
        for row in rows
        for run, final, updates in zip(row.runs, row.finals, row.updates_to_data, strict=True)
    ]
    return _csv([*records, *(_origin(run) | {"failure": run.failure} for run in runs if run.failure is not None)])


def agents_as_csv(rows: Sequence[Row]) -> str:
    """One line for each agent of each run, with its metrics in the last chunk; empty if no run has any of agents."""
    records = [
        {
            **_origin(run),
            "hyperparameters": json.dumps(row.differs) if row.differs else "",
            "agent": agent,
            **{f"final_{name}": value for name, value in zip(run.per_agent, values, strict=True)},
        }
        for row in rows
        for run in row.runs
        for agent, values in enumerate(zip(*(values[-1] for values in run.per_agent.values()), strict=True))
    ]
    return _csv(records) if records else ""


def curves_as_csv(runs: Sequence[FinishedRun]) -> str:
    """One line for each evaluation during training of each run."""
    names = ("task", "dataset", "algorithm", "config_hash", "seed", "data_seed")
    records = []
    for run in runs:
        returns = run.returns.mean(axis=1)
        scores = run.scores(returns) if run.reference else [None] * len(returns)
        for updates, value, score in zip(run.evaluations, returns, scores, strict=True):
            numbers = {"updates": int(updates), "return": value, "score": score}
            records.append({name: getattr(run, name) for name in names} | numbers)
    return _csv(records)


def _origin(run: FinishedRun) -> dict[str, Any]:
    """Names a run, and the date, device and code that its numbers may depend on."""
    names = ("task", "dataset", "algorithm", "config_hash", "seed", "data_seed", "updates")
    record = {name: getattr(run.record, name) for name in ("date", "device", "code")}
    return {name: getattr(run, name) for name in names} | {"data_hash": run.data.get("hash")} | record


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(dict.fromkeys(itertools.chain.from_iterable(records))))
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in record.items()} for record in records)
    return file.getvalue()


def _plain(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def details(rows: Sequence[Row]) -> dict[str, list[dict[str, str]]]:
    """Title -> lines of the further tables of one task."""
    found = {}
    if any(row.metrics.keys() - {"length"} for row in rows):
        found["Task metrics of the last policies, means over steps, episodes and seeds"] = _metrics(rows)
    if any(np.isfinite(row.updates_to_data).any() for row in rows):
        found["How soon: updates until an evaluation is above the mean of the data"] = _updates_to_data(rows)
    return found | {"Lower tails: CVaR of the last policies at several levels": _tails(rows)}


def _metrics(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Quantities per step, shares of steps at risk, shares of episodes with any risk; the data in the first line."""

    def quantities(metrics: Mapping[str, float]) -> dict[str, str]:
        unit = "a step" if "length" in metrics else "an episode"
        texts = {}
        for name, value in metrics.items():
            if name.startswith("risk"):
                texts[f"steps at {name}"] = _percent(violation_rate(metrics, name))
            elif name != "length":
                texts[f"{name} {unit}"] = f"{value / metrics.get('length', 1.0):.3g}"
        return texts

    lines = []
    for dataset, cell in grouped(rows, lambda row: row.dataset).items():
        if "length" in cell[0].data_metrics and same_data(cell):
            lines.append({"dataset": dataset, "method": "the data"} | quantities(cell[0].data_metrics))
        for row in cell:
            violating = {f"episodes with {name}": _percent(share) for name, share in row.violating.items()}
            lines.append({"dataset": dataset, "method": row.method} | quantities(row.metrics) | violating)
    names = list(dict.fromkeys(itertools.chain.from_iterable(lines)))
    return [{name: line.get(name, _NOTHING) for name in names} for line in lines]


def _updates_to_data(rows: Sequence[Row]) -> list[dict[str, str]]:
    """After how many updates runs were first evaluated above the mean of their data."""
    lines = []
    for row in rows:
        reached = row.updates_to_data[np.isfinite(row.updates_to_data)]
        mean = f"{reached.mean():.0f}" if len(reached) else _NOTHING
        seeds = f"{len(reached)} of {len(row.updates_to_data)}"
        lines.append(
            {"dataset": row.dataset, "method": row.method, "updates, mean of those that do": mean, "seeds": seeds}
        )
    return lines


def _tails(rows: Sequence[Row]) -> list[dict[str, str]]:
    """CVaR of the last policies at several levels."""
    return [
        {"dataset": row.dataset, "method": row.method}
        | {f"CVaR {xi:g}": _number(value) for xi, value in row.tails.items()}
        | {"mean": _number(row.mean)}
        for row in rows
    ]


def aggregates(shared: Mapping[str, statistics.Scores]) -> list[dict[str, str]]:
    """Mean and IQM of each method over the datasets that all share."""
    lines = []
    for method, scores in shared.items():
        low, high = statistics.bootstrap_interval(statistics.iqm, scores)
        iqm = f"{_number(statistics.iqm(scores))} [{_number(low)}, {_number(high)}]"
        lines.append({"method": method, "mean": _number(statistics.mean(scores)), "IQM [95 %]": iqm})
    return lines


def improvements(rows: Sequence[Row]) -> list[dict[str, str]]:
    """How probably each method beats each baseline, over the datasets where both have runs."""
    algorithms = {row.method: row.algorithm for row in rows}
    lines: list[dict[str, str]] = []
    for baseline, method in itertools.product(methods(rows), repeat=2):
        if algorithms[baseline] not in _BASELINES or algorithms[method] == algorithms[baseline]:
            continue
        ours, theirs = finals(rows, method), finals(rows, baseline)
        shared = sorted(ours.keys() & theirs.keys())
        if not shared:
            continue
        pair = [{cell: finals[cell] for cell in shared} for finals in (ours, theirs)]
        probability = statistics.probability_of_improvement(*pair)
        interval = statistics.bootstrap_interval(statistics.probability_of_improvement, *pair, resamples=2000)
        lines.append(
            {
                "method": method,
                "over": baseline,
                "probability [95 %]": f"{probability:.2f} [{interval.low:.2f}, {interval.high:.2f}]",
                "datasets": str(len(shared)),
            }
        )
    return lines


def sources(runs: Sequence[FinishedRun], rows: Sequence[Row]) -> list[str]:
    """Papers, reference returns, machines, dates and versions behind the numbers."""
    papers = dict.fromkeys(row.paper.source for row in rows if row.paper is not None)
    references = dict.fromkeys(
        f"{run.task}: random {run.reference.random:g}, expert {run.reference.expert:g} ({run.reference.source})"
        for run in runs
        if run.reference is not None
    )
    dates = sorted({str(run.record.date) for run in runs})
    devices = dict.fromkeys(str(run.record.device) for run in runs)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in run.record.versions.items()) for run in runs
    )
    return [
        *(f"Paper: {source}." for source in papers),
        *(f"Reference returns of {reference}." for reference in references),
        f"Trained on: {'; '.join(devices)}. Finished: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.",
        f"Versions: {'; '.join(versions)}.",
    ]


def _number(value: Any) -> str:
    if value is None or np.isnan(value):
        return _NOTHING
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{round(float(value), 1) + 0.0:.1f}"  # no -0.0


def _percent(share: float | None) -> str:
    return _NOTHING if share is None or np.isnan(share) else f"{100 * share:.3g} %"


def _range(values: np.ndarray | None) -> str:
    return _NOTHING if values is None else f"{values.min():.3g} to {values.max():.3g}"


def _plus_minus(mean: float, sd: float | None) -> str:
    return _number(mean) if sd is None or np.isnan(sd) else f"{_number(mean)} ± {_number(sd)}"
