"""Several workers on one folder: each run group is trained once, and the numbers are those of one worker."""

import contextlib
import json
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
from omarl_jax import UserError, leases, on_ray, on_slurm
from omarl_jax.checkpoint import Checkpoints
from omarl_jax.cli import sweep as cli_sweep
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


def whole_checkpoints(out):
    return list(out.glob("groups/*/checkpoints/*/digests.json"))


def assert_equal(one, other, runs=4):
    """A folder holds so many runs of another one, with the same numbers."""
    folders = sorted(path.name for path in (other / "runs").iterdir())
    assert len(folders) == runs
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
    while not whole_checkpoints(out):
        assert outdated.poll() is None
        time.sleep(0.01)
    os.kill(outdated.pid, signal.SIGSTOP)
    os.waitpid(outdated.pid, os.WUNTRACED)  # until all its threads have
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


@pytest.mark.slow
def test_jobs_of_submitit_share_a_folder(grid, whole, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "omarl_jax", "sweep", str(grid), "--out", str(out)]
    told = subprocess.run(
        [*command, "--submitit", "cluster=local", "cpus_per_task=1", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    assert "2 workers are queued as" in told.stdout
    logs = []
    while len(logs) < 2:  # which they write at their ends
        time.sleep(0.1)
        logs = list((out / "slurm").glob("*_result.pkl"))
    assert_equal(whole, out)
    assert (out / "report" / "table.md").exists()
    assert len(list((out / "slurm").glob("*_log.out"))) == 2


def test_what_slurm_is_asked_for(tmp_path, monkeypatch):
    """A `sbatch` that takes all that is submitted."""
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 17\n")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    for name in ("sbatch", "srun"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("JAX_PLATFORMS")
    settings = {"partition": "long", "gpus_per_node": 1, "mem_gb": 8}
    assert on_slurm.submit(["sweep", "grid.toml"], tmp_path / "logs", 3, settings) == ["17_0", "17_1", "17_2"]
    script, *_ = (tmp_path / "logs").glob("*.sh")
    for line in ("--array=0-2%3", "--partition=long", "--gpus-per-node=1", "--mem=8GB", "--time=1440"):
        assert f"#SBATCH {line}" in script.read_text()
    assert os.environ["JAX_PLATFORMS"] == "cuda"  # which jobs inherit
    worker = on_slurm.Worker(["--version"])
    assert worker() == 0
    assert worker.checkpoint().function is worker  # is queued again when its time is over


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster": "local", "partiton": "x"}, "submitit: Unknown argument 'partiton' for executor 'slurm'"),
        ({"cluster": "local", "mem_gb": "much"}, 'submitit: Parameter "mem_gb" expected type'),
        ({"partition": "x"}, r'submitit: Could not detect "srun", are you indeed on a slurm cluster\?'),
    ],
)
def test_a_mistake_in_what_jobs_ask_for_is_one_sentence(settings, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=message):
        on_slurm.submit(["sweep", "grid.toml"], tmp_path, 1, settings)


def on_ray_cluster(grid, out, address):
    return subprocess.Popen(
        [sys.executable, "-m", "omarl_jax", "sweep", str(grid), "--out", str(out), "--ray", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process_of_a_group(out, driver, beyond=0):
    """The process that trains, once it has a checkpoint after more updates."""
    while True:
        assert driver.poll() is None, driver.communicate()[1]
        for folder in out.glob("groups/*"):
            if Checkpoints.newest(folder / "checkpoints") > beyond:
                runs = json.loads((folder / "group.json").read_text())["runs"]
                claims = sorted((out / "leases").glob(f"{runs[0]}.*"), key=lambda path: int(path.suffix[1:]))
                sign = out / "leases" / "workers" / claims[-1].read_text()
                if sign.exists():
                    return int(sign.read_text().splitlines()[2])
        time.sleep(0.01)


def test_on_ray_a_killed_process_is_replaced_and_the_numbers_are_those_of_one_worker(grid, whole, tmp_path):
    one_group = tmp_path / "grid.toml"
    one_group.write_text(GRID.replace("[[8], [9]]", "[[8]]"))
    driver = on_ray_cluster(one_group, tmp_path / "out", "local")
    os.kill(process_of_a_group(tmp_path / "out", driver), signal.SIGKILL)
    assert not list(tmp_path.glob("out/runs/*/DONE"))
    code, out, err = ended(driver)
    assert code == 0, err
    assert "2000/2000" in out  # the driver shows progress, and then the report
    assert "table.md" in out
    assert_equal(whole, tmp_path / "out", runs=2)
    assert not list(tmp_path.glob("out/.token*"))
    assert {path.suffix for path in tmp_path.glob("out/leases/*.*")} == {".1", ".2"}  # a second claim


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # Ray starts its processes by forking
def test_on_ray_a_lost_node_is_replaced_and_the_numbers_are_those_of_one_worker(grid, tmp_path):
    from ray.cluster_utils import Cluster

    longer = tmp_path / "grid.toml"
    longer.write_text(GRID.replace("evaluations = 10", "evaluations = 200"))
    assert not run_sweep(read_grid(longer), tmp_path / "whole")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        driver = on_ray_cluster(longer, tmp_path / "out", cluster.address)
        os.kill(process_of_a_group(tmp_path / "out", driver), signal.SIGKILL)
        process = process_of_a_group(tmp_path / "out", driver, beyond=200)
        parent = int(pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        (lost,) = (node for node in nodes if node.all_processes["raylet"][0].process.pid == parent)
        cluster.remove_node(lost, allow_graceful=False)
        assert len(list(tmp_path.glob("out/runs/*/DONE"))) < 4
        code, _, err = ended(driver)
    finally:
        cluster.shutdown()
    assert code == 0, err
    assert_equal(tmp_path / "whole", tmp_path / "out")


def test_a_ray_cluster_that_cannot_do_it_is_one_sentence(tmp_path, monkeypatch):
    with (
        pytest.raises(UserError, match=r"No Ray cluster can be used at '127.0.0.1:1' \(.*refused\): start one with"),
        on_ray.connection("127.0.0.1:1"),
    ):
        pass
    nodes = [{"Resources": resources} for resources in ({"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0})]
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    assert on_ray._resources("", nodes) == ("cuda", {"num_gpus": 1}, nodes[1:])
    assert on_ray._resources("cpu", nodes) == ("cpu", {"num_cpus": 3}, nodes[:1])
    assert on_ray._resources("", nodes[:1]) == ("cpu", {"num_cpus": 3}, nodes[:1])
    slice_ = {"Resources": {"CPU": 8.0, "TPU": 4.0}}  # one process has all chips of a host
    assert on_ray._resources("", [*nodes[:1], slice_]) == ("tpu", {"resources": {"TPU": 4}}, [slice_])
    with pytest.raises(UserError, match="No node of the Ray cluster has 1 GPU, which each task needs on 'cuda'"):
        on_ray._resources("cuda", nodes[:1])

    monkeypatch.chdir(tmp_path)
    with on_ray._token(tmp_path / "out") as place:
        os.chdir("/")
        place.enter()
        assert pathlib.Path.cwd() == tmp_path
        versions = on_ray._look(place)[1]
        for other in (place._replace(folder="/nowhere"), place._replace(content="of another")):
            reason, _ = on_ray._look(other)
            assert "does not share" in reason
            with pytest.raises(UserError, match="does not share"):
                on_ray._require_alike([("", versions), (reason, {})])
    assert "does not share" in on_ray._look(place)[0]  # a folder of the same name, without the token
    on_ray._require_alike([("", versions), ("", versions)])
    with pytest.raises(UserError, match=r"has jax 0\.[0-9.]+, and '.*' 9\.9: install the same on all nodes"):
        on_ray._require_alike([("", versions), ("", versions | {"jax": "9.9"})])
    on_ray._require_backend("cpu")
    with pytest.raises(UserError, match="was asked for 'cuda', and has: cpu"):
        on_ray._require_backend("cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2}, "--workers is for --submitit"),
        ({"workers": 2, "ray": "auto"}, "--workers is for --submitit"),
        ({"ray": "auto", "submitit": ()}, "Give --ray or --submitit, not both"),
    ],
)
def test_options_that_make_no_sense_together_are_one_sentence(grid, options, message):
    with pytest.raises(UserError, match=message):
        cli_sweep.sweep(grid, **options)


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
