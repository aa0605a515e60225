"""What a run is, how it is named, and its folder on disk."""

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np
import omarl_envs

import omarl_jax
from omarl_jax import presets
from omarl_jax.data.dataset import Dataset
from omarl_jax.errors import UserError
from omarl_jax.export import save_policy
from omarl_jax.files import read_arrays, replacing


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, decided before anything is computed.

    Attributes:
        algorithm: the method's name.
        task: `family/task`.
        dataset: a recipe (`random`, `medium` …) or the path of a dataset on disk.
        seed: of training.
        data_seed: of the data.
        rounds: learning rounds.
        config: the method's hyperparameters.
        options: constructor arguments of the task.
        size: transitions of the data, None for the recipe's own number.
        data_digest: what the data are made from (see `recipes.digest`).
        variant: what to call the method in tables, where it is a named variant of it.
    """

    algorithm: str
    task: str
    dataset: str
    seed: int
    data_seed: int
    rounds: int
    config: Any
    options: tuple[tuple[str, Any], ...] = ()
    size: int | None = None
    data_digest: str = ""
    variant: str | None = None

    @property
    def config_hash(self) -> str:
        """Names everything about the run but its seeds."""
        described = dataclasses.asdict(dataclasses.replace(self, seed=0, data_seed=0))
        return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """The name of its folder."""
        data = pathlib.Path(self.dataset).name
        seeds = f"seed{self.seed}" if self.data_seed == self.seed else f"seed{self.seed}-data{self.data_seed}"
        return f"{self.task.replace('/', '-')}_{data}_{self.variant or self.algorithm}_{self.config_hash}_{seeds}"


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

    def begin(self, run: Run, dataset: Dataset, data_hash: str) -> None:
        """Writes what the run is."""
        known = ("mean_return", "mean_score", "metrics", "comparable", "behaviour")
        reference = dataset.metadata.get("random"), dataset.metadata.get("expert")
        self._write_json(
            "config.json",
            {
                "algorithm": run.algorithm,
                "variant": run.variant,
                "task": run.task,
                "dataset": run.dataset,
                "seed": run.seed,
                "data_seed": run.data_seed,
                "rounds": run.rounds,
                "options": dict(run.options),
                "config": dataclasses.asdict(run.config),
                "config_hash": run.config_hash,
                "preset": presets.preset(run.algorithm, run.task, run.dataset).source,
                "data": {k: dataset.metadata.get(k) for k in known} | {"size": dataset.size, "hash": data_hash},
                "reference": None
                if None in reference
                else {"random": reference[0], "expert": reference[1], "source": dataset.metadata["reference_source"]},
            },
        )

    def evaluations(self, until: int) -> dict[str, list[np.ndarray]]:
        """What was evaluated up to a round, each quantity with its `rounds`; nothing if there is no such file yet."""
        path = self.path / "evaluations.npz"
        if not path.exists():
            return {"rounds": [], "returns": []}
        try:
            arrays = read_arrays(path)
            return {name: list(arrays[name][arrays["rounds"] <= until]) for name in ("rounds", "returns")}
        except (UserError, KeyError):
            raise UserError(f"'{path}' is damaged; delete it to go on without the evaluations so far.") from None

    def write_evaluations(self, evaluations: dict[str, Any], final: dict[str, np.ndarray] | None = None) -> None:
        """Writes evaluations during training, and those of the last policy once there are."""
        arrays: dict[str, Any] = {name: np.array(values) for name, values in evaluations.items()}
        if final is not None:
            arrays |= {f"final_{'returns' if name == 'return' else name}": values for name, values in final.items()}
        with replacing(self.path / "evaluations.npz") as partial:
            np.savez_compressed(partial, **arrays)

    def finish(self, run: Run, spec: Any, policy: Any, record: dict[str, Any]) -> None:
        """Writes the policy and the record, and `DONE` last."""
        metadata = {"run": run.name, "options": dict(run.options)}
        save_policy(self.path / "policy.npz", run.algorithm, run.config, spec, policy, metadata)
        self._write_json("run.json", record)
        with replacing(self.path / "DONE") as partial:
            partial.write(b"")

    def _write_json(self, name: str, value: Any) -> None:
        with replacing(self.path / name) as partial:
            partial.write(json.dumps(value, indent=2, default=str, allow_nan=False).encode())


def environment_record() -> dict[str, Any]:
    """What numbers may depend on: date, versions, device, precision, and `code`, the hash of our sources."""
    packages = ("omarl-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "device": _processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "matmul_precision": str(
            jax.config.values["jax_default_matmul_precision"] or "default"
        ),  # `None` is the backend's own
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
