"""Workers on one folder as an array of SLURM jobs, submitted by submitit (extra `submitit`).

A job that SLURM ends for its time, or to make room for others, is queued again and goes on from the last checkpoint.
"""

import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from omarl_jax.errors import UserError

_GENERAL = ("name", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min")
_USUAL = {"name": "omarl", "timeout_min": 24 * 60}
_TIMEOUTS = 100  # after so many a job is not queued again


class Worker:
    """One worker, which is the command line itself.

    Args:
        arguments: of `omarl`.
    """

    def __init__(self, arguments: Sequence[str]):
        self._command = [sys.executable, "-m", "omarl_jax", *arguments]

    def __call__(self) -> int:
        """Works to the end; a mistake of the user is one sentence in the job's log."""
        return subprocess.run(self._command).returncode

    def checkpoint(self) -> Any:
        """What submitit queues when the job's time is over."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(arguments: Sequence[str], logs: pathlib.Path, workers: int, settings: Mapping[str, Any]) -> list[str]:
    """Submits an array of workers, and does not wait for them.

    Args:
        arguments: of each worker, as of `omarl`; its folder must be one that all nodes share.
        logs: a folder for the jobs' output.
        workers: their number.
        settings: what jobs ask for, by the names of submitit's `AutoExecutor`; those that only SLURM has, as
            `partition`, without its prefix. `cluster=local` starts the workers on this machine instead.

    Returns:
        the jobs' ids.

    Raises:
        UserError: if there is no submitit, no SLURM, or a setting that submitit does not know.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--submitit needs submitit: pip install 'omarl-jax[submitit]'.") from None
    named = {name if name in _GENERAL else f"slurm_{name}": value for name, value in settings.items()}
    cluster = named.pop("slurm_cluster", "slurm")
    if {"gpus_per_node", "slurm_gres", "slurm_gpus_per_task"} & set(named):
        os.environ.setdefault("JAX_PLATFORMS", "cuda")  # jobs inherit it: without its GPU one must fail, and not crawl
    try:
        executor = submitit.AutoExecutor(logs, cluster=cluster, slurm_max_num_timeout=_TIMEOUTS)
        executor.update_parameters(**_USUAL | named)
        return [job.job_id for job in executor.submit_array([Worker(arguments)] * workers)]
    except (NameError, AssertionError, ValueError, RuntimeError) as error:  # what submitit raises for such mistakes
        raise UserError(f"submitit: {str(error).partition(' Valid arguments')[0].splitlines()[0]}") from None
