"""What every task has to keep to, whatever it is about."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jumanji.testing.env_not_smoke import check_env_does_not_smoke, check_env_specs_does_not_smoke
from jumanji.types import StepType, TimeStep
from omarl_envs import make, task_names, views
from omarl_envs.base import MultiAgentEnv, Observation

# The physics of one robot takes longer to compile than all other tasks. That of the others, which differ in data, is
# replaced by free motion; `test_mujoco_*.py` are about it.
REAL_ROBOT = "mujoco/halfcheetah-2x3"
CASES = [
    *((name, {"length": 20} if name.startswith("mujoco/") else {}) for name in task_names()),
    ("mujoco/halfcheetah-3x2", {"length": 20, "distance": 1}),
    ("mujoco/walker2d-2x3", {"length": 20, "observations": "full"}),
    *(("particle/spread", {"n_agents": n}) for n in (2, 8, 12)),
    ("matrix/lever", {"n_agents": 2, "influence": 0.5, "length": 3}),
    ("matrix/lever-continuous", {"n_agents": 4, "influence": 1.0, "length": 1}),
    ("particle/tag", {"prey": "learner"}),
    ("particle/world", {"prey": "learner"}),
]


class Case(NamedTuple):
    """A task and one of its episodes under random actions, as NumPy arrays.

    States and time steps are (T + 1, …), actions (T, …).
    """

    name: str
    kwargs: dict
    env: MultiAgentEnv
    states: chex.ArrayTree
    timesteps: TimeStep
    actions: np.ndarray

    @property
    def length(self) -> int:
        """T, the number of transitions."""
        return len(self.actions)

    def at(self, t: int | list[int]) -> tuple[chex.ArrayTree, TimeStep]:
        """State and time step after t transitions."""
        return jax.tree.map(lambda x: jnp.asarray(x[t]), (self.states, self.timesteps))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def case(request: pytest.FixtureRequest) -> Case:
    """One compiled step and one episode for all checks of a task."""
    name, kwargs = request.param
    env = _make(name, **kwargs)
    env.step = env.step  # type: ignore[method-assign]  # one object, so that JAX reuses what it compiled for it
    return Case(name, kwargs, env, *_play(env, jax.random.PRNGKey(0)))


def _make(name: str, **kwargs: Any) -> MultiAgentEnv:
    env = make(name, **kwargs)
    if name.startswith("mujoco/") and name != REAL_ROBOT:
        n = env.reset(jax.random.key(0))[0].v.shape[0]

        def drift(q: chex.Array, v: chex.Array, control: chex.Array, guess: chex.Array) -> Any:
            push = jnp.zeros(n).at[-control.shape[0] :].set(control)
            return q.at[-n:].add(1e-3 * v), v + 1e-3 * push, push, 1e-3 * v[0]

        env._simulate = drift  # type: ignore[attr-defined]
    return env


def _play(env: MultiAgentEnv, key: chex.PRNGKey) -> tuple[chex.ArrayTree, TimeStep, np.ndarray]:
    step = jax.jit(env.step)
    reset_key, *keys = jax.random.split(key, env.task_spec.episode_length + 2)  # one more than it may need
    state, timestep = env.reset(reset_key)
    path, actions = [(state, timestep)], list[chex.Array]()
    while not timestep.last():
        actions.append(_random_actions(env, timestep.observation.action_mask, keys[len(actions)]))
        state, timestep = step(state, actions[-1])
        path.append((state, timestep))
    return *jax.tree.map(lambda *leaves: np.stack(leaves), *path), np.stack(actions)


def _random_actions(env: MultiAgentEnv, mask: chex.Array | None, key: chex.PRNGKey) -> chex.Array:
    if mask is not None:
        return jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf)).astype(jnp.int32)
    shape = (env.task_spec.n_agents, env.task_spec.action_dim)
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def test_passes_jumanjis_own_checks(case: Case) -> None:
    def act(key: chex.PRNGKey, observation: Observation) -> chex.Array:
        return _random_actions(case.env, observation.action_mask, key)

    check_env_does_not_smoke(case.env, act)
    check_env_specs_does_not_smoke(case.env)


def test_time_steps_and_actions_fit_the_specs(case: Case) -> None:
    env = case.env
    for t in (0, 1, case.length):
        _, timestep = case.at(t)
        env.observation_spec.validate(timestep.observation)
        env.reward_spec.validate(timestep.reward)
        env.discount_spec.validate(timestep.discount)
    env.action_spec.validate(case.actions[0])
    env.action_spec.validate(env.action_spec.generate_value())


def test_sizes_are_those_of_the_task_spec(case: Case) -> None:
    spec, observation = case.env.task_spec, case.timesteps.observation
    assert spec.name == case.name
    assert case.env.num_agents == spec.n_agents
    assert observation.agents_view.shape == (case.length + 1, spec.n_agents, spec.obs_dim)
    assert observation.state.shape == (case.length + 1, spec.state_dim)
    if spec.kind == "discrete":
        assert observation.action_mask.shape == (case.length + 1, spec.n_agents, spec.action_dim)
        assert observation.action_mask[:-1].any(axis=-1).all()
    else:
        assert observation.action_mask is None
    if spec.obs_from_state:
        derived = views.derive(spec.obs_from_state, observation.state, spec.n_agents)
        np.testing.assert_allclose(observation.agents_view, derived, rtol=1e-5, atol=1e-5)
    if spec.state_is_obs:
        np.testing.assert_array_equal(observation.state, observation.agents_view.reshape(case.length + 1, -1))


def test_numbers_are_of_32_bits(case: Case) -> None:
    timesteps = case.timesteps
    floats = [timesteps.observation.agents_view, timesteps.observation.state, timesteps.reward, timesteps.discount]
    floats += jax.tree.leaves(timesteps.extras["metrics"])
    assert {leaf.dtype.name for leaf in floats} == {"float32"}
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(case.states)}
    assert kinds <= {"float32", "int32", "uint32", "bool"}
    assert case.actions.dtype.name == ("int32" if case.env.task_spec.kind == "discrete" else "float32")
    assert case.env.action_spec.dtype == case.actions.dtype


def test_an_episode_lasts_until_its_limit_unless_the_task_ends(case: Case) -> None:
    steps, discount = case.timesteps.step_type, case.timesteps.discount
    assert steps[0] == StepType.FIRST
    assert (steps[1:-1] == StepType.MID).all()
    assert (discount[0] == 1.0).all()
    if (discount[-1] == 0.0).all():
        assert case.length <= case.env.task_spec.episode_length
    else:
        assert case.length == case.env.task_spec.episode_length


def test_metrics_are_those_the_task_names(case: Case) -> None:
    metrics = case.timesteps.extras["metrics"]
    assert set(metrics) == set(case.env.metric_names)
    assert all(metric.shape == (case.length + 1,) for metric in metrics.values())


def test_same_key_same_episode(case: Case) -> None:
    _, timesteps, actions = _play(case.env, jax.random.PRNGKey(0))
    jax.tree.map(np.testing.assert_array_equal, (timesteps, actions), (case.timesteps, case.actions))


def test_another_key_another_start(case: Case) -> None:
    if case.name in ("matrix/xor", "matrix/climbing"):
        pytest.skip("all games are alike")
    _, timestep = case.env.reset(jax.random.key(1))
    _, start = case.at(0)
    assert not np.array_equal(timestep.observation.state, start.observation.state)


def test_many_environments_step_like_one(case: Case) -> None:
    times = [0, case.length // 2, case.length - 1]
    states, _ = case.at(times)
    found = jax.jit(jax.vmap(case.env.step))(states, case.actions[times])
    jax.tree.map(_assert_close, found, case.at([t + 1 for t in times]))


def test_the_time_limit_truncates_and_by_request_terminates(case: Case) -> None:
    _, last = case.at(case.length)
    if (last.discount == 0.0).all():
        pytest.skip("the task itself ends")
    assert last.step_type == StepType.LAST
    assert (last.discount == 1.0).all()
    before, _ = case.at(case.length - 1)
    _, end = jax.jit(_make(case.name, **case.kwargs, time_limit_is_terminal=True).step)(before, case.actions[-1])
    assert end.step_type == StepType.LAST
    assert (end.discount == 0.0).all()
    _assert_close(end.reward, last.reward)


def _assert_close(found: chex.Array, expected: chex.Array) -> None:
    if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
        found, expected = jax.random.key_data(found), jax.random.key_data(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
