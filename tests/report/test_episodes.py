"""Pictures of episodes know methods by their hooks only."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
from omarl_envs import make
from omarl_envs.base import MultiAgentEnv
from PIL import Image

from omarl_jax import UserError, algorithms, make_algorithm
from omarl_jax.report import episodes
from omarl_jax.types import Context, Stats, View


def trained(name: str, task: str = "uav/iot", **changed: Any) -> tuple[Any, Any]:
    env = make(task)
    spec, method = env.task_spec, algorithms.find(name)
    config = method.configure(spec, {"hidden": (8,), **changed})
    learner = method.make(config, spec)
    params = learner.init(jax.random.key(0), Context(Stats.unknown(spec))).policy
    return env, SimpleNamespace(
        algorithm=name, config=config, spec=spec, params=params, functions=(learner.act, learner.carry)
    )


@pytest.mark.parametrize(("name", "panels"), [("ciqr", ["agent 0", "agent 1"]), ("ccqr", ["team"])])
def test_the_quantiles_of_greedy_actions_are_drawn(monkeypatch, tmp_path: Path, name: str, panels: list[str]) -> None:
    env, policy = trained(name, quantiles=4, reward_scale=0.5)
    drawn: dict[str, Any] = {}
    draw = episodes.plots.quantiles

    def spy(values: Any, fractions: Any, times: Any, titles: Any) -> Any:
        drawn.update(values=values, fractions=fractions, times=times, titles=titles)
        return draw(values, fractions, times, titles)

    monkeypatch.setattr(episodes.plots, "quantiles", spy)
    episodes.write_quantiles(env, policy, tmp_path / "q.png", seed=0, at=(0, 5))
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    assert (drawn["titles"], drawn["times"]) == (panels, ["step 0", "step 5"])
    np.testing.assert_allclose(drawn["fractions"], [0.125, 0.375, 0.625, 0.875])
    assert drawn["values"].shape == (2, len(panels), 4)

    # In units of returns; a team's are the sums of its agents'.
    alone = make_algorithm("ciqr", policy.spec, hidden=(8,), quantiles=4, reward_scale=1.0)
    _, unscaled = alone.return_quantiles(policy.params, View(episodes._episode(env, policy, seed=0).obs[0]))
    expected = unscaled if name == "ciqr" else unscaled.sum(axis=0, keepdims=True)
    np.testing.assert_allclose(drawn["values"][0], expected / 0.5, rtol=1e-5)


def test_methods_without_quantiles_say_so(tmp_path: Path) -> None:
    for name, changed in (("ciql", {}), ("ciqr", {"quantiles": 0})):
        env, policy = trained(name, **changed)
        with pytest.raises(UserError, match=f"'{name}' learns no quantiles"):
            episodes.write_quantiles(env, policy, tmp_path / "q.png", seed=0)


class Robot(MultiAgentEnv):
    """Moves every 0.05 s; its states are numbers, and it keeps those that it has drawn."""

    dt = 0.05

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def render(self, state: int) -> np.ndarray:
        self.drawn.append(state)
        return np.full((3, 5, 3), state % 256, np.uint8)


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> Robot:
    monkeypatch.setattr(Robot, "__abstractmethods__", frozenset())
    monkeypatch.setattr(episodes, "_episode", lambda *_: None)
    return Robot()


@pytest.mark.parametrize(("length", "shown"), [(20, [7, 8, 9, 10, 11, 12]), (4, [0, 1, 2, 3, 4])])
def test_a_strip_shows_the_middle_of_an_episode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, robot: Robot, length: int, shown: list[int]
) -> None:
    """Every second state is a moment."""
    monkeypatch.setattr(episodes, "_states", lambda _: list(range(2 * length + 1)))
    episodes.write_strip(robot, cast(Any, None), tmp_path / "strip.png", seed=0)
    assert robot.drawn == [2 * moment for moment in shown]
    with Image.open(tmp_path / "strip.png") as image:
        assert image.size == (5 * len(shown), 3)


@pytest.mark.parametrize("states", [50, 1001])
def test_a_film_ends_after_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, robot: Robot, states: int
) -> None:
    monkeypatch.setattr(episodes, "_states", lambda _: list(range(states)))
    episodes.write_gif(robot, cast(Any, None), tmp_path / "film.gif", seed=0)
    assert robot.drawn == list(range(min(states, 200)))


def test_reports_draw_a_map_where_there_is_one_and_else_moments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, robot: Robot
) -> None:
    (tmp_path / "policy.npz").touch()
    row = SimpleNamespace(runs=[SimpleNamespace(folder=tmp_path)], task="a/task", method="bc", dataset="medium")
    policy = SimpleNamespace(spec=SimpleNamespace(name="a/task"), metadata={})
    monkeypatch.setattr(episodes, "summarise", lambda _: [row])
    monkeypatch.setattr(episodes, "load_policy", lambda _: policy)
    monkeypatch.setattr(episodes, "require_trusted_task", lambda *_, **__: None)
    monkeypatch.setattr(episodes, "_return_quantiles", lambda _: None)
    for name in ("write_map", "write_strip"):
        monkeypatch.setattr(episodes, name, lambda env, policy, path, seed: path.touch())
    game = SimpleNamespace(dt=None)
    walker = SimpleNamespace(dt=0.01, render_path=None)
    for env, kinds in ((robot, ["strip"]), (walker, ["map"]), (game, [])):
        monkeypatch.setattr(episodes, "make_env", lambda *_, env=env: env)
        assert [picture.kind for picture in episodes.draw([], tmp_path)] == kinds
