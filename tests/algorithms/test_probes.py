"""Problems with known answers that every method must learn, and data that must not break it.

All problems are lanes of one `vmap`, so each method is compiled once.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CONTINUOUS, METHODS, A, N, O, jit, make

from omarl_jax import networks
from omarl_jax.algorithms import formulas
from omarl_jax.types import Stats, Transition

GAMMA, ROWS, ROUNDS = 0.5, 512, 400
SIGNS = np.array([[1, -1], [-1, 1]])  # (N, A)
HYPERPARAMETERS = {
    "gamma": GAMMA,
    "lr": 0.01,
    "tau": 0.05,
    "hidden": (32,),
    "batch_size": 32,  # one block: computing in blocks takes twice as long to compile
    "cql_alpha": 0.3,
    "omar_coef": 0.7,
    "search_steps": 2,
    "policy_temperature": 0.3,
}


def best(obs: np.ndarray) -> np.ndarray:
    """(…, N, O) -> (…, N, A). Over all observations such actions are uniform in [-1, 1], as those in the data are.

    If all were the same, batch normalisation would hide from a critic how far the policy's are from them.
    """
    return obs[..., :A] * SIGNS


def problems() -> dict[str, Transition]:
    """(ROWS, …) transitions of each problem."""
    rng = np.random.default_rng(0)
    no, yes = np.zeros((ROWS, N), bool), np.ones((ROWS, N), bool)
    uniform, obs = rng.uniform(-1, 1, (ROWS, N, A)), rng.uniform(-1, 1, (ROWS, N, O))
    default = {
        "obs": obs,
        "actions": uniform,
        "rewards": np.ones((ROWS, N)),
        "next_obs": rng.uniform(-1, 1, (ROWS, N, O)),
        "terminal": no,
        "truncated": np.zeros(ROWS, bool),
        "next_actions": rng.uniform(-1, 1, (ROWS, N, A)),
    }
    first = np.broadcast_to(np.arange(ROWS) % 2 == 0, (N, ROWS)).T
    states = np.eye(O)[first.astype(int)]  # (ROWS, N, O)
    rows = {
        "peak": {"rewards": -2 * np.square(uniform - best(obs)).sum(axis=-1), "terminal": yes},
        "concentrated": {"actions": np.clip(rng.normal(best(obs), 0.1), -1, 1)},
        # The first state leads to the second, that one with a reward to the end.
        "credit": {"obs": states, "next_obs": states[::-1], "rewards": 1.0 - first, "terminal": ~first},
        "truncated": {"truncated": np.ones(ROWS, bool)},
        "terminal": {"terminal": yes},
        "identical": {"obs": np.ones((ROWS, N, O)), "next_obs": np.ones((ROWS, N, O))},
        "single": {
            "obs": np.full((ROWS, N, O), 2.0),
            "next_obs": np.full((ROWS, N, O), -3.0),
            "actions": np.full_like(uniform, 0.3),
            "next_actions": np.full_like(uniform, -1.0),
        },
        "corners": {"actions": np.sign(uniform), "next_actions": np.sign(uniform)},
    }
    return {
        name: Transition(**{k: x if x.dtype == bool else x.astype(np.float32) for k, x in (default | row).items()})
        for name, row in rows.items()
    }


@dataclasses.dataclass
class Learned:
    config: Any
    states: Any
    metrics: dict[str, np.ndarray]  # each (problems,), of the last round
    actions: np.ndarray  # (problems, ROWS, N, A)

    def values(self, problem: str) -> np.ndarray:
        """(critics, heads, ROWS) of the data's actions."""
        state = jax.tree.map(lambda x: x[list(DATA).index(problem)], self.states)
        critics, heads, inputs, _ = state.critic["w_0"].shape

        def view(x: jax.Array) -> jax.Array:
            return formulas.seen(x, N) if inputs == O + A else jnp.repeat(formulas.seen(x, 1), critics, axis=0)

        kind = self.config.input_norm
        norm = networks.training_norm(kind, state.policy.norm)
        critic = networks.critic(self.config.hidden, kind, heads)
        obs, actions = view(DATA[problem].obs), view(DATA[problem].actions)
        return np.asarray(jax.vmap(critic.apply)(state.critic, obs, actions, norm and norm.of_critics(view, A)))


def setups(name: str) -> list[Any]:
    """A method as it is; and with the other kind of critics and of normalisation, if no variant has them already."""
    config = METHODS[name].config
    default = pytest.param(name, {}, id=name)
    related = [one for one in METHODS.values() if issubclass(one.config, config) or issubclass(config, one.config)]
    if not hasattr(config, "centralised") or len(related) > 1:
        return [default]
    other = {
        "centralised": not config.centralised,
        "input_norm": "dataset" if config.input_norm == "batch" else "batch",
    }
    return [
        default,
        pytest.param(name, other, id=f"{name}-{'centralised' if other['centralised'] else 'decentralised'}"),
    ]


DATA = problems()
SETUPS = [setup for name in CONTINUOUS for setup in setups(name)]
ACTOR_CRITICS = [setup for setup in SETUPS if hasattr(METHODS[setup.values[0]].config, "gamma")]


def learned(name: str, overrides: dict[str, Any]) -> Learned:
    """A method after learning on every problem."""
    return _learned(name, tuple(overrides.items()))


@functools.cache
def _learned(name: str, overrides: tuple[tuple[str, Any], ...]) -> Learned:
    config, algorithm = make(name, **(HYPERPARAMETERS | dict(overrides)))
    data = jax.tree.map(lambda *xs: jnp.stack(xs), *DATA.values())

    def learn(data: Transition, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        stats = Stats(data.obs.mean(axis=0), jnp.maximum(data.obs.std(axis=0), 1e-3))

        def update(state: Any, key: jax.Array) -> tuple[Any, Any]:
            rows = jax.random.randint(key, (config.batch_size,), 0, ROWS)
            return algorithm.update(state, jax.tree.map(lambda x: x[rows], data), key)

        state, metrics = jax.lax.scan(update, algorithm.init(key, stats), jax.random.split(key, ROUNDS))
        act = jax.vmap(lambda obs: algorithm.act(state.policy, obs, None, algorithm.carry, key)[0])
        return state, jax.tree.map(lambda x: x[-1], metrics), act(data.obs)

    states, metrics, actions = jit(jax.vmap(learn))(data, jax.random.split(jax.random.key(1), len(DATA)))
    return Learned(config, states, jax.tree.map(np.asarray, metrics), np.asarray(actions))


@pytest.mark.parametrize(("name", "overrides"), SETUPS)
def test_finds_the_best_action_or_imitates(name: str, overrides: dict[str, Any]) -> None:
    problem = "peak" if hasattr(METHODS[name].config, "gamma") else "concentrated"
    found = learned(name, overrides)
    wanted, actions = best(DATA[problem].obs), found.actions[list(DATA).index(problem)]
    if found.config.input_norm == "batch":  # which hides scale and shift of a policy's actions from the critic
        wanted, actions = ((x - x.mean(axis=0)) / x.std(axis=0) for x in (wanted, actions))
    error = np.abs(actions - wanted).mean(axis=(0, 2)) / wanted.std()
    assert (error < 0.4).all(), error  # that of random actions is 1.1


@pytest.mark.parametrize(("name", "overrides"), ACTOR_CRITICS)
def test_reward_is_credited_one_step_back(name: str, overrides: dict[str, Any]) -> None:
    values = learned(name, overrides).values("credit")
    np.testing.assert_allclose(values[..., ::2].mean(axis=-1), GAMMA, atol=0.1)
    np.testing.assert_allclose(values[..., 1::2].mean(axis=-1), 1.0, atol=0.1)


@pytest.mark.parametrize(("name", "overrides"), ACTOR_CRITICS)
def test_bootstraps_through_truncation_but_not_through_the_end(name: str, overrides: dict[str, Any]) -> None:
    found = learned(name, overrides)
    np.testing.assert_allclose(found.values("truncated").mean(axis=-1), 1 / (1 - GAMMA), atol=0.15)
    np.testing.assert_allclose(found.values("terminal").mean(axis=-1), 1.0, atol=0.1)


@pytest.mark.parametrize(("name", "overrides"), SETUPS)
def test_stays_finite_on_any_data(name: str, overrides: dict[str, Any]) -> None:
    found = learned(name, overrides)
    for leaf in jax.tree.leaves((found.states, found.metrics, found.actions)):
        assert np.isfinite(leaf).all()
    assert np.abs(found.actions).max() <= 1
