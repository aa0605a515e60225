"""Episodes played by learned policies, on the device."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from omarl_envs.base import MultiAgentEnv

from omarl_jax.collect import play
from omarl_jax.types import Act


def evaluate(
    env: MultiAgentEnv,
    act: Act,
    carry: Any,
    policy: Any,
    key: chex.PRNGKey,
    episodes: int,
    explore: bool = False,
) -> dict[str, chex.Array]:
    """Plays episodes with one policy.

    Returns:
        for each of the task's quantities its sum over each episode, (E,); `return` is always among them, in units of
        the task. And `length`, the steps of each episode.
    """

    def one(key: chex.PRNGKey) -> dict[str, chex.Array]:
        steps = play(env, act, carry, policy, key, explore)
        totals = {name: values.sum() for name, values in steps.metrics.items()}
        return totals | {"length": steps.valid.sum(dtype=jnp.float32)}

    return jax.vmap(one)(jax.random.split(key, episodes))
