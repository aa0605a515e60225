"""Frozen parts: policies that are trained before, on the same data, for methods that start from them."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omarl_jax import UserError, algorithms, load_dataset, load_policy, train, training
from omarl_jax.placement import Placement
from omarl_jax.training import Trainer, trained_parts
from omarl_jax.types import Algorithm, Needs, Part, config

METHOD = algorithms.find("omcda")
SMALL = {"hidden": (8,), "mixer_hidden": 4, "batch_size": 16, "behaviour_updates": 20}


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("particle/spread", "random", size=1_000)


def equal(a, b, tolerance=0.0):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("input_norm", ["none", "dataset"])
def test_a_part_is_what_its_own_method_learns_from_the_runs_data_with_the_runs_seed(dataset, input_norm):
    made = METHOD.configure(dataset.spec, SMALL | {"input_norm": input_norm})
    part = METHOD.make(made, dataset.spec).needs.parts["behaviour"]
    parts = trained_parts(METHOD, [made] * 3, [5, 3, 5], dataset)
    alone = train(
        part.algorithm,
        dataset,
        seeds=[3, 5],
        updates=20,
        evaluations=1,
        episodes=1,
        preset=False,
        **part.hyperparameters,
    )
    policies = {seed: trainer.policy(run) for seed, (trainer, run) in zip(alone.seeds, alone.trainers, strict=True)}
    for run, seed in enumerate([5, 3, 5]):
        equal(jax.tree.map(lambda x, run=run: x[run], parts["behaviour"]), policies[seed])


def test_equal_parts_are_trained_once(dataset, monkeypatch):
    started = []

    class Counted(Trainer):
        def __init__(self, method, configs, seeds, *others, **options):
            started.append((method.name, list(seeds)))
            super().__init__(method, configs, seeds, *others, **options)

    monkeypatch.setattr(training, "Trainer", Counted)
    settings = {"updates": 4, "evaluations": 2, "episodes": 2, "preset": False}
    result = train("omcda", dataset, seeds=2, d_tot=[0.3, 3.0], **settings, **SMALL)
    assert started == [("bc", [0, 1]), ("omcda", [0, 1, 0, 1])]
    trainer, _ = result.trainers[0]
    behaviour = jax.tree.map(np.asarray, trainer.runs.state.behaviour.params)
    for run in range(2):
        equal(*(jax.tree.map(lambda x, i=i: x[i], behaviour) for i in (run, run + 2)))
    assert np.abs(jax.tree.leaves(behaviour)[0][0] - jax.tree.leaves(behaviour)[0][1]).max() > 0.01
    np.testing.assert_array_equal(trainer.runs.state.all_updates, 4)
    for name in ("influence", "share", "budget", "kl", "alpha", "v_r", "at_bound", "kl_over_budget"):
        assert result.metrics[name].shape == (2, 4, 3)
    assert result.metrics["critic_loss"].shape == (2, 4)
    np.testing.assert_allclose(result.metrics["budget"].sum(axis=-1), [[0.3, 0.3, 3.0, 3.0]] * 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["omcda", "omcda_wo_dq"])
def test_a_run_with_a_part_alone_equals_itself_among_others_and_starts_from_it(dataset, name):
    method = algorithms.find(name)
    configs = [method.configure(dataset.spec, SMALL | {"d_tot": d_tot}) for d_tot in (0.5, 2.0)]
    parts = trained_parts(METHOD, configs, [0, 1], dataset)
    alone, together = (
        Trainer(method, configs, [0, 1], [dataset], [0, 0], None, placement, 10, parts)
        for placement in (Placement(1, 1), Placement(2, 1))
    )
    for trainer in (alone, together):
        equal(trainer.runs.state.policy, parts["behaviour"])
        trainer.advance(2)
        trainer.advance(2)
    equal(alone.runs.state, together.runs.state, 1e-5)
    with pytest.raises(AssertionError):
        equal(together.runs.state.policy, parts["behaviour"])
    equal(together.runs.state.behaviour, parts["behaviour"])


def test_a_policy_that_started_from_a_part_is_saved_and_read(dataset, tmp_path):
    result = train("omcda", dataset, updates=2, evaluations=1, episodes=2, **SMALL)
    result.save_policy(0, tmp_path / "team.npz")
    obs = np.random.default_rng(0).normal(size=(3, 18)).astype(np.float32)
    assert load_policy(tmp_path / "team.npz").act(obs).shape == (3, 2)


def test_a_trainer_without_the_part_says_which(dataset):
    made = METHOD.configure(dataset.spec, SMALL)
    with pytest.raises(UserError, match="starts from a policy that is trained before: behaviour"):
        Trainer(METHOD, [made], [0], [dataset], [0], None)


@config
class Config:
    lr: float = 1.0


def from_a_part_that_diverges(made, spec):
    part = Part("bc", {"lr": 3e38, "hidden": (8,), "batch_size": 16}, updates=4)
    return Algorithm(None, None, None, Needs(batch_size=2, parts={"teacher": part}))


def test_a_part_that_diverges_is_named(dataset):
    method = METHOD._replace(name="pupil", make=from_a_part_that_diverges)
    with pytest.raises(UserError, match=r"^The teacher policy, trained by 'bc' for 'pupil', diverged\.$"):
        trained_parts(method, [Config()], [0], dataset)


def test_parts_before_training_are_templates_of_those_after(dataset):
    made = METHOD.configure(dataset.spec, SMALL | {"input_norm": "dataset"})
    fresh = algorithms.untrained(METHOD.make(made, dataset.spec).needs.parts, dataset.spec)
    parts = trained_parts(METHOD, [made], [0], dataset)
    assert jax.tree.map(lambda x: x.shape[1:], parts) == jax.tree.map(jnp.shape, fresh)
    # A method that sees standardised observations starts from what its part sees them by, too.
    equal(Trainer(METHOD, [made], [0], [dataset], [0], None, parts=parts).runs.state.policy, parts["behaviour"])


def test_the_log_says_that_observations_serve_as_the_state(dataset, caplog):
    with caplog.at_level(logging.INFO, "omarl_jax"):
        train("omiga", dataset, updates=1, evaluations=1, episodes=1, hidden=(8,), batch_size=4)
        train("bc", dataset, updates=1, evaluations=1, episodes=1, hidden=(8,), batch_size=4)
    assert caplog.messages == [
        "Task 'particle/spread' has no state of its own: its observations in a row serve as one."
    ]
