"""What the engine adds to every method: checks of shapes, and inputs standardised with statistics of the data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from omarl_jax.errors import UserError
from omarl_jax.types import Algorithm, Context, Metrics, Stats, TaskSpec, Transition, View


def build(factory: Callable[[Any, TaskSpec], Algorithm], config: Any, spec: TaskSpec) -> Algorithm:
    """Makes a method whose config may ask for `input_norm` "dataset", and which checks the shapes that it is given.

    Args:
        factory: (config, spec) -> `Algorithm`, from a method's file.
        config: hyperparameters.
        spec: the task.
    """
    algorithm = factory(config, spec)
    if getattr(config, "input_norm", None) == "dataset":
        algorithm = _standardised(algorithm)
    return _checked(algorithm, spec)


class StandardisedPolicy(NamedTuple):
    """A policy, and the statistics by which its observations are standardised."""

    policy: Any
    stats: Stats


class StandardisedState(NamedTuple):
    """The state of a method, and the statistics by which its observations are standardised."""

    learner: Any
    stats: Stats

    @property
    def policy(self) -> StandardisedPolicy:
        """What acting and export need."""
        return StandardisedPolicy(self.learner.policy, self.stats)


def _standardised(algorithm: Algorithm) -> Algorithm:
    def scale(obs: chex.Array, stats: Stats) -> chex.Array:  # (…, N, O)
        return (obs - stats.obs_mean) / stats.obs_std

    def scaled(batch: Transition, stats: Stats) -> Transition:
        return batch._replace(obs=scale(batch.obs, stats), next_obs=scale(batch.next_obs, stats))

    def init(key: chex.PRNGKey, context: Context) -> StandardisedState:
        # Parts learned from a little less of the data. What they see observations by serves for the method, too, which
        # compares itself with them.
        stats, parts = context.stats, {}
        for name, part in context.parts.items():
            stats, parts[name] = (part.stats, part.policy) if isinstance(part, StandardisedPolicy) else (stats, part)
        return StandardisedState(algorithm.init(key, context._replace(stats=stats, parts=parts)), stats)

    def update(state: StandardisedState, batch: Transition, key: chex.PRNGKey) -> tuple[StandardisedState, Metrics]:
        learner, metrics = algorithm.update(state.learner, scaled(batch, state.stats), key)
        return state._replace(learner=learner), metrics

    def act(
        policy: StandardisedPolicy, view: View, carry: Any, key: chex.PRNGKey, explore: bool = False
    ) -> tuple[chex.Array, Any]:
        view = view._replace(obs=scale(view.obs, policy.stats))
        return algorithm.act(policy.policy, view, carry, key, explore)

    def values(state: StandardisedState, batch: Transition) -> chex.Array:
        assert algorithm.values is not None
        return algorithm.values(state.learner, scaled(batch, state.stats))

    def return_quantiles(policy: StandardisedPolicy, view: View) -> tuple[chex.Array, chex.Array]:
        assert algorithm.return_quantiles is not None
        return algorithm.return_quantiles(policy.policy, view._replace(obs=scale(view.obs, policy.stats)))

    return algorithm._replace(
        init=init,
        update=update,
        act=act,
        values=None if algorithm.values is None else values,
        return_quantiles=None if algorithm.return_quantiles is None else return_quantiles,
    )


def _checked(algorithm: Algorithm, spec: TaskSpec) -> Algorithm:
    """Asserts at the entry, while a program is traced, that arrays have the shapes of the task."""
    n, needs = spec.n_agents, algorithm.needs
    time = () if needs.length is None else (needs.length,)
    obs, mask, state_size = (n, spec.obs_dim), (n, spec.action_dim), (spec.state_dim,)
    actions = (n,) if spec.kind == "discrete" else mask
    fields = {
        "obs": obs,
        "actions": actions,
        "rewards": (n,),
        "next_obs": obs,
        "terminal": (n,),
        "truncated": (),
        "next_actions": actions,
        "state": state_size,
        "next_state": state_size,
        "returns_to_go": (n,),
        "action_mask": mask,
        "next_action_mask": mask,
        "valid": (),
    }

    def init(key: chex.PRNGKey, context: Context) -> Any:
        if missing := needs.parts.keys() - context.parts.keys():
            raise UserError(f"This method starts from a policy that is trained before: {', '.join(sorted(missing))}.")
        return algorithm.init(key, context)

    def update(state: Any, batch: Transition, key: chex.PRNGKey) -> tuple[Any, Metrics]:
        for name, shape in fields.items():
            if (array := getattr(batch, name)) is not None:
                chex.assert_shape(array, (None, *time, *shape), custom_message=f"the batch's {name}")
        state, metrics = algorithm.update(state, batch, key)
        for name, metric in metrics.items():
            shape = (n,) if jnp.ndim(metric) else ()
            chex.assert_shape(metric, shape, custom_message=f"the metric {name}")
        return state, metrics

    def act(policy: Any, view: View, carry: Any, key: chex.PRNGKey, explore: bool = False) -> tuple[chex.Array, Any]:
        view = View(jnp.asarray(view.obs), view.action_mask)
        chex.assert_shape(view.obs, obs, custom_message="observations that act is given")
        taken, carry = algorithm.act(policy, view, carry, key, explore)
        chex.assert_shape(taken, actions)
        return taken, carry

    return algorithm._replace(init=init, update=update, act=act)
