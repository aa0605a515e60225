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
PROCESS = "from omarl_jax import cli, distributed; distributed.SECONDS = 10; cli.main()"


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


def test_two_processes_have_the_bits_of_one_with_as_many_devices(tmp_path):
    grid = written_grid(tmp_path)
    both = start_together([grid, grid], tmp_path / "two")
    codes, outs, errs = zip(*map(ended, both), strict=True)
    assert codes == (0, 0), errs
    assert "table.md" in outs[0]
    assert not outs[1].replace("[Gloo]", "").partition("Rank")[0]
    code, _, err = ended(start(grid, tmp_path / "one", JAX_NUM_CPU_DEVICES="4"))
    assert code == 0, err
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert len({run for run, _, _ in one}) == 4
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name], str(name))
    assert {path.suffix for path in tmp_path.glob("two/leases/*.*")} == {".1"}  # only one has claimed anything
