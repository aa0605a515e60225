"""A ball between walls, as MuJoCo simulates it: soft contacts without friction.

Each wall is a unit box, and the ball starts at (1.2, 1.2) where boxes have their middles at whole numbers + 1. So the
box of the cell (i, j) occupies [i - 0.7, i + 0.3] × [j - 0.7, j + 0.3] in coordinates of the ball.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from omarl_envs.mujoco.constraints import soft_row
from omarl_envs.mujoco.models import Engine, Softness

TIMESTEP = 0.01  # s
RADIUS = 0.1  # m
MASS = 1000.0 * 4.0 / 3.0 * np.pi * RADIUS**3  # kg
DAMPING = 1.0  # N s/m
FORCE = 100.0  # N, of a full action along an axis
CORNER = 0.7  # of a cell's lower corner below its whole number
_DEPTH = 0.2  # half the height of a wall: from deeper inside, the nearest way out is upwards, where nothing moves
_MARGIN = 0.002  # m, of each shape
_ITERATIONS = 3  # of Newton's method; more changed nothing in a million states around walls


def softening(engine: Engine) -> tuple[float, float]:
    """The distance at which a contact begins, m, and the inverse inertia in its regularisation, 1/kg.

    Current versions of MuJoCo add the margins of two shapes, where 2.0 took the larger one. And they take the inverse
    mass of a body that does not turn, where 2.0 took the mean over three axes, of which the ball moves along two.
    """
    if engine == "2.0":
        return _MARGIN, 2.0 / (3.0 * MASS)
    return 2.0 * _MARGIN, 1.0 / MASS


class Contact(NamedTuple):
    """A box that may touch the ball.

    Attributes:
        normal: x and y of the unit vector from the box to the ball.
        distance: between them, m; negative where they overlap.
        exists: bool, whether there is a wall.
    """

    normal: tuple[Any, Any]
    distance: Any
    exists: Any


def neighbours(walls: np.ndarray) -> np.ndarray:
    """(H, W) int32: bit 3 (a + 1) + b + 1 says whether there is a wall at (i + a, j + b)."""
    padded = np.pad(walls, 1)
    height, width = walls.shape
    shifted = [padded[a : a + height, b : b + width] for a in range(3) for b in range(3)]
    return sum(wall.astype(np.int32) << k for k, wall in enumerate(shifted))  # type: ignore[return-value]


def contacts(near: np.ndarray, x: Any, y: Any) -> list[Contact]:
    """The boxes that a ball at (x, y) may touch.

    Of the nine boxes around, only those on the nearer sides of its cell can be within reach: along x, along y, and
    across the corner. The box of its own cell is the fourth: a ball whose middle is inside a wall leaves it by the
    nearest face.

    Args:
        near: see `neighbours`.
        x, y: ().
    """
    height, width = near.shape
    i, j = jnp.floor(x + CORNER), jnp.floor(y + CORNER)
    u, v = x + CORNER - i, y + CORNER - j  # in the cell, 0 to 1
    row = jnp.clip(i.astype(jnp.int32), 0, height - 1)
    column = jnp.clip(j.astype(jnp.int32), 0, width - 1)
    bits = jnp.asarray(near)[row, column]
    a, b = jnp.where(u < 0.5, -1, 1), jnp.where(v < 0.5, -1, 1)  # the nearer sides
    gap_x, gap_y = jnp.minimum(u, 1.0 - u), jnp.minimum(v, 1.0 - v)
    away_x, away_y = -a.astype(x.dtype), -b.astype(y.dtype)

    def wall(a: Any, b: Any) -> Any:
        return (bits >> (3 * (a + 1) + b + 1)) & 1 == 1

    corner = jnp.sqrt(gap_x * gap_x + gap_y * gap_y + 1e-30)
    depth, by_x = jnp.minimum(gap_x, gap_y), gap_x < gap_y
    return [
        Contact((away_x, 0.0), gap_x - RADIUS, wall(a, 0)),
        Contact((0.0, away_y), gap_y - RADIUS, wall(0, b)),
        Contact((away_x * gap_x / corner, away_y * gap_y / corner), corner - RADIUS, wall(a, b)),
        Contact(
            (jnp.where(by_x, -away_x, 0.0), jnp.where(by_x, 0.0, -away_y)),
            -depth - RADIUS,
            wall(0, 0) & (depth < _DEPTH),
        ),
    ]


def step(near: np.ndarray, engine: Engine, position: Any, velocity: Any, action: Any) -> tuple[Any, Any]:
    """One step of semi-implicit Euler, in which damping is implicit.

    The acceleration minimises half its squared distance from that without walls, times the mass, and
    Σ weight · min(u + offset, 0)² / 2 over contacts (see `soft_row`): Newton's method.

    Args:
        near: see `neighbours`.
        engine: whose contacts the walls have.
        position, velocity: (2,) m, m/s.
        action: (2,) in [-1, 1], a share of the largest force.

    Returns:
        position and velocity.
    """
    x, y = position
    vx, vy = velocity
    free_x, free_y = (FORCE * action[0] - DAMPING * vx) / MASS, (FORCE * action[1] - DAMPING * vy) / MASS
    (margin, inverse), rows = softening(engine), []
    for contact in contacts(near, x, y):
        (nx, ny), row = contact.normal, soft_row(contact.distance, margin, Softness(), TIMESTEP, inverse)
        offset = row.offset + row.damping * (nx * vx + ny * vy)
        rows.append((nx, ny, offset, jnp.where(contact.exists, row.weight, 0.0)))
    ax, ay = free_x, free_y
    for _ in range(_ITERATIONS):
        xx, xy, yy, fx, fy = MASS, 0.0, MASS, MASS * free_x, MASS * free_y
        for nx, ny, offset, weight in rows:
            w = jnp.where(nx * ax + ny * ay + offset < 0.0, weight, 0.0)
            xx, xy, yy = xx + w * nx * nx, xy + w * nx * ny, yy + w * ny * ny
            fx, fy = fx - w * nx * offset, fy - w * ny * offset
        determinant = xx * yy - xy * xy
        ax, ay = (yy * fx - xy * fy) / determinant, (xx * fy - xy * fx) / determinant
    share = TIMESTEP * MASS / (MASS + TIMESTEP * DAMPING)
    velocity = jnp.stack([vx + share * ax, vy + share * ay])
    return position + TIMESTEP * velocity, velocity
