"""The compiled loop: what a run computes must not depend on its neighbours, on chunks, on devices or on a restart."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.base import MultiAgentEnv, Observation
from omarl_envs.spec import TaskSpec

from omarl_jax import (
    UserError,
    algorithms,
    api,
    load_dataset,
    load_policy,
    make_algorithm,
    make_env,
    online,
    rollout,
    train,
)
from omarl_jax.algorithms import Method
from omarl_jax.checkpoint import Checkpoints
from omarl_jax.data.dataset import Dataset, EpisodeStore
from omarl_jax.placement import Placement, schedule
from omarl_jax.training import Trainer, chunk_ends
from omarl_jax.types import Algorithm, Context, Needs, Stats, config

TOO_FAST = 3e38  # a learning rate: two steps of Adam are beyond float32, whatever the data
SMALL = {"hidden": (8, 8), "batch_size": 16, "cql_samples": 2, "search_steps": 1, "search_samples": 2}


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("particle/spread", "random", size=1_000)


def trainer(datasets, seeds, placement=None, lrs=None, method="omar", **overrides):
    """Of one dataset, or of several, which the runs take by turns."""
    datasets = datasets if isinstance(datasets, list) else [datasets]
    method, spec = algorithms.find(method), datasets[0].spec
    lrs = lrs or [0.01] * len(seeds)
    known = {field.name for field in dataclasses.fields(method.config)}
    small = {name: value for name, value in SMALL.items() if name in known}
    configs = [method.configure(spec, small | {"lr": lr} | overrides) for lr in lrs]
    data_of = [i % len(datasets) for i in range(len(seeds))]
    return Trainer(method, configs, seeds, datasets, data_of, make_env("particle/spread"), placement)


def leaves(trainer, run):
    return [np.asarray(leaf, dtype=np.float64)[run] for leaf in jax.tree.leaves(trainer.runs.state)]


def assert_equal(a, b, tolerance):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_a_run_alone_equals_itself_in_a_group(dataset):
    """Side by side with others, which have other hyperparameters and other data."""
    alone = trainer(dataset, [3])
    together = trainer([dataset] * 2, [1, 3, 5], Placement(slots=3, devices=1), lrs=[0.003, 0.01, 0.03])
    for t in (alone, together):
        t.advance(10)
    # The second copy of the same data is sampled through another window, so rows agree and row numbers do not.
    assert_equal(leaves(alone, 0), leaves(together, 1), 1e-5)
    differences = [np.abs(a - b).max() for a, b in zip(leaves(together, 0), leaves(together, 1), strict=True)]
    assert max(differences) > 1e-3  # runs do differ


def test_each_run_learns_from_its_own_data_and_statistics_whatever_the_size_of_the_chunk(dataset):
    """In the other data the team does the contrary and sees on another scale; the seed is the same."""
    rows = dataset.rows
    other = dataclasses.replace(dataset, rows=rows._replace(obs=3.0 * rows.obs + 1.0, actions=-rows.actions))
    settings = {"method": "bc", "input_norm": "dataset", "hidden": (8,)}
    together = trainer([dataset, other], [0, 0], **settings)
    together.advance(6)
    for run, data in enumerate([dataset, other]):
        alone = trainer(data, [0], **settings)
        for _ in range(2):
            alone.advance(3)
        assert_equal(leaves(alone, 0), leaves(together, run), 1e-6)
        seen = data.rows.obs[~data.rows.closing]
        np.testing.assert_allclose(together.policy(run).stats.obs_mean, seen.mean(axis=0), atol=1e-4)
    first, second = (jax.tree.leaves(together.policy(run).policy.params) for run in range(2))
    assert max(np.abs(a - b).max() for a, b in zip(first, second, strict=True)) > 1e-3


@pytest.mark.parametrize(
    ("placement", "lrs"),
    [(Placement(1, 1), [0.01] * 2), (Placement(2, 1), [0.01] * 2), (Placement(2, 1), [0.01, TOO_FAST, 0.01])],
)
def test_resuming_equals_never_having_stopped_to_the_last_bit(dataset, placement, lrs, tmp_path):
    """Runs one after the other, all side by side, and split in time: the one split has diverged when all stop."""
    runs, sick = range(len(lrs)), [lr > 1 for lr in lrs]
    straight, first, second = (trainer(dataset, runs, placement, lrs, method="bc") for _ in range(3))
    straight.advance(4)
    straight.advance(4)
    first.advance(4)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(first.updates, first.runs)
        second.resume(*checkpoints.restore(second.runs))
    assert second.updates == 4
    before = [leaves(second, run) for run in runs]
    metrics = second.advance(4)
    for run in runs:
        assert_equal(leaves(straight, run), leaves(second, run), 0.0)
        moved = max(np.abs(a - b).max() for a, b in zip(before[run], leaves(second, run), strict=True))
        assert (moved == 0.0) == sick[run]
    np.testing.assert_array_equal(second.diverged_at, straight.diverged_at)
    np.testing.assert_array_equal((second.diverged_at >= 0) & (second.diverged_at < 4), sick)
    np.testing.assert_array_equal(np.isnan(metrics["policy_loss"]), sick)
    a, b = straight.evaluate(3), second.evaluate(3)
    np.testing.assert_array_equal(a["return"], b["return"])


def test_a_run_that_diverges_stops_alone(dataset):
    healthy, sick = (trainer(dataset, [0, 1], lrs=[0.01, lr], method="bc") for lr in (0.01, TOO_FAST))
    for t in (healthy, sick):
        t.advance(2)
    before = leaves(sick, 1)
    assert all(np.isfinite(leaf).all() for leaf in before)
    for t in (healthy, sick):
        t.advance(2)
    assert sick.diverged_at[0] == -1
    assert 0 <= sick.diverged_at[1] < 4
    assert_equal(leaves(healthy, 0), leaves(sick, 0), 0.0)
    assert_equal(leaves(sick, 1), before, 0.0)  # frozen where it was last good


@pytest.mark.parametrize("method", ["bc", "icq", "omar", "ciqr"])
def test_the_training_program_exports_for_every_accelerator(method, dataset):
    if method == "ciqr":
        dataset = load_dataset("matrix/climbing", "random", size=500)
    program, arguments = trainer(dataset, [0, 1], method=method, batch_size=64).chunk(2)  # of two blocks, on CPUs
    arguments = jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x, arguments
    )

    def with_raw_keys(slots_and_inputs, shared):
        slots, inputs = slots_and_inputs
        return program((slots, inputs._replace(key=jax.random.wrap_key_data(inputs.key))), shared)

    exports(with_raw_keys, *arguments)


@pytest.mark.parametrize(
    ("task", "method"),
    [("particle/spread", "matd3"), ("particle/world", "itd3"), ("uav/iot", "ciqr")],
)
def test_playing_and_learning_online_export_for_every_accelerator(task, method):
    env = make_env(task)
    spec, settings = env.task_spec, online.OnlineSettings(n_envs=2, capacity=8, warmup=2)
    algorithm = make_algorithm(method, spec, hidden=(8,), batch_size=4)
    context = Context(Stats.unknown(spec))

    def play(raw):
        key = jax.random.wrap_key_data(raw)
        policy = algorithm.init(key, context).policy
        return rollout.evaluate(env, algorithm.act, algorithm.carry, policy, key, 3, explore=True)

    def learn(raw):
        key = jax.random.wrap_key_data(raw)
        state = online.init(algorithm, algorithm.init(key, context), env, settings, key)
        state, metrics = online.step(algorithm, env, settings, state, jnp.int32(0), key)
        return jax.tree.leaves(state.learner), metrics

    for function in (play, learn):
        exports(function, jax.random.key_data(jax.random.key(0)))


def exports(function, *arguments):
    """Asserts that a function exports without what some accelerator has not."""
    exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(*arguments)
    text = exported.mlir_module()
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "f64" not in text
    assert "callback" not in text


def test_static_hyperparameters_must_agree(dataset):
    method = algorithms.find("omar")
    configs = [method.configure(dataset.spec, SMALL | {"hidden": hidden}) for hidden in ((8, 8), (4, 4))]
    with pytest.raises(UserError, match="float hyperparameters only"):
        Trainer(method, configs, [0, 1], [dataset], [0, 0], None)


def test_train_spans_a_grid(dataset):
    result = train("bc", dataset, seeds=2, updates=4, evaluations=2, episodes=5, lr=[0.01, 0.001], hidden=(8,))
    assert result.returns.shape == (2, 4) == result.scores.shape
    np.testing.assert_array_equal(result.updates, [2, 4])
    assert [config.lr for config in result.configs] == [0.01, 0.01, 0.001, 0.001]
    assert result.seeds == [0, 1, 0, 1]
    np.testing.assert_allclose(result.scores, 100 * (result.returns - 159.8) / (516.8 - 159.8), rtol=1e-5)


def test_train_tells_which_runs_diverged(dataset):
    with pytest.warns(UserWarning, match=r"run 1 at update \d"):
        result = train("bc", dataset, updates=6, evaluations=3, episodes=5, lr=[0.001, TOO_FAST], hidden=(8,))
    assert result.diverged_at[0] == -1
    assert 0 <= result.diverged_at[1] < 4
    assert np.isfinite(result.returns[:, 0]).all()
    assert np.isnan(result.scores[2, 1])


def test_train_starts_from_what_was_published_unless_told_otherwise(dataset, monkeypatch):
    monkeypatch.setattr(api, "fit", lambda *_: [])
    medium = dataclasses.replace(dataset, metadata=dataset.metadata | {"recipe": "medium"})
    small = {"hidden": (8,), "batch_size": 16, "cql_samples": 2, "evaluations": 1, "episodes": 2, "updates": 1}
    alphas = [train("cql", data, preset=p, **small).configs[0].cql_alpha for data in (dataset, medium) for p in (1, 0)]
    assert alphas == [0.5, 1.0, 5.0, 1.0]
    assert train("cql", medium, cql_alpha=2.0, **small).configs[0].cql_alpha == 2.0


def test_static_hyperparameters_span_a_grid_too_and_runs_stay_in_order(dataset):
    settings = {"seeds": np.int64(2), "updates": np.int64(4), "evaluations": 2, "episodes": 3, "hidden": (8,)}
    both = train("bc", dataset, batch_size=[16, np.int64(32)], lr=[0.01, 0.001], **settings)
    assert [config.batch_size for config in both.configs] == [16] * 4 + [32] * 4
    assert both.returns.shape == (2, 8) == both.metrics["policy_loss"].shape
    alone = train("bc", dataset, batch_size=32, lr=[0.01, 0.001], **settings)
    np.testing.assert_array_equal(both.returns[:, 4:], alone.returns)
    np.testing.assert_array_equal(both.metrics["policy_loss"][:, 4:], alone.metrics["policy_loss"])
    for run, (trainer, number) in enumerate(both.trainers):
        np.testing.assert_array_equal(trainer.evaluate(3)["return"][number].mean(), both.returns[-1, run])


def test_counts_must_be_positive_integers(dataset):
    for wrong in ({"updates": 0}, {"updates": 1.5}, {"episodes": True}, {"evaluations": -1}, {"seeds": []}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} must be a positive integer"):
            train("bc", dataset, **{"updates": 2} | wrong)
    with pytest.raises(UserError, match="empty list"):
        train("bc", dataset, lr=[])
    with pytest.raises(UserError, match=r"seeds must differ, which \[0, 1, 0\] do not"):
        train("bc", dataset, seeds=[0, 1, 0])


def test_numbers_are_taken_as_people_have_them(dataset):
    """Of NumPy, whole floats, and with fewer updates than evaluations are usual."""
    result = train(
        "bc", dataset, seeds=np.int64(2), updates=3.0, episodes=np.array(2), batch_size=np.int64(16), hidden=(4,)
    )
    assert result.seeds == [0, 1]
    assert result.updates.tolist() == [1, 2, 3]
    assert train("bc", dataset, seeds=np.array([3]), updates=1, episodes=2, batch_size=16.0, hidden=(4,)).seeds == [3]


def test_a_policy_keeps_the_options_of_the_task_it_was_evaluated_on(tmp_path):
    env = make_env("particle/spread", n_agents=2)
    data = load_dataset("particle/spread", "random", size=50, n_agents=2)
    data = dataclasses.replace(data, metadata={})  # as of somebody's own log
    result = train("bc", data, updates=1, episodes=2, env=env, hidden=(4,), batch_size=8)
    result.save_policy(0, tmp_path / "policy.npz")
    assert load_policy(tmp_path / "policy.npz").metadata["options"] == {"n_agents": 2}
    with pytest.raises(UserError, match=r"There are 1 runs, so run must be below that, not 5\."):
        result.save_policy(5, tmp_path / "policy.npz")


@pytest.mark.parametrize("action", [np.nan, 5.0])
def test_train_refuses_bad_data(dataset, action):
    actions = np.array(dataset.rows.actions)
    actions[3, 1, 0] = action
    bad = dataclasses.replace(dataset, rows=dataset.rows._replace(actions=actions))
    with pytest.raises(UserError, match=r"dataset's actions holds .* in episode 0, step 3, agent 1, entry 0 "):
        train("bc", bad, updates=1, evaluations=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lr": np.inf}, "lr must be finite"),
        ({"lr": "much"}, "lr must be a number, not 'much'"),
        ({"lr": True}, "lr must be a number, not True"),
        ({"batch_size": True}, "batch_size must be an integer, not True"),
        ({"batch_size": 2.5}, "batch_size must be an integer, not 2.5"),
        ({"hidden": 8}, "a list of int values, not 8; where a list spans a grid, write a list of lists"),
        ({"input_norm": "bach"}, "There is no input_norm 'bach'; did you mean 'batch'"),
    ],
)
def test_hyperparameters_must_make_sense(dataset, overrides, message):
    with pytest.raises(UserError, match=message):
        algorithms.find("omar").configure(dataset.spec, overrides)


def test_numbers_of_numpy_are_numbers_and_become_those_of_python(dataset):
    given = {
        "lr": np.float32(0.125),
        "batch_size": np.int64(16),
        "hidden": np.array([8, 4]),
        "centralised": np.bool_(True),
    }
    config = algorithms.find("omar").configure(dataset.spec, given)
    assert (config.lr, config.batch_size, config.hidden, config.centralised) == (0.125, 16, (8, 4), True)
    kinds = [type(value) for value in (config.lr, config.batch_size, config.hidden[0], config.centralised)]
    assert kinds == [float, int, int, bool]


def test_the_task_to_evaluate_on_must_fit_the_data(dataset):
    with pytest.raises(UserError, match="The environment is of task 'particle/tag'"):
        train("bc", dataset, updates=1, evaluations=1, env=make_env("particle/tag"))


def test_evaluations_are_evenly_spread_and_the_last_is_at_the_end():
    assert chunk_ends(2000, 20) == list(range(100, 2001, 100))
    assert chunk_ends(7, 3) == [3, 6, 7]
    assert chunk_ends(6, 4) == [2, 4, 6]
    assert chunk_ends(3, 20) == [1, 2, 3]
    assert len(chunk_ends(2003, 20)) == 20


class Payer(MultiAgentEnv):
    """Pays the only agent its action, for two steps."""

    def __init__(self):
        self.task_spec = TaskSpec("toy/payer", "continuous", 1, 1, 1, 1, 2, state_is_obs=True)
        super().__init__()

    def reset(self, key):
        return jnp.int32(0), self.first(Observation(jnp.zeros((1, 1)), jnp.zeros(1)))

    def step(self, state, actions):
        return state + 1, self.next(state + 1, Observation(jnp.zeros((1, 1)), jnp.zeros(1)), actions[:, 0])


@config
class Rate:
    lr: float


class Noted(NamedTuple):
    policy: jax.Array
    updates: jax.Array
    keys: jax.Array
    batches: jax.Array


def noter(trained, spec):
    """Adds its learning rate to its only parameter, and notes its batches and its keys, first that of `init`."""

    def init(key, context):
        keys = jnp.zeros((9, 2), jnp.uint32).at[0].set(jax.random.key_data(key))
        return Noted(jnp.float32(0.0), jnp.int32(0), keys, jnp.zeros((8, 4)))

    def update(state, batch, key):
        keys = state.keys.at[1 + state.updates].set(jax.random.key_data(key))
        batches = state.batches.at[state.updates].set(batch.obs[:, 0, 0])
        metrics = {"value": state.updates + trained.lr, "values": jnp.stack([state.updates * trained.lr, trained.lr])}
        return Noted(state.policy + trained.lr, state.updates + 1, keys, batches), metrics

    def act(policy, view, carry, key, explore=False):
        return jnp.full((1, 1), policy), carry

    return Algorithm(init, update, act, Needs(batch_size=4))


def noting(placement, seeds):
    closing, none = np.tile([False, True], 500), np.zeros((1000, 1), np.float32)
    number = np.arange(1000, dtype=np.float32)[:, None, None]
    rows = EpisodeStore(number, none[:, None], none, none.astype(bool), ~closing, closing)
    configs = [Rate(lr) for lr in (0.25, 0.5, 1.0)]
    env, method = Payer(), Method("noter", noter, Rate, lambda config, spec: None)
    return Trainer(method, configs, seeds, [Dataset(env.task_spec, rows, {})], [0] * 3, env, placement)


@pytest.mark.parametrize("placement", [Placement(2, 1), Placement(3, 1)])
def test_each_run_has_its_own_metrics_policy_and_returns(placement):
    """Two at a time, one of them split in time with an update left over, and all side by side."""
    lrs, learning = np.array([0.25, 0.5, 1.0]), noting(placement, [0, 1, 2])
    metrics = learning.advance(5)
    np.testing.assert_allclose(metrics["value"], (0 + 1 + 2 + 3 + 4) / 5 + lrs)
    np.testing.assert_allclose(metrics["values"], np.stack([2 * lrs, lrs], axis=1))
    np.testing.assert_allclose(learning.advance(2)["value"], (5 + 6) / 2 + lrs)
    np.testing.assert_allclose([learning.policy(run) for run in range(3)], 7 * lrs)
    played = learning.evaluate(2)
    np.testing.assert_allclose(played["return"], np.repeat(2 * 7 * lrs[:, None], 2, axis=1))  # of two steps
    np.testing.assert_array_equal(played["length"], np.full((3, 2), 2.0))


def test_every_update_of_every_seed_has_a_key_and_a_batch_of_its_own_whatever_the_chunks():
    one, many = noting(Placement(1, 1), [7, 8, 7]), noting(Placement(2, 1), [7, 8, 7])
    one.advance(8)
    for updates in (1, 4, 3):
        many.advance(updates)
    for name, count in (("keys", 9), ("batches", 8)):
        noted = np.asarray(getattr(one.runs.state, name))  # (R, count, …)
        np.testing.assert_array_equal(getattr(many.runs.state, name), noted)
        np.testing.assert_array_equal(noted[0], noted[2])  # of one seed
        assert len(np.unique(noted[:2].reshape(2 * count, -1), axis=0)) == 2 * count


@pytest.mark.parametrize(
    ("runs", "slots", "updates"),
    [(5, 2, 10), (3, 2, 7), (7, 4, 9), (20, 8, 6), (9, 8, 8), (6, 4, 1), (3, 4, 5), (8, 4, 5)],
)
def test_every_run_gets_its_updates_and_no_slot_is_idle(runs, slots, updates):
    """But for one update that does not divide evenly; there, idle slots repeat a run."""
    calls = schedule(runs, slots, updates)
    made = np.zeros(runs, int)
    for ids, length in calls:
        assert length > 0
        assert len(ids) == slots
        made[list(set(ids))] += length
    np.testing.assert_array_equal(made, updates)
    assert sum(length for _, length in calls) == max(updates, -(-runs * updates // slots))  # no sooner by any schedule
    assert len({length for _, length in calls}) <= 2  # each length is a program to compile


def test_slots_that_are_left_over_repeat_the_last_run():
    assert schedule(3, 4, 7) == [([0, 1, 2, 2], 7)]
    assert schedule(4, 2, 7) == [([0, 1], 7), ([2, 3], 7)]
    assert schedule(3, 2, 7) == [([0, 1], 3), ([0, 2], 3), ([1, 2], 3), ([0, 1], 1), ([2, 2], 1)]
    defaults = [Placement.default(runs, most).slots for runs, most in ((20, None), (20, 8), (20, 20), (3, 2))]
    assert defaults == [1, 7, 20, 2]


def test_runs_spread_over_devices_equal_runs_on_one():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    script = """
import jax, numpy as np
from omarl_jax import algorithms, load_dataset
from omarl_jax.checkpoint import Checkpoints
from omarl_jax.placement import Placement, schedule
from omarl_jax.training import Trainer
dataset = load_dataset("particle/spread", "random", size=1000)
method = algorithms.find("bc")
config = method.configure(dataset.spec, {"hidden": (8,), "batch_size": 16})
trainers = [Trainer(method, [config] * 3, [0, 1, 2], [dataset], [0] * 3, None, placement)
            for placement in (Placement(1, 1), Placement(2, 2))]
for trainer in trainers:
    trainer.advance(11)
one, two = ([np.asarray(x) for x in jax.tree.leaves(trainer.runs.state)] for trainer in trainers)
assert trainers[1].diverged_at.shape == (3,)
for a, b in zip(one, two):
    assert np.abs(a - b).max() <= 1e-5
assert (trainers[1].runs.updates == 11).all()
program, arguments = trainers[1].chunk(2)
text = jax.jit(program).lower(*arguments).compile().as_text()
assert "conditional(" in text, "runs that have diverged learn for nothing"
assert not any(word in text for word in ("all-concat_datasets", "all-reduce", "all-to-all", "collective-permute"))
print("equal")
"""
    two = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run([sys.executable, "-c", script], env=two, capture_output=True, text=True)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithms.find("bc").config().lr = 1.0


@pytest.mark.parametrize("method", ["ciql", "ccql"])
def test_discrete_methods_learn_a_game_from_random_play(method):
    """Of climbing's actions the third pays best whatever the other does on average; both taking it pays 5."""
    dataset = load_dataset("matrix/climbing", "random", size=2_000)
    settings = {"lr": 0.01, "tau": 0.1, "hidden": (16,), "batch_size": 64, "cql_alpha": 0.0}
    result = train(method, dataset, updates=400, evaluations=1, episodes=4, **settings)
    np.testing.assert_allclose(result.returns, 5.0)


@pytest.mark.parametrize(("task", "options"), [("uav/iot", {"n_uavs": 3}), ("uav/iot-random", {})])
def test_distributional_methods_run_on_every_form_of_the_uavs(task, options):
    dataset = load_dataset(task, "random", size=200, **options)
    result = train("ccqr", dataset, updates=2, evaluations=1, episodes=2, hidden=(8,), batch_size=8, cvar_level=0.5)
    assert np.isfinite(result.returns).all()
