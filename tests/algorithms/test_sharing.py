"""Agents that share one set of parameters, and agents of different kinds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.spec import TaskSpec
from problems import CONTINUOUS, DISCRETE, DISCRETE_SPEC, METHODS, SPEC, A, N, O, batch, context, make, started, step
from reference import tanh_gaussian_log_prob

from omarl_jax import networks
from omarl_jax.algorithms import _losses, cql
from omarl_jax.networks.agents import Agents
from omarl_jax.networks.modules import MLP
from omarl_jax.types import View

KINDS = [(SPEC, name) for name in CONTINUOUS] + [(DISCRETE_SPEC, name) for name in DISCRETE]
SHARED = [
    pytest.param(spec, name, id=f"{name}-{spec.kind}") for spec, name in KINDS if "sharing" in METHODS[name].kinds
]

# The second agent sees one entry less and has one action less.
MIXED = dataclasses.replace(SPEC, name="toy/mixed", obs_dims=(3, 2), action_dims=(2, 1))
MIXED_DISCRETE = dataclasses.replace(DISCRETE_SPEC, name="toy/mixed", obs_dims=(3, 2), action_dims=(3, 2))
SMALL: dict[str, Any] = {"batch_size": 24, "search_steps": 2, "cql_samples": 3, "policy_samples": True}


def policy_of(state: Any) -> Any:
    """The parameters that it acts by."""
    return getattr(state.policy, "net", state.policy).params


def fresh(name: str, config: Any, spec: TaskSpec) -> Any:
    method = METHODS[name].make(config, spec)
    return method.init(jax.random.key(7), context(method, spec))


# --- One set of parameters ---


@pytest.mark.parametrize(("spec", "name"), SHARED)
def test_agents_share_one_set_of_parameters_and_act_by_their_number(spec: TaskSpec, name: str) -> None:
    config, method = make(name, spec, sharing="shared", input_norm="none", lr=0.01, **SMALL)
    separate = policy_of(fresh(name, dataclasses.replace(config, sharing="separate"), spec))
    before, after = fresh(name, config, spec), started(name, config, spec)
    of_all = policy_of(after)
    assert of_all["layer_0"]["kernel"].shape == (O + N, 16)
    for one, of_each, begun in zip(*map(jax.tree.leaves, (of_all, separate, policy_of(before))), strict=True):
        assert (of_each.shape[0], one.ndim) == (N, of_each.ndim - 1)
        assert np.isfinite(one).all()
        assert (one != begun).any()
    # Both see the same; a last layer as large as the first makes what they do differ, until numbers weigh nothing.
    of_all["layer_1"]["kernel"] = jax.random.normal(jax.random.key(0), of_all["layer_1"]["kernel"].shape)
    views = View(jax.random.normal(jax.random.key(1), (500, 1, O)).repeat(N, axis=1))
    for factor in (1.0, 0.0):
        of_all["layer_0"]["kernel"] = of_all["layer_0"]["kernel"].at[O:].multiply(factor)
        act = jax.vmap(lambda view: method.act(after.policy, view, (), jax.random.key(0))[0])
        actions = np.asarray(act(views))  # (500, N, …)
        assert (actions[:, 0] == actions[:, 1]).all() == (factor == 0.0)


def test_shared_networks_see_their_number_after_the_last_input() -> None:
    agents = Agents(MLP((4,), 2), N, "shared")
    x = jax.random.normal(jax.random.key(0), (5, N, O))
    params = agents.init(jax.random.key(1), x[0])
    found = agents.apply(params, x)
    for i in range(N):
        inputs = jnp.concatenate([x[:, i], jnp.tile(jnp.eye(N)[i], (5, 1))], axis=1)
        np.testing.assert_allclose(found[:, i], agents.module.apply({"params": params}, inputs), rtol=1e-5, atol=1e-6)


# --- Agents of different kinds ---


def versions(name: str) -> list[dict[str, Any]]:
    """A method as it is, and with each of some hyperparameters changed that it has and does not fix."""
    method = METHODS[name]
    free = {key: getattr(method.defaults, key) for key in method.kinds if key not in method.fixed}
    others = ({"centralised": True}, {"input_norm": "none"}, {"stochastic": True})
    return [{}, *(one for one in others for key in one if key in free and free[key] != one[key])]


@pytest.mark.parametrize(("name", "overrides"), [(name, one) for name in CONTINUOUS for one in versions(name)])
def test_action_entries_that_an_agent_does_not_have_change_nothing(name: str, overrides: dict[str, Any]) -> None:
    """Data that hold anything there teach the same, to the last bit."""
    config, method = make(name, MIXED, **SMALL, **overrides)
    state, one = started(name, config, MIXED), batch(0, config.batch_size, MIXED)
    noise = batch(1, config.batch_size, SPEC)
    padding = ~jnp.asarray(networks.real_actions(MIXED))
    other = one._replace(
        actions=jnp.where(padding, noise.actions, one.actions),
        next_actions=jnp.where(padding, noise.next_actions, one.next_actions),
    )
    assert (other.actions != one.actions).any()
    first, second = (step(name, MIXED)(config, state, data, jax.random.key(0)) for data in (one, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    if method.values is not None:
        np.testing.assert_array_equal(method.values(state, one), method.values(state, other))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_entries_that_an_agent_does_not_have_are_0_when_it_acts(name: str) -> None:
    config, method = make(name, MIXED, **SMALL)
    policy = started(name, config, MIXED).policy
    for explore in (False, True):
        actions, _ = method.act(policy, View(batch(0, 1, MIXED).obs[0]), method.carry, jax.random.key(0), explore)
        assert actions[1, 1] == 0
        assert (np.asarray(actions)[[0, 0, 1], [0, 1, 0]] != 0).all()


def test_losses_count_the_entries_that_agents_have() -> None:
    x = jnp.array([[[1.0, 3.0], [2.0, 100.0]]])  # (B, N, A)
    np.testing.assert_allclose(networks.mean_over_actions(x, MIXED), [[2.0, 2.0]])
    np.testing.assert_allclose(networks.sum_over_actions(x, MIXED), [[4.0, 2.0]])
    np.testing.assert_allclose(networks.without_padding(x, MIXED), [[[1.0, 3.0], [2.0, 0.0]]])
    corners = jnp.array([[[1.0, 0.5], [-1.0, 1.0]]])
    np.testing.assert_allclose(_losses.saturation(corners, MIXED), [[0.5, 1.0]])
    for spec in (SPEC, MIXED):
        assert (networks.real_actions(spec) is None) == (spec == SPEC)


def test_likelihood_is_that_of_the_entries_that_agents_have() -> None:
    mean, log_std, actions = np.random.default_rng(0).normal(scale=0.5, size=(3, 20, N, A))
    actions = np.tanh(actions)
    found = networks.TanhGaussian(*map(jnp.float32, (mean, log_std)), MIXED)
    for i, size in enumerate(MIXED.action_dims):
        out = np.concatenate([mean[:, i, :size], log_std[:, i, :size]], axis=-1)
        expected = tanh_gaussian_log_prob(out, actions[:, i, :size])
        np.testing.assert_allclose(found.log_prob(jnp.float32(actions))[:, i], expected, rtol=1e-3, atol=1e-4)
    for drawn in (found.sample(jax.random.key(0)), found.mode()):
        assert (drawn[:, 1, 1] == 0).all()
        assert (drawn[:, :, 0] != 0).all()


@pytest.mark.parametrize("joint", [False, True])
def test_samples_have_the_density_of_the_entries_that_agents_have(joint: bool) -> None:
    """Uniform in [-1, 1] each; around an action, that of the noise: what is subtracted in CQL's penalty."""
    config = cql.Config(cql_samples=2000, sample_noise=0.1)
    critic = networks.critic(MIXED, (4,), "none", view="all" if joint else "own", joint=joint)
    centre = jnp.full((3, N, A), 0.2)
    uniform, around = _losses.conservative_samples(
        jax.random.key(0), critic, batch(0, 3, MIXED), (centre,), config, MIXED
    )
    sizes = np.array([3] if joint else [2, 1])
    np.testing.assert_allclose(
        uniform.log_density, np.broadcast_to(np.log(0.5) * sizes, (2000, 3, len(sizes))), rtol=1e-5
    )
    for kind in (uniform, around):
        entries = kind.actions[..., 3] if joint else kind.actions[..., 1, 1]
        assert (entries == 0).all()
    real = around.actions[..., 0, :3] if joint else around.actions[..., 0, :]
    noise = (np.asarray(real, np.float64) - 0.2) / 0.1
    expected = (-0.5 * noise**2 - np.log(0.1 * np.sqrt(2 * np.pi))).sum(axis=-1)
    np.testing.assert_allclose(around.log_density[..., 0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bc", "matd3", "itd3", "maddpg", "cql", "td3_bc", "omar"])
def test_errors_and_penalties_are_means_over_the_entries_that_agents_have(name: str) -> None:
    """With critics that know nothing the loss of the policy is a mean over agents of means over their entries."""
    settings: dict[str, Any] = {"policy_penalty": 0.5, "input_norm": "none", "omar_coef": 0.0, "alpha": 1.0}
    config, method = make(name, MIXED, **SMALL, **settings)
    state = started(name, config, MIXED)
    one = batch(0, config.batch_size, MIXED)
    after, metrics = step(name, MIXED)(dataclasses.replace(config, lr=0.0), zero_critics(state), one, jax.random.key(0))
    act = jax.vmap(lambda obs: method.act(state.policy, View(obs), method.carry, jax.random.key(0))[0])
    own, data = np.asarray(act(one.obs), np.float64), np.asarray(one.actions, np.float64)

    def mean(x: np.ndarray) -> float:
        return float(np.mean([x[:, 0].mean(), x[:, 1, :1].mean()]))

    error, penalty = mean((own - data) ** 2), 0.5 * mean(own**2)
    expected = {"bc": error, "td3_bc": error + penalty}.get(name, penalty)
    np.testing.assert_allclose(metrics["policy_loss"], expected, rtol=1e-4)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def zero_critics(state: Any) -> Any:
    """A state whose critics say 0 of everything."""
    if hasattr(state, "learner"):
        return state._replace(learner=zero_critics(state.learner))
    if hasattr(state, "networks"):
        return state._replace(networks=zero_critics(state.networks))
    if not hasattr(state, "critic"):
        return state
    zeroed = {name: jax.tree.map(jnp.zeros_like, getattr(state, name)) for name in ("critic", "critic_optimiser")}
    return state._replace(**zeroed)


@pytest.mark.parametrize("name", DISCRETE)
def test_actions_that_an_agent_does_not_have_are_never_taken(name: str) -> None:
    """Though they would be the best and the most likely, and with or without a mask of legal actions."""
    config, method = make(name, MIXED_DISCRETE, input_norm="none", **SMALL)
    state = started(name, config, MIXED_DISCRETE)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    last = policy_of(state)["layer_1"]
    sets = 8 if name in ("ciqr", "ccqr") else 1  # of quantiles
    best = jnp.broadcast_to(jnp.array([0.0, 0.0, 50.0]), (N, sets, 3)).reshape(N, -1)
    last["bias"] = best[0] if last["bias"].ndim == 1 else best
    for mask in (None, jnp.ones((N, 3), bool)):
        view = View(jnp.ones((N, O)), mask)
        for explore in (False, True):
            act = jax.vmap(lambda key, view=view, explore=explore: method.act(state.policy, view, (), key, explore)[0])
            taken = np.asarray(act(jax.random.split(jax.random.key(0), 300)))
            assert 2 in taken[:, 0]
            assert 2 not in taken[:, 1]


def test_actions_that_an_agent_does_not_have_are_worth_nothing_and_have_no_probability() -> None:
    obs = batch(0, 9, MIXED_DISCRETE).obs
    policy = networks.stochastic_policy(MIXED_DISCRETE, (16,), "none")
    params = policy.init(jax.random.key(0)).params
    probabilities = np.exp([policy(params, obs).log_prob(jnp.full((9, N), a)) for a in range(3)])  # (A, B, N)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1.0, rtol=1e-5)
    assert (probabilities[2, :, 1] == 0).all()
    assert (probabilities[2, :, 0] > 0).all()
    values = networks.action_values(MIXED_DISCRETE, (16,), "none", quantiles=4)
    found = values(values.init(jax.random.key(0)).params, obs)
    assert (found[:, 1, :, 2] == -np.inf).all()
    assert np.isfinite(np.delete(found.reshape(9, -1), range(12, 24), axis=1)).all()


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_updates_are_finite_without_masks_too(name: str) -> None:
    """What an agent does not have is not bootstrapped from, nor held down: all metrics are finite."""
    config, _ = make(name, MIXED_DISCRETE, **SMALL)
    state = started(name, config, MIXED_DISCRETE)
    one = batch(0, config.batch_size, MIXED_DISCRETE)
    with_masks, without = (
        step(name, MIXED_DISCRETE)(config, state, data, jax.random.key(0))
        for data in (one, one._replace(action_mask=None, next_action_mask=None))
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(without))
    for x, y in zip(jax.tree.leaves(with_masks), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
