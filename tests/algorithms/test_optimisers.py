"""Gradient steps: what is clipped and stepped as one, and micro-batches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CONTEXT, SPEC, batch, make

from omarl_jax import networks
from omarl_jax.algorithms import _steps
from omarl_jax.networks import blocks

FIRST, SECOND = np.array([3.0, -4.0, 12.0]), np.array([0.3, 0.6, -0.2])


@pytest.mark.parametrize("rows", [32, 64, 80, 9])
def test_blocks_of_a_batch_are_joined_to_the_whole(rows: int) -> None:
    """Wherever the axis of the batch is; 32 rows are one block, which is the whole, and 9 cannot be divided."""
    weights = jnp.arange(1.0, 5.0)
    x, y = jax.random.normal(jax.random.key(0), (rows, 4)), jax.random.normal(jax.random.key(1), (3, rows))
    seen = []

    def products(weights: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        seen.append(x.shape[0])
        return y.T * (x @ weights)[:, None]

    each = jax.jit(networks.in_blocks(products, (None, 0, 1), blocks.CONCAT))(weights, x, y)
    np.testing.assert_allclose(each, y.T * (x @ weights)[:, None], rtol=1e-5)
    assert min(seen) == {32: 32, 64: 32, 80: 16, 9: 9}[rows]
    assert (len(seen) == 1) == (rows in (32, 9))  # otherwise CPUs have a program of their own
    mean = networks.in_blocks(lambda *inputs: products(*inputs).mean(axis=0), (None, 0, 1), blocks.MEAN)
    np.testing.assert_allclose(mean(weights, x, y), products(weights, x, y).mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize("centralised", [False, True])
def test_blocks_change_no_update(centralised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch normalisation too uses the statistics of the whole batch."""
    config, method = make("omar", input_norm="batch", policy_samples=True, centralised=centralised)
    state = method.init(jax.random.key(0), CONTEXT)
    whole, in_parts = [], []
    for states, size in ((whole, 64), (in_parts, 16)):
        monkeypatch.setattr(blocks, "_BLOCK", size)
        update = jax.jit(lambda *inputs: method.update(*inputs))
        states += jax.tree.leaves(update(state, batch(0, config.batch_size), jax.random.key(1)))
    for one, other in zip(whole, in_parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def steps(step: _steps.Step, params: Any, *gradients: Any) -> list[Any]:
    """The changes of parameters in steps of losses that have these gradients."""

    @jax.jit
    def one(params: Any, state: Any, gradient: Any) -> Any:
        def loss(params: Any) -> Any:
            return sum(jax.tree.leaves(jax.tree.map(lambda x, g: (x * g).sum(), params, gradient))), {}

        after, state, _ = step(loss, params, state)
        return after, state, jax.tree.map(jnp.subtract, after, params)

    state, changes = step.init(params), []
    for gradient in gradients:
        params, state, change = one(params, state, gradient)
        changes.append(change)
    return changes


def second_step(cut: np.ndarray) -> np.ndarray:
    """What Adam does to a second gradient after a first one, of a learning rate of 0.1."""
    mean = (0.9 * 0.1 * cut + 0.1 * SECOND) / (1 - 0.9**2)
    square = (0.999 * 0.001 * cut**2 + 0.001 * SECOND**2) / (1 - 0.999**2)
    return -0.1 * mean / np.sqrt(square)


def test_adam_sees_gradients_cut_to_the_norm_of_all_of_them() -> None:
    """Two steps by hand: the first gradient, of norm 13 over both arrays, is cut to 1, the second is short enough."""
    split = [{"w": jnp.float32(g[:2]), "b": jnp.float32(g[2:])} for g in (np.zeros(3), FIRST, SECOND)]
    first, second = steps(_steps.together(jnp.float32(0.1), jnp.float32(1.0)), *split)
    np.testing.assert_allclose(np.append(first["w"], first["b"]), [-0.1, 0.1, -0.1], rtol=1e-5)  # 0.1 g / √g²
    np.testing.assert_allclose(np.append(second["w"], second["b"]), second_step(FIRST / 13), rtol=1e-3)


def test_each_agent_is_clipped_alone_unless_they_share_their_parameters() -> None:
    """One agent's gradient is short enough, the other's is not; together they are of norm √(13² + 0.7²)."""
    both = [jnp.float32(np.stack(pair)) for pair in ((np.zeros(3),) * 2, (FIRST, SECOND), (SECOND, SECOND))]
    limits = jnp.float32(0.1), jnp.float32(1.0)
    separate, shared = (
        networks.deterministic_policy(SPEC, (4,), "none", sharing) for sharing in ("separate", "shared")
    )
    of_all = np.sqrt(np.sum(FIRST**2) + np.sum(SECOND**2))
    for network, cuts in ((separate, (FIRST / 13, SECOND)), (shared, (FIRST / of_all, SECOND / of_all))):
        _, second = steps(_steps.per_agent(network, *limits), *both)
        for i, cut in enumerate(cuts):
            np.testing.assert_allclose(second[i], second_step(cut), rtol=1e-3)


def test_soft_update_moves_a_little() -> None:
    np.testing.assert_allclose(_steps.soft_update(jnp.array(1.0), jnp.array(3.0), jnp.float32(0.1)), 1.2)
