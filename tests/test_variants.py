"""Variants: a name, a base method, fixed hyperparameters and other defaults."""

import dataclasses

import jax
import numpy as np
import pytest
from omarl_envs.spec import TaskSpec

from omarl_jax import UserError, algorithms
from omarl_jax.algorithms import ciqr, matd3
from omarl_jax.presets import preset
from omarl_jax.types import Context, Stats

SPEC = TaskSpec("toy/discrete", "discrete", n_agents=2, obs_dim=3, action_dim=2, state_dim=6, episode_length=5)
CONTINUOUS = dataclasses.replace(SPEC, kind="continuous")


def of(name: str) -> TaskSpec:
    return SPEC if algorithms.find(name).base == "ciqr" else CONTINUOUS


@pytest.mark.parametrize("name", algorithms.variants())
def test_a_variant_is_its_base_with_a_few_hyperparameters_changed(name: str) -> None:
    variant = algorithms.find(name)
    base = algorithms.find(variant.base)
    assert (variant.name, base.name, base.base) == (name, variant.base, variant.base)
    assert (variant.make.func, variant.make.args) == (base.make.func, base.make.args)  # of the same factory
    assert variant.title
    config = variant.configure(of(name), {})
    assert config == variant.defaults
    assert base.changes(config) == {
        key: value for key, value in (variant.changed | variant.fixed).items() if getattr(base.defaults, key) != value
    }


def test_what_the_names_stand_for() -> None:
    """As in the publications: Eldeeb et al. 2024, Lowe et al. 2017, Pan et al. 2022."""
    fast = {"lr": 1e-4, "tau": 1e-3, "grad_clip": 1.0}
    for name, config in {
        "ccqr": ciqr.Config(**fast, mixer="vdn"),
        "ccqr-cvar": ciqr.Config(**fast, mixer="vdn", cvar_level=0.15),
        "diqn": ciqr.Config(**fast, quantiles=0, cql_alpha=0.0),
        "ccql-published": ciqr.Config(
            **fast, quantiles=0, mixer="vdn", published_targets=True, published_adam=True, published_penalty=True
        ),
        "ccqr-slow": ciqr.Config(mixer="vdn"),
        "itd3": matd3.Config(centralised=False),
        "maddpg": matd3.Config(target_noise=0.0, policy_delay=1, n_critics=1),
    }.items():
        assert algorithms.find(name).defaults == config


def test_what_a_variant_fixes_can_be_said_but_not_changed() -> None:
    ccqr = algorithms.find("ccqr")
    assert ccqr.configure(SPEC, {"mixer": "vdn", "lr": 0.5}).lr == 0.5
    with pytest.raises(UserError, match=r"^'ccqr' is 'ciqr' with mixer=vdn; to train with .*=none, name 'ciqr'"):
        ccqr.configure(SPEC, {"mixer": "none"})
    with pytest.raises(UserError, match=r"^'ccqr-cvar' is 'ciqr' with cvar_level=0\.15; .*=0\.5, name 'ciqr'\.$"):
        algorithms.find("ccqr-cvar").configure(SPEC, {"cvar_level": 0.5})


def test_presets_are_those_of_the_base_but_for_what_is_fixed() -> None:
    task = "mujoco/halfcheetah-2x3"
    found, base = preset("omar_random_shooting", task, "expert"), preset("omar", task, "expert")
    assert base.overrides["search"] == "cem"
    assert found.overrides == {name: value for name, value in base.overrides.items() if name != "search"}
    assert (found.updates, found.source) == (base.updates, base.source)


def test_a_variant_acts_and_learns_as_its_base_with_that_config() -> None:
    context = Context(Stats.unknown(SPEC))
    small = {"hidden": (4,)}
    variant, base = algorithms.find("ccql"), algorithms.find("ciqr")
    configs = variant.configure(SPEC, small), base.configure(SPEC, small | variant.changed | variant.fixed)
    states = [m.make(c, SPEC).init(jax.random.key(0), context) for m, c in zip((variant, base), configs, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_an_unknown_name_is_compared_with_variants_too() -> None:
    with pytest.raises(UserError, match="did you mean 'ccqr-cvar'"):
        algorithms.find("ccqr-cvr")


def test_modules_that_begin_with_an_underscore_are_no_methods() -> None:
    assert not [name for name in algorithms.methods() if name.startswith("_")]
    with pytest.raises(UserError, match="There is no algorithm '_losses'"):
        algorithms.find("_losses")
