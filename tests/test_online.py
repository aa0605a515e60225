"""Online training: what stands in the buffer, when learning begins, and that it learns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.base import MultiAgentEnv, Observation
from omarl_envs.spec import TaskSpec

from omarl_jax import UserError, make_algorithm, online
from omarl_jax.datasets import behaviour
from omarl_jax.placement import Placement
from omarl_jax.types import Algorithm, Context, Needs, Stats, View

V, LENGTH = 4, 3


class Clock(NamedTuple):
    key: jax.Array
    step: jax.Array
    name: jax.Array


class Clocks(MultiAgentEnv[Clock]):
    """Shows the step and a number from 1 to 2 drawn at the reset; pays each agent its action; ends after 3 steps."""

    def __init__(self):
        self.task_spec = TaskSpec("toy/clocks", "continuous", 2, 2, 1, 4, LENGTH, state_is_obs=True)
        super().__init__()

    def reset(self, key):
        state = Clock(key, jnp.int32(0), jax.random.uniform(key, (), minval=1.0, maxval=2.0))
        return state, self.first(self._observe(state))

    def step(self, state, actions):
        state = state._replace(step=state.step + 1)
        return state, self.next(state.step, self._observe(state), actions[:, 0])

    def _observe(self, state):
        view = jnp.tile(jnp.stack([state.step.astype(jnp.float32), state.name]), (2, 1))
        return Observation(view, view.reshape(-1))


class Counter(NamedTuple):
    """A learner that only counts its updates and keeps its last batch."""

    policy: jax.Array
    updates: jax.Array
    seen: jax.Array


def counter(**needs):
    """An algorithm that acts with its one parameter, and adds 0.01 to it each update."""

    def update(state, batch, key):
        seen = batch.obs[:, 0]  # (B, 2): step and number
        return Counter(state.policy + 0.01, state.updates + 1, seen), {"updates": state.updates}

    def act(policy, view, carry, key, explore=False):
        return jnp.full((2, 1), policy + (0.5 if explore else 0.0)), carry

    return Algorithm(lambda key, context: None, update, act, Needs(64, **needs), explores=True)


def learner(policy=0.2):
    return Counter(jnp.float32(policy), jnp.int32(0), jnp.zeros((64, 2)))


def run(steps, capacity=1_000, warmup=0, start=None):
    """The states after each step since the warm-up, as NumPy arrays."""
    env, algorithm = Clocks(), counter()
    settings = online.OnlineSettings(n_envs=V, capacity=capacity, warmup=warmup)
    state = online.init(algorithm, start or learner(), env, settings, jax.random.key(1))
    step = jax.jit(lambda state, i: online.step(algorithm, env, settings, state, i, jax.random.key(2)))
    states = []
    for i in range(steps):
        state, _ = step(state, jnp.int32(i))
        states.append(jax.tree.map(lambda x: None if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state))
    return jax.tree.map(np.asarray, states)


def clock(observations):
    """Of (…, N, O): the steps and the numbers; both agents see the same."""
    np.testing.assert_array_equal(observations[..., 0, :], observations[..., 1, :])
    return observations[..., 0, 0], observations[..., 0, 1]


def test_the_buffer_holds_the_newest_transitions():
    states = run(steps=7, capacity=11)  # room for two steps of four environments
    for i, state in enumerate(states):
        assert state.buffer.obs.shape == (2 * V, 2, 2)
        steps, _ = clock(state.buffer.obs)
        ring = np.zeros(2 * V)
        for written in range(i + 1):
            ring[written % 2 * V : (written % 2 + 1) * V] = written % LENGTH
        np.testing.assert_array_equal(steps, ring)
        # Only what has been written is drawn.
        drawn = set(state.learner.seen[:, 1].tolist())
        held = set(state.buffer.obs[:, 0, 1].tolist()) - {0.0}
        assert drawn == held


def test_environments_are_reset_where_an_episode_ends_and_only_there():
    buffer = run(steps=7)[-1].buffer
    rows = 7 * V
    by_step = jax.tree.map(lambda x: x[:rows].reshape(7, V, *x.shape[1:]), buffer)
    steps, names = clock(by_step.obs)
    next_steps, next_names = clock(by_step.next_obs)
    np.testing.assert_array_equal(steps, np.tile((np.arange(7) % LENGTH)[:, None], V))
    np.testing.assert_array_equal(next_steps, steps + 1)  # the true last observation, not that after the reset
    np.testing.assert_array_equal(next_names, names)
    np.testing.assert_array_equal(by_step.truncated, steps == LENGTH - 1)
    assert not by_step.terminal.any()
    for episode in (0, 3):
        assert (names[episode : episode + 3] == names[episode]).all()
    assert len(np.unique(names)) == 3 * V  # every reset of every environment draws its own


def test_nothing_is_learnt_while_warming_up():
    states = run(steps=3, warmup=3 * V)
    assert [int(state.learner.updates) for state in states] == [1, 2, 3]
    actions = states[-1].buffer.actions[: 6 * V].reshape(6, V, 2)
    warm = actions[:3]
    assert len(np.unique(warm)) == warm.size
    assert (warm < 0).any()
    assert (warm > 0.5).any()
    # Afterwards the policy acts, with its exploration, and as it was before the update of that step.
    np.testing.assert_allclose(actions[3:], 0.7 + 0.01 * np.arange(3)[:, None, None] * np.ones((3, V, 2)), rtol=1e-5)
    np.testing.assert_allclose(states[-1].buffer.rewards[: 6 * V], actions.reshape(-1, 2))


def test_fine_tuning_starts_from_the_given_learner():
    trained = Counter(jnp.float32(-0.25), jnp.int32(40), jnp.zeros((64, 2)))
    states = run(steps=2, start=trained)
    np.testing.assert_allclose(states[0].buffer.actions[:V], 0.25)  # -0.25, and 0.5 for exploring
    assert [int(state.learner.updates) for state in states] == [41, 42]


@pytest.mark.parametrize("needs", [{"next_actions": True}, {"length": 2}, {"returns_to_go": True}])
def test_methods_that_need_more_than_transitions_are_refused(needs):
    with pytest.raises(UserError, match="cannot learn online"):
        online.init(counter(**needs), learner(), Clocks(), online.OnlineSettings(n_envs=2), jax.random.key(0))


def test_policies_with_memory_are_refused():
    with pytest.raises(UserError, match="its policy has a memory"):
        recurrent = counter()._replace(carry=jnp.zeros(3))
        online.init(recurrent, learner(), Clocks(), online.OnlineSettings(n_envs=2), jax.random.key(0))


def test_matd3_learns_a_trivial_task():
    settings = online.OnlineSettings(n_envs=8, capacity=2_000, warmup=160)
    overrides = {"hidden": (8,), "batch_size": 64, "exploration_noise": 0.2, "input_norm": "none"}
    snapshots = behaviour.train(Clocks(), "matd3", overrides, [0], updates=400, every=200, settings=settings)
    assert [snapshot["updates"] for snapshot in snapshots] == [0, 200, 400]
    untrained, _, trained = (snapshot["returns"] for snapshot in snapshots)
    assert untrained < 1
    assert trained > 2.9  # of 3
    # At the best action only noise that falls below it shows: E[min(σ z, 0)] = -σ / sqrt(2 π) a step.
    assert snapshots[-1]["explored"] == pytest.approx(3 - 3 * 0.2 / np.sqrt(2 * np.pi), abs=0.05)


def test_a_seed_alone_learns_as_it_does_among_others(monkeypatch):
    settings = online.OnlineSettings(n_envs=4, capacity=100, warmup=8)
    overrides = {"hidden": (8,), "batch_size": 16}

    def train(seeds):
        return behaviour.train(Clocks(), "matd3", overrides, seeds, updates=10, every=5, settings=settings)

    alone = train([7])
    monkeypatch.setattr(Placement, "default", lambda runs: Placement(2, 1))  # two side by side, then the third
    among = train([3, 7, 5])
    assert [(s["seed"], s["updates"]) for s in among] == [(seed, made) for seed in (3, 7, 5) for made in (0, 5, 10)]
    for one, other in zip(alone, among[3:6], strict=True):
        assert one["returns"] == pytest.approx(other["returns"], abs=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one["policy"], other["policy"])
    assert abs(among[2]["explored"] - among[5]["explored"]) > 1e-4


def test_updates_must_be_a_multiple_of_those_between_snapshots():
    with pytest.raises(UserError, match="multiple"):
        behaviour.train(Clocks(), "matd3", {}, [0], updates=100, every=30)


def test_a_gain_multiplies_what_goes_into_the_tanh_when_acting():
    spec = Clocks().task_spec
    plain, sharp = (make_algorithm("matd3", spec, hidden=(8, 8), gain=gain) for gain in (1.0, 3.0))
    policy = plain.init(jax.random.key(0), Context(Stats.unknown(spec))).policy
    obs = jax.random.normal(jax.random.key(1), (spec.n_agents, spec.obs_dim))
    actions = [algorithm.act(policy, View(obs), (), jax.random.key(2))[0] for algorithm in (plain, sharp)]
    np.testing.assert_allclose(np.arctanh(actions[1]), 3 * np.arctanh(actions[0]), rtol=1e-4)


@pytest.mark.parametrize(("method", "reason"), [("icq", "needs more than single transitions"), ("cql", "not explore")])
def test_offline_methods_are_refused_by_name_of_the_reason(method, reason):
    algorithm = make_algorithm(method, Clocks().task_spec)
    with pytest.raises(UserError, match=f"cannot learn online: it .*{reason}"):
        online.init(algorithm, learner(), Clocks(), online.OnlineSettings(n_envs=2), jax.random.key(0))
