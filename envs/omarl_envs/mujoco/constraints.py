"""MuJoCo's soft constraints: contacts with the floor and between capsules, and limits of joints."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omarl_envs.mujoco.models import Body, Capsule, Engine, Model, Softness
from omarl_envs.mujoco.numbers import Number, Vector, columns, computed_once, cross, dot, each, vector
from omarl_envs.mujoco.rigid import Pose, constants, full_matrix, hinge_vector, of_hinge, parts, upper


class Row(NamedTuple):
    """Soft constraints u + `offset` >= 0, where u is the acceleration along the row + `damping` times the velocity.

    Attributes:
        offset: stiffness · impedance · distance, m/s² or rad/s².
        weight: what a unit of violation pulls with where the constraint exists, 0 elsewhere.
        damping: of the reference acceleration, 1/s.
    """

    offset: Any
    weight: Any
    damping: float


def soft_row(distance: Any, margin: float, softness: Softness, timestep: float, inverse_inertia: Any) -> Row:
    """Constraints at a distance from their violation, by MuJoCo's impedance and reference acceleration."""
    least, most = (min(max(d, 1e-4), 0.9999) for d in (softness.least, softness.most))
    time = max(softness.time_constant, 2.0 * timestep)
    damping, stiffness = 2.0 / (most * time), 1.0 / (most * time * softness.damping_ratio) ** 2
    depth = distance - margin
    impedance: Any = most
    if least != most:
        x = jnp.minimum(jnp.abs(depth) * (1.0 / softness.width), 1.0)
        y = jnp.where(x <= 0.5, 2.0 * x * x, 1.0 - 2.0 * (1.0 - x) * (1.0 - x))
        impedance = least + y * (most - least)
    weight = jnp.where(depth < 0.0, impedance / ((1.0 - impedance) * inverse_inertia), 0.0)
    return Row(stiffness * impedance * depth, weight, damping)


class Contacts(NamedTuple):
    """Points that may touch the floor, with an axis of points before lanes: (P, 1, B) or (D, P, L, B).

    Attributes:
        friction: constants.
        directions: spatial vectors (6,) of the normal and of the two tangents.
        row: constraints, the same for all four edges of a point's friction pyramid.
    """

    friction: np.ndarray
    directions: tuple[Vector, Vector, Vector]
    row: Row


def at_points(xs: Vector) -> Vector:
    """Numbers of parts with room for an axis of points."""
    return vector([Number(x.value[..., None, :, :]) if x.value.ndim > 1 else x for x in xs.ravel()]).reshape(xs.shape)


def contacts(model: Model, engine: Engine, at: Pose) -> tuple[Contacts, Contacts]:
    """The ends of all capsules against the floor: those of the root, and those of limbs."""
    inverse = constants(model, engine)
    root: list[list[Any]] = [[], [], [], []]
    scales: list[float] = []
    for (body, offset), scale in zip(parts(model).root, inverse.root, strict=True):
        ends, *others = _points(body)
        for many, more in zip(root, (np.add(ends, offset), *others), strict=True):
            many += list(more)
        scales += [scale] * len(ends)
    of_root = [np.array(x)[:, None] for x in (*root, scales)]  # (P, 1, …)
    hinged = [[_points(body) for body in bodies] for bodies in parts(model).hinged]
    of_limbs = [np.array([[body[i] for body in bodies] for bodies in hinged]).swapaxes(1, 2) for i in range(4)]
    of_limbs.append(np.broadcast_to(inverse.limbs[:, None], of_limbs[2].shape))
    parts_of = zip(at.rotations, at.positions, (of_root, of_limbs), strict=True)
    first, second = (_touching(model, engine, at.height, *x) for x in parts_of)
    return first, second


def _touching(
    model: Model, engine: Engine, height: Number, rotation: Vector, position: Vector, points: list[np.ndarray]
) -> Contacts:
    ends, axes, radii, friction, inverse = points
    rotation, position = at_points(rotation), at_points(position)
    end = position + rotation @ columns(ends)
    distance = (end[2] + height).value - radii[..., None]
    point = vector([end[0], end[1], 0.5 * Number(distance) - height])
    normal = vector([0.0, 0.0, 1.0])
    directions = [np.concatenate([cross(point, d), d]) for d in (normal, *_tangents(rotation @ columns(axes)))]
    mu = np.maximum(friction, model.floor_friction)[..., None]
    softened = inverse[..., None] * (1.0 + mu**2) * 2.0 * mu**2
    row = soft_row(distance, model.contact_margin(engine), model.contact, model.timestep, softened)
    return Contacts(mu, tuple(directions), row)  # type: ignore[arg-type]


def _points(body: Body) -> tuple[list[Any], ...]:
    """Of each point of a body that may touch: itself, its capsule's axis, radius and friction."""

    def ends(shape: Capsule) -> list[Any]:
        return [shape.start] if shape.start == shape.end else [shape.start, shape.end]

    every = [(end, shape) for shape in body.shapes for end in ends(shape)]
    return (
        [end for end, _ in every],
        [np.subtract(shape.end, shape.start) for _, shape in every],
        [shape.radius for _, shape in every],
        [shape.friction for _, shape in every],
    )


def _tangents(along: Vector) -> tuple[Vector, Vector]:
    """The directions of friction: along a capsule, and across."""
    x, y, _ = along
    if y.all_are(0.0):
        return vector([1.0, 0.0, 0.0]), vector([0.0, 1.0, 0.0])
    square = (x * x + y * y).value
    lies = square > 1e-20  # the y-axis serves a capsule that stands upright
    scale = jnp.where(lies, jax.lax.rsqrt(jnp.where(lies, square, 1.0)), 0.0)
    cos, sin = Number(x.value * scale), Number(jnp.where(lies, y.value * scale, 1.0))
    return vector([cos, sin, 0.0]), vector([-sin, cos, 0.0])


def limits(model: Model, engine: Engine, q: Number) -> tuple[Any, Row]:
    """The nearer limit of each hinge and its constraint; sides (D, L, B) are 1 at lower limits and -1 at upper ones."""
    low, high = hinge_vector(model, "limits")
    above, below = (q - low).value, (high - q).value
    inverse = constants(model, engine).hinges[..., None]
    row = soft_row(jnp.minimum(above, below), 0.0, model.limit, model.timestep, inverse)
    return jnp.where(above < below, 1.0, -1.0).astype(above.dtype), row


class Collision(NamedTuple):
    """Two capsules of a limb, or of the root and a limb, that may touch without friction.

    Attributes:
        jacobian: rate at which they part, by each hinge, (D, L, B).
        row: the constraint, (L, B).
    """

    jacobian: Any
    row: Row


def collisions(model: Model, engine: Engine, at: Pose) -> list[Collision]:
    """The pairs of a model, in the x-z plane: spheres at the points of two axes that are nearest to each other."""
    hinged = parts(model).hinged
    places = {body.name: k for k, bodies in enumerate(hinged) for body in bodies}
    out = []
    for pair in model.collisions:
        (first, a, half_a), (second, b, half_b) = (_capsule(model, at, name) for name in pair)
        x, y = _nearest(a, half_a, b, half_b)
        near, far = a + half_a * x, b + half_b * y
        apart = far - near
        length = jnp.sqrt(dot(apart, apart).value + 1e-30)
        normal = apart * Number(1.0 / length)
        distance = length - first.radius - second.radius
        point = near + normal * Number(first.radius + 0.5 * distance)
        direction = np.concatenate([cross(point, normal), normal])
        inner, outer = places.get(pair[0], -1), places[pair[1]]
        between = np.array([inner < k <= outer for k in range(len(hinged))])[:, None, None]
        constant = constants(model, engine)
        inverse = (constant.root[0] if inner < 0 else constant.limbs[inner, 0]) + constant.limbs[outer, 0]
        row = soft_row(distance, model.contact_margin(engine), model.contact, model.timestep, inverse)
        # Where axes cross, MuJoCo pushes across the plane, which moves nothing.
        moves = between & (length > 1e-6)
        out.append(Collision(jnp.where(moves, dot(at.axes[1], direction).value, 0.0), row))
    return out


def _capsule(model: Model, at: Pose, name: str) -> tuple[Capsule, Vector, Vector]:
    """The capsule of a body, its middle and half its axis, (3,)."""
    hinged = parts(model).hinged
    place = next((k for k, bodies in enumerate(hinged) if bodies[0].name == name), None)
    shape = (model.root if place is None else hinged[place][0]).shapes[0]
    rotation, position = at.rotations[0], at.positions[0]
    if place is not None:
        rotation, position = (each(functools.partial(of_hinge, place), x) for x in (at.rotations[1], at.positions[1]))
    start, end = np.array(shape.start), np.array(shape.end)
    return shape, position + rotation @ vector((start + end) / 2.0), rotation @ vector((end - start) / 2.0)


def _nearest(a: Vector, half_a: Vector, b: Vector, half_b: Vector) -> tuple[Number, Number]:
    """Where two segments are nearest, from -1 to 1 along each (as MuJoCo clips them)."""
    apart = a - b
    aa, ab, bb = (x.value for x in (dot(half_a, half_a), -dot(half_a, half_b), dot(half_b, half_b)))
    u, v = -dot(half_a, apart).value, dot(half_b, apart).value
    determinant = aa * bb - ab * ab
    determinant = jnp.where(jnp.abs(determinant) < 1e-12, 1e-12, determinant)  # parallel ones
    x, y = (bb * u - ab * v) / determinant, (aa * v - ab * u) / determinant
    y = jnp.where(x > 1.0, (v - ab) / bb, jnp.where(x < -1.0, (v + ab) / bb, y))
    x = jnp.clip(x, -1.0, 1.0)
    x = jnp.where(y > 1.0, (u - ab) / aa, jnp.where(y < -1.0, (u + ab) / aa, x))
    return Number(jnp.clip(x, -1.0, 1.0)), Number(jnp.clip(y, -1.0, 1.0))


class Push(NamedTuple):
    """What contacts do at an acceleration.

    Attributes:
        wrench: (6,) on a part.
        stiffness: (6, 6), minus its derivative by the part's acceleration.
    """

    wrench: Vector
    stiffness: Vector


def contact_push(touching: Contacts, damped: list[Number], moving: Vector) -> Push:
    """The floor's push on parts.

    Args:
        touching: their points.
        damped: velocity along each direction, times the damping of the reference acceleration.
        moving: the acceleration (6,) of the parts.
    """
    normal, *tangents = touching.directions
    row, mu = touching.row, touching.friction
    moving = at_points(moving)
    pull = (dot(normal, moving) + damped[0]).value + row.offset
    mu = mu.astype(pull.dtype)

    def edge(slip: Any) -> tuple[Any, Any]:
        x = pull + slip
        weight = jnp.where(x < 0.0, row.weight, 0.0)
        return weight, -weight * x

    force, weight = 0.0, 0.0
    wrench, mixed, stiffness = vector(np.zeros(6)), vector(np.zeros(6)), vector(np.zeros((6, 6)))
    for tangent, speed in zip(tangents, damped[1:], strict=True):
        slip = dot(tangent, moving) + speed
        if slip.known:  # nothing moves this way: both edges are the normal
            w, f = edge(0.0)
            force, weight = force + 2.0 * f, weight + 2.0 * w
            continue
        (w1, f1), (w2, f2) = computed_once(lambda x: (edge(x), edge(-x)), mu * slip.value)
        force, weight = force + (f1 + f2), weight + (w1 + w2)
        wrench = wrench + tangent * Number(mu * (f1 - f2))
        mixed = mixed + tangent * Number(mu * (w1 - w2))
        stiffness = stiffness + np.multiply.outer(tangent, tangent * Number(mu * mu * (w1 + w2)))
    wrench = wrench + normal * Number(force)
    both = np.multiply.outer(normal, mixed)
    stiffness = stiffness + both + both.T + np.multiply.outer(normal, normal * Number(weight))
    points = functools.partial(jnp.sum, axis=-3)
    return Push(each(points, wrench), full_matrix(each(points, upper(stiffness))))
