"""MA-TD3+BC: the weight of the values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import STATS, N, batch, float64, make, np_critic, np_mlp, of, parts, step


@pytest.mark.parametrize("bias", [100.0, -100.0])
def test_values_guide_the_policy_whatever_their_sign(bias: float) -> None:
    """The data's actions are the policy's own, so all of its change comes from the values."""
    config, algorithm = make("td3_bc", batch_size=24, policy_penalty=0.0, input_norm="none")
    state = algorithm.init(jax.random.key(0), STATS)
    state.critic["b_1"] = state.critic["b_1"] + bias
    one = batch(0, 24)
    obs = parts(one.obs, N)

    def own(state: Any) -> np.ndarray:
        params = float64(state.policy.params)
        return np.stack([np.tanh(np_mlp(of(params, i), obs[i])) for i in range(N)], axis=1)

    one = one._replace(actions=jnp.asarray(own(state), jnp.float32))
    after, _ = step("td3_bc")(config, state, one, jax.random.key(1))
    for i in range(N):
        values = [np_critic(of(float64(after.critic), i), obs[i], own(s)[:, i])[0] for s in (state, after)]
        assert np.sign(values[0]).min() == np.sign(values[0]).max() == np.sign(bias)
        assert values[1].mean() > values[0].mean() + 1e-3
