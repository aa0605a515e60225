"""Where metrics go: a JSON line per chunk always, Weights & Biases when it is asked for."""

import json
import math
import pathlib
from typing import Any, Protocol

from omarl_jax.errors import UserError
from omarl_jax.files import replacing


class Logger(Protocol):
    """Where one run's metrics go."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes the metrics of one chunk; `round` is among them."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class JsonLines:
    """Appends to `metrics.jsonl`, cut back to a checkpoint's round first.

    Args:
        path: the file.
        round: rows after this one are left over from a killed run and are dropped.
    """

    def __init__(self, path: pathlib.Path, round: int):
        kept = [line for line in _lines(path) if _round(line) <= round]
        with replacing(path) as file:
            file.write("".join(kept).encode())
        try:
            self._file = path.open("a")
        except OSError as error:
            raise UserError(f"'{path}' cannot be written: {error.strerror or error}.") from None

    def log(self, row: dict[str, Any]) -> None:
        """Appends a row; what is not finite becomes null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        try:
            self._file.write(json.dumps(finite) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"'{self._file.name}' cannot be written: {error.strerror or error}.") from None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class WandB:
    """One Weights & Biases run for each of ours, grouped by configuration; offline where there is no key.

    Args:
        project: the project's name.
        folder: where offline runs are kept.
        name, group, config: as `wandb.init` takes them.
    """

    def __init__(self, project: str, folder: pathlib.Path, name: str, group: str, config: dict[str, Any]):
        import wandb  # only here: it costs a second and is wanted by few

        has_key = bool(wandb.api.api_key)
        self._run = wandb.init(
            project=project,
            dir=folder,
            name=name,
            id=name.replace("/", "-")[-64:],
            group=group,
            config=config,
            mode=None if has_key else "offline",
            resume="allow" if has_key else None,
            reinit="create_new",
        )

    def log(self, row: dict[str, Any]) -> None:
        """Logs a row at its round."""
        self._run.log({k: v for k, v in row.items() if k != "round"}, step=row["round"])

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def _lines(path: pathlib.Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.splitlines(keepends=True)


def _round(line: str) -> float:
    try:
        return json.loads(line)["round"]
    except (ValueError, KeyError, TypeError):  # half a line, from a run killed while writing it
        return math.inf
