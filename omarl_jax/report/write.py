"""Writes a report, and prints its tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from omarl_jax.errors import UserError
from omarl_jax.files import replacing
from omarl_jax.report import figures, tables
from omarl_jax.report.load import FinishedRun, without_folders
from omarl_jax.report.page import page
from omarl_jax.report.summarise import Row, grouped, summarise

_NAMES = ("dataset", "method")
_BETWEEN = 2  # characters beside each column of a printed table


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Prints one table per task, with the footnotes it needs.

    In a narrow terminal, columns that have no room follow in a further table, so that no number and no word is broken.
    """
    for task, of_task in grouped(rows, lambda row: row.task).items():
        lines = tables.cells(of_task)
        for number, widths in enumerate(_widths(lines, console.width)):
            title = f"{task}, continued" if number else task
            printed = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for name, width in widths.items():
                header = name if len(name) <= width else "\n".join(name.split())
                printed.add_column(header, width=width, overflow="fold", no_wrap=name not in _NAMES)
            for of_dataset in grouped(lines, lambda line: line["dataset"]).values():
                for line in of_dataset:
                    printed.add_row(*(Text(line[name]) for name in widths))  # `Text`: brackets in it are not markup
                printed.add_section()
            console.print(printed)
    for note in tables.footnotes(rows):
        console.print(note)


def _widths(lines: Sequence[Mapping[str, str]], room: int) -> list[dict[str, int]]:
    """Column -> width, for each of the tables that fit into so many characters; all begin with the names."""
    needed = {}
    for name in lines[0]:
        longest = max(len(line[name]) for line in lines)
        needed[name] = max(longest, *map(len, name.split())) if len(name) > longest else longest
    names = {name: min(needed.pop(name), room // 3) for name in _NAMES}  # which may be folded
    found = [dict(names)]
    for name, width in needed.items():
        if len(found[-1]) > len(names) and sum(found[-1].values()) + width + _BETWEEN * (len(found[-1]) + 1) >= room:
            found.append(dict(names))
        found[-1][name] = width
    return found


def write_report(
    runs: Sequence[FinishedRun],
    out_dir: Path,
    unfinished: Mapping[Path, str] | None = None,
    pictures: Mapping[figures.Picture, Path] | None = None,
) -> dict[str, Path]:
    """Writes tables, plots and one page that holds them all.

    Args:
        runs: finished runs.
        out_dir: the folder to write to; it is made if there is none.
        unfinished: folders of runs that are not finished, to be listed, with the reason where it is known.
        pictures: further pictures for the page, which are written already (see `episodes.draw`).

    Returns:
        name -> file: `report.html`, `table.md`, `table.csv`, `runs.csv`, `curves.csv`, one per picture, and
        `agents.csv` if a method logs numbers for each agent.

    Raises:
        UserError: if there are no runs, two are the same, or the report cannot be written.
    """
    if not runs:
        raise UserError("There is no finished run to report on.")
    rows = summarise(runs)
    drawn = {}
    for picture, figure in figures.draw(rows):
        drawn[picture] = out_dir / f"{picture.name}.png"
        with replacing(drawn[picture]) as file:
            figure.savefig(file, format="png", dpi=150)
    drawn |= pictures or {}
    missing = {folder.name: without_folders(reason) for folder, reason in (unfinished or {}).items()}
    texts = {
        "table.md": tables.markdown(runs, rows, len(missing)),
        "table.csv": tables.rows_as_csv(rows),
        "runs.csv": tables.runs_as_csv(runs, rows),
        "curves.csv": tables.curves_as_csv(runs),
        "report.html": page(runs, rows, drawn, missing),
    }
    if agents := tables.agents_as_csv(rows):
        texts["agents.csv"] = agents
    for name, text in texts.items():
        with replacing(out_dir / name) as file:
            file.write(text.encode())
    return {picture.name: path for picture, path in drawn.items()} | {name: out_dir / name for name in texts}
