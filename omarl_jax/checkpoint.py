"""The complete state of a program on disk, one Orbax tree for all its runs."""

import logging
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from omarl_jax import distributed
from omarl_jax.errors import UserError
from omarl_jax.files import digests, replacing, require_digests
from omarl_jax.placement import fetch, is_out_of_memory
from omarl_jax.schemas import parse, to_json

_DIGESTS = "digests.json"  # of all files of a checkpoint, written last


class Checkpoints:
    """The checkpoints of one program, the last two of them.

    Where a program runs on several processes, all call the same, and the first one reads and writes.

    Args:
        folder: where they lie; made when the first one is saved.
        check: raises if another worker is to write there. It is asked before each checkpoint, and again before the
            checkpoint counts.
    """

    def __init__(self, folder: pathlib.Path, check: Callable[[], None] = lambda: None):
        logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports every file it writes
        self.folder, self._check = folder, check
        distributed.of_first(self._open)

    def _open(self) -> None:
        folder, alone = self.folder, ocp.options.MultiprocessingOptions()
        try:
            if distributed.several():  # Orbax would wait for the others
                alone = ocp.options.MultiprocessingOptions(active_processes={0})
                folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2,
                enable_async_checkpointing=False,
                create=not distributed.several(),
                multiprocessing_options=alone,
            )
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        except OSError as error:
            raise UserError(f"The checkpoint folder '{folder}' cannot be used: {error.strerror or error}.") from None

    @staticmethod
    def any_in(folder: pathlib.Path) -> bool:
        """Whether a folder holds a checkpoint; it need not exist."""
        return Checkpoints.newest(folder) > 0

    @staticmethod
    def newest(folder: pathlib.Path) -> int:
        """The updates of the newest checkpoint in a folder, 0 if there is none; it need not exist."""
        return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)

    def save(self, updates: int, tree: Any) -> None:
        """Saves a state after so many updates. If it crashes meanwhile, the previous checkpoint serves."""
        if distributed.several():
            tree = fetch(tree)
        distributed.of_first(lambda: self._save(updates, tree))

    def _save(self, updates: int, tree: Any) -> None:
        self._check()
        try:
            for left in [*self.folder.glob(f"{updates}"), *self.folder.glob(f"{updates}.*")]:
                shutil.rmtree(left)  # by a worker that was stopped in the middle of saving the same
            self._manager.save(updates, args=ocp.args.StandardSave(tree))
            self._manager.wait_until_finished()
            saved = digests(self.folder / str(updates), self._files(updates))
        except (OSError, ValueError) as error:
            raise UserError(
                f"The checkpoint after {updates} updates cannot be written to '{self.folder}': {error}."
            ) from None
        self._check()  # the next worker may have removed it, as one that is not whole
        with replacing(self.folder / str(updates) / _DIGESTS) as file:
            file.write(to_json(saved))

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """Reads the newest checkpoint into the structure, shapes and placement of `like`.

        If it is not as it was saved, the one before it is read, with a warning.

        Returns:
            the state and its updates; None if nothing was saved yet.

        Raises:
            UserError: if no checkpoint can be read, or they belong to something else.
            jax.errors.JaxRuntimeError: if a device has no room for the state.
        """
        if not distributed.several():
            return self._restore(like)
        restored: list[Any] = []
        like = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like)  # without memory

        def read() -> int:
            restored.append(self._restore(like))
            return 0 if restored[0] is None else restored[0][1]

        if not (updates := distributed.of_first(read)):
            return None
        return distributed.arrays_of_first(restored[0][0] if restored else None, like), updates

    def _restore(self, like: Any) -> tuple[Any, int] | None:
        def described(x: Any) -> Any:  # arrays on the host describe themselves
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x

        target = ocp.args.StandardRestore(jax.tree.map(described, like))
        reasons: dict[int, str] = {}
        for updates in sorted(self._manager.all_steps(), reverse=True):
            if not (self.folder / str(updates) / _DIGESTS).exists():  # stopped before it was whole
                self._manager.delete(updates)
                continue
            try:
                self._require_whole(updates)
                state = self._manager.restore(updates, args=target)
            except Exception as error:  # Orbax raises many kinds, whatever it stumbles over
                if is_out_of_memory(error):  # the checkpoint is as it should be
                    raise
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                reasons[updates] = f"{kind}{error}".splitlines()[0][:300].rstrip(".")
                continue
            for later, reason in reasons.items():  # it will be saved again
                logging.getLogger(__name__).warning("Left out the checkpoint after %d updates: %s.", later, reason)
                self._manager.delete(later)
            return state, updates
        if not reasons:
            return None
        raise UserError(
            f"The checkpoints in '{self.folder}' cannot be read, or are of another program "
            f"({next(iter(reasons.values()))}); delete '{self.folder.parent}' to start these runs again."
        )

    def _require_whole(self, updates: int) -> None:
        """Raises a `UserError` unless the files of a checkpoint are those that were saved."""
        folder = self.folder / str(updates)
        path = folder / _DIGESTS
        expected = parse(path.read_bytes(), dict[str, str], f"'{path}'")
        if added := set(self._files(updates)) - set(expected):
            raise UserError(f"'{folder / min(added)}' was added since it was written")
        require_digests(folder, expected)

    def _files(self, updates: int) -> list[str]:
        folder = self.folder / str(updates)
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != _DIGESTS)
        return sorted(path.relative_to(folder).as_posix() for path in files)

    def close(self) -> None:
        """Waits for unfinished writes and releases the folder."""
        if distributed.first():
            self._manager.close()
