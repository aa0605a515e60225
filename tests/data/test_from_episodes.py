"""Logs as people have them: what is laid out as it is, and what the sentence says of the rest."""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.spec import TaskSpec

from omarl_jax.data.dataset import Dataset, EpisodeStore
from omarl_jax.data.episodes import from_episodes
from omarl_jax.data.validation import validate
from omarl_jax.errors import UserError


def _steps(dataset: Dataset) -> dict[str, np.ndarray]:
    """The transitions of a dataset without final-observation rows, as an importer would find them."""
    steps = ~dataset.rows.closing
    names = ("obs", "actions", "rewards", "terminal", "truncated")
    return {name: getattr(dataset.rows, name)[steps] for name in names}


def _assert_same(found: Any, expected: Any) -> None:
    for name, array in expected._asdict().items():
        if array is None:
            assert getattr(found, name) is None
        else:
            np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)
            assert getattr(found, name).dtype == array.dtype


def test_episodes_are_laid_out_with_their_final_observations(continuous: Dataset):
    steps, last = _steps(continuous), continuous.rows.obs[[3, 6, 8]]
    flat = from_episodes(continuous.spec, **steps, last_obs=last.astype(np.float64), lengths=np.array([3, 2, 1]))
    _assert_same(flat, continuous.rows)
    listed: dict[str, Any] = {name: [array[:3], array[3:5], array[5:]] for name, array in steps.items()}
    _assert_same(from_episodes(continuous.spec, **listed, last_obs=list(last)), continuous.rows)


def test_states_and_masks_are_laid_out_too(discrete: Dataset):
    rows = discrete.rows
    assert rows.state is not None and rows.action_mask is not None
    built = from_episodes(
        discrete.spec,
        **_steps(discrete),
        last_obs=rows.obs[2:],
        lengths=np.array([2]),
        state=rows.state[:2],
        last_state=rows.state[2:],
        action_mask=rows.action_mask[:2],
        last_action_mask=rows.action_mask[2:],
    )
    _assert_same(built, rows)


def test_transitions_without_order_become_two_row_episodes(continuous: Dataset):
    steps = _steps(continuous)
    rows = from_episodes(continuous.spec, **steps, last_obs=continuous.rows.obs[[1, 2, 3, 5, 6, 8]])
    assert rows.closing.tolist() == [False, True] * 6
    assert rows.obs[:, 0, 0].tolist() == [0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8]
    assert rows.rewards[:, 0].tolist() == [0, 0, 1, 0, 2, 0, 4, 0, 5, 0, 7, 0]
    dataset = Dataset(continuous.spec, rows, {})
    validate(dataset)
    assert dataset.index().tolist() == [0, 2, 4, 6, 8, 10]
    assert dataset.index(next_actions=True).tolist() == [8, 10]  # after which the task had ended
    assert not dataset.whole_episodes.all()


class Log(NamedTuple):
    """A log of two agents, as it should be passed."""

    spec: TaskSpec
    arguments: dict[str, Any]
    lengths: tuple[int, ...]


def _log(kind: str, form: str, lengths: tuple[int, ...] = (3, 2)) -> Log:
    """A log in one of the three forms: `flat` arrays with lengths, `listed` episodes, or `loose` transitions."""
    rng, steps, n = np.random.default_rng(0), sum(lengths), 2
    spec = TaskSpec("toy/own", kind, n, 3, 4, 7, 9)  # type: ignore[arg-type]
    ends = np.isin(np.arange(steps) + 1, np.cumsum(lengths))
    arguments: dict[str, Any] = {
        "obs": rng.normal(size=(steps, n, 3)),
        "actions": rng.integers(4, size=(steps, n)) if kind == "discrete" else rng.uniform(-1, 1, (steps, n, 4)),
        "rewards": np.repeat(rng.normal(size=(steps, 1)), n, axis=1),
        "terminal": np.repeat(ends[:, None] & (np.arange(steps) < 4)[:, None], n, axis=1),
        "truncated": ends & (np.arange(steps) >= 4),
        "state": rng.normal(size=(steps, 7)),
    }
    if kind == "discrete":
        arguments["action_mask"] = rng.random((steps, n, 4)) < 0.7
    if form == "listed":
        arguments = {name: np.split(array, np.cumsum(lengths)[:-1]) for name, array in arguments.items()}
    episodes = steps if form == "loose" else len(lengths)
    shapes = {"last_obs": (n, 3), "last_state": (7,)} | ({"last_action_mask": (n, 4)} if kind == "discrete" else {})
    arguments |= {name: rng.normal(size=(episodes, *shape)) for name, shape in shapes.items()}
    if kind == "discrete":
        arguments["last_action_mask"] = arguments["last_action_mask"] > 0
    return Log(spec, arguments | ({"lengths": list(lengths)} if form == "flat" else {}), lengths)


def _mended(log: Log, arguments: dict[str, Any]) -> tuple[EpisodeStore, str]:
    """Does what the sentences say until the log is accepted; returns its rows, and what was said first."""
    first = ""
    for _ in range(12):
        try:
            return from_episodes(log.spec, **arguments), first
        except UserError as error:
            first = first or str(error)
            (code,) = re.findall("`(.+)`", str(error))
            arguments = arguments | eval(f"dict({code})", {"np": np} | arguments)
    raise AssertionError(first)


def _with_last(log: Log, name: str) -> Any:
    """Observations and the like with one row more an episode, as environments return them."""
    steps, last = log.arguments[name], log.arguments[f"last_{name}"]
    if isinstance(steps, list):
        return [np.concatenate([episode, row[None]]) for episode, row in zip(steps, last, strict=True)]
    return np.insert(steps, np.cumsum(log.lengths), last, axis=0)


def _named(array: np.ndarray) -> dict[str, np.ndarray]:
    return {f"agent_{i}": array[:, i] for i in range(array.shape[1])}


CHANGES: list[tuple[str, str, Any, str]] = [
    ("continuous", "rewards", lambda x: x[:, 0], "looks like one for the whole team, not for each of 2 agents"),
    ("continuous", "rewards", lambda x: x[:, :1], "looks like one for the whole team, not for each of 2 agents"),
    ("discrete", "terminal", lambda x: x[:, 0].astype(int), "looks like one for the whole team"),
    ("discrete", "actions", lambda x: np.eye(4)[x], "looks one-hot"),
    ("discrete", "actions", lambda x: np.log(np.eye(4)[x] + 0.1), "looks like a number for each action"),
    ("discrete", "actions", lambda x: x[..., None], "last axis has one entry only"),
    ("discrete", "truncated", lambda x: x[:, None], "last axis has one entry only"),
    ("discrete", "truncated", lambda x: np.repeat(x[:, None], 2, axis=1), "an episode is cut off for all at once"),
    ("discrete", "state", lambda x: np.repeat(x[:, None], 2, axis=1), "looks like the state once for each agent"),
    ("continuous", "actions", lambda x: x.swapaxes(0, 1), "agents stand before time"),
    ("continuous", "obs", lambda x: x.reshape(len(x), -1), "agents stand in one row"),
    ("continuous", "obs", _named, "Agents are an axis, the second one after time"),
]


@pytest.mark.parametrize("form", ["flat", "listed", "loose"])
@pytest.mark.parametrize(("kind", "name", "change", "looks"), CHANGES)
def test_what_the_sentence_says_of_a_shape_mends_it(kind: str, name: str, change: Any, looks: str, form: str):
    log = _log(kind, form)
    value = log.arguments[name]
    changed = [change(x) for x in value] if form == "listed" else change(value)
    rows, said = _mended(log, log.arguments | {name: changed})
    assert looks in said and name in said and "\n" not in said
    _assert_same(rows, from_episodes(log.spec, **log.arguments))


@pytest.mark.parametrize("name", ["obs", "state", "action_mask"])
@pytest.mark.parametrize("form", ["flat", "listed"])
def test_one_row_more_than_actions_is_what_followed_the_last_step(form: str, name: str):
    log = _log("discrete", form)
    rows, said = _mended(log, log.arguments | {name: _with_last(log, name)})
    assert "what followed the last step came with the steps" in said
    _assert_same(rows, from_episodes(log.spec, **log.arguments))


def test_a_single_episode_in_arrays_is_recognised():
    log = _log("continuous", "flat", (5,))
    without = {name: value for name, value in log.arguments.items() if name != "lengths"}
    rows, said = _mended(log, without | {"obs": _with_last(log, "obs")})
    assert "pass `obs=obs[:-1], last_obs=obs[-1:], lengths=[5]`" in said
    _assert_same(rows, from_episodes(log.spec, **log.arguments))


@pytest.mark.parametrize("form", ["flat", "listed"])
def test_next_observations_of_every_step_are_recognised(form: str):
    log = _log("continuous", form)
    last = np.zeros((5, 2, 3))
    last[[2, 4]] = log.arguments["last_obs"]
    rows, said = _mended(log, log.arguments | {"last_obs": last if form == "flat" else [last[:3], last[3:]]})
    assert "It looks like what followed every step" in said
    _assert_same(rows, from_episodes(log.spec, **log.arguments))


@pytest.mark.parametrize("with_last", [False, True])
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_episodes_stacked_in_one_array_are_recognised(kind: str, with_last: bool):
    log = _log(kind, "listed", (3, 3, 3, 3))
    stacked = {name: np.stack(value) for name, value in log.arguments.items()}
    if with_last:
        stacked["obs"] = np.stack(_with_last(log, "obs"))
    rows, said = _mended(log, stacked)
    steps = "3 steps and a last observation" if with_last else "3 steps"
    assert f"looks like 4 episodes of {steps}: pass" in said and "likewise every other argument" in said
    _assert_same(rows, from_episodes(log.spec, **log.arguments))


def test_a_list_of_steps_is_recognised():
    log = _log("discrete", "flat")
    rows, said = _mended(log, {name: list(value) for name, value in log.arguments.items()})
    assert "looks like a list of steps, not of episodes" in said
    _assert_same(rows, from_episodes(log.spec, **log.arguments))


AS_THEY_COME: dict[str, Any] = {
    "generators": lambda x: (episode for episode in x),
    "tuples": tuple,
    "objects": lambda x: np.array([*x, None], object)[:-1],
    "lists of numbers": lambda x: [episode.tolist() for episode in x],
    "lists of steps": lambda x: [list(episode) for episode in x],
    "device arrays": lambda x: [jnp.asarray(episode) for episode in x],
}


@pytest.mark.parametrize("how", AS_THEY_COME)
def test_episodes_are_taken_as_they_come(how: str):
    log = _log("discrete", "listed")
    arguments = {name: AS_THEY_COME[how](value) for name, value in log.arguments.items()}
    _assert_same(from_episodes(log.spec, **arguments), from_episodes(log.spec, **log.arguments))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("terminal", lambda x: x.astype(int)),
        ("truncated", lambda x: x.astype(np.float32)),
        ("action_mask", lambda x: x.astype(np.uint8)),
        ("actions", lambda x: x.astype(float)),
        ("actions", lambda x: x.astype(np.uint64)),
        ("rewards", lambda x: x.astype(object)),
        ("truncated", lambda x: x.tolist()),
        ("lengths", lambda x: np.array(x, float)),
        ("lengths", lambda x: (length for length in x)),
    ],
)
def test_numbers_of_another_dtype_are_converted(name: str, change: Any):
    log = _log("discrete", "flat")
    changed = log.arguments | {name: change(log.arguments[name])}
    _assert_same(from_episodes(log.spec, **changed), from_episodes(log.spec, **log.arguments))


WHOLE = "it must be a whole number that int32 can hold"


@pytest.mark.parametrize(
    ("form", "name", "at", "value", "message"),
    [
        ("flat", "actions", (3, 1), 2**32, rf"actions holds 4294967296 in episode 1, step 0, agent 1 .*: {WHOLE}"),
        ("flat", "actions", (2, 0), 0.5, rf"actions holds 0.5 in episode 0, step 2, agent 0 .*: {WHOLE}"),
        ("flat", "actions", (2, 0), np.nan, rf"actions holds nan in episode 0, step 2, agent 0 .*: {WHOLE}"),
        ("loose", "actions", (2, 0), 2**31, r"actions holds 2147483648 in transition 2, agent 0 \(counted from 0\)"),
        (
            "flat",
            "rewards",
            (4, 1),
            1e39,
            r"rewards holds 1e\+39 in episode 1, step 1, agent 1 .*: float32 cannot hold",
        ),
        ("flat", "last_obs", (1, 0, 2), -1e40, r"last_obs holds -1e\+40 in episode 1, final observation, agent 0, ent"),
        ("flat", "terminal", (0, 1), 2, "terminal holds 2 in episode 0, step 0, agent 1 .*: a flag is 0 or 1"),
        ("flat", "truncated", 4, 0.5, "truncated holds 0.5 in episode 1, step 1 .*: a flag is 0 or 1"),
        ("loose", "truncated", 4, np.nan, "truncated holds nan in transition 4 .*: a flag is 0 or 1"),
        ("flat", "action_mask", (1, 0, 3), 7, "action_mask holds 7 in episode 0, step 1, agent 0, action 3"),
        ("flat", "state", (3, 6), 1e300, r"state holds 1e\+300 in episode 1, step 0, entry 6"),
    ],
)
def test_values_that_the_dtype_cannot_hold_are_refused(form: str, name: str, at: Any, value: Any, message: str):
    log = _log("discrete", form)
    array = log.arguments[name].astype(type(value))
    array[at] = value
    with pytest.raises(UserError, match=f"^{message}"):
        from_episodes(log.spec, **log.arguments | {name: array})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.float32(3)}, "obs is a single value, but must be an array of all steps or a list of episodes"),
        ({"rewards": np.array(1.0)}, "rewards is a single value"),
        ({"last_obs": 0}, "last_obs is a single value"),
        ({"rewards": np.zeros((4, 2))}, r"rewards has shape \(4, 2\), but the task and the episodes need \(5, 2\)\.$"),
        ({"last_obs": np.zeros((3, 2, 3))}, r"last_obs has shape \(3, 2, 3\), .* need \(2, 2, 3\)\.$"),
        ({"last_obs": [np.zeros((2, 3)), np.zeros((2, 4))]}, "episodes of last_obs differ in the shape of a step"),
        ({"rewards": [[1.0], [2.0, 3.0]]}, "obs is an array, but rewards a list"),
        ({"rewards": ["a"] * 5}, "rewards has shape"),
        ({"rewards": np.full((5, 2), "1.5")}, "rewards has dtype <U3, which does not convert to float32"),
        ({"rewards": np.full((5, 2), 1j)}, "rewards has dtype complex128, which does not convert to float32"),
        ({"rewards": np.full((5, 2), None)}, "rewards holds Python objects, not numbers alone, such as None"),
        ({"rewards": np.ma.masked_equal(np.zeros((5, 2)), 0)}, "rewards has masked values"),
        ({"obs": [[1, 2], [3]]}, "obs is a list, but|actions an array"),
        ({"obs": [np.zeros((3, 2, 3)), 1.0]}, "obs lists arrays and single values"),
        ({"obs": [1.0, np.zeros((3, 2, 3))]}, "obs cannot be made an array of numbers"),
        ({"lengths": [3, 2.5]}, "lengths must be whole numbers"),
        ({"lengths": [[3], [2]]}, "lengths must be whole numbers"),
        ({"lengths": 5}, "lengths must be whole numbers"),
        ({"lengths": ["3", "2"]}, "lengths must be whole numbers"),
        ({"lengths": [3, 2, 0]}, "each must have a step"),
        ({"lengths": []}, "There must be episodes"),
        ({"lengths": [3, 3]}, "lengths of episodes sum up to 6, but actions has 5 steps"),
        (
            {"lengths": None},
            r"last_obs has shape \(2, 2, 3\).* Without lengths, the steps of each episode, every step is",
        ),
        ({"action_mask": None}, "only useful together"),
        ({"state": None}, "needs state and last_state"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(change: dict, message: str):
    log = _log("discrete", "flat")
    with pytest.raises(UserError, match=message) as error:
        from_episodes(log.spec, **log.arguments | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": [np.zeros((3, 2))]}, r"rewards lists 1 episodes, but actions 2\.$"),
        (
            {"rewards": [np.zeros((3, 2)), np.zeros((4, 2))]},
            r"Episode 1 .* has 4 steps of rewards, but 2 of actions\.$",
        ),
        ({"obs": [np.zeros((3, 2, 3)), np.zeros((2, 2, 5))]}, "episodes of obs differ in the shape of a step"),
        ({"lengths": [2, 3]}, "lengths disagree with the episodes of actions"),
        ({"obs": [], "actions": []}, "There must be episodes"),
    ],
)
def test_episodes_that_disagree_are_named(change: dict, message: str):
    log = _log("discrete", "listed")
    with pytest.raises(UserError, match=message):
        from_episodes(log.spec, **log.arguments | change)


def test_discrete_actions_of_a_continuous_task_are_recognised():
    log = _log("continuous", "flat")
    with pytest.raises(UserError, match="looks like discrete actions, but those of 'toy/own' are 4 numbers each"):
        from_episodes(log.spec, **log.arguments | {"actions": np.zeros((5, 2), int)})
