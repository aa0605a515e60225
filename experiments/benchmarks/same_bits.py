"""Whether two runs of the same seed end with the same bits: each is a process of its own.

python same_bits.py [--deterministic]      trains, and prints a hash of the parameters of each method
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

RUNS, UPDATES = 4, 10
LONGEST = 90.0  # seconds, after which a process is not waited for


def compare() -> dict[str, Any]:
    """For each method whether two processes agree to the last bit, with and without `--deterministic`.

    Returns:
        `default` and `deterministic`, each with a bool for each method, or with a sentence why it is not known;
        `backend`, which they ran on; and `seconds`, how long it took.
    """
    began = time.perf_counter()
    default = _run_twice([], began + LONGEST)
    backend = next((one["backend"] for one in default if not isinstance(one, str)), "")
    results: dict[str, Any] = {"backend": backend, "default": agreement(*default)}
    if backend == "cpu":
        results["deterministic"] = "it changes nothing on CPUs"
    else:
        results["deterministic"] = agreement(*_run_twice(["--deterministic"], time.perf_counter() + LONGEST))
    return results | {"seconds": time.perf_counter() - began}


def _run_twice(options: list[str], deadline: float) -> list[dict[str, str] | str]:
    """What two processes print that run side by side, because most of their time is compilation."""
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), *options]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # none takes memory that it does not need
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(2)]
    return [_printed(process, deadline) for process in processes]


def _printed(process: subprocess.Popen[str], deadline: float) -> dict[str, str] | str:
    """What a process prints, or why it prints nothing."""
    try:
        out, err = process.communicate(timeout=max(0.0, deadline - time.perf_counter()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"it took more than {LONGEST:.0f} seconds"
    if process.returncode != 0:
        return (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return json.loads(out.splitlines()[-1])


def agreement(first: dict[str, str] | str, second: dict[str, str] | str) -> dict[str, bool] | str:
    """Whether two processes printed the same hash, for each method; or why one of them printed none."""
    if isinstance(first, str) or isinstance(second, str):
        return first if isinstance(first, str) else str(second)
    if first["backend"] != second["backend"]:
        return f"one ran on {first['backend']} and one on {second['backend']}"
    return {method: first[method] == second[method] for method in first if method != "backend"}


def _train() -> dict[str, str]:
    """The backend, and the hash of the parameters of each method after a few updates."""
    import hashlib

    import jax
    import measuring
    import numpy as np

    from omarl_jax import algorithms, make_env
    from omarl_jax.training import Trainer

    hashes = {"backend": jax.default_backend()}
    for name, spec in (("omar", make_env("particle/spread").task_spec), ("omiga", measuring.OMIGA_SPEC)):
        method = algorithms.find(name)
        dataset = measuring.synthetic_dataset(spec, 10_000)
        configs = [method.configure(spec, {})] * RUNS
        trainer = Trainer(method, configs, range(RUNS), [dataset], [0] * RUNS, None)
        trainer.advance(UPDATES)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(trainer.runs):
            digest.update(np.asarray(leaf).tobytes())
        hashes[name] = digest.hexdigest()
    return hashes


if __name__ == "__main__":
    if "--deterministic" in sys.argv[1:]:
        from omarl_jax.determinism import request_deterministic_operations

        request_deterministic_operations()
    print(json.dumps(_train()))
