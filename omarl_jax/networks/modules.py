"""The layers of single networks, the only file that defines flax modules.

Layers start as PyTorch's do, uniform in ±1/sqrt(inputs), because the published methods do. They are named `layer_0`,
`layer_1` … and `norm`, and saved policies rely on these names.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

Initialiser = Callable[..., chex.Array]


def uniform(bound: float) -> Initialiser:
    """Uniform in ±bound."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def torch_uniform(inputs: int) -> Initialiser:
    """PyTorch's default for weights and biases: uniform in ±1/sqrt(inputs)."""
    return uniform(inputs**-0.5)


@jax.custom_vjp
def _product(x: chex.Array, kernel: chex.Array) -> chex.Array:
    """x (…, I) times kernel (I, O) -> (…, O), whose kernel gradient is computed directly in (I, O) layout.

    JAX's own rule makes it as (O, I) and transposes it, which is a fifth of an update where kernels are wide and
    batches small.
    """
    return x @ kernel


def _product_forward(x: chex.Array, kernel: chex.Array) -> tuple[chex.Array, tuple[chex.Array, chex.Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(inputs: tuple[chex.Array, chex.Array], grad: chex.Array) -> tuple[chex.Array, chex.Array]:
    x, kernel = inputs
    # As matrices: XLA would make a transposed copy of `x` if there were several axes to sum over.
    rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return jnp.einsum("...o,io->...i", grad, kernel), jnp.einsum("ri,ro->io", rows, grads)


_product.defvjp(_product_forward, _product_backward)


class Dense(nn.Module):
    """A linear layer."""

    features: int
    kernel_bound: float | None = None  # None: PyTorch's default
    bias_bound: float | None = None

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """(…, I) -> (…, features)."""
        inputs = x.shape[-1]
        weights, biases = (
            torch_uniform(inputs) if bound is None else uniform(bound) for bound in (self.kernel_bound, self.bias_bound)
        )
        kernel = self.param("kernel", weights, (inputs, self.features))
        # `custom_vjp` rejects NumPy arrays, which loaded policies contain; multiplying by 1.0 converts them.
        return _product(x, 1.0 * kernel) + self.param("bias", biases, (self.features,))


class Affine(nn.Module):
    """The learned scale and shift of batch normalisation."""

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """(…, X) -> (…, X)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return scale * x + self.param("bias", nn.initializers.zeros, x.shape[-1:])


class MLP(nn.Module):
    """Linear layers with ReLU in between."""

    hidden: tuple[int, ...]
    outputs: int
    affine: bool = False
    last_kernel_bound: float | None = None

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """(…, X) -> (…, outputs)."""
        if self.affine:
            x = Affine(name="norm")(x)
        for i, width in enumerate(self.hidden):
            x = nn.relu(Dense(width, name=f"layer_{i}")(x))
        return Dense(self.outputs, self.last_kernel_bound, name=f"layer_{len(self.hidden)}")(x)


def last_layer(params: Any) -> str:
    """The name of an MLP's last layer."""
    return max((name for name in params if name.startswith("layer_")), key=lambda name: int(name.split("_")[1]))


class GRU(nn.Module):
    """A linear layer, a gated recurrent unit and a linear layer."""

    width: int
    outputs: int
    affine: bool = False
    last_kernel_bound: float | None = None

    @nn.compact
    def __call__(self, carry: chex.Array, x: chex.Array) -> tuple[chex.Array, chex.Array]:
        """(…, width), (…, X) -> the next carry (…, width) and (…, outputs)."""
        if self.affine:
            x = Affine(name="norm")(x)
        x = nn.relu(Dense(self.width, name="layer_0")(x))
        carry, x = nn.GRUCell(self.width, name="gru")(carry, x)
        return carry, Dense(self.outputs, self.last_kernel_bound, name="layer_1")(x)


class Heads(nn.Module):
    """Critics of observation and action that differ in their weights alone: twin heads share input normalisation.

    The share of the observation in the first layer is computed once for all candidate actions.
    """

    hidden: tuple[int, ...]
    affine: bool
    heads: int

    @nn.compact
    def __call__(self, obs: chex.Array, actions: chex.Array, heads: int | None = None) -> chex.Array:
        """obs (B, X), actions (…, B, A), already normalised -> values (heads, …, B); `heads` computes the first few."""
        n_obs, inputs = obs.shape[-1], obs.shape[-1] + actions.shape[-1]
        layers = []
        for i, (width, outputs) in enumerate(zip((inputs, *self.hidden), (*self.hidden, 1), strict=True)):
            layers.append(_HeadLayer(self.heads, width, outputs, name=f"layer_{i}")())
        if self.affine:
            norm = _AffineParams(inputs, name="norm")()

        def value(layers: Any) -> chex.Array:
            (w, b), *rest = layers
            if self.affine:  # applied to the weights, because there may be many candidate actions
                b, w = b + norm[1] @ w, norm[0][:, None] * w
            x = (_product(obs, w[:n_obs]) + b + _product(actions, w[n_obs:])).reshape(-1, self.hidden[0])
            for w, b in rest:
                x = _product(nn.relu(x), w) + b
            return x.reshape(actions.shape[:-1])

        return jax.vmap(value)(jax.tree.map(lambda x: x[:heads], layers))


class _HeadLayer(nn.Module):
    heads: int
    inputs: int
    outputs: int

    @nn.compact
    def __call__(self) -> tuple[chex.Array, chex.Array]:
        kernel = self.param("kernel", torch_uniform(self.inputs), (self.heads, self.inputs, self.outputs))
        return kernel, self.param("bias", torch_uniform(self.inputs), (self.heads, self.outputs))


class _AffineParams(nn.Module):
    width: int

    @nn.compact
    def __call__(self) -> tuple[chex.Array, chex.Array]:
        scale = self.param("scale", nn.initializers.ones, (self.width,))
        return scale, self.param("bias", nn.initializers.zeros, (self.width,))


class LinearMixing(nn.Module):
    """Non-negative weights of N values and a bias, from the global state."""

    hidden: int
    n: int

    @nn.compact
    def __call__(self, state: chex.Array) -> tuple[chex.Array, chex.Array]:
        """(B, S) -> w (B, N), b (B, 1)."""
        x = nn.relu(Dense(self.hidden, name="layer_0")(state))
        return jnp.abs(Dense(self.n, name="weights")(x)), Dense(1, name="bias")(x)


class SquareMixing(nn.Module):
    """N x N weights of any sign and N biases that start at 0, from the global state."""

    hidden: int
    n: int

    @nn.compact
    def __call__(self, state: chex.Array) -> tuple[chex.Array, chex.Array]:
        """(B, S) -> w (B, N, N), b (B, N)."""
        x = nn.relu(Dense(self.hidden, name="layer_0")(state))
        w = Dense(self.n * self.n, name="weights")(x)
        return w.reshape(*w.shape[:-1], self.n, self.n), Dense(self.n, 0.0, 0.0, name="bias")(x)
