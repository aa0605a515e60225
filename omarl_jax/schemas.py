"""Every file that is read, described once: its entries, their types and their ranges.

A file that disagrees with its description is refused with one sentence that names the entry. Entries that no reader
uses are not described, and are left alone.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar

import msgspec
from msgspec import Meta, Struct
from omarl_envs.spec import TaskSpec

from omarl_jax.errors import UserError

_T = TypeVar("_T")
Count = Annotated[int, Meta(ge=1)]
Index = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Names = list[str]
_DIGEST = "sha256"
Number = int | float


class Metadata(TypedDict, total=False):
    """The metadata of a dataset that some reader uses."""

    recipe: str | None
    options: dict[str, Any]
    metrics: dict[str, float] | None
    mean_return: float | None
    mean_score: float | None
    random: float | None
    expert: float | None
    comparable: bool | None
    hash: str | None
    size: Index | None


class PolicyMetadata(TypedDict, total=False):
    """The metadata of a policy that every reader uses."""

    options: dict[str, Any]


class StoredArray(Struct, frozen=True):
    """An array of a dataset on disk: its dtype (`<f4`), its shape, and the sha256 of its elements in C order."""

    dtype: str
    shape: tuple[Index, ...]
    sha256: str


class DatasetDescription(Struct):
    """`dataset.json` of a dataset on disk."""

    format: int
    content_hash: str
    spec: TaskSpec
    metadata: dict[str, Any]
    arrays: dict[str, StoredArray]


class PolicyHeader(Struct):
    """The header in a policy's `.npz`."""

    format: int
    algorithm: str
    config: dict[str, Any]
    spec: TaskSpec
    metadata: dict[str, Any]


class Reference(Struct, frozen=True):
    """The returns that scores are normalised with."""

    random: float
    expert: float
    source: str | None = None


class RunConfig(Struct):
    """`config.json` of a run, with what a report needs to know of methods and tasks, which it does not import."""

    format: int
    algorithm: str
    base: str
    task: str
    dataset: str
    seed: Seed
    data_seed: Seed
    updates: Count
    options: dict[str, Any]
    config: dict[str, Any]
    config_hash: str
    data: dict[str, Any]
    reference: Reference | None
    as_published: bool
    default_size: Count | None
    task_defaults: dict[str, Any]
    preset: str = ""


class Placed(Struct, frozen=True):
    """A `Placement`."""

    slots: Count
    devices: Count


class Environment(Struct, kw_only=True):
    """What numbers may depend on; see `runs.environment_record`."""

    date: str | None = None
    versions: dict[str, str] = {}
    device: str | None = None
    backend: str | None = None
    matmul_precision: str | None = None
    deterministic: bool = False
    code: str | None = None


class RunRecord(Environment, kw_only=True):
    """`run.json` of a run: the outcome, and what the numbers may depend on."""

    status: Literal["finished", "diverged"]
    diverged_at: Index | None = None
    reason: str | None = None
    started_with: dict[str, Any] = {}
    group: str | None = None
    placement: Placed | None = None
    updates_per_second: float | None = None


class GroupState(Environment, kw_only=True):
    """`group.json` of a run group: how it started."""

    runs: Annotated[Names, Meta(min_length=1)]
    placement: Placed
    settings: dict[str, Count]
    data: Names
    memory: Index | None = None  # bytes of each device that training needs


class Progress(Struct):
    """What every line of `metrics.jsonl` has."""

    updates: Count
    saturation: float | None = None


Logged = dict[str, float | Annotated[list[float | None], Meta(min_length=1)] | None]
"""A line of `metrics.jsonl`: numbers, or one for each agent; null is a number that is not finite."""


class Block(Struct):
    """A `[[block]]` of a grid."""

    tasks: Annotated[Names, Meta(min_length=1)]
    datasets: Annotated[Names, Meta(min_length=1)]
    algorithms: Annotated[Names, Meta(min_length=1)]
    updates: Number | None = None
    size: Number | None = None
    hyperparameters: dict[str, Any] = {}
    options: dict[str, Any] = {}
    preset: bool = True


class GridFile(Struct):
    """A grid. Numbers are checked where they are used, since `4.0` may stand for `4`."""

    block: Annotated[list[Block], Meta(min_length=1)]
    seeds: Annotated[list[Number], Meta(min_length=1)] | None = None
    data_seed: Number | Literal["seed"] = "seed"
    evaluations: Number | None = None
    episodes: Number | None = None
    final_episodes: Number | None = None
    side_by_side: Number | None = None


def convert(content: Any, kind: type[_T], what: str) -> _T:
    """Content that was parsed already, as its description wants it.

    Args:
        content: dicts, lists and values.
        kind: the description.
        what: the file, at the beginning of a sentence.

    Raises:
        UserError: for the first entry that disagrees.
    """
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UserError(f"{what}: {_sentence(error)}.") from None


def parse(text: bytes | str, kind: type[_T], what: str) -> _T:
    """JSON, as its description wants it.

    Args:
        text: the JSON, whose digest is compared if `to_json` made it.
        kind: the description.
        what: the file, at the beginning of a sentence.

    Raises:
        UserError: if it is no JSON, was changed, or for the first entry that disagrees.
    """
    return _parse(text, kind, None, what)


def _parse(text: bytes | str, kind: type[_T], known: int | None, what: str) -> _T:
    try:
        content = msgspec.json.decode(text)
        if known is not None and (found := msgspec.convert(content, _Versioned).format) != known:
            if found == 1:
                raise UserError(f"{what} was written by omarl_jax before 0.2, and that reads it.")
            raise UserError(f"{what} has format {found}; this version reads format {known}: a newer one may read it.")
        if isinstance(content, dict) and content.pop(_DIGEST, None) not in (None, _digest(content)):
            raise UserError(
                f"{what} was changed since it was written: its sha256 is another; if that was you, delete its entry "
                f"'{_DIGEST}'."
            )
        return msgspec.convert(content, kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UserError(f"{what} is damaged, or was changed by hand: {_sentence(error)}.") from None


def parse_versioned(text: bytes | str, kind: type[_T], known: int, what: str) -> _T:
    """`parse` of a file whose entry `format` says how to read it; files of the first version have none.

    Raises:
        UserError: as of `parse`, and if another version of the package wrote it.
    """
    return _parse(text, kind, known, what)


def read(path: Path, kind: type[_T], known: int | None = None) -> _T:
    """`parse` of a file, or `parse_versioned` of one that has a format.

    Raises:
        UserError: as of these, and if there is no such file or it cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no file '{path}'.") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from None
    return _parse(text, kind, known, f"'{path}'")


def to_json(value: Any) -> bytes:
    """The text of a description, or of a dict, with its own digest; NumPy's arrays become lists, and paths strings.

    Raises:
        TypeError, ValueError: for values that JSON cannot hold, numbers that are not finite among them.
    """
    plain = msgspec.to_builtins(value, enc_hook=_plain, str_keys=True)
    plain = plain | {_DIGEST: _digest(plain)}
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _sentence(error: Exception) -> str:
    """`Expected …, got … - at `$.a.b`` with its place first; the rest stays as it is."""
    text, _, place = str(error).rstrip(".").partition(" - at `$")
    text = text.rstrip(".")
    if place:
        return f"{place.strip('`.')}: {text[:1].lower()}{text[1:]}"
    return f"{text[:1].lower()}{text[1:]}" if text[1:2].islower() else text


class _Versioned(Struct):
    format: int = 1
