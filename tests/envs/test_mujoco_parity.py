"""Our physics against C MuJoCo's, on states of its episodes (see `mujoco_judge`)."""

import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import mujoco_judge as judge
import mujoco_parity as parity
import numpy as np
import pytest
from mujoco_judge import BODIES, ENGINES, Array, Engine
from mujoco_parity import MODELS, float64
from omarl_envs import make
from omarl_envs.mujoco import physics, rigid
from omarl_envs.mujoco.tasks import State

EACH = [(body, engine) for body in BODIES for engine in ENGINES]

# Masses in kg and inertias about the y-axis in kg m², by body: of MuJoCo 2.0, and of current versions. MuJoCo 2.0's are
# those that users of mujoco-py saw. Left legs of Walker2d are like right ones, and Hopper's but for the foot.
TABLE: dict[str, dict[str, tuple[float, float, float | None, float | None]]] = {
    "halfcheetah": {
        "torso": (6.360313, 6.250209, 0.894454, 0.897118),
        "bthigh": (1.535248, 1.543515, 0.0152558, 0.0168443),
        "bshin": (1.580940, 1.587448, 0.0166083, 0.0182674),
        "bfoot": (1.069191, 1.095397, 0.0054443, 0.0063524),
        "fthigh": (1.425587, 1.438075, 0.0123185, 0.0137396),
        "fshin": (1.178851, 1.200837, 0.0071627, 0.0082221),
        "ffoot": (0.849869, 0.884519, 0.0028998, 0.0035291),
    },
    "hopper": {
        "torso": (3.534292, 3.665191, 0.061850, 0.069246),
        "thigh": (3.926991, 4.057891, 0.084267, 0.093299),
        "leg": (2.714336, 2.781357, 0.067044, 0.072303),
        "foot": (5.089380, 5.315575, 0.090464, 0.103523),
    },
    "ant": {
        "torso": (0.32725, 0.32725, None, None),
        **{f"{part}_{leg}": (0.0364769, 0.0391578, None, None) for part in ("stump", "leg") for leg in range(1, 5)},
        **{f"foot_{leg}": (0.0649114, 0.0675922, None, None) for leg in range(1, 5)},
    },
}

CIRCLES = {
    "qpos": [0.2499, 0.1659, -7.1411, -2.4362, -2.5631, -0.9327, -2.6342, -2.7022, 0.0348],
    "qvel": [-0.5169, -0.2301, -3.1481, -2.8653, -2.7939, 3.6356, -0.1920, 1.1432, -11.6648],
    "control": [-0.3595, -0.4335, 0.1831, -0.8073, 0.9584, 0.0151],
}


@pytest.mark.parametrize("body", TABLE)
def test_masses_and_inertias_are_those_of_the_table(body: str) -> None:
    for column, engine in enumerate(ENGINES):
        masses, _, inertias = MODELS[body].inertials(engine)
        for part, mass, inertia in zip(MODELS[body].bodies, masses, inertias, strict=True):
            expected = TABLE[body][part.name]
            assert mass == pytest.approx(expected[column], rel=3e-6)
            if expected[2 + column] is not None:
                assert inertia[1, 1] == pytest.approx(expected[2 + column], rel=2e-5)


def test_the_torso_of_the_cheetah_has_its_centre_where_the_table_says() -> None:
    for engine, x, z in (("2.0", 0.149138, 0.024856), ("current", 0.152390, 0.025398)):
        centre = MODELS["halfcheetah"].inertials(engine)[1][0]
        assert centre == pytest.approx([x, 0.0, z], abs=1e-6)


@pytest.mark.parametrize(("body", "engine"), EACH)
def test_inertias_equal_the_judges(body: str, engine: Engine) -> None:
    theirs = judge.judge(body, engine)
    for k, (mass, centre, inertia) in enumerate(zip(*MODELS[body].inertials(engine), strict=True), start=1):
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, theirs.body_iquat[k])
        rotation = rotation.reshape(3, 3)
        assert mass == pytest.approx(theirs.body_mass[k], rel=1e-12)
        np.testing.assert_allclose(centre, theirs.body_ipos[k], atol=1e-12)
        expected = rotation @ np.diag(theirs.body_inertia[k]) @ rotation.T
        np.testing.assert_allclose(inertia, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("body", BODIES)
def test_the_body_is_that_of_the_file(body: str) -> None:
    ours, theirs = MODELS[body], judge.judge(body, "current")
    joints = [theirs.joint(k) for k in range(theirs.njnt)]
    assert [joint.name for joint in ours.joints] == [joint.name for joint in joints]
    for joint, other in zip(ours.joints, joints, strict=True):
        assert bool(other.limited[0]) == (joint.limits is not None)
        np.testing.assert_allclose(joint.limits or other.range, other.range, atol=1e-12)
        constants = other.stiffness[0], other.damping[0], other.armature[0]
        assert (joint.stiffness, joint.damping, joint.armature) == constants
        if joint.kind != "free":
            np.testing.assert_allclose(joint.axis, other.axis, atol=1e-12)
            assert joint.reference == theirs.qpos0[other.qposadr[0]]
        if joint.limits is not None:
            np.testing.assert_allclose(joint.anchor, other.pos, atol=1e-12)
    for k, part in enumerate(ours.bodies, start=1):
        np.testing.assert_allclose(part.position, theirs.body_pos[k], atol=1e-12)
    geoms = np.flatnonzero(theirs.geom_bodyid)
    for geom, (_, shape, ends) in zip(geoms, parity.shape_ends(body), strict=True):
        assert (shape.radius, shape.friction) == (theirs.geom_size[geom, 0], theirs.geom_friction[geom, 0])
        np.testing.assert_allclose(sorted([shape.start, shape.end]), sorted(ends.tolist()), atol=1e-12)
    motors = [(theirs.joint(theirs.actuator_trnid[k, 0]).name, theirs.actuator_gear[k, 0]) for k in range(theirs.nu)]
    assert list(ours.motors) == motors
    assert ours.timestep == theirs.opt.timestep
    assert {"euler": 0, "rk4": 1}[ours.integrator] == theirs.opt.integrator
    assert ours.frame_skip == BODIES[body].frame_skip
    assert ours.floor_friction == theirs.geom_friction[0, 0]


@pytest.mark.parametrize(("body", "engine"), EACH)
def test_inverse_inertias_at_rest_equal_the_judges(body: str, engine: Engine) -> None:
    theirs, constants = judge.judge(body, engine), rigid.constants(MODELS[body], engine)
    parts = rigid.parts(MODELS[body])
    ours = dict(zip((part.name for part, _ in parts.root), constants.root, strict=True))
    for carried, values in zip(parts.hinged, constants.limbs, strict=True):
        ours |= dict(zip((part.name for part in carried), values, strict=True))
    weights = [ours[part.name] for part in MODELS[body].bodies]
    np.testing.assert_allclose(weights, theirs.body_invweight0[1:, 0], rtol=1e-12)
    np.testing.assert_allclose(constants.hinges.T.ravel(), theirs.dof_invweight0[-theirs.nu :], rtol=1e-12)


@pytest.mark.parametrize(("body", "engine"), EACH)
def test_committed_states_are_the_judges(body: str, engine: Engine) -> None:
    states = judge.load(body, engine)
    for k in range(0, len(states["qpos"]), 5):
        found = judge.arrays(body, engine, *(states[key][k] for key in ("qpos", "qvel", "control")))
        for key, value in found.items():
            np.testing.assert_allclose(states[key][k], value, rtol=1e-9, atol=1e-9, err_msg=f"{key} of state {k}")


def test_states_have_contacts_limits_flight_and_collisions() -> None:
    for body, engine in EACH:
        states = judge.load(body, engine)
        touch, limit = (~np.isnan(states[f"{x}_distance"]) for x in ("floor", "limit"))
        touch = touch.reshape(len(touch), -1)
        assert 0.1 < (~touch).all(axis=1).mean() < 0.7  # flight
        assert limit.any(axis=0).sum() >= 3
        assert touch.sum(axis=1).max() >= 2
        assert (np.abs(states["control"]) > 1.0).any()
        if body == "hopper":
            assert (~np.isnan(states["pair_distance"])).sum(axis=0).min() >= 2


@pytest.mark.parametrize("body", BODIES)
def test_pieces_and_acceleration_equal_the_judges(body: str) -> None:
    states = judge.load(body, "current")
    found = {key: parity.errors(x, states[key]).max() for key, x in parity.pieces(body, "current", states).items()}
    assert {key: x for key, x in found.items() if x > 1e-9} == {}


@pytest.mark.parametrize("body", BODIES)
def test_a_control_step_in_float64_is_exact(body: str) -> None:
    states = judge.load(body, "2.0")
    with float64():
        ours = parity.stepped(body, "2.0", states, parity.EXACT)
    assert parity.step_errors(ours, states).max() < 1e-8
    way = states["next_qpos"][:, 0] - states["qpos"][:, 0]
    np.testing.assert_allclose(ours["way"], way, atol=1e-8)


def test_the_solver_does_not_go_round_in_circles() -> None:
    """From a state of Walker2d at which full steps of Newton's method visit three accelerations in turn."""
    states = {key: np.array([value]) for key, value in CIRCLES.items()} | {"guess": np.zeros((1, 9))}
    model = judge.judge("walker2d", "2.0")
    q, v = judge.advance(model, mujoco.MjData(model), *CIRCLES.values(), BODIES["walker2d"].frame_skip)
    with float64():
        ours = parity.stepped("walker2d", "2.0", states, parity.EXACT)
    assert parity.step_errors(ours, {"next_qpos": q[None], "next_qvel": v[None]}).max() < 1e-8


@pytest.mark.parametrize("body", BODIES)
def test_a_control_step_in_float32_is_near(body: str) -> None:
    states = judge.load(body, "2.0")
    found = parity.step_errors(parity.stepped(body, "2.0", states), states)
    row = parity.row(body, "2.0", "step in float32", states, found)
    assert row.median <= 1e-5, row
    assert row.most <= 1e-4, row


def _directional(body: str) -> tuple[Array, Array]:
    """Derivatives of the next velocities by a random direction, and central differences: (B, V) each."""
    states, rng = judge.load(body, "2.0"), np.random.default_rng(0)
    with float64():
        at = [jnp.asarray(states[key].T) for key in ("qpos", "qvel", "control")]
        along = [jnp.asarray(rng.standard_normal(x.shape)) for x in at]
        guess = jnp.asarray(states["guess"].T)

        def after(*x: jax.Array) -> jax.Array:
            return physics.control_steps(MODELS[body], "2.0", *x, guess, 8)[1]

        both = jax.jit(lambda *x: jax.jvp(after, x, tuple(along)))
        (up, _), (down, _) = (both(*(x + h * d for x, d in zip(at, along, strict=True))) for h in (1e-6, -1e-6))
        return np.asarray(both(*at)[1]).T, np.asarray((up - down) / 2e-6).T


def _gradients_are_right(body: str) -> None:
    derivative, difference = _directional(body)
    assert np.isfinite(derivative).all()
    # At a few states a constraint begins or ends within the difference.
    assert (parity.errors(derivative, difference) < 1e-4).mean() > 0.9


def test_gradients_of_a_control_step_are_finite_and_right() -> None:
    _gradients_are_right("halfcheetah")


@pytest.mark.slow
@pytest.mark.parametrize("body", ["hopper", "walker2d", "ant"])
def test_gradients_of_other_bodies_are_finite_and_right(body: str) -> None:
    _gradients_are_right(body)


@pytest.mark.slow
@pytest.mark.parametrize(("body", "engine"), EACH)
def test_a_thousand_states_are_as_exact(body: str, engine: Engine) -> None:
    states = judge.states(body, engine, 1000, seed=1)
    for row in parity.measure(body, engine, states):
        if row.kind == "piece":
            assert row.largest < 1e-9, row
        elif row.kind == "step":
            assert row.largest < 1e-8, row
        elif row.kind == "ten steps":
            assert row.largest < 1e-4, row
        elif row.kind == "step in float32":
            assert row.median <= 1e-5 and row.most <= 1e-4, row


@pytest.mark.slow
@pytest.mark.parametrize("body", ["hopper", "walker2d", "ant"])
def test_float32_ends_episodes_where_the_judge_does(body: str) -> None:
    states = judge.states(body, "2.0", 1000, seed=1)
    found, healthy = parity.stepped(body, "2.0", states), BODIES[body].healthy
    ours = healthy(found["next_qpos"], found["next_qvel"])
    theirs = healthy(states["next_qpos"], states["next_qvel"])
    moved = [healthy(states["next_qpos"] + d, states["next_qvel"]) for d in (-1e-5, 1e-5)]
    clear = (moved[0] == theirs) & (moved[1] == theirs)
    assert np.array_equal(ours[clear], theirs[clear])
    assert theirs.any() and not theirs.all()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["random", "linear"])
@pytest.mark.parametrize(("body", "engine"), EACH)
def test_returns_have_the_judges_mean(body: str, engine: Engine, policy: str) -> None:
    ours = parity.returns(body, engine, policy, 200, seed=2)
    theirs = judge.played(body, engine, policy, 200, seed=3)
    assert parity.standard_errors(ours, theirs) < 4.0, (ours.mean(), theirs.mean())


@pytest.mark.slow
def test_a_random_cheetah_scores_as_published() -> None:
    # OMAR's reference score of a random policy on HalfCheetah is -282.9, its standard deviation over episodes 77.5.
    found = parity.returns("halfcheetah", "2.0", "random", 1000, seed=4)
    assert found.mean() == pytest.approx(-283.0, abs=10.0)
    assert found.std() == pytest.approx(77.5, rel=0.1)


GYMNASIUM = {
    "halfcheetah_v4": "HalfCheetahEnv",
    "halfcheetah_v5": "HalfCheetahEnv",
    "hopper_v4": "HopperEnv",
    "walker2d_v4": "Walker2dEnv",
    "ant_v4": "AntEnv",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GYMNASIUM)
def test_tasks_do_what_gymnasium_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    body = name.split("_")[0]
    module = importlib.import_module(f"gymnasium.envs.mujoco.{name.replace('halfcheetah', 'half_cheetah')}")
    gym, rng = getattr(module, GYMNASIUM[name])(), np.random.default_rng(0)
    gym.model.opt.tolerance, gym.model.opt.iterations = 0.0, 100
    env = make(parity.TASKS[body], engine="current", observations="full")
    shape = env.task_spec.n_agents, env.task_spec.action_dim
    steps: list[dict[str, Any]] = []
    for seed in range(20):
        gym.reset(seed=seed)
        for _ in range(50):
            step = {"q": gym.data.qpos.copy(), "v": gym.data.qvel.copy(), "guess": gym.data.qacc.copy()}
            step["action"] = rng.uniform(-1.0, 1.0, gym.model.nu).astype(np.float32)
            step["seen"], step["reward"], step["ended"], _, _ = gym.step(step["action"])
            steps.append(step)
            if step["ended"]:
                break
    theirs = {key: np.array([step[key] for step in steps]) for key in steps[0]}
    if body == "ant":
        norms = np.linalg.norm(theirs["q"][:, 3:7], axis=1)
        theirs["q"][:, 3:7] /= norms[:, None]  # Gymnasium starts with others, MuJoCo takes the unit ones

    def step(q: Any, v: Any, guess: Any, action: Any) -> Any:
        state = State(jax.random.key(0), jnp.zeros((), jnp.int32), q, v, guess)
        state, timestep = env.step(state, action.reshape(shape))
        return timestep.observation.state, timestep.reward[0], timestep.discount[0] == 0.0

    arguments = (jnp.asarray(theirs[key], jnp.float32) for key in ("q", "v", "guess", "action"))
    seen, reward, ended = (np.asarray(x) for x in jax.jit(jax.vmap(step))(*arguments))
    found = parity.errors(seen[:, : theirs["seen"].shape[1]], theirs["seen"])
    assert np.median(found) <= 1e-5 and np.quantile(found, 0.99) <= 1e-4
    if body == "ant":
        # Gymnasium's x is that of the last stage of the last Runge-Kutta step.
        assert np.quantile(parity.errors(reward, theirs["reward"]), 0.9) < 0.1
    else:
        found = parity.errors(reward, theirs["reward"])
        assert np.median(found) <= 1e-5 and np.quantile(found, 0.99) <= 1e-3
    assert np.array_equal(ended, theirs["ended"])
    assert theirs["ended"].any() == (body != "halfcheetah")
