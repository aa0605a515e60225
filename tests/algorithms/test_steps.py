"""The learning step of the continuous methods: all parameters after updates, against NumPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CONTEXT, METHODS, SPEC, STATS, A, N, O, jit, make
from reference import Reference, draws, from_state, subject

from omarl_jax.types import Stats, Transition

ROWS = 12
NOISE = {"target_noise": 0.6, "target_noise_clip": 0.5}
SAMPLES = {"cql_samples": 4, "cql_alpha": 0.7, "sample_noise": 0.3}
SEARCH = SAMPLES | {"omar_coef": 0.6, "search_steps": 2, "search_samples": 6, "search_std": 0.8}
CASES = [
    ("bc", 2, "batch", {}),
    ("bc", 3, "dataset", {"stochastic": True}),
    ("td3_bc", 2, "batch", NOISE),
    ("td3_bc", 3, "dataset", NOISE | {"centralised": True}),
    ("cql", 3, "batch", SAMPLES | {"policy_samples": True}),
    ("cql", 2, "none", SAMPLES | {"centralised": True, "policy_samples": True, "published_density": True}),
    ("omar", 2, "batch", SEARCH),
    ("omar", 3, "batch", SEARCH | {"centralised": True, "policy_samples": True, "search": "cem", "search_elites": 3}),
    ("omar", 2, "dataset", SEARCH | {"search": "random_shooting"}),
    ("icq", 2, "batch", {"published_clip": True}),
    ("icq", 3, "dataset", {"centralised": True, "published_advantage": True}),
    ("matd3", 2, "batch", NOISE | {"policy_delay": 2, "gain": 3.0}),
    ("matd3", 3, "none", NOISE | {"policy_delay": 1, "n_critics": 1, "centralised": False}),
]


def transitions(seed: int, n: int) -> Transition:
    """Large rewards, agents that end at different times, cut-off episodes, and some actions in corners."""
    rng = np.random.default_rng(seed)
    terminal = rng.random((ROWS, n)) < 0.25
    terminal[:2] = True
    actions, next_actions = np.clip(rng.uniform(-1.2, 1.2, (2, ROWS, n, A)), -1, 1)
    return Transition(
        obs=rng.normal(1.0, 2.0, (ROWS, n, O)),
        actions=actions,
        rewards=rng.normal(-1.0, 3.0, (ROWS, n)),
        next_obs=rng.normal(-1.0, 2.0, (ROWS, n, O)),
        terminal=terminal,
        truncated=~terminal.all(axis=1) & (rng.random(ROWS) < 0.4),
        next_actions=next_actions,
    )


@pytest.mark.parametrize(("name", "n", "input_norm", "overrides"), CASES)
def test_three_updates_in_numpy(name: str, n: int, input_norm: str, overrides: dict[str, Any]) -> None:
    """The first gradient is longer than it may be, and later ones are not: Adam alone would forget how it was cut.

    In float64, so that nothing hides in rounding. Clips are traced, so one program serves all.
    """
    settings = {"lr": 0.02, "gamma": 0.9, "tau": 0.1, "policy_penalty": 0.3, "alpha": 1.7, "critic_temperature": 2.0}
    settings |= {"policy_temperature": 1.5, "hidden": (5,), "batch_size": ROWS, "input_norm": input_norm} | overrides
    spec = dataclasses.replace(SPEC, n_agents=n, state_dim=n * O)
    known = {field.name for field in dataclasses.fields(METHODS[name].config)}
    config = METHODS[name].configure(spec, {key: value for key, value in settings.items() if key in known})
    rng = np.random.default_rng(0)
    stats = Stats(rng.normal(size=(n, O)), rng.uniform(0.5, 3.0, (n, O)))
    with jax.enable_x64(True):
        state, update = subject(name, config, spec, stats)
        reference = Reference(name, stats, config, from_state(state))
        for number, clip in enumerate((0.1, 1e9, 1e9)):
            now = dataclasses.replace(config, grad_clip=clip)
            batch, key = transitions(number, n), jax.random.key(number)
            metrics, norms = reference.update(now, batch, draws(name, now, key, n, batch))
            assert all((norm > clip) == (number == 0) for of_kind in norms.values() for norm in of_kind)
            state, found = update(now, state, jax.tree.map(jnp.asarray, batch), key)
            assert found.keys() == metrics.keys()
            for metric, value in metrics.items():
                np.testing.assert_allclose(found[metric], value, rtol=1e-6, err_msg=f"{metric}, update {number}")
            after = from_state(state).tree()
            for part, expected in reference.learner.tree().items():
                for x, y in zip(jax.tree.leaves(after[part]), jax.tree.leaves(expected), strict=True):
                    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * config.lr, err_msg=f"{part}, update {number}")


@pytest.mark.parametrize("name", ["cql", "omar"])
def test_conservatism_keeps_unseen_actions_below_those_of_the_data(name: str) -> None:
    """All data lie in a corner, where rewards rise towards the other actions: without the penalty, values go on so."""
    overrides = {"input_norm": "none", "hidden": (32,), "batch_size": 32, "omar_coef": 0.5, "search_steps": 1}
    config, _ = make(name, **overrides)
    rng = np.random.default_rng(0)
    obs, actions = rng.normal(size=(32, N, O)), rng.uniform(0.6, 1.0, (32, N, A))
    rewards, ends = -5.0 * actions.mean(axis=-1), np.ones((32, N), bool)
    batch = Transition(obs, actions, rewards, obs, ends, np.zeros(32, bool))
    batch = jax.tree.map(lambda x: jnp.asarray(x, None if x.dtype == bool else jnp.float32), batch)

    @jit
    def learned(config: Any) -> Any:
        method, keys = METHODS[name].make(config, SPEC), jax.random.split(jax.random.key(1), 300)
        start = method.init(jax.random.key(0), CONTEXT)
        return jax.lax.scan(lambda state, key: (method.update(state, batch, key)[0], None), start, keys)[0]

    for alpha in (0.0, 10.0):
        learner = from_state(learned(dataclasses.replace(config, cql_alpha=alpha)))
        reference = Reference(name, STATS, config, learner)
        for g, critic in enumerate(learner.critics):
            of_data = reference.values(critic, obs, actions[:, g], g)  # (heads, B)
            unseen = reference.values(critic, obs, rng.uniform(-1.0, 0.0, (10, 32, A)), g)  # (heads, 10, B)
            lower = (unseen < of_data[:, None]).mean(axis=(1, 2))
            assert (lower > 0.95).all() if alpha else (lower < 0.05).all()
