"""The short form: rates of training and simulation on the devices at hand, as one prints them for a new machine."""

import gc
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import measuring
import omarl_envs
from measuring import console
from omarl_envs import TaskSpec
from rich.table import Table

from omarl_jax import algorithms, make_env
from omarl_jax.placement import Placement
from omarl_jax.runs import environment_record
from omarl_jax.training import Trainer

CPU_LIMIT, LIMIT = 225.0, 265.0  # seconds; what would begin later is not measured
ROW = 20.0  # seconds of a row, compilation included, before its last measurement begins
SECONDS = 1.0  # of each measurement
N_ENVS = (1_024, 32_768)


def measure(out: pathlib.Path, same: dict[str, Any]) -> None:
    """Measures, prints and writes a file.

    Args:
        out: JSON file to write.
        same: what `same_bits.compare` found.
    """
    cpu = jax.default_backend() == "cpu"
    began = time.perf_counter() - same["seconds"]
    deadline = began + (CPU_LIMIT if cpu else LIMIT)
    results = environment_record() | {
        "form": "short",
        "cores": os.cpu_count(),
        "devices": jax.device_count(),
        "load": os.getloadavg()[0],
        "memory_limit_mb": _memory("bytes_limit"),
    }
    console.print(f"{results['device']}, {results['devices']} devices, load {results['load']:.1f}")
    _print_same(same)
    environments = environment_rows(omarl_envs.task_names(), N_ENVS, deadline)
    _print_environments(environments)
    specs = {"omar": make_env("particle/spread").task_spec, "omiga": measuring.OMIGA_SPEC}
    training = []
    for method, spec in specs.items():
        training += training_rows(method, spec, (1, 5, 20) if cpu else (1, 5, 20, 200, 1_000), deadline)
    _print_training(training)
    results |= {"same_bits": same, "training": training, "environments": environments}
    results["seconds"] = time.perf_counter() - began
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2))
    console.print(f"{results['seconds']:.0f} s, written to {out}")


def training_rows(method: str, spec: TaskSpec, counts: Sequence[int], deadline: float) -> list[dict[str, Any]]:
    """Updates a second of one method at its defaults, for each number of runs, on random data.

    Runs are trained in the largest groups that fit: a group for which memory is too small makes a row that says so,
    and half as many are tried.

    Args:
        method: its name.
        spec: the task.
        counts: numbers of runs.
        deadline: as `time.perf_counter` has it; rows that would begin later say `skipped`.

    Returns:
        rows with `method`, `runs`, `side_by_side` (runs that a device computes together), `status` (`measured`, `out of
        memory` or `skipped`), and of those that are measured `updates_per_second` (all runs together),
        `compile_seconds`, and in MB `memory_mb` and `peak_mb` (of the process so far); None where a device does not
        say.
    """
    dataset = measuring.synthetic_dataset(spec)
    rows: list[dict[str, Any]] = []
    for runs in counts:
        side_by_side: int | None = None
        while True:
            placement = Placement.default(runs, side_by_side)
            width = placement.slots // placement.devices
            row = {"method": method, "runs": runs, "side_by_side": width}
            if time.perf_counter() > deadline:
                rows.append(row | {"status": "skipped"})
                break
            try:
                rows.append(row | {"status": "measured"} | _train(method, dataset, runs, placement))
                break
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                rows.append(row | {"status": "out of memory"})
            gc.collect()  # frees what the failed attempt held
            if width == 1:
                break
            side_by_side = width // 2
    return rows


def _train(method: str, dataset: Any, runs: int, placement: Placement) -> dict[str, Any]:
    found = algorithms.find(method)
    configs = [found.configure(dataset.spec, {})] * runs
    began = time.perf_counter()
    trainer = Trainer(found, configs, range(runs), [dataset], [0] * runs, None, placement)
    updates = max(10, 100 // runs)
    trainer.advance(updates)
    compile_seconds = time.perf_counter() - began
    seconds = min(SECONDS, max(0.0, ROW - compile_seconds))
    rate = runs * updates * measuring.rate(lambda: trainer.advance(updates), seconds)
    return {
        "updates_per_second": rate,
        "compile_seconds": compile_seconds,
        "memory_mb": _memory("bytes_in_use"),
        "peak_mb": _memory("peak_bytes_in_use"),
    }


def environment_rows(tasks: Sequence[str], counts: Sequence[int], deadline: float) -> list[dict[str, Any]]:
    """Steps a second of tasks with random actions, observations and rewards consumed.

    Args:
        tasks: their names.
        counts: numbers of environments.
        deadline: as `time.perf_counter` has it; rows that would begin later say `skipped`.

    Returns:
        rows with `task`, `environments`, `status`, and of those that are measured `steps_per_second` (all environments
        together) and `compile_seconds`.
    """
    rows: list[dict[str, Any]] = []
    for task, n_envs in ((task, n_envs) for task in tasks for n_envs in counts):
        row = {"task": task, "environments": n_envs}
        if time.perf_counter() > deadline:
            rows.append(row | {"status": "skipped"})
            continue
        env = make_env(task)
        count = max(1, 100 // env.task_spec.episode_length)
        play = measuring.episodes(env, n_envs, count)
        began = time.perf_counter()
        play(0)
        compile_seconds = time.perf_counter() - began
        steps = count * env.task_spec.episode_length * (n_envs // jax.device_count() * jax.device_count())
        rate = steps * measuring.rate(lambda play=play: play(1), SECONDS)
        rows.append(row | {"status": "measured", "steps_per_second": rate, "compile_seconds": compile_seconds})
    return rows


def _memory(name: str) -> float | None:
    """A statistic of the first device's memory in MB, or None if the device has none."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics[name] / 2**20 if name in statistics else None


def _print_same(same: dict[str, Any]) -> None:
    where = f" on {same['backend']}" if same["backend"] else ""
    for mode in ("default", "deterministic"):
        words = same[mode]
        if not isinstance(words, str):
            words = ", ".join(f"{method} {'yes' if equal else 'no'}" for method, equal in words.items())
        text = f"two runs of one seed are equal to the last bit{where}, {mode}: {words}"
        console.print(text, markup=False, soft_wrap=True)


def _print_training(rows: list[dict[str, Any]]) -> None:
    header = ("updates/s", "runs", "side by side", "all runs", "compile s", "MB", "peak MB")
    table = Table(*header, box=None, header_style="bold")
    for row in rows:
        start = row["method"], str(row["runs"]), str(row["side_by_side"])
        table.add_row(*start, *_cells(row, "updates_per_second", "compile_seconds", "memory_mb", "peak_mb"))
    console.print(table)


def _print_environments(rows: list[dict[str, Any]]) -> None:
    table = Table("steps/s", "environments", "all", "compile s", box=None, header_style="bold")
    for row in rows:
        table.add_row(row["task"], f"{row['environments']:,}", *_cells(row, "steps_per_second", "compile_seconds"))
    console.print(table)


def _cells(row: dict[str, Any], *names: str) -> Iterator[str]:
    if row["status"] != "measured":
        yield row["status"]
        return
    for name in names:
        yield "-" if row[name] is None else f"{row[name]:,.1f}"
