"""Robots in a batch are simulated as if each were alone, however the batch came about."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.mujoco import models, physics
from omarl_envs.mujoco.numbers import computed_once

MODEL = models.half_cheetah()
_simulate = functools.partial(physics.simulate, MODEL, "2.0", iterations=2)


def _robots(count: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    q = rng.uniform(-0.3, 0.3, (count, 9))
    q[:, 0] = 10.0 * np.arange(count)
    q[:, 1] -= 0.2  # on the floor
    v, control, guess = rng.normal(size=(count, 9)), rng.uniform(-1.2, 1.2, (count, 6)), rng.normal(size=(count, 9))
    return tuple(x.astype(np.float32) for x in (q, v, control, guess))


@pytest.fixture(scope="module")
def batch() -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """The states of 300 robots, and what becomes of them: on CPUs in three blocks of 100."""
    robots = _robots(300)
    return robots, tuple(np.asarray(x) for x in jax.jit(jax.vmap(_simulate))(*robots))


def test_blocks_do_not_mix_robots(batch):
    robots, found = batch
    few = [0, 99, 100, 250, 299]
    alone = jax.jit(jax.vmap(_simulate))(*(x[few] for x in robots))
    for ours, theirs in zip(found, alone, strict=True):
        np.testing.assert_allclose(ours[few], theirs, rtol=2e-4, atol=2e-4)
    assert np.ptp(found[1], axis=0).min() > 0.1  # robots differ


def test_nested_maps_make_one_batch(batch):
    robots, found = batch
    control = robots[2][0]  # the same for all

    def one(q, v, guess):
        return _simulate(q, v, control, guess)

    nested = jax.jit(jax.vmap(jax.vmap(one)))(*(robots[i][:6].reshape(2, 3, -1) for i in (0, 1, 3)))
    flat = jax.jit(jax.vmap(one))(*(robots[i][:6] for i in (0, 1, 3)))
    for ours, theirs in zip(nested, flat, strict=True):
        assert ours.shape == (2, 3, *theirs.shape[1:])
        np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=2e-4, atol=2e-4)
    assert not np.allclose(flat[0], found[0][:6])  # the control matters


def test_the_way_does_not_lose_digits_far_from_the_start(batch):
    (q, v, control, guess), found = batch
    far = q.copy()
    far[:, 0] += 1e5
    way = np.asarray(jax.jit(jax.vmap(_simulate))(far, v, control, guess)[3])
    np.testing.assert_array_equal(way, found[3])


def test_a_robot_that_blows_up_harms_no_other(batch):
    robots, found = batch
    broken = [x.copy() for x in robots]
    broken[1][7] = np.nan
    after = [np.asarray(x) for x in jax.jit(jax.vmap(_simulate))(*broken)]
    others = np.arange(300) != 7
    for ours, theirs in zip(after, found, strict=True):
        np.testing.assert_array_equal(ours[others], theirs[others])
    assert np.isnan(after[1][7]).any() and np.isfinite(after[1][others]).all()


def test_one_robot_needs_no_map():
    q, v, control, guess = (jnp.asarray(x[0]) for x in _robots(1))
    alone = jax.jit(_simulate)(q, v, control, guess)
    assert [x.shape for x in alone] == [(9,), (9,), (9,), ()]


def test_what_is_computed_once_stays_a_call_on_cpus_and_has_the_same_values_and_gradients() -> None:
    def whole(once: Any, x: Any) -> Any:
        y = once(lambda x: jnp.sin(x) * x, 2.0 * x)
        return (y[:-1] * y[1:]).sum() + y.sum()

    x = jnp.linspace(-1.0, 1.0, 9)
    plain, called = (jax.value_and_grad(functools.partial(whole, once)) for once in (lambda f, x: f(x), computed_once))
    for one, other in zip(jax.tree.leaves(plain(x)), jax.tree.leaves(called(x)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    compiled = jax.jit(functools.partial(whole, computed_once)).lower(x).compile().as_text()
    assert compiled.count(" call(") == 1
    exported = jax.export.export(jax.jit(functools.partial(whole, computed_once)), platforms=["cuda"])(x)
    assert "inlineable" not in exported.mlir_module()
