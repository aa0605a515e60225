"""How each dataset is made: rollouts of uniform actions or of the policy snapshots that ship, or a log of learning.

Every quality is regenerated in seconds, in memory. Continuous tasks have snapshots, discrete ones logs of teams that
learn while the dataset is made (see `logs`). Snapshots come from online training (see `behaviour`); of those,
`medium` and `expert` play with the noise they explored with, and `medium-replay` plays whole episodes with each of a
series of snapshots spread evenly over training, which stands for the replay buffer of a time: up to the medium one, or
only as far as their mean comes nearest to the published one (on tag and world to less than half of the way).
They were made by

    omarl behaviour particle/spread --medium 31.8 --expert 104 --replay 12.3                         (medium-replay)
    omarl behaviour particle/spread --medium 31.8 --expert 104 --seeds 0 1 --rounds 20000 --every 50 --set gain=3.0
    omarl behaviour particle/tag --medium 63.5 --expert 100 --replay 4.2 --algorithm itd3
    omarl behaviour particle/world --medium 84.2 --expert 100 --replay 9.3 --algorithm itd3 --rounds 15000
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import omarl_envs
from omarl_envs.base import MultiAgentEnv

from omarl_jax.collect import collect_rows, uniform_act
from omarl_jax.data import logs, storage
from omarl_jax.data.dataset import Dataset, Rows
from omarl_jax.errors import UserError, check_seeds, unknown
from omarl_jax.export import SavedPolicy, load_policy
from omarl_jax.types import TaskSpec

_FROM_SNAPSHOTS = ("medium-replay", "medium", "expert")
QUALITIES = ("random", *_FROM_SNAPSHOTS, *logs.PARTS)

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
        size: transitions, rounded up to whole episodes of the task's length; by default the published number.
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
    check_seeds(seeds)
    if quality not in (known := _qualities(env.task_spec)):
        raise unknown("dataset", quality, known)
    if size is None:
        size = default_size(task, quality)
    if size < 1:
        raise UserError(f"A dataset needs at least one transition, not {size}.")
    if quality in logs.PARTS:
        logs.check(quality, size)
        learned = _logs(task, json.dumps(options, sort_keys=True), tuple(seeds))
        parts: Iterable[tuple[Rows, dict[str, np.ndarray], str]] = (
            logs.cut(env, log, quality, size) for log in learned
        )
    else:
        parts = _rollouts(env, quality, seeds, size)
    made = []
    for seed, (rows, totals, behaviour) in zip(seeds, parts, strict=True):
        metrics = {name: float(values.mean()) for name, values in totals.items()}
        metrics["length"] = float((~rows.closing).sum() / rows.closing.sum())
        metadata: dict[str, Any] = {
            "recipe": quality,
            "seed": seed,
            "behaviour": behaviour,
            "options": options,
            "metrics": metrics,
        }
        judged = scores(env, metrics["return"])
        comparable = judged["comparable"] and (quality not in _FROM_SNAPSHOTS or _at_home(env, quality))
        made.append(Dataset(env.task_spec, rows, metadata | judged | {"comparable": comparable}))
    return made


def digest(env: MultiAgentEnv, dataset: str, options: dict[str, Any]) -> str:
    """Names what data are made from beside their recipe, so that runs on other data have another name.

    That is the content of a folder, the snapshots that ship, the reference returns (those of tag and world are of a
    prey), and files among the options.
    """
    parts = [] if env.reference is None else [repr((env.reference.random, env.reference.expert)).encode()]
    if dataset not in QUALITIES:
        parts.append(storage.described_hash(dataset).encode())
    elif dataset in _FROM_SNAPSHOTS and (file := _snapshot_file(env.task_spec.name, dataset)) is not None:
        parts.append(file.read_bytes())
    files = (pathlib.Path(value) for value in options.values() if isinstance(value, str))
    parts += [file.read_bytes() for file in files if file.is_file()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _qualities(spec: TaskSpec) -> tuple[str, ...]:
    """The datasets that a task of this kind can have."""
    return tuple(q for q in QUALITIES if q == "random" or (q in logs.PARTS) == (spec.kind == "discrete"))


@functools.lru_cache(maxsize=1)  # the packs of a sweep ask for the same ones, again and again
def _logs(task: str, options: str, seeds: tuple[int, ...]) -> list[logs.Log]:
    return logs.learn(make_env(task, **json.loads(options)), seeds)


def _rollouts(
    env: MultiAgentEnv, quality: str, seeds: Sequence[int], size: int
) -> Iterator[tuple[Rows, dict[str, np.ndarray], str]]:
    """For each seed its rows, the episodes' totals of the task's quantities, and who played."""
    if quality == "random":
        functions, policies, behaviour = (uniform_act(env.task_spec), ()), None, "uniform actions"
    else:
        snapshots = behaviour_snapshots(env, quality)
        chosen = np.array(snapshots.metadata["recipe"][quality])
        functions, policies = snapshots.functions, jax.tree.map(lambda x: jnp.asarray(x[chosen]), snapshots.params)
        trained = ", ".join(str(snapshots.metadata["rounds"][i]) for i in chosen)
        behaviour = f"{snapshots.algorithm} after {trained} rounds, with exploration noise"
        if not _at_home(env, quality):
            behaviour += ", trained on another form of the task"
    keys = (jax.random.fold_in(jax.random.key(seed), QUALITIES.index(quality)) for seed in seeds)
    episodes = -(-size // env.task_spec.episode_length)
    for rows, totals in collect_rows(env, *functions, policies, keys, episodes):
        yield rows, totals, behaviour


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
        for quality in _qualities(env.task_spec):
            saved = _snapshots(task, quality) if quality in _FROM_SNAPSHOTS else None
            if quality in _FROM_SNAPSHOTS and saved is None:
                continue
            score = None
            if env.reference is not None and quality == "random":
                score = 0.0
            elif env.reference is not None and saved is not None:
                returns = [saved.metadata["explored_returns"][i] for i in saved.metadata["recipe"][quality]]
                score = float(env.reference.normalise(np.mean(returns)))
            entries.append(Entry(task, quality, default_size(task, quality), score))
    return entries


def default_size(task: str, quality: str) -> int:
    """Transitions that a dataset has unless another number is asked for: the published one, if there is one."""
    return _SIZES.get((task, quality), logs.DEFAULT_SIZE if quality in logs.PARTS else _DEFAULT_SIZE)


def make_env(task: str, **options: Any) -> MultiAgentEnv:
    """Makes the environment of a task; what the user got wrong is a `UserError`."""
    try:
        return omarl_envs.make(task, **options)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None


def scores(env: MultiAgentEnv, mean_return: float | None) -> dict[str, Any]:
    """The metadata that says how good the data is, in units of the task and normalised."""
    reference = env.reference
    return {
        "mean_return": mean_return,
        "mean_score": None if reference is None or mean_return is None else float(reference.normalise(mean_return)),
        "random": None if reference is None else reference.random,
        "expert": None if reference is None else reference.expert,
        "reference_source": None if reference is None else reference.source,
        "comparable": reference is not None and reference.published,
    }


def behaviour_snapshots(env: MultiAgentEnv, quality: str) -> SavedPolicy:
    """The shipped behaviour policies of a task and quality, stacked, with their `recipe` in the metadata."""
    saved = _snapshots(env.task_spec.name, quality)
    if saved is None or saved.spec != env.task_spec:
        raise UserError(
            f"No behaviour policies ship with this form of '{env.task_spec.name}'; "
            "only the dataset 'random' can be made for it."
        )
    return saved


def _at_home(env: MultiAgentEnv, quality: str) -> bool:
    """Whether the shipped policies learned in this very form of the task: with the prey that has these references."""
    found = _snapshots(env.task_spec.name, quality)
    return found is not None and env.reference is not None and found.metadata["reference"] == env.reference.source


@functools.cache
def _snapshots(task: str, quality: str) -> SavedPolicy | None:
    file = _snapshot_file(task, quality)
    return None if file is None else load_policy(file)


def _snapshot_file(task: str, quality: str) -> pathlib.Path | None:
    """The file of the quality, or that of the task."""
    folder, name = pathlib.Path(__file__).parent / "snapshots", task.replace("/", "-")
    files = (folder / f"{name}-{quality}.npz", folder / f"{name}.npz")
    return next((file for file in files if file.exists()), None)
