"""Policies with memory, from windows of data to a saved policy that acts step by step."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.base import MultiAgentEnv, Observation
from omarl_envs.spec import TaskSpec

from omarl_jax import Dataset, from_episodes, load_policy, train
from omarl_jax.errors import UserError

STEPS = 11


class Recall(MultiAgentEnv[Any]):
    """Each agent sees a cue of its own, 1 or -1, in the first step only, and is paid for repeating it in the last."""

    def __init__(self) -> None:
        self.task_spec = TaskSpec("toy/recall", "discrete", 2, 2, 2, 4, STEPS, state_is_obs=True)
        super().__init__()

    def reset(self, key: jax.Array) -> Any:
        cue = jax.random.bernoulli(key, shape=(2,)).astype(jnp.int32)
        state = (cue, jnp.int32(0))
        return state, self.first(self._observation(state))

    def step(self, state: Any, actions: jax.Array) -> Any:
        cue, t = state
        paid = jnp.where(t == STEPS - 1, (actions == cue).astype(jnp.float32), 0.0)
        after = (cue, t + 1)
        return after, self.next(t + 1, self._observation(after), paid)

    def _observation(self, state: Any) -> Observation:
        cue, t = state
        shown = jnp.where(t == 0, 2.0 * cue - 1.0, 0.0)
        obs = jnp.stack([shown, jnp.full(2, t == STEPS - 1, jnp.float32)], axis=-1)
        return Observation(obs, obs.reshape(-1), jnp.ones((2, 2), bool))


def demonstrations(episodes: int) -> Dataset:
    """An expert that acts at random until it repeats its cue."""
    rng, spec = np.random.default_rng(0), Recall().task_spec
    cues = rng.integers(2, size=(episodes, 2))
    obs = np.zeros((episodes, STEPS + 1, 2, 2), np.float32)
    obs[:, 0, :, 0] = 2 * cues - 1
    obs[:, STEPS - 1, :, 1] = 1
    actions = rng.integers(2, size=(episodes, STEPS, 2)).astype(np.int32)
    actions[:, -1] = cues
    rewards = np.zeros((episodes, STEPS, 2), np.float32)
    rewards[:, -1] = 1
    rows = from_episodes(
        spec,
        list(obs[:, :-1]),
        list(actions),
        list(rewards),
        [np.zeros((STEPS, 2), bool)] * episodes,
        [np.arange(STEPS) == STEPS - 1] * episodes,
        obs[:, -1],
        action_mask=[np.ones((STEPS, 2, 2), bool)] * episodes,
        last_action_mask=np.ones((episodes, 2, 2), bool),
    )
    return Dataset(spec, rows, {})


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, float]]:
    """The saved policy and the return of clones with and without memory."""
    found = {}
    for memory in (16, 0):
        overrides = {"memory": memory, "window": STEPS, "lr": 0.02, "batch_size": 64, "input_norm": "none"}
        result = train("bc", demonstrations(200), updates=300, evaluations=1, episodes=200, env=Recall(), **overrides)
        path = tmp_path_factory.mktemp("policies") / f"{memory}.npz"
        result.save_policy(0, path)
        found[memory] = path, float(result.returns[-1, 0])
    return found


def test_a_cue_is_recalled_with_memory_only(policies: dict[int, tuple[Path, float]]) -> None:
    assert policies[16][1] > 0.98
    assert policies[0][1] < 0.65  # 0.5 is chance


def test_a_saved_policy_steps_with_its_carry(policies: dict[int, tuple[Path, float]]) -> None:
    policy = load_policy(policies[16][0])
    for cue in ((0, 1), (1, 0), (1, 1)):
        carry = policy.start()
        for t in range(STEPS):
            obs = np.zeros((2, 2), np.float32)
            obs[:, 0] = 2 * np.array(cue) - 1 if t == 0 else 0
            obs[:, 1] = t == STEPS - 1
            actions, carry = policy.step(obs, np.ones((2, 2), bool), carry)
        np.testing.assert_array_equal(actions, cue)
    with pytest.raises(UserError, match=r"use start\(\) and step\(\)"):
        policy.act(obs)


def test_memory_needs_whole_windows_in_order() -> None:
    overrides = {"memory": 4, "batch_size": 8, "updates": 1, "evaluations": 1, "env": Recall()}
    with pytest.raises(UserError, match="longer than any episode"):
        train("bc", demonstrations(4), window=STEPS + 1, **overrides)
    spec, one = Recall().task_spec, demonstrations(4).rows
    shuffled = from_episodes(
        spec,
        *(np.asarray(getattr(one, name))[:5] for name in ("obs", "actions", "rewards", "terminal", "truncated")),
        last_obs=np.asarray(one.obs)[1:6],
        lengths=np.ones(5, np.int32),
        action_mask=np.ones((5, 2, 2), bool),
        last_action_mask=np.ones((5, 2, 2), bool),
    )
    with pytest.raises(UserError, match="no order of steps"):
        train("bc", Dataset(spec, shuffled, {}), window=2, **overrides)


def test_memory_and_batch_normalisation_are_refused() -> None:
    with pytest.raises(UserError, match="without batch normalisation"):
        train("bc", demonstrations(4), memory=4, input_norm="batch", updates=1, env=Recall())
