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

    @property
    def latest(self) -> int | None:
        """The round of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, round: int, tree: Any) -> None:
        """Saves a state. A crash meanwhile leaves the checkpoint before it in force."""
        try:
            self._manager.save(round, args=ocp.args.StandardSave(tree))
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise UserError(f"The checkpoint of round {round} cannot be written to '{self.folder}': {error}.") from None

    def restore(self, like: Any) -> Any:
        """Reads the newest checkpoint into the structure, shapes and placement of `like`.

        Raises:
            UserError: if it is damaged or belongs to something else.
        """

        def described(x: Any) -> Any:  # what is on the host is its own description
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x

        target = jax.tree.map(described, like)
        try:
            return self._manager.restore(self.latest, args=ocp.args.StandardRestore(target))
        except Exception as error:  # Orbax raises many kinds, whatever it stumbles over
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            message = f"The checkpoint in '{self.folder}' cannot be read, or is of another program: {reason}"
            raise UserError(message) from None

    def close(self) -> None:
        """Waits for what is being written and lets go of the folder."""
        self._manager.close()
