"""Tables, plots and a page from the folders of finished runs.

Only `episodes`, which plays episodes for pictures of them, needs JAX and environments; all else needs NumPy alone, and
reads results on any computer.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omarl_jax.report.write import print_table as print_table
    from omarl_jax.report.write import write_report as write_report

__all__ = ["print_table", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'omarl_jax.report' has no attribute '{name}'")
    return getattr(importlib.import_module("omarl_jax.report.write"), name)
