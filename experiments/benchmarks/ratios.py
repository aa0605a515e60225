"""The long form: speed as ratios to baselines measured in the same run, and as a share of the machine's products."""

import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import measuring
import mujoco_maze
import naive_env
import naive_uav
import numpy_particle
from measuring import console, rate
from omarl_envs.base import MultiAgentEnv
from rich.table import Table

from omarl_jax import algorithms, load_dataset, make_env
from omarl_jax.data.dataset import Dataset
from omarl_jax.placement import Placement
from omarl_jax.runs import environment_record
from omarl_jax.training import Trainer

N_ENVS = 1_024
N_UAV_ENVS = 4_096
_EPISODES = 20  # in one call of a program
ROBOTS_A_DEVICE = 256
_CALL_STEPS = _EPISODES * 25 * N_ENVS
Baseline = Callable[..., float]  # updates a second, of `seconds` and `threads`


def measure(out: pathlib.Path, seconds: float, repeats: int, seeds: tuple[int, ...]) -> None:
    """Measures everything, prints it and writes it to a file.

    Args:
        out: JSON file to write.
        seconds: of each measurement.
        repeats: measurements of each thing, of which the best counts.
        seeds: numbers of runs in one program.
    """
    baselines = _baselines()
    devices = f"{jax.device_count()} devices ({jax.default_backend()})"
    console.print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {devices}")
    results = environment_record() | {
        "cores": os.cpu_count(),
        "devices": jax.device_count(),
        "load": os.getloadavg()[0],
        "memory": memory(),  # first, while nothing else has been in it
    }
    flops = {
        "omar": measuring.omar_flops,
        "omiga": measuring.omiga_flops,
        "omcda": measuring.omcda_flops,
        "ciqr": measuring.ciqr_flops,
    }
    updates_per_call = {"omar": 100, "omiga": 200, "omcda": 100, "ciqr": 2_000}
    for method, count in flops.items():
        dataset = _dataset(method)
        config = algorithms.find(method).configure(dataset.spec, {})
        results[method] = updates(
            method,
            dataset,
            baselines.get(method),
            count(config, dataset.spec),
            seconds,
            repeats,
            seeds,
            updates_per_call[method],
        )
    results |= {"environments": environment_steps(seconds, repeats), "uav": uav_steps(seconds, repeats)}
    results["mujoco"] = mujoco_steps(seconds, repeats)
    results["maze2d"] = maze2d_steps(seconds, repeats)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2))
    console.print(f"written to {out}")


def _dataset(method: str) -> Dataset:
    """What a method learns from here: random play, or for OMIGA and OMCDA random numbers of OMIGA's published shape."""
    if method in ("omiga", "omcda"):
        return measuring.synthetic_dataset(measuring.OMIGA_SPEC)
    return load_dataset({"omar": "particle/spread", "ciqr": "uav/iot"}[method], "random", size=100_000)


def updates(
    method: str,
    dataset: Dataset,
    baseline: Baseline | None,
    flops: int,
    seconds: float,
    repeats: int,
    seeds: tuple[int, ...],
    per_call: int,
) -> dict[str, Any]:
    """Updates a second, all runs together, with the hyperparameters that a method has by default.

    Args:
        method: its name.
        dataset: what it learns from.
        baseline: the same in PyTorch, if that is installed.
        flops: of the matrix products of one update (see `measuring`).
        seconds: of each measurement.
        repeats: of which the best counts.
        seeds: numbers of runs in one program.
        per_call: updates of all runs together in one call of the program.

    Returns:
        `updates_per_second` by number of runs (and of `torch`), `compile_seconds`, `flops`, `matmul_flops_per_second`
        (of the machine, see `measuring.matmul`), and `share`, the part of that rate that each of them reaches.
    """
    found = algorithms.find(method)
    config = found.configure(dataset.spec, {})
    trainers, compile_seconds = {}, {}
    for n in seeds:
        parts = measuring.untrained_parts(method, config, dataset.spec, n)
        runs = [config] * n, range(n), [dataset], [0] * n
        trainers[n] = Trainer(found, *runs, None, Placement.default(n), parts=parts)
        began = time.perf_counter()
        trainers[n].advance(max(2, per_call // n))
        compile_seconds[n] = time.perf_counter() - began
    multiply, matmul_rate = measuring.matmul(), 0.0
    best: dict[Any, float] = {}
    for _ in range(repeats):
        for n, trainer in trainers.items():
            each = max(2, per_call // n)
            found_rate = n * each * rate(lambda trainer=trainer, each=each: trainer.advance(each), seconds)
            best[n] = max(best.get(n, 0.0), found_rate)
        matmul_rate = max(matmul_rate, multiply(seconds / 2))
        if baseline is not None:
            rates = [baseline(seconds=seconds / 2, threads=t) for t in (1, os.cpu_count() or 1)]
            best["torch"] = max(best.get("torch", 0.0), *rates)
    share = {str(k): v * flops / matmul_rate for k, v in best.items()}
    header = (f"{method} updates/s", "all runs", "x PyTorch", "of the matmul rate", "compile s")
    table = Table(*header, box=None, header_style="bold")
    slow = best.get("torch")
    if slow:
        name = "PyTorch, eager, the better of 1 and all threads"
        table.add_row(name, f"{slow:.1f}", "1", f"{share['torch']:.2f}", "")
    for n in seeds:
        ratio = f"{best[n] / slow:.2f}" if slow else "-"
        cells = f"{best[n]:.1f}", ratio, f"{share[str(n)]:.2f}", f"{compile_seconds[n]:.0f}"
        table.add_row(f"omarl_jax, {n} runs", *cells)
    console.print(table)
    console.print(f"{flops / 1e9:.2f} GFLOP an update; this machine multiplies {matmul_rate / 1e9:.0f} GFLOP/s")
    return {
        "updates_per_second": {str(k): v for k, v in best.items()},
        "compile_seconds": compile_seconds,
        "flops": flops,
        "matmul_flops_per_second": matmul_rate,
        "share": share,
    }


def environment_steps(seconds: float, repeats: int) -> dict[str, Any]:
    """Steps a second of 1,024 environments with random actions, observations and rewards consumed."""
    ours: dict[str, MultiAgentEnv] = {task: make_env(f"particle/{task}") for task in ("spread", "tag", "world")}
    prey = {task: ours[task].prey for task in ("tag", "world")}  # type: ignore[attr-defined]
    pursuit = {"tag": numpy_particle.TAG, "world": numpy_particle.WORLD}
    rows: dict[str, tuple[Callable[[], float], int]] = {}
    compile_seconds = {}
    for task, env in [*ours.items(), ("naive spread", naive_env.NaiveSpread())]:
        play = measuring.episodes(env, N_ENVS, _EPISODES)
        began = time.perf_counter()
        play(0)
        compile_seconds[task] = time.perf_counter() - began
        rows[f"omarl_jax {task}"] = (lambda play=play: rate(lambda: play(1), seconds) * _CALL_STEPS), N_ENVS
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
        "omarl_jax": measuring.episodes(make_env("uav/iot"), N_UAV_ENVS, _EPISODES, redraw=False),
        "naive JAX": measuring.episodes(naive_uav.NaiveUav(), N_UAV_ENVS, _EPISODES, redraw=False),
        "omarl_jax, random missions": measuring.episodes(
            make_env("uav/iot-random"), N_UAV_ENVS, _EPISODES, redraw=False
        ),
    }
    for play in plays.values():
        play(0)
    best = dict.fromkeys(plays, 0.0)
    for _ in range(repeats):
        for name, play in plays.items():
            steps = _EPISODES * 100 * N_UAV_ENVS * rate(lambda play=play: play(1), seconds)
            best[name] = max(best[name], steps)
    table = Table("uav/iot steps/s", "steps/s", "x naive JAX", box=None, header_style="bold")
    for name, steps in best.items():
        table.add_row(name, f"{steps:,.0f}", f"{steps / best['naive JAX']:.2f}")
    console.print(table)
    return best


def mujoco_steps(seconds: float, repeats: int) -> dict[str, Any]:
    """Control steps a second of MuJoCo's robots, with a policy that acts, beside C through Gymnasium, and MJX.

    Ours are `rollout.evaluate` on all devices. Gymnasium's are one environment on one core, with random actions that
    are drawn beforehand. MJX's are as many robots as ours, measured once, of HalfCheetah alone, since it compiles for
    minutes.
    """
    robots = {
        "halfcheetah-6x1": "HalfCheetah-v4",
        "hopper-3x1": "Hopper-v4",
        "walker2d-2x3": "Walker2d-v4",
        "ant-2x4": "Ant-v4",
    }
    ours, compile_seconds = {}, {}
    for task in robots:
        ours[task] = measuring.evaluation(make_env(f"mujoco/{task}"), ROBOTS_A_DEVICE)
        start = time.perf_counter()
        ours[task](0)
        compiled = time.perf_counter()
        ours[task](1)
        compile_seconds[task] = compiled - start - (time.perf_counter() - compiled)
    judges = measuring.gymnasium_steps(robots)
    best: dict[str, float] = {}
    for _ in range(repeats):
        for task in robots:
            steps = ours[task](1)
            best[task] = max(best.get(task, 0.0), steps * rate(lambda task=task: ours[task](1), seconds))
            if judges:
                name = f"Gymnasium {task}"
                best[name] = max(best.get(name, 0.0), judges[task](seconds))
    for iterations, others in measuring.mjx_steps("HalfCheetah-v4", ROBOTS_A_DEVICE).items():
        best[f"MJX, {iterations} iterations, halfcheetah-6x1"] = others(seconds)
    table = Table("mujoco control steps/s", "steps/s", "x C, one core", box=None, header_style="bold")
    for name, steps in best.items():
        judge = best.get(f"Gymnasium {name.split()[-1]}")
        table.add_row(name, f"{steps:,.0f}", f"{steps / judge:.2f}" if judge else "")
    console.print(table)
    return {"steps_per_second": best, "compile_seconds": compile_seconds}


def maze2d_steps(seconds: float, repeats: int) -> dict[str, float]:
    """Steps a second of 1,024 balls in the large maze with random actions, all that they show consumed, beside C."""
    env = make_env("maze2d/large")
    play = measuring.episodes(env, N_ENVS, count=1)
    play(0)
    name = "C MuJoCo, one core"
    best = {"omarl_jax": 0.0, name: 0.0}
    for _ in range(repeats):
        steps = env.task_spec.episode_length * N_ENVS * rate(lambda: play(1), seconds)
        best["omarl_jax"] = max(best["omarl_jax"], steps)
        try:
            best[name] = max(best[name], mujoco_maze.steps_per_second(env.maze, seconds))  # type: ignore[attr-defined]
        except ImportError:
            best.pop(name, None)
    table = Table("maze2d steps/s", "steps/s", "x C, one core", box=None, header_style="bold")
    for row, steps in best.items():
        table.add_row(row, f"{steps:,.0f}", f"{steps / best[name]:.1f}" if name in best else "")
    console.print(table)
    return best


def _baselines() -> dict[str, Baseline]:
    """The PyTorch loop of each method, if PyTorch is installed."""
    try:
        import torch_ciqr
        import torch_omar
        import torch_omcda
        import torch_omiga
    except ImportError:
        console.print("PyTorch is not installed (extra 'bench'): training is measured without a baseline.")
        return {}
    modules = {"omar": torch_omar, "omiga": torch_omiga, "omcda": torch_omcda, "ciqr": torch_ciqr}
    return {method: module.updates_per_second for method, module in modules.items()}


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
