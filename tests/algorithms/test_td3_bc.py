"""MA-TD3+BC against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import STATS, N, batch, float64, make, np_critic, np_mlp, of, parts, started, step


def test_a_round_in_numpy() -> None:
    config, _ = make("td3_bc", batch_size=24, target_noise=0.3, target_noise_clip=0.2, alpha=1.7)
    state = started("td3_bc", config)
    one, key = batch(0, config.batch_size), jax.random.key(11)
    after, metrics = step("td3_bc")(config, state, one, key)

    noise = np.clip(0.3 * np.asarray(jax.random.normal(key, one.actions.shape), np.float64), -0.2, 0.2)
    before, updated = float64((state, after))
    td, q_mean, policy_loss = [], [], []
    for i, (obs, next_obs, actions) in enumerate(
        zip(*(parts(x, N) for x in (one.obs, one.next_obs, one.actions)), strict=True)
    ):
        next_actions = np.clip(np.tanh(np_mlp(of(before.target_policy, i), next_obs)) + noise[:, i], -1, 1)
        next_q = np_critic(of(before.target_critic, i), next_obs, next_actions).min(axis=0)
        y = np.asarray(one.rewards)[:, i] + config.gamma * ~np.asarray(one.terminal)[:, i] * next_q
        q = np_critic(of(before.critic, i), obs, actions)
        td.append(np.square(q - y).mean(axis=1).sum())
        q_mean.append(q.mean())
        own = np.tanh(np_mlp(of(before.policy.params, i), obs))
        own_q = np_critic(of(updated.critic, i), obs, own)[0]
        loss = -1.7 * own_q.mean() / np.abs(own_q).mean() + np.square(own - actions).mean()
        policy_loss.append(loss + config.policy_penalty * np.square(own).mean())
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(td), rtol=1e-3)
    np.testing.assert_allclose(metrics["q"], np.mean(q_mean), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["policy_loss"], np.mean(policy_loss), rtol=1e-3, atol=1e-4)


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
