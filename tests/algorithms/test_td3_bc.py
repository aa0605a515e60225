"""MA-TD3+BC: the weight of the values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CONTEXT, batch, make, step

from omarl_jax.types import View


@pytest.mark.parametrize("bias", [100.0, -100.0])
def test_values_guide_the_policy_whatever_their_sign(bias: float) -> None:
    """The data's actions are the policy's own, so all of its change comes from the values."""
    config, algorithm = make("td3_bc", batch_size=24, policy_penalty=0.0, input_norm="none")
    state = algorithm.init(jax.random.key(0), CONTEXT)
    state.critic["layer_1"]["bias"] += bias
    one = batch(0, 24)
    act = jax.vmap(lambda policy, obs: algorithm.act(policy, View(obs), (), jax.random.key(0))[0], (None, 0))
    after, _ = step("td3_bc")(config, state, one._replace(actions=act(state.policy, one.obs)), jax.random.key(1))
    before, now = (
        np.asarray(algorithm.values(after, one._replace(actions=act(s.policy, one.obs))))[0] for s in (state, after)
    )  # (B, N), by the same critics
    assert (np.sign(before) == np.sign(bias)).all()
    assert (now.mean(axis=0) > before.mean(axis=0) + 1e-3).all()
    assert jnp.isfinite(after.policy.params["layer_1"]["bias"]).all()
