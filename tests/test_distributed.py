"""One sweep on several processes: the numbers of a single one, one writer, and an end when one dies."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from omarl_jax import UserError
from omarl_jax.cli import sweep as cli_sweep

GRID = """
seeds = [0, 1, 2, 3]
evaluations = 2
episodes = 2
final_episodes = 2
[[block]]
tasks = ["matrix/xor"]
datasets = ["random"]
algorithms = ["bc"]
updates = 6
size = 50
hyperparameters = { hidden = [[8]], batch_size = 16 }
"""
PROCESS = "from omarl_jax import cli, distributed; distributed.SECONDS = 20; cli.main()"


def start(grid, out, options=(), **variables):
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, "sweep", str(grid), "--out", str(out), *options],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_together(grids, out, devices=2):
    """One process for each grid file, each with so many devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(grids))}
    return [
        start(grid, out, ["--distributed"], JAX_PROCESS_ID=str(i), JAX_NUM_CPU_DEVICES=str(devices), **place)
        for i, grid in enumerate(grids)
    ]


def ended(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, " ".join(out.split()), " ".join(err.split())


def numbers(out):
    """All numbers of all finished runs, by run, file and name."""
    found = {}
    for folder in sorted(path.parent for path in out.glob("runs/*/DONE")):
        for file in ("policy.npz", "evaluations.npz"):
            with np.load(folder / file) as arrays:
                found |= {(folder.name, file, name): arrays[name] for name in arrays.files}
    return found


def written_grid(folder, text=GRID) -> pathlib.Path:
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def assert_equal(one, two, runs=4):
    one, two = numbers(one), numbers(two)
    assert len({run for run, _, _ in one}) == runs
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name], str(name))


def test_two_processes_have_the_bits_of_one_with_as_many_devices(tmp_path):
    grid = written_grid(tmp_path)
    both = start_together([grid, grid], tmp_path / "two")
    codes, outs, errs = zip(*map(ended, both), strict=True)
    assert codes == (0, 0), errs
    assert "table.md" in outs[0]
    assert "table.md" not in outs[1]
    code, _, err = ended(start(grid, tmp_path / "one", JAX_NUM_CPU_DEVICES="4"))
    assert code == 0, err
    assert_equal(tmp_path / "one", tmp_path / "two")
    assert {path.suffix for path in tmp_path.glob("two/leases/*.*")} == {".1"}  # only one has claimed anything


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_dies_the_other_ends_with_a_sentence_and_the_next_start_resumes(tmp_path, victim):
    grid = written_grid(
        tmp_path, GRID.replace("updates = 6", "updates = 4000").replace("ions = 2\n", "ions = 100\n", 1)
    )
    both = start_together([grid, grid], tmp_path / "two")
    while not list(tmp_path.glob("two/groups/*/checkpoints/*/digests.json")):
        assert both[0].poll() is None, ended(both[0])
        time.sleep(0.01)
    both[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = ended(both[1 - victim])
    assert time.monotonic() - killed < 20 + 10
    assert code != 0
    assert err.endswith("start all processes again, and they continue from the last checkpoint.")
    assert "Traceback" not in err
    code, _, err = ended(both[victim])
    assert code == -signal.SIGKILL
    assert "This process of the sweep was ended" in err
    assert not list(tmp_path.glob("two/runs/*/DONE"))
    for code, _, err in map(ended, start_together([grid, grid], tmp_path / "two")):
        assert code == 0, err
    assert ended(start(grid, tmp_path / "one", JAX_NUM_CPU_DEVICES="4"))[0] == 0
    assert_equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_parts_and_more_runs_than_slots_have_these_bits_too(tmp_path):
    """Six runs take turns on four devices; a policy is trained before them, kept on disk, and read by all."""
    text = GRID.replace("[0, 1, 2, 3]", "[0, 1, 2, 3, 4, 5]").replace('"bc"', '"omcda"')
    grid = written_grid(tmp_path, text.replace("batch_size = 16", "batch_size = 16, behaviour_updates = 40"))
    for code, _, err in map(ended, start_together([grid, grid], tmp_path / "two")):
        assert code == 0, err
    code, _, err = ended(start(grid, tmp_path / "one", JAX_NUM_CPU_DEVICES="4"))
    assert code == 0, err
    assert_equal(tmp_path / "one", tmp_path / "two", runs=6)
    assert len(list(tmp_path.glob("two/parts/*.npz"))) == 6


def test_processes_with_other_grids_end_with_a_sentence(tmp_path):
    (tmp_path / "other").mkdir()
    grids = written_grid(tmp_path), written_grid(tmp_path / "other", GRID.replace("updates = 6", "updates = 7"))
    for code, _, err in map(ended, start_together(grids, tmp_path / "out", devices=1)):
        assert code == 1
        assert "error: Process 1 has runs (matrix-xor_random_bc_" in err
        assert err.endswith("start all alike.")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "--distributed finds no other processes (coordinator_address should be defined). Under SLURM"),
        ({"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID must be an integer from 0, not 'one'."),
    ],
)
def test_processes_that_cannot_find_each_other_end_with_a_sentence(tmp_path, variables, message):
    code, _, err = ended(start(written_grid(tmp_path), tmp_path / "out", ["--distributed"], **variables))
    assert code == 1
    assert err.startswith(f"error: {message}")
    assert "Traceback" not in err


def test_processes_that_ray_or_slurm_jobs_would_replace_are_one_sentence(tmp_path):
    for options in ({"ray": "auto"}, {"submitit": ()}):
        with pytest.raises(UserError, match="Give --distributed, --ray or --submitit, not two of them"):
            cli_sweep.sweep(tmp_path / "grid.toml", distributed=True, **options)
