"""An offline dataset, and how batches are drawn from it on the device.

Steps are stored once, time-major, episodes back to back. Each episode ends with a final-observation row, so `next_obs`
is the row after and needs no memory of its own. `index` lists the rows that are transitions. For methods that need
`next_actions` it leaves out non-terminal transitions without a successor.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.spec import TaskSpec
from omarl_envs.views import derive

from omarl_jax.errors import UserError
from omarl_jax.types import Needs, Stats, Transition

_ALIGNMENT = 64
_ROWS_AT_ONCE = 2**16  # whose observations are derived together on the host


class EpisodeStore(NamedTuple):
    """The arrays of a dataset: M rows, transitions and final-observation rows, on the device or on the host.

    A final-observation row holds the last observation of an episode: `obs`, `state` and `action_mask`; all else in it
    is zero.

    Attributes:
        obs: (M, N, O) float32, or None where they follow from the state (`TaskSpec.obs_from_state`).
        actions: (M, N, A) float32 or (M, N) int32.
        rewards: (M, N) float32.
        terminal: (M, N) bool.
        truncated: (M,) bool.
        closing: (M,) bool, whether it is a final-observation row.
        state: (M, S) float32, or None where it is the concatenation of `obs`.
        action_mask: (M, N, A) bool, or None in continuous tasks.
    """

    obs: chex.Array | None
    actions: chex.Array
    rewards: chex.Array
    terminal: chex.Array
    truncated: chex.Array
    closing: chex.Array
    state: chex.Array | None = None
    action_mask: chex.Array | None = None


class IndexRange(NamedTuple):
    """The part of the index of a `DeviceData` that one run samples from; several data seeds share one device array.

    Attributes:
        start: () int32, first entry.
        size: () int32, number of entries.
    """

    start: chex.Array
    size: chex.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ObsRule:
    """How observations follow from the state: part of a program, not of its arguments.

    Attributes:
        name: `TaskSpec.obs_from_state`.
        n_agents: N.
    """

    name: str
    n_agents: int

    @staticmethod
    def of(spec: TaskSpec) -> "ObsRule | None":
        """The rule of a task, None if its observations are stored."""
        return ObsRule(spec.obs_from_state, spec.n_agents) if spec.obs_from_state else None

    def __call__(self, state: Any) -> Any:
        """(…, S) -> (…, N, O)."""
        return derive(self.name, state, self.n_agents)


class DeviceData(NamedTuple):
    """The data of a compiled training step: rows, and the list of those that may be sampled.

    Attributes:
        rows: M rows.
        index: (V,) int32, rows that are transitions (see `Dataset.index`).
        returns_to_go: (M, N) float32, or None where no method asks for them.
        obs_rule: makes the observations of rows that hold none.
    """

    rows: EpisodeStore
    index: chex.Array
    returns_to_go: chex.Array | None = None
    obs_rule: ObsRule | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset, usually on the host.

    Attributes:
        spec: the task it was made on.
        rows: its M rows.
        metadata: JSON values, which may be empty or None: `recipe`, `seed`, `behaviour`, `metrics` (the task's
            quantities, means over episodes), `mean_return`, `mean_score`, `random`, `expert` (reference returns),
            `reference_source`, `comparable` (with the paper) …
    """

    spec: TaskSpec
    rows: EpisodeStore
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.metadata is None:
            object.__setattr__(self, "metadata", {})
        if not isinstance(self.metadata, dict):
            raise UserError(f"The metadata of a dataset are a dict of JSON values, not {self.metadata!r}.")

    @property
    def size(self) -> int:
        """The number of transitions."""
        return int(np.sum(~np.asarray(self.rows.closing)))

    def index(self, next_actions: bool = False) -> np.ndarray:
        """(V,) int32, the rows that are transitions.

        Args:
            next_actions: leave out transitions whose next action is missing: those without a successor, unless the task
                has ended for all agents.
        """
        transition = ~np.asarray(self.rows.closing)
        if next_actions:
            ended = np.asarray(self.rows.terminal).all(axis=1)
            transition = transition & (np.append(transition[1:], False) | ended)
        return np.flatnonzero(transition).astype(np.int32)

    def episode_returns(self) -> np.ndarray:
        """(E,) float, the return of each episode: the sum over time of the mean reward of its agents."""
        finals = np.flatnonzero(np.asarray(self.rows.closing))
        team = np.asarray(self.rows.rewards, dtype=np.float64).mean(axis=1)
        return np.add.reduceat(team, np.concatenate([[0], finals[:-1] + 1]))

    def returns_to_go(self) -> np.ndarray:
        """(M, N) float32, the sum of each agent's rewards from a row to the end of its episode."""
        finals = np.flatnonzero(np.asarray(self.rows.closing))
        rewards = np.asarray(self.rows.rewards, dtype=np.float64)  # 0 in final-observation rows
        to_the_end = np.cumsum(rewards[::-1], axis=0)[::-1]
        return (to_the_end - np.repeat(to_the_end[finals], self.lengths + 1, axis=0)).astype(np.float32)

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int, the steps of each episode."""
        return np.diff(np.flatnonzero(np.asarray(self.rows.closing)), prepend=-1) - 1

    @property
    def ordered(self) -> bool:
        """Whether transitions form episodes; if not, each is an episode of its own."""
        return bool(self.lengths.max() > 1) or self.spec.episode_length == 1

    @property
    def whole_episodes(self) -> np.ndarray:
        """(E,) bool, the episodes that are there to their end: terminal for all, or the time limit."""
        last = np.flatnonzero(np.asarray(self.rows.closing)) - 1
        terminal = np.asarray(self.rows.terminal)[last].all(axis=1)
        return (terminal & self.ordered) | (self.lengths == self.spec.episode_length)

    def obs_in_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The observations of all rows: (P,) bool, whether a row is a transition, and (P, N, O) float32, part by part.

        They are one part if they are stored, and derived in parts if not, so that they never fill the host's memory.
        """
        transition, rule = ~np.asarray(self.rows.closing), ObsRule.of(self.spec)
        if rule is None:
            yield transition, np.asarray(self.rows.obs)
            return
        state = np.asarray(self.rows.state)
        for start in range(0, len(transition), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            yield transition[part], rule(state[part])

    def stats(self) -> Stats:
        """Mean and standard deviation of each agent's observations, over all transitions."""
        mean, square = 0.0, 0.0
        for transition, obs in self.obs_in_parts():
            mean = mean + np.einsum("m,mno->no", transition, obs, dtype=np.float64) / self.size
            square = square + np.einsum("m,mno,mno->no", transition, obs, obs, dtype=np.float64) / self.size
        std = np.sqrt(np.maximum(square - np.square(mean), 1e-6))
        return Stats(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))


def concat_datasets(datasets: list[Dataset], needs: Needs) -> tuple[DeviceData, list[IndexRange]]:
    """Concatenates datasets of one task on the host, to be put on the devices.

    Args:
        datasets: the datasets.
        needs: the fields that the method asks for.

    Returns:
        the data, and the range of each dataset in their index.

    Raises:
        UserError: if a dataset has no transitions with these fields, or no episodes for the windows that are needed, or
            some datasets hold observations and others derive them.
    """
    rules = [ObsRule.of(dataset.spec) for dataset in datasets]
    if any(rule != rules[0] for rule in rules):
        raise UserError(f"Some datasets of task '{datasets[0].spec.name}' hold observations, others derive them.")
    for dataset in datasets:
        _check_windows(dataset, needs)
    rows = jax.tree.map(lambda *parts: concatenate(parts), *(dataset.rows for dataset in datasets))
    first_row = 0
    ranges: list[IndexRange] = []
    index: list[np.ndarray] = []
    for dataset in datasets:
        part = dataset.index(needs.next_actions)
        if len(part) == 0:
            which = "that are followed by another action" if needs.next_actions else "at all"
            raise UserError(f"A dataset of task '{dataset.spec.name}' has no transitions {which}.")
        ranges.append(IndexRange(jnp.int32(sum(len(p) for p in index)), jnp.int32(len(part))))
        index.append(part + np.int32(first_row))
        first_row += dataset.rows.closing.shape[0]
    to_go = concatenate([dataset.returns_to_go() for dataset in datasets]) if needs.returns_to_go else None
    return DeviceData(rows, concatenate(index), to_go, rules[0]), ranges


def _check_windows(dataset: Dataset, needs: Needs) -> None:
    if needs.length is None:
        return
    task = dataset.spec.name
    if not dataset.ordered:
        raise UserError(f"A dataset of task '{task}' has no order of steps, which methods with memory learn from.")
    if needs.length > (longest := int(dataset.lengths.max())):
        raise UserError(f"Windows of {needs.length} steps are longer than any episode of task '{task}' ({longest}).")


def concatenate(parts: Sequence[chex.Array]) -> np.ndarray:
    """Concatenates arrays on the host, into memory that the devices of a CPU read without a copy.

    JAX shares memory that begins at a multiple of 64 bytes; NumPy's seldom does.
    """
    arrays = [np.asarray(part) for part in parts]
    if len(arrays) == 1 and arrays[0].flags.c_contiguous and arrays[0].ctypes.data % _ALIGNMENT == 0:
        return arrays[0]
    shape, dtype = (sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return np.concatenate(arrays, out=memory[begin : begin + size].view(dtype).reshape(shape))


def sample(data: DeviceData, index_range: IndexRange, key: chex.PRNGKey, needs: Needs) -> Transition:
    """Draws a batch uniformly, with replacement (published code draws without; in 10⁵ rows that is 0.5 % repeats).

    Args:
        data: the device data.
        index_range: the part of it to draw from.
        key: randomness.
        needs: batch size and fields.

    Returns:
        a batch whose arrays begin with (B,), or with (B, T) for methods that need windows. A window begins anywhere in
        an episode; after the end of its episode it is not `valid`.
    """
    drawn = index_range.start + jax.random.randint(key, (needs.batch_size,), 0, index_range.size)
    at = data.index[drawn]
    if needs.length is None:
        return transitions(data, at, needs)
    window = jnp.minimum(at[:, None] + jnp.arange(needs.length), data.rows.closing.shape[0] - 1)  # (B, T)
    valid = jnp.cumprod(~data.rows.closing[window], axis=1).astype(bool)
    return transitions(data, window, needs)._replace(valid=valid)


def transitions(data: DeviceData, at: chex.Array, needs: Needs) -> Transition:
    """The transitions that start at the given rows.

    Args:
        data: the device data.
        at: row numbers, of any shape, with which the arrays of the result begin.
        needs: the fields that the method asks for.
    """
    rows, following = data.rows, jnp.minimum(at + 1, data.rows.closing.shape[0] - 1)

    def obs(at: chex.Array) -> chex.Array:
        return jnp.asarray(rows.obs)[at] if data.obs_rule is None else data.obs_rule(jnp.asarray(rows.state)[at])

    def state(at: chex.Array) -> chex.Array | None:
        if not needs.state:
            return None
        if rows.state is None:
            return obs(at).reshape(*at.shape, -1)
        return rows.state[at]

    return Transition(
        obs=obs(at),
        actions=rows.actions[at],
        rewards=rows.rewards[at],
        next_obs=obs(following),
        terminal=rows.terminal[at],
        truncated=rows.truncated[at],
        next_actions=rows.actions[following] if needs.next_actions else None,
        state=state(at),
        next_state=state(following),
        returns_to_go=None if data.returns_to_go is None else data.returns_to_go[at],
        action_mask=None if rows.action_mask is None else rows.action_mask[at],
        next_action_mask=None if rows.action_mask is None else rows.action_mask[following],
    )
