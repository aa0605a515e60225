"""Grids of runs: read from TOML, packed into programs, trained, resumed after a kill.

A *pack* is the runs that share one program: same method, static hyperparameters, task, data recipe and rounds. Its
order of runs and its layout are written down when it first starts, since another layout rounds differently; a pack
that was killed continues from its checkpoint with the same layout and ends with the same numbers.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from omarl_envs.base import MultiAgentEnv

from omarl_jax import algorithms, loggers, presets
from omarl_jax.checkpoint import Checkpoints
from omarl_jax.data import logs, storage
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.recipes import QUALITIES, digest, load_datasets, make_env, scores
from omarl_jax.errors import UserError, check_seeds, unknown
from omarl_jax.files import replacing, require_writable
from omarl_jax.layout import Layout
from omarl_jax.runs import Run, RunFolder, environment_record
from omarl_jax.training import Trainer, chunk_ends


@dataclasses.dataclass(frozen=True)
class Grid:
    """A TOML file, checked.

    Attributes:
        runs: all runs.
        evaluations: evaluations during training, evenly spread, the last one at its end; fewer where rounds are few.
        episodes: of each of them.
        final_episodes: of the last policy.
        side_by_side: most runs that a device trains together (see `Layout.default`); for an accelerator whose memory
            has no room for all runs of a program. What has begun goes on as it began.
    """

    runs: list[Run]
    evaluations: int = 20
    episodes: int = 32
    final_episodes: int = 1_000
    side_by_side: int | None = None


class Progress(NamedTuple):
    """What is told of a pack when it goes on from a checkpoint, after each chunk, and if it was done already.

    Attributes:
        round: learning rounds done.
        updates_per_second: learning rounds of all runs of the pack, of the last chunk, evaluation left out; NaN if
            there was none.
        unit: `score` if the task has a reference to normalise with, else `return`.
        value: mean of the last evaluation over the runs that have not diverged, in this unit; NaN if all have, or if
            there was none.
    """

    round: int
    updates_per_second: float = math.nan
    unit: str = "return"
    value: float = math.nan


_COUNTS = ("evaluations", "episodes", "final_episodes", "side_by_side")
_TOP = {"seeds", "data_seed", "block", *_COUNTS}
_BLOCK = {"tasks", "datasets", "algorithms", "rounds", "size", "hyperparameters", "options", "variant"}


def read_grid(path: pathlib.Path) -> Grid:
    """Reads a grid file.

    At the top: `seeds`; `data_seed`, either `"seed"` (each run seed has its own data, as papers do) or a number that
    all share; `evaluations`, `episodes`, `final_episodes`. Then `[[block]]`s: `tasks`, `datasets`, `algorithms`, whose
    product is run with the published hyperparameters (see `presets`); `hyperparameters` that differ, lists of them
    spanning a grid; `options` of the task; `rounds`, `size`, `variant`.

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
    """A grid from what stands in its file; a run that is named twice is trained once.

    Raises:
        UserError: for unknown names and values that make no sense.
    """
    _check_names(content, _TOP, "setting")
    settings = {name: content[name] for name in _COUNTS if name in content}
    for name, value in settings.items():
        _check_positive(name, value)
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
    for name in ("rounds", "size"):
        if name in block:
            _check_positive(name, block[name])
    hyperparameters, options = block.get("hyperparameters", {}), block.get("options", {})
    variant = block.get("variant")
    if variant is not None and (not isinstance(variant, str) or pathlib.Path(variant).name != variant):
        raise UserError(f"variant must be a name that a folder can have, not {variant!r}.")
    axes = [[(k, v) for v in (vs if isinstance(vs, list) else [vs])] for k, vs in hyperparameters.items()]
    if [] in axes:
        raise UserError("A hyperparameter has an empty list of values.")
    for task, dataset, algorithm in itertools.product(block["tasks"], block["datasets"], block["algorithms"]):
        env = make_env(task, **options)
        by_recipe = dataset in QUALITIES
        if not by_recipe and not pathlib.Path(dataset).is_dir():
            raise unknown("dataset", dataset, QUALITIES)
        if not by_recipe and "size" in block:
            raise UserError(f"size is for recipes: the data in '{dataset}' are taken as they are.")
        data_digest = digest(env, dataset, options)
        method = algorithms.find(algorithm)
        preset = presets.preset(algorithm, task, dataset)
        for point, seed in itertools.product(itertools.product(*axes), seeds):
            yield Run(
                algorithm=algorithm,
                task=task,
                dataset=dataset,
                seed=seed,
                data_seed=0 if not by_recipe else seed if data_seed == "seed" else int(data_seed),
                rounds=block.get("rounds", preset.rounds),
                config=method.configure(env.task_spec, preset.overrides | dict(point)),
                options=tuple(sorted(options.items())),
                size=block.get("size"),
                data_digest=data_digest,
                variant=variant,
            )


def packs(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups runs that share a program, in the order of their first appearance."""
    grouped: dict[Any, list[Run]] = {}
    for run in runs:
        static = jax.tree.structure(run.config)
        options = repr(run.options)  # a list among them could be no key
        key = (run.algorithm, static, run.task, options, run.dataset, run.size, run.rounds)
        grouped.setdefault(key, []).append(run)
    return list(grouped.values())


def sweep(
    grid: Grid,
    out: pathlib.Path,
    report: Callable[[int, Progress], None] = lambda pack, progress: None,
    wandb: str | None = None,
) -> dict[str, str]:
    """Trains all runs of a grid that are not done yet.

    Args:
        grid: the runs.
        out: folder; `out/runs` holds a folder for each run, `out/packs` the checkpoints, `out/data` parts of logs.
        report: told how it goes on, with the number of the pack among `packs(grid.runs)`.
        wandb: a Weights & Biases project to log to.

    Returns:
        the names of runs that failed, with the reason. A run that diverges is not among them: it is finished and
        marked in its folder.
    """
    require_writable(out / "runs" / "DONE")
    failed: dict[str, str] = {}
    for number, pack in enumerate(packs(grid.runs)):
        parts = _unfinished(pack, out)
        if not parts:
            report(number, Progress(pack[0].rounds))
        for part in parts:
            try:
                train_pack(part, grid, out, functools.partial(report, number), wandb)
            except UserError as error:
                failed |= {run.name: str(error) for run in part}
            except Exception as error:  # one failing program must not stop the others
                file = _pack_folder(part, out) / "error.txt"
                with contextlib.suppress(UserError), replacing(file) as partial:  # the disk may be what failed
                    partial.write(traceback.format_exc().encode())
                failed |= {run.name: f"{type(error).__name__}: {error} (see '{file}')" for run in part}
    return failed


def _unfinished(pack: Sequence[Run], out: pathlib.Path) -> list[list[Run]]:
    """What is left of a pack: first what was begun, in the company in which it began, whatever the grid was then."""
    by_name = {run.name: run for run in pack}
    left = {run.name for run in pack if not RunFolder(out / "runs" / run.name).done}
    parts = []
    for file in sorted((out / "packs").glob("*/pack.json")):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: told when the pack itself is wanted
            begun = json.loads(file.read_text())["runs"]
            if not left.isdisjoint(begun) and by_name.keys() >= set(begun):
                parts.append([by_name[name] for name in begun])
                left -= set(begun)
    fresh = [run for run in pack if run.name in left]
    return [*parts, fresh] if fresh else parts


def train_pack(
    runs: Sequence[Run],
    grid: Grid,
    out: pathlib.Path,
    report: Callable[[Progress], None] = lambda progress: None,
    wandb: str | None = None,
) -> None:
    """Trains the runs of one program to the end, from their checkpoint if there is one.

    A run that was finished in other company learns along, and what is written of it stays as it is.
    """
    first = runs[0]
    env = make_env(first.task, **dict(first.options))
    data_seeds = sorted({run.data_seed for run in runs})
    datasets = open_datasets(env, first, data_seeds, out / "data")
    hashes = [storage.content_hash(dataset) for dataset in datasets]
    data_of = [data_seeds.index(run.data_seed) for run in runs]

    folder = _pack_folder(runs, out)
    settings = {"evaluations": grid.evaluations, "episodes": grid.episodes}
    layout = _begin(folder / "pack.json", runs, settings, hashes, grid.side_by_side)
    trainer = Trainer(
        algorithms.find(first.algorithm),
        [run.config for run in runs],
        [run.seed for run in runs],
        datasets,
        data_of,
        env,
        layout,
    )
    with contextlib.ExitStack() as opened:
        checkpoints = opened.enter_context(contextlib.closing(Checkpoints(folder / "checkpoints")))
        if (saved := checkpoints.restore(trainer.runs)) is not None:
            trainer.resume(*saved)
            report(Progress(trainer.round))
        outputs: dict[int, _Output] = {}
        for i, (run, data) in enumerate(zip(runs, data_of, strict=True)):
            run_folder = RunFolder(out / "runs" / run.name)
            if not run_folder.done:
                run_folder.begin(run, datasets[data], hashes[data])
                outputs[i] = opened.enter_context(contextlib.closing(_Output(run, run_folder, trainer.round, wandb)))
        del datasets  # the trainer has them
        _train(trainer, grid, first.rounds, outputs, checkpoints, report)


class _Output:
    """Where the numbers of one run go."""

    def __init__(self, run: Run, folder: RunFolder, round: int, wandb: str | None):
        self.run, self.folder = run, folder
        self._evaluations = folder.evaluations(until=round)
        self._sinks: list[loggers.Logger] = [loggers.JsonLines(folder.path / "metrics.jsonl", round)]
        if wandb is not None:
            config = dataclasses.asdict(run.config) | {"task": run.task, "dataset": run.dataset, "seed": run.seed}
            group = f"{run.variant or run.algorithm}-{run.config_hash}"
            self._sinks.append(loggers.WandB(wandb, folder.path, run.name, group, config))

    def log(self, round: int, metrics: dict[str, float], returns: np.ndarray) -> None:
        """Writes down a chunk and the evaluation after it, returns (episodes,)."""
        row = {"round": round, **metrics, "return": float(returns.mean())}
        for sink in self._sinks:
            sink.log(row)
        self._evaluations["rounds"].append(np.asarray(round))
        self._evaluations["returns"].append(returns)
        self.folder.write_evaluations(self._evaluations)

    def finish(self, final: dict[str, np.ndarray], trainer: Trainer, i: int, record: dict[str, Any]) -> None:
        """Writes down run i of a trainer that has come to its end."""
        self.folder.write_evaluations(self._evaluations, final)
        diverged = int(trainer.diverged_at[i])
        outcome: dict[str, Any] = {"status": "finished", "diverged_at": None, "reason": None}
        if diverged >= 0:
            reason = f"not finite from round {diverged} on; the policy is the last good one"
            outcome = {"status": "diverged", "diverged_at": diverged, "reason": reason}
        self.folder.finish(self.run, trainer.spec, trainer.policy(i), record | outcome)

    def close(self) -> None:
        """Closes the logs."""
        for sink in self._sinks:
            sink.close()


def _train(
    trainer: Trainer,
    grid: Grid,
    rounds: int,
    outputs: dict[int, _Output],
    checkpoints: Checkpoints,
    report: Callable[[Progress], None],
) -> None:
    """Trains to the end; `outputs` are those of the runs, by their number, that are to be written down."""
    assert trainer.env is not None
    reference = trainer.env.reference
    rates = []
    for end in (n for n in chunk_ends(rounds, grid.evaluations) if n > trainer.round):
        began, size = time.perf_counter(), end - trainer.round
        metrics = trainer.advance(size)
        rates.append(size * trainer.n_runs / (time.perf_counter() - began))
        returns = trainer.evaluate(grid.episodes)["return"]
        for i, output in outputs.items():
            of_run = {name: float(values[i]) for name, values in metrics.items()}
            output.log(trainer.round, of_run | {"updates_per_second": rates[-1]}, returns[i])
        checkpoints.save(trainer.round, trainer.runs)
        sound = returns[trainer.diverged_at < 0]
        mean = float(sound.mean()) if len(sound) else math.nan
        unit, value = ("return", mean) if reference is None else ("score", float(reference.normalise(mean)))
        report(Progress(trainer.round, rates[-1], unit, value))

    final = trainer.evaluate(grid.final_episodes)
    record = environment_record() | {
        "pack": checkpoints.folder.parent.name,
        "layout": dataclasses.asdict(trainer.layout),
        "updates_per_second": float(np.median(rates)) if rates else None,
    }
    for i, output in outputs.items():
        output.finish({name: values[i] for name, values in final.items()}, trainer, i, record)


def open_datasets(env: MultiAgentEnv, run: Run, data_seeds: Sequence[int], kept: pathlib.Path) -> list[Dataset]:
    """The data of runs that differ in their data's seed: made by their recipe, or read from disk.

    Parts of logs are kept in a folder: to learn them takes minutes, and on other devices others would be learned.
    """
    if run.dataset in logs.PARTS:
        return _kept(env, run, data_seeds, kept)
    if run.dataset in QUALITIES:
        return load_datasets(run.task, run.dataset, data_seeds, run.size, **dict(run.options))
    dataset = storage.load(run.dataset, env.task_spec)
    made_with = dataset.metadata.get("options", {})
    if made_with != json.loads(json.dumps(dict(run.options))):
        raise UserError(f"The data in '{run.dataset}' were made with the task's options {made_with}: give the same.")
    metadata = dataset.metadata
    mean_return = metadata.get("mean_return")
    if mean_return is None and env.metric_names == ("return",):  # a task that knows more may count it otherwise
        mean_return = float(dataset.episode_returns().mean())
    known = scores(env, mean_return)
    if env.reference is None:  # the data may know more
        return [dataclasses.replace(dataset, metadata=known | metadata)] * len(data_seeds)
    comparable = known["comparable"] and metadata.get("comparable", True)
    return [dataclasses.replace(dataset, metadata=metadata | known | {"comparable": comparable})] * len(data_seeds)


def _kept(env: MultiAgentEnv, run: Run, data_seeds: Sequence[int], folder: pathlib.Path) -> list[Dataset]:
    recipe = json.dumps([run.task, run.dataset, run.options, run.size, run.data_digest], default=str)
    name = f"{run.task.replace('/', '-')}_{run.dataset}_{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    folders = {seed: folder / f"{name}_seed{seed}" for seed in data_seeds}
    if missing := [seed for seed in data_seeds if not folders[seed].exists()]:
        made = load_datasets(run.task, run.dataset, missing, run.size, **dict(run.options))
        for seed, dataset in zip(missing, made, strict=True):
            storage.save(dataset, folders[seed])
    return [storage.load(folders[seed], env.task_spec) for seed in data_seeds]


def _pack_folder(runs: Sequence[Run], out: pathlib.Path) -> pathlib.Path:
    names = "\n".join(run.name for run in runs)
    return out / "packs" / hashlib.sha256(names.encode()).hexdigest()[:12]


def _begin(
    path: pathlib.Path, runs: Sequence[Run], settings: dict[str, int], data: list[str], side_by_side: int | None
) -> Layout:
    """Writes down how a pack is trained, or reads how it began: its layout, and settings and data not to be changed."""
    if not path.exists():
        layout = Layout.default(len(runs), side_by_side)
        plan = {"runs": [run.name for run in runs], "layout": dataclasses.asdict(layout), "settings": settings}
        content = plan | {"data": data} | environment_record()
        with replacing(path) as file:
            file.write(json.dumps(content, indent=2).encode())
        return layout
    try:
        content = json.loads(path.read_text())
        layout, began_with, began_on = Layout(**content["layout"]), dict(content["settings"]), content["data"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"'{path}' is damaged; delete its folder to start these runs again.") from None
    if began_with != settings:
        raise UserError(
            f"These runs began with {_listed(began_with)}, not with {_listed(settings)}: give the same, or delete "
            f"'{path.parent}' to start them again."
        )
    if layout.devices > jax.device_count():
        raise UserError(
            f"These runs began on {layout.devices} devices and here are {jax.device_count()} (on a CPU, "
            f"JAX_NUM_CPU_DEVICES says how many); delete '{path.parent}' to start them again."
        )
    if began_on != data:
        raise UserError(
            "These runs began on other data: another version or number of devices has made them anew, and not alike; "
            f"delete '{path.parent}' to start these runs again."
        )
    return layout


def _listed(settings: dict[str, int]) -> str:
    return " and ".join(f"{value} {name}" for name, value in settings.items())


def _check_names(content: dict[str, Any], known: set[str], kind: str) -> None:
    for name in content:
        if name not in known:
            raise unknown(kind, name, known)


def _check_positive(name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise UserError(f"{name} must be a positive integer, not {value!r}.")
