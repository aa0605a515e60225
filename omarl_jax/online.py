"""Online training: an algorithm's update steps fed from a replay buffer that its own policy fills.

It makes the behaviour policies of the offline datasets and fine-tunes policies that were trained offline. Many
environments step in parallel; each time all have made one step, the learner makes one round.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from omarl_envs.base import MultiAgentEnv

from omarl_jax.collect import uniform_act
from omarl_jax.types import Algorithm, Metrics, Transition


class OnlineState(NamedTuple):
    """Everything that online training carries from one step to the next.

    Attributes:
        learner: the algorithm's state.
        env_state: of V environments, every leaf (V, …).
        observation: what they show, every leaf (V, …).
        buffer: a ring of transitions, every leaf (capacity // V, V, …).
        step: () int32, steps taken by each environment.
    """

    learner: Any
    env_state: Any
    observation: Any
    buffer: Transition
    step: chex.Array


class OnlineSettings(NamedTuple):
    """How experience is gathered.

    Attributes:
        n_envs: V, environments that step in parallel; also the environment steps for each learning round (the
            published particle runs make one round in 100 steps).
        capacity: transitions that the buffer holds.
        warmup: environment steps with uniformly random actions and without learning, at the start.
    """

    n_envs: int = 100
    capacity: int = 1_000_000
    warmup: int = 2_500


def init(algorithm: Algorithm, learner: Any, env: MultiAgentEnv, settings: OnlineSettings, key: chex.PRNGKey) -> OnlineState:
    """The state before the first step, for a learner that is fresh or was trained offline."""
    env_state, timestep = jax.vmap(env.reset)(jax.random.split(key, settings.n_envs))
    _, example = _interact(algorithm, env, learner.policy, env_state, timestep.observation, jnp.bool_(True), key)
    rows = max(settings.capacity // settings.n_envs, 1)
    buffer = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), example)
    return OnlineState(learner, env_state, timestep.observation, buffer, jnp.zeros((), jnp.int32))


def step(
    algorithm: Algorithm, env: MultiAgentEnv, settings: OnlineSettings, state: OnlineState, key: chex.PRNGKey
) -> tuple[OnlineState, Metrics]:
    """One step of every environment, then one learning round.

    Args:
        key: the run's key, the same in every step: randomness is `fold_in(key, step)`.
    """
    act_key, sample_key, update_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
    warming_up = state.step * settings.n_envs < settings.warmup
    (env_state, observation), new = _interact(
        algorithm, env, state.learner.policy, state.env_state, state.observation, warming_up, act_key
    )
    rows = jax.tree.leaves(state.buffer)[0].shape[0]
    buffer = jax.tree.map(lambda ring, x: ring.at[state.step % rows].set(x), state.buffer, new)

    batch_size = algorithm.needs.batch_size
    filled = jnp.minimum(state.step + 1, rows)
    row_key, env_key = jax.random.split(sample_key)
    row = jax.random.randint(row_key, (batch_size,), 0, filled)
    column = jax.random.randint(env_key, (batch_size,), 0, settings.n_envs)
    batch = jax.tree.map(lambda ring: ring[row, column], buffer)
    learner, metrics = algorithm.update(state.learner, batch, update_key)
    learner = jax.tree.map(lambda new, old: jnp.where(warming_up, old, new), learner, state.learner)
    return OnlineState(learner, env_state, observation, buffer, state.step + 1), metrics


def _interact(
    algorithm: Algorithm,
    env: MultiAgentEnv,
    policy: Any,
    env_state: Any,
    observation: Any,
    warming_up: chex.Array,
    key: chex.PRNGKey,
) -> tuple[tuple[Any, Any], Transition]:
    """Steps every environment, resets those whose episode has ended, and returns the (V,) transitions."""
    random_act = uniform_act(env.task_spec)

    def one(env_state: Any, view: Any, key: chex.PRNGKey) -> tuple[tuple[Any, Any], Transition]:
        act_key, random_key, reset_key = jax.random.split(key, 3)
        learned, _ = algorithm.act(policy, view.agents_view, view.action_mask, algorithm.carry, act_key, explore=True)
        random, _ = random_act(None, view.agents_view, view.action_mask, (), random_key)
        actions = jnp.where(warming_up, random, learned)
        next_env_state, timestep = env.step(env_state, actions)
        next_view, terminal = timestep.observation, timestep.discount == 0.0
        needs_state = algorithm.needs.state
        transition = Transition(
            obs=view.agents_view,
            actions=actions,
            rewards=timestep.reward,
            next_obs=next_view.agents_view,
            terminal=terminal,
            truncated=timestep.last() & ~terminal.all(),
            state=view.state if needs_state else None,
            next_state=next_view.state if needs_state else None,
            action_mask=view.action_mask,
            next_action_mask=next_view.action_mask,
        )
        fresh_state, fresh = env.reset(reset_key)
        after = (next_env_state, next_view), (fresh_state, fresh.observation)
        return jax.tree.map(lambda on, new: jnp.where(timestep.last(), new, on), *after), transition

    n_envs = jax.tree.leaves(observation)[0].shape[0]
    return jax.vmap(one)(env_state, observation, jax.random.split(key, n_envs))
