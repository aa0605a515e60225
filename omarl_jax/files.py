"""Files that appear under their names only when they are whole, and checks of names that stand in files."""

import contextlib
import errno
import json
import os
import pathlib
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from omarl_jax.errors import UserError

RUN_FORMAT = 2  # of the folder of a run


def require_writable(path: pathlib.Path) -> None:
    """Raises a `UserError` if nothing can be written there, before hours are spent on it; makes no folder yet."""
    try:
        _require_file(path)
        there = next(parent for parent in path.absolute().parents if parent.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror or error}.") from None


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path` once everything is written; until then the old one stays.

    Raises:
        UserError: if it cannot be written.
    """
    partial = path.parent / f".{path.name}.partial"
    try:
        _require_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _require_file(path: pathlib.Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz`.

    Raises:
        UserError: if it cannot be read, or is damaged.
    """
    try:
        # Opened here, because NumPy leaves a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from None
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        # NumPy's own error suggests to read the file as a pickle.
        raise UserError(f"'{path}' cannot be read: it is no archive of arrays (.npz), or damaged.") from None


def require_trusted(module: str, allow_import: bool) -> None:
    """Raises a `UserError` if a module that a file names would have to be imported, and that is not allowed.

    Importing runs code. A module that was imported already has run it.
    """
    if not allow_import and module not in sys.modules:
        raise UserError(
            f"A file names the module '{module}', and importing it would run its code: import it yourself before, or "
            "trust the file with allow_import=True, on the command line --trust."
        )


def require_trusted_task(task: str, allow_import: bool) -> None:
    """`require_trusted` for a task `family/task`; tasks of this package are always trusted."""
    family = task.partition("/")[0]
    if "." in family:
        require_trusted(family, allow_import)


def read_run_config(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `config.json` of the folder of a run.

    Raises:
        UserError: if it cannot be read, or another version wrote it.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = config.get("format", 1)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"The run in '{folder}' cannot be read ({type(error).__name__}: {error}).") from error
    if found != RUN_FORMAT:
        raise UserError(f"The run in '{folder}' {written_by(found, RUN_FORMAT)}")
    return config


def written_by(found: Any, known: int) -> str:
    """The end of the sentence that refuses a file of another format."""
    if found == 1:
        return "was written by omarl_jax before 0.2, and that reads it."
    return f"has format {found}; this version reads format {known}: a newer one may read it."
