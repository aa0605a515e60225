"""Logs of `uav/iot` in the CSV layout of MA-CQR (Eldeeb et al. 2024).

The header is `,0,1,…`. Each line holds its number, the state, the action of each UAV, the reward that they share, the
next state, and whether the episode is over.
"""

import csv
import dataclasses
import pathlib
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
    table = _numbers(path, _width(spec))
    cuts = np.cumsum([spec.state_dim, spec.n_agents, 1, spec.state_dim])
    state, actions, reward, next_state, over = np.split(table, cuts, axis=1)
    over = over[:, 0] != 0
    cells, ages = np.split(np.stack([state, next_state], axis=1), [2 * spec.n_agents], axis=2)  # (V, 2, …)
    age = ages[:, 1].mean(axis=1)
    for what, values, least, most in (
        ("actions", actions, 0, spec.action_dim - 1),
        ("cells", cells, 0, env.side - 1),
        ("ages", ages, 1, MAX_AGE),
    ):
        wrong = (values != np.round(values)) | (values < least) | (values > most)
        _refuse(
            path, wrong.reshape(len(table), -1).any(axis=1), f"{what} that are no whole numbers from {least} to {most}"
        )
    _refuse(path, reward[:, 0] > 1e-3 - age, "a reward above the cost of the ages alone")

    last = over | np.append((next_state[:-1] != state[1:]).any(axis=1), True)
    ends = np.flatnonzero(last)

    def for_all(x: np.ndarray) -> np.ndarray:  # (V, S) -> (V, N, S): everyone sees everything
        return np.repeat(x[:, None].astype(np.float32), spec.n_agents, axis=1)

    terminal = over if env.time_limit_is_terminal else np.zeros_like(over)
    rows = from_episodes(
        spec,
        for_all(state),
        actions.astype(np.int32),
        np.repeat(reward.astype(np.float32), spec.n_agents, axis=1),
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
    columns = [rows.obs[at, 0], rows.actions[at], rows.rewards[at, :1], rows.obs[at + 1, 0], over[:, None]]
    table = np.concatenate([np.asarray(column, np.float64) for column in columns], axis=1)
    with replacing(pathlib.Path(path)) as file:
        lines = [",".join(["", *map(str, range(_width(spec)))])]
        lines += [f"{i},{','.join(map(repr, line))}" for i, line in enumerate(table.tolist())]
        file.write("\n".join([*lines, ""]).encode())


def _refuse(path: pathlib.Path, wrong: np.ndarray, what: str) -> None:
    """Raises for the first line that is wrong, if any is."""
    if wrong.any():
        raise UserError(f"{path} has in line {int(wrong.argmax()) + 2} {what}: it is no log of this task.")


def _check_form(spec: TaskSpec, options: dict[str, Any]) -> None:
    if spec.name != "uav/iot" or options.get("observation_scale", "raw") != "raw":
        raise UserError(
            f"Logs of MA-CQR hold data of uav/iot with raw observations, not of this form of '{spec.name}'."
        )


def _width(spec: TaskSpec) -> int:
    return 2 * spec.state_dim + spec.n_agents + 2


def _numbers(path: pathlib.Path, width: int) -> np.ndarray:
    """(V, width) numbers, found by the names of their columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if missing := [str(i) for i in range(width) if str(i) not in header]:
                some = ", ".join(missing[:5]) + (f" … {missing[-1]}" if len(missing) > 5 else "")
                raise UserError(f"{path} lacks the columns {some}; logs of this task have 0 to {width - 1}.")
            if len(header) > width + 1:
                raise UserError(f"{path} has {len(header) - 1} columns, but logs of this task have {width}.")
            chosen = [header.index(str(i)) for i in range(width)]
            lines = []
            for line in reader:
                if len(line) != len(header):
                    found = f"{len(line)} fields, not {len(header)}"
                    raise UserError(f"{path} is damaged: line {reader.line_num} has {found}.")
                lines.append([float(line[i]) for i in chosen])
            table = np.array(lines)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged: line {reader.line_num}, {error}.") from error
    if len(table) == 0:
        raise UserError(f"{path} holds no transitions.")
    return table
