import dataclasses
from typing import Any

import numpy as np
import pytest

from omarl_jax.data.dataset import Dataset
from omarl_jax.data.validation import from_episodes, validate
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


@pytest.mark.parametrize(
    ("field", "at", "value", "message"),
    [
        ("obs", (3, 1, 2), np.nan, r"Row 3 of the dataset's obs holds nan at \[1, 2\]: .*finite"),
        ("rewards", (4, 1), np.inf, r"Row 4 of the dataset's rewards holds inf at \[1\]: .*finite"),
        ("actions", (0, 0, 1), np.nan, r"Row 0 of the dataset's actions holds nan at \[0, 1\]: .*finite"),
        ("actions", (5, 1, 0), -1.000002, r"Row 5 of the dataset's actions holds -1.000002 at \[1, 0\]: .*\[-1, 1\]"),
        ("actions", (8, 0, 0), np.nan, r"Row 8 of the dataset's actions holds nan at \[0, 0\]: .*be 0 in a final"),
        ("rewards", (6, 0), 2.0, r"Row 6 of the dataset's rewards holds 2.0 at \[0\]: .*final-observation row"),
        ("terminal", (3, 0), True, r"Row 3 of the dataset's terminal holds True at \[0\]: .*final-observation row"),
        ("truncated", 6, True, r"Row 6 of the dataset's truncated holds True: .*final-observation row"),
        ("truncated", 1, True, r"Row 1 of the dataset's truncated holds True: the next row must be a final"),
        ("terminal", 4, True, r"Row 4 of the dataset's terminal holds True at \[0\]: .*the next row must be a final"),
        ("truncated", 2, False, r"Row 2 of the dataset's truncated holds False: an episode ends here"),
        ("closing", 8, False, r"Row 8 of the dataset's closing holds False: the last row must be a final"),
        ("closing", 7, True, r"Row 7 of the dataset's closing holds True: .*no step"),
        ("closing", 0, True, r"Row 0 of the dataset's closing holds True: .*no step"),
        ("closing", slice(None), True, "is empty"),
    ],
)
def test_continuous_mistakes_are_named(continuous: Dataset, field: str, at: Any, value: Any, message: str):
    with pytest.raises(UserError, match=message) as error:
        validate(_changed(continuous, field, at, value))
    assert "\n" not in str(error.value)


def test_an_episode_without_final_observation_is_named(continuous: Dataset):
    joined = _changed(continuous, "closing", 6, False)  # row 6 now looks like a step after the terminal row 5
    with pytest.raises(UserError, match="Row 5 of the dataset's terminal holds True"):
        validate(joined)


@pytest.mark.parametrize(
    ("field", "at", "value", "message"),
    [
        ("actions", (0, 0), 3, r"Row 0 of the dataset's actions holds 3 at \[0\]: it must be one of 0 … 2"),
        ("actions", (1, 0), -1, r"Row 1 of the dataset's actions holds -1 at \[0\]: it must be one of 0 … 2"),
        ("actions", (1, 0), 2, r"Row 1 of the dataset's actions holds 2 at \[0\]: action_mask forbids it"),
        ("state", (2, 0), -np.inf, r"Row 2 of the dataset's state holds -inf at \[0\]: it must be finite"),
    ],
)
def test_discrete_mistakes_are_named(discrete: Dataset, field: str, at: Any, value: Any, message: str):
    with pytest.raises(UserError, match=message):
        validate(_changed(discrete, field, at, value))


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


def _steps(dataset: Dataset) -> dict[str, np.ndarray]:
    """The transitions of a dataset without final-observation rows, as an importer would find them."""
    steps = ~dataset.rows.closing
    names = ("obs", "actions", "rewards", "terminal", "truncated")
    return {name: getattr(dataset.rows, name)[steps] for name in names}


def _assert_same(found: Any, expected: Any) -> None:
    for name, array in expected._asdict().items():
        if array is None:
            assert getattr(found, name) is None
        else:
            np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)
            assert getattr(found, name).dtype == array.dtype


def test_episodes_are_laid_out_with_their_final_observations(continuous: Dataset):
    steps, last = _steps(continuous), continuous.rows.obs[[3, 6, 8]]
    flat = from_episodes(continuous.spec, **steps, last_obs=last.astype(np.float64), lengths=np.array([3, 2, 1]))
    _assert_same(flat, continuous.rows)
    listed: dict[str, Any] = {name: [array[:3], array[3:5], array[5:]] for name, array in steps.items()}
    _assert_same(from_episodes(continuous.spec, **listed, last_obs=list(last)), continuous.rows)


def test_states_and_masks_are_laid_out_too(discrete: Dataset):
    rows = discrete.rows
    assert rows.state is not None and rows.action_mask is not None
    built = from_episodes(
        discrete.spec,
        **_steps(discrete),
        last_obs=rows.obs[2:],
        lengths=np.array([2]),
        state=rows.state[:2],
        last_state=rows.state[2:],
        action_mask=rows.action_mask[:2],
        last_action_mask=rows.action_mask[2:],
    )
    _assert_same(built, rows)


def test_transitions_without_order_become_two_row_episodes(continuous: Dataset):
    steps = _steps(continuous)
    rows = from_episodes(continuous.spec, **steps, last_obs=continuous.rows.obs[[1, 2, 3, 5, 6, 8]])
    assert rows.closing.tolist() == [False, True] * 6
    assert rows.obs[:, 0, 0].tolist() == [0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8]
    assert rows.rewards[:, 0].tolist() == [0, 0, 1, 0, 2, 0, 4, 0, 5, 0, 7, 0]
    dataset = Dataset(continuous.spec, rows, {})
    validate(dataset)
    assert dataset.index().tolist() == [0, 2, 4, 6, 8, 10]
    assert dataset.index(next_actions=True).tolist() == [8, 10]  # after which the task had ended
    assert not dataset.whole_episodes.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros((5, 2))}, r"rewards has shape \(5, 2\), .* need \(6, 2\)"),
        ({"terminal": np.zeros((6, 2))}, "terminal has dtype float64, which does not convert to bool"),
        ({"last_obs": np.zeros((6, 2, 3))}, r"last_obs has shape \(6, 2, 3\), .* need \(3, 2, 3\)"),
        ({"last_obs": [np.zeros((2, 3)), np.zeros((2, 4)), np.zeros((2, 3))]}, "last_obs differ in the shape"),
        ({"lengths": np.array([3, 3, 0])}, "each must have a step"),
        ({"lengths": np.array([], int)}, "There must be episodes"),
        ({"rewards": [np.zeros((3, 2)), np.zeros((3, 2))]}, "episodes of rewards and of obs"),
        ({"action_mask": np.ones((6, 2, 2), bool)}, "only useful together"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(continuous: Dataset, change: dict, message: str):
    arguments = {**_steps(continuous), "last_obs": continuous.rows.obs[[3, 6, 8]], "lengths": np.array([3, 2, 1])}
    with pytest.raises(UserError, match=message):
        from_episodes(continuous.spec, **{**arguments, **change})


def test_a_task_with_its_own_state_needs_it(discrete: Dataset):
    with pytest.raises(UserError, match="needs state and last_state"):
        from_episodes(discrete.spec, **_steps(discrete), last_obs=discrete.rows.obs[2:], lengths=np.array([2]))
