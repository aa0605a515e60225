"""The compiled training loop: many runs of one method in one program.

Runs differ in seed, in float hyperparameters and in the data they sample; everything that shapes a program (method,
task, widths, batch size) they share. A *chunk* is a scan over learning rounds, mapped over lanes, each of which works
on one run. Randomness is `fold_in(run key, round)`, and the run key depends on the seed alone, so it is the same
whatever the size of the chunk, the neighbours in the program, or the number of devices.
"""

import dataclasses
import itertools
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.base import MultiAgentEnv

from omarl_jax import algorithms, evaluation, export
from omarl_jax.algorithms import Method
from omarl_jax.data.dataset import Dataset, DeviceData, Window, gather, sample
from omarl_jax.data.recipes import make_env
from omarl_jax.data.validation import validate, validate_task
from omarl_jax.errors import UserError, check_seeds
from omarl_jax.layout import Layout, write
from omarl_jax.types import Algorithm, Metrics, TaskSpec


class RunState(NamedTuple):
    """What a run has learned; in a program every leaf begins with (L,).

    Attributes:
        state: the method's state.
        round: () int32, learning rounds done.
        diverged_at: () int32, the first round that was not finite, or -1. From the chunk with that round on the state
            stays as it was before that chunk.
    """

    state: Any
    round: chex.Array
    diverged_at: chex.Array


class Plan(NamedTuple):
    """What a run is given: nothing in it changes while it trains; in a program every leaf begins with (L,).

    Attributes:
        config: the method's hyperparameters.
        key: the run's key.
        window: the part of the data it samples from.
    """

    config: Any
    key: chex.PRNGKey
    window: Window


class Trainer:
    """Trains the runs of one program.

    Args:
        method: the method.
        configs: the hyperparameters of each run; their static fields must agree.
        seeds: the seed of each run.
        datasets: the data.
        data_of: for each run, which of the datasets it learns from.
        env: the task, for evaluation; None if there is no simulator.
        layout: where and when the runs are computed; by default on all devices.

    Attributes:
        round: learning rounds done.
        runs: the state of every run, (R, …): on the devices if one call has lanes enough (then it is (L, …), where
            lanes that are left over repeat the last run), and otherwise on the host.
    """

    runs: RunState

    def __init__(
        self,
        method: Method,
        configs: Sequence[Any],
        seeds: Sequence[int],
        datasets: list[Dataset],
        data_of: Sequence[int],
        env: MultiAgentEnv | None,
        layout: Layout | None = None,
    ):
        self.method, self.env, self.round = method, env, 0
        self.spec: TaskSpec = datasets[0].spec
        self.n_runs = len(seeds)
        self.layout = layout or Layout.default(self.n_runs)
        self._call, *others = self.layout.calls(self.n_runs)
        self._at_once = not others
        if len({jax.tree.structure(config) for config in configs}) > 1:
            raise UserError("Runs of one program may differ in float hyperparameters only.")

        needs = method.make(configs[0], self.spec).needs
        data, windows = gather(datasets, needs)
        self._data = self.layout.everywhere(data)
        stats = [dataset.stats() for dataset in datasets]
        keys = jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
        init_keys, train_keys, self._evaluation_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
        config = _stacked(configs)
        self._plan = Plan(config, train_keys, _stacked([windows[data] for data in data_of]))
        self._plans: dict[tuple[int, ...], Plan] = {}  # of the runs of each call, where they are computed

        def init(config: Any, key: chex.PRNGKey, stats: Any) -> RunState:
            return RunState(method.make(config, self.spec).init(key, stats), jnp.int32(0), jnp.int32(-1))

        self.resume(jax.jit(jax.vmap(init))(config, init_keys, _stacked([stats[data] for data in data_of])), 0)
        self._programs: dict[int, Callable[..., tuple[RunState, Metrics]]] = {}
        self._evaluations: dict[int, Callable[..., dict[str, chex.Array]]] = {}

    def advance(self, rounds: int) -> dict[str, np.ndarray]:
        """Makes learning rounds.

        Returns:
            metrics, each the mean over these rounds, (runs,).
        """
        parts = self.layout.parts(self.n_runs)
        sums: dict[str, np.ndarray] = {}
        for times, length in ((parts, rounds // parts), (1, rounds % parts)):
            for call in self.layout.calls(self.n_runs, times) if length else []:
                self._advance(call, length, sums)
        self.round += rounds
        return {name: values / rounds for name, values in sums.items()}

    def _advance(self, call: list[int], rounds: int, sums: dict[str, np.ndarray]) -> None:
        """Makes learning rounds with the runs of one call, and adds to the sums of metrics."""
        if rounds not in self._programs:
            self._programs[rounds] = self._program(rounds)
        if tuple(call) not in self._plans:
            self._plans[tuple(call)] = self.layout.place(self._plan, call)
        program, plan = self._programs[rounds], self._plans[tuple(call)]
        if self._at_once:
            self.runs, metrics = program(self.runs, plan, self._data)
        else:
            runs, metrics = program(self.layout.place(self.runs, call), plan, self._data)
            write(self.runs, call, jax.tree.map(np.asarray, runs))
        for name, values in metrics.items():
            sums.setdefault(name, np.zeros(self.n_runs))[call] += np.asarray(values)

    def evaluate(self, episodes: int) -> dict[str, np.ndarray]:
        """Plays episodes with each policy as it is now, greedily.

        Returns:
            for each quantity of the task its sums over episodes, (runs, episodes); `return` is among them.
        """
        if episodes not in self._evaluations:
            self._evaluations[episodes] = jax.jit(self.layout.spread(self._evaluate_lane(episodes)))
        players = (self.runs.state.policy, self._plan.config, self._evaluation_keys)
        return self.layout.map(self._evaluations[episodes], self.n_runs, players, jnp.int32(self.round))

    def policy(self, run: int) -> Any:
        """The policy of one run, on the host."""
        return jax.tree.map(lambda x: np.asarray(x[run]), self.runs.state.policy)

    @property
    def diverged_at(self) -> np.ndarray:
        """(runs,) int, the first round that was not finite, or -1."""
        return np.asarray(self.runs.diverged_at)[: self.n_runs]

    def resume(self, runs: RunState, round: int) -> None:
        """Continues from a state that was saved."""
        self.round = round
        self.runs = self.layout.place(runs, self._call) if self._at_once else jax.tree.map(np.array, runs)

    def chunk(self, rounds: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The training program and its arguments, for export and inspection."""
        lanes = self.layout.place((self.runs, self._plan), self._call)
        return self.layout.spread(self._train_lane(rounds)), (lanes, self._data)

    def _program(self, rounds: int) -> Callable[..., tuple[RunState, Metrics]]:
        spread = self.layout.spread(self._train_lane(rounds))
        return jax.jit(lambda runs, plan, data: spread((runs, plan), data), donate_argnums=0)

    def _train_lane(self, rounds: int) -> Callable[..., tuple[RunState, Metrics]]:
        def train(run_and_plan: tuple[RunState, Plan], data: DeviceData) -> tuple[RunState, Metrics]:
            run, plan = run_and_plan
            algorithm = self.method.make(plan.config, self.spec)

            def one_round(carry: RunState, _: None) -> tuple[RunState, Metrics]:
                sample_key, update_key = jax.random.split(jax.random.fold_in(plan.key, carry.round))
                batch = sample(data, plan.window, sample_key, algorithm.needs)
                state, metrics = algorithm.update(carry.state, batch, update_key)
                metrics = {name: value.astype(jnp.float32) for name, value in metrics.items()}  # counters, too
                diverged_at = _first(carry.diverged_at, _finite(metrics), carry.round)
                return RunState(state, carry.round + 1, diverged_at), metrics

            def learn(run: RunState) -> tuple[RunState, Metrics]:
                end, metrics = jax.lax.scan(one_round, run, length=rounds)
                # Parameters can overflow in the last round without any metric that tells.
                diverged_at = _first(end.diverged_at, _finite(end.state), end.round - 1)
                state = jax.tree.map(lambda new, old: jnp.where(diverged_at < 0, new, old), end.state, run.state)
                return RunState(state, end.round, diverged_at), jax.tree.map(jnp.sum, metrics)

            def rest(run: RunState) -> tuple[RunState, Metrics]:
                shapes = jax.eval_shape(learn, run)[1]
                metrics = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)
                return run._replace(round=run.round + rounds), metrics

            # What follows a run that has diverged need not wait for it; of lanes side by side, none can be left out.
            return jax.lax.cond(run.diverged_at >= 0, rest, learn, run)

        return train

    def _evaluate_lane(self, episodes: int) -> Callable[..., dict[str, chex.Array]]:
        env = self.env
        if env is None:
            raise UserError("There is no simulator to evaluate with.")

        def evaluate(lane: tuple[Any, Any, chex.PRNGKey], round: chex.Array) -> dict[str, chex.Array]:
            policy, config, key = lane
            algorithm = self.method.make(config, self.spec)
            key = jax.random.fold_in(key, round)
            return evaluation.evaluate(env, algorithm.act, algorithm.carry, policy, key, episodes)

        return evaluate


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def _finite(tree: Any) -> chex.Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.bool_(True), *(jnp.isfinite(leaf).all() for leaf in floats)]).all()


def _first(diverged_at: chex.Array, finite: chex.Array, round: chex.Array) -> chex.Array:
    return jnp.where((diverged_at < 0) & ~finite, round, diverged_at)


def make_algorithm(name: str, spec: TaskSpec, **hyperparameters: Any) -> Algorithm:
    """Makes a method as pure functions, its hyperparameters checked.

    Raises:
        UserError: for an unknown method, or hyperparameters that make no sense.
    """
    method = algorithms.find(name)
    return method.make(method.configure(spec, hyperparameters), spec)


@dataclasses.dataclass(frozen=True)
class Result:
    """What `train` gives back; R runs, in the order of `configs` and `seeds`.

    Attributes:
        configs: the hyperparameters of each run.
        seeds: the seed of each run.
        rounds: (E,) learning rounds after which the policies were evaluated.
        returns: (E, R) mean return of each evaluation, in units of the task; NaN of runs that have diverged.
        scores: (E, R) the same, normalised; None where the task has no reference.
        metrics: each (E, R), means over the rounds before each evaluation.
        diverged_at: (R,) the first round of each run that was not finite, or -1.
        options: constructor arguments of the task that the data were made with.
        trainer: to evaluate further, go on, or take the policies from.
    """

    configs: list[Any]
    seeds: list[int]
    rounds: np.ndarray
    returns: np.ndarray
    scores: np.ndarray | None
    metrics: dict[str, np.ndarray]
    diverged_at: np.ndarray
    options: dict[str, Any]
    trainer: Trainer

    def save_policy(self, run: int, path: str | pathlib.Path) -> None:
        """Writes the policy of one run as it is now, to be read by `load_policy` and by `omarl evaluate`.

        Raises:
            UserError: if the file cannot be written.
        """
        method, policy = self.trainer.method.name, self.trainer.policy(run)
        export.save_policy(path, method, self.configs[run], self.trainer.spec, policy, {"options": self.options})


def train(
    algorithm: str,
    dataset: Dataset,
    seeds: int | Sequence[int] = 1,
    rounds: int = 2_000,
    evaluations: int = 10,
    episodes: int = 100,
    env: MultiAgentEnv | None = None,
    **hyperparameters: Any,
) -> Result:
    """Trains a method on a dataset: all seeds, and all values of float hyperparameters, in one program.

    A run that diverges stops alone, with a warning. On accelerators, matrices are multiplied with the precision of
    `jax_default_matmul_precision`, which the command line sets to float32.

    Args:
        algorithm: the method's name.
        dataset: the data.
        seeds: how many, or which.
        rounds: learning rounds.
        evaluations: how often to evaluate, evenly spread; fewer where rounds are few.
        episodes: of each evaluation.
        env: the task to evaluate on; by default the one the data was made on.
        **hyperparameters: a list of values spans a grid. What is not given has the method's default, whatever the
            dataset; what was published for it is told by `omarl_jax.presets.preset`.

    Raises:
        UserError: for unknown names, values that make no sense, and data that are not valid.
    """
    validate(dataset)
    method = algorithms.find(algorithm)
    axes = [[(name, v) for v in (vs if isinstance(vs, list) else [vs])] for name, vs in hyperparameters.items()]
    grid = [method.configure(dataset.spec, dict(point)) for point in itertools.product(*axes)]
    each = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    check_seeds(each)
    runs = [(config, seed) for config in grid for seed in each]
    if not runs or rounds < 1 or episodes < 1 or not 1 <= evaluations <= rounds:
        raise UserError("There must be a seed, a round and an episode at least, and not more evaluations than rounds.")
    configs, run_seeds = [config for config, _ in runs], [seed for _, seed in runs]
    options = dataset.metadata.get("options", {})
    env = env or make_env(dataset.spec.name, **options)
    validate_task(env.task_spec, dataset.spec, "The environment")
    trainer = Trainer(method, configs, run_seeds, [dataset], [0] * len(runs), env)
    ends = chunk_ends(rounds, evaluations)
    metrics, returns = [], []
    for end in ends:
        metrics.append(trainer.advance(end - trainer.round))
        returns.append(trainer.evaluate(episodes)["return"].mean(axis=1))
    diverged_at = trainer.diverged_at
    diverged = (diverged_at >= 0) & (diverged_at < np.array(ends)[:, None])
    if diverged.any():
        told = ", ".join(f"{run} at round {at}" for run, at in enumerate(diverged_at) if at >= 0)
        warnings.warn(f"Runs of '{algorithm}' diverged (run {told}); they have no returns from then on.", stacklevel=2)
    stacked = np.where(diverged, np.nan, np.stack(returns))
    return Result(
        configs=configs,
        seeds=run_seeds,
        rounds=np.array(ends),
        returns=stacked,
        scores=None if env.reference is None else env.reference.normalise(stacked),
        metrics={name: np.stack([row[name] for row in metrics]) for name in metrics[0]},
        diverged_at=diverged_at,
        options=options,
        trainer=trainer,
    )


def chunk_ends(rounds: int, evaluations: int) -> list[int]:
    """The rounds after which to evaluate, at most so many: equally far apart, but the last may come sooner."""
    size = -(-rounds // evaluations)
    return [*range(size, rounds, size), rounds]
