"""Grids of runs, read from TOML files and checked."""

import dataclasses
import itertools
import pathlib
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from omarl_jax import algorithms, presets
from omarl_jax.data import storage
from omarl_jax.datasets.catalogue import QUALITIES, digest
from omarl_jax.errors import UserError, check_positive, check_seeds, unknown
from omarl_jax.runs import Run
from omarl_jax.tasks import make_env


@dataclasses.dataclass(frozen=True)
class Grid:
    """A TOML file, checked.

    Attributes:
        runs: all runs.
        evaluations: evaluations during training, evenly spread, the last one at its end; fewer where updates are few.
        episodes: of each of them.
        final_episodes: of the last policy.
        side_by_side: most runs that a device trains together (see `Placement.default`); for an accelerator whose memory
            has no room for all runs of a program. Run groups that have started keep their original value.
    """

    runs: list[Run]
    evaluations: int = 20
    episodes: int = 32
    final_episodes: int = 1_000
    side_by_side: int | None = None


_COUNTS = ("evaluations", "episodes", "final_episodes", "side_by_side")
_TOP = {"seeds", "data_seed", "block", *_COUNTS}
_BLOCK = {"tasks", "datasets", "algorithms", "updates", "size", "hyperparameters", "options", "preset"}


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
    _check_names(content, _TOP, "setting")
    settings = {name: content[name] for name in _COUNTS if name in content}
    check_positive(**settings)
    seeds, data_seed = content.get("seeds", [0]), content.get("data_seed", "seed")
    if not isinstance(seeds, list) or not seeds:
        raise UserError(f"seeds must be a list of integers, not {seeds!r}.")
    check_seeds(seeds if data_seed == "seed" else [*seeds, data_seed])
    blocks = content.get("block")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise UserError("A grid needs at least one [[block]].")
    runs = {run.name: run for block in blocks for run in _expand(block, seeds, data_seed)}
    return Grid(list(runs.values()), **settings)


def _expand(block: dict[str, Any], seeds: Sequence[int], data_seed: int | str) -> Iterator[Run]:
    """The runs of one block of a grid."""
    _check_names(block, _BLOCK, "setting of a [[block]]")
    for name in ("tasks", "datasets", "algorithms"):
        values = block.get(name)
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise UserError(f"A [[block]] needs {name}, a list of names, not {values!r}.")
    for name in ("hyperparameters", "options"):
        if not isinstance(block.get(name, {}), dict):
            raise UserError(f"{name} must be a table of names and values, not {block[name]!r}.")
    check_positive(**{name: block[name] for name in ("updates", "size") if name in block})
    if not isinstance(block.get("preset", True), bool):
        raise UserError(f"preset must be true or false, not {block['preset']!r}.")
    options = block.get("options", {})
    points = algorithms.spanned(block.get("hyperparameters", {}))
    for task, dataset, algorithm in itertools.product(block["tasks"], block["datasets"], block["algorithms"]):
        env = make_env(task, **options)
        by_recipe = dataset in QUALITIES
        if not by_recipe and not pathlib.Path(dataset).is_dir():
            raise unknown("dataset", dataset, QUALITIES)
        if not by_recipe and "size" in block:
            raise UserError(f"size is for recipes: the data in '{dataset}' are taken as they are.")
        data_digest = digest(env, dataset, options)
        recipe = dataset if by_recipe else str(storage.described_metadata(dataset).get("recipe"))
        method = algorithms.find(algorithm)
        published = presets.preset(algorithm, task, recipe)
        usual = published.overrides if block.get("preset", True) else {}
        for point, seed in itertools.product(points, seeds):
            yield Run(
                algorithm=algorithm,
                task=task,
                dataset=dataset,
                seed=int(seed),
                data_seed=0 if not by_recipe else int(seed if data_seed == "seed" else data_seed),
                updates=int(block.get("updates", published.updates)),
                config=method.configure(env.task_spec, usual | point),
                options=tuple(sorted(options.items())),
                size=int(block["size"]) if "size" in block else None,
                data_digest=data_digest,
                preset=published.source if block.get("preset", True) else "",
            )


def _check_names(content: dict[str, Any], known: set[str], kind: str) -> None:
    for name in content:
        if name not in known:
            raise unknown(kind, name, known)
