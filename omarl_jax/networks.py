"""The networks of all methods: the only file that knows flax and distrax.

Every network here is that of one agent (or one critic); algorithms `vmap` it over the agent axis, so parameters carry
a leading (N,). Layers start as PyTorch's do, uniform in ±1/sqrt(inputs), because the published methods do.

Inputs can be normalised in three ways (`input_norm` of a config):

    "batch"    batch normalisation of the input as the OMAR family publishes it: batch statistics in updates, running
               statistics when acting. Every forward pass of an update normalises with the statistics of its own
               inputs, target networks included.
    "dataset"  the fixed mean and standard deviation of the data (observations only).
    "none"     nothing (the mean taken as 0 and the variance as 1).

The running statistics depend on the inputs alone, so they are a value of their own (`Norm`) beside the parameters.
"""

import itertools
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

    def of_critics(self, view: Callable[[chex.Array], chex.Array], action_dim: int) -> "Norm":
        """What normalises the inputs of critics, which see the observations, (B, N, O) -> (G, B, O'), and actions of a
        `view`: (N, O) -> (G, O' + A'). Actions have mean 0 and variance 1.
        """
        actions = jnp.zeros((1, self.mean.shape[0], action_dim))
        mean = jnp.concatenate([view(self.mean[None]), view(actions)], axis=-1)
        return Norm(mean[:, 0], jnp.concatenate([view(self.var[None]), view(actions + 1.0)], axis=-1)[:, 0])


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


@jax.custom_vjp
def _times(x: chex.Array, kernel: chex.Array) -> chex.Array:
    """x (…, I) times kernel (I, O) -> (…, O), by gradients that are written in the order of `x` and `kernel`.

    JAX's own rule makes the gradient of a kernel as (O, I) and transposes it, which is a fifth of an update where
    kernels are wide and batches small.
    """
    return x @ kernel


def _times_forward(x: chex.Array, kernel: chex.Array) -> tuple[chex.Array, tuple[chex.Array, chex.Array]]:
    return x @ kernel, (x, kernel)


def _times_backward(inputs: tuple[chex.Array, chex.Array], grad: chex.Array) -> tuple[chex.Array, chex.Array]:
    x, kernel = inputs
    return jnp.einsum("...o,io->...i", grad, kernel), jnp.einsum("...i,...o->io", x, grad)


_times.defvjp(_times_forward, _times_backward)


class _Dense(nn.Module):
    features: int
    bound: float | None = None  # of the weights; None: PyTorch's default

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        inputs = x.shape[-1]
        weights = torch_kernel(inputs) if self.bound is None else torch_kernel(round(self.bound**-2))
        kernel = self.param("kernel", weights, (inputs, self.features))
        # JAX takes no NumPy arrays, as saved policies have, into a custom rule; the factor makes its own of them.
        return _times(x, 1.0 * kernel) + self.param("bias", torch_kernel(inputs), (self.features,))


def statistics(norm: Norm | None, *inputs: chex.Array) -> Norm:
    """The given statistics, or if there are none, those of the inputs themselves, each over all axes but its last."""
    if norm is not None:
        return norm
    axes = [tuple(range(x.ndim - 1)) for x in inputs]
    mean = jnp.concatenate([x.mean(axis=axis) for x, axis in zip(inputs, axes, strict=True)])
    return Norm(mean, jnp.concatenate([x.var(axis=axis) for x, axis in zip(inputs, axes, strict=True)]))


class _Normalise(nn.Module):
    """Normalises over all axes but the last; `affine` adds the learned scale and shift of batch normalisation."""

    affine: bool

    @nn.compact
    def __call__(self, x: chex.Array, norm: Norm | None) -> chex.Array:
        norm = statistics(norm, x)
        x = (x - norm.mean) * jax.lax.rsqrt(norm.var + _EPSILON)
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


class _ActionValues(nn.Module):
    hidden: tuple[int, ...]
    n_actions: int
    input_norm: InputNorm
    atoms: int

    @nn.compact
    def __call__(self, obs: chex.Array, norm: Norm | None) -> chex.Array:
        x = _Normalise(affine=self.input_norm == "batch")(obs, norm)
        for width in self.hidden:
            x = nn.relu(_Dense(width)(x))
        x = _Dense(self.atoms * self.n_actions)(x)
        return x.reshape(*x.shape[:-1], self.atoms, self.n_actions)


class _Critic(nn.Module):
    hidden: tuple[int, ...]
    input_norm: InputNorm
    n: int

    @nn.compact
    def __call__(self, obs: chex.Array, actions: chex.Array, norm: Norm | None, heads: int | None = None) -> chex.Array:
        norm = statistics(norm, obs, actions)
        n_obs, inputs = obs.shape[-1], obs.shape[-1] + actions.shape[-1]
        layers = []
        for i, (width, outputs) in enumerate(itertools.pairwise((inputs, *self.hidden, 1))):
            w = self.param(f"w_{i}", torch_kernel(width), (self.n, width, outputs))
            layers.append((w, self.param(f"b_{i}", torch_kernel(width), (self.n, outputs))))
        # The inputs are normalised by the weights, because there may be many candidate actions for each observation.
        scale = jax.lax.rsqrt(norm.var + _EPSILON)
        shift = -norm.mean * scale
        if self.input_norm == "batch":
            affine = self.param("scale", nn.initializers.ones, (inputs,))
            scale, shift = affine * scale, affine * shift + self.param("shift", nn.initializers.zeros, (inputs,))

        def value(layers: Any) -> chex.Array:
            (w, b), *rest = layers
            b, w = b + shift @ w, scale[:, None] * w
            x = (obs @ w[:n_obs] + b + actions @ w[n_obs:]).reshape(-1, self.hidden[0])
            for w, b in rest:
                x = nn.relu(x) @ w + b
            return x.reshape(actions.shape[:-1])

        return jax.vmap(value)(jax.tree.map(lambda x: x[:heads], layers))


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


def sharpened(params: Any, gain: chex.Array) -> Any:
    """The parameters of a deterministic policy that multiplies by `gain` before its tanh."""
    last = _last_layer(params)
    return {**params, last: jax.tree.map(lambda x: gain * x, params[last])}


def _last_layer(params: Any) -> str:
    return f"_Dense_{sum(name.startswith('_Dense') for name in params) - 1}"


def mixed_atoms(params: Any, shares: chex.Array) -> Any:
    """The parameters of networks with one atom, the mixture of all atoms by `shares` (Q,), from those of Q atoms.

    To mix weights is cheaper than to mix what comes out of them, wherever they see more than a few observations.
    """
    last = _last_layer(params)
    mixed = jax.tree.map(lambda x: shares @ x.reshape(*x.shape[:-1], len(shares), -1), params[last])
    return {**params, last: mixed}


def gaussian_policy(spec: TaskSpec, hidden: tuple[int, ...], input_norm: InputNorm) -> Network:
    """apply(params, obs (…, O), norm) -> mean and log standard deviation (…, A) of a Gaussian that tanh squashes."""
    return network(_GaussianPolicy(hidden, spec.action_dim, input_norm))


def critic(hidden: tuple[int, ...], input_norm: InputNorm, n: int = 2) -> Network:
    """apply(params, obs (B, O), actions (…, B, A), norm, heads=None) -> values (heads, …, B) of n networks.

    The actions may be many candidates for each observation, whose share of the first layer is computed only once.
    `norm`, (O + A,), normalises both; None asks for the statistics of these very inputs, and those of a part of a batch
    are not those of the batch. With `heads`, only the first of the n networks are computed. All n share one input
    normalisation, as published (`DoubleMLPNetwork`).
    """
    return network(_Critic(hidden, input_norm, n))


def action_values(spec: TaskSpec, hidden: tuple[int, ...], input_norm: InputNorm, atoms: int) -> Network:
    """apply(params, obs (…, O), norm) -> values (…, atoms, A) of discrete actions."""
    return network(_ActionValues(hidden, spec.action_dim, input_norm, atoms))


def tanh_gaussian_log_prob(mean: chex.Array, log_std: chex.Array, actions: chex.Array) -> chex.Array:
    """log π(a|o) of a squashed Gaussian, (…, A) -> (…); actions of exactly ±1 count as ±(1 - 1e-6)."""
    return _tanh_gaussian(mean, log_std).log_prob(jnp.clip(actions, -1.0 + 1e-6, 1.0 - 1e-6))


def tanh_gaussian_sample(mean: chex.Array, log_std: chex.Array, key: chex.PRNGKey) -> chex.Array:
    """One action (…, A) of a squashed Gaussian."""
    return _tanh_gaussian(mean, log_std).sample(seed=key)


def _tanh_gaussian(mean: chex.Array, log_std: chex.Array) -> distrax.Distribution:
    gaussian = distrax.MultivariateNormalDiag(mean, jnp.exp(log_std))
    return distrax.Transformed(gaussian, distrax.Block(distrax.Tanh(), 1))
