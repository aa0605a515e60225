"""Sweeps: the runs of a grid, packed into programs, trained, resumed after a kill.

A *pack* is the runs that share one program: same method, static hyperparameters, task, data recipe and rounds. Its
order of runs and its layout are written down when it first starts, since another layout rounds differently; a pack
that was killed continues from its checkpoint with the same layout and ends with the same numbers.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from omarl_envs.base import MultiAgentEnv

from omarl_jax import algorithms, loggers
from omarl_jax.checkpoint import Checkpoints
from omarl_jax.data import logs, storage
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.recipes import QUALITIES, load_datasets, make_env, scores
from omarl_jax.errors import UserError
from omarl_jax.files import replacing, require_writable
from omarl_jax.grid import Grid
from omarl_jax.layout import Layout
from omarl_jax.runs import Run, RunFolder, environment_record
from omarl_jax.training import Trainer, chunk_ends


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
    layout, origin = _begin(folder, runs, settings, hashes, grid.side_by_side)
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
        _train(trainer, grid, first.rounds, outputs, checkpoints, report, origin)


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
    origin: dict[str, Any],
) -> None:
    """Trains to the end.

    Args:
        trainer: the runs, as far as they are.
        grid: with how much to evaluate.
        rounds: learning rounds of each run.
        outputs: of the runs, by their number, that are to be written down.
        checkpoints: where to save.
        report: told after each chunk.
        origin: the environment in which they began, as `environment_record` has it; empty if it is this one.
    """
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
    now = environment_record()
    changed = {name: value for name, value in origin.items() if value != now[name]}
    record = now | {
        "began_with": changed,  # what was otherwise when it began: the same numbers cannot be promised then
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
    # A task that knows more may count it otherwise; and parts of episodes have no return.
    if mean_return is None and env.metric_names == ("return",) and dataset.whole_episodes.all():
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
    folder: pathlib.Path, runs: Sequence[Run], settings: dict[str, int], data: list[str], side_by_side: int | None
) -> tuple[Layout, dict[str, Any]]:
    """Writes down how a pack is trained, or reads how it began: settings and data must not change then.

    Returns:
        the layout, and what `environment_record` said in the beginning, without its date.
    """
    path, now = folder / "pack.json", environment_record()
    if not path.exists() or not Checkpoints.any_in(folder / "checkpoints"):  # what left nothing has not begun
        layout = Layout.default(len(runs), side_by_side)
        plan = {"runs": [run.name for run in runs], "layout": dataclasses.asdict(layout), "settings": settings}
        with replacing(path) as file:
            file.write(json.dumps(plan | {"data": data} | now, indent=2).encode())
        return layout, {}
    try:
        content = json.loads(path.read_text())
        layout, began_with, began_on = Layout(**content["layout"]), dict(content["settings"]), content["data"]
        began = {name: content[name] for name in now if name in content and name != "date"}
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
    return layout, began


def _listed(settings: dict[str, int]) -> str:
    return " and ".join(f"{value} {name}" for name, value in settings.items())
