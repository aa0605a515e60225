"""Policies on disk: one small `.npz` of arrays and a JSON header, never a pickle."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax import algorithms
from omarl_jax.errors import UserError
from omarl_jax.files import read_arrays, replacing, written_by
from omarl_jax.types import Act, Context, Stats, View

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class SavedPolicy:
    """A policy read from disk, or several of one kind.

    To act step by step, compiled once:

        carry = policy.start()
        actions, carry = policy.step(obs, mask, carry)

    Attributes:
        algorithm: the name of its method.
        config: the method's hyperparameters.
        spec: the task.
        params: what `Algorithm.act` is given; every leaf begins with (P,) if the file holds several policies.
        metadata: whatever was saved with it.
        count: P, None if the file holds one policy.
    """

    algorithm: str
    config: Any
    spec: TaskSpec
    params: Any
    metadata: dict[str, Any]
    count: int | None = None

    @property
    def functions(self) -> tuple[Act, Any]:
        """`act` and its first carry, to be used under jit and vmap."""
        algorithm = algorithms.find(self.algorithm).make(self.config, self.spec)
        return algorithm.act, algorithm.carry

    def start(self) -> Any:
        """The carry of the first step of an episode; empty for a policy without memory."""
        return self.functions[1]

    def step(self, obs: np.ndarray, mask: np.ndarray | None, carry: Any) -> tuple[np.ndarray, Any]:
        """Acts greedily for one step.

        Args:
            obs: (N, O) observations.
            mask: (N, A) legal actions of a discrete task, or None.
            carry: of `start`, or of the step before.

        Returns:
            actions, (N, A) or (N,) integers, and the next carry.

        Raises:
            UserError: if the file holds several policies.
        """
        if self.count is not None:
            raise UserError(f"These are {self.count} policies, not one: take the params of one of them.")
        actions, carry = self._step(self._on_device, jnp.asarray(obs), mask, carry)
        return np.asarray(actions), carry

    def act(self, obs: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Acts greedily for one step with a policy that has no memory; see `step`.

        Raises:
            UserError: if the policy has a memory, or the file holds several policies.
        """
        carry = self.start()
        if jax.tree.leaves(carry):
            raise UserError(f"A policy of '{self.algorithm}' remembers: use start() and step().")
        return self.step(obs, mask, carry)[0]

    @functools.cached_property
    def _step(self) -> Callable[..., tuple[Any, Any]]:
        act, _ = self.functions
        return jax.jit(lambda params, obs, mask, carry: act(params, View(obs, mask), carry, jax.random.key(0)))

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.params)


def save_policy(
    path: str | pathlib.Path, algorithm: str, config: Any, spec: TaskSpec, params: Any, metadata: dict[str, Any]
) -> None:
    """Writes a policy (or several, stacked), whole or not at all.

    Args:
        path: an `.npz`.
        algorithm: the name of the method or variant.
        config: its hyperparameters.
        spec: the task.
        params: the policy, arrays; every leaf (P, …) for several.
        metadata: anything that JSON can hold; `options`, constructor arguments of the task, are used by the readers.

    Raises:
        UserError: if the file cannot be written.
    """
    header = {
        "format": FORMAT,
        "algorithm": algorithm,
        "config": dataclasses.asdict(config),
        "spec": dataclasses.asdict(spec),
        "metadata": metadata,
    }
    with_paths = jax.tree_util.tree_leaves_with_path(params)
    leaves: dict[str, Any] = {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in with_paths}
    with replacing(pathlib.Path(path)) as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), **leaves)


def load_policy(path: str | pathlib.Path, allow_import: bool = False) -> SavedPolicy:
    """Reads what `save_policy` wrote.

    Args:
        path: the file.
        allow_import: whether to import the module of a method that is not of this package, which runs its code.

    Raises:
        UserError: if there is no such file, it holds something else, or it names a module that may not be imported.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"There is no policy '{path}'.")
    try:
        leaves = read_arrays(path)
        header = json.loads(str(leaves.pop("header")))
        if header["format"] != FORMAT:
            raise UserError(f"'{path}' {written_by(header['format'], FORMAT)}")
        spec = TaskSpec(**header["spec"])
        method = algorithms.find(header["algorithm"], allow_import)
        config = method.configure(spec, header["config"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' is not a policy of this package ({type(error).__name__}: {error}).") from None

    def fresh() -> Any:
        algorithm = method.make(config, spec)
        context = Context(Stats.unknown(spec), parts=algorithms.untrained(algorithm.needs.parts, spec))
        return algorithm.init(jax.random.key(0), context).policy

    template = jax.eval_shape(fresh)
    expected = {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(template)}
    of_one = {name: leaf.shape for name, leaf in expected.items()}
    found = {name: leaf.shape for name, leaf in leaves.items()}
    stacked = () if found == of_one else next(iter(found.values()), ())[:1]
    if found != {name: stacked + shape for name, shape in of_one.items()}:
        raise UserError(f"The arrays in '{path}' do not fit a policy of '{method.name}'.")
    params = jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in expected])
    return SavedPolicy(header["algorithm"], config, spec, params, header["metadata"], *stacked)
