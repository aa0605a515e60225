"""Offline multi-agent reinforcement learning in JAX, end to end on the accelerator.

    from omarl_jax import load_dataset, train

    dataset = load_dataset("particle/spread", "medium", size=100_000)
    result = train("omar", dataset, seeds=5, updates=500)
    print(result.scores)

Importing this package touches no device; each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omarl_jax.algorithms import find as find_algorithm
    from omarl_jax.api import Result as Result
    from omarl_jax.api import make_algorithm as make_algorithm
    from omarl_jax.api import train as train
    from omarl_jax.data.dataset import Dataset as Dataset
    from omarl_jax.data.episodes import from_episodes as from_episodes
    from omarl_jax.data.storage import load as open_dataset
    from omarl_jax.data.storage import save as save_dataset
    from omarl_jax.datasets.catalogue import load_dataset as load_dataset
    from omarl_jax.errors import UserError as UserError
    from omarl_jax.export import load_policy as load_policy
    from omarl_jax.presets import preset as preset
    from omarl_jax.tasks import make_env as make_env
    from omarl_jax.types import TaskSpec as TaskSpec

_PLACES = {
    "Dataset": ("data.dataset", "Dataset"),
    "Result": ("api", "Result"),
    "TaskSpec": ("types", "TaskSpec"),
    "UserError": ("errors", "UserError"),
    "find_algorithm": ("algorithms", "find"),
    "from_episodes": ("data.episodes", "from_episodes"),
    "load_dataset": ("datasets.catalogue", "load_dataset"),
    "load_policy": ("export", "load_policy"),
    "make_algorithm": ("api", "make_algorithm"),
    "make_env": ("tasks", "make_env"),
    "open_dataset": ("data.storage", "load"),
    "preset": ("presets", "preset"),
    "save_dataset": ("data.storage", "save"),
    "train": ("api", "train"),
}
__all__ = [
    "Dataset",
    "Result",
    "TaskSpec",
    "UserError",
    "find_algorithm",
    "from_episodes",
    "load_dataset",
    "load_policy",
    "make_algorithm",
    "make_env",
    "open_dataset",
    "preset",
    "save_dataset",
    "train",
]
__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'omarl_jax' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f"omarl_jax.{module}"), attribute)
