"""Finding tasks by name, also those that live outside the package."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import omarl_envs
import pytest
from omarl_envs import UnknownTask, families, make, task_names

import omarl_jax

A_TASK_OF_ONES_OWN = '''
import jax.numpy as jnp
from typing import NamedTuple
from omarl_envs.base import MultiAgentEnv, Observation
from omarl_envs.spec import TaskSpec


class State(NamedTuple):
    key: object
    step: object


class Countdown(MultiAgentEnv[State]):
    """Pays every agent its action, for as many steps as asked for."""

    def __init__(self, n_steps=3):
        self.task_spec = TaskSpec("tmpmodule.tasks/mine", "continuous", 2, 1, 1, 2, n_steps, state_is_obs=True)
        super().__init__()

    def reset(self, key):
        return State(key, jnp.zeros((), jnp.int32)), self.first(self._observe(0))

    def step(self, state, actions):
        state = state._replace(step=state.step + 1)
        return state, self.next(state.step, self._observe(state.step), actions[:, 0])

    def _observe(self, step):
        left = jnp.full((2,), self.task_spec.episode_length - step, jnp.float32)
        return Observation(left[:, None], left)


TASKS = {"mine": Countdown}
'''


def test_the_package_ships_its_families() -> None:
    assert {"matrix", "mujoco", "particle", "uav"} <= set(families())
    assert not {"base", "registry", "rendering", "spec", "views"} & set(families())
    assert {"matrix/xor", "matrix/climbing", "particle/spread", "particle/tag", "particle/world"} <= set(task_names())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("particle/spred", "particle/spread"),
        ("partikel/world", "particle/world"),
        ("matrix/XOR", "matrix/xor"),
        ("climbing", "matrix/climbing"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownTask, match=f"There is no task '{name}'; did you mean '{nearest}'\\?"):
        make(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_uav": 3}, "no option 'n_uav'; did you mean 'n_uavs'"),
        ({"n_uavs": 2.5}, "n_uavs of 'uav/iot' must be a whole number, not 2.5"),
        ({"n_uavs": True}, "must be a whole number, not True"),
        ({"risk_penalty": "much"}, "must be a number, not 'much'"),
        ({"random_missions": "no"}, "must be true or false, not 'no'"),
    ],
)
def test_options_are_checked_against_the_constructor(options: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make("uav/iot", **options)


def test_one_file_adds_a_task(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmpmodule").mkdir()
    (tmp_path / "tmpmodule" / "tasks.py").write_text(A_TASK_OF_ONES_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    env = make("tmpmodule.tasks/mine", n_steps=2)
    state, timestep = env.reset(jax.random.key(0))
    total = jnp.zeros(())
    while not timestep.last():
        state, timestep = env.step(state, jnp.array([[0.5], [1.0]]))
        total += timestep.extras["metrics"]["return"]
    assert state.step == 2
    assert total == 1.5
    with pytest.raises(UnknownTask, match=r"tmpmodule\.tasks/yours"):
        make("tmpmodule.tasks/yours")


def test_importing_the_package_starts_nothing() -> None:
    check = "import sys, omarl_envs; print(sorted({'jax', 'jumanji', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_importing_tasks_leaves_notebooks_as_they_are() -> None:
    """By itself jumanji chooses another backend of matplotlib, and fails where that is missing."""
    check = """
import builtins, sys, types
builtins.__IPYTHON__ = True
asked = []
sys.modules["ipykernel"] = types.ModuleType("ipykernel")
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = lambda: asked.append("matplotlib")
import omarl_envs.base
assert "jumanji" in sys.modules
print(asked, builtins.__IPYTHON__)
"""
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[] True"
    packages = [pathlib.Path(next(iter(package.__path__))) for package in (omarl_envs, omarl_jax)]
    files = {file for package in packages for file in package.rglob("*.py") if "jumanji import" in file.read_text()}
    assert [file.name for file in files] == ["base.py"]
