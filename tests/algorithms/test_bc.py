"""Behaviour cloning against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
from problems import STATS, batch, jit, make


def test_likelihood_finds_mean_and_deviation() -> None:
    """Of data that are themselves from a squashed Gaussian."""
    config, algorithm = make("bc", stochastic=True, lr=0.01, batch_size=512)
    mean, std = jnp.array([[0.3, -0.6], [0.0, 0.9]]), jnp.array([[0.2, 0.4], [0.3, 0.1]])

    def round(state: object, key: jax.Array) -> tuple[object, jax.Array]:
        one = batch(0, config.batch_size)
        drawn = jnp.tanh(mean + std * jax.random.normal(key, one.actions.shape))
        state, metrics = algorithm.update(state, one._replace(actions=drawn), key)
        return state, metrics["policy_loss"]

    start = algorithm.init(jax.random.key(0), STATS)
    state, _ = jit(lambda state, keys: jax.lax.scan(round, state, keys))(
        start, jax.random.split(jax.random.key(1), 400)
    )
    obs = jnp.asarray(batch(0, 1).obs[0])
    acted, _ = algorithm.act(state.policy, obs, None, (), jax.random.key(2))
    np.testing.assert_allclose(acted, jnp.tanh(mean), atol=0.06)
    explored = jax.vmap(lambda key: algorithm.act(state.policy, obs, None, (), key, True)[0])(
        jax.random.split(jax.random.key(3), 4000)
    )
    np.testing.assert_allclose(np.arctanh(np.asarray(explored, np.float64)).std(axis=0), std, rtol=0.2)
