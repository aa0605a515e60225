"""Robots that should run forward, their joints divided among agents."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omarl_envs import views
from omarl_envs.base import MultiAgentEnv, Observation, TimeStep
from omarl_envs.mujoco import partitions, physics
from omarl_envs.mujoco.models import Engine, Model
from omarl_envs.mujoco.partitions import PARTITIONS, Observations, Routing
from omarl_envs.spec import ScoreReference, TaskSpec

_RULES: dict[Observations, Literal["", "repeated", "standardised"]] = {
    "local": "",
    "full-standardised": "standardised",
    "full": "repeated",
}


class State(NamedTuple):
    """One robot.

    Attributes:
        key: the randomness of the episode; only its start uses any.
        step: () int32, control steps made.
        q: (Q,) coordinates, m and rad: x, z and pitch, or position and quaternion, then hinges.
        v: (V,) velocities.
        acceleration: (V,) at the end of the last step, from which the solver of the next one starts.
    """

    key: chex.PRNGKey
    step: chex.Array
    q: chex.Array
    v: chex.Array
    acceleration: chex.Array


class Rules(NamedTuple):
    """What a gym class says of a robot beyond its body.

    Attributes:
        control_cost: of a squared action.
        alive_bonus: reward of every step, also of the one that ends the episode.
        healthy: whether the robot may go on; gets coordinates (Q,) and velocities (V,).
        noise: coordinates start within ± this.
        velocity_noise: distribution of velocities at the start, uniform or normal, and its scale.
        velocity_bound: observations clip velocities to ± this.
        unseen: how many coordinates, the first ones, are not observed.
        zeros: how many zeros end the observation.
    """

    control_cost: float
    alive_bonus: float
    healthy: Callable[[chex.Array, chex.Array], chex.Array]
    noise: float
    velocity_noise: tuple[Callable[..., chex.Array], float]
    velocity_bound: float = np.inf
    unseen: int = 1
    zeros: int = 0


def _always(q: chex.Array, v: chex.Array) -> chex.Array:
    return jnp.bool_(True)


def _hopper_stands(q: chex.Array, v: chex.Array) -> chex.Array:
    rest = jnp.concatenate([q[2:], v])
    return (jnp.abs(rest) < 100.0).all() & (q[1] > 0.7) & (jnp.abs(q[2]) < 0.2)


def _walker_stands(q: chex.Array, v: chex.Array) -> chex.Array:
    return (q[1] > 0.8) & (q[1] < 2.0) & (jnp.abs(q[2]) < 1.0)


def _ant_stands(q: chex.Array, v: chex.Array) -> chex.Array:
    return (q[2] >= 0.2) & (q[2] <= 1.0)


def _symmetric(key: chex.PRNGKey, shape: tuple[int, ...]) -> chex.Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


_CFRC_EXT = 84  # external forces on 14 bodies, which MuJoCo 2.0 leaves at zero

RULES = {
    "halfcheetah": Rules(0.1, 0.0, _always, 0.1, (jax.random.normal, 0.1)),
    "hopper": Rules(1e-3, 1.0, _hopper_stands, 0.005, (_symmetric, 0.005), velocity_bound=10.0),
    "walker2d": Rules(1e-3, 1.0, _walker_stands, 0.005, (_symmetric, 0.005), velocity_bound=10.0),
    "ant": Rules(0.5, 1.0, _ant_stands, 0.1, (jax.random.normal, 0.1), unseen=2, zeros=_CFRC_EXT),
}


class Locomotion(MultiAgentEnv[State]):
    """`mujoco/halfcheetah-2x3` and its kin: HalfCheetah, Hopper, Walker2d and Ant of OpenAI Gym, in their v2.

    An action is a torque between -1 and 1 of each motor; beyond that a motor does no more, but costs more. All agents
    get

        r = (x' - x) / dt + alive bonus - control cost · |a|²

    | | dt | bonus | cost | ends unless | starts at rest, within (coordinates; velocities) |
    |---|---|---|---|---|---|
    | HalfCheetah | 0.05 s | 0 | 0.1 | | ± 0.1; normal, σ = 0.1 |
    | Hopper | 0.008 s | 1 | 0.001 | z > 0.7, pitch within ± 0.2, all else within ± 100 | ± 0.005; ± 0.005 |
    | Walker2d | 0.008 s | 1 | 0.001 | 0.8 < z < 2, pitch within ± 1 | ± 0.005; ± 0.005 |
    | Ant | 0.05 s | 1 | 0.5 | 0.2 <= z <= 1 | ± 0.1; normal, σ = 0.1 |

    The bonus is also paid for the step that ends the episode. A robot whose state is no longer finite shows that, and
    ends its episode, HalfCheetah too. An episode is cut off after 1,000 steps. The metric `distance` is the way along
    x, in m.

    The state is gym's observation: all coordinates but x (Ant: x and y), then all velocities, those of Hopper and
    Walker2d clipped to ± 10. Ant's ends with 84 zeros: external forces, which MuJoCo 2.0 left at zero, so that they
    cost nothing either.

    Differences from gym: Ant's x is that of its coordinates, where gym takes that of the last stage of the last
    Runge-Kutta step, so that a reward may shift to the next step; its quaternion has norm 1 from the start, as MuJoCo
    2.0 made it. Of `local` observations, Walker2d's velocities are clipped, and Ant's forces, all zeros, are left out.

    Sources: Multi-Agent MuJoCo (Peng et al. 2021) for the partitions, as OMAR and OMIGA use it; gym's v2 classes, and
    for Walker2d that of Gymnasium's v4, whose bonus is the same while an episode lasts.

    Args:
        name: of the partition, after `mujoco/`.
        observations: `local`, own joints and near ones (see `partitions.observed`), as OMAR has HalfCheetah;
            `full-standardised`, as OMIGA has all robots (see `views.derive`); or `full`, the state.
        distance: how near joints must be to be seen with `local`: 0 are one's own, 1 those beside them.
        routing: which motors agents drive (see `partitions.driven`): `slices`, as published data have it, or `names`.
        engine: the MuJoCo whose inertias and contact margins the robot has: `2.0`, of published data, or `current`.
        length: steps after which an episode is cut off.
        time_limit_is_terminal: report the time limit as a termination, as OMIGA's code does.

    Raises:
        ValueError: for options that do not exist, or a distance beyond the body.
    """

    def __init__(
        self,
        name: str,
        observations: Observations,
        distance: int = 0,
        routing: Routing = "slices",
        engine: Engine = "2.0",
        length: int = 1000,
        time_limit_is_terminal: bool = False,
    ):
        task, partition = f"mujoco/{name}", PARTITIONS[name]
        _require("observations", task, observations, get_args(Observations))
        _require("routing", task, routing, get_args(Routing))
        # On a command line 2.0 is a number.
        self.engine: Engine = _require("engine", task, str(engine), get_args(Engine))
        reach = partitions.reach(partition)
        if not 0 <= distance <= reach:
            raise ValueError(
                f"distance of '{task}' must be from 0 to {reach}, where every agent sees all joints, not {distance}."
            )
        if distance and observations != "local":
            raise ValueError(f"distance of '{task}' is for local observations; {observations} ones show everything.")
        self.partition = partition
        self.model: Model = partition.robot()
        self.rules = RULES[self.model.name]
        self._rest, self._n_velocities = _at_rest(self.model)
        self._at_motor = np.argsort(partitions.driven(partition, routing).ravel())  # entries of all actions in a row
        n_agents, action_dim = len(partition.agents), len(partition.agents[0])
        state_dim = len(self._rest) - self.rules.unseen + self._n_velocities + self.rules.zeros
        obs_dims = [state_dim + (n_agents if observations == "full-standardised" else 0)] * n_agents
        if observations == "local":
            seen = partitions.observed(partition, distance, len(self._rest), self._n_velocities)
            obs_dims = [len(view) for view in seen]
            nothing = len(self._rest) + self._n_velocities  # the entry after the velocities is 0
            self._seen = np.array([view + [nothing] * (max(obs_dims) - len(view)) for view in seen])  # (N, O)
        self.task_spec = TaskSpec(
            name=task,
            kind="continuous",
            n_agents=n_agents,
            obs_dim=max(obs_dims),
            action_dim=action_dim,
            state_dim=state_dim,
            episode_length=length,
            obs_dims=tuple(obs_dims),
            obs_from_state=_RULES[observations],
        )
        if (name, self.engine, length) == ("halfcheetah-2x3", "2.0", 1000):
            self.reference = ScoreReference(-284.0, 3568.8, "OMAR, published constants", published=True)
        self.dt = self.model.timestep * self.model.frame_skip
        self.time_limit_is_terminal = time_limit_is_terminal
        super().__init__()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """`return`, and `distance` in metres."""
        return ("return", "distance")

    def reset(self, key: chex.PRNGKey) -> tuple[State, TimeStep[Observation]]:
        """Puts the robot at rest where it was built, with some noise."""
        key, q_key, v_key = jax.random.split(key, 3)
        rules = self.rules
        q = jnp.asarray(self._rest) + rules.noise * _symmetric(q_key, self._rest.shape)
        if self.model.root.joints[0].kind == "free":
            q = q.at[3:7].divide(jnp.linalg.norm(q[3:7]))
        draw, scale = rules.velocity_noise
        v = scale * draw(v_key, (self._n_velocities,))
        state = State(key, jnp.zeros((), jnp.int32), q, v, jnp.zeros_like(v))
        return state, self.first(self._observe(q, v))

    def step(self, state: State, actions: chex.Array) -> tuple[State, TimeStep[Observation]]:
        """Simulates one control step. actions: (N, A) torques, as shares of the motors' largest.

        Raises:
            ValueError: for actions of another shape.
        """
        spec, rules = self.task_spec, self.rules
        if jnp.shape(actions) != (spec.n_agents, spec.action_dim):
            raise ValueError(
                f"'{spec.name}' takes actions of shape {(spec.n_agents, spec.action_dim)}, a row for each agent, "
                f"not {jnp.shape(actions)}."
            )
        control = actions.reshape(-1)[self._at_motor]
        q, v, acceleration, moved = self._simulate(state.q, state.v, control, state.acceleration)
        reward = moved / self.dt + rules.alive_bonus - rules.control_cost * jnp.square(actions).sum()
        goes_on = rules.healthy(q, v) & jnp.isfinite(q).all() & jnp.isfinite(v).all()
        state = State(state.key, state.step + 1, q, v, acceleration)
        rewards = jnp.broadcast_to(reward, (spec.n_agents,))
        metrics = {"distance": moved}
        return state, self.next(state.step, self._observe(q, v), rewards, ~goes_on, metrics)

    def _simulate(self, *args: Any) -> tuple[chex.Array, chex.Array, chex.Array, chex.Array]:
        return physics.simulate(self.model, self.engine, *args)

    def _observe(self, q: chex.Array, v: chex.Array) -> Observation:
        rules, spec = self.rules, self.task_spec
        v = jnp.clip(v, -rules.velocity_bound, rules.velocity_bound)
        state = jnp.concatenate([q[rules.unseen :], v, jnp.zeros((rules.zeros,), q.dtype)])
        if spec.obs_from_state:
            return Observation(views.derive(spec.obs_from_state, state, spec.n_agents), state)
        return Observation(jnp.concatenate([q, v, jnp.zeros((1,), q.dtype)])[self._seen], state)

    def render(self, state: State) -> np.ndarray:
        """The robot from the side, each body in the colour of the agent that drives it: (H, W, 3) uint8."""
        from omarl_envs.mujoco import drawing

        agents = [place // self.task_spec.action_dim for place in self._at_motor]  # of each motor
        drivers = dict(zip((joint for joint, _ in self.model.motors), agents, strict=True))
        caption = f"step {int(state.step)}/{self.task_spec.episode_length}"
        return drawing.picture(self.model, self.engine, np.asarray(state.q), drivers, caption)


def _at_rest(model: Model) -> tuple[np.ndarray, int]:
    """The coordinates (Q,) float32 that a robot is built with, and how many velocities it has."""
    zeros = [0.0] * len(partitions.hinges(model))
    joints = model.root.joints
    if joints[0].kind == "free":
        return np.array([*model.root.position, 1.0, 0.0, 0.0, 0.0, *zeros], np.float32), 6 + len(zeros)
    return np.array([*(joint.reference for joint in joints), *zeros], np.float32), len(joints) + len(zeros)


def _require(option: str, task: str, value: Any, known: Sequence[str]) -> Any:
    """The value of an option, if there is such a one."""
    if value in known:
        return value
    nearest = difflib.get_close_matches(str(value), known, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"{option} of '{task}' must be one of {', '.join(known)}, not {value!r}; did you mean '{nearest}'?"
    )
