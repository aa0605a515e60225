"""maze2d against C MuJoCo, Gymnasium-Robotics, and the planner of its data written once more."""

import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from omarl_envs import make
from omarl_envs.maze2d import mazes, physics
from omarl_envs.maze2d.tasks import DIRECTIONS, Maze2d, State
from omarl_envs.maze2d.waypoints import Planner, Traveller
from omarl_envs.mujoco.models import Engine

from omarl_jax.datasets.catalogue import load_dataset

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"))

import mujoco_maze

LARGE = mazes.parse(mazes.TEXTS["large"])
MASS = 4.18879020

# Positions and velocities of PointMaze, a free ball from rest at (0, 0), after so many steps with twelve of each push.
# Gymnasium-Robotics 1.4.2, MuJoCo 3.17.0.
PUSHES = ((1.0, 0.0), (0.3, -1.0), (-0.7, 0.9), (-1.0, -0.2), (1.5, 1.0))
POINT_MAZE = {
    1: (0.0023816384035097887, 0.0, 0.23816384035097887, 0.0),
    12: (0.18415516360245676, 0.0, 2.8208251687792743, 0.0),
    24: (0.572706037732202, -0.18415516360245676, 3.5875021730848697, -2.8208251687792743),
    36: (0.8676911134845804, -0.3517198414092538, 1.5117273907104962, -0.20251197054974085),
    48: (0.862159312717797, -0.4124793743450336, -1.3517409647892695, -0.7609644956705378),
    60: (0.8865948613307304, -0.3182385948110826, 1.5072144533414802, 2.0813261511280854),
}


@functools.cache
def judge(engine: Engine, maze: str = "large") -> mujoco.MjModel:
    """D4RL's model of a maze, written from its constants."""
    model = mujoco.MjModel.from_xml_string(mujoco_maze.xml(mazes.parse(mazes.TEXTS[maze])))
    model.opt.iterations, model.opt.tolerance = 100, 0.0
    if engine == "2.0":  # the larger margin, and the mean over three axes
        model.geom_margin[:] = 0.001
        model.body_invweight0[1, 0] = 2.0 / (3.0 * model.body_mass[1])
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE)  # it forgets contacts in the sum of margins
    return model


def their_step(engine: Engine, position: Any, velocity: Any, action: Any) -> tuple[np.ndarray, int]:
    """Position and velocity (4,) after a step, and the number of walls that were touched."""
    data = mujoco.MjData(judge(engine))
    data.qpos[:], data.qvel[:], data.ctrl[:] = position, velocity, action
    mujoco.mj_step(judge(engine), data)
    return np.concatenate([data.qpos, data.qvel]), data.ncon - 1  # the floor is always touched


def states_near_walls(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, of which none is deep in a wall, velocities and actions, (number, 2) each."""
    rng = np.random.default_rng(0)
    positions = rng.uniform([0.3, 0.3], np.array(LARGE.walls.shape) - 1.3, (20 * number, 2))
    cells = np.floor(positions + 0.7).astype(int)
    gap = np.minimum(positions + 0.7 - cells, 1 - (positions + 0.7 - cells)).min(axis=1)
    inside = LARGE.walls[cells[:, 0], cells[:, 1]]
    positions = positions[(gap < 0.12) & (~inside | (gap < 0.06))][:number]
    velocities = rng.uniform(-5, 5, (number, 2)) * rng.choice([1.0, 0.1], (number, 1))
    return positions, velocities, rng.uniform(-1, 1, (number, 2))


@pytest.mark.parametrize("engine", ["2.0", "current"])
def test_contacts_are_those_of_mujoco(engine: Engine) -> None:
    states = states_near_walls(1_000)
    theirs, touched = zip(*(their_step(engine, *state) for state in zip(*states, strict=True)), strict=True)
    for walls, least in ((0, 100), (1, 300), (2, 50), (3, 10)):
        assert np.sum(np.array(touched) == walls) > least
    step = functools.partial(physics.step, physics.neighbours(LARGE.walls), engine)

    def errors(dtype: Any) -> np.ndarray:
        ours = jax.jit(jax.vmap(step))(*(jnp.asarray(x, dtype) for x in states))
        return (np.abs(np.concatenate(ours, axis=1) - theirs) / np.maximum(1, np.abs(theirs))).max(axis=1)

    with jax.enable_x64(True):
        assert errors(np.float64).max() < 1e-12
    single = errors(np.float32)
    assert np.median(single) < 2e-6
    assert np.quantile(single, 0.99) < 1e-4
    assert single[np.array(touched) == 0].max() < 1e-6


def test_free_flight_is_that_of_point_maze() -> None:
    text = "/".join(["#####", *["#OOO#"] * 3, "#####"])
    env = make("maze2d/umaze", maze=text)
    step = jax.jit(env.step)
    state = State(jax.random.key(0), jnp.int32(0), jnp.array([2.0, 2.0]), jnp.zeros(2))
    for t in range(60):
        state, timestep = step(state, jnp.array([PUSHES[t // 12]]))
        if t + 1 in POINT_MAZE:
            expected = np.add(POINT_MAZE[t + 1], (2.0, 2.0, 0.0, 0.0))
            np.testing.assert_allclose(timestep.observation.agents_view[0], expected, atol=2e-6)


def test_velocity_is_clipped_before_a_step_and_a_wall_stops_the_ball() -> None:
    env = make("maze2d/medium")
    step = jax.jit(env.step)
    state = State(jax.random.key(0), jnp.int32(0), jnp.array([5.0, 1.0]), jnp.array([7.0, -9.0]))
    after = step(state, jnp.zeros((1, 2)))[0]
    np.testing.assert_allclose(after.velocity, np.array([5.0, -5.0]) * (1 - 0.01 / (MASS + 0.01)), rtol=1e-6)
    state = state._replace(velocity=jnp.zeros(2))
    for _ in range(200):
        state = step(state, jnp.array([[1.0, 0.0]]))[0]
    # The middle of the ball comes to rest at about 6 + 0.2: the wall begins to push 2 mm before it is touched.
    assert abs(float(state.position[0]) - 6.2) < 0.002
    assert np.abs(state.velocity).max() < 1e-3


@pytest.mark.parametrize("task", ["umaze", "eval-large"])
def test_rewards_are_those_of_the_position_after_the_step(task: str) -> None:
    sparse, dense = (make(f"maze2d/{task}", reward=reward) for reward in ("sparse", "dense"))
    row, column = (1, 1) if task == "umaze" else (1, 9)
    assert sparse.maze.goal == (row, column)
    for shift, expected in ((0.499, 1.0), (0.501, 0.0)):
        state = State(jax.random.key(0), jnp.int32(0), jnp.array([row, column + shift]), jnp.zeros(2))
        for env, reward in ((sparse, expected), (dense, np.exp(-shift))):
            assert env.step(state, jnp.zeros((1, 2)))[1].reward == pytest.approx([reward], rel=1e-5)
    state = state._replace(position=jnp.array([row, column + 0.51]), velocity=jnp.array([0.0, -2.0]))
    assert sparse.step(state, jnp.zeros((1, 2)))[1].reward == 1.0


def test_references_are_d4rls_where_the_maze_is() -> None:
    assert make("maze2d/umaze").reference[:2] == (23.85, 161.86)
    assert make("maze2d/large", reward="dense").reference[:2] == (30.569041, 303.4857382709002)
    assert make("maze2d/eval-medium").reference[:2] == (13.07, 204.93)
    assert make("maze2d/umaze").reference.published
    assert not make("maze2d/umaze", discrete=True).reference.published
    for options in ({"length": 150}, {"goal": (3, 3)}, {"maze": mazes.TEXTS["eval-umaze"]}):
        assert make("maze2d/umaze", **options).reference is None
    for task, length in (("umaze", 300), ("eval-medium", 600), ("large", 800)):
        assert make(f"maze2d/{task}").task_spec.episode_length == length


def test_an_episode_starts_in_any_free_cell() -> None:
    env = make("maze2d/umaze")
    states = jax.vmap(lambda key: env.reset(key)[0])(jax.random.split(jax.random.key(0), 7_000))
    cells, counts = np.unique(np.round(states.position), axis=0, return_counts=True)
    assert sorted(map(tuple, cells.tolist())) == sorted(map(tuple, env.maze.free.tolist()))
    assert np.abs(counts - 1_000).max() < 5 * np.sqrt(1_000)
    apart = states.position - np.round(states.position)
    assert 0.099 < np.abs(apart).max() <= 0.1
    assert np.std(states.velocity) == pytest.approx(0.1, rel=0.03)


def test_discrete_actions_are_the_nine_directions() -> None:
    plain, discrete = make("maze2d/medium"), make("maze2d/medium", discrete=True)
    assert len({tuple(direction) for direction in DIRECTIONS.tolist()}) == 9
    state, timestep = discrete.reset(jax.random.key(0))
    assert timestep.observation.action_mask.shape == (1, 9)
    for k, direction in enumerate(DIRECTIONS):
        ours = discrete.step(state, jnp.array([k]))[0]
        np.testing.assert_array_equal(ours.velocity, plain.step(state, jnp.array([direction]))[0].velocity)
    rounded = [int(discrete._as_taken(jnp.array(action))[0]) for action in ((0.4, -0.6), (-0.9, 0.2))]
    assert DIRECTIONS[rounded].tolist() == [[0.0, -1.0], [-1.0, 0.0]]


def test_ways_are_shortest_and_take_the_first_of_equal_moves() -> None:
    width = LARGE.walls.shape[1]
    ways = mazes.ways(LARGE)
    for row, column in LARGE.free:
        target = row * width + column
        steps = np.full(LARGE.walls.shape, -1)  # breadth first
        steps[row, column], front = 0, [(row, column)]
        while front:
            i, j = front.pop(0)
            for a, b in ((i, j - 1), (i, j + 1), (i - 1, j), (i + 1, j)):
                if not LARGE.walls[a, b] and steps[a, b] < 0:
                    steps[a, b] = steps[i, j] + 1
                    front.append((a, b))
        for i, j in LARGE.free:
            nearest = [(steps[a, b], k) for k, (a, b) in enumerate(((i, j - 1), (i, j + 1), (i - 1, j), (i + 1, j)))]
            _, move = min((s, k) for s, k in nearest if s >= 0)
            a, b = ((i, j - 1), (i, j + 1), (i - 1, j), (i + 1, j))[move]
            expected = target if (i, j) == (row, column) else a * width + b
            assert ways[target, i * width + j] == expected


class TheirController:
    """D4RL's planner as its paper and code describe it, one ball at a time."""

    def __init__(self, maze: mazes.Maze, rng: np.random.Generator):
        self.ways, self.width, self.rng = mazes.ways(maze), maze.walls.shape[1], rng
        self.target = None

    def act(self, place: np.ndarray, velocity: np.ndarray, target: tuple[int, int]) -> tuple[np.ndarray, bool]:
        if target != self.target:
            self.target, self.previous = target, np.round(place)
            at, goal = int(self.previous @ [self.width, 1]), target[0] * self.width + target[1]
            self.points = []
            while not self.points or at != goal:
                at = self.ways[goal, at]
                shift = 0.0 if at == goal else 0.2 * self.rng.random(2)
                self.points.append(np.array(divmod(at, self.width)) - shift)
        calm = np.linalg.norm(self.previous - place) < 0.1
        solved = calm and np.linalg.norm(place - target) < 0.1
        goal = np.array(target) if solved else self.points[0]
        if calm and not solved and np.linalg.norm(place - goal) < 0.1:
            self.points.pop(0)
        self.previous = place
        return np.clip(10 * (goal - place) - velocity, -1, 1), solved


def their_stretches(steps: int) -> tuple[list[int], np.ndarray]:
    """Lengths of D4RL's stretches in `umaze`, and the mean over steps of the actions' size and of the reward."""
    maze, rng = mazes.parse(mazes.TEXTS["umaze"]), np.random.default_rng(0)
    controller = TheirController(maze, rng)
    model = judge("2.0", "umaze")
    data = mujoco.MjData(model)
    free = [tuple(cell) for cell in maze.free.tolist()]
    data.qpos[:] = 3.0, 1.0
    seen, target, since, lengths, sums = (data.qpos.copy(), data.qvel.copy()), free[0], 0, [], np.zeros(2)
    for _ in range(steps):
        action, done = controller.act(*seen, target)
        action = np.clip(action + 0.5 * rng.normal(size=2), -1, 1)
        sums += np.abs(action).mean(), np.linalg.norm(seen[0] - maze.goal) <= 0.5
        done = done or since >= 300
        data.qvel[:], data.ctrl[:] = np.clip(data.qvel, -5, 5), action
        mujoco.mj_step(model, data)
        since += 1
        if done:
            lengths.append(since)
            target, since = free[rng.integers(len(free))], 0
        else:
            seen = data.qpos.copy(), data.qvel.copy()
    return lengths, sums / steps


@pytest.fixture(scope="module")
def theirs() -> tuple[list[int], np.ndarray]:
    return their_stretches(30_000)


@pytest.mark.parametrize("quality", ["waypoints", "waypoints-d4rl"])
def test_data_are_those_of_d4rls_planner(quality: str, theirs: tuple[list[int], np.ndarray]) -> None:
    data = load_dataset("maze2d/umaze", quality, size=200_000)
    rows, lengths = data.rows, data.lengths + (quality == "waypoints-d4rl")
    lengths = lengths[lengths > 1]  # D4RL's form has no transition in a stretch of one step
    expected = np.array(theirs[0])
    expected = expected[expected > 1]
    error = np.hypot(expected.std() / len(expected) ** 0.5, lengths.std() / len(lengths) ** 0.5)
    assert abs(lengths.mean() - expected.mean()) < 4 * error
    assert expected.std() == pytest.approx(lengths.std(), rel=0.15)
    steps = ~rows.closing
    assert np.abs(rows.actions[steps]).mean() == pytest.approx(theirs[1][0], rel=0.02)
    assert rows.rewards[steps].mean() == pytest.approx(theirs[1][1], rel=0.25)
    assert lengths.max() <= 301
    # What ends a stretch is a cut, and stands at its end.
    np.testing.assert_array_equal(rows.truncated, np.append(rows.closing[1:], False))
    assert not rows.terminal.any()
    assert data.metadata["mean_return"] == pytest.approx(300 * rows.rewards[steps].mean(), rel=1e-5)


def test_waypoints_lie_below_their_cells_and_the_last_one_on_the_target() -> None:
    planner = Planner(mazes.parse(mazes.TEXTS["umaze"]))

    def first_of(obs: Any, key: Any) -> Any:  # the first waypoint of a way from (3, 1) to (1, 1), or to (3, 2)
        return [planner.steer(planner.to(np.int32(target)), obs, key)[1] for target in (6, 17)]

    obs = jnp.array([3.05, 1.0, 0.0, 0.0])
    far, near = jax.vmap(first_of, (None, 0))(obs, jax.random.split(jax.random.key(0), 2_000))
    np.testing.assert_array_equal(far.cell, 17)
    shift = np.array([3.0, 2.0]) - far.waypoint
    assert shift.min() > -1e-6
    assert shift.max() < 0.2
    np.testing.assert_allclose(shift.mean(axis=0), 0.1, atol=0.005)
    assert shift.std() == pytest.approx(0.2 / 12**0.5, rel=0.05)
    np.testing.assert_array_equal(near.waypoint, np.tile([3.0, 2.0], (2_000, 1)))


def test_a_new_target_in_the_same_cell_is_no_news_to_the_planner() -> None:
    traveller = Traveller(Planner(mazes.parse("####/#OG#/####")), 300, repeats=False)
    start = traveller.start(jax.random.key(0))
    moving = start._replace(
        ends=jnp.bool_(True),
        plan=start.plan._replace(
            planned=jnp.bool_(True), waypoint=jnp.array([1.0, 1.77]), previous=jnp.array([1.0, 1.3])
        ),
    )
    step = jax.jit(traveller.step)
    for key in jax.random.split(jax.random.key(1), 8):
        after = step(moving, jnp.array([1.0, 1.3, 0.0, 0.0]), key)[1]
        kept = bool(after.plan.target == moving.plan.target)
        assert np.allclose(after.plan.waypoint, [1.0, 1.77]) == kept
        assert int(after.step) == 1


def test_the_time_for_a_target_is_limited() -> None:
    lengths = load_dataset("maze2d/umaze", "waypoints", size=20_000, length=30).lengths
    assert lengths.max() == 31  # the step that finds the time over is taken
    assert np.mean(lengths == 31) > 0.5


@pytest.mark.parametrize("quality", ["waypoints", "waypoints-d4rl"])
def test_transitions_follow_the_physics_but_for_d4rls_repetitions(quality: str) -> None:
    data = load_dataset("maze2d/umaze", quality, size=20_000)
    env = make("maze2d/umaze")
    rows, at = data.rows, data.index()
    states = State(jax.random.key(0), jnp.int32(0), rows.obs[at, 0, :2], rows.obs[at, 0, 2:])
    step = jax.jit(jax.vmap(env.step, (State(None, None, 0, 0), 0)))
    _, timesteps = step(states, rows.actions[at])
    apart = np.abs(timesteps.observation.agents_view - rows.obs[at + 1]).max(axis=(1, 2))
    first = np.append(True, rows.closing[:-1])[at]
    if quality == "waypoints":
        assert apart.max() < 1e-4
        np.testing.assert_array_equal(rows.rewards[at], timesteps.reward)
        after = rows.obs[1:][rows.closing[:-1]]  # a stretch begins where the last one ended
        journeys = np.abs(after - rows.obs[:-1][rows.closing[:-1]]).max(axis=(1, 2)) > 0
        assert journeys.sum() == 1  # two trajectories
    else:
        assert apart[~first].max() < 1e-4
        assert np.median(apart[first]) > 1e-3  # the ball had moved already
        rewards = np.linalg.norm(rows.obs[at, 0, :2] - [1, 1], axis=1) <= 0.5
        np.testing.assert_array_equal(rows.rewards[at, 0], rewards)
        after = rows.obs[1:][rows.closing[:-1]]
        assert np.mean(np.abs(after - rows.obs[:-1][rows.closing[:-1]]).max(axis=(1, 2)) == 0) > 0.98


def test_the_expert_stays_in_the_goal() -> None:
    data = load_dataset("maze2d/medium", "expert", size=30_000)
    assert data.metadata["mean_score"] > 100
    last = data.rows.obs[data.rows.closing][:, 0]
    assert np.linalg.norm(last[:, :2] - [6, 6], axis=1).max() < 0.1
    made = load_dataset("maze2d/medium", "waypoints", size=2_000, discrete=True)
    assert made.rows.actions.dtype == np.int32
    assert made.rows.action_mask.shape == (len(made.rows.obs), 1, 9)
    assert len(np.unique(made.rows.actions)) == 9


def test_pictures_show_the_maze_as_it_is_written() -> None:
    env = make("maze2d/umaze")
    assert isinstance(env, Maze2d)
    state = State(jax.random.key(0), jnp.int32(0), jnp.array([3.0, 1.0]), jnp.zeros(2))
    image = env.render(state)
    side = image.shape[0] / (5 + 1.2)

    def colour(row: float, column: float, of: np.ndarray = image) -> list[int]:  # of a place in coordinates of the ball
        return of[int((row + 0.7 + 0.6) * side), int((column + 0.7 + 0.6) * side)].tolist()

    wall = colour(0.0, 2.0)
    assert wall != [255, 255, 255]
    assert colour(2.0, 1.0) == colour(2.0, 0.0) == wall  # the wall that makes the U
    assert colour(2.0, 3.0) == colour(1.0, 3.0) == [255, 255, 255]
    assert colour(3.0, 1.0) == [0x44, 0x77, 0xAA]
    red, green, _ = colour(1.0, 1.0)
    assert green > red
    path = [state._replace(position=jnp.array([3.0, 1.0 + 0.1 * k])) for k in range(20)]
    light = [sum(colour(3.0, column, env.render_path(path))) for column in (1.3, 1.9, 2.5, 3.2)]
    assert light[0] < light[1] < light[2] < light[3] == 3 * 255  # brighter with time, and nothing beyond its end


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"maze": "#####/#GOO#/###O#/#OOO#/##O##"}, r"The border of a maze is wall, but \(4, 2\) is free."),
        ({"maze": "#####/#GOO#/####/#####"}, "Row 2 of the maze has 4 cells, but row 0 has 5."),
        ({"maze": "###/###/###"}, "A maze needs a free cell."),
        ({"maze": "####/#GG#/####"}, "A maze has one goal, not 2."),
        ({"maze": "####/#GX#/####"}, "A maze is made of #, O and G, not of 'X'."),
        ({"maze": 5}, "maze of 'maze2d/umaze' must be text, rows of #, O and G, not 5."),
        ({"goal": (2, 2)}, r"The goal \(2, 2\) must be in a free cell of the maze."),
        ({"goal": (9, 2)}, r"The goal \(9, 2\) must be in a free cell of the maze."),
        ({"goal": 3}, "goal of 'maze2d/umaze' must be a row and a column, not 3."),
        ({"reward": "dens"}, "reward of 'maze2d/umaze' must be sparse or dense, not 'dens'."),
        ({"engine": "2.1"}, "engine of 'maze2d/umaze' must be 2.0 or current, not '2.1'."),
        ({"length": 0}, "episode_length of task 'maze2d/umaze' must be from 1 to 10,000,000, not 0."),
    ],
)
def test_what_is_no_maze_is_refused_in_a_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make("maze2d/umaze", **options)


def test_a_maze_of_ones_own_may_have_its_goal_anywhere() -> None:
    env = make("maze2d/umaze", maze="#####\\#OOO#\\#####", length=50)
    assert env.maze.goal == (1, 1)  # the first free cell, as in D4RL
    assert make("maze2d/umaze", maze="#####\n#O G#\n#####").maze.goal == (1, 3)
    assert make("maze2d/umaze", goal=[3, 2]).maze.goal == (3, 2)
