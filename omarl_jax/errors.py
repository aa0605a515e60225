"""Mistakes of the user. The command line prints their one sentence and exits with 1; nothing else is caught."""

import difflib
import numbers
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


def check_seeds(seeds: Iterable[Any]) -> None:
    """Raises a `UserError` unless all seeds are integers from 0 to 2³² - 1."""
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= int(seed) < 2**32:
            raise UserError(f"A seed must be an integer from 0 to 2³² - 1, not {seed!r}.")


def check_positive(**counts: Any) -> None:
    """Raises a `UserError` unless all these are positive integers."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < 1:
            raise UserError(f"{name} must be a positive integer, not {value!r}.")
