"""The published hyperparameters of each method, per task and dataset, from `<algorithm>.toml` beside this file.

A file holds tables, each with its `source`; a row in one gives the hyperparameters that differ from the method's
defaults, and `updates`. `any` stands for every task, every task of a family (`maze2d/any`) or every dataset; a specific
row adds to a general one:

    [[table]]
    source = "where these numbers stand"

    [table."particle/spread"]
    any = { lr = 0.01 }
    random = { cql_alpha = 0.5, updates = 6000 }

The number of `updates` on a task, which all methods share, stands in `common.toml`, to which a method's own file adds.
A variant has the presets of its base method, except for what it fixes.
"""

import dataclasses
import functools
import itertools
import tomllib
from importlib import resources
from typing import Any, NamedTuple

from omarl_jax import algorithms
from omarl_jax.errors import unknown


class Preset(NamedTuple):
    """How a method was run on a dataset.

    Attributes:
        overrides: the hyperparameters that differ from the defaults of the method's `Config`.
        updates: steps of every network.
        source: where they stand.
    """

    overrides: dict[str, Any]
    updates: int
    source: str


def preset(algorithm: str, task: str, dataset: str) -> Preset:
    """The published settings for a task and dataset, or else for the task, its family, or any task.

    Args:
        algorithm: name of the method or variant, for example `omar`.
        task: for example `particle/spread`.
        dataset: for example `medium-replay`.

    Raises:
        UserError: if there is no such method, or its file names a hyperparameter that it does not have.
    """
    method = algorithms.find(algorithm)
    values: dict[str, Any] = {}
    sources: dict[str, None] = {}
    places = ("any", "any"), (f"{task.partition('/')[0]}/any", "any"), (task, "any"), (task, dataset)
    for file, place in itertools.product(("common", method.base), places):
        if place in (rows := _rows(file)):
            special, source = rows[place]
            values |= special
            sources[source] = None
    overrides = {k: v for k, v in values.items() if k != "updates" and k not in method.fixed}
    return Preset(overrides, values["updates"], "; ".join(sources))


Rows = dict[tuple[str, str], tuple[dict[str, Any], str]]


@functools.cache
def _rows(name: str) -> Rows:
    """The rows of a file by task and dataset, each with its source; none if there is no file."""
    file = resources.files(__name__) / f"{name}.toml"
    if not file.is_file():
        return {}
    return read(name, file.read_text(encoding="utf-8"))


def read(name: str, text: str) -> Rows:
    """The rows in the text of a file, by task and dataset, each with its source."""
    known = {"updates"}
    if name != "common":
        known |= {field.name for field in dataclasses.fields(algorithms.find(name).config)}
    rows = {}
    for table in tomllib.loads(text)["table"]:
        source = table.pop("source")
        for task, datasets in table.items():
            for dataset, row in datasets.items():
                for hyperparameter in row.keys() - known:
                    raise unknown(f"hyperparameter of {name}", hyperparameter, known)
                values = {k: tuple(value) if isinstance(value, list) else value for k, value in row.items()}
                rows[task, dataset] = values, source
    return rows
