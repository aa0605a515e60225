"""Tasks whose observations follow from the state: data hold the state alone, and batches have the observations."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs import views
from omarl_envs.base import MultiAgentEnv, Observation
from omarl_envs.spec import TaskSpec

from omarl_jax import online, rollout
from omarl_jax.data import card, storage
from omarl_jax.data.dataset import Dataset, EpisodeStore, concat_datasets, sample, transitions
from omarl_jax.data.episodes import from_episodes
from omarl_jax.data.validation import validate
from omarl_jax.errors import UserError
from omarl_jax.types import Algorithm, Needs

SPEC = TaskSpec("toy/derived", "continuous", 2, 5, 1, 3, 3, obs_from_state="standardised")
STATES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)  # episodes of 3 and 2 steps
CLOSING = np.isin(np.arange(7), [3, 6])


def expected(state: np.ndarray) -> np.ndarray:
    """(…, 3) -> (…, 2, 5): OMIGA's formula, written out."""
    state = np.asarray(state, np.float64)
    agents = []
    for one_hot in np.eye(2):
        whole = np.concatenate([state, np.broadcast_to(one_hot, (*state.shape[:-1], 2))], axis=-1)
        mean = whole.sum(axis=-1, keepdims=True) / 5
        agents.append((whole - mean) / np.sqrt(((whole - mean) ** 2).sum(axis=-1, keepdims=True) / 5))
    return np.stack(agents, axis=-2)


@pytest.fixture
def dataset() -> Dataset:
    none = np.zeros((7, 2), np.float32)
    truncated, terminal = np.arange(7) == 2, np.repeat((np.arange(7) == 5)[:, None], 2, axis=1)
    return Dataset(SPEC, EpisodeStore(None, none[..., None], none, terminal, truncated, CLOSING, STATES))


def test_rules_are_the_same_in_numpy_and_jax() -> None:
    for rule in ("repeated", "standardised"):
        found = views.derive(rule, STATES, 2)
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(jax.jit(lambda x, rule=rule: views.derive(rule, x, 2))(STATES), found, atol=1e-5)
    np.testing.assert_allclose(views.derive("standardised", STATES, 2), expected(STATES), atol=1e-5)
    np.testing.assert_array_equal(views.derive("repeated", STATES, 2), np.stack([STATES, STATES], axis=1))


def test_batches_have_the_observations_of_their_states(dataset: Dataset) -> None:
    validate(dataset)
    needs = Needs(batch_size=200)
    data, (window,) = concat_datasets([dataset], needs)
    assert data.rows.obs is None
    # Which row a transition comes from shows in its actions.
    data = data._replace(rows=data.rows._replace(actions=np.tile(np.arange(7.0)[:, None, None], (1, 2, 1))))
    data = jax.tree.map(jnp.asarray, data)
    batch = jax.jit(lambda data, key: sample(data, window, key, needs))(data, jax.random.key(0))
    row = np.asarray(batch.actions[:, 0, 0], int)
    assert set(row.tolist()) == {0, 1, 2, 4, 5}
    np.testing.assert_allclose(batch.obs, expected(STATES[row]), atol=1e-5)
    np.testing.assert_allclose(batch.next_obs, expected(STATES[row + 1]), atol=1e-5)
    assert batch.state is None
    with_state = transitions(data, jnp.array([4]), Needs(1, state=True))
    np.testing.assert_array_equal(with_state.state, STATES[[4]])
    np.testing.assert_array_equal(with_state.next_state, STATES[[5]])
    windows = sample(data, window, jax.random.key(1), Needs(50, length=2))
    assert windows.obs.shape == (50, 2, 2, 5)
    first = np.asarray(windows.actions[:, 0, 0, 0], int)
    np.testing.assert_allclose(windows.obs[:, 1], expected(STATES[first + 1]), atol=1e-5)


def test_statistics_and_cards_are_of_the_derived_observations(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omarl_jax.data.dataset._ROWS_AT_ONCE", 3)  # parts that do not end with an episode
    obs = expected(STATES)
    stats = dataset.stats()
    np.testing.assert_allclose(stats.obs_mean, obs[~CLOSING].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(stats.obs_std, obs[~CLOSING].std(axis=0), atol=1e-5)
    facts = card.card(dataset)
    np.testing.assert_allclose(facts.obs_min, obs.min(axis=0), atol=1e-5)
    np.testing.assert_allclose(facts.obs_max, obs.max(axis=0), atol=1e-5)


def test_they_are_not_on_disk_either(dataset: Dataset, tmp_path) -> None:
    storage.save(dataset, tmp_path / "data")
    assert not (tmp_path / "data" / "obs.npy").exists()
    again = storage.load(tmp_path / "data", SPEC)
    assert again.rows.obs is None
    assert again.spec == SPEC
    np.testing.assert_array_equal(again.rows.state, STATES)
    assert storage.content_hash(again) == storage.content_hash(dataset)


def test_observations_that_are_stored_all_the_same_are_refused(dataset: Dataset) -> None:
    stored = dataset.rows._replace(obs=expected(STATES).astype(np.float32))
    with pytest.raises(UserError, match="obs must not be stored: on task 'toy/derived' they follow from the state"):
        validate(dataclasses.replace(dataset, rows=stored))
    with pytest.raises(UserError, match="The dataset's state is missing on task 'toy/derived'"):
        validate(dataclasses.replace(dataset, rows=dataset.rows._replace(state=None)))
    own = dataclasses.replace(dataset, spec=dataclasses.replace(SPEC, obs_from_state=""), rows=stored)
    validate(own)  # as a log that holds observations alone would come
    with pytest.raises(UserError, match="Some datasets of task 'toy/derived' hold observations, others derive them"):
        concat_datasets([dataset, own], Needs(1))
    missing = dataclasses.replace(own, rows=stored._replace(obs=None))
    with pytest.raises(UserError, match="The dataset's obs is missing"):
        validate(missing)


@pytest.mark.parametrize("listed", [True, False])
def test_logs_need_no_observations(dataset: Dataset, listed: bool) -> None:
    rows, parts = dataset.rows, (slice(0, 3), slice(4, 6))
    steps = {name: [getattr(rows, name)[part] for part in parts] for name in ("actions", "rewards", "terminal")}
    steps |= {"truncated": [rows.truncated[part] for part in parts], "state": [STATES[part] for part in parts]}
    if not listed:
        steps = {name: np.concatenate(values) for name, values in steps.items()}
    last = {"last_obs": None, "last_state": STATES[[3, 6]], "lengths": None if listed else [3, 2]}
    found = from_episodes(SPEC, None, **steps, **last)
    jax.tree.map(np.testing.assert_array_equal, found, rows)
    with pytest.raises(UserError, match=r"state has shape .* It looks like 2 episodes of 3 steps: pass `state=list"):
        from_episodes(SPEC, None, **(steps | {"state": np.zeros((2, 3, 3))}), **last)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_from_state": "copied"}, "must be one of repeated, standardised, not 'copied'"),
        ({"obs_dim": 3}, "have length 5, not 3"),
        ({"obs_from_state": "repeated"}, "have length 3, not 5"),
        ({"obs_dims": (5, 4)}, r"have length 5, not \(5, 4\)"),
        ({"state_is_obs": True}, "cannot have both state_is_obs and obs_from_state"),
    ],
)
def test_tasks_that_contradict_their_rule_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **changes)


class Walk(NamedTuple):
    key: jax.Array
    step: jax.Array
    place: jax.Array


class Walks(MultiAgentEnv[Walk]):
    """Shows a place that moves by what the agents do."""

    def __init__(self) -> None:
        self.task_spec = SPEC
        super().__init__()

    def reset(self, key):
        state = Walk(key, jnp.int32(0), jax.random.normal(key, (3,)))
        return state, self.first(self._observe(state))

    def step(self, state, actions):
        state = state._replace(step=state.step + 1, place=state.place + actions.sum() * jnp.arange(1.0, 4.0))
        return state, self.next(state.step, self._observe(state), actions[:, 0])

    def _observe(self, state):
        return Observation(views.derive("standardised", state.place, 2), state.place)


def test_collected_data_hold_states_alone() -> None:
    env = Walks()
    ((rows, _),) = rollout.collect(env, rollout.uniform_act(SPEC), (), None, [jax.random.key(0)], episodes=4)
    assert rows.obs is None
    assert rows.state.shape == (16, 3)
    validate(Dataset(SPEC, rows))
    moved = rows.actions.sum(axis=(1, 2))[:3, None] * np.arange(1, 4)
    np.testing.assert_allclose(rows.state[1:4] - rows.state[:3], moved, atol=1e-5)


@pytest.mark.parametrize("state", [True, False])
def test_replay_buffers_hold_states_alone_and_learners_see_observations(state: bool) -> None:
    class Learner(NamedTuple):
        policy: jax.Array
        batch: object

    def update(learner, batch, key):
        return Learner(learner.policy, (batch.obs, batch.next_obs, batch.rewards)), {
            "none": jnp.bool_(batch.state is None)
        }

    def act(policy, view, carry, key, explore=False):
        assert view.obs.shape == (2, 5)
        return jax.random.uniform(key, (2, 1)) * policy, carry

    seen = jnp.zeros((8, 2, 5)), jnp.zeros((8, 2, 5)), jnp.zeros((8, 2))
    algorithm = Algorithm(lambda key, context: None, update, act, Needs(8, state=state), explores=True)
    settings = online.OnlineSettings(n_envs=4, capacity=40, warmup=4)
    start = online.init(algorithm, Learner(jnp.float32(1.0), seen), Walks(), settings, jax.random.key(0))
    after, metrics = online.step(algorithm, Walks(), settings, start, jnp.int32(0), jax.random.key(1))
    assert bool(metrics["none"]) != state
    buffer = after.buffer
    assert buffer.obs is None and buffer.next_obs is None
    assert buffer.state.shape == (40, 3)
    obs, next_obs, rewards = (np.asarray(x) for x in after.learner.batch)
    at = [int(np.flatnonzero((np.asarray(buffer.rewards) == reward).all(axis=1))[0]) for reward in rewards]
    np.testing.assert_allclose(obs, expected(np.asarray(buffer.state)[at]), atol=1e-4)
    np.testing.assert_allclose(next_obs, expected(np.asarray(buffer.next_state)[at]), atol=1e-4)
