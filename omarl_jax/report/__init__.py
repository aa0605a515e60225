"""Tables, pictures and a page from the results of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from omarl_jax.errors import UserError
from omarl_jax.files import replacing
from omarl_jax.report import figures, tables
from omarl_jax.report.page import page
from omarl_jax.results import FinishedRun, Row, grouped, table

__all__ = ["print_table", "write_report"]


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Prints one table per task, with the footnotes it needs."""
    for task, of_task in grouped(rows, lambda row: row.task).items():
        texts = [tables.cells(row) for row in of_task]
        printed = Table(title=task, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in texts[0]:
            printed.add_column(name, overflow="fold")  # in a narrow terminal too, rows stay distinguishable
        for dataset in grouped(zip(of_task, texts, strict=True), lambda pair: pair[0].dataset).values():
            for _, cells in dataset:
                printed.add_row(*map(Text, cells.values()))  # as it is: brackets in it are not markup
            printed.add_section()
        console.print(printed)
    for note in tables.footnotes(rows):
        console.print(note)


def write_report(
    runs: Sequence[FinishedRun], out_dir: Path, unfinished: Mapping[Path, str] | None = None, pictures: bool = False
) -> dict[str, Path]:
    """Writes tables, pictures and one page that holds them all.

    Args:
        runs: finished runs.
        out_dir: the folder to write to; made if it is not there.
        unfinished: folders of runs that are not finished, to be listed, with the reason where it is known.
        pictures: whether to play an episode with the first run of each method, for pictures of paths and quantiles.

    Returns:
        name -> file: `report.html`, `table.md`, `table.csv`, `runs.csv`, and one per picture.
    """
    if not runs:
        raise UserError("There is no finished run to report on.")
    rows = table(runs)
    drawn = {}
    for picture, figure in figures.draw(rows):
        drawn[picture] = out_dir / f"{picture.name}.png"
        with replacing(drawn[picture]) as file:
            figure.savefig(file, format="png", dpi=150)
    if pictures:
        drawn |= figures.draw_episodes(rows, out_dir)
    texts = {
        "table.md": tables.markdown(runs, rows, len(unfinished or {})),
        "table.csv": tables.rows_as_csv(rows),
        "runs.csv": tables.runs_as_csv(runs, rows),
        "report.html": page(runs, rows, drawn, unfinished or {}),
    }
    for name, text in texts.items():
        with replacing(out_dir / name) as file:
            file.write(text.encode())
    return {picture.name: path for picture, path in drawn.items()} | {name: out_dir / name for name in texts}
