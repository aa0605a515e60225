"""Pictures of robots from the side, with NumPy alone: many are drawn one after the other."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from omarl_envs import rendering
from omarl_envs.mujoco.models import Body, Capsule, Engine, Model

HALF_SIDE = 1.1  # of the window, m
GROUND = -0.75  # height of the floor in the window
_AGENTS = (
    rendering.BLUE,
    rendering.RED,
    rendering.GREEN,
    rendering.GOLD,
    rendering.CYAN,
    rendering.PURPLE,
)


class Placed(NamedTuple):
    """A capsule in the world.

    Attributes:
        body: that it belongs to.
        shape: the capsule.
        ends: (2, 3), the centres of its ends, m.
    """

    body: Body
    shape: Capsule
    ends: np.ndarray


def capsules(model: Model, q: np.ndarray) -> list[Placed]:
    """Where a robot with coordinates q (Q,) has its capsules."""
    q = np.asarray(q, np.float64)
    joints = model.root.joints
    if joints[0].kind == "free":
        position, rotation, rest = q[:3], _quaternion(q[3:7]), iter(q[7:])
    else:
        position, rotation, rest = np.array(model.root.position), np.eye(3), iter(q[len(joints) :])
        for joint, x in zip(joints, q, strict=False):
            if joint.kind == "slide":
                position = position + (x - joint.reference) * np.array(joint.axis)
            else:
                rotation = rotation @ _turn(joint.axis, x)
    placed = list(_placed(model.root, position, rotation))
    for limb in model.limbs:
        at, turned = position, rotation
        for body in limb:
            at = at + turned @ body.position
            for joint in body.joints:
                anchor = at + turned @ joint.anchor
                turned = turned @ _turn(joint.axis, next(rest))
                at = anchor - turned @ joint.anchor
            placed += _placed(body, at, turned)
    return placed


def _placed(body: Body, position: np.ndarray, rotation: np.ndarray) -> Iterator[Placed]:
    for shape in body.shapes:
        yield Placed(body, shape, position + np.array([shape.start, shape.end]) @ rotation.T)


def _turn(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    """The rotation by an angle about a unit axis."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def _quaternion(q: np.ndarray) -> np.ndarray:
    """The rotation of a quaternion (w, x, y, z)."""
    norm, length = np.linalg.norm(q), np.linalg.norm(q[1:])
    return np.eye(3) if length == 0.0 else _turn(q[1:] / length, 2.0 * np.arctan2(length / norm, q[0] / norm))


def picture(model: Model, engine: Engine, q: np.ndarray, drivers: Mapping[str, int], caption: str) -> np.ndarray:
    """A robot from the right side; the window follows it along x, and touched ground is marked.

    Args:
        model: the robot.
        engine: whose contact margin it has.
        q: its coordinates (Q,).
        drivers: the agent that drives each joint.
        caption: stands in the upper left corner.

    Returns:
        (H, W, 3) uint8.
    """
    drawn = rendering.Picture(HALF_SIDE, caption)
    if not np.isfinite(q).all():
        drawn.text((0.0, 0.0), "not finite")
        return drawn.image()
    x = q[0]

    def seen(point: np.ndarray) -> np.ndarray:
        return np.array([point[0] - x, point[2] + GROUND])

    drawn.line([(-HALF_SIDE, GROUND), (HALF_SIDE, GROUND)], rendering.INK)
    for mark in np.arange(np.ceil(2 * (x - HALF_SIDE)), np.floor(2 * (x + HALF_SIDE)) + 1) / 2:  # every half metre
        drawn.line([(mark - x, GROUND), (mark - x, GROUND - 0.04)], rendering.INK)
        if mark == round(mark) and abs(mark - x) < HALF_SIDE - 0.1:
            drawn.text((mark - x, GROUND - 0.1), f"{mark + 0.0:.0f} m")
    placed = capsules(model, q)
    for body, shape, ends in sorted(placed, key=lambda each: -each.ends[:, 1].mean()):  # far ones first
        joint = next((joint.name for joint in body.joints if joint.name in drivers), None)
        fill = rendering.GREY if joint is None else _AGENTS[drivers[joint] % len(_AGENTS)]
        drawn.capsule(seen(ends[0]), seen(ends[1]), shape.radius, fill)
    for _, shape, ends in placed:
        for end in ends:
            if end[2] - shape.radius < model.contact_margin(engine):
                drawn.line([(end[0] - x - 0.06, GROUND), (end[0] - x + 0.06, GROUND)], rendering.INK, width=5.0)
    return drawn.image()
