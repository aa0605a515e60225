"""OMAR: its search, and what it imitates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import A, N, batch, jit, make, started, step

from omarl_jax.algorithms import omar


def test_nothing_to_imitate_where_the_policy_is_best_already() -> None:
    """All actions are worth the same to this critic, before and after its step: all but its last bias stays 0."""
    config, _ = make("omar", batch_size=24, omar_coef=1.0, policy_penalty=0.0)
    state = started("omar", config)
    zeroed = ("critic", "critic_optimiser", "policy_optimiser")
    state = state._replace(**{name: jax.tree.map(jnp.zeros_like, getattr(state, name)) for name in zeroed})
    after, metrics = step("omar")(config, state, batch(0, config.batch_size), jax.random.key(0))
    assert metrics["omar_loss"] == 0
    assert not jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), state.critic, after.critic))
    jax.tree.map(np.testing.assert_array_equal, after.policy.params, state.policy.params)


def two_peaks(actions: jax.Array) -> jax.Array:
    """A broad low peak at -0.5, whose slope rules at 0, and a narrow high one at 0.75: (…, 1) -> (…)."""
    x = actions[..., 0]
    return 3 * jnp.exp(-jnp.square((x + 0.5) / 0.5)) + 9 * jnp.exp(-jnp.square((x - 0.75) / 0.2))


@pytest.mark.parametrize("kind", ["omar", "cem", "random_shooting"])
def test_search_finds_the_higher_of_two_peaks(kind: Any) -> None:
    assert jax.grad(lambda x: two_peaks(x[None]))(jnp.float32(0)) < 0  # where a policy's gradient would never go
    config = omar.Config(search=kind)
    found, value = jit(lambda key: omar.search(two_peaks, key, (250, 2, 1), config))(jax.random.key(0))
    assert ((found > 0.4) & (found <= 1)).mean() > 0.8
    np.testing.assert_allclose(value, two_peaks(found), rtol=1e-4)


@pytest.mark.parametrize("kind", ["omar", "cem", "random_shooting"])
def test_search_finds_the_top_of_a_hill_for_each_observation(kind: Any) -> None:
    tops = jax.random.uniform(jax.random.key(1), (100, N, A), minval=-0.9, maxval=0.9)
    config = omar.Config(search=kind, search_steps=5, search_samples=40)

    def q(actions: jax.Array) -> jax.Array:
        return -20 * jnp.square(actions - tops).sum(axis=-1)

    found, _ = jit(lambda key: omar.search(q, key, tops.shape, config))(jax.random.key(0))
    assert jnp.abs(found - tops).mean() < 0.08  # 0.9 for a random action
