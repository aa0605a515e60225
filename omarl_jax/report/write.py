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


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Prints one table per task, with the footnotes it needs."""
    for task, of_task in grouped(rows, lambda row: row.task).items():
        texts = [tables.cells(row) for row in of_task]
        printed = Table(title=task, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in texts[0]:
            printed.add_column(name, overflow="fold")  # in a narrow terminal too, rows stay distinguishable
        for dataset in grouped(zip(of_task, texts, strict=True), lambda pair: pair[0].dataset).values():
            for _, cells in dataset:
                printed.add_row(*map(Text, cells.values()))  # `Text`: brackets in it are not markup
            printed.add_section()
        console.print(printed)
    for note in tables.footnotes(rows):
        console.print(note)


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
        name -> file: `report.html`, `table.md`, `table.csv`, `runs.csv`, `curves.csv`, and one per picture.

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
    for name, text in texts.items():
        with replacing(out_dir / name) as file:
            file.write(text.encode())
    return {picture.name: path for picture, path in drawn.items()} | {name: out_dir / name for name in texts}
