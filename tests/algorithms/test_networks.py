"""Networks against PyTorch's conventions and NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import SPEC, STATS, A, N, O, float64, jit, np_critic, np_mlp, of

from omarl_jax import networks
from omarl_jax.networks import Norm
from omarl_jax.types import Stats

UNIT = Norm(jnp.zeros(O), jnp.ones(O))
UNIT_OF_CRITICS = Norm(jnp.zeros(O + A), jnp.ones(O + A))


def critics(kind: networks.InputNorm, n: int = 2, hidden: tuple[int, ...] = (16, 8)) -> tuple[networks.Network, Any]:
    critic = networks.critic(hidden, kind, n)
    return critic, critic.init(jax.random.key(0), N, jnp.zeros((1, O)), jnp.zeros((1, A)), UNIT_OF_CRITICS)


def uniform_within(x: jax.Array, bound: float) -> None:
    x = np.asarray(x).ravel()
    assert np.abs(x).max() <= bound
    np.testing.assert_allclose(x.std(), bound / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(x.mean(), 0, atol=5 * bound / np.sqrt(3 * x.size))


def test_layers_of_a_policy_start_as_in_pytorch() -> None:
    """Uniform in ±1/sqrt(inputs), which is a standard deviation of 1/sqrt(3 inputs); the last weights in ±3e-3."""
    policy = networks.deterministic_policy(SPEC, (64, 100), "batch")
    params = policy.init(jax.random.key(0), 200, jnp.zeros((1, O)), UNIT)
    for i, inputs in enumerate((O, 64, 100)):
        uniform_within(params[f"_Dense_{i}"]["kernel"], inputs**-0.5 if i < 2 else 3e-3)
        uniform_within(params[f"_Dense_{i}"]["bias"], inputs**-0.5)
    stochastic = networks.gaussian_policy(SPEC, (64,), "none").init(jax.random.key(0), 200, jnp.zeros((1, O)), UNIT)
    uniform_within(stochastic["_Dense_1"]["kernel"], 64**-0.5)


def test_layers_of_a_critic_start_as_in_pytorch() -> None:
    """The first layer's inputs are observation and action together."""
    critic = networks.critic((64, 100), "none")
    params = critic.init(jax.random.key(0), 200, jnp.zeros((1, O)), jnp.zeros((1, A)), UNIT_OF_CRITICS)
    bounds = {"w_0": O + A, "b_0": O + A, "w_1": 64, "b_1": 64, "w_2": 100, "b_2": 100}
    assert params.keys() == bounds.keys()
    for name, inputs in bounds.items():
        uniform_within(params[name], inputs**-0.5)


@pytest.mark.parametrize("batch", [(), (7,), (3, 7)])
def test_gradients_of_a_product_with_a_kernel(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 4)).astype(np.float32)
    x, grad = (rng.normal(size=(*batch, n)).astype(np.float32) for n in (5, 4))
    product, gradients = jax.vjp(networks._times, jnp.asarray(x), jnp.asarray(kernel))
    of_x, of_kernel = gradients(jnp.asarray(grad))
    np.testing.assert_allclose(product, x @ kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_x, grad @ kernel.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_kernel, x.reshape(-1, 5).T @ grad.reshape(-1, 4), rtol=1e-5, atol=1e-5)


def test_layers_take_weights_as_numpy_arrays() -> None:
    """As saved policies have them, under the transformations in which they act."""
    policy = networks.deterministic_policy(SPEC, (4,), "none")
    params = policy.init(jax.random.key(0), N, jnp.zeros((1, O)), UNIT)
    obs = jax.random.normal(jax.random.key(1), (N, 9, O))
    expected = jax.vmap(policy.apply, (0, 0, None))(params, obs, UNIT)
    saved = jax.tree.map(np.asarray, params)
    act = jax.jit(lambda obs: jax.vmap(policy.apply, (0, 0, None))(saved, obs, UNIT))
    np.testing.assert_allclose(act(obs), expected, rtol=1e-5, atol=1e-8)


def test_networks_of_agents_differ() -> None:
    _, params = critics("none")
    assert not np.allclose(params["w_0"][0], params["w_0"][1])
    assert not np.allclose(params["w_0"][0, 0], params["w_0"][0, 1])


def test_policy_in_numpy() -> None:
    obs = jax.random.normal(jax.random.key(1), (9, O)) * 3 + 1
    policy = networks.deterministic_policy(SPEC, (16, 8), "batch")
    params = of(policy.init(jax.random.key(0), N, obs, UNIT), 1)
    np.testing.assert_allclose(
        policy.apply(params, obs, None), np.tanh(np_mlp(float64(params), np.asarray(obs))), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["batch", "none"])
@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_critic_in_numpy(kind: networks.InputNorm, leading: tuple[int, ...]) -> None:
    """With batch normalisation, the statistics are those of all candidates together."""
    critic, params = critics(kind)
    obs, actions = jax.random.normal(jax.random.key(1), (9, O)), jax.random.normal(jax.random.key(2), (*leading, 9, A))
    expected = np_critic(float64(of(params, 1)), np.asarray(obs), np.asarray(actions))
    values = critic.apply(of(params, 1), obs, actions, networks.training_norm(kind, UNIT_OF_CRITICS))
    assert values.shape == (2, *leading, 9)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("action_dim", "leading", "hidden"),
    [(2, (), (16, 8)), (2, (4,), (16, 8)), (12, (2, 3), (16, 8)), (2, (4,), (16,)), (2, (4,), (16, 8, 8))],
)
def test_gradients_of_a_critic_are_its_slopes(
    action_dim: int, leading: tuple[int, ...], hidden: tuple[int, ...]
) -> None:
    """In a random direction, of parameters, observations and actions together, by central differences in float64."""
    critic = networks.critic(hidden, "batch")
    rng = np.random.default_rng(0)
    obs, actions, weights = (rng.normal(size=shape) for shape in ((9, O), (*leading, 9, action_dim), (2, *leading, 9)))
    params = of(critic.init(jax.random.key(0), 1, jnp.zeros((1, O)), jnp.zeros((1, action_dim)), None), 0)
    point = (float64(params), obs, actions)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point)

    def value(step: float) -> float:
        params, obs, actions = jax.tree.map(lambda x, d: x + step * d, point, direction)
        return float(np.sum(weights * np_critic(params, obs, actions)))

    slope = (value(1e-6) - value(-1e-6)) / 2e-6
    gradient = jit(jax.grad(lambda point: jnp.sum(weights * critic.apply(*point, None))))(
        jax.tree.map(jnp.float32, point)
    )
    found = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(found, slope, rtol=1e-3)


@pytest.mark.parametrize("kind", ["dataset", "none"])
def test_candidates_are_judged_one_by_one(kind: networks.InputNorm) -> None:
    critic, params = critics(kind)
    norm = Norm(jnp.array([1.0, 2.0, 3.0, 0.0, 0.0]), jnp.array([4.0, 5.0, 6.0, 1.0, 1.0]))
    obs, actions = jax.random.normal(jax.random.key(1), (9, O)), jax.random.normal(jax.random.key(2), (4, 9, A))
    together = critic.apply(of(params, 0), obs, actions, norm)
    apart = jnp.stack([critic.apply(of(params, 0), obs, candidate, norm) for candidate in actions], axis=1)
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)


def test_first_head_alone() -> None:
    critic, params = critics("batch", n=3)
    obs, actions = jax.random.normal(jax.random.key(1), (9, O)), jax.random.normal(jax.random.key(2), (9, A))
    both = critic.apply(of(params, 0), obs, actions, None)
    first = critic.apply(of(params, 0), obs, actions, None, heads=1)
    assert first.shape == (1, 9)
    np.testing.assert_allclose(first[0], both[0], rtol=1e-6)


def test_running_statistics_move_as_in_pytorch() -> None:
    """BatchNorm1d: a tenth of the way to the batch's mean and unbiased variance, from 0 and 1."""
    obs = jnp.array([[[1.0]], [[2.0]], [[6.0]]])  # mean 3, variance 14/3 by B and 7 by B - 1
    norm = networks.initial_norm("batch", Stats(jnp.full((1, 1), 9.0), jnp.full((1, 1), 9.0)))
    norm = networks.moved_norm("batch", norm, obs)
    np.testing.assert_allclose((norm.mean, norm.var), ([[0.3]], [[0.9 + 0.7]]), rtol=1e-6)
    norm = networks.moved_norm("batch", norm, obs)
    np.testing.assert_allclose((norm.mean, norm.var), ([[0.57]], [[1.44 + 0.7]]), rtol=1e-6)


def test_updates_normalise_with_the_batch_and_acting_with_running_statistics() -> None:
    policy = networks.gaussian_policy(SPEC, (16,), "batch")  # a deterministic one starts too near to 0 to see much
    params = of(policy.init(jax.random.key(0), N, jnp.zeros((1, O)), UNIT), 0)
    obs = 5 + 2 * jax.random.normal(jax.random.key(1), (50, O))
    running = Norm(jnp.full(O, 5.0), jnp.full(O, 1.0))
    (in_update, _), (rescaled, _), (acting, _), (expected, _) = (
        policy.apply(params, obs, networks.training_norm("batch", running)),
        policy.apply(params, 3 * obs - 7, None),
        policy.apply(params, obs, running),
        policy.apply(params, obs - 5, UNIT),
    )
    np.testing.assert_allclose(rescaled, in_update, atol=1e-4)
    np.testing.assert_allclose(acting, expected, atol=1e-5)
    assert np.abs(acting - in_update).max() > 0.1


def test_normalisation_of_the_dataset_is_fixed() -> None:
    stats = Stats(jnp.full((N, O), 5.0), jnp.full((N, O), 2.0))
    norm = networks.initial_norm("dataset", stats)
    assert networks.moved_norm("dataset", norm, jnp.ones((4, N, O))) is norm
    assert networks.training_norm("dataset", norm) is norm
    policy = networks.deterministic_policy(SPEC, (16,), "dataset")
    params = policy.init(jax.random.key(0), N, jnp.zeros((1, O)), UNIT)
    obs = jax.random.normal(jax.random.key(1), (50, O))
    normalised = policy.apply(of(params, 0), 5 + 2 * obs, norm.of(0))
    np.testing.assert_allclose(normalised, policy.apply(of(params, 0), obs, UNIT), atol=1e-5)


def test_without_normalisation_inputs_are_what_they_are() -> None:
    norm = networks.initial_norm("none", Stats(jnp.full((N, O), 5.0), jnp.full((N, O), 2.0)))
    policy = networks.deterministic_policy(SPEC, (16,), "none")
    params = of(policy.init(jax.random.key(0), N, jnp.zeros((1, O)), UNIT), 0)
    obs = 10 * jax.random.normal(jax.random.key(1), (50, O))
    expected = np.tanh(np_mlp(float64(params), np.asarray(obs)))
    np.testing.assert_allclose(policy.apply(params, obs, norm.of(0)), expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_critics() -> None:
    """Observations in the order that critics see them, then the actions, as they are."""
    norm = Norm(jnp.arange(6.0).reshape(N, O), jnp.arange(6.0, 12.0).reshape(N, O))
    alone = norm.of_critics(lambda x: x.swapaxes(0, 1), A)
    np.testing.assert_array_equal(alone.mean, [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0]])
    np.testing.assert_array_equal(alone.var, [[6, 7, 8, 1, 1], [9, 10, 11, 1, 1]])
    joint = norm.of_critics(lambda x: x.reshape(1, x.shape[0], -1), A)
    np.testing.assert_array_equal(joint.mean, [[0, 1, 2, 3, 4, 5, 0, 0, 0, 0]])
    np.testing.assert_array_equal(joint.var, [[6, 7, 8, 9, 10, 11, 1, 1, 1, 1]])


def test_initial_statistics() -> None:
    assert (networks.initial_norm("batch", STATS).mean == 0).all()
    assert (networks.initial_norm("batch", STATS).var == 1).all()


def test_squashed_gaussian_in_closed_form() -> None:
    """log π(tanh u) = Σ log N(u; μ, σ) - log(1 - tanh² u)."""
    rng = np.random.default_rng(0)
    mean, log_std, u = rng.normal(size=(3, 20, A))
    expected = -0.5 * np.square((u - mean) / np.exp(log_std)) - log_std - 0.5 * np.log(2 * np.pi)
    expected = (expected - np.log1p(-np.square(np.tanh(u)))).sum(axis=-1)
    arguments = (jnp.asarray(x, jnp.float32) for x in (mean, log_std, np.tanh(u)))
    np.testing.assert_allclose(networks.tanh_gaussian_log_prob(*arguments), expected, rtol=1e-3, atol=1e-3)


def test_squashed_gaussian_at_the_corners() -> None:
    edge = np.float64(np.float32(1 - 1e-6))
    u = np.arctanh(edge)
    expected = -0.5 * np.square(u) - 0.5 * np.log(2 * np.pi) - np.log1p(-np.square(edge))
    zero = jnp.zeros((2, 1))
    corners = jnp.array([[1.0], [-1.0]])
    np.testing.assert_allclose(networks.tanh_gaussian_log_prob(zero, zero, corners), expected, rtol=1e-3)
    gradient = jax.grad(lambda mean: networks.tanh_gaussian_log_prob(mean, zero, corners).sum())(zero)
    np.testing.assert_allclose(gradient, [[u], [-u]], rtol=1e-3)


def test_samples_of_the_squashed_gaussian() -> None:
    mean, log_std = jnp.full((100_000, 1), 0.4), jnp.full((100_000, 1), -1.0)
    sample = networks.tanh_gaussian_sample(mean, log_std, jax.random.key(0))
    u = np.arctanh(np.asarray(sample, np.float64))
    np.testing.assert_allclose((u.mean(), u.std()), (0.4, np.exp(-1)), rtol=0.02)
