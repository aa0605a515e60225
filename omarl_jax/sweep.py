"""Sweeps: the runs of a grid, trained in groups, resumed after a kill.

A *run group* is the runs that share one program: same method, static hyperparameters, task, data recipe and number of
updates. The order of its runs and their placement are written to `groups/<hash>/group.json` before its first update,
since another placement rounds differently; a group that was killed continues from its checkpoint with the same
placement and ends with the same numbers. If memory proves too small, fewer runs are placed side by side, but only as
long as there is no checkpoint.

Several sweeps of one folder, on one machine or many, share its groups: each is claimed by one of them (see `leases`).
And one sweep may be many processes that train each group together (see `distributed`).
"""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import math
import pathlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np
from omarl_envs.base import MultiAgentEnv

from omarl_jax import algorithms, distributed, loggers
from omarl_jax.checkpoint import Checkpoints
from omarl_jax.data import storage
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.validation import validate
from omarl_jax.datasets import replay
from omarl_jax.datasets.catalogue import QUALITIES, load_datasets
from omarl_jax.errors import UserError
from omarl_jax.files import read_run_config, replacing, require_writable
from omarl_jax.grid import Grid
from omarl_jax.leases import Claim, Leases, Outdated, pause
from omarl_jax.parts import train_parts
from omarl_jax.placement import OutOfMemory, Placement, fetch, naming_out_of_memory, plan
from omarl_jax.runs import Run, RunFolder, environment_record
from omarl_jax.schemas import GroupState, Placed, RunRecord, read, to_json
from omarl_jax.tasks import find_env, reference_metadata
from omarl_jax.training import Chunk, Trainer, chunk_ends, fit
from omarl_jax.types import TaskSpec


class Progress(NamedTuple):
    """Progress report of a run group, sent on resume, after every chunk, and once if it was already complete.

    Attributes:
        updates: updates made with each run.
        updates_per_second: of all runs of the group together in the last chunk, without evaluation; NaN if there was
            none.
        unit: `score` if the task has a reference to normalise with, else `return`.
        value: mean of the last evaluation over the runs that have not diverged, in this unit; NaN if all have, or if
            there was none.
        part: the policy that is trained before the method, and how far it is; or that another worker has the group; or
            the memory that training is about to take; otherwise empty.
    """

    updates: int
    updates_per_second: float = math.nan
    unit: str = "return"
    value: float = math.nan
    part: str = ""


def run_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups runs that share a program, in the order of their first appearance."""
    grouped: dict[Any, list[Run]] = {}
    for run in runs:
        static = jax.tree.structure(run.config)
        options = repr(run.options)  # a list among them could be no key
        key = (run.algorithm, static, run.task, options, run.dataset, run.size, run.updates)
        grouped.setdefault(key, []).append(run)
    return list(grouped.values())


def sweep(
    grid: Grid,
    out: pathlib.Path,
    report: Callable[[int, Progress], None] = lambda group, progress: None,
    wandb: str | None = None,
) -> dict[str, str]:
    """Trains all runs of a grid that are not done yet, and waits for those that other workers train.

    Args:
        grid: the runs.
        out: folder; `out/runs` holds a folder for each run, `out/groups` the checkpoints, `out/data` replay data.
        report: receives progress, with the number of the group among `run_groups(grid.runs)`.
        wandb: a Weights & Biases project to log to.

    Returns:
        the names of runs that failed, with the reason. A run that diverges is not among them: it is finished and
        marked in its folder.

    Raises:
        UserError: if the folder cannot be written, another version wrote its runs or works there, or finished runs were
            evaluated otherwise than is asked for.
        Outdated: if this worker was stopped for so long that another one took over what it trained.
        Lost: if this is one of several processes, and alone in having failed.
    """
    distributed.require_alike("versions or settings", _versions())
    distributed.require_alike("runs", ", ".join([run.name for run in grid.runs] + _efforts(grid)))
    distributed.of_first(lambda: require_resumable(grid, out))
    leases = Leases(out / "leases", _versions())
    failed: dict[str, str] = {}
    waiting = dict(enumerate(run_groups(grid.runs)))
    while waiting:
        for number, group in list(waiting.items()):
            if not _unfinished(group, out):
                report(number, Progress(group[0].updates))
            elif _train_free(group, grid, out, leases, failed, functools.partial(report, number), wandb):
                continue
            del waiting[number]
        if waiting:
            pause()
    return distributed.of_first(lambda: still_failed(failed, out))


def _efforts(grid: Grid) -> list[str]:
    """What a grid says besides its runs."""
    fields = (field.name for field in dataclasses.fields(grid) if field.name != "runs")
    return [f"{name} = {getattr(grid, name)}" for name in fields]


def require_resumable(grid: Grid, out: pathlib.Path) -> None:
    """Raises a `UserError` if a folder cannot be written, or has runs of another version or with other settings."""
    require_writable(out / "runs" / "DONE")
    for config in (out / "runs").glob("*/config.json"):
        read_run_config(config.parent)
    for run in grid.runs:
        if (folder := RunFolder(out / "runs" / run.name)).done:
            folder.require_settings(chunk_ends(run.updates, grid.evaluations), grid.episodes, grid.final_episodes)


def still_failed(failed: dict[str, str], out: pathlib.Path) -> dict[str, str]:
    """Without the runs that another worker has finished."""
    return {name: reason for name, reason in failed.items() if not RunFolder(out / "runs" / name).done}


def _train_free(
    group: Sequence[Run],
    grid: Grid,
    out: pathlib.Path,
    leases: Leases,
    failed: dict[str, str],
    report: Callable[[Progress], None],
    wandb: str | None,
) -> bool:
    """Trains what no other worker has of a group; adds to `failed`. Returns whether others have the rest."""
    others = False
    for runs in _unfinished(group, out):
        if not failed.keys().isdisjoint(run.name for run in runs):
            continue
        with leases.claim(run.name for run in runs) as claim:
            if claim is None or runs not in _unfinished(group, out):  # another worker was here meanwhile
                others = True
                report(Progress(Checkpoints.newest(_group_folder(runs, out) / "checkpoints"), part="another worker"))
                continue
            try:
                train_group(runs, grid, out, claim, report, wandb)
            except (Outdated, distributed.Lost):
                raise
            except UserError as error:
                claim.check()  # an outdated worker stumbles over what the next one does
                failed |= {run.name: str(error) for run in runs}
            except Exception as error:  # one failing program must not stop the others
                claim.check()
                if distributed.several():
                    raise distributed.lost(error) from error
                file = _group_folder(runs, out) / "error.txt"
                with contextlib.suppress(UserError), replacing(file) as partial:  # the disk may be what failed
                    partial.write(traceback.format_exc().encode())
                failed |= {run.name: f"{type(error).__name__}: {error} (see '{file}')" for run in runs}
    return others


def _versions() -> str:
    """What all workers on a folder, and all processes of one, must share."""
    record = environment_record()
    versions = record["versions"] | {"code": record["code"]}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "python")


def _unfinished(group: Sequence[Run], out: pathlib.Path) -> list[list[Run]]:
    """The unfinished runs of a group.

    Runs that already started are resumed in their original group, even if the grid has changed since.
    """
    by_name = {run.name: run for run in group}
    names = distributed.of_first(lambda: _unfinished_names(group, by_name, out))
    return [[by_name[name] for name in of_group] for of_group in names]


def _unfinished_names(group: Sequence[Run], by_name: Mapping[str, Run], out: pathlib.Path) -> list[list[str]]:
    left = {run.name for run in group if not RunFolder(out / "runs" / run.name).done}
    groups = []
    for file in sorted((out / "groups").glob("*/group.json")):
        with contextlib.suppress(UserError):  # damaged: an error when this group is trained
            started = read(file, GroupState).runs
            if not left.isdisjoint(started) and by_name.keys() >= set(started):
                groups.append(started)
                left -= set(started)
    fresh = [run.name for run in group if run.name in left]
    return [*groups, fresh] if fresh else groups


def train_group(
    runs: Sequence[Run],
    grid: Grid,
    out: pathlib.Path,
    claim: Claim,
    report: Callable[[Progress], None] = lambda progress: None,
    wandb: str | None = None,
) -> None:
    """Trains the runs of one program to the end, from their checkpoint if there is one.

    A run that another group has finished is trained again with this group, but its files are not touched.

    Args:
        runs: a run group.
        grid: how much to evaluate.
        out: as in `sweep`.
        claim: on the names of the runs.
        report: receives progress.
        wandb: a Weights & Biases project to log to.

    Raises:
        UserError: if devices have no room for runs that have begun, or for a single one.
        Outdated: as in `sweep`.
    """
    most = grid.side_by_side
    while True:
        try:
            return _train_group(runs, grid, out, claim, report, wandb, most)
        except OutOfMemory:
            most = _fewer(_group_folder(runs, out), grid.side_by_side)
        gc.collect()  # after the error, which held what did not fit


def _train_group(
    runs: Sequence[Run],
    grid: Grid,
    out: pathlib.Path,
    claim: Claim,
    report: Callable[[Progress], None],
    wandb: str | None,
    most: int | None,
) -> None:
    """`train_group` with at most so many runs side by side, or as `OutOfMemory` ends it."""
    first = runs[0]
    env = find_env(first.task, **dict(first.options))
    data_seeds = sorted({run.data_seed for run in runs})
    datasets = distributed.agreed(lambda: open_datasets(env, first, data_seeds, out / "data"))
    hashes = [storage.content_hash(dataset) for dataset in datasets]
    distributed.require_alike("data", ", ".join(hashes))
    data_of = [data_seeds.index(run.data_seed) for run in runs]

    folder = _group_folder(runs, out)
    claim.check()
    settings = {"evaluations": grid.evaluations, "episodes": grid.episodes}

    def start() -> tuple[list[int], dict[str, Any]]:
        placement, origin = _start(folder, runs, settings, hashes, most)
        return [placement.slots, placement.devices], origin

    slots_and_devices, origin = distributed.of_first(start)
    placement = Placement(*slots_and_devices)
    method, configs, seeds = algorithms.find(first.algorithm), [run.config for run in runs], [run.seed for run in runs]

    def of_part(name: str, updates: int) -> None:
        report(Progress(0, part=f"{name} policy, {updates:,} updates"))

    parts = distributed.agreed(lambda: train_parts(method, configs, seeds, datasets, data_of, out / "parts", of_part))

    def make(placement: Placement) -> Trainer:
        return Trainer(method, configs, seeds, datasets, data_of, env, placement, first.updates, parts)

    distributed.of_first(claim.check)
    # Of several processes, one that has no room ends, and the others with it.
    naming = contextlib.nullcontext() if distributed.several() else naming_out_of_memory()
    with naming, contextlib.ExitStack() as opened:
        if distributed.of_first(lambda: Checkpoints.any_in(folder / "checkpoints")):
            trainer = make(placement)
        else:
            updates = chunk_ends(first.updates, grid.evaluations)[0]
            if grid.side_by_side is None:
                trainer, memory = plan(make, len(runs), updates, most)
            else:
                trainer = make(placement)
                memory = trainer.compile(updates)

            def keep_plan() -> None:
                claim.check()
                _write_plan(folder / "group.json", trainer.placement, memory)

            distributed.of_first(keep_plan)
            if memory is not None:
                each = trainer.placement.side_by_side
                report(Progress(0, part=f"{each} side by side, about {_megabytes(memory)} of each device"))
        checkpoints = opened.enter_context(contextlib.closing(Checkpoints(folder / "checkpoints", claim.check)))
        if (saved := checkpoints.restore(trainer.described())) is not None:
            trainer.resume(*saved)
            report(Progress(trainer.updates))
        outputs: dict[int, _Output] = {}

        def open_outputs() -> None:
            for i, (run, data) in enumerate(zip(runs, data_of, strict=True)):
                run_folder = RunFolder(out / "runs" / run.name)
                if not run_folder.done:
                    run_folder.start(run, datasets[data], hashes[data])
                    outputs[i] = opened.enter_context(
                        contextlib.closing(_Output(run, run_folder, claim, trainer.updates, wandb))
                    )

        distributed.of_first(open_outputs)
        datasets.clear()  # the trainer has them
        _train(trainer, grid, first.updates, outputs, checkpoints, report, origin)


class _Output:
    """Where the numbers of one run go, as long as this worker has its claim."""

    def __init__(self, run: Run, folder: RunFolder, claim: Claim, updates: int, wandb: str | None):
        self.run, self.folder, self._claim = run, folder, claim
        self._evaluations = folder.evaluations(until=updates)
        self._sinks: list[loggers.Logger] = [loggers.JsonLines(folder.path / "metrics.jsonl", updates)]
        if wandb is not None:
            config = dataclasses.asdict(run.config) | {"task": run.task, "dataset": run.dataset, "seed": run.seed}
            group = f"{run.algorithm}-{run.config_hash}"
            self._sinks.append(loggers.WandB(wandb, folder.path, run.name, group, config))

    def log(self, chunk: Chunk, i: int) -> None:
        """Writes a chunk of training, and the evaluation after it, of run i of its trainer."""
        self._claim.check(self.run.name)
        metrics = {name: values[i].tolist() for name, values in chunk.metrics.items()}
        row: dict[str, Any] = {"updates": chunk.updates} | metrics | {"updates_per_second": chunk.updates_per_second}
        if chunk.returns is None:
            for sink in self._sinks:
                sink.log(row)
            return
        returns = chunk.returns[i]
        for sink in self._sinks:
            sink.log(row | {"return": float(returns.mean())})
        self._evaluations["updates"].append(np.asarray(chunk.updates))
        self._evaluations["returns"].append(returns)
        self.folder.write_evaluations(self._evaluations)

    def finish(
        self, final: dict[str, np.ndarray], spec: TaskSpec, policy: Any, diverged: int, record: dict[str, Any]
    ) -> None:
        """Writes the end of the run.

        Args:
            final: quantities of the last policy's episodes, each (episodes,).
            spec: the task.
            policy: the last one, on the host.
            diverged: the first update that was not finite, or -1.
            record: what the numbers may depend on.
        """
        self._claim.check(self.run.name)
        self.folder.write_evaluations(self._evaluations, final)
        outcome: dict[str, Any] = {"status": "finished"}
        if diverged >= 0:
            reason = f"not finite from update {diverged} on; the policy is the last good one"
            outcome = {"status": "diverged", "diverged_at": diverged, "reason": reason}
        self.folder.finish(self.run, spec, policy, RunRecord(**record, **outcome))

    def close(self) -> None:
        """Closes the logs."""
        for sink in self._sinks:
            sink.close()


def _train(
    trainer: Trainer,
    grid: Grid,
    updates: int,
    outputs: dict[int, _Output],
    checkpoints: Checkpoints,
    report: Callable[[Progress], None],
    origin: dict[str, Any],
) -> None:
    """Trains to the end.

    Args:
        trainer: the runs, as far as they are.
        grid: with how much to evaluate.
        updates: of each run.
        outputs: of the runs that are to be written, by their number in the trainer.
        checkpoints: where to save.
        report: receives progress after each chunk.
        origin: the environment in which they started, as `environment_record` has it; empty if it is this one.
    """

    def log(chunk: Chunk) -> None:
        for i, output in outputs.items():
            output.log(chunk, i)

    reference = None if trainer.env is None else trainer.env.reference
    rates = []
    for chunk in fit(trainer, updates, grid.evaluations, grid.episodes):
        distributed.of_first(functools.partial(log, chunk))
        checkpoints.save(trainer.updates, trainer.runs)
        rates.append(chunk.updates_per_second)
        finite = () if chunk.returns is None else chunk.returns[trainer.diverged_at < 0]
        mean = float(np.mean(finite)) if len(finite) else math.nan
        unit, value = ("return", mean) if reference is None else ("score", float(reference.normalise(mean)))
        report(Progress(trainer.updates, rates[-1], unit, value))

    final = {"return": np.empty((trainer.n_runs, 0))} if trainer.env is None else trainer.evaluate(grid.final_episodes)
    now = environment_record()
    changed = {name: value for name, value in origin.items() if value != now[name]}
    record = now | {
        "started_with": changed,  # differences to the start, with which numbers may differ
        "group": checkpoints.folder.parent.name,
        "placement": Placed(**dataclasses.asdict(trainer.placement)),
        "updates_per_second": float(np.median(rates)) if rates else None,
    }
    policies, diverged_at = fetch(trainer.runs.state.policy), trainer.diverged_at

    def finish() -> None:
        for i, output in outputs.items():
            quantities = {name: values[i] for name, values in final.items()}
            policy = jax.tree.map(lambda x, i=i: x[i], policies)
            output.finish(quantities, trainer.spec, policy, int(diverged_at[i]), record)

    distributed.of_first(finish)


def open_datasets(env: MultiAgentEnv | None, run: Run, data_seeds: Sequence[int], cache: pathlib.Path) -> list[Dataset]:
    """The data of runs that differ in their data's seed: made by their recipe, or read from disk.

    Replay data are stored in the folder `cache`: learning them takes minutes, and other devices would learn others.

    Args:
        env: the task; None if there is no simulator, and then the data are read from disk.
        run: one of the runs; its own data seed does not matter.
        data_seeds: one for each dataset.
        cache: the folder of replay data.

    Returns:
        the datasets, one for each seed.

    Raises:
        UserError: if a dataset cannot be made or read, is not valid, or was made with other options of the task.
    """
    if env is not None and run.dataset in replay.SLICES:
        return _cached(env, run, data_seeds, cache)
    if run.dataset in QUALITIES:
        return load_datasets(run.task, run.dataset, data_seeds, run.size, **dict(run.options))
    dataset = storage.load(run.dataset, None if env is None else env.task_spec)
    try:
        validate(dataset)
    except UserError as error:
        raise UserError(f"In '{run.dataset}': {error}") from None
    options = dataset.metadata.get("options", {})
    if options != json.loads(json.dumps(dict(run.options))):
        raise UserError(f"The data in '{run.dataset}' were made with the task's options {options}: give the same.")
    metadata = dataset.metadata
    mean_return = metadata.get("mean_return")
    # A task with metrics of its own may define its return differently; and parts of episodes have no return.
    usual = env is None or env.metric_names == ("return",)
    if mean_return is None and usual and dataset.whole_episodes.all():
        mean_return = float(dataset.episode_returns().mean())
    known = reference_metadata(env, mean_return)
    if env is None or env.reference is None:  # the data may know more
        return [dataclasses.replace(dataset, metadata=known | metadata)] * len(data_seeds)
    comparable = known["comparable"] and metadata.get("comparable", True)
    return [dataclasses.replace(dataset, metadata=metadata | known | {"comparable": comparable})] * len(data_seeds)


def _cached(env: MultiAgentEnv, run: Run, data_seeds: Sequence[int], folder: pathlib.Path) -> list[Dataset]:
    recipe = json.dumps([run.task, run.dataset, run.options, run.size, run.data_digest], default=str)
    name = f"{run.task.replace('/', '-')}_{run.dataset}_{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    folders = {seed: folder / f"{name}_seed{seed}" for seed in data_seeds}

    def absent() -> list[int]:
        return distributed.of_first(lambda: [seed for seed in data_seeds if not folders[seed].exists()])

    if absent():
        with Leases(folder / "leases").wait(path.name for path in folders.values()) as claim:
            if missing := absent():  # by another worker, meanwhile
                made = load_datasets(run.task, run.dataset, missing, run.size, **dict(run.options))

                def keep() -> None:
                    claim.check()
                    for seed, dataset in zip(missing, made, strict=True):
                        storage.save(dataset, folders[seed])

                distributed.of_first(keep)
    return [storage.load(folders[seed], env.task_spec) for seed in data_seeds]


def _group_folder(runs: Sequence[Run], out: pathlib.Path) -> pathlib.Path:
    names = "\n".join(run.name for run in runs)
    return out / "groups" / hashlib.sha256(names.encode()).hexdigest()[:12]


def _start(
    folder: pathlib.Path, runs: Sequence[Run], settings: dict[str, int], data: list[str], side_by_side: int | None
) -> tuple[Placement, dict[str, Any]]:
    """Writes how a group is trained, or reads how it started: settings and data must not change then.

    Returns:
        the placement, and what `environment_record` said at the start, without its date.
    """
    path, now = folder / "group.json", environment_record()
    if not path.exists() or not Checkpoints.any_in(folder / "checkpoints"):  # without a checkpoint nothing is resumed
        placement = Placement.default(len(runs), side_by_side)
        placed = Placed(**dataclasses.asdict(placement))
        state = GroupState(runs=[run.name for run in runs], placement=placed, settings=settings, data=data, **now)
        with replacing(path) as file:
            file.write(to_json(state))
        return placement, {}
    try:
        state = read(path, GroupState)
    except UserError as error:
        raise UserError(f"{error} Delete its folder to start these runs again.") from None
    placement, old_settings = Placement(**msgspec.structs.asdict(state.placement)), state.settings
    origin = {name: getattr(state, name) for name in now if name != "date"}
    if old_settings != settings:
        raise UserError(
            f"These runs started with {_listed(old_settings)}, not with {_listed(settings)}: give the same, or delete "
            f"'{path.parent}' to start them again."
        )
    if placement.devices > jax.device_count():
        raise UserError(
            f"These runs started on {placement.devices} devices and here are {jax.device_count()} (on a CPU, "
            f"JAX_NUM_CPU_DEVICES says how many); delete '{path.parent}' to start them again."
        )
    if distributed.several() and placement.devices != jax.device_count():
        raise UserError(
            f"These runs started on {placement.devices} devices, and these processes have {jax.device_count()}: start "
            f"processes with as many, or delete '{path.parent}' to start the runs again."
        )
    asked = now["deterministic"]
    if now["backend"] != "cpu" and state.deterministic != asked:
        instead = "without" if asked else "with"
        raise UserError(
            f"These runs started {instead} --deterministic, which their numbers depend on: go on {instead} it, or "
            f"delete '{path.parent}' to start them again."
        )
    if state.data != data:
        raise UserError(
            "These runs started on other data: another version or number of devices made other data again; "
            f"delete '{path.parent}' to start these runs again."
        )
    return placement, origin


def _write_plan(path: pathlib.Path, placement: Placement, memory: int | None) -> None:
    """Writes where a group that has just started will be trained, and the memory that it needs."""
    placed = Placed(**dataclasses.asdict(placement))
    state = msgspec.structs.replace(read(path, GroupState), placement=placed, memory=memory)
    with replacing(path) as file:
        file.write(to_json(state))


def _fewer(folder: pathlib.Path, asked: int | None) -> int:
    """How many runs to try side by side after those in `group.json` did not fit.

    Raises:
        UserError: if they have begun, the user asked for so many, or it was a single one.
    """
    state = read(folder / "group.json", GroupState)
    side_by_side = Placement(**msgspec.structs.asdict(state.placement)).side_by_side
    needed = "" if state.memory is None else f"; training alone needs about {_megabytes(state.memory)}"
    if Checkpoints.any_in(folder / "checkpoints"):
        raise UserError(
            f"These runs began with {side_by_side} side by side on each device, for which the memory here is too "
            f"small{needed}: start the sweep again on a device with more memory, where they go on, or delete "
            f"'{folder}' to start them again."
        )
    if side_by_side == 1:
        raise UserError(f"The memory of a device is too small for a single one of these runs{needed}.")
    if asked is not None:
        raise UserError(
            f"The memory of a device is too small for {side_by_side} of these runs side by side{needed}: give a "
            "smaller side_by_side, or none."
        )
    return -(-side_by_side // 2)


def _megabytes(memory: int) -> str:
    return f"{math.ceil(memory / 1e6):,} MB"


def _listed(settings: dict[str, int]) -> str:
    return " and ".join(f"{value} {name}" for name, value in settings.items())
