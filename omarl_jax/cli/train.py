"""The verb `train`, whose arguments are the hyperparameters of the method."""

import ast
import dataclasses
import inspect
import itertools
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Annotated, Any, get_origin

import tyro

from omarl_jax.cli.sweep import train_grid
from omarl_jax.cli.terminal import DatasetName, TaskName, console, pairs
from omarl_jax.determinism import request_deterministic_operations


def train() -> int:
    """Trains one algorithm; omarl train ALGORITHM --help shows its arguments.

    Several seeds, and several values of hyperparameters, span a grid; all seeds, and all values of float
    hyperparameters, are trained in one program.
    """
    from omarl_jax import algorithms

    console.print("usage: omarl train ALGORITHM TASK DATASET [options]")
    console.print("ALGORITHM is one of " + ", ".join(algorithms.names()) + "; with --help it shows its options.")
    return 2


def train_with(algorithm: str, arguments: Sequence[str]) -> int:
    """`omarl train ALGORITHM`: the method's own hyperparameters are arguments, several values span a grid."""
    from omarl_jax import algorithms

    method = algorithms.find(algorithm)
    helps = _field_docs(method.config)
    settings: list[tuple[str, Any, Any, str, str | None]] = [  # the last: what holds where None is the default
        ("task", TaskName, dataclasses.MISSING, "For example particle/spread.", None),
        (
            "dataset",
            DatasetName,
            dataclasses.MISSING,
            "A recipe (see omarl data list), or a folder on disk.",
            None,
        ),
        ("seeds", tuple[int, ...], (0,), "Seeds of training.", None),
        ("data_seed", int | None, None, "Seed of the data, for all.", "each run's own seed"),
        ("updates", int | None, None, "Gradient steps of every network.", "the published number"),
        ("preset", bool, True, "Start from the published hyperparameters, or from the method's defaults.", None),
        ("size", int | None, None, "Transitions of the data.", "the published number"),
        ("out", pathlib.Path, pathlib.Path("results/train"), "Folder for the runs.", None),
        ("evaluations", int, 20, "Evaluations during training.", None),
        ("episodes", int, 32, "Episodes of each of them.", None),
        ("final_episodes", int, 1000, "Episodes of the last policy.", None),
        ("side_by_side", int | None, None, "Most runs that a device trains together.", "all that fit; on a CPU, one"),
        ("option", tuple[str, ...], (), "Constructor arguments of the task, as name=value.", None),
        (
            "deterministic",
            bool,
            False,
            "The same bits each time on GPUs too, which makes them slower; on CPUs it changes nothing.",
            None,
        ),
        ("wandb", str | None, None, "A Weights & Biases project to log to; offline where there is no key.", "none"),
    ]
    kinds = method.kinds
    single = {
        name for name, kind in kinds.items() if get_origin(kind) is tuple
    }  # a list of values is one of its values
    for field in dataclasses.fields(method.config):
        kind: Any = kinds[field.name]
        if field.name not in single:
            kind = types.GenericAlias(tuple, (kind, ...))
        default = getattr(method.defaults, field.name)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        fixed = field.name in method.fixed
        otherwise = f"{shown}, fixed by {algorithm}" if fixed else f"{shown}, or what was published"
        settings.append((field.name, kind | None, None, helps.get(field.name, ""), otherwise))
    fields = []
    for name, kind, default, text, usual in settings:
        hint = None if usual is None else f"(default: {usual})"
        arg = tyro.conf.arg(help=text, help_behavior_hint=hint)
        fields.append((name, Annotated[kind, arg], dataclasses.field(default=default)))
    summary = method.title or (inspect.getdoc(sys.modules[method.config.__module__]) or "").partition("\n\n")[0]
    form = dataclasses.make_dataclass("Train", fields)
    given: Any = tyro.cli(form, args=arguments, prog=f"omarl train {algorithm}", description=summary)
    if given.deterministic:
        request_deterministic_operations()  # before the import, which starts the backend
    from omarl_jax.grid import make_grid

    chosen = {name: getattr(given, name) for name in kinds}
    block = {
        "tasks": [given.task],
        "datasets": [given.dataset],
        "algorithms": [algorithm],
        "hyperparameters": {
            name: [value] if name in single else list(value) for name, value in chosen.items() if value is not None
        },
        "options": pairs(given.option),
        "preset": given.preset,
    }
    block |= {name: value for name in ("updates", "size") if (value := getattr(given, name)) is not None}
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
    return train_grid(grid, given.out, given.wandb)


def _field_docs(cls: type) -> dict[str, str]:
    """The strings that stand below the fields of a dataclass, its bases' included."""
    docs: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):
        body = ast.parse(inspect.getsource(part).lstrip()).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = text
    return docs
