"""Logs of online learning, and the datasets that are cut out of them."""

import jax
import numpy as np
import pytest
from omarl_envs import make

from omarl_jax import UserError, load_dataset
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.validation import validate
from omarl_jax.datasets import replay
from omarl_jax.datasets.catalogue import load_datasets

STEPS = 1_000


@pytest.fixture(scope="module")
def env():
    return make("uav/iot")


@pytest.fixture(scope="module", autouse=True)
def short():
    """A run of ten episodes that learns in tiny steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "STEPS", STEPS)
        patch.setattr(replay, "_WARMUP", 200)
        patch.setattr(replay, "_SETTINGS", replay._SETTINGS._replace(capacity=200 + STEPS, warmup=200))
        patch.setattr(replay, "_OVERRIDES", replay._OVERRIDES | {"hidden": (8,), "epsilon_updates": 500.0})
        yield


@pytest.fixture(scope="module")
def made(env):
    return replay.train_online(env, [0, 1])


def test_a_log_holds_every_step_after_the_warm_up(env, made):
    log = made[0]
    np.testing.assert_array_equal(log.ends, np.arange(100, STEPS + 1, 100))
    steps = log.steps
    within = np.arange(1, STEPS + 1) % 100 != 0
    np.testing.assert_array_equal(steps.next_obs[:-1][within[:-1]], steps.obs[1:][within[:-1]])
    np.testing.assert_array_equal(steps.truncated, ~within)
    ages = steps.next_state[:, 4:].mean(axis=1)
    np.testing.assert_allclose(log.metrics["age"], ages, rtol=1e-5)
    np.testing.assert_allclose(log.metrics["return"], (steps.rewards[:, 0] + ages) / 2 - ages, rtol=1e-4)


def test_what_was_begun_in_the_warm_up_or_not_ended_is_no_episode(made, monkeypatch):
    monkeypatch.setattr(replay, "_WARMUP", 5)
    steps = jax.tree.map(lambda x: x[:20], made[0].steps)
    steps = steps._replace(truncated=np.isin(np.arange(20), [3, 9, 15]))
    log = replay._log(steps, {})
    assert (log.begins.tolist(), log.ends.tolist()) == ([5], [11])
    np.testing.assert_array_equal(log.steps.obs, steps.obs[5:])


def test_episodes_of_any_length_are_enough(env, made):
    ends = np.array([10, 30, 60, 100])
    truncated = np.isin(np.arange(STEPS), ends - 1)
    log = made[0]._replace(begins=np.append(0, ends[:-1]), ends=ends, steps=made[0].steps._replace(truncated=truncated))
    for part, size, least in (("early", 11, 30), ("early", 30, 30), ("late", 41, 70), ("mixed", 100, 100)):
        assert (~replay.cut(env, log, part, size)[0].closing).sum() == least


def test_exploration_falls_and_seeds_differ(made):
    variety = [len(np.unique(made[0].steps.actions[part])) for part in (slice(0, 200), slice(STEPS - 200, STEPS))]
    assert variety[0] > 50  # of 55: 400 draws, nearly all random
    assert variety[1] < 40
    assert (made[0].steps.actions != made[1].steps.actions).mean() > 0.5


def test_a_team_learns_the_same_whoever_learns_beside_it(env, made):
    alone = replay.train_online(env, [1])[0]
    np.testing.assert_array_equal(alone.steps.actions[:200], made[1].steps.actions[:200])


@pytest.mark.parametrize(
    ("part", "size", "episodes"),
    [("middle", 300, [5, 6, 7]), ("middle", 201, [5, 6, 7]), ("early", 200, [0, 1]), ("late", 200, [8, 9]),
     ("mixed", 400, [0, 3, 6, 9])],
)  # fmt: skip
def test_parts_are_whole_episodes(env, made, part, size, episodes):
    log = made[0]
    rows, totals, told = replay.cut(env, log, part, size)
    validate(Dataset(env.task_spec, rows, {}))
    at = np.concatenate([np.arange(100 * i, 100 * i + 100) for i in episodes])
    np.testing.assert_array_equal(rows.actions[~rows.closing], log.steps.actions[at])
    np.testing.assert_array_equal(rows.state[rows.closing], log.steps.next_state[[100 * i + 99 for i in episodes]])
    np.testing.assert_allclose(totals["risk"], [log.metrics["risk"][100 * i : 100 * i + 100].sum() for i in episodes])
    assert f"steps {100 * episodes[0]:,} to {100 * episodes[-1] + 100:,}" in told


@pytest.mark.parametrize(("part", "size", "most"), [("middle", 501, 500), ("late", 1_001, "1,000")])
def test_more_than_there_is_is_refused(env, made, part, size, most):
    with pytest.raises(UserError, match=f"holds {most} transitions, not {size:,}"):
        replay.cut(env, made[0], part, size)


@pytest.mark.parametrize(("part", "size"), [("middle", STEPS // 2 + 1), ("mixed", STEPS + 1)])
def test_nobody_learns_for_data_that_cannot_be(part, size, monkeypatch):
    monkeypatch.delattr(replay, "train_online")
    with pytest.raises(UserError, match=f"not {size:,}"):
        load_dataset("uav/iot", part, size=size)


def test_a_dataset_of_a_log_has_its_metadata():
    first, second = load_datasets("uav/iot", "middle", [0, 1], size=200)
    assert first.size == second.size == 200
    assert first.metadata["recipe"] == "middle"
    assert second.metadata["seed"] == 1
    metrics = first.metadata["metrics"]
    assert set(metrics) == {*make("uav/iot").metric_names, "length"}
    assert metrics["length"] == 100
    assert metrics["training_return"] == pytest.approx(float(first.episode_returns().mean()), rel=1e-5)
    assert first.metadata["mean_return"] == metrics["return"]
    training = float(first.episode_returns().mean())
    assert metrics["return"] == pytest.approx((training + metrics["age"]) / 2 - metrics["age"], rel=1e-4)
    once, again = (load_dataset("uav/iot", "middle", 1, 200).rows for _ in range(2))
    assert jax.tree.all(jax.tree.map(np.array_equal, once, again))


def test_continuous_tasks_have_no_logs_and_discrete_ones_no_snapshots():
    with pytest.raises(UserError, match="no dataset 'late'"):
        load_dataset("particle/spread", "late")
    with pytest.raises(UserError, match="no dataset 'medium'; did you mean"):
        load_dataset("uav/iot", "medium")
