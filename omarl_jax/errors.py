"""Mistakes of the user. The command line prints their one sentence and exits with 1; nothing else is caught."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake that the user can fix; the message is one clear sentence that says how."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name, which suggests the nearest known one.

    Args:
        kind: what the name should be, as in "There is no task 'x'".
        name: the unknown name.
        known: the known names, at least one.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else "."
    return UserError(f"There is no {kind} '{name}'{hint}")


def python_value(value: Any) -> Any:
    """A scalar of NumPy or JAX, or an array without axes, as Python's own; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def whole(name: str, value: Any, least: int = 1, below: int | None = None) -> int:
    """A whole number, as Python's, from any kind of number; 4.0 is 4.

    Args:
        name: of the value, at the beginning of a sentence.
        value: what was given.
        least: the smallest number that makes sense.
        below: all numbers that make sense are smaller.

    Raises:
        UserError: if it is no whole number, or makes no sense.
    """
    number = python_value(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) is int and number >= least and (below is None or number < below):
        return number
    kind = {0: "an integer from 0", 1: "a positive integer"}.get(least, f"an integer from {least}")
    limit = "" if below is None else f" to {below - 1}"
    raise UserError(f"{name} must be {kind}{limit}, not {value!r}.")


def seeds_of(values: Iterable[Any]) -> list[int]:
    """Seeds, as Python's integers.

    Raises:
        UserError: unless all are integers from 0 to 2³² - 1.
    """
    return [whole("A seed", value, least=0, below=2**32) for value in values]
