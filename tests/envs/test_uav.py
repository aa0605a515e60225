"""The UAV task against the numbers of the published code."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs import make, uav
from omarl_envs.uav import State, UavIot

NOBODY = len(uav.DEVICES)
HOVER = 0


def joint(serve: list[int], move: list[int]) -> jax.Array:
    return jnp.array([5 * s + m for s, m in zip(serve, move, strict=True)], jnp.int32)


def state_at(env: UavIot, *cells: tuple[int, int], ages: Any = 1) -> State:
    state, _ = env.reset(jax.random.key(0))
    return state._replace(cells=jnp.array(cells, jnp.int32), ages=jnp.full_like(state.ages, ages))


def sums(env: UavIot, act: Any, episodes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Each metric, and the training reward, summed over episodes of 100 steps: (episodes,)."""

    def step(state: State, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        state, timestep = jax.vmap(env.step)(state, act(state, key))
        return state, timestep.extras["metrics"] | {"reward": timestep.reward[:, 0]}

    def play(key: jax.Array) -> dict[str, jax.Array]:
        reset_key, key = jax.random.split(key)
        state, _ = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))
        return jax.lax.scan(step, state, jax.random.split(key, uav.EPISODE_LENGTH))[1]

    return {name: np.asarray(values).sum(axis=0) for name, values in jax.jit(play)(jax.random.key(seed)).items()}


def test_hovering_and_serving_nobody_costs_5149() -> None:
    """Exactly: the ages are 2, 3, …, 100, 100."""
    idle = sums(UavIot(), lambda state, key: jnp.tile(joint([NOBODY] * 2, [HOVER] * 2), (10, 1)), episodes=10)
    np.testing.assert_array_equal(idle["return"], -5149.0)
    np.testing.assert_array_equal(idle["reward"], -5149.0)
    assert not idle["risk"].any()
    assert not idle["power"].any()


def test_uniform_actions() -> None:
    """Returns of -1482.8 ± 297, rewards of -2411.9 ± 592 and 30.7 violations an episode, as rewritten in NumPy."""
    random = sums(UavIot(), lambda state, key: jax.random.randint(key, (20_000, 2), 0, 55), episodes=20_000)
    assert random["return"].mean() == pytest.approx(-1482.8, abs=5)
    assert random["return"].std() == pytest.approx(297, abs=10)
    assert random["reward"].mean() == pytest.approx(-2411.9, abs=15)
    assert random["risk"].mean() == pytest.approx(30.7, abs=0.4)


def test_serving_the_two_oldest() -> None:
    def act(state: State, key: jax.Array) -> jax.Array:
        return 5 * jax.lax.top_k(state.ages, 2)[1].astype(jnp.int32)

    oldest = sums(UavIot(), act, episodes=20_000)
    assert oldest["return"].mean() == pytest.approx(-825.4, abs=3)
    assert oldest["reward"].mean() == pytest.approx(-1352.8, abs=6)
    assert not oldest["risk"].any()


@pytest.mark.parametrize(("cell", "cost"), [((9, 0), 0.155), ((0, 9), 25.265)])
def test_power_above_a_device_and_far_from_it(cell: tuple[int, int], cost: float) -> None:
    """With the published weight; the first UAV alone serves, the other device grows old."""
    env = UavIot(devices=[(9, 0), (5, 9)])
    _, timestep = env.step(state_at(env, cell, (0, 0)), joint([0, 2], [HOVER, HOVER]))
    metrics = timestep.extras["metrics"]
    assert 500 * metrics["power"] == pytest.approx(cost, rel=1e-4)
    assert metrics["age"] == pytest.approx(1.5)
    assert timestep.reward == pytest.approx([-cost - 1.5] * 2, rel=1e-4)
    assert metrics["return"] == pytest.approx(-cost / 2 - 1.5, rel=1e-4)


def test_both_pay_for_the_same_device_at_the_cell_they_move_to() -> None:
    env = UavIot(power_weight=1.0)
    state, timestep = env.step(state_at(env, (1, 1), (3, 3), ages=100), joint([0, 0], [1, 4]))
    np.testing.assert_array_equal(state.cells, [(3, 1), (3, 1)])
    assert timestep.extras["metrics"]["power"] == pytest.approx(2 * 0.155 / 500, rel=1e-3)
    np.testing.assert_array_equal(state.ages, [1] + [100] * 9)
    np.testing.assert_array_equal(timestep.observation.agents_view, [[3, 1, 3, 1, 1] + [100] * 9] * 2)


@pytest.mark.parametrize(("move", "cell"), [(0, (8, 1)), (1, (9, 1)), (2, (6, 1)), (3, (8, 3)), (4, (8, 0))])
def test_moves_of_two_cells_end_at_the_border(move: int, cell: tuple[int, int]) -> None:
    env = UavIot()
    state, _ = env.step(state_at(env, (8, 1), (0, 0)), joint([NOBODY] * 2, [move, HOVER]))
    np.testing.assert_array_equal(state.cells[0], cell)


def test_risk_is_punished_one_by_one() -> None:
    """Of 10,000 pairs in the region, each UAV is punished in a tenth, independently; one outside never is."""
    env = UavIot(risk_penalty=1000.0)
    state, actions = state_at(env, (3, 2), (6, 6)), joint([NOBODY] * 2, [HOVER] * 2)
    states = jax.vmap(lambda key: state._replace(key=key))(jax.random.split(jax.random.key(0), 10_000))
    _, timestep = jax.vmap(env.step, (0, None))(states, actions)
    punished = np.round((-timestep.reward[:, 0] - 2) / 1000)
    for number, share in enumerate((0.81, 0.18, 0.01)):
        assert (punished == number).mean() == pytest.approx(share, abs=0.015)
    np.testing.assert_array_equal(timestep.extras["metrics"]["risk"], 2)
    _, outside = jax.vmap(env.step, (0, None))(states._replace(cells=jnp.zeros_like(states.cells)), actions)
    np.testing.assert_array_equal(outside.reward, -2.0)
    np.testing.assert_array_equal(outside.extras["metrics"]["risk"], 0)


def test_punishments_of_an_episode_differ_from_step_to_step() -> None:
    env = UavIot()
    state, actions = state_at(env, (3, 2), (0, 0)), joint([NOBODY] * 2, [HOVER] * 2)
    rewards = []
    for _ in range(100):
        state, timestep = env.step(state, actions)
        rewards.append(-float(timestep.reward[0]) - float(timestep.extras["metrics"]["age"]))
    assert 1 <= np.sum(np.array(rewards) > 200) <= 30


def test_flights_start_anywhere_outside_the_region() -> None:
    env = UavIot()
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 5_000))
    visited, counts = np.unique(np.asarray(state.cells).reshape(-1, 2), axis=0, return_counts=True)
    expected = sorted(set(itertools.product(range(10), repeat=2)) - set(uav.RISK_REGION))
    np.testing.assert_array_equal(visited, expected)
    np.testing.assert_allclose(counts, 125, rtol=0.4)


def test_observations_of_unit_size() -> None:
    env = UavIot(observation_scale="unit")
    _, timestep = env.step(state_at(env, (9, 0), (3, 0), ages=49), joint([NOBODY] * 2, [HOVER] * 2))
    np.testing.assert_allclose(timestep.observation.state, [1, 0, 1 / 3, 0] + [0.5] * 10, rtol=1e-6)


def test_other_sizes() -> None:
    env = UavIot(n_uavs=3, devices=[(0, 0), (4, 4)], side=5, risk_region=[(2, 2)])
    assert (env.task_spec.n_agents, env.task_spec.obs_dim, env.task_spec.action_dim) == (3, 8, 15)
    _, timestep = env.step(state_at(env, (0, 0), (4, 4), (2, 2)), joint([0, 1, 2], [HOVER] * 3))
    np.testing.assert_array_equal(timestep.observation.state, [0, 0, 4, 4, 2, 2, 1, 1])


def test_the_physical_noise_is_a_tenth() -> None:
    power = []
    for noise in ("published", "physical", 1e-13):
        env = UavIot(noise=noise)
        _, timestep = env.step(state_at(env, (3, 1), (0, 0)), joint([0, NOBODY], [HOVER, HOVER]))
        power.append(float(timestep.extras["metrics"]["power"]))
    assert power == pytest.approx([power[0], power[0] / 10, power[0] / 10], rel=1e-5)


def test_random_missions_differ_and_are_kept() -> None:
    env = make("uav/iot-random")
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2_000))
    mission = jax.tree.map(np.asarray, state.mission)
    assert set(np.unique(mission.power_weight)) == set(range(100, 1001, 100))
    np.testing.assert_array_equal(mission.risky.sum(axis=(1, 2)), 20)
    np.testing.assert_array_equal(mission.risky.any(axis=2).sum(axis=1), 4)
    corners = np.unique([np.argwhere(risky)[0] for risky in mission.risky], axis=0)
    np.testing.assert_array_equal(corners, list(itertools.product(range(7), range(6))))
    assert all(len(np.unique(devices, axis=0)) == 10 for devices in mission.devices)
    rows = np.arange(2_000)[:, None]
    assert not mission.risky[rows, state.cells[..., 0], state.cells[..., 1]].any()
    after, _ = jax.vmap(env.step)(state, jnp.zeros((2_000, 2), jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, after.mission, state.mission)


def test_a_random_mission_is_what_the_fixed_one_with_its_numbers_is() -> None:
    env = make("uav/iot-random")
    state, _ = env.reset(jax.random.key(3))
    assert state.mission is not None
    fixed = UavIot(
        devices=np.asarray(state.mission.devices).tolist(),
        risk_region=np.argwhere(np.asarray(state.mission.risky)).tolist(),
        power_weight=float(state.mission.power_weight),
    )

    def both(states: tuple[State, State], actions: jax.Array) -> Any:
        (one, found), (other, expected) = env.step(states[0], actions), fixed.step(states[1], actions)
        return (one, other), (found, expected)

    actions = jax.random.randint(jax.random.key(0), (100, 2), 0, 55)
    (found, expected) = jax.lax.scan(both, (state, state._replace(mission=None)), actions)[1]
    np.testing.assert_allclose(found.reward, expected.reward, rtol=1e-5)
    assert found.extras["metrics"]["risk"].sum() > 0
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8), found.extras, expected.extras)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 4, "devices": [(0, 0)], "risk_region": list(itertools.product(range(4), repeat=2))}, "no cell free"),
        ({"devices": [(3, 10)]}, r"devices has a cell outside the grid of 10 x 10: \(3, 10\)"),
        ({"devices": [(1, 1), (1, 1)]}, "each in a cell of its own"),
        ({"devices": []}, "needs devices"),
        ({"devices": [(0.5, 1.0)]}, "two integers each"),
        ({"devices": [(3, 1), (2,)]}, "two integers each"),
        ({"devices": [3, 1]}, "two integers each"),
        ({"risk_penalty": float("inf")}, "must be finite"),
        ({"noise": [1]}, r"published, physical, not \[1\]"),
        ({"risk_region": [(-1, 0)]}, "risk_region has a cell outside"),
        ({"risk_probability": 1.5}, r"must lie in \[0, 1\]"),
        ({"risk_penalty": -1.0}, "risk_penalty must be finite and not negative"),
        ({"noise": "loud"}, "published, physical"),
        ({"noise": 0.0}, "noise must be positive"),
        ({"observation_scale": "log"}, "'raw' or 'unit'"),
        ({"n_uavs": 0}, "at least one UAV"),
        ({"random_missions": True, "side": 5, "devices": [(0, 0)], "risk_region": []}, "more than 5 cells"),
    ],
)
def test_what_fits_nowhere_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("uav/iot", **options)


def test_each_uav_has_its_own_power_and_risk() -> None:
    env = make("uav/iot")
    state, _ = env.reset(jax.random.key(0))
    state = state._replace(cells=jnp.array([[3, 1], [4, 4]]))  # above the first device, and in the region
    _, timestep = env.step(state, jnp.array([0, 5 * 10]))  # hover and serve it; hover and serve nobody
    metrics = {name: float(value) for name, value in timestep.extras["metrics"].items()}
    assert metrics["power_0"] == pytest.approx(0.155 / 500, rel=1e-5)  # 500 is the weight
    assert (metrics["power_1"], metrics["risk_0"], metrics["risk_1"]) == (0.0, 0.0, 1.0)
    assert (metrics["power"], metrics["risk"]) == (metrics["power_0"], metrics["risk_1"])
    assert metrics["training_return"] == float(timestep.reward[0])
    assert metrics["return"] == pytest.approx((metrics["training_return"] + metrics["age"]) / 2 - metrics["age"])


def test_bad_luck_is_as_frequent_as_it_should_be_and_independent() -> None:
    env = make("uav/iot", n_uavs=2, risk_probability=0.3)
    keys = jax.random.split(jax.random.key(1), 4_000)
    state, _ = jax.vmap(env.reset)(keys)
    state = state._replace(cells=jnp.full((4_000, 2, 2), 4))
    hover = jnp.full((4_000, 2), 50)

    def step(state, _):  # type: ignore[no-untyped-def]
        state, timestep = jax.vmap(env.step)(state, hover)
        return state, jnp.round((-timestep.reward[:, 0] - timestep.extras["metrics"]["age"]) / env.risk_penalty)

    struck = np.asarray(jax.lax.scan(step, state, None, 20)[1])  # (20, 4000) how many of both UAVs
    shares = [(struck == count).mean() for count in range(3)]
    np.testing.assert_allclose(shares, [0.49, 0.42, 0.09], atol=0.006)  # 2 sd of 80,000 draws are 0.0035
    assert abs(np.corrcoef(struck[:-1].ravel(), struck[1:].ravel())[0, 1]) < 0.012


def test_paths_are_drawn() -> None:
    env = make("uav/iot")
    states = [env.reset(jax.random.key(0))[0]]
    for t in range(5):
        states.append(env.step(states[-1], jnp.array([1 + t % 4, 2]))[0])
    picture = env.render_path(states)
    assert picture.shape == (480, 480, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_a_map_has_everything_in_its_place() -> None:
    env = make("uav/iot")
    state, _ = env.reset(jax.random.key(0))
    state = state._replace(cells=jnp.array([[0, 8], [2, 9]]))
    picture = env.render_path([state, state]).astype(int)

    def colour(cell: tuple[int, int], offset: float) -> np.ndarray:
        x, y = np.asarray(cell) - 4.5 + offset  # the middle of the grid is that of the picture
        column, row = (x + 5.8) / 11.6 * 480, (5.8 - y) / 11.6 * 480
        return picture[int(row), int(column)]

    for cell in itertools.product(range(10), repeat=2):
        red, green, blue = colour(cell, -0.42)  # beside what stands in the middle
        assert (red - green > 40) == bool(env.mission.risky[cell]), cell
        red, green, blue = colour(cell, 0.25)
        assert (green - blue > 40) == any((cell == device).all() for device in env.mission.devices), cell
    assert (colour((0, 8), -0.1) != 255).any()
    assert (colour((8, 0), -0.1) == 255).all()
