"""Normalisation of network inputs: batch normalisation as the OMAR family publishes it.

In updates every forward pass uses the statistics of its own inputs, target networks included. Acting uses running
statistics. They depend on the inputs alone, so they stand beside the parameters (`Net`) and are not optimised.

Normalisation by fixed statistics of the data is no matter of networks: it is applied to whole batches before `update`
and to observations before `act` (see `omarl_jax.algorithms._build`).
"""

from typing import Any, Literal, NamedTuple

import chex
import jax

InputNorm = Literal["batch", "dataset", "none"]

_EPSILON = 1e-5  # of PyTorch's BatchNorm1d
_MOMENTUM = 0.1


class Norm(NamedTuple):
    """Statistics of the inputs of N networks.

    Attributes:
        mean: (N, X) float32.
        var: (N, X) float32.
    """

    mean: chex.Array
    var: chex.Array


class Net(NamedTuple):
    """A network's parameters, and what else acting needs.

    Attributes:
        params: what the optimiser steps.
        stats: the running statistics of batch normalisation, or None.
    """

    params: Any
    stats: Norm | None


def batch_statistics(x: chex.Array) -> Norm:
    """The mean and variance of x (…, N, X) over every axis but agents and features."""
    axes = tuple(range(x.ndim - 2))
    return Norm(x.mean(axis=axes), x.var(axis=axes))


def normalise(x: chex.Array, norm: Norm) -> chex.Array:
    """(x - mean) / sqrt(var + 1e-5), for x (…, N, X)."""
    return (x - norm.mean) * jax.lax.rsqrt(norm.var + _EPSILON)


def running_statistics(norm: Norm, *passes: chex.Array) -> Norm:
    """The statistics after further passes, a tenth of the way to the mean and unbiased variance of each."""
    for x in passes:
        count = x.size // (x.shape[-1] * x.shape[-2])
        seen = batch_statistics(x)
        seen = seen._replace(var=seen.var * (count / (count - 1)))
        norm = jax.tree.map(lambda old, new: old + _MOMENTUM * (new - old), norm, seen)
    return norm
