"""Networks that all agents share, and mixers of their values, in NumPy: for arrays that may be complex."""

from typing import Any

import jax
import numpy as np


def mlp(params: Any, x: np.ndarray) -> np.ndarray:
    layers = [params[f"layer_{i}"] for i in range(sum(name.startswith("layer") for name in params))]
    for i, layer in enumerate(layers):
        x = (np.maximum(x, 0) if i else x) @ layer["kernel"] + layer["bias"]
    return x


def of_agents(params: Any, *inputs: np.ndarray) -> np.ndarray:
    """One network for all agents, which see their one-hot number last: (…, N, inputs) -> (…, N, outputs)."""
    n = inputs[0].shape[-2]
    ids = np.broadcast_to(np.eye(n), (*inputs[-1].shape[:-1], n))
    inputs = tuple(np.broadcast_to(x, (*ids.shape[:-1], x.shape[-1])) for x in inputs)
    return mlp(params, np.concatenate([*inputs, ids], axis=-1))


def q_values(params: Any, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
    if actions.ndim == 2:
        return np.take_along_axis(of_agents(params, obs), actions[..., None], axis=-1)[..., 0]
    first_head = jax.tree.map(lambda x: x[0], params)
    return of_agents(first_head, obs, actions)[..., 0]


def mixing(params: Any, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """w (B, N) and b (B,). The absolute value is written so that imaginary steps pass it."""
    hidden = np.maximum(state @ params["layer_0"]["kernel"] + params["layer_0"]["bias"], 0)
    w, b = (hidden @ params[name]["kernel"] + params[name]["bias"] for name in ("weights", "bias"))
    return w * np.sign(w.real), b[:, 0]
