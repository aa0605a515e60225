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


def hinge_constant(model: Model, name: str) -> Vector | Number:
    """A constant of all hinges, a Number (D, L, 1), or a vector of them."""
    of = lanes([[np.atleast_1d(getattr(b.joints[0], name)) for b in bodies] for bodies in parts(model).hinged])
    return of if len(of) > 1 else of[0]


class Split(NamedTuple):
    """What belongs to velocities or coordinates: Numbers of the root's, (1, B) each, and one (D, L, B) of the hinges."""

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


def _motion_cross(a: Vector, b: Vector) -> Vector:
    """The rate of a motion (angular, linear) that moves with velocity a."""
    return np.concatenate([cross(a[:3], b[:3]), cross(a[:3], b[3:]) + cross(a[3:], b[:3])])


def _force_cross(a: Vector, f: Vector) -> Vector:
    """The rate of a wrench (moment, force) that moves with velocity a."""
    return np.concatenate([cross(a[:3], f[:3]) + cross(a[3:], f[3:]), cross(a[:3], f[3:])])


def _each(f: Any, xs: Vector) -> Vector:
    """f of the arrays of Numbers that are not known to be 0."""
    return vector([x if x.all_are(0.0) else Number(f(x.value)) for x in xs.ravel()]).reshape(xs.shape)


def _outward(xs: Vector, hinges: int) -> Vector:
    """Sums (D, L, B) over each hinge and those between it and the root."""
    return _each(lambda x: (np.tril(np.ones((hinges, hinges), x.dtype))[:, :, None, None] * x).sum(axis=1), xs)


def _inward(xs: Vector, hinges: int) -> Vector:
    """Sums (D, L, B) over each hinge and those that it carries."""
    return _each(lambda x: (np.triu(np.ones((hinges, hinges), x.dtype))[:, :, None, None] * x).sum(axis=1), xs)


def _total(xs: Vector) -> Vector:
    """Sums (1, B) over all hinges (D, L, B)."""
    return _each(lambda x: x.sum(axis=(0, 1))[None], xs)


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
    of_hinges = zip(
        *(_rows(hinge_constant(model, name)) for name in ("axis", "anchor")), _positions(model), strict=True
    )
    frames, inner, at = [], rotation, still
    turns = turn(hinge_constant(model, "axis"), q.limbs)
    for k, (axis, anchor, position) in enumerate(of_hinges):
        start = at + inner @ position
        pivot, axis = start + inner @ anchor, inner @ axis
        inner = inner @ _each(lambda x, k=k: x[k] if x.ndim == 3 else x, turns)
        at = pivot - inner @ anchor
        frames.append(np.concatenate([inner.ravel(), at, axis, cross(pivot, axis)]))
    stacked = _stacked(frames)
    return Pose(
        height,
        (rotation, stacked[:9].reshape(3, 3)),
        (still, stacked[9:12]),
        (root_axes, stacked[12:]),
    )


def _positions(model: Model) -> list[Vector]:
    """Where the frames of hinges lie in those before them, (3,) of (L, 1)."""
    return _rows(lanes([[body.position for body in bodies] for bodies in parts(model).hinged]))


def _rows(xs: Vector) -> list[Vector]:
    """A vector of Numbers (D, L, 1) as D vectors of Numbers (L, 1)."""
    return [vector([Number(x.value[k]) for x in xs]) for k in range(len(xs[0].value))]


def _stacked(xs: list[Vector]) -> Vector:
    """D vectors of Numbers (L, B) as one of Numbers (D, L, B)."""

    def stacked(of: tuple[Number, ...]) -> Number:
        if all(x.known for x in of):
            return number(of[0].value) if len({float(x.value.flat[0]) for x in of if x.value.size}) == 1 and all(
                np.all(x.value == of[0].value.flat[0]) for x in of
            ) else number(np.stack(np.broadcast_arrays(*(np.atleast_2d(x.value) for x in of))))
        dtype = next(x.value.dtype for x in of if not x.known)
        return Number(jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(x.value, dtype) for x in of))))

    return vector([stacked(of) for of in zip(*xs, strict=True)])


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
    return root, root + _outward(at.axes[1] * x.limbs, len(x.limbs.value))


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
    hinges, lanes_, _ = diagonal.value.shape
    composite = _inward(_upper(limbs), hinges)
    momentum = _full(composite) @ at.axes[1]

    def row(axis: Number) -> Number:
        return axis if axis.value.ndim < 3 else Number(axis.value[:, None])

    limb = dot(vector([row(x) for x in at.axes[1]]), vector([Number(x.value[None]) for x in momentum])).value
    limb = jnp.broadcast_to(limb, jnp.broadcast_shapes(limb.shape, (hinges, hinges, lanes_, 1)))
    # Entries at and above the diagonal hold an ancestor's axis and the momentum of what the column carries.
    upper = np.tri(hinges, dtype=bool).T[:, :, None, None]
    limb = jnp.where(upper, limb, limb.swapaxes(0, 1)) + np.eye(hinges, dtype=limb.dtype)[..., None, None] * diagonal.value
    shape = limb.shape[1:]
    between = jnp.stack([jnp.broadcast_to(dot(axis, momentum).value, shape) for axis in at.axes[0]])
    whole = _full(_upper(root) + _total(_upper(limbs)))
    rows = []
    for axis in at.axes[0]:
        of_root = whole @ axis
        rows.append([jnp.broadcast_to(jnp.asarray(dot(other, of_root).value, limb.dtype), (1, shape[-1]))[0] for other in at.axes[0]])
    return Matrix(jnp.stack([jnp.stack(row) for row in rows]), between, limb)


def _upper(matrix: Vector) -> Vector:
    return matrix[np.triu_indices(6)]


def _full(upper: Vector) -> Vector:
    out = np.empty((6, 6), object)
    out[np.triu_indices(6)] = upper
    out.T[np.triu_indices(6)] = upper
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
    """Mean inverse inertias where a model rests, by which the softness of constraints is scaled.

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
    """The inverse inertias of a model where it rests, in float64."""
    hinges, limbs = len(parts(model).hinged), len(model.limbs)
    rest = [*model.root.position, 1.0, 0.0, 0.0, 0.0]
    coordinates = rest if model.root.joints[0].kind == "free" else [joint.reference for joint in model.root.joints]
    at = pose(model, Split([number(x) for x in coordinates], number(np.zeros((hinges, limbs, 1)))))
    n = len(at.axes[0])
    size = n + limbs * hinges
    # Jacobians of all bodies from axes, then M = Σ Jᵀ I J.
    columns_of = {(k, limb): n + limb * hinges + k for k in range(hinges) for limb in range(limbs)}
    def known(x: Number, k: int, limb: int) -> float:
        return float(np.broadcast_to(x.value, (hinges, limbs, 1))[k, limb, 0])
    def root_jacobian() -> np.ndarray:
        out = np.zeros((6, size))
        for j, axis in enumerate(at.axes[0]):
            out[:, j] = [float(np.ravel(x.value)[0]) for x in axis]
        return out
    def jacobian(k: int, limb: int) -> np.ndarray:
        out = root_jacobian()
        for i in range(k + 1):
            out[:, columns_of[i, limb]] = [known(x, i, limb) for x in at.axes[1]]
        return out
    root, of_limbs = inertias(model, engine, at)
    mass = root_jacobian().T @ np.vectorize(lambda x: float(np.ravel(x.value)[0]))(root) @ root_jacobian()
    armature = hinge_constant(model, "armature").value
    for k, limb in columns_of:
        inertia = np.vectorize(lambda x: known(x, k, limb))(of_limbs)
        mass += jacobian(k, limb).T @ inertia @ jacobian(k, limb)
        mass[columns_of[k, limb], columns_of[k, limb]] += armature[k, limb, 0]
    inverse = np.linalg.inv(mass)
    def mean(point: np.ndarray, of: np.ndarray) -> float:
        moved = of[3:] + np.cross(of[:3].T, point).T
        return float(np.trace(moved @ inverse @ moved.T) / 3.0)
    of = dict(zip((b.name for b in model.bodies), model.inertials(engine)[1], strict=True))
    rotation = np.vectorize(lambda x: float(np.ravel(x.value)[0]))(at.rotations[0])
    bodies = [mean(rotation @ (of[body.name] + offset), root_jacobian()) for body, offset in parts(model).root]
    out = np.zeros((hinges, limbs))
    for k, limb in columns_of:
        turned = np.vectorize(lambda x: known(x, k, limb))(at.rotations[1])
        position = np.array([known(x, k, limb) for x in at.positions[1]])
        out[k, limb] = mean(position + turned @ of[parts(model).hinged[k][limb].name], jacobian(k, limb))
    return Constants(np.array(bodies), out, np.diag(inverse)[n:].reshape(limbs, hinges).T)


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


def _at_points(xs: Vector) -> Vector:
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
    rotation, position = _at_points(rotation), _at_points(position)
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
    """The nearer limit of each hinge: its side, 1 at the lower and -1 at the upper one, (D, L, B), and its constraint."""
    low, high = hinge_constant(model, "limits")
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
        out.append(Collision(jnp.where(between, dot(at.axes[1], direction).value, 0.0), row))
    return out


def _capsule(model: Model, at: Pose, name: str) -> tuple[Capsule, Vector, Vector]:
    """The capsule of a body, its middle and half its axis, (3,)."""
    hinged = parts(model).hinged
    place = next((k for k, bodies in enumerate(hinged) if bodies[0].name == name), None)
    shape = (model.root if place is None else hinged[place][0]).shapes[0]
    rotation, position = at.rotations[0], at.positions[0]
    if place is not None:
        take = functools.partial(_each, lambda x: x[place] if x.ndim == 3 else x)
        rotation, position = take(at.rotations[1]), take(at.positions[1])
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
    moving = _at_points(moving)
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
        (w1, f1), (w2, f2) = edge(mu * slip.value), edge(-mu * slip.value)
        force, weight = force + (f1 + f2), weight + (w1 + w2)
        wrench = wrench + tangent * Number(mu * (f1 - f2))
        mixed = mixed + tangent * Number(mu * (w1 - w2))
        stiffness = stiffness + np.multiply.outer(tangent, tangent * Number(mu * mu * (w1 + w2)))
    wrench = wrench + normal * Number(force)
    both = np.multiply.outer(normal, mixed)
    stiffness = stiffness + both + both.T + np.multiply.outer(normal, normal * Number(weight))
    points = functools.partial(jnp.sum, axis=-3)
    return Push(_each(points, wrench), _full(_each(points, _upper(stiffness))))


def acceleration(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> Any:
    """The accelerations (V, B) of robots, and the pose and inertias that they follow from.

    They minimise half the squared distance from the unconstrained acceleration in the metric of the mass matrix, and
    Σ weight · min(u + offset, 0)² / 2 over constraints: Newton's method, from a guess.
    """
    coordinates, velocities = split(model, q), split(model, v)
    at = pose(model, coordinates)
    of_parts = inertias(model, engine, at)
    touching = contacts(model, engine, at)
    side, ends = limits(model, engine, coordinates.limbs)
    speeds = motions(at, velocities)
    damped = [
        [dot(d, _at_points(speed)) * of.row.damping for d in of.directions]
        for of, speed in zip(touching, speeds, strict=True)
    ]
    biases = [
        inertia @ drift + _force_cross(speed, inertia @ speed)
        for inertia, drift, speed in zip(of_parts, drifts(at, velocities), speeds, strict=True)
    ]
    forces = joint_forces(model, coordinates.limbs, velocities.limbs, control)
    armature = hinge_constant(model, "armature")
    hinges = len(parts(model).hinged)
    pairs = collisions(model, engine, at)

    def newton(_: Any, values: Any) -> Any:
        a = split(model, values)
        moving = motions(at, a)
        pushes = [contact_push(*x) for x in zip(touching, damped, moving, strict=True)]
        wrenches = [
            inertia @ move + bias - push.wrench
            for inertia, move, bias, push in zip(of_parts, moving, biases, pushes, strict=True)
        ]
        total = wrenches[0] + _total(wrenches[1])
        x = side * (a.limbs + velocities.limbs * ends.damping).value + ends.offset
        weight = jnp.where(x < 0.0, ends.weight, 0.0)
        limbs = dot(at.axes[1], _inward(wrenches[1], hinges)) + armature * a.limbs - forces + Number(side * weight * x)
        stiff = [inertia + push.stiffness for inertia, push in zip(of_parts, pushes, strict=True)]
        matrix = joint_matrix(at, *stiff, armature + Number(weight))
        root = jnp.concatenate([dot(axis, total).value for axis in at.axes[0]])
        force = limbs.value
        for g, row in pairs:
            x = (g * (a.limbs + velocities.limbs * row.damping).value).sum(axis=0) + row.offset
            weight = jnp.where(x < 0.0, row.weight, 0.0)
            force = force + g * (weight * x)
            matrix = matrix._replace(limbs=matrix.limbs + g[:, None] * g[None] * weight)
        return values - join(*solve(matrix, root, force))

    return jax.lax.fori_loop(0, iterations, newton, guess), at, of_parts


def drifts(at: Pose, v: Split) -> tuple[Vector, Vector]:
    """The accelerations (6,) of parts whose joints do not accelerate, in a frame that falls upwards with gravity."""
    motion, drift = vector(np.zeros(6)), vector([0.0, 0.0, 0.0, 0.0, 0.0, GRAVITY])
    steps = [axis * rate for axis, rate in zip(at.axes[0], v.root, strict=True)]
    if len(steps) == 6:  # three translations, then three rotations about axes of the body, which are one
        steps = [*steps[:3], steps[3] + steps[4] + steps[5]]
    for step in steps:
        drift, motion = drift + _motion_cross(motion, step), motion + step
    hinges = len(v.limbs.value)
    own = at.axes[1] * v.limbs
    before = motion + _outward(own, hinges) - own
    return drift, drift + _outward(_motion_cross(before, own), hinges)


def joint_forces(model: Model, q: Number, v: Number, control: Any) -> Number:
    """Springs, dampers and motors of hinges, (D, L, B)."""
    motors = {name: (k, gear) for k, (name, gear) in enumerate(model.motors)}
    of = np.array([[motors[b.joints[0].name] for b in bodies] for bodies in parts(model).hinged])  # (D, L, 2)
    motor = Number(jnp.clip(control, -1.0, 1.0)[of[..., 0].astype(int)]) * number(of[..., 1, None])
    return motor - q * hinge_constant(model, "stiffness") - v * hinge_constant(model, "damping")


def euler(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> tuple:
    """One step of semi-implicit Euler, in which the damping of hinges is implicit."""
    h = model.timestep
    a, at, of_parts = acceleration(model, engine, q, v, control, guess, iterations)
    damping = hinge_constant(model, "damping") * h
    matrix = joint_matrix(at, *of_parts, hinge_constant(model, "armature") + damping)
    root = jnp.zeros((len(at.axes[0]), a.shape[-1]), a.dtype)
    change = solve(matrix, root, (split(model, a).limbs * damping).value)
    v = v + h * (a - join(*change))
    return q + h * v, v, a


def _moved(model: Model, q: Any, v: Any, h: float) -> Any:
    """Coordinates (Q, B) after h seconds at velocities v (V, B)."""
    if model.root.joints[0].kind != "free":
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
        return acceleration(model, engine, q, v, control, guess, iterations)[0]

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
