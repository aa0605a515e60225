"""Where metrics go: always to a JSON line per chunk, and to Weights & Biases on request."""

import hashlib
import json
import math
import pathlib
from typing import Any, Protocol

from omarl_jax.errors import UserError
from omarl_jax.files import replacing


class Logger(Protocol):
    """Where one run's metrics go."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes the metrics of one chunk; `updates` is among them."""
        ...

    def close(self) -> None:
        """Writes the rest and closes."""
        ...


class JsonLines:
    """Appends to `metrics.jsonl`, cut back to a checkpoint first.

    Args:
        path: the file.
        updates: of the checkpoint; rows after it are left over from a killed run and are dropped.
    """

    def __init__(self, path: pathlib.Path, updates: int):
        before = [line for line in _lines(path) if _updates(line) <= updates]
        with replacing(path) as file:
            file.write("".join(before).encode())
        self._path = path

    def log(self, row: dict[str, Any]) -> None:
        """Appends a row; values that are not finite become null."""
        finite = {name: _finite(value) for name, value in row.items()}
        try:
            with self._path.open("a") as file:  # a sweep has more runs than a process may have open files
                file.write(json.dumps(finite) + "\n")
        except OSError as error:
            raise UserError(f"'{self._path}' cannot be written: {error.strerror or error}.") from None

    def close(self) -> None:
        """Nothing is left to write."""


class WandB:
    """One Weights & Biases run for each of ours, grouped by configuration; offline where there is no key.

    Args:
        project: the project's name.
        folder: of the run, where offline runs are stored, too.
        name, group, config: as `wandb.init` takes them.
    """

    def __init__(self, project: str, folder: pathlib.Path, name: str, group: str, config: dict[str, Any]):
        import wandb  # only here: it costs a second and few use it

        has_key = bool(wandb.api.api_key)
        self._run = wandb.init(
            project=project,
            dir=folder,
            name=name,
            id=run_id(folder, name),
            group=group,
            config=config,
            mode=None if has_key else "offline",
            resume="allow" if has_key else None,
            reinit="create_new",
        )

    def log(self, row: dict[str, Any]) -> None:
        """Logs a row at its number of updates."""
        numbers: dict[str, Any] = {}
        for name, value in row.items():
            numbers |= {f"{name}/{i}": one for i, one in enumerate(value)} if isinstance(value, list) else {name: value}
        self._run.log({k: v for k, v in numbers.items() if k != "updates"}, step=row["updates"])

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def run_id(folder: pathlib.Path, name: str) -> str:
    """Identifies a run to Weights & Biases: the same run in another folder is another one."""
    return f"{name.replace('/', '-')[-55:]}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(path: pathlib.Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.splitlines(keepends=True)


def _updates(line: str) -> float:
    try:
        return json.loads(line)["updates"]
    except (ValueError, KeyError, TypeError):  # half a line, from a run killed while writing it
        return math.inf
