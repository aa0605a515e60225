"""The networks of all methods: the only file that knows flax and distrax.

Every network here is that of one agent (or one critic); algorithms `vmap` it over the agent axis, so parameters carry
a leading (N,). Layers start as PyTorch's do, uniform in ±1/sqrt(inputs), because the published methods do.

Inputs can be normalised in three ways (`input_norm` of a config):

    "batch"    batch normalisation of the input as the OMAR family publishes it: batch statistics in updates, running
               statistics when acting. Every forward pass of an update normalises with the statistics of its own
               inputs, target networks included.
    "dataset"  the fixed mean and standard deviation of the data (observations only).
    "none"     nothing.

The running statistics depend on the inputs alone, so they are a value of their own (`Norm`) beside the parameters.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn

from omarl_jax.types import Stats, TaskSpec

InputNorm = Literal["batch", "dataset", "none"]

_EPSILON = 1e-5  # of PyTorch's BatchNorm1d
_MOMENTUM = 0.1


class Norm(NamedTuple):
    """Fixed or running statistics of an input.

    Attributes:
        mean: (…, O) float32.
        var: (…, O) float32.
    """

    mean: chex.Array
    var: chex.Array

    def of(self, agent: int) -> "Norm":
        """The statistics of one agent (or critic)."""
        return Norm(self.mean[agent], self.var[agent])

    def viewed(self, view: Callable[[chex.Array], chex.Array]) -> "Norm":
        """(N, O) statistics rearranged as `view` rearranges a batch of observations, (B, N, O) -> (G, B, …)."""
        return Norm(view(self.mean[None])[:, 0], view(self.var[None])[:, 0])


class Policy(NamedTuple):
    """What acting needs: the parameters of N policies, stacked, and the statistics that normalise their inputs."""

    params: Any
    norm: Norm


def initial_norm(kind: InputNorm, stats: Stats) -> Norm:
    """The statistics to begin with, those of the data if they are to be used and otherwise mean 0 and variance 1."""
    if kind == "dataset":
        return Norm(stats.obs_mean, jnp.square(stats.obs_std))
    return Norm(jnp.zeros_like(stats.obs_mean), jnp.ones_like(stats.obs_std))


def training_norm(kind: InputNorm, norm: Norm) -> Norm | None:
    """What the networks are given in updates: None asks for the statistics of each input itself."""
    return None if kind == "batch" else norm


def moved_norm(kind: InputNorm, norm: Norm, obs: chex.Array) -> Norm:
    """The statistics after one more batch, obs: (B, N, O). Only those of batch normalisation move."""
    if kind != "batch":
        return norm
    batch_size = obs.shape[0]
    seen = Norm(obs.mean(axis=0), obs.var(axis=0) * (batch_size / (batch_size - 1)))
    return jax.tree.map(lambda old, new: old + _MOMENTUM * (new - old), norm, seen)


def torch_kernel(inputs: int) -> Callable[..., chex.Array]:
    """PyTorch's default initialiser of weights and biases: uniform in ±1/sqrt(inputs)."""
    bound = inputs**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class _Dense(nn.Module):
    features: int
    bound: float | None = None  # of the weights; None: PyTorch's default

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        inputs = x.shape[-1]
        weights = torch_kernel(inputs) if self.bound is None else torch_kernel(round(self.bound**-2))
        kernel = self.param("kernel", weights, (inputs, self.features))
        return x @ kernel + self.param("bias", torch_kernel(inputs), (self.features,))


def _statistics(x: chex.Array) -> Norm:
    """Mean and variance over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    return Norm(x.mean(axis=axes), x.var(axis=axes))


def _standardised(x: chex.Array, norm: Norm | None) -> chex.Array:
    """(x - mean) / std, with the statistics of x itself if none are given."""
    if norm is None:
        norm = _statistics(x)
    return (x - norm.mean) * jax.lax.rsqrt(norm.var + _EPSILON)


class _Normalise(nn.Module):
    """Normalises over all axes but the last; `affine` adds the learned scale and shift of batch normalisation."""

    affine: bool

    @nn.compact
    def __call__(self, x: chex.Array, norm: Norm | None) -> chex.Array:
        x = _standardised(x, norm)
        if self.affine:
            x = x * self.param("scale", nn.initializers.ones, x.shape[-1:])
            x = x + self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return x


class _DeterministicPolicy(nn.Module):
    hidden: tuple[int, ...]
    action_dim: int
    input_norm: InputNorm

    @nn.compact
    def __call__(self, obs: chex.Array, norm: Norm | None) -> chex.Array:
        x = _Normalise(affine=self.input_norm == "batch")(obs, norm)
        for width in self.hidden:
            x = nn.relu(_Dense(width)(x))
        return jnp.tanh(_Dense(self.action_dim, bound=3e-3)(x))


class _GaussianPolicy(nn.Module):
    hidden: tuple[int, ...]
    action_dim: int
    input_norm: InputNorm

    @nn.compact
    def __call__(self, obs: chex.Array, norm: Norm | None) -> tuple[chex.Array, chex.Array]:
        x = _Normalise(affine=self.input_norm == "batch")(obs, norm)
        for width in self.hidden:
            x = nn.relu(_Dense(width)(x))
        mean, log_std = jnp.split(_Dense(2 * self.action_dim)(x), 2, axis=-1)
        return mean, jnp.clip(log_std, -5.0, 2.0)


class _Critic(nn.Module):
    hidden: tuple[int, ...]
    input_norm: InputNorm
    n: int

    @nn.compact
    def __call__(self, obs: chex.Array, actions: chex.Array, norm: Norm | None, heads: int | None = None) -> chex.Array:
        obs = _standardised(obs, norm)
        n_obs, inputs = obs.shape[-1], obs.shape[-1] + actions.shape[-1]
        w_0 = self.param("w_0", torch_kernel(inputs), (self.n, inputs, self.hidden[0]))
        b_0 = self.param("b_0", torch_kernel(inputs), (self.n, self.hidden[0]))
        layers = []
        for i, (width, outputs) in enumerate(zip(self.hidden, (*self.hidden[1:], 1), strict=True), start=1):
            w = self.param(f"w_{i}", torch_kernel(width), (self.n, width, outputs))
            layers.append((w, self.param(f"b_{i}", torch_kernel(width), (self.n, outputs))))
        if self.input_norm == "batch":
            scale = self.param("scale", nn.initializers.ones, (inputs,))
            shift = self.param("shift", nn.initializers.zeros, (inputs,))
            # What normalises the many actions goes into the weights, and so do the scale and shift of all inputs.
            statistics = _statistics(actions)
            scale = scale * jnp.append(jnp.ones(n_obs), jax.lax.rsqrt(statistics.var + _EPSILON))
            shift = shift - scale * jnp.append(jnp.zeros(n_obs), statistics.mean)
            w_0, b_0 = jnp.diag(scale) @ w_0, b_0 + shift @ w_0
        # The bias is the weight of one more observation, which is always 1.
        first = (jnp.concatenate([w_0[:, :n_obs], b_0[:, None]], axis=1), w_0[:, n_obs:])
        obs = jnp.concatenate([obs, jnp.ones((*obs.shape[:-1], 1))], axis=-1)

        def value(actions: chex.Array, first: Any, layers: Any) -> chex.Array:
            *middle, (w_last, b_last) = layers
            x = _two_layers(obs, actions, *first, *middle[0]) if middle else _first_layer(obs, actions, *first)
            for w, b in middle[1:]:
                x = nn.relu(x @ w + b)
            return (x @ w_last + b_last)[..., 0]

        # Were the actions shared, their products' gradients would be joined over the networks, by a slow transposition.
        each = jnp.broadcast_to(actions, (heads or self.n, *actions.shape))
        return jax.vmap(value)(each, *jax.tree.map(lambda x: x[:heads], (first, layers)))


def _first_layer(obs: chex.Array, actions: chex.Array, w_obs: chex.Array, w_actions: chex.Array) -> chex.Array:
    """relu([o, a] W): (B, O), (…, B, A), (O, H), (A, H) -> (…, B, H). What observations add is computed once."""
    if w_actions.shape[0] > _FEW_ACTIONS:
        return nn.relu(obs @ w_obs + actions @ w_actions)
    return nn.relu(obs @ w_obs + sum(actions[..., i : i + 1] * w_actions[i] for i in range(w_actions.shape[0])))


@jax.custom_vjp
def _two_layers(
    obs: chex.Array, actions: chex.Array, w_obs: chex.Array, w_actions: chex.Array, w: chex.Array, b: chex.Array
) -> chex.Array:
    """relu(x w + b), where x is the first layer: …, (H, J), (J,) -> (…, B, J).

    Most of training is spent in here. The gradient is written out so that the first layer, which is quick to compute
    but K times as large as the batch, is computed again instead of being kept.
    """
    return nn.relu(_first_layer(obs, actions, w_obs, w_actions) @ w + b)


def _two_layers_forward(*inputs: chex.Array) -> tuple[chex.Array, Any]:
    y = _two_layers(*inputs)
    return y, (inputs, y)


def _two_layers_backward(kept: Any, dy: chex.Array) -> tuple[chex.Array, ...]:
    (obs, actions, w_obs, w_actions, w, _), y = kept
    d = jnp.where(y > 0, dy, 0.0)  # (…, B, J)
    dw = jax.lax.platform_dependent(
        obs, actions, w_obs, w_actions, d, cpu=_second_gradient_on_cpu, default=_second_gradient
    )
    x = _first_layer(obs, actions, w_obs, w_actions)
    dx = jnp.where(x > 0, (_rows(d) @ w.T).reshape(x.shape), 0.0)  # (…, B, H)
    of_batch = dx.reshape(-1, *dx.shape[-2:]).sum(axis=0)  # (B, H)
    d_actions, dw_actions = dx @ w_actions.T, _rows(actions).T @ _rows(dx)
    return of_batch @ w_obs.T, d_actions, obs.T @ of_batch, dw_actions, dw, _rows(d).sum(axis=0)


def _second_gradient(
    obs: chex.Array, actions: chex.Array, w_obs: chex.Array, w_actions: chex.Array, d: chex.Array
) -> chex.Array:
    """xᵀ d, the gradient of w: …, (…, B, J) -> (H, J)."""
    return _rows(_first_layer(obs, actions, w_obs, w_actions)).T @ _rows(d)


def _second_gradient_on_cpu(
    obs: chex.Array, actions: chex.Array, w_obs: chex.Array, w_actions: chex.Array, d: chex.Array
) -> chex.Array:
    """The same, where transposing x would take longer than multiplying it: xᵀ is computed as such, bit by bit."""
    from_obs = w_obs.T @ obs.T  # (H, B)
    total = jnp.zeros((w_obs.shape[1], d.shape[-1]))
    for a, part in zip(actions.reshape(-1, *actions.shape[-2:]), d.reshape(-1, *d.shape[-2:]), strict=True):
        if w_actions.shape[0] > _FEW_ACTIONS:
            from_actions = w_actions.T @ a.T
        else:
            from_actions = sum(w_actions[i][:, None] * a[:, i] for i in range(w_actions.shape[0]))
        total += nn.relu(from_obs + from_actions) @ part
    return total


def _rows(x: chex.Array) -> chex.Array:
    return x.reshape(-1, x.shape[-1])


_two_layers.defvjp(_two_layers_forward, _two_layers_backward)
_FEW_ACTIONS = 8  # up to here multiplying out is faster than a matrix product


class Network(NamedTuple):
    """One kind of network as pure functions.

    Attributes:
        init: (key, n, *inputs) -> parameters of n networks, stacked: every leaf begins with (n,).
        apply: (parameters of one network, *inputs) -> outputs.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


def network(module: nn.Module) -> Network:
    """The functions of a module."""

    def init(key: chex.PRNGKey, n: int, *inputs: Any) -> Any:
        return jax.vmap(lambda key: module.init(key, *inputs)["params"])(jax.random.split(key, n))

    def apply(params: Any, *inputs: Any, **options: Any) -> Any:
        return module.apply({"params": params}, *inputs, **options)

    return Network(init, apply)


def deterministic_policy(spec: TaskSpec, hidden: tuple[int, ...], input_norm: InputNorm) -> Network:
    """apply(params, obs (…, O), norm) -> actions (…, A): tanh of an MLP whose last weights start within ±3e-3."""
    return network(_DeterministicPolicy(hidden, spec.action_dim, input_norm))


def gaussian_policy(spec: TaskSpec, hidden: tuple[int, ...], input_norm: InputNorm) -> Network:
    """apply(params, obs (…, O), norm) -> mean and log standard deviation (…, A) of a Gaussian that tanh squashes."""
    return network(_GaussianPolicy(hidden, spec.action_dim, input_norm))


def critic(hidden: tuple[int, ...], input_norm: InputNorm, n: int = 2) -> Network:
    """apply(params, obs (B, O), actions (…, B, A), norm, heads=None) -> values (heads, …, B) of n networks.

    The actions may be many candidates for each observation, whose share of the first layer is computed only once. With
    `heads`, only the first of the n networks are computed. All n share one input normalisation, as published
    (`DoubleMLPNetwork`).
    """
    return network(_Critic(hidden, input_norm, n))


def tanh_gaussian_log_prob(mean: chex.Array, log_std: chex.Array, actions: chex.Array) -> chex.Array:
    """log π(a|o) of a squashed Gaussian, (…, A) -> (…); actions of exactly ±1 count as ±(1 - 1e-6)."""
    return _tanh_gaussian(mean, log_std).log_prob(jnp.clip(actions, -1.0 + 1e-6, 1.0 - 1e-6))


def tanh_gaussian_sample(mean: chex.Array, log_std: chex.Array, key: chex.PRNGKey) -> chex.Array:
    """One action (…, A) of a squashed Gaussian."""
    return _tanh_gaussian(mean, log_std).sample(seed=key)


def _tanh_gaussian(mean: chex.Array, log_std: chex.Array) -> distrax.Distribution:
    gaussian = distrax.MultivariateNormalDiag(mean, jnp.exp(log_std))
    return distrax.Transformed(gaussian, distrax.Block(distrax.Tanh(), 1))
