"""Kills commands with SIGKILL at random, starts them again until they end, and compares with what was never killed.

    python tests/chaos.py --kills 200 --seed 0

Importing JAX takes longer than any of these commands, and a kill meanwhile tells nothing. So one process imports
everything, starts no backend, and forks one for each start of a command. The time of a kill is drawn from what the
whole command took when it was not killed; three of four times it is drawn from what was left of that when the first
results were written, and counts from the next ones. On Ray, whose processes import JAX themselves, it counts from when
a worker has its claim.

After each kill nothing that was finished may have changed, and no whole checkpoint may be gone. When the command has
ended, all files must be there that the command makes when it is not killed, with the same content, and no other ones.
Left out are times, speeds, the report's pictures, claims, and what a killed process had not finished writing.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unittest.mock
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

# Before the import, which reads them: programs are compiled once, and what is imported must have no threads to fork.
CACHE = {
    "JAX_DEFAULT_MATMUL_PRECISION": "float32",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
for name, value in CACHE.items():
    os.environ.setdefault(name, value)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "omarl-chaos-programs"))

import jax.numpy as jnp
import numpy as np

with unittest.mock.patch.multiple(jnp, array=np.array, asarray=np.asarray):  # of jumanji, which would start a backend
    import omarl_envs.matrix

import omarl_jax.algorithms.bc
import omarl_jax.algorithms.ciqr
import omarl_jax.algorithms.omcda
import omarl_jax.report.write
import omarl_jax.sweep
from omarl_jax import cli, online
from omarl_jax.datasets import replay

VARIABLE = {"updates_per_second", "date", "sha256"}  # the last: the digest of a JSON file that has such numbers
GRID = """
seeds = [0, 1]
evaluations = 20
episodes = 2
final_episodes = 4
[[block]]
tasks = ["matrix/xor"]
datasets = ["{dataset}"]
algorithms = ["{algorithm}"]
updates = {updates}
size = 200
hyperparameters = {{ batch_size = 16, {hyperparameters} }}
"""


class Kind(NamedTuple):
    """A kind of command.

    Attributes:
        words: the command, with `{grid}` and `{out}`.
        workers: processes that run it at a time.
        grid: content of its grid file.
        share: of all kills.
    """

    words: str
    workers: int = 1
    grid: str = ""
    share: float = 0.2


TWO_GROUPS = GRID.format(dataset="random", algorithm="bc", updates=2000, hyperparameters="hidden = [[8], [9]]")
KINDS = {
    "training": Kind(
        "train bc matrix/xor random --seeds 0 1 --updates 2000 --evaluations 20 --episodes 2 --final-episodes 4 "
        "--size 200 --hidden 8 --batch-size 16 --out {out}",
        share=0.3,
    ),
    "collection": Kind("collect matrix/xor late --size 800 --out {out}/data"),
    "behaviour": Kind(
        "sweep {grid} --out {out}",
        grid=GRID.format(
            dataset="mixed", algorithm="omcda", updates=40, hyperparameters="behaviour_updates = 400, hidden = [[8]]"
        ),
        share=0.2,
    ),
    "sweep": Kind("sweep {grid} --out {out}", workers=2, grid=TWO_GROUPS, share=0.25),
    "ray": Kind("sweep {grid} --out {out} --ray local", grid=TWO_GROUPS, share=0.05),
}


class Process:
    """A command in a process of its own, which begins with everything imported.

    Args:
        words: the command.
        log: what it says is added to this file.
    """

    def __init__(self, words: Sequence[str], log: pathlib.Path):
        self.words, self.log, self.code = words, log, None  # type: Sequence[str], pathlib.Path, int | None
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns of forks, which harm a process whose backend has started
            self.pid = os.fork()
        if self.pid == 0:
            self._run()
        self.began = time.monotonic()

    def _run(self) -> None:
        code = 70
        try:
            os.setsid()
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sys.argv = ["omarl", *self.words]
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself, which must be without an error."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                if self.code != 0:
                    raise AssertionError(f"'{' '.join(self.words)}' ended with {self.code}:\n{self.log.read_text()}")
        return self.code is not None

    def kill(self) -> None:
        """Kills it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.code is None:
            os.waitpid(self.pid, 0)
            self.code = -signal.SIGKILL


class Chaos:
    """Kills commands of one kind.

    Args:
        name: of the kind.
        folder: to work in.
        seed: of the times of kills.

    Attributes:
        kills: where they landed, and how many there.
        compared: commands that were killed, ended, and were compared.
    """

    def __init__(self, name: str, folder: pathlib.Path, seed: int):
        self.name, self.kind, self._folder = name, KINDS[name], folder / name
        self._random = random.Random(f"{name} {seed}")
        self.kills: collections.Counter[str] = collections.Counter()
        self.compared = 0
        self._folder.mkdir(parents=True)
        (self._folder / "grid.toml").write_text(self.kind.grid)
        self._processes: list[Process] = []

    def close(self) -> None:
        """Ends what still runs."""
        for process in self._processes:
            process.kill()

    def _start(self, out: pathlib.Path) -> Process:
        words = self.kind.words.format(grid=self._folder / "grid.toml", out=out).split()
        self._processes.append(Process(words, out.with_suffix(".log")))
        return self._processes[-1]

    def _until_ended(self) -> None:
        while not all(process.ended for process in self._processes):
            time.sleep(0.01)
        self._processes = []

    def _until_written(self, out: pathlib.Path, process: Process) -> None:
        """Waits until results are written from now on, or the process has ended."""
        before = written(out)
        while not process.ended and written(out) == before:
            time.sleep(0.01)

    def run(self, kills: int) -> None:
        """Kills so many times, after it has run the command twice without a kill: once to compile, once to measure."""
        made = []
        for name in ("compiled", "whole"):
            began = time.monotonic()
            self._until_written(self._folder / name, self._start(self._folder / name))
            first = time.monotonic()
            self._until_ended()
            self.seconds, self._writing = time.monotonic() - began, time.monotonic() - first
            made.append(content(self._folder / name))
        self._expected = made[1]
        require_equal(*made)
        number = 0
        while self.kills.total() < kills:
            number += 1
            out = self._folder / f"out{number}"
            (self._until_killed_on_ray if self.name == "ray" else self._until_killed)(out, kills)
            require_equal(content(out), self._expected)
            self.compared += 1
            print(f"{self.name}: ended, and equal", flush=True)
            shutil.rmtree(out)

    def _count(self, where: str) -> None:
        self.kills[where] += 1
        print(f"{self.name}: kill {self.kills.total()}, {where}", flush=True)

    def _until_killed(self, out: pathlib.Path, kills: int) -> None:
        for _ in range(self.kind.workers):
            self._start(out)
        while self.kills.total() < kills:
            victim, late = self._random.choice(self._processes), self._random.random() < 0.75
            if late:
                self._until_written(out, victim)
            at = time.monotonic() + self._random.uniform(0.0, self._writing if late else self.seconds)
            while time.monotonic() < at and not victim.ended:
                time.sleep(0.001)
            before = finished(out)
            if victim.ended:
                if all(process.ended for process in self._processes):
                    break
                continue
            victim.kill()
            self._processes.remove(victim)
            self._count(where(out))
            require_nothing_lost(before, finished(out))
            self._start(out)
        self._until_ended()

    def _until_killed_on_ray(self, out: pathlib.Path, kills: int) -> None:
        driver = self._start(out)
        while self.kills.total() < kills and not driver.ended:
            victims = alive(out)
            if not victims:
                time.sleep(0.01)
                continue
            victim = self._random.choice(victims)
            at = time.monotonic() + self._random.uniform(0.0, self.seconds / 4)
            while time.monotonic() < at and victim in alive(out):
                time.sleep(0.001)
            before = finished(out)
            if victim not in alive(out):
                continue
            os.kill(victim, signal.SIGKILL)
            self._count(where(out))
            while victim in alive(out):
                time.sleep(0.01)
            require_nothing_lost(before, finished(out))
        self._until_ended()


def alive(out: pathlib.Path) -> list[int]:
    """The processes that train a group in a folder."""
    found = []
    for sign in (out / "leases" / "workers").glob("*"):
        with contextlib.suppress(FileNotFoundError, IndexError):
            pid = sign.read_text().splitlines()[2]
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                found.append(int(pid))
    return sorted(found)


def where(out: pathlib.Path) -> str:
    """Where a command is that was killed: what it was writing, or what it had written."""
    if unfinished(out):
        return "while a file was written"
    if list(out.glob("runs/*/DONE")):
        return "after the first finished run"
    if checkpoints(out):
        return "between checkpoints"
    if list(out.glob("parts/*.npz")) or list(out.glob("data/*.json")) or list(out.glob("data/*_seed*")):
        return "after its data or part"
    return "before the first file"


def paths(out: pathlib.Path) -> list[pathlib.Path]:
    """All files and folders, though another worker may delete some meanwhile."""
    return [pathlib.Path(folder, name) for folder, *names in os.walk(out) for name in itertools.chain(*names)]


def written(out: pathlib.Path) -> dict[pathlib.Path, int]:
    """The sizes of the files that hold what was computed; those that only name it come before the programs compile."""
    sizes = {}
    for path in paths(out):
        if "checkpoints" in path.parts or path.suffix in (".jsonl", ".npz", ".npy"):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
    return {path: size for path, size in sizes.items() if size}


def unfinished(out: pathlib.Path) -> list[pathlib.Path]:
    """Files and folders that a process had begun when it was killed."""
    there = paths(out)
    found = [path for path in there if path.name.endswith(".partial") or "checkpoint-tmp" in path.name]
    steps = [path for path in there if path.parent.name == "checkpoints" and path.name.isdecimal()]
    found += [path for path in steps if not (path / "digests.json").exists()]
    logs = [path for path in out.glob("runs/*/metrics.jsonl") if path.read_text().rpartition("\n")[2]]
    return found + logs


def checkpoints(out: pathlib.Path) -> dict[str, int]:
    """The updates of the newest whole checkpoint in each folder of them."""
    newest: dict[str, int] = {}
    for path in paths(out):
        if path.match("checkpoints/*/digests.json"):
            key = str(path.parent.parent.relative_to(out))
            newest[key] = max(newest.get(key, 0), int(path.parent.name))
    return newest


def finished(out: pathlib.Path) -> tuple[dict[str, int], dict[str, bytes]]:
    """What must not be lost: the newest checkpoints, and the files of finished runs, parts and datasets."""
    files = [path for done in out.glob("runs/*/DONE") for path in done.parent.iterdir()]
    files += [*out.glob("parts/*.npz"), *out.glob("data/*/*.npy"), *out.glob("data/*.npy")]
    read: dict[str, bytes] = {}
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            read[str(path.relative_to(out))] = path.read_bytes()
    return checkpoints(out), read


def require_nothing_lost(before: Any, after: Any) -> None:
    """Raises if a checkpoint or a finished file is gone, or another one."""
    for name, updates in before[0].items():
        gone = name.startswith("parts") and name not in after[0]  # a trained part needs none
        if not gone and after[0].get(name, 0) < updates:
            raise AssertionError(f"The checkpoint after {updates} updates in {name} is lost.")
    for name, text in before[1].items():
        if after[1].get(name) != text:
            raise AssertionError(f"{name} was finished, and is lost or changed.")


def content(out: pathlib.Path) -> dict[str, Any]:
    """What a command has made, in comparable form, by file."""
    made: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        skipped = {"leases", "checkpoints", "report"} & set(name.parts) or any(x.startswith(".") for x in name.parts)
        if path.is_dir() or skipped or path.name == "DONE":
            continue
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                made[str(name)] = {key: (arrays[key].dtype.str, arrays[key].tobytes()) for key in arrays.files}
        elif path.suffix in (".json", ".jsonl"):
            made[str(name)] = [constant(json.loads(x)) for x in lines(path)]
        else:
            made[str(name)] = path.read_bytes()
    return made


def lines(path: pathlib.Path) -> Iterator[str]:
    """The values of a file, each as JSON."""
    text = path.read_text()
    yield from text.splitlines() if path.suffix == ".jsonl" else [text]


def constant(value: Any) -> Any:
    """A value without times and speeds."""
    if isinstance(value, dict):
        return {key: constant(one) for key, one in value.items() if key not in VARIABLE}
    return [constant(one) for one in value] if isinstance(value, list) else value


def require_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises with the first file that differs."""
    if found.keys() != expected.keys():
        raise AssertionError(f"Missing or added: {sorted(found.keys() ^ expected.keys())}.")
    for name in expected:
        if found[name] != expected[name]:
            raise AssertionError(f"{name} differs: {str(found[name])[:2000]}\nnot\n{str(expected[name])[:2000]}")


def main() -> None:
    """Runs the kinds in turn, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file of figures")
    given = parser.parse_args()
    replay.STEPS = 3_000  # a tenth, that learn as the others do
    replay._SETTINGS = online.OnlineSettings(n_envs=1, capacity=replay._WARMUP + replay.STEPS, warmup=replay._WARMUP)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    total = sum(KINDS[name].share for name in given.kinds)
    figures = {}
    with tempfile.TemporaryDirectory(prefix="omarl-chaos-") as folder:
        for name in given.kinds:
            began = time.monotonic()
            with contextlib.closing(Chaos(name, pathlib.Path(folder), given.seed)) as chaos:
                chaos.run(round(given.kills * KINDS[name].share / total))
            figures[name] = {
                "kills": chaos.kills.total(),
                "where": dict(chaos.kills),
                "compared": chaos.compared,
                "seconds_of_the_command": round(chaos.seconds, 1),
                "seconds": round(time.monotonic() - began, 1),
            }
            print(f"{name}: {json.dumps(figures[name])}", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
