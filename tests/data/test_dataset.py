import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omarl_jax.data.dataset import Dataset, concat_datasets, sample, transitions
from omarl_jax.errors import UserError
from omarl_jax.types import Needs

NEXT = {0: 1, 1: 2, 2: 3, 4: 5, 5: 6, 7: 8}  # row of each transition: row of its next observation
WITH_NEXT_ACTION = [0, 1, 4]
ENDED = [5, 7]  # nobody acts after these


def _shifted(dataset: Dataset, by: float) -> Dataset:
    return dataclasses.replace(dataset, rows=dataset.rows._replace(obs=dataset.rows.obs + np.float32(by)))


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
    np.testing.assert_array_equal(transitions(rows, jnp.array([0]), Needs(1)).next_obs[0, :, 0], [8, 8])
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
    needs = Needs(batch_size=3000, batches=20)
    data, (window,) = concat_datasets([continuous], needs)
    batch = sample(data, window, jax.random.key(3), needs)
    assert batch.obs.shape == (20, 3000, 2, 3)
    counts = np.bincount(np.asarray(batch.obs)[..., 0, 0].astype(int).ravel(), minlength=9)[list(NEXT)]
    expected = 60_000 / 6
    assert 0.5 < ((counts - expected) ** 2 / expected).sum() < 16.7  # chi-square, 5 degrees: 0.8 % and 99.5 %
    assert len(np.unique(np.asarray(batch.obs)[:, :50, 0, 0], axis=0)) == 20  # batches of a round differ


def test_state_is_the_observations_or_what_was_stored(continuous: Dataset, discrete: Dataset):
    joint = transitions(continuous.rows, jnp.array([2]), Needs(1, state=True))
    assert joint.state is not None and joint.next_state is not None
    np.testing.assert_array_equal(joint.state, [[2, 0, 0, 2, 0, 10]])
    np.testing.assert_array_equal(joint.next_state, [[3, 0, 0, 3, 0, 10]])
    stored = transitions(jax.tree.map(jnp.asarray, discrete.rows), jnp.array([1]), Needs(1, state=True))
    assert stored.state is not None and stored.next_state is not None
    assert (stored.state.item(), stored.next_state.item()) == (8, 9)


def test_masks_are_those_of_both_observations(discrete: Dataset):
    batch = transitions(jax.tree.map(jnp.asarray, discrete.rows), jnp.array([1]), Needs(1))
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
