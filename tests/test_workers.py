"""Several workers on one folder: each run group is trained once, and the numbers are those of one worker."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

import omarl_jax.sweep
from omarl_jax import leases
from omarl_jax.grid import make_grid, read_grid
from omarl_jax.leases import Leases, Outdated
from omarl_jax.sweep import run_groups
from omarl_jax.sweep import sweep as run_sweep

GRID = """
seeds = [0, 1]
evaluations = 10
episodes = 2
final_episodes = 2
[[block]]
tasks = ["matrix/xor"]
datasets = ["random"]
algorithms = ["bc"]
updates = 2000
size = 200
hyperparameters = { hidden = [[8], [9]], batch_size = 16 }
"""
GROUPS = {  # two of them, that train for no time
    "seeds": [0],
    "evaluations": 2,
    "episodes": 2,
    "final_episodes": 2,
    "block": [
        {
            "tasks": ["matrix/xor"],
            "datasets": ["random"],
            "algorithms": ["bc"],
            "updates": 4,
            "size": 50,
            "hyperparameters": {"hidden": [[8], [9]], "batch_size": 16},
        }
    ],
}
WORKER = "from omarl_jax import cli, leases; leases.SECONDS = 3.0; cli.main()"


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "grid.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def whole(grid, tmp_path_factory):
    """What one worker makes of the grid."""
    out = tmp_path_factory.mktemp("whole")
    assert not run_sweep(read_grid(grid), out)
    return out


def start(grid, out):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, "sweep", str(grid), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(worker):
    out, err = worker.communicate(timeout=300)
    return worker.returncode, " ".join(out.split()), " ".join(err.split())


def checkpoints(out):
    return [path for path in out.glob("groups/*/checkpoints/*") if path.name.isdigit()]


def assert_equal(one, other):
    """Two folders hold the same runs, with the same numbers."""
    folders = sorted(path.name for path in (one / "runs").iterdir())
    assert folders == sorted(path.name for path in (other / "runs").iterdir())
    for name in folders:
        for file in ("policy.npz", "evaluations.npz"):
            with np.load(one / "runs" / name / file) as a, np.load(other / "runs" / name / file) as b:
                assert a.files == b.files
                for key in a.files:
                    np.testing.assert_array_equal(a[key], b[key])
        assert lines(one / "runs" / name) == lines(other / "runs" / name)


def lines(folder: pathlib.Path) -> list[str]:
    return [line.partition('"updates_per_second"')[0] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def written(out):
    """All that stands in a folder, but for the signs of life."""
    files = (path for path in out.rglob("*") if path.is_file() and "leases" not in path.parts)
    return {path: path.read_bytes() for path in files}


def test_two_workers_share_a_folder_and_end_with_the_numbers_of_one(grid, whole, tmp_path):
    workers = [start(grid, tmp_path / "out") for _ in range(2)]
    for worker in workers:
        code, out, err = ended(worker)
        assert code == 0, err
        assert "table.md" in out
    assert_equal(whole, tmp_path / "out")
    assert len(list(tmp_path.glob("out/groups/*/group.json"))) == 2
    assert not list((tmp_path / "out").rglob(".*.partial"))


def test_a_worker_that_was_stopped_for_too_long_ends_with_a_sentence_and_writes_nothing(grid, whole, tmp_path):
    out = tmp_path / "out"
    outdated = start(grid, out)
    while not checkpoints(out):
        assert outdated.poll() is None
        time.sleep(0.01)
    os.kill(outdated.pid, signal.SIGSTOP)
    assert not list(out.glob("runs/*/DONE")), "the first group ended before its worker could be stopped"
    before = written(out)
    time.sleep(0.5)
    assert written(out) == before
    code, _, err = ended(start(grid, out))
    assert code == 0, err
    assert_equal(whole, out)

    after = written(out)
    os.kill(outdated.pid, signal.SIGCONT)
    code, _, err = ended(outdated)
    assert code == 1
    assert "Another worker has taken over" in err
    assert "gave no sign of life for 3 seconds: it ends here" in err
    assert "Traceback" not in err
    assert written(out) == after


def test_what_another_worker_has_is_done_last_or_by_it(tmp_path, monkeypatch):
    grid = make_grid(GROUPS)
    (first, second) = run_groups(grid.runs)
    trained, reports, train_group = [], [], omarl_jax.sweep.train_group
    monkeypatch.setattr(omarl_jax.sweep, "train_group", lambda *given: (trained.append(given[0]), train_group(*given)))
    with contextlib.ExitStack() as other:
        claim = other.enter_context(Leases(tmp_path / "leases", omarl_jax.sweep._versions()).claim([first[0].name]))

        def pause():
            assert trained == [second]
            assert reports[0] == (0, omarl_jax.sweep.Progress(0, part="another worker"))
            claim.check()
            other.close()

        monkeypatch.setattr(omarl_jax.sweep, "pause", pause)
        assert not run_sweep(grid, tmp_path, lambda *given: reports.append(given))
    assert trained == [second, first]
    with Leases(tmp_path / "leases", omarl_jax.sweep._versions()).claim([first[0].name]):
        assert not run_sweep(grid, tmp_path)  # nothing is left to wait for


def test_a_group_continues_as_the_worker_before_has_started_it(tmp_path, monkeypatch):
    """That one had a smaller grid; it came and went between this one's look at the folder and its claim."""
    block = GROUPS["block"][0] | {"hyperparameters": {"hidden": [[8]], "batch_size": 16}}
    grid, smaller = (make_grid(GROUPS | {"seeds": seeds, "block": [block]}) for seeds in ([0, 1], [0]))
    usual, came = Leases.claim, []

    def claim(self, names):
        if not came:
            came.append(True)
            assert not run_sweep(smaller, tmp_path)
            for done in tmp_path.glob("runs/*/DONE"):
                done.unlink()
        return usual(self, names)

    monkeypatch.setattr(Leases, "claim", claim)
    trained, train_group = [], omarl_jax.sweep.train_group
    monkeypatch.setattr(omarl_jax.sweep, "train_group", lambda *given: (trained.append(given[0]), train_group(*given)))
    assert not run_sweep(grid, tmp_path)
    assert trained == [[grid.runs[0]], [grid.runs[0]], [grid.runs[1]]]


@pytest.mark.parametrize(
    "where",
    ["open_datasets", "train_parts", "Trainer", "Trainer.advance", "Trainer.evaluate", "_Output.finish"],
)
def test_nothing_is_written_after_the_claim_was_lost(tmp_path, monkeypatch, where):
    """Wherever time passes: another worker takes the runs over in the middle."""
    grid = make_grid(GROUPS)
    monkeypatch.setattr(leases, "SECONDS", 0.05)
    monkeypatch.setattr(leases, "_machine", lambda: "")
    monkeypatch.setattr(leases, "threading", types.SimpleNamespace(Thread=Mute, Event=threading.Event))
    before = []

    def lose(*given, **named):
        if not before:
            with Leases(tmp_path / "leases", omarl_jax.sweep._versions()).wait([grid.runs[0].name]):
                before.append(written(tmp_path))
        return usual(*given, **named)

    *place, name = where.split(".")
    place = getattr(omarl_jax.sweep, place[0]) if place else omarl_jax.sweep
    usual = getattr(place, name)
    monkeypatch.setattr(place, name, lose)
    with pytest.raises(Outdated, match="Another worker has taken over"):
        run_sweep(grid, tmp_path)
    assert [written(tmp_path)] == before


class Mute(threading.Thread):
    """Gives no sign of life."""

    def start(self):
        pass

    def join(self):
        pass
