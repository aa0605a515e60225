"""Checks the arrays of a dataset, and builds them from episodes."""

from collections.abc import Callable, Sequence

import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax.data.dataset import Dataset, EpisodeStore
from omarl_jax.errors import UserError

Field = np.ndarray | Sequence[np.ndarray]

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
    if rows.action_mask is not None and spec.kind == "continuous":
        raise UserError(f"The dataset has an action_mask, but the actions of task '{spec.name}' are continuous.")
    for name, (dtype, shape) in layout(spec).items():
        array = getattr(rows, name)
        if array is None:
            continue
        expected = (*rows.obs.shape[:1], *shape)
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
        UserError: for the first mistake found, with field, row, [agent, dimension] and value; all count from 0.
    """
    validate_shapes(dataset)
    rows = EpisodeStore(*(None if array is None else np.asarray(array) for array in dataset.rows))
    spec, closing = dataset.spec, rows.closing
    if closing.all():  # also without any row
        raise UserError(f"The dataset of task '{spec.name}' is empty: it has no transitions.")

    starts = np.append(True, closing[:-1])  # (M,) whether an episode begins with the row
    ends = ~closing & np.append(closing[1:], True)  # (M,) whether the row is the last transition of its episode
    last = np.arange(len(closing)) == len(closing) - 1
    _refuse("closing", closing, starts & closing, "its episode has no step")
    _refuse("closing", closing, last & ~closing, "the last row must be a final-observation row")
    for name in ("terminal", "truncated", "rewards", "actions"):
        array = getattr(rows, name)
        _refuse(name, array, _rowwise(closing, array) & (array != 0), "it must be 0 in a final-observation row")
    _refuse("truncated", rows.truncated, rows.truncated & ~ends, "the next row must be a final-observation row")
    finished = _rowwise(rows.terminal.all(axis=1) & ~ends, rows.terminal)
    _refuse("terminal", rows.terminal, finished, "all agents ended, so the next row must be a final-observation row")
    unended = ends & ~starts & ~rows.terminal.any(axis=1) & ~rows.truncated
    _refuse("truncated", rows.truncated, unended, "an episode ends here that is not terminal either")

    for name in ("obs", "state", "rewards", "actions"):
        array = getattr(rows, name)
        if array is not None and array.dtype == np.float32:
            _refuse(name, array, ~np.isfinite(array), "it must be finite")
    if spec.kind == "continuous":
        _refuse("actions", rows.actions, np.abs(rows.actions) > 1 + _TOLERANCE, "it must lie in [-1, 1]")
        return
    outside = (rows.actions < 0) | (rows.actions >= spec.action_dim)
    _refuse("actions", rows.actions, outside, f"it must be one of 0 … {spec.action_dim - 1}")
    if rows.action_mask is not None:
        legal = np.take_along_axis(rows.action_mask, rows.actions[..., None], axis=-1)[..., 0]  # (M, N)
        _refuse("actions", rows.actions, ~legal & ~closing[:, None], "action_mask forbids it")


def from_episodes(
    spec: TaskSpec,
    obs: Field,
    actions: Field,
    rewards: Field,
    terminal: Field,
    truncated: Field,
    last_obs: Field,
    *,
    lengths: np.ndarray | None = None,
    state: Field | None = None,
    last_state: Field | None = None,
    action_mask: Field | None = None,
    last_action_mask: Field | None = None,
) -> EpisodeStore:
    """Lays out episodes as `EpisodeStore`, in one of three ways.

    - Lists: every argument holds one array per episode.
    - Arrays and `lengths`: the V steps of all E episodes stand back to back.
    - Arrays alone: V transitions without order; each becomes an episode of its own, closed by its next observation.

    Args:
        spec: the task.
        obs: (V, N, O), or per episode (T, N, O); the other arguments of steps likewise.
        actions: (V, N, A) floats, or (V, N) integers.
        rewards: (V, N).
        terminal: (V, N) bool.
        truncated: (V,) bool.
        last_obs: (E, N, O), the observation after each episode's last step (`next_obs`, without order).
        lengths: (E,) integers, steps of each episode.
        state: (V, S); not stored where it is the concatenation of the observations.
        last_state: (E, S).
        action_mask: (V, N, A) bool, in discrete tasks.
        last_action_mask: (E, N, A) bool.

    Returns:
        V + E rows on the host; their values are still to be checked by `validate`.

    Raises:
        UserError: where shapes disagree with the task or with each other, or a dtype would lose information.
    """
    if isinstance(obs, list | tuple):
        lengths = np.array([len(episode) for episode in obs], dtype=np.int64)
    elif lengths is None:
        lengths = np.ones(len(obs), dtype=np.int64)
    lengths = np.asarray(lengths)
    if lengths.size == 0 or (lengths < 1).any():
        raise UserError(f"There must be episodes for task '{spec.name}', and each must have a step.")
    steps_in_all = int(lengths.sum())
    closing = np.zeros(steps_in_all + len(lengths), dtype=np.bool_)
    closing[np.cumsum(lengths + 1) - 1] = True
    fields = layout(spec)

    def lay(field: str, steps: Field, last: Field | None = None) -> np.ndarray:
        dtype, shape = fields[field]
        rows = np.zeros((len(closing), *shape), dtype)
        listed = isinstance(steps, list | tuple)
        if listed and [len(episode) for episode in steps] != lengths.tolist():
            raise UserError(f"The episodes of {field} and of obs have different numbers of steps.")
        join = np.concatenate if listed else np.asarray
        rows[~closing] = _fitting(field, steps, join, dtype, (steps_in_all, *shape))
        if last is not None:
            rows[closing] = _fitting(f"last_{field}", last, np.asarray, dtype, (len(lengths), *shape))
        return rows

    if spec.state_is_obs:
        state = last_state = None
    elif state is None or last_state is None:
        raise UserError(f"Task '{spec.name}' needs state and last_state, since its state is not all observations.")
    if (action_mask is None) != (last_action_mask is None):
        raise UserError("action_mask and last_action_mask are only useful together.")
    return EpisodeStore(
        obs=lay("obs", obs, last_obs),
        actions=lay("actions", actions),
        rewards=lay("rewards", rewards),
        terminal=lay("terminal", terminal),
        truncated=lay("truncated", truncated),
        closing=closing,
        state=None if state is None else lay("state", state, last_state),
        action_mask=None if action_mask is None else lay("action_mask", action_mask, last_action_mask),
    )


def _rowwise(rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Broadcasts a property of rows (M,) to the shape of an array (M, …)."""
    return np.broadcast_to(rows.reshape(-1, *[1] * (like.ndim - 1)), like.shape)


def _fitting(
    argument: str, values: Field, join: Callable[[Field], np.ndarray], dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    """The values as one array, if shape and dtype allow it."""
    try:
        array = join(values)
    except ValueError as error:
        raise UserError(f"The episodes of {argument} differ in the shape of a step.") from error
    if array.shape != shape:
        raise UserError(f"{argument} has shape {array.shape}, but the task and the episodes need {shape}.")
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UserError(f"{argument} has dtype {array.dtype}, which does not convert to {dtype}.")
    return array


def _refuse(field: str, values: np.ndarray, bad: np.ndarray, why: str) -> None:
    """Raises for the first value that is bad, if any is."""
    if bad.any():
        row, *place = map(int, np.unravel_index(int(bad.argmax()), bad.shape))
        at = f" at {place}" if place else ""
        raise UserError(f"Row {row} of the dataset's {field} holds {values[(row, *place)]!s}{at}: {why}.")


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
