"""Where the runs of one program are computed: on which devices, side by side or one after the other."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_LANES = PartitionSpec("lanes")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the lanes of a program run. Numbers are reproduced to the last bit by the same layout only.

    Attributes:
        lanes: R, a multiple of `devices`; if there are fewer runs, the last one is repeated.
        group: lanes of one device that are computed together (`vmap`); groups follow each other.
        devices: devices that the lanes are spread over.
    """

    lanes: int
    group: int
    devices: int

    @staticmethod
    def default(runs: int) -> "Layout":
        """All devices; on accelerators all lanes of one together, on a CPU one after the other.

        A CPU's caches hold the activations of one run but not of several, and its cores are busy with one anyway.
        """
        devices = min(jax.device_count(), runs)
        lanes = -(-runs // devices) * devices
        together = 1 if jax.default_backend() == "cpu" else lanes // devices
        return Layout(lanes, together, devices)

    def order(self, runs: int) -> list[int]:
        """(R,) which run each lane computes."""
        return [min(lane, runs - 1) for lane in range(self.lanes)]

    def spread(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A function of one lane and of what all lanes share -> the same of all lanes, every leaf (R, …)."""

        def of_a_device(lanes: Any, shared: Any) -> Any:
            if self.group * self.devices >= self.lanes:
                return jax.vmap(function, (0, None))(lanes, shared)
            # Not a group of one: what is mapped over computes both branches of a `cond`.
            group = None if self.group == 1 else self.group
            return jax.lax.map(lambda lane: function(lane, shared), lanes, batch_size=group)

        if self.devices == 1:
            return of_a_device
        specs = (_LANES, PartitionSpec())
        return jax.shard_map(of_a_device, mesh=self._mesh, in_specs=specs, out_specs=_LANES, check_vma=False)

    def one_each(self, lanes: Any) -> Any:
        """Puts every lane of (R, …) arrays where it is computed."""
        return jax.device_put(lanes, NamedSharding(self._mesh, _LANES))

    def everywhere(self, shared: Any) -> Any:
        """Puts a copy of the arrays on every device."""
        return jax.device_put(shared, NamedSharding(self._mesh, PartitionSpec()))

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(jax.devices()[: self.devices]), ("lanes",), axis_types=(AxisType.Auto,))
