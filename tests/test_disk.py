"""What may go wrong while a sweep writes: it ends with one sentence, and what was there before still counts."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from omarl_jax import UserError, loggers
from omarl_jax.checkpoint import Checkpoints
from omarl_jax.files import replacing, require_writable
from omarl_jax.grid import make_grid
from omarl_jax.leases import Leases, Outdated
from omarl_jax.runs import RunFolder
from omarl_jax.sweep import sweep, train_group

GRID = {
    "seeds": [0],
    "evaluations": 2,
    "episodes": 2,
    "final_episodes": 2,
    "block": [
        {
            "tasks": ["particle/spread"],
            "datasets": ["random"],
            "algorithms": ["bc"],
            "updates": 4,
            "size": 500,
            "hyperparameters": {"hidden": [[8]], "batch_size": 16},
        }
    ],
}


@pytest.fixture
def grid():
    return make_grid(GRID)


def saved(folder: pathlib.Path, tree: object) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, tree)
    return checkpoints


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.int32(7)}
    back, updates = saved(tmp_path, tree).restore({"a": jnp.zeros((2, 3)), "b": jnp.int32(0)})
    assert updates == 1
    assert (back["a"] == tree["a"]).all()
    assert back["b"] == 7


def test_a_worker_that_is_outdated_while_it_saves_does_not_make_the_checkpoint_count(tmp_path):
    """The next worker, which has begun meanwhile, removed what was not whole."""

    def check() -> None:
        if (tmp_path / "1").exists():
            shutil.rmtree(tmp_path / "1")
            raise Outdated("another has it")

    with pytest.raises(Outdated, match="another has it"):
        Checkpoints(tmp_path, check).save(1, {"a": jnp.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    checkpoints = saved(tmp_path, {"a": jnp.zeros((2, 3))})
    for like in ({"b": jnp.zeros((2, 3))}, {"a": jnp.zeros((4, 3))}):
        with pytest.raises(UserError, match="cannot be read, or are of another program"):
            checkpoints.restore(like)


def damage(folder: pathlib.Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 500:
            path.write_bytes(path.read_bytes()[:100])


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path):
    checkpoints = saved(tmp_path, {"a": jnp.arange(1000.0)})
    checkpoints.save(2, {"a": jnp.arange(1000.0) * 0.5})
    damage(tmp_path / "2")
    back, updates = checkpoints.restore({"a": jnp.zeros(1000)})
    assert updates == 1
    assert (back["a"] == jnp.arange(1000.0)).all()
    checkpoints.save(2, {"a": jnp.full(1000, 2.0)})
    back, updates = Checkpoints(tmp_path).restore({"a": jnp.zeros(1000)})
    assert updates == 2
    assert (back["a"] == 2.0).all()


def test_without_a_sound_checkpoint_one_short_sentence_says_what_to_do(tmp_path):
    checkpoints = saved(tmp_path / "group" / "checkpoints", {"a": jnp.arange(1000.0)})
    damage(tmp_path)
    with pytest.raises(UserError, match=r"cannot be read.*delete '.*group' to start these runs again") as message:
        checkpoints.restore({"a": jnp.zeros(1000)})
    assert len(str(message.value)) < 500 + 2 * len(str(tmp_path))


def test_nothing_saved_is_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path).restore({"a": jnp.zeros(1)}) is None


def test_damaged_evaluations_name_their_file(tmp_path):
    path = tmp_path / "evaluations.npz"
    np.savez_compressed(path, updates=np.arange(99), returns=np.arange(99.0))
    sound = path.read_bytes()
    for content in (b"", b"PK no archive", b"\x93NUMPY", sound[:200] + b"!!" + sound[202:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"evaluations\.npz' is damaged; delete it"):
            RunFolder(tmp_path).evaluations(until=1)


def test_what_cannot_become_a_file_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, pathlib.Path("."), pathlib.Path("..")):
        for refuse in (require_writable, lambda path: replacing(path).__enter__()):
            with pytest.raises(UserError, match=r"cannot be written: Is a directory\.$"):
                refuse(path)
    require_writable(tmp_path / "new" / "file")
    assert not list(tmp_path.iterdir())


def test_a_log_that_is_no_text_is_cut_to_what_is(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"updates": 1}\n\xff\xfe{"upd')
    loggers.JsonLines(tmp_path / "metrics.jsonl", 5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"updates": 1}\n'


def test_a_run_folder_that_cannot_be_written_is_one_sentence(grid, tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    with (
        Leases(tmp_path / "leases").claim([grid.runs[0].name]) as claim,
        pytest.raises(UserError, match=r"runs.* cannot be written"),
    ):
        train_group(grid.runs, grid, tmp_path, claim)


def test_a_full_disk_stops_a_sweep_with_a_sentence_and_it_goes_on_later(grid, tmp_path):
    """Files that may not grow are the full disk that a test can have."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
        "from omarl_jax import cli; sys.argv[1:2] = []; cli.main()"
    )
    path = tmp_path / "grid.toml"
    path.write_text(
        'seeds = [0]\nevaluations = 2\nepisodes = 2\nfinal_episodes = 2\n[[block]]\ntasks = ["particle/spread"]\n'
        'datasets = ["random"]\nalgorithms = ["bc"]\nupdates = 4\nsize = 500\n'
        "hyperparameters = { hidden = [[8]], batch_size = 16 }\n"
    )

    arguments = [sys.executable, "-c", program, "700", "sweep", str(path), "--out", str(tmp_path / "out")]
    # Compiled programs are files, too, and are not what this is about.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    full = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    said = " ".join((full.stdout + full.stderr).split())
    assert full.returncode == 1, said
    assert "cannot be written" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").rglob("DONE"))
    assert not list((tmp_path / "out").rglob("*.partial"))

    assert not sweep(grid, tmp_path / "out")  # the same runs
    assert len(list((tmp_path / "out").rglob("DONE"))) == 1


def test_weights_and_biases_without_a_key_works_offline(grid, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    sweep(grid, tmp_path / "out", wandb="omarl")
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert (run / "DONE").exists()
    assert list(run.glob(f"wandb/offline-run-*/run-{loggers.run_id(run, run.name)}.wandb"))


def test_what_is_not_finite_is_null_in_the_log(tmp_path):
    log = loggers.JsonLines(tmp_path / "metrics.jsonl", 0)
    log.log({"updates": 1, "loss": float("nan"), "q": 2.0})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"updates": 1, "loss": null, "q": 2.0}\n'


def test_a_checkpoint_that_was_not_finished_is_none(tmp_path):
    """Killed after Orbax has written it, and before its digests."""
    checkpoints = saved(tmp_path, {"a": jnp.zeros(3)})
    checkpoints.save(2, {"a": jnp.ones(3)})
    (tmp_path / "2" / "digests.json").unlink()
    back, updates = checkpoints.restore({"a": jnp.zeros(3)})
    assert (updates, back["a"].tolist()) == (1, [0, 0, 0])
    (tmp_path / "1" / "digests.json").unlink()
    assert checkpoints.restore({"a": jnp.zeros(3)}) is None
    checkpoints.save(1, {"a": jnp.ones(3)})
    assert checkpoints.restore({"a": jnp.zeros(3)})[1] == 1
