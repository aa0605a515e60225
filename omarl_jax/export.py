"""Policies on disk: one small `.npz` of arrays and a JSON header, never a pickle."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax import algorithms
from omarl_jax.errors import UserError
from omarl_jax.files import read_arrays, read_run_config, replacing, require_unchanged
from omarl_jax.schemas import PolicyHeader, PolicyMetadata, convert, parse_versioned, to_json
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

    @functools.cached_property
    def functions(self) -> tuple[Act, Any]:
        """`act` and its first carry, to be used under jit and vmap."""
        algorithm = algorithms.find(self.algorithm).make(self.config, self.spec)
        return algorithm.act, algorithm.carry

    def require_one(self) -> None:
        """Raises a `UserError` if these are several policies."""
        if self.count is not None:
            raise UserError(f"These are {self.count} policies, not one: take the params of one of them.")

    def start(self) -> Any:
        """The carry of the first step of an episode; empty for a policy without memory."""
        return self.functions[1]

    def step(self, obs: Any, mask: Any, carry: Any) -> tuple[np.ndarray, Any]:
        """Acts greedily for one step.

        Args:
            obs: (N, O) observations.
            mask: (N, A) legal actions of a discrete task; None if all are legal, and in continuous tasks.
            carry: of `start`, or of the step before.

        Returns:
            actions, (N, A) or (N,) integers, and the next carry.

        Raises:
            UserError: if the file holds several policies, or the shapes are not those of one step of the task.
        """
        self.require_one()
        obs = self._checked("obs", obs, np.float32, self.spec.obs_dim)
        mask = mask if mask is None else self._checked("mask", mask, np.bool_, self.spec.action_dim)
        shapes = [jax.tree.map(np.shape, tree) for tree in (carry, self.functions[1])]
        if shapes[0] != shapes[1]:
            raise UserError(f"The carry must be what start() or the last step() returned, not {shapes[0]}.")
        actions, carry = self._step(self._on_device, obs, mask, carry)
        return np.asarray(actions), carry

    def act(self, obs: Any, mask: Any = None) -> np.ndarray:
        """Acts greedily for one step with a policy that has no memory; see `step`.

        Raises:
            UserError: if the policy has a memory, and as of `step`.
        """
        carry = self.start()
        if jax.tree.leaves(carry):
            raise UserError(f"A policy of '{self.algorithm}' remembers: use start() and step().")
        return self.step(obs, mask, carry)[0]

    def _checked(self, name: str, given: Any, dtype: Any, length: int) -> np.ndarray:
        """One step of all agents as an array (N, length)."""
        agents = self.spec.n_agents
        try:
            array = np.asarray(given)
            converted = array.astype(dtype)
        except (ValueError, TypeError) as error:
            raise UserError(f"{name} must be numbers of shape {(agents, length)} ({error}).") from None
        if array.shape == (agents, length):
            return converted
        hint = ""
        if array.shape[1:] == (agents, length):
            hint = "; of a batch, give one element after the other, or map `functions` with jax.vmap"
        elif array.shape in ((length,), (1, length)) and agents > 1:
            hint = "; all agents act together, so give what each of them sees"
        raise UserError(f"{name} must have shape {(agents, length)}, not {array.shape}{hint}.")

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
    header = PolicyHeader(FORMAT, algorithm, dataclasses.asdict(config), spec, metadata)
    with_paths = jax.tree_util.tree_leaves_with_path(params)
    leaves: dict[str, Any] = {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in with_paths}
    with replacing(pathlib.Path(path)) as file:
        np.savez_compressed(file, header=np.array(to_json(header).decode()), **leaves)


def load_policy(path: str | pathlib.Path, allow_import: bool = False) -> SavedPolicy:
    """Reads what `save_policy` wrote.

    Args:
        path: the file, or the folder of a run.
        allow_import: whether to import the module of a method that is not of this package, which runs its code.

    Raises:
        UserError: if there is no such file, it holds something else, or it names a module that may not be imported.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if not (path / "policy.npz").exists():
            raise UserError(f"There is no policy in '{path}', or the run there has not finished.")
        if (path / "config.json").exists():
            read_run_config(path)
        require_unchanged(path)
        path = path / "policy.npz"
    if not path.exists():
        raise UserError(f"There is no policy '{path}'.")
    leaves = read_arrays(path)
    if "header" not in leaves or leaves["header"].dtype.kind != "U":
        raise UserError(f"'{path}' is not a policy of this package: it has no header.")
    header = parse_versioned(str(leaves.pop("header")), PolicyHeader, FORMAT, f"'{path}'")
    convert(header.metadata, PolicyMetadata, f"'{path}' is damaged, or was changed by hand")
    method = algorithms.find(header.algorithm, allow_import)
    try:
        config = method.configure(header.spec, header.config)
    except UserError as error:
        raise UserError(f"'{path}' does not fit this version of '{method.name}': {error}") from None

    def fresh() -> Any:
        algorithm = method.make(config, header.spec)
        parts = algorithms.untrained(algorithm.needs.parts, header.spec)
        return algorithm.init(jax.random.key(0), Context(Stats.unknown(header.spec), parts=parts)).policy

    template = jax.eval_shape(fresh)
    expected = {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(template)}
    one = {name: (leaf.shape, leaf.dtype) for name, leaf in expected.items()}
    found = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    stacked = () if found == one else next(iter(found.values()), ((), None))[0][:1]
    if found != {name: (stacked + shape, dtype) for name, (shape, dtype) in one.items()}:
        raise UserError(f"The arrays in '{path}' do not fit a policy of '{method.name}'.")
    if bad := [name for name, leaf in leaves.items() if not np.isfinite(leaf).all()]:
        raise UserError(f"'{path}' is damaged: {bad[0]} holds numbers that are not finite.")
    params = jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in expected])
    return SavedPolicy(header.algorithm, config, header.spec, params, header.metadata, *stacked)
