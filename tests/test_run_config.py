"""What `config.json` tells a report, which imports no method and no task."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omarl_jax import algorithms, presets
from omarl_jax.data.dataset import Dataset
from omarl_jax.runs import Run, RunFolder
from omarl_jax.tasks import make_env

SPREAD = "particle/spread"


@pytest.mark.parametrize(
    ("algorithm", "dataset", "changed", "as_published"),
    [
        ("omar", "medium", {}, True),
        ("omar_cem", "medium", {}, True),
        ("omar_central", "medium", {}, True),
        ("omar", "medium", {"search": "cem"}, False),
        ("omar", "medium", {"batch_size": 256}, False),
        ("omar", "medium", {"updates": 100}, False),
        ("bc", "medium", {}, False),  # nothing is published
    ],
)
def test_a_run_says_whether_it_is_as_published(
    tmp_path: Path, algorithm: str, dataset: str, changed: dict[str, Any], as_published: bool
) -> None:
    preset = presets.preset(algorithm, SPREAD, dataset)
    updates = changed.pop("updates", preset.updates)
    spec = make_env(SPREAD).task_spec
    config = algorithms.find(algorithm).configure(spec, preset.overrides | changed)
    run = Run(algorithm, SPREAD, dataset, 0, 0, updates, config)
    rows: Any = dataclasses.make_dataclass("Rows", ["closing"])(np.array([False, True]))
    RunFolder(tmp_path).start(run, Dataset(spec, rows, {}), "hash")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["as_published"] == as_published
    assert written["default_size"] == 1_000_000
    assert written["task_defaults"]["n_agents"] == 3
