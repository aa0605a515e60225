"""A dataset small enough to be worked out by hand."""

import numpy as np
import pytest
from omarl_envs.spec import TaskSpec

from omarl_jax.data.dataset import Dataset, EpisodeStore


@pytest.fixture
def continuous() -> Dataset:
    """Two agents, episodes of 3, 2 and 1 steps in rows 0-2, 4-5 and 7; rows 3, 6 and 8 hold their final observations.

    obs of agent n in row m is (m, episode, 10 n); the first episode ends truncated, the others terminal.
    """
    spec = TaskSpec("toy/continuous", "continuous", 2, 3, 2, 6, 3, state_is_obs=True)
    row = np.arange(9)
    obs = np.zeros((9, 2, 3), np.float32)
    obs[..., 0] = row[:, None]
    obs[..., 1] = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])[:, None]
    obs[:, 1, 2] = 10
    closing = np.isin(row, [3, 6, 8])
    actions = np.zeros((9, 2, 2), np.float32)
    actions[:, 0] = (row / 10)[:, None]
    actions[:, 1, 1] = -1
    rewards = np.stack([row, 3.0 * row], axis=1).astype(np.float32)  # 2 m on average
    actions[closing] = rewards[closing] = 0
    terminal = np.repeat(np.isin(row, [5, 7])[:, None], 2, axis=1)
    metadata = {"recipe": "toy", "behaviour": "by hand", "seed": 3, "random": 0.0, "expert": 20.0}
    return Dataset(spec, EpisodeStore(obs, actions, rewards, terminal, row == 2, closing), metadata)


@pytest.fixture
def discrete() -> Dataset:
    """One agent with 3 actions and a state of its own, one episode of 2 of 4 steps; only in row 2 is action 2 legal."""
    spec = TaskSpec("toy/discrete", "discrete", 1, 2, 3, 1, 4)
    rows = EpisodeStore(
        obs=np.array([[[0, 1]], [[2, 3]], [[4, 5]]], np.float32),
        actions=np.array([[1], [0], [0]], np.int32),
        rewards=np.array([[1], [2], [0]], np.float32),
        terminal=np.array([[False], [True], [False]]),
        truncated=np.zeros(3, np.bool_),
        closing=np.array([False, False, True]),
        state=np.array([[7], [8], [9]], np.float32),
        action_mask=np.array([[[1, 1, 0]], [[1, 1, 0]], [[0, 0, 1]]], np.bool_),
    )
    return Dataset(spec, rows, {"seed": 0})
