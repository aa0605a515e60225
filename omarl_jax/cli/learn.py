"""Verbs that train: `train`, `sweep` and `demo`."""

import ast
import dataclasses
import inspect
import itertools
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from omarl_jax.cli.terminal import DatasetName, TaskName, complain, console, pairs, print_paths

if TYPE_CHECKING:
    from omarl_jax.grid import Grid


def train() -> int:
    """Trains one algorithm: omarl train ALGORITHM --help tells its arguments.

    Several seeds, and several values of float hyperparameters, are trained in one program.
    """
    from omarl_jax import algorithms

    console.print("usage: omarl train ALGORITHM TASK DATASET [options]")
    console.print("ALGORITHM is one of " + ", ".join(algorithms.methods()) + "; with --help it tells its options.")
    return 2


def sweep(
    grid: tyro.conf.Positional[Annotated[pathlib.Path, tyro.conf.arg(metavar="GRID")]],
    out: pathlib.Path | None = None,
    wandb: str | None = None,
) -> int:
    """Trains all runs of a grid, continues those that were killed, and writes the report.

    Args:
        grid: a TOML file, for example experiments/omar_particle.toml.
        out: folder for the runs; by default results/NAME OF THE GRID.
        wandb: a Weights & Biases project to log to; offline where there is no key.
    """
    from omarl_jax.grid import read_grid

    return _run(read_grid(grid), out or pathlib.Path("results") / grid.stem, wandb)


def demo(out: pathlib.Path = pathlib.Path("results/demo"), seeds: int = 3) -> int:
    """Makes data of cooperative navigation, trains OMAR, MA-CQL and BC, and prints how they compare.

    Args:
        out: folder for everything it makes.
        seeds: runs of each method.
    """
    from omarl_jax.data.recipes import make_env
    from omarl_jax.export import load_policy
    from omarl_jax.grid import make_grid
    from omarl_jax.pictures import write_gif

    block = {
        "tasks": ["particle/spread"],
        "datasets": ["medium-replay"],
        "algorithms": ["omar", "cql", "bc"],
        "hyperparameters": {"batch_size": [256]},  # a quarter of the published one, so that two CPU cores need minutes
    }
    grid = make_grid({"seeds": list(range(seeds)), "evaluations": 10, "episodes": 64, "block": [block]})
    code = _run(grid, out, None)
    if code == 0:
        team = load_policy(out / "runs" / grid.runs[0].name / "policy.npz")
        gif = out / "report" / "omar.gif"
        write_gif(make_env(team.spec.name), team, gif, seed=0)
        print_paths({"trained team": gif})
    return code


def train_with(algorithm: str, arguments: Sequence[str]) -> int:
    """`omarl train ALGORITHM`: the method's own hyperparameters are arguments, lists of floats span a grid."""
    from omarl_jax import algorithms
    from omarl_jax.grid import make_grid

    method = algorithms.find(algorithm)
    helps = _field_docs(method.config)
    settings: list[tuple[str, Any, Any, str, str | None]] = [  # the last: what holds where None is the default
        ("task", TaskName, dataclasses.MISSING, "For example particle/spread.", None),
        (
            "dataset",
            DatasetName,
            dataclasses.MISSING,
            "A recipe (see omarl data list), or a folder on disk, for which the task's general presets hold.",
            None,
        ),
        ("seeds", tuple[int, ...], (0,), "Seeds of training.", None),
        ("data_seed", int | None, None, "Seed of the data, for all.", "each run's own seed"),
        ("rounds", int | None, None, "Learning rounds.", "those of the preset"),
        ("size", int | None, None, "Transitions of the data.", "the published number"),
        ("out", pathlib.Path, pathlib.Path("results/train"), "Folder for the runs.", None),
        ("evaluations", int, 20, "Evaluations during training.", None),
        ("episodes", int, 32, "Episodes of each of them.", None),
        ("final_episodes", int, 1000, "Episodes of the last policy.", None),
        ("side_by_side", int | None, None, "Most runs that a device trains together.", "all; on a CPU, one"),
        ("option", tuple[str, ...], (), "Constructor arguments of the task, as name=value.", None),
        ("wandb", str | None, None, "A Weights & Biases project to log to; offline where there is no key.", "none"),
    ]
    kinds = method.kinds
    for field in dataclasses.fields(method.config):
        kind: Any = tuple[float, ...] if kinds[field.name] is float else kinds[field.name]
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        told = helps.get(field.name, "")
        settings.append((field.name, kind | None, None, told, f"{default}, or what was published"))
    fields = []
    for name, kind, default, told, otherwise in settings:
        hint = None if otherwise is None else f"(default: {otherwise})"
        shown = tyro.conf.arg(help=told, help_behavior_hint=hint)
        fields.append((name, Annotated[kind, shown], dataclasses.field(default=default)))
    summary = (inspect.getdoc(sys.modules[method.config.__module__]) or "").partition("\n\n")[0]
    form = dataclasses.make_dataclass("Train", fields)
    given: Any = tyro.cli(form, args=arguments, prog=f"omarl train {algorithm}", description=summary)

    chosen = {name: getattr(given, name) for name in kinds}
    block = {
        "tasks": [given.task],
        "datasets": [given.dataset],
        "algorithms": [algorithm],
        "hyperparameters": {
            # A tuple of floats spans a grid; any other tuple is one value.
            name: list(value) if kinds[name] is float else [value]
            for name, value in chosen.items()
            if value is not None
        },
        "options": pairs(given.option),
    }
    block |= {name: value for name in ("rounds", "size") if (value := getattr(given, name)) is not None}
    grid = make_grid(
        {
            "seeds": list(given.seeds),
            "data_seed": "seed" if given.data_seed is None else given.data_seed,
            "evaluations": given.evaluations,
            "episodes": given.episodes,
            "final_episodes": given.final_episodes,
            "block": [block],
        }
        | ({} if given.side_by_side is None else {"side_by_side": given.side_by_side})
    )
    return _run(grid, given.out, given.wandb)


def _run(grid: "Grid", out: pathlib.Path, wandb: str | None) -> int:
    from omarl_jax import report as reports
    from omarl_jax import results
    from omarl_jax import sweep as sweeps

    packs = sweeps.packs(grid.runs)
    whole = Column(no_wrap=True)  # in a narrow terminal the names of the packs are folded, and no number is cut
    columns = (
        TextColumn("{task.description}", table_column=Column(overflow="fold")),
        BarColumn(bar_width=8),
        MofNCompleteColumn(table_column=whole.copy()),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(table_column=whole.copy()),
        TimeRemainingColumn(table_column=whole.copy()),
        TextColumn("{task.fields[score]}"),
    )
    # Rich estimates the time left from the last half minute, and a chunk may take longer.
    with Progress(*columns, console=console, speed_estimate_period=math.inf) as progress:
        work = sum(pack[0].rounds * len(pack) for pack in packs)
        everything = progress.add_task("all runs", total=work, rate="", score="", visible=len(packs) > 1)
        bars = [progress.add_task(_title(pack), total=pack[0].rounds, rate="", score="", start=False) for pack in packs]
        rounds = [0] * len(packs)

        def tell(pack: int, told: "sweeps.Progress") -> None:
            nonlocal work
            progress.start_task(bars[pack])
            rate = "" if math.isnan(told.updates_per_second) else f"{told.updates_per_second:,.0f} updates/s"
            score = "" if math.isnan(told.value) else f"{told.unit} {told.value:.1f}"
            progress.update(bars[pack], completed=told.round, rate=rate, score=score)
            made, rounds[pack] = (told.round - rounds[pack]) * len(packs[pack]), told.round
            if math.isnan(told.updates_per_second):  # it was done before, and says nothing of the time left
                work -= made
                progress.update(everything, total=work)
            else:
                progress.update(everything, advance=made)

        failed = sweeps.sweep(grid, out, tell, wandb)
    folders = [out / "runs" / run.name for run in grid.runs]
    finished = [results.load_run(folder) for folder in folders if (folder / "DONE").exists()]
    if finished:
        missing = {folder: failed.get(folder.name, "") for folder in folders if not (folder / "DONE").exists()}
        paths = reports.write_report(finished, out / "report", missing)
        reports.print_table(results.table(finished), console)
        print_paths(paths)
    for run in finished:
        if run.failure is not None:
            complain("no result", f"{run.folder.name}: {run.failure}")
    for reason, alike in results.grouped(failed.items(), lambda item: item[1]).items():
        others = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        complain("failed", f"{alike[0][0]}{others}: {reason}")
    return 0 if any(run.failure is None for run in finished) and not failed else 1


def _title(pack: list[Any]) -> str:
    run = pack[0]
    return f"{run.variant or run.algorithm} on {run.task} {run.dataset}, {len(pack)} runs"


def _field_docs(cls: type) -> dict[str, str]:
    """The strings that stand below the fields of a dataclass, its bases' included."""
    docs: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):
        body = ast.parse(inspect.getsource(part).lstrip()).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(told))):
                    docs[name] = told
    return docs
