"""MuJoCo's physics of a robot above a floor, for many robots at once.

The batch comes last: coordinates are (Q, B), velocities (V, B). A robot is a root and L limbs that are built alike, so
numbers of the root are (1, B) and those of a limb's segment (L, B).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omarl_envs.mujoco.models import Body, Capsule, Engine, Joint, Model, Softness
from omarl_envs.mujoco.numbers import (
    ONE,
    ZERO,
    Number,
    Vector,
    columns,
    cross,
    dot,
    number,
    quaternion_matrix,
    skew,
    summed,
    turn,
    vector,
)

GRAVITY = 9.81


class Segment(NamedTuple):
    """The bodies of all limbs at one distance from the root, or the root.

    Attributes:
        bodies: one of each limb, or the root alone.
        parent: the segment that they hang on, -1 for the root.
        position: (3,) of their frames in those of their parents.
        joint: number of their joint's velocity in `Chain`, None if they are welded on or the root.
        masses, centres, inertias: (), (3,) and (3, 3), in their frames.
    """

    bodies: tuple[Body, ...]
    parent: int
    position: Vector
    masses: Number
    centres: Vector
    inertias: Vector


def _lanes(xs: Any) -> Vector:
    """Constants (L, …) of bodies as a vector or matrix of Numbers (L, 1)."""
    xs = np.asarray(xs, np.float64)
    return columns(xs.reshape(len(xs), -1)).reshape(xs.shape[1:])


@functools.cache
def segments(model: Model, engine: Engine) -> tuple[Segment, ...]:
    """The root, and the segments of its limbs."""
    inertials = dict(zip((b.name for b in model.bodies), zip(*model.inertials(engine), strict=True), strict=True))
    groups = [(model.root,), *zip(*model.limbs, strict=True)]
    out = []
    for place, bodies in enumerate(groups):
        masses, centres, inertias = (_lanes(x) for x in zip(*(inertials[b.name] for b in bodies), strict=True))
        position = _lanes([body.position for body in bodies])
        out.append(Segment(bodies, place - 1, position, masses.item(), centres, inertias))
    return tuple(out)


def _joint_constant(segment: Segment, name: str) -> Any:
    """A constant of a segment's hinges, (L,) or (L, n)."""
    return np.array([getattr(body.joints[0], name) for body in segment.bodies], np.float64)


class Layout(NamedTuple):
    """Where the numbers of joints stand in arrays of coordinates and of velocities.

    Attributes:
        root_q, root_v: coordinates and velocities of the root.
        limbs, hinges: L, and hinges of a limb.
    """

    root_q: int
    root_v: int
    limbs: int
    hinges: int


@functools.cache
def layout(model: Model) -> Layout:
    """The layout of a model's coordinates."""
    free = model.root.joints[0].kind == "free"
    hinges = sum(len(body.joints) for body in model.limbs[0])
    return Layout(7 if free else len(model.root.joints), 6 if free else len(model.root.joints), len(model.limbs), hinges)


def split(model: Model, x: Any) -> tuple[list[Number], list[Number]]:
    """An array (Q, B) or (V, B): numbers of the root, (1, B) each, and of each hinge of a limb, (L, B)."""
    at = layout(model)
    root = len(x) - at.limbs * at.hinges
    of_limbs = x[root:].reshape(at.limbs, at.hinges, -1)
    return [Number(x[k : k + 1]) for k in range(root)], [Number(of_limbs[:, k]) for k in range(at.hinges)]


def join(root: list[Number], limbs: list[Number]) -> Any:
    """The array (V, B) whose parts `split` gives."""
    of_limbs = jnp.stack([x.value for x in limbs], axis=1)
    return jnp.concatenate([x.value for x in root] + [of_limbs.reshape(-1, of_limbs.shape[-1])])


def _motion_cross(a: Vector, b: Vector) -> Vector:
    """The rate of a motion (angular, linear) that moves with velocity a."""
    return np.concatenate([cross(a[:3], b[:3]), cross(a[:3], b[3:]) + cross(a[3:], b[:3])])


def _force_cross(a: Vector, f: Vector) -> Vector:
    """The rate of a wrench (moment, force) that moves with velocity a."""
    return np.concatenate([cross(a[:3], f[:3]) + cross(a[3:], f[3:]), cross(a[:3], f[3:])])


class Pose(NamedTuple):
    """Where segments are. Positions are taken from the root's origin, so that it does not matter how far it went.

    Attributes:
        height: of the root's origin above the floor.
        rotations, positions: of each segment's frame, (3, 3) and (3,).
        root_axes: the motion (6,) that each velocity of the root makes: angular, and linear at the root's origin.
        axes: those of the hinges of limbs.
    """

    height: Number
    rotations: list[Vector]
    positions: list[Vector]
    root_axes: list[Vector]
    axes: list[Vector]


def pose(model: Model, engine: Engine, q: tuple[list[Number], list[Number]]) -> Pose:
    """Forward kinematics."""
    root, *chain = segments(model, engine)
    height, rotation, root_axes = root.position[2], vector(np.eye(3)), []
    still = vector(np.zeros(3))
    if model.root.joints[0].kind == "free":
        height, rotation = q[0][2], quaternion_matrix(vector(q[0][3:]))
        root_axes = [np.concatenate([still, axis]) for axis in vector(np.eye(3))]
        root_axes += [np.concatenate([axis, still]) for axis in rotation.T]
    else:
        for joint, x in zip(model.root.joints, q[0], strict=True):
            axis, moved = vector(joint.axis), x - joint.reference
            if joint.kind == "slide":
                height = height + axis[2] * moved
                root_axes.append(np.concatenate([still, axis]))
            else:
                rotation = rotation @ turn(axis, moved)
                root_axes.append(np.concatenate([axis, still]))
    rotations, positions, axes = [rotation], [still], []
    hinges = iter(q[1])
    for segment in chain:
        rotation = rotations[segment.parent]
        position = positions[segment.parent] + rotation @ segment.position
        if segment.bodies[0].joints:
            hinge = _lanes(_joint_constant(segment, "axis"))
            at = _lanes(_joint_constant(segment, "anchor"))
            axis, anchor = rotation @ hinge, position + rotation @ at
            axes.append(np.concatenate([axis, cross(anchor, axis)]))
            rotation = rotation @ turn(hinge, next(hinges))
            position = anchor - rotation @ at
        rotations.append(rotation)
        positions.append(position)
    return Pose(height, rotations, positions, root_axes, axes)


def inertias(model: Model, engine: Engine, at: Pose) -> list[Vector]:
    """The inertia (6, 6) of each segment about the root's origin."""
    out = []
    for segment, rotation, position in zip(segments(model, engine), at.rotations, at.positions, strict=True):
        offset = position + rotation @ segment.centres
        first = skew(offset * segment.masses)
        about = rotation @ segment.inertias @ rotation.T + first @ skew(offset).T
        out.append(np.block([[about, first], [first.T, vector(np.eye(3)) * segment.masses]]))
    return out


def motions(model: Model, at: Pose, x: tuple[list[Number], list[Number]]) -> list[Vector]:
    """The motion (6,) of each segment, if velocities or accelerations of joints are x."""
    out = [sum((axis * r for axis, r in zip(at.root_axes, x[0], strict=True)), vector(np.zeros(6)))]
    hinges = zip(at.axes, x[1], strict=True)
    for limb in model.limbs[0]:
        axis, rate = next(hinges) if limb.joints else (vector(np.zeros(6)), ZERO)
        out.append(out[-1] + axis * rate)
    return out


def subtrees(of_segments: list[Vector]) -> list[Vector]:
    """Sums over each segment and all that hang on it."""
    sums = list(of_segments)
    for k in range(len(sums) - 2, 0, -1):
        sums[k] = sums[k] + sums[k + 1]
    sums[0] = sums[0] + summed(sums[1], keepdims=True)
    return sums


def _hinge_segments(model: Model) -> list[int]:
    """The segment of each hinge."""
    return [k for k, body in enumerate(model.limbs[0], start=1) if body.joints]


class Matrix(NamedTuple):
    """A symmetric matrix between velocities, which is 0 between limbs.

    Attributes:
        root: (R, R) Numbers (1, B).
        cross: (R, D) Numbers (L, B), between the root and hinges of a limb.
        limb: (D, D) Numbers (L, B).
    """

    root: Vector
    cross: Vector
    limb: Vector


def joint_matrix(model: Model, at: Pose, of_segments: list[Vector], diagonal: tuple[Any, Any]) -> Matrix:
    """Σ of segments' Jᵀ I J for matrices I (6, 6), and a diagonal."""
    composite = subtrees(of_segments)
    n, d = len(at.root_axes), len(at.axes)
    root, cross_, limb = np.empty((n, n), object), np.empty((n, d), object), np.empty((d, d), object)
    for j in range(n):
        momentum = composite[0] @ at.root_axes[j]
        for i in range(j + 1):
            root[i, j] = root[j, i] = dot(at.root_axes[i], momentum)
        root[j, j] = root[j, j] + diagonal[0][j]
    for j, place in enumerate(_hinge_segments(model)):
        momentum = composite[place] @ at.axes[j]
        for i in range(j + 1):
            limb[i, j] = limb[j, i] = dot(at.axes[i], momentum)
        limb[j, j] = limb[j, j] + diagonal[1][j]
        for i in range(n):
            cross_[i, j] = dot(at.root_axes[i], momentum)
    return Matrix(root, cross_, limb)


def solve(matrix: Matrix, right: tuple[list[Number], list[Number]]) -> tuple[list[Number], list[Number]]:
    """x of matrix x = right: limbs are eliminated, the root is solved, and limbs follow."""
    root, cross_, limb = (part.copy() for part in matrix)
    n, d = cross_.shape
    x, y = list(right[0]), list(right[1])
    taken, due = np.full((n, n), ZERO, object), [ZERO] * n
    scaled = np.empty((n + d, d), object)  # column j: entries over hinge j's pivot
    inverse: list[Number] = [ONE] * d
    for j in reversed(range(d)):
        inverse[j] = ONE / limb[j, j]
        for i in range(j):
            scaled[n + i, j] = limb[i, j] * inverse[j]
        for i in range(n):
            scaled[i, j] = cross_[i, j] * inverse[j]
        for i in range(j):
            for k in range(i + 1):
                limb[k, i] = limb[k, i] - scaled[n + k, j] * limb[i, j]
                limb[i, k] = limb[k, i]
            for k in range(n):
                cross_[k, i] = cross_[k, i] - scaled[k, j] * limb[i, j]
            y[i] = y[i] - scaled[n + i, j] * y[j]
        for i in range(n):
            for k in range(i + 1):
                taken[k, i] = taken[k, i] + scaled[k, j] * cross_[i, j]
            due[i] = due[i] + scaled[i, j] * y[j]
    total = summed(np.concatenate([taken.ravel(), vector(due)]), keepdims=True)
    root = root - total[: n * n].reshape(n, n)  # its upper triangle
    x = [a - b for a, b in zip(x, total[n * n :], strict=True)]
    pivots: list[Number] = [ONE] * n
    factor = np.empty((n, n), object)
    for j in reversed(range(n)):
        pivots[j] = ONE / root[j, j]
        for i in range(j):
            factor[i, j] = root[i, j] * pivots[j]
        for i in range(j):
            for k in range(i + 1):
                root[k, i] = root[k, i] - factor[k, j] * root[i, j]
            x[i] = x[i] - factor[i, j] * x[j]
    for j in range(n):
        x[j] = x[j] * pivots[j]
        for i in range(j):
            x[j] = x[j] - factor[i, j] * x[i]
    for j in range(d):
        y[j] = y[j] * inverse[j]
        for i in range(n):
            y[j] = y[j] - scaled[i, j] * x[i]
        for i in range(j):
            y[j] = y[j] - scaled[n + i, j] * y[i]
    return x, y


class Constants(NamedTuple):
    """Mean inverse inertias where a model rests, by which the softness of constraints is scaled.

    Attributes:
        segments: of the translation of bodies, (L, 1) each, 1 / kg.
        hinges: of the hinges of limbs, (L, 1) each.
    """

    segments: list[np.ndarray]
    hinges: list[np.ndarray]


@functools.cache
def constants(model: Model, engine: Engine) -> Constants:
    """The inverse inertias of a model where it rests, in float64."""
    at_rest = layout(model)
    rest = [*model.root.position, 1.0, 0.0, 0.0, 0.0]
    root = rest if at_rest.root_q == 7 else [joint.reference for joint in model.root.joints]
    q = [number(x) for x in root], [number(np.zeros((at_rest.limbs, 1)))] * at_rest.hinges
    at = pose(model, engine, q)
    n, d, limbs = at_rest.root_v, at_rest.hinges, at_rest.limbs
    # Velocities in the order root, limb by limb.
    armature = np.repeat(_joint_constants(model, "armature"), 1, axis=0)
    entries = joint_matrix(model, at, inertias(model, engine, at), ([0.0] * n, [number(x[:, None]) for x in armature]))
    mass = np.zeros((n + limbs * d,) * 2)
    mass[:n, :n] = [[x.value.item() for x in row] for row in entries.root]
    for i, j in np.ndindex(d, d):
        here = n + np.arange(limbs) * d
        mass[here + i, here + j] = np.broadcast_to(entries.limb[i, j].value, (limbs, 1))[:, 0]
    for i, j in np.ndindex(n, d):
        here = n + np.arange(limbs) * d + j
        mass[i, here] = mass[here, i] = np.broadcast_to(entries.cross[i, j].value, (limbs, 1))[:, 0]
    inverse = np.linalg.inv(mass)
    diagonal = np.diag(inverse)[n:].reshape(limbs, d)
    of_segments = []
    hinges = 0
    for place, segment in enumerate(segments(model, engine)):
        hinges += bool(place and segment.bodies[0].joints)
        point = at.positions[place] + at.rotations[place] @ segment.centres
        means = []
        for limb in range(len(segment.bodies)):
            jacobian = np.zeros((3, len(mass)))
            for dof, axis in enumerate(at.root_axes + (at.axes[:hinges] if place else [])):
                moved = axis[3:] + cross(axis[:3], point)
                column = dof if dof < n else n + limb * d + dof - n
                jacobian[:, column] = [np.broadcast_to(x.value, (limbs, 1))[limb, 0] for x in moved]
            means.append(np.trace(jacobian @ inverse @ jacobian.T) / 3.0)
        of_segments.append(np.array(means)[:, None])
    return Constants(of_segments, [x[:, None] for x in diagonal.T])


def _joint_constants(model: Model, name: str) -> np.ndarray:
    """A constant of the hinges of limbs, (D, L) or (D, L, n)."""
    segment = zip(*model.limbs, strict=True)
    return np.array([[getattr(b.joints[0], name) for b in bodies] for bodies in segment if bodies[0].joints], float)


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
    """Points of a segment that may touch the floor; numbers are (P, L, B).

    Attributes:
        friction: (P, L, 1).
        directions: spatial vectors (6,) of the normal and of the two tangents.
        row: constraints, the same for all four edges of a point's friction pyramid.
    """

    friction: np.ndarray
    directions: tuple[Vector, Vector, Vector]
    row: Row


def contacts(model: Model, engine: Engine, at: Pose) -> list[Contacts]:
    """The ends of all capsules against the floor, segment by segment."""
    inverse = constants(model, engine).segments
    out = []
    for place, segment in enumerate(segments(model, engine)):
        points = [_points(body) for body in segment.bodies]  # of each limb
        ends, axes, radii, friction = (np.swapaxes(np.array(x), 0, 1) for x in zip(*points, strict=True))
        rotation = at.rotations[place]
        end = at.positions[place] + rotation @ columns(ends)
        distance = (end[2] + at.height).value - radii[..., None]
        point = vector([end[0], end[1], 0.5 * Number(distance) - at.height])
        normal = vector([0.0, 0.0, 1.0])
        directions = [np.concatenate([cross(point, d), d]) for d in (normal, *_tangents(rotation @ columns(axes)))]
        mu = np.maximum(friction, model.floor_friction)[..., None]
        softened = inverse[place] * (1.0 + mu**2) * 2.0 * mu**2
        row = soft_row(distance, model.contact_margin(engine), model.contact, model.timestep, softened)
        out.append(Contacts(mu, tuple(directions), row))  # type: ignore[arg-type]
    return out


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


def limits(model: Model, engine: Engine, q: tuple[list[Number], list[Number]]) -> list[tuple[Any, Row]]:
    """Of each hinge the nearer limit: its side, 1 at the lower and -1 at the upper one, (L, B), and its constraint."""
    out = []
    for x, ends, inverse in zip(q[1], _joint_constants(model, "limits"), constants(model, engine).hinges, strict=True):
        above, below = x.value - ends[:, :1], ends[:, 1:] - x.value
        row = soft_row(jnp.minimum(above, below), 0.0, model.limit, model.timestep, inverse)
        out.append((jnp.where(above < below, 1.0, -1.0).astype(above.dtype), row))
    return out


class Push(NamedTuple):
    """What constraints do at an acceleration.

    Attributes:
        wrench: (6,) on a segment.
        stiffness: (6, 6), minus its derivative by the segment's acceleration.
    """

    wrench: Vector
    stiffness: Vector


def contact_push(touching: Contacts, motion: Vector, acceleration: Vector) -> Push:
    """The floor's push on a segment that has this motion and this acceleration."""
    normal, *tangents = touching.directions
    row, mu = touching.row, touching.friction
    damped = acceleration + motion * row.damping
    pull = dot(normal, damped).value + row.offset

    def edge(slip: Any) -> tuple[Any, Any]:
        x = pull + slip
        weight = jnp.where(x < 0.0, row.weight, 0.0)
        return weight, -weight * x

    force, weight = 0.0, 0.0
    wrench = vector(np.zeros(6))
    mixed, stiffness = vector(np.zeros(6)), vector(np.zeros((6, 6)))
    for tangent in tangents:
        slip = dot(tangent, damped)
        if slip.known:  # nothing moves this way: both edges are the normal
            w, f = edge(0.0)
            force, weight = force + 2.0 * f, weight + 2.0 * w
            continue
        (w1, f1), (w2, f2) = edge(mu * slip.value), edge(-mu * slip.value)
        force, weight = force + (f1 + f2), weight + (w1 + w2)
        wrench = wrench + tangent * Number(mu * (f1 - f2))
        mixed = mixed + tangent * Number(mu * (w1 - w2))
        stiffness = stiffness + np.multiply.outer(tangent, tangent * Number(mu * mu * (w1 + w2)))
    wrench = wrench + normal * Number(force)
    mixed_normal = np.multiply.outer(normal, mixed)
    stiffness = stiffness + mixed_normal + mixed_normal.T + np.multiply.outer(normal, normal * Number(weight))
    upper = summed(stiffness[np.triu_indices(6)])
    full = np.empty((6, 6), object)
    full[np.triu_indices(6)] = upper
    full.T[np.triu_indices(6)] = upper
    return Push(summed(wrench), full)


def acceleration(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> Any:
    """The accelerations (V, B) of robots, and the pose and inertias that they follow from.

    They minimise half the squared distance from the unconstrained acceleration in the metric of the mass matrix, and
    Σ weight · min(u + offset, 0)² / 2 over constraints: Newton's method, from a guess.
    """
    q, v = split(model, q), split(model, v)
    at = pose(model, engine, q)
    of_segments = inertias(model, engine, at)
    touching, ends = contacts(model, engine, at), limits(model, engine, q)
    speeds = motions(model, at, v)
    biases = [
        inertia @ drift + _force_cross(speed, inertia @ speed)
        for inertia, drift, speed in zip(of_segments, drifts(model, at, v), speeds, strict=True)
    ]
    forces = joint_forces(model, q, v, control)
    armature = [number(x[:, None]) for x in _joint_constants(model, "armature")]

    def newton(_: Any, values: Any) -> Any:
        a = split(model, values)
        moving = motions(model, at, a)
        pushes = [contact_push(*x) for x in zip(touching, speeds, moving, strict=True)]
        totals = subtrees(
            [
                inertia @ move + bias - push.wrench
                for inertia, move, bias, push in zip(of_segments, moving, biases, pushes, strict=True)
            ]
        )
        root = [dot(axis, totals[0]) for axis in at.root_axes]
        limb, diagonal = [], []
        for k, place in enumerate(_hinge_segments(model)):
            side, row = ends[k]
            x = side * (a[1][k].value + row.damping * v[1][k].value) + row.offset
            weight = jnp.where(x < 0.0, row.weight, 0.0)
            limb.append(dot(at.axes[k], totals[place]) + armature[k] * a[1][k] - forces[k] + Number(side * weight * x))
            diagonal.append(armature[k] + Number(weight))
        stiff = [inertia + push.stiffness for inertia, push in zip(of_segments, pushes, strict=True)]
        step = solve(joint_matrix(model, at, stiff, ([ZERO] * len(root), diagonal)), (root, limb))
        return values - join(*step)

    a = split(model, jax.lax.fori_loop(0, iterations, newton, guess))
    return a, at, of_segments


def drifts(model: Model, at: Pose, v: tuple[list[Number], list[Number]]) -> list[Vector]:
    """The accelerations (6,) of segments whose joints do not accelerate, in a frame that falls upwards with gravity."""
    motion, drift = vector(np.zeros(6)), vector([0.0, 0.0, 0.0, 0.0, 0.0, GRAVITY])
    steps = [axis * rate for axis, rate in zip(at.root_axes, v[0], strict=True)]
    if len(steps) == 6:  # three translations, then three rotations about axes of the body, which are one
        steps = [*steps[:3], steps[3] + steps[4] + steps[5]]
    for step in steps:
        drift, motion = drift + _motion_cross(motion, step), motion + step
    out, hinges = [drift], zip(at.axes, v[1], strict=True)
    for body in model.limbs[0]:
        if body.joints:
            axis, rate = next(hinges)
            drift = drift + _motion_cross(motion, axis * rate)
            motion = motion + axis * rate
        out.append(drift)
    return out


def joint_forces(model: Model, q: Any, v: Any, control: Any) -> list[Number]:
    """Springs, dampers and motors of the hinges of limbs."""
    names = [[body.joints[0].name for body in bodies] for bodies in zip(*model.limbs, strict=True) if bodies[0].joints]
    motors = {name: (k, gear) for k, (name, gear) in enumerate(model.motors)}
    stiffness, damping = _joint_constants(model, "stiffness"), _joint_constants(model, "damping")
    clipped = jnp.clip(control, -1.0, 1.0)
    out = []
    for k, of_limbs in enumerate(names):
        which, gears = zip(*(motors[name] for name in of_limbs), strict=True)
        motor = Number(jnp.stack([clipped[i] for i in which])) * number(np.array(gears)[:, None])
        out.append(motor - q[1][k] * number(stiffness[k][:, None]) - v[1][k] * number(damping[k][:, None]))
    return out


def euler(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> tuple:
    """One step of semi-implicit Euler, in which the damping of hinges is implicit."""
    h = model.timestep
    a, at, of_segments = acceleration(model, engine, q, v, control, guess, iterations)
    armature, damping = _joint_constants(model, "armature"), _joint_constants(model, "damping")
    diagonal = [number((x + h * d)[:, None]) for x, d in zip(armature, damping, strict=True)]
    zeros = [ZERO] * len(a[0])
    damped = [x * number(h * d[:, None]) for x, d in zip(a[1], damping, strict=True)]
    change = solve(joint_matrix(model, at, of_segments, (zeros, diagonal)), (zeros, damped))
    a = join(*a)
    v = v + h * (a - join(*change))
    return q + h * v, v, a


def _moved(model: Model, q: Any, v: Any, h: float) -> Any:
    """Coordinates (Q, B) after h seconds at velocities v (V, B)."""
    if layout(model).root_q != 7:
        return q + h * v
    turned = _quaternion_turned(q[3:7], v[3:6] * h)
    return jnp.concatenate([q[:3] + h * v[:3], turned, q[7:] + h * v[6:]])


def _quaternion_turned(quaternion: Any, rotation: Any) -> Any:
    """A quaternion (4, B), turned by a rotation vector (3, B) in its own frame."""
    angle = jnp.sqrt(jnp.square(rotation).sum(axis=0) + 1e-30)
    s = jnp.sin(0.5 * angle) / angle
    (w, x, y, z), (a, b, c, d) = quaternion, (jnp.cos(0.5 * angle), *(rotation * s))
    product = jnp.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ]
    )
    return product * jax.lax.rsqrt(jnp.square(product).sum(axis=0))


def runge_kutta(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> tuple:
    """One step of the classical Runge-Kutta method, explicit in everything."""
    h = model.timestep

    def slope(q: Any, v: Any, guess: Any) -> Any:
        return join(*acceleration(model, engine, q, v, control, guess, iterations)[0])

    speed, slopes, total, speeds = v, guess, 0.0, 0.0
    stages = ((0.0, 1.0), (0.5, 2.0), (0.5, 2.0), (1.0, 1.0))
    at = q
    for part, weight in stages:
        if part:
            at, speed = _moved(model, q, speed, part * h), v + part * h * slopes
        slopes = slope(at, speed, slopes)
        total, speeds = total + weight * slopes, speeds + weight * speed
    return _moved(model, q, speeds / 6.0, h), v + h * total / 6.0, slopes


ITERATIONS = 4
"""Steps of Newton's method from the last acceleration."""


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def control_steps(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> tuple:
    """`frame_skip` steps of the physics under one control: coordinates, velocities, acceleration, and how far x moved.

    The way is summed by itself, so that its rounding does not grow with the distance from the start.
    """
    step = euler if model.integrator == "euler" else runge_kutta
    start = q

    def one(_: Any, values: tuple) -> tuple:
        return step(model, engine, *values[:2], control, values[2], iterations)

    q, v, a = jax.lax.fori_loop(0, model.frame_skip, one, (q.at[0].set(0.0), v, guess))
    return q.at[0].add(start[0]), v, a, q[0]


def simulate(
    model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int = ITERATIONS
) -> tuple[Any, Any, Any, Any]:
    """One control step of one robot; under `vmap`, of a batch that is simulated together.

    Args:
        model: the robot.
        engine: whose inertias and margins it has.
        q, v: coordinates (Q,) and velocities (V,).
        control: (U,), clipped to [-1, 1].
        guess: (V,), the last acceleration, from which the solver starts.
        iterations: of Newton's method.

    Returns:
        coordinates, velocities, acceleration, and the way () along x.
    """

    @jax.custom_batching.custom_vmap
    def batch(q: Any, v: Any, control: Any, guess: Any) -> tuple:
        return control_steps(model, engine, q, v, control, guess, iterations)

    @batch.def_vmap
    def rule(size: int, batched: list[bool], *args: Any) -> tuple:
        whole = [x if is_batched else jnp.broadcast_to(x, (size, *x.shape)) for x, is_batched in zip(args, batched)]
        flat = [jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in whole]
        out = batch(*flat)
        parts = [x.reshape(*x.shape[:-1], size, -1) for x in out]
        return tuple(jnp.moveaxis(x, -2, 0) for x in parts), (True,) * 4

    out = batch(*(x[:, None] for x in (q, v, control, guess)))
    return tuple(x[..., 0] for x in out)  # type: ignore[return-value]
