"""The smallest tasks: one-step games of two players, in which cooperation can fail; and a game of levers, in which one
agent matters more than the others."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omarl_envs.base import Behaviour, MultiAgentEnv, Observation, TimeStep
from omarl_envs.spec import ScoreReference, TaskSpec

XOR = ((0.0, 1.0), (1.0, 0.0))
CLIMBING = ((11.0, -30.0, 0.0), (-30.0, 7.0, 6.0), (0.0, 0.0, 5.0))

_NOT_YET = -1
_STAKE = 10.0  # S, the unit of the reward in a game of levers
_MEDIUM, _EXPERT = (0.0, 0.3), (1.0, 0.1)  # ρ and σ of the behaviours in a game of levers


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


class LeverState(NamedTuple):
    """One game of levers.

    Attributes:
        key: the randomness of the episode.
        step: () int32, moves made.
        cue: () float32, where levers should be put next.
        levers: (N,) float32, where the last move put them; 0 before the first.
    """

    key: chex.PRNGKey
    step: chex.Array
    cue: chex.Array
    levers: chex.Array


class LeverGame(MultiAgentEnv[LeverState]):
    """Every agent puts a lever where a cue says: the first one's lever can earn, the others' can only harm.

    In each of T moves all agents see a cue c, drawn uniformly from the places of a lever, and put their levers at a_i.
    With S = 10, and p the influence of the first agent, the team gets

        r = S p (1 - (a_1 - c)²) - S (1 - p) / (N - 1) Σ_{i>1} (a_i - c)²

    After T moves the game is over, and agents see which part of them is left, next to the cue: (N, 2). A discrete lever
    has K places, evenly spaced in [-1, 1], and a continuous one has all of [-1, 1]. Agents differ in their weights
    alone, and no action changes what comes after. So, with e_i = E (a_i - c)² of each agent's policy,

        return            T S [p - p e_1 - (1 - p) / (N - 1) Σ_{i>1} e_i]
        best play         e_i = 0
        uniform play      e_i = 2/3 for continuous levers, 2 (K + 1) / (3 (K - 1)) for discrete ones

    Of the way from uniform to best play the first agent makes p, each other one (1 - p) / (N - 1). With p = 1 / N all
    matter alike.

    Behaviours draw a_i with probability (or density) proportional to exp(-(a - ρ c)² / 2 σ²). The `medium` team does
    not look at the cue (ρ = 0, σ = 0.3), and `expert` follows it (ρ = 1, σ = 0.1).

    Args:
        name: of the task, after `matrix/`.
        places: K, at least 2; 0 for continuous levers.
        n_agents: N, at least 2.
        influence: p, from 0 to 1.
        length: T, the moves of a game.
        time_limit_is_terminal: report the end of the game as a termination; otherwise it is a truncation.

    Raises:
        ValueError: if one of them is out of range.
    """

    def __init__(
        self,
        name: str,
        places: int,
        n_agents: int = 3,
        influence: float = 0.8,
        length: int = 5,
        time_limit_is_terminal: bool = True,
    ):
        if places < 0 or places == 1:
            raise ValueError(f"A lever of matrix/{name} has at least 2 places, or 0 if it is continuous, not {places}.")
        if n_agents < 2:
            raise ValueError(f"matrix/{name} needs at least 2 agents, not {n_agents}.")
        if not 0 <= influence <= 1:
            raise ValueError(f"The influence in matrix/{name} must be from 0 to 1, not {influence}.")
        self.influence, self.time_limit_is_terminal = influence, time_limit_is_terminal
        self.weights = np.append(influence, np.full(n_agents - 1, (1.0 - influence) / (n_agents - 1)))
        self.places = np.linspace(-1.0, 1.0, places)
        self.task_spec = TaskSpec(
            name=f"matrix/{name}",
            kind="discrete" if places else "continuous",
            n_agents=n_agents,
            obs_dim=2,
            action_dim=places or 1,
            state_dim=2 * n_agents,
            episode_length=length,
            state_is_obs=True,
        )
        random = self._return(2 / 3 * (places + 1) / (places - 1) if places else 2 / 3)
        self.reference = ScoreReference(random, self._return(0.0), "exact: uniform play, and every lever at its cue")
        self.behaviours = {"medium": self._behaviour(*_MEDIUM), "expert": self._behaviour(*_EXPERT)}
        super().__init__()

    def reset(self, key: chex.PRNGKey) -> tuple[LeverState, TimeStep[Observation]]:
        """Opens a game and draws its first cue."""
        key, cue = self._draw(key)
        state = LeverState(key, jnp.zeros((), jnp.int32), cue, jnp.zeros((self.num_agents,)))
        return state, self.first(self._observe(state))

    def step(self, state: LeverState, actions: chex.Array) -> tuple[LeverState, TimeStep[Observation]]:
        """Puts the levers. actions: (N,) int32 below K, or (N, 1) in [-1, 1]."""
        levers = jnp.asarray(self.places, jnp.float32)[actions] if self.places.size else actions[:, 0]
        lost = (jnp.asarray(self.weights, jnp.float32) * jnp.square(levers - state.cue)).sum()
        rewards = jnp.full((self.num_agents,), _STAKE * (self.influence - lost))
        key, cue = self._draw(state.key)
        state = LeverState(key, state.step + 1, cue, levers)
        return state, self.next(state.step, self._observe(state), rewards)

    def _draw(self, key: chex.PRNGKey) -> tuple[chex.PRNGKey, chex.Array]:
        key, cue_key = jax.random.split(key)
        if self.places.size:
            return key, jax.random.choice(cue_key, jnp.asarray(self.places, jnp.float32))
        return key, jax.random.uniform(cue_key, minval=-1.0, maxval=1.0)

    def _observe(self, state: LeverState) -> Observation:
        spec = self.task_spec
        left = 1.0 - state.step / spec.episode_length
        view = jnp.broadcast_to(jnp.stack([state.cue, left]), (spec.n_agents, spec.obs_dim))
        mask = jnp.ones((spec.n_agents, spec.action_dim), bool) if spec.kind == "discrete" else None
        return Observation(view, view.reshape(-1), mask)

    def _return(self, error: float) -> float:
        """The return of agents whose E (a - c)² is `error`."""
        return self.task_spec.episode_length * _STAKE * (self.influence - error)

    def _behaviour(self, follow: float, spread: float) -> Behaviour:
        """Levers at about `follow` of the cue."""

        def act(obs: chex.Array, memory: Any, key: chex.PRNGKey) -> tuple[chex.Array, Any]:
            center = follow * obs[:, :1]  # (N, 1)
            if self.places.size:
                return jax.random.categorical(key, -jnp.square((self.places - center) / spread) / 2), memory
            low, high = (-1.0 - center) / spread, (1.0 - center) / spread
            return center + spread * jax.random.truncated_normal(key, low, high), memory

        places = self.places if self.places.size else (np.arange(400) + 0.5) / 200 - 1.0  # midpoints, to integrate over
        density = np.exp(-np.square((places - follow * places[:, None]) / spread) / 2)  # (cues, places)
        errors = np.square(places - places[:, None])
        error = float(np.mean((density * errors).sum(axis=1) / density.sum(axis=1)))
        return Behaviour(act, f"levers around {follow:g} times the cue, σ = {spread:g}", self._return(error))

    def render(self, state: LeverState) -> np.ndarray:
        """The levers as the last move left them, longer where they count more, and the next cue: (H, W, 3) uint8."""
        from omarl_envs import rendering

        picture = rendering.Picture(1.3, f"step {int(state.step)}/{self.task_spec.episode_length}")
        cue, heights = float(state.cue), np.linspace(0.9, -0.9, self.num_agents)
        picture.line([(cue, -1.1), (cue, 1.1)], rendering.GOLD, width=4.0)
        for lever, weight, y in zip(np.asarray(state.levers), self.weights, heights, strict=True):
            picture.line([(-1.0, y), (1.0, y)], rendering.GREY)
            half = 0.1 + 0.2 * weight
            picture.line([(lever, y - half), (lever, y + half)], rendering.BLUE, width=8.0)
        return picture.image()


TASKS = {
    "xor": partial(MatrixGame, "xor", XOR),
    "climbing": partial(MatrixGame, "climbing", CLIMBING),
    "lever": partial(LeverGame, "lever", 9),
    "lever-continuous": partial(LeverGame, "lever-continuous", 0),
}
