"""Logs in the layout of MA-CQR: read, written, refused."""

import re

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


def without_numbers(text: str) -> str:
    return "\n".join(line.partition(",")[2] for line in text.split("\n"))


AS_WRITTEN = {
    "blank last lines": lambda text: text + "\n\n \n,,,\n",
    "blank lines": lambda text: text.replace("\n", "\n\n"),
    "lines of Windows": lambda text: text.replace("\n", "\r\n"),
    "semicolons": lambda text: text.replace(",", ";"),
    "tabs": lambda text: text.replace(",", "\t"),
    "commas and spaces": lambda text: text.replace(",", ", "),
    "quotes": lambda text: re.sub(r"[^,\n]+", r'"\g<0>"', text),
    "a byte order mark": lambda text: "\ufeff" + text,
    "without line numbers": without_numbers,
    "line numbers with a name": lambda text: "index" + text,
    "line numbers of line numbers": lambda text: ",Unnamed: 0" + text.replace("\n", "\n7,"),
    "columns in another order": lambda text: "\n".join(",".join(line.split(",")[::-1]) for line in text.split("\n")),
    "True and False": lambda text: re.sub(r",([01])(?=\n|$)", lambda m: f",{m[1] == '1'}", text),
    "TRUE and FALSE": lambda text: re.sub(r",([01])(?=\n|$)", lambda m: f", {m[1] == '1'} ".upper(), text),
    "flags with a point": lambda text: re.sub(r",([01])(?=\n|$)", r",\1.0", text),
}


@pytest.mark.parametrize("how", AS_WRITTEN)
def test_other_programs_write_the_same_log(log, how):
    expected = read_csv(log, devices=DEVICES)
    log.write_bytes(AS_WRITTEN[how](log.read_text()).encode())
    for name, array in read_csv(log, devices=DEVICES).rows._asdict().items():
        np.testing.assert_array_equal(array, getattr(expected.rows, name), err_msg=name)


def test_lines_are_counted_as_an_editor_does(log):
    log.write_text(log.read_text().replace("\n", "\n\n").replace("-7", "5"))  # the second of three, in line 5
    with pytest.raises(UserError, match="in line 5 a reward above the cost"):
        read_csv(log, devices=DEVICES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",15\n", "\n").replace(",14", ""), r"^\S+ lacks the columns 14, 15; logs"),
        (lambda text: text.replace(",15\n", ",15,16\n"), "has the column '16', but logs of this task have 0 to 15"),
        (lambda text: text.replace(HEADER, HEADER.replace(",1,", ",episode,")), "lacks the columns 1; logs"),
        (lambda text: text.replace(HEADER, "3" + HEADER), "has the column 3 twice"),
        (lambda text: text.replace(",", "|"), "is damaged: line 1, Could not determine delimiter"),
        (lambda text: text.replace(",", ";").replace("-10.5", "-10,5"), "is damaged: line 2, .*'-10,5'"),
        (
            lambda text: text.replace(",1\n2,", ",2\n2,"),
            "line 3 flags of the end that are no whole numbers from 0 to 1",
        ),
        (lambda text: text.replace(",1\n2,", ",maybe\n2,"), "is damaged: line 3, .*maybe"),
        (lambda text: text.replace(",1\n2,", ",nan\n2,"), "line 3 flags of the end"),
        (lambda text: text.replace("-10.5", "-1e39"), "line 2 a reward that is not finite"),
        (lambda text: text.replace("-10.5", "oops"), "is damaged: line 2, .*oops"),
        (lambda text: text.replace("-10.5", "nan"), "line 2 a reward that is not finite"),
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
