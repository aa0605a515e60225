"""Chooses the plots of a report and their contents; `plots` draws them."""

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from omarl_jax.report import plots
from omarl_jax.report.summarise import (
    CVAR_LEVEL,
    Row,
    data_mean,
    grouped,
    methods,
    same_data_mean,
    shared_scores,
    violation_rate,
)


class Picture(NamedTuple):
    """One picture of a report.

    Attributes:
        kind: `curves`, `grid`, `agents`, `influence`, `map`, `quantiles`, `returns` or `profiles`.
        task: the task, or None for a picture of all tasks.
        title: what it shows.
        name: of its file, without `.png`.
    """

    kind: str
    task: str | None
    title: str
    name: str


def draw(rows: Sequence[Row]) -> list[tuple[Picture, Figure]]:
    """Curves per task, histograms of returns and grids per dataset, agents per row, profiles of all methods."""
    rows = [row for row in rows if row.runs]
    order = methods(rows)
    drawn = []
    for task, of_task in grouped(rows, lambda row: row.task).items():
        curves = plots.learning_curves(_panels(of_task), order, f"{_units(of_task)}, mean and 95 % interval")
        drawn.append((picture("curves", task, "Learning curves"), curves))
        if lines := _over_datasets(of_task):
            figure = plots.grid(lines, "dataset", _units(of_task), CVAR_LEVEL)
            drawn.append((picture("grid", task, "Methods over the datasets", "dataset"), figure))
    for (task, dataset), cell in grouped(rows, lambda row: (row.task, row.dataset)).items():
        returns = plots.returns_histogram(
            {row.method: np.concatenate([run.final_returns for run in row.runs]) for row in cell},
            order,
            f"return of an episode, {task} {dataset}",
            CVAR_LEVEL,
            None if same_data_mean(cell) is None else data_mean(cell[0].runs, "mean_return"),
        )
        drawn.append((picture("returns", task, f"Returns on {dataset}", dataset), returns))
        for setting, lines in _grids(cell).items():
            figure = plots.grid(lines, setting, _units(cell), CVAR_LEVEL)
            drawn.append((picture("grid", task, f"{setting} on {dataset}", dataset, setting), figure))
        drawn += [
            (picture(kind, task, f"{row.method} on {dataset}", dataset, row.method), figure)
            for row in cell
            for kind, figure in _agents(row).items()
        ]
    if profiles := shared_scores(rows):
        figure = plots.performance_profiles(profiles, order)
        drawn.append((picture("profiles", None, "Performance profiles"), figure))
    return drawn


def picture(kind: str, task: str | None, title: str, *parts: str) -> Picture:
    """A picture whose file is named after its kind, its task and further parts.

    Args:
        kind: of plot, as `curves`.
        task: the task, None for a picture of all tasks.
        title: what the page shows above it.
        *parts: what else distinguishes the file, as the dataset and the method.
    """
    name = "-".join([kind, *([] if task is None else [task]), *parts])
    return Picture(kind, task, title, re.sub(r"[^\w.-]+", "-", name))


def _units(rows: Sequence[Row]) -> str:
    """The units of the numbers, which may differ between datasets."""
    return " or ".join(sorted({"score" if row.normalised else "return" for row in rows}, reverse=True))


def _panels(of_task: Sequence[Row]) -> list[plots.Panel]:
    """One of each dataset; where colours are too few for the variants, one of each dataset and algorithm."""
    panels = []
    for cell in grouped(of_task, lambda row: row.dataset).values():
        of_algorithms = list(grouped(cell, lambda row: row.algorithm).values())
        if len(cell) <= plots.MOST_COLOURS or len(cell) < 2 * len(of_algorithms):
            panels.append(_panel(cell))
        else:
            for rows in of_algorithms:
                panel = _panel(rows)
                panels.append(panel._replace(title=f"{rows[0].algorithm} on {panel.title}"))
    return panels


def _panel(cell: Sequence[Row]) -> plots.Panel:
    """The curves of all methods on one dataset, with the mean of the data and the paper's values."""
    curves = {}
    for row in cell:
        updates = functools.reduce(np.intersect1d, [run.evaluations for run in row.runs])
        if not len(updates):
            continue
        values = [run.returns[np.isin(run.evaluations, updates)].mean(axis=1) for run in row.runs]
        if row.normalised:
            values = [run.scores(value) for run, value in zip(row.runs, values, strict=True)]
        curves[row.method] = plots.Curve(updates, np.stack(values, axis=1))
    levels: dict[str, tuple[float, str | None]] = {}
    if (mean := same_data_mean(cell)) is not None:
        levels["data"] = mean, None
    for algorithm, of_algorithm in grouped(cell, lambda row: row.algorithm).items():
        if (paper := of_algorithm[0].paper) is not None:
            levels[f"{algorithm}, paper"] = paper.mean, of_algorithm[0].method if len(of_algorithm) == 1 else None
    title = cell[0].dataset if all(row.comparable for row in cell) else f"{cell[0].dataset} (not the paper's data)"
    return plots.Panel(title, curves, levels)


def _agents(row: Row) -> dict[str, Figure]:
    """Kind -> picture of what a method logs for each agent."""
    if not row.per_agent:
        return {}
    agents = [f"agent {i}" for i in range(next(iter(row.per_agent.values())).shape[1])]
    panels = [
        plots.Panel(name, {agent: plots.Curve(row.logged, values[:, i]) for i, agent in enumerate(agents)}, {})
        for name, values in row.per_agent.items()
    ]
    drawn = {"agents": plots.learning_curves(panels, agents, "mean and 95 % interval", columns=3)}
    if {"v_r", "influence"} <= row.per_agent.keys():
        x, y = row.per_agent["v_r"], row.per_agent["influence"]
        drawn["influence"] = plots.against(x, y, agents, "value of the rewards, $V^r_i$", "influence, $m_i$")
    return drawn


def _grids(cell: Sequence[Row]) -> dict[str, dict[str, plots.Line]]:
    """Name of a setting -> method -> how it does at each value, for settings with three values or more.

    Methods whose rows also differ in something else are left out, except that updates may grow with the size.
    """
    grids: dict[str, dict[str, plots.Line]] = {}
    for algorithm, rows in grouped(cell, lambda row: row.algorithm).items():
        names = {name for row in rows for name in row.differs} - ({"updates"} if "size" in rows[0].differs else set())
        if len(names) != 1:
            continue
        (name,) = names
        values = [row.differs.get(name) for row in rows]
        if len(rows) < 3 or not all(isinstance(value, int | float) for value in values):
            continue
        ordered = sorted(rows, key=lambda row: row.differs[name])
        grids.setdefault(name, {})[algorithm] = _line([row.differs[name] for row in ordered], ordered)
    return grids


def _over_datasets(of_task: Sequence[Row]) -> dict[str, plots.Line]:
    """Method -> how it does on each dataset, for methods that ran with one config on three datasets or more."""
    lines = {}
    for method, rows in grouped(of_task, lambda row: row.method).items():
        alike = all(row.runs[0].config == rows[0].runs[0].config for row in rows)
        if len(rows) >= 3 and alike and len({row.normalised for row in of_task}) == 1:
            lines[method] = _line([row.dataset for row in rows], rows)
    return lines


def _line(values: Sequence[Any], rows: Sequence[Row]) -> plots.Line:
    rates = [violation_rate(row.metrics) for row in rows if "risk" in row.metrics]
    tails = [row.tails[CVAR_LEVEL] for row in rows]
    return plots.Line(values, [row.finals for row in rows], tails, rates or None, [row.data_mean for row in rows])
