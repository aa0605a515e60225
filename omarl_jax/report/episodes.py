"""Pictures of a trained team: an episode as a film, its paths on a map, and the quantiles it has learned."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jumanji.env import Environment
from omarl_envs.base import MultiAgentEnv
from omarl_envs.rendering import save_gif, save_png

from omarl_jax import plotting
from omarl_jax.algorithms import ciqr
from omarl_jax.collect import Steps, play
from omarl_jax.errors import UserError
from omarl_jax.export import SavedPolicy
from omarl_jax.files import replacing


def write_gif(env: MultiAgentEnv, team: SavedPolicy, path: pathlib.Path, seed: int) -> None:
    """Plays one episode greedily and writes it as a GIF.

    Raises:
        UserError: if the task draws no pictures.
    """
    if type(env).render is Environment.render:
        raise UserError(f"'{env.task_spec.name}' draws no pictures to make a film of.")
    frames = [env.render(state) for state in _states(_episode(env, team, seed))]
    with replacing(path) as file:
        save_gif(frames, file, fps=8)


def write_map(env: MultiAgentEnv, team: SavedPolicy, path: pathlib.Path, seed: int) -> None:
    """Plays one episode greedily and writes its paths as a PNG.

    Raises:
        UserError: if the task has no map.
    """
    if not hasattr(env, "render_path"):
        raise UserError(f"'{env.task_spec.name}' has no map to draw paths on.")
    picture = env.render_path(_states(_episode(env, team, seed)))
    with replacing(path) as file:
        save_png(picture, file)


def write_quantiles(
    env: MultiAgentEnv, team: SavedPolicy, path: pathlib.Path, seed: int, at: Sequence[int] = ()
) -> None:
    """Plays one episode greedily and draws the quantiles of its actions' values, as a PNG.

    Where values were decomposed, those of single agents mean nothing, and their sum is drawn.

    Args:
        env: the task.
        team: what plays.
        path: file to write.
        seed: of the episode.
        at: steps of the episode whose states are looked at; by default four, evenly spread.

    Raises:
        UserError: if the method learns no quantiles, or the episode has no such step.
    """
    if not has_quantiles(team):
        raise UserError(f"'{team.algorithm}' learns no quantiles.")
    steps = _episode(env, team, seed)
    length = int(steps.valid.sum())
    if not all(0 <= step < length for step in at):
        raise UserError(f"The episode has the steps 0 to {length - 1}, not {', '.join(map(str, at))}.")
    times = np.array(at) if len(at) else np.unique(np.linspace(0, length - 1, 4).round().astype(int))
    atoms = jax.vmap(ciqr.action_atoms(team.config, env.task_spec), (None, 0))(team.params, steps.obs[times])
    chosen = jnp.take_along_axis(atoms, steps.actions[times][..., None, None], axis=-1)[..., 0]  # (times, N, Q)
    whose = [f"agent {n}" for n in range(env.num_agents)]
    if team.config.centralised:
        chosen, whose = chosen.sum(axis=1, keepdims=True), ["team"]
    figure = plotting.quantiles(
        np.asarray(chosen / team.config.reward_scale),
        np.asarray(ciqr.fractions(team.config)),
        [f"step {t}" for t in times],
        whose,
    )
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)


def has_quantiles(team: SavedPolicy) -> bool:
    """Whether a policy knows quantiles of what its actions return."""
    return isinstance(team.config, ciqr.Config) and team.config.quantiles > 0


def _episode(env: MultiAgentEnv, team: SavedPolicy, seed: int) -> Steps:
    act, carry = team.functions
    return jax.jit(lambda key: play(env, act, carry, team.params, key))(jax.random.key(seed))


def _states(steps: Steps) -> list[Any]:
    """The states of the environment up to the end of the episode."""
    return [jax.tree.map(lambda x, t=t: x[t], steps.env_state) for t in range(int(steps.valid.sum()) + 1)]
