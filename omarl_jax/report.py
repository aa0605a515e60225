"""Tables, pictures and a page from the results of runs."""

import base64
import csv
import functools
import html
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from omarl_jax import plotting, statistics
from omarl_jax.errors import UserError
from omarl_jax.files import replacing
from omarl_jax.results import CVAR_LEVEL, SATURATED, FinishedRun, Row, data_mean, exposure, grouped, order, table

BASELINES = ("bc", "cql", "ciql", "ccql")
_DAGGER = "† trained on data of our own that differ from the paper's: not comparable with the paper."
_OTHERWISE = "¶ other hyperparameters, rounds or amount of data than the paper's number stands for."
_SATURATED = f"§ no result: more than {100 * SATURATED:g} % of a policy's actions are at their bounds (saturation)."
_RAW = "‡ raw returns, since no reference returns are known to normalise with."
_NOTHING = "\u2013"  # an en dash, where there is no number


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Prints one table per task, with the footnotes it needs."""
    for task, of_task in grouped(rows, lambda row: row.task).items():
        texts = [_texts(row) for row in of_task]
        printed = Table(title=task, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in texts[0]:
            printed.add_column(name, overflow="fold")  # in a narrow terminal too, rows stay distinguishable
        for dataset in grouped(zip(of_task, texts, strict=True), lambda pair: pair[0].dataset).values():
            for _, cells in dataset:
                printed.add_row(*map(Text, cells.values()))  # as it is: brackets in it are not markup
            printed.add_section()
        console.print(printed)
    for note in _footnotes(rows):
        console.print(note)


def write_report(
    runs: Sequence[FinishedRun], out_dir: Path, still_running: Sequence[Path] = (), pictures: bool = False
) -> dict[str, Path]:
    """Writes tables, pictures and one page that holds them all.

    Args:
        runs: finished runs.
        out_dir: the folder to write to; made if it is not there.
        still_running: folders of runs that are not finished, to be listed.
        pictures: whether to play an episode with the first run of each method, for pictures of paths and quantiles.

    Returns:
        name -> file: `report`, `table.md`, `table.csv`, and one per picture.
    """
    if not runs:
        raise UserError("There is no finished run to report on.")
    rows = table(runs)
    figures = _figures(rows)
    paths = {name: out_dir / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        with replacing(paths[name]) as file:
            figure.savefig(file, format="png", dpi=150)
    if pictures:
        paths |= _played(rows, out_dir)
    paths |= {"table.md": out_dir / "table.md", "table.csv": out_dir / "table.csv", "report": out_dir / "report.html"}
    texts = {"table.md": _markdown(runs, rows), "table.csv": _csv(rows)}
    texts["report"] = _page(runs, rows, paths, still_running)
    for name, text in texts.items():
        with replacing(paths[name]) as file:
            file.write(text.encode())
    return paths


def _texts(row: Row) -> dict[str, str]:
    """The cells of a row as they are printed, everywhere but in the CSV file."""
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
        "seeds": seeds,
        "config": row.config_hash,
    }


def _marks(row: Row) -> str:
    """What is to be known of the paper's number, where there is one."""
    return "" if row.paper is None else " †" * (not row.comparable) + " ¶" * (not row.as_published)


def _footnotes(rows: Sequence[Row]) -> list[str]:
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
    if any(len(row.runs) < row.started for row in rows):
        notes.append("n of m seeds: the others diverged and are in none of the numbers.")
    return notes


def _markdown(runs: Sequence[FinishedRun], rows: Sequence[Row]) -> str:
    parts = []
    for task, of_task in grouped(rows, lambda row: row.task).items():
        texts = [_texts(row) for row in of_task]
        lines = [list(texts[0]), ["---"] * len(texts[0]), *(list(cells.values()) for cells in texts)]
        parts.append(f"## {task}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, *_footnotes(rows), *_sources(runs, rows)]) + "\n"


def _csv(rows: Sequence[Row]) -> str:
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
            "rounds_to_data_mean": float(np.mean(row.convergence))
            if row.runs and np.isfinite(row.convergence).all()
            else None,
            "seeds": len(row.runs),
            "seeds_started": row.started,
            **{f"final_{name}": value for name, value in row.metrics.items()},
            **{f"episodes_with_{name}": value for name, value in row.exposed.items()},
        }
        for row in rows
    ]
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(dict.fromkeys(itertools.chain.from_iterable(records))))
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Name -> picture: curves per task, histograms of returns and grids per dataset, profiles of all methods."""
    rows = [row for row in rows if row.runs]
    methods = _methods(rows)
    figures = {}
    for task, of_task in grouped(rows, lambda row: row.task).items():
        panels = [_panel(cell) for cell in grouped(of_task, lambda row: row.dataset).values()]
        unit = "score" if all(row.normalised for row in of_task) else "return"
        label = f"{unit}, mean and 95 % interval"
        figures[_file_name("curves", task)] = plotting.learning_curves(panels, methods, label)
        if lines := _over_datasets(of_task):
            figures[_file_name("grid", "dataset", task)] = plotting.grid(lines, "dataset", unit, CVAR_LEVEL)
    for (task, dataset), cell in grouped(rows, lambda row: (row.task, row.dataset)).items():
        figures[_file_name("returns", task, dataset)] = plotting.returns_histogram(
            {row.method: np.concatenate([run.final_returns for run in row.runs]) for row in cell},
            methods,
            f"return of an episode, {task} {dataset}",
            CVAR_LEVEL,
            None if _same_data_mean(cell) is None else data_mean(cell[0].runs, "mean_return"),
        )
        for name, lines in _grids(cell).items():
            unit = "score" if all(row.normalised for row in cell) else "return"
            figures[_file_name("grid", name, task, dataset)] = plotting.grid(lines, name, unit, CVAR_LEVEL)
    if profiles := _shared_scores(rows):
        figures["profiles"] = plotting.performance_profiles(profiles, methods)
    return figures


def _played(rows: Sequence[Row], out_dir: Path) -> dict[str, Path]:
    """Draws the paths and quantiles of the first run of each row, where there is a policy, a map, and quantiles."""
    from omarl_jax import pictures  # only here: the rest of a report needs no networks
    from omarl_jax.data.recipes import make_env
    from omarl_jax.export import load_policy

    paths = {}
    for row in rows:
        if not row.runs or not (row.runs[0].folder / "policy.npz").exists():
            continue
        env, team = make_env(row.task, **row.runs[0].options), load_policy(row.runs[0].folder / "policy.npz")
        for kind, can, draw in (
            ("map", hasattr(env, "render_path"), pictures.write_map),
            ("quantiles", pictures.has_quantiles(team), pictures.write_quantiles),
        ):
            if can:
                name = _file_name(kind, row.task, row.dataset, row.method)
                paths[name] = out_dir / f"{name}.png"
                draw(env, team, paths[name], seed=0)
    return paths


def _panel(cell: Sequence[Row]) -> plotting.Panel:
    """The curves of all methods on one dataset, with the mean of the data and what the paper reports."""
    curves = {}
    for row in cell:
        rounds = functools.reduce(np.intersect1d, [run.evaluations for run in row.runs])
        values = [run.returns[np.isin(run.evaluations, rounds)].mean(axis=1) for run in row.runs]
        if row.normalised:
            values = [run.scores(value) for run, value in zip(row.runs, values, strict=True)]
        curves[row.method] = plotting.Curve(rounds, np.stack(values, axis=1))
    levels: dict[str, tuple[float, str | None]] = {}
    if (mean := _same_data_mean(cell)) is not None:
        levels["data"] = mean, None
    for algorithm, of_algorithm in grouped(cell, lambda row: row.algorithm).items():
        if (paper := of_algorithm[0].paper) is not None:
            levels[f"{algorithm}, paper"] = paper.mean, of_algorithm[0].method if len(of_algorithm) == 1 else None
    title = cell[0].dataset if all(row.comparable for row in cell) else f"{cell[0].dataset} (not the paper's data)"
    return plotting.Panel(title, curves, levels)


def _same_data_mean(cell: Sequence[Row]) -> float | None:
    """The mean of the data, if all rows learned from the same: it changes with size and options of the task."""
    return cell[0].data_mean if _same_data(cell) else None


def _same_data(cell: Sequence[Row]) -> bool:
    hashes = [{str(run.data.get("hash")) for run in row.runs} for row in cell]
    return all(some <= max(hashes, key=len) for some in hashes)  # runs that diverged are missing from some rows


def _grids(cell: Sequence[Row]) -> dict[str, dict[str, plotting.Line]]:
    """Name of a setting -> method -> how it does at each value, for settings with three values or more.

    Rows that differ in something else, too, are left out; more data go with more rounds.
    """
    grids: dict[str, dict[str, plotting.Line]] = {}
    for algorithm, rows in grouped(cell, lambda row: row.algorithm).items():
        names = {name for row in rows for name in row.differs} - ({"rounds"} if "size" in rows[0].differs else set())
        if len(names) != 1:
            continue
        (name,) = names
        values = [row.differs.get(name) for row in rows]
        if len(rows) < 3 or not all(isinstance(value, int | float) for value in values):
            continue
        ordered = sorted(rows, key=lambda row: row.differs[name])
        grids.setdefault(name, {})[algorithm] = _line([row.differs[name] for row in ordered], ordered)
    return grids


def _over_datasets(of_task: Sequence[Row]) -> dict[str, plotting.Line]:
    """Method -> how it does on each dataset, for methods that ran with one config on three datasets or more."""
    lines = {}
    for method, rows in grouped(of_task, lambda row: row.method).items():
        if len(rows) >= 3 and all(row.runs[0].config == rows[0].runs[0].config for row in rows):
            lines[method] = _line([row.dataset for row in rows], rows)
    return lines


def _line(values: Sequence[Any], rows: Sequence[Row]) -> plotting.Line:
    exposures = [exposure(row.metrics) for row in rows if "risk" in row.metrics]
    tails = [row.tails[CVAR_LEVEL] for row in rows]
    return plotting.Line(values, [row.finals for row in rows], tails, exposures or None)


def _methods(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.method for row in sorted(rows, key=lambda row: (row.algorithm, order(row)))))


def _finals(rows: Iterable[Row], method: str) -> dict[str, np.ndarray]:
    """Task and dataset -> final scores of a method's runs."""
    return {
        f"{row.task} {row.dataset}" if row.normalised else f"{row.task} {row.dataset} (returns)": row.finals
        for row in rows
        if row.method == method and row.runs
    }


def _shared_scores(rows: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    """Normalised scores of all methods on the datasets that they share, or nothing to compare."""
    rows = [row for row in rows if row.normalised and row.runs]
    finals = {method: _finals(rows, method) for method in _methods(rows)}
    if len(finals) < 2:
        return {}
    shared = set.intersection(*(set(cells) for cells in finals.values()))
    if not shared:
        return {}
    return {method: {cell: cells[cell] for cell in sorted(shared)} for method, cells in finals.items()}


def _aggregate(method: str, scores: statistics.Scores) -> dict[str, str]:
    low, high = statistics.bootstrap_interval(statistics.iqm, scores)
    return {
        "method": method,
        "mean": _number(statistics.mean(scores)),
        "IQM [95 %]": f"{_number(statistics.iqm(scores))} [{_number(low)}, {_number(high)}]",
    }


def _improvements(rows: Sequence[Row]) -> list[dict[str, str]]:
    """How probably each method beats each baseline, over the datasets where both have runs."""
    algorithms = {row.method: row.algorithm for row in rows}
    lines: list[dict[str, str]] = []
    for baseline, method in itertools.product(_methods(rows), repeat=2):
        if algorithms[baseline] not in BASELINES or algorithms[method] == algorithms[baseline]:
            continue
        ours, theirs = _finals(rows, method), _finals(rows, baseline)
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


_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; white-space: nowrap; }
thead th { border-bottom: 1.5px solid #222; vertical-align: bottom; white-space: normal; }
tr.first td { border-top: 1px solid #ccc; } tbody tr:first-child td { border-top: none; }
img { max-width: 100%; height: auto; } .notes { color: #555; font-size: 0.85rem; } summary { cursor: pointer; }
"""


def _page(
    runs: Sequence[FinishedRun], rows: Sequence[Row], paths: Mapping[str, Path], still_running: Sequence[Path]
) -> str:
    failed = [run for run in runs if run.failure is not None]
    parts = [f"<p>{_summary(runs, len(failed), len(still_running))}</p>"]
    parts += [f'<p class="notes">{html.escape(note)}</p>' for note in _footnotes(rows)]
    for task, of_task in grouped(rows, lambda row: row.task).items():
        parts.append(f"<h2>{html.escape(task)}</h2>")
        parts.append(_html_table([_texts(row) for row in of_task], by="dataset"))
        if (curves := paths.get(_file_name("curves", task))) is not None:
            parts.append(_picture(curves, f"Learning curves on {task}"))
        if any(row.metrics.keys() - {"length"} for row in of_task):
            summary = "<summary>Task metrics of the last policies, means over steps, episodes and seeds</summary>"
            parts.append(f"<details>{summary}{_metrics_table(of_task)}</details>")
        if any(np.isfinite(row.convergence).any() for row in of_task):
            summary = "<summary>How soon: rounds until an evaluation is above the mean of the data</summary>"
            parts.append(f"<details>{summary}{_convergence_table(of_task)}</details>")
        summary = "<summary>Lower tails: CVaR of the last policies at several levels</summary>"
        parts.append(f"<details>{summary}{_tails_table(of_task)}</details>")
        grids = [
            (name, dataset)
            for dataset, cell in grouped(of_task, lambda row: row.dataset).items()
            for name in _grids([row for row in cell if row.runs])
        ]
        if (over_datasets := paths.get(_file_name("grid", "dataset", task))) is not None:
            parts.append(_picture(over_datasets, f"Methods over the datasets of {task}"))
        for name, dataset in grids:
            parts.append(_picture(paths[_file_name("grid", name, task, dataset)], f"{name} on {task} {dataset}"))
        for kind, told in (("map", "Paths of an episode"), ("quantiles", "Quantiles learned")):
            names = {
                f"{row.method} on {row.dataset}": _file_name(kind, task, row.dataset, row.method) for row in of_task
            }
            drawn = [
                f"<p>{html.escape(title)}</p>{_picture(paths[name], f'{told}: {title}')}"
                for title, name in names.items()
                if name in paths
            ]
            if drawn:
                parts.append(f"<details><summary>{told}, first run of each method</summary>{''.join(drawn)}</details>")
        histograms = {row.dataset: paths.get(_file_name("returns", task, row.dataset)) for row in of_task}
        pictures = [_picture(path, f"Returns on {task} {dataset}") for dataset, path in histograms.items() if path]
        if pictures:
            summary = "<summary>Returns of the last policies, episode by episode</summary>"
            parts.append(f"<details>{summary}{''.join(pictures)}</details>")
    if improvements := _improvements(rows):
        parts += [
            "<h2>Probability of improvement</h2>",
            "<p>How probably a run of a method beats a run of a baseline on the same dataset; ties count one half.</p>",
            _html_table(improvements, by="over"),
        ]
    if shared := _shared_scores(rows):
        cells = next(iter(shared.values()))
        parts += [
            "<h2>All datasets together</h2>",
            f"<p>Scores of all seeds on what every method was run on: {html.escape(', '.join(cells))}.</p>",
            _html_table([_aggregate(method, scores) for method, scores in shared.items()]),
            _picture(paths["profiles"], "Performance profiles"),
        ]
    if failed:
        lines = [{"run": str(run.folder), "method": run.algorithm, "why": str(run.failure)} for run in failed]
        parts += ["<h2>Runs that are in no number above</h2>", _html_table(lines)]
    if still_running:
        items = "".join(f"<li>{html.escape(str(folder))}</li>" for folder in still_running)
        parts.append(f"<h2>Unfinished runs</h2><ul>{items}</ul>")
    parts += ["<h2>Where the numbers come from</h2>", *(f"<p>{html.escape(line)}</p>" for line in _sources(runs, rows))]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Report</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>Report</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _summary(runs: Sequence[FinishedRun], failed: int, still_running: int) -> str:
    counts = [f"{len(runs) - failed} runs finished"]
    counts += [f"{failed} diverged"] if failed else []
    counts += [f"{still_running} unfinished"] if still_running else []
    counts += [f"{len({run.algorithm for run in runs})} methods", f"{len({run.task for run in runs})} tasks"]
    return ", ".join(counts) + "."


def _sources(runs: Sequence[FinishedRun], rows: Sequence[Row]) -> list[str]:
    papers = dict.fromkeys(row.paper.source for row in rows if row.paper is not None)
    references = dict.fromkeys(
        f"{run.task}: random {run.reference.random:g}, expert {run.reference.expert:g} ({run.reference.source})"
        for run in runs
        if run.reference is not None
    )
    dates = sorted({str(run.record.get("date")) for run in runs})
    devices = dict.fromkeys(str(run.record.get("device")) for run in runs)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in run.record.get("versions", {}).items()) for run in runs
    )
    return [
        *(f"Paper: {source}." for source in papers),
        *(f"Reference returns of {reference}." for reference in references),
        f"Trained on: {'; '.join(devices)}. Finished: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.",
        f"Versions: {'; '.join(versions)}.",
    ]


def _metrics_table(rows: Sequence[Row]) -> str:
    """Quantities a step, shares of steps at risk, how many episodes had any risk at all; those of the data first."""

    def cells(metrics: Mapping[str, float]) -> dict[str, str]:
        unit = "a step" if "length" in metrics else "an episode"
        told = {}
        for name, value in metrics.items():
            if name.startswith("risk"):
                told[f"steps at {name}"] = f"{100 * exposure(metrics, name):.3g} %"
            elif name != "length":
                told[f"{name} {unit}"] = f"{value / metrics.get('length', 1.0):.3g}"
        return told

    lines = []
    for dataset, cell in grouped(rows, lambda row: row.dataset).items():
        if "length" in cell[0].data_metrics and _same_data(cell):
            lines.append({"dataset": dataset, "method": "the data"} | cells(cell[0].data_metrics))
        for row in cell:
            exposed = {f"episodes with {name}": f"{100 * share:.3g} %" for name, share in row.exposed.items()}
            lines.append({"dataset": dataset, "method": row.method} | cells(row.metrics) | exposed)
    names = list(dict.fromkeys(itertools.chain.from_iterable(lines)))
    return _html_table([{name: line.get(name, _NOTHING) for name in names} for line in lines], by="dataset")


def _convergence_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        reached = row.convergence[np.isfinite(row.convergence)]
        told = f"{reached.mean():.0f}" if len(reached) else _NOTHING
        seeds = f"{len(reached)} of {len(row.convergence)}"
        lines.append(
            {"dataset": row.dataset, "method": row.method, "rounds, mean of those that do": told, "seeds": seeds}
        )
    return _html_table(lines, by="dataset")


def _tails_table(rows: Sequence[Row]) -> str:
    lines = [
        {"dataset": row.dataset, "method": row.method}
        | {f"CVaR {xi:g}": _number(value) for xi, value in row.tails.items()}
        | {"mean": _number(row.mean)}
        for row in rows
    ]
    return _html_table(lines, by="dataset")


def _html_table(lines: Sequence[Mapping[str, str]], by: str | None = None) -> str:
    """A table of dictionaries with the same keys, with a rule where the column `by` changes."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in lines[0])
    body = []
    for before, line in zip([None, *lines], lines, strict=False):
        first = by is not None and (before is None or before[by] != line[by])
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in line.values())
        body.append(f'<tr class="first">{cells}</tr>' if first else f"<tr>{cells}</tr>")
    rows = "\n".join(body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _picture(path: Path, description: str) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="{html.escape(description)}" src="data:image/png;base64,{encoded}"></p>'


def _file_name(*parts: str) -> str:
    return re.sub(r"[^\w.-]+", "-", "-".join(parts))


def _number(value: Any) -> str:
    if value is None or np.isnan(value):
        return _NOTHING
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def _plus_minus(mean: float, sd: float | None) -> str:
    return _number(mean) if sd is None or np.isnan(sd) else f"{_number(mean)} ± {_number(sd)}"
