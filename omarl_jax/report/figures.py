"""What the pictures of a report show; `omarl_jax.plotting` draws them."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from omarl_jax import plotting
from omarl_jax.files import require_trusted_task
from omarl_jax.report import comparisons
from omarl_jax.results import CVAR_LEVEL, Row, data_mean, exposure, grouped


class Picture(NamedTuple):
    """One picture of a report.

    Attributes:
        kind: `curves`, `grid`, `map`, `quantiles`, `returns` or `profiles`.
        task: what it belongs to, or None.
        title: what it shows.
        name: of its file, without `.png`.
    """

    kind: str
    task: str | None
    title: str
    name: str


def draw(rows: Sequence[Row]) -> list[tuple[Picture, Figure]]:
    """Curves per task, histograms of returns and grids per dataset, profiles of all methods."""
    rows = [row for row in rows if row.runs]
    methods = comparisons.methods(rows)
    drawn = []
    for task, of_task in grouped(rows, lambda row: row.task).items():
        curves = plotting.learning_curves(_panels(of_task), methods, f"{_units(of_task)}, mean and 95 % interval")
        drawn.append((_picture("curves", task, "Learning curves"), curves))
        if lines := _over_datasets(of_task):
            figure = plotting.grid(lines, "dataset", _units(of_task), CVAR_LEVEL)
            drawn.append((_picture("grid", task, "Methods over the datasets", "dataset"), figure))
    for (task, dataset), cell in grouped(rows, lambda row: (row.task, row.dataset)).items():
        returns = plotting.returns_histogram(
            {row.method: np.concatenate([run.final_returns for run in row.runs]) for row in cell},
            methods,
            f"return of an episode, {task} {dataset}",
            CVAR_LEVEL,
            None if comparisons.same_data_mean(cell) is None else data_mean(cell[0].runs, "mean_return"),
        )
        drawn.append((_picture("returns", task, f"Returns on {dataset}", dataset), returns))
        for setting, lines in _grids(cell).items():
            figure = plotting.grid(lines, setting, _units(cell), CVAR_LEVEL)
            drawn.append((_picture("grid", task, f"{setting} on {dataset}", dataset, setting), figure))
    if profiles := comparisons.shared_scores(rows):
        figure = plotting.performance_profiles(profiles, methods)
        drawn.append((_picture("profiles", None, "Performance profiles"), figure))
    return drawn


def draw_episodes(rows: Sequence[Row], out_dir: Path) -> dict[Picture, Path]:
    """Writes paths and quantiles of the first run of each row, where there is a policy, a map, and quantiles."""
    from omarl_jax import pictures  # only here: the rest of a report needs no networks
    from omarl_jax.data.recipes import make_env
    from omarl_jax.export import load_policy

    written = {}
    for row in rows:
        if not row.runs or not (row.runs[0].folder / "policy.npz").exists():
            continue
        require_trusted_task(row.task, allow_import=False)
        env, team = make_env(row.task, **row.runs[0].options), load_policy(row.runs[0].folder / "policy.npz")
        for kind, possible, write in (
            ("map", hasattr(env, "render_path"), pictures.write_map),
            ("quantiles", pictures.has_quantiles(team), pictures.write_quantiles),
        ):
            if possible:
                picture = _picture(kind, row.task, f"{row.method} on {row.dataset}", row.dataset, row.method)
                written[picture] = out_dir / f"{picture.name}.png"
                write(env, team, written[picture], seed=0)
    return written


def _picture(kind: str, task: str | None, title: str, *parts: str) -> Picture:
    name = "-".join([kind, *([] if task is None else [task]), *parts])
    return Picture(kind, task, title, re.sub(r"[^\w.-]+", "-", name))


def _units(rows: Sequence[Row]) -> str:
    """What numbers are measured in: one unit in a dataset, and perhaps another in the next."""
    return " or ".join(sorted({"score" if row.normalised else "return" for row in rows}, reverse=True))


def _panels(of_task: Sequence[Row]) -> list[plotting.Panel]:
    """One of each dataset; where colours are too few for the variants, one of each dataset and algorithm."""
    panels = []
    for cell in grouped(of_task, lambda row: row.dataset).values():
        of_algorithms = list(grouped(cell, lambda row: row.algorithm).values())
        if len(cell) <= plotting.MOST_COLOURS or len(cell) < 2 * len(of_algorithms):
            panels.append(_panel(cell))
        else:
            for rows in of_algorithms:
                panel = _panel(rows)
                panels.append(panel._replace(title=f"{rows[0].algorithm} on {panel.title}"))
    return panels


def _panel(cell: Sequence[Row]) -> plotting.Panel:
    """The curves of all methods on one dataset, with the mean of the data and what the paper reports."""
    curves = {}
    for row in cell:
        rounds = functools.reduce(np.intersect1d, [run.evaluations for run in row.runs])
        if not len(rounds):
            continue
        values = [run.returns[np.isin(run.evaluations, rounds)].mean(axis=1) for run in row.runs]
        if row.normalised:
            values = [run.scores(value) for run, value in zip(row.runs, values, strict=True)]
        curves[row.method] = plotting.Curve(rounds, np.stack(values, axis=1))
    levels: dict[str, tuple[float, str | None]] = {}
    if (mean := comparisons.same_data_mean(cell)) is not None:
        levels["data"] = mean, None
    for algorithm, of_algorithm in grouped(cell, lambda row: row.algorithm).items():
        if (paper := of_algorithm[0].paper) is not None:
            levels[f"{algorithm}, paper"] = paper.mean, of_algorithm[0].method if len(of_algorithm) == 1 else None
    title = cell[0].dataset if all(row.comparable for row in cell) else f"{cell[0].dataset} (not the paper's data)"
    return plotting.Panel(title, curves, levels)


def _grids(cell: Sequence[Row]) -> dict[str, dict[str, plotting.Line]]:
    """Name of a setting -> method -> how it does at each value, for settings with three values or more.

    Methods whose rows differ in something else, too, are left out; more data go with more updates.
    """
    grids: dict[str, dict[str, plotting.Line]] = {}
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


def _over_datasets(of_task: Sequence[Row]) -> dict[str, plotting.Line]:
    """Method -> how it does on each dataset, for methods that ran with one config on three datasets or more."""
    lines = {}
    for method, rows in grouped(of_task, lambda row: row.method).items():
        alike = all(row.runs[0].config == rows[0].runs[0].config for row in rows)
        if len(rows) >= 3 and alike and len({row.normalised for row in of_task}) == 1:
            lines[method] = _line([row.dataset for row in rows], rows)
    return lines


def _line(values: Sequence[Any], rows: Sequence[Row]) -> plotting.Line:
    exposures = [exposure(row.metrics) for row in rows if "risk" in row.metrics]
    tails = [row.tails[CVAR_LEVEL] for row in rows]
    return plotting.Line(
        values, [row.finals for row in rows], tails, exposures or None, [row.data_mean for row in rows]
    )
