"""Reads the folders of finished runs."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omarl_envs.spec import ScoreReference

from omarl_jax.errors import UserError
from omarl_jax.files import read_arrays, read_run_config, require_unchanged
from omarl_jax.schemas import Logged, Metadata, Progress, RunRecord, convert, parse, read

_NO_RUNS_INSIDE = ("checkpoints", "wandb")  # large folders, which may hold a `config.json` of somebody else


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """One finished run, read from its folder. No text in it names a folder of the computer it was read on.

    Attributes:
        folder: where it was read from.
        algorithm: the method or variant.
        base: the method that it is a variant of, or itself.
        task, seed, data_seed, updates, config, config_hash, data: as in `config.json`.
        dataset: the recipe, or the name of a dataset's folder.
        options: constructor arguments of the task; of files only the names.
        task_defaults: constructor arguments that the task has by itself.
        as_published: whether hyperparameters and updates equal the published score's.
        default_size: transitions of the published data, or None where nothing is published.
        reference: returns to normalise with, or None.
        evaluations: (E,) updates after which the policy was evaluated.
        returns: (E, episodes) raw returns.
        final_returns: (episodes,) raw returns of the last policy.
        final_metrics: name -> (episodes,) task metrics of the last policy.
        record: `run.json`.
        logged: (L,) updates after which a chunk of training was logged.
        per_agent: name -> (L, N) metrics with a number for each agent, each the mean over a chunk; NaN if not finite.
        saturation: share of actions at their bounds in the last chunk of training, or None where it was not logged.
        failure: why the run has no result, or None.
    """

    folder: Path
    algorithm: str
    base: str
    task: str
    dataset: str
    seed: int
    data_seed: int
    updates: int
    options: dict[str, Any]
    task_defaults: dict[str, Any]
    config: dict[str, Any]
    config_hash: str
    as_published: bool
    default_size: int | None
    data: dict[str, Any]
    reference: ScoreReference | None
    evaluations: np.ndarray
    returns: np.ndarray
    final_returns: np.ndarray
    final_metrics: dict[str, np.ndarray]
    record: RunRecord
    logged: np.ndarray
    per_agent: dict[str, np.ndarray]
    saturation: float | None
    failure: str | None

    @property
    def not_evaluated(self) -> bool:
        """Whether it has trained to its end, but without a simulator."""
        return self.record.status == "finished" and self.final_returns.size == 0

    def scores(self, returns: np.ndarray) -> np.ndarray:
        """Normalised scores of raw returns, or the returns themselves where no reference is known."""
        return returns if self.reference is None else self.reference.normalise(returns)


def load_runs(folder: Path) -> tuple[list[FinishedRun], dict[Path, str]]:
    """Reads all runs in a folder and below.

    Returns:
        the finished runs; and the folders of the others, each with the reason why it cannot be read, empty for runs
        that are not finished.

    Raises:
        UserError: if there is no such folder.
    """
    finished, others = [], {}
    for path in _run_folders(folder):
        if not (path / "DONE").exists():
            others[path] = ""
            continue
        try:
            finished.append(load_run(path))
        except UserError as error:
            others[path] = str(error)
    return finished, others


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}'.")

    def walk() -> Iterator[Path]:
        for path, folders, files in os.walk(folder):
            if "config.json" in files:
                folders.clear()  # no run lies inside another
                yield Path(path)
            folders[:] = [name for name in folders if name not in _NO_RUNS_INSIDE]

    return sorted(walk())


def load_run(folder: Path) -> FinishedRun:
    """Reads one finished run.

    Raises:
        UserError: if the folder is damaged, or was changed since the run ended.
    """
    require_unchanged(folder)
    config = read_run_config(folder)
    convert(config.data, Metadata, f"'{folder / 'config.json'}'")
    record = read(folder / "run.json", RunRecord)
    arrays = read_arrays(folder / "evaluations.npz")
    _check_evaluations(folder / "evaluations.npz", arrays)
    logged, per_agent, saturation = _metrics(folder / "metrics.jsonl")
    known = config.reference
    return FinishedRun(
        folder=folder,
        algorithm=config.algorithm,
        base=config.base,
        task=config.task,
        dataset=Path(config.dataset).name,
        seed=config.seed,
        data_seed=config.data_seed,
        updates=config.updates,
        options={name: _named(value) for name, value in config.options.items()},
        task_defaults=config.task_defaults,
        config=config.config,
        config_hash=config.config_hash,
        as_published=config.as_published,
        default_size=config.default_size,
        data=config.data,
        reference=None if known is None else ScoreReference(known.random, known.expert, known.source or "unknown"),
        evaluations=arrays["updates"],
        returns=arrays["returns"] if arrays["returns"].size else np.zeros((0, 1)),
        final_returns=arrays["final_returns"],
        final_metrics={
            name.removeprefix("final_"): values
            for name, values in arrays.items()
            if name.startswith("final_") and name != "final_returns"
        },
        record=record,
        logged=logged,
        per_agent=per_agent,
        saturation=saturation,
        failure=_failure(record, arrays),
    )


def _check_evaluations(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a `UserError` unless the arrays have the shapes and kinds that `RunFolder` gives them."""
    numbers = all(np.issubdtype(array.dtype, np.number) for array in arrays.values())
    if not numbers or not {"updates", "returns", "final_returns"} <= set(arrays):
        raise UserError(f"'{path}' is damaged: it lacks an array, or holds one that is not of numbers.")
    updates, returns = arrays["updates"], arrays["returns"]
    finals = {array.shape for name, array in arrays.items() if name.startswith("final_")}
    paired = returns.shape == (0,) if not updates.size else returns.ndim == 2 and len(returns) == len(updates)
    if updates.ndim != 1 or not paired or len(finals) != 1 or len(finals.pop()) != 1:
        raise UserError(f"'{path}' is damaged: its arrays do not fit each other.")


def _metrics(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray], float | None]:
    """The updates after which metrics were logged, those that have a number for each agent, and the last saturation."""
    texts = path.read_bytes().splitlines() if path.exists() else []
    lines = [parse(text, Logged, f"'{path}'") for text in texts]
    progress = [parse(text, Progress, f"'{path}'") for text in texts]
    updates = np.array([chunk.updates for chunk in progress], int)
    names = sorted({name for line in lines for name, value in line.items() if isinstance(value, list)})
    try:
        per_agent = {name: np.array([line.get(name) for line in lines], float) for name in names}
    except ValueError:  # lists of several lengths, or not in every line
        per_agent = {}
    shapes = {values.shape for values in per_agent.values()}
    if len(shapes) > 1 or len(per_agent) < len(names) or (np.diff(updates, prepend=0) <= 0).any():
        raise UserError(f"'{path}' is damaged: its lines do not fit each other.")
    return updates, per_agent, progress[-1].saturation if progress else None


def _failure(record: RunRecord, arrays: Mapping[str, np.ndarray]) -> str | None:
    if record.status == "diverged":
        return without_folders(f"diverged at update {record.diverged_at}: {record.reason or 'no reason given'}")
    if arrays["final_returns"].size == 0:
        return "the last policy was not evaluated"
    if not all(np.isfinite(arrays[name]).all() for name in ("returns", "final_returns")):
        return "returns are not finite"
    return None


def _named(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def without_folders(text: str) -> str:
    """A text whose absolute paths are cut down to the names of their files, to be shown to others."""
    return re.sub(r"(?<![\w.:/~])/(?:[^\s/'\"]+/)+(?=[^\s/'\"])", "", text)
