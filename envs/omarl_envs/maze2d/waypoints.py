"""The planner that makes D4RL's data: it drives the ball from cell to cell, to one target after the other."""

from functools import cached_property
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omarl_envs.maze2d.mazes import Maze, ways

NEAR = 0.1  # m, within which a place is reached
NOISE = 0.5  # standard deviation of what is added to actions
_SPREAD = 0.2  # waypoints lie up to this below the whole numbers of their cells


class Plan(NamedTuple):
    """What the planner keeps in mind.

    Attributes:
        target: () int32, the cell to go to, cells counted row by row.
        planned: () bool, whether there is a way to it; otherwise the next step looks for one.
        cell: () int32, the next cell on it.
        waypoint: (2,) the place in that cell to go to.
        previous: (2,) where the ball was, or the cell where the way begins.
        solved: () bool, whether the target is reached.
    """

    target: chex.Array
    planned: chex.Array
    cell: chex.Array
    waypoint: chex.Array
    previous: chex.Array
    solved: chex.Array


class Planner:
    """A way by value iteration, and a controller with proportional and differential terms that follows it.

    The controller pushes with 10 (waypoint - place) - velocity, and goes on to the next cell when it is within 0.1 m of
    the waypoint. Waypoints are the whole numbers of their cells minus uniform numbers up to 0.2, except the last one.
    The target is reached within 0.1 m of its cell's whole numbers. Both also ask that the ball has moved by less than
    0.1 since the last step, or that it is that near to whole numbers in the first step of a plan.

    Source: D4RL's `WaypointController`. Waypoints are drawn when they are needed, not all at first.
    """

    def __init__(self, maze: Maze):
        self.maze = maze
        self.height, self.width = maze.walls.shape

    @cached_property
    def ways(self) -> np.ndarray:
        """See `mazes.ways`; only data need them, and in large mazes they take their time."""
        return ways(self.maze)

    def to(self, target: chex.Array) -> Plan:
        """The plan to go to a cell, before its first step."""
        nowhere, no = np.zeros((2,), np.float32), np.zeros((), bool)
        return Plan(target, no, np.zeros((), np.int32), nowhere, nowhere, no)

    def steer(self, plan: Plan, obs: chex.Array, key: chex.PRNGKey) -> tuple[chex.Array, Plan]:
        """One step: the action (2,) in [-1, 1] for what is observed, (4,)."""
        place, velocity = obs[:2], obs[2:]
        shifts = jax.random.uniform(key, (2, 2), maxval=_SPREAD)
        here = jnp.round(place)
        found = self._next(plan._replace(previous=here), self._cell(here), shifts[0])
        plan = jax.tree.map(lambda old, new: jnp.where(plan.planned, old, new), plan, found)
        calm = jnp.linalg.norm(plan.previous - place) < NEAR
        target = self._place(plan.target)
        solved = calm & (jnp.linalg.norm(place - target) < NEAR)
        goal = jnp.where(solved, target, plan.waypoint)
        action = jnp.clip(10.0 * (goal - place) - velocity, -1.0, 1.0)
        reached = calm & ~solved & (jnp.linalg.norm(place - goal) < NEAR)
        further = self._next(plan, plan.cell, shifts[1])
        plan = jax.tree.map(lambda old, new: jnp.where(reached, new, old), plan, further)
        return action, plan._replace(planned=jnp.ones((), bool), previous=place, solved=solved)

    def _next(self, plan: Plan, cell: chex.Array, shift: chex.Array) -> Plan:
        """The plan when the ball is to leave a cell."""
        after = jnp.asarray(self.ways)[plan.target, cell]
        waypoint = self._place(after) - jnp.where(after == plan.target, 0.0, shift)
        return plan._replace(cell=after, waypoint=waypoint)

    def _cell(self, place: Any) -> chex.Array:
        """The number of the cell whose whole numbers (2,) these are."""
        row, column = jnp.clip(place[0], 0, self.height - 1), jnp.clip(place[1], 0, self.width - 1)
        return (row * self.width + column).astype(jnp.int32)

    def _place(self, cell: chex.Array) -> chex.Array:
        """The whole numbers (2,) of a cell."""
        return jnp.stack([cell // self.width, cell % self.width]).astype(jnp.float32)


class Journey(NamedTuple):
    """What the team of D4RL's data keeps in mind.

    Attributes:
        plan: to the present target.
        step: () int32, steps since the target was set.
        ends: () bool, whether the last step was the last one to its target.
        seen: (4,) what the last step saw.
    """

    plan: Plan
    step: chex.Array
    ends: chex.Array
    seen: chex.Array


class Traveller:
    """Goes to one target after the other: a target is drawn when the last one is reached, or the time is up.

    Args:
        planner: finds the ways.
        length: the time for one target, in steps.
        repeats: as D4RL's script does it, the step after a new target sees what the one before it saw.
    """

    def __init__(self, planner: Planner, length: int, repeats: bool):
        self.planner, self.length, self.repeats = planner, length, repeats
        self.targets = planner.maze.free @ np.array([planner.width, 1])

    def start(self, key: chex.PRNGKey) -> Journey:
        """Before the first step of a trajectory."""
        plan = self.planner.to(self._draw(key))
        return Journey(plan, jnp.zeros((), jnp.int32), jnp.zeros((), bool), jnp.zeros((4,)))

    def step(self, journey: Journey, obs: chex.Array, key: chex.PRNGKey) -> tuple[chex.Array, Journey]:
        """One step: the action (2,) in [-1, 1], and the journey, whose `seen` and `ends` belong to this step."""
        steer_key, noise_key, target_key = jax.random.split(key, 3)
        plan, new = journey.plan, journey.ends
        seen = jnp.where(new & self.repeats, journey.seen, obs)
        target = jnp.where(new, self._draw(target_key), plan.target)
        # A target in the same cell is no news to the planner.
        plan = plan._replace(target=target, planned=plan.planned & (target == plan.target))
        action, plan = self.planner.steer(plan, seen, steer_key)
        action = jnp.clip(action + NOISE * jax.random.normal(noise_key, (2,)), -1.0, 1.0)
        step = jnp.where(new, 0, journey.step)
        ends = plan.solved | (step >= self.length)
        return action, Journey(plan, step + 1, ends, seen)

    def _draw(self, key: chex.PRNGKey) -> chex.Array:
        return jax.random.choice(key, jnp.asarray(self.targets, jnp.int32))
