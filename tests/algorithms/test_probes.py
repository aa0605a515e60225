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
from omarl_envs.spec import TaskSpec
from problems import CONTINUOUS, DISCRETE, DISCRETE_SPEC, METHODS, SPEC, A, O, jit, make

from omarl_jax.types import Algorithm, Context, Needs, Stats, Transition, View

# Methods that the fast suite also tries with a single agent; compiling all of them would take minutes.
ALONE_AT_ONCE = ("bc-continuous", "ciqr-discrete", "icq-continuous", "omar-continuous", "omcda-discrete")
GAMMA, ROWS, UPDATES = 0.5, 512, 400
SIGNS = np.array([[1, -1], [-1, 1]])  # (N, A)
ALONE, DISCRETE_ALONE = (dataclasses.replace(spec, n_agents=1, state_dim=O) for spec in (SPEC, DISCRETE_SPEC))
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
OF_METHODS: dict[str, dict[str, Any]] = {
    "omiga": {"alpha": 0.3},  # of the size of the rewards
    # Its behaviour, which is nearly uniform, hardly needs to be learned; rewards are worth a large divergence.
    "omcda": {"behaviour_updates": 100, "d_tot": 3.0, "alpha": 0.3, "alpha_rate": 30.0},
    "bc": {"window": 4},
    # The penalty on each quantile is as strong as the loss of all of them together.
    "ciqr": {"cql_alpha": 0.03},
    "ccqr": {"cql_alpha": 0.03},
}


def best(spec: TaskSpec, obs: np.ndarray) -> np.ndarray:
    """(…, N, O) -> (…, N, A), or one of three numbers, (…, N).

    Over all observations such actions are uniform, as those in the data are. If all were the same, batch normalisation
    would hide from a critic how far the policy's are from them.
    """
    if spec.kind == "discrete":
        return np.digitize(obs[..., 0] * SIGNS[: spec.n_agents, 0], [-1 / 3, 1 / 3]).astype(np.int32)
    return obs[..., :A] * SIGNS[: spec.n_agents]


def problems(spec: TaskSpec) -> dict[str, Transition]:
    """(ROWS, …) transitions of each problem."""
    rng = np.random.default_rng(0)
    discrete, N = spec.kind == "discrete", spec.n_agents
    no, yes = np.zeros((ROWS, N), bool), np.ones((ROWS, N), bool)

    def uniform() -> np.ndarray:
        return rng.integers(3, size=(ROWS, N), dtype=np.int32) if discrete else rng.uniform(-1, 1, (ROWS, N, A))

    actions, obs = uniform(), rng.uniform(-1, 1, (ROWS, N, O))
    wanted = best(spec, obs)
    if discrete:
        missed, near = 2.0 * (actions != wanted), np.where(rng.random((ROWS, N)) < 0.9, wanted, actions)
        one_action, corners = np.ones_like(actions), 2 * (actions > 0)
    else:
        missed, near = 2 * np.square(actions - wanted).sum(axis=-1), np.clip(rng.normal(wanted, 0.1), -1, 1)
        one_action, corners = np.full_like(actions, 0.3), np.sign(actions)
    default = {
        "obs": obs,
        "actions": actions,
        "rewards": np.ones((ROWS, N)),
        "next_obs": rng.uniform(-1, 1, (ROWS, N, O)),
        "terminal": no,
        "truncated": np.zeros(ROWS, bool),
        "next_actions": uniform(),
    }
    first = np.broadcast_to(np.arange(ROWS) % 2 == 0, (N, ROWS)).T
    states = np.eye(O)[first.astype(int)]  # (ROWS, N, O)
    rows: dict[str, dict[str, Any]] = {
        "peak": {"rewards": -missed, "terminal": yes},
        "concentrated": {"actions": near},
        # The first state leads to the second, that one with a reward to the end.
        "credit": {"obs": states, "next_obs": states[::-1], "rewards": 1.0 - first, "terminal": ~first},
        "truncated": {"truncated": np.ones(ROWS, bool)},
        "terminal": {"terminal": yes},
        "identical": {"obs": np.ones((ROWS, N, O)), "next_obs": np.ones((ROWS, N, O))},
        "single": {
            "obs": np.full((ROWS, N, O), 2.0),
            "next_obs": np.full((ROWS, N, O), -3.0),
            "actions": one_action,
            "next_actions": np.zeros_like(actions) if discrete else np.full_like(actions, -1.0),
        },
        "corners": {"actions": corners, "next_actions": corners[::-1]},
    }
    return {name: completed(spec, default | row) for name, row in rows.items()}


def completed(spec: TaskSpec, columns: dict[str, Any]) -> Transition:
    """Transitions with every field that a method can ask for."""
    mask = np.ones((ROWS, spec.n_agents, spec.action_dim), bool) if spec.kind == "discrete" else None
    columns = columns | {
        "state": columns["obs"].reshape(ROWS, -1),
        "next_state": columns["next_obs"].reshape(ROWS, -1),
        "returns_to_go": columns["rewards"],
    }
    floats = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in columns.items()}
    return Transition(**floats, action_mask=mask, next_action_mask=mask)


def drawn(data: Transition, needs: Needs, key: jax.Array) -> Transition:
    """A batch as a method asks for it. The steps of a window have nothing to do with each other."""
    row_key, valid_key = jax.random.split(key)
    shape = (needs.batch_size,) if needs.length is None else (needs.batch_size, needs.length)
    rows = jax.random.randint(row_key, shape, 0, ROWS)
    batch = jax.tree.map(lambda x: x[rows], data)
    if not needs.next_actions:
        batch = batch._replace(next_actions=None)
    if not needs.state:
        batch = batch._replace(state=None, next_state=None)
    if not needs.returns_to_go:
        batch = batch._replace(returns_to_go=None)
    if needs.length is None:
        return batch
    lengths = jax.random.randint(valid_key, (needs.batch_size, 1), 1, needs.length + 1)
    return batch._replace(valid=jnp.arange(needs.length) < lengths)


@dataclasses.dataclass
class Learned:
    config: Any
    states: Any
    metrics: dict[str, np.ndarray]  # each (problems,), of the last update
    actions: np.ndarray  # (problems, ROWS, N, A), or without A
    values: np.ndarray | None  # (problems, heads, ROWS, G) of the data's actions; None for methods without values

    def values_of(self, problem: str) -> np.ndarray:
        """(heads, ROWS, G)."""
        assert self.values is not None
        return self.values[list(DATA[SPEC]).index(problem)]


DATA = {spec: problems(spec) for spec in (SPEC, DISCRETE_SPEC, ALONE, DISCRETE_ALONE)}


def setups(name: str, spec: TaskSpec) -> list[Any]:
    """A method as it is, and with one agent; with memory, and with other critics and normalisation, if no variant has
    them already."""
    method, label = METHODS[name], f"{name}-{spec.kind}"
    config = method.config
    related = [one for one in METHODS.values() if issubclass(one.config, config) or issubclass(config, one.config)]
    alone = ALONE if spec == SPEC else DISCRETE_ALONE
    marks = () if label in ALONE_AT_ONCE else pytest.mark.slow
    found = [pytest.param(name, spec, {}, id=label), pytest.param(name, alone, {}, id=f"{label}-alone", marks=marks)]
    if hasattr(config, "memory"):
        found.append(pytest.param(name, spec, {"memory": 16}, id=f"{label}-memory"))
    if hasattr(config, "centralised") and len(related) == 1:
        other = {
            "centralised": not config.centralised,
            "input_norm": "dataset" if config.input_norm == "batch" else "batch",
        }
        critics = "centralised" if other["centralised"] else "decentralised"
        found.append(pytest.param(name, spec, other, id=f"{label}-{critics}"))
    return found


OF_KINDS = ((SPEC, CONTINUOUS), (DISCRETE_SPEC, DISCRETE))
SETUPS = [setup for spec, names in OF_KINDS for name in names for setup in setups(name, spec)]
WITH_VALUES = [setup for setup in SETUPS if make(setup.values[0], setup.values[1])[1].values is not None]


def learned(name: str, spec: TaskSpec, overrides: dict[str, Any]) -> Learned:
    """A method after learning on every problem."""
    return _learned(name, spec, tuple(overrides.items()))


def trained(algorithm: Algorithm, spec: TaskSpec, data: Transition, key: jax.Array, updates: int) -> tuple[Any, Any]:
    """A method's state after learning on a problem, with its parts trained before; and the metrics of each update."""
    parts = {}
    for name, part in algorithm.needs.parts.items():
        method = METHODS[part.algorithm]
        learner = method.make(method.configure(spec, part.hyperparameters), spec)
        parts[name] = trained(learner, spec, data, key, part.updates)[0].policy
    stats = Stats(data.obs.mean(axis=0), jnp.maximum(data.obs.std(axis=0), 1e-3))

    def update(state: Any, key: jax.Array) -> tuple[Any, Any]:
        return algorithm.update(state, drawn(data, algorithm.needs, key), key)

    start = algorithm.init(key, Context(stats, updates, parts))
    return jax.lax.scan(update, start, jax.random.split(key, updates))


@functools.cache
def _learned(name: str, spec: TaskSpec, overrides: tuple[tuple[str, Any], ...]) -> Learned:
    config, algorithm = make(name, spec, **(HYPERPARAMETERS | OF_METHODS.get(name, {}) | dict(overrides)))
    data = jax.tree.map(lambda *xs: jnp.stack(xs), *DATA[spec].values())

    def learn(data: Transition, key: jax.Array) -> tuple[Any, Any, jax.Array, Any]:
        state, metrics = trained(algorithm, spec, data, key, UPDATES)
        act = jax.vmap(lambda view: algorithm.act(state.policy, view, algorithm.carry, key)[0])
        actions = act(View(data.obs, data.action_mask))
        values = None if algorithm.values is None else algorithm.values(state, data)
        return state, jax.tree.map(lambda x: x[-1], metrics), actions, values

    keys = jax.random.split(jax.random.key(1), len(DATA[spec]))
    states, metrics, actions, values = jax.tree.map(np.asarray, jit(jax.vmap(learn))(data, keys))
    return Learned(config, states, metrics, actions, values)


@pytest.mark.parametrize(("name", "spec", "overrides"), SETUPS)
def test_finds_the_best_action_or_imitates(name: str, spec: TaskSpec, overrides: dict[str, Any]) -> None:
    found = learned(name, spec, overrides)
    problem = "concentrated" if found.values is None else "peak"
    wanted, actions = best(spec, DATA[spec][problem].obs), found.actions[list(DATA[spec]).index(problem)]
    if spec.kind == "discrete":
        assert ((actions == wanted).mean(axis=0) > 0.85).all()  # a third of random actions
        return
    if found.config.input_norm == "batch":  # which hides scale and shift of a policy's actions from the critic
        wanted, actions = ((x - x.mean(axis=0)) / x.std(axis=0) for x in (wanted, actions))
    error = np.abs(actions - wanted).mean(axis=(0, 2)) / wanted.std()
    assert (error < 0.4).all(), error  # that of random actions is 1.1


@pytest.mark.parametrize(("name", "spec", "overrides"), WITH_VALUES)
def test_reward_is_credited_one_step_back(name: str, spec: TaskSpec, overrides: dict[str, Any]) -> None:
    values = learned(name, spec, overrides).values_of("credit")
    np.testing.assert_allclose(values[:, ::2].mean(axis=1), GAMMA, atol=0.1)
    np.testing.assert_allclose(values[:, 1::2].mean(axis=1), 1.0, atol=0.1)


@pytest.mark.parametrize(("name", "spec", "overrides"), WITH_VALUES)
def test_bootstraps_through_truncation_but_not_through_the_end(
    name: str, spec: TaskSpec, overrides: dict[str, Any]
) -> None:
    found = learned(name, spec, overrides)
    np.testing.assert_allclose(found.values_of("truncated").mean(axis=1), 1 / (1 - GAMMA), atol=0.15)
    np.testing.assert_allclose(found.values_of("terminal").mean(axis=1), 1.0, atol=0.1)


@pytest.mark.parametrize(("name", "spec", "overrides"), SETUPS)
def test_stays_finite_on_any_data(name: str, spec: TaskSpec, overrides: dict[str, Any]) -> None:
    found = learned(name, spec, overrides)
    for leaf in jax.tree.leaves((found.states, found.metrics, found.actions)):
        assert np.isfinite(leaf).all()
    assert np.abs(found.actions).max() <= (2 if spec.kind == "discrete" else 1)
