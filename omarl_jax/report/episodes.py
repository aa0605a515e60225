"""Pictures of trained policies: an episode as a GIF, its paths on a map, and the return quantiles learned."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from omarl_envs.base import MultiAgentEnv
from omarl_envs.rendering import save_gif, save_png

from omarl_jax import algorithms
from omarl_jax.errors import UserError
from omarl_jax.export import SavedPolicy, load_policy
from omarl_jax.files import replacing, require_trusted_task
from omarl_jax.report import plots
from omarl_jax.report.figures import Picture, picture
from omarl_jax.report.load import FinishedRun
from omarl_jax.report.summarise import summarise
from omarl_jax.rollout import Trajectory, rollout
from omarl_jax.tasks import make_env
from omarl_jax.types import ReturnQuantiles, View

_FRAME = 0.05  # seconds between the frames of a film in real time, about
_MOMENTS, _APART = 6, 0.1  # of a strip, and seconds between them
_FRAMES = 200  # of a film, which takes seconds to draw: ten seconds in real time


def draw(runs: Sequence[FinishedRun], out_dir: pathlib.Path) -> dict[Picture, pathlib.Path]:
    """Writes the paths and return quantiles of the first run of each method, where its folder holds a policy.

    Args:
        runs: finished runs.
        out_dir: the folder to write to.

    Returns:
        the pictures that the tasks (a map, or moments in a row) and methods (quantiles) allow.

    Raises:
        UserError: if a task or method is not of this package and was not imported, or a file cannot be read or written.
    """
    written = {}
    for row in summarise(runs):
        if not row.runs or not (row.runs[0].folder / "policy.npz").exists():
            continue
        policy = load_policy(row.runs[0].folder / "policy.npz")
        require_trusted_task(policy.spec.name, allow_import=False)
        env = make_env(policy.spec.name, **policy.metadata.get("options", {}))
        for kind, possible, write in (
            ("map", hasattr(env, "render_path"), write_map),
            ("strip", env.dt is not None and not hasattr(env, "render_path"), write_strip),
            ("quantiles", _return_quantiles(policy) is not None, write_quantiles),
        ):
            if possible:
                drawn = picture(kind, row.task, f"{row.method} on {row.dataset}", row.dataset, row.method)
                written[drawn] = out_dir / f"{drawn.name}.png"
                write(env, policy, written[drawn], seed=0)
    return written


def write_gif(env: MultiAgentEnv, policy: SavedPolicy, path: pathlib.Path, seed: int) -> None:
    """Plays one episode greedily and writes it as a GIF, in real time where the task has one (`env.dt`).

    Of a long episode it shows the beginning, 200 frames.

    Args:
        env: the task.
        policy: one policy.
        path: file to write.
        seed: of the episode.

    Raises:
        UserError: if the task draws no pictures, or the file cannot be written.
    """
    if type(env).render is MultiAgentEnv.render:
        raise UserError(f"'{env.task_spec.name}' draws no pictures to make a GIF of.")
    stride = 1 if env.dt is None else max(1, round(_FRAME / env.dt))
    frames = [env.render(state) for state in _states(_episode(env, policy, seed))[::stride][:_FRAMES]]
    with replacing(path) as file:
        save_gif(frames, file, fps=8 if env.dt is None else 1.0 / (stride * env.dt))


def write_map(env: MultiAgentEnv, policy: SavedPolicy, path: pathlib.Path, seed: int) -> None:
    """Plays one episode greedily and writes its paths as a PNG.

    Args:
        env: the task.
        policy: one policy.
        path: file to write.
        seed: of the episode.

    Raises:
        UserError: if the task has no map, or the file cannot be written.
    """
    if not hasattr(env, "render_path"):
        raise UserError(f"'{env.task_spec.name}' has no map to draw paths on.")
    image = env.render_path(_states(_episode(env, policy, seed)))
    with replacing(path) as file:
        save_png(image, file)


def write_strip(env: MultiAgentEnv, policy: SavedPolicy, path: pathlib.Path, seed: int) -> None:
    """Plays one episode greedily and writes six moments of its middle side by side as a PNG, 0.1 s apart.

    Args:
        env: a task with a physical time (`env.dt`).
        policy: one policy.
        path: file to write.
        seed: of the episode.

    Raises:
        UserError: if the file cannot be written.
    """
    assert env.dt is not None
    moments = _states(_episode(env, policy, seed))[:: max(1, round(_APART / env.dt))]
    first = max(0, len(moments) // 2 - _MOMENTS // 2)
    image = np.concatenate([env.render(state) for state in moments[first : first + _MOMENTS]], axis=1)
    with replacing(path) as file:
        save_png(image, file)


def write_quantiles(
    env: MultiAgentEnv, policy: SavedPolicy, path: pathlib.Path, seed: int, at: Sequence[int] = ()
) -> None:
    """Plays one episode greedily and draws the return quantiles of its actions, as a PNG.

    Args:
        env: the task.
        policy: one policy.
        path: file to write.
        seed: of the episode.
        at: the steps of the episode to draw; by default four, evenly spread.

    Raises:
        UserError: if the method learns no quantiles, the episode has no such step, or the file cannot be written.
    """
    return_quantiles = _return_quantiles(policy)
    if return_quantiles is None:
        raise UserError(f"'{policy.algorithm}' learns no quantiles.")
    trajectory = _episode(env, policy, seed)
    length = int(trajectory.valid.sum())
    if not all(0 <= step < length for step in at):
        raise UserError(f"The episode has the steps 0 to {length - 1}, not {', '.join(map(str, at))}.")
    times = np.array(at) if len(at) else np.unique(np.linspace(0, length - 1, 4).round().astype(int))
    masks = None if trajectory.action_mask is None else trajectory.action_mask[times]
    views = View(trajectory.obs[times], masks)
    fractions, values = jax.vmap(return_quantiles, (None, 0))(policy.params, views)  # (times, G, Q)
    titles = [f"agent {n}" for n in range(values.shape[1])] if values.shape[1] == env.num_agents else ["team"]
    figure = plots.quantiles(np.asarray(values), np.asarray(fractions[0]), [f"step {t}" for t in times], titles)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _return_quantiles(policy: SavedPolicy) -> ReturnQuantiles | None:
    return algorithms.find(policy.algorithm).make(policy.config, policy.spec).return_quantiles


def _episode(env: MultiAgentEnv, policy: SavedPolicy, seed: int) -> Trajectory:
    act, carry = policy.functions
    play = jax.jit(lambda params, key: rollout(env, act, carry, params, key, env_states=True))
    return play(policy.params, jax.random.key(seed))


def _states(trajectory: Trajectory) -> list[Any]:
    """The states of the environment up to the end of the episode."""
    steps = range(int(trajectory.valid.sum()) + 1)
    return [jax.tree.map(lambda x, t=t: x[t], trajectory.env_state) for t in steps]
