"""The MuJoCo tasks around their physics: who sees what, who drives what, rewards, starts and ends.

Most tests replace a control step by an outcome of their own, so that nothing large is compiled.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs import make, rendering
from omarl_envs.base import MultiAgentEnv, Observation
from omarl_envs.mujoco import drawing, models, physics
from omarl_envs.mujoco.tasks import State
from PIL import ImageColor

# Coordinates, velocities, and hinges in their order, as gym's files have them; then motors, where in another order.
CHEETAH = 9, 9, ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
HOPPER = 6, 6, ["thigh_joint", "leg_joint", "foot_joint"]
WALKER = 9, 9, ["thigh_joint", "leg_joint", "foot_joint", "thigh_left_joint", "leg_left_joint", "foot_left_joint"]
ANT = 15, 14, ["hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3", "hip_4", "ankle_4"]
ANT_MOTORS = ["hip_4", "ankle_4", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3"]
ROBOTS = {"halfcheetah": CHEETAH, "hopper": HOPPER, "walker2d": WALKER, "ant": ANT}


def _robot(env: MultiAgentEnv) -> tuple[int, int, list[str]]:
    return ROBOTS[env.task_spec.name.split("/")[1].split("-")[0]]


def _replaced(env: MultiAgentEnv, q: Any = None, v: Any = None, moved: float = 0.0) -> tuple[MultiAgentEnv, State]:
    """The task with a control step that leads to q and v, and keeps the motors' controls as the acceleration."""
    state, _ = env.reset(jax.random.key(0))
    end = [state.q if q is None else jnp.asarray(q, jnp.float32), state.v if v is None else jnp.asarray(v, jnp.float32)]
    env._simulate = lambda q, v, control, guess: (*end, control, jnp.float32(moved))  # type: ignore[attr-defined]
    return env, state


def _idle(env: MultiAgentEnv) -> np.ndarray:
    return np.zeros((env.task_spec.n_agents, env.task_spec.action_dim), np.float32)


def _observe(env: MultiAgentEnv, q: chex.Array, v: chex.Array) -> Observation:
    env, state = _replaced(env, q, v)
    return env.step(state, _idle(env))[1].observation


@pytest.mark.parametrize(
    ("task", "distance", "expected"),
    [
        (  # OMAR's, labels sorted
            "halfcheetah-2x3",
            0,
            ["bfoot bfoot' bshin bshin' bthigh bthigh'", "ffoot ffoot' fshin fshin' fthigh fthigh'"],
        ),
        (
            "halfcheetah-3x2",
            0,
            ["bfoot bfoot' bshin bshin'", "bthigh bthigh' fthigh fthigh'", "ffoot ffoot' fshin fshin'"],
        ),
        (
            "halfcheetah-3x2",
            1,
            [
                "bfoot bfoot' bshin bshin' bthigh 0",
                "bthigh bthigh' fthigh fthigh' bshin fshin",
                "ffoot ffoot' fshin fshin' fthigh 0",
            ],
        ),
        (
            "halfcheetah-2x3",
            3,
            [
                "bfoot bfoot' bshin bshin' bthigh bthigh' fthigh fshin ffoot",
                "ffoot ffoot' fshin fshin' fthigh fthigh' bthigh bshin bfoot",
            ],
        ),
        (
            "hopper-3x1",
            2,
            [
                "thigh_joint thigh_joint' leg_joint foot_joint",
                "leg_joint leg_joint' foot_joint thigh_joint",
                "foot_joint foot_joint' leg_joint thigh_joint",
            ],
        ),
        (
            "walker2d-2x3",
            1,
            [
                "foot_joint foot_joint' leg_joint leg_joint' thigh_joint thigh_joint' thigh_left_joint",
                "foot_left_joint foot_left_joint' leg_left_joint leg_left_joint' thigh_left_joint thigh_left_joint'"
                " thigh_joint",
            ],
        ),
        (
            "ant-2x4",
            0,
            [
                "ankle_1 ankle_1' ankle_2 ankle_2' hip_1 hip_1' hip_2 hip_2'",
                "ankle_3 ankle_3' ankle_4 ankle_4' hip_3 hip_3' hip_4 hip_4'",
            ],
        ),
        (
            "ant-4x2",
            2,
            [
                "ankle_1 ankle_1' hip_1 hip_1' hip_2 hip_3 hip_4 ankle_2 ankle_3 ankle_4",
                "ankle_2 ankle_2' hip_2 hip_2' hip_1 hip_3 hip_4 ankle_1 ankle_3 ankle_4",
                "ankle_3 ankle_3' hip_3 hip_3' hip_1 hip_2 hip_4 ankle_1 ankle_2 ankle_4",
                "ankle_4 ankle_4' hip_4 hip_4' hip_1 hip_2 hip_3 ankle_1 ankle_2 ankle_3",
            ],
        ),
    ],
)
def test_local_observations_move_with_the_joints_they_list(task: str, distance: int, expected: list[str]) -> None:
    env = make(f"mujoco/{task}", observations="local", distance=distance)
    n_q, n_v, names = _robot(env)
    numbers = np.arange(1.0, n_q + n_v + 1) / 10  # all different, and velocities below the bound of those clipped
    hinges = len(names)
    moved = {name: n_q - hinges + i for i, name in enumerate(names)}
    moved |= {f"{name}'": n_q + n_v - hinges + i for i, name in enumerate(names)}
    observation = _observe(env, numbers[:n_q], numbers[n_q:])
    found = np.asarray(observation.agents_view)
    wanted = [[0.0 if name == "0" else numbers[moved[name]] for name in view.split()] for view in expected]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    lengths = tuple(len(view.replace(" 0", "").split()) for view in expected)
    assert env.task_spec.obs_dims == (lengths if len(set(lengths)) > 1 else ())
    assert observation.state.shape == (env.task_spec.state_dim,)


@pytest.mark.parametrize(
    ("task", "routing", "expected"),
    [  # the fourth column of the published partitions, and the third
        ("halfcheetah-2x3", "slices", ["bthigh bshin bfoot", "fthigh fshin ffoot"]),
        ("halfcheetah-2x3", "names", ["bfoot bshin bthigh", "ffoot fshin fthigh"]),
        ("halfcheetah-3x2", "slices", ["bthigh bshin", "bfoot fthigh", "fshin ffoot"]),
        ("halfcheetah-3x2", "names", ["bfoot bshin", "bthigh fthigh", "ffoot fshin"]),
        ("halfcheetah-6x1", "slices", ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]),
        ("halfcheetah-6x1", "names", ["bfoot", "bshin", "bthigh", "ffoot", "fshin", "fthigh"]),
        ("hopper-3x1", "slices", ["thigh_joint", "leg_joint", "foot_joint"]),
        (
            "walker2d-2x3",
            "names",
            ["foot_joint leg_joint thigh_joint", "foot_left_joint leg_left_joint thigh_left_joint"],
        ),
        ("ant-2x4", "slices", ["hip_4 ankle_4 hip_1 ankle_1", "hip_2 ankle_2 hip_3 ankle_3"]),
        ("ant-2x4", "names", ["hip_1 ankle_1 hip_2 ankle_2", "hip_3 ankle_3 hip_4 ankle_4"]),
        ("ant-4x2", "slices", ["hip_4 ankle_4", "hip_1 ankle_1", "hip_2 ankle_2", "hip_3 ankle_3"]),
        ("ant-4x2", "names", ["hip_1 ankle_1", "hip_2 ankle_2", "hip_3 ankle_3", "hip_4 ankle_4"]),
    ],
)
def test_actions_drive_the_motors_of_their_routing(task: str, routing: str, expected: list[str]) -> None:
    env, state = _replaced(make(f"mujoco/{task}", routing=routing))
    motors = ANT_MOTORS if task.startswith("ant") else _robot(env)[2]
    actions = np.arange(1.0, len(motors) + 1, dtype=np.float32).reshape(_idle(env).shape)
    control = dict(zip(motors, np.asarray(env.step(state, actions)[0].acceleration), strict=True))
    assert [[control[motor] for motor in row.split()] for row in expected] == actions.tolist()


@pytest.fixture(scope="module")
def cheetahs() -> tuple[Any, State, Any]:
    """Real cheetahs in the air after a step: one for each motor that pushes alone, one that rests, one that is NaN."""
    env = make("mujoco/halfcheetah-2x3")
    state, _ = env.reset(jax.random.key(0))
    state = state._replace(q=jnp.zeros(9).at[1].set(3.0), v=jnp.zeros(9))
    states = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (8, *x.shape)), state._replace(key=jax.random.key_data(state.key))
    )
    states = states._replace(v=states.v.at[7, 4].set(jnp.nan))
    actions = np.concatenate([0.5 * np.eye(6), np.zeros((2, 6))]).reshape(8, 2, 3).astype(np.float32)
    after, timesteps = jax.jit(jax.vmap(env.step))(states, actions)
    return env, jax.tree.map(np.asarray, after), jax.tree.map(np.asarray, timesteps)


def test_a_motor_moves_its_own_joint_most(cheetahs: tuple[Any, State, Any]) -> None:
    _, after, _ = cheetahs
    change = after.q[:6, 3:] - after.q[6, 3:]  # motor, hinge
    assert (np.abs(change).argmax(axis=1) == np.arange(6)).all()
    assert (np.diagonal(change) > 0.01).all()


def test_a_robot_that_is_not_finite_ends_its_own_episode_and_shows_it(cheetahs: tuple[Any, State, Any]) -> None:
    _, after, timesteps = cheetahs
    assert np.isnan(timesteps.reward[7]).all()
    assert np.isnan(timesteps.extras["metrics"]["return"][7])
    assert np.isnan(timesteps.observation.state[7]).any()
    assert (timesteps.discount[7] == 0.0).all()
    assert timesteps.step_type[7] == 2
    assert all(np.isfinite(leaf[:7]).all() for leaf in (after.q, after.v, after.acceleration, timesteps.reward))
    assert (timesteps.discount[:7] == 1.0).all()
    assert (timesteps.step_type[:7] == 1).all()


def test_what_falls_freely_for_a_step_falls_as_galileo_says(cheetahs: tuple[Any, State, Any]) -> None:
    """Semi-implicit Euler: after five steps of h, v = -5 g h and z = -(1 + 2 + … + 5) g h²; nothing pushes along x."""
    env, after, timesteps = cheetahs
    assert env.dt == pytest.approx(0.05)
    np.testing.assert_allclose(after.v[6, 1], -5 * 9.81 * 0.01, rtol=0.02)  # springs pull legs along
    np.testing.assert_allclose(after.q[6, 1] - 3.0, -15 * 9.81 * 1e-4, rtol=0.05)
    np.testing.assert_allclose(
        timesteps.reward[:7, 0], (after.q[:7, 0]) / 0.05 - 0.1 * 0.25 * np.array([1] * 6 + [0]), atol=1e-4
    )


@pytest.mark.parametrize(
    ("task", "moved", "expected"),
    [  # forward speed + alive bonus - cost · |a|², all actions 2: motors clip them, the cost does not
        ("halfcheetah-2x3", 0.4, 0.4 / 0.05 - 0.1 * 6 * 4),
        ("halfcheetah-6x1", -0.1, -0.1 / 0.05 - 0.1 * 6 * 4),
        ("hopper-3x1", 0.016, 0.016 / 0.008 + 1 - 1e-3 * 3 * 4),
        ("walker2d-2x3", 0.016, 0.016 / 0.008 + 1 - 1e-3 * 6 * 4),
        ("ant-2x4", 0.1, 0.1 / 0.05 + 1 - 0.5 * 8 * 4),
    ],
)
@pytest.mark.parametrize("falls", [False, True])
def test_all_agents_get_gyms_reward_also_for_the_last_step(
    task: str, moved: float, expected: float, falls: bool
) -> None:
    env = make(f"mujoco/{task}")
    state, _ = env.reset(jax.random.key(1))
    q = state.q.at[2 if task.startswith("ant") else 1].set(0.1) if falls else state.q
    env, state = _replaced(env, q, moved=moved)
    _, timestep = env.step(state, jnp.full_like(_idle(env), 2.0))
    np.testing.assert_allclose(timestep.reward, np.full(env.num_agents, expected), rtol=1e-5)
    np.testing.assert_allclose(timestep.extras["metrics"]["return"], expected, rtol=1e-5)
    np.testing.assert_allclose(timestep.extras["metrics"]["distance"], moved)
    ends = falls and not task.startswith("halfcheetah")
    assert (np.asarray(timestep.discount) == (0.0 if ends else 1.0)).all()


@pytest.mark.parametrize(
    ("task", "at", "value", "ends"),
    [
        ("halfcheetah-2x3", "q2", 50.0, False),
        ("halfcheetah-2x3", "v8", np.inf, True),
        ("halfcheetah-2x3", "q0", np.nan, True),
        ("hopper-3x1", "q1", 0.701, False),
        ("hopper-3x1", "q1", 0.699, True),
        ("hopper-3x1", "q1", 150.0, False),  # the bound of 100 is not on x and z
        ("hopper-3x1", "q0", 150.0, False),
        ("hopper-3x1", "q2", 0.199, False),
        ("hopper-3x1", "q2", -0.201, True),
        ("hopper-3x1", "q5", -101.0, True),
        ("hopper-3x1", "v0", 101.0, True),
        ("hopper-3x1", "v5", 99.0, False),
        ("walker2d-2x3", "q1", 0.801, False),
        ("walker2d-2x3", "q1", 0.799, True),
        ("walker2d-2x3", "q1", 1.999, False),
        ("walker2d-2x3", "q1", 2.001, True),
        ("walker2d-2x3", "q2", 0.999, False),
        ("walker2d-2x3", "q2", -1.001, True),
        ("walker2d-2x3", "v4", 101.0, False),
        ("walker2d-2x3", "v4", np.nan, True),
        ("ant-2x4", "q2", 0.201, False),
        ("ant-2x4", "q2", 0.199, True),
        ("ant-2x4", "q2", 0.999, False),
        ("ant-2x4", "q2", 1.001, True),
        ("ant-2x4", "v13", -np.inf, True),
        ("ant-2x4", "v13", 101.0, False),
    ],
)
def test_episodes_end_at_gyms_thresholds(task: str, at: str, value: float, ends: bool) -> None:
    env = make(f"mujoco/{task}")
    state, _ = env.reset(jax.random.key(0))
    end = {"q": np.array(state.q), "v": np.array(state.v)}
    end[at[0]][int(at[1:])] = value
    env, state = _replaced(env, **end)
    _, timestep = env.step(state, _idle(env))
    assert (np.asarray(timestep.discount) == (0.0 if ends else 1.0)).all()
    assert bool(timestep.last()) == ends


@pytest.mark.parametrize("task", ["halfcheetah-2x3", "hopper-3x1", "walker2d-2x3", "ant-2x4"])
def test_episodes_start_as_gyms_do(task: str) -> None:
    env = make(f"mujoco/{task}")
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(3), 20_000))
    q, v = np.asarray(state.q, np.float64), np.asarray(state.v, np.float64)
    rest = np.zeros(q.shape[1])
    rest[{"hopper-3x1": [1], "walker2d-2x3": [1], "ant-2x4": [2, 3]}.get(task, [])] = {"ant-2x4": [0.75, 1.0]}.get(
        task, 1.25
    )
    small = task in ("hopper-3x1", "walker2d-2x3")
    noise = q - rest
    if task == "ant-2x4":
        np.testing.assert_allclose(np.linalg.norm(q[:, 3:7], axis=1), 1.0, rtol=1e-6)
        noise = noise[:, [0, 1, 2, *range(7, 15)]]
        assert 0.09 < np.abs(q[:, 4:7]).max(axis=0).min() < 0.12  # ± 0.1 over a norm of about 1
    half = 0.005 if small else 0.1
    n = np.sqrt(20_000)
    assert 0.99 * half < np.abs(noise).max() <= half * 1.001
    np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=5 * half / np.sqrt(3) / n)
    np.testing.assert_allclose(noise.std(axis=0), half / np.sqrt(3), rtol=0.02)
    scale = 0.005 / np.sqrt(3) if small else 0.1
    np.testing.assert_allclose(v.mean(axis=0), 0.0, atol=5 * scale / n)
    np.testing.assert_allclose(v.std(axis=0), scale, rtol=0.03)
    assert (np.abs(v).max() <= 0.00501) if small else (0.0022 < (np.abs(v) > 0.3).mean() < 0.0032)  # normal: 0.0027
    assert (np.asarray(state.step) == 0).all()
    assert abs(np.corrcoef(noise[:, 0], v[:, 0])[0, 1]) < 0.04


def test_velocities_of_hopper_and_walker_are_clipped_where_they_are_seen() -> None:
    for task, bound in (("hopper-3x1", 10.0), ("walker2d-2x3", 10.0), ("halfcheetah-2x3", 12.0), ("ant-2x4", 12.0)):
        env = make(f"mujoco/{task}", observations="local")
        n_q, n_v, _ = _robot(env)
        observation = _observe(env, np.linspace(0.1, 0.2, n_q), np.full(n_v, -12.0))
        assert float(observation.agents_view.min()) == -bound
        assert float(observation.state.min()) == -bound


def test_the_state_is_gyms_observation() -> None:
    """All coordinates but x, and all velocities; of Ant neither x nor y, and 84 forces that are zero."""
    for task, unseen, zeros in (
        ("halfcheetah-2x3", 1, 0),
        ("hopper-3x1", 1, 0),
        ("walker2d-2x3", 1, 0),
        ("ant-2x4", 2, 84),
    ):
        env = make(f"mujoco/{task}")
        n_q, n_v, _ = _robot(env)
        numbers = np.arange(1.0, n_q + n_v + 1, dtype=np.float32) / 10
        state = _observe(env, numbers[:n_q], numbers[n_q:]).state
        np.testing.assert_array_equal(state, np.append(numbers[unseen:], np.zeros(zeros, np.float32)))


@pytest.mark.parametrize(("task", "length"), [("halfcheetah-6x1", 23), ("hopper-3x1", 14), ("ant-2x4", 113)])
def test_omigas_observations_are_standardised_one_by_one(task: str, length: int) -> None:
    env = make(f"mujoco/{task}")  # as OMIGA's data have it
    n_q, n_v, _ = _robot(env)
    rng = np.random.default_rng(0)
    observation = _observe(env, rng.normal(size=n_q), rng.normal(size=n_v))
    views, state = np.asarray(observation.agents_view, np.float64), np.asarray(observation.state, np.float64)
    assert views.shape == (env.num_agents, length)
    np.testing.assert_allclose(views.mean(axis=1), 0.0, atol=1e-6)
    np.testing.assert_allclose(views.std(axis=1), 1.0, rtol=1e-5)
    for i, view in enumerate(views):
        whole = np.concatenate([state, np.eye(env.num_agents)[i]])
        np.testing.assert_allclose(view, (whole - whole.mean()) / np.sqrt(whole.var()), atol=1e-5)


def test_full_observations_are_the_state_for_everyone() -> None:
    env = make("mujoco/walker2d-2x3", observations="full")
    _, timestep = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(timestep.observation.agents_view, np.tile(timestep.observation.state, (2, 1)))
    assert env.task_spec.obs_from_state == "repeated"


@pytest.mark.parametrize(
    ("task", "sizes", "rule"),
    [  # agents, observation, action, state: OMAR's are local, OMIGA's full
        ("halfcheetah-2x3", (2, 6, 3, 17), ""),
        ("halfcheetah-3x2", (3, 4, 2, 17), ""),
        ("halfcheetah-6x1", (6, 23, 1, 17), "standardised"),
        ("hopper-3x1", (3, 14, 1, 11), "standardised"),
        ("walker2d-2x3", (2, 19, 3, 17), "standardised"),
        ("ant-2x4", (2, 113, 4, 111), "standardised"),
        ("ant-4x2", (4, 115, 2, 111), "standardised"),
    ],
)
def test_sizes_are_those_of_published_data(task: str, sizes: tuple[int, ...], rule: str) -> None:
    spec = make(f"mujoco/{task}").task_spec
    assert (spec.n_agents, spec.obs_dim, spec.action_dim, spec.state_dim) == sizes
    assert (spec.obs_from_state, spec.episode_length) == (rule, 1000)


def test_scores_are_omars_where_its_numbers_hold() -> None:
    reference = make("mujoco/halfcheetah-2x3").reference
    assert reference is not None
    assert (reference.random, reference.expert, reference.published) == (-284.0, 3568.8, True)
    for task, options in (
        ("halfcheetah-2x3", {"engine": "current"}),
        ("halfcheetah-2x3", {"length": 500}),
        ("halfcheetah-3x2", {}),
    ):
        assert make(f"mujoco/{task}", **options).reference is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"observations": "globl"},
            "observations of 'mujoco/halfcheetah-2x3' must be one of local, full-standardised, full, ",
        ),
        ({"observations": "full-standardized"}, "not 'full-standardized'; did you mean 'full-standardised'?"),
        ({"distance": 4}, "must be from 0 to 3, where every agent sees all joints, not 4"),
        ({"distance": -1}, "must be from 0 to 3"),
        ({"distance": 1, "observations": "full"}, "is for local observations; full ones show everything"),
        ({"engine": "2.1"}, "engine of 'mujoco/halfcheetah-2x3' must be one of 2.0, current, not '2.1'"),
        ({"routing": "by-name"}, "routing of 'mujoco/halfcheetah-2x3' must be one of slices, names, not 'by-name'"),
        ({"length": 0}, "episode_length of task 'mujoco/halfcheetah-2x3' must be from 1"),
        ({"partition": "2x3"}, "no option 'partition'"),
        ({"distance": 0.5}, "distance of 'mujoco/halfcheetah-2x3' must be a whole number, not 0.5"),
    ],
)
def test_options_that_do_not_exist_are_refused_in_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as refused:
        make("mujoco/halfcheetah-2x3", **options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_partitions_and_actions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="no task 'mujoco/hopper-3x2'; did you mean 'mujoco/hopper-3x1'"):
        make("mujoco/hopper-3x2")
    env, state = _replaced(make("mujoco/ant-2x4"))
    with pytest.raises(ValueError, match=r"'mujoco/ant-2x4' takes actions of shape \(2, 4\), .* not \(8,\)"):
        env.step(state, jnp.zeros(8))


def test_the_engine_and_the_last_acceleration_reach_the_physics(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def simulate(model: models.Model, engine: str, q: Any, v: Any, control: Any, guess: Any) -> Any:
        asked.append((model.name, engine, guess))
        return q, v, guess + 1.0, jnp.float32(0.0)

    monkeypatch.setattr(physics, "simulate", simulate)
    for options, engine in (({}, "2.0"), ({"engine": "current"}, "current"), ({"engine": 2.0}, "2.0")):
        env = make("mujoco/hopper-3x1", **options)
        state, _ = env.reset(jax.random.key(0))
        env.step(env.step(state, _idle(env))[0], _idle(env))
        (name, first, zero), (_, second, one) = asked[-2:]
        assert (name, first, second) == ("hopper", engine, engine)
        assert (np.asarray(zero) == 0.0).all()
        assert (np.asarray(one) == 1.0).all()


def test_masses_are_those_of_each_engine() -> None:
    """As published from mujoco-py, and as MuJoCo computes them since 2.1.1."""
    old = [6.360313, 1.535248, 1.580940, 1.069191, 1.425587, 1.178851, 0.849869]
    new = [6.250209, 1.543515, 1.587448, 1.095397, 1.438075, 1.200837, 0.884519]
    np.testing.assert_allclose(models.half_cheetah().inertials("2.0")[0], old, atol=1e-6)
    np.testing.assert_allclose(models.half_cheetah().inertials("current")[0], new, atol=1e-6)
    np.testing.assert_allclose(models.hopper().inertials("2.0")[0], [3.534292, 3.926991, 2.714336, 5.089380], atol=1e-6)
    np.testing.assert_allclose(
        models.hopper().inertials("current")[0], [3.665191, 4.057891, 2.781357, 5.315575], atol=1e-6
    )
    for engine, stump, foot in (("2.0", 0.0364769, 0.0649114), ("current", 0.0391578, 0.0675922)):
        masses = models.ant().inertials(engine)[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(masses[[0, 1, 2, 3]], [0.32725, stump, stump, foot], atol=1e-5)


# The first and last capsules of robots in some pose, as C MuJoCo 3.17 has them.
POSES = {
    "half_cheetah": (
        [0.16, -0.28, -0.55, -0.58, 0.38, 0.5, 0.13, 0.28, 0.05],
        {
            "bfoot": [[0.018435, 0.0, -0.264735], [-0.074978, 0.0, -0.101585]],
            "ffoot": [[0.805805, 0.0, 0.125358], [0.71669, 0.0, 0.233333]],
        },
    ),
    "hopper": (
        [0.52, 1.63, -0.6, 0.43, -0.56, 0.28],
        {
            "torso": [[0.632928, 0.0, 1.464933], [0.407072, 0.0, 1.795067]],
            "foot": [[1.435395, 0.0, 0.964706], [1.150037, 0.0, 0.698867]],
        },
    ),
    "walker2d": (
        [-0.39, 1.69, 0.05, -0.24, -0.09, -0.57, -0.45, 0.2, 0.18],
        {
            "foot": [[-0.597798, 0.0, 0.432025], [-0.714135, 0.0, 0.594708]],
            "foot_left": [[-0.564936, 0.0, 0.593727], [-0.763497, 0.0, 0.61767]],
        },
    ),
    "ant": (
        [0.14, -0.14, 1.35, 0.8, 0.4, -0.4, 0.2, -0.13, -0.44, 0.27, 0.03, -0.23, -0.02, 0.47, 0.52],
        {
            "foot_1": [[0.084382, 0.077832, 2.429214], [0.156217, 0.083431, 1.868136]],
            "foot_4": [[1.11788, -0.179147, 1.786075], [0.605486, -0.312642, 1.586999]],
        },
    ),
}


@pytest.mark.parametrize("robot", POSES)
def test_pictures_place_capsules_as_mujoco_does(robot: str) -> None:
    q, expected = POSES[robot]
    placed = {each.shape.name: each.ends for each in drawing.capsules(getattr(models, robot)(), np.array(q))}
    for name, ends in expected.items():
        found = placed[name]
        both = [np.abs(found - ends).max(), np.abs(found[::-1] - ends).max()]  # which end is first does not matter
        assert min(both) < 2e-6, name


def test_pictures_show_drivers_ground_and_contact() -> None:
    env = make("mujoco/halfcheetah-2x3")
    state, _ = env.reset(jax.random.key(0))
    q = jnp.zeros(9).at[0].set(7.3)

    def colour(picture: np.ndarray, x: float, z: float) -> tuple[int, ...]:
        """At a point beside the root, above the ground."""
        scale = rendering.SIZE / (2 * drawing.HALF_SIDE)
        return tuple(
            picture[
                int((drawing.HALF_SIDE - z - drawing.GROUND) * scale), int((x + drawing.HALF_SIDE) * scale)
            ].tolist()
        )

    picture = env.render(state._replace(q=q))
    assert colour(picture, 0.0, 0.7) == ImageColor.getrgb(rendering.GREY)  # the back
    assert colour(picture, -0.4, 0.57) == ImageColor.getrgb(rendering.BLUE)  # the middle of the back thigh
    assert colour(picture, 0.43, 0.58) == ImageColor.getrgb(rendering.RED)  # the middle of the front thigh
    assert colour(picture, 0.9, 0.0) == ImageColor.getrgb(rendering.INK)
    assert colour(picture, 0.3, -0.02) != ImageColor.getrgb(rendering.INK)  # half metres are marked at 7.5 m
    assert colour(picture, 0.2, -0.02) == ImageColor.getrgb(rendering.INK)
    pressed = env.render(state._replace(q=q.at[1].set(-0.1)))
    foot = drawing.capsules(models.half_cheetah(), np.asarray(q))[-1].ends
    lowest = foot[foot[:, 2].argmin(), 0] - 7.3
    lifted = env.render(state._replace(q=q.at[1].set(0.1)))
    beside = lowest + 0.055, -0.01  # within the mark, which is thicker than the ground
    assert colour(pressed, *beside) == ImageColor.getrgb(rendering.INK)
    assert colour(lifted, *beside) == (255, 255, 255)
    assert env.render(state._replace(q=q.at[4].set(jnp.nan))).shape == picture.shape


@pytest.mark.slow
@pytest.mark.parametrize("task", ["hopper-3x1", "walker2d-2x3", "ant-2x4"])
def test_real_robots_keep_to_the_interface(task: str) -> None:
    """Random actions: states are finite, quaternions have norm 1, and robots that fall have ended."""
    env = make(f"mujoco/{task}", length=50)

    def play(key: chex.PRNGKey) -> Any:
        def step(state: State, key: chex.PRNGKey) -> Any:
            shape = env.task_spec.n_agents, env.task_spec.action_dim
            state, timestep = env.step(state, jax.random.uniform(key, shape, minval=-1.0, maxval=1.0))
            return state, (state, timestep)

        return jax.lax.scan(step, env.reset(key)[0], jax.random.split(key, 50))[1]

    states, timesteps = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), 16))
    assert np.isfinite(states.q).all()
    np.testing.assert_allclose(np.asarray(timesteps.extras["metrics"]["distance"]).sum(axis=1), 0.0, atol=3.0)
    if task == "ant-2x4":
        np.testing.assert_allclose(np.linalg.norm(states.q[..., 3:7], axis=-1), 1.0, rtol=1e-5)
    else:
        assert (np.asarray(timesteps.discount) == 0.0).any()
