"""Policies on disk: a policy that is read acts as it did, and other files are refused in one sentence."""

import dataclasses
import errno
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.spec import TaskSpec

from omarl_jax import Dataset, UserError, algorithms, cli, from_episodes, load_policy, train
from omarl_jax.export import save_policy
from omarl_jax.types import Context, Stats, View

SPEC = TaskSpec("toy/continuous", "continuous", n_agents=2, obs_dim=3, action_dim=2, state_dim=6, episode_length=5)
METHOD = algorithms.find("bc")
CONFIG = METHOD.configure(SPEC, {"hidden": (4,), "lr": 0.125})
OBS = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


def policy(seed):
    rng = np.random.default_rng(seed)
    stats = Stats(*(rng.uniform(0.5, 2.0, (2, 3)).astype(np.float32) for _ in range(2)))
    return jax.tree.map(np.asarray, METHOD.make(CONFIG, SPEC).init(jax.random.key(seed), Context(stats)).policy)


def actions(params):
    return np.asarray(METHOD.make(CONFIG, SPEC).act(params, View(OBS), (), jax.random.key(0))[0])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "deep" / "policy.npz"
    save_policy(path, "bc", CONFIG, SPEC, policy(1), {"run": "first", "options": {"n_agents": 2}})
    return path


def rewritten(path, drop=(), **changes):
    """The same file with arrays, or entries of its header, changed."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files if name not in drop}
    if "header" in changes:
        header = json.loads(str(arrays["header"])) | changes.pop("header")
        del header["sha256"]
        arrays["header"] = np.array(json.dumps(header))
    np.savez(path, **(arrays | changes))


def test_a_policy_that_was_read_acts_as_the_one_that_was_written(saved):
    loaded = load_policy(saved)
    np.testing.assert_allclose(loaded.act(OBS), actions(policy(1)), atol=1e-6)  # compiled, and not
    assert np.abs(loaded.act(OBS) - actions(policy(2))).max() > 0.01  # another policy acts otherwise
    assert (loaded.algorithm, loaded.config, loaded.spec, loaded.count) == ("bc", CONFIG, SPEC, None)
    assert loaded.metadata == {"run": "first", "options": {"n_agents": 2}}
    assert [file.name for file in saved.parent.iterdir()] == ["policy.npz"]  # nothing is left beside it


def test_several_policies_in_one_file(tmp_path):
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(policy(seed) for seed in range(3)))
    save_policy(tmp_path / "three.npz", "bc", CONFIG, SPEC, stacked, {})
    loaded = load_policy(tmp_path / "three.npz")
    assert loaded.count == 3
    with pytest.raises(UserError, match="These are 3 policies, not one"):
        loaded.act(OBS)
    for seed in range(3):
        one = jax.tree.map(lambda x, i=seed: x[i], loaded.params)
        np.testing.assert_array_equal(actions(one), actions(policy(seed)))


def test_a_policy_can_be_replaced_and_a_full_disk_leaves_the_old_one(saved, monkeypatch):
    save_policy(saved, "bc", CONFIG, SPEC, policy(2), {})
    np.testing.assert_allclose(load_policy(saved).act(OBS), actions(policy(2)), atol=1e-6)

    def fails_midway(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fails_midway)
    with pytest.raises(UserError, match=r"policy\.npz' cannot be written: No space left on device\.$"):
        save_policy(saved, "bc", CONFIG, SPEC, policy(3), {})
    np.testing.assert_allclose(load_policy(saved).act(OBS), actions(policy(2)), atol=1e-6)
    assert [file.name for file in saved.parent.iterdir()] == ["policy.npz"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"policy\.npz' cannot be written: "):
        save_policy(tmp_path / "file" / "policy.npz", "bc", CONFIG, SPEC, policy(0), {})


class Harmful:
    """What would be run if anything were unpickled."""

    def __reduce__(self):
        return pytest.exit, ("unpickled",)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def a_lone_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


DAMAGE = {
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "all but the last byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "nothing": lambda path: path.write_bytes(b""),
    "another byte": flip_a_byte,
    "text": lambda path: path.write_text("weights"),
    "a lone array": a_lone_array,
    "arrays of something else": lambda path: np.savez(path, weights=np.zeros(3)),
    "a pickle": lambda path: np.savez(path, header=np.array(Harmful(), dtype=object)),
    "a header that is no JSON": lambda path: np.savez(path, header=np.array("{")),
    "a header that is a list": lambda path: np.savez(path, header=np.array("[1]")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_no_policy_is_refused(saved, damage):
    damage(saved)
    with pytest.raises(
        UserError, match=r"^'[^\n]*policy\.npz' (is not a policy of this package|is damaged|cannot be read:)[^\n]*$"
    ):
        load_policy(saved)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"^There is no policy '.*gone\.npz'\.$"):
        load_policy(tmp_path / "gone.npz")
    with pytest.raises(UserError, match=r"^There is no policy in '.*', or the run there has not finished\.$"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("version", "said"),
    [(1, "was written by omarl_jax before 0.2"), (99, "has format 99; this version reads format 2")],
)
def test_a_file_of_another_version_says_so(saved, version, said):
    rewritten(saved, header={"format": version})
    with pytest.raises(UserError, match=rf"^'.*policy\.npz' {said}[^\n]*\.$"):
        load_policy(saved)


def test_a_policy_of_an_unknown_method_names_the_nearest(saved):
    rewritten(saved, header={"algorithm": "matd4"})
    with pytest.raises(UserError, match=r"no algorithm 'matd4'; did you mean 'matd3'\?"):
        load_policy(saved)


def first_array(path: Path) -> str:
    with np.load(path) as archive:
        return next(name for name in archive.files if name != "header")


@pytest.mark.parametrize("change", ["missing", "invented", "other shape", "stacked alone"])
def test_arrays_that_do_not_fit_the_method_are_refused(saved, change):
    name = first_array(saved)
    with np.load(saved) as archive:
        array = archive[name]
    changes = {
        "missing": {"drop": [name]},
        "invented": {"extra": np.zeros(2)},
        "other shape": {name: array[..., :-1]},
        "stacked alone": {name: np.stack([array, array])},
    }
    rewritten(saved, **changes[change])
    with pytest.raises(UserError, match=r"The arrays in .* do not fit a policy of 'bc'"):
        load_policy(saved)


def test_arrays_of_other_widths_are_refused(saved):
    rewritten(saved, header={"config": {"hidden": [5]}})
    with pytest.raises(UserError, match="do not fit a policy of 'bc'"):
        load_policy(saved)


COUNTER = """
from typing import Any, NamedTuple

import jax.numpy as jnp

from omarl_jax.types import Algorithm, Needs, config

open({written!r}, "w").close()
traced = []


@config
class Config:
    step: float = 0.5


class State(NamedTuple):
    policy: Any


def validate(config, spec):
    pass


def counter(config, spec):
    def init(key, context):
        return State(jnp.zeros((spec.n_agents, spec.action_dim)))

    def act(policy, view, carry, key, explore=False):
        traced.append(1)
        return policy + config.step * carry, carry + 1

    return Algorithm(init, None, act, Needs(8), carry=jnp.zeros((), jnp.int32))
"""


@pytest.fixture
def remembering(tmp_path, monkeypatch):
    """A policy of a method in a module that writes a file on import, and that file; the module is not imported."""
    written = tmp_path / "written"
    (tmp_path / "counting").mkdir()
    (tmp_path / "counting" / "__init__.py").write_text(f"open({str(written)!r}, 'w').close()")
    (tmp_path / "counting" / "counter.py").write_text(COUNTER.format(written=str(written)))
    monkeypatch.syspath_prepend(tmp_path)
    save_policy(tmp_path / "policy.npz", "bc", CONFIG, SPEC, {}, {})
    arrays = {"": np.ones((2, 2), np.float32)}
    header = {"algorithm": "counting.counter", "config": {"step": 0.25}}
    rewritten(tmp_path / "policy.npz", header=header)
    with np.load(tmp_path / "policy.npz") as archive:
        header = archive["header"]
    np.savez(tmp_path / "policy.npz", header=header, **{jax.tree_util.keystr(()): arrays[""]})
    yield tmp_path / "policy.npz", written
    for name in [name for name in sys.modules if name.startswith("counting")]:
        del sys.modules[name]


def test_a_file_does_not_run_code(remembering):
    path, written = remembering
    with pytest.raises(UserError, match=r"^A file names the module 'counting\.counter', and importing it would run"):
        load_policy(path)
    assert not written.exists()
    assert load_policy(path, allow_import=True).algorithm == "counting.counter"
    assert written.exists()
    written.unlink()
    assert load_policy(path).config.step == 0.25  # what was imported has been trusted
    assert not written.exists()


def test_a_policy_with_a_memory_is_played_by_steps_and_compiled_once(remembering):
    path, _ = remembering
    loaded = load_policy(path, allow_import=True)
    with pytest.raises(UserError, match=r"remembers: use start\(\) and step\(\)"):
        loaded.act(OBS)
    for _ in range(2):  # episodes
        carry = loaded.start()
        for number in range(4):
            actions, carry = loaded.step(OBS, None, carry)
            np.testing.assert_array_equal(actions, np.full((2, 2), 1 + 0.25 * number, np.float32))
    assert len(sys.modules["counting.counter"].traced) == 1


def test_the_task_of_a_file_is_not_imported_either(tmp_path, monkeypatch, capsys):
    written = tmp_path / "written"
    (tmp_path / "a_task").mkdir()
    (tmp_path / "a_task" / "__init__.py").touch()
    (tmp_path / "a_task" / "task.py").write_text(f"open({str(written)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    spec = dataclasses.replace(SPEC, name="a_task.task/x", state_is_obs=True)
    save_policy(tmp_path / "policy.npz", "bc", CONFIG, spec, policy(0), {})
    steps, n = 4, spec.n_agents
    rows = from_episodes(
        spec,
        [np.zeros((steps, n, spec.obs_dim), np.float32)],
        [np.zeros((steps, n, spec.action_dim), np.float32)],
        [np.zeros((steps, n), np.float32)],
        terminal=[np.zeros((steps, n), bool)],
        truncated=[np.arange(steps) == steps - 1],
        last_obs=np.zeros((1, n, spec.obs_dim), np.float32),
    )
    with pytest.raises(UserError, match=r"A file names the module 'a_task\.task'"):
        train("bc", Dataset(spec, rows, {}), updates=1, evaluations=1)
    monkeypatch.setattr(sys, "argv", ["omarl", "evaluate", str(tmp_path / "policy.npz")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert "A file names the module 'a_task.task'" in capsys.readouterr().err
    assert not written.exists()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--trust"])
    with pytest.raises(SystemExit):
        cli.main()
    assert written.exists()  # it was imported; it has no such task
    assert "There is no task 'a_task.task/x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("obs", "said"),
    [
        (np.zeros((4, 2, 3)), r"obs must have shape \(2, 3\), not \(4, 2, 3\); of a batch"),
        (np.zeros(3), r"not \(3,\); all agents act together"),
        (np.zeros((2, 5)), r"obs must have shape \(2, 3\), not \(2, 5\)\."),
        ("left", r"obs must be numbers of shape \(2, 3\)"),
        ([[1, 2], [3]], r"obs must be numbers of shape \(2, 3\)"),
    ],
)
def test_what_is_not_one_step_of_the_task_is_refused(saved, obs, said):
    loaded = load_policy(saved)
    with pytest.raises(UserError, match=said):
        loaded.act(obs)


def test_acting_takes_lists_and_compiles_once(saved):
    loaded = load_policy(saved)
    first = loaded.act(OBS)
    for obs in (OBS, OBS.tolist(), OBS.astype(np.float64), jnp.asarray(OBS)):
        np.testing.assert_array_equal(loaded.act(obs), first)
    assert loaded._step._cache_size() == 1
    with pytest.raises(UserError, match="carry must be what"):
        loaded.step(OBS, None, np.zeros(3))
