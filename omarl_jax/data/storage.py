"""Datasets on disk: a plain directory that any tool can read.

    dataset.json         format version, task, metadata, content hash, and dtype, shape and sha256 of each array
    obs.npy, actions.npy one file for each field of `EpisodeStore` that is not None

A directory appears whole or not at all, is opened memory-mapped, and checked when it is read. Nothing is unpickled.
The metadata may be edited by hand (a reference score, say): the content hash covers the arrays only.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax.data.dataset import Dataset, EpisodeStore
from omarl_jax.data.validation import validate, validate_shapes, validate_task
from omarl_jax.errors import UserError
from omarl_jax.files import require_writable

FORMAT = 1
_DESCRIPTION = "dataset.json"


class _Array(NamedTuple):
    """The entry of an array in `dataset.json`: dtype (`<f4`), shape, and the sha256 of its elements in C order."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


def save(dataset: Dataset, folder: str | Path) -> None:
    """Writes a dataset to a new folder, which appears complete or, whatever happens, not at all.

    Args:
        dataset: a valid dataset, whose metadata are JSON values (numpy scalars and arrays are converted).
        folder: must not exist; its parents are made.

    Raises:
        UserError: if the dataset is not valid, the folder exists, or it cannot be written (full disk, no permission).
    """
    folder = Path(folder)
    validate(dataset)
    arrays = _arrays(dataset.rows)
    described = {name: _describe(array) for name, array in arrays.items()}
    description = {
        "format": FORMAT,
        "content_hash": _content_hash(described),
        "spec": dataclasses.asdict(dataset.spec),
        "metadata": dataset.metadata,
        "arrays": {name: array._asdict() for name, array in described.items()},
    }
    try:
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise UserError(f"The dataset's metadata cannot be written as JSON: {error}.") from error
    written = json.loads(text)
    _require_sensible(TaskSpec(**written["spec"]), written["metadata"], "The dataset has")
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
            file.write(text.encode() + b"\n")
            _to_disk(file)
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
    found, metadata, described, content = _read_description(folder)
    if spec is not None:
        validate_task(found, spec, f"The dataset in {folder}")
    arrays = {name: _open(folder / f"{name}.npy", array) for name, array in described.items()}
    if check:
        for name, array in arrays.items():
            if _describe(array) != described[name]:
                raise UserError(f"{folder / name}.npy was changed since it was written: its sha256 is another.")
        if _content_hash(described) != content:
            raise UserError(f"{folder / _DESCRIPTION} was changed since it was written: the content hash is another.")
    dataset = Dataset(found, EpisodeStore(**arrays), metadata)
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


def described_hash(folder: str | Path) -> str:
    """The content hash in the description of a dataset on disk.

    Raises:
        UserError: if there is no dataset, or its description is damaged.
    """
    return _read_description(Path(folder))[-1]


def described_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata of a dataset on disk, without its arrays.

    Raises:
        UserError: if there is no dataset, or its description is damaged.
    """
    return _read_description(Path(folder))[1]


def _arrays(rows: EpisodeStore) -> dict[str, np.ndarray]:
    """The arrays there are, on the host, in C order and little-endian."""
    present = {name: np.asarray(array) for name, array in rows._asdict().items() if array is not None}
    return {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in present.items()}


def _describe(array: np.ndarray) -> _Array:
    return _Array(array.dtype.str, array.shape, hashlib.sha256(np.ascontiguousarray(array).data).hexdigest())


def _content_hash(described: dict[str, _Array]) -> str:
    fields = [(name, *described[name]) for name in EpisodeStore._fields if name in described]
    lines = [f"{name} {dtype} {'x'.join(map(str, shape))} {digest}\n" for name, dtype, shape, digest in fields]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_description(folder: Path) -> tuple[TaskSpec, dict[str, Any], dict[str, _Array], str]:
    path = folder / _DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"There is no dataset in {folder}: it has no {_DESCRIPTION}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error}).") from error
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT:
        raise UserError(f"{path} has format version {version!r}, but this version of omarl_jax reads {FORMAT}.")
    try:
        spec = TaskSpec(**description["spec"])
        described = {
            name: _Array(array["dtype"], tuple(array["shape"]), array["sha256"])
            for name, array in description["arrays"].items()
        }
        metadata, content = dict(description["metadata"]), str(description["content_hash"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: an entry is missing or malformed ({error}).") from error
    _require_sensible(spec, metadata, f"{path} is damaged: it has")
    required = {name for name in EpisodeStore._fields if name not in EpisodeStore._field_defaults}
    if not required <= set(described) <= set(EpisodeStore._fields):
        wrong = ", ".join(sorted((required - set(described)) | (set(described) - set(EpisodeStore._fields))))
        raise UserError(f"{path} is damaged: its list of arrays lacks or invents {wrong}.")
    return spec, metadata, described, content


def _require_sensible(spec: TaskSpec, metadata: dict[str, Any], who: str) -> None:
    """Raises a `UserError`, which begins with `who`, unless a dataset could be read with this description."""
    if malformed := _malformed(spec, metadata):
        raise UserError(f"{who} no sensible {', '.join(malformed)}.")
    references = [metadata.get(name) for name in ("random", "expert")]
    if references != [None, None] and (None in references or references[0] == references[1]):
        raise UserError(f"{who} no sensible random and expert: they are two different numbers, or both null.")


def _malformed(spec: TaskSpec, metadata: dict[str, Any]) -> list[str]:
    """The names of entries that hold no value of their kind."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    metrics = metadata.get("metrics", {})
    valid = {
        "name": isinstance(spec.name, str),
        "kind": spec.kind in ("continuous", "discrete"),
        "state_is_obs": isinstance(spec.state_is_obs, bool),
        "options": isinstance(metadata.get("options", {}), dict),
        "metrics": isinstance(metrics, dict) and all(map(is_number, metrics.values())),
    }
    for name in ("n_agents", "obs_dim", "action_dim", "state_dim", "episode_length"):
        valid[name] = type(getattr(spec, name)) is int and getattr(spec, name) > 0
    for name in ("mean_return", "mean_score", "random", "expert"):
        valid[name] = metadata.get(name) is None or is_number(metadata[name])
    return [name for name, is_valid in valid.items() if not is_valid]


def _open(path: Path, described: _Array) -> np.ndarray:
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise UserError(f"The dataset in {path.parent} is incomplete: {path.name} is missing.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is truncated or is no array file ({error}).") from error
    if (mapped.dtype.str, mapped.shape) != described[:2]:
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


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON value")
