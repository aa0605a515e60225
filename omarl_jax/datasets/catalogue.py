"""The recipes of datasets: rollouts of uniform actions or of behaviour policies, and replay data of online learning.

Every dataset is made in memory, from rollouts in seconds. Some continuous tasks have snapshots of behaviour policies
(see `behaviour`). Discrete tasks have replay data of agents that learn while the dataset is made (see `replay`). A task
that knows `behaviours` has their data instead; those of `waypoints` are stretches of a trajectory without resets.

`medium` and `expert` are played by one snapshot each, with the noise that it explored with. `medium-replay` is played
by a series of snapshots, a whole episode each, which approximates a replay buffer. The series ends at the medium
policy, or earlier if that matches the published mean return better (on tag and world before half of training). The
snapshots were made by

    omarl behaviour particle/spread --medium 31.8 --expert 104 --replay 12.3                         (medium-replay)
    omarl behaviour particle/spread --medium 31.8 --expert 104 --seeds 0 1 --updates 20000 --every 50 --set gain=3.0
    omarl behaviour particle/tag --medium 63.5 --expert 100 --replay 4.2 --algorithm itd3
    omarl behaviour particle/world --medium 84.2 --expert 100 --replay 9.3 --algorithm itd3 --updates 15000
    omarl behaviour mujoco/halfcheetah-2x3 --medium 43 --replay 18.4 --every 1000 \\
        --set lr=0.001 gamma=0.99 tau=0.005 batch_size=256 input_norm=none policy_penalty=0

The last learned for minutes: it stays below the published medium score, 48.1, and there are no expert data.
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
from omarl_envs.base import Behaviour, Journeys, MultiAgentEnv

from omarl_jax.data import storage
from omarl_jax.data.dataset import Dataset, EpisodeStore
from omarl_jax.datasets import replay
from omarl_jax.errors import UserError, seeds_of, unknown, whole
from omarl_jax.export import SavedPolicy, load_policy
from omarl_jax.files import read_arrays
from omarl_jax.rollout import collect, travel, uniform_act
from omarl_jax.tasks import make_env, reference_metadata
from omarl_jax.types import Act, View

_FROM_SNAPSHOTS = ("medium-replay", "medium", "expert")
QUALITIES = ("random", *_FROM_SNAPSHOTS, *replay.SLICES, "waypoints", "waypoints-d4rl")

_DEFAULT_SIZE = 1_000_000
_SIZES = {
    ("particle/spread", "medium-replay"): 97_500,  # as published
    ("particle/tag", "medium-replay"): 62_500,
    ("particle/world", "medium-replay"): 80_000,
    ("mujoco/halfcheetah-2x3", "medium-replay"): 460_000,
    ("uav/iot", "random"): replay.DEFAULT_SIZE,  # to compare with slices of the log
    ("uav/iot-random", "random"): replay.DEFAULT_SIZE,
}


def load_dataset(task: str, quality: str, seed: int = 0, size: int | None = None, **options: Any) -> Dataset:
    """Makes an offline dataset; `load_datasets` makes several at once.

    Args:
        task: `family/task`.
        quality: every task has `random`; a continuous one with snapshots also `medium-replay`, `medium` and `expert`, a
            discrete one `early`, `middle`, `late` and `mixed`; or instead those of the task's `behaviours`.
        seed: of the data: of the rollouts, or of the agents that learn.
        size: transitions, rounded up to whole episodes of the task's length; by default the published number.
        **options: constructor arguments of the task.

    Raises:
        UserError: if there is no such task or quality, no behaviour policy for this form of the task, or the replay
            data are too short.
    """
    return load_datasets(task, quality, [seed], size, **options)[0]


def load_datasets(
    task: str, quality: str, seeds: Sequence[int], size: int | None = None, **options: Any
) -> list[Dataset]:
    """Makes the datasets of several seeds.

    `load_dataset` gives the same rollouts. Replay data are equal only in distribution: rounding depends on the number
    of seeds that learn side by side, and learning amplifies it.

    Args:
        task, quality, size, **options: as of `load_dataset`.
        seeds: one for each dataset.

    Raises:
        UserError: as `load_dataset`.
    """
    env = make_env(task, **options)
    seeds = seeds_of(seeds)
    if quality not in (known := _qualities(env)):
        raise unknown("dataset", quality, known)
    size = default_size(task, quality) if size is None else whole("size", size)
    if quality in replay.SLICES:
        replay.check_size(quality, size)
        learned = _logs(task, json.dumps(options, sort_keys=True), tuple(seeds))
        played: Iterable[tuple[EpisodeStore, dict[str, np.ndarray], str]] = (
            replay.cut(env, log, quality, size) for log in learned
        )
    else:
        played = _rollouts(env, quality, seeds, size)
    made = []
    for seed, (rows, totals, behaviour) in zip(seeds, played, strict=True):
        metrics = {name: float(values.mean()) for name, values in totals.items()}
        metrics["length"] = float((~rows.closing).sum() / rows.closing.sum())
        metadata: dict[str, Any] = {
            "recipe": quality,
            "seed": seed,
            "behaviour": behaviour,
            "options": options,
            "time_limit_is_terminal": env.time_limit_is_terminal,
            "metrics": metrics,
        }
        reference = reference_metadata(env, metrics["return"])
        comparable = reference["comparable"] and (quality not in _FROM_SNAPSHOTS or _at_home(env, quality))
        made.append(Dataset(env.task_spec, rows, metadata | reference | {"comparable": comparable}))
    return made


def digest(env: MultiAgentEnv | None, dataset: str, options: dict[str, Any]) -> str:
    """A hash of everything besides the recipe that the data depend on, so that runs on other data get another name.

    It covers the content of a dataset's folder, the bundled snapshots, what behaviours of the task do, the version of
    replay data, the reference returns (on tag and world they depend on the prey), and files among the options, which
    are known by their suffix.

    Args:
        env: the task; None if there is no simulator.
        dataset: a quality, or the folder of a dataset.
        options: constructor arguments of the task.

    Raises:
        UserError: if the folder holds no dataset.
    """
    reference = None if env is None else env.reference
    parts = [] if reference is None else [repr((reference.random, reference.expert)).encode()]
    if dataset not in QUALITIES:
        parts.append(storage.describe(dataset).content_hash.encode())
    elif env and dataset in env.behaviours:
        parts.append(env.behaviours[dataset].words.encode())
    elif env and dataset in _FROM_SNAPSHOTS and (file := _snapshot_file(env.task_spec.name, dataset)) is not None:
        arrays = read_arrays(file)  # not the file's bytes: the same policies may be packed in another way
        parts += [name.encode() + np.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays)]
    elif dataset in replay.SLICES:
        parts.append(f"replay {replay.VERSION}".encode())
    paths = [pathlib.Path(value) for value in options.values() if isinstance(value, str | pathlib.Path)]
    parts += [path.read_bytes() for path in paths if path.suffix and path.is_file()]  # "unit" is no file, but a name
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _qualities(env: MultiAgentEnv) -> tuple[str, ...]:
    """The datasets that a task can have."""
    learned = replay.SLICES if env.task_spec.kind == "discrete" else _FROM_SNAPSHOTS
    return tuple(q for q in QUALITIES if q == "random" or q in (env.behaviours or learned))


@functools.lru_cache(maxsize=1)  # the run groups of a sweep ask for the same one again and again
def _logs(task: str, options: str, seeds: tuple[int, ...]) -> list[replay.Log]:
    return replay.train_online(make_env(task, **json.loads(options)), seeds)


def _rollouts(
    env: MultiAgentEnv, quality: str, seeds: Sequence[int], size: int
) -> Iterator[tuple[EpisodeStore, dict[str, np.ndarray], str]]:
    """For each seed: rows, totals of the task's quantities in each episode, and a name of the behaviour."""
    keys = (jax.random.fold_in(jax.random.key(seed), QUALITIES.index(quality)) for seed in seeds)
    if isinstance(team := env.behaviours.get(quality), Journeys):
        words = f"{team.words}; its return is what an episode earns at the mean reward"
        for rows, totals in travel(env, team, keys, size):
            yield rows, totals, words
        return
    if quality == "random":
        functions, policies, behaviour = (uniform_act(env.task_spec), ()), None, "uniform actions"
    elif team is not None:
        functions, policies, behaviour = (_act(team), team.memory), None, team.words
    else:
        snapshots = behaviour_snapshots(env, quality)
        chosen = np.array(snapshots.metadata["recipe"][quality])
        functions, policies = snapshots.functions, jax.tree.map(lambda x: jnp.asarray(x[chosen]), snapshots.params)
        trained = ", ".join(str(snapshots.metadata["updates"][i]) for i in chosen)
        behaviour = f"{snapshots.algorithm} after {trained} updates, with exploration noise"
        if not _at_home(env, quality):
            behaviour += ", trained on another form of the task"
    episodes = -(-size // env.task_spec.episode_length)
    for rows, totals in collect(env, *functions, policies, keys, episodes):
        yield rows, totals, behaviour


def _act(behaviour: Behaviour) -> Act:
    def act(policy: Any, view: View, carry: Any, key: Any, explore: bool = False) -> tuple[Any, Any]:
        return behaviour.act(view.obs, carry, key)

    return act


class Entry(NamedTuple):
    """A dataset of the catalogue; `score` is the behaviour's, None where there is no reference."""

    task: str
    quality: str
    size: int
    score: float | None


def catalogue() -> list[Entry]:
    """The datasets that can be made for tasks with their default options."""
    entries = []
    for task in omarl_envs.task_names():
        env = make_env(task)
        for quality in _qualities(env):
            from_snapshots = quality in _FROM_SNAPSHOTS and quality not in env.behaviours
            saved = _snapshots(task, quality) if from_snapshots else None
            if from_snapshots and saved is None:
                continue
            score = None
            if env.reference is not None and quality == "random":
                score = 0.0
            elif env.reference is not None and isinstance(team := env.behaviours.get(quality), Behaviour):
                score = None if team.mean_return is None else float(env.reference.normalise(team.mean_return))
            elif env.reference is not None and saved is not None:
                returns = [saved.metadata["explored_returns"][i] for i in saved.metadata["recipe"][quality]]
                score = float(env.reference.normalise(np.mean(returns)))
            entries.append(Entry(task, quality, default_size(task, quality), score))
    return entries


def default_size(task: str, quality: str) -> int:
    """The default number of transitions: the published one, if there is one."""
    return _SIZES.get((task, quality), replay.DEFAULT_SIZE if quality in replay.SLICES else _DEFAULT_SIZE)


def behaviour_snapshots(env: MultiAgentEnv, quality: str) -> SavedPolicy:
    """The bundled behaviour policies of a task and quality, stacked, with their `recipe` in the metadata."""
    saved = _snapshots(env.task_spec.name, quality)
    if saved is None or saved.spec != env.task_spec:
        raise UserError(
            f"No behaviour policies for '{quality}' data ship with this form of '{env.task_spec.name}'; "
            "'omarl data list' lists what can be made."
        )
    return saved


def _at_home(env: MultiAgentEnv, quality: str) -> bool:
    """Whether the bundled policies learned on this configuration of the task, with the prey of its reference."""
    found = _snapshots(env.task_spec.name, quality)
    return found is not None and env.reference is not None and found.metadata["reference"] == env.reference.source


@functools.cache
def _snapshots(task: str, quality: str) -> SavedPolicy | None:
    file = _snapshot_file(task, quality)
    saved = None if file is None else load_policy(file)
    return saved if saved is not None and quality in saved.metadata["recipe"] else None


def _snapshot_file(task: str, quality: str) -> pathlib.Path | None:
    """The file of the quality, or that of the task."""
    folder, name = pathlib.Path(__file__).parent / "snapshots", task.replace("/", "-")
    files = (folder / f"{name}-{quality}.npz", folder / f"{name}.npz")
    return next((file for file in files if file.exists()), None)
