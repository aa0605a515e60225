"""Grids of runs, read from TOML files and checked."""

import dataclasses
import itertools
import pathlib
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct
from omarl_envs.base import MultiAgentEnv

from omarl_jax import algorithms, presets
from omarl_jax.data import storage
from omarl_jax.datasets.catalogue import QUALITIES, digest
from omarl_jax.errors import UserError, python_value, seeds_of, unknown, whole
from omarl_jax.files import short_hash
from omarl_jax.runs import Run
from omarl_jax.schemas import Block, GridFile, convert
from omarl_jax.tasks import find_env, make_env


@dataclasses.dataclass(frozen=True)
class Grid:
    """A TOML file, checked.

    Attributes:
        runs: all runs.
        evaluations: evaluations during training, evenly spread, the last one at its end; fewer where updates are few.
        episodes: of each of them.
        final_episodes: of the last policy.
        side_by_side: most runs that a device trains together (see `Placement.default`); by default as many as its
            memory holds (see `placement.plan`). Run groups that have started keep their original value.
    """

    runs: list[Run]
    evaluations: int = 20
    episodes: int = 32
    final_episodes: int = 1_000
    side_by_side: int | None = None


_COUNTS = ("evaluations", "episodes", "final_episodes", "side_by_side")


def read_grid(path: pathlib.Path) -> Grid:
    """Reads a grid file.

    At the top: `seeds`; `data_seed`, either `"seed"` (each run seed has its own data, as papers do) or a number that
    all share; `evaluations`, `episodes`, `final_episodes`. Then `[[block]]`s: `tasks`, `datasets`, `algorithms`, whose
    product is run with the published hyperparameters (see `presets`), or with `preset = false` with the methods'
    defaults; `hyperparameters` that differ, lists of them spanning a grid; `options` of the task; `updates`, `size`.

    Raises:
        UserError: for a file that is not such a grid, naming the mistake.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no grid file '{path}'.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"'{path}' is not a grid file: {error}.") from None
    try:
        return make_grid(content)
    except UserError as error:
        raise UserError(f"In '{path}': {error}") from None


def make_grid(content: dict[str, Any]) -> Grid:
    """A grid from the content of its file; a run that is named twice is trained once.

    Raises:
        UserError: for unknown names and values that make no sense.
    """
    _check_names(content, GridFile, "setting")
    for block in blocks if isinstance(blocks := content.get("block"), list) else []:
        _check_names(block if isinstance(block, dict) else {}, Block, "setting of a [[block]]")
    grid = convert(_python(content), GridFile, "This is no grid")
    settings = {name: whole(name, value) for name in _COUNTS if (value := getattr(grid, name)) is not None}
    seeds = seeds_of(grid.seeds or [0])
    data_seeds = seeds if grid.data_seed == "seed" else seeds_of([grid.data_seed]) * len(seeds)
    pairs = list(zip(seeds, data_seeds, strict=True))
    runs = {run.name: run for block in grid.block for run in _expand(block, pairs)}
    return Grid(list(runs.values()), **settings)


def _expand(block: Block, seeds: Sequence[tuple[int, int]]) -> Iterator[Run]:
    """The runs of one block of a grid, for each pair of a seed and a data seed."""
    size = None if block.size is None else whole("size", block.size)
    options = block.options
    points = algorithms.spanned(block.hyperparameters)
    for task, dataset, algorithm in itertools.product(block.tasks, block.datasets, block.algorithms):
        by_recipe = dataset in QUALITIES
        if not by_recipe and not pathlib.Path(dataset).is_dir():
            raise unknown("dataset", dataset, QUALITIES)
        if not by_recipe and size is not None:
            raise UserError(f"size is for recipes: the data in '{dataset}' are taken as they are.")
        on_disk = None if by_recipe else storage.describe(dataset)
        env: MultiAgentEnv | None
        if on_disk is None:
            env = make_env(task, **options)
            spec = env.task_spec
        elif on_disk.spec.name == task:
            env = find_env(task, **options)
            spec = on_disk.spec if env is None else env.task_spec
        else:
            raise UserError(f"The data in '{dataset}' are of task '{on_disk.spec.name}', not of '{task}'.")
        data_digest = digest(env, dataset, options)
        recipe = dataset if on_disk is None else str(on_disk.metadata.get("recipe"))
        method = algorithms.find(algorithm)
        published = presets.preset(algorithm, task, recipe)
        usual = published.overrides if block.preset else {}
        updates = published.updates if block.updates is None else whole("updates", block.updates)
        for point, (seed, data_seed) in itertools.product(points, seeds):
            config = method.configure(spec, usual | point)
            parts = method.make(config, spec).needs.parts.items()
            yield Run(
                algorithm=algorithm,
                task=task,
                dataset=dataset,
                seed=seed,
                data_seed=data_seed if by_recipe else 0,
                updates=updates,
                config=config,
                options=tuple(sorted(options.items())),
                size=size,
                data_digest=data_digest,
                preset=published.source if block.preset else "",
                parts=tuple((name, short_hash(algorithms.part_identity(part, spec))) for name, part in parts),
            )


def _check_names(content: dict[str, Any], kind: type[Struct], what: str) -> None:
    for name in content:
        if name not in kind.__struct_fields__:
            raise unknown(what, name, kind.__struct_fields__)


def _python(content: Any) -> Any:
    """Python's numbers in place of NumPy's, in dicts and lists."""
    if isinstance(content, dict):
        return {name: _python(value) for name, value in content.items()}
    return [_python(value) for value in content] if isinstance(content, list) else python_value(content)
