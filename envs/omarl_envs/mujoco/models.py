"""Bodies of the tasks as data: trees of bodies with joints and capsules, and what follows from them.

Names, sizes and constants are those of Gymnasium's files; lengths are in metres, angles in radians, masses in kg.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

Vector = tuple[float, float, float]
Engine = Literal["2.0", "current"]

_O: Vector = (0.0, 0.0, 0.0)
_Y: Vector = (0.0, 1.0, 0.0)
_BACKWARDS: Vector = (0.0, -1.0, 0.0)
_DEGREES = math.pi / 180.0


@dataclasses.dataclass(frozen=True)
class Capsule:
    """A capsule between two points of its body's frame; a sphere where they are one."""

    start: Vector
    end: Vector
    radius: float
    friction: float
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Joint:
    """A joint between a body and its parent.

    Attributes:
        name: as actuators and partitions call it.
        kind: `free` has seven coordinates and six velocities, the others one of each.
        axis: of sliding or rotation, in the body's frame.
        anchor: a point on the axis of a hinge, in the body's frame.
        limits: of the coordinate, or None.
        stiffness: of a spring that rests at 0, N m / rad.
        damping: N m s / rad.
        armature: rotor inertia, kg m².
        reference: the coordinate in which the body is where its position says.
    """

    name: str
    kind: Literal["slide", "hinge", "free"]
    axis: Vector = (0.0, 0.0, 1.0)
    anchor: Vector = (0.0, 0.0, 0.0)
    limits: tuple[float, float] | None = None
    stiffness: float = 0.0
    damping: float = 0.0
    armature: float = 0.0
    reference: float = 0.0


@dataclasses.dataclass(frozen=True)
class Body:
    """A rigid body.

    Attributes:
        name: of the body.
        position: of its frame in its parent's.
        joints: by which it moves, in this order; a body without joints is welded on.
        shapes: its capsules; they make its mass.
    """

    name: str
    position: Vector
    joints: tuple[Joint, ...]
    shapes: tuple[Capsule, ...]


@dataclasses.dataclass(frozen=True)
class Softness:
    """How soft a constraint is: MuJoCo's solref (time constant, damping ratio) and solimp (d_min, d_max, width)."""

    time_constant: float = 0.02
    damping_ratio: float = 1.0
    least: float = 0.9
    most: float = 0.95
    width: float = 0.001


@dataclasses.dataclass(frozen=True)
class Model:
    """A robot above a floor: a root, and limbs that are chains of bodies, all built alike.

    Attributes:
        name: of the robot.
        root: its body without a parent.
        limbs: the bodies of each limb, the first of which hangs on the root.
        motors: joint and gear of each actuator, in their order; N m per unit of action.
        timestep: seconds.
        integrator: `euler` (semi-implicit, with implicit damping) or `rk4`.
        frame_skip: steps of the physics in one of control.
        contact: softness of contacts with the floor.
        limit: softness of the limits of joints.
        margin: of each shape; contacts act below the sum of two margins, in MuJoCo 2.0 below the larger one.
        density: kg / m³.
        total_mass: to which masses are scaled, or None.
        floor_friction: of the floor; the larger of two frictions counts.
        collisions: pairs of bodies, the inner one first, whose capsules collide in the x-z plane without
            friction; of robots with one limb.
    """

    name: str
    root: Body
    limbs: tuple[tuple[Body, ...], ...]
    motors: tuple[tuple[str, float], ...]
    timestep: float
    integrator: Literal["euler", "rk4"]
    frame_skip: int
    contact: Softness = Softness()
    limit: Softness = Softness()
    margin: float = 0.0
    density: float = 1000.0
    total_mass: float | None = None
    floor_friction: float = 0.4
    collisions: tuple[tuple[str, str], ...] = ()

    @property
    def bodies(self) -> tuple[Body, ...]:
        """All bodies, the root first and limb after limb."""
        return (self.root, *(body for limb in self.limbs for body in limb))

    @property
    def joints(self) -> tuple[Joint, ...]:
        """All joints, in the order of their coordinates."""
        return tuple(joint for body in self.bodies for joint in body.joints)

    def contact_margin(self, engine: Engine) -> float:
        """The distance below which a shape and the floor, or two shapes, touch."""
        return self.margin if engine == "2.0" else 2.0 * self.margin

    def inertials(self, engine: Engine) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masses (K,), centres of mass (K, 3) and inertias about them (K, 3, 3), in the frames of the K bodies.

        MuJoCo 2.0 takes a capsule of half length h and radius r for a cylinder of length 2 h + r; current versions
        integrate over the capsule.
        """
        masses, centres, inertias = zip(*(self._inertial(body, engine) for body in self.bodies), strict=True)
        scale = 1.0 if self.total_mass is None else self.total_mass / sum(masses)
        return scale * np.array(masses), np.array(centres), scale * np.array(inertias)

    def _inertial(self, body: Body, engine: Engine) -> tuple[float, np.ndarray, np.ndarray]:
        parts = [(*_shape_inertia(shape, engine, self.density), _middle(shape)) for shape in body.shapes]
        mass = sum(m for m, _, _ in parts)
        centre = np.sum([m * middle for m, _, middle in parts], axis=0) / mass
        return mass, centre, np.sum([i + _shifted(m, middle - centre) for m, i, middle in parts], axis=0)


def _middle(shape: Capsule) -> np.ndarray:
    return (np.array(shape.start) + np.array(shape.end)) / 2.0


def _shifted(mass: float, offset: np.ndarray) -> np.ndarray:
    """What an inertia about the centre of mass gains at a point that lies `offset` from it."""
    return mass * (offset @ offset * np.eye(3) - np.outer(offset, offset))


def _shape_inertia(shape: Capsule, engine: Engine, density: float) -> tuple[float, np.ndarray]:
    """Mass and inertia (3, 3) of a shape about its middle."""
    along = np.array(shape.end) - np.array(shape.start)
    length, r = float(np.linalg.norm(along)), shape.radius
    if length == 0.0:
        mass = density * 4.0 / 3.0 * math.pi * r**3
        return mass, 0.4 * mass * r**2 * np.eye(3)
    if engine == "2.0":
        height = length + r
        mass = density * math.pi * r**2 * height
        across, axial = mass * (3.0 * r**2 + height**2) / 12.0, mass * r**2 / 2.0
    else:
        tube, ball = density * math.pi * r**2 * length, density * 4.0 / 3.0 * math.pi * r**3
        mass = tube + ball
        across = tube * (3.0 * r**2 + length**2) / 12.0 + ball * (0.4 * r**2 + length**2 / 4.0 + 3.0 / 8.0 * length * r)
        axial = tube * r**2 / 2.0 + 0.4 * ball * r**2
    axis = along / length
    return mass, across * np.eye(3) + (axial - across) * np.outer(axis, axis)


def _rod(centre: tuple[float, float], angle: float, half: float, radius: float, friction: float, name: str) -> Capsule:
    """A capsule in the x-z plane, whose axis is the z-axis turned by `angle` about y."""
    (x, z), s, c = centre, half * math.sin(angle), half * math.cos(angle)
    return Capsule((x - s, 0.0, z - c), (x + s, 0.0, z + c), radius, friction, name)


def _planar_root(reference: float) -> tuple[Joint, ...]:
    return (
        Joint("rootx", "slide", (1.0, 0.0, 0.0)),
        Joint("rootz", "slide", (0.0, 0.0, 1.0), reference=reference),
        Joint("rooty", "hinge", _Y),
    )


def half_cheetah() -> Model:
    """HalfCheetah: 9 coordinates (x, z, pitch, six hinges), 6 motors; 14 kg."""
    parts = (  # name, x, z, limits, stiffness, damping, capsule: x, z, angle, half length
        ("bthigh", -0.5, 0.0, (-0.52, 1.05), 240.0, 6.0, 0.1, -0.13, -3.8, 0.145),
        ("bshin", 0.16, -0.25, (-0.785, 0.785), 180.0, 4.5, -0.14, -0.07, -2.03, 0.15),
        ("bfoot", -0.28, -0.14, (-0.4, 0.785), 120.0, 3.0, 0.03, -0.097, -0.27, 0.094),
        ("fthigh", 0.5, 0.0, (-1.0, 0.7), 180.0, 4.5, -0.07, -0.12, 0.52, 0.133),
        ("fshin", -0.14, -0.24, (-1.2, 0.87), 120.0, 3.0, 0.065, -0.09, -0.6, 0.106),
        ("ffoot", 0.13, -0.18, (-0.5, 0.5), 60.0, 1.5, 0.045, -0.07, -0.6, 0.07),
    )
    radius, friction = 0.046, 0.4
    spine = Capsule((-0.5, 0.0, 0.0), (0.5, 0.0, 0.0), radius, friction, "torso")
    head = _rod((0.6, 0.1), 0.87, 0.15, radius, friction, "head")
    bodies = []
    for name, x, z, limits, stiffness, damping, cx, cz, angle, half in parts:
        hinge = Joint(name, "hinge", _Y, limits=limits, stiffness=stiffness, damping=damping, armature=0.1)
        shape = _rod((cx, cz), angle, half, radius, friction, name)
        bodies.append(Body(name, (x, 0.0, z), (hinge,), (shape,)))
    gears = zip((name for name, *_ in parts), (120.0, 90.0, 60.0, 120.0, 60.0, 30.0), strict=True)
    return Model(
        "halfcheetah",
        Body("torso", (0.0, 0.0, 0.7), _planar_root(0.0), (spine, head)),
        (tuple(bodies[:3]), tuple(bodies[3:])),
        tuple(gears),
        timestep=0.01,
        integrator="euler",
        frame_skip=5,
        contact=Softness(least=0.0, most=0.8, width=0.01),
        limit=Softness(least=0.0, most=0.8, width=0.03),
        total_mass=14.0,
    )


def _leg(suffix: str, foot: Body, motors: Joint) -> tuple[Body, ...]:
    """Thigh, leg and the given foot of Hopper and Walker2d, with joints that have the constants of one."""
    bend = (-150.0 * _DEGREES, 0.0)

    def hinge(name: str, anchor: Vector) -> tuple[Joint]:
        return (dataclasses.replace(motors, name=f"{name}{suffix}_joint", anchor=anchor, limits=bend),)

    thigh = Capsule((0.0, 0.0, 0.0), (0.0, 0.0, -0.45), 0.05, 0.9, f"thigh{suffix}")
    leg = Capsule((0.0, 0.0, 0.25), (0.0, 0.0, -0.25), 0.04, 0.9, f"leg{suffix}")
    return (
        Body(f"thigh{suffix}", (0.0, 0.0, -0.2), hinge("thigh", _O), (thigh,)),
        Body(f"leg{suffix}", (0.0, 0.0, -0.7), hinge("leg", (0.0, 0.0, 0.25)), (leg,)),
        foot,
    )


def _ankle(name: str, x: float, motors: Joint) -> Joint:
    limits = (-45.0 * _DEGREES, 45.0 * _DEGREES)
    return dataclasses.replace(motors, name=name, anchor=(x, 0.0, 0.1), limits=limits)


def hopper() -> Model:
    """Hopper: 6 coordinates (x, z, pitch, three hinges), 3 motors."""
    torso = Capsule((0.0, 0.0, -0.2), (0.0, 0.0, 0.2), 0.05, 0.9, "torso")
    sole = Capsule((-0.26, 0.0, 0.1), (0.13, 0.0, 0.1), 0.06, 2.0, "foot")
    motors = Joint("", "hinge", _BACKWARDS, damping=1.0, armature=1.0)
    foot = Body("foot", (0.13, 0.0, -0.35), (_ankle("foot_joint", -0.13, motors),), (sole,))
    return Model(
        "hopper",
        Body("torso", (0.0, 0.0, 1.25), _planar_root(1.25), (torso,)),
        (_leg("", foot, motors),),
        (("thigh_joint", 200.0), ("leg_joint", 200.0), ("foot_joint", 200.0)),
        timestep=0.002,
        integrator="rk4",
        frame_skip=4,
        contact=Softness(least=0.8, most=0.8, width=0.01),
        margin=0.001,
        floor_friction=1.0,
        collisions=(("torso", "leg"), ("torso", "foot"), ("thigh", "foot")),
    )


def walker2d() -> Model:
    """Walker2d: 9 coordinates (x, z, pitch, six hinges), 6 motors; the left foot has twice the friction."""
    torso = Capsule((0.0, 0.0, -0.2), (0.0, 0.0, 0.2), 0.05, 0.9, "torso")
    motors = Joint("", "hinge", _BACKWARDS, damping=0.1, armature=0.01)
    legs = []
    for suffix, friction in (("", 0.9), ("_left", 1.9)):
        sole = Capsule((-0.2, 0.0, 0.1), (0.0, 0.0, 0.1), 0.06, friction, f"foot{suffix}")
        ankle = _ankle(f"foot{suffix}_joint", -0.2, motors)
        legs.append(_leg(suffix, Body(f"foot{suffix}", (0.2, 0.0, -0.35), (ankle,), (sole,)), motors))
    names = [joint.name for leg in legs for body in leg for joint in body.joints]
    return Model(
        "walker2d",
        Body("torso", (0.0, 0.0, 1.25), _planar_root(1.25), (torso,)),
        tuple(legs),
        tuple((name, 100.0) for name in names),
        timestep=0.002,
        integrator="rk4",
        frame_skip=4,
        floor_friction=0.7,
    )


def ant() -> Model:
    """Ant: 15 coordinates (position, quaternion, four hips and ankles), 14 velocities, 8 motors."""
    radius, friction, motors = 0.08, 1.0, Joint("", "hinge", damping=1.0, armature=1.0)
    half, legs = math.sqrt(0.5), []
    for leg, (x, y) in enumerate(((1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)), start=1):
        bend = (30.0 * _DEGREES, 70.0 * _DEGREES) if leg in (1, 4) else (-70.0 * _DEGREES, -30.0 * _DEGREES)
        axis = (-half, half, 0.0) if leg in (1, 3) else (half, half, 0.0)
        hip = dataclasses.replace(motors, name=f"hip_{leg}", limits=(-30.0 * _DEGREES, 30.0 * _DEGREES))
        ankle = dataclasses.replace(motors, name=f"ankle_{leg}", axis=axis, limits=bend)
        short, long = (0.2 * x, 0.2 * y, 0.0), (0.4 * x, 0.4 * y, 0.0)
        legs.append(
            (
                Body(f"stump_{leg}", _O, (), (Capsule(_O, short, radius, friction, f"stump_{leg}"),)),
                Body(f"leg_{leg}", short, (hip,), (Capsule(_O, short, radius, friction, f"leg_{leg}"),)),
                Body(f"foot_{leg}", short, (ankle,), (Capsule(_O, long, radius, friction, f"foot_{leg}"),)),
            )
        )
    order = (4, 1, 2, 3)
    return Model(
        "ant",
        Body("torso", (0.0, 0.0, 0.75), (Joint("root", "free"),), (Capsule(_O, _O, 0.25, friction, "torso"),)),
        tuple(legs),
        tuple((f"{part}_{leg}", 150.0) for leg in order for part in ("hip", "ankle")),
        timestep=0.01,
        integrator="rk4",
        frame_skip=5,
        margin=0.01,
        density=5.0,
        floor_friction=1.0,
    )
