"""Multi-agent tasks as pure functions: jumanji environments whose agents are an array axis.

Importing this package is cheap and touches no device; the environments themselves are imported on use.
"""

from typing import Any

from omarl_envs.spec import ScoreReference, TaskSpec

__all__ = ["ScoreReference", "TaskSpec", "UnknownTask", "defaults", "families", "make", "task_names"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        # Importing jumanji starts the JAX backend, so everything that needs it is imported on use.
        from omarl_envs import registry

        return getattr(registry, name)
    raise AttributeError(f"module 'omarl_envs' has no attribute '{name}'")
