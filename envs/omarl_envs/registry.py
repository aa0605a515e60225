"""Finds tasks by name: `family/task` is the entry `task` of the dict `TASKS` in the module `omarl_envs.family`.

A new task is one new module in this package, or anywhere else: a family with a dot in it (`my_package.my_module/task`)
is imported as it is written.
"""

import difflib
import importlib
import inspect
import numbers
import pkgutil
from collections.abc import Callable, Iterable

from omarl_envs.base import MultiAgentEnv

_NUMBERS: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
}
_INFRASTRUCTURE = ("base", "registry", "rendering", "spec", "views")


class UnknownTask(ValueError):
    """No task of that name; the message names the nearest one."""


def families() -> list[str]:
    """The families of tasks that ship with this package."""
    import omarl_envs

    names = (module.name for module in pkgutil.iter_modules(omarl_envs.__path__))
    return sorted(name for name in names if name not in _INFRASTRUCTURE)


def task_names() -> list[str]:
    """The names of all tasks that ship with this package."""
    return [f"{family}/{task}" for family in families() for task in _tasks(family)]


def make(name: str, **kwargs: object) -> MultiAgentEnv:
    """Makes the environment of a task.

    Args:
        name: `family/task`, for example `particle/spread`.
        **kwargs: the task's constructor arguments, for example `n_agents=5`.

    Raises:
        UnknownTask: if there is no such task.
        TypeError, ValueError: if the task does not take these arguments.
    """
    constructor = _find(name)
    known = inspect.signature(constructor).parameters
    for option, value in kwargs.items():
        if option not in known:
            raise TypeError(f"'{name}' has no option '{option}'{_hint(option, known)}")
        kind = type(known[option].default)
        expected, words = _NUMBERS.get(kind, (object, "anything"))
        if not isinstance(value, expected) or (isinstance(value, bool) and kind in (int, float)):
            raise TypeError(f"{option} of '{name}' must be {words}, not {value!r}.")
    env = constructor(**kwargs)
    env.options = kwargs
    return env


def defaults(name: str) -> dict[str, object]:
    """The constructor arguments of a task and their defaults.

    Raises:
        UnknownTask: if there is no such task.
    """
    parameters = inspect.signature(_find(name)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def _find(name: str) -> Callable[..., MultiAgentEnv]:
    family, _, task = name.partition("/")
    tasks = _tasks(family) if family in families() or "." in family.strip(".") else {}
    if task not in tasks:
        raise UnknownTask(f"There is no task '{name}'{_hint(name, task_names())}")
    return tasks[task]


def _hint(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"; did you mean '{nearest[0]}'?" if nearest else "."


def _tasks(family: str) -> dict[str, Callable[..., MultiAgentEnv]]:
    module = family if "." in family else f"omarl_envs.{family}"
    try:
        return getattr(importlib.import_module(module), "TASKS", {})
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):  # the family itself is missing, not something it imports
            return {}
        raise
