"""Logs in the layout of MA-CQR: read, written, refused."""

import jax
import numpy as np
import pytest
from omarl_envs import make, uav

from omarl_jax import UserError
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.importers.macqr_csv import read_csv, write_csv
from omarl_jax.rollout import collect, uniform_act

DEVICES = ((0, 0), (3, 3))


@pytest.fixture(scope="module")
def env():
    return make("uav/iot", devices=DEVICES)


def line(i, state, actions, reward, after, over):
    return ",".join(map(str, [i, *state, *actions, reward, *after, over]))


HEADER = "," + ",".join(map(str, range(16)))  # two UAVs and two devices: 6 + 2 + 1 + 6 + 1
A, B, C, D = ([x, 0, 9, 9, 1, x + 1] for x in (0, 2, 4, 6))


@pytest.fixture
def log(tmp_path):
    """Two steps that end an episode, then one that hangs in the air."""
    lines = [line(0, A, (1, 14), -10.5, B, 0), line(1, B, (0, 2), -7, C, 1), line(2, A, (4, 4), -4.5, D, 0)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join([HEADER, *lines]))
    return path


def test_a_log_is_read_as_it_says(log):
    data = read_csv(log, devices=DEVICES)
    rows = data.rows
    assert data.size == 3
    assert data.metadata["options"] == {"devices": DEVICES}
    np.testing.assert_array_equal(rows.closing, [False, False, True, False, True])
    np.testing.assert_array_equal(rows.state, [A, B, C, A, D])
    np.testing.assert_array_equal(rows.obs, np.stack([rows.state, rows.state], axis=1))
    np.testing.assert_array_equal(rows.actions, [(1, 14), (0, 2), (0, 0), (4, 4), (0, 0)])
    np.testing.assert_array_equal(rows.rewards[:, 0], [-10.5, -7, 0, -4.5, 0])
    np.testing.assert_array_equal(rows.truncated, [False, True, False, True, False])
    assert not rows.terminal.any()
    assert "mean_return" not in data.metadata  # of parts of episodes it would mean nothing


def test_returns_are_those_of_whole_episodes(log, monkeypatch):
    monkeypatch.setattr(uav, "EPISODE_LENGTH", 2)
    data = read_csv(log, devices=DEVICES)
    # Ages after the steps are 1 and 3, 1 and 5: means 2 and 3. Power and punishment are the rest.
    expected = {"age": 2 + 3, "training_return": -10.5 - 7, "length": 2}
    expected["return"] = (-10.5 + 2) / 2 - 2 + (-7 + 3) / 2 - 3
    metrics = data.metadata["metrics"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert data.metadata["mean_return"] == pytest.approx(expected["return"])


def test_the_end_is_terminal_where_the_task_says_so(log):
    rows = read_csv(log, devices=DEVICES, time_limit_is_terminal=True).rows
    np.testing.assert_array_equal(rows.terminal[:, 0], [False, True, False, False, False])
    np.testing.assert_array_equal(rows.truncated, [False, False, False, True, False])


def test_what_was_written_is_read_again(env, tmp_path):
    [(rows, totals)] = collect(env, uniform_act(env.task_spec), (), None, [jax.random.key(0)], episodes=2)
    write_csv(Dataset(env.task_spec, rows, {}), tmp_path / "again.csv")
    again = read_csv(tmp_path / "again.csv", devices=DEVICES)
    for name, array in again.rows._asdict().items():
        if name != "action_mask":
            np.testing.assert_array_equal(array, getattr(rows, name), err_msg=name)
    for name in env.metric_names:
        assert again.metadata["metrics"][name] == pytest.approx(totals[name].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",15\n", "\n").replace(",14", ""), r"^\S+ lacks the columns 14, 15; logs"),
        (lambda text: text.replace(",15\n", ",15,16\n"), "has 17 columns"),
        (lambda text: text.replace("-10.5", "oops"), "is damaged: line 2, .*oops"),
        (lambda text: text.replace("-10.5", "nan"), "must be finite"),
        (lambda text: text[: len(HEADER) + 30], "is damaged: line 2 has"),
        (lambda text: text[: len(HEADER) + 1], "no transitions"),
        (lambda text: text.replace(",1,14,", ",1,15,"), "from 0 to 14"),
        (lambda text: text.replace(",1,14,", ",1,1.5,"), "line 2 actions that are no whole numbers"),
        (
            lambda text: text.replace("\n1,2,0,9,9", "\n1,2,0,9,10"),
            "line 3 cells that are no whole numbers from 0 to 9",
        ),
        (lambda text: text.replace("\n1,2,0,9,9", "\n1,0.2,0,9,9"), "line 3 cells"),
        (lambda text: text.replace(",1,7,0", ",1,700,0"), "line 4 ages that are no whole numbers from 1 to 100"),
        (lambda text: text.replace("-7", "5"), "line 3 a reward above the cost of the ages alone"),
    ],
)
def test_a_wrong_file_is_refused(log, change, message):
    log.write_text(change(log.read_text()))
    with pytest.raises(UserError, match=message):
        read_csv(log, devices=DEVICES)


def test_what_does_not_fit_is_refused(log, tmp_path, continuous):
    with pytest.raises(UserError, match="cannot be read"):
        read_csv(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"lacks the columns 16, 17, 18, 19, 20 … 31; logs of this task have 0 to 31\."):
        read_csv(log)
    with pytest.raises(UserError, match="with raw observations"):
        read_csv(log, devices=DEVICES, observation_scale="unit")
    with pytest.raises(UserError, match="not of this form of"):
        write_csv(continuous, tmp_path / "x.csv")
    for options in ({"observation_scale": "unit"}, {"random_missions": True}):
        with pytest.raises(UserError, match="not of this form of"):
            write_csv(Dataset(make("uav/iot", **options).task_spec, None, {"options": options}), tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()
    assert not (tmp_path / "x.csv").exists()
