"""UAVs that collect data from IoT devices, and a region where they should not fly (MA-CQR, Eldeeb et al. 2024)."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from omarl_envs.base import MultiAgentEnv, Observation, TimeStep
from omarl_envs.spec import TaskSpec

if TYPE_CHECKING:
    from omarl_envs.rendering import Picture

EPISODE_LENGTH = 100
MAX_AGE = 100
PITCH = 100.0  # m, the side of a cell
HEIGHT = 100.0  # m, of the UAVs
MOVES = ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2))  # cells: hover, +x, -x, +y, -y

GAIN = 1e-3  # of the channel at 1 m
SNR = 2.0 ** (5e6 / 1e6) - 1.0  # needed for 5 Mbit in a second in a band of 1 MHz
NOISE = {"published": 1e-12, "physical": 1e-13}  # W; the paper's -100 dBm are 1e-13 W, its code has ten times that

DEVICES = ((3, 1), (7, 2), (6, 7), (1, 6), (7, 5), (8, 5), (9, 1), (6, 1), (4, 7), (2, 3))
RISK_REGION = tuple((x, y) for x in range(3, 7) for y in range(2, 7))
RANDOM_REGION = (4, 5)  # cells, of the risk regions of random missions


class Mission(NamedTuple):
    """The mission of the UAVs.

    Attributes:
        devices: (M, 2) int32, cells.
        risky: (side, side) bool, whether the cell (x, y) is in the risk region.
        power_weight: () cost of a watt.
    """

    devices: chex.Array
    risky: chex.Array
    power_weight: chex.Array


class State(NamedTuple):
    """One flight.

    Attributes:
        key: the randomness of this episode, of threefry.
        step: () int32, steps taken.
        cells: (U, 2) int32, where the UAVs are.
        ages: (M,) int32, steps since each device was served, 1 … 100.
        mission: of this episode; None where all episodes have the same one.
    """

    key: chex.PRNGKey
    step: chex.Array
    cells: chex.Array
    ages: chex.Array
    mission: Mission | None


class UavIot(MultiAgentEnv[State]):
    """`uav/iot`, as published (Eldeeb et al. 2024).

    In every step each UAV moves two cells or hovers, and serves one device or none: action 5 d + m serves the device d
    (d = M: none) after the move m of `MOVES`. Serving always succeeds and makes the device's age of information 1;
    all other ages grow by 1, up to 100. It costs P = σ² (2^(5 Mbit / 1 MHz s) - 1) (distance² + height²) / gain watts.
    A UAV that ends its move in the risk region is punished with some probability. All agents get

        r = -Σ_u (power_weight P_u + punishment_u) - mean age

    The metric `return`, by which policies are evaluated, is the published one: it divides the sum over UAVs by their
    number. `training_return` is the sum of r itself. Further metrics: `age`, the mean age; `power`, in watts, of all
    UAVs; `risk`, how many UAVs are in the region; and `power_0`, `risk_0` and so on of each UAV.

    `powers`, (side, side, M + 1), holds the watts that serving each device, or none, takes from each cell.

    Everyone sees everything: x and y of all UAVs, then all ages. An episode is cut off after 100 steps.

    `uav/iot-random` is a family of such tasks: every episode draws its devices anywhere, a risk region of 4 x 5 cells
    and the weight of power, 100, 200, … or 1,000 (the task distribution of the authors' later work on meta-learning).
    None of that is seen; it stands in the state.

    Args:
        n_uavs: U.
        devices: the cells of the M devices, all different.
        side: cells of a side of the square.
        risk_region: the cells of the risk region.
        risk_penalty: the punishment.
        risk_probability: its probability, for every UAV and step in the region.
        power_weight: cost of a watt.
        noise: σ² in watts, or "published" (1e-12), or "physical" (1e-13, which the published -100 dBm are).
        observation_scale: "raw", cells and ages as they are, as published, or "unit", both in [0, 1].
        time_limit_is_terminal: report the end of the episode as a termination, as the published code does.
        random_missions: draw a mission for each episode. Of `devices` only the number is used then; `risk_region` and
            `power_weight` are not used.

    Raises:
        ValueError: for devices or regions that do not fit on the grid, or numbers out of their range.
    """

    def __init__(
        self,
        n_uavs: int = 2,
        devices: Sequence[tuple[int, int]] = DEVICES,
        side: int = 10,
        risk_region: Sequence[tuple[int, int]] = RISK_REGION,
        risk_penalty: float = 300.0,
        risk_probability: float = 0.1,
        power_weight: float = 500.0,
        noise: float | Literal["published", "physical"] = "published",
        observation_scale: Literal["raw", "unit"] = "raw",
        time_limit_is_terminal: bool = False,
        random_missions: bool = False,
    ):
        if n_uavs < 1 or side < 2:
            raise ValueError("uav/iot needs at least one UAV and a grid of 2 x 2 cells.")
        risky = np.zeros((side, side), bool)
        risky[tuple(_checked("risk_region", risk_region, side).T)] = True
        if risky.all():
            raise ValueError("The risk region leaves no cell free for the UAVs to start in.")
        where = _checked("devices", devices, side)
        if len(where) == 0 or len(np.unique(where, axis=0)) < len(where):
            raise ValueError("uav/iot needs devices, each in a cell of its own.")
        if not 0.0 <= risk_probability <= 1.0:
            raise ValueError(f"risk_probability must lie in [0, 1], not {risk_probability}.")
        for name, value in (("risk_penalty", risk_penalty), ("power_weight", power_weight)):
            if not 0.0 <= value < np.inf:
                raise ValueError(f"{name} must be finite and not negative, not {value}.")
        if not isinstance(noise, int | float) and noise not in list(NOISE):
            raise ValueError(f"noise must be a number of watts or one of {', '.join(NOISE)}, not {noise!r}.")
        self.noise = NOISE[noise] if isinstance(noise, str) else float(noise)
        if not 0.0 < self.noise < np.inf:
            raise ValueError(f"noise must be positive, not {noise}.")
        if observation_scale not in ("raw", "unit"):
            raise ValueError(f"observation_scale must be 'raw' or 'unit', not '{observation_scale}'.")
        if random_missions and side <= max(RANDOM_REGION):
            raise ValueError(f"Random missions need a grid of more than {max(RANDOM_REGION)} cells a side.")
        self.random_missions = random_missions
        self.side, self.observation_scale = side, observation_scale
        self.risk_penalty, self.risk_probability = risk_penalty, risk_probability
        self.mission = Mission(where, risky, np.float32(power_weight))
        everywhere = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
        power = self._power(everywhere[:, :, None], where)  # (side, side, M)
        self.powers = np.pad(power, ((0, 0), (0, 0), (0, 1))).astype(np.float32)  # and 0 for serving nobody
        self.time_limit_is_terminal = time_limit_is_terminal
        size = 2 * n_uavs + len(where)
        self.task_spec = TaskSpec(
            name="uav/iot-random" if random_missions else "uav/iot",
            kind="discrete",
            n_agents=n_uavs,
            obs_dim=size,
            action_dim=len(MOVES) * (len(where) + 1),
            state_dim=size,
            episode_length=EPISODE_LENGTH,
        )
        super().__init__()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The published quantities of a step."""
        each = (f"{name}_{u}" for name in ("power", "risk") for u in range(self.num_agents))
        return ("return", "training_return", "age", "power", "risk", *each)

    def reset(self, key: chex.PRNGKey) -> tuple[State, TimeStep[Observation]]:
        """Puts the UAVs into cells outside the risk region, which they may share."""
        key, mission_key, cells_key = jax.random.split(key, 3)
        mission = self._draw(mission_key) if self.random_missions else None
        safe = jnp.where((mission or self.mission).risky.reshape(-1), -jnp.inf, 0.0)
        cells = self._cells(jax.random.categorical(cells_key, safe, shape=(self.task_spec.n_agents,)))
        ages = jnp.ones((len(self.mission.devices),), jnp.int32)
        state = State(key, jnp.zeros((), jnp.int32), cells, ages, mission)
        return state, self.first(self._observe(state))

    def _draw(self, key: chex.PRNGKey) -> Mission:
        devices_key, corner_key, weight_key = jax.random.split(key, 3)
        n_devices = len(self.mission.devices)
        devices = jax.random.choice(devices_key, self.side**2, (n_devices,), replace=False)
        corner = jax.random.randint(corner_key, (2,), 0, self.side + 1 - jnp.array(RANDOM_REGION))
        cells, ends = jnp.arange(self.side), corner + jnp.array(RANDOM_REGION)
        columns, rows = ((corner[i] <= cells) & (cells < ends[i]) for i in (0, 1))
        weight = 100.0 * jax.random.randint(weight_key, (), 1, 11)
        return Mission(self._cells(devices), columns[:, None] & rows, weight)

    def _cells(self, numbers: chex.Array) -> chex.Array:
        """(…,) numbers of cells -> (…, 2) int32."""
        return jnp.stack([numbers // self.side, numbers % self.side], axis=-1).astype(jnp.int32)

    def step(self, state: State, actions: chex.Array) -> tuple[State, TimeStep[Observation]]:
        """Moves, serves and punishes. actions: (U,) int32 below 5 (M + 1)."""
        mission = state.mission or self.mission
        device, move = actions // len(MOVES), actions % len(MOVES)
        cells = jnp.clip(state.cells + jnp.asarray(MOVES)[move], 0, self.side - 1)
        serves = device[:, None] == jnp.arange(state.ages.shape[0])  # (U, M)
        ages = jnp.where(serves.any(axis=0), 1, jnp.minimum(state.ages + 1, MAX_AGE))

        if state.mission is None:
            power = jnp.asarray(self.powers)[cells[:, 0], cells[:, 1], device]  # (U,) W
        else:
            power = jnp.where(serves, self._power(cells[:, None], mission.devices), 0.0).sum(axis=1)
        in_region = jnp.asarray(mission.risky)[cells[:, 0], cells[:, 1]]
        punished = in_region & self._bad_luck(state)
        cost = mission.power_weight * power.sum() + self.risk_penalty * punished.sum()
        age = ages.mean()

        state = state._replace(step=state.step + 1, cells=cells, ages=ages)
        metrics = {
            "return": -cost / cells.shape[0] - age,
            "training_return": -cost - age,
            "age": age,
            "power": power.sum(),
            "risk": in_region.sum(dtype=jnp.float32),
        }
        for u in range(self.num_agents):
            metrics |= {f"power_{u}": power[u], f"risk_{u}": in_region[u].astype(jnp.float32)}
        rewards = jnp.full((cells.shape[0],), -cost - age)
        return state, self.next(state.step, self._observe(state), rewards, metrics=metrics)

    def _bad_luck(self, state: State) -> chex.Array:
        """(U,) bool, true with `risk_probability`. Words of the episode's stream: deriving keys would take longer."""
        n = self.num_agents
        count = n * state.step.astype(jnp.uint32) + jnp.arange(n, dtype=jnp.uint32)
        words = threefry_2x32(jax.random.key_data(state.key), count)
        return (words >> 8).astype(jnp.float32) < 2.0**24 * self.risk_probability

    def _power(self, cells: Any, devices: Any) -> Any:
        """The power to serve a device from a cell, in W; both (…, 2)."""
        return self.noise * SNR / GAIN * (PITCH**2 * ((cells - devices) ** 2).sum(axis=-1) + HEIGHT**2)

    def _observe(self, state: State) -> Observation:
        cells, ages = state.cells.reshape(-1).astype(jnp.float32), state.ages.astype(jnp.float32)
        if self.observation_scale == "unit":
            cells, ages = cells / (self.side - 1), ages / MAX_AGE
        seen = jnp.concatenate([cells, ages])
        n, a = self.task_spec.n_agents, self.task_spec.action_dim
        return Observation(jnp.broadcast_to(seen, (n, seen.size)), seen, jnp.ones((n, a), bool))

    def render(self, state: State) -> np.ndarray:
        """The risk region red, devices the darker the older their information, UAVs blue: (H, W, 3) uint8."""
        from omarl_envs import rendering

        mission = state.mission or self.mission
        picture = self._map(mission, f"step {int(state.step)}/{EPISODE_LENGTH}")
        for cell, age in zip(np.asarray(mission.devices), np.asarray(state.ages), strict=True):
            picture.square(self._place(cell), 0.7, fill=rendering.GOLD, alpha=0.2 + 0.8 * float(age) / MAX_AGE)
            picture.text(self._place(cell), str(int(age)), size=9)
        for u, cell in enumerate(np.asarray(state.cells)):
            in_region = bool(mission.risky[cell[0], cell[1]])
            edge = rendering.RED if in_region else None
            picture.disc(self._place(cell), 0.3, rendering.BLUE, alpha=0.8, edge=edge)
            picture.text(self._place(cell), str(u + 1))
        return picture.image()

    def render_path(self, states: Sequence[State]) -> np.ndarray:
        """The ways of the UAVs through an episode, each in its colour, from a disc to a square: (H, W, 3) uint8."""
        from omarl_envs import rendering

        cells = np.stack([np.asarray(state.cells) for state in states])  # (T + 1, U, 2)
        mission = states[0].mission or self.mission
        entered = np.asarray(mission.risky)[cells[1:, :, 0], cells[1:, :, 1]].sum()
        picture = self._map(mission, f"{len(states) - 1} steps, {entered} in the region")
        for cell in np.asarray(mission.devices):
            picture.square(self._place(cell), 0.7, fill=rendering.GOLD, alpha=0.8)
        colours = (rendering.BLUE, rendering.GREEN, rendering.INK)
        for u in range(self.num_agents):
            # Beside each other, where several fly the same way.
            way = self._place(cells[:, u]) + 0.12 * (u - (self.num_agents - 1) / 2)
            colour = colours[u % len(colours)]
            picture.line(way, colour, alpha=0.6)
            picture.disc(way[0], 0.15, colour)
            picture.square(way[-1], 0.25, fill=colour)
        return picture.image()

    def _map(self, mission: Mission, caption: str) -> "Picture":
        from omarl_envs import rendering

        picture = rendering.Picture(self.side / 2 + 0.8, caption)
        picture.square((0.0, 0.0), self.side, edge=rendering.GREY)
        for cell in np.argwhere(np.asarray(mission.risky)):
            picture.square(self._place(cell), 1.0, fill=rendering.RED, alpha=0.35)
        return picture

    def _place(self, cells: np.ndarray) -> np.ndarray:
        """Cells (…, 2) -> points of the picture, whose middle is that of the grid."""
        return cells - (self.side - 1) / 2


def _checked(name: str, cells: Sequence[tuple[int, int]], side: int) -> np.ndarray:
    """(C, 2) int32, or a `ValueError` if these are no cells of the grid."""
    listed = list(cells) if np.iterable(cells) else [cells]
    if not listed:
        return np.zeros((0, 2), np.int32)
    pairs = all(np.shape(cell) == (2,) for cell in listed)
    if not pairs or not np.issubdtype(np.asarray(listed).dtype, np.integer):
        raise ValueError(f"{name} must be a list of cells (x, y), two integers each.")
    array = np.asarray(listed)
    outside = array[((array < 0) | (array >= side)).any(axis=1)]
    if len(outside):
        raise ValueError(f"{name} has a cell outside the grid of {side} x {side}: {tuple(map(int, outside[0]))}.")
    return array.astype(np.int32)


TASKS = {"iot": UavIot, "iot-random": partial(UavIot, random_missions=True)}
