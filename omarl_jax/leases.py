"""Leases: which worker has which work, where several share a folder.

A worker *claims* names before it works on them, by making a file `NAME.NUMBER` that holds the worker's id. The highest
number stands. Numbers rise, and their files stay, so that each number belongs to one worker. While it has claims, a
thread of the worker changes its file in `workers/` every few seconds. If another worker sees that file unchanged for
`SECONDS`, it makes the file of the next number, and then crosses out the id in the old one. Before it writes anything,
a worker reads its own claim again: one that was stopped for too long finds it crossed out, and ends.

Nothing compares clocks of two machines: whoever waits measures the silence on a clock of its own. Of the file system
this is assumed, which local ones and NFS from version 3 on keep:

- of several processes that make a file which must not exist, one succeeds;
- who opens a file sees what was written to it before it was closed.

Locks of the system are not needed. Between reading a claim and writing is a moment in which a worker can be stopped,
too; what may come of it are files that the next one replaces.
"""

import contextlib
import itertools
import os
import pathlib
import platform
import threading
import time
import uuid
from collections.abc import Iterable, Iterator

from omarl_jax import distributed
from omarl_jax.errors import UserError

SECONDS = 60.0
"""After so long without a sign of life a worker has lost its claims."""

_FREE, _TAKEN = "free", "taken"  # what stands in a claim that was given back, or lost


class Outdated(UserError):
    """Another worker has what this one had claimed: it must write nothing more."""


class Claim:
    """Names that this worker has claimed.

    Args:
        folder: of the claims.
        worker: the id of this worker.
    """

    def __init__(self, folder: pathlib.Path, worker: str):
        self._folder, self._worker = folder, worker
        self.numbers: dict[str, int] = {}

    def check(self, *names: str) -> None:
        """Raises `Outdated` if another worker has one of these names by now; without names, any of the claim."""
        for name in names or self.numbers:
            if _read(self._path(name)) != self._worker:
                raise Outdated(
                    f"Another worker has taken over '{name}' in '{self._folder.parent}', as this one gave no sign of "
                    f"life for {SECONDS:g} seconds: it ends here, and has written nothing since."
                )

    def take(self, name: str, number: int) -> bool:
        """Claims a name with a number, and crosses out the one before; returns whether no other worker was first."""
        try:
            with (self._folder / f"{name}.{number}").open("x") as file:
                self.numbers[name] = number
                file.write(self._worker)
        except FileExistsError:
            return False
        with contextlib.suppress(FileNotFoundError):
            _rewrite(self._folder / f"{name}.{number - 1}", _TAKEN)
        return True

    def give_back(self) -> None:
        """Lets other workers claim what is still this one's."""
        for name in self.numbers:
            with contextlib.suppress(OSError, UserError):
                if _read(self._path(name)) == self._worker:
                    _rewrite(self._path(name), _FREE)

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.{self.numbers[name]}"


class Leases:
    """The claims of all workers on one folder, as one of them sees them.

    Args:
        folder: where claims are kept; it is made when there is one.
        versions: names and versions that all who work there must share, as in `jax 0.10.2, numpy 2.4.0`.
    """

    def __init__(self, folder: pathlib.Path, versions: str = ""):
        self.folder, self._versions = folder, versions
        self._seen: dict[str, tuple[str, float]] = {}  # of each worker the last sign of life that was new, and when

    @contextlib.contextmanager
    def claim(self, names: Iterable[str]) -> Iterator[Claim | None]:
        """Claims all of some names until the end of the context, or none if another worker has one of them.

        Several processes that are one worker claim them together: the first one does, and the others hold nothing.

        Raises:
            UserError: if the folder cannot be written, or a worker there has other versions.
        """
        names, claim = sorted(names), Claim(self.folder, "")
        with contextlib.ExitStack() as opened:

            def take() -> bool:
                nonlocal claim
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    standing = self._standing()
                    if any(self._held(self.folder / f"{name}.{standing[name]}") for name in names if name in standing):
                        return False
                    claim = Claim(self.folder, opened.enter_context(_alive(self.folder / "workers", self._versions)))
                    opened.callback(claim.give_back)
                    return all(claim.take(name, standing.get(name, 0) + 1) for name in names)
                except OSError as error:
                    raise UserError(f"'{self.folder}' cannot be written: {error.strerror or error}.") from None

            yield claim if distributed.of_first(take) else None

    @contextlib.contextmanager
    def wait(self, names: Iterable[str]) -> Iterator[Claim]:
        """`claim`, as soon as no other worker has one of the names."""
        names = list(names)
        while True:
            with self.claim(names) as claim:
                if claim is not None:
                    yield claim
                    return
            pause()

    def _held(self, path: pathlib.Path) -> bool:
        """Whether a worker that is alive has a claim, or may have it."""
        worker = _read(path)
        if worker == _FREE:
            return False
        sign = _read(self.folder / "workers" / worker) if worker else None
        key, now = worker or path.name, time.monotonic()
        if key not in self._seen or self._seen[key][0] != str(sign):
            self._seen[key] = str(sign), now
        _, machine, process, theirs = [*(sign or "").split("\n"), "", "", ""][:4]
        if _is_dead(machine, process) or now - self._seen[key][1] > SECONDS:
            return False
        if sign and theirs != self._versions:
            one, other = (
                ", ".join(sorted(set(here.split(", ")) - set(there.split(", "))))
                for here, there in ((theirs, self._versions), (self._versions, theirs))
            )
            raise UserError(f"A worker on '{self.folder.parent}' has {one}, and this one {other}: install the same.")
        return True

    def _standing(self) -> dict[str, int]:
        """The highest number of each name."""
        numbers: dict[str, int] = {}
        for entry in os.listdir(self.folder):
            name, _, number = entry.rpartition(".")
            if number.isdecimal():
                numbers[name] = max(numbers.get(name, 0), int(number))
        return numbers


def pause() -> None:
    """Waits a little before looking again."""
    time.sleep(min(SECONDS / 20, 1.0))


@contextlib.contextmanager
def _alive(folder: pathlib.Path, versions: str) -> Iterator[str]:
    """Gives signs of life until the end of the context; compiling for long does not keep a thread from it.

    Returns:
        the id of this worker.
    """
    folder.mkdir(parents=True, exist_ok=True)
    worker = uuid.uuid4().hex
    path, ended = folder / worker, threading.Event()
    path.write_text("\n".join([f"{0:020d}", _machine(), str(os.getpid()), versions]))

    def beat() -> None:
        for number in itertools.count(1):
            if ended.wait(SECONDS / 10):
                return
            with contextlib.suppress(OSError), path.open("r+") as file:  # of the same length, even on a full disk
                file.write(f"{number:020d}")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def _is_dead(machine: str, process: str) -> bool:
    """Whether a worker ran on this machine and runs no more, so that nobody need wait; False if that is not known."""
    if not machine or machine != _machine() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return state == "Z"  # it has ended, and nobody has asked how


def _machine() -> str:
    """The running system and its space of process ids; empty where it does not tell."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _rewrite(path: pathlib.Path, text: str) -> None:
    """Changes a file that is there; who reads it meanwhile may see a part."""
    with path.open("r+") as file:
        file.write(text)
        file.truncate()


def _read(path: pathlib.Path) -> str | None:
    """The text of a file, None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from None
