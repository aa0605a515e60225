"""Files that appear under their names only when they are whole, and checks of names that stand in files."""

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import numbers
import os
import pathlib
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from omarl_jax.errors import UserError
from omarl_jax.schemas import RunConfig, parse, read

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
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"  # another process may write the same
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
    """Reads all arrays of an `.npz`, and compares each with its checksum.

    Raises:
        UserError: if it cannot be read, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # `np.load` stops where an array seems to end, and then its checksum is not compared.
            files = {name.removesuffix(".npy"): io.BytesIO(archive.read(name)) for name in archive.namelist()}
        return {name: np.lib.format.read_array(file, allow_pickle=False) for name, file in files.items()}
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from None
    except Exception:  # `zipfile`, `zlib` and NumPy's reader of headers raise many kinds for damaged files
        raise UserError(f"'{path}' cannot be read: it is no archive of arrays (.npz), or damaged.") from None


def digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of some files of a folder, by their names there."""
    found = {}
    for name in names:
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def require_digests(folder: pathlib.Path, expected: Mapping[str, str]) -> None:
    """Raises a `UserError` unless these files are there and have these digests."""
    for name, digest in expected.items():
        try:
            found = digests(folder, [name])[name]
        except OSError as error:
            raise UserError(f"'{folder / name}' cannot be read: {error.strerror or error}.") from None
        if found != digest:
            raise UserError(f"'{folder / name}' was changed since it was written: its sha256 is another.")


def require_unchanged(run: pathlib.Path) -> None:
    """Raises a `UserError` if a file of a finished run is not what it was when the run ended; it may be missing.

    `DONE` holds the digests. Early files of format 2 have none.
    """
    done = run / "DONE"
    if done.exists() and (text := done.read_bytes()):
        expected = parse(text, dict[str, str], f"'{done}'")
        require_digests(run, {name: digest for name, digest in expected.items() if (run / name).exists()})


def require_trusted(module: str, allow_import: bool) -> None:
    """Raises a `UserError` if a module that a file names would have to be imported, and that is not allowed.

    Importing runs code. A module that was imported already has run it, and one of a package that is not here has none.
    """
    if not allow_import and module not in sys.modules and importlib.util.find_spec(module.partition(".")[0]):
        raise UserError(
            f"A file names the module '{module}', and importing it would run its code: import it yourself before, or "
            "trust the file with allow_import=True, on the command line --trust."
        )


def require_trusted_task(task: str, allow_import: bool) -> None:
    """`require_trusted` for a task `family/task`; tasks of this package are always trusted."""
    family = task.partition("/")[0]
    if "." in family:
        require_trusted(family, allow_import)


def read_run_config(run: pathlib.Path) -> RunConfig:
    """Reads `config.json` of the folder of a run.

    Raises:
        UserError: if it cannot be read, is damaged, or another version wrote it.
    """
    return read(run / "config.json", RunConfig, RUN_FORMAT)


def short_hash(identity: dict[str, Any]) -> str:
    """Eight hexadecimal digits that identify something, whatever kinds of numbers and sequences describe it."""
    return hashlib.sha256(json.dumps(_canonical(identity), sort_keys=True).encode()).hexdigest()[:8]


def _canonical(value: Any) -> Any:
    """A value in canonical JSON: lists for tuples, Python's numbers for NumPy's."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, dict):
        return {str(name): _canonical(one) for name, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_canonical(one) for one in value]
    return str(value)
