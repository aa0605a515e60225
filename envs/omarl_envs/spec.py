"""Static descriptions of a task. This module imports nothing heavy, so algorithms may use it freely."""

import dataclasses
from typing import Literal, NamedTuple

_MOST = 10**7  # of anything that networks and data have an axis for
_DERIVED = ("repeated", "standardised")  # the rules of `views`


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """The sizes of a task, from which an algorithm builds its networks: plain Python values only.

    Attributes:
        name: `family/task`, for example `particle/spread`.
        kind: `"continuous"` (actions are `(N, A)` floats in [-1, 1]) or `"discrete"` (actions are `(N,)` integers).
        n_agents: N, the number of agents that act.
        obs_dim: O, the length of the longest observation; shorter ones are padded with zeros.
        action_dim: A, the dimensions of a continuous action, or the number of discrete actions, of the agent that has
            most. Continuous actions are padded with zeros; actions that an agent does not have are illegal.
        state_dim: S, the length of the global state.
        episode_length: steps after which an episode is cut off.
        state_is_obs: whether the state is the concatenation of all observations, so that it need not be stored.
        obs_from_state: the rule of `views` by which all observations follow from the state, so that they need not be
            stored; empty if there is none.
        obs_dims: (N,) the observation length of each agent where they differ, else empty.
        action_dims: (N,) the action size of each agent where they differ, else empty.

    Raises:
        ValueError: if a size is not positive, sizes of single agents do not fit N, O and A, or there is no such rule or
            it makes observations of another length.
    """

    name: str
    kind: Literal["continuous", "discrete"]
    n_agents: int
    obs_dim: int
    action_dim: int
    state_dim: int
    episode_length: int
    state_is_obs: bool = False
    obs_dims: tuple[int, ...] = ()
    action_dims: tuple[int, ...] = ()
    obs_from_state: Literal["", "repeated", "standardised"] = ""

    def __post_init__(self) -> None:
        for name in ("n_agents", "obs_dim", "action_dim", "state_dim", "episode_length"):
            if not 1 <= (size := getattr(self, name)) <= _MOST:
                raise ValueError(f"{name} of task '{self.name}' must be from 1 to {_MOST:,}, not {size}.")
        for name, largest in (("obs_dims", self.obs_dim), ("action_dims", self.action_dim)):
            sizes = tuple(getattr(self, name))  # JSON has lists only
            if sizes and (len(sizes) != self.n_agents or min(sizes) < 1 or max(sizes) != largest):
                raise ValueError(
                    f"{name} of task '{self.name}' must be {self.n_agents} sizes, the largest {largest}, not {sizes}."
                )
            object.__setattr__(self, name, () if len(set(sizes)) == 1 else sizes)
        if self.obs_from_state:
            self._check_derived_obs()

    def _check_derived_obs(self) -> None:
        rule = self.obs_from_state
        if rule not in _DERIVED:
            raise ValueError(
                f"obs_from_state of task '{self.name}' must be one of {', '.join(_DERIVED)}, not '{rule}'."
            )
        if self.state_is_obs:
            raise ValueError(f"Task '{self.name}' cannot have both state_is_obs and obs_from_state.")
        length = self.state_dim + (self.n_agents if rule == "standardised" else 0)
        if self.obs_dims or self.obs_dim != length:
            raise ValueError(
                f"Task '{self.name}' derives its observations from the state ('{rule}'), so they have length {length}, "
                f"not {self.obs_dims or self.obs_dim}."
            )


class ScoreReference(NamedTuple):
    """Returns between which scores are normalised: score = 100 (return - random) / (expert - random)."""

    random: float
    expert: float
    source: str
    published: bool = False  # whether they are the paper's, so that scores compare with its tables

    def normalise(self, returns):  # type: ignore[no-untyped-def]  # any array type, returned as it came
        """Normalises returns (any shape, task units) to scores: 0 is the random policy, 100 the expert."""
        return 100.0 * (returns - self.random) / (self.expert - self.random)
