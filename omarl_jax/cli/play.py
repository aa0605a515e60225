"""Verbs that show results: `evaluate`, `report` and `list`."""

import functools
import importlib
import pathlib
from collections.abc import Callable
from typing import Annotated

import tyro
from rich.table import Table

from omarl_jax.cli.terminal import complain, console, pairs, print_paths
from omarl_jax.errors import UserError, whole


def list_names() -> None:
    """Lists the algorithms, the tasks, the datasets, and the variants of algorithms."""
    import omarl_envs

    from omarl_jax import algorithms
    from omarl_jax.datasets.catalogue import QUALITIES

    table = Table("algorithms", "tasks", "datasets", box=None, header_style="bold")
    table.add_row("\n".join(algorithms.methods()), "\n".join(omarl_envs.task_names()), "\n".join(QUALITIES))
    console.print(table)
    variants = Table("variants", "of", "", box=None, header_style="bold")
    for name, row in algorithms.variants().items():
        variants.add_row(name, row["base"], row["title"])
    console.print()
    console.print(variants)


def evaluate(
    policy: tyro.conf.Positional[Annotated[pathlib.Path, tyro.conf.arg(metavar="POLICY")]],
    episodes: int = 1000,
    seed: int = 0,
    risk: float = 0.1,
    gif: pathlib.Path | None = None,
    map: pathlib.Path | None = None,
    quantiles: pathlib.Path | None = None,
    at: tuple[int, ...] = (),
    option: tuple[str, ...] = (),
    trust: bool = False,
) -> None:
    """Plays episodes with a trained policy and prints their returns.

    Args:
        policy: the folder of a run, or a policy file.
        episodes: how many.
        seed: of the episodes.
        risk: level of the CVaR, the mean over this share of the worst episodes.
        gif: also write one episode as a GIF, of a long one the first 200 frames.
        map: also write the paths of one episode on a map, as a PNG (uav and maze2d tasks).
        quantiles: also draw the return quantiles of the actions in one episode, as a PNG (ciqr and its variants).
        at: steps of that episode to draw them at; by default four, evenly spread.
        option: constructor arguments of the task, as name=value.
        trust: import a method or task that is not of this package, because the file names it; this runs its code.
    """
    import jax
    import numpy as np

    from omarl_jax import rollout
    from omarl_jax.export import load_policy
    from omarl_jax.files import require_trusted_task
    from omarl_jax.report import statistics
    from omarl_jax.report.episodes import write_gif, write_map, write_quantiles
    from omarl_jax.tasks import make_env

    whole("episodes", episodes)
    if not 0 < risk <= 1:
        raise UserError(f"risk must lie in (0, 1], not {risk}.")
    whole("A seed", seed, least=0, below=2**32)
    saved = load_policy(policy, allow_import=trust)
    require_trusted_task(saved.spec.name, allow_import=trust)
    env = make_env(saved.spec.name, **(saved.metadata.get("options", {}) | pairs(option)))
    saved.require_one()
    if env.task_spec != saved.spec:
        raise UserError(f"This policy was trained on another form of '{saved.spec.name}'; give its --option values.")
    act, carry = saved.functions
    play = jax.jit(lambda params, key: rollout.evaluate(env, act, carry, params, key, episodes))
    totals = {name: np.asarray(values) for name, values in play(saved.params, jax.random.key(seed)).items()}
    rows = {name: totals[name] for name in ("return", *env.metric_names, "length")}
    table = Table("", "mean", "sd", "min", "max", f"CVaR {risk:g}", "episodes not 0", box=None, header_style="bold")
    if env.reference is not None:
        rows = {"score": env.reference.normalise(rows["return"])} | rows
    for name, values in rows.items():
        numbers = [values.mean(), values.std(), values.min(), values.max()]
        tail = f"{statistics.cvar(values, risk):.2f}" if name in ("score", "return") else ""
        violating = f"{(values != 0).mean():.1%}" if name.startswith("risk") else ""
        table.add_row(name, *(f"{number:.2f}" for number in numbers), tail, violating)
    console.print(table)
    at_steps: Callable[..., None] = functools.partial(write_quantiles, at=at)
    for name, draw, path in (("gif", write_gif, gif), ("map", write_map, map), ("quantiles", at_steps, quantiles)):
        if path is not None:
            draw(env, saved, path, seed)
            print_paths({name: path})


def report(
    runs: tyro.conf.Positional[Annotated[pathlib.Path, tyro.conf.arg(metavar="RUNS")]],
    out: pathlib.Path | None = None,
    pictures: bool = False,
    trust: bool = False,
) -> int:
    """Makes tables, curves and an HTML page of finished runs.

    Args:
        runs: a folder with runs in it, at any depth.
        out: folder to write to; by default RUNS/report.
        pictures: also play an episode with the first run of each method, to draw its paths on a map or moments of it
            side by side, and the quantiles it has learned, where the task and the method have them.
        trust: for the pictures, import tasks and methods that are not of this package, because the runs name them;
            this runs their code.
    """
    from omarl_jax.report import print_table, write_report
    from omarl_jax.report.load import load_runs
    from omarl_jax.report.summarise import summarise

    finished, others = load_runs(runs)
    damaged = {folder: reason for folder, reason in others.items() if reason}
    for folder, reason in damaged.items():
        complain("left out", f"{folder.name}: {reason}")
    if unfinished := len(others) - len(damaged):
        complain("left out", f"{unfinished} unfinished runs, which the page lists.")
    if not finished:
        raise UserError(f"There are no finished runs in '{runs}'.")
    out, drawn = out or runs / "report", None
    if pictures:
        from omarl_jax.report import episodes

        for module in {run.base for run in finished} | {run.task.partition("/")[0] for run in finished}:
            if trust and "." in module:
                importlib.import_module(module)
        drawn = episodes.draw(finished, out)
    paths = write_report(finished, out, others, drawn)
    print_table(summarise(finished), console)
    print_paths(paths)
    return 1 if damaged else 0
