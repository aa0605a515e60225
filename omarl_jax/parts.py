"""Frozen parts: policies that are trained before a method and handed to its `init`, by the same engine.

A part learns from the data of its run, with the run's seed, and is the policy with the lowest metric on held-out
episodes; it stops when that has not improved for a while. Runs with equal parts, data and seeds share one. In a sweep a
trained part is kept on disk like data, and a training that was killed continues from its checkpoint.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax import algorithms, distributed
from omarl_jax.algorithms import Method
from omarl_jax.checkpoint import Checkpoints
from omarl_jax.data import storage
from omarl_jax.data.dataset import Dataset, EpisodeStore, concat_datasets, sample
from omarl_jax.errors import UserError
from omarl_jax.export import load_policy, save_policy
from omarl_jax.files import short_hash
from omarl_jax.leases import Leases
from omarl_jax.training import Trainer, chunk_ends
from omarl_jax.types import Part

HELD_OUT = 0.05  # of the episodes
CHECKS = 20  # measurements on them, evenly spread
PATIENCE = 5  # measurements without an improvement before a part stops
_BATCHES = 16  # of held-out data in each measurement


class Trained(NamedTuple):
    """A part of one run after its training.

    Attributes:
        policy: on the host.
        updates: after which it was chosen.
        metric: on the held-out episodes.
    """

    policy: Any
    updates: int
    metric: float


def train_parts(
    method: Method,
    configs: Sequence[Any],
    seeds: Sequence[int],
    datasets: Sequence[Dataset],
    data_of: Sequence[int],
    cache: Path | None = None,
    report: Callable[[str, int], None] = lambda name, updates: None,
) -> dict[str, Any]:
    """Trains the frozen parts of runs, or reads those that are trained already.

    Args:
        method: whose parts they are.
        configs: the hyperparameters of each run.
        seeds: the seed of each run.
        datasets: the data.
        data_of: for each run, which of the datasets it learns from.
        cache: the folder where trained parts are kept; None keeps none.
        report: receives the name of a part and the updates made, at each measurement.

    Returns:
        policies by the name of the part, every leaf (R, …), on the host.

    Raises:
        UserError: if a part diverges, the data are too few to hold episodes out, or a file in the cache is damaged.
    """
    spec = datasets[0].spec
    needed = [method.make(config, spec).needs.parts for config in configs]
    trained = {}
    for name in needed[0]:
        policies: list[Any] = [None] * len(configs)
        for part in _distinct([parts[name] for parts in needed]):
            runs = [run for run, parts in enumerate(needed) if parts[name] == part]
            learners = sorted({(data_of[run], seeds[run]) for run in runs})
            made = _trained(name, part, learners, datasets, cache, report)
            for run in runs:
                policies[run] = made[data_of[run], seeds[run]]
        trained[name] = jax.tree.map(lambda *leaves: np.stack(leaves), *policies)
    return trained


def _distinct(parts: Sequence[Part]) -> list[Part]:
    return [part for i, part in enumerate(parts) if part not in parts[:i]]


def _trained(
    name: str,
    part: Part,
    learners: list[tuple[int, int]],
    datasets: Sequence[Dataset],
    cache: Path | None,
    report: Callable[[str, int], None],
) -> dict[tuple[int, int], Any]:
    """The policies of one part, by dataset and seed."""
    if cache is None:
        made = _train(name, part, learners, datasets, None, report)
        return {learner: one.policy for learner, one in zip(learners, made, strict=True)}
    spec, metadata = datasets[0].spec, {"part": name, "measured": part.metric}
    identity = short_hash(algorithms.part_identity(part, spec) | {"rule": [HELD_OUT, CHECKS, PATIENCE, _BATCHES]})
    hashes = {data: storage.content_hash(datasets[data])[:8] for data, _ in learners}
    files = {(data, seed): cache / f"{name}_{identity}_{hashes[data]}_seed{seed}.npz" for data, seed in learners}

    def absent() -> list[int]:
        return distributed.of_first(lambda: [i for i, file in enumerate(files.values()) if not file.exists()])

    if absent():
        with Leases(cache / "leases").wait(file.stem for file in files.values()) as claim:
            distributed.of_first(lambda: _publish(files.values()))  # what one that was killed had finished
            if missing := [learners[i] for i in absent()]:  # by another, meanwhile
                folder = cache / short_hash({"files": [files[learner].name for learner in missing]})
                made = _train(name, part, missing, datasets, folder / "checkpoints", report, claim.check)
                config = algorithms.find(part.algorithm).configure(spec, part.hyperparameters)

                def keep() -> None:
                    claim.check()
                    for learner, one in zip(missing, made, strict=True):
                        numbers = {"updates": one.updates, part.metric: one.metric}
                        made_at = folder / "saved" / files[learner].name
                        save_policy(made_at, part.algorithm, config, spec, one.policy, metadata | numbers)
                    (folder / "saved").rename(folder / "all")
                    _publish(files.values())

                distributed.of_first(keep)
    return {learner: load_policy(file).params for learner, file in files.items()}


def _publish(files: Iterable[Path]) -> None:
    """Moves parts to where they belong, from folders of those that were trained together and are all saved.

    Without such a folder, one killed between two of them would leave some without those that they were trained with.
    """
    for file in files:
        for saved in file.parent.glob(f"*/all/{file.name}"):
            saved.replace(file)
            if not any(saved.parent.iterdir()):
                shutil.rmtree(saved.parents[1])


def _train(
    name: str,
    part: Part,
    learners: list[tuple[int, int]],
    datasets: Sequence[Dataset],
    folder: Path | None,
    report: Callable[[str, int], None],
    check: Callable[[], None] = lambda: None,
) -> list[Trained]:
    """Trains a part with the datasets and seeds of `learners`, from its checkpoint if there is one in `folder`.

    `check` raises before a checkpoint that another worker should write.
    """
    method, spec, used = algorithms.find(part.algorithm), datasets[0].spec, sorted({data for data, _ in learners})
    config, seeds = method.configure(spec, part.hyperparameters), [seed for _, seed in learners]
    configs, data_of = [config] * len(learners), [used.index(data) for data, _ in learners]
    halves = [split_episodes(datasets[data], name) for data in used]
    learned, held_out = [first for first, _ in halves], [second for _, second in halves]
    inner = train_parts(method, configs, seeds, [datasets[data] for data in used], data_of)
    trainer = Trainer(method, configs, seeds, learned, data_of, None, all_updates=part.updates, parts=inner)
    measure = _measurement(trainer, part, config, held_out, data_of, spec)

    best = jax.tree.map(np.array, [trainer.policy(run) for run in range(len(learners))])
    found = {"metric": np.full(len(learners), np.inf), "updates": np.zeros(len(learners), np.int32)}
    stale = np.zeros(len(learners), np.int32)  # measurements since the best one
    with contextlib.ExitStack() as opened:
        checkpoints = None
        if folder is not None:
            checkpoints = opened.enter_context(contextlib.closing(Checkpoints(folder, check)))
            if (saved := checkpoints.restore((trainer.runs, best, found, stale))) is not None:
                (runs, best, found, stale), updates = saved
                trainer.resume(runs, updates)
        for end in (end for end in chunk_ends(part.updates, CHECKS) if end > trainer.updates):
            going = stale < PATIENCE  # each for itself, whatever its neighbours do
            if not going.any():
                break
            trainer.advance(end - trainer.updates)
            if (trainer.diverged_at >= 0).any():
                raise UserError(f"The {name} policy, which '{part.algorithm}' trains before, diverged.")
            metric = measure(trainer)
            better = going & (metric < found["metric"])
            for run in np.flatnonzero(better):
                best[run] = trainer.policy(int(run))
            found = {
                "metric": np.where(better, metric, found["metric"]),
                "updates": np.where(better, end, found["updates"]).astype(np.int32),
            }
            stale = np.where(better, 0, stale + 1).astype(np.int32)
            if checkpoints is not None:
                checkpoints.save(end, (trainer.runs, best, found, stale))
            report(name, end)
    chosen = zip(best, found["updates"], found["metric"], strict=True)
    return [Trained(policy, int(updates), float(metric)) for policy, updates, metric in chosen]


def _measurement(
    trainer: Trainer, part: Part, config: Any, held_out: list[Dataset], data_of: list[int], spec: TaskSpec
) -> Callable[[Trainer], np.ndarray]:
    """A function that measures each run of a trainer on its held-out episodes, (R,)."""
    method = trainer.method
    needs = method.make(config, spec).needs
    data, windows = concat_datasets(held_out, needs)
    data = trainer.placement.replicate(data)
    window = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[windows[i] for i in data_of])

    def of_run(run: tuple[Any, Any], data: Any) -> chex.Array:
        state, window = run
        algorithm = method.make(config, spec)

        def of_batch(number: chex.Array) -> chex.Array:
            key = jax.random.fold_in(jax.random.key(0), number)  # the same batches in each measurement
            _, metrics = algorithm.update(state, sample(data, window, key, needs), key)
            return metrics[part.metric].mean()

        return jax.lax.map(of_batch, jnp.arange(_BATCHES)).mean()

    program = jax.jit(trainer.placement.map_runs(of_run))
    return lambda trainer: np.asarray(
        trainer.placement.run_all(program, trainer.n_runs, (trainer.runs.state, window), data), np.float64
    )


def split_episodes(dataset: Dataset, name: str = "policy") -> tuple[Dataset, Dataset]:
    """Parts the episodes of a dataset by chance, the same each time: those to learn from, and those held out.

    Args:
        dataset: the data.
        name: what is to be learned, for the error.

    Raises:
        UserError: if there is only one episode.
    """
    closing = np.asarray(dataset.rows.closing)
    episode = np.cumsum(closing) - closing  # (M,) the episode of each row
    count = int(episode[-1]) + 1
    if count < 2:
        raise UserError(f"One episode is too little: none can be held out to choose the {name} policy by.")
    chosen = np.random.default_rng(0).permutation(count)[: max(round(HELD_OUT * count), 1)]
    held = np.isin(episode, chosen)

    def of(rows: np.ndarray) -> Dataset:
        return Dataset(
            dataset.spec,
            EpisodeStore(*(None if array is None else np.asarray(array)[rows] for array in dataset.rows)),
            dataset.metadata,
        )

    return of(~held), of(held)
