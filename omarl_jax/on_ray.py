"""Sweeps on a Ray cluster: a task for each run group (extra `ray`).

Ray decides where and when a group is trained, and starts a task again whose process or node has died. A task is an
ordinary worker on a folder that all nodes share (see `leases`): it goes on from the last checkpoint there.

Nothing here imports JAX before Ray has set its environment: each task has a process of its own, and the process that
started the sweep computes nothing.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import os
import pathlib
import platform
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from omarl_jax.errors import UserError

if TYPE_CHECKING:
    from omarl_jax.grid import Grid
    from omarl_jax.sweep import Progress

_RETRIES = 100  # of a group whose process or node dies
_MEMORY = "0.9"  # of an accelerator, which a task has for itself; the rest is the driver's
_PASSED_ON = ("JAX_", "XLA_")  # settings of the driver that all tasks have


class _Place(NamedTuple):
    """What a node must see.

    Attributes:
        folder: the working folder, from which relative paths of data and modules of the user's own are found.
        token: a file that the driver has written.
        content: of this file.
    """

    folder: str
    token: pathlib.Path
    content: str

    def enter(self) -> None:
        """Goes to the working folder; raises a `UserError` on a node that does not share these folders."""
        try:
            os.chdir(self.folder)
            seen = self.token.read_text()
        except OSError:
            seen = ""
        if seen != self.content:
            raise UserError(
                f"The node '{platform.node()}' does not share '{self.token.parent}' or '{self.folder}' with this one: "
                "start the sweep in a folder that all nodes share, with --out in one."
            )


@contextlib.contextmanager
def connection(address: str) -> Iterator[None]:
    """Connects this process to a Ray cluster until the end of the context; to be entered before JAX is imported.

    Args:
        address: of the cluster, `auto` for one that runs here, or `local` to start one.

    Raises:
        UserError: if there is no such cluster, or it has another version of Ray or Python.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: pip install 'omarl-jax[ray]'.") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options["include_dashboard"] = False
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"No Ray cluster can be used at '{address}' ({str(error).splitlines()[0].rstrip('.')}): start one with "
            "`ray start --head`, or give --ray local."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def sweep(
    grid: "Grid",
    out: pathlib.Path,
    report: Callable[[int, "Progress"], None],
    wandb: str | None,
    backend: str = "",
) -> dict[str, str]:
    """`omarl_jax.sweep.sweep` on the Ray cluster that this process is connected to.

    Args:
        grid, out, report, wandb: as there; all nodes share `out` and the working folder.
        backend: the value of JAX_PLATFORMS for tasks, of which each gets one GPU, the TPU chips of a node, or as many
            cores as JAX_NUM_CPU_DEVICES says; if it is empty, GPUs, TPUs or CPUs, whichever comes first in the cluster.

    Returns:
        as there.

    Raises:
        UserError: as there, and if no node of the cluster can have a task, or nodes do not share the folders or have
            other versions.
    """
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from omarl_jax import sweep as sweeps

    sweeps.require_resumable(grid, out)
    groups, failed, out = sweeps.run_groups(grid.runs), dict[str, str](), out.absolute()
    with _token(out) as place:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        backend, needs, able = _resources(backend, nodes)
        variables = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        variables = {"XLA_PYTHON_CLIENT_MEM_FRACTION": _MEMORY} | variables | {"JAX_PLATFORMS": backend}
        variables["PYTHONPATH"] = os.pathsep.join([place.folder, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        environment = {"env_vars": variables}

        def on(node: str) -> Any:
            return NodeAffinitySchedulingStrategy(node, soft=False)

        look = ray.remote(num_cpus=0, max_calls=1, runtime_env=environment)(_look)
        _require_alike(ray.get([look.options(scheduling_strategy=on(node["NodeID"])).remote(place) for node in able]))

        here = on(ray.get_runtime_context().get_node_id())  # a node that is lost must not take the reports with it
        reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        work = ray.remote(max_calls=1, max_retries=_RETRIES, runtime_env=environment, **needs)(_work)
        tasks = {}
        for number, group in enumerate(groups):
            part = ray.put(dataclasses.replace(grid, runs=group))
            tasks[work.remote([part], str(out), wandb, number, reports, place, backend)] = number
        while tasks:
            ended, _ = ray.wait(list(tasks), timeout=0.2)
            while not reports.empty():
                report(*reports.get())
            for task in ended:
                number = tasks.pop(task)
                try:
                    failed |= ray.get(task)
                except ray.exceptions.RayError as error:
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
                    failed |= {run.name: reason for run in groups[number]}
    return sweeps.still_failed(failed, out)


def _work(
    part: list[Any], out: str, wandb: str | None, number: int, reports: Any, place: _Place, backend: str
) -> dict[str, str]:
    """A task: trains a run group, as its own sweep. The grid is a reference in a list, which Ray does not follow."""
    place.enter()
    _require_backend(backend)
    import ray

    from omarl_jax import sweep as sweeps

    grid: Grid = ray.get(part[0])  # only now, as it may need modules of the working folder

    def report(_: int, progress: "Progress") -> None:
        reports.put((number, progress))

    try:
        return sweeps.sweep(grid, pathlib.Path(out), report, wandb)
    except UserError as error:
        return {run.name: str(error) for run in grid.runs}


def _require_backend(backend: str) -> None:
    """Raises a `UserError` unless JAX computes on what the task has asked for."""
    import jax

    try:
        found = jax.default_backend()
    except RuntimeError as error:
        found = str(error).partition("\n")[0].rstrip(".")
    kinds = {"cuda": "gpu", "rocm": "gpu"}
    if found != kinds.get(first := backend.partition(",")[0], first):
        raise UserError(f"JAX on the node '{platform.node()}' was asked for '{backend}', and has: {found}.")


def _look(place: _Place) -> tuple[str, dict[str, str]]:
    """The versions of a node, which shares the folders, or a sentence that it does not."""
    try:
        place.enter()
    except UserError as error:
        return str(error), {}
    return "", {"node": platform.node()} | {name: importlib.metadata.version(name) for name in _VERSIONS}


_VERSIONS = ("omarl-jax", "jax", "jaxlib", "flax", "optax", "numpy")


def _require_alike(looks: list[tuple[str, dict[str, str]]]) -> None:
    """Raises a `UserError` for a node that does not share the folders, or two that have different versions."""
    for reason, _ in looks:
        if reason:
            raise UserError(reason)
    for (_, one), (_, other) in itertools.pairwise(looks):
        for name in _VERSIONS:
            if one[name] != other[name]:
                raise UserError(
                    f"The node '{one['node']}' has {name} {one[name]}, and '{other['node']}' {other[name]}: install "
                    "the same on all nodes."
                )


@contextlib.contextmanager
def _token(out: pathlib.Path) -> Iterator[_Place]:
    """A file that only this sweep has written, as long as it goes on."""
    place = _Place(os.getcwd(), out / f".token-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex)
    out.mkdir(parents=True, exist_ok=True)
    place.token.write_text(place.content)
    try:
        yield place
    finally:
        place.token.unlink(missing_ok=True)


def _resources(backend: str, nodes: list[Any]) -> tuple[str, dict[str, Any], list[Any]]:
    """What a task asks for.

    Args:
        backend: as of `sweep`.
        nodes: of the cluster, as Ray describes them.

    Returns:
        the backend; the resources of a task, as Ray takes them; the nodes that have them.
    """
    most = {kind: max((node["Resources"].get(kind, 0) for node in nodes), default=0) for kind in ("GPU", "TPU")}
    backend = backend or ("cuda" if most["GPU"] else "tpu" if most["TPU"] else "cpu")
    kind = {"cpu": "CPU", "tpu": "TPU"}.get(backend.partition(",")[0], "GPU")
    amount = {"CPU": int(os.environ.get("JAX_NUM_CPU_DEVICES", 1)), "TPU": int(most["TPU"]) or 1, "GPU": 1}[kind]
    able = [node for node in nodes if node["Resources"].get(kind, 0) >= amount]
    if not able:
        raise UserError(f"No node of the Ray cluster has {amount} {kind}, which each task needs on '{backend}'.")
    needs = {"CPU": {"num_cpus": amount}, "GPU": {"num_gpus": amount}}.get(kind, {"resources": {kind: amount}})
    return backend, dict(needs), able
