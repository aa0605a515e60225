"""MA-ICQ: what follows a termination, and how it acts."""

import jax
import jax.numpy as jnp
import numpy as np
from problems import N, batch, make, started, step

from omarl_jax.types import View


def test_what_follows_a_termination_is_ignored() -> None:
    config, _ = make("icq", batch_size=24, critic_temperature=0.1)
    state = started("icq", config)
    one = batch(0, config.batch_size)
    ended = one.terminal[..., None]
    other = one._replace(
        next_obs=jnp.where(ended, 50.0, one.next_obs), next_actions=jnp.where(ended, -1.0, one.next_actions)
    )
    first, second = (step("icq")(config, state, data, jax.random.key(0)) for data in (one, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_explores_by_its_distribution_and_acts_by_its_centre() -> None:
    config, algorithm = make("icq")
    policy = started("icq", config).policy
    view = View(jnp.ones((N, 3)))
    act = jax.vmap(lambda key, explore: algorithm.act(policy, view, (), key, explore)[0], (0, None))
    keys = jax.random.split(jax.random.key(0), 4000)
    acted, explored = np.asarray(act(keys, False)), np.asarray(act(keys, True), np.float64)
    assert (acted == acted[0]).all()
    np.testing.assert_allclose(np.median(explored, axis=0), acted[0], atol=0.05)
    assert explored.std(axis=0).min() > 0.1
