"""Episodes as rows: steps are stored as they happened, and none after the end of an episode."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs import make
from omarl_envs.base import Journeys, MultiAgentEnv, Observation
from omarl_envs.particle.physics import State
from omarl_envs.spec import TaskSpec

from omarl_jax import make_algorithm, rollout
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.validation import validate
from omarl_jax.rollout import collect, evaluate, uniform_act
from omarl_jax.types import Context, Stats

LIMIT = 4


class Fuse(NamedTuple):
    key: jax.Array
    step: jax.Array
    left: jax.Array


class Fuses(MultiAgentEnv[Fuse]):
    """Starts with 1 to 6 to go, shows and pays the steps left, ends at 0 or is cut off after 4 steps.

    The first agent is done one step before the end. Whoever goes on after the end is paid a thousand.
    """

    def __init__(self):
        self.task_spec = TaskSpec("toy/fuses", "continuous", 2, 1, 1, 3, LIMIT)
        super().__init__()

    def reset(self, key):
        state = Fuse(key, jnp.int32(0), jax.random.randint(key, (), 1, 7))
        return state, self.first(self._observe(state))

    def step(self, state, actions):
        over = (state.left <= 0) | (state.step >= LIMIT)
        paid = jnp.where(over, 1000.0, state.left) + jnp.array([0.0, 2.0])
        state = state._replace(step=state.step + 1, left=state.left - 1)
        terminal = state.left <= jnp.array([1, 0])
        return state, self.next(state.step, self._observe(state), paid, terminal)

    def _observe(self, state):
        left = jnp.full((2, 1), state.left, jnp.float32)
        return Observation(left, 10.0 * jnp.full((3,), state.left))


def dataset(env, rows):
    made = Dataset(env.task_spec, rows, {})
    validate(made)
    return made


def test_replaying_the_stored_actions_gives_the_stored_observations_and_rewards():
    env = make("particle/spread")
    [(rows, _)] = collect(env, uniform_act(env.task_spec), (), None, [jax.random.key(3)], episodes=4)
    by_episode = jax.tree.map(lambda x: x.reshape(4, 26, *x.shape[1:]), rows)

    # Exactly 25 transitions and the closing row; the time limit is no end.
    assert (by_episode.closing == (np.arange(26) == 25)).all()
    assert (by_episode.truncated == (np.arange(26) == 24)).all()
    assert not rows.terminal.any()
    assert dataset(env, rows).size == 100
    assert rows.state is None  # it is the observations

    # An observation tells the whole state: velocity, position, and landmarks relative to it.
    first = jnp.asarray(by_episode.obs[:, 0])  # (4, 3, 18)
    position = first[:, :, 2:4]
    landmarks = first[:, 0, 4:10].reshape(4, 3, 2) + position[:, :1]
    keys = jax.random.split(jax.random.key(99), 4)  # the dynamics draw nothing
    state = State(keys, jnp.zeros(4, jnp.int32), position, first[:, :, 0:2], landmarks)
    step = jax.jit(jax.vmap(env.step))
    for t in range(25):
        state, timestep = step(state, by_episode.actions[:, t])
        np.testing.assert_allclose(timestep.observation.agents_view, by_episode.obs[:, t + 1], atol=2e-4)
        np.testing.assert_allclose(timestep.reward, by_episode.rewards[:, t], atol=2e-2)

    actions = by_episode.actions[:, :25]
    assert (np.abs(actions) <= 1).all()
    assert len(np.unique(actions)) > 590  # of 600: neither steps, agents nor episodes share their noise
    assert len(np.unique(first)) > 4 * 12
    assert not by_episode.actions[:, 25].any()
    assert not by_episode.rewards[:, 25].any()


def test_a_matrix_game_is_one_terminal_step():
    env = make("matrix/xor")
    [(rows, _)] = collect(env, uniform_act(env.task_spec), (), None, [jax.random.key(0)], episodes=400)
    made = dataset(env, rows)
    assert made.size == 400
    np.testing.assert_array_equal(rows.closing, np.tile([False, True], 400))
    assert rows.terminal[0::2].all()
    assert not rows.truncated.any()
    moves = rows.actions[0::2]
    np.testing.assert_array_equal(rows.rewards[0::2], np.repeat(moves[:, :1] != moves[:, 1:], 2, axis=1))
    assert rows.action_mask.all()
    joint = np.bincount(2 * moves[:, 0] + moves[:, 1], minlength=4)
    assert (np.abs(joint - 100) < 3 * np.sqrt(400 * 0.25 * 0.75)).all()  # uniform, and independent


def test_steps_after_an_early_end_leave_no_rows():
    env = Fuses()
    [(rows, totals)] = collect(env, uniform_act(env.task_spec), (), None, [jax.random.key(1)], episodes=40)
    episodes = np.split(np.arange(len(rows.closing)), np.flatnonzero(rows.closing)[:-1] + 1)
    assert len(episodes) == 40
    seen = set()
    for at in episodes:
        start = int(rows.obs[at[0], 0, 0])
        seen.add(start)
        steps = min(start, LIMIT)
        assert len(at) == steps + 1
        np.testing.assert_array_equal(rows.obs[at, :, 0], np.repeat(start - np.arange(steps + 1), 2).reshape(-1, 2))
        np.testing.assert_array_equal(rows.state[at, 2], 10 * (start - np.arange(steps + 1)))
        left = np.append(start - np.arange(steps), 0)  # in the closing row all is zero
        went_on = np.arange(steps + 1) < steps
        np.testing.assert_array_equal(rows.rewards[at, 0], left)
        np.testing.assert_array_equal(rows.rewards[at, 1], (left + 2) * went_on)
        np.testing.assert_array_equal(rows.terminal[at], went_on[:, None] & (left[:, None] <= [2, 1]))
        np.testing.assert_array_equal(rows.truncated[at], (np.arange(steps + 1) == steps - 1) & (start > LIMIT))
        np.testing.assert_array_equal((rows.actions[at] != 0).all(axis=(1, 2)), went_on)
    assert seen == {1, 2, 3, 4, 5, 6}
    starts = np.array([rows.obs[at[0], 0, 0] for at in episodes])
    steps = np.minimum(starts, LIMIT)
    by_hand = steps * starts - steps * (steps - 1) / 2 + steps  # Σ left, and half of the second agent's 2 a step
    np.testing.assert_allclose(dataset(env, rows).episode_returns(), by_hand)
    np.testing.assert_allclose(totals["return"], by_hand)


def test_evaluation_counts_nothing_after_an_early_end():
    env = Fuses()
    played = evaluate(env, uniform_act(env.task_spec), (), None, jax.random.key(0), episodes=200)
    # Σ left + 1 a step, from each of the six starts, and how many steps these were.
    by_hand = {(2.0, 1.0), (5.0, 2.0), (9.0, 3.0), (14.0, 4.0), (18.0, 4.0), (22.0, 4.0)}
    assert set(zip(played["return"].tolist(), played["length"].tolist(), strict=True)) == by_hand


def constant_act(policy, view, carry, key, explore=False):
    """Takes its only parameter as action, the second agent its negative if it explores."""
    return jnp.stack([policy, jnp.where(explore, -policy, policy)])[:, None], carry


def first_actions(rows):
    starts = np.append(0, np.flatnonzero(rows.closing)[:-1] + 1)
    return rows.actions[starts, :, 0]


@pytest.mark.parametrize("episodes", [6, 7])
def test_policies_play_equal_shares(episodes):
    policies = jnp.array([0.1, 0.2, 0.3])
    env = Fuses()
    [(rows, _)] = collect(env, constant_act, (), policies, [jax.random.key(0)], episodes)
    actions = first_actions(rows)
    np.testing.assert_allclose(actions[:, 0], np.sort(actions[:, 0]))  # one after the other
    shares = [np.isclose(actions[:, 0], policy).sum() for policy in (0.1, 0.2, 0.3)]
    assert sum(shares) == episodes
    assert max(shares) - min(shares) == episodes % 3
    np.testing.assert_allclose(actions[:, 1], -actions[:, 0])
    [(greedy, _)] = collect(env, constant_act, (), policies, [jax.random.key(0)], episodes, explore=False)
    np.testing.assert_allclose(first_actions(greedy)[:, 1], actions[:, 0])


# An episode of `Fuses` in float32: obs 5 x 2, state 5 x 3, actions and rewards 4 x 2 each, two totals; then the bools.
EPISODE = 4 * (10 + 15 + 8 + 8 + 2) + 8 + 4


@pytest.mark.parametrize(
    ("policies", "most", "sizes"),
    [
        (jnp.array([0.1, 0.2, 0.3]), 4 * (EPISODE + 4), [4, 4, 2]),  # with a policy for each, a number
        (jnp.array([0.1, 0.2, 0.3]), 4 * (EPISODE + 4) - 1, [3, 3, 3, 1]),
        (jnp.array([0.1]), 9 * EPISODE, [5, 5]),  # equal groups, and one policy for all
        (jnp.array([0.1]), 1, [1] * 10),
    ],
)
def test_groups_of_episodes_fit_into_memory_and_change_no_row(monkeypatch, policies, most, sizes):
    env = Fuses()
    [whole] = collect(env, constant_act, (), policies, [jax.random.key(5)], episodes=10)
    found, store = [], rollout._episode_store
    monkeypatch.setattr(rollout, "BYTES_AT_ONCE", most)
    monkeypatch.setattr(rollout, "_episode_store", lambda played: found.append(len(played.valid)) or store(played))
    [groups] = collect(env, constant_act, (), policies, [jax.random.key(5)], episodes=10)
    assert found == sizes
    jax.tree.map(np.testing.assert_array_equal, whole, groups)


def test_groups_change_no_evaluation(monkeypatch):
    env, key = Fuses(), jax.random.key(3)
    whole = evaluate(env, uniform_act(env.task_spec), (), None, key, episodes=10)
    monkeypatch.setattr(rollout, "BYTES_AT_ONCE", 1000)
    groups = jax.jit(lambda key: evaluate(env, uniform_act(env.task_spec), (), None, key, episodes=10))
    assert "while" in groups.lower(key).as_text()
    jax.tree.map(np.testing.assert_array_equal, whole, groups(key))


def evaluation_memory(steps: int, runs: int, episodes: int) -> int:
    """Bytes that evaluating an actor-critic policy on spread takes beside its arguments and results."""
    env = make("particle/spread")
    env.task_spec = dataclasses.replace(env.task_spec, episode_length=steps)
    learner = make_algorithm("matd3", env.task_spec)
    context = Context(Stats.unknown(env.task_spec))
    keys = jax.random.split(jax.random.key(0), runs)
    policies = jax.eval_shape(jax.vmap(lambda key: learner.init(key, context).policy), keys)
    one = functools.partial(evaluate, env, learner.act, learner.carry, episodes=episodes, policies=runs)
    compiled = jax.jit(jax.vmap(lambda policy, key: one(policy, key))).lower(policies, keys).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_memory_of_an_evaluation_does_not_grow_with_the_episodes_length():
    short, long = evaluation_memory(10, runs=20, episodes=50), evaluation_memory(1000, runs=20, episodes=50)
    # A single number kept of each step would take 4 MB.
    assert long - short < 10_000
    assert long < 4e6


@pytest.mark.parametrize("runs", [1, 4])
def test_an_evaluation_of_many_episodes_takes_the_memory_of_a_group(monkeypatch, runs):
    monkeypatch.setattr(rollout, "BYTES_AT_ONCE", 100_000)  # about 100 episodes, of all runs together
    # Beside the group there are keys, two numbers an episode, and two totals, each more than once.
    assert evaluation_memory(10, runs, episodes=2500) < 1.5 * 100_000 + runs * 2500 * 40


def test_memory_is_carried_and_begins_anew_with_each_episode():
    def act(policy, view, carry, key, explore=False):
        return jnp.full((2, 1), carry / 10.0), carry + 1

    [(rows, _)] = collect(Fuses(), act, jnp.int32(1), None, [jax.random.key(2)], episodes=10)
    closing = np.flatnonzero(rows.closing)
    for start, end in zip(np.append(0, closing[:-1] + 1), closing, strict=True):
        np.testing.assert_allclose(rows.actions[start:end, 0, 0], (1 + np.arange(end - start)) / 10)


class Count(NamedTuple):
    key: jax.Array
    step: jax.Array


class Counting(MultiAgentEnv[Count]):
    """Shows the number of the step, and pays the one that it leads to."""

    def __init__(self):
        self.task_spec = TaskSpec("toy/counting", "continuous", 1, 1, 1, 1, 5, state_is_obs=True)
        super().__init__()

    def reset(self, key):
        state = Count(key, jnp.int32(0))
        return state, self.first(self._observe(state))

    def step(self, state, actions):
        state = state._replace(step=state.step + 1)
        return state, self.next(state.step, self._observe(state), jnp.float32(state.step)[None])

    def _observe(self, state):
        return Observation(jnp.float32(state.step)[None, None], jnp.float32(state.step)[None])


def _travelled(ends: set[int], reward) -> tuple[Dataset, float]:
    """Eight steps of the count, of which some are the last to their target; actions are tenths of it."""
    marks = jnp.array([t in ends for t in range(8)])

    def act(obs, memory, key):
        return obs / 10, (obs, marks[obs[0, 0].astype(int)])

    start = jnp.zeros((1, 1)), jnp.bool_(False)
    journeys = Journeys(act, "counts", lambda key: start, lambda memory: memory, reward)
    env = Counting()
    ((rows, totals),) = rollout.travel(env, journeys, [jax.random.key(0)], 8)
    data = Dataset(env.task_spec, rows)
    validate(data)
    return data, float(totals["return"].mean())


def test_stretches_to_a_target_end_with_what_the_next_one_begins_with():
    data, mean_return = _travelled({0, 3, 4}, None)
    rows = data.rows
    np.testing.assert_array_equal(data.lengths, [1, 3, 1, 3])
    np.testing.assert_array_equal(rows.obs[:, 0, 0], [0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8])
    np.testing.assert_array_equal(rows.rewards[:, 0], [1, 0, 2, 3, 4, 0, 5, 0, 6, 7, 8, 0])
    np.testing.assert_allclose(rows.actions[:, 0, 0], [0, 0, 0.1, 0.2, 0.3, 0, 0.4, 0, 0.5, 0.6, 0.7, 0])
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), [0, 4, 6, 10])
    assert mean_return == pytest.approx(5 * 4.5)  # the mean reward times the length of an episode


def test_where_the_last_step_is_no_transition_it_ends_the_stretch():
    data, mean_return = _travelled({0, 3, 4}, lambda seen: 10 * seen[:, 0])
    rows = data.rows
    np.testing.assert_array_equal(data.lengths, [2, 2])  # of the stretches of one step nothing is left
    np.testing.assert_array_equal(rows.obs[:, 0, 0], [1, 2, 3, 5, 6, 7])
    np.testing.assert_array_equal(rows.rewards[:, 0], [10, 20, 0, 50, 60, 0])
    np.testing.assert_allclose(rows.actions[:, 0, 0], [0.1, 0.2, 0, 0.5, 0.6, 0])
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), [1, 4])
    assert mean_return == pytest.approx(5 * 35)
