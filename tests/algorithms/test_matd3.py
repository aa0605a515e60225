"""MATD3: its delay, its critics, and how it explores."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CONTEXT, A, N, O, batch, make, step

from omarl_jax.types import View


def test_policies_and_targets_wait() -> None:
    config, algorithm = make("matd3", batch_size=24, policy_delay=3)
    state = algorithm.init(jax.random.key(0), CONTEXT)
    moved: dict[str, list[bool]] = {name: [] for name in state.networks._fields}
    for i in range(7):
        after, _ = step("matd3")(config, state, batch(i, config.batch_size), jax.random.key(i))
        for name, moves in moved.items():
            parts = getattr(state.networks, name), getattr(after.networks, name)
            moves.append(not jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), *parts)))
        assert after.updates == state.updates + 1
        state = after
    waiting = [True, False, False, True, False, False, True]
    for name in ("policy", "target_policy", "target_critic", "policy_optimiser"):
        assert moved[name] == waiting, name
    for name in ("critic", "critic_optimiser"):
        assert all(moved[name]), name


@pytest.mark.parametrize(("name", "heads"), [("matd3", 2), ("itd3", 2), ("maddpg", 1)])
def test_critics_of_the_family(name: str, heads: int) -> None:
    _, algorithm = make(name)
    state: Any = algorithm.init(jax.random.key(0), CONTEXT)
    kernel = state.networks.critic["layer_0"]["kernel"]
    assert kernel.shape[:3] == (N, heads, O + A if name == "itd3" else N * (O + A))
    assert algorithm.values(state, batch(0, 5)).shape == (heads, 5, N)


def test_explores_with_clipped_noise() -> None:
    _, algorithm = make("matd3", exploration_noise=0.5)
    policy = algorithm.init(jax.random.key(0), CONTEXT).policy
    view = View(jnp.ones((N, 3)))
    act = jax.vmap(lambda key, explore: algorithm.act(policy, view, (), key, explore)[0], (0, None))
    keys = jax.random.split(jax.random.key(1), 4000)
    calm, noisy = np.asarray(act(keys, False)), np.asarray(act(keys, True))
    assert (calm == calm[0]).all()
    assert np.abs(noisy).max() == 1
    inside = np.abs(noisy).max(axis=(1, 2)) < 1
    np.testing.assert_allclose((np.abs(noisy - calm) < 0.5).mean(), 0.683, atol=0.02)  # within one deviation
    assert 0.5 < inside.mean() < 1
