"""Checks the arrays of a dataset."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax.data.dataset import Dataset, EpisodeStore
from omarl_jax.errors import UserError

_TOLERANCE = 1e-6  # of continuous actions around [-1, 1]: float32 rounding of a squashed policy


def layout(spec: TaskSpec) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """The dtype and the shape, without the row axis, of every field of `EpisodeStore` on a task."""
    agents = (spec.n_agents,)
    real, whole, flag = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.bool_)
    return {
        "obs": (real, (*agents, spec.obs_dim)),
        "actions": (whole, agents) if spec.kind == "discrete" else (real, (*agents, spec.action_dim)),
        "rewards": (real, agents),
        "terminal": (flag, agents),
        "truncated": (flag, ()),
        "closing": (flag, ()),
        "state": (real, (spec.state_dim,)),
        "action_mask": (flag, (*agents, spec.action_dim)),
    }


def validate_shapes(dataset: Dataset) -> None:
    """Compares the fields, dtypes and shapes of a dataset with its task; reads no array element.

    Raises:
        UserError: for the first field that disagrees.
    """
    spec, rows = dataset.spec, dataset.rows
    if not isinstance(rows, EpisodeStore):
        raise UserError(f"The rows of a dataset are an EpisodeStore, as from_episodes makes it, not a {_kind(rows)}.")
    for name, array in rows._asdict().items():
        if array is None and name not in EpisodeStore._field_defaults and not (name == "obs" and spec.obs_from_state):
            raise UserError(f"The dataset's {name} is missing.")
        if array is not None and not (hasattr(array, "shape") and hasattr(array, "dtype")):
            raise UserError(f"The dataset's {name} is a {_kind(array)}, but must be an array.")
    if spec.kind not in ("continuous", "discrete"):
        raise UserError(f"Task '{spec.name}' has actions of kind '{spec.kind}', but they are continuous or discrete.")
    if spec.state_is_obs and spec.state_dim != spec.n_agents * spec.obs_dim:
        raise UserError(
            f"Task '{spec.name}' says that its state is all {spec.n_agents} observations of length {spec.obs_dim}, "
            f"but gives the state length {spec.state_dim}."
        )
    if (rows.state is None) != spec.state_is_obs:
        problem = "must not be stored, being all observations" if spec.state_is_obs else "is missing"
        raise UserError(f"The dataset's state {problem} on task '{spec.name}'.")
    if spec.obs_from_state and rows.obs is not None:
        raise UserError(f"The dataset's obs must not be stored: on task '{spec.name}' they follow from the state.")
    if rows.action_mask is not None and spec.kind == "continuous":
        raise UserError(f"The dataset has an action_mask, but the actions of task '{spec.name}' are continuous.")
    first: Any = rows.state if rows.obs is None else rows.obs
    for name, (dtype, shape) in layout(spec).items():
        array = getattr(rows, name)
        if array is None:
            continue
        expected = (*first.shape[:1], *shape)
        if array.shape != expected:
            raise UserError(
                f"The dataset's {name} has shape {array.shape}, but task '{spec.name}' and the number of rows need "
                f"{expected}."
            )
        if array.dtype != dtype:
            raise UserError(f"The dataset's {name} has dtype {array.dtype}, but must have {dtype}.")


def validate(dataset: Dataset) -> None:
    """Checks everything that `EpisodeStore` promises.

    Single-step episodes may end without a flag, since logs without episode order consist of them. Longer ones must end
    terminal or truncated; otherwise a forgotten flag would let methods bootstrap beyond the end of the task.

    Raises:
        UserError: for the first mistake found, with field, value, episode, step, agent and entry.

    Warns:
        UserWarning: if the ends of episodes look like a time limit that was flagged as the end of the task.
    """
    validate_shapes(dataset)
    rows = EpisodeStore(*(None if array is None else np.asarray(array) for array in dataset.rows))
    spec, closing = dataset.spec, rows.closing
    if closing.all():  # also without any row
        raise UserError(f"The dataset of task '{spec.name}' is empty: it has no transitions.")

    starts = np.append(True, closing[:-1])  # (M,) whether an episode begins with the row
    ends = ~closing & np.append(closing[1:], True)  # (M,) whether the row is the last transition of its episode
    last = np.arange(len(closing)) == len(closing) - 1
    _refuse(rows, "closing", starts & closing, "its episode has no step")
    _refuse(rows, "closing", last & ~closing, "the last row must be a final-observation row")
    for name in ("terminal", "truncated", "rewards", "actions"):
        array = getattr(rows, name)
        _refuse(rows, name, _rowwise(closing, array) & (array != 0), "it must be 0 in a final-observation row")
    _refuse(rows, "truncated", rows.truncated & ~ends, "the episode goes on, but must end here")
    finished = _rowwise(rows.terminal.all(axis=1) & ~ends, rows.terminal)
    _refuse(rows, "terminal", finished, "it has ended for all agents, but the episode goes on")
    unended = ends & ~starts & ~rows.terminal.any(axis=1) & ~rows.truncated
    _refuse(rows, "truncated", unended, "an episode ends here, so it must be terminal or truncated")

    for name in ("obs", "state", "rewards", "actions"):
        array = getattr(rows, name)
        if array is not None and array.dtype == np.float32:
            _refuse(rows, name, ~np.isfinite(array), "it must be finite")
    if spec.kind == "continuous":
        least, most = rows.actions.min(), rows.actions.max()
        outside = np.abs(rows.actions) > 1 + _TOLERANCE
        _refuse(rows, "actions", outside, f"it must lie in [-1, 1], but actions reach from {least:g} to {most:g}")
    else:
        chosen = rows.actions[~closing]
        from_one = chosen.min() == 1 and chosen.max() == spec.action_dim
        instead = "; the smallest is 1, so they seem to be counted from 1: subtract 1" if from_one else ""
        outside = (rows.actions < 0) | (rows.actions >= spec.action_dim)
        _refuse(rows, "actions", outside, f"it must be one of 0 … {spec.action_dim - 1}{instead}")
    if rows.action_mask is not None:
        legal = np.take_along_axis(rows.action_mask, rows.actions[..., None], axis=-1)[..., 0]  # (M, N)
        _refuse(rows, "actions", ~legal & ~closing[:, None], "action_mask forbids it")
    if doubt := doubtful_ends(dataset):
        warnings.warn(doubt, stacklevel=3)


def doubtful_ends(dataset: Dataset) -> str:
    """A sentence if all episodes that reach the time limit are terminal there, the commonest mistake in logs; else "".

    Tasks of single steps, and those whose time limit is terminal by nature or by an option, are meant to be so.
    """
    spec, options = dataset.spec, dataset.metadata.get("options")
    meant = dataset.metadata | (options if isinstance(options, dict) else {})
    if spec.episode_length == 1 or meant.get("time_limit_is_terminal"):
        return ""
    last = np.flatnonzero(np.asarray(dataset.rows.closing)) - 1
    at_limit = last[dataset.lengths == spec.episode_length]
    if len(at_limit) == 0 or not np.asarray(dataset.rows.terminal)[at_limit].all():
        return ""
    return (
        f"Every episode of '{spec.name}' that reaches the time limit, {spec.episode_length} steps, ends as terminal "
        f"({len(at_limit):,} of {len(last):,} episodes), so methods learn that no rewards could follow. "
        "If only the time was up, flag the last step as truncated instead."
    )


def place(field: str, episode: int, step: int | None, index: Sequence[int], ordered: bool = True) -> str:
    """Where a value stands in a dataset, in words.

    Args:
        field: of `EpisodeStore`.
        episode: its episode, or transition.
        step: of the episode; None for the final observation.
        index: the axes after time.
        ordered: whether transitions form episodes.
    """
    if ordered:
        parts = [f"episode {episode}", "final observation" if step is None else f"step {step}"]
    else:
        parts = [f"transition {episode}", *(["next observation"] if step is None else [])]
    names = ("entry",) if field == "state" else ("agent", "action" if field == "action_mask" else "entry")
    parts += [f"{name} {i}" for name, i in zip(names, index, strict=False)]
    return f"{', '.join(parts)} (counted from 0)"


def _rowwise(rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Broadcasts a property of rows (M,) to the shape of an array (M, …)."""
    return np.broadcast_to(rows.reshape(-1, *[1] * (like.ndim - 1)), like.shape)


def _refuse(rows: EpisodeStore, field: str, bad: np.ndarray, why: str) -> None:
    """Raises for the first value of a field that is bad, if any is."""
    if bad.any():
        row, *index = map(int, np.unravel_index(int(bad.argmax()), bad.shape))
        finals = np.flatnonzero(rows.closing)
        episode = int(np.searchsorted(finals, row))
        begin = int(finals[episode - 1]) + 1 if episode else 0
        ordered = bool((np.diff(finals, prepend=-1) > 2).any())
        where = place(field, episode, None if rows.closing[row] else row - begin, index, ordered)
        raise UserError(f"The dataset's {field} holds {getattr(rows, field)[(row, *index)]!s} in {where}: {why}.")


def _kind(value: object) -> str:
    return type(value).__name__


def validate_task(found: TaskSpec, expected: TaskSpec, what: str) -> None:
    """Checks that policies of one task can play the other; the length of episodes and the state may differ.

    Args:
        found: the task of a dataset or an environment.
        expected: the task that it is used for.
        what: the dataset or environment, at the beginning of a sentence.

    Raises:
        UserError: if they cannot.
    """
    for name in ("name", "kind", "n_agents", "obs_dim", "action_dim"):
        has, needs = getattr(found, name), getattr(expected, name)
        if has != needs:
            raise UserError(
                f"{what} is of task '{found.name}' with {name} {has!r}, "
                f"but task '{expected.name}' with {name} {needs!r} was asked for."
            )
