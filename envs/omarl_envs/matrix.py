"""Games of two players, one move and one payoff for both: the smallest tasks in which cooperation can fail."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from omarl_envs.base import MultiAgentEnv, Observation, TimeStep
from omarl_envs.spec import ScoreReference, TaskSpec

XOR = ((0.0, 1.0), (1.0, 0.0))
CLIMBING = ((11.0, -30.0, 0.0), (-30.0, 7.0, 6.0), (0.0, 0.0, 5.0))

_NOT_YET = -1


class State(NamedTuple):
    """One game.

    Attributes:
        key: the randomness of the episode; the game itself uses none.
        step: () int32, moves made, 0 or 1.
        actions: (2,) int32, the moves, -1 before they are made.
    """

    key: chex.PRNGKey
    step: chex.Array
    actions: chex.Array


class MatrixGame(MultiAgentEnv[State]):
    """A one-step cooperative game: both players get `payoff[actions[0], actions[1]]`, and the game is over (terminal).

    There is nothing to see: each observation is the constant (1,) array of ones, and all actions are always legal.

    Args:
        name: of the task, after `matrix/`.
        payoff: (A, A) the reward of the first player's action (row) and the second's (column).

    Raises:
        ValueError: if the payoff is not a square matrix of finite numbers.
    """

    def __init__(self, name: str, payoff: Sequence[Sequence[float]]):
        self.payoff = np.asarray(payoff, np.float32)
        if self.payoff.ndim != 2 or len(set(self.payoff.shape)) != 1 or not np.isfinite(self.payoff).all():
            raise ValueError(f"matrix/{name} needs a square payoff matrix of finite numbers.")
        self.task_spec = TaskSpec(
            name=f"matrix/{name}",
            kind="discrete",
            n_agents=2,
            obs_dim=1,
            action_dim=len(self.payoff),
            state_dim=2,
            episode_length=1,
            state_is_obs=True,
        )
        random, expert = float(self.payoff.mean()), float(self.payoff.max())
        self.reference = ScoreReference(random, expert, "exact: uniform play and the best cell of the payoff matrix")
        super().__init__()

    def reset(self, key: chex.PRNGKey) -> tuple[State, TimeStep[Observation]]:
        """Opens a game; all games are alike."""
        state = State(key, jnp.zeros((), jnp.int32), jnp.full((2,), _NOT_YET, jnp.int32))
        return state, self.first(self._observe())

    def step(self, state: State, actions: chex.Array) -> tuple[State, TimeStep[Observation]]:
        """Makes the only move. actions: (2,) int32 below A."""
        state = state._replace(step=state.step + 1, actions=actions)
        reward = jnp.asarray(self.payoff)[actions[0], actions[1]]
        return state, self.next(state.step, self._observe(), jnp.stack([reward, reward]), terminal=True)

    def _observe(self) -> Observation:
        return Observation(jnp.ones((2, 1)), jnp.ones((2,)), jnp.ones((2, self.task_spec.action_dim), bool))

    def render(self, state: State) -> np.ndarray:
        """The payoff matrix, green for gains and red for losses, the chosen cell framed: (H, W, 3) uint8."""
        from omarl_envs import rendering

        n, largest = self.task_spec.action_dim, np.abs(self.payoff).max() or 1.0
        row, column = np.asarray(state.actions)
        picture = rendering.Picture(1.3, f"step {int(state.step)}/1")
        side = 2.0 / n
        centers = side * (np.arange(n) + 0.5) - 1.0
        picture.text((0.0, 1.15), "agent 2")
        picture.text((-1.15, 0.0), "agent 1", rotation=90.0)
        for i, y in enumerate(-centers):
            for j, x in enumerate(centers):
                value = float(self.payoff[i, j])
                tint = rendering.GREEN if value > 0 else rendering.RED
                picture.square((x, y), side, fill=tint, alpha=0.6 * abs(value) / largest, edge=rendering.GREY)
                picture.text((x, y), f"{value:g}", size=16)
        if row != _NOT_YET:
            picture.square((centers[column], -centers[row]), side, edge=rendering.INK, width=4.0)
        return picture.image()


TASKS = {"xor": partial(MatrixGame, "xor", XOR), "climbing": partial(MatrixGame, "climbing", CLIMBING)}
