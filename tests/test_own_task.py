"""Data of a task that nobody ships: trained without a simulator, saved, and stepped beside one of the user's own."""

import sys
from pathlib import Path

import numpy as np
import pytest
from omarl_envs import TaskSpec

from omarl_jax import Dataset, UserError, cli, from_episodes, load_policy, save_dataset, train
from omarl_jax.report.load import load_run

SPEC = TaskSpec("plant/valves", "continuous", 2, 3, 1, 6, episode_length=5, state_is_obs=True)


def data(spec: TaskSpec = SPEC) -> Dataset:
    """Valves that were opened by half of what the first sensor shows."""
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (8, 6, 2, 3)).astype(np.float32)
    ends = np.zeros((8, 5), bool)
    ends[:, -1] = True
    rows = from_episodes(
        spec,
        obs=list(obs[:, :-1]),
        actions=list(obs[:, :-1, :, :1] / 2),
        rewards=list(np.ones((8, 5, 2), np.float32)),
        terminal=list(np.zeros((8, 5, 2), bool)),
        truncated=list(ends),
        last_obs=list(obs[:, -1]),
    )
    return Dataset(spec, rows, {})


def test_a_policy_is_trained_saved_and_stepped_without_a_simulator(tmp_path: Path) -> None:
    result = train("bc", data(), updates=400, hidden=(16,), batch_size=32, lr=0.01, evaluations=2)
    assert result.returns is None
    assert result.scores is None
    assert result.metrics["policy_loss"].shape == (2, 1)
    result.save_policy(0, tmp_path / "policy.npz")
    policy = load_policy(tmp_path / "policy.npz")
    obs = np.array([[0.8, 0.0, 0.0], [-0.6, 0.0, 0.0]])
    np.testing.assert_allclose(policy.act(obs), [[0.4], [-0.3]], atol=0.1)


def test_a_simulator_that_is_at_hand_is_used() -> None:
    with pytest.raises(UserError, match=r"of task 'matrix/xor' with name"):
        from omarl_jax import make_env

        train("bc", data(), updates=1, env=make_env("matrix/xor"))


def omarl(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["omarl", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_command_line_trains_without_a_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dataset(data(), tmp_path / "data")
    words = "train", "bc", "plant/valves", str(tmp_path / "data"), "--updates", "1e1", "--hidden", "4"
    assert omarl(monkeypatch, *words, "--out", str(tmp_path / "out")) == 0
    assert "not evaluated" in capsys.readouterr().err
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    run = load_run(folder)
    assert (run.updates, run.final_returns.size, run.record.status) == (10, 0, "finished")
    assert load_policy(folder).act(np.zeros((2, 3))).shape == (2, 1)
    assert omarl(monkeypatch, "evaluate", str(folder)) == 1
    assert "There is no task 'plant/valves'" in capsys.readouterr().err
    for task in ("plant/valve", "particle/spread"):
        assert omarl(monkeypatch, *words[:2], task, *words[3:], "--out", str(tmp_path / "other")) == 1
        assert f"are of task 'plant/valves', not of '{task}'" in capsys.readouterr().err


def test_a_task_in_the_working_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "game.py").write_text("from omarl_envs.matrix import TASKS\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    words = "--updates", "2", "--hidden", "4", "--size", "40", "--final-episodes", "2", "--episodes", "2"
    assert omarl(monkeypatch, "train", "bc", "own.game/xor", "random", *words) == 0
    assert omarl(monkeypatch, "train", "bc", "own.gaem/xor", "random", *words) == 1
    assert "There is no task 'own.gaem/xor'" in capsys.readouterr().err
