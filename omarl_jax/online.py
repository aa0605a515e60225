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
from omarl_jax.errors import UserError
from omarl_jax.types import Algorithm, Metrics, Transition


class OnlineState(NamedTuple):
    """Everything that online training carries from one step to the next.

    Attributes:
        learner: the algorithm's state.
        env_state: of V environments, every leaf (V, …).
        observation: what they show, every leaf (V, …).
        buffer: a ring of transitions, every leaf (capacity, …); what an environment step adds stands together.
    """

    learner: Any
    env_state: Any
    observation: Any
    buffer: Transition


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


def init(
    algorithm: Algorithm, learner: Any, env: MultiAgentEnv, settings: OnlineSettings, key: chex.PRNGKey
) -> OnlineState:
    """The state before the first step, for a learner that is fresh or was trained offline.

    Raises:
        UserError: if the method needs more than single transitions.
    """
    if algorithm.needs.next_actions or algorithm.needs.batches > 1:
        raise UserError("This method cannot learn online: it needs more than single transitions.")
    env_state, timestep = jax.vmap(env.reset)(jax.random.split(key, settings.n_envs))
    _, example, _ = _interact(algorithm, env, learner.policy, env_state, timestep.observation, jnp.bool_(True), key)
    rows = max(settings.capacity // settings.n_envs, 1) * settings.n_envs
    buffer = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), example)
    return OnlineState(learner, env_state, timestep.observation, buffer)


def step(
    algorithm: Algorithm,
    env: MultiAgentEnv,
    settings: OnlineSettings,
    state: OnlineState,
    step: chex.Array,
    key: chex.PRNGKey,
) -> tuple[OnlineState, Metrics]:
    """One step of every environment, then one learning round.

    Args:
        step: () int32, steps that each environment has made. All runs of a `vmap` must share it: then the buffer is
            written in place.
        key: the run's key, the same in every step: randomness is `fold_in(key, step)`.

    Returns:
        the next state; and metrics: those of the method, and the task's quantities, means over environments.
    """
    act_key, sample_key, update_key = jax.random.split(jax.random.fold_in(key, step), 3)
    warming_up = step * settings.n_envs < settings.warmup
    (env_state, observation), new, played = _interact(
        algorithm, env, state.learner.policy, state.env_state, state.observation, warming_up, act_key
    )
    capacity = jax.tree.leaves(state.buffer)[0].shape[0]
    start = step * settings.n_envs % capacity
    write = lambda ring, x: jax.lax.dynamic_update_slice_in_dim(ring, x, start, 0)  # noqa: E731
    buffer = jax.tree.map(write, state.buffer, new)
    filled = jnp.minimum((step + 1) * settings.n_envs, capacity)
    drawn = jax.random.randint(sample_key, (algorithm.needs.batch_size,), 0, filled)
    batch = jax.tree.map(lambda ring: ring[drawn], buffer)
    learner, metrics = algorithm.update(state.learner, batch, update_key)
    learner = jax.tree.map(lambda new, old: jnp.where(warming_up, old, new), learner, state.learner)
    metrics |= {name: values.mean() for name, values in played.items()}
    return OnlineState(learner, env_state, observation, buffer), metrics


def _interact(
    algorithm: Algorithm,
    env: MultiAgentEnv,
    policy: Any,
    env_state: Any,
    observation: Any,
    warming_up: chex.Array,
    key: chex.PRNGKey,
) -> tuple[tuple[Any, Any], Transition, Metrics]:
    """Steps every environment, resets those whose episode has ended; returns (V,) transitions and task metrics too."""
    random_act = uniform_act(env.task_spec)

    def one(env_state: Any, view: Any, key: chex.PRNGKey) -> tuple[tuple[Any, Any], Transition, Metrics]:
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
        choices = (next_env_state, next_view), (fresh_state, fresh.observation)
        after = jax.tree.map(lambda on, new: jnp.where(timestep.last(), new, on), *choices)
        return after, transition, timestep.extras["metrics"]

    n_envs = jax.tree.leaves(observation)[0].shape[0]
    return jax.vmap(one)(env_state, observation, jax.random.split(key, n_envs))
