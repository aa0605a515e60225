"""Which rows of a report can be compared, and in what order they stand."""

import json
from collections.abc import Iterable, Sequence

import numpy as np

from omarl_jax.results import Row, order


def methods(rows: Iterable[Row]) -> list[str]:
    """All methods in one order, by which they are coloured."""
    return list(dict.fromkeys(row.method for row in sorted(rows, key=lambda row: (row.algorithm, order(row)))))


def finals(rows: Iterable[Row], method: str) -> dict[str, np.ndarray]:
    """What was learned, the form of the task and the size of the data included -> final scores of a method's runs."""
    return {_learned(row): row.finals for row in rows if row.method == method and row.runs}


def _learned(row: Row) -> str:
    run = row.runs[0]
    unit = "score" if row.normalised else "return"
    return json.dumps([row.task, row.dataset, run.options, run.data.get("size"), unit], sort_keys=True)


def same_data(cell: Sequence[Row]) -> bool:
    """Whether all rows learned from the same data: these change with size and options of the task."""
    hashes = [{str(run.data.get("hash")) for run in row.runs} for row in cell]
    return all(some <= max(hashes, key=len) for some in hashes)  # runs that diverged are missing from some rows


def same_data_mean(cell: Sequence[Row]) -> float | None:
    """The mean of the data, if all rows learned from the same."""
    return cell[0].data_mean if same_data(cell) else None


def shared_scores(rows: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    """Normalised scores of all methods on the datasets that they share, or nothing to compare."""
    rows = [row for row in rows if row.normalised and row.runs]
    scores = {method: finals(rows, method) for method in methods(rows)}
    if len(scores) < 2:
        return {}
    shared = set.intersection(*(set(cells) for cells in scores.values()))
    if not shared:
        return {}
    return {method: {cell: cells[cell] for cell in sorted(shared)} for method, cells in scores.items()}
