"""Multi-agent MuJoCo: the gym's robots with their joints divided among agents, simulated by an engine of our own.

It computes what MuJoCo computes, for these robots; neither MuJoCo nor gym is needed.
"""

from functools import partial

from omarl_envs.mujoco.partitions import PARTITIONS
from omarl_envs.mujoco.tasks import Locomotion

TASKS = {name: partial(Locomotion, name, observations=partition.observations) for name, partition in PARTITIONS.items()}
