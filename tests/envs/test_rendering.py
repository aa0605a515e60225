"""Pictures: right things in the right places."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs import make, rendering, task_names, uav
from omarl_envs.matrix import MatrixGame
from PIL import Image, ImageColor

SIDE = 480


def _pixel(picture: np.ndarray, x: float, y: float, half_side: float) -> tuple[int, ...]:
    """The colour at a point of a picture that shows [-half_side, half_side]², y upwards."""
    column, row = SIDE * (x + half_side) / (2 * half_side), SIDE * (half_side - y) / (2 * half_side)
    return tuple(int(value) for value in picture[int(row), int(column)])


def _rgb(colour: str) -> tuple[int, ...]:
    return ImageColor.getrgb(colour)


@pytest.mark.parametrize("name", task_names())
def test_pictures_are_rgb_of_one_size(name: str) -> None:
    env = make(name, prey="learner") if name in ("particle/tag", "particle/world") else make(name)
    picture = env.render(env.reset(jax.random.key(0))[0])
    assert picture.shape == (SIDE, SIDE, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4


def test_spread_shows_agents_at_their_size_and_covered_landmarks() -> None:
    env = make("particle/spread")
    state, _ = env.reset(jax.random.key(0))
    position = jnp.array([[-0.5, 0.5], [0.3, 0.2], [0.9, -0.9]])
    landmarks = jnp.array([[-0.8, -0.8], [0.0, -0.5], [0.97, -0.9]])
    picture = env.render(state._replace(position=position, landmarks=landmarks))
    view = 1.5  # half as much again as the square agents start in
    for x, y in np.asarray(position[:2]):
        for dx, dy in [(0.0, 0.0), (0.13, 0.0), (-0.13, 0.0), (0.0, 0.13), (0.0, -0.13)]:
            assert _pixel(picture, x + dx, y + dy, view) == _rgb(rendering.BLUE)
        for dx, dy in [(0.17, 0.0), (0.0, -0.17)]:
            assert _pixel(picture, x + dx, y + dy, view) == (255, 255, 255)
    assert _pixel(picture, -0.8, -0.8, view) == _rgb(rendering.INK)
    assert _pixel(picture, 0.075, -0.5, view) == _rgb(rendering.GREY)
    assert _pixel(picture, 0.97, -0.825, view) == _rgb(rendering.GOLD)


def test_touching_agents_are_outlined_and_lost_ones_shown_hollow_at_the_border() -> None:
    env = make("particle/spread")
    state, _ = env.reset(jax.random.key(0))
    state = state._replace(landmarks=jnp.full((3, 2), 9.0))
    apart = env.render(state._replace(position=jnp.array([[0.0, 0.0], [0.31, 0.0], [5.0, 0.0]])))
    touching = env.render(state._replace(position=jnp.array([[0.0, 0.0], [0.29, 0.0], [5.0, 0.0]])))
    assert _pixel(touching, -0.15, 0.0, 1.5) == _rgb(rendering.RED)
    assert not (apart == _rgb(rendering.RED)).all(axis=-1).any()
    assert _pixel(apart, 1.35, 0.0, 1.5) == (255, 255, 255)
    assert _pixel(apart, 1.2, 0.0, 1.5) == _rgb(rendering.BLUE)


def test_velocity_is_a_line_ahead_of_the_agent() -> None:
    env = make("particle/tag", prey="learner")
    state, _ = env.reset(jax.random.key(0))
    position = jnp.array([[0.0, 0.0], [0.8, 0.8], [0.8, -0.8], [-0.8, -0.8]])
    velocity = jnp.zeros((4, 2)).at[0].set(jnp.array([0.0, 1.0]))
    picture = env.render(state._replace(position=position, velocity=velocity, landmarks=jnp.full((2, 2), 9.0)))
    assert sum(_pixel(picture, 0.0, 0.15, 1.5)) < 3 * 128
    assert _pixel(picture, 0.0, -0.15, 1.5) == (255, 255, 255)


def test_world_shows_prey_obstacle_food_and_translucent_forests() -> None:
    env = make("particle/world", prey="learner")
    state, _ = env.reset(jax.random.key(0))
    position = jnp.array([[0.9, 0.9], [0.9, 0.0], [0.9, -0.9], [-0.5, -0.5]])
    landmarks = jnp.array([[-0.5, 0.5], [0.0, 0.5], [0.0, -1.0], [0.0, 0.0], [0.2, 0.0]])
    picture = env.render(state._replace(position=position, landmarks=landmarks))
    assert _pixel(picture, 0.9, 0.9, 1.5) == _rgb(rendering.BLUE)
    assert _pixel(picture, -0.5, -0.5, 1.5) == _rgb(rendering.RED)
    assert _pixel(picture, -0.5 + 0.19, 0.5, 1.5) == _rgb(rendering.GREY)
    assert _pixel(picture, 0.0, 0.5, 1.5) == _rgb(rendering.GOLD)
    once, twice = _pixel(picture, -0.2, 0.0, 1.5), _pixel(picture, 0.1, 0.0, 1.5)
    assert 255 > once[0] > twice[0] > _rgb(rendering.GREEN)[0]


def test_a_matrix_game_frames_the_cell_that_was_played() -> None:
    env = MatrixGame("mine", [[1.0, -1.0], [0.0, 0.5]])
    state, _ = env.reset(jax.random.key(0))
    before = env.render(state)
    after = env.render(env.step(state, jnp.array([0, 1], jnp.int32))[0])
    corner = (0.005, 0.5, 1.3)  # the left side of the upper right cell: first row, second column
    assert _pixel(before, *corner) != _rgb(rendering.INK)
    assert _pixel(after, *corner) == _rgb(rendering.INK)
    red, green = _pixel(after, 0.75, 0.75, 1.3), _pixel(after, -0.25, 0.75, 1.3)
    assert red[0] > red[1]
    assert green[1] > green[0]


def test_levers_stand_where_they_were_put_and_the_first_is_longer() -> None:
    env = make("matrix/lever-continuous")
    state, _ = env.reset(jax.random.key(0))
    picture = env.render(state._replace(cue=jnp.float32(0.8), levers=jnp.array([0.5, -0.5, 0.0])))
    assert _pixel(picture, 0.8, 0.4, 1.3) == _rgb(rendering.GOLD)
    for x, y in [(0.5, 0.9), (-0.5, 0.0), (0.0, -0.9)]:
        assert _pixel(picture, x, y, 1.3) == _rgb(rendering.BLUE)
        assert _pixel(picture, -0.9, y, 1.3) == _rgb(rendering.GREY)
    assert _pixel(picture, 0.5, 0.9 - 0.24, 1.3) == _rgb(rendering.BLUE)
    assert _pixel(picture, -0.5, -0.2, 1.3) == (255, 255, 255)


@pytest.mark.parametrize("name", ["uav/iot", "uav/iot-random"])
def test_uavs_fly_over_the_region_and_the_devices_of_their_mission(name: str) -> None:
    env = make(name)
    published = np.zeros((10, 10), bool)
    published[3:7, 2:7] = True
    state, _ = env.reset(jax.random.key(0))
    if state.mission is None:
        risky, devices = published, np.array(uav.DEVICES)
    else:
        risky, devices = np.asarray(state.mission.risky), np.asarray(state.mission.devices)
        assert (risky != published).any()
    free = np.ones((10, 10), bool)
    free[tuple(devices.T)] = False
    cells = np.stack([np.argwhere(free & risky)[0], np.argwhere(free & ~risky)[0]])
    ages = jnp.where(jnp.arange(10) < 5, 100, 1)
    picture = env.render(state._replace(cells=jnp.asarray(cells), ages=ages)).astype(int)

    def colour(cell: np.ndarray, dx: float, dy: float) -> tuple[int, ...]:
        x, y = cell - 4.5 + [dx, dy]  # the middle of the grid is that of the picture
        return _pixel(picture, x, y, 5.8)

    for cell in np.argwhere(np.ones((10, 10))):
        assert (colour(cell, 0.42, 0.42) != (255, 255, 255)) == risky[tuple(cell)]  # beside whatever is in the cell
    for i, cell in enumerate(devices):
        assert (colour(cell, 0.28, 0.28) == _rgb(rendering.GOLD)) == (i < 5)  # the other half was served just now
    for cell, warned in zip(cells, (True, False), strict=True):
        red, _, blue = colour(cell, 0.2, 0.0)
        assert blue > red
        border = np.array([colour(cell, dx, 0.0) for dx in np.arange(0.26, 0.34, 0.01)])
        assert (border[:, 0] - border[:, 2]).max() > 80 if warned else (border[:, 0] <= border[:, 2]).all()


def test_a_film_has_a_frame_for_every_step(tmp_path: pathlib.Path) -> None:
    env = make("particle/spread")
    state, _ = env.reset(jax.random.key(0))
    frames = [env.render(state._replace(step=jnp.int32(t))) for t in range(1, 26)]
    rendering.save_gif(iter(frames), tmp_path / "team.gif", fps=10)
    with Image.open(tmp_path / "team.gif") as gif:
        assert gif.n_frames == 25  # type: ignore[attr-defined]
        assert gif.size == (SIDE, SIDE)
        assert gif.info["duration"] == 100
        assert gif.info["loop"] == 0
        error = np.abs(np.asarray(gif.convert("RGB"), float) - frames[0]).mean()
    assert error < 2.0
