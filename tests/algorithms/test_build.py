"""What the engine adds to every method: inputs standardised with statistics of the data, and checks of shapes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CONTINUOUS, DISCRETE_SPEC, METHODS, SPEC, N, O, batch, context, make

from omarl_jax.types import Context, Stats, View

STATS = Stats(jnp.arange(6.0).reshape(N, O), 1.0 + jnp.arange(6.0).reshape(N, O))
NORMALISED = [name for name in METHODS if "input_norm" in METHODS[name].kinds]


@pytest.mark.parametrize("name", NORMALISED)
def test_statistics_of_the_data_standardise_whatever_a_method_sees(name: str) -> None:
    """It does on data as they are what the same method without normalisation does on data that were standardised."""
    spec = SPEC if name in CONTINUOUS else DISCRETE_SPEC
    config, method = make(name, spec, input_norm="dataset", batch_size=24, search_steps=1)
    plain = METHODS[name].make(dataclasses.replace(config, input_norm="none"), spec)
    key, one = jax.random.key(0), batch(0, 24, spec)

    def scaled(obs: Any) -> Any:
        return (obs - STATS.obs_mean) / STATS.obs_std

    other = one._replace(obs=scaled(one.obs), next_obs=scaled(one.next_obs))
    state, expected = (m.init(key, context(m, spec, STATS)) for m in (method, plain))
    state, metrics = jax.jit(method.update)(state, one, key)
    expected, same = jax.jit(plain.update)(expected, other, key)

    def equal(found: Any, expected: Any) -> None:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, expected)

    equal(metrics, same)
    equal(state.learner, expected)
    equal(state.policy.policy, expected.policy)
    view, scaled_view = View(one.obs[0]), View(other.obs[0])
    for explore in (False, True):
        acts = (
            m.act(s.policy, v, (), key, explore)[0]
            for m, s, v in ((method, state, view), (plain, expected, scaled_view))
        )
        equal(*acts)
    if plain.values is not None:
        equal(method.values(state, one), plain.values(expected, other))
    assert (method.return_quantiles is None) == (plain.return_quantiles is None)
    if plain.return_quantiles is not None:
        equal(method.return_quantiles(state.policy, view), plain.return_quantiles(expected.policy, scaled_view))


@pytest.mark.parametrize("field", ["obs", "actions", "rewards", "next_obs", "terminal", "truncated"])
def test_batches_of_other_shapes_are_refused_by_the_name_of_the_field(field: str) -> None:
    """The agent axis before the batch axis would broadcast silently."""
    config, method = make("td3_bc")
    one = batch(0, config.batch_size)
    wrong = getattr(one, field)
    wrong = wrong[:, None] if wrong.ndim == 1 else wrong.swapaxes(0, 1)
    state = method.init(jax.random.key(0), Context(STATS))
    with pytest.raises(AssertionError, match=f"the batch's {field}"):
        method.update(state, one._replace(**{field: wrong}), jax.random.key(0))


def test_act_takes_the_observations_of_one_team() -> None:
    _, method = make("bc")
    policy = method.init(jax.random.key(0), Context(STATS)).policy
    assert method.act(policy, View(np.zeros((N, O), np.float32)), (), jax.random.key(0))[0].shape == (N, 2)
    with pytest.raises(AssertionError, match="observations that act is given"):
        method.act(policy, View(jnp.zeros((5, N, O))), (), jax.random.key(0))
