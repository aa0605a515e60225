"""Builds the arrays of a dataset from the episodes of a log, and says what to pass instead where they do not fit."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax.data.dataset import EpisodeStore
from omarl_jax.data.validation import layout, place
from omarl_jax.errors import UserError

Field = Any  # an array of all steps, or a list with the array of each episode


def from_episodes(
    spec: TaskSpec,
    obs: Field,
    actions: Field,
    rewards: Field,
    terminal: Field,
    truncated: Field,
    last_obs: Field,
    *,
    lengths: Any = None,
    state: Field = None,
    last_state: Field = None,
    action_mask: Field = None,
    last_action_mask: Field = None,
) -> EpisodeStore:
    """Lays out episodes as `EpisodeStore`, in one of three ways.

    - Lists (or generators): every argument holds one array per episode.
    - Arrays and `lengths`: the V steps of all E episodes stand back to back.
    - Arrays alone: V transitions without order; each becomes an episode of its own, closed by its next observation.

    Numbers may be of any dtype that converts without loss of range; flags may be 0 and 1.

    Args:
        spec: the task.
        obs: (V, N, O), or per episode (T, N, O); the other arguments of steps likewise. Not stored, and may be None,
            where observations follow from the state.
        actions: (V, N, A) in [-1, 1], or (V, N) whole numbers from 0.
        rewards: (V, N).
        terminal: (V, N) flags, whether the task has ended for the agent.
        truncated: (V,) flags, whether the episode was cut off, for example at the time limit.
        last_obs: (E, N, O), the observation after each episode's last step (`next_obs`, without order).
        lengths: (E,) whole numbers, steps of each episode.
        state: (V, S); not stored where it is the concatenation of the observations.
        last_state: (E, S).
        action_mask: (V, N, A) flags, in discrete tasks.
        last_action_mask: (E, N, A) flags.

    Returns:
        V + E rows on the host; their values are still to be checked by `validate`.

    Raises:
        UserError: where shapes disagree with the task or with each other, or values do not convert.
    """
    if spec.obs_from_state:
        obs = last_obs = None
    if spec.state_is_obs:
        state = last_state = None
    elif state is None or last_state is None:
        raise UserError(f"Task '{spec.name}' needs state and last_state, since its state is not all observations.")
    if (action_mask is None) != (last_action_mask is None):
        raise UserError("action_mask and last_action_mask are only useful together.")
    given = {"obs": obs, "actions": actions, "rewards": rewards, "terminal": terminal, "truncated": truncated}
    given |= {"last_obs": last_obs, "state": state, "last_state": last_state}
    given |= {"action_mask": action_mask, "last_action_mask": last_action_mask}
    log = _Log(spec, {name: _read(name, values) for name, values in given.items() if values is not None}, lengths)

    closing = np.zeros(log.steps + len(log.lengths), dtype=np.bool_)
    closing[np.cumsum(log.lengths + 1) - 1] = True
    rows = {"closing": closing}
    for name in log.given:
        if name.startswith("last_"):
            rows[name.removeprefix("last_")][closing] = log.values(name)
        else:
            dtype, shape = layout(spec)[name]
            rows[name] = np.zeros((len(closing), *shape), dtype)
            rows[name][~closing] = log.values(name)
    return EpisodeStore(**({"obs": None} | rows))


class _Log:
    """The arguments, and the steps of each episode, which the actions count.

    Attributes:
        given: argument -> its array, or the arrays of each episode.
        leader: the argument whose form all others must have.
        listed: whether the arguments of steps are lists.
        ordered: whether steps form episodes.
        lengths: (E,) int, steps of each episode.
        steps: V.
    """

    def __init__(self, spec: TaskSpec, given: dict[str, np.ndarray | list[np.ndarray]], lengths: Any):
        self.spec, self.given = spec, given
        self.leader = "state" if spec.obs_from_state else "obs"
        self._refuse_stacked_episodes()
        if self.leader == "obs":  # a state has no agents
            self._refuse_agents_first("obs")
        self._refuse_agents_first("actions")
        self.listed = isinstance(given[self.leader], list)
        self.ordered = self.listed or lengths is not None
        for name, values in given.items():
            if not name.startswith("last_") and isinstance(values, list) != self.listed:
                raise self._other_form(name)
        actions = given["actions"]
        counted = np.array([len(x) for x in actions] if isinstance(actions, list) else [1] * len(actions), np.int64)
        self.lengths = counted if lengths is None else _whole_numbers(lengths)
        self.steps = int(self.lengths.sum())
        if self.lengths.size == 0 or (self.lengths < 1).any():
            raise UserError(f"There must be episodes for task '{spec.name}', and each must have a step.")
        if self.listed and not np.array_equal(self.lengths, counted):
            raise UserError("lengths disagree with the episodes of actions: lists of episodes need none.")
        if self.steps != counted.sum():
            raise UserError(f"The lengths of episodes sum up to {self.steps}, but actions has {counted.sum()} steps.")

    def values(self, name: str) -> np.ndarray:
        """The values of an argument, (V, …) or (E, …), in the shape and the dtype that `EpisodeStore` has.

        Raises:
            UserError: if they cannot be had.
        """
        given, last = self.given[name], name.startswith("last_")
        dtype, step = layout(self.spec)[name.removeprefix("last_")]
        if isinstance(given, list) and not last:
            if len(given) != len(self.lengths):
                raise UserError(f"{name} lists {len(given)} episodes, but actions {len(self.lengths)}.")
            for episode, (part, steps) in enumerate(zip(given, self.lengths, strict=True)):
                if len(part) != steps:
                    found = (
                        f"Episode {episode} (counted from 0) has {len(part)} steps of {name}, but {steps} of actions."
                    )
                    raise self._misfit(name, found)
        try:
            array = given if isinstance(given, np.ndarray) else np.stack(given) if last else np.concatenate(given)
        except ValueError:
            raise self._misfit(name, f"The episodes of {name} differ in the shape of a step.") from None
        shape = (len(self.lengths) if last else self.steps, *step)
        if array.shape != shape:
            raise self._misfit(name, f"{name} has shape {array.shape}, but the task and the episodes need {shape}.")
        return self._converted(name, array, dtype)

    def _converted(self, name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """The same values in another dtype, which must be able to hold them."""
        if array.dtype.kind not in "biuf":
            raise UserError(f"{name} has dtype {array.dtype}, which does not convert to {dtype}.")
        with np.errstate(over="ignore", invalid="ignore"):
            converted = array.astype(dtype)
        if dtype.kind == "f":
            bad, why = np.isfinite(array) & ~np.isfinite(converted), f"{dtype} cannot hold it"
        else:
            why = "a flag is 0 or 1" if dtype.kind == "b" else f"it must be a whole number that {dtype} can hold"
            bad = converted != array
        if bad.any():
            row, *index = map(int, np.unravel_index(int(bad.argmax()), bad.shape))
            episode, step = row, None
            if not name.startswith("last_"):
                episode = int(np.searchsorted(np.cumsum(self.lengths), row, side="right"))
                step = row - int(self.lengths[:episode].sum())
            where = place(name.removeprefix("last_"), episode, step, index, self.ordered)
            raise UserError(f"{name} holds {array[(row, *index)]!s} in {where}: {why}.")
        return converted

    def _refuse_stacked_episodes(self) -> None:
        """Raises if all episodes stand in one array (E, T, …), or a list holds steps instead of episodes."""
        name, actions = self.leader, self.given["actions"]
        leader, (_, step) = self.given[name], layout(self.spec)[name]
        if isinstance(leader, list) and leader and all(part.shape == step for part in leader):
            looks, code = "It looks like a list of steps, not of episodes", f"{name}=np.stack({name})"
            rest = "likewise every other argument, and the lengths of the episodes"
            raise _hint(f"{name} is a list of arrays of shape {step}.", looks, code, rest)
        if isinstance(leader, np.ndarray) and leader.ndim == 2 + len(step) and leader.shape[2:] == step:
            looks, code = f"It looks like {leader.shape[0]} episodes of {leader.shape[1]} steps", f"{name}=list({name})"
            if isinstance(actions, np.ndarray) and actions.shape[:2] == (leader.shape[0], leader.shape[1] - 1):
                looks = (
                    f"It looks like {leader.shape[0]} episodes of {leader.shape[1] - 1} steps and a last observation"
                )
                code = f"{name}=list({name}[:, :-1]), last_{name}={name}[:, -1]"
            rest = "likewise every other argument, without steps that only fill up episodes that ended sooner"
            raise _hint(f"{name} has shape {leader.shape}.", looks, code, rest)

    def _refuse_agents_first(self, name: str) -> None:
        given, (_, step) = self.given[name], layout(self.spec)[name]
        parts = given if isinstance(given, list) else [given]
        swapped = [x.ndim == 1 + len(step) and x.shape[:1] + x.shape[2:] == step for x in parts]
        if swapped and all(swapped) and any(x.shape[1:] != step for x in parts):  # else as many steps as agents
            code = (
                f"[np.moveaxis(x, 0, 1) for x in {name}]" if isinstance(given, list) else f"np.moveaxis({name}, 0, 1)"
            )
            raise _hint(f"{name} has shape {parts[0].shape}.", "The agents stand before time", f"{name}={code}")

    def _other_form(self, name: str) -> UserError:
        """The error for an array where the leader is a list, or the other way about."""
        given, (_, step), leader = self.given[name], layout(self.spec)[name], self.leader
        if self.listed:
            found = f"{leader} is a list of episodes, but {name} an array."
            return _hint(found, "Both must be lists", f"{name}=list({name})")
        join = "stack" if all(part.shape == step for part in given) else "concatenate"
        return _hint(f"{leader} is an array, but {name} a list.", "Both must be arrays", f"{name}=np.{join}({name})")

    def _misfit(self, name: str, found: str) -> UserError:
        """The error for an argument of another shape: what was found, what it looks like, and what to pass instead."""
        given, last, field = self.given[name], name.startswith("last_"), name.removeprefix("last_")
        _, step = layout(self.spec)[field]
        if last and [len(given), *(x.shape for x in given)] == [len(self.lengths), *((t, *step) for t in self.lengths)]:
            return _hint(found, "It looks like what followed every step", f"{name}=[x[-1] for x in {name}]")
        if last and isinstance(given, np.ndarray) and given.shape == (self.steps, *step):
            code = f"{name}={name}[np.cumsum(lengths) - 1]"
            return _hint(found, "It looks like what followed every step", code)
        if last and not self.ordered and len(given) != self.steps:
            return UserError(f"{found} Without lengths, the steps of each episode, every step is an episode.")
        if f"last_{name}" in self.given and (code := self._without_last(name, step)):
            return _hint(found, "It looks as if what followed the last step came with the steps", code)
        if last and isinstance(given, list):
            return UserError(found)
        part = given[0] if isinstance(given, list) else given
        rows = len(part) if isinstance(given, list) else len(self.lengths) if last else self.steps
        if (known := _resemblance(field, part, rows, step, self.spec)) is None:
            return UserError(found)
        looks, change = known
        code = f"[{change.format('x')} for x in {name}]" if isinstance(given, list) else change.format(name)
        return _hint(found, looks, f"{name}={code}" if change else "")

    def _without_last(self, name: str, step: tuple[int, ...]) -> str:
        """What to pass if an argument has one row more than actions in each episode; empty if it has not."""
        given = self.given[name]
        if isinstance(given, list):
            longer = [x.shape for x in given] == [(length + 1, *step) for length in self.lengths]
            return f"{name}=[x[:-1] for x in {name}], last_{name}=[x[-1] for x in {name}]" if longer else ""
        if self.ordered and given.shape == (self.steps + len(self.lengths), *step):
            at = "np.cumsum(np.add(lengths, 1)) - 1"
            return f"{name}=np.delete({name}, {at}, axis=0), last_{name}={name}[{at}]"
        if not self.ordered and given.shape == (self.steps + 1, *step):
            return f"{name}={name}[:-1], last_{name}={name}[-1:], lengths=[{self.steps}]"
        return ""


def _resemblance(
    field: str, found: np.ndarray, rows: int, step: tuple[int, ...], spec: TaskSpec
) -> tuple[str, str] | None:
    """What an array that is not (rows, *step) looks like, and the expression that makes `{}` fit, if there is one."""
    n, shape = spec.n_agents, found.shape
    if field == "actions" and spec.kind == "discrete" and shape == (rows, n, spec.action_dim):
        one_hot = np.isin(found, (0, 1)).all() and (found.sum(axis=-1) == 1).all()
        return "It looks one-hot" if one_hot else "It looks like a number for each action", "{}.argmax(axis=-1)"
    if shape == (rows, *step, 1):
        return "Its last axis has one entry only", "{}[..., 0]"
    if step and (*shape, 1) == (rows, *step):
        return "It lacks its last axis", "{}[..., None]"
    if field == "actions" and spec.kind == "continuous" and shape == (rows, n):
        return f"It looks like discrete actions, but those of '{spec.name}' are {spec.action_dim} numbers each", ""
    if field == "truncated" and shape == (rows, n):
        return "It looks like a flag for each agent, but an episode is cut off for all at once", "{}.any(axis=1)"
    if field == "state" and shape == (rows, n, *step):
        return "It looks like the state once for each agent", "{}[:, 0]"
    if field in ("state", "truncated"):
        return None
    for_team = f"It looks like one for the whole team, not for each of {n} agents"
    if shape == (rows, *step[1:]) and field != "actions":
        return for_team, f"np.repeat({{}}[:, None], {n}, axis=1)"
    if shape == (rows, 1, *step[1:]) and field != "actions":
        return for_team, f"np.repeat({{}}, {n}, axis=1)"
    if shape == (n, rows, *step[1:]):
        return "The agents stand before time", "np.moveaxis({}, 0, 1)"
    if len(step) == 2 and shape == (rows, math.prod(step)):
        return "The agents stand in one row", f"{{}}.reshape(-1, {step[0]}, {step[1]})"
    return None


def _hint(found: str, looks: str, code: str = "", rest: str = "") -> UserError:
    instead = f": pass `{code}`" if code else ""
    return UserError(f"{found} {looks}{instead}{f', and {rest}' if rest else ''}.")


def _read(name: str, values: Any) -> np.ndarray | list[np.ndarray]:
    """An argument as an array, or as the arrays of each episode."""
    if isinstance(values, Mapping):
        raise _agents_by_name(name, f"{name}=np.stack(list({name}.values()), axis=1)")
    if isinstance(values, Iterable) and not isinstance(values, str | bytes) and not hasattr(values, "__array__"):
        values = list(values)
    elif isinstance(values, np.ndarray) and values.dtype == object and values.ndim == 1:
        values = list(values)  # episodes of different lengths
    if not isinstance(values, list):
        array = _array(name, values)
        if array.ndim == 0:
            raise UserError(f"{name} is a single value, but must be an array of all steps or a list of episodes.")
        return array
    if values and all(isinstance(value, Mapping) for value in values):
        raise _agents_by_name(name, f"{name}=[np.stack(list(x.values()), axis=1) for x in {name}]")
    if values and not isinstance(values[0], list | tuple) and np.ndim(values[0]) == 0:
        return _array(name, values)  # a number for each step
    parts = [_array(name, value) for value in values]
    if any(part.ndim == 0 for part in parts):
        raise UserError(f"{name} lists arrays and single values, but must list the arrays of each episode.")
    return parts


def _agents_by_name(name: str, code: str) -> UserError:
    return _hint(f"{name} is a dict.", "Agents are an axis, the second one after time", code)


def _array(name: str, values: Any) -> np.ndarray:
    if np.ma.is_masked(values):
        raise UserError(f"{name} has masked values: fill them in, or leave these steps out.")
    try:
        array = np.asarray(values)
        if array.dtype == object:
            array = np.asarray(array.tolist())
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} cannot be made an array of numbers: {error}.") from None
    if array.dtype == object:
        raise UserError(f"{name} holds Python objects, not numbers alone, such as {array.ravel()[0]!r}.")
    return array


def _whole_numbers(lengths: Any) -> np.ndarray:
    """The lengths of episodes as an array of integers."""
    read = _array("lengths", lengths if hasattr(lengths, "__array__") or np.isscalar(lengths) else list(lengths))
    if read.ndim != 1 or read.dtype.kind not in "iuf" or (read != np.floor(read)).any():
        raise UserError("lengths must be whole numbers, the steps of each episode.")
    return read.astype(np.int64)
