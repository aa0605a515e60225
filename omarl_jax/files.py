"""Files that appear under their names only when they are whole."""

import contextlib
import errno
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from omarl_jax.errors import UserError


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
    """Opens a file that takes the place of `path` once everything is written; until then what was there stays.

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
        # What NumPy says of a file that is none of its own is to read it as a pickle.
        raise UserError(f"'{path}' cannot be read: it is no archive of arrays (.npz), or damaged.") from None
