"""D4RL's maze2d: a ball between walls, driven by one agent."""

from omarl_envs.maze2d.tasks import TASKS

__all__ = ["TASKS"]
