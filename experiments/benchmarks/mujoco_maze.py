"""D4RL's model of a maze for C MuJoCo, written from its constants: what maze2d is compared with."""

from typing import Any

import numpy as np
from measuring import rate
from omarl_envs.maze2d.mazes import Maze


def xml(maze: Maze) -> str:
    """The model of a maze."""
    boxes = (f'<geom type="box" pos="{i + 1} {j + 1} 0" size=".5 .5 .2"/>' for i, j in np.argwhere(maze.walls))
    axes = {"x": "1 0 0", "y": "0 1 0"}
    joints = (f'<joint name="{name}" type="slide" axis="{axis}" damping="1"/>' for name, axis in axes.items())
    motors = (f'<motor joint="{name}" gear="100" ctrllimited="true" ctrlrange="-1 1"/>' for name in axes)
    return f"""<mujoco><option timestep="0.01" gravity="0 0 0" iterations="20"/>
        <default><geom density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/></default>
        <worldbody><geom type="plane" size="40 40 .25" pos="0 0 -.1" contype="1" conaffinity="0"/>{"".join(boxes)}
        <body pos="1.2 1.2 0"><geom type="sphere" size="0.1" contype="1"/>{"".join(joints)}</body></worldbody>
        <actuator>{"".join(motors)}</actuator></mujoco>"""


def steps_per_second(maze: Maze, seconds: float) -> float:
    """Steps of one ball on one core, called from Python, with actions that are drawn beforehand."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(xml(maze))
    data: Any = mujoco.MjData(model)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (1_000, 2))

    def steps() -> None:
        mujoco.mj_resetData(model, data)
        data.qpos[:] = maze.free[0]
        for action in actions:
            data.qvel[:] = np.clip(data.qvel, -5.0, 5.0)
            data.ctrl[:] = action
            mujoco.mj_step(model, data)

    return len(actions) * rate(steps, seconds)
