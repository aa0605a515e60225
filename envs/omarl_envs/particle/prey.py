"""The prey of tag and world: a small frozen network, bundled or read from a file, or a learning agent.

The prey of OMAR's datasets is not part of this package. It lies beside those datasets as `pretrained_adv_model.pt`, a
pickle of PyTorch, so read it only if you trust its source. This makes a file for `prey=` of it:

    content = torch.load("pretrained_adv_model.pt", map_location="cpu", weights_only=False)
    net = {name: tensor.numpy() for name, tensor in content["agent_params"][-1]["policy"].items()}
    layers = {f"w{i}": net[f"fc{i}.weight"].T for i in (1, 2, 3)} | {f"b{i}": net[f"fc{i}.bias"] for i in (1, 2, 3)}
    norm = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    np.savez("released.npz", **layers, **{f"bn_{ours}": net[f"in_fn.{theirs}"] for ours, theirs in norm.items()})
"""

import hashlib
import pathlib
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

_BATCH_NORM_EPSILON = 1e-5


class Prey(NamedTuple):
    """A policy of three layers (`MLPNetwork` of OMAR's code): batch norm, 64, ReLU, 64, ReLU, 2, tanh.

    Attributes:
        bn_scale, bn_bias, bn_mean, bn_var: (O,) the input normalisation, with its running statistics.
        w1, b1, w2, b2, w3, b3: the layers; a weight has the shape (inputs, outputs).
    """

    bn_scale: Any
    bn_bias: Any
    bn_mean: Any
    bn_var: Any
    w1: Any
    b1: Any
    w2: Any
    b2: Any
    w3: Any
    b3: Any

    def act(self, obs: chex.Array) -> chex.Array:
        """(…, O) observations -> (…, 2) forces in [-1, 1]."""
        # The normalisation is a fixed affine map, so it is folded into the first layer.
        scale = self.bn_scale / np.sqrt(self.bn_var + _BATCH_NORM_EPSILON)
        w1 = scale[:, None] * self.w1
        b1 = self.b1 + (self.bn_bias - self.bn_mean * scale) @ self.w1
        dot = partial(jnp.dot, precision="highest")  # it is part of the task: accelerators must not round it
        hidden = jax.nn.relu(dot(obs, w1) + b1)
        hidden = jax.nn.relu(dot(hidden, self.w2) + self.b2)
        return jnp.tanh(dot(hidden, self.w3) + self.b3)

    @property
    def digest(self) -> str:
        """The SHA-256 of the numbers, which identifies a prey."""
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in self)).hexdigest()


def load_prey(path: str | pathlib.Path, obs_dim: int) -> Prey:
    """Reads a prey from an `.npz` with the arrays named as in `Prey`.

    Args:
        path: the file.
        obs_dim: the length of the prey's observation, 14 in tag and 22 in world.

    Raises:
        TypeError: if it is no path; a number would be an open file's.
        ValueError: if the file is not such an archive, or the network does not fit or has impossible numbers.
    """
    if not isinstance(path, str | pathlib.Path):
        raise TypeError(f"prey must be a name or the path of a file, not {path!r}.")
    try:
        # Opened here, because NumPy leaves a damaged archive open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            prey = Prey(**{name: archive[name].astype(np.float32) for name in Prey._fields})
    except FileNotFoundError:
        raise ValueError(f"There is no prey file '{path}'.") from None
    except Exception as error:  # a damaged archive can raise nearly anything
        names = ", ".join(Prey._fields)
        raise ValueError(f"'{path}' is not a prey network, an .npz with the arrays {names}.") from error
    hidden = prey.b1.size
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(("bn_scale", "bn_bias", "bn_mean", "bn_var"), (obs_dim,))
    expected |= {"w1": (obs_dim, hidden), "w2": (hidden, hidden), "w3": (hidden, 2)}
    expected |= {"b1": (hidden,), "b2": (hidden,), "b3": (2,)}
    for name, array in prey._asdict().items():
        if array.shape != expected[name]:
            fit = f"'{name}' has shape {array.shape}, not {expected[name]}"
            raise ValueError(f"The prey in '{path}' does not fit: {fit}.")
        if not np.isfinite(array).all() or (name == "bn_var" and (array < 0.0).any()):
            raise ValueError(f"The prey in '{path}' is damaged: '{name}' has impossible numbers.")
    return prey
