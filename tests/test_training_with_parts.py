"""Methods that start from a policy trained before, in the compiled loop."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omarl_jax import UserError, algorithms, load_dataset, load_policy, train
from omarl_jax.parts import train_parts
from omarl_jax.placement import Placement
from omarl_jax.training import Trainer
from omarl_jax.types import Algorithm, Needs, Part, config

METHOD = algorithms.find("omcda")
SMALL = {"hidden": (8,), "mixer_hidden": 4, "batch_size": 16, "behaviour_updates": 20}


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("particle/spread", "random", size=1_000)


def equal(a, b, tolerance=0.0):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_metrics_may_have_a_number_for_each_agent(dataset):
    settings = {"updates": 4, "evaluations": 2, "episodes": 2, "preset": False}
    result = train("omcda", dataset, seeds=2, d_tot=[0.3, 3.0], **settings, **SMALL)
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
    parts = train_parts(METHOD, configs, [0, 1], [dataset], [0, 0])
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
    trainer = Trainer(METHOD, [METHOD.configure(dataset.spec, SMALL)], [0], [dataset], [0], None)
    with pytest.raises(UserError, match="starts from a policy that is trained before: behaviour"):
        trainer.advance(1)


@config
class Config:
    lr: float = 1.0


def from_a_part_that_diverges(made, spec):
    part = Part("bc", {"lr": 3e38, "hidden": (8,), "batch_size": 16}, updates=4)
    return Algorithm(None, None, None, Needs(batch_size=2, parts={"teacher": part}))


def test_a_part_that_diverges_is_named(dataset):
    method = METHOD._replace(name="pupil", make=from_a_part_that_diverges)
    with pytest.raises(UserError, match=r"^The teacher policy, which 'bc' trains before, diverged\.$"):
        train_parts(method, [Config()], [0], [dataset], [0])


def test_parts_before_training_are_templates_of_those_after(dataset):
    made = METHOD.configure(dataset.spec, SMALL | {"input_norm": "dataset"})
    fresh = algorithms.untrained(METHOD.make(made, dataset.spec).needs.parts, dataset.spec)
    parts = train_parts(METHOD, [made], [0], [dataset], [0])
    assert jax.tree.map(lambda x: x.shape[1:], parts) == jax.tree.map(jnp.shape, fresh)


def test_a_method_sees_standardised_observations_as_its_part_does(dataset):
    """The part has not learned from the episodes that were held out, whose mean is another."""
    made = METHOD.configure(dataset.spec, SMALL | {"input_norm": "dataset"})
    parts = train_parts(METHOD, [made], [0], [dataset], [0])
    state = Trainer(METHOD, [made], [0], [dataset], [0], None, parts=parts).runs.state
    equal(state.policy, parts["behaviour"])
    equal(state.learner.behaviour, parts["behaviour"].policy)
    assert np.abs(np.asarray(state.stats.obs_mean[0]) - dataset.stats().obs_mean).max() > 1e-4


def test_the_log_says_that_observations_serve_as_the_state(dataset, caplog):
    with caplog.at_level(logging.INFO, "omarl_jax"):
        train("omiga", dataset, updates=1, evaluations=1, episodes=1, hidden=(8,), batch_size=4)
        train("bc", dataset, updates=1, evaluations=1, episodes=1, hidden=(8,), batch_size=4)
    assert caplog.messages == [
        "Task 'particle/spread' has no state of its own: its observations in a row serve as one."
    ]
