"""The request that equal runs give equal bits on GPUs, which XLA reads when its backend starts."""

import os

_FLAG = "--xla_gpu_deterministic_ops=true"


def request_deterministic_operations() -> None:
    """Makes XLA compile for GPUs only operations that give the same bits each time.

    Sums whose order depends on which thread comes first are computed in a fixed order, and kernels are chosen without
    timing them. To be called before the first array is made. Programs of CPUs do not depend on it.
    """
    if not deterministic_operations_requested():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()


def deterministic_operations_requested() -> bool:
    """Whether this process, or whoever started it, has made the request."""
    return _FLAG in os.environ.get("XLA_FLAGS", "").split()
