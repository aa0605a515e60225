"""The types that all parts share, and the legend of shapes.

Shapes are written with these letters, and the agent axis stands right after batch or time:

    B  batch        T  time          N  agents       O  observation      S  state
    A  dimensions of a continuous action, or number of discrete actions
    K  candidates   R  runs (hyperparameters x seeds)                    E  episodes
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp
from omarl_envs.spec import ScoreReference, TaskSpec

__all__ = [
    "SATURATED",
    "Algorithm",
    "Context",
    "Metrics",
    "Needs",
    "Part",
    "ScoreReference",
    "Stats",
    "TaskSpec",
    "Transition",
    "View",
    "config",
]

SATURATED = 0.99  # |a| beyond which a squashed action has hardly a gradient left
Metrics = dict[str, chex.Array]
_NONE: Mapping[str, Any] = MappingProxyType({})
_C = TypeVar("_C")


class Transition(NamedTuple):
    """A batch of transitions. Methods that ask for windows get a time axis after the batch axis: (B, T, N, …).

    Fields that the method does not request or the task does not provide are None.

    Attributes:
        obs: (B, N, O) float32.
        actions: (B, N, A) float32 in [-1, 1], or (B, N) int32.
        rewards: (B, N) float32, in units of the task.
        next_obs: (B, N, O) float32, the true last observation where an episode ends.
        terminal: (B, N) bool, the task ended for the agent: no bootstrap.
        truncated: (B,) bool, the episode was cut off here: bootstrap all the same.
        next_actions: (B, N, A) or (B, N), the behaviour's next actions (for SARSA-type methods); 0 where the task has
            ended for all.
        state, next_state: (B, S) float32, the global state.
        returns_to_go: (B, N) float32, the undiscounted sum of rewards from this step to the end of its episode.
        action_mask, next_action_mask: (B, N, A) bool, legal actions of discrete tasks.
        valid: (B, T) bool, False for the steps of a window after the end of its episode.
    """

    obs: chex.Array
    actions: chex.Array
    rewards: chex.Array
    next_obs: chex.Array
    terminal: chex.Array
    truncated: chex.Array
    next_actions: chex.Array | None = None
    state: chex.Array | None = None
    next_state: chex.Array | None = None
    returns_to_go: chex.Array | None = None
    action_mask: chex.Array | None = None
    next_action_mask: chex.Array | None = None
    valid: chex.Array | None = None


class Stats(NamedTuple):
    """Statistics of the data that a run learns from.

    Attributes:
        obs_mean: (N, O) float32.
        obs_std: (N, O) float32, at least 1e-3.
    """

    obs_mean: chex.Array
    obs_std: chex.Array

    @staticmethod
    def unknown(spec: TaskSpec) -> "Stats":
        """Mean 0 and standard deviation 1, for learners that meet their data later."""
        shape = (spec.n_agents, spec.obs_dim)
        return Stats(jnp.zeros(shape), jnp.ones(shape))


class Context(NamedTuple):
    """What a method knows when it starts.

    Attributes:
        stats: statistics of the data.
        updates: () int32, the updates that the run will make, for schedules; a million where that is not known.
        parts: the frozen policy of each part that the method needs, as its `State.policy` was at the end of training.
    """

    stats: Stats
    updates: chex.Array | int = 1_000_000
    parts: Mapping[str, Any] = {}  # a mapping that JAX knows; nobody writes into it


class Part(NamedTuple):
    """A policy that is trained before, on the same data, and then frozen.

    Attributes:
        algorithm: the method that trains it.
        hyperparameters: those that differ from the method's defaults.
        updates: the most that it is trained for.
        metric: the metric of the method by which it is chosen: the policy with the lowest on held-out episodes.
    """

    algorithm: str
    hyperparameters: Mapping[str, Any]
    updates: int
    metric: str = "policy_loss"


class Needs(NamedTuple):
    """The data that a method needs, decided before anything is compiled.

    Attributes:
        batch_size: B, transitions (or windows) a batch.
        length: T, consecutive steps of a window; None asks for single transitions without a time axis.
        next_actions: whether transitions must come with the action that followed.
        state: whether transitions must come with the global state.
        returns_to_go: whether transitions must come with their returns to go.
        parts: policies that are trained before, by the name under which `Context.parts` holds them.
    """

    batch_size: int
    length: int | None = None
    next_actions: bool = False
    state: bool = False
    returns_to_go: bool = False
    parts: Mapping[str, Part] = _NONE


class View(NamedTuple):
    """What agents see when they act.

    Attributes:
        obs: (N, O) float32.
        action_mask: (N, A) bool, legal actions; None in continuous tasks.
    """

    obs: chex.Array
    action_mask: chex.Array | None = None


class Init(Protocol):
    def __call__(self, key: chex.PRNGKey, context: Context) -> Any: ...


class Update(Protocol):
    def __call__(self, state: Any, batch: Transition, key: chex.PRNGKey) -> tuple[Any, Metrics]: ...


class Act(Protocol):
    def __call__(
        self, policy: Any, view: View, carry: Any, key: chex.PRNGKey, /, explore: bool = False
    ) -> tuple[chex.Array, Any]: ...


class ReturnQuantiles(Protocol):
    def __call__(self, policy: Any, view: View, /) -> tuple[chex.Array, chex.Array]: ...


class Algorithm(NamedTuple):
    """A learning method as pure functions of arrays, made by the factory in its file from a config and a `TaskSpec`.

    Attributes:
        init: (key, context) -> state. Parameters, targets, optimiser states and statistics, all in one NamedTuple whose
            field `policy` holds everything that acting and export need.
        update: (state, batch, key) -> state, metrics. One step of every network. Metrics are () arrays, or (N,) with
            a number for each agent.
        act: (policy, view, carry, key, explore) -> actions (N, …), carry. The carry is empty for policies without
            memory. With `explore`, actions are as the behaviour policy takes them.
        needs: the data that the method needs.
        carry: the first carry of `act`.
        explores: whether `explore` changes what `act` does; online training needs a method that does.
        values: (state, batch) -> (heads, B, G), the values of the batch's actions, for probes; None for methods without
            values.
        return_quantiles: (policy, view) -> fractions (Q,), values (G, Q) in units of returns: the quantiles of
            the return of each agent's greedy action (G = N) or of all of them together (G = 1). None for methods that
            learn no distribution.
    """

    init: Init
    update: Update
    act: Act
    needs: Needs
    carry: Any = ()
    explores: bool = False
    values: Callable[[Any, Transition], chex.Array] | None = None
    return_quantiles: ReturnQuantiles | None = None


def config(cls: type[_C]) -> type[_C]:
    """Makes a frozen dataclass whose float fields are the leaves of a pytree; everything else is static.

    So a grid over float hyperparameters is a `vmap` over configs. Nothing is checked when a config is made, since a
    leaf may be a tracer: each algorithm's file has a `validate`.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    kinds = typing.get_type_hints(cls)  # not `Field.type`, which can be a string
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # no class variables
    floats = [name for name in fields if kinds[name] is float]
    static = [name for name in fields if kinds[name] is not float]
    return jax.tree_util.register_dataclass(cls, data_fields=floats, meta_fields=static)
