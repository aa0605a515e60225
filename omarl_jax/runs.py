"""Runs, their names, and their folders on disk.

config.json       what the run is (`Run`), its data, and reference returns; written at the start
metrics.jsonl     a line for each chunk of training: `updates`, the method's metrics, `return`
evaluations.npz   `updates` (E,), `returns` (E, episodes); at the end `final_…` (episodes,) of the last policy
policy.npz        the last policy (see `export`)
run.json          the outcome, versions, device, speed
DONE              the sha256 of each of these files, written last
"""

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np
import omarl_envs

import omarl_jax
from omarl_jax import algorithms, presets
from omarl_jax.data.dataset import Dataset
from omarl_jax.datasets.catalogue import default_size
from omarl_jax.determinism import deterministic_operations_requested
from omarl_jax.errors import UserError
from omarl_jax.export import save_policy
from omarl_jax.files import RUN_FORMAT, digests, read_arrays, replacing, short_hash
from omarl_jax.report import published
from omarl_jax.schemas import Reference, RunConfig, RunRecord, to_json
from omarl_jax.tasks import task_defaults


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, decided before anything is computed.

    Attributes:
        algorithm: the name of the method or variant.
        task: `family/task`.
        dataset: a recipe (`random`, `medium` …) or the path of a dataset on disk.
        seed: of training.
        data_seed: of the data.
        updates: gradient steps of every network.
        config: the method's hyperparameters.
        options: constructor arguments of the task.
        size: transitions of the data, None for the recipe's own number.
        data_digest: identifies the sources of the data (see `datasets.catalogue.digest`).
        preset: the source of the published hyperparameters it was started with; empty without any.
        parts: the policies that are trained before, by name, each with the hash of what it is.
    """

    algorithm: str
    task: str
    dataset: str
    seed: int
    data_seed: int
    updates: int
    config: Any
    options: tuple[tuple[str, Any], ...] = ()
    size: int | None = None
    data_digest: str = ""
    preset: str = ""
    parts: tuple[tuple[str, str], ...] = ()

    @property
    def config_hash(self) -> str:
        """Identifies everything about the run but its seeds.

        Of the hyperparameters only those that differ from the method's defaults count, so that a new one
        renames no run; if a default changes its meaning, `Config.version` is raised.
        """
        method = algorithms.find(self.algorithm)
        identity = {
            "method": method.base,
            "version": method.version,
            "config": method.changes(self.config),
            "task": self.task,
            "dataset": pathlib.Path(self.dataset).name,  # its content is in the digest, wherever it lies
            "updates": self.updates,
            "options": dict(self.options),
            "size": self.size,
            "data_digest": self.data_digest,
        }
        return short_hash(identity | ({"parts": dict(self.parts)} if self.parts else {}))

    @property
    def name(self) -> str:
        """The name of its folder."""
        data = pathlib.Path(self.dataset).name
        seeds = f"seed{self.seed}" if self.data_seed == self.seed else f"seed{self.seed}-data{self.data_seed}"
        return f"{self.task.replace('/', '-')}_{data}_{self.algorithm}_{self.config_hash}_{seeds}"


_FILES = ("config.json", "metrics.jsonl", "evaluations.npz", "policy.npz", "run.json")


class RunFolder:
    """The folder of one run: `config.json`, `run.json`, `metrics.jsonl`, `evaluations.npz`, `policy.npz`, `DONE`.

    Raises:
        UserError: from every method that writes, if it cannot.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path

    @property
    def done(self) -> bool:
        """Whether the run is finished: `DONE` is written last."""
        return (self.path / "DONE").exists()

    def start(self, run: Run, dataset: Dataset, data_hash: str) -> None:
        """Writes the description of the run.

        Args:
            run: the run.
            dataset: its data.
            data_hash: their content hash.
        """
        known = ("recipe", "mean_return", "mean_score", "metrics", "comparable", "behaviour")
        metadata = dataset.metadata
        reference = None
        if metadata.get("random") is not None:
            reference = Reference(metadata["random"], metadata["expert"], metadata.get("reference_source"))
        config = RunConfig(
            format=RUN_FORMAT,
            algorithm=run.algorithm,
            base=algorithms.find(run.algorithm).base,
            task=run.task,
            dataset=run.dataset,
            seed=run.seed,
            data_seed=run.data_seed,
            updates=run.updates,
            options=dict(run.options),
            config=dataclasses.asdict(run.config),
            config_hash=run.config_hash,
            data={k: metadata.get(k) for k in known} | {"size": dataset.size, "hash": data_hash},
            reference=reference,
            as_published=_as_published(run),
            default_size=default_size(run.task, run.dataset),
            task_defaults=task_defaults(run.task),
            preset=run.preset,
        )
        self._write("config.json", config)

    def evaluations(self, until: int) -> dict[str, list[np.ndarray]]:
        """The evaluations after at most so many updates, `updates` and `returns`; empty if there is no file yet."""
        path = self.path / "evaluations.npz"
        if not path.exists():
            return {"updates": [], "returns": []}
        try:
            arrays = read_arrays(path)
            return {name: list(arrays[name][arrays["updates"] <= until]) for name in ("updates", "returns")}
        except (UserError, KeyError):
            raise UserError(f"'{path}' is damaged; delete it to go on without the evaluations so far.") from None

    def write_evaluations(self, evaluations: dict[str, Any], final: dict[str, np.ndarray] | None = None) -> None:
        """Writes the evaluations.

        Args:
            evaluations: during training, `updates` (E,) and `returns` (E, episodes).
            final: quantities of the last policy's episodes, each (episodes,); None before the end.
        """
        arrays: dict[str, Any] = {name: np.array(values) for name, values in evaluations.items()}
        if final is not None:
            arrays |= {f"final_{'returns' if name == 'return' else name}": values for name, values in final.items()}
        with replacing(self.path / "evaluations.npz") as partial:
            np.savez_compressed(partial, **arrays)

    def finish(self, run: Run, spec: Any, policy: Any, record: RunRecord) -> None:
        """Writes the policy and the record, and `DONE` last.

        Args:
            run: the run.
            spec: its task.
            policy: its last policy, on the host.
            record: the outcome, and what the numbers may depend on.
        """
        metadata = {"run": run.name, "options": dict(run.options)}
        save_policy(self.path / "policy.npz", run.algorithm, run.config, spec, policy, metadata)
        self._write("run.json", record)
        self._write("DONE", digests(self.path, _FILES))

    def require_settings(self, ends: list[int], episodes: int, final_episodes: int) -> None:
        """Raises a `UserError` if a finished run was evaluated otherwise than is asked for now.

        Args:
            ends: the updates after which to evaluate.
            episodes: of each evaluation.
            final_episodes: of the last policy.
        """
        try:
            arrays = read_arrays(self.path / "evaluations.npz")
            found = arrays["updates"].tolist(), arrays["returns"].shape[-1], arrays["final_returns"].size
        except (UserError, KeyError, IndexError):  # damaged, which its reader will say
            return
        if found[2] == 0 or found == (ends, episodes, final_episodes):  # without a simulator nothing is evaluated
            return
        raise UserError(
            f"'{self.path}' is finished, with {len(found[0])} evaluations of {found[1]} episodes and {found[2]} final "
            f"episodes, not {len(ends)} of {episodes} and {final_episodes}: give the same, choose another folder, or "
            f"delete it to train it again."
        )

    def _write(self, name: str, value: Any) -> None:
        with replacing(self.path / name) as partial:
            partial.write(to_json(value))


def _as_published(run: Run) -> bool:
    """Whether hyperparameters and updates equal the published score's, if there is one."""
    if published.lookup(run.task, run.dataset, run.algorithm) is None:
        return False
    preset = presets.preset(run.algorithm, run.task, run.dataset)
    config = dataclasses.asdict(algorithms.find(run.algorithm).defaults) | preset.overrides
    return config == dataclasses.asdict(run.config) and preset.updates == run.updates


def environment_record() -> dict[str, Any]:
    """What numbers may depend on: date, versions, device, precision, and `code`, the hash of our sources.

    `deterministic` tells whether deterministic operations were requested.
    """
    packages = ("omarl-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "device": _processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "matmul_precision": str(
            jax.config.values["jax_default_matmul_precision"] or "default"
        ),  # `None` is the backend's own
        "deterministic": deterministic_operations_requested(),
        "code": _code(),
    }


@functools.cache  # as it was when it was imported: a sweep runs for hours, and the files may change meanwhile
def _code() -> str:
    code = hashlib.sha256()
    for package in (omarl_envs, omarl_jax):
        folder = pathlib.Path(next(iter(package.__path__)))
        for file in sorted(folder.rglob("*.py")):
            code.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return code.hexdigest()[:12]


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
