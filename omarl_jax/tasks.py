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


def reference_metadata(env: MultiAgentEnv, mean_return: float | None) -> dict[str, Any]:
    """The metadata of a dataset that depend on the task's reference returns.

    Args:
        env: the task.
        mean_return: of the data, in units of the task; None where it is unknown.

    Returns:
        `mean_return`, `mean_score` (normalised), `random`, `expert`, `reference_source`, `comparable` (whether the
        reference is the paper's); None where the task has no reference.
    """
    reference = env.reference
    return {
        "mean_return": mean_return,
        "mean_score": None if reference is None or mean_return is None else float(reference.normalise(mean_return)),
        "random": None if reference is None else reference.random,
        "expert": None if reference is None else reference.expert,
        "reference_source": None if reference is None else reference.source,
        "comparable": reference is not None and reference.published,
    }
