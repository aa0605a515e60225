"""Mazes as text, and the shortest ways through them."""

from typing import NamedTuple

import numpy as np

TEXTS = {
    "umaze": "#####/#GOO#/###O#/#OOO#/#####",
    "medium": "########/#OO##OO#/#OO#OOO#/##OOO###/#OO#OOO#/#O#OO#O#/#OOO#OG#/########",
    "large": (
        "############/#OOOO#OOOOO#/#O##O#O#O#O#/#OOOOOO#OOO#/#O####O###O#/#OO#O#OOOOO#/##O#O#O#O###/#OO#OOO#OGO#/"
        "############"
    ),
    "eval-umaze": "#####/#OOG#/#O###/#OOO#/#####",
    "eval-medium": "########/#OOOOOG#/#O#O##O#/#OOOO#O#/###OO###/#OOOOOO#/#OO##OO#/########",
    "eval-large": (
        "############/#OO#OOO#OGO#/##O###O#O#O#/#OO#O#OOOOO#/#O##O#OO##O#/#OOOOOO#OOO#/#O##O#O#O###/#OOOO#OOOOO#/"
        "############"
    ),
}
"""The mazes of D4RL by the names of their tasks. # is a wall, O is free, G is the goal, and / ends a row."""

MOVES = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))  # cells: in D4RL's order, which decides between equal ways


class Maze(NamedTuple):
    """A maze.

    Attributes:
        walls: (H, W) bool.
        free: (F, 2) int, the cells that are no walls, D4RL's goal last.
        goal: (2,) the cell of the goal: row and column.
    """

    walls: np.ndarray
    free: np.ndarray
    goal: tuple[int, int]


def parse(text: str, goal: tuple[int, int] | None = None) -> Maze:
    """Reads a maze.

    Args:
        text: its rows, ended by `/`, `\\` or new lines. # is a wall; O, 0 and a blank are free; G is the goal.
        goal: row and column of the goal, instead of G; without either it is the first free cell.

    Raises:
        ValueError: if it is no maze, or the goal is not in a free cell.
    """
    rows = text.strip("/\\\n").replace("\\", "/").replace("\n", "/").split("/")
    if len({len(row) for row in rows}) > 1:
        odd = next(k for k, row in enumerate(rows) if len(row) != len(rows[0]))
        raise ValueError(f"Row {odd} of the maze has {len(rows[odd])} cells, but row 0 has {len(rows[0])}.")
    if unknown := set("".join(rows)) - set("#GO0 "):
        raise ValueError(f"A maze is made of #, O and G, not of {min(unknown)!r}.")
    cells = np.array([list(row) for row in rows])
    walls = cells == "#"
    for row, column in np.argwhere(~walls).tolist():
        if row in (0, len(rows) - 1) or column in (0, len(rows[0]) - 1):
            raise ValueError(f"The border of a maze is wall, but ({row}, {column}) is free.")
    if walls.all():
        raise ValueError("A maze needs a free cell.")
    marked = np.argwhere(cells == "G").tolist()
    if len(marked) > 1:
        raise ValueError(f"A maze has one goal, not {len(marked)}.")
    empty = np.argwhere(~walls & (cells != "G"))
    free = np.concatenate([empty, np.array(marked, int).reshape(-1, 2)])
    row, column = goal if goal is not None else [*marked, free[0]][0]
    if [row, column] not in free.tolist():
        raise ValueError(f"The goal {(row, column)} must be in a free cell of the maze.")
    return Maze(walls, free, (int(row), int(column)))


def ways(maze: Maze) -> np.ndarray:
    """For each target and each cell the cell to go to next on a shortest way, (H W, H W) int32.

    Cells are counted row by row. From a wall, where the rounded place of a ball may be, ways lead to its neighbours.
    Where no way leads, one stays. Value iteration on the number of steps; of equally good moves the first is taken.
    D4RL iterates discounted values, which are in the same order.
    """
    height, width = maze.walls.shape
    cells = np.arange(height * width)
    after = np.stack([_moved(maze, cells, move) for move in MOVES])  # (moves, cells)
    steps, before = np.where(np.eye(len(cells)), 0.0, np.inf), None  # (targets, cells)
    while before is None or not np.array_equal(steps, before):
        before, steps = steps, np.minimum(steps, 1.0 + steps[:, after].min(axis=1))
    best = steps[:, after].argmin(axis=1)
    return after[best, cells].astype(np.int32)


def _moved(maze: Maze, cells: np.ndarray, move: tuple[int, int]) -> np.ndarray:
    """Where a move leads from each cell; one that leads nowhere stays."""
    height, width = maze.walls.shape
    rows, columns = cells // width + move[0], cells % width + move[1]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    return np.where(inside & ~maze.walls[rows, columns], rows * width + columns, cells)
