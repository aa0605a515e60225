"""The environment interface: a jumanji environment whose agents are an array axis."""

import builtins
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import chex
import jax.numpy as jnp

from omarl_envs.spec import ScoreReference, TaskSpec

__all__ = ["Behaviour", "Journeys", "MultiAgentEnv", "Observation", "TimeStep"]

# In a notebook jumanji would choose another backend of matplotlib, and fail if the package ipympl is missing. The tqdm
# that it imports would warn if ipywidgets is.
_ipython = builtins.__dict__.pop("__IPYTHON__", None)
try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        from jumanji import specs
        from jumanji.env import Environment
        from jumanji.types import StepType, TimeStep
finally:
    if _ipython is not None:
        builtins.__dict__["__IPYTHON__"] = _ipython


class Observation(NamedTuple):
    """What one step shows.

    Attributes:
        agents_view: (N, O) float32, each agent's own observation.
        state: (S,) float32, the global state for centralised critics.
        action_mask: (N, A) bool, the legal actions of a discrete task; None in a continuous one.
    """

    agents_view: chex.Array
    state: chex.Array
    action_mask: chex.Array | None = None


class Behaviour(NamedTuple):
    """A team that a task knows without learning, for data by recipe.

    Attributes:
        act: (obs (N, O), memory, key) -> actions, as `action_spec` has them, and memory.
        words: what it does, with its constants: datasets are told apart by it.
        mean_return: the expected return; None where it is not known in closed form.
        memory: at the start of an episode.
    """

    act: Callable[[chex.Array, Any, chex.PRNGKey], tuple[chex.Array, Any]]
    words: str
    mean_return: float | None = None
    memory: Any = ()


class Journeys(NamedTuple):
    """A team that sets itself one target after the other, for data in one piece: without resets or a time limit.

    Attributes:
        act: (obs (N, O), memory, key) -> actions, as `action_spec` has them, and memory.
        words: what it does, with its constants: datasets are told apart by it.
        start: key -> memory.
        note: memory after a step -> what that step saw, (N, O), and whether it is the last one to its target, ().
        reward: None if the data have the rewards of the task, for each step. Otherwise they have obs (N, O) -> rewards
            (N,), of what a step saw, and the last step to a target is no transition.
    """

    act: Callable[[chex.Array, Any, chex.PRNGKey], tuple[chex.Array, Any]]
    words: str
    start: Callable[[chex.PRNGKey], Any]
    note: Callable[[Any], tuple[chex.Array, chex.Array]]
    reward: Callable[[chex.Array], chex.Array] | None = None


State = TypeVar("State")


class MultiAgentEnv(Environment[Any, specs.Array, Observation], Generic[State]):
    """A cooperative (or mixed) task of N agents.

    A subclass sets `task_spec` before it calls `super().__init__()`, and writes `reset` and `step` for one
    environment; `jax.vmap` makes many. Nothing resets by itself: the observation that ends an episode is the true
    last one. The time limit is a truncation (step type LAST, discount 1) unless `time_limit_is_terminal`.

    Attributes:
        task_spec: the sizes of the task.
        reference: the returns that scores are normalised with, or None where there are none.
        behaviours: teams that the task knows without learning, by the quality of their data; most tasks have none.
        options: constructor arguments that `make` was given.
        time_limit_is_terminal: report the time limit as a termination (discount 0), as some published code does.
        dt: seconds of a step where films should run in real time, otherwise None.
    """

    task_spec: TaskSpec
    reference: ScoreReference | None = None
    behaviours: Mapping[str, Behaviour | Journeys] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})
    time_limit_is_terminal: bool = False
    dt: float | None = None

    @property
    def num_agents(self) -> int:
        """N, under the name that jumanji's own multi-agent environments use."""
        return self.task_spec.n_agents

    def first(self, observation: Observation) -> TimeStep[Observation]:
        """The time step after a reset."""
        n = self.task_spec.n_agents
        metrics = {name: jnp.zeros((), jnp.float32) for name in self.metric_names}
        return TimeStep(
            step_type=StepType.FIRST,  # type: ignore[arg-type]  # an array, whatever jumanji says
            reward=jnp.zeros((n,), jnp.float32),
            discount=jnp.ones((n,), jnp.float32),
            observation=observation,
            extras={"metrics": metrics},
        )

    def next(
        self,
        step: chex.Array,
        observation: Observation,
        rewards: chex.Array,
        terminal: chex.Array | bool = False,
        metrics: dict[str, chex.Array] | None = None,
    ) -> TimeStep[Observation]:
        """The time step after a transition.

        Args:
            step: () int, the number of steps taken in this episode, this one included.
            observation: what the agents see now.
            rewards: (N,) the reward of each agent.
            terminal: () or (N,) bool, whether the task itself has ended (not: the time is up).
            metrics: () named quantities of this step; `return` defaults to the mean reward over agents.
        """
        out_of_time = step >= self.task_spec.episode_length
        terminal = jnp.broadcast_to(jnp.asarray(terminal), (self.task_spec.n_agents,))
        if self.time_limit_is_terminal:
            terminal = terminal | out_of_time
        return TimeStep(
            step_type=jnp.where(out_of_time | jnp.all(terminal), StepType.LAST, StepType.MID),  # type: ignore[arg-type]
            reward=rewards,
            discount=1.0 - terminal.astype(jnp.float32),
            observation=observation,
            extras={"metrics": {"return": jnp.mean(rewards)} | (metrics or {})},
        )

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the per-step quantities in `timestep.extras["metrics"]`; a task with more adds its own."""
        return ("return",)

    @cached_property
    def observation_spec(self) -> specs.Spec[Observation]:
        """The specification of `Observation`."""
        spec = self.task_spec
        mask = specs.BoundedArray((spec.n_agents, spec.action_dim), bool, False, True, "action_mask")
        return specs.Spec(
            Observation,
            "ObservationSpec",
            agents_view=specs.Array((spec.n_agents, spec.obs_dim), jnp.float32, "agents_view"),
            state=specs.Array((spec.state_dim,), jnp.float32, "state"),
            action_mask=mask if spec.kind == "discrete" else None,  # type: ignore[arg-type]
        )

    @cached_property
    def action_spec(self) -> specs.Array:
        """Continuous: (N, A) in [-1, 1]. Discrete: (N,) integers below A."""
        spec = self.task_spec
        if spec.kind == "discrete":
            return specs.MultiDiscreteArray(jnp.full((spec.n_agents,), spec.action_dim, jnp.int32), name="actions")
        return specs.BoundedArray((spec.n_agents, spec.action_dim), jnp.float32, -1.0, 1.0, "actions")

    @cached_property
    def reward_spec(self) -> specs.Array:
        """(N,) one reward an agent."""
        return specs.Array((self.task_spec.n_agents,), jnp.float32, "reward")

    @cached_property
    def discount_spec(self) -> specs.BoundedArray:
        """(N,) 0 where the task has ended for the agent, otherwise 1."""
        return specs.BoundedArray((self.task_spec.n_agents,), jnp.float32, 0.0, 1.0, "discount")
