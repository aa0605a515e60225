"""Frozen parts: what is chosen on held-out episodes, and that runs share it, in memory and on disk."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from omarl_jax import Dataset, UserError, algorithms, load_dataset, load_policy, parts, train
from omarl_jax.grid import make_grid
from omarl_jax.parts import split_episodes, train_parts
from omarl_jax.report.load import load_runs
from omarl_jax.sweep import sweep
from omarl_jax.training import Trainer, chunk_ends

SMALL: dict[str, Any] = {"hidden": (4,), "mixer_hidden": 4, "batch_size": 8, "behaviour_updates": 40}
METHOD = algorithms.find("omcda")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("matrix/climbing", "random", size=60)


def config(data: Dataset, **changes: Any) -> Any:
    return METHOD.configure(data.spec, SMALL | changes)


def leaves(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_episodes_are_parted_whole_and_the_same_each_time() -> None:
    data = load_dataset("particle/spread", "random", size=1000)
    learned, held_out = split_episodes(data)
    assert len(held_out.lengths) == 2  # 5 % of 40
    assert len(learned.lengths) == 38
    returns = np.concatenate([learned.episode_returns(), held_out.episode_returns()])
    np.testing.assert_allclose(np.sort(returns), np.sort(data.episode_returns()))
    again = split_episodes(data)[1]
    np.testing.assert_array_equal(again.rows.obs, held_out.rows.obs)
    with pytest.raises(UserError, match="none can be held out to choose the behaviour policy by"):
        split_episodes(held_out_of_one(data), "behaviour")


def held_out_of_one(data: Dataset) -> Dataset:
    last = int(np.flatnonzero(data.rows.closing)[0]) + 1
    return dataclasses.replace(data, rows=jax.tree.map(lambda x: x[:last], data.rows))


def test_the_policy_is_the_likeliest_of_those_measured(data: Dataset) -> None:
    """Trained once more here, and measured on all held-out data instead of batches."""
    made = train_parts(METHOD, [config(data)], [3], [data], [0])["behaviour"]
    learned, held_out = split_episodes(data)
    part = METHOD.make(config(data), data.spec).needs.parts["behaviour"]
    learner = algorithms.find("bc")
    of_part = learner.configure(data.spec, part.hyperparameters)
    trainer = Trainer(learner, [of_part], [3], [learned], [0], None, all_updates=40)
    act = np.asarray(held_out.rows.actions)[~held_out.rows.closing]
    policies, losses = [], []
    for end in chunk_ends(40, parts.CHECKS):
        trainer.advance(end - trainer.updates)
        policy = trainer.policy(0)
        policies.append(leaves(policy))
        losses.append(-log_likelihood(policy, act))
    chosen = policies.index(leaves(made))
    assert losses[chosen] < losses[0]
    assert losses[chosen] <= min(losses) + 0.02  # batches are drawn with replacement


def log_likelihood(policy: Any, actions: np.ndarray) -> float:
    """Of actions (V, N), by shared networks whose inputs are the constant observation and one agent's number."""
    inputs = np.concatenate([np.ones((2, 1)), np.eye(2)], axis=1)
    net = policy.params
    hidden = np.maximum(inputs @ net["layer_0"]["kernel"] + net["layer_0"]["bias"], 0)
    logits = hidden @ net["layer_1"]["kernel"] + net["layer_1"]["bias"]
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(np.mean([log_probs[agent, actions[:, agent]].mean() for agent in range(2)]))


def test_a_part_stops_when_it_no_longer_improves(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_measurement", lambda *_: lambda trainer: np.array([float(trainer.updates)]))
    seen: list[int] = []
    train_parts(METHOD, [config(data)], [0], [data], [0], report=lambda _, updates: seen.append(updates))
    assert seen == [2, 4, 6, 8, 10, 12]  # the first is the best, and five more follow


def test_equal_parts_are_shared_and_others_are_not(data: Dataset, tmp_path: Path) -> None:
    configs = [config(data, d_tot=d_tot) for d_tot in (0.3, 3.0, 0.3)]
    made = train_parts(METHOD, configs, [0, 0, 1], [data], [0, 0, 0], tmp_path)["behaviour"]
    (first, second, third) = (leaves(jax.tree.map(lambda x, i=i: x[i], made)) for i in range(3))
    assert first == second != third
    assert len(list(tmp_path.glob("*.npz"))) == 2
    train_parts(METHOD, [config(data, behaviour_updates=20)], [0], [data], [0], tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 3
    alone = train("omcda", data, seeds=[1], updates=1, episodes=2, **SMALL)
    assert leaves(alone.trainers[0][0].runs.state.behaviour) == third


def test_what_is_trained_already_is_read(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_parts(METHOD, [config(data)], [0], [data], [0], tmp_path)
    monkeypatch.setattr(parts, "_train", None)
    assert leaves(train_parts(METHOD, [config(data)], [0], [data], [0], tmp_path)) == leaves(first)
    (file,) = tmp_path.glob("*.npz")
    assert load_policy(file).metadata["part"] == "behaviour"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="cannot be read"):
        train_parts(METHOD, [config(data)], [0], [data], [0], tmp_path)


def test_a_killed_training_ends_with_the_same_policy(data: Dataset, tmp_path: Path) -> None:
    whole = train_parts(METHOD, [config(data)], [0], [data], [0], tmp_path / "whole")
    seen: list[int] = []

    def stop(_: str, updates: int) -> None:
        seen.append(updates)
        if updates == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_parts(METHOD, [config(data)], [0], [data], [0], tmp_path / "killed", stop)
    again = train_parts(METHOD, [config(data)], [0], [data], [0], tmp_path / "killed", stop)
    assert seen[:5] == [2, 4, 6, 8, 10]  # and not from the beginning
    assert leaves(again) == leaves(whole)
    assert [path.name for path in (tmp_path / "killed").iterdir() if path.is_dir()] == ["leases"]


def test_parts_trained_together_are_kept_together(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the first of them is in its place."""
    replace, moved = Path.replace, []

    def once(path: Path, target: Path) -> Path:
        if moved and target.suffix == ".npz" and target.parent == tmp_path:
            raise KeyboardInterrupt
        if target.parent == tmp_path:
            moved.append(target.name)
        return replace(path, target)

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Path, "replace", once)
        train_parts(METHOD, [config(data)] * 2, [0, 1], [data], [0, 0], tmp_path)
    assert [path.name for path in tmp_path.glob("*.npz")] == moved
    monkeypatch.setattr(parts, "_train", None)
    made = train_parts(METHOD, [config(data)] * 2, [0, 1], [data], [0, 0], tmp_path)["behaviour"]
    alone = train_parts(METHOD, [config(data)], [1], [data], [0], tmp_path)["behaviour"]
    assert leaves(jax.tree.map(lambda x: x[1:], made)) == leaves(alone)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["leases"]


def test_a_sweep_trains_parts_and_names_runs_by_them(tmp_path: Path) -> None:
    def grid(**changes: Any) -> Any:
        block = {
            "tasks": ["matrix/climbing"],
            "datasets": ["random"],
            "algorithms": ["omcda"],
            "updates": 4,
            "size": 60,
            "hyperparameters": SMALL | {"hidden": [[4]], "d_tot": [0.3, 3.0]} | changes,
        }
        return make_grid({"evaluations": 2, "episodes": 2, "final_episodes": 2, "block": [block]})

    assert not sweep(grid(), tmp_path)
    assert len(list((tmp_path / "parts").glob("*.npz"))) == 1
    runs, _ = load_runs(tmp_path / "runs")
    assert len(runs) == 2
    assert {run.name for run in grid().runs}.isdisjoint(run.name for run in grid(behaviour_updates=50).runs)
    (first, *_) = grid().runs
    assert dataclasses.replace(first, parts=(("behaviour", "other"),)).name != first.name


def test_a_part_that_diverges_is_one_sentence(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "diverged_at", property(lambda self: np.array([3])))
    with pytest.raises(UserError, match="The behaviour policy, which 'bc' trains before, diverged"):
        train_parts(METHOD, [config(data)], [0], [data], [0])
