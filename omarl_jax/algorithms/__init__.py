"""The methods, one file each. A method is found by the name of its module and imported on use.

The module `name` holds the factory `name(config, spec) -> Algorithm`, the dataclass `Config` with its
hyperparameters, and `validate(config, spec)`, which raises a `UserError` for values that make no sense. A method of
your own may lie in any module: `my_package.my_method` is imported as it is written. Modules whose names begin with an
underscore are helpers.

A *variant* is a method with some hyperparameters fixed, or with other defaults, under a name of its own. All variants
stand in `presets/variants.toml`.
"""

import dataclasses
import functools
import importlib
import importlib.util
import itertools
import math
import numbers
import pkgutil
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax
import numpy as np

from omarl_jax.algorithms._build import build
from omarl_jax.errors import UserError, python_value, unknown
from omarl_jax.files import require_trusted
from omarl_jax.types import Algorithm, Context, Part, Stats, TaskSpec

_NONE: Mapping[str, Any] = MappingProxyType({})


class Method(NamedTuple):
    """A method, or a variant of one.

    Attributes:
        name: what it is found by.
        make: the factory, (config, spec) -> Algorithm.
        config: the class of its hyperparameters, whose defaults are those of the base method.
        validate: (config, spec) raises a `UserError` for values that make no sense.
        base: the method that it is a variant of; its own name if it is none.
        fixed: hyperparameters that make the variant what it is.
        changed: hyperparameters with another default than in the base method.
        title: the variant's name in the literature, or what it is for.
    """

    name: str
    make: Callable[[Any, TaskSpec], Algorithm]
    config: type
    validate: Callable[[Any, TaskSpec], None]
    base: str = ""
    fixed: Mapping[str, Any] = _NONE
    changed: Mapping[str, Any] = _NONE
    title: str = ""

    @property
    def kinds(self) -> dict[str, Any]:
        """The type of each hyperparameter."""
        types = get_type_hints(self.config)
        return {field.name: types[field.name] for field in dataclasses.fields(self.config)}

    @property
    def defaults(self) -> Any:
        """The config that nothing was changed in."""
        return self.config(**{**self.changed, **self.fixed})

    @property
    def version(self) -> int:
        """`Config.version`, which a method raises when a default changes its meaning; 1 unless it says otherwise."""
        return getattr(self.config, "version", 1)

    def configure(self, spec: TaskSpec, overrides: Mapping[str, Any]) -> Any:
        """A config with some values changed, checked against the task.

        Raises:
            UserError: for unknown names, values of the wrong type, values that make no sense, and values other than
                those that the variant fixes.
        """
        kinds, values = self.kinds, {**self.changed, **self.fixed}
        for name, value in overrides.items():
            if name not in kinds:
                raise unknown(f"hyperparameter of '{self.name}'", name, kinds)
            values[name] = _typed(name, value, kinds[name])
            if name in self.fixed and values[name] != self.fixed[name]:
                raise UserError(
                    f"'{self.name}' is '{self.base}' with {name}={self.fixed[name]}; to train with {name}="
                    f"{values[name]}, name '{self.base}'."
                )
        config = self.config(**values)
        self.validate(config, spec)
        return config

    def identity(self, config: Any, spec: TaskSpec) -> dict[str, Any]:
        """What a config makes of the method: JSON values that differ if its numbers may."""
        parts = {name: part_identity(part, spec) for name, part in self.make(config, spec).needs.parts.items()}
        own = {"method": self.base, "version": self.version, "config": self.changes(config)}
        return own | ({"parts": parts} if parts else {})

    def changes(self, config: Any) -> dict[str, Any]:
        """The hyperparameters of a config that differ from the defaults of the base method."""
        values = {field.name: (getattr(config, field.name), field.default) for field in dataclasses.fields(config)}
        return {name: value for name, (value, default) in values.items() if value != default}


def methods() -> list[str]:
    """The names of the methods that ship with this package, without their variants."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


@functools.cache
def variants() -> Mapping[str, Mapping[str, Any]]:
    """The rows of `presets/variants.toml` by name: `base`, `title`, and where given `fixed` and `defaults`."""
    text = (resources.files("omarl_jax") / "presets" / "variants.toml").read_text(encoding="utf-8")
    return MappingProxyType(tomllib.loads(text))


def names() -> list[str]:
    """The names of all methods and variants that ship with this package."""
    return sorted([*methods(), *variants()])


def find(name: str, allow_import: bool = True) -> Method:
    """Finds a method or a variant by name.

    Args:
        name: a module of this package, a variant, or the full name of a module elsewhere.
        allow_import: whether a module elsewhere may be imported; not if the name stands in a file.

    Raises:
        UserError: if there is none, with the nearest name; or if it would have to be imported and may not.
    """
    if name in variants():
        return _variant(name)
    if "." in name:
        require_trusted(name, allow_import)
    if name not in methods() and not ("." in name and _exists(name)):
        raise unknown("algorithm", name, names())
    module = importlib.import_module(name if "." in name else f"{__name__}.{name}")
    factory_name = name.rpartition(".")[2]
    try:
        factory = functools.partial(build, getattr(module, factory_name))
        return Method(name, factory, module.Config, module.validate, base=name)
    except AttributeError as error:
        raise UserError(f"The module '{name}' is no method: {error}.") from None


def _variant(name: str) -> Method:
    row = variants()[name]
    base = find(row["base"])
    kinds = base.kinds
    fixed, changed = (
        {key: _typed(key, value, kinds[key]) for key, value in row.get(part, {}).items()}
        for part in ("fixed", "defaults")
    )
    return base._replace(
        name=name, fixed={**base.fixed, **fixed}, changed={**base.changed, **changed}, title=row["title"]
    )


def part_identity(part: Part, spec: TaskSpec) -> dict[str, Any]:
    """What a frozen part is, as `Method.identity` says it of methods."""
    method = find(part.algorithm)
    config = method.configure(spec, part.hyperparameters)
    return method.identity(config, spec) | {"updates": part.updates, "metric": part.metric}


def untrained(parts: Mapping[str, Part], spec: TaskSpec, stats: Stats | None = None) -> dict[str, Any]:
    """The policies of frozen parts as they are before training, by name: for templates and measurements.

    Args:
        parts: what they are.
        spec: the task.
        stats: statistics of the data; by default mean 0 and standard deviation 1.
    """
    stats = stats or Stats.unknown(spec)

    def policy(part: Part) -> Any:
        method = find(part.algorithm)
        algorithm = method.make(method.configure(spec, part.hyperparameters), spec)
        context = Context(stats, parts=untrained(algorithm.needs.parts, spec, stats))
        return algorithm.init(jax.random.key(0), context).policy

    return {name: policy(part) for name, part in parts.items()}


def spanned(hyperparameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of a grid: a list or an array of values spans it, anything else is the same at every point.

    Raises:
        UserError: if a list is empty.
    """
    axes = [[(name, v) for v in (vs if _is_axis(vs) else [vs])] for name, vs in hyperparameters.items()]
    if [] in axes:
        raise UserError("A hyperparameter has an empty list of values.")
    return [dict(point) for point in itertools.product(*axes)]


def _is_axis(values: Any) -> bool:
    return isinstance(values, list) or getattr(values, "ndim", 0) > 0  # arrays of NumPy or JAX


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # it, or the package it would lie in, is not there, or is no name
        return False


def _typed(name: str, value: Any, kind: Any) -> Any:
    """A value as its field wants it: Python's own type; integers may stand for floats, lists for tuples."""
    value = python_value(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        if isinstance(value, list | tuple | np.ndarray) and all(_is_a(part, one) for one in value):
            return tuple(part(one) for one in value)
        hint = "; where a list spans a grid, write a list of lists" if _is_a(part, value) else ""
        raise UserError(f"{name} must be a list of {part.__name__} values, not {value!r}{hint}.")
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise unknown(name, str(value), get_args(kind))
    if not _is_a(kind, value):
        raise UserError(f"{name} must be {_KINDS[kind][1]}, not {value!r}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name} must be finite, not {value}.")
    return kind(value)


_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool, np.bool_), "true or false"),
    int: ((numbers.Integral,), "an integer"),
    float: ((numbers.Real,), "a number"),
    str: ((str,), "a name"),
}


def _is_a(kind: type, value: Any) -> bool:
    """Whether a value is of a kind; true and false are no numbers, though Python counts them among them."""
    return isinstance(value, _KINDS[kind][0]) and (kind is bool or not isinstance(value, _KINDS[bool][0]))
