"""The plots of a report, as matplotlib figures that need no display.

Most functions take `methods`, all methods of the report in one order, since the place in it decides a method's colour:
so a method looks the same in every picture. Plots of a setting (`grid`) are the exception: a line is an algorithm. In
pictures of one method agents take the place of methods.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from omarl_jax.report import statistics

_SMALL = 8  # points
_GREY = "0.35"
_COLOURS = [f"C{i}" for i in range(10) if i != 7]  # C7 is grey, and so are the lines of the data
MOST_COLOURS = len(_COLOURS)


class Curve(NamedTuple):
    """The evaluations of one method's runs during training.

    Attributes:
        updates: (E,) updates made.
        values: (E, runs) mean return or score of each evaluation.
    """

    updates: np.ndarray
    values: np.ndarray


class Panel(NamedTuple):
    """One axes of a figure of learning curves.

    Attributes:
        title: usually the dataset.
        curves: by method.
        levels: label -> (value, method whose colour it takes, or None): thin horizontal lines.
    """

    title: str
    curves: Mapping[str, Curve]
    levels: Mapping[str, tuple[float, str | None]]


class Line(NamedTuple):
    """The results of one method as a setting varies.

    Attributes:
        values: of the setting, in order.
        finals: at each value (runs,) mean return or score of the last policies.
        tails: at each value their CVaR.
        violation_rate: at each value the share of steps that an agent is at risk, or None where the task knows no risk.
        data: at each value the mean of the data, or None where it is unknown.
    """

    values: Sequence[float] | Sequence[str]
    finals: Sequence[np.ndarray]
    tails: Sequence[float]
    violation_rate: Sequence[float] | None
    data: Sequence[float | None]


def learning_curves(panels: Sequence[Panel], methods: Sequence[str], ylabel: str, columns: int = 2) -> Figure:
    """Mean and 95 % bootstrap interval over runs against updates.

    All panels share one legend. If together they show more methods than there are colours, and each of them few, each
    panel has its own legend and all have one scale.

    Args:
        panels: one a dataset.
        methods: all methods, in the order of their colours.
        ylabel: what the curves show.
        columns: panels side by side, at most.
    """
    width, columns = 10.4 / columns, min(columns, len(panels))
    rows = -(-len(panels) // columns)
    shown, most = {method for panel in panels for method in panel.curves}, max(len(panel.curves) for panel in panels)
    own_legends = len(shown) > MOST_COLOURS >= most
    figure = Figure(figsize=(width * columns if columns > 1 else 7, 0.58 * width * rows + 0.4), layout="constrained")
    grid = list(figure.subplots(rows, columns, sharey=own_legends, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(panel.title, loc="left")
        for method, curve in panel.curves.items():
            centre = statistics.mean({panel.title: curve.values})
            axes.plot(curve.updates, centre, label=method, **_style(methods, method))
            low, high = statistics.bootstrap_interval(statistics.mean, {panel.title: curve.values}, resamples=2000)
            axes.fill_between(curve.updates, low, high, color=_colour(methods, method), alpha=0.15, linewidth=0)
        for value, of in panel.levels.values():
            axes.axhline(value, color=_GREY if of is None else _colour(methods, of), linewidth=0.8, linestyle=":")
    figure.supxlabel("updates", size="medium")
    figure.supylabel(ylabel, size="medium")
    if own_legends:
        for axes, panel in zip(grid, panels, strict=False):
            if panel.curves:
                axes.legend(frameon=False, fontsize=_SMALL)
    else:
        _legend(figure, methods)
    figure.draw_without_rendering()  # fixes the height of the axes, which decides how far labels must lie apart
    for axes, panel in zip(grid, panels, strict=False):
        _label_levels(axes, panel.levels, methods)
    return figure


def against(x: np.ndarray, y: np.ndarray, agents: Sequence[str], xlabel: str, ylabel: str) -> Figure:
    """One quantity of agents against another: a line through the training of each run, and a dot at its end.

    Args:
        x, y: (L, N, runs).
        agents: (N,) names.
        xlabel, ylabel: what the quantities are.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, agent in enumerate(agents):
        style = _style(agents, agent) | {"linewidth": 0.8}
        axes.plot(x[:, i], y[:, i], alpha=0.5, **style)
        axes.plot(x[-1:, i], y[-1:, i], marker="o", markeredgecolor="white", zorder=3, label=agent, **style)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, agents)
    return figure


def performance_profiles(scores: Mapping[str, statistics.Scores], methods: Sequence[str]) -> Figure:
    """The share of runs above each score, with pointwise 95 % bootstrap intervals, one line per method.

    Args:
        scores: method -> task -> (runs,), the same tasks for every method.
        methods: all methods of the report.
    """
    pooled = np.concatenate([values for method in scores.values() for values in method.values()])
    margin = 0.03 * np.ptp(pooled)
    thresholds = np.linspace(pooled.min() - margin, pooled.max() + margin, 121)

    def profile(scores: statistics.Scores) -> np.ndarray:
        return statistics.performance_profile(scores, thresholds)

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for method, tasks in scores.items():
        axes.plot(thresholds, profile(tasks), label=method, **_style(methods, method))
        low, high = statistics.bootstrap_interval(profile, tasks, resamples=2000)
        axes.fill_between(thresholds, low, high, color=_colour(methods, method), alpha=0.15, linewidth=0)
    axes.set(xlabel="score τ", ylabel="share of runs above τ", ylim=(-0.02, 1.02))
    _legend(figure, methods)
    return figure


def grid(lines: Mapping[str, Line], setting: str, unit: str, xi: float) -> Figure:
    """Mean with its 95 % interval, CVaR and the data's mean against a setting; and where there is risk, against that.

    Args:
        lines: by algorithm.
        setting: what varies.
        unit: of returns or scores.
        xi: the level of the CVaR.
    """
    risky = all(line.violation_rate is not None for line in lines.values())
    figure = Figure(figsize=(9 if risky else 6, 3.6), layout="constrained")
    left, *right = figure.subplots(1, 2 if risky else 1, squeeze=False)[0]
    ticks: list[Any] = list(dict.fromkeys(value for line in lines.values() for value in line.values))
    if not isinstance(ticks[0], str):
        ticks.sort()
    names = {tick: tick if isinstance(tick, str) else f"{tick:g}" for tick in ticks}
    for number, (algorithm, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        at = [ticks.index(value) for value in line.values]
        means = [values.mean() for values in line.finals]
        ends = [statistics.bootstrap_interval(statistics.mean, {"": values}) for values in line.finals]
        left.plot(at, means, color=colour, marker="o", label=algorithm)
        left.fill_between(
            at, [end.low for end in ends], [end.high for end in ends], color=colour, alpha=0.15, linewidth=0
        )
        left.plot(at, line.tails, color=colour, linestyle="--")
        for axes in right:
            assert line.violation_rate is not None
            axes.plot(line.violation_rate, means, color=colour, marker="o")
            axes.set(xlabel="share of steps at risk", ylabel=unit)
    for axes in right:
        axes.margins(0.1)  # for the labels
        axes.autoscale_view()
        _label_points(axes, [[names[value] for value in line.values] for line in lines.values()])
    known = {
        value: mean
        for line in lines.values()
        for value, mean in zip(line.values, line.data, strict=True)
        if mean is not None
    }
    at = [tick for tick, value in enumerate(ticks) if value in known]
    left.plot(at, [known[ticks[tick]] for tick in at], color=_GREY, linestyle=":", label="data")
    left.set_xticks(range(len(ticks)), list(names.values()))
    left.set(xlabel=setting, ylabel=f"{unit} (dashed: CVaR {xi:g})")
    figure.legend(loc="outside upper center", ncols=len(lines) + 1, frameon=False, fontsize=_SMALL)
    return figure


def returns_histogram(
    returns: Mapping[str, np.ndarray], methods: Sequence[str], xlabel: str, xi: float = 0.1, level: float | None = None
) -> Figure:
    """How the returns of single episodes are spread, one row per method, with their mean and lower tail.

    Args:
        returns: method -> (episodes,).
        methods: all methods of the report.
        xlabel: what a return is measured in.
        xi: the risk level of the CVaR that is marked.
        level: the mean of the data, marked in every row.
    """
    bins = statistics.histogram_edges(np.concatenate(list(returns.values())), 60)
    figure = Figure(figsize=(7, 0.75 * len(returns) + 1.1), layout="constrained")
    rows = figure.subplots(len(returns), sharex=True, squeeze=False)[:, 0]
    for axes, (method, episodes) in zip(rows, returns.items(), strict=True):
        share, _ = np.histogram(episodes, bins, weights=np.full(len(episodes), 1 / len(episodes)))
        axes.stairs(share, bins, fill=True, color=_colour(methods, method), alpha=0.35)
        axes.axvline(episodes.mean(), color=_colour(methods, method))
        axes.axvline(statistics.cvar(episodes, xi), color=_colour(methods, method), linestyle="--")
        if level is not None:
            axes.axvline(level, color=_GREY, linewidth=0.8, linestyle=":")
        axes.set_ylabel(method, rotation=0, ha="right", va="center")
        axes.set_yticks([])
        axes.spines[["left", "top", "right"]].set_visible(False)
    rows[-1].set_xlabel(xlabel)
    lines = [
        Line2D([], [], color=_GREY, label="mean"),
        Line2D([], [], color=_GREY, linestyle="--", label=f"mean of the lowest {100 * xi:g} %"),
    ]
    if level is not None:
        lines.append(Line2D([], [], color=_GREY, linewidth=0.8, linestyle=":", label="mean of the data"))
    figure.legend(handles=lines, loc="outside upper right", ncols=3, frameon=False, fontsize=_SMALL)
    return figure


def quantiles(values: np.ndarray, fractions: np.ndarray, times: Sequence[str], whose: Sequence[str]) -> Figure:
    """Quantile functions of the predicted returns of actions, a panel for each agent or for the team.

    Args:
        values: (times, panels, Q) in units of returns.
        fractions: (Q,) of the distribution.
        times: names of the moments.
        whose: titles of the panels.
    """
    n = values.shape[1]
    figure = Figure(figsize=(3.6 * n + 0.6, 3.4), layout="constrained")
    for i, axes in enumerate(figure.subplots(1, n, sharey=True, squeeze=False)[0]):
        for number, time in enumerate(times):
            axes.plot(fractions, values[number, i], marker="o", label=time if i == 0 else None)
        axes.set_title(whose[i], loc="left")
        axes.set_xlabel("fraction")
    figure.supylabel("learned quantile of the return", size="medium")
    figure.legend(loc="outside upper center", ncols=len(times), frameon=False, fontsize=_SMALL)
    return figure


def _colour(methods: Sequence[str], method: str) -> str:
    return _COLOURS[methods.index(method) % len(_COLOURS)]


def _style(methods: Sequence[str], method: str) -> dict[str, Any]:
    """Colours repeat with dashed lines when there are more methods."""
    lap = methods.index(method) // len(_COLOURS)
    return {"color": _colour(methods, method), "linestyle": ["-", "--", "-.", ":"][lap % 4]}


def _label_levels(axes: Axes, levels: Mapping[str, tuple[float, str | None]], methods: Sequence[str]) -> None:
    """Writes labels right of the axes, each at its value; labels of close values move apart."""
    ordered = sorted(levels.items(), key=lambda item: item[1][0])
    bottom, top = axes.get_ylim()
    gap = 1.2 * _SMALL * axes.figure.dpi / 72 / axes.bbox.height  # a line of text, in parts of the axes
    places = [(value - bottom) / (top - bottom) for _, (value, _) in ordered]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], 1 - gap * (len(places) - 1 - i))
    for (label, (value, of)), place in zip(ordered, places, strict=True):
        text = f"{label} {value:.0f}" if abs(value) >= 1000 else f"{label} {value:.1f}"
        colour = _GREY if of is None else _colour(methods, of)
        axes.text(1.02, place, text, color=colour, size=_SMALL, va="center", transform=axes.transAxes)


def _label_points(axes: Axes, labels: Sequence[Sequence[str]]) -> None:
    """Writes labels beside the points of all curves: at their ends first, and wherever there is room."""
    point = axes.figure.dpi / 72
    curves = list(zip(axes.lines[:], labels, strict=True))
    candidates = [(curve, texts, i) for curve, texts in curves for i in dict.fromkeys((0, len(texts) - 1))]
    candidates += [(curve, texts, i) for curve, texts in curves for i in range(1, len(texts) - 1)]
    taken: list[tuple[np.ndarray, float]] = []  # where labels begin, and how long they are
    for curve, texts, i in candidates:
        at = tuple(np.asarray(curve.get_xydata())[i])
        place, length = axes.transData.transform(at), 0.7 * _SMALL * point * len(texts[i])
        beside = [
            (-length < place[0] - other[0] < width) and abs(place[1] - other[1]) < 1.2 * _SMALL * point
            for other, width in taken
        ]
        if not any(beside):
            taken.append((place, length))
            axes.annotate(texts[i], at, xytext=(4, 4), textcoords="offset points", size=_SMALL, color=curve.get_color())


def _legend(figure: Figure, methods: Sequence[str]) -> None:
    """One legend above the figure, in the order of `methods`, for those that it shows."""
    drawn: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        drawn |= zip(labels, handles, strict=True)
    shown = [method for method in methods if method in drawn]
    if not shown:
        return
    entry = 0.6 * _SMALL * max(map(len, shown)) + 5 * _SMALL  # points: the text, the line before it and the gaps
    columns = max(1, min(len(shown), int(72 * figure.get_figwidth() / entry)))
    figure.set_figheight(figure.get_figheight() + 1.6 * _SMALL / 72 * -(-len(shown) // columns))
    figure.legend(
        [drawn[method] for method in shown],
        shown,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=_SMALL,
    )
