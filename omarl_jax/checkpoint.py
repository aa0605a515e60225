"""The complete state of a program on disk, one Orbax tree for all its runs."""

import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from omarl_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one program, the last two of them.

    Args:
        folder: where they lie; made when the first one is saved.
    """

    def __init__(self, folder: pathlib.Path):
        logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports every file it writes
        self.folder = folder
        try:
            options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        except OSError as error:
            raise UserError(f"The checkpoint folder '{folder}' cannot be used: {error.strerror or error}.") from None

    @staticmethod
    def any_in(folder: pathlib.Path) -> bool:
        """Whether a folder holds a checkpoint; it need not exist."""
        return any(path.name.isdigit() for path in folder.glob("*"))

    def save(self, updates: int, tree: Any) -> None:
        """Saves a state after so many updates. If it crashes meanwhile, the previous checkpoint stays valid."""
        try:
            self._manager.save(updates, args=ocp.args.StandardSave(tree))
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise UserError(
                f"The checkpoint after {updates} updates cannot be written to '{self.folder}': {error}."
            ) from None

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """Reads the newest checkpoint into the structure, shapes and placement of `like`.

        If it is damaged, the one before it is read.

        Returns:
            the state and its updates; None if nothing was saved yet.

        Raises:
            UserError: if no checkpoint can be read, or they belong to something else.
        """

        def described(x: Any) -> Any:  # arrays on the host describe themselves
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x

        target = ocp.args.StandardRestore(jax.tree.map(described, like))
        reason, damaged = None, []
        for updates in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._manager.restore(updates, args=target)
            except Exception as error:  # Orbax raises many kinds, whatever it stumbles over
                reason = reason or f"{type(error).__name__}: {error}".splitlines()[0][:200]
                damaged.append(updates)
                continue
            for later in damaged:  # which will be saved again
                self._manager.delete(later)
            return state, updates
        if reason is None:
            return None
        raise UserError(
            f"The checkpoints in '{self.folder}' cannot be read, or are of another program ({reason}); delete "
            f"'{self.folder.parent}' to start these runs again."
        )

    def close(self) -> None:
        """Waits for unfinished writes and releases the folder."""
        self._manager.close()
