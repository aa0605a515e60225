"""The compiled training loop: many runs of one method in one program.

Runs differ in seed, in float hyperparameters and in the data they sample; everything that shapes a program (method,
task, widths, batch size) they share. A *chunk* is a scan over updates, mapped over slots, each of which works on one
run. Randomness is `fold_in(run key, update)`, and the run key depends on the seed alone, so it is the same whatever the
size of the chunk, the neighbours in the program, or the number of devices.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.base import MultiAgentEnv

from omarl_jax import rollout
from omarl_jax.algorithms import Method
from omarl_jax.data.dataset import Dataset, DeviceData, IndexRange, concat_datasets, sample
from omarl_jax.errors import UserError
from omarl_jax.placement import Placement, fetch, needed_memory, schedule, write
from omarl_jax.types import Context, Metrics, TaskSpec

_log = logging.getLogger(__name__)


class RunState(NamedTuple):
    """The state of a run; in a program every leaf begins with (S,), the slots.

    Attributes:
        state: the method's state.
        updates: () int32, updates made.
        diverged_at: () int32, the first update that was not finite, or -1. From the chunk with that update on the state
            stays as it was before that chunk.
    """

    state: Any
    updates: chex.Array
    diverged_at: chex.Array


class RunInputs(NamedTuple):
    """The inputs of a run, which do not change while it trains; in a program every leaf begins with (S,).

    Attributes:
        config: the method's hyperparameters.
        key: the run's key.
        window: the part of the data it samples from.
    """

    config: Any
    key: chex.PRNGKey
    window: IndexRange


class Trainer:
    """Trains the runs of one program, a run group.

    Args:
        method: the method.
        configs: the hyperparameters of each run; their static fields must agree.
        seeds: the seed of each run.
        datasets: the data.
        data_of: for each run, which of the datasets it learns from.
        env: the task, for evaluation; None if there is no simulator.
        placement: where the runs are computed; by default on all devices.
        all_updates: the updates that each run will make from its beginning to its end, for methods with schedules.
        parts: the frozen policies that the method needs, by name, every leaf (R, …).

    Attributes:
        updates: updates made with each run.
    """

    def __init__(
        self,
        method: Method,
        configs: Sequence[Any],
        seeds: Sequence[int],
        datasets: list[Dataset],
        data_of: Sequence[int],
        env: MultiAgentEnv | None,
        placement: Placement | None = None,
        all_updates: int = 1_000_000,
        parts: Mapping[str, Any] | None = None,
    ):
        self.method, self.env, self.updates = method, env, 0
        self.spec: TaskSpec = datasets[0].spec
        self.n_runs = len(seeds)
        self.placement = placement or Placement.default(self.n_runs)
        ((self._ids, _), *others) = schedule(self.n_runs, self.placement.slots, 1)
        self._at_once = not others
        if len({jax.tree.structure(config) for config in configs}) > 1:
            raise UserError("Runs of one program may differ in float hyperparameters only.")

        needs = method.make(configs[0], self.spec).needs
        if needs.state and self.spec.state_is_obs:
            _log.info("Task '%s' has no state of its own: its observations in a row serve as one.", self.spec.name)
        data, windows = concat_datasets(datasets, needs)
        self._data = self.placement.replicate(data)
        keys = jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
        init_keys, train_keys, self._evaluation_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
        config = _stacked(configs)
        self._inputs = RunInputs(config, train_keys, _stacked([windows[data] for data in data_of]))
        self._inputs_of: dict[tuple[int, ...], RunInputs] = {}  # of the runs of each call, where they are computed

        def init(given: tuple[Any, chex.PRNGKey, Any, Any], all_updates: chex.Array) -> RunState:
            config, key, stats, parts = given
            context = Context(stats, all_updates, parts)
            return RunState(method.make(config, self.spec).init(key, context), jnp.int32(0), jnp.int32(-1))

        stats = [dataset.stats() for dataset in datasets]
        given = config, init_keys, _stacked([stats[data] for data in data_of]), dict(parts or {})
        self._start, self._start_with = jax.jit(self.placement.map_runs(init)), (given, np.int32(all_updates))
        self._programs: dict[int, Callable[..., tuple[RunState, Metrics]]] = {}
        self._evaluations: dict[int, Callable[..., dict[str, chex.Array]]] = {}

    @functools.cached_property
    def runs(self) -> RunState:
        """The state of every run, (R, …), made when it is first asked for.

        It lies on the devices if there is a slot for each run (then it is (S, …), where the remaining slots repeat the
        last run), and otherwise on the host.
        """
        given, all_updates = self._start_with
        if self._at_once:
            return self._start(self.placement.shard_runs(given, self._ids), all_updates)
        return self.placement.run_all(self._start, self.n_runs, given, all_updates)

    def described(self) -> RunState:
        """The shapes, dtypes and places of `runs`, to read a checkpoint into."""
        if self._at_once:
            return self._described_slots()
        return jax.tree.map(lambda x: np.empty((self.n_runs, *x.shape[1:]), x.dtype), self._described_slots())

    def _described_slots(self) -> RunState:
        given, all_updates = self._start_with
        return self.placement.described(jax.eval_shape(self._start, self.placement.described(given), all_updates))

    def compile(self, updates: int) -> int | None:
        """Compiles the program that `advance` begins with, before the runs take any memory.

        Returns:
            bytes of each device that it needs, the data included; None if the backend does not say.
        """
        length = schedule(self.n_runs, self.placement.slots, updates)[0][1]
        inputs = self.placement.described(self._inputs)
        compiled = self._program(length).lower(self._described_slots(), inputs, self._data).compile()
        self._programs[length] = compiled
        return needed_memory(compiled)

    def advance(self, updates: int) -> dict[str, np.ndarray]:
        """Makes updates with every run.

        Returns:
            metrics, each the mean over these updates, (R,) or (R, N).
        """
        sums: dict[str, np.ndarray] = {}
        for ids, length in schedule(self.n_runs, self.placement.slots, updates):
            self._advance(ids, length, sums)
        self.updates += updates
        return {name: values / updates for name, values in sums.items()}

    def _advance(self, ids: list[int], updates: int, sums: dict[str, np.ndarray]) -> None:
        """Makes updates with some runs, one in each slot, and adds to the sums of metrics."""
        if updates not in self._programs:
            self._programs[updates] = self._program(updates)
        if tuple(ids) not in self._inputs_of:
            self._inputs_of[tuple(ids)] = self.placement.shard_runs(self._inputs, ids)
        program, inputs = self._programs[updates], self._inputs_of[tuple(ids)]
        if self._at_once:
            self.runs, metrics = program(self.runs, inputs, self._data)
        else:
            runs, metrics = program(self.placement.shard_runs(self.runs, ids), inputs, self._data)
            write(self.runs, ids, fetch(runs))
        for name, values in fetch(metrics).items():
            sums.setdefault(name, np.zeros((self.n_runs, *values.shape[1:])))[ids] += values

    def evaluate(self, episodes: int) -> dict[str, np.ndarray]:
        """Plays episodes with each policy as it is now, greedily.

        Returns:
            for each quantity of the task its sums over episodes, (R, episodes); `return` is among them.
        """
        if episodes not in self._evaluations:
            self._evaluations[episodes] = jax.jit(self.placement.map_runs(self._evaluate_run(episodes)))
        players = (self.runs.state.policy, self._inputs.config, self._evaluation_keys)
        return self.placement.run_all(self._evaluations[episodes], self.n_runs, players, np.int32(self.updates))

    def policy(self, run: int) -> Any:
        """A copy of the policy of one run, on the host."""
        return jax.tree.map(np.array, fetch(jax.tree.map(lambda x: x[run], self.runs.state.policy)))

    @property
    def diverged_at(self) -> np.ndarray:
        """(R,) int, the first update that was not finite, or -1."""
        return fetch(self.runs.diverged_at)[: self.n_runs]

    def resume(self, runs: RunState, updates: int) -> None:
        """Continues from a state that was saved."""
        self.updates = updates
        self.runs = self.placement.put(runs) if self._at_once else jax.tree.map(np.array, runs)

    def chunk(self, updates: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The training program and its arguments, for export and inspection."""
        slots = self.placement.shard_runs((self.runs, self._inputs), self._ids)
        return self.placement.map_runs(self._train_run(updates)), (slots, self._data)

    def _program(self, updates: int) -> jax.stages.Wrapped:
        mapped = self.placement.map_runs(self._train_run(updates))
        # Data that the method does not use lie on the devices, too, and count in `compile`.
        return jax.jit(lambda runs, inputs, data: mapped((runs, inputs), data), donate_argnums=0, keep_unused=True)

    def _train_run(self, updates: int) -> Callable[..., tuple[RunState, Metrics]]:
        def train(run_and_inputs: tuple[RunState, RunInputs], data: DeviceData) -> tuple[RunState, Metrics]:
            run, inputs = run_and_inputs
            algorithm = self.method.make(inputs.config, self.spec)

            def update(carry: RunState, _: None) -> tuple[RunState, Metrics]:
                sample_key, update_key = jax.random.split(jax.random.fold_in(inputs.key, carry.updates))
                batch = sample(data, inputs.window, sample_key, algorithm.needs)
                state, metrics = algorithm.update(carry.state, batch, update_key)
                metrics = {name: value.astype(jnp.float32) for name, value in metrics.items()}  # counters, too
                diverged_at = _first(carry.diverged_at, _finite(metrics), carry.updates)
                return RunState(state, carry.updates + 1, diverged_at), metrics

            def learn(run: RunState) -> tuple[RunState, Metrics]:
                end, metrics = jax.lax.scan(update, run, length=updates)
                # Parameters can overflow in the last update without any metric that shows it.
                diverged_at = _first(end.diverged_at, _finite(end.state), end.updates - 1)
                state = jax.tree.map(lambda new, old: jnp.where(diverged_at < 0, new, old), end.state, run.state)
                return RunState(state, end.updates, diverged_at), jax.tree.map(lambda x: x.sum(axis=0), metrics)

            def rest(run: RunState) -> tuple[RunState, Metrics]:
                shapes = jax.eval_shape(learn, run)[1]
                metrics = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)
                return run._replace(updates=run.updates + updates), metrics

            # Skips diverged runs. It saves time only with one run a device: under `vmap` both branches are computed.
            return jax.lax.cond(run.diverged_at >= 0, rest, learn, run)

        return train

    def _evaluate_run(self, episodes: int) -> Callable[..., dict[str, chex.Array]]:
        env = self.env
        if env is None:
            raise UserError("There is no simulator to evaluate with.")

        def evaluate(run: tuple[Any, Any, chex.PRNGKey], updates: chex.Array) -> dict[str, chex.Array]:
            policy, config, key = run
            algorithm = self.method.make(config, self.spec)
            key = jax.random.fold_in(key, updates)
            policies = self.placement.side_by_side
            return rollout.evaluate(env, algorithm.act, algorithm.carry, policy, key, episodes, policies=policies)

        return evaluate


class Chunk(NamedTuple):
    """A part of training, and the evaluation at its end.

    Attributes:
        updates: updates made with each run, at its end.
        metrics: each (R,) or, with a number for each agent, (R, N): means over its updates.
        returns: (R, episodes) of the policies at its end, in units of the task; None if there is no simulator.
        updates_per_second: of all runs together, the evaluation left out.
    """

    updates: int
    metrics: dict[str, np.ndarray]
    returns: np.ndarray | None
    updates_per_second: float


def fit(trainer: Trainer, updates: int, evaluations: int, episodes: int) -> Iterator[Chunk]:
    """The training loop: trains from where the trainer is, and evaluates after each chunk.

    Args:
        trainer: the runs. While the generator waits, it holds the state at the end of the last chunk.
        updates: the number of updates of a run from its beginning.
        evaluations: how often to evaluate, evenly spread; fewer where updates are few.
        episodes: of each evaluation.
    """
    for end in (n for n in chunk_ends(updates, evaluations) if n > trainer.updates):
        size, start = end - trainer.updates, time.perf_counter()
        metrics = trainer.advance(size)
        rate = size * trainer.n_runs / (time.perf_counter() - start)
        returns = None if trainer.env is None else trainer.evaluate(episodes)["return"]
        yield Chunk(end, metrics, returns, rate)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def _finite(tree: Any) -> chex.Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.bool_(True), *(jnp.isfinite(leaf).all() for leaf in floats)]).all()


def _first(diverged_at: chex.Array, finite: chex.Array, update: chex.Array) -> chex.Array:
    return jnp.where((diverged_at < 0) & ~finite, update, diverged_at)


def chunk_ends(updates: int, evaluations: int) -> list[int]:
    """The updates after which to evaluate, at most so many: equally far apart, but the last may come sooner."""
    size = -(-updates // evaluations)
    return [*range(size, updates, size), updates]
