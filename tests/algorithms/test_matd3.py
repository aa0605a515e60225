"""MATD3 against NumPy, and its delay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import STATS, A, N, O, batch, float64, make, np_critic, np_mlp, of, parts, started, step


@pytest.mark.parametrize("std", [0.4, 1e6])
def test_a_round_in_numpy(std: float) -> None:
    """Every critic sees all agents. The noise on target actions is bounded, however large its deviation."""
    config, _ = make("matd3", batch_size=24, target_noise=std, target_noise_clip=0.3)
    state = started("matd3", config)._replace(round=jnp.int32(0))
    one, key = batch(0, config.batch_size), jax.random.key(11)
    one = one._replace(terminal=one.terminal.at[:, 1].set(False))
    after, metrics = step("matd3")(config, state, one, key)

    noise = np.clip(std * np.asarray(jax.random.normal(key, one.actions.shape), np.float64), -0.3, 0.3)
    before, updated = float64((state, after))
    obs, next_obs, actions = (parts(x, 1)[0] for x in (one.obs, one.next_obs, one.actions))
    targets = [np.tanh(np_mlp(of(before.target_policy, i), x)) for i, x in enumerate(parts(one.next_obs, N))]
    next_actions = parts(np.clip(np.stack(targets, axis=1) + noise, -1, 1), 1)[0]
    td, policy_loss = [], []
    for i, own_obs in enumerate(parts(one.obs, N)):
        next_q = np_critic(of(before.target_critic, i), next_obs, next_actions).min(axis=0)
        y = np.asarray(one.rewards)[:, i] + config.gamma * ~np.asarray(one.terminal)[:, i] * next_q
        td.append(np.square(np_critic(of(before.critic, i), obs, actions) - y).mean(axis=1).sum())
        own = np.tanh(np_mlp(of(before.policy.params, i), own_obs))
        joint = np.asarray(one.actions, np.float64).copy()
        joint[:, i] = own
        q = np_critic(of(updated.critic, i), obs, parts(joint, 1)[0])[0]
        policy_loss.append(-q.mean() + config.policy_penalty * np.square(own).mean())
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(td), rtol=1e-3)
    np.testing.assert_allclose(metrics["policy_loss"], np.mean(policy_loss), rtol=1e-3, atol=1e-5)


def test_policies_and_targets_wait() -> None:
    config, algorithm = make("matd3", batch_size=24, policy_delay=3)
    state = algorithm.init(jax.random.key(0), STATS)
    moved: dict[str, list[bool]] = {name: [] for name in state._fields}
    for i in range(7):
        after, _ = step("matd3")(config, state, batch(i, config.batch_size), jax.random.key(i))
        for name, moves in moved.items():
            same = jax.tree.map(lambda x, y: bool((x == y).all()), getattr(state, name), getattr(after, name))
            moves.append(not jax.tree.all(same))
        state = after
    waiting = [True, False, False, True, False, False, True]
    for name in ("policy", "target_policy", "target_critic", "policy_optimiser"):
        assert moved[name] == waiting, name
    for name in ("critic", "critic_optimiser", "round"):
        assert all(moved[name]), name


@pytest.mark.parametrize(("name", "heads"), [("matd3", 2), ("itd3", 2), ("maddpg", 1)])
def test_critics_of_the_family(name: str, heads: int) -> None:
    _, algorithm = make(name)
    critic: Any = algorithm.init(jax.random.key(0), STATS).critic
    assert critic["w_0"].shape[:3] == (N, heads, O + A if name == "itd3" else N * (O + A))


def test_explores_with_clipped_noise() -> None:
    _, algorithm = make("matd3", exploration_noise=0.5)
    policy = algorithm.init(jax.random.key(0), STATS).policy
    act = jax.vmap(lambda key, explore: algorithm.act(policy, jnp.ones((N, 3)), None, (), key, explore)[0], (0, None))
    keys = jax.random.split(jax.random.key(1), 4000)
    calm, noisy = np.asarray(act(keys, False)), np.asarray(act(keys, True))
    assert (calm == calm[0]).all()
    assert np.abs(noisy).max() == 1
    inside = np.abs(noisy).max(axis=(1, 2)) < 1
    np.testing.assert_allclose((np.abs(noisy - calm) < 0.5).mean(), 0.683, atol=0.02)  # within one deviation
    assert 0.5 < inside.mean() < 1
