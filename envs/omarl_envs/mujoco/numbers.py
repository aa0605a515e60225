"""Arithmetic that leaves out what is known to be 0 or 1 when a program is traced.

A planar robot is a robot in space, many of whose numbers are known zeros. Products with them leave no instruction, so
one engine serves both, and NumPy's arrays of such numbers are vectors and matrices that read like a textbook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

Vector = np.ndarray
"""An array whose entries are `Number`s."""


class Number:
    """One entry of a vector: a constant (a NumPy array in float64), or an array that the program computes."""

    __slots__ = ("value",)
    value: Any

    def __init__(self, value: Any):
        self.value = value if isinstance(value, jax.Array) else np.asarray(value, np.float64)

    @property
    def known(self) -> bool:
        """Whether it is a constant."""
        return isinstance(self.value, np.ndarray)

    def all_are(self, x: float) -> bool:
        """Whether it is known to be x everywhere."""
        return self.known and bool(np.all(self.value == x))

    def __add__(self, other: Any) -> Number:
        other = number(other)
        if self.all_are(0.0):
            return other
        if other.all_are(0.0):
            return self
        return Number(np.add(self.value, other.value) if self.known and other.known else _arrays(jnp.add, self, other))

    __radd__ = __add__

    def __neg__(self) -> Number:
        return Number(-self.value)

    def __sub__(self, other: Any) -> Number:
        other = number(other)
        if other.all_are(0.0):
            return self
        if self.all_are(0.0):
            return -other
        return Number(self.value - other.value if self.known and other.known else _arrays(jnp.subtract, self, other))

    def __rsub__(self, other: Any) -> Number:
        return number(other) - self

    def __mul__(self, other: Any) -> Number:
        other = number(other)
        for a, b in ((self, other), (other, self)):
            if a.all_are(0.0):
                return ZERO
            if a.all_are(1.0):
                return b
            if a.all_are(-1.0):
                return -b
        return Number(self.value * other.value if self.known and other.known else _arrays(jnp.multiply, self, other))

    __rmul__ = __mul__


def number(x: Any) -> Number:
    """x as a Number."""
    return x if isinstance(x, Number) else Number(x)


def _arrays(operation: Any, a: Number, b: Number) -> jax.Array:
    """An operation in the dtype of what is computed."""
    dtype = b.value.dtype if a.known else a.value.dtype
    x, y = jnp.asarray(a.value, dtype), jnp.asarray(b.value, dtype)
    result: jax.Array = operation(x, y)
    return result


ZERO = Number(0.0)


def vector(xs: Any) -> Vector:
    """Numbers from nested sequences of them and of constants."""
    xs = np.asarray(xs, object)
    out = np.empty(xs.shape, object)
    for index, x in np.ndenumerate(xs):
        out[index] = number(x)
    return out


def columns(xs: Any) -> Vector:
    """Constants (…, n) as a vector (n,) of Numbers (…, 1), each with room for a batch."""
    xs = np.asarray(xs, np.float64)
    out = np.empty(xs.shape[-1], object)
    for k in range(len(out)):
        out[k] = Number(xs[..., k, None])
    return out


def dot(a: Vector, b: Vector) -> Number:
    """Σ_k a_k b_k."""
    return sum((x * y for x, y in zip(a, b, strict=True)), ZERO)


def cross(a: Vector, b: Vector) -> Vector:
    """a × b."""
    return vector([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def skew(a: Vector) -> Vector:
    """The matrix of a × ·."""
    return vector([[0.0, -a[2], a[1]], [a[2], 0.0, -a[0]], [-a[1], a[0], 0.0]])


def turn(axis: Vector, angle: Number) -> Vector:
    """The rotation (3, 3) by an angle about a unit axis."""
    library: Any = np if angle.known else jnp
    s, c = Number(library.sin(angle.value)), Number(library.cos(angle.value))
    outer = np.multiply.outer(axis, axis)
    return outer + (vector(np.eye(3)) - outer) * c + skew(axis) * s


def quaternion_matrix(q: Vector) -> Vector:
    """The rotation (3, 3) of a unit quaternion (w, x, y, z)."""
    w, x, y, z = q
    return vector(
        [
            [w * w + x * x - y * y - z * z, 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
            [2.0 * (x * y + w * z), w * w - x * x + y * y - z * z, 2.0 * (y * z - w * x)],
            [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    )


def each(f: Callable[[Any], Any], xs: Vector) -> Vector:
    """Numbers of f of the arrays; zeros that are known stay so."""
    return vector([x if x.all_are(0.0) else Number(f(x.value)) for x in xs.ravel()]).reshape(xs.shape)


def stacked(xs: Sequence[Vector]) -> Vector:
    """Vectors of Numbers (…) as one of Numbers (D, …); what is known and the same everywhere stays a constant."""

    def one(of: tuple[Number, ...]) -> Number:
        values = np.broadcast_arrays(*(x.value for x in of)) if all(x.known for x in of) else None
        if values is not None:
            return of[0] if of[0].value.size and len({*map(float, np.ravel(values))}) == 1 else Number(np.stack(values))
        dtype = next(x.value.dtype for x in of if not x.known)
        return Number(jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(x.value, dtype) for x in of))))

    return vector([one(of) for of in zip(*xs, strict=True)])


def computed_once(function: Callable[..., Any], *xs: Any) -> Any:
    """The function of arrays, as a program of its own on CPUs.

    XLA's compiler for CPUs fuses whatever many results need into each of them, and so computes it many times. It does
    not look into a call that must not be inlined. On accelerators arithmetic is cheaper than memory, and all is fused.
    """

    def called(*xs: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jax.jit(function)(*xs)

    return jax.lax.platform_dependent(*xs, cpu=called, default=function)
