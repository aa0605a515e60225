import dataclasses
from typing import Any

import numpy as np
import pytest

from omarl_jax.data.dataset import Dataset
from omarl_jax.data.validation import validate
from omarl_jax.errors import UserError


def _changed(dataset: Dataset, field: str, at: Any, value: Any) -> Dataset:
    array = getattr(dataset.rows, field).copy()
    array[at] = value
    return dataclasses.replace(dataset, rows=dataset.rows._replace(**{field: array}))


def test_sound_datasets_pass(continuous: Dataset, discrete: Dataset):
    validate(continuous)
    validate(discrete)
    validate(_changed(continuous, "actions", (4, 0, 1), 1 + 5e-7))
    validate(_changed(continuous, "terminal", (0, 1), True))  # one agent may end before the others
    validate(_changed(continuous, "terminal", (7,), False))  # as transitions without order do


NO_STEP = "its episode has no step"
FINAL = "it must be 0 in a final-observation row"


@pytest.mark.parametrize(
    ("field", "at", "value", "where", "why"),
    [
        ("obs", (3, 1, 2), np.nan, "nan in episode 0, final observation, agent 1, entry 2", "it must be finite"),
        ("rewards", (4, 1), np.inf, "inf in episode 1, step 0, agent 1", "it must be finite"),
        ("actions", (0, 0, 1), np.nan, "nan in episode 0, step 0, agent 0, entry 1", "it must be finite"),
        (
            "actions",
            (5, 1, 0),
            -1.000002,
            "-1.000002 in episode 1, step 1, agent 1, entry 0",
            "it must lie in [-1, 1], but actions reach from -1 to 0.7",
        ),
        ("actions", (8, 0, 0), np.nan, "nan in episode 2, final observation, agent 0, entry 0", FINAL),
        ("rewards", (6, 0), 2.0, "2.0 in episode 1, final observation, agent 0", FINAL),
        ("terminal", (3, 0), True, "True in episode 0, final observation, agent 0", FINAL),
        ("truncated", 6, True, "True in episode 1, final observation", FINAL),
        ("truncated", 1, True, "True in episode 0, step 1", "the episode goes on, but must end here"),
        (
            "terminal",
            4,
            True,
            "True in episode 1, step 0, agent 0",
            "it has ended for all agents, but the episode goes on",
        ),
        (
            "truncated",
            2,
            False,
            "False in episode 0, step 2",
            "an episode ends here, so it must be terminal or truncated",
        ),
        ("closing", 8, False, "False in episode 2, step 1", "the last row must be a final-observation row"),
        ("closing", 7, True, "True in episode 2, final observation", NO_STEP),
        ("closing", 0, True, "True in episode 0, final observation", NO_STEP),
    ],
)
def test_continuous_mistakes_are_named(continuous: Dataset, field: str, at: Any, value: Any, where: str, why: str):
    with pytest.raises(UserError) as error:
        validate(_changed(continuous, field, at, value))
    assert str(error.value) == f"The dataset's {field} holds {where} (counted from 0): {why}."


def test_an_episode_without_final_observation_is_named(continuous: Dataset):
    joined = _changed(continuous, "closing", 6, False)  # row 6 now looks like a step after the terminal row 5
    with pytest.raises(UserError, match="terminal holds True in episode 1, step 1, agent 0"):
        validate(joined)


def test_a_dataset_of_final_observations_is_empty(continuous: Dataset):
    with pytest.raises(UserError, match="is empty"):
        validate(_changed(continuous, "closing", slice(None), True))


@pytest.mark.parametrize(
    ("field", "at", "value", "where", "why"),
    [
        ("actions", (0, 0), 4, "4 in episode 0, step 0, agent 0", "it must be one of 0 … 2"),
        ("actions", (1, 0), -1, "-1 in episode 0, step 1, agent 0", "it must be one of 0 … 2"),
        ("actions", (1, 0), 2, "2 in episode 0, step 1, agent 0", "action_mask forbids it"),
        ("state", (2, 0), -np.inf, "-inf in episode 0, final observation, entry 0", "it must be finite"),
    ],
)
def test_discrete_mistakes_are_named(discrete: Dataset, field: str, at: Any, value: Any, where: str, why: str):
    with pytest.raises(UserError) as error:
        validate(_changed(discrete, field, at, value))
    assert str(error.value) == f"The dataset's {field} holds {where} (counted from 0): {why}."


def test_actions_counted_from_one_are_recognised(discrete: Dataset):
    rows = discrete.rows._replace(actions=np.array([[1], [3], [0]], np.int32), action_mask=None)
    with pytest.raises(UserError, match=r"holds 3 .* one of 0 … 2; the smallest is 1, so .* from 1: subtract 1\.$"):
        validate(dataclasses.replace(discrete, rows=rows))


def test_transitions_without_order_are_counted(continuous: Dataset):
    rows = type(continuous.rows)(*(None if x is None else np.concatenate([x[7:]] * 3) for x in continuous.rows))
    loose = dataclasses.replace(continuous, rows=rows)
    for row, where in ((2, "transition 1"), (3, "transition 1, next observation")):
        with pytest.raises(UserError, match=rf"obs holds nan in {where}, agent 0, entry 1 \(counted from 0\)"):
            validate(_changed(loose, "obs", (row, 0, 1), np.nan))


def _ended(dataset: Dataset, length: int, options: dict) -> Dataset:
    """The dataset of a task with this time limit, whose episodes all end as terminal."""
    ends = np.append(dataset.rows.closing[1:], False) & ~dataset.rows.closing
    terminal = np.broadcast_to(ends[:, None], dataset.rows.terminal.shape)
    rows = dataset.rows._replace(terminal=terminal, truncated=np.zeros_like(ends))
    return Dataset(dataclasses.replace(dataset.spec, episode_length=length), rows, {"options": options})


def test_a_time_limit_flagged_as_the_end_of_the_task_is_doubted(continuous: Dataset, discrete: Dataset):
    validate(_ended(continuous, 4, {}))  # none reaches the limit
    validate(_ended(continuous, 3, {"time_limit_is_terminal": True}))  # it is meant
    validate(dataclasses.replace(_ended(continuous, 3, {}), metadata={"time_limit_is_terminal": True}))
    single = type(continuous.rows)(*(None if x is None else x[7:] for x in continuous.rows))
    validate(dataclasses.replace(_ended(continuous, 1, {}), rows=single))  # a task of one step ends with it
    doubt = r"reaches the time limit, 3 steps, ends as terminal \(1 of 3 episodes\), .* truncated instead"
    with pytest.warns(UserWarning, match=doubt) as seen:
        validate(_ended(continuous, 3, {}))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, "rewards is missing"),
        ({"rewards": [[1.0, 2.0]] * 9}, "rewards is a list, but must be an array"),
        ({"obs": 3.0}, "obs is a float, but must be an array"),
        ({"obs": np.float32(3.0)}, r"obs has shape \(\), but .* need \(2, 3\)"),
        ({"rewards": np.full((9, 2), 1.0, object)}, "rewards has dtype object, but must have float32"),
    ],
)
def test_rows_must_be_arrays(continuous: Dataset, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(continuous, rows=continuous.rows._replace(**change)))


def test_rows_must_be_rows(continuous: Dataset):
    with pytest.raises(UserError, match="rows of a dataset are an EpisodeStore, as from_episodes makes it, not a dict"):
        validate(Dataset(continuous.spec, continuous.rows._asdict()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "spec", "message"),
    [
        ({"rewards": np.zeros(9, np.float32)}, {}, r"rewards has shape \(9,\), .* need \(9, 2\)"),
        ({"truncated": np.zeros(8, np.bool_)}, {}, r"truncated has shape \(8,\), .* need \(9,\)"),
        ({"rewards": np.zeros((9, 2))}, {}, "rewards has dtype float64, but must have float32"),
        ({"action_mask": np.ones((9, 2, 2), np.bool_)}, {}, "has an action_mask.*continuous"),
        ({"state": np.zeros((9, 6), np.float32)}, {}, "state must not be stored"),
        ({}, {"state_is_obs": False}, "state is missing"),
        ({}, {"state_dim": 7}, "all 2 observations of length 3, but gives the state length 7"),
        ({}, {"n_agents": 3, "state_dim": 9}, r"obs has shape \(9, 2, 3\), .* need \(9, 3, 3\)"),
        ({}, {"kind": "discrete"}, r"actions has shape \(9, 2, 2\), .* need \(9, 2\)"),
        ({}, {"kind": "mixed"}, "kind 'mixed'"),
    ],
)
def test_disagreement_with_the_task_is_named(continuous: Dataset, rows: dict, spec: dict, message: str):
    wrong = Dataset(dataclasses.replace(continuous.spec, **spec), continuous.rows._replace(**rows), {})
    with pytest.raises(UserError, match=message):
        validate(wrong)


def test_a_dataset_without_rows_is_empty(continuous: Dataset):
    none = type(continuous.rows)(*(None if array is None else array[:0] for array in continuous.rows))
    with pytest.raises(UserError, match="is empty"):
        validate(dataclasses.replace(continuous, rows=none))
