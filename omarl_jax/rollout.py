"""Episodes on the device: the one loop behind evaluation, data collection and pictures.

Evaluation keeps only sums, so its memory does not grow with the length of an episode. Collection stores trajectories,
and plays them in groups of episodes whose steps fit into `BYTES_AT_ONCE`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.base import Journeys, MultiAgentEnv, Observation

from omarl_jax.data.dataset import EpisodeStore, concatenate
from omarl_jax.networks import without_padding
from omarl_jax.types import Act, TaskSpec, View

BYTES_AT_ONCE = 2**28
"""Device memory for what one group of episodes keeps: 256 MiB hold 30,000 episodes of 25 steps in particle/spread,
which fill any device, and a few hundred of 1,000 steps. The activations of the policies come on top."""

_JOURNEY = 10_000  # steps of a trajectory without resets


class Trajectory(NamedTuple):
    """One episode, or many with a leading (E,). T is the episode length of the task.

    Attributes:
        obs: (T + 1, N, O); the entry after the last valid step is the true last observation.
        state: (T + 1, S).
        action_mask: (T + 1, N, A), or None.
        actions: (T, N, A) or (T, N).
        rewards: (T, N).
        terminal: (T, N) bool.
        valid: (T,) bool, False after the end of an episode.
        totals: () float32 each: the sum of each quantity of the task over the valid steps, and `length`, their number.
        env_state: the states of the environment, every leaf (T + 1, …), or None unless requested.
    """

    obs: chex.Array
    state: chex.Array
    action_mask: chex.Array | None
    actions: chex.Array
    rewards: chex.Array
    terminal: chex.Array
    valid: chex.Array
    totals: dict[str, chex.Array]
    env_state: Any = None


class _Step(NamedTuple):
    """A step: (observation, env_state or None) before it, and its results."""

    before: tuple[Observation, Any]
    actions: chex.Array
    rewards: chex.Array
    terminal: chex.Array
    valid: chex.Array


def rollout(
    env: MultiAgentEnv,
    act: Act,
    carry: Any,
    policy: Any,
    key: chex.PRNGKey,
    explore: bool = False,
    env_states: bool = False,
) -> Trajectory:
    """Plays one episode, for `episode_length` steps; those after an early end are marked as not valid.

    Args:
        env: the task.
        act: the policy as a function, an `Algorithm.act` or `uniform_act`.
        carry: its first carry.
        policy: its parameters.
        key: randomness.
        explore: whether the policy explores.
        env_states: whether to return the states of the environment.
    """
    totals, steps, last = _episode(
        env, act, carry, policy, key, explore, lambda step: step if env_states else _without_env_state(step)
    )
    last = last if env_states else (last[0], None)
    views, states = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), steps.before, last)
    return Trajectory(
        obs=views.agents_view,
        state=views.state,
        action_mask=views.action_mask,
        actions=steps.actions,
        rewards=steps.rewards,
        terminal=steps.terminal,
        valid=steps.valid,
        totals=totals,
        env_state=states,
    )


def evaluate(
    env: MultiAgentEnv,
    act: Act,
    carry: Any,
    policy: Any,
    key: chex.PRNGKey,
    episodes: int,
    explore: bool = False,
    policies: int = 1,
) -> dict[str, chex.Array]:
    """Plays episodes with one policy, in groups that fit into `BYTES_AT_ONCE`; to be used under `jit` and `vmap`.

    Args:
        env: the task.
        act: the policy as a function, an `Algorithm.act` or `uniform_act`.
        carry: its first carry.
        policy: its parameters.
        key: randomness; episode e is the same whatever the size of the groups.
        episodes: E.
        explore: whether the policy explores.
        policies: how many policies a `vmap` evaluates together, and so share the memory.

    Returns:
        for each of the task's quantities its sum over each episode, (E,); `return` is always among them, in units of
        the task. And `length`, the steps of each episode.
    """

    def one(key: chex.PRNGKey) -> dict[str, chex.Array]:
        return _episode(env, act, carry, policy, key, explore, lambda step: None)[0]

    # While an episode goes on there are its state, its observation and their successors.
    now = jax.eval_shape(env.reset, key)
    keys = jax.random.split(key, episodes)
    size = _group_size(episodes, policies * 2 * _bytes((now, carry)))
    starts = jnp.arange(0, episodes, size)

    def group(start: chex.Array) -> dict[str, chex.Array]:
        return jax.vmap(one)(keys[(start + jnp.arange(size)) % episodes])

    totals = jax.lax.map(group, starts)
    return {name: values.reshape(-1)[:episodes] for name, values in totals.items()}


def uniform_act(spec: TaskSpec) -> Act:
    """The policy that takes every legal action with equal probability; it needs no parameters."""

    def act(policy: Any, view: View, carry: Any, key: chex.PRNGKey, explore: bool = False) -> tuple[Any, Any]:
        if spec.kind == "discrete":
            legal = jnp.asarray(view.action_mask)
            return jax.random.categorical(key, jnp.where(legal, 0.0, -jnp.inf)), carry
        actions = jax.random.uniform(key, (spec.n_agents, spec.action_dim), minval=-1.0, maxval=1.0)
        return without_padding(actions, spec), carry

    return act


def collect(
    env: MultiAgentEnv,
    act: Act,
    carry: Any,
    policies: Any,
    keys: Iterable[chex.PRNGKey],
    episodes: int,
    explore: bool = True,
) -> Iterator[tuple[EpisodeStore, dict[str, np.ndarray]]]:
    """Plays episodes, a dataset for each key, in groups that fit into `BYTES_AT_ONCE`, and brings them to the host.

    Args:
        env: the task.
        act: the behaviour, an `Algorithm.act` or `uniform_act`.
        carry: its first carry.
        policies: the policy of each episode: every leaf begins with (P,) and episode e is played by policy
            e P // episodes, so that equal shares follow each other. None for a policy without parameters.
        keys: randomness of each dataset.
        episodes: E, how many of each.
        explore: whether the behaviour explores.

    Yields:
        for each key the rows; and for each of the task's quantities, and `length`, its sum over each episode, (E,).
    """
    spec = env.task_spec
    n_policies = 0 if policies is None else jax.tree.leaves(policies)[0].shape[0]
    mapped = 0 if n_policies else None  # a single policy is mapped too: other products round otherwise

    def one(policy: Any, key: chex.PRNGKey) -> Trajectory:
        trajectory = rollout(env, act, carry, policy, key, explore)
        if spec.obs_from_state:
            return trajectory._replace(obs=None)
        return trajectory._replace(state=None) if spec.state_is_obs else trajectory

    many = jax.jit(jax.vmap(one, (mapped, 0)))
    first = policies if mapped is None else jax.tree.map(lambda x: x[0], policies)
    copied = () if mapped is None else first
    size = _group_size(episodes, _bytes((jax.eval_shape(one, first, jax.random.key(0)), copied)))

    def group(keys: chex.PRNGKey, start: int) -> tuple[EpisodeStore, dict[str, np.ndarray]]:
        numbers = np.arange(start, start + size) % episodes  # the last group wraps: one compilation
        chosen = policies if mapped is None else jax.tree.map(lambda x: x[numbers * n_policies // episodes], policies)
        played = jax.tree.map(lambda x: np.asarray(x)[: episodes - start], many(chosen, keys[numbers]))
        return _episode_store(played), played.totals

    for key in keys:
        of_episodes = jax.random.split(key, episodes)
        groups = [group(of_episodes, start) for start in range(0, episodes, size)]
        yield jax.tree.map(lambda *xs: concatenate(xs), *groups)


def travel(
    env: MultiAgentEnv, journeys: Journeys, keys: Iterable[chex.PRNGKey], size: int
) -> Iterator[tuple[EpisodeStore, dict[str, np.ndarray]]]:
    """Trajectories without resets, a dataset for each key, each stretch to a target stored as a truncated episode.

    Args:
        env: a task that does not end by itself, whose state is all observations.
        journeys: the team.
        keys: randomness of each dataset.
        size: steps of each, in trajectories of at most `_JOURNEY` that are made side by side, in the device's memory.

    Yields:
        for each key the rows; and `return`, (1,): what an episode earns at the mean reward of these rows.
    """
    n = -(-size // _JOURNEY)
    length = -(-size // n)

    def one(key: chex.PRNGKey) -> tuple[_Step, chex.Array, Observation]:
        reset_key, start_key, key = jax.random.split(key, 3)
        env_state, timestep = env.reset(reset_key)

        def step(loop: tuple, t: chex.Array) -> tuple[tuple, tuple[_Step, chex.Array]]:
            env_state, view, memory = loop
            actions, memory = journeys.act(view.agents_view, memory, jax.random.fold_in(key, t))
            seen, ends = journeys.note(memory)
            env_state, timestep = env.step(env_state, actions)
            rewards = timestep.reward if journeys.reward is None else journeys.reward(seen)
            before = (view._replace(agents_view=seen, state=None), None)
            kept = _Step(before, actions, rewards, timestep.discount == 0.0, jnp.bool_(True)), ends
            return (env_state, timestep.observation, memory), kept

        start = (env_state, timestep.observation, journeys.start(start_key))
        (_, last, _), (steps, ends) = jax.lax.scan(step, start, jnp.arange(length))
        return steps, ends.at[-1].set(True), last._replace(state=None)

    many = jax.jit(jax.vmap(one))
    for key in keys:
        rows = _stretches(jax.tree.map(np.asarray, many(jax.random.split(key, n))), journeys.reward is not None)
        earned = rows.rewards[~rows.closing].mean() * env.task_spec.episode_length
        yield rows, {"return": np.array([earned])}


def _stretches(played: tuple[_Step, np.ndarray, Observation], last_is_none: bool) -> EpisodeStore:
    """(E, T, …) steps, whether each ends a stretch, and the last observations (E, …) -> rows.

    The final-observation row of a stretch is added; or is its last step, where that is no transition.
    """
    steps, ends, last = played
    of = np.repeat(np.arange(ends.size), 1 if last_is_none else 1 + ends.reshape(-1))
    closing = np.append(False, of[1:] == of[:-1])
    if last_is_none:
        closing = ends.reshape(-1)
        alone = closing & np.append(True, closing[:-1])
        of, closing = of[~alone], closing[~alone]
    ending = np.append(closing[1:], False) & ~closing

    def flat(x: np.ndarray) -> np.ndarray:  # (E, T, …) -> (M, …), zero in final-observation rows
        x = x.reshape(-1, *x.shape[2:])[of]
        x[closing] = 0
        return x

    def seen(x: np.ndarray | None, last: np.ndarray | None) -> np.ndarray | None:
        if x is None or last is None:
            return None
        here = x.reshape(-1, *x.shape[2:])
        if last_is_none:
            return here[of]
        after = np.concatenate([x[:, 1:], last[:, None]], axis=1).reshape(here.shape)
        return np.where(closing.reshape(-1, *[1] * (here.ndim - 1)), after[of], here[of])

    view = steps.before[0]
    return EpisodeStore(
        obs=seen(view.agents_view, last.agents_view),
        actions=flat(steps.actions),
        rewards=flat(steps.rewards),
        terminal=flat(steps.terminal),
        truncated=ending,
        closing=closing,
        action_mask=seen(view.action_mask, last.action_mask),
    )


def _episode(
    env: MultiAgentEnv,
    act: Act,
    carry: Any,
    policy: Any,
    key: chex.PRNGKey,
    explore: bool,
    keep: Callable[[_Step], Any],
) -> tuple[dict[str, chex.Array], Any, tuple[Observation, Any]]:
    """One episode.

    Returns:
        the totals (see `Trajectory`); the results of `keep` for each step, every leaf (T, …); and the last observation
        and state of the environment.
    """
    reset_key, key = jax.random.split(key)
    env_state, timestep = env.reset(reset_key)

    def step(loop: tuple, t: chex.Array) -> tuple[tuple, Any]:
        env_state, view, carry, valid, totals = loop
        # Not `split`: that would store a key for each step of each episode.
        act_key = jax.random.fold_in(key, t)
        actions, carry = act(policy, View(view.agents_view, view.action_mask), carry, act_key, explore)
        next_env_state, timestep = env.step(env_state, actions)
        quantities = timestep.extras["metrics"] | {"length": jnp.float32(1.0)}
        totals = {name: total + jnp.where(valid, quantities[name], 0.0) for name, total in totals.items()}
        outputs = keep(_Step((view, env_state), actions, timestep.reward, timestep.discount == 0.0, valid))
        return (next_env_state, timestep.observation, carry, valid & ~timestep.last(), totals), outputs

    totals = dict.fromkeys((*timestep.extras["metrics"], "length"), jnp.float32(0.0))
    start = (env_state, timestep.observation, carry, jnp.bool_(True), totals)
    end, outputs = jax.lax.scan(step, start, jnp.arange(env.task_spec.episode_length))
    env_state, view, _, _, totals = end
    return totals, outputs, (view, env_state)


def _without_env_state(step: _Step) -> _Step:
    return step._replace(before=(step.before[0], None))


def _bytes(tree: Any) -> int:
    """The memory of the arrays of a tree, or of arrays of these shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _group_size(episodes: int, bytes_each: int) -> int:
    """Episodes of each group: groups are of about equal size, and none takes more than `BYTES_AT_ONCE`."""
    most = max(1, BYTES_AT_ONCE // max(bytes_each, 1))
    return -(-episodes // -(-episodes // most))


def _episode_store(played: Trajectory) -> EpisodeStore:
    """(E, T, …) trajectories -> rows, each episode with its final-observation row, without steps after an early end."""
    n_episodes, length = played.valid.shape
    transition = np.concatenate([played.valid, np.zeros((n_episodes, 1), bool)], axis=1)  # (E, T + 1)
    stored = transition.copy()
    stored[np.arange(n_episodes), played.valid.sum(axis=1)] = True  # the final observation

    def padded(x: np.ndarray) -> np.ndarray:  # (E, T, …) -> (M, …), zero in final-observation rows
        x = np.concatenate([x, np.zeros_like(x[:, :1])], axis=1)
        x[~transition] = 0
        return x[stored]

    last = np.zeros((n_episodes, length), bool)
    last[np.arange(n_episodes), played.valid.sum(axis=1) - 1] = True
    return EpisodeStore(
        obs=None if played.obs is None else played.obs[stored],
        actions=padded(played.actions),
        rewards=padded(played.rewards),
        terminal=padded(played.terminal),
        truncated=padded(last & ~played.terminal.all(axis=-1)),
        closing=~transition[stored],
        state=None if played.state is None else played.state[stored],
        action_mask=None if played.action_mask is None else played.action_mask[stored],
    )
