"""Online training: an algorithm's update steps fed from a replay buffer that its own policy fills.

It makes the behaviour policies of the offline datasets. Many environments step in parallel; after every step of all of
them the learner makes one update.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from omarl_envs.base import MultiAgentEnv

from omarl_jax.data.dataset import ObsRule
from omarl_jax.errors import UserError
from omarl_jax.rollout import uniform_act
from omarl_jax.types import Act, Algorithm, Metrics, Transition, View


class OnlineState(NamedTuple):
    """The state of online training.

    Attributes:
        learner: the algorithm's state.
        env_state: of V environments, every leaf (V, …).
        observation: their current observations, every leaf (V, …).
        buffer: a ring of transitions, every leaf (capacity, …); what an environment step adds stands together. It holds
            no observations where they follow from the state.
    """

    learner: Any
    env_state: Any
    observation: Any
    buffer: Transition


class OnlineSettings(NamedTuple):
    """How experience is gathered.

    Attributes:
        n_envs: V, environments that step in parallel; also the environment steps for each update (the published
            particle runs make one update in 100 steps).
        capacity: transitions that the buffer holds, in steps of all environments.
        warmup: environment steps with uniformly random actions and without learning, at the start; rounded up to steps
            of all environments.
    """

    n_envs: int = 100
    capacity: int = 1_000_000
    warmup: int = 2_500

    @property
    def warmup_steps(self) -> int:
        """Steps that each environment makes before the first update."""
        return -(-self.warmup // self.n_envs)


def init(
    algorithm: Algorithm, learner: Any, env: MultiAgentEnv, settings: OnlineSettings, key: chex.PRNGKey
) -> OnlineState:
    """The state after the warm-up, for a new learner or one that was trained offline.

    Args:
        algorithm: the method.
        learner: its state.
        env: the task.
        settings: how experience is gathered.
        key: randomness.

    Raises:
        UserError: if the method needs more than single transitions, does not explore, or its policy has a memory.
    """
    if algorithm.needs.next_actions or algorithm.needs.returns_to_go or algorithm.needs.length is not None:
        raise UserError("This method cannot learn online: it needs more than single transitions.")
    if not algorithm.explores:
        raise UserError("This method cannot learn online: it does not explore.")
    if jax.tree.leaves(algorithm.carry):
        raise UserError("This method cannot learn online: its policy has a memory, which transitions do not hold.")
    random_step = functools.partial(_interact, algorithm, env, uniform_act(env.task_spec), None)

    reset_key, key = jax.random.split(key)
    env_state, timestep = jax.vmap(env.reset)(jax.random.split(reset_key, settings.n_envs))
    _, example, _ = jax.eval_shape(random_step, env_state, timestep.observation, key)
    rows = max(settings.capacity // settings.n_envs, 1) * settings.n_envs
    buffer = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), example)

    def step(state: OnlineState, number: chex.Array) -> tuple[OnlineState, None]:
        after, new, _ = random_step(state.env_state, state.observation, jax.random.fold_in(key, number))
        return OnlineState(learner, *after, _written(state.buffer, new, number)), None

    state = OnlineState(learner, env_state, timestep.observation, buffer)
    return jax.lax.scan(step, state, jnp.arange(settings.warmup_steps))[0]


def step(
    algorithm: Algorithm,
    env: MultiAgentEnv,
    settings: OnlineSettings,
    state: OnlineState,
    step: chex.Array,
    key: chex.PRNGKey,
) -> tuple[OnlineState, Metrics]:
    """One step of every environment, then one update.

    Args:
        step: () int32, steps that each environment has made since the warm-up. All runs of a `vmap` must share it: then
            the buffer is written in place.
        key: the run's key, the same in every step: randomness is `fold_in(key, step)`.

    Returns:
        the next state; and the metrics of the method and the task, means over environments.
    """
    act_key, sample_key, update_key = jax.random.split(jax.random.fold_in(key, step), 3)
    policy = state.learner.policy
    after, new, played = _interact(algorithm, env, algorithm.act, policy, state.env_state, state.observation, act_key)
    number = settings.warmup_steps + step
    buffer = _written(state.buffer, new, number)
    filled = jnp.minimum((number + 1) * settings.n_envs, _capacity(buffer))
    drawn = jax.random.randint(sample_key, (algorithm.needs.batch_size,), 0, filled)
    batch = _with_obs(jax.tree.map(lambda ring: ring[drawn], buffer), env, algorithm)
    learner, metrics = algorithm.update(state.learner, batch, update_key)
    metrics |= {name: values.mean() for name, values in played.items()}
    return OnlineState(learner, *after, buffer), metrics


def _capacity(buffer: Transition) -> int:
    return int(buffer.truncated.shape[0])


def _written(buffer: Transition, new: Transition, step: chex.Array) -> Transition:
    """The ring with the (V, …) transitions of a step."""
    start = step * new.truncated.shape[0] % _capacity(buffer)
    return jax.tree.map(lambda ring, x: jax.lax.dynamic_update_slice_in_dim(ring, x, start, 0), buffer, new)


def _with_obs(batch: Transition, env: MultiAgentEnv, algorithm: Algorithm) -> Transition:
    """A batch with the observations that follow from its states."""
    rule = ObsRule.of(env.task_spec)
    if rule is None:
        return batch
    batch = batch._replace(obs=rule(batch.state), next_obs=rule(batch.next_state))
    return batch if algorithm.needs.state else batch._replace(state=None, next_state=None)


def _interact(
    algorithm: Algorithm,
    env: MultiAgentEnv,
    act: Act,
    policy: Any,
    env_state: Any,
    observation: Any,
    key: chex.PRNGKey,
) -> tuple[tuple[Any, Any], Transition, Metrics]:
    """Steps every environment, resets those whose episode has ended; returns (V,) transitions and task metrics too."""

    def one(env_state: Any, view: Any, key: chex.PRNGKey) -> tuple[tuple[Any, Any], Transition, Metrics]:
        act_key, reset_key = jax.random.split(key)
        actions, _ = act(policy, View(view.agents_view, view.action_mask), algorithm.carry, act_key, explore=True)
        next_env_state, timestep = env.step(env_state, actions)
        next_view, terminal = timestep.observation, timestep.discount == 0.0
        derived = bool(env.task_spec.obs_from_state)
        needs_state = algorithm.needs.state or derived
        transition = Transition(
            obs=None if derived else view.agents_view,
            actions=actions,
            rewards=timestep.reward,
            next_obs=None if derived else next_view.agents_view,
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
