"""Episodes played on the device: the one loop behind evaluation, data collection and rendering."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.base import MultiAgentEnv

from omarl_jax.data.dataset import Rows, joined
from omarl_jax.types import Act, TaskSpec

_EPISODES_AT_ONCE = 4_000  # enough to fill a device; more only costs memory


class Steps(NamedTuple):
    """One episode, or many with a leading (E,). T is the episode length of the task.

    Attributes:
        obs: (T + 1, N, O); the row after the last valid step is the true last observation.
        state: (T + 1, S).
        action_mask: (T + 1, N, A), or None.
        actions: (T, N, A) or (T, N).
        rewards: (T, N).
        terminal: (T, N) bool.
        valid: (T,) bool, False after the end of an episode.
        metrics: the task's quantities, (T,) each, zero where not valid.
        env_state: the states of the environment, every leaf (T + 1, …).
    """

    obs: chex.Array
    state: chex.Array
    action_mask: chex.Array | None
    actions: chex.Array
    rewards: chex.Array
    terminal: chex.Array
    valid: chex.Array
    metrics: dict[str, chex.Array]
    env_state: Any


def play(env: MultiAgentEnv, act: Act, carry: Any, policy: Any, key: chex.PRNGKey, explore: bool = False) -> Steps:
    """Plays one episode, for `episode_length` steps; those after an early end are marked as not valid.

    What the caller does not use of the result is never computed, so evaluation costs no memory.
    """
    reset_key, key = jax.random.split(key)
    env_state, timestep = env.reset(reset_key)

    def step(loop: tuple, key: chex.PRNGKey) -> tuple[tuple, tuple]:
        env_state, view, carry, valid = loop
        actions, carry = act(policy, view.agents_view, view.action_mask, carry, key, explore)
        next_env_state, timestep = env.step(env_state, actions)
        metrics = {name: jnp.where(valid, value, 0.0) for name, value in timestep.extras["metrics"].items()}
        out = (view, env_state, actions, timestep.reward, timestep.discount == 0.0, valid, metrics)
        return (next_env_state, timestep.observation, carry, valid & ~timestep.last()), out

    start = (env_state, timestep.observation, carry, jnp.bool_(True))
    keys = jax.random.split(key, env.task_spec.episode_length)
    (env_state, last, _, _), (views, env_states, actions, rewards, terminal, valid, metrics) = jax.lax.scan(
        step, start, keys
    )
    views, env_states = jax.tree.map(
        lambda many, one: jnp.concatenate([many, one[None]]), (views, env_states), (last, env_state)
    )
    return Steps(
        views.agents_view, views.state, views.action_mask, actions, rewards, terminal, valid, metrics, env_states
    )


def uniform_act(spec: TaskSpec) -> Act:
    """The policy that takes every legal action with equal probability; it needs no parameters."""

    def act(policy: Any, obs: Any, mask: Any, carry: Any, key: chex.PRNGKey, explore: bool = False) -> tuple[Any, Any]:
        if spec.kind == "discrete":
            return jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf)), carry
        return jax.random.uniform(key, (spec.n_agents, spec.action_dim), minval=-1.0, maxval=1.0), carry

    return act


def collect_rows(
    env: MultiAgentEnv,
    act: Act,
    carry: Any,
    policies: Any,
    keys: Iterable[chex.PRNGKey],
    episodes: int,
    explore: bool = True,
) -> Iterator[tuple[Rows, dict[str, np.ndarray]]]:
    """Plays episodes, as often as there are keys, and lays them out as the rows of datasets, on the host.

    Args:
        env: the task.
        act: the behaviour, an `Algorithm.act` or `uniform_act`.
        carry: its first carry.
        policies: the policy of each episode: every leaf begins with (P,) and episode e is played by policy
            e P // episodes, so that equal shares follow each other. None for a policy without parameters.
        keys: randomness of each dataset.
        episodes: how many of each.
        explore: whether the behaviour explores.

    Yields:
        for each key the rows; and for each of the task's quantities its sum over each episode, (E,).
    """
    spec = env.task_spec

    def one(policy: Any, key: chex.PRNGKey) -> Steps:
        return play(env, act, carry, policy, key, explore)

    @jax.jit
    def many(policies: Any, keys: chex.PRNGKey) -> Steps:
        steps = jax.vmap(one, (None if policies is None else 0, 0))(policies, keys)
        stored_state = None if spec.state_is_obs else steps.state
        totals = {name: values.sum(axis=1) for name, values in steps.metrics.items()}
        return steps._replace(state=stored_state, metrics=totals, env_state=None)

    n_policies = 0 if policies is None else jax.tree.leaves(policies)[0].shape[0]
    at_once = min(episodes, _EPISODES_AT_ONCE)

    def part(keys: chex.PRNGKey, start: int) -> tuple[Rows, dict[str, np.ndarray]]:
        numbers = np.arange(start, start + at_once) % episodes  # the last part wraps: one compilation
        chosen = None if policies is None else jax.tree.map(lambda x: x[numbers * n_policies // episodes], policies)
        steps = jax.tree.map(lambda x: np.asarray(x)[: episodes - start], many(chosen, keys[numbers]))
        return _rows(steps), steps.metrics

    for key in keys:
        of_episodes = jax.random.split(key, episodes)
        parts = [part(of_episodes, start) for start in range(0, episodes, at_once)]
        yield jax.tree.map(lambda *xs: joined(xs), *parts)


def _rows(steps: Steps) -> Rows:
    """(E, T, …) steps -> rows, each episode with its closing row, steps after an early end left out."""
    n_episodes, length = steps.valid.shape
    taken = np.concatenate([steps.valid, np.zeros((n_episodes, 1), bool)], axis=1)
    taken[np.arange(n_episodes), steps.valid.sum(axis=1)] = True  # the closing row
    transition = np.concatenate([steps.valid, np.zeros((n_episodes, 1), bool)], axis=1)

    def padded(x: np.ndarray) -> np.ndarray:  # (E, T, …) -> (M, …), closing rows zero
        x = np.concatenate([x, np.zeros_like(x[:, :1])], axis=1)
        x[~transition] = 0
        return x[taken]

    last = np.zeros((n_episodes, length), bool)
    last[np.arange(n_episodes), steps.valid.sum(axis=1) - 1] = True
    return Rows(
        obs=steps.obs[taken],
        actions=padded(steps.actions),
        rewards=padded(steps.rewards),
        terminal=padded(steps.terminal),
        truncated=padded(last & ~steps.terminal.all(axis=-1)),
        closing=~transition[taken],
        state=None if steps.state is None else steps.state[taken],
        action_mask=None if steps.action_mask is None else steps.action_mask[taken],
    )
