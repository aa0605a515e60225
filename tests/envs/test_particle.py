"""The particle tasks against closed forms, an independent float64 model, and published returns."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs import make
from omarl_envs.base import MultiAgentEnv
from omarl_envs.particle import physics, pursuit, spread
from omarl_envs.particle.physics import State
from omarl_envs.particle.prey import Prey

N_STATES = 64


def _state(position: Any, velocity: Any, landmarks: Any) -> State:
    arrays = (jnp.asarray(array, jnp.float32) for array in (position, velocity, landmarks))
    return State(jax.random.key(0), jnp.zeros((), jnp.int32), *arrays)


def test_an_agent_moves_with_its_new_velocity() -> None:
    state = _state([[0.0, 0.0], [5.0, 5.0]], np.zeros((2, 2)), np.zeros((2, 2)))
    state, _ = make("particle/spread", n_agents=2).step(state, jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(state.velocity, [[0.5, 0.0], [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(state.position, [[0.05, 0.0], [5.0, 5.0]], atol=1e-6)


def test_damping_bounds_the_speed() -> None:
    state = _state([[0.0, 0.0], [-50.0, 50.0]], np.zeros((2, 2)), np.zeros((2, 2)))
    env, actions = make("particle/spread", n_agents=2), jnp.array([[1.0, 0.0], [0.0, -0.5]])
    for _ in range(40):
        state, _ = env.step(state, actions)
    np.testing.assert_allclose(state.velocity, [[2.0, 0.0], [0.0, -1.0]], atol=1e-4)  # force · 0.1 / 0.25


@pytest.mark.parametrize("task", ["tag", "world"])
def test_predators_are_strong_and_the_prey_is_fast(task: str) -> None:
    env = make(f"particle/{task}", prey="learner")
    n_landmarks = {"tag": 2, "world": 5}[task]
    position = [[-9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [0.0, -9.0]]
    state = _state(position, np.zeros((4, 2)), np.full((n_landmarks, 2), 50.0))
    state, _ = env.step(state, jnp.array([[1.0, 0.0], [0.0, 0.5], [1.0, 1.0], [1.0, 0.0]]))
    half_speed = 0.5**0.5  # 9 · 0.1 · √2 is more than a predator's greatest speed
    # The prey's 16 · 0.1 = 1.6 is cut to 1.3.
    np.testing.assert_allclose(state.velocity, [[0.9, 0.0], [0.0, 0.45], [half_speed] * 2, [1.3, 0.0]], atol=1e-6)
    np.testing.assert_allclose(state.position - jnp.asarray(position), 0.1 * state.velocity, atol=1e-6)


def test_the_spread_reward_by_hand() -> None:
    # Agents 0 and 1 touch; the landmarks are 0.05 (capped), 0.5 and 4 away from the nearest agent.
    state = _state([[0.0, 0.0], [0.2, 0.0], [3.0, 0.0]], np.zeros((3, 2)), [[0.0, 0.05], [3.0, 0.5], [-4.0, 0.0]])
    rewards = spread._rewards(state.position, state.landmarks)
    np.testing.assert_allclose(rewards, [12.25 - 5.0, 12.25 - 5.0, 12.25], rtol=1e-5)


def test_two_agents_in_one_place_stay_finite() -> None:
    state = _state(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2)))
    state, timestep = make("particle/spread", n_agents=2).step(state, jnp.zeros((2, 2)))
    np.testing.assert_array_equal(state.position, np.zeros((2, 2)))
    np.testing.assert_array_equal(timestep.reward, [15.0, 15.0])  # two landmarks at the cap, one contact


@pytest.mark.parametrize(
    ("coordinate", "cost"),
    [(0.5, 0.0), (-0.89, 0.0), (0.95, 0.5), (-0.95, 0.5), (1.0, 1.0), (1.5, np.e), (-1.5, np.e), (3.0, 10.0)],
)
def test_the_border_costs_the_prey(coordinate: float, cost: float) -> None:
    np.testing.assert_allclose(pursuit._border(jnp.float32(coordinate)), cost, rtol=1e-5, atol=1e-6)


class Outcome(NamedTuple):
    """One step: position (E, 2), velocity (E, 2), one reward and one observation an agent."""

    position: np.ndarray
    velocity: np.ndarray
    rewards: list[float]
    views: list[np.ndarray]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.hypot(*(a - b)))


def _physics(
    position: np.ndarray,
    velocity: np.ndarray,
    force: np.ndarray,
    radii: list[float],
    max_speeds: list[float],
    obstacles: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    force = force.copy()
    bodies = [*zip(position, radii, strict=True), *((obstacle, 0.2) for obstacle in obstacles)]
    for i in range(len(position)):
        for j, (other, radius) in enumerate(bodies):
            if i != j:
                distance = _distance(position[i], other)
                penetration = 1e-3 * np.log1p(np.exp((radii[i] + radius - distance) / 1e-3))
                force[i] += 100.0 * (position[i] - other) / distance * penetration
    velocity = 0.75 * velocity + 0.1 * force
    for i, limit in enumerate(max_speeds):
        speed = np.hypot(*velocity[i])
        if speed > limit:
            velocity[i] *= limit / speed
    return position + 0.1 * velocity, velocity


def _spread_model(position: np.ndarray, velocity: np.ndarray, landmarks: np.ndarray, actions: np.ndarray) -> Outcome:
    n = len(position)
    position, velocity = _physics(position, velocity, 5.0 * actions, [0.15] * n, [np.inf] * n, np.zeros((0, 2)))
    covered = sum(min(1.0 / min(_distance(agent, landmark) for agent in position), 10.0) for landmark in landmarks)
    rewards, views = [], []
    for i in range(n):
        others = [position[j] for j in range(n) if j != i]
        rewards.append(covered - 5.0 * sum(_distance(position[i], other) < 0.3 for other in others))
        relative = [point - position[i] for point in (*landmarks, *others)]
        views.append(np.concatenate([velocity[i], position[i], *relative, np.zeros(2 * (n - 1))]))
    return Outcome(position, velocity, rewards, views)


def _tag_model(position: np.ndarray, velocity: np.ndarray, landmarks: np.ndarray, actions: np.ndarray) -> Outcome:
    return _pursuit_model(position, velocity, landmarks, actions, 0.05, 10.0, 1.0, n_obstacles=2)


def _world_model(position: np.ndarray, velocity: np.ndarray, landmarks: np.ndarray, actions: np.ndarray) -> Outcome:
    return _pursuit_model(position, velocity, landmarks, actions, 0.045, 5.0, 2.0, n_obstacles=1)


def _pursuit_model(
    position: np.ndarray,
    velocity: np.ndarray,
    landmarks: np.ndarray,
    actions: np.ndarray,
    prey_radius: float,
    contact_reward: float,
    border_weight: float,
    n_obstacles: int,
) -> Outcome:
    radii, speeds = [0.075, 0.075, 0.075, prey_radius], [1.0, 1.0, 1.0, 1.3]
    gains = np.array([3.0, 3.0, 3.0, 4.0])[:, None] ** 2
    position, velocity = _physics(position, velocity, gains * actions, radii, speeds, landmarks[:n_obstacles])
    prey, food = position[3], landmarks[1:3]
    distances = [_distance(predator, prey) for predator in position[:3]]
    contacts = sum(distance < 0.075 + prey_radius for distance in distances)
    chase = contact_reward * contacts - 0.1 * sum(distances)
    flight = 0.1 * sum(distances) - contact_reward * contacts
    for outside in np.abs(prey):
        if outside >= 1.0:
            flight -= border_weight * min(np.exp(2.0 * outside - 2.0), 10.0)
        elif outside >= 0.9:
            flight -= border_weight * 10.0 * (outside - 0.9)
    world = len(landmarks) == 5
    if world:
        flight += 2.0 * sum(_distance(prey, bite) < prey_radius + 0.03 for bite in food)
        flight += 0.05 * min(_distance(prey, bite) for bite in food)
    views = []
    for i in range(4):
        relative = [point - position[i] for point in (*landmarks, *(position[j] for j in range(4) if j != i))]
        in_forest = [1.0 if _distance(position[i], forest) < radii[i] + 0.3 else -1.0 for forest in landmarks[3:]]
        prey_velocity, padding = ([], np.zeros(2)) if i == 3 else (velocity[3], [])
        views.append(np.concatenate([velocity[i], position[i], *relative, prey_velocity, in_forest, padding]))
    return Outcome(position, velocity, [chase, chase, chase, flight], views)


def _near(rng: np.random.Generator, points: np.ndarray, low: float, high: float) -> np.ndarray:
    angle, radius = rng.uniform(0.0, 2.0 * np.pi, len(points)), rng.uniform(low, high, len(points))
    return points + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _spread_states(n_agents: int) -> tuple[np.ndarray, ...]:
    """Position, velocity, landmarks, actions (N_STATES, …); two agents are always about to touch."""
    rng = np.random.default_rng(n_agents)
    position, landmarks, actions = rng.uniform(-1.0, 1.0, (3, N_STATES, n_agents, 2))
    position[:, 1] = _near(rng, position[:, 0], 0.29, 0.31)
    landmarks[:, 0] = _near(rng, position[:, 0], 0.0, 0.3)
    return position, rng.normal(0.0, 0.5, position.shape), landmarks, actions


def _pursuit_states(n_landmarks: int) -> tuple[np.ndarray, ...]:
    """As above; someone always is near the prey, near an obstacle, near a forest's edge, and the prey near food."""
    rng = np.random.default_rng(n_landmarks)
    position, actions = rng.uniform(-1.4, 1.4, (N_STATES, 4, 2)), rng.uniform(-1.0, 1.0, (N_STATES, 4, 2))
    landmarks = rng.uniform(-0.9, 0.9, (N_STATES, n_landmarks, 2))
    position[:, 1] = _near(rng, landmarks[:, 0], 0.26, 0.29)
    if n_landmarks == 5:
        landmarks[:, 1] = _near(rng, position[:, 3], 0.0, 0.2)
        landmarks[:, 3] = _near(rng, position[:, 2], 0.33, 0.42)
    position[:, 0] = _near(rng, position[:, 3], 0.1, 0.15)
    return position, rng.uniform(-0.8, 0.8, position.shape), landmarks, actions


def _compare(
    kwargs: dict[str, Any],
    model: Callable[..., Outcome],
    states: tuple[np.ndarray, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Steps N_STATES states in both; returns rewards (N_STATES, N) and observations (N_STATES, N, O)."""
    env = make(**kwargs)
    position, velocity, landmarks, actions = (np.asarray(array, np.float32) for array in states)
    batch = jax.vmap(_state)(position, velocity, landmarks)
    after, timestep = jax.jit(jax.vmap(env.step))(batch, actions[:, : env.num_agents])
    doubles = (array.astype(np.float64) for array in (position, velocity, landmarks, actions))
    expected = [model(*arrays) for arrays in zip(*doubles, strict=True)]
    n = env.num_agents
    np.testing.assert_allclose(after.position, [outcome.position for outcome in expected], atol=1e-5)
    np.testing.assert_allclose(after.velocity, [outcome.velocity for outcome in expected], atol=1e-5)
    np.testing.assert_allclose(timestep.reward, [outcome.rewards[:n] for outcome in expected], rtol=1e-4, atol=1e-4)
    views = timestep.observation.agents_view
    np.testing.assert_allclose(views, [outcome.views[:n] for outcome in expected], atol=1e-5)
    return np.asarray(timestep.reward), np.asarray(views)


@pytest.mark.parametrize("n_agents", [3, 12])  # unrolled, and as arrays
def test_spread_steps_like_the_model(n_agents: int) -> None:
    rewards, _ = _compare({"name": "particle/spread", "n_agents": n_agents}, _spread_model, _spread_states(n_agents))
    collisions = (rewards.max(axis=1) - rewards.min(axis=1)) / 5.0
    assert collisions.max() > 0.5  # the states tested the individual part


def test_tag_steps_like_the_model() -> None:
    rewards, _ = _compare({"name": "particle/tag", "prey": "learner"}, _tag_model, _pursuit_states(2))
    assert {0, 1} <= set(np.ceil(rewards[:, 0] / 10.0))  # with and without contact


def test_world_steps_like_the_model() -> None:
    _, views = _compare({"name": "particle/world", "prey": "learner"}, _world_model, _pursuit_states(5))
    assert set(views[:, 2, 22]) == {-1.0, 1.0}  # inside and outside the forest
    to_food = np.linalg.norm(views[:, 3, 6:8], axis=-1)
    assert (to_food < 0.075).any()
    assert (np.abs(views[:, 3, 2:4]) > 1.0).any()


@pytest.mark.parametrize(("task", "model", "n_landmarks"), [("tag", _tag_model, 2), ("world", _world_model, 5)])
def test_a_frozen_prey_flees_from_what_it_sees(
    task: str, model: Callable[..., Outcome], n_landmarks: int, tmp_path: pathlib.Path
) -> None:
    weights = _random_prey(obs_dim=10 + 2 * n_landmarks + 2 * (task == "world"))
    np.savez(tmp_path / "prey.npz", **weights)  # type: ignore[arg-type]  # of another keyword of savez
    position, velocity, landmarks, actions = states = _pursuit_states(n_landmarks)
    seen = np.stack([_prey_view(*arrays) for arrays in zip(position, velocity, landmarks, strict=True)])
    actions[:, 3] = _network(weights, seen)
    _compare({"name": f"particle/{task}", "prey": tmp_path / "prey.npz"}, model, states)


def _prey_view(position: np.ndarray, velocity: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    prey, radius = position[3], 0.045
    in_forest = [1.0 if _distance(prey, forest) < radius + 0.3 else -1.0 for forest in landmarks[3:]]
    return np.concatenate([velocity[3], prey, *(landmarks - prey), *(position[:3] - prey), in_forest])


def test_unrolled_pairs_and_arrays_of_pairs_agree() -> None:
    position, velocity, landmarks, actions = 0.3 * jax.random.normal(jax.random.key(0), (4, 8, 2))
    state = _state(position, velocity, landmarks)
    few, many = spread._move(position, velocity, actions), spread._move_many(position, velocity, actions)
    np.testing.assert_allclose(few, many, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        spread._rewards(position, landmarks), spread._rewards_many(position, landmarks), rtol=1e-5
    )
    np.testing.assert_array_equal(spread._observe(state), spread._observe_many(state))


def _random_prey(obs_dim: int, hidden: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(obs_dim)
    shapes: dict[str, Any] = {
        "w1": (obs_dim, hidden),
        "b1": hidden,
        "w2": (hidden, hidden),
        "b2": hidden,
        "w3": (hidden, 2),
        "b3": 2,
    }
    shapes |= dict.fromkeys(("bn_scale", "bn_bias", "bn_mean"), obs_dim)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()} | {"bn_var": rng.uniform(0.5, 2.0, obs_dim)}


def _network(weights: dict[str, np.ndarray], obs: np.ndarray) -> np.ndarray:
    normed = (obs - weights["bn_mean"]) / np.sqrt(weights["bn_var"] + 1e-5) * weights["bn_scale"] + weights["bn_bias"]
    hidden = np.maximum(normed @ weights["w1"] + weights["b1"], 0.0)
    hidden = np.maximum(hidden @ weights["w2"] + weights["b2"], 0.0)
    return np.tanh(hidden @ weights["w3"] + weights["b3"])


def test_the_preys_network_by_hand() -> None:
    prey = Prey(
        bn_scale=np.array([2.0, 1.0]),
        bn_bias=np.array([0.0, 0.5]),
        bn_mean=np.array([1.0, 0.0]),
        bn_var=np.array([4.0, 1.0]) - 1e-5,
        w1=np.eye(2),
        b1=np.zeros(2),
        w2=np.array([[0.5, 1.0], [7.0, 7.0]]),
        b2=np.array([0.0, -3.0]),
        w3=np.array([[0.25, -0.5], [9.0, 9.0]]),
        b3=np.array([0.25, 0.0]),
    )
    # (3, -1) -> normalised (2, -0.5) -> (2, 0) -> (1, -1) -> (1, 0) -> (0.5, -0.5)
    np.testing.assert_allclose(prey.act(jnp.array([3.0, -1.0])), np.tanh([0.5, -0.5]), rtol=1e-5)


def _bad_prey(kind: str, path: pathlib.Path) -> None:
    weights = _random_prey(14)
    if kind == "missing":
        return
    if kind == "lacking an array":
        del weights["w2"]
    elif kind == "of another task":
        weights = _random_prey(22)
    elif kind == "with NaN":
        weights["b1"] = np.full(5, np.nan)
    elif kind == "with a negative variance":
        weights["bn_var"] = -weights["bn_var"]
    np.savez(path, **weights)  # type: ignore[arg-type]
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:500])
    elif kind in ("text", "empty"):
        path.write_text("no weights here" if kind == "text" else "")


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", "There is no prey file"),
        ("text", "is not a prey network"),
        ("empty", "is not a prey network"),
        ("cut off", "is not a prey network"),
        ("lacking an array", "is not a prey network"),
        ("of another task", "'bn_scale' has shape"),
        ("with NaN", "'b1' has impossible numbers"),
        ("with a negative variance", "'bn_var' has impossible numbers"),
    ],
)
def test_a_bad_prey_file_is_named_in_one_sentence(kind: str, complaint: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "prey.npz"
    _bad_prey(kind, path)
    with pytest.raises(ValueError, match=complaint) as caught:
        make("particle/tag", prey=path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("n_agents", [1, 65])
def test_spread_names_the_teams_it_takes(n_agents: int) -> None:
    with pytest.raises(ValueError, match=f"2 to 64 agents, not {n_agents}"):
        make("particle/spread", n_agents=n_agents)


# Mean return and its standard error of uniformly random actions, from 20,000 episodes of another implementation.
RANDOM_RETURNS = {
    2: (89.0, 0.3),
    3: (160.13, 0.43),
    5: (188.9, 0.5),
    6: (249.2, 0.5),
    8: (379.2, 0.7),
    10: (529.8, 0.8),
}


@pytest.mark.parametrize("n_agents", RANDOM_RETURNS)
def test_random_returns_are_the_published_ones(n_agents: int) -> None:
    returns = _random_returns(n_agents, 20_000)
    error = returns.std() / len(returns) ** 0.5
    expected, expected_error = RANDOM_RETURNS[n_agents]
    assert abs(returns.mean() - expected) < 3.0 * np.hypot(error, expected_error)
    assert error == pytest.approx(expected_error, rel=0.25)


@pytest.mark.parametrize(("task", "expected"), [("tag", -4.0), ("world", -7.0)])
def test_the_shipped_prey_flees_as_well_as_the_published_one_and_stays_inside(task: str, expected: float) -> None:
    env = make(f"particle/{task}")
    returns, inside = _random_play(env, 4_000)
    assert returns.mean() == pytest.approx(expected, abs=3.0)
    assert env.reference is not None
    error = returns.std() / len(returns) ** 0.5
    assert returns.mean() == pytest.approx(env.reference.random, abs=4.0 * float(error))
    assert inside.mean() > 0.95


def _random_returns(n_agents: int, n_episodes: int) -> np.ndarray:
    return _random_play(make("particle/spread", n_agents=n_agents), n_episodes)[0]


def _random_play(env: MultiAgentEnv, n_episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """(E,) returns of uniform actions, and in which share of the steps the last body had |x|, |y| < 1.5."""
    n_agents = env.task_spec.n_agents

    def step(states: State, actions: chex.Array) -> tuple[State, tuple[chex.Array, chex.Array]]:
        states, timesteps = jax.vmap(env.step)(states, actions)
        inside = jnp.all(jnp.abs(states.position[:, -1]) < 1.5, axis=-1)
        return states, (timesteps.extras["metrics"]["return"], inside.mean())

    # Programs without unused observations, and without random numbers in the loop, compile in half the time.
    keys = jax.random.split(jax.random.key(0), n_episodes)
    starts = jax.jit(jax.vmap(lambda key: env.reset(key)[0]))(keys)
    shape = (physics.EPISODE_LENGTH, n_episodes, n_agents, 2)
    actions = jax.random.uniform(jax.random.key(1), shape, minval=-1.0, maxval=1.0)
    _, (returns, inside) = jax.jit(lambda states, actions: jax.lax.scan(step, states, actions))(starts, actions)
    return np.asarray(returns.sum(axis=0)), np.asarray(inside)


@pytest.mark.parametrize(
    ("kwargs", "agents_box", "landmarks_box"),
    [
        ({"name": "particle/spread", "n_agents": 40}, 4.0, 4.0),
        ({"name": "particle/tag", "prey": "learner"}, 1.0, 0.9),
        ({"name": "particle/world", "prey": "learner"}, 1.0, 0.9),
    ],
)
def test_everything_starts_at_rest_and_uniformly(kwargs: dict, agents_box: float, landmarks_box: float) -> None:
    env = make(**kwargs)
    starts = jax.jit(jax.vmap(lambda key: env.reset(key)[0]))(jax.random.split(jax.random.key(0), 4000))
    assert not starts.velocity.any()
    for points, box in ((starts.position, agents_box), (starts.landmarks, landmarks_box)):
        assert 0.99 * box < jnp.abs(points).max() <= box
        np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=5.0 * box / (3 * 4000) ** 0.5)
        np.testing.assert_allclose(points.std(axis=0), box / 3**0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("kwargs", "n_agents", "obs_dim"),
    [
        ({"name": "particle/spread"}, 3, 18),
        ({"name": "particle/spread", "n_agents": 8}, 8, 48),
        ({"name": "particle/tag", "prey": "learner"}, 4, 16),
        ({"name": "particle/world", "prey": "learner"}, 4, 24),
    ],
)
def test_sizes_are_the_published_ones(kwargs: dict, n_agents: int, obs_dim: int) -> None:
    spec = make(**kwargs).task_spec
    assert (spec.n_agents, spec.obs_dim, spec.state_dim) == (n_agents, obs_dim, n_agents * obs_dim)
    assert (spec.action_dim, spec.episode_length) == (2, 25)


def test_only_the_published_team_has_reference_scores() -> None:
    reference = make("particle/spread").reference
    assert reference is not None
    np.testing.assert_allclose(reference.normalise(np.array([159.8, 516.8])), [0.0, 100.0])
    assert make("particle/spread", n_agents=4).reference is None


def test_reference_returns_are_those_of_the_prey(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "prey.npz"
    np.savez(path, **_random_prey(14))  # type: ignore[arg-type]
    unknown = pursuit.Pursuit(pursuit.TAG, prey=path)
    assert unknown.reference is None
    assert unknown.prey is not None
    released = pursuit.Pursuit(dataclasses.replace(pursuit.TAG, released_digest=unknown.prey.digest), prey=path)
    assert released.reference is not None
    np.testing.assert_allclose(released.reference.normalise(np.array([-4.1, 185.6])), [0.0, 100.0])
    assert released.reference.published
    shipped = make("particle/tag").reference
    assert shipped is pursuit.TAG.shipped
    assert shipped is not None
    assert not shipped.published
    assert make("particle/tag", prey="learner").reference is None


@pytest.mark.parametrize("number", [0, 1, 2.5])
def test_a_number_is_no_prey(number: float) -> None:
    """It would be an open file's; and closing it would close the program's output."""
    with pytest.raises(TypeError, match="prey must be a name or the path of a file, not"):
        make("particle/tag", prey=number)
