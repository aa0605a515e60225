"""One file adds a method, one file adds a task; nothing is registered, and everything works with them."""

import sys
import textwrap

import pytest

from omarl_jax import cli
from omarl_jax.report.load import load_runs

METHOD = '''
"""Repeats the mean action of the data: one vector for each agent."""

from __future__ import annotations  # whoever writes so has types that are strings

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from omarl_jax.algorithms._checks import require, require_kind
from omarl_jax.types import Algorithm, Needs, config


@config
class Config:
    """Hyperparameters."""

    rate: float = 0.5
    """How far an update moves."""


class State(NamedTuple):
    policy: Any


def validate(config, spec):
    require_kind("mean_action", "continuous", spec)
    require(0 < config.rate <= 1, f"rate must lie in (0, 1], not {config.rate}.")


def mean_action(config, spec):
    def init(key, context):
        return State(jnp.zeros((spec.n_agents, spec.action_dim)))

    def update(state, batch, key):
        change = batch.actions.mean(axis=0) - state.policy
        return State(state.policy + config.rate * change), {"change": jnp.abs(change).mean()}

    def act(policy, view, carry, key, explore=False):
        return policy, carry

    return Algorithm(init, update, act, Needs(batch_size=512))
'''

TASK = '''
"""Three agents are paid for actions near 0.5, for four steps."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
from omarl_envs.base import MultiAgentEnv, Observation
from omarl_envs.spec import ScoreReference, TaskSpec


class State(NamedTuple):
    key: chex.PRNGKey
    step: chex.Array


class Half(MultiAgentEnv[State]):
    def __init__(self, target: float = 0.5, time_limit_is_terminal: bool = False):
        self.task_spec = TaskSpec(
            name="a_new_task/half", kind="continuous", n_agents=3, obs_dim=1, action_dim=1, state_dim=3,
            episode_length=4, state_is_obs=True,
        )
        self.reference = ScoreReference(-4 * 7 / 12, 0.0, "by hand")
        self.time_limit_is_terminal = time_limit_is_terminal
        self.target = target
        super().__init__()

    def reset(self, key):
        state = State(key, jnp.zeros((), jnp.int32))
        return state, self.first(self._observe())

    def step(self, state, actions):
        state = state._replace(step=state.step + 1)
        return state, self.next(state.step, self._observe(), -jnp.square(actions[:, 0] - self.target))

    def _observe(self):
        return Observation(jnp.zeros((3, 1)), jnp.zeros(3))


TASKS = {"half": Half}
'''


@pytest.fixture
def added(monkeypatch, tmp_path):
    for name, text in (("a_new_package/mean_action", METHOD), ("a_new_task", TASK), ("a_new_package/task", TASK)):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text).replace("a_new_task/half", "a_new_package.task/half"))
    (tmp_path / "a_new_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("a_new_")]:
        del sys.modules[name]


def omarl(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["omarl", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_a_new_method_learns_a_new_task(added, monkeypatch, tmp_path, capsys):
    """Uniform actions score 0: E (a - ½)² = ⅓ + ¼. Their mean, 0, has 4 (½)² = 1 to lose of 7/3."""
    out = tmp_path / "out"
    arguments = (
        "train a_new_package.mean_action a_new_package.task/half random --size 20000 --updates 20 --rate 0.1 0.2"
    )
    assert omarl(monkeypatch, *arguments.split(), "--seeds", "0", "1", "--out", str(out)) == 0
    runs, _ = load_runs(out / "runs")
    assert sorted(run.config["rate"] for run in runs) == [0.1, 0.1, 0.2, 0.2]
    for run in runs:
        assert run.scores(run.final_returns).mean() == pytest.approx(100 * (1 - 1 / (7 / 3)), abs=3)
    assert (out / "report" / "report.html").exists()

    other, arguments = tmp_path / "other", "train bc a_new_package.task/half random --size 100 --updates 1"
    assert omarl(monkeypatch, *arguments.split(), "--batch-size", "8", "--hidden", "8", "--out", str(other)) == 0
    for verb in (
        ["report", str(out), "--pictures"],
        ["report", str(other), "--pictures"],
        ["evaluate", str(runs[0].folder), "--episodes", "2"],
    ):
        for name in [name for name in sys.modules if name.startswith("a_new_")]:
            del sys.modules[name]
        capsys.readouterr()
        assert omarl(monkeypatch, *verb) == 1  # files name the module, and nobody has imported it
        assert "A file names the module 'a_new_package." in capsys.readouterr().err
        assert omarl(monkeypatch, *verb, "--trust") == 0


def test_their_mistakes_are_told_like_those_of_others(added, monkeypatch, tmp_path, capsys):
    for arguments, message in (
        (["a_new_package.mean_action", "a_new_package.task/half", "random", "--rate", "2"], "rate must lie in (0, 1]"),
        (["a_new_package.mean_action", "matrix/xor", "random"], "needs continuous actions"),
        (["a_new_package.mean_acton", "particle/spread", "random"], "There is no algorithm"),
        (["./mean_action.py", "particle/spread", "random"], "There is no algorithm"),
    ):
        assert omarl(monkeypatch, "train", *arguments, "--out", str(tmp_path / "out")) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
