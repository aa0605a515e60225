import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.spec import TaskSpec

from omarl_jax.data.dataset import Dataset, DeviceData, EpisodeStore, concat_datasets, sample, transitions
from omarl_jax.errors import UserError
from omarl_jax.types import Needs

NEXT = {0: 1, 1: 2, 2: 3, 4: 5, 5: 6, 7: 8}  # row of each transition: row of its next observation
WITH_NEXT_ACTION = [0, 1, 4]
ENDED = [5, 7]  # nobody acts after these


def _shifted(dataset: Dataset, by: float) -> Dataset:
    return dataclasses.replace(dataset, rows=dataset.rows._replace(obs=dataset.rows.obs + np.float32(by)))


def _all_rows(dataset: Dataset) -> DeviceData:
    data, _ = concat_datasets([dataset], Needs(1))
    return jax.tree.map(jnp.asarray, data)


def test_index_lists_transitions_and_those_with_a_next_action(continuous: Dataset):
    assert continuous.size == 6
    assert continuous.index().tolist() == list(NEXT)
    assert continuous.index(next_actions=True).tolist() == WITH_NEXT_ACTION + ENDED
    assert continuous.index().dtype == np.int32


def test_whole_episodes_end_with_the_task_or_at_the_time_limit(continuous: Dataset):
    rows = continuous.rows
    assert continuous.whole_episodes.tolist() == [True, True, True]
    half = dataclasses.replace(continuous, rows=rows._replace(terminal=rows.terminal & [True, False]))
    assert half.whole_episodes.tolist() == [True, False, False]
    longer = dataclasses.replace(continuous, spec=dataclasses.replace(continuous.spec, episode_length=4))
    assert longer.whole_episodes.tolist() == [False, True, True]


def test_returns_are_sums_over_time_of_means_over_agents(continuous: Dataset):
    np.testing.assert_allclose(continuous.episode_returns(), [2 * (0 + 1 + 2), 2 * (4 + 5), 2 * 7])


def test_samples_never_cross_an_episode_boundary(continuous: Dataset):
    needs = Needs(batch_size=600)
    data, (window,) = concat_datasets([continuous], needs)
    batch = sample(data, window, jax.random.key(0), needs)
    row = np.asarray(batch.obs[:, 0, 0])
    assert set(row.tolist()) == set(NEXT)
    np.testing.assert_array_equal(batch.next_obs[:, :, 0], np.repeat([[NEXT[r]] for r in row], 2, axis=1))
    np.testing.assert_array_equal(batch.next_obs[:, :, 1:], batch.obs[:, :, 1:])  # episode and agent
    np.testing.assert_allclose(batch.actions[:, 0, 0], row / 10, rtol=1e-6)
    np.testing.assert_array_equal(batch.rewards, np.stack([row, 3 * row], axis=1))
    np.testing.assert_array_equal(batch.terminal[:, 1], np.isin(row, [5, 7]))
    np.testing.assert_array_equal(batch.truncated, row == 2)
    assert batch.next_actions is None and batch.state is None and batch.action_mask is None


def test_next_actions_are_those_of_the_next_step(continuous: Dataset):
    needs = Needs(batch_size=300, next_actions=True)
    data, (window,) = concat_datasets([continuous], needs)
    batch = sample(data, window, jax.random.key(1), needs)
    row = np.asarray(batch.obs[:, 0, 0])
    assert set(row.tolist()) == set(WITH_NEXT_ACTION + ENDED)
    assert batch.next_actions is not None
    ended = np.isin(row, ENDED)
    np.testing.assert_array_equal(batch.terminal.all(axis=1), ended)
    np.testing.assert_allclose(batch.next_actions[:, 0, 0], np.where(ended, 0, (row + 1) / 10), rtol=1e-6)


def test_two_row_episodes_have_a_next_observation_but_no_next_action(continuous: Dataset):
    rows = jax.tree.map(lambda array: array[7:], continuous.rows)
    rows = rows._replace(terminal=np.zeros_like(rows.terminal))
    alone = dataclasses.replace(continuous, rows=rows)
    assert alone.index().tolist() == [0]
    np.testing.assert_array_equal(transitions(_all_rows(alone), jnp.array([0]), Needs(1)).next_obs[0, :, 0], [8, 8])
    with pytest.raises(UserError, match=r"toy/continuous.*followed by another action"):
        concat_datasets([continuous, alone], Needs(1, next_actions=True))


def test_runs_sample_their_own_dataset_from_one_array(continuous: Dataset):
    needs = Needs(batch_size=200, next_actions=True)
    second = _shifted(continuous, 1000)
    short = dataclasses.replace(second, rows=jax.tree.map(lambda array: array[4:7], second.rows))
    data, windows = concat_datasets([continuous, short, second], needs)
    assert data.rows.obs.shape == (9 + 3 + 9, 2, 3)
    assert [(int(w.start), int(w.size)) for w in windows] == [(0, 5), (5, 2), (7, 5)]
    assert data.index.tolist() == [0, 1, 4, 5, 7, 9, 10, 12, 13, 16, 17, 19]
    window = jax.tree.map(lambda *parts: jnp.stack(parts), *windows)
    keys = jax.random.split(jax.random.key(2), 3)
    batch = jax.vmap(lambda w, k: sample(jax.device_put(data), w, k, needs))(window, keys)
    first, middle, last = np.asarray(batch.obs[:, :, 0, 0])
    assert set(first.tolist()) == {0, 1, 4, 5, 7}
    assert set(middle.tolist()) == {1004, 1005}
    assert set(last.tolist()) == {1000, 1001, 1004, 1005, 1007}


def test_sampling_is_uniform(continuous: Dataset):
    needs = Needs(batch_size=60_000)
    data, (window,) = concat_datasets([continuous], needs)
    batch = sample(data, window, jax.random.key(3), needs)
    counts = np.bincount(np.asarray(batch.obs)[:, 0, 0].astype(int), minlength=9)[list(NEXT)]
    expected = 60_000 / 6
    assert 0.5 < ((counts - expected) ** 2 / expected).sum() < 16.7  # chi-square, 5 degrees: 0.8 % and 99.5 %


def test_windows_begin_anywhere_and_are_valid_to_the_end_of_their_episode(continuous: Dataset):
    """Rows 0-2, 4-5 and 7 are the steps of three episodes; what a window of the last one repeats is not valid."""
    needs = Needs(batch_size=300, length=3, state=True, returns_to_go=True)
    data, (window,) = concat_datasets([continuous], needs)
    batch = jax.tree.map(np.asarray, sample(jax.device_put(data), window, jax.random.key(0), needs))
    assert batch.obs.shape == (300, 3, 2, 3)
    assert batch.truncated.shape == batch.valid.shape == (300, 3)
    assert (batch.state.shape, batch.rewards.shape) == ((300, 3, 6), (300, 3, 2))
    first = batch.obs[:, 0, 0, 0].astype(int)
    assert set(first.tolist()) == set(NEXT)
    lengths = {0: 3, 1: 2, 2: 1, 4: 2, 5: 1, 7: 1}
    np.testing.assert_array_equal(batch.valid, np.arange(3) < np.array([[lengths[row]] for row in first]))
    rows = (first[:, None] + np.arange(3))[batch.valid]  # consecutive steps
    np.testing.assert_array_equal(batch.obs[batch.valid][:, 0, 0], rows)
    np.testing.assert_array_equal(batch.next_obs[batch.valid][:, 0, 0], [NEXT[row] for row in rows])
    np.testing.assert_array_equal(batch.rewards[batch.valid], np.stack([rows, 3 * rows], axis=1))
    np.testing.assert_array_equal(batch.truncated[batch.valid], rows == 2)
    np.testing.assert_array_equal(batch.terminal[batch.valid][:, 0], np.isin(rows, ENDED))
    np.testing.assert_allclose(batch.returns_to_go[batch.valid], continuous.returns_to_go()[rows])
    np.testing.assert_array_equal(batch.obs[first == 7][:, :, 0, 0], [[7, 8, 8]] * (first == 7).sum())  # no further


def test_windows_of_one_dataset_do_not_reach_into_the_next(continuous: Dataset):
    needs = Needs(batch_size=200, length=3)
    data, windows = concat_datasets([continuous, _shifted(continuous, 1000)], needs)
    for window, begin in zip(windows, (0, 1000), strict=True):
        batch = jax.tree.map(np.asarray, sample(jax.device_put(data), window, jax.random.key(1), needs))
        seen = batch.obs[batch.valid][:, 0, 0]
        assert set(seen.tolist()) == {begin + row for row in NEXT}


def test_batches_without_windows_have_no_time_axis(continuous: Dataset):
    data, (window,) = concat_datasets([continuous], Needs(5))
    batch = sample(data, window, jax.random.key(0), Needs(5))
    assert batch.obs.shape == (5, 2, 3)
    assert batch.valid is None and batch.returns_to_go is None


def test_returns_to_go_are_sums_to_the_end_of_each_episode():
    """Episodes of many lengths, whose sums would drift if they were differences of float32 sums over all the data."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 8, 400)
    closing = np.concatenate([np.arange(length + 1) == length for length in lengths])
    rewards = rng.normal(1e4, 1.0, (len(closing), 2)).astype(np.float32) * ~closing[:, None]
    none = np.zeros((len(closing), 2), bool)
    rows = EpisodeStore(np.zeros((len(closing), 2, 1), np.float32), none, rewards, none, none[:, 0], closing)
    spec = TaskSpec("toy/long", "continuous", 2, 1, 1, 2, 7)
    expected = np.zeros(rewards.shape)
    for row in range(len(closing) - 2, -1, -1):
        if not closing[row]:
            expected[row] = rewards[row] + expected[row + 1]
    dataset = Dataset(spec, rows, {})
    np.testing.assert_allclose(dataset.returns_to_go(), expected, rtol=1e-6)
    needs = Needs(batch_size=50, returns_to_go=True)
    data, ranges = concat_datasets([dataset, dataset], needs)
    batch = sample(jax.device_put(data), ranges[1], jax.random.key(0), needs)
    assert np.isin(batch.returns_to_go, np.float32(expected)).all()
    assert data.returns_to_go.shape == (2 * len(closing), 2)


def test_windows_need_episodes_that_are_long_enough(continuous: Dataset):
    concat_datasets([continuous], Needs(1, length=3))
    message = r"^Windows of 4 steps are longer than any episode of task 'toy/continuous' \(3\)\.$"
    with pytest.raises(UserError, match=message):
        concat_datasets([continuous], Needs(1, length=4))


def test_windows_need_steps_in_order(continuous: Dataset):
    """Transitions without order are stored as episodes of one step."""
    rows = jax.tree.map(lambda x: np.concatenate([x[7:], x[7:]]), continuous.rows)
    loose = dataclasses.replace(continuous, rows=rows)
    with pytest.raises(UserError, match=r"^A dataset of task 'toy/continuous' has no order of steps, which methods"):
        concat_datasets([continuous, loose], Needs(1, length=1))
    concat_datasets([continuous, loose], Needs(1))


def test_state_is_the_observations_or_what_was_stored(continuous: Dataset, discrete: Dataset):
    joint = transitions(_all_rows(continuous), jnp.array([2]), Needs(1, state=True))
    assert joint.state is not None and joint.next_state is not None
    np.testing.assert_array_equal(joint.state, [[2, 0, 0, 2, 0, 10]])
    np.testing.assert_array_equal(joint.next_state, [[3, 0, 0, 3, 0, 10]])
    stored = transitions(_all_rows(discrete), jnp.array([1]), Needs(1, state=True))
    assert stored.state is not None and stored.next_state is not None
    assert (stored.state.item(), stored.next_state.item()) == (8, 9)


def test_masks_are_those_of_both_observations(discrete: Dataset):
    batch = transitions(_all_rows(discrete), jnp.array([1]), Needs(1))
    assert batch.action_mask is not None and batch.next_action_mask is not None
    assert batch.action_mask.tolist() == [[[True, True, False]]]
    assert batch.next_action_mask.tolist() == [[[False, False, True]]]


def test_statistics_leave_final_observations_out(continuous: Dataset):
    obs = continuous.rows.obs.copy()
    obs[continuous.rows.closing] = 1e6
    stats = dataclasses.replace(continuous, rows=continuous.rows._replace(obs=obs)).stats()
    rows = np.array(list(NEXT))
    np.testing.assert_allclose(stats.obs_mean[:, 0], [rows.mean()] * 2, rtol=1e-6)
    np.testing.assert_allclose(stats.obs_std[:, 0], [rows.std()] * 2, rtol=1e-6)
    np.testing.assert_allclose(stats.obs_mean[:, 2], [0, 10], rtol=1e-6)
    np.testing.assert_allclose(stats.obs_std[:, 2], [1e-3, 1e-3], rtol=1e-6)  # the floor under constants


def test_devices_of_a_cpu_share_the_memory_of_the_data(continuous: Dataset):
    for datasets in ([continuous], [continuous, _shifted(continuous, 1.0)]):
        data, _ = concat_datasets(datasets, Needs(1))
        for array in (data.rows.obs, data.rows.actions, data.rows.rewards):
            assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data
    again, _ = concat_datasets([dataclasses.replace(continuous, rows=data.rows)], Needs(1))
    assert again.rows.obs is data.rows.obs
