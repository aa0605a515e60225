"""Tasks by name: their environments, and what their reference returns say of data."""

from typing import Any

import omarl_envs
from omarl_envs.base import MultiAgentEnv

from omarl_jax.errors import UserError


def make_env(task: str, **options: Any) -> MultiAgentEnv:
    """Makes the environment of a task.

    Args:
        task: `family/task`, for example `particle/spread`.
        **options: constructor arguments of the task.

    Raises:
        UserError: if there is no such task, or it does not take these options.
    """
    try:
        return omarl_envs.make(task, **options)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None


def find_env(task: str, **options: Any) -> MultiAgentEnv | None:
    """`make_env`, or None where there is no task of that name: then policies are trained without evaluation."""
    try:
        omarl_envs.defaults(task)
    except omarl_envs.UnknownTask:
        return None
    return make_env(task, **options)


def task_defaults(task: str) -> dict[str, Any]:
    """The constructor arguments of a task that have defaults; none where there is no task of that name."""
    try:
        return omarl_envs.defaults(task)
    except omarl_envs.UnknownTask:
        return {}


def reference_metadata(env: MultiAgentEnv | None, mean_return: float | None) -> dict[str, Any]:
    """The metadata of a dataset that depend on the task's reference returns.

    Args:
        env: the task; None if there is no simulator.
        mean_return: of the data, in units of the task; None where it is unknown.

    Returns:
        `mean_return`, `mean_score` (normalised), `random`, `expert`, `reference_source`, `comparable` (whether the
        reference is the paper's); None where the task has no reference.
    """
    reference = None if env is None else env.reference
    return {
        "mean_return": mean_return,
        "mean_score": None if reference is None or mean_return is None else float(reference.normalise(mean_return)),
        "random": None if reference is None else reference.random,
        "expert": None if reference is None else reference.expert,
        "reference_source": None if reference is None else reference.source,
        "comparable": reference is not None and reference.published,
    }
