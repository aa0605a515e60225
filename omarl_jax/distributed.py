"""One program on several processes: a sweep that trains each run group on the devices of many hosts together.

All processes do the same in the same order, and compute together. What depends on files is decided by the first one,
which tells the others (`of_first`): only it writes, and only it has claims. A mistake that it finds is raised by all,
so that all go on to the next group.

Any other error belongs to one process, and the others would wait for it forever: it ends, and with it the others.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from omarl_jax.errors import UserError, whole

SECONDS = 60
"""After so long without a sign of life of one process, JAX ends the others."""

_T = TypeVar("_T")
_BLOCK = 2**24  # bytes that are sent at once: each device holds some copies meanwhile
_AGAIN = "start all processes again, and they continue from the last checkpoint"
_place = 0, 1  # the number of this process, and how many there are


class Lost(UserError):
    """Something went wrong in this process alone: it must end, as the others wait for it."""


def first() -> bool:
    """Whether this process writes."""
    return _place[0] == 0


def several() -> bool:
    """Whether this process is one of several."""
    return _place[1] > 1


def of_first(function: Callable[[], _T]) -> _T:
    """What a function returns in the first process, which alone calls it.

    Args:
        function: returns what JSON can hold; in the other processes tuples come as lists.

    Raises:
        UserError: in all processes, if it was raised there. Its subclasses and all other errors stay in the first one.
    """
    if not several():
        return function()
    outcome: Any = None
    if first():
        try:
            outcome = [function(), ""]
        except UserError as error:
            if type(error) is not UserError:
                raise
            outcome = [None, str(error)]
    value, problem = json.loads(_sent(json.dumps(outcome).encode()))
    if problem:
        raise UserError(problem)
    return outcome[0] if first() else value


def agreed(function: Callable[[], _T]) -> _T:
    """What a function returns here; all processes call it, and if it raises a `UserError` in one, it does in all."""
    if not several():
        return function()
    value: Any = None
    try:
        value, problem = function(), ""
    except UserError as error:
        if type(error) is not UserError:
            raise
        problem = str(error)
    if found := [text for text in _texts(problem) if text]:
        raise UserError(found[0])
    return value


def require_alike(what: str, mine: str) -> None:
    """Raises a `UserError` in all processes if a text is not the same in all.

    Args:
        what: it is, for the sentence.
        mine: the text here: items with commas between, of which those that differ are shown.
    """
    if not several():
        return
    texts = _texts(mine)
    for number, text in enumerate(texts):
        if text != texts[0]:
            one, other = (
                ", ".join(item for item in here.split(", ") if item not in there.split(", "))[:200] or "less"
                for here, there in ((text, texts[0]), (texts[0], text))
            )
            raise UserError(f"Process {number} has {what} ({one}) that process 0 has not ({other}): start all alike.")


def arrays_of_first(tree: Any, like: Any) -> Any:
    """Arrays on the host of the first process, on the hosts of all.

    Args:
        tree: the arrays; in the other processes it does not matter.
        like: arrays of the same structure, shapes and types, in all processes.
    """
    import jax

    leaves, structure = jax.tree.flatten(like)
    mine = [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)] if first() else [b""] * len(leaves)
    came = [np.frombuffer(_sent(data), one.dtype).reshape(one.shape) for data, one in zip(mine, leaves, strict=True)]
    return jax.tree.unflatten(structure, came)


@contextlib.contextmanager
def joined(complain: Callable[[str], None]) -> Iterator[None]:
    """Joins the other processes until the end of the context; to be entered before anything touches a device.

    On SLURM, on TPUs and under the other launchers that JAX knows, it finds them itself. Elsewhere they are said by
    JAX_COORDINATOR_ADDRESS, which is the first one's host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    An error ends the process here, after its sentence, without the cleaning up in which JAX waits for the others. Where
    JAX ends it itself, which Python hears nothing of, a small process that was started before says the sentence.

    Args:
        complain: shows a sentence.
    """
    global _place
    ended = _watched(complain)
    code = 0
    try:
        _place = _initialised()
        yield
        leave()
    except KeyboardInterrupt:
        complain(f"This process was stopped, and the others end, too: {_AGAIN}.")
        code = 130
    except UserError as error:
        complain(str(error))
        code = 1
        if type(error) is UserError:  # so have the others: wait until they have said it
            leaving = threading.Thread(target=leave, daemon=True)
            leaving.start()
            leaving.join(timeout=10)
    except Exception as error:
        complain(str(lost(error)))
        code = 1
    ended()
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def leave() -> None:
    """Parts from the other processes, once all have come here."""
    global _place
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    _place = 0, 1


def lost(error: Exception) -> Lost:
    """What is said of an error that is no mistake of the user."""
    reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300].rstrip(".")
    return Lost(
        f"Process {_place[0]} of {_place[1]} cannot go on ({reason}). If another one died, this is how it shows: "
        f"{_AGAIN}."
    )


def _initialised() -> tuple[int, int]:
    """Joins the others; returns the number of this process, and how many there are."""
    import jax

    # Its handler would keep a process alive that its launcher asks to end.
    jax.config.update("jax_enable_preemption_service", False)
    count, number = _number("JAX_NUM_PROCESSES", 1), _number("JAX_PROCESS_ID", 0)  # JAX reads only the address
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=number,
            heartbeat_timeout_seconds=SECONDS,
            initialization_timeout=5 * SECONDS,
        )
    except Exception as error:  # of many kinds, by what is missing
        reason = str(error).partition("\n")[0][:300].rstrip(".")
        raise Lost(
            f"--distributed finds no other processes ({reason}). Under SLURM's srun and on TPUs it needs nothing; "
            "elsewhere set JAX_COORDINATOR_ADDRESS to host:port of the first process, JAX_NUM_PROCESSES to their "
            "number, and JAX_PROCESS_ID to that of each, from 0."
        ) from None
    place = jax.process_index(), jax.process_count()
    if place[1] == 1:
        raise UserError("--distributed is for several processes, and here is one: leave it out, or start more.")
    return place


def _number(name: str, least: int) -> int | None:
    """A whole number in the environment, None if it is not there."""
    text = os.environ.get(name)
    if not text:
        return None
    return whole(name, int(text) if text.isdecimal() else text, least)


def _watched(complain: Callable[[str], None]) -> Callable[[], None]:
    """Starts a process that says a sentence if this one ends before it has called what is returned."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if not os.read(reader, 1):
            complain(
                "This process of the sweep was ended: it was killed, or another one died or was not heard of for "
                f"{SECONDS} seconds. Find out which was the first, and {_AGAIN}."
            )
        os._exit(0)
    os.close(reader)

    def ended() -> None:
        os.write(writer, b".")
        os.close(writer)

    return ended


def _sent(data: bytes) -> bytes:
    """What the first process gives, in all processes."""
    from jax.experimental import multihost_utils

    def block(part: bytes, size: int) -> bytes:
        return multihost_utils.broadcast_one_to_all(np.frombuffer(part.ljust(size, b"\0"), np.uint8)).tobytes()

    data = data if first() else b""
    size = int.from_bytes(block(len(data).to_bytes(8), 8))
    width = min(_padded(size), _BLOCK)
    return b"".join(block(data[at : at + width], width) for at in range(0, size, width))[:size]


def _texts(mine: str) -> list[str]:
    """The texts of all processes, in their order."""
    from jax.experimental import multihost_utils

    data = mine.encode()
    sizes = [int(size) for (size,) in multihost_utils.process_allgather(np.array([len(data)], np.int32))]
    width = _padded(max(sizes))
    rows = multihost_utils.process_allgather(np.frombuffer(data.ljust(width, b"\0"), np.uint8))
    return [row.tobytes()[:size].decode() for row, size in zip(rows, sizes, strict=True)]


def _padded(size: int) -> int:
    """At least so many bytes, in one of few sizes: each is a program that has to be compiled."""
    return max(1 << (size - 1).bit_length(), 64) if size else 64
