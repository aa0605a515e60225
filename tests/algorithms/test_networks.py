"""Networks against PyTorch's conventions and NumPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import DISCRETE_SPEC, SPEC, A, N, O, float64, jit, of
from reference import critic_network, outputs, policy_network, tanh_gaussian_log_prob

from omarl_jax import networks
from omarl_jax.networks import InputNorm, Net, Norm, modules, normalisation

CROWD = dataclasses.replace(SPEC, n_agents=200, state_dim=200 * O)
AS_IT_IS = (0.0, 1.0)  # mean and deviation


def np_critic(params: Any, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Values of one agent's critics, (B, O), (…, B, A) -> (heads, …, B), each on concatenated inputs."""
    obs = np.broadcast_to(obs, (*actions.shape[:-1], obs.shape[-1]))
    return outputs(critic_network(params), np.concatenate([obs, actions], axis=-1), AS_IT_IS)[..., 0]


def uniform_within(x: jax.Array, bound: float) -> None:
    x = np.asarray(x).ravel()
    assert np.abs(x).max() <= bound
    np.testing.assert_allclose(x.std(), bound / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(x.mean(), 0, atol=5 * bound / np.sqrt(3 * x.size))


def test_layers_of_a_policy_start_as_in_pytorch() -> None:
    """Uniform in ±1/sqrt(inputs), which is a standard deviation of 1/sqrt(3 inputs); the last weights in ±3e-3."""
    params = networks.deterministic_policy(CROWD, (64, 100), "batch").init(jax.random.key(0)).params
    assert params.keys() == {"norm", "layer_0", "layer_1", "layer_2"}
    for i, inputs in enumerate((O, 64, 100)):
        uniform_within(params[f"layer_{i}"]["kernel"], inputs**-0.5 if i < 2 else 3e-3)
        uniform_within(params[f"layer_{i}"]["bias"], inputs**-0.5)
    stochastic = networks.stochastic_policy(CROWD, (64,), "none").init(jax.random.key(0)).params
    uniform_within(stochastic["layer_1"]["kernel"], 64**-0.5)


def test_layers_of_a_critic_start_as_in_pytorch() -> None:
    """The first layer's inputs are observation and action together."""
    params = networks.critic(CROWD, (64, 100), "none").init(jax.random.key(0))
    assert params.keys() == {"layer_0", "layer_1", "layer_2"}
    for i, inputs in enumerate((O + A, 64, 100)):
        for x in params[f"layer_{i}"].values():
            uniform_within(x, inputs**-0.5)


@pytest.mark.parametrize("batch", [(), (7,), (3, 7)])
def test_gradients_of_a_product_with_a_kernel(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 4)).astype(np.float32)
    x, grad = (rng.normal(size=(*batch, n)).astype(np.float32) for n in (5, 4))
    product, gradients = jax.vjp(modules._product, jnp.asarray(x), jnp.asarray(kernel))
    of_x, of_kernel = gradients(jnp.asarray(grad))
    np.testing.assert_allclose(product, x @ kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_x, grad @ kernel.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_kernel, x.reshape(-1, 5).T @ grad.reshape(-1, 4), rtol=1e-5, atol=1e-5)


def test_layers_take_weights_as_numpy_arrays() -> None:
    """As saved policies have them, under the transformations in which they act."""
    policy = networks.deterministic_policy(SPEC, (4,), "none")
    net = policy.init(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (9, N, O))
    saved = jax.tree.map(np.asarray, net)
    act = jax.jit(jax.vmap(lambda obs: policy.act(saved, obs)[0]))
    np.testing.assert_allclose(act(obs), policy.act(net, obs)[0], rtol=1e-5, atol=1e-8)


def test_networks_of_agents_differ() -> None:
    params = networks.critic(SPEC, (16,), "none").init(jax.random.key(0))
    kernel = params["layer_0"]["kernel"]  # (N, heads, I, 16)
    assert not np.allclose(kernel[0], kernel[1])
    assert not np.allclose(kernel[0, 0], kernel[0, 1])


def test_policy_in_numpy() -> None:
    obs = jax.random.normal(jax.random.key(1), (9, N, O)) * 3 + 1
    policy = networks.deterministic_policy(SPEC, (16, 8), "batch")
    params = policy.init(jax.random.key(0)).params
    for i in range(N):
        expected = np.tanh(outputs(policy_network(float64(of(params, i))), np.asarray(obs)[:, i], AS_IT_IS)[0])
        np.testing.assert_allclose(policy(params, obs)[:, i], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["batch", "none"])
@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_critic_in_numpy(kind: InputNorm, leading: tuple[int, ...]) -> None:
    """With batch normalisation, the statistics are those of all candidates together."""
    critic = networks.critic(SPEC, (16, 8), kind)
    params = critic.init(jax.random.key(0))
    obs, actions = (jax.random.normal(jax.random.key(1), x) for x in ((9, N, O), (*leading, 9, N, A)))
    values = critic(params, obs, actions)
    assert values.shape == (2, *leading, 9, N)
    for i in range(N):
        expected = np_critic(float64(of(params, i)), np.asarray(obs)[:, i], np.asarray(actions)[..., i, :])
        np.testing.assert_allclose(values[..., i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("action_dim", "leading", "hidden"),
    [(2, (), (16, 8)), (2, (4,), (16, 8)), (12, (2, 3), (16, 8)), (2, (4,), (16,)), (2, (4,), (16, 8, 8))],
)
def test_gradients_of_a_critic_are_its_slopes(
    action_dim: int, leading: tuple[int, ...], hidden: tuple[int, ...]
) -> None:
    """In a random direction, of parameters, observations and actions together, by central differences in float64."""
    spec = dataclasses.replace(SPEC, n_agents=1, state_dim=O, action_dim=action_dim)
    critic = networks.critic(spec, hidden, "batch")
    rng = np.random.default_rng(0)
    shapes = ((9, 1, O), (*leading, 9, 1, action_dim), (2, *leading, 9))
    obs, actions, weights = (rng.normal(size=shape) for shape in shapes)
    point = (float64(critic.init(jax.random.key(0))), obs, actions)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point)

    def value(step: float) -> float:
        params, obs, actions = jax.tree.map(lambda x, d: x + step * d, point, direction)
        return float(np.sum(weights * np_critic(of(params, 0), obs[:, 0], actions[..., 0, :])))

    slope = (value(1e-6) - value(-1e-6)) / 2e-6
    gradient = jit(jax.grad(lambda point: jnp.sum(weights * critic(*point)[..., 0])))(jax.tree.map(jnp.float32, point))
    found = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(found, slope, rtol=1e-3)


def test_critic_of_the_state() -> None:
    """It sees the state and the actions of all agents, in a row."""
    critic = networks.critic(dataclasses.replace(SPEC, state_dim=4), (16,), "none", view="state", joint=True)
    params = critic.init(jax.random.key(0))
    state, actions = (jax.random.normal(jax.random.key(1), shape) for shape in ((9, 4), (9, N, A)))
    expected = np_critic(float64(of(params, 0)), np.asarray(state), np.asarray(actions).reshape(9, -1))
    np.testing.assert_allclose(critic(params, state, actions)[..., 0], expected, rtol=1e-4, atol=1e-5)


def test_values_of_observations_in_numpy() -> None:
    values = networks.state_values(SPEC, (16,), "batch")
    params, obs = values.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (9, N, O))
    for i in range(N):
        expected = outputs(policy_network(float64(of(params, i))), np.asarray(obs)[:, i], AS_IT_IS)[0, :, 0]
        np.testing.assert_allclose(values(params, obs)[:, i], expected, rtol=1e-4, atol=1e-5)


def test_values_of_discrete_actions_in_numpy() -> None:
    network = networks.action_values(DISCRETE_SPEC, (16,), "batch", quantiles=4)
    net, obs = network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (9, N, O))
    values = network(net.params, obs)  # (B, N, Q, A)
    actions = np.random.default_rng(0).integers(3, size=(9, N))
    taken = networks.take_action(values, jnp.asarray(actions))
    for i in range(N):
        expected = outputs(policy_network(float64(of(net.params, i))), np.asarray(obs)[:, i], AS_IT_IS)[0]
        np.testing.assert_allclose(values[:, i], expected.reshape(9, 4, 3), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(taken[:, i], values[np.arange(9), i, :, actions[:, i]])


def test_quantiles_are_averaged_in_the_last_layer() -> None:
    network = networks.action_values(DISCRETE_SPEC, (16,), "batch", quantiles=4)
    net, obs = network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (9, N, O))
    weights = jnp.array([0.5, 0.3, 0.2, 0.0])
    expected = jnp.einsum("bnqa,q->bna", network.act(net, obs), weights)
    np.testing.assert_allclose(network.act_average(net, obs, weights), expected, rtol=1e-4, atol=1e-5)


def test_mixer_in_numpy() -> None:
    """Its weights are never negative."""
    mixer = networks.linear_mixer(SPEC, 8)
    params, state = mixer.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (50, N * O))
    values = jax.random.normal(jax.random.key(2), (50, N))
    w, b = mixer.weights(params, state)
    layers = float64(params)
    hidden = np.maximum(np.asarray(state) @ layers["layer_0"]["kernel"] + layers["layer_0"]["bias"], 0)
    weights, bias = (hidden @ layers[name]["kernel"] + layers[name]["bias"] for name in ("weights", "bias"))
    assert (weights < 0).any()
    np.testing.assert_allclose(w[:, 0], np.abs(weights), rtol=1e-4, atol=1e-6)
    expected = (np.abs(weights) * np.asarray(values)).sum(axis=1, keepdims=True) + bias
    np.testing.assert_allclose(networks.mix(w, b, values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["hyper", "identity", "stochastic"])
def test_square_mixer_in_numpy(kind: networks.MixerKind) -> None:
    """Weights are never negative, and biases are 0 at the start."""
    mixer, alpha = networks.square_mixer(SPEC, 8, kind), np.array([0.5, 4.0])
    params, state = mixer.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (50, N * O))
    values = np.asarray(jax.random.normal(jax.random.key(2), (50, N)))
    w, b = mixer.weights(params, state, jnp.asarray(alpha))
    np.testing.assert_array_equal(b, np.zeros((50, N)))
    assert (np.asarray(w) >= 0).all()
    expected = values
    if kind == "identity":
        assert jax.tree.leaves(params) == []
    else:
        layers = float64(params)
        hidden = np.maximum(np.asarray(state) @ layers["layer_0"]["kernel"] + layers["layer_0"]["bias"], 0)
        raw = (hidden @ layers["weights"]["kernel"] + layers["weights"]["bias"]).reshape(50, N, N)
        weights = np.abs(raw)
        if kind == "stochastic":
            shares = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
            weights = np.stack([[[s[k, j] * alpha[j] / alpha[k] for j in range(N)] for k in range(N)] for s in shares])
            np.testing.assert_allclose(np.einsum("k,bkj->bj", alpha, w), np.tile(alpha, (50, 1)), rtol=1e-5)
        np.testing.assert_allclose(w, weights, rtol=1e-4, atol=1e-6)
        params["bias"]["bias"] = jnp.arange(1.0, 1 + N)
        expected = np.einsum("bkj,bj->bk", weights, values) + np.arange(1, 1 + N)
    found = mixer(params, state, jnp.asarray(alpha), jnp.asarray(values))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_memory_is_carried_through_a_window_as_when_acting() -> None:
    policy = networks.deterministic_policy(SPEC, (), "none", memory=8)
    net = policy.init(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (5, 7, N, O))  # (B, T, N, O)
    carry, acted = policy.start(5), []
    for t in range(7):
        actions, carry = policy.act(net, obs[:, t], None, carry)
        acted.append(actions)
    np.testing.assert_allclose(policy(net.params, obs), jnp.stack(acted, axis=1), rtol=1e-4, atol=1e-6)
    forgetful, _ = policy.act(net, obs[:, -1], None, policy.start(5))
    assert np.abs(forgetful - acted[-1]).max() > 1e-5


def test_running_statistics_move_as_in_pytorch() -> None:
    """BatchNorm1d: a tenth of the way to the batch's mean and unbiased variance, from 0 and 1."""
    spec = dataclasses.replace(SPEC, n_agents=1, obs_dim=1, state_dim=1)
    policy = networks.deterministic_policy(spec, (4,), "batch")
    obs = jnp.array([[[1.0]], [[2.0]], [[6.0]]])  # mean 3, variance 14/3 by B and 7 by B - 1
    net = policy.observe(policy.init(jax.random.key(0)), obs)
    np.testing.assert_allclose(net.stats, ([[0.3]], [[0.9 + 0.7]]), rtol=1e-6)
    np.testing.assert_allclose(policy.observe(net, obs).stats, ([[0.57]], [[1.44 + 0.7]]), rtol=1e-6)
    unnormalised = networks.deterministic_policy(spec, (4,), "none")
    assert unnormalised.observe(Net(net.params, None), obs).stats is None


def test_updates_normalise_with_the_batch_and_acting_with_running_statistics() -> None:
    policy = networks.action_values(DISCRETE_SPEC, (16,), "batch")  # a policy starts too near to 0 to see much
    net = policy.init(jax.random.key(0))
    obs = 5 + 2 * jax.random.normal(jax.random.key(1), (50, N, O))
    running = net._replace(stats=Norm(jnp.full((N, O), 5.0), jnp.full((N, O), 1.0)))
    in_update, rescaled = policy(net.params, obs), policy(net.params, 3 * obs - 7)
    acting, expected = policy.act(running, obs), policy.act(net, obs - 5)
    np.testing.assert_allclose(rescaled, in_update, atol=1e-4)
    np.testing.assert_allclose(acting, expected, atol=1e-5)
    assert np.abs(acting - in_update).max() > 0.1


def test_initial_statistics_change_nothing() -> None:
    net = networks.deterministic_policy(SPEC, (4,), "batch").init(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (9, N, O))
    np.testing.assert_allclose(normalisation.normalise(obs, net.stats), obs, rtol=1e-4)


@pytest.mark.parametrize("kind", ["none", "dataset"])
def test_without_batch_normalisation_inputs_are_what_they_are(kind: InputNorm) -> None:
    """Networks know nothing of the data's statistics: whoever calls them has applied them."""
    policy = networks.deterministic_policy(SPEC, (16,), kind)
    net = policy.init(jax.random.key(0))
    obs = 10 * jax.random.normal(jax.random.key(1), (50, N, O))
    expected = np.tanh(outputs(policy_network(float64(of(net.params, 1))), np.asarray(obs)[:, 1], AS_IT_IS)[0])
    for found in (policy(net.params, obs), policy.act(net, obs)[0]):
        np.testing.assert_allclose(found[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_logits_can_be_scaled() -> None:
    policy = networks.deterministic_policy(SPEC, (16, 8), "none")
    net, obs = policy.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (9, N, O))
    plain, scaled = (policy.act(one, obs)[0] for one in (net, networks.scale_logits(net, jnp.float32(3.0))))
    np.testing.assert_allclose(np.arctanh(scaled), 3 * np.arctanh(plain), rtol=1e-3, atol=1e-5)


def gaussian(mean: Any, log_std: Any) -> networks.TanhGaussian:
    """Of agents with as many actions as the arrays (…, N, A) have."""
    mean, log_std = jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32)
    n, a = mean.shape[-2:]
    return networks.TanhGaussian(mean, log_std, dataclasses.replace(SPEC, n_agents=n, action_dim=a))


def test_squashed_gaussian_in_closed_form() -> None:
    """log π(tanh u) = Σ log N(u; μ, σ) - log(1 - tanh² u)."""
    mean, log_std, u = np.random.default_rng(0).normal(size=(3, 20, N, A))
    actions = np.tanh(u)
    expected = tanh_gaussian_log_prob(np.concatenate([mean, log_std], axis=-1), actions)
    found = gaussian(mean, log_std)
    np.testing.assert_allclose(found.log_prob(jnp.float32(actions)), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.mode(), np.tanh(mean), rtol=1e-5)


def test_squashed_gaussian_at_the_corners() -> None:
    edge = np.float64(np.float32(1 - 1e-6))
    u = np.arctanh(edge)
    expected = -0.5 * np.square(u) - 0.5 * np.log(2 * np.pi) - np.log1p(-np.square(edge))
    zero, corners = jnp.zeros((2, 1)), jnp.array([[1.0], [-1.0]])
    np.testing.assert_allclose(gaussian(zero, zero).log_prob(corners), [expected] * 2, rtol=1e-3)
    gradient = jax.grad(lambda mean: gaussian(mean, zero).log_prob(corners).sum())(zero)
    np.testing.assert_allclose(gradient, [[u], [-u]], rtol=1e-3)


def test_samples_of_the_squashed_gaussian() -> None:
    sample = gaussian(np.full((100_000, 1, 1), 0.4), np.full((100_000, 1, 1), -1.0)).sample(jax.random.key(0))
    u = np.arctanh(np.asarray(sample, np.float64))
    np.testing.assert_allclose((u.mean(), u.std()), (0.4, np.exp(-1)), rtol=0.02)


def test_means_and_deviations_of_policies_are_bounded() -> None:
    policy = networks.stochastic_policy(SPEC, (4,), "none")
    params = jax.tree.map(jnp.zeros_like, policy.init(jax.random.key(0)).params)
    for bias, mean, log_std in ((1e3, 9.0, 2.0), (-1e3, -9.0, -5.0)):
        params["layer_1"]["bias"] = jnp.full((N, 2 * A), bias)
        actions = jnp.full((1, N, A), 0.3)
        found = policy(params, jnp.zeros((1, N, O))).log_prob(actions)
        expected = gaussian(np.full((1, N, A), mean), np.full((1, N, A), log_std)).log_prob(actions)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_categorical_distribution_over_the_legal_actions() -> None:
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]))  # (N, A)
    legal = jnp.array([[False, True, True], [True, True, True]])
    found = networks.Categorical(logits, legal)
    probabilities = np.exp([found.log_prob(jnp.array([a, a])) for a in range(3)]).T
    np.testing.assert_allclose(probabilities, [[0.0, 0.6, 0.4], [0.1, 0.8, 0.1]], rtol=1e-5)
    np.testing.assert_array_equal(found.mode(), [1, 1])
    drawn = jax.vmap(found.sample)(jax.random.split(jax.random.key(0), 4000))
    shares = np.array([np.bincount(drawn[:, i], minlength=3) / 4000 for i in range(2)])
    np.testing.assert_allclose(shares, probabilities, atol=0.03)


def test_divergence_of_squashed_gaussians_is_an_integral() -> None:
    """By quadrature over the actions themselves, after the tanh, for one entry of an agent."""
    (mean, other_mean), (log_std, other_log_std) = (0.3, -0.2), (-0.5, 0.1)
    actions = np.tanh(np.linspace(-8, 8, 20_001))
    pi, other = (
        gaussian(np.full((1, 1), m), np.full((1, 1), s)) for m, s in ((mean, log_std), (other_mean, other_log_std))
    )
    log_pi, log_other = (
        tanh_gaussian_log_prob(np.tile([[m, s]], (len(actions), 1)), actions[:, None])
        for m, s in ((mean, log_std), (other_mean, other_log_std))
    )
    expected = np.trapezoid(np.exp(log_pi) * (log_pi - log_other), actions)
    np.testing.assert_allclose(pi.kl(other), [expected], rtol=1e-3)
    np.testing.assert_allclose(pi.kl(pi), [0.0], atol=1e-6)


def test_divergence_counts_the_entries_and_actions_that_agents_have() -> None:
    rng = np.random.default_rng(0)
    mixed = dataclasses.replace(SPEC, action_dims=(2, 1))
    mean, log_std = jnp.float32(rng.normal(size=(2, 2, 5, N, A)))
    pi, other = (networks.TanhGaussian(m, s, mixed) for m, s in zip(mean, log_std, strict=True))
    alone, other_alone = (gaussian(m[..., 1:, :1], s[..., 1:, :1]) for m, s in zip(mean, log_std, strict=True))
    np.testing.assert_allclose(pi.kl(other)[:, 1:], alone.kl(other_alone), rtol=1e-5)
    p, q = np.array([[0.0, 0.6, 0.4], [0.1, 0.8, 0.1]]), np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    legal = jnp.array([[False, True, True], [True, True, True]])
    found, others = (networks.Categorical(jnp.log(jnp.float32(x + (x == 0))), legal) for x in (p, q))
    q = np.array([[0.0, 0.6, 0.4], [0.2, 0.2, 0.6]])
    expected = [0.0, sum(x * np.log(x / y) for x, y in zip(p[1], q[1], strict=True))]
    np.testing.assert_allclose(found.kl(others), expected, rtol=1e-5, atol=1e-6)
    slopes = jax.grad(lambda x: networks.Categorical(x, legal).kl(others).sum())(jnp.log(jnp.float32(p + (p == 0))))
    np.testing.assert_allclose(slopes[0], np.zeros(3), atol=1e-6)  # not NaN, where an action is illegal


def test_expectations_are_sums_over_the_support() -> None:
    p = jnp.array([[0.0, 0.6, 0.4], [0.1, 0.8, 0.1]])
    legal = jnp.array([[False, True, True], [True, True, True]])
    actions, weights = networks.Categorical(jnp.log(p), legal).support(jax.random.key(0), 7)
    np.testing.assert_array_equal(actions, [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_allclose(weights, p.T, rtol=1e-6)
    mean, log_std = np.full((1, N, A), 0.4), np.full((1, N, A), -1.0)
    actions, weights = gaussian(mean, log_std).support(jax.random.key(0), 50_000)
    assert (actions.shape, weights.shape) == ((50_000, 1, N, A), (50_000, 1, N))
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, rtol=1e-4)
    u = np.arctanh(np.asarray(actions, np.float64))
    np.testing.assert_allclose((u.mean(), u.std()), (0.4, np.exp(-1)), rtol=0.02)


def test_gradients_flow_through_samples() -> None:
    """Of E tanh(u)² by the mean of u, against a difference."""

    def square(mean: Any) -> jax.Array:
        samples, _ = gaussian(mean * jnp.ones((1, N, A)), np.full((1, N, A), -1.0)).support(jax.random.key(1), 50_000)
        return jnp.square(samples).mean()

    np.testing.assert_allclose(jax.grad(square)(0.4), (square(0.41) - square(0.39)) / 0.02, rtol=0.01)
