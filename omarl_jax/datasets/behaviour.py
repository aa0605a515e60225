"""Behaviour policies: online training, with snapshots along the way.

Training again gives policies of the same quality. The bundled files name their seeds, updates and returns.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.base import MultiAgentEnv

from omarl_jax import algorithms, online, rollout
from omarl_jax.errors import UserError, seeds_of
from omarl_jax.export import save_policy
from omarl_jax.files import replacing
from omarl_jax.placement import Placement, schedule
from omarl_jax.types import Context, Stats

_EVALUATION_STEPS = 25_000  # 1,000 episodes of the particle tasks
_REPLAY_SNAPSHOTS = 8


def train(
    env: MultiAgentEnv,
    algorithm: str,
    overrides: dict[str, Any],
    seeds: Sequence[int],
    updates: int,
    every: int,
    final_lr: float = 0.1,
    settings: online.OnlineSettings = online.OnlineSettings(),  # noqa: B008  # an immutable tuple
) -> list[dict[str, Any]]:
    """Trains a method online from scratch, all seeds in one program, spread over the devices.

    Args:
        env: the task.
        algorithm: the method's name.
        overrides: hyperparameters that differ from its defaults.
        seeds: one for each training.
        updates: one for each `settings.n_envs` environment steps.
        every: updates between snapshots, a divisor of `updates`.
        final_lr: the learning rate falls linearly to this share of itself, which steadies the last policies.
        settings: how experience is gathered.

    Returns:
        snapshots, seed after seed; the first of each seed was taken before training. Each has `seed`, `updates`,
        `policy` (on the host), and two means over the episodes of 25,000 steps: `returns` of greedy play, and
        `explored`, the return with exploration noise.

    Raises:
        UserError: for an unknown method, hyperparameters, seeds or updates that make no sense.
    """
    seeds = seeds_of(seeds)
    if not seeds:
        raise UserError("There must be at least one seed.")
    spec = env.task_spec
    if every < 1 or updates < 1 or updates % every:
        raise UserError(f"Updates must be a multiple of those between snapshots, not {updates} and {every}.")
    method = algorithms.find(algorithm)
    config = method.configure(spec, overrides)
    learner = method.make(config, spec)
    context = Context(Stats.unknown(spec))

    def init(key: Any, _: None) -> online.OnlineState:
        learner_key, env_key, _, _ = jax.random.split(key, 4)
        return online.init(learner, learner.init(learner_key, context), env, settings, env_key)

    def chunk(run: tuple[online.OnlineState, Any], start: Any) -> tuple[online.OnlineState, Any]:
        state, key = run
        _, _, train_key, _ = jax.random.split(key, 4)

        def step(state: online.OnlineState, number: Any) -> tuple[online.OnlineState, Any]:
            lr = config.lr * (1.0 - (1.0 - final_lr) * number / updates)
            now = method.make(dataclasses.replace(config, lr=lr), spec)
            return online.step(now, env, settings, state, number, train_key)

        return jax.lax.scan(step, state, start + jnp.arange(every))[0], key

    def returns(run: tuple[Any, Any], _: None) -> tuple[Any, Any]:
        policy, key = run
        _, _, _, key = jax.random.split(key, 4)

        def mean(explore: bool) -> Any:
            side_by_side = placement.slots // placement.devices
            episodes = max(1, _EVALUATION_STEPS // spec.episode_length)
            act, carry = learner.act, learner.carry
            return rollout.evaluate(env, act, carry, policy, key, episodes, explore, side_by_side)["return"].mean()

        return mean(False), mean(True)

    placement = Placement.default(len(seeds))
    begin, evaluate = jax.jit(placement.map_runs(init)), jax.jit(placement.map_runs(returns))
    advance = jax.jit(placement.map_runs(chunk), donate_argnums=0)
    keys = jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
    snapshots: list[list[dict[str, Any]]] = [[] for _ in seeds]
    for call, _ in schedule(len(seeds), placement.slots, 1):
        key = placement.shard_runs(keys, call)
        state = begin(key, None)
        for start in range(0, updates + every, every):
            policies = jax.tree.map(np.asarray, state.learner.policy)
            greedy, explored = map(np.asarray, evaluate((state.learner.policy, key), None))
            for run in set(call):
                slot = call.index(run)
                policy = jax.tree.map(lambda x, i=slot: x[i], policies)
                snapshot = {"seed": seeds[run], "updates": start, "policy": policy}
                snapshots[run].append(snapshot | {"returns": float(greedy[slot]), "explored": float(explored[slot])})
            if start < updates:
                state, key = advance((state, key), jnp.int32(start))
    return list(itertools.chain(*snapshots))


def choose(
    env: MultiAgentEnv,
    snapshots: list[dict[str, Any]],
    medium: float,
    expert: float | None = None,
    replay: float | None = None,
) -> dict[str, list[int]]:
    """Chooses the snapshots of each quality.

    Args:
        env: the task, for its reference returns.
        snapshots: of `train`, of one seed or of several in turn.
        medium: normalised score that the medium data should have, with exploration noise.
        expert: normalised score that the expert data should have; None for no expert data.
        replay: mean score that the medium-replay data should have; None for any.

    Returns:
        numbers of snapshots. `expert`: the nearest one. `medium`: the nearest one when training first reached the
        score. `medium-replay`: at most eight, spread evenly from the untrained policy to the medium one, or to an
        earlier one if that meets `replay` better (published replay buffers are short). Each is taken from the seed that
        comes nearest. Seeds that have diverged are left out.

    Raises:
        UserError: if all have diverged.
    """
    assert env.reference is not None
    score = np.array([env.reference.normalise(snapshot["explored"]) for snapshot in snapshots])
    diverged = {snapshot["seed"] for snapshot, value in zip(snapshots, score, strict=True) if not np.isfinite(value)}
    if diverged == {snapshot["seed"] for snapshot in snapshots}:
        raise UserError(f"Training diverged with every seed ({len(diverged)}): there is nothing to choose from.")
    seeds = np.array([snapshot["seed"] for snapshot in snapshots])
    middles, series = [], []
    for seed in sorted(set(seeds.tolist()) - diverged):
        numbers = np.flatnonzero(seeds == seed)
        # The first time, not after a relapse, and a point short counts; the snapshot before may be nearer.
        reached = int(np.minimum(score[numbers], medium - 1.0).argmax())
        middle = min((max(reached - 1, 0), reached), key=lambda i: abs(score[numbers[i]] - medium))
        middles.append(numbers[middle])
        ends = [middle] if replay is None else range(middle + 1)
        series += [numbers[np.unique(np.linspace(0, end, _REPLAY_SNAPSHOTS).round().astype(int))] for end in ends]
    middle = min(middles, key=lambda i: abs(score[i] - medium))
    chosen = (
        series[middles.index(middle)] if replay is None else min(series, key=lambda s: abs(score[s].mean() - replay))
    )
    recipe = {"medium-replay": chosen.tolist(), "medium": [int(middle)]}
    if expert is not None:
        far = np.where(np.isin(seeds, list(diverged)), np.inf, np.abs(score - expert))
        recipe["expert"] = [int(far.argmin())]
    return recipe


def save(
    path: pathlib.Path,
    env: MultiAgentEnv,
    algorithm: str,
    overrides: dict[str, Any],
    snapshots: list[dict[str, Any]],
    chosen: dict[str, list[int]],
) -> None:
    """Writes the snapshots that some quality uses, stacked into one file.

    Args:
        path: an `.npz`.
        env: the task.
        algorithm: the method's name.
        overrides: hyperparameters that differ from its defaults.
        snapshots: of `train`.
        chosen: the numbers of the snapshots of each quality, of `choose`.

    Raises:
        UserError: if the file cannot be written.
    """
    used = sorted({i for numbers in chosen.values() for i in numbers})
    config = algorithms.find(algorithm).configure(env.task_spec, overrides)
    metadata = {
        "recipe": {quality: [used.index(i) for i in numbers] for quality, numbers in chosen.items()},
        "seeds": [snapshots[i]["seed"] for i in used],
        "updates": [snapshots[i]["updates"] for i in used],
        "returns": [round(snapshots[i]["returns"], 2) for i in used],
        "explored_returns": [round(snapshots[i]["explored"], 2) for i in used],
        "reference": None if env.reference is None else env.reference.source,
        "jax": jax.__version__,
    }
    policies = jax.tree.map(lambda *leaves: np.stack(leaves), *(snapshots[i]["policy"] for i in used))
    save_policy(path, algorithm, config, env.task_spec, policies, metadata)


def save_prey(path: pathlib.Path, env: MultiAgentEnv, policies: Any) -> None:
    """Writes the last agent of tag or world, trained as a learner, as a prey that the task can load.

    Args:
        path: an `.npz`, with the arrays of `omarl_envs.particle.prey.Prey`.
        env: the task with `prey="learner"`.
        policies: of deterministic-policy methods with batch normalisation and two hidden layers of one width.
    """
    prey = jax.tree.map(lambda x: np.asarray(x[-1]), policies)
    norm, layers = prey.params["norm"], [prey.params[f"layer_{i}"] for i in range(3)]
    size = env.scenario.prey_obs_dim  # type: ignore[attr-defined]
    # A learner's observation is padded with zeros; what they contribute after normalisation is constant.
    padding = norm["bias"] - prey.stats.mean * norm["scale"] / np.sqrt(prey.stats.var + 1e-5)
    first = layers[0]["bias"] + padding[size:] @ layers[0]["kernel"][size:]
    arrays = {
        "bn_scale": norm["scale"][:size],
        "bn_bias": norm["bias"][:size],
        "bn_mean": prey.stats.mean[:size],
        "bn_var": prey.stats.var[:size],
        "w1": layers[0]["kernel"][:size],
        "b1": first,
        "w2": layers[1]["kernel"],
        "b2": layers[1]["bias"],
        "w3": layers[2]["kernel"],
        "b3": layers[2]["bias"],
    }
    with replacing(pathlib.Path(path)) as file:
        np.savez(file, **arrays)
