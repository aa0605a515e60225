"""MA-ICQ against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import N, batch, float64, make, np_critic, np_mlp, of, parts, started, step


def softmax_weights(values: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp((values - values.max()) / temperature)
    return len(values) * weights / weights.sum()


def log_prob(out: np.ndarray, actions: np.ndarray) -> np.ndarray:
    mean, log_std = np.split(out, 2, axis=-1)
    u = np.arctanh(actions)
    gaussian = -0.5 * np.square((u - mean) / np.exp(log_std)) - log_std - 0.5 * np.log(2 * np.pi)
    return (gaussian - np.log1p(-np.square(actions))).sum(axis=-1)


@pytest.mark.parametrize("overrides", [{}, {"centralised": True, "published_clip": True, "published_advantage": True}])
def test_a_round_in_numpy(overrides: dict[str, Any]) -> None:
    config, _ = make(
        "icq", batch_size=24, critic_temperature=2.0, policy_temperature=0.5, input_norm="batch", **overrides
    )
    groups = 1 if config.centralised else N
    state = started("icq", config)
    one = batch(0, config.batch_size)
    after, metrics = step("icq")(config, state, one, jax.random.key(11))

    before, updated = float64((state, after))
    obs, actions, next_obs, next_actions = (
        parts(x, groups) for x in (one.obs, one.actions, one.next_obs, one.next_actions)
    )
    td, weights = [], []
    for g in range(groups):
        rewards, alive = np.asarray(one.rewards, np.float64), 1.0 - np.asarray(one.terminal)
        r, alive = (rewards[:, g], alive[:, g]) if groups == N else (rewards.mean(axis=1), alive.max(axis=1))
        next_value = alive * np_critic(of(before.target_critic, g), next_obs[g], next_actions[g]).min(axis=0)
        bootstrap_weights = softmax_weights(next_value, 2.0)
        assert bootstrap_weights.max() > 1.1  # so that the clip matters
        if config.published_clip:
            bootstrap_weights = np.clip(bootstrap_weights, 0, 1)
        q = np_critic(of(before.critic, g), obs[g], actions[g])
        td.append(np.square(q - r - config.gamma * bootstrap_weights * next_value).mean(axis=1).sum())
        worth = np_critic(of(updated.critic, g), obs[g], actions[g]).min(axis=0)
        if config.published_advantage:
            following = np_critic(of(updated.critic, g), next_obs[g], next_actions[g]).min(axis=0)
            worth = r + config.gamma * alive * following - worth
        weights.append(softmax_weights(worth, 0.5))
    policy_loss = [
        -(weights[min(i, groups - 1)] * log_prob(np_mlp(of(before.policy.params, i), own_obs), own_actions)).mean()
        for i, (own_obs, own_actions) in enumerate(zip(parts(one.obs, N), parts(one.actions, N), strict=True))
    ]
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(td), rtol=1e-3)
    np.testing.assert_allclose(metrics["policy_loss"], np.mean(policy_loss), rtol=1e-3)
    moved = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, state.target_critic, after.critic)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), after.target_critic, moved)


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
    obs = jnp.ones((N, 3))
    act = jax.vmap(lambda key, explore: algorithm.act(policy, obs, None, (), key, explore)[0], (0, None))
    keys = jax.random.split(jax.random.key(0), 4000)
    acted, explored = np.asarray(act(keys, False)), np.asarray(act(keys, True), np.float64)
    assert (acted == acted[0]).all()
    np.testing.assert_allclose(np.median(explored, axis=0), acted[0], atol=0.05)
    assert explored.std(axis=0).min() > 0.1
