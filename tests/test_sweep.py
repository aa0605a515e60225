"""Grids, run folders, and what a kill must not change."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import omarl_jax.sweep
from omarl_jax import UserError, load_dataset, make_env
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.storage import save
from omarl_jax.datasets import catalogue
from omarl_jax.grid import make_grid, read_grid
from omarl_jax.report.load import load_runs
from omarl_jax.rollout import collect, uniform_act
from omarl_jax.runs import environment_record
from omarl_jax.sweep import open_datasets, run_groups
from omarl_jax.sweep import sweep as run_sweep

GRID = """
seeds = [0, 1]
evaluations = 5
episodes = 4
final_episodes = 4
[[block]]
tasks = ["particle/spread"]
datasets = ["random"]
algorithms = ["bc"]
updates = 2000
size = 1000
hyperparameters = { hidden = [[8]], batch_size = 64, lr = [0.01, 0.001] }
"""

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "experiments"
UAV = {"seeds": [0], "block": [{"tasks": ["uav/iot"], "datasets": ["middle"], "algorithms": ["ciqr"]}]}


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


def sweep(grid, out):
    return [sys.executable, "-m", "omarl_jax", "sweep", str(grid), "--out", str(out)]


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_experiments_of_this_repository_are_grids(path):
    """Of methods and hyperparameters that there are."""
    assert read_grid(path).runs


def test_a_grid_is_the_product_of_its_lists(grid):
    runs = read_grid(grid).runs
    assert [(run.seed, run.data_seed, run.config.lr) for run in runs] == [
        (0, 0, 0.01),
        (1, 1, 0.01),
        (0, 0, 0.001),
        (1, 1, 0.001),
    ]
    assert all(run.config.hidden == (8,) and run.updates == 2000 for run in runs)
    assert len({run.name for run in runs}) == 4
    assert len({run.config_hash for run in runs}) == 2  # the seed does not count, the learning rate does
    assert [len(group) for group in run_groups(runs)] == [4]  # floats share a program


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('algorithms = ["bc"]', 'algorithms = ["omr"]', "'omar'"),
        ('"particle/spread"', '"particle/spred"', "'particle/spread'"),
        ('["random"]', '["randm"]', "'random'"),
        ("lr =", "lrr =", "'lr'"),
        ("size = 1000", "preset = 1", "preset: expected `bool`"),
        ('["bc"]', '["ccqr-cvr"]', "'ccqr-cvar'"),
        ("evaluations = 5", "evaluation = 5", "'evaluations'"),
        ("seeds = [0, 1]", "seeds = 3", "seeds: expected `array"),
        ("updates = 2000", "updates = 0", "updates must be a positive integer"),
        ("lr = [0.01, 0.001]", "lr = -1.0", "lr must be positive"),
        ("[[block]]", "[[block]", "is not a grid file"),
        ('algorithms = ["bc"]', 'algorithms = ["ccqr"]', "needs discrete actions"),
    ],
)
def test_a_mistake_in_a_grid_is_named(grid, old, new, message):
    grid.write_text(GRID.replace(old, new))
    with pytest.raises(UserError) as error:
        read_grid(grid)
    assert message in str(error.value)
    assert "\n" not in str(error.value) or "grid file" in str(error.value)


def test_a_killed_sweep_ends_with_the_same_numbers(grid, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(sweep(grid, whole), check=True, capture_output=True)
    process = subprocess.Popen(sweep(grid, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not any(path.name.isdigit() for path in killed.glob("groups/*/checkpoints/*")):
        assert time.time() < deadline
        assert process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(killed.glob("runs/*/DONE"))
    subprocess.run(sweep(grid, killed), check=True, capture_output=True)

    folders = sorted(path.name for path in (whole / "runs").iterdir())
    assert folders == sorted(path.name for path in (killed / "runs").iterdir())
    assert len(folders) == 4
    for name in folders:
        one, two = whole / "runs" / name, killed / "runs" / name
        for file in ("policy.npz", "evaluations.npz"):
            with np.load(one / file) as a, np.load(two / file) as b:
                assert a.files == b.files
                for key in a.files:
                    np.testing.assert_array_equal(a[key], b[key])
        assert lines(one) == lines(two)
    assert len(load_runs(killed / "runs")[0]) == 4


def test_a_run_on_other_data_has_another_name(grid, tmp_path, monkeypatch):
    def names():
        return {run.name for run in read_grid(grid).runs}

    save(load_dataset("particle/spread", "random", size=50), tmp_path / "data")
    grid.write_text(GRID.replace('"random"', f'"{tmp_path / "data"}"').replace("size = 1000\n", ""))
    before = names()
    assert before == names()
    shutil.rmtree(tmp_path / "data")
    save(load_dataset("particle/spread", "random", seed=1, size=50), tmp_path / "data")
    assert not before & names()

    grid.write_text(GRID.replace('"random"', '"random", "expert"'))
    before = names()
    np.savez(tmp_path / "other.npz", header="other snapshots", weights=np.ones(3))
    monkeypatch.setattr(catalogue, "_snapshot_file", lambda task, quality: tmp_path / "other.npz")
    assert {name.split("_")[1] for name in before - names()} == {"expert"}


def test_a_folder_is_taken_as_it_is(grid, tmp_path):
    data = tmp_path / "data"
    save(load_dataset("particle/spread", "random", size=50, time_limit_is_terminal=True), data)
    grid.write_text(GRID.replace('"random"', f'"{data}"'))
    with pytest.raises(UserError, match="size is for recipes"):
        read_grid(grid)
    grid.write_text(grid.read_text().replace("size = 1000\n", ""))
    assert "time_limit_is_terminal" in one_reason(grid, tmp_path)
    grid.write_text(grid.read_text() + "options = { time_limit_is_terminal = true }\n")
    runs = read_grid(grid).runs
    env = make_env("particle/spread", time_limit_is_terminal=True)
    (dataset,) = open_datasets(env, runs[0], [0], tmp_path / "cache")
    assert dataset.metadata["comparable"]
    amended = json.loads((data / "dataset.json").read_text())
    del amended["sha256"]
    amended["metadata"] |= {"random": 0.0, "expert": 1.0, "comparable": False}
    (data / "dataset.json").write_text(json.dumps(amended))
    (dataset,) = open_datasets(env, runs[0], [0], tmp_path / "cache")
    assert not dataset.metadata["comparable"]
    assert dataset.metadata["expert"] == 516.8  # that of the task, on which the team is evaluated


def test_a_group_is_resumed_as_it_started_or_not_at_all(grid, tmp_path, monkeypatch):
    grid.write_text(GRID.replace("updates = 2000", "updates = 4").replace("evaluations = 5", "evaluations = 2"))
    assert not run_sweep(read_grid(grid), tmp_path / "out")
    for run in (tmp_path / "out" / "runs").glob("*/DONE"):
        run.unlink()
    grid.write_text(grid.read_text().replace("episodes = 4", "episodes = 5", 1))
    assert "started with 2 evaluations and 4 episodes, not with 2 evaluations and 5" in one_reason(grid, tmp_path)
    grid.write_text(grid.read_text().replace("episodes = 5", "episodes = 4", 1))
    (file,) = (tmp_path / "out" / "groups").glob("*/group.json")
    start = json.loads(file.read_text())
    del start["sha256"]
    file.write_text(json.dumps(start | {"data": [start["data"][0], "other"]}))
    assert "started on other data" in one_reason(grid, tmp_path)

    now = environment_record()
    for asked, words in ((True, "without --deterministic"), (False, "with --deterministic")):
        file.write_text(json.dumps(start | {"deterministic": not asked}))
        with monkeypatch.context() as patched:
            patched.setattr(
                omarl_jax.sweep,
                "environment_record",
                lambda asked=asked: now | {"backend": "gpu", "deterministic": asked},
            )
            assert f"started {words}" in one_reason(grid, tmp_path)

    file.write_text(json.dumps(start | {"code": "of yesterday"}))
    assert not run_sweep(read_grid(grid), tmp_path / "out")
    records = [json.loads(file.read_text()) for file in (tmp_path / "out" / "runs").glob("*/run.json")]
    assert [record["started_with"] for record in records] == [{"code": "of yesterday"}] * 4

    for run in (tmp_path / "out" / "runs").glob("*/DONE"):
        run.unlink()
    shutil.rmtree(file.parent / "checkpoints")
    file.write_text(json.dumps(start | {"placement": {"slots": 100, "devices": 100}}))
    assert not run_sweep(read_grid(grid), tmp_path / "out")  # without a checkpoint nothing is resumed


def test_what_was_started_is_resumed_in_its_original_group(grid, tmp_path, monkeypatch):
    """One run was finished for another grid; the others were killed after one of them was done."""
    grid.write_text(GRID.replace("updates = 2000", "updates = 4").replace("evaluations = 5", "evaluations = 2"))
    whole = read_grid(grid)
    first, second, third, _ = whole.runs
    out = tmp_path / "out"
    for runs in ([first], whole.runs[1:]):
        assert not run_sweep(dataclasses.replace(whole, runs=runs), out)
    (out / "runs" / third.name / "DONE").unlink()
    trained, train_group = [], omarl_jax.sweep.train_group
    monkeypatch.setattr(omarl_jax.sweep, "train_group", lambda *given: (trained.append(given[0]), train_group(*given)))
    finished = {run.name: written(out, run) for run in (first, second)}
    assert not run_sweep(whole, out)
    assert trained == [whole.runs[1:]]
    assert (out / "runs" / third.name / "DONE").exists()
    assert finished == {run.name: written(out, run) for run in (first, second)}  # it was trained again, but not written
    (out / "runs" / second.name / "DONE").unlink()
    assert not run_sweep(dataclasses.replace(whole, runs=[second]), out)
    assert trained[1:] == [[second]]  # the others are not asked for


def test_what_a_method_raises_is_kept_and_the_next_group_goes_on(grid, tmp_path, monkeypatch):
    grid.write_text(GRID.replace("updates = 2000", "updates = 4").replace('["bc"]', '["bc", "cql"]'))
    runs = read_grid(grid).runs
    monkeypatch.setattr(omarl_jax.sweep, "train_group", lambda group, *others: {}[group[0].algorithm])
    reports = []
    failed = run_sweep(
        read_grid(grid), tmp_path / "out", lambda group, progress: reports.append((group, progress.updates))
    )
    assert failed.keys() == {run.name for run in runs}
    errors = sorted((tmp_path / "out").glob("groups/*/error.txt"))
    assert len(errors) == 2
    for error in errors:
        assert "Traceback" in error.read_text()
        assert any(
            f"KeyError: 'bc' (see '{error}')" == why or f"KeyError: 'cql' (see '{error}')" == why
            for why in failed.values()
        )
    for run in runs:
        (tmp_path / "out" / "runs" / run.name).mkdir(parents=True)
        (tmp_path / "out" / "runs" / run.name / "DONE").touch()
    assert not run_sweep(
        read_grid(grid), tmp_path / "out", lambda group, progress: reports.append((group, progress.updates))
    )
    assert reports == [(0, 4), (1, 4)]  # finished groups are reported as such


def test_the_folder_of_another_version_is_refused_before_anything_is_trained(grid, tmp_path):
    old = tmp_path / "out" / "runs" / "of-yesterday"
    old.mkdir(parents=True)
    (old / "config.json").write_text('{"algorithm": "bc", "rounds": 4}')
    with pytest.raises(UserError, match=r"of-yesterday/config.json' was written by omarl_jax before 0\.2"):
        run_sweep(read_grid(grid), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["runs"]


def test_the_presets_of_data_on_disk_are_those_of_their_recipe(grid, tmp_path):
    """As for `train`, which knows a dataset and no folder."""
    data = load_dataset("particle/spread", "expert", size=50)
    save(data, tmp_path / "expert")
    save(dataclasses.replace(data, metadata=data.metadata | {"recipe": "our log"}), tmp_path / "own")
    folders = [str(tmp_path / name) for name in ("expert", "own")]
    block = {"tasks": ["particle/spread"], "datasets": folders, "algorithms": ["cql"]}
    runs = make_grid({"block": [block]}).runs
    assert [(run.config.cql_alpha, "env_config_map" in run.preset) for run in runs] == [(5.0, True), (1.0, False)]
    assert [run.config.cql_alpha for run in make_grid({"block": [block | {"preset": False}]}).runs] == [1.0, 1.0]


def test_the_mean_of_data_on_disk_is_what_policies_are_compared_with(tmp_path):
    env = make_env("uav/iot")
    [(rows, totals)] = collect(env, uniform_act(env.task_spec), (), None, [jax.random.key(0)], episodes=2)
    run = dataclasses.replace(make_grid(UAV).runs[0], dataset=str(tmp_path / "data"))
    for metadata, mean in (({}, None), ({"mean_return": float(totals["return"].mean())}, totals["return"].mean())):
        save(Dataset(env.task_spec, rows, metadata), tmp_path / "data")
        (dataset,) = open_datasets(env, run, [0], tmp_path / "cache")
        assert dataset.metadata["mean_return"] == mean  # not the sum of rewards, which counts otherwise
        shutil.rmtree(tmp_path / "data")


def test_parts_of_logs_are_kept(tmp_path, monkeypatch):
    env, learned = make_env("uav/iot"), []

    def learn(task, part, seeds, size, **options):
        learned.append((part, list(seeds), options))
        keys = [jax.random.key(len(learned) * 10 + seed) for seed in seeds]  # others each time
        played = collect(env, uniform_act(env.task_spec), (), None, keys, episodes=1)
        return [
            Dataset(env.task_spec, rows, {"mean_return": -1.5, "seed": seed})
            for seed, (rows, _) in zip(seeds, played, strict=True)
        ]

    monkeypatch.setattr(omarl_jax.sweep, "load_datasets", learn)
    run = make_grid(UAV).runs[0]
    (first,) = open_datasets(env, run, [1], tmp_path)
    zeroth, same = open_datasets(env, run, [0, 1], tmp_path)
    assert learned == [("middle", [1], {}), ("middle", [0], {})]
    np.testing.assert_array_equal(first.rows.actions, same.rows.actions)
    assert (zeroth.metadata, same.metadata) == ({"mean_return": -1.5, "seed": 0}, {"mean_return": -1.5, "seed": 1})
    other = dataclasses.replace(run, options=(("risk_penalty", 300.0),))
    open_datasets(env, other, [1], tmp_path)
    assert learned[2:] == [("middle", [1], {"risk_penalty": 300.0})]


def written(out, run):
    return {path.name: path.read_bytes() for path in (out / "runs" / run.name).iterdir()}


def one_reason(grid, tmp_path):
    """Why all runs of a grid failed."""
    (reason,) = set(run_sweep(read_grid(grid), tmp_path / "out").values())
    return reason


def lines(folder: pathlib.Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "updates_per_second"} for row in rows]


def test_settings_of_finished_runs_must_be_the_same(grid, tmp_path):
    grid.write_text(GRID.replace("updates = 2000", "updates = 4").replace("evaluations = 5", "evaluations = 2"))
    assert not run_sweep(read_grid(grid), tmp_path / "out")
    usual = read_grid(grid)
    for setting in ("evaluations", "episodes", "final_episodes"):
        other = dataclasses.replace(usual, **{setting: 1})
        with pytest.raises(
            UserError, match=r"is finished, with 2 evaluations of 4 episodes and \d+ final episodes, not"
        ):
            run_sweep(other, tmp_path / "out")
    assert not run_sweep(usual, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "as_written"),
    [
        ({"lr": np.float32(0.5)}, {"lr": 0.5}),
        ({"lr": np.array(0.5)}, {"lr": 0.5}),
        ({"batch_size": np.int64(16)}, {"batch_size": 16}),
        ({"batch_size": 16.0}, {"batch_size": 16}),
        ({"lr": np.array([0.5, 0.25])}, {"lr": [0.5, 0.25]}),
        ({"lr": jnp.array([0.5, 0.25])}, {"lr": [0.5, 0.25]}),
        ({"hidden": [np.array([8, 4])]}, {"hidden": [[8, 4]]}),
    ],
)
def test_numbers_are_taken_as_people_have_them(given, as_written):
    one, other = (
        make_grid(
            {
                "seeds": seeds,
                "block": [
                    {
                        "tasks": ["matrix/xor"],
                        "datasets": ["random"],
                        "algorithms": ["bc"],
                        "updates": updates,
                        "size": updates,
                        "hyperparameters": hyperparameters,
                    }
                ],
            }
        )
        for seeds, updates, hyperparameters in (([np.int64(1)], 4.0, given), ([1], 4, as_written))
    )
    assert [run.name for run in one.runs] == [run.name for run in other.runs]
