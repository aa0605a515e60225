"""How each dataset is made: rollouts of uniform actions or of the policy snapshots that ship, or a log of learning.

Every quality is regenerated in seconds, in memory. Continuous tasks have snapshots, discrete ones logs of teams that
learn while the dataset is made (see `logs`). Snapshots come from online training (see `behaviour`); of those,
`medium` and `expert` play with the noise they explored with, and `medium-replay` plays whole episodes with each of a
series of snapshots spread evenly over training up to the medium one, which stands for the replay buffer of that time.
"""

import functools
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import omarl_envs
from omarl_envs.base import MultiAgentEnv

from omarl_jax.collect import collect_rows, uniform_act
from omarl_jax.data import logs
from omarl_jax.data.dataset import Dataset, Rows
from omarl_jax.errors import UserError, unknown
from omarl_jax.export import SavedPolicy, load_policy
from omarl_jax.types import TaskSpec

QUALITIES = ("random", "medium-replay", "medium", "expert", *logs.PARTS)

_DEFAULT_SIZE = 1_000_000
_SIZES = {
    ("particle/spread", "medium-replay"): 97_500,  # as published
    ("particle/tag", "medium-replay"): 62_500,
    ("particle/world", "medium-replay"): 80_000,
    ("uav/iot", "random"): logs.DEFAULT_SIZE,  # to compare with parts of the log
    ("uav/iot-random", "random"): logs.DEFAULT_SIZE,
}


def load_dataset(task: str, quality: str, seed: int = 0, size: int | None = None, **options: Any) -> Dataset:
    """Makes an offline dataset on the device; `load_datasets` makes several at once.

    Args:
        task: `family/task`.
        quality: one of those of the task: `random`; and if it is continuous `medium-replay`, `medium` and `expert`, if
            it is discrete `early`, `middle`, `late` and `mixed`.
        seed: of the data; each gives its own rollouts, or its own team that learns.
        size: transitions, rounded up to whole episodes; by default the published number.
        **options: constructor arguments of the task.

    Raises:
        UserError: if there is no such task or quality, no behaviour policy for this form of the task, or the log is
            too short.
    """
    return load_datasets(task, quality, [seed], size, **options)[0]


def load_datasets(
    task: str, quality: str, seeds: Sequence[int], size: int | None = None, **options: Any
) -> list[Dataset]:
    """Makes the datasets of several seeds.

    Rollouts are those of `load_dataset`. Logs of learning are alike only in distribution: rounding depends on how many
    teams learn side by side, and learning amplifies it.
    """
    env = make_env(task, **options)
    if quality not in (known := _qualities(env.task_spec)):
        raise unknown("dataset", quality, known)
    if size is None:
        size = _size(task, quality)
    if size < 1:
        raise UserError(f"A dataset needs at least one transition, not {size}.")
    if quality in logs.PARTS:
        logs.check(quality, size)
        learned = _logs(task, json.dumps(options, sort_keys=True), tuple(seeds))
        parts = (logs.cut(env, log, quality, size) for log in learned)
    else:
        parts = (_rollouts(env, quality, seed, size) for seed in seeds)
    made = []
    for seed, (rows, totals, behaviour) in zip(seeds, parts, strict=True):
        metrics = {name: float(values.mean()) for name, values in totals.items()}
        metadata = {"recipe": quality, "seed": seed, "behaviour": behaviour, "options": options, "metrics": metrics}
        made.append(Dataset(env.task_spec, rows, metadata | scores(env, metrics["return"])))
    return made


def _qualities(spec: TaskSpec) -> tuple[str, ...]:
    """The datasets of a task; those from snapshots only where they ship."""
    return tuple(q for q in QUALITIES if q == "random" or (q in logs.PARTS) == (spec.kind == "discrete"))


@functools.lru_cache(maxsize=1)  # the packs of a sweep ask for the same ones, again and again
def _logs(task: str, options: str, seeds: tuple[int, ...]) -> list[logs.Log]:
    return logs.learn(make_env(task, **json.loads(options)), seeds)


def _rollouts(env: MultiAgentEnv, quality: str, seed: int, size: int) -> tuple[Rows, dict[str, np.ndarray], str]:
    """Rows, the episodes' totals of the task's quantities, and who played."""
    episodes = -(-size // env.task_spec.episode_length)
    key = jax.random.fold_in(jax.random.key(seed), QUALITIES.index(quality))
    if quality == "random":
        return *collect_rows(env, uniform_act(env.task_spec), (), None, key, episodes), "uniform actions"
    snapshots = behaviour_snapshots(env)
    chosen = np.array(snapshots.metadata["recipe"][quality])
    policies = jax.tree.map(lambda x: jnp.asarray(x[chosen]), snapshots.params)
    trained = ", ".join(str(snapshots.metadata["rounds"][i]) for i in chosen)
    behaviour = f"{snapshots.algorithm} after {trained} rounds, with exploration noise"
    return *collect_rows(env, *snapshots.functions, policies, key, episodes), behaviour


class Entry(NamedTuple):
    """One line of the catalogue: `score` is that of the behaviour, None where there is no reference."""

    task: str
    quality: str
    size: int
    score: float | None


def catalogue() -> list[Entry]:
    """The datasets that can be made for tasks as they come."""
    entries = []
    for task in omarl_envs.task_names():
        env = make_env(task)
        saved = _snapshots(task)
        for quality in _qualities(env.task_spec):
            by_snapshots = quality not in ("random", *logs.PARTS)
            if by_snapshots and saved is None:
                continue
            score = None
            if env.reference is not None and quality == "random":
                score = 0.0
            elif env.reference is not None and saved is not None and by_snapshots:
                returns = [saved.metadata["explored_returns"][i] for i in saved.metadata["recipe"][quality]]
                score = float(env.reference.normalise(np.mean(returns)))
            entries.append(Entry(task, quality, _size(task, quality), score))
    return entries


def _size(task: str, quality: str) -> int:
    return _SIZES.get((task, quality), logs.DEFAULT_SIZE if quality in logs.PARTS else _DEFAULT_SIZE)


def make_env(task: str, **options: Any) -> MultiAgentEnv:
    """Makes the environment of a task; what the user got wrong is a `UserError`."""
    try:
        return omarl_envs.make(task, **options)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None


def scores(env: MultiAgentEnv, mean_return: float) -> dict[str, Any]:
    """The metadata that says how good the data is, in units of the task and normalised."""
    reference = env.reference
    return {
        "mean_return": mean_return,
        "mean_score": None if reference is None else float(reference.normalise(mean_return)),
        "random": None if reference is None else reference.random,
        "expert": None if reference is None else reference.expert,
        "reference_source": None if reference is None else reference.source,
        "comparable": reference is not None and reference.published,
    }


def behaviour_snapshots(env: MultiAgentEnv) -> SavedPolicy:
    """The shipped behaviour policies of a task, stacked, with their `recipe` in the metadata."""
    saved = _snapshots(env.task_spec.name)
    if saved is None or saved.spec != env.task_spec:
        raise UserError(
            f"No behaviour policies ship with this form of '{env.task_spec.name}'; "
            "only the dataset 'random' can be made for it."
        )
    return saved


@functools.cache
def _snapshots(task: str) -> SavedPolicy | None:
    name = task.replace("/", "-") + ".npz"
    file = importlib.resources.files("omarl_jax.data") / "snapshots" / name
    with importlib.resources.as_file(file) as path:
        return load_policy(path) if path.exists() else None
