"""Verbs that train the runs of a grid: `sweep` and `demo`."""

import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from omarl_jax.cli.terminal import complain, console, pairs, print_paths
from omarl_jax.determinism import request_deterministic_operations
from omarl_jax.errors import UserError, whole

if TYPE_CHECKING:
    from omarl_jax import sweep as sweeps
    from omarl_jax.grid import Grid
    from omarl_jax.runs import Run


def sweep(
    grid: tyro.conf.Positional[Annotated[pathlib.Path, tyro.conf.arg(metavar="GRID")]],
    out: pathlib.Path | None = None,
    wandb: str | None = None,
    deterministic: bool = False,
    ray: str | None = None,
    submitit: tuple[str, ...] | None = None,
    workers: int = 1,
    distributed: bool = False,
) -> int:
    """Trains all runs of a grid, continues those that were killed, and writes the report.

    Started several times with the same folder, also on several machines, it shares the work: docs/many_machines.md.

    Args:
        grid: a TOML file, for example experiments/omar_particle.toml.
        out: folder for the runs; by default results/NAME OF THE GRID.
        wandb: a Weights & Biases project to log to; offline where there is no key.
        deterministic: the same bits each time on GPUs too, which makes them slower; on CPUs it changes nothing.
        ray: the address of a Ray cluster that does the work; auto for the one here, local to start one.
        submitit: SLURM jobs do the work; what each asks for as name=value, for example partition=long gpus_per_node=1.
        workers: the number of these jobs.
        distributed: this is one of several processes that train each run group together, for groups larger than a host.
    """
    if deterministic:
        request_deterministic_operations()  # before the import, which starts the backend
    if workers != 1 and submitit is None:
        raise UserError("--workers is for --submitit; without it, start `omarl sweep` several times.")
    if distributed:
        if ray is not None or submitit is not None:
            raise UserError("Give --distributed, --ray or --submitit, not two of them.")
        return _on_processes(grid, out or _folder(grid), wandb)
    if ray is not None:
        if submitit is not None:
            raise UserError("Give --ray or --submitit, not both.")
        return _on_ray(ray, grid, out, wandb)
    from omarl_jax.grid import read_grid

    runs, out = read_grid(grid), out or _folder(grid)
    if submitit is None:
        return train_grid(runs, out, wandb)
    from omarl_jax.on_slurm import submit

    options = [*(["--wandb", wandb] if wandb else []), *(["--deterministic"] if deterministic else [])]
    arguments = ["sweep", str(grid.resolve()), "--out", str(out.resolve()), *options]
    jobs = submit(arguments, out / "slurm", whole("workers", workers), pairs(submitit))
    console.print(f"{len(jobs)} workers are queued as {', '.join(jobs)}. The last one writes the report.")
    print_paths({"their output": out / "slurm"})
    return 0


def _on_ray(address: str, grid: pathlib.Path, out: pathlib.Path | None, wandb: str | None) -> int:
    from omarl_jax import on_ray

    backend = os.environ.get("JAX_PLATFORMS", "")
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process only watches, and must not take an accelerator's memory
    with on_ray.connection(address):
        from omarl_jax.grid import read_grid

        train = functools.partial(on_ray.sweep, backend=backend)
        return train_grid(read_grid(grid), out or _folder(grid), wandb, train)


def _on_processes(grid: pathlib.Path, out: pathlib.Path, wandb: str | None) -> int:
    from omarl_jax import distributed

    with distributed.joined(functools.partial(complain, "error")):
        from omarl_jax import sweep as sweeps
        from omarl_jax.grid import read_grid

        def train(*given: Any) -> dict[str, str]:
            failed = sweeps.sweep(*given)
            distributed.leave()  # the others need not wait for the report
            return failed

        runs = distributed.agreed(lambda: read_grid(grid))
        if distributed.first():
            return train_grid(runs, out, wandb, train)
        return 1 if train(runs, out) else 0


def _folder(grid: pathlib.Path) -> pathlib.Path:
    return pathlib.Path("results") / grid.stem


def demo(out: pathlib.Path = pathlib.Path("results/demo"), seeds: int = 3, short: bool = False) -> int:
    """Makes data of cooperative navigation, trains OMAR, MA-CQL and BC, and prints how they compare.

    Args:
        out: folder for everything it makes.
        seeds: runs of each method.
        short: OMAR and BC only, and too few updates to learn much: a look at everything in less than a minute.
    """
    from omarl_jax.export import load_policy
    from omarl_jax.grid import make_grid
    from omarl_jax.report.episodes import write_gif
    from omarl_jax.tasks import make_env

    block: dict[str, Any] = {
        "tasks": ["particle/spread"],
        "datasets": ["medium-replay"],
        "algorithms": ["omar", "cql", "bc"],
        "hyperparameters": {"batch_size": [256]},  # a quarter of the published one, so that two CPU cores need minutes
    }
    effort = {"evaluations": 10, "episodes": 64}
    if short:
        block |= {"algorithms": ["omar", "bc"], "updates": 100, "size": 20_000}
        effort |= {"evaluations": 2, "final_episodes": 64}  # as many episodes as before, so that one program plays both
    grid = make_grid(effort | {"seeds": list(range(seeds)), "block": [block]})
    code = train_grid(grid, out)
    if code == 0:
        team = load_policy(out / "runs" / grid.runs[0].name / "policy.npz")
        gif = out / "report" / "omar.gif"
        write_gif(make_env(team.spec.name), team, gif, seed=0)
        print_paths({"trained team": gif})
    return code


def train_grid(
    grid: "Grid", out: pathlib.Path, wandb: str | None = None, train: Callable[..., dict[str, str]] | None = None
) -> int:
    """Trains the runs of a grid with progress bars, writes the report, and prints its table.

    Args:
        grid: the runs.
        out: folder for the runs and the report.
        wandb: a Weights & Biases project to log to.
        train: what trains them, with the arguments and the result of `omarl_jax.sweep.sweep`, which it is by default.

    Returns:
        the exit code: 0 if no run failed and one has a result.
    """
    from omarl_jax import report as reports
    from omarl_jax import sweep as sweeps
    from omarl_jax.report.load import load_run
    from omarl_jax.report.summarise import grouped, summarise

    groups = sweeps.run_groups(grid.runs)
    uncut = Column(no_wrap=True)  # in a narrow terminal the names of the groups are folded, and no number is cut
    columns = (
        TextColumn("{task.description}", table_column=Column(overflow="fold")),
        BarColumn(bar_width=8),
        MofNCompleteColumn(table_column=uncut.copy()),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(table_column=uncut.copy()),
        TimeRemainingColumn(table_column=uncut.copy()),
        TextColumn("{task.fields[score]}"),
    )
    in_notebook = "JPY_PARENT_PID" in os.environ  # it can overwrite the last line, and none before it
    # Rich estimates the time left from the last half minute, and a chunk may take longer.
    with Progress(
        *columns, console=console, speed_estimate_period=math.inf, refresh_per_second=1 if in_notebook else 10
    ) as progress:
        work = sum(group[0].updates * len(group) for group in groups)
        new: Any = {"rate": "", "score": ""}
        everything = progress.add_task("all runs", total=work, visible=in_notebook or len(groups) > 1, **new)
        bars = [
            progress.add_task(_title(group), total=group[0].updates, visible=not in_notebook, start=False, **new)
            for group in groups
        ]
        updates = [0] * len(groups)

        def show(group: int, now: "sweeps.Progress") -> None:
            nonlocal work
            progress.start_task(bars[group])
            rate = "" if math.isnan(now.updates_per_second) else f"{now.updates_per_second:,.0f} updates/s"
            score = now.part if math.isnan(now.value) else f"{now.unit} {now.value:.1f}"
            progress.update(bars[group], completed=now.updates, rate=rate, score=score)
            made, updates[group] = (now.updates - updates[group]) * len(groups[group]), now.updates
            if math.isnan(now.updates_per_second):  # it was done before, and says nothing of the time left
                work -= made
                progress.update(everything, total=work)
            else:
                progress.update(everything, advance=made)

        failed = (train or sweeps.sweep)(grid, out, show, wandb)
    folders = [out / "runs" / run.name for run in grid.runs]
    finished = []
    for folder in (folder for folder in folders if (folder / "DONE").exists()):
        try:
            finished.append(load_run(folder))
        except UserError as error:
            failed[folder.name] = str(error)
    if finished:
        read = {run.folder for run in finished}
        missing = {folder: failed.get(folder.name, "") for folder in folders if folder not in read}
        paths = reports.write_report(finished, out / "report", missing)
        reports.print_table(summarise(finished), console)
        print_paths(paths)
    unplayed = [run for run in finished if run.not_evaluated]
    for task in grouped(unplayed, lambda run: run.task):
        complain("not evaluated", f"the policies in '{out / 'runs'}', as there is no simulator of '{task}'.")
    for run in finished:
        if run.failure is not None and not run.not_evaluated:
            complain("no result", f"{run.folder.name}: {run.failure}")
    for reason, alike in grouped(failed.items(), lambda item: item[1]).items():
        others = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        complain("failed", f"{alike[0][0]}{others}: {reason}")
    return 0 if any(run.failure is None or run.not_evaluated for run in finished) and not failed else 1


def _title(group: "list[Run]") -> str:
    run = group[0]
    return f"{run.algorithm} on {run.task} {run.dataset}, {len(group)} runs"
