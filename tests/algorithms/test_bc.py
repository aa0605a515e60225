"""Behaviour cloning against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CONTEXT, DISCRETE_SPEC, SPEC, A, N, O, batch, jit, make

from omarl_jax.types import Transition, View


def test_likelihood_finds_mean_and_deviation() -> None:
    """Of data that are themselves from a squashed Gaussian."""
    config, algorithm = make("bc", stochastic=True, lr=0.01, batch_size=512)
    mean, std = jnp.array([[0.3, -0.6], [0.0, 0.9]]), jnp.array([[0.2, 0.4], [0.3, 0.1]])

    def update(state: object, key: jax.Array) -> tuple[object, jax.Array]:
        one = batch(0, config.batch_size)
        drawn = jnp.tanh(mean + std * jax.random.normal(key, one.actions.shape))
        state, metrics = algorithm.update(state, one._replace(actions=drawn), key)
        return state, metrics["policy_loss"]

    start = algorithm.init(jax.random.key(0), CONTEXT)
    state, _ = jit(lambda state, keys: jax.lax.scan(update, state, keys))(
        start, jax.random.split(jax.random.key(1), 400)
    )
    view = View(batch(0, 1).obs[0])
    acted, _ = algorithm.act(state.policy, view, (), jax.random.key(2))
    np.testing.assert_allclose(acted, jnp.tanh(mean), atol=0.06)
    explored = jax.vmap(lambda key: algorithm.act(state.policy, view, (), key, True)[0])(
        jax.random.split(jax.random.key(3), 4000)
    )
    np.testing.assert_allclose(np.arctanh(np.asarray(explored, np.float64)).std(axis=0), std, rtol=0.2)


def test_likelihood_finds_the_shares_of_discrete_actions() -> None:
    """Of the legal ones; it acts by the most likely of them."""
    _, algorithm = make("bc", DISCRETE_SPEC, lr=0.02, batch_size=100, input_norm="none")
    shares = np.array([[0.0, 0.3, 0.7], [0.5, 0.25, 0.25]])  # (N, A)
    actions = np.stack([np.repeat(np.arange(3), (100 * share).astype(int)) for share in shares], axis=1)
    one = batch(0, 100, DISCRETE_SPEC, obs=jnp.ones((100, N, O)), actions=jnp.asarray(actions, jnp.int32))
    start = algorithm.init(jax.random.key(0), CONTEXT)
    state = jit(lambda state: jax.lax.fori_loop(0, 300, lambda _, s: algorithm.update(s, one, None)[0], state))(start)
    legal = jnp.array([[True, True, False], [True, True, True]])
    for mask, expected in ((None, shares), (legal, np.array([[0.0, 1.0, 0.0], shares[1]]))):
        view = View(jnp.ones((N, O)), mask)
        drawn = jax.vmap(lambda key, view=view: algorithm.act(state.policy, view, (), key, True)[0])(
            jax.random.split(jax.random.key(1), 2000)
        )
        found = np.array([np.bincount(drawn[:, i], minlength=3) / 2000 for i in range(N)])
        np.testing.assert_allclose(found, expected, atol=0.05)
        acted, _ = algorithm.act(state.policy, view, (), jax.random.key(0))
        np.testing.assert_array_equal(acted, expected.argmax(axis=1))


@pytest.mark.parametrize("stochastic", [False, True])
def test_steps_after_the_end_of_an_episode_count_for_nothing(stochastic: bool) -> None:
    """A window with two valid steps has the loss of those two steps; whatever stands behind them."""
    _, algorithm = make("bc", memory=4, window=6, batch_size=8, stochastic=stochastic, input_norm="none")
    state = algorithm.init(jax.random.key(0), CONTEXT)
    one = batch(0, 8, length=6, valid=jnp.arange(6) < jnp.full((8, 1), 2))
    noise = batch(1, 8, length=6)
    behind = ~one.valid[..., None, None]
    other = one._replace(
        obs=jnp.where(behind, noise.obs, one.obs), actions=jnp.where(behind, noise.actions, one.actions)
    )
    short = jax.tree.map(lambda x: x[:, :2], one)
    _, shorter = make("bc", memory=4, window=2, batch_size=8, stochastic=stochastic, input_norm="none")
    first, second = (jax.jit(algorithm.update)(state, data, jax.random.key(0)) for data in (one, other))
    alone = jax.jit(shorter.update)(state, short, jax.random.key(0))
    for found in (second, alone):
        np.testing.assert_allclose(found[1]["policy_loss"], first[1]["policy_loss"], rtol=1e-5)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found[0].policy, first[0].policy)


def test_a_policy_with_memory_imitates_what_came_before() -> None:
    """The action is what was seen one step before; without memory nothing of it can be known."""
    spec = dataclasses.replace(SPEC, episode_length=9)
    _, algorithm = make("bc", spec, memory=16, window=6, batch_size=64, lr=0.01, input_norm="none", grad_clip=10.0)
    rng = np.random.default_rng(0)
    obs = rng.uniform(-0.9, 0.9, (64, 6, N, O)).astype(np.float32)
    actions = np.concatenate([np.zeros((64, 1, N, A)), obs[:, :-1, :, :A]], axis=1).astype(np.float32)
    one = batch(0, 64, length=6, obs=jnp.asarray(obs), actions=jnp.asarray(actions), valid=jnp.ones((64, 6), bool))

    def learn(state: object, one: Transition) -> object:
        return jax.lax.fori_loop(0, 600, lambda _, s: algorithm.update(s, one, None)[0], state)

    state = jit(learn)(algorithm.init(jax.random.key(0), CONTEXT), one)
    carry, acted = jax.tree.map(lambda x: jnp.stack([x] * 64), algorithm.carry), []
    for t in range(6):
        act = jax.vmap(lambda obs, carry: algorithm.act(state.policy, View(obs), carry, jax.random.key(0)))
        found, carry = act(one.obs[:, t], carry)
        acted.append(found)
    error = np.abs(np.stack(acted[1:], axis=1) - actions[:, 1:]).mean()
    assert error < 0.15  # 0.45 without memory
