"""Bodies of Hopper that run into each other, where C MuJoCo's answer hangs on rounding and cannot judge."""

import jax.numpy as jnp
import numpy as np
from omarl_envs.mujoco import constraints, models, rigid


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Whether the segments a-b and c-d of a plane, (2, B) each, cross."""

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)


def test_bodies_whose_axes_cross_push_nothing():
    hopper = models.hopper()
    q = np.zeros((6, 2000))
    q[3:] = np.random.default_rng(0).uniform([[-2.6], [-2.6], [-0.7]], [[0.0], [0.0], [0.7]], (3, 2000))
    at = rigid.pose(hopper, rigid.split(hopper, jnp.asarray(q, jnp.float32)))
    found = constraints.collisions(hopper, "2.0", at)
    crossed = 0
    for pair, collision in zip(hopper.collisions, found, strict=True):
        ends = []
        for name in pair:
            _, middle, half = constraints._capsule(hopper, at, name)
            xz = [np.stack([np.broadcast_to(x[k].value, (1, 2000))[0] for k in (0, 2)]) for x in (middle, half)]
            ends += [xz[0] - xz[1], xz[0] + xz[1]]
        cross = _cross(*ends)
        pushed = np.abs(np.asarray(collision.jacobian)).sum(axis=(0, 1)) > 0
        assert not pushed[cross].any()
        assert pushed[~cross].mean() > 0.9  # the thigh's two ends keep their distance
        crossed += cross.sum()
    assert crossed > 20
