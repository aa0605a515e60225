"""The published hyperparameters of each method, per task and dataset, from `<algorithm>.toml` beside this file.

A file holds tables, each with its `source`; a row in one gives the hyperparameters that differ from the method's
defaults, and `rounds`. `any` stands for every task or every dataset, and a more special row adds to a more general one:

    [[table]]
    source = "where these numbers stand"

    [table."particle/spread"]
    any = { lr = 0.01, rounds = 2000 }
    random = { cql_alpha = 0.5, rounds = 6000 }
"""

import dataclasses
import functools
import importlib
import tomllib
from importlib import resources
from typing import Any, NamedTuple

from omarl_jax.errors import unknown

ROUNDS = 2000
"""Update rounds where nothing else was published: most particle tasks."""


class Preset(NamedTuple):
    """How a method was run on a dataset.

    Attributes:
        overrides: the hyperparameters that differ from the defaults of the method's `Config`.
        rounds: how many update rounds.
        source: where both stand.
    """

    overrides: dict[str, Any]
    rounds: int
    source: str


def preset(algorithm: str, task: str, dataset: str) -> Preset:
    """The preset of the most special row: for task and dataset, else for the task, else for any task, else defaults.

    Args:
        algorithm: name of the method, for example `omar`.
        task: for example `particle/spread`.
        dataset: for example `medium-replay`.

    Raises:
        UserError: if the method's file names a hyperparameter that the method does not have.
    """
    values: dict[str, Any] = {"rounds": ROUNDS}
    source = "defaults of the method"
    rows = _rows(algorithm)
    for place in (("any", "any"), (task, "any"), (task, dataset)):
        if place in rows:
            special, source = rows[place]
            values |= special
    return Preset({name: value for name, value in values.items() if name != "rounds"}, values["rounds"], source)


@functools.cache
def _rows(algorithm: str) -> dict[tuple[str, str], tuple[dict[str, Any], str]]:
    """The rows of a file by task and dataset, each with its source; none if there is no file."""
    file = resources.files(__name__) / f"{algorithm}.toml"
    if not file.is_file():
        return {}
    return read(algorithm, file.read_text(encoding="utf-8"))


def read(algorithm: str, text: str) -> dict[tuple[str, str], tuple[dict[str, Any], str]]:
    """The rows in the text of a method's file, by task and dataset, each with its source."""
    method = importlib.import_module(f"omarl_jax.algorithms.{algorithm}")
    known = {"rounds", *(field.name for field in dataclasses.fields(method.Config))}
    rows = {}
    for table in tomllib.loads(text)["table"]:
        source = table.pop("source")
        for task, datasets in table.items():
            for dataset, row in datasets.items():
                for name in row.keys() - known:
                    raise unknown(f"hyperparameter of {algorithm}", name, known)
                values = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
                rows[task, dataset] = values, source
    return rows
