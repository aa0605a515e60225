"""What the tests of the methods share: two small tasks, and batches for them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax.algorithms import Method, find, methods, untrained
from omarl_jax.errors import UserError
from omarl_jax.types import Algorithm, Context, Stats, Transition

N, O, A = 2, 3, 2  # noqa: E741  # the letters of the shapes
SPEC = TaskSpec("toy/continuous", "continuous", n_agents=N, obs_dim=O, action_dim=A, state_dim=N * O, episode_length=5)
DISCRETE_SPEC = dataclasses.replace(SPEC, name="toy/discrete", kind="discrete", action_dim=3)
STATS = Stats.unknown(SPEC)
CONTEXT = Context(STATS)


# For programs that run for seconds; without any optimisation, as others are, they would run for longer.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})


def accepts(method: Method, spec: TaskSpec) -> bool:
    """Whether a method learns on a task."""
    try:
        method.validate(method.defaults, spec)
    except UserError:
        return False
    return True


METHODS = {name: find(name) for name in (*methods(), "ccql", "ccqr", "ciql", "itd3", "maddpg")}
CONTINUOUS = [name for name, method in METHODS.items() if accepts(method, SPEC)]
DISCRETE = [name for name, method in METHODS.items() if accepts(method, DISCRETE_SPEC)]


def make(name: str, spec: TaskSpec | None = None, **overrides: Any) -> tuple[Any, Algorithm]:
    """A valid config with small networks, and the method made from it; hyperparameters it does not have are dropped."""
    method = METHODS[name]
    spec = spec or (SPEC if name in CONTINUOUS else DISCRETE_SPEC)
    known = {field.name for field in dataclasses.fields(method.config)}
    small = {"hidden": (16,), "batch_size": 64} | overrides
    config = method.configure(spec, {key: value for key, value in small.items() if key in known})
    return config, method.make(config, spec)


def context(algorithm: Algorithm, spec: TaskSpec, stats: Stats | None = None) -> Context:
    """What a method starts with: frozen parts as they are before training, and these statistics or none."""
    stats = stats or Stats.unknown(spec)
    return Context(stats, parts=untrained(algorithm.needs.parts, spec, stats))


@functools.cache
def step(name: str, spec: TaskSpec = SPEC) -> Callable[..., tuple[Any, Any]]:
    """One update, (config, state, batch, key) -> state, metrics, compiled once for all float hyperparameters."""
    return jax.jit(lambda config, state, one, key: METHODS[name].make(config, spec).update(state, one, key))


def started(name: str, config: Any, spec: TaskSpec = SPEC) -> Any:
    """A state after a few updates, so that targets and statistics are no longer as in the beginning."""
    method = METHODS[name].make(config, spec)
    state = method.init(jax.random.key(7), context(method, spec))
    for i in range(3):
        one = batch(100 + i, config.batch_size, spec, method.needs.length)
        state, _ = step(name, spec)(config, state, one, jax.random.key(i))
    return state


def batch(seed: int, size: int, spec: TaskSpec = SPEC, length: int | None = None, **fields: Any) -> Transition:
    """Random transitions, (size, N, …), or windows of that length, (size, length, N, …), with every field that a task
    can have.

    A quarter of them are terminal. Entries that an agent does not have are 0, or illegal. `fields` replace some.
    """
    rng = np.random.default_rng(seed)
    shape = (size,) if length is None else (size, length)
    team, discrete = (*shape, spec.n_agents), spec.kind == "discrete"
    sizes = np.array(spec.action_dims or (spec.action_dim,) * spec.n_agents)
    seen = np.arange(spec.obs_dim) < np.array(spec.obs_dims or (spec.obs_dim,) * spec.n_agents)[:, None]

    def obs() -> np.ndarray:
        return seen * rng.normal(1.0, 2.0, (*team, spec.obs_dim))

    def actions() -> np.ndarray:
        if discrete:
            return rng.integers(0, sizes, team).astype(np.int32)
        return (np.arange(spec.action_dim) < sizes[:, None]) * rng.uniform(-1, 1, (*team, spec.action_dim))

    columns = {
        "obs": obs(),
        "actions": actions(),
        "rewards": rng.normal(size=team),
        "next_obs": obs(),
        "terminal": np.repeat(rng.random((*shape, 1)) < 0.25, spec.n_agents, axis=-1),
        "truncated": np.zeros(shape, bool),
        "next_actions": actions(),
        "state": rng.normal(size=(*shape, spec.state_dim)),
        "next_state": rng.normal(size=(*shape, spec.state_dim)),
        "returns_to_go": rng.normal(size=team),
    }
    if discrete:
        legal = np.broadcast_to(np.arange(spec.action_dim) < sizes[:, None], (*team, spec.action_dim))
        columns |= {"action_mask": legal, "next_action_mask": legal}
    if length is not None:
        columns["valid"] = np.arange(length) < rng.integers(1, length + 1, (size, 1))
    floats = {k: x.astype(np.float32) if x.dtype == np.float64 else x for k, x in columns.items()}
    return jax.tree.map(jnp.asarray, Transition(**(floats | fields)))


def float64(tree: Any) -> Any:
    """The same with NumPy arrays in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def of(tree: Any, agent: int) -> Any:
    """The part of one agent (or critic)."""
    return jax.tree.map(lambda x: x[agent], tree)
