"""Replay data: slices of the log of agents that learn online, as in MA-CQR (Eldeeb et al. 2024).

MA-DQN learns in one environment for 30,000 steps, after 500 of warm-up, and every step is logged. The share of random
actions falls from 1 to 0.01 during the first 10,000. A dataset is a slice of that log, in whole episodes:

    middle   from the middle of the run on, as published: greedy by then, and still learning
    early    the first steps, mostly random
    late     the last steps
    mixed    episodes spread evenly over the whole run

In the published code agents never take the same random action in warm-up, make no update at the end of an episode, and
start with targets that differ from their networks. Here the end of an episode is a truncation, unless the task says
otherwise.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.base import MultiAgentEnv

from omarl_jax import algorithms, online
from omarl_jax.data.dataset import EpisodeStore
from omarl_jax.data.episodes import from_episodes
from omarl_jax.errors import UserError
from omarl_jax.placement import Placement
from omarl_jax.types import Context, Stats, Transition

STEPS = 30_000
VERSION = 2
"""Raised when the same seeds give other logs. 2: networks no longer scale inputs that are not normalised."""
SLICES = ("early", "middle", "late", "mixed")
DEFAULT_SIZE = 4_800  # 16 % of the steps, the published default

_METHOD = "ciql"
_OVERRIDES = {"cql_alpha": 0.0, "batch_size": 32}  # so it is MA-DQN
_WARMUP = 500
_SETTINGS = online.OnlineSettings(n_envs=1, capacity=_WARMUP + STEPS, warmup=_WARMUP)  # published: 100,000, never full


class Log(NamedTuple):
    """The steps of agents that learned online, on the host.

    Attributes:
        steps: (STEPS, …) transitions in the order of time, with the global state.
        metrics: the task's quantities, (STEPS,) each.
        begins: (E,) number of the first step of each whole episode.
        ends: (E,) number of the step after each.
    """

    steps: Transition
    metrics: dict[str, np.ndarray]
    begins: np.ndarray
    ends: np.ndarray


def check_size(name: str, size: int) -> None:
    """Raises a `UserError` if a slice cannot hold so many transitions, before anything is trained."""
    most = STEPS // 2 if name == "middle" else STEPS
    if size > most:
        raise _too_short(name, most, size)


def train_online(env: MultiAgentEnv, seeds: Sequence[int]) -> list[Log]:
    """Trains MA-DQN online, all seeds in one program, spread over the devices.

    Args:
        env: a discrete task.
        seeds: one for each log.

    Raises:
        UserError: if the method cannot learn the task, or diverged.
    """
    spec = env.task_spec
    method = algorithms.find(_METHOD)
    learner = method.make(method.configure(spec, _OVERRIDES), spec)
    learner = learner._replace(needs=learner.needs._replace(state=True))  # for the log
    context = Context(Stats.unknown(spec))

    def run(key: Any, _: None) -> tuple[Transition, dict[str, Any], Any]:
        learner_key, env_key, train_key = jax.random.split(key, 3)
        state = online.init(learner, learner.init(learner_key, context), env, _SETTINGS, env_key)

        def step(state: online.OnlineState, number: Any) -> tuple[online.OnlineState, Any]:
            state, metrics = online.step(learner, env, _SETTINGS, state, number, train_key)
            return state, {name: metrics[name] for name in env.metric_names}

        state, metrics = jax.lax.scan(step, state, jnp.arange(STEPS))
        values = jax.tree.leaves(state.learner.policy)
        return state.buffer, metrics, jnp.stack([jnp.isfinite(x).all() for x in values]).all()

    placement = Placement.default(len(seeds))
    keys = jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
    made = placement.run_all(jax.jit(placement.map_runs(run)), len(seeds), keys, None)
    if not made[2].all():
        diverged = [seed for seed, finite in zip(seeds, made[2], strict=True) if not finite]
        raise UserError(f"MA-DQN diverged on '{spec.name}' with the seeds {diverged}: there is no log of it.")
    return [_log(*jax.tree.map(lambda x, i=i: x[i], made[:2])) for i in range(len(seeds))]


def _log(steps: Transition, metrics: dict[str, np.ndarray]) -> Log:
    """A log without the warm-up, which `steps` begin with."""
    ends = np.flatnonzero(steps.truncated | steps.terminal.all(axis=1)) + 1
    begins = np.append(0, ends[:-1])
    logged = begins >= _WARMUP
    steps = jax.tree.map(lambda x: x[_WARMUP:], steps)
    return Log(steps, metrics, begins[logged] - _WARMUP, ends[logged] - _WARMUP)


def cut(env: MultiAgentEnv, log: Log, name: str, size: int) -> tuple[EpisodeStore, dict[str, np.ndarray], str]:
    """Takes a slice of a log.

    Args:
        env: the task.
        log: of agents that learned in it.
        name: one of `SLICES`.
        size: transitions, rounded up to whole episodes (of `mixed`: of average length).

    Returns:
        the rows; for each of the task's quantities its sum over each episode; and the steps of the slice, in words.

    Raises:
        UserError: if the slice would have fewer transitions.
    """
    usable = np.flatnonzero(log.begins >= (STEPS // 2 if name == "middle" else 0))
    lengths = (log.ends - log.begins)[usable]
    if size > lengths.sum():
        raise _too_short(name, int(lengths.sum()), size)
    if name == "mixed":
        count = int(np.ceil(size / lengths.mean()))
        chosen = usable[np.linspace(0, len(usable) - 1, count).round().astype(int)]
    else:
        backwards = -1 if name == "late" else 1
        count = int(np.searchsorted(np.cumsum(lengths[::backwards]), size)) + 1
        chosen = np.sort(usable[::backwards][:count])

    at = np.concatenate([np.arange(log.begins[i], log.ends[i]) for i in chosen])
    last = log.ends[chosen] - 1
    steps, ending = (jax.tree.map(lambda x, i=i: x[i], log.steps) for i in (at, last))
    rows = from_episodes(
        env.task_spec,
        steps.obs,
        steps.actions,
        steps.rewards,
        steps.terminal,
        steps.truncated,
        ending.next_obs,
        lengths=log.ends[chosen] - log.begins[chosen],
        state=steps.state,
        last_state=ending.next_state,
        action_mask=steps.action_mask,
        last_action_mask=ending.next_action_mask,
    )
    totals = {
        name: np.add.reduceat(values[at], np.cumsum(np.append(0, (log.ends - log.begins)[chosen][:-1])))
        for name, values in log.metrics.items()
    }
    spread = " in parts" if name == "mixed" else ""
    return rows, totals, f"MA-DQN while it learned, steps {log.begins[chosen[0]]:,} to {log.ends[chosen[-1]]:,}{spread}"


def _too_short(name: str, most: int, size: int) -> UserError:
    return UserError(f"The slice '{name}' of a log of {STEPS:,} steps holds {most:,} transitions, not {size:,}.")
