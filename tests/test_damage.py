"""Files that a disk, a crash or a hand has changed: one sentence, or what was written; never another number."""

import copy
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omarl_jax import UserError, load_dataset, load_policy, save_dataset
from omarl_jax.checkpoint import Checkpoints
from omarl_jax.data import storage
from omarl_jax.grid import make_grid
from omarl_jax.report.load import load_run
from omarl_jax.schemas import GroupState, read
from omarl_jax.sweep import sweep

GRID = {
    "seeds": [0],
    "evaluations": 2,
    "episodes": 3,
    "final_episodes": 4,
    "block": [
        {
            "tasks": ["matrix/climbing"],
            "datasets": ["random"],
            "algorithms": ["bc"],
            "updates": 4,
            "size": 50,
            "hyperparameters": {"hidden": [[4]], "batch_size": 8},
        }
    ],
}
ODD = (None, True, -1, 0, 7, 2.5, 1e12, "", "x" * 300, [], [1], {}, {"a": 1})


class Kind(NamedTuple):
    """A kind of file: where a sound one lies, and what reading it gives."""

    file: str
    read: Callable[[Path], Any]


def of_dataset(folder: Path) -> Any:
    dataset = storage.load(folder / "data")
    return storage.content_hash(dataset), dataset.spec, dataset.metadata


def of_policy(folder: Path) -> Any:
    policy = load_policy(folder / "policy.npz")
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(policy.params)]
    return policy.algorithm, policy.config, policy.spec, policy.metadata, leaves


def of_run(folder: Path) -> Any:
    run = load_run(folder / "run")
    arrays = [run.evaluations, run.returns, run.final_returns, *run.final_metrics.values()]
    fields = run.algorithm, run.task, run.seed, run.updates, run.config, run.data, run.record, run.reference
    policy = of_policy(folder / "run")
    return fields, [array.tobytes() for array in arrays], policy


def of_checkpoint(folder: Path) -> Any:
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        state, updates = checkpoints.restore(CHECKPOINT)
    finally:
        checkpoints.close()
    return updates, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


CHECKPOINT = {"w": np.arange(12.0, dtype=np.float32).reshape(3, 4), "n": np.full(2, 5, np.int32)}
KINDS = {
    "a dataset's description": Kind("data/dataset.json", of_dataset),
    "an array": Kind("data/rewards.npy", of_dataset),
    "a policy": Kind("policy.npz", of_policy),
    "a run's config": Kind("run/config.json", of_run),
    "a run's record": Kind("run/run.json", of_run),
    "a run's evaluations": Kind("run/evaluations.npz", of_run),
    "a run's metrics": Kind("run/metrics.jsonl", of_run),
    "a run's policy": Kind("run/policy.npz", lambda folder: (load_policy(folder / "run"), of_run(folder))[1]),
    "a run's digests": Kind("run/DONE", of_run),
    "a group": Kind("group.json", lambda folder: read(folder / "group.json", GroupState)),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of every kind."""
    folder = tmp_path_factory.mktemp("sound")
    save_dataset(load_dataset("matrix/climbing", "random", size=9), folder / "data")
    grid = make_grid(GRID)
    assert not sweep(grid, folder / "out")
    (run,) = grid.runs
    shutil.copytree(folder / "out" / "runs" / run.name, folder / "run")
    shutil.copy(folder / "run" / "policy.npz", folder)
    (group,) = (folder / "out" / "groups").glob("*/group.json")
    shutil.copy(group, folder)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, CHECKPOINT)
    checkpoints.close()
    shutil.rmtree(folder / "out")
    return folder


def damaged_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """One bit flipped, some bytes lost in the end, or some bytes put in."""
    places = st.integers(0, len(content) - 1)

    def flip(place: int, bit: int) -> bytes:
        return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]

    return st.one_of(
        st.builds(flip, places, st.integers(0, 7)),
        st.builds(lambda place: content[:place], places),
        st.builds(lambda i, more: content[:i] + more + content[i:], places, st.binary(min_size=1, max_size=9)),
    )


def places_in(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all entries of a JSON value."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [p for name, value in entries for p in [(*place, name), *places_in(value, (*place, name))]]


def changed(content: Any, place: tuple[Any, ...], value: Any, delete: bool) -> Any:
    """A copy with one entry replaced or deleted."""
    content = copy.deepcopy(content)
    parent = content
    for name in place[:-1]:
        parent = parent[name]
    if delete:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return content


def outcome(reader: Callable[[Path], Any], folder: Path) -> Any:
    """What reading gives; None if it was refused in one sentence."""
    try:
        return reader(folder)
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return None


FUZZ = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_or_gives_what_was_written(name: str, sound: Path) -> None:
    kind = KINDS[name]
    path, expected = sound / kind.file, kind.read(sound)
    content = path.read_bytes()
    refused = []

    @FUZZ
    @given(damaged_bytes(content))
    def check(damaged: bytes) -> None:
        path.write_bytes(damaged)
        found = outcome(kind.read, sound)
        assert found is None or found == expected
        refused.append(found is None)

    try:
        check()
    finally:
        path.write_bytes(content)
    assert any(refused)


JSONS = {name: kind for name, kind in KINDS.items() if kind.file.endswith(".json")}


@pytest.mark.parametrize("name", JSONS)
def test_an_entry_changed_by_hand_is_refused_or_read(name: str, sound: Path) -> None:
    """Without its digest, as somebody may delete it: any value, but never a traceback."""
    kind = JSONS[name]
    path = sound / kind.file
    content, done = path.read_bytes(), (sound / "run" / "DONE").read_bytes()
    entries = json.loads(content)
    del entries["sha256"]

    @FUZZ
    @given(st.sampled_from(places_in(entries)), st.sampled_from(ODD), st.booleans())
    def check(place: tuple[Any, ...], value: Any, delete: bool) -> None:
        path.write_text(json.dumps(changed(entries, place, value, delete)))
        (sound / "run" / "DONE").write_bytes(b"")
        outcome(kind.read, sound)

    try:
        check()
    finally:
        path.write_bytes(content)
        (sound / "run" / "DONE").write_bytes(done)


def test_a_header_changed_by_hand_is_refused_or_read(sound: Path, tmp_path: Path) -> None:
    with np.load(sound / "policy.npz") as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays.pop("header")))
    del header["sha256"]

    @FUZZ
    @given(st.sampled_from(places_in(header)), st.sampled_from(ODD), st.booleans())
    def check(place: tuple[Any, ...], value: Any, delete: bool) -> None:
        text = json.dumps(changed(header, place, value, delete))
        np.savez(tmp_path / "policy.npz", header=np.array(text), **arrays)
        outcome(of_policy, tmp_path)

    check()


@pytest.mark.parametrize(
    "wrong", [np.array(["a"]), np.zeros((2, 0)), np.array(np.nan), np.zeros((1, 4), np.int32), np.array(1 + 2j)]
)
def test_arrays_of_a_policy_must_be_those_of_its_method(wrong: np.ndarray, sound: Path, tmp_path: Path) -> None:
    with np.load(sound / "policy.npz") as archive:
        arrays = dict(archive)
    name = next(name for name in arrays if name != "header")
    np.savez(tmp_path / "policy.npz", **(arrays | {name: wrong}))
    assert outcome(of_policy, tmp_path) is None
    full = np.full_like(arrays[name], np.inf)
    np.savez(tmp_path / "policy.npz", **(arrays | {name: full}))
    with pytest.raises(UserError, match="not finite"):
        of_policy(tmp_path)


def test_a_damaged_checkpoint_is_refused_whichever_file_it_is(sound: Path) -> None:
    """One bit in every file of a checkpoint, its digests included."""
    expected = of_checkpoint(sound)
    rng = np.random.default_rng(0)
    files = sorted(path for path in (sound / "checkpoints").rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) > 3
    for path in files:
        content = bytearray(path.read_bytes())
        for place in rng.integers(len(content), size=8):
            damaged = content.copy()
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            found = outcome(of_checkpoint, sound)
            assert found is None or found == expected
        path.write_bytes(content)
    assert of_checkpoint(sound) == expected


def test_a_grid_with_any_entry_changed_is_refused_or_read() -> None:
    content = tomllib.loads((Path(__file__).parents[1] / "experiments" / "omar_agents.toml").read_text())

    @FUZZ
    @given(st.sampled_from(places_in(content)), st.sampled_from(ODD), st.booleans())
    def check(place: tuple[Any, ...], value: Any, delete: bool) -> None:
        try:
            make_grid(changed(content, place, value, delete))
        except UserError as error:
            assert "\n" not in str(error)

    check()
