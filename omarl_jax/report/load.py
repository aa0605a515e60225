"""Reads the folders of finished runs."""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omarl_envs.spec import ScoreReference

from omarl_jax.errors import UserError
from omarl_jax.files import read_arrays, read_run_config

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
        record: `run.json`: status, versions, device, updates per second …
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
    record: dict[str, Any]
    saturation: float | None
    failure: str | None

    def scores(self, returns: np.ndarray) -> np.ndarray:
        """Normalised scores of raw returns, or the returns themselves where no reference is known."""
        return returns if self.reference is None else self.reference.normalise(returns)


def load_runs(folder: Path) -> list[FinishedRun]:
    """Reads all finished runs in a folder and below; those that are not finished are left out with a warning."""
    if missing := unfinished(folder):
        names = ", ".join(str(run.relative_to(folder)) for run in missing)
        logging.getLogger(__name__).warning("Left out %d unfinished runs: %s", len(missing), names)
    return [load_run(path) for path in _run_folders(folder) if (path / "DONE").exists()]


def unfinished(folder: Path) -> list[Path]:
    """The folders of unfinished runs in a folder and below."""
    return [path for path in _run_folders(folder) if not (path / "DONE").exists()]


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
        UserError: if the folder is damaged.
    """
    config = read_run_config(folder)
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        arrays = read_arrays(folder / "evaluations.npz")
        return FinishedRun(
            folder=folder,
            algorithm=config["algorithm"],
            base=config["base"],
            dataset=Path(config["dataset"]).name,
            options={name: _named(value) for name, value in config["options"].items()},
            **{name: config[name] for name in ("task", "seed", "data_seed", "updates", "task_defaults", "config")},
            **{name: config[name] for name in ("config_hash", "as_published", "default_size", "data")},
            reference=None if config["reference"] is None else ScoreReference(**config["reference"]),
            evaluations=arrays["updates"],
            returns=arrays["returns"] if arrays["returns"].size else np.zeros((0, 1)),
            final_returns=arrays["final_returns"],
            final_metrics={
                name.removeprefix("final_"): values
                for name, values in arrays.items()
                if name.startswith("final_") and name != "final_returns"
            },
            record=record,
            saturation=_last_metrics(folder / "metrics.jsonl").get("saturation"),
            failure=_failure(record, arrays),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The run in '{folder}' cannot be read ({type(error).__name__}: {error}).") from error


def _last_metrics(path: Path) -> dict[str, Any]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}


def _failure(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str | None:
    if record["status"] == "diverged":
        reason = record.get("reason") or "no reason given"
        return without_folders(f"diverged at update {record['diverged_at']}: {reason}")
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
