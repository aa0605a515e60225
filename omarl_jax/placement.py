"""Where and when runs are computed: on which devices, side by side or one after the other.

A compiled program has a fixed number of *slots*, each of which works on one run. With more runs than slots it is called
several times; `schedule` says with which runs. `plan` says how many slots a device has memory for.

The devices may be those of several processes (see `distributed`), which then all call the same in the same order, with
the same values on their hosts; each puts on its own devices what belongs there.
"""

import contextlib
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from omarl_jax import distributed

_RUNS = PartitionSpec("runs")

SHARE = 0.9
"""Of a device's free memory that training may need. The rest is for what the compiled program does not tell: gaps
between arrays, and evaluation beyond what training has freed by then. Our own choice."""


def schedule(n_runs: int, slots: int, updates: int) -> list[tuple[list[int], int]]:
    """The calls of a program with a fixed number of slots that make the updates of all runs.

    Work is packed with McNaughton's wrap-around rule (1959): slots are filled one after the other, and a run that
    overflows one slot starts on the next and is finished on the first. So no slot is idle, except for updates that do
    not divide evenly. There, and with fewer runs than slots, the remaining slots repeat the last run.

    Args:
        n_runs: R, runs.
        slots: S, runs that one call works on.
        updates: of each run.

    Returns:
        the calls in order: the run of each slot (S of them), and the number of updates.
    """
    parts = 1 if n_runs <= slots else slots // math.gcd(n_runs, slots)  # pieces of each run's work
    each, rest = divmod(updates, parts)
    wrapped = np.repeat(np.arange(n_runs), parts)
    plain = np.minimum(np.arange(-(-n_runs // slots) * slots), n_runs - 1)
    if parts == 1:
        return [(ids, updates) for ids in plain.reshape(-1, slots).tolist()]
    calls = [(ids, each) for ids in wrapped.reshape(slots, -1).T.tolist() if each]
    return calls + [(ids, rest) for ids in plain.reshape(-1, slots).tolist() if rest]


@dataclasses.dataclass(frozen=True)
class Placement:
    """The slots of a program, and the devices that they lie on.

    Numbers are reproduced to the last bit by the same placement only.

    Attributes:
        slots: S, a multiple of `devices`; the slots of one device are computed together (`vmap`).
        devices: devices that the slots are spread over.
    """

    slots: int
    devices: int

    @property
    def side_by_side(self) -> int:
        """The slots of one device."""
        return self.slots // self.devices

    @staticmethod
    def default(n_runs: int, side_by_side: int | None = None) -> "Placement":
        """All devices; on accelerators a slot for every run, on a CPU one for every device.

        A CPU's caches hold the activations of one run but not of several, and its cores are busy with one anyway.
        Several processes take all devices even for few runs, since each needs a part of what is computed.

        Args:
            n_runs: the number of runs.
            side_by_side: most runs that a device computes together, where its memory has no room for more; then runs
                are computed in batches of about the same size.
        """
        devices = jax.device_count() if jax.process_count() > 1 else min(jax.device_count(), n_runs)
        of_a_device = -(-n_runs // devices)
        batches = -(-of_a_device // (side_by_side or (1 if jax.default_backend() == "cpu" else of_a_device)))
        return Placement(-(-of_a_device // batches) * devices, devices)

    def map_runs(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Maps a function of one run, and of arrays that all runs share, over all slots, every leaf (S, …)."""

        def of_a_device(runs: Any, shared: Any) -> Any:
            if self.slots > self.devices:
                return jax.vmap(function, (0, None))(runs, shared)
            # A `vmap` of one would compute both branches of a `cond`.
            alone = function(jax.tree.map(lambda x: x[0], runs), shared)
            return jax.tree.map(lambda x: x[None], alone)

        if self.devices == 1:
            return of_a_device
        specs = (_RUNS, PartitionSpec())
        return jax.shard_map(of_a_device, mesh=self._mesh, in_specs=specs, out_specs=_RUNS, check_vma=False)

    def run_all(self, program: Callable[[Any, Any], Any], n_runs: int, runs: Any, shared: Any) -> Any:
        """Calls a program that `map_runs` made until it has worked on all runs.

        Args:
            program: compiled.
            n_runs: R, the number of runs.
            runs: every leaf (R, …), or (S, …) if there are slots enough.
            shared: arrays that all runs share.

        Returns:
            the results of each run, every leaf (R, …), on the host.
        """
        done: Any = None
        for ids, _ in schedule(n_runs, self.slots, 1):
            part = fetch(program(self.shard_runs(runs, ids), shared))
            if done is None:
                done = jax.tree.map(lambda x: np.empty((n_runs, *x.shape[1:]), x.dtype), part)
            write(done, ids, part)
        return done

    def shard_runs(self, runs: Any, ids: Sequence[int]) -> Any:
        """Takes some runs out of (R, …) arrays and puts each where its slot is computed.

        Arrays on devices of several processes are there already, (S, …).
        """
        return self.put(jax.tree.map(lambda x: x if _of_several(x) else x[np.array(ids)], runs))

    def put(self, slots: Any) -> Any:
        """Puts (S, …) arrays where their slots are computed; those that are there stay as they are."""
        return _put(slots, NamedSharding(self._mesh, _RUNS))

    def described(self, runs: Any) -> Any:
        """The shapes, dtypes and places that `shard_runs` would give arrays (R, …), without any memory."""
        place = NamedSharding(self._mesh, _RUNS)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.slots, *x.shape[1:]), x.dtype, sharding=place), runs)

    def replicate(self, shared: Any) -> Any:
        """Puts a copy of the arrays on every device."""
        return _put(shared, NamedSharding(self._mesh, PartitionSpec()))

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(jax.devices()[: self.devices]), ("runs",), axis_types=(AxisType.Auto,))


class OutOfMemory(Exception):
    """A device has no room for the runs of a program."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no room, while it compiled or computed."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def naming_out_of_memory() -> Iterator[None]:
    """Raises `OutOfMemory` in place of the backend's error."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfMemory(str(error)) from error
        raise


def needed_memory(compiled: jax.stages.Compiled) -> int | None:
    """Bytes of each device that a compiled program needs, arguments and results included; None if it does not say."""
    if (stats := compiled.memory_analysis()) is None:
        return None
    arrays = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return int(arrays + stats.temp_size_in_bytes)


def free_memory() -> int | None:
    """Bytes that every device of this process has free; None where devices do not say, as CPUs."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if not all("bytes_limit" in each for each in stats):
        return None
    return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)


def widest(fixed: float, per_run: float, free: float) -> int:
    """Most runs that a device has room for side by side; one where there is room for none.

    Args:
        fixed: bytes that the program needs however many runs it has, as for data.
        per_run: bytes that each run adds, above 0.
        free: bytes.
    """
    return max(1, math.floor((free - fixed) / per_run))


class Compilable(Protocol):
    """What `plan` chooses a placement for, a `Trainer`."""

    placement: Placement

    def compile(self, updates: int) -> int | None:
        """Compiles the program of a chunk, and returns the bytes of each device that it needs, if these are known."""


_C = TypeVar("_C", bound=Compilable)


def plan(make: Callable[[Placement], _C], n_runs: int, updates: int, most: int | None = None) -> tuple[_C, int | None]:
    """The trainer with the largest batches of runs that devices have room for, by what its compiled program needs.

    The batches of a device have about the same size. If all its runs are too many, half of them are compiled; if these
    are too many, what both need gives a line, fixed bytes and bytes for each run, which says how many fit. So a plan
    seldom compiles more than three programs, and one if all runs fit. On CPUs it changes nothing.

    Args:
        make: makes the trainer, which must not put its runs on the devices before they are asked for.
        n_runs: R, the number of runs.
        updates: of its first chunk.
        most: runs that a device may compute together.

    Returns:
        the trainer, compiled, and the bytes of each device that it needs, if these are known.
    """
    gc.collect()  # frees what earlier trainers held
    free = distributed.of_first(free_memory)  # what several processes decide must be the same
    placement, known = Placement.default(n_runs, most), list[tuple[int, int]]()  # (side by side, bytes)
    while True:
        trainer, width = make(placement), placement.side_by_side
        needed = trainer.compile(updates)
        if free is None or needed is None or needed <= SHARE * free or width == 1:
            return trainer, needed
        known.append((width, needed))
        fitting = -(-width // 2)
        if len(known) > 1:
            (more, bytes_of_more), (fewer, bytes_of_fewer) = known[-2:]
            per_run = max(1.0, (bytes_of_more - bytes_of_fewer) / (more - fewer))
            fitting = min(widest(bytes_of_fewer - per_run * fewer, per_run, SHARE * free), width - 1)
        placement = Placement.default(n_runs, fitting)
        del trainer
        gc.collect()


def fetch(tree: Any) -> Any:
    """Copies arrays from the devices to the host; those of several processes to the hosts of all."""
    return jax.tree.map(
        lambda x: multihost_utils.process_allgather(x, tiled=True) if _of_several(x) else np.asarray(x), tree
    )


def _put(tree: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(x: Any) -> jax.Array:
        if _of_several(x):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        # `device_put` would send the whole array to all processes, to compare it.
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def _of_several(x: Any) -> bool:
    """Whether a part of an array is on devices of another process."""
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def write(runs: Any, ids: Sequence[int], part: Any) -> None:
    """Writes the results of some runs into the arrays of all runs, in place.

    Args:
        runs: arrays (R, …) on the host.
        ids: S numbers of runs.
        part: arrays (S, …) of these runs.
    """
    jax.tree.map(lambda whole, x: whole.__setitem__(np.array(ids), x), runs, part)
