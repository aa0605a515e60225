"""Point masses in the plane that push each other apart (`core.World.step` of OMAR's particle code).

All functions work on one coordinate at a time, and on whatever shape the coordinates have: scalars, where a task
unrolls the pairs of its few entities (about ten times as fast on a CPU as small trailing axes), or arrays of pairs.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

TIME_STEP = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3
EPISODE_LENGTH = 25


class State(NamedTuple):
    """One world. E movable agents (prey included), L landmarks.

    Attributes:
        key: the randomness left to this episode.
        step: () int32, steps taken.
        position: (E, 2) float32.
        velocity: (E, 2) float32.
        landmarks: (L, 2) float32.
    """

    key: chex.PRNGKey
    step: chex.Array
    position: chex.Array
    velocity: chex.Array
    landmarks: chex.Array


class Vec(NamedTuple):
    """A vector in the plane, or many of them: two arrays of equal shape."""

    x: chex.Array
    y: chex.Array

    def __add__(self, other: "Vec") -> "Vec":  # type: ignore[override]
        return Vec(self.x + other.x, self.y + other.y)

    def __sub__(self, other: "Vec") -> "Vec":
        return Vec(self.x - other.x, self.y - other.y)

    def __mul__(self, factor: chex.Array | float) -> "Vec":
        return Vec(self.x * factor, self.y * factor)

    @property
    def squared_norm(self) -> chex.Array:
        """The squared length."""
        return self.x * self.x + self.y * self.y

    @property
    def norm(self) -> chex.Array:
        """The length."""
        return jnp.sqrt(self.squared_norm)


def vectors(points: chex.Array) -> list[Vec]:
    """(E, 2) -> E vectors of scalars."""
    return [Vec(points[i, 0], points[i, 1]) for i in range(points.shape[0])]


def stack(points: list[Vec]) -> chex.Array:
    """E vectors of scalars -> (E, 2)."""
    return flatten(points).reshape(len(points), 2)


def flatten(points: list[Vec]) -> chex.Array:
    """E vectors of scalars -> (2E,): x0, y0, x1, y1, …"""
    return jnp.stack([coordinate for point in points for coordinate in point])


def contact_force(delta: Vec, reach: float) -> Vec:
    """The force on the first of two entities that touch.

    Args:
        delta: position of the first minus position of the second.
        reach: the sum of their radii.

    The published formula divides by the distance; two entities in the very same place push each other nowhere.
    """
    distance = jnp.sqrt(jnp.maximum(delta.squared_norm, 1e-18))
    penetration = CONTACT_MARGIN * jnp.logaddexp(0.0, (reach - distance) / CONTACT_MARGIN)
    return delta * (CONTACT_FORCE * penetration / distance)


def integrate(position: Vec, velocity: Vec, force: Vec, max_speed: float | None = None) -> tuple[Vec, Vec]:
    """One step of time: damped velocity first, then the position with the new velocity.

    Args:
        position: of the entities.
        velocity: of the entities, units of length a second.
        force: on the entities, whose mass is 1.
        max_speed: of each entity; None for no limit.

    Returns:
        position, velocity.
    """
    velocity = velocity * (1.0 - DAMPING) + force * TIME_STEP
    if max_speed is not None:
        velocity = velocity * (max_speed / jnp.maximum(velocity.norm, max_speed))
    return position + velocity * TIME_STEP, velocity
