"""Where and when the runs of one program are computed: on which devices, side by side or one after the other."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_LANES = PartitionSpec("lanes")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How R runs are computed by calls of a program with L lanes, each lane working on one run.

    Numbers are reproduced to the last bit by the same layout only.

    Attributes:
        lanes: L, a multiple of `devices`; those of one device are computed together (`vmap`).
        devices: devices that the lanes are spread over.
    """

    lanes: int
    devices: int

    @staticmethod
    def default(runs: int, side_by_side: int | None = None) -> "Layout":
        """All devices; on accelerators a lane for every run, on a CPU one for every device.

        A CPU's caches hold the activations of one run but not of several, and its cores are busy with one anyway.

        Args:
            runs: R.
            side_by_side: most runs that a device computes together, where its memory has no room for more; then runs
                are computed in groups of about the same size.
        """
        devices = min(jax.device_count(), runs)
        of_a_device = -(-runs // devices)
        groups = -(-of_a_device // (side_by_side or (1 if jax.default_backend() == "cpu" else of_a_device)))
        return Layout(-(-of_a_device // groups) * devices, devices)

    def parts(self, runs: int) -> int:
        """In how many parts to do the work of each run, so that no lane is ever idle."""
        return 1 if runs <= self.lanes or runs % self.lanes == 0 else self.lanes

    def calls(self, runs: int, parts: int = 1) -> list[list[int]]:
        """Which run each lane works on, for one call after the other, so that every run is worked on `parts` times.

        With `self.parts(runs)` parts they fill the lanes one after the other; a run that does not fit into what is
        left of a lane is begun early by the next lane and ended late by this one (McNaughton 1959). With one part,
        lanes that are left over repeat the last run.
        """
        if parts == 1:
            work = [min(i, runs - 1) for i in range(-(-runs // self.lanes) * self.lanes)]
            return np.reshape(work, (-1, self.lanes)).tolist()
        return np.repeat(np.arange(runs), parts).reshape(self.lanes, -1).T.tolist()

    def spread(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A function of one lane and of what all lanes share -> the same of all lanes, every leaf (L, …)."""

        def of_a_device(lanes: Any, shared: Any) -> Any:
            if self.lanes > self.devices:
                return jax.vmap(function, (0, None))(lanes, shared)
            # A `vmap` of one would compute both branches of a `cond`.
            alone = function(jax.tree.map(lambda x: x[0], lanes), shared)
            return jax.tree.map(lambda x: x[None], alone)

        if self.devices == 1:
            return of_a_device
        specs = (_LANES, PartitionSpec())
        return jax.shard_map(of_a_device, mesh=self._mesh, in_specs=specs, out_specs=_LANES, check_vma=False)

    def map(self, program: Callable[[Any, Any], Any], n: int, runs: Any, shared: Any) -> Any:
        """Calls a program that `spread` made until it has worked on all of n runs, (n, …) -> (n, …) on the host."""
        done: Any = None
        for call in self.calls(n):
            part = jax.tree.map(np.asarray, program(self.place(runs, call), shared))
            if done is None:
                done = jax.tree.map(lambda x: np.empty((n, *x.shape[1:]), x.dtype), part)
            write(done, call, part)
        return done

    def place(self, runs: Any, call: list[int]) -> Any:
        """Takes the runs of a call out of (R, …) arrays and puts each where it is computed."""
        taken = jax.tree.map(lambda x: x[np.array(call)], runs)
        return jax.device_put(taken, NamedSharding(self._mesh, _LANES))

    def everywhere(self, shared: Any) -> Any:
        """Puts a copy of the arrays on every device."""
        return jax.device_put(shared, NamedSharding(self._mesh, PartitionSpec()))

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(jax.devices()[: self.devices]), ("lanes",), axis_types=(AxisType.Auto,))


def write(runs: Any, call: list[int], part: Any) -> None:
    """Writes what a call made, (L, …), into (R, …) arrays on the host."""
    jax.tree.map(lambda whole, x: whole.__setitem__(np.array(call), x), runs, part)
