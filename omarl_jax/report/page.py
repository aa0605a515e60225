"""The report as one self-contained HTML page, with its pictures inside."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from omarl_jax.report import figures, tables
from omarl_jax.report.load import FinishedRun
from omarl_jax.report.summarise import Row, grouped, in_words, shared_scores

_DETAILS = {  # kinds of pictures that open on a click
    "agents": "Agents in training, method by method",
    "influence": "Influence of agents against the value of their rewards: each seed in training, and its end",
    "map": "Paths of an episode, first run of each method",
    "quantiles": "Quantiles learned, first run of each method",
    "strip": "Moments of an episode, 0.1 s apart, first run of each method",
    "returns": "Returns of the last policies, episode by episode",
}
_KINDS = ("curves", "grid", *_DETAILS)
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; white-space: nowrap; }
thead th { border-bottom: 1.5px solid #222; vertical-align: bottom; white-space: normal; }
tr.first td { border-top: 1px solid #ccc; } tbody tr:first-child td { border-top: none; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; } .notes { color: #555; font-size: 0.85rem; } summary { cursor: pointer; }
"""


def page(
    runs: Sequence[FinishedRun],
    rows: Sequence[Row],
    pictures: Mapping[figures.Picture, Path],
    unfinished: Mapping[str, str],
) -> str:
    """The whole report as one HTML file, with the pictures in it.

    Args:
        runs: finished runs.
        rows: their summary.
        pictures: PNG files.
        unfinished: names of runs that are not finished, with the reason; an empty one is unknown.
    """
    failed = [run for run in runs if run.failure is not None]
    parts = [f"<p>{_summary(runs, len(failed), len(unfinished))}</p>"]
    parts += [f'<p class="notes">{html.escape(note)}</p>' for note in tables.footnotes(rows)]
    for task, of_task in grouped(rows, lambda row: row.task).items():
        of_kind = grouped((item for item in pictures.items() if item[0].task == task), lambda item: item[0].kind)
        parts += _task(task, of_task, {kind: [_picture(*item) for item in of_kind.get(kind, [])] for kind in _KINDS})
    if improvements := tables.improvements(rows):
        parts += [
            "<h2>Probability of improvement</h2>",
            "<p>How probably a run of a method beats a run of a baseline on the same dataset; ties count one half.</p>",
            _table(improvements, by="over"),
        ]
    if shared := shared_scores(rows):
        datasets = "; ".join(map(in_words, next(iter(shared.values()))))
        parts += [
            "<h2>All datasets together</h2>",
            f"<p>Scores of all seeds on the datasets that every method learned: {html.escape(datasets)}.</p>",
            _table(tables.aggregates(shared)),
            *(_picture(*item) for item in pictures.items() if item[0].kind == "profiles"),
        ]
    if failed:
        lines = [{"run": run.folder.name, "method": run.algorithm, "why": str(run.failure)} for run in failed]
        parts += ["<h2>Runs that are in no number above</h2>", _table(lines)]
    if unfinished:
        lines = [{"run": name, "why": reason or "still going on, or stopped"} for name, reason in unfinished.items()]
        parts += ["<h2>Unfinished runs</h2>", _table(lines)]
    sources = (f"<p>{html.escape(line)}</p>" for line in tables.sources(runs, rows))
    parts += ["<h2>Where the numbers come from</h2>", *sources]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Report</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>Report</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _task(task: str, rows: Sequence[Row], pictures: Mapping[str, Sequence[str]]) -> list[str]:
    """The section of one task: its table and curves, and what opens on a click."""
    parts = [f"<h2>{html.escape(task)}</h2>", _table(tables.cells(rows), by="dataset")]
    parts += pictures["curves"]
    parts += [_details(title, [_table(lines, by="dataset")]) for title, lines in tables.details(rows).items()]
    parts += pictures["grid"]
    parts += [_details(title, pictures[kind]) for kind, title in _DETAILS.items() if pictures[kind]]
    return parts


def _summary(runs: Sequence[FinishedRun], failed: int, unfinished: int) -> str:
    counts = [f"{len(runs) - failed} runs finished"]
    counts += [f"{failed} without a result"] if failed else []
    counts += [f"{unfinished} unfinished"] if unfinished else []
    counts += [f"{len({run.algorithm for run in runs})} methods", f"{len({run.task for run in runs})} tasks"]
    return ", ".join(counts) + "."


def _details(title: str, parts: Sequence[str]) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{''.join(parts)}</details>"


def _table(lines: Sequence[Mapping[str, str]], by: str | None = None) -> str:
    """A table of dictionaries with the same keys, with a rule where the column `by` changes."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in lines[0])
    body = []
    for before, line in zip([None, *lines], lines, strict=False):
        first = by is not None and (before is None or before[by] != line[by])
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in line.values())
        body.append(f'<tr class="first">{cells}</tr>' if first else f"<tr>{cells}</tr>")
    rows = "\n".join(body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _picture(picture: figures.Picture, path: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    title = html.escape(picture.title)
    caption = f"<figcaption>{title}</figcaption>" if picture.kind in _DETAILS else ""
    return f'<figure>{caption}<img alt="{title}" src="data:image/png;base64,{encoded}"></figure>'
