"""Time and memory against the number of runs, and of workers on one folder.

    python experiments/benchmarks/growth.py

For each number of runs a process of its own trains TD3+BC with small networks on random data of `particle/spread`, and
tells updates a second of all runs together, its largest resident memory, and the memory that the compiler has planned
for the training program. Then a sweep of several groups is made by one worker and by two, on one folder; seconds count
from the first claim to the end of the last worker, since importing and the report are not shared.
"""

import argparse
import csv
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

OUT = pathlib.Path(__file__).parents[1] / "results" / "growth"
RUNS, WORKERS = (1, 3, 10, 30, 100), (1, 2)
SECONDS = 2.0  # of each measurement
CHUNK = 200  # updates of a run in one call
GRID = """
seeds = [0, 1]
evaluations = 2
episodes = 4
final_episodes = 4
[[block]]
tasks = ["particle/spread"]
datasets = ["random"]
algorithms = ["td3_bc"]
updates = 3000
size = 5000
hyperparameters = { hidden = [[30, 30], [31, 31], [32, 32], [33, 33]], batch_size = 64 }
"""


def measure_runs(runs: int) -> dict[str, Any]:
    """Trains so many runs in this process; returns a row of figures, with memory in MB."""
    import measuring

    from omarl_jax import algorithms, make_env
    from omarl_jax.runs import environment_record
    from omarl_jax.training import Trainer

    method = algorithms.find("td3_bc")
    dataset = measuring.synthetic_dataset(make_env("particle/spread").task_spec, size=10_000)
    config = method.configure(dataset.spec, {"hidden": (32, 32), "batch_size": 64})
    before = _peak()
    began = time.perf_counter()
    trainer = Trainer(method, [config] * runs, range(runs), [dataset], [0] * runs, None)
    planned = trainer.compile(CHUNK)
    trainer.advance(CHUNK)
    compile_seconds = time.perf_counter() - began
    rate = runs * CHUNK * measuring.rate(lambda: trainer.advance(CHUNK), SECONDS)
    peak = _peak()
    row = {"runs": runs, "side_by_side": trainer.placement.slots // trainer.placement.devices}
    row |= {"updates_per_second": round(rate, 1), "first_chunk_seconds": round(compile_seconds, 2)}
    row |= {
        "peak_mb": round(peak, 1),
        "peak_before_mb": round(before, 1),
        "planned_mb": round((planned or 0) / 2**20, 2),
    }
    return row | {"load": os.getloadavg()[0], "record": environment_record()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts it in KiB


def measure_workers(workers: int, folder: pathlib.Path) -> dict[str, Any]:
    """Makes the sweep with so many processes on one folder; returns a row of figures."""
    grid, out = folder / "grid.toml", folder / f"workers{workers}"
    grid.write_text(GRID)
    command = [sys.executable, "-m", "omarl_jax", "sweep", str(grid), "--out", str(out)]
    began = time.perf_counter()
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(workers)]
    while not list((out / "leases").glob("*.1")):
        time.sleep(0.01)
    claimed = time.perf_counter()
    while len(list(out.glob("runs/*/DONE"))) < 8 and any(process.poll() is None for process in started):
        time.sleep(0.01)
    done = time.perf_counter()
    if any(process.wait() for process in started):
        raise RuntimeError("A worker failed.")
    row = {"workers": workers, "seconds": round(done - claimed, 2), "seconds_in_all": round(done - began, 2)}
    return row | {"load": os.getloadavg()[0]}


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws the time of an update, with the line of equal rates, and the memory of the process against runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    runs = [row["runs"] for row in rows]
    left.plot(runs, [runs[i] / row["updates_per_second"] * 1000 for i, row in enumerate(rows)], marker="o")
    left.plot(runs, [n / rows[0]["updates_per_second"] * 1000 for n in runs], "--", color="0.6", label="linear")
    left.set(xscale="log", yscale="log", ylabel="ms for an update of each run")
    left.legend(frameon=False)
    right.plot(runs, [row["peak_mb"] for row in rows], marker="o")
    right.set(xscale="log", ylim=(0, 1.1 * max(row["peak_mb"] for row in rows)), ylabel="memory of the process, MB")
    for axes in (left, right):
        axes.set(xlabel="runs")
        axes.set_xticks(runs, map(str, runs), minor=False)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, and writes `growth.json`, `growth.csv` and `growth.png`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    parser.add_argument("--runs", type=int, help="measure only this number of runs, here, and print it")
    given = parser.parse_args()
    if given.runs is not None:
        print(json.dumps(measure_runs(given.runs)))
        return
    rows, record = [], {}
    for runs in RUNS:
        told = subprocess.run(
            [sys.executable, __file__, "--runs", str(runs)], stdout=subprocess.PIPE, text=True, check=True
        )
        rows.append(json.loads(told.stdout.splitlines()[-1]))
        record = rows[-1].pop("record")
        print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        workers = [measure_workers(count, pathlib.Path(folder)) for count in WORKERS]
    print(workers)
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record | {"cores": os.cpu_count(), "runs": rows, "workers": workers}, indent=2)
    (given.out / "growth.json").write_text(text + "\n")
    with (given.out / "growth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, given.out / "growth.png")


if __name__ == "__main__":
    main()
