"""How fast training and simulation are, as ratios against named baselines measured in the same run.

    make bench            (or: python experiments/benchmarks/bench.py --out results/bench.json)

Compile time stands apart. `make` makes every core of a CPU a device of its own (JAX_NUM_CPU_DEVICES), over which the
runs of a program spread; PyTorch has all cores, or one if that is faster. A machine that is busy with something else
measures nothing: the load is printed, and each number is the best of several repeats, ours and the baselines' taken in
turn.
"""

import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import naive_env
import naive_uav
import numpy_particle
import tyro
from jax.sharding import PartitionSpec
from omarl_envs.base import MultiAgentEnv
from rich.console import Console
from rich.table import Table

from omarl_jax import algorithms, load_dataset, make_env
from omarl_jax.placement import Placement
from omarl_jax.runs import environment_record
from omarl_jax.training import Trainer

N_ENVS = 1_024
N_UAV_ENVS = 4_096
console = Console()


def main(
    out: pathlib.Path = pathlib.Path("results/bench.json"),
    seconds: float = 5.0,
    repeats: int = 3,
    seeds: tuple[int, ...] = (1, 5, 20),
) -> None:
    """Measures everything, prints it and writes it to a file.

    Args:
        out: JSON file to write.
        seconds: of each measurement.
        repeats: measurements of each thing, of which the best counts.
        seeds: numbers of runs in one program.
    """
    omar, ciqr = _baselines()
    devices = f"{jax.device_count()} devices ({jax.default_backend()})"
    console.print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {devices}")
    results = environment_record() | {
        "cores": os.cpu_count(),
        "devices": jax.device_count(),
        "load": os.getloadavg()[0],
        "memory": memory(),  # first, while nothing else has been in it
        "omar": updates("omar", "particle/spread", omar, seconds, repeats, seeds, per_call=100),
        "ciqr": updates("ciqr", "uav/iot", ciqr, seconds, repeats, seeds, per_call=2_000),
        "environments": environment_steps(seconds, repeats),
        "uav": uav_steps(seconds, repeats),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2))
    console.print(f"written to {out}")


def updates(
    method: str,
    task: str,
    baseline: Callable[..., float] | None,
    seconds: float,
    repeats: int,
    seeds: tuple[int, ...],
    per_call: int,
) -> dict[str, Any]:
    """Learning rounds a second, all runs together, with the hyperparameters that a method has by default.

    Args:
        method: its name.
        task: what it learns.
        baseline: the same in PyTorch, a function of `seconds` and `threads`, if that is installed.
        seconds: of each measurement.
        repeats: of which the best counts.
        seeds: numbers of runs in one program.
        per_call: rounds of all runs together in one call of the program.
    """
    dataset = load_dataset(task, "random", size=100_000)
    found = algorithms.find(method)
    config = found.configure(dataset.spec, {})
    trainers, compile_seconds = {}, {}
    for n in seeds:
        trainers[n] = Trainer(found, [config] * n, range(n), [dataset], [0] * n, None, Placement.default(n))
        began = time.perf_counter()
        trainers[n].advance(max(2, per_call // n))
        compile_seconds[n] = time.perf_counter() - began
    best: dict[Any, float] = {}
    for _ in range(repeats):
        for n, trainer in trainers.items():
            rounds = max(2, per_call // n)
            rate = n * rounds * _rate(lambda trainer=trainer, rounds=rounds: trainer.advance(rounds), seconds)
            best[n] = max(best.get(n, 0.0), rate)
        if baseline is not None:
            rates = [baseline(seconds=seconds / 2, threads=t) for t in (1, os.cpu_count() or 1)]
            best["torch"] = max(best.get("torch", 0.0), *rates)
    table = Table(f"{method} updates/s", "all runs", "x PyTorch", "compile s", box=None, header_style="bold")
    slow = best.get("torch")
    if slow:
        table.add_row("PyTorch, eager, the better of 1 and all threads", f"{slow:.1f}", "1", "")
    for n in seeds:
        ratio = f"{best[n] / slow:.2f}" if slow else "-"
        table.add_row(f"omarl_jax, {n} seeds", f"{best[n]:.1f}", ratio, f"{compile_seconds[n]:.0f}")
    console.print(table)
    return {"updates_per_second": {str(k): v for k, v in best.items()}, "compile_seconds": compile_seconds}


def environment_steps(seconds: float, repeats: int) -> dict[str, Any]:
    """Steps a second of 1,024 environments with random actions, observations and rewards consumed."""
    ours: dict[str, MultiAgentEnv] = {task: make_env(f"particle/{task}") for task in ("spread", "tag", "world")}
    prey = {task: ours[task].prey for task in ("tag", "world")}  # type: ignore[attr-defined]
    pursuit = {"tag": numpy_particle.TAG, "world": numpy_particle.WORLD}
    rows: dict[str, tuple[Callable[[], float], int]] = {}
    compile_seconds = {}
    for task, env in [*ours.items(), ("naive spread", naive_env.NaiveSpread())]:
        play = _episodes(env)
        began = time.perf_counter()
        play(0)
        compile_seconds[task] = time.perf_counter() - began
        rows[f"omarl_jax {task}"] = (lambda play=play: _rate(lambda: play(1), seconds) * _EPISODE_STEPS), N_ENVS
    for task in ours:
        batch = numpy_particle.BatchSpread(N_ENVS) if task == "spread" else None
        loop = numpy_particle.LoopSpread() if task == "spread" else None
        if batch is None or loop is None:
            batch = numpy_particle.BatchPursuit(N_ENVS, pursuit[task], prey[task])
            loop = numpy_particle.LoopPursuit(pursuit[task], prey[task])
        rows[f"NumPy {task}"] = (lambda env=batch: numpy_particle.steps_per_second(env, seconds)), N_ENVS
        rows[f"Python loop {task}"] = (lambda env=loop: numpy_particle.steps_per_second(env, min(seconds, 2.0))), 1
    best = dict.fromkeys(rows, 0.0)
    for _ in range(repeats):
        for name, (measure, _) in rows.items():
            best[name] = max(best[name], measure())
    table = Table("environment steps/s", "steps/s", "x NumPy", "x Python loop", box=None, header_style="bold")
    for task in ours:
        for name in (f"omarl_jax {task}", f"NumPy {task}", f"Python loop {task}"):
            numpy_rate, loop_rate = best[f"NumPy {task}"], best[f"Python loop {task}"]
            table.add_row(
                name, f"{best[name]:,.0f}", f"{best[name] / numpy_rate:.2f}", f"{best[name] / loop_rate:,.0f}"
            )
    naive = best["omarl_jax naive spread"]
    table.add_row("naive JAX spread", f"{naive:,.0f}", f"{naive / best['NumPy spread']:.2f}", "")
    console.print(table)
    console.print(
        f"spread is {best['omarl_jax spread'] / naive:.1f} x naive JAX; "
        f"tag {best['omarl_jax tag'] / best['omarl_jax spread']:.2f} x and "
        f"world {best['omarl_jax world'] / best['omarl_jax spread']:.2f} x spread"
    )
    return {"steps_per_second": best, "compile_seconds": compile_seconds}


def uav_steps(seconds: float, repeats: int) -> dict[str, float]:
    """Steps a second of 4,096 UAV environments, observations and rewards consumed.

    Actions are random, but the same in every episode: to draw them would take as long as the steps.
    """
    plays = {
        "omarl_jax": _episodes(make_env("uav/iot"), N_UAV_ENVS, redraw=False),
        "naive JAX": _episodes(naive_uav.NaiveUav(), N_UAV_ENVS, redraw=False),
        "omarl_jax, random missions": _episodes(make_env("uav/iot-random"), N_UAV_ENVS, redraw=False),
    }
    for play in plays.values():
        play(0)
    best = dict.fromkeys(plays, 0.0)
    for _ in range(repeats):
        for name, play in plays.items():
            rate = _rate(lambda play=play: play(1), seconds) * _EPISODES * 100 * N_UAV_ENVS
            best[name] = max(best[name], rate)
    table = Table("uav/iot steps/s", "steps/s", "x naive JAX", box=None, header_style="bold")
    for name, rate in best.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / best['naive JAX']:.2f}")
    console.print(table)
    return best


def _baselines() -> tuple[Callable[..., float] | None, Callable[..., float] | None]:
    """The PyTorch loops of OMAR and of MA-CIQR, if PyTorch is installed."""
    try:
        import torch_ciqr
        import torch_omar
    except ImportError:
        console.print("PyTorch is not installed (extra 'bench'): training is measured without a baseline.")
        return None, None
    return torch_omar.updates_per_second, torch_ciqr.updates_per_second


_EPISODES = 20
_EPISODE_STEPS = _EPISODES * 25 * N_ENVS


def _episodes(env: MultiAgentEnv, n_envs: int = N_ENVS, redraw: bool = True) -> Callable[[int], Any]:
    """A compiled function that plays some episodes in all environments and uses up everything they show.

    The environments are divided among the devices; without `redraw` all episodes have the same random actions. The
    environment is the last axis of the random actions, because on
    CPUs random numbers in arrays with a short last axis take six times as long.
    """
    devices, spec = jax.device_count(), env.task_spec
    n = n_envs // devices

    def actions(key: jax.Array) -> jax.Array:
        if spec.kind == "discrete":
            return jax.random.randint(key, (spec.n_agents, n), 0, spec.action_dim).T
        return jax.random.uniform(key, (spec.action_dim, spec.n_agents, n), minval=-1.0).T

    def step(carry: tuple[Any, jax.Array], key: jax.Array) -> tuple[tuple[Any, jax.Array], None]:
        state, total = carry
        state, timestep = jax.vmap(env.step)(state, actions(key) if redraw else key)
        view = timestep.observation.agents_view
        return (state, total + view.sum(axis=(1, 2)) + timestep.reward.sum(axis=1)), None

    def episode(carry: tuple[jax.Array, Any], key: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
        total, drawn = carry
        reset_key, key = jax.random.split(key)
        state, _ = jax.vmap(env.reset)(jax.random.split(reset_key, n))
        steps = jax.random.split(key, spec.episode_length) if redraw else drawn
        (_, total), _ = jax.lax.scan(step, (state, total), steps)
        return (total, drawn), None

    def play(seed: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), jax.lax.axis_index("environments"))
        drawn = None if redraw else jax.lax.map(actions, jax.random.split(key, spec.episode_length))
        return jax.lax.scan(episode, (jnp.zeros(n), drawn), jax.random.split(key, _EPISODES))[0][0]

    mesh = jax.make_mesh((devices,), ("environments",))
    everywhere = PartitionSpec("environments")
    compiled = jax.jit(jax.shard_map(play, mesh=mesh, in_specs=PartitionSpec(), out_specs=everywhere, check_vma=False))
    return lambda seed: compiled(seed).block_until_ready()


def memory() -> dict[str, float]:
    """What training 20 seeds of OMAR on a million transitions needs, in MB.

    Returns:
        `data`, the transitions; `arguments`, `results` and `temporary` of the program on each device, as XLA plans it;
        and measured: on an accelerator `peak`, the most that its memory held; on a CPU (of Linux) `placing`, the most
        that the process grew by when the data were placed on its devices, which share them.
    """
    dataset = load_dataset("particle/spread", "random")
    method = algorithms.find("omar")
    before = _resident("VmRSS", reset=True)
    trainer = Trainer(method, [method.configure(dataset.spec, {})] * 20, range(20), [dataset], [0] * 20, None)
    measured = {"placing": _resident("VmHWM") - before}
    if jax.default_backend() != "cpu":
        trainer.advance(5)
        measured = {"peak": jax.devices()[0].memory_stats()["peak_bytes_in_use"]}
    program, inputs = trainer.chunk(10)
    planned = jax.jit(program).lower(*inputs).compile().memory_analysis()
    sizes = {
        "data": sum(column.nbytes for column in jax.tree.leaves(dataset.rows)),
        "arguments": planned.argument_size_in_bytes,
        "results": planned.output_size_in_bytes,
        "temporary": planned.temp_size_in_bytes,
    } | measured
    megabytes = {name: size / 2**20 for name, size in sizes.items()}
    parts = ", ".join(f"{name} {size:.0f}" for name, size in megabytes.items())
    console.print(f"20 seeds on 1 M transitions, MB: {parts}")
    return megabytes


def _resident(name: str, reset: bool = False) -> float:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM, since it was reset); NaN where Linux is not."""
    if not os.path.exists("/proc/self/clear_refs"):
        return float("nan")
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(name))
    return 1024 * float(kilobytes)


def _rate(work: Callable[[], Any], seconds: float) -> float:
    """How often a second `work` is done."""
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or done == 0:
        work()
        done += 1
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    tyro.cli(main)
