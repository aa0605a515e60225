"""What names a run: all that changes its numbers, and nothing else."""

import dataclasses
import sys
import types
from typing import Any, ClassVar

import numpy as np
import pytest

from omarl_jax import UserError
from omarl_jax.files import read_run_config
from omarl_jax.grid import make_grid
from omarl_jax.loggers import run_id
from omarl_jax.runs import Run
from omarl_jax.types import config

BLOCK: dict[str, Any] = {"tasks": ["particle/spread"], "datasets": ["expert"], "algorithms": ["cql"], "size": 100}


def one(**changes: Any) -> Run:
    (run,) = make_grid({"seeds": [0], "block": [BLOCK | changes]}).runs
    return run


@config
class Old:
    lr: float = 0.5
    width: int = 8


@config
class WithOneMore:
    lr: float = 0.5
    width: int = 8
    share: bool = False
    kappa: float = 1.0


@config
class Raised:
    version: ClassVar[int] = 2
    lr: float = 0.5
    width: int = 8


def name(monkeypatch: pytest.MonkeyPatch, cls: type, **values: Any) -> str:
    module = types.ModuleType("a_module.of_mine")
    for attribute, value in {"of_mine": lambda config, spec: None, "Config": cls, "validate": None}.items():
        setattr(module, attribute, value)
    monkeypatch.setitem(sys.modules, "a_module", types.ModuleType("a_module"))
    monkeypatch.setitem(sys.modules, "a_module.of_mine", module)
    monkeypatch.setattr("omarl_jax.algorithms._exists", lambda name: True)
    return Run("a_module.of_mine", "particle/spread", "random", 0, 0, 100, cls(**values)).name


def test_a_new_hyperparameter_with_a_default_renames_no_run_and_a_raised_version_renames_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = [name(monkeypatch, Old), name(monkeypatch, Old, lr=0.25), name(monkeypatch, Old, lr=0.25, width=9)]
    assert len(set(before)) == 3
    assert before == [
        name(monkeypatch, WithOneMore),
        name(monkeypatch, WithOneMore, lr=0.25),
        name(monkeypatch, WithOneMore, lr=0.25, width=9),
    ]
    assert name(monkeypatch, WithOneMore, share=True) not in before
    assert name(monkeypatch, WithOneMore, kappa=2.0) not in before
    assert not {name(monkeypatch, Raised), name(monkeypatch, Raised, lr=0.25)} & set(before)


def test_the_name_is_that_of_the_value_however_it_is_given() -> None:
    as_float = one(hyperparameters={"lr": 0.125, "batch_size": 64, "hidden": [[8, 8]]})
    as_numpy = one(hyperparameters={"lr": np.float32(0.125), "batch_size": np.int64(64), "hidden": [(8, np.int32(8))]})
    assert as_float.name == as_numpy.name
    assert one(hyperparameters={"lr": 1}).name == one(hyperparameters={"lr": 1.0}).name
    assert one(hyperparameters={"lr": np.float32(0.1)}).name != one(hyperparameters={"lr": 0.1}).name  # it is another
    assert one(options={"n_agents": 5}).name == one(options={"n_agents": np.int64(5)}).name
    third, uav = float(np.float32(1 / 3)), {"tasks": ["uav/iot"], "datasets": ["random"], "algorithms": ["ciqr"]}
    penalties = [one(**uav, options={"risk_penalty": value}).name for value in (np.float32(1 / 3), third, 1 / 3)]
    assert penalties[0] == penalties[1] != penalties[2]
    assert one(updates=7).name == one(updates=np.int64(7)).name
    assert one(hyperparameters={"cql_alpha": 5.0}).name == one().name  # the published one


def test_what_changes_the_numbers_changes_the_name() -> None:
    runs = [
        one(),
        one(hyperparameters={"lr": 0.02}),
        one(updates=7),
        one(size=200),
        one(options={"time_limit_is_terminal": True}),
        one(preset=False),
        one(algorithms=["cql_central"]),
        one(algorithms=["bc"]),
        one(datasets=["medium"]),
    ]
    assert len({run.config_hash for run in runs}) == len(runs)
    assert dataclasses.replace(runs[0], seed=1, data_seed=1).config_hash == runs[0].config_hash
    assert one(algorithms=["cql_central"]).config_hash == one(hyperparameters={"centralised": True}).config_hash


def test_the_same_run_in_another_folder_is_another_one_to_weights_and_biases(tmp_path: Any) -> None:
    name = "particle-spread_random_" + "a-long-name" * 9 + "_12345678_seed0"
    here, there = (run_id(tmp_path / folder / name, name) for folder in ("a", "b"))
    assert here != there
    assert here == run_id(tmp_path / "b" / ".." / "a" / name, name)
    assert len(here) == 64
    assert "12345678_seed0" in here


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"algorithm": "bc"}', "was written by omarl_jax before 0.2"),
        ('{"format": 3}', "has format 3; this version reads format 2"),
        ("[1]", r"config.json' is damaged, or was changed by hand: expected `object`, got `array`"),
        ("{", r"config.json' is damaged, or was changed by hand: input data was truncated"),
    ],
)
def test_a_folder_of_another_version_is_refused(tmp_path: Any, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_run_config(tmp_path)
    assert "\n" not in str(error.value)
