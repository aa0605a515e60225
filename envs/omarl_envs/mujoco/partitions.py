"""Who moves which joint, and which joints are near: the partitions of Multi-Agent MuJoCo as data."""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from omarl_envs.mujoco import models
from omarl_envs.mujoco.models import Model

Observations = Literal["local", "full-standardised", "full"]
Routing = Literal["slices", "names"]


class Partition(NamedTuple):
    """A robot whose joints are divided among agents.

    Attributes:
        robot: makes it.
        agents: the names of the joints of each agent, as published code labels them. All agents have equally many.
        observations: what agents see in the data published for it, or for its kin where there are none.
    """

    robot: Callable[[], Model]
    agents: tuple[tuple[str, ...], ...]
    observations: Observations


PARTITIONS = {
    "halfcheetah-2x3": Partition(
        models.half_cheetah, (("bfoot", "bshin", "bthigh"), ("ffoot", "fshin", "fthigh")), "local"
    ),
    "halfcheetah-3x2": Partition(  # OMAR's; OMIGA's of that name is another
        models.half_cheetah, (("bfoot", "bshin"), ("bthigh", "fthigh"), ("ffoot", "fshin")), "local"
    ),
    "halfcheetah-6x1": Partition(
        models.half_cheetah,
        (("bfoot",), ("bshin",), ("bthigh",), ("ffoot",), ("fshin",), ("fthigh",)),
        "full-standardised",
    ),
    "hopper-3x1": Partition(models.hopper, (("thigh_joint",), ("leg_joint",), ("foot_joint",)), "full-standardised"),
    "walker2d-2x3": Partition(
        models.walker2d,
        (("foot_joint", "leg_joint", "thigh_joint"), ("foot_left_joint", "leg_left_joint", "thigh_left_joint")),
        "full-standardised",
    ),
    "ant-2x4": Partition(
        models.ant,
        (("hip_1", "ankle_1", "hip_2", "ankle_2"), ("hip_3", "ankle_3", "hip_4", "ankle_4")),
        "full-standardised",
    ),
    "ant-4x2": Partition(
        models.ant,
        (("hip_1", "ankle_1"), ("hip_2", "ankle_2"), ("hip_3", "ankle_3"), ("hip_4", "ankle_4")),
        "full-standardised",
    ),
}


def hinges(model: Model) -> tuple[str, ...]:
    """The joints of limbs, in the order of their coordinates, which are a robot's last ones."""
    return tuple(joint.name for limb in model.limbs for body in limb for joint in body.joints)


def _neighbours(model: Model) -> dict[str, set[str]]:
    """Joints follow each other along a limb, and the first ones of all limbs meet at the root."""
    limbs = [[joint.name for body in limb for joint in body.joints] for limb in model.limbs]
    found: dict[str, set[str]] = {limb[0]: {other[0] for other in limbs} - {limb[0]} for limb in limbs}
    for limb in limbs:
        for a, b in itertools.pairwise(limb):
            found.setdefault(a, set()).add(b)
            found.setdefault(b, set()).add(a)
    return found


def by_distance(model: Model, joints: Sequence[str]) -> list[list[str]]:
    """All joints of a robot by their distance from some of them, in steps from joint to joint, each sorted by name."""
    neighbours = _neighbours(model)
    rings, seen = [set(joints)], set(joints)
    while ring := {near for joint in rings[-1] for near in neighbours[joint]} - seen:
        rings.append(ring)
        seen |= ring
    return [sorted(ring) for ring in rings]


def reach(partition: Partition) -> int:
    """The distance within which every agent finds all joints."""
    model = partition.robot()
    return max(len(by_distance(model, joints)) for joints in partition.agents) - 1


def observed(partition: Partition, distance: int, coordinates: int, velocities: int) -> list[list[int]]:
    """What each agent sees of its own joints and of those within a distance.

    Of each of its own joints, sorted by name, coordinate and velocity; then of those at distance 1, 2, … the
    coordinates. So the default categories of Multi-Agent MuJoCo have it.

    Args:
        partition: the robot and its agents.
        distance: in steps from joint to joint.
        coordinates, velocities: how many the robot has.

    Returns:
        for each agent numbers of entries in (coordinates, velocities).
    """
    model = partition.robot()
    names = hinges(model)
    first_q, first_v = coordinates - len(names), coordinates + velocities - len(names)
    views = []
    for joints in partition.agents:
        own, *others = by_distance(model, joints)[: distance + 1]
        view = [first + names.index(joint) for joint in own for first in (first_q, first_v)]
        views.append(view + [first_q + names.index(joint) for ring in others for joint in ring])
    return views


def driven(partition: Partition, routing: Routing) -> np.ndarray:
    """(N, A) the motor that each entry of each agent's action drives.

    `slices` is how published data were made: the actions of all agents in a row are the motors' in their order,
    whatever joints agents are said to have. With `names` an agent's entries drive its joints in the order of its
    partition.
    """
    shape = len(partition.agents), len(partition.agents[0])
    motors = [joint for joint, _ in partition.robot().motors]
    if routing == "slices":
        return np.arange(len(motors)).reshape(shape)
    return np.array([[motors.index(joint) for joint in joints] for joints in partition.agents])
