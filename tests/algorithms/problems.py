"""What the tests of the methods share: a small task, batches for it, and the networks once more in NumPy."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax.algorithms import Method, find, methods
from omarl_jax.errors import UserError
from omarl_jax.types import Algorithm, Context, Stats, Transition

N, O, A = 2, 3, 2  # noqa: E741  # the letters of the shapes
SPEC = TaskSpec("toy/continuous", "continuous", n_agents=N, obs_dim=O, action_dim=A, state_dim=N * O, episode_length=5)
STATS = Stats.unknown(SPEC)
CONTEXT = Context(STATS)


# For programs that run for seconds; without any optimisation, as others are, they would run for longer.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})


def _accepts(method: Method, spec: TaskSpec) -> bool:
    try:
        method.validate(method.defaults, spec)
    except UserError:
        return False
    return True


METHODS = {name: find(name) for name in (*methods(), "ccql", "ccqr", "ciql", "itd3", "maddpg")}
CONTINUOUS = [name for name, method in METHODS.items() if _accepts(method, SPEC)]


def make(name: str, **overrides: Any) -> tuple[Any, Algorithm]:
    """A valid config with small networks, and the method made from it; hyperparameters it does not have are dropped."""
    method = METHODS[name]
    known = {field.name for field in dataclasses.fields(method.config)}
    small = {"hidden": (16,), "batch_size": 64} | overrides
    config = method.configure(SPEC, {key: value for key, value in small.items() if key in known})
    return config, method.make(config, SPEC)


@functools.cache
def step(name: str) -> Callable[..., tuple[Any, Any]]:
    """One round, (config, state, batch, key) -> state, metrics, compiled once for all float hyperparameters."""
    return jax.jit(lambda config, state, one, key: METHODS[name].make(config, SPEC).update(state, one, key))


def started(name: str, config: Any) -> Any:
    """A state after a few rounds, so that targets and statistics are no longer as in the beginning."""
    state = METHODS[name].make(config, SPEC).init(jax.random.key(7), CONTEXT)
    for i in range(3):
        state, _ = step(name)(config, state, batch(100 + i, config.batch_size), jax.random.key(i))
    return state


def batch(seed: int, size: int, **fields: Any) -> Transition:
    """Random transitions, (size, N, …), a quarter of them terminal; `fields` replace some of theirs."""
    rng = np.random.default_rng(seed)
    columns = {
        "obs": rng.normal(1.0, 2.0, (size, N, O)),
        "actions": rng.uniform(-1, 1, (size, N, A)),
        "rewards": rng.normal(size=(size, N)),
        "next_obs": rng.normal(1.0, 2.0, (size, N, O)),
        "terminal": np.repeat(rng.random((size, 1)) < 0.25, N, axis=1),
        "truncated": np.zeros(size, bool),
        "next_actions": rng.uniform(-1, 1, (size, N, A)),
    }
    arrays = {name: np.asarray(x, None if np.asarray(x).dtype == bool else np.float32) for name, x in columns.items()}
    return jax.tree.map(jnp.asarray, Transition(**arrays)._replace(**fields))


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def of(tree: Any, agent: int) -> Any:
    """The part of one agent (or critic)."""
    return jax.tree.map(lambda x: x[agent], tree)


def parts(x: Any, groups: int) -> list[np.ndarray]:
    """What each of the critics sees of (B, N, …): the part of its agent, or those of all agents in a row."""
    x = np.asarray(x, np.float64)
    return [x[:, i] for i in range(N)] if groups == N else [np.concatenate([x[:, i] for i in range(N)], axis=-1)]


def np_normalise(x: np.ndarray, params: Any) -> np.ndarray:
    """Batch normalisation, over all axes but the last; nothing without parameters."""
    if params is None:
        return x
    rows = x.reshape(-1, x.shape[-1])
    return (x - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5) * params["scale"] + params["bias"]


def np_mlp(params: Any, obs: np.ndarray) -> np.ndarray:
    """The last layer of one agent's policy, (B, O) -> (B, outputs)."""
    x = np_normalise(obs, params.get("_Normalise_0"))
    layers = [params[f"_Dense_{i}"] for i in range(sum(name.startswith("_Dense") for name in params))]
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def np_critic(params: Any, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Values of one agent's critics, (B, O), (…, B, A) -> (heads, …, B), each on concatenated inputs."""
    obs = np.broadcast_to(obs, (*actions.shape[:-1], obs.shape[-1]))
    norm = {"scale": params["scale"], "bias": params["shift"]} if "scale" in params else None
    inputs = np_normalise(np.concatenate([obs, actions], axis=-1), norm)
    heads = []
    for head in range(len(params["b_0"])):
        x = inputs @ params["w_0"][head] + params["b_0"][head]
        for i in range(1, sum(name.startswith("b_") for name in params)):
            x = np.maximum(x, 0) @ params[f"w_{i}"][head] + params[f"b_{i}"][head]
        heads.append(x[..., 0])
    return np.stack(heads)
