"""Published scores, to print next to our own; they and their sources stand in `presets/published.toml`.

Behaviour cloning is missing on purpose: the numbers in circulation lie far below the mean of the data.
"""

import functools
import tomllib
from importlib import resources
from typing import NamedTuple


class Published(NamedTuple):
    """A published result.

    Attributes:
        mean: normalised score, 0 for the random policy and 100 for the expert.
        sd: standard deviation over seeds, None where none was printed.
        source: the publication and the kind of table.
    """

    mean: float
    sd: float | None
    source: str


def lookup(task: str, dataset: str, algorithm: str) -> Published | None:
    """The published score of an algorithm, or None where there is none.

    Args:
        task: for example `particle/spread`.
        dataset: `random`, `medium-replay`, `medium` or `expert`.
        algorithm: a method or a variant, `icq`, `td3_bc`, `cql` or `omar`; on `particle/spread` also their variants
            `…_central`, `omar_random_shooting`, `omar_cem`, `itd3` and `matd3`; or `data` for the mean of the data.
    """
    return _tables().get((task, dataset, algorithm))


@functools.cache
def _tables() -> dict[tuple[str, str, str], Published]:
    text = (resources.files("omarl_jax") / "presets" / "published.toml").read_text(encoding="utf-8")
    return {
        (task, dataset, algorithm): Published(values[0], values[1] if len(values) == 2 else None, table["source"])
        for table in tomllib.loads(text)["table"]
        for task, datasets in table.items()
        if task != "source"
        for dataset, algorithms in datasets.items()
        for algorithm, values in algorithms.items()
    }
