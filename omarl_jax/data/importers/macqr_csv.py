"""Logs of `uav/iot` in the CSV layout of MA-CQR (Eldeeb et al. 2024).

The header is `,0,1,…`. Each line holds its number, the state, the action of each UAV, the reward that they share, the
next state, and whether the episode is over: 0 or 1, True or False. Files that went through pandas or a spreadsheet are
read, too: with or without columns of line numbers, separated by commas, semicolons or tabs, with blank lines.
"""

import csv
import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
from omarl_envs.spec import TaskSpec
from omarl_envs.uav import MAX_AGE, MOVES

from omarl_jax.data.dataset import Dataset
from omarl_jax.data.episodes import from_episodes
from omarl_jax.data.validation import validate
from omarl_jax.errors import UserError
from omarl_jax.files import replacing
from omarl_jax.tasks import make_env

_FLAGS = {"true": "1", "false": "0"}  # as pandas and spreadsheets write them


def read_csv(path: str | pathlib.Path, **options: Any) -> Dataset:
    """Reads a log of MA-CQR.

    An episode also begins with a line whose state is not the next state of the line before. The end of an episode is a
    truncation, unless the task has `time_limit_is_terminal`; so is the last line of the file. The mean return and the
    other quantities are taken over the whole episodes in it, and unknown if there are none.

    Args:
        path: the file.
        **options: constructor arguments of `uav/iot`, so that it has as many UAVs and devices as the file.

    Raises:
        UserError: if the file cannot be read, or is not of this layout and task.
    """
    env: Any = make_env("uav/iot", **options)
    path, spec = pathlib.Path(path), env.task_spec
    _check_form(spec, options)
    table, lines = _numbers(path, _width(spec))
    cuts = np.cumsum([spec.state_dim, spec.n_agents, 1, spec.state_dim])
    state, actions, reward, next_state, over = np.split(table, cuts, axis=1)
    cells, ages = np.split(np.stack([state, next_state], axis=1), [2 * spec.n_agents], axis=2)  # (V, 2, …)
    age = ages[:, 1].mean(axis=1)
    for what, values, least, most in (
        ("actions", actions, 0, spec.action_dim - 1),
        ("cells", cells, 0, env.side - 1),
        ("ages", ages, 1, MAX_AGE),
        ("flags of the end", over, 0, 1),
    ):
        wrong = ((values != np.round(values)) | (values < least) | (values > most)).reshape(len(table), -1)
        _refuse(path, lines[wrong.any(axis=1)], f"{what} that are no whole numbers from {least} to {most}")
    _refuse(path, lines[~(np.abs(reward[:, 0]) < np.finfo(np.float32).max)], "a reward that is not finite")
    _refuse(path, lines[reward[:, 0] > 1e-3 - age], "a reward above the cost of the ages alone")

    over = over[:, 0] == 1
    last = over | np.append((next_state[:-1] != state[1:]).any(axis=1), True)
    ends = np.flatnonzero(last)

    def for_all(x: np.ndarray) -> np.ndarray:  # (V, S) -> (V, N, S): everyone sees everything
        return np.repeat(x[:, None].astype(np.float32), spec.n_agents, axis=1)

    terminal = over if env.time_limit_is_terminal else np.zeros_like(over)
    rows = from_episodes(
        spec,
        for_all(state),
        actions,
        np.repeat(reward, spec.n_agents, axis=1),
        np.repeat(terminal[:, None], spec.n_agents, axis=1),
        last & ~terminal,
        for_all(next_state[ends]),
        lengths=np.diff(ends, prepend=-1),
        state=state.astype(np.float32),
        last_state=next_state[ends].astype(np.float32),
    )
    # The file lacks the quantities that policies are evaluated by; they follow from states and actions.
    x, y = cells[:, 1].reshape(-1, spec.n_agents, 2).astype(int).transpose(2, 0, 1)
    power, risk = env.powers[x, y, actions.astype(int) // len(MOVES)], env.mission.risky[x, y]  # (V, N)
    metrics = {"return": (reward[:, 0] + age) / spec.n_agents - age, "training_return": reward[:, 0], "age": age}
    metrics |= {"power": power.sum(axis=1), "risk": risk.sum(axis=1)}
    for u in range(spec.n_agents):
        metrics |= {f"power_{u}": power[:, u], f"risk_{u}": risk[:, u]}
    dataset = Dataset(spec, rows, {"recipe": path.name, "behaviour": "unknown", "options": options})
    validate(dataset)
    whole = dataset.whole_episodes
    if not whole.any():  # the returns of parts of episodes mean nothing
        return dataset
    sums = {name: np.add.reduceat(values, np.append(0, ends[:-1] + 1)) for name, values in metrics.items()}
    means = {name: float(values[whole].mean()) for name, values in sums.items()}
    means["length"] = float(np.diff(ends, prepend=-1)[whole].mean())
    known = {"metrics": means, "mean_return": means["return"]}
    return dataclasses.replace(dataset, metadata=dataset.metadata | known)


def write_csv(dataset: Dataset, path: str | pathlib.Path) -> None:
    """Writes a dataset as a log of MA-CQR, whole or not at all.

    Raises:
        UserError: if the task is not of that sort, or the file cannot be written.
    """
    spec, rows = dataset.spec, dataset.rows
    _check_form(spec, dataset.metadata.get("options", {}))
    at = dataset.index()
    over = np.asarray(rows.terminal[at]).all(axis=1) | np.asarray(rows.truncated[at])
    seen = np.asarray(rows.obs)[:, 0]
    columns = [seen[at], rows.actions[at], rows.rewards[at, :1], seen[at + 1], over[:, None]]
    table = np.concatenate([np.asarray(column, np.float64) for column in columns], axis=1)
    with replacing(pathlib.Path(path)) as file:
        lines = [",".join(["", *map(str, range(_width(spec)))])]
        lines += [f"{i},{','.join(map(repr, line))}" for i, line in enumerate(table.tolist())]
        file.write("\n".join([*lines, ""]).encode())


def _refuse(path: pathlib.Path, wrong_lines: np.ndarray, what: str) -> None:
    """Raises for the first line that is wrong, if any is."""
    if len(wrong_lines):
        raise UserError(f"{path} has in line {wrong_lines[0]} {what}: it is no log of this task.")


def _check_form(spec: TaskSpec, options: dict[str, Any]) -> None:
    if spec.name != "uav/iot" or options.get("observation_scale", "raw") != "raw":
        raise UserError(
            f"Logs of MA-CQR hold data of uav/iot with raw observations, not of this form of '{spec.name}'."
        )


def _width(spec: TaskSpec) -> int:
    return 2 * spec.state_dim + spec.n_agents + 2


def _numbers(path: pathlib.Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(V, width) numbers, found by the names of their columns, and the (V,) lines of the file that they stand in."""
    number, rows, lines = 1, [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            dialect = csv.Sniffer().sniff(file.readline(), delimiters=",;\t")
            file.seek(0)
            reader = csv.reader(file, dialect)
            header = next(reader)
            chosen = _columns(path, header, width)
            for cells in reader:
                number = reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise UserError(f"{path} is damaged: line {number} has {len(cells)} fields, not {len(header)}.")
                *values, over = (cells[i] for i in chosen)
                rows.append([*map(float, values), float(_FLAGS.get(over.strip().lower(), over))])
                lines.append(number)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged: line {number}, {error}.") from error
    if not rows:
        raise UserError(f"{path} holds no transitions.")
    return np.array(rows), np.array(lines)


def _columns(path: pathlib.Path, header: list[str], width: int) -> list[int]:
    """Where the columns 0, 1, … stand; besides them there may only be columns of line numbers."""
    names = [name.strip() for name in header]
    known = [str(i) for i in range(width)]
    if missing := [name for name in known if name not in names]:
        some = ", ".join(missing[:5]) + (f" … {missing[-1]}" if len(missing) > 5 else "")
        raise UserError(f"{path} lacks the columns {some}; logs of this task have 0 to {width - 1}.")
    line_numbers = re.compile(r"(Unnamed: \d+|index)?", re.IGNORECASE)
    if others := [name for name in names if name not in known and not line_numbers.fullmatch(name)]:
        raise UserError(f"{path} has the column {others[0]!r}, but logs of this task have 0 to {width - 1}.")
    if twice := [name for name in known if names.count(name) > 1]:
        raise UserError(f"{path} has the column {twice[0]} twice.")
    return [names.index(name) for name in known]
