"""Policies on disk: one small `.npz` of arrays and a JSON header, never a pickle."""

import dataclasses
import json
import os
import pathlib
import tempfile
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.spec import TaskSpec

from omarl_jax import algorithms
from omarl_jax.errors import UserError
from omarl_jax.types import Act, Stats

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class SavedPolicy:
    """A policy read from disk, or several of one kind.

    Attributes:
        algorithm: the name of its method.
        config: the method's hyperparameters.
        spec: the task.
        params: what `Algorithm.act` is given; every leaf begins with (P,) if the file holds several policies.
        metadata: whatever was saved with it.
    """

    algorithm: str
    config: Any
    spec: TaskSpec
    params: Any
    metadata: dict[str, Any]

    @property
    def functions(self) -> tuple[Act, Any]:
        """`act` and its first carry, to be used under jit and vmap."""
        algorithm = algorithms.find(self.algorithm).make(self.config, self.spec)
        return algorithm.act, algorithm.carry

    def act(self, obs: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Greedy actions (N, …) for observations (N, O), of a policy without memory."""
        act, carry = self.functions
        return np.asarray(act(self.params, jnp.asarray(obs), mask, carry, jax.random.key(0))[0])


def save_policy(
    path: str | pathlib.Path, algorithm: str, config: Any, spec: TaskSpec, params: Any, metadata: dict[str, Any]
) -> None:
    """Writes a policy (or several, stacked), whole or not at all.

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
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **leaves)
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"The policy could not be written to '{path}': {error.strerror or error}.") from None


def load_policy(path: str | pathlib.Path) -> SavedPolicy:
    """Reads what `save_policy` wrote.

    Raises:
        UserError: if there is no such file, or it holds something else.
    """
    path = pathlib.Path(path)
    try:
        # Opened here, because NumPy leaves a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            header = json.loads(str(archive["header"]))
            leaves = {name: archive[name] for name in archive.files if name != "header"}
        if header["format"] != FORMAT:
            raise UserError(f"'{path}' has format {header['format']}; this version reads format {FORMAT}.")
        spec = TaskSpec(**header["spec"])
        method = algorithms.find(header["algorithm"])
        config = method.configure(spec, header["config"])
    except FileNotFoundError:
        raise UserError(f"There is no policy '{path}'.") from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' is not a policy of this package ({type(error).__name__}: {error}).") from None
    params = _unflatten(path, method, config, spec, leaves)
    return SavedPolicy(header["algorithm"], config, spec, params, header["metadata"])


def _unflatten(path: pathlib.Path, method: Any, config: Any, spec: TaskSpec, leaves: dict[str, np.ndarray]) -> Any:
    stats = Stats(*(jnp.zeros((spec.n_agents, spec.obs_dim)) for _ in Stats._fields))
    template = jax.eval_shape(lambda: method.make(config, spec).init(jax.random.key(0), stats)).policy
    expected = {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(template)}
    fits = set(expected) == set(leaves) and all(
        leaves[name].shape[-leaf.ndim :] == leaf.shape for name, leaf in expected.items()
    )
    if not fits:
        raise UserError(f"The arrays in '{path}' do not fit a policy of '{method.name}'.")
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in expected])
