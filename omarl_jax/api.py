"""Training in a script: one call, many runs."""

import dataclasses
import functools
import itertools
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from omarl_envs.base import MultiAgentEnv

from omarl_jax import algorithms, export, presets
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.validation import validate, validate_task
from omarl_jax.errors import UserError, python_value, seeds_of, whole
from omarl_jax.files import require_trusted_task
from omarl_jax.parts import train_parts
from omarl_jax.tasks import find_env
from omarl_jax.training import Trainer, chunk_ends, fit
from omarl_jax.types import Algorithm, TaskSpec


def make_algorithm(name: str, spec: TaskSpec, **hyperparameters: Any) -> Algorithm:
    """Makes a method as pure functions, its hyperparameters checked.

    Raises:
        UserError: for an unknown method, or hyperparameters that make no sense.
    """
    method = algorithms.find(name)
    return method.make(method.configure(spec, hyperparameters), spec)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of `train`: R runs, in the order of `configs` and `seeds`.

    Attributes:
        configs: the hyperparameters of each run.
        seeds: the seed of each run.
        updates: (E,) updates after which the policies were evaluated.
        returns: (E, R) mean return of each evaluation, in units of the task; NaN of runs that have diverged. None if
            there is no simulator.
        scores: (E, R) normalised returns; None if there is no reference, or no simulator.
        metrics: each (E, R) or, with a number for each agent, (E, R, N): means over the updates before each evaluation;
            NaN where a run does not have it.
        diverged_at: (R,) the first update of each run that was not finite, or -1.
        options: constructor arguments of the task that the data were made with.
        trainers: for each run its trainer, to evaluate further or to go on, and its number there.
    """

    configs: list[Any]
    seeds: list[int]
    updates: np.ndarray
    returns: np.ndarray | None
    scores: np.ndarray | None
    metrics: dict[str, np.ndarray]
    diverged_at: np.ndarray
    options: dict[str, Any]
    trainers: list[tuple[Trainer, int]]

    def save_policy(self, run: int, path: str | pathlib.Path) -> None:
        """Writes the policy of one run as it is now, to be read by `load_policy` and by `omarl evaluate`.

        Raises:
            UserError: if there is no such run, or the file cannot be written.
        """
        if not -len(self.trainers) <= run < len(self.trainers):
            raise UserError(f"There are {len(self.trainers)} runs, so run must be below that, not {run}.")
        trainer, number = self.trainers[run]
        policy, metadata = trainer.policy(number), {"options": self.options}
        export.save_policy(path, trainer.method.name, self.configs[run], trainer.spec, policy, metadata)


def _show(text: str, end: str = "") -> None:
    """Writes over one line, in terminals and notebooks; elsewhere nothing."""
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        print(f"\r{text:<79}", end=end, file=sys.stderr, flush=True)


def _show_part(shown: str, name: str, updates: int) -> None:
    _show(f"{shown}{name} policy, {updates:,} updates")


def train(
    algorithm: str,
    dataset: Dataset,
    seeds: int | Sequence[int] = 1,
    updates: int | None = None,
    evaluations: int = 20,
    episodes: int = 32,
    env: MultiAgentEnv | None = None,
    preset: bool = True,
    **hyperparameters: Any,
) -> Result:
    """Trains a method on a dataset: all seeds, and all values of float hyperparameters, in one program.

    `omarl train` with the same arguments gives the same numbers. A run that diverges stops alone, with a warning. In
    terminals and notebooks one line tells how far it is. On accelerators, matrices are multiplied with the precision of
    `jax_default_matmul_precision`, which the command line sets to float32.

    Args:
        algorithm: the name of the method or variant.
        dataset: the data.
        seeds: how many, or which.
        updates: gradient steps of every network; by default the published number, which `omarl_jax.preset` gives.
        evaluations: how often to evaluate, evenly spread; fewer where updates are few.
        episodes: of each evaluation.
        env: the task to evaluate on; by default the one the data was made on. Where nobody has a task of that name,
            policies are trained without evaluation.
        preset: whether hyperparameters that are not given are those published for the dataset's task and recipe;
            otherwise they are the method's defaults.
        **hyperparameters: a list of values spans a grid.

    Raises:
        UserError: for unknown names, values that make no sense, and data that are not valid.
    """
    validate(dataset)
    method = algorithms.find(algorithm)
    published = presets.preset(algorithm, dataset.spec.name, str(dataset.metadata.get("recipe")))
    usual = published.overrides if preset else {}
    points = [method.configure(dataset.spec, usual | point) for point in algorithms.spanned(hyperparameters)]
    count = python_value(seeds)
    each = list(range(whole("seeds", count))) if isinstance(count, int | float) else seeds_of(count)
    whole("seeds", len(each))
    if len(set(each)) < len(each):
        raise UserError(f"seeds must differ, which {each} do not.")
    updates = whole("updates", published.updates if updates is None else updates)
    evaluations, episodes = whole("evaluations", evaluations), whole("episodes", episodes)
    configs, run_seeds = zip(*itertools.product(points, each), strict=True)
    options = dataset.metadata.get("options", {})
    if env is None:
        require_trusted_task(dataset.spec.name, allow_import=False)
        env = find_env(dataset.spec.name, **options)
    else:
        options = dict(env.options)
    if env is not None:
        validate_task(env.task_spec, dataset.spec, "The environment")

    shown = f"{algorithm}, {len(configs)} runs: "
    groups: dict[Any, list[int]] = {}
    for run, config in enumerate(configs):
        groups.setdefault(jax.tree.structure(config), []).append(run)
    ends = chunk_ends(updates, evaluations)
    returns, diverged_at = np.empty((len(ends), len(configs))), np.empty(len(configs), int)
    metrics: dict[str, np.ndarray] = {}
    trainers: dict[int, tuple[Trainer, int]] = {}
    for runs in groups.values():
        own = [configs[run] for run in runs], [run_seeds[run] for run in runs]
        parts = train_parts(method, *own, [dataset], [0] * len(runs), report=functools.partial(_show_part, shown))
        trainer = Trainer(method, *own, [dataset], [0] * len(runs), env, all_updates=updates, parts=parts)
        for row, chunk in enumerate(fit(trainer, updates, evaluations, episodes)):
            if chunk.returns is not None:
                returns[row, runs] = chunk.returns.mean(axis=1)
            for name, values in chunk.metrics.items():
                shape = (*returns.shape, *values.shape[1:])
                metrics.setdefault(name, np.full(shape, np.nan))[row, runs] = values
            _show(f"{shown}{chunk.updates:,} of {updates:,} updates, {chunk.updates_per_second:,.0f} updates/s")
        diverged_at[runs] = trainer.diverged_at
        trainers |= {run: (trainer, number) for number, run in enumerate(runs)}

    _show(f"{shown}done", end="\n")
    diverged = (diverged_at >= 0) & (diverged_at < np.array(ends)[:, None])
    if diverged.any():
        which = ", ".join(f"{run} at update {at}" for run, at in enumerate(diverged_at) if at >= 0)
        warnings.warn(f"Runs of '{algorithm}' diverged (run {which}); they have no returns from then on.", stacklevel=2)
    returns = np.where(diverged, np.nan, returns)
    return Result(
        configs=list(configs),
        seeds=list(run_seeds),
        updates=np.array(ends),
        returns=None if env is None else returns,
        scores=None if env is None or env.reference is None else env.reference.normalise(returns),
        metrics=metrics,
        diverged_at=diverged_at,
        options=options,
        trainers=[trainers[run] for run in range(len(configs))],
    )
