import dataclasses
import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omarl_jax.data.dataset import Dataset
from omarl_jax.data.storage import content_hash, load, save, verify
from omarl_jax.errors import UserError


@pytest.fixture
def folder(continuous: Dataset, tmp_path: Path) -> Path:
    save(continuous, tmp_path / "data" / "toy")
    return tmp_path / "data" / "toy"


def _assert_same(found: Dataset, expected: Dataset) -> None:
    assert found.spec == expected.spec
    assert found.metadata == expected.metadata
    for name, array in expected.rows._asdict().items():
        loaded = getattr(found.rows, name)
        if array is None:
            assert loaded is None
        else:
            np.testing.assert_array_equal(loaded, array, err_msg=name)
            assert loaded.dtype == array.dtype


def test_what_was_saved_is_loaded(continuous: Dataset, discrete: Dataset, folder: Path, tmp_path: Path):
    _assert_same(load(folder, continuous.spec), continuous)
    save(discrete, tmp_path / "discrete")
    _assert_same(load(tmp_path / "discrete", check=False), discrete)
    verify(tmp_path / "discrete")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["toy"]
    fields = ("actions", "closing", "obs", "rewards", "terminal", "truncated")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*(f"{f}.npy" for f in fields), "dataset.json"])
    np.testing.assert_array_equal(np.load(folder / "obs.npy", allow_pickle=False), continuous.rows.obs)


def test_the_memory_order_of_a_file_does_not_matter(continuous: Dataset, folder: Path):
    np.save(folder / "obs.npy", np.asfortranarray(continuous.rows.obs))
    _assert_same(load(folder), continuous)


def test_arrays_are_mapped_and_read_only(folder: Path):
    obs = load(folder).rows.obs
    assert isinstance(obs.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        obs[0] = 1


def test_numpy_values_in_the_metadata_become_json(continuous: Dataset, tmp_path: Path):
    metadata = {"mean_return": np.float32(1.5), "seeds": np.arange(3), "source": "Table 2 · é"}
    save(dataclasses.replace(continuous, metadata=metadata), tmp_path / "toy")
    assert load(tmp_path / "toy").metadata == {"mean_return": 1.5, "seeds": [0, 1, 2], "source": "Table 2 · é"}


def test_the_content_hash_is_that_of_the_arrays_alone(continuous: Dataset, folder: Path):
    shapes = {"obs": "9x2x3", "actions": "9x2x2", "rewards": "9x2", "terminal": "9x2"}
    shapes |= {"truncated": "9", "closing": "9"}
    text = ""
    for name, shape in shapes.items():
        array = getattr(continuous.rows, name)
        dtype = "|b1" if array.dtype == bool else "<f4"
        text += f"{name} {dtype} {shape} {hashlib.sha256(array.tobytes()).hexdigest()}\n"
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert content_hash(continuous) == expected
    assert content_hash(dataclasses.replace(continuous, metadata={"date": "today"})) == expected
    assert content_hash(dataclasses.replace(continuous, rows=jax.tree.map(jnp.asarray, continuous.rows))) == expected
    strided = continuous.rows._replace(obs=np.asfortranarray(continuous.rows.obs))
    assert content_hash(dataclasses.replace(continuous, rows=strided)) == expected
    assert content_hash(load(folder)) == expected
    assert json.loads((folder / "dataset.json").read_text())["content_hash"] == expected
    other = continuous.rows._replace(obs=continuous.rows.obs + np.eye(1, 9).reshape(9, 1, 1).astype(np.float32))
    assert content_hash(dataclasses.replace(continuous, rows=other)) != expected


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A damage to `dataset.json`."""

    def damage(folder: Path) -> None:
        description = json.loads((folder / "dataset.json").read_text())
        del description["sha256"]
        change(description)
        (folder / "dataset.json").write_text(json.dumps(description))

    return damage


def _flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "rewards.npy").read_bytes())
    content[-3] ^= 1
    (folder / "rewards.npy").write_bytes(content)


def _exchange_with_hash(folder: Path) -> None:
    """Other rewards, and their right hash, but the content hash left alone."""
    rewards = np.ones((9, 2), np.float32)
    np.save(folder / "rewards.npy", rewards)
    digest = hashlib.sha256(rewards.tobytes()).hexdigest()
    _edit(lambda description: description["arrays"]["rewards"].update(sha256=digest))(folder)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bit": (_flip_a_bit, "rewards.npy was changed"),
    "short": (lambda f: os.truncate(f / "obs.npy", 200), "obs.npy is truncated"),
    "empty": (lambda f: os.truncate(f / "obs.npy", 0), "obs.npy is truncated"),
    "long": (lambda f: os.truncate(f / "obs.npy", (f / "obs.npy").stat().st_size + 1), "obs.npy was changed.*longer"),
    "text": (lambda f: (f / "obs.npy").write_text("1, 2, 3\n" * 99), "obs.npy is truncated or is no array file"),
    "missing": (lambda f: (f / "actions.npy").unlink(), "actions.npy is missing"),
    "dtype": (lambda f: np.save(f / "rewards.npy", np.zeros((9, 2))), r"holds <f8 of .* says <f4"),
    "shape": (lambda f: np.save(f / "rewards.npy", np.zeros((2, 9), "f4")), r"shape \(2, 9\), .* says .*\(9, 2\)"),
    "exchanged": (_exchange_with_hash, "dataset.json was changed.*content hash"),
    "no json": (lambda f: os.truncate(f / "dataset.json", 100), r"dataset\.json' is damaged.*truncated"),
    "no text": (lambda f: (f / "dataset.json").write_bytes(b"\xff\xfe"), r"dataset\.json' is damaged.*malformed"),
    "a list": (lambda f: (f / "dataset.json").write_text("[]"), "expected `object`, got `array`"),
    "no description": (lambda f: (f / "dataset.json").unlink(), "There is no dataset in .*toy"),
    "future": (_edit(lambda d: d.update(format=2)), "has format 2; this version reads format 1"),
    "no spec": (_edit(lambda d: d.pop("spec")), "missing required field `spec`"),
    "other spec": (_edit(lambda d: d["spec"].update(action_dim=3)), r"toy is damaged: .*actions has shape \(9, 2, 2\)"),
    "odd length": (_edit(lambda d: d["spec"].update(episode_length=-3)), "episode_length of task .* must be from 1"),
    "odd name": (_edit(lambda d: d["spec"].update(name=7)), "spec.name: expected `str`"),
    "odd kind": (_edit(lambda d: d["spec"].update(kind="mixed")), "spec.kind: invalid enum"),
    "odd return": (_edit(lambda d: d["metadata"].update(mean_return="abc")), "mean_return: expected `float"),
    "odd options": (_edit(lambda d: d["metadata"].update(options=5)), "options: expected `object`"),
    "odd metrics": (_edit(lambda d: d["metadata"].update(metrics=5)), "metrics: expected `object"),
    "odd metric": (_edit(lambda d: d["metadata"].update(metrics={"age": "old"})), r"metrics\[...\]: expected `float`"),
    "odd arrays": (_edit(lambda d: d.update(arrays=3)), "arrays: expected `object`"),
    "unknown array": (_edit(lambda d: d["arrays"].update(x=d["arrays"]["obs"])), "lacks or invents x"),
    "array too few": (_edit(lambda d: d["arrays"].pop("obs")), "lacks or invents obs"),
    "optional array too few": (_edit(lambda d: d["arrays"].pop("closing")), "lacks or invents closing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_when_read(folder: Path, name: str):
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_pickles_are_not_opened(folder: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple:
            return (tmp_path.joinpath("sprung").touch, ())

    with pytest.raises(UserError, match=r"obs\.npy is truncated or is no array file"):
        np.save(folder / "obs.npy", np.array([Trap()], object), allow_pickle=True)
        load(folder)
    with pytest.raises(UserError, match=r"obs\.npy is truncated or is no array file"):
        (folder / "obs.npy").write_bytes(pickle.dumps(Trap()))
        load(folder)
    assert not (tmp_path / "sprung").exists()


def test_hashes_are_read_only_if_wanted(folder: Path):
    _flip_a_bit(folder)
    load(folder, check=False)
    with pytest.raises(UserError):
        verify(folder)


def test_verification_looks_at_values_too(continuous: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch):
    actions = continuous.rows.actions * np.float32(2)
    monkeypatch.setattr("omarl_jax.data.storage.validate", lambda dataset: None)
    save(dataclasses.replace(continuous, rows=continuous.rows._replace(actions=actions)), folder.with_name("wide"))
    monkeypatch.undo()
    load(folder.with_name("wide"))
    with pytest.raises(UserError, match=r"actions holds -2\.0 in episode 0, step 0, agent 1, entry 1"):
        verify(folder.with_name("wide"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "toy/other"}, "'toy/continuous'.*'toy/other'"),
        ({"n_agents": 4}, "n_agents 2, .* n_agents 4"),
        ({"obs_dim": 4}, "obs_dim 3, .* obs_dim 4"),
    ],
)
def test_a_dataset_of_another_task_is_refused(continuous: Dataset, folder: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        load(folder, dataclasses.replace(continuous.spec, **change))
    load(folder, dataclasses.replace(continuous.spec, episode_length=50))


def test_nothing_is_overwritten(continuous: Dataset, folder: Path):
    changed = dataclasses.replace(continuous, metadata={})
    with pytest.raises(UserError, match="toy exists already"):
        save(changed, folder)
    _assert_same(load(folder), continuous)


def test_what_is_not_valid_is_not_saved(continuous: Dataset, tmp_path: Path):
    nan = continuous.rows._replace(obs=continuous.rows.obs * np.float32(np.nan))
    with pytest.raises(UserError, match="obs holds nan"):
        save(dataclasses.replace(continuous, rows=nan), tmp_path / "toy")
    for metadata in ({"mean_return": float("nan")}, {"made_by": object()}):
        with pytest.raises(UserError, match="metadata cannot be written as JSON"):
            save(dataclasses.replace(continuous, metadata=metadata), tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_no_metadata_are_empty_metadata(continuous: Dataset, tmp_path: Path):
    spec, rows = continuous.spec, continuous.rows
    for number, dataset in enumerate((Dataset(spec, rows), Dataset(spec, rows, None))):  # type: ignore[arg-type]
        save(dataset, tmp_path / str(number))
        assert load(tmp_path / str(number)).metadata == {}
    with pytest.raises(UserError, match="metadata of a dataset are a dict of JSON values, not 'our log'"):
        Dataset(spec, rows, "our log")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"mean_return": "high"}, "metadata: mean_return: expected `float"),
        ({"options": 5, "metrics": {"age": "old"}}, "metadata: options: expected `object"),
        ({"random": 1.0}, "metadata: random and expert must be two different numbers"),
        ({"random": 1.0, "expert": np.float32(1)}, "metadata: random and expert must be two different numbers"),
    ],
)
def test_metadata_that_could_not_be_read_are_not_written(
    continuous: Dataset, metadata: dict, message: str, tmp_path: Path
):
    with pytest.raises(UserError, match=message):
        save(dataclasses.replace(continuous, metadata=metadata), tmp_path / "toy")
    with pytest.raises(ValueError, match="episode_length of task 'toy/continuous' must be from 1"):
        dataclasses.replace(continuous.spec, episode_length=0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(continuous: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []

    def full(handle: int) -> None:
        synced.append(handle)
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="toy: No space left on device"):
        save(continuous, tmp_path / "toy")
    assert len(synced) == 3 and list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_grow_leaves_nothing(continuous: Dataset, tmp_path: Path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # obs take 344 bytes: a write that stops halfway
    try:
        with pytest.raises(UserError, match="toy: File too large"):
            save(continuous, tmp_path / "toy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(continuous: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(continuous, tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_further_files_appear_with_the_dataset_or_not_at_all(continuous: Dataset, tmp_path: Path):
    """So a command that was killed between the two can be started again."""

    def stopped(partial: Path) -> None:
        (partial / "card.md").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(continuous, tmp_path / "toy", stopped)
    assert not list(tmp_path.iterdir())
    save(continuous, tmp_path / "toy", lambda partial: (partial / "card.md").write_text("whole"))
    assert (tmp_path / "toy" / "card.md").read_text() == "whole"
    verify(tmp_path / "toy")


def test_a_place_that_cannot_be_written_is_named(continuous: Dataset, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/toy' cannot be written: (Not a directory|File exists)"):
        save(continuous, tmp_path / "file" / "toy")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(UserError, match="locked/toy: Permission denied"):
            save(continuous, tmp_path / "locked" / "toy")


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(UserError, match=r"There is no dataset in .*nowhere"):
        load(folder / "nowhere")
    monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
    with pytest.raises(UserError, match=r"obs\.npy cannot be read: Permission denied"):
        load(folder)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"dataset\.json' cannot be read: Permission denied"):
        load(folder)
