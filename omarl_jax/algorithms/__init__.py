"""The methods, one file each. A method is found by the name of its module and imported on use.

The module `name` holds the factory `name(config, spec) -> Algorithm`, the dataclass `Config` with its
hyperparameters, and `validate(config, spec)`, which raises a `UserError` for values that make no sense. A method of
your own may lie in any module: `my_package.my_method` is imported as it is written.
"""

import functools
import importlib
import importlib.util
import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from omarl_jax.algorithms._build import build
from omarl_jax.errors import UserError, unknown
from omarl_jax.types import Algorithm, TaskSpec

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a name"}


class Method(NamedTuple):
    """What a method's module holds."""

    name: str
    make: Callable[[Any, TaskSpec], Algorithm]
    config: type
    validate: Callable[[Any, TaskSpec], None]

    @property
    def kinds(self) -> dict[str, Any]:
        """The type of each hyperparameter."""
        return get_type_hints(self.config)

    def configure(self, spec: TaskSpec, overrides: Mapping[str, Any]) -> Any:
        """A config with some values changed, checked against the task.

        Raises:
            UserError: for unknown names, values of the wrong type, and values that make no sense.
        """
        fields = self.kinds
        values = {}
        for name, value in overrides.items():
            if name not in fields:
                raise unknown(f"hyperparameter of '{self.name}'", name, fields)
            values[name] = _typed(name, value, fields[name])
        config = self.config(**values)
        self.validate(config, spec)
        return config


def methods() -> list[str]:
    """The names of the methods that ship with this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find(name: str) -> Method:
    """Finds a method by name.

    Raises:
        UserError: if there is none, with the nearest name.
    """
    known = name in methods() or ("." in name and _exists(name))
    if not known:
        raise unknown("algorithm", name, methods())
    module = importlib.import_module(name if "." in name else f"{__name__}.{name}")
    factory = name.rpartition(".")[2]
    try:
        return Method(name, functools.partial(build, getattr(module, factory)), module.Config, module.validate)
    except AttributeError as error:
        raise UserError(f"The module '{name}' is no method: {error}.") from None


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # it, or the package it would lie in, is not there, or is no name
        return False


def _typed(name: str, value: Any, kind: Any) -> Any:
    """A value as its field wants it; integers may stand for floats, lists for tuples."""
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(f"{name} must be finite, not {value}.")
        return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        if isinstance(value, list | tuple) and all(type(one) is part for one in value):
            return tuple(value)
        hint = "; where a list spans a grid, write a list of lists" if type(value) is part else ""
        raise UserError(f"{name} must be a list of {part.__name__} values, not {value!r}{hint}.")
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise unknown(name, str(value), get_args(kind))
    raise UserError(f"{name} must be {_KINDS[kind]}, not {value!r}.")
