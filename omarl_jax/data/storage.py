"""Datasets on disk: a plain directory that any tool can read.

    dataset.json         format version, task, metadata, content hash, and dtype, shape and sha256 of each array
    obs.npy, actions.npy one file for each field of `EpisodeStore` that is not None

A directory appears whole or not at all, is opened memory-mapped, and checked when it is read. Nothing is unpickled.
The content hash covers the arrays only. Whoever edits the metadata by hand (a reference score, say) deletes the entry
`sha256` of the description, which is its own digest.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax.data.dataset import Dataset, EpisodeStore
from omarl_jax.data.validation import validate, validate_shapes, validate_task
from omarl_jax.errors import UserError
from omarl_jax.files import require_writable
from omarl_jax.schemas import DatasetDescription, Metadata, StoredArray, convert, parse, read, to_json

FORMAT = 1
_DESCRIPTION = "dataset.json"


def save(dataset: Dataset, folder: str | Path, more: Callable[[Path], object] = lambda partial: None) -> None:
    """Writes a dataset to a new folder, which appears complete or, whatever happens, not at all.

    Args:
        dataset: a valid dataset, whose metadata are JSON values (numpy scalars and arrays are converted).
        folder: must not exist; its parents are made.
        more: writes further files, such as the card, into the folder that it is given; they appear with the dataset.

    Raises:
        UserError: if the dataset is not valid, the folder exists, or it cannot be written (full disk, no permission).
    """
    folder = Path(folder)
    validate(dataset)
    arrays = _arrays(dataset.rows)
    described = {name: _describe(array) for name, array in arrays.items()}
    description = DatasetDescription(FORMAT, _content_hash(described), dataset.spec, dataset.metadata, described)
    try:
        text = to_json(description)
    except (TypeError, ValueError) as error:
        raise UserError(f"The dataset's metadata cannot be written as JSON: {error}.") from error
    _require_sensible(parse(text, DatasetDescription, "The dataset"), "The dataset's metadata")
    require_new(folder)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        for name, array in arrays.items():
            with open(partial / f"{name}.npy", "wb") as file:
                # np.save would do, but its errors do not say that the disk is full.
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(array.data)
                _to_disk(file)
        with open(partial / _DESCRIPTION, "wb") as file:
            file.write(text)
            _to_disk(file)
        more(partial)
        _folder_to_disk(partial)
        partial.rename(folder)
        _folder_to_disk(folder.parent)
    except OSError as error:
        raise UserError(f"The dataset cannot be written to {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_new(folder: str | Path) -> None:
    """Raises a `UserError` if a dataset cannot be written there, before minutes are spent on making it."""
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already: remove it, or choose another folder for the dataset.")
    require_writable(Path(folder))


def load(folder: str | Path, spec: TaskSpec | None = None, check: bool = True) -> Dataset:
    """Opens a dataset; its arrays are read-only and memory-mapped, so only the used parts are read.

    Args:
        folder: where `save` put it.
        spec: the task that it is used for. Name, agents, observations and actions must agree; the length of episodes
            and the state may differ, since policies do not depend on them.
        check: whether to compare the arrays with their hashes, which reads all of them once.

    Raises:
        UserError: if there is no dataset, it is damaged or was changed, or it is of another task.
    """
    folder = Path(folder)
    described = describe(folder)
    if spec is not None:
        validate_task(described.spec, spec, f"The dataset in {folder}")
    arrays = {name: _open(folder / f"{name}.npy", array) for name, array in described.arrays.items()}
    if check:
        for name, array in arrays.items():
            if _describe(array) != described.arrays[name]:
                raise UserError(f"{folder / name}.npy was changed since it was written: its sha256 is another.")
        if _content_hash(described.arrays) != described.content_hash:
            raise UserError(f"{folder / _DESCRIPTION} was changed since it was written: the content hash is another.")
    dataset = Dataset(described.spec, EpisodeStore(**({"obs": None} | arrays)), described.metadata)
    try:
        validate_shapes(dataset)
    except UserError as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    return dataset


def verify(folder: str | Path) -> None:
    """Checks a dataset on disk completely: files, hashes, and the values of the arrays.

    Raises:
        UserError: for the first mistake found.
    """
    validate(load(folder))


def content_hash(dataset: Dataset) -> str:
    """Identifies the arrays of a dataset whatever its metadata: the same for every copy, on the device or on disk.

    It is the sha256 of a line `name dtype shape sha256` for each array, in the order of `EpisodeStore`.
    """
    return _content_hash({name: _describe(array) for name, array in _arrays(dataset.rows).items()})


def describe(folder: str | Path) -> DatasetDescription:
    """The description of a dataset on disk, without its arrays.

    Raises:
        UserError: if there is no dataset, or its description is damaged.
    """
    path = Path(folder) / _DESCRIPTION
    if not path.exists():
        raise UserError(f"There is no dataset in {folder}: it has no {_DESCRIPTION}.")
    description = read(path, DatasetDescription, FORMAT)
    damaged = f"'{path}' is damaged, or was changed by hand"
    _require_sensible(description, damaged)
    required = {name for name in EpisodeStore._fields if name not in EpisodeStore._field_defaults}
    if description.spec.obs_from_state:
        required.remove("obs")
    found = set(description.arrays)
    if wrong := (required - found) | (found - set(EpisodeStore._fields)):
        raise UserError(f"{damaged}: its list of arrays lacks or invents {', '.join(sorted(wrong))}.")
    return description


def _require_sensible(description: DatasetDescription, what: str) -> None:
    """Raises a `UserError`, which begins with `what`, unless the metadata are what readers take them for."""
    convert(description.metadata, Metadata, what)
    references = [description.metadata.get(name) for name in ("random", "expert")]
    if references != [None, None] and (None in references or references[0] == references[1]):
        raise UserError(f"{what}: random and expert must be two different numbers, or both be null.")


def _arrays(rows: EpisodeStore) -> dict[str, np.ndarray]:
    """The arrays there are, on the host, in C order and little-endian."""
    present = {name: np.asarray(array) for name, array in rows._asdict().items() if array is not None}
    return {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in present.items()}


def _describe(array: np.ndarray) -> StoredArray:
    return StoredArray(array.dtype.str, array.shape, hashlib.sha256(np.ascontiguousarray(array).data).hexdigest())


def _content_hash(described: dict[str, StoredArray]) -> str:
    fields = [(name, described[name]) for name in EpisodeStore._fields if name in described]
    lines = [f"{name} {array.dtype} {'x'.join(map(str, array.shape))} {array.sha256}\n" for name, array in fields]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _open(path: Path, described: StoredArray) -> np.ndarray:
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise UserError(f"The dataset in {path.parent} is incomplete: {path.name} is missing.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # NumPy's reader of headers raises many kinds for damaged ones
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is truncated or is no array file ({reason}).") from error
    if (mapped.dtype.str, mapped.shape) != (described.dtype, described.shape):
        raise UserError(
            f"{path} holds {mapped.dtype.str} of shape {mapped.shape}, "
            f"but {_DESCRIPTION} says {described.dtype} of shape {described.shape}."
        )
    if mapped.offset + mapped.nbytes != path.stat().st_size:
        raise UserError(f"{path} was changed since it was written: it is longer than its array.")
    return np.asarray(mapped)  # a plain view of the map


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
