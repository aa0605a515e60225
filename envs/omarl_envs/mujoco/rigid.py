"""Kinematics and dynamics of a robot without constraints, for many robots at once.

The batch comes last. A robot is a root and L limbs that are built alike, with D hinges each, so numbers of the root are
(1, B) and those of limbs (D, L, B). Spatial vectors are (angular, linear), taken at the root's origin.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from omarl_envs.mujoco.models import Body, Engine, Model
from omarl_envs.mujoco.numbers import (
    Number,
    Vector,
    columns,
    cross,
    dot,
    each,
    number,
    quaternion_matrix,
    skew,
    stacked,
    turn,
    vector,
)

GRAVITY = 9.81  # m/s²


class Parts(NamedTuple):
    """The bodies of a robot as the engine takes them: a rigid root, with all that is welded to it, and hinged segments.

    Attributes:
        root: bodies of the root, and where their frames lie in the root's, (3,).
        hinged: of each hinge of a limb, the bodies that it carries, one of each limb.
    """

    root: tuple[tuple[Body, tuple[float, float, float]], ...]
    hinged: tuple[tuple[Body, ...], ...]


@functools.cache
def parts(model: Model) -> Parts:
    """The parts of a model."""
    segments = tuple(zip(*model.limbs, strict=True))
    welded = [body for bodies in segments for body in bodies if not body.joints]
    assert all(body in segments[0] for body in welded), "Only what hangs on the root may be welded on."
    root = ((model.root, (0.0, 0.0, 0.0)), *((body, body.position) for body in welded))
    return Parts(root, tuple(bodies for bodies in segments if bodies[0].joints))


class Inertials(NamedTuple):
    """Masses, centres of mass, and inertias about these.

    Attributes:
        root: (), (3,) and (3, 3).
        limbs: Numbers (D, L, 1) of the same shapes.
    """

    root: tuple[Number, Vector, Vector]
    limbs: tuple[Number, Vector, Vector]


@functools.cache
def inertials(model: Model, engine: Engine) -> Inertials:
    """The inertials of a model's parts."""
    of = dict(zip((b.name for b in model.bodies), zip(*model.inertials(engine), strict=True), strict=True))

    def about_origin(mass: float, centre: np.ndarray, inertia: np.ndarray) -> np.ndarray:
        return inertia + mass * (centre @ centre * np.eye(3) - np.outer(centre, centre))

    masses, centres, about = 0.0, np.zeros(3), np.zeros((3, 3))
    for body, offset in parts(model).root:
        mass, centre, inertia = of[body.name]
        masses, centres = masses + mass, centres + mass * (centre + offset)
        about = about + about_origin(mass, centre + offset, inertia)
    centre = centres / masses
    limbs = [[of[b.name] for b in bodies] for bodies in parts(model).hinged]
    return Inertials(
        (number(masses), vector(centre), vector(2.0 * about - about_origin(masses, centre, about))),
        (
            number(np.array([[m for m, _, _ in bodies] for bodies in limbs])[..., None]),
            lanes([[c for _, c, _ in bodies] for bodies in limbs]),
            lanes([[i for _, _, i in bodies] for bodies in limbs]),
        ),
    )


def lanes(xs: Any) -> Vector:
    """Constants (D, L, …) of hinges or of what they carry, as a vector or matrix of Numbers (D, L, 1)."""
    xs = np.asarray(xs, np.float64)
    shape = xs.shape[2:]
    return columns(xs.reshape(*xs.shape[:2], -1)).reshape(shape)


def hinge_vector(model: Model, name: str) -> Vector:
    """A vector that is a constant of all hinges, of Numbers (D, L, 1)."""
    return lanes([[getattr(body.joints[0], name) for body in bodies] for bodies in parts(model).hinged])


def hinge_constant(model: Model, name: str) -> Number:
    """A constant of all hinges, (D, L, 1)."""
    of = [[getattr(body.joints[0], name) for body in bodies] for bodies in parts(model).hinged]
    return Number(np.array(of, np.float64)[..., None])


class Split(NamedTuple):
    """What belongs to coordinates or velocities: of the root a Number (1, B) each, of hinges one (D, L, B)."""

    root: list[Number]
    limbs: Number


def split(model: Model, x: Any) -> Split:
    """An array (Q, B) or (V, B), whose hinges stand limb by limb."""
    hinges, limbs = len(parts(model).hinged), len(model.limbs)
    root = len(x) - limbs * hinges
    of_limbs = x[root:].reshape(limbs, hinges, -1).swapaxes(0, 1)
    return Split([Number(x[k : k + 1]) for k in range(root)], Number(of_limbs))


def join(root: Any, limbs: Any) -> Any:
    """The array (V, B) of the root's (R, B) and the hinges' (D, L, B)."""
    return jnp.concatenate([root, limbs.swapaxes(0, 1).reshape(-1, limbs.shape[-1])])


def motion_cross(a: Vector, b: Vector) -> Vector:
    """The rate of a motion (angular, linear) that moves with velocity a."""
    return np.concatenate([cross(a[:3], b[:3]), cross(a[:3], b[3:]) + cross(a[3:], b[:3])])


def force_cross(a: Vector, f: Vector) -> Vector:
    """The rate of a wrench (moment, force) that moves with velocity a."""
    return np.concatenate([cross(a[:3], f[:3]) + cross(a[3:], f[3:]), cross(a[:3], f[3:])])


def outward(xs: Vector, hinges: int) -> Vector:
    """Sums (D, L, B) over each hinge and those between it and the root."""
    return each(lambda x: (np.tril(np.ones((hinges, hinges), x.dtype))[:, :, None, None] * x).sum(axis=1), xs)


def inward(xs: Vector, hinges: int) -> Vector:
    """Sums (D, L, B) over each hinge and those that it carries."""
    return each(lambda x: (np.triu(np.ones((hinges, hinges), x.dtype))[:, :, None, None] * x).sum(axis=1), xs)


def total(xs: Vector) -> Vector:
    """Sums (1, B) over all hinges (D, L, B)."""
    return each(lambda x: x.sum(axis=(0, 1))[None], xs)


class Pose(NamedTuple):
    """Where parts are. Positions are taken from the root's origin, so that it does not matter how far it went.

    Attributes:
        height: of the root's origin above the floor, (1, B).
        rotations: of the root's frame, (3, 3) of (1, B), and of the frames that hinges carry, of (D, L, B).
        positions: of these frames, (3,).
        axes: the motion (6,) that a velocity makes, angular, and linear at the root's origin: of each velocity of the
            root, and of hinges.
    """

    height: Number
    rotations: tuple[Vector, Vector]
    positions: tuple[Vector, Vector]
    axes: tuple[list[Vector], Vector]


def pose(model: Model, q: Split) -> Pose:
    """Forward kinematics."""
    still = vector(np.zeros(3))
    if model.root.joints[0].kind == "free":
        height, rotation = q.root[2], quaternion_matrix(vector(q.root[3:]))
        root_axes = [np.concatenate([still, axis]) for axis in vector(np.eye(3))]
        root_axes += [np.concatenate([axis, still]) for axis in rotation.T]
    else:
        height, rotation, root_axes = number(model.root.position[2]), vector(np.eye(3)), []
        for joint, x in zip(model.root.joints, q.root, strict=True):
            axis, moved = vector(joint.axis), x - joint.reference
            if joint.kind == "slide":
                height = height + axis[2] * moved
                root_axes.append(np.concatenate([still, axis]))
            else:
                rotation = rotation @ turn(axis, moved)
                root_axes.append(np.concatenate([axis, still]))
    of_hinges = zip(*(_rows(hinge_vector(model, name)) for name in ("axis", "anchor")), _positions(model), strict=True)
    frames, inner, at = [], rotation, still
    turns = turn(hinge_vector(model, "axis"), q.limbs)
    for k, (axis, anchor, position) in enumerate(of_hinges):
        start = at + inner @ position
        pivot, axis = start + inner @ anchor, inner @ axis
        inner = inner @ each(functools.partial(of_hinge, k), turns)
        at = pivot - inner @ anchor
        frames.append(np.concatenate([inner.ravel(), at, axis, cross(pivot, axis)]))
    of_limbs = stacked(frames)
    return Pose(
        height,
        (rotation, of_limbs[:9].reshape(3, 3)),
        (still, of_limbs[9:12]),
        (root_axes, of_limbs[12:]),
    )


def _positions(model: Model) -> list[Vector]:
    """Where the frames of hinges lie in those before them, (3,) of (L, 1)."""
    return _rows(lanes([[body.position for body in bodies] for bodies in parts(model).hinged]))


def of_hinge(k: int, x: Any) -> Any:
    """The k-th hinge's (L, B) of an array (D, L, B); what has fewer axes is the same for all."""
    return x[k] if x.ndim == 3 else x


def _rows(xs: Vector) -> list[Vector]:
    """A vector of Numbers (D, L, 1) as D vectors of Numbers (L, 1)."""
    return [vector([Number(x.value[k]) for x in xs]) for k in range(len(xs[0].value))]


def inertias(model: Model, engine: Engine, at: Pose) -> tuple[Vector, Vector]:
    """The inertia (6, 6) of the root and of what each hinge carries by itself, about the root's origin."""

    def about(rotation: Vector, position: Vector, of: tuple[Number, Vector, Vector]) -> Vector:
        mass, centre, inertia = of
        offset = position + rotation @ centre
        first = skew(offset * mass)
        turned = rotation @ inertia @ rotation.T + first @ skew(offset).T
        return np.block([[turned, first], [first.T, vector(np.eye(3)) * mass]])

    pairs = zip(at.rotations, at.positions, inertials(model, engine), strict=True)
    root, limbs = (about(*x) for x in pairs)
    return root, limbs


def motions(at: Pose, x: Split) -> tuple[Vector, Vector]:
    """The motion (6,) of the root and of what each hinge carries, if velocities or accelerations of joints are x."""
    root = sum((axis * rate for axis, rate in zip(at.axes[0], x.root, strict=True)), vector(np.zeros(6)))
    return root, root + outward(at.axes[1] * x.limbs, len(x.limbs.value))


def drifts(at: Pose, v: Split) -> tuple[Vector, Vector]:
    """The accelerations (6,) of parts whose joints do not accelerate, in a frame that falls upwards with gravity."""
    motion, drift = vector(np.zeros(6)), vector([0.0, 0.0, 0.0, 0.0, 0.0, GRAVITY])
    steps = [axis * rate for axis, rate in zip(at.axes[0], v.root, strict=True)]
    if len(steps) == 6:  # three translations, then three rotations about axes of the body, which are one
        steps = [*steps[:3], steps[3] + steps[4] + steps[5]]
    for step in steps:
        drift, motion = drift + motion_cross(motion, step), motion + step
    hinges = len(v.limbs.value)
    own = at.axes[1] * v.limbs
    before = motion + outward(own, hinges) - own
    return drift, drift + outward(motion_cross(before, own), hinges)


class Matrix(NamedTuple):
    """A symmetric matrix between velocities, which is 0 between limbs.

    Attributes:
        root: (R, R, B).
        cross: (R, D, L, B), between the root and hinges.
        limbs: (D, D, L, B), between the hinges of a limb.
    """

    root: Any
    cross: Any
    limbs: Any


def joint_matrix(at: Pose, root: Vector, limbs: Vector, diagonal: Number) -> Matrix:
    """Σ of parts' Jᵀ I J for their matrices I (6, 6), and a diagonal for hinges, (D, L, B)."""
    hinges, n_limbs, _ = diagonal.value.shape
    composite = inward(upper(limbs), hinges)
    momentum = full_matrix(composite) @ at.axes[1]

    def row(axis: Number) -> Number:
        return axis if axis.value.ndim < 3 else Number(axis.value[:, None])

    limb = dot(vector([row(x) for x in at.axes[1]]), vector([Number(x.value[None]) for x in momentum])).value
    limb = jnp.broadcast_to(limb, jnp.broadcast_shapes(limb.shape, (hinges, hinges, n_limbs, 1)))
    # Entries at and above the diagonal hold an ancestor's axis and the momentum of what the column carries.
    ancestors = np.tri(hinges, dtype=bool).T[:, :, None, None]
    limb = jnp.where(ancestors, limb, limb.swapaxes(0, 1))
    limb = limb + np.eye(hinges, dtype=limb.dtype)[..., None, None] * diagonal.value
    shape = limb.shape[1:]
    between = jnp.stack([jnp.broadcast_to(dot(axis, momentum).value, shape) for axis in at.axes[0]])
    whole = full_matrix(upper(root) + total(upper(limbs)))
    rows = []
    for axis in at.axes[0]:
        of_root = whole @ axis
        rows.append(
            [
                jnp.broadcast_to(jnp.asarray(dot(other, of_root).value, limb.dtype), (1, shape[-1]))[0]
                for other in at.axes[0]
            ]
        )
    return Matrix(jnp.stack([jnp.stack(row) for row in rows]), between, limb)


def upper(matrix: Vector) -> Vector:
    """The entries (21,) of a symmetric matrix (6, 6) at and above its diagonal."""
    return matrix[np.triu_indices(6)]


def full_matrix(entries: Vector) -> Vector:
    """The symmetric matrix (6, 6) with these entries at and above its diagonal."""
    out = np.empty((6, 6), object)
    out[np.triu_indices(6)] = entries
    out.T[np.triu_indices(6)] = entries
    return out


def solve(matrix: Matrix, root: Any, limbs: Any) -> tuple[Any, Any]:
    """x of matrix x = (root (R, B), limbs (D, L, B)): limbs are eliminated, the root is solved, and limbs follow."""
    n, d = matrix.cross.shape[:2]
    rows = jnp.concatenate([matrix.limbs, matrix.cross, limbs[None]])  # (D + R + 1, D, L, B)
    limb_columns = _eliminated(rows, d)
    taken = sum((x[d:] * inverse)[:, None] * x[None, d : d + n] for x, inverse in limb_columns).sum(axis=2)
    root_columns = _eliminated(jnp.concatenate([matrix.root, root[None]]) - taken, n)
    x: list[Any] = []
    for column, inverse in root_columns:
        x.append((column[-1] - sum(column[i] * x[i] for i in range(len(x)))) * inverse)
    y: list[Any] = []
    for column, inverse in limb_columns:
        due = column[-1] - sum(column[d + i] * x[i] for i in range(n))
        y.append((due - sum(column[i] * y[i] for i in range(len(y)))) * inverse)
    return jnp.stack(x), jnp.stack(y)


def _eliminated(rows: Any, size: int) -> list[tuple[Any, Any]]:
    """Columns, the last of which is eliminated first, and the inverses of their pivots.

    rows: (size + more, size, …), a symmetric matrix, and further rows that are treated alike.
    """
    out = []
    for j in reversed(range(size)):
        column = rows[:, j]
        inverse = 1.0 / column[j]
        out.append((column, inverse))
        rows = rows[:, :j] - (column * inverse)[:, None] * column[None, :j]
    return out[::-1]


class Constants(NamedTuple):
    """Mean inverse inertias where a model rests, by which the softness of constraints is scaled, in float64.

    Attributes:
        root: of the translation of the root's bodies, (K,), 1 / kg.
        limbs: of the bodies of limbs, (D, L).
        hinges: of hinges, (D, L).
    """

    root: np.ndarray
    limbs: np.ndarray
    hinges: np.ndarray


@functools.cache
def constants(model: Model, engine: Engine) -> Constants:
    """The inverse inertias of a model."""
    hinges, limbs = len(parts(model).hinged), len(model.limbs)
    free = [*model.root.position, 1.0, 0.0, 0.0, 0.0]
    rest = free if model.root.joints[0].kind == "free" else [joint.reference for joint in model.root.joints]
    at = pose(model, Split([number(x) for x in rest], number(np.zeros((hinges, limbs, 1)))))

    def known(xs: Vector) -> np.ndarray:  # (D, L, …)
        values = [np.broadcast_to(x.value, (hinges, limbs, 1))[..., 0] for x in xs.ravel()]
        return np.stack(values, axis=-1).reshape(hinges, limbs, *xs.shape)

    root_axes = np.stack([known(axis)[0, 0] for axis in at.axes[0]], axis=1)  # (6, R)
    n = root_axes.shape[1]
    of_root = np.pad(root_axes, ((0, 0), (0, limbs * hinges)))  # Jacobians (6, V), limb by limb
    of_limbs = np.tile(of_root, (hinges, limbs, 1, 1))
    for k, limb, inner in np.ndindex(hinges, limbs, hinges):
        if inner <= k:
            of_limbs[k, limb, :, n + limb * hinges + inner] = known(at.axes[1])[inner, limb]
    root, carried = inertias(model, engine, at)
    mass = of_root.T @ known(root)[0, 0] @ of_root
    mass = mass + np.einsum("kljv,kljm,klmw->vw", of_limbs, known(carried), of_limbs)
    armature = hinge_constant(model, "armature").value[..., 0].T.ravel()
    inverse = np.linalg.inv(mass + np.diag(np.concatenate([np.zeros(n), armature])))

    def mean(jacobian: np.ndarray, point: np.ndarray) -> float:
        moved = jacobian[3:] + np.cross(jacobian[:3].T, point).T
        return float(np.trace(moved @ inverse @ moved.T) / 3.0)

    centres = dict(zip((body.name for body in model.bodies), model.inertials(engine)[1], strict=True))
    of_bodies = [mean(of_root, known(at.rotations[0])[0, 0] @ (centres[b.name] + x)) for b, x in parts(model).root]
    out = np.zeros((hinges, limbs))
    for k, limb in np.ndindex(hinges, limbs):
        centre = centres[parts(model).hinged[k][limb].name]
        point = known(at.positions[1])[k, limb] + known(at.rotations[1])[k, limb] @ centre
        out[k, limb] = mean(of_limbs[k, limb], point)
    return Constants(np.array(of_bodies), out, np.diag(inverse)[n:].reshape(limbs, hinges).T)
