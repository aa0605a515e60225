"""The particle tasks in NumPy, which the compiled ones are measured against: in batches, and one at a time in a loop.

All four environments have one interface: `reset(rng) -> obs` and `step(actions) -> obs, rewards`, and `place` starts
from given positions instead of random ones. The batches (`BatchSpread`, `BatchPursuit`) are what NumPy does well:
float32, M environments at once, no loop over anything. The loops (`LoopSpread`, `LoopPursuit`) are what particle
environments in research code look like: objects, and vectors of two numbers.

Shapes: M environments, E movable agents (prey included), N learning agents, L landmarks, O observation.
"""

import itertools
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # the package would bring JAX, which the baselines do without
    from omarl_envs.particle.prey import Prey

Array = NDArray[np.floating]

TIME_STEP, DAMPING = 0.1, 0.25
CONTACT_FORCE, CONTACT_MARGIN = 100.0, 1e-3
EPISODE_LENGTH = 25

SPREAD_RADIUS, SPREAD_GAIN, MAX_COVER, COLLISION_COST = 0.15, 5.0, 10.0, 5.0

N_PREDATORS, PREDATOR_RADIUS = 3, 0.075
PREDATOR_GAIN, PREY_GAIN = 9.0, 16.0
PREDATOR_SPEED, PREY_SPEED = 1.0, 1.3
OBSTACLE_RADIUS, FOREST_RADIUS = 0.2, 0.3
SHAPING = 0.1


class Scenario(NamedTuple):
    """What tells tag and world apart. The landmarks are obstacles, food and forests, in this order."""

    prey_radius: float
    touch_reward: float
    n_obstacles: int
    n_food: int
    n_forests: int

    @property
    def n_landmarks(self) -> int:
        """L."""
        return self.n_obstacles + self.n_food + self.n_forests


TAG = Scenario(prey_radius=0.05, touch_reward=10.0, n_obstacles=2, n_food=0, n_forests=0)
WORLD = Scenario(prey_radius=0.045, touch_reward=5.0, n_obstacles=1, n_food=2, n_forests=2)


class Environment(Protocol):
    """What the batches (leading axis M) and the loops (no leading axis) have in common.

    Attributes:
        n_envs: M; 1 for a loop.
        action_shape: ([M,] N, 2).
    """

    n_envs: int
    action_shape: tuple[int, ...]

    def reset(self, rng: np.random.Generator) -> Array:
        """Starts an episode; returns the observations ([M,] N, O)."""
        ...

    def step(self, actions: Array) -> tuple[Array, Array]:
        """Moves everyone, actions ([M,] N, 2) in [-1, 1]; returns observations ([M,] N, O) and rewards ([M,] N)."""
        ...


def steps_per_second(env: Environment, seconds: float = 2.0) -> float:
    """Environment steps per second under random actions, resets included: a batch of M counts M steps."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.0, 1.0, (EPISODE_LENGTH, *env.action_shape)).astype(np.float32)

    def episode() -> None:
        env.reset(rng)
        for action in actions:
            env.step(action)

    episode()
    episodes, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        episode()
        episodes += 1
    return episodes * EPISODE_LENGTH * env.n_envs / elapsed


class _PreyNetwork:
    """The frozen prey, its input normalisation folded into the first layer."""

    def __init__(self, prey: "Prey"):
        scale = np.asarray(prey.bn_scale) / np.sqrt(np.asarray(prey.bn_var) + 1e-5)
        self.w1 = scale[:, None] * prey.w1
        self.b1 = prey.b1 + (prey.bn_bias - prey.bn_mean * scale) @ prey.w1
        self.w2, self.b2, self.w3, self.b3 = prey.w2, prey.b2, prey.w3, prey.b3

    def act(self, obs: Array) -> Array:
        """(…, O) -> (…, 2) in [-1, 1]."""
        hidden = np.maximum(obs @ self.w1 + self.b1, 0.0)
        hidden = np.maximum(hidden @ self.w2 + self.b2, 0.0)
        return np.tanh(hidden @ self.w3 + self.b3)


class _Batch:
    """M worlds. The batch stands last inside, because NumPy's loops are fast only along a long last axis.

    All vectors of a world lie in one array, bodies (agents, landmarks) before velocities: what an agent sees are
    differences of them, so that one matrix product makes all observations, with the batch first again.

    Args:
        n_envs: M.
        radii: of everything that collides: the E agents, then the first landmarks.
        n_agents, n_landmarks: E, L.
        gains: force of a full action, one for each agent or one for all.
        max_speeds: (E,), or None without a limit.
    """

    def __init__(
        self,
        n_envs: int,
        radii: list[float],
        n_agents: int,
        n_landmarks: int,
        gains: ArrayLike,
        max_speeds: list[float] | None = None,
    ):
        self.n_envs, self.n_agents, self.n_landmarks = n_envs, n_agents, n_landmarks
        self.gains = np.asarray(gains, np.float32).reshape(-1, 1, 1)
        self.max_speeds = None if max_speeds is None else np.asarray(max_speeds, np.float32)[:, None]
        n_bodies = n_agents + n_landmarks
        self._vectors = np.zeros((n_bodies + n_agents, 2, n_envs), np.float32)
        # Views: writing to them writes to the vectors.
        self.bodies, self.velocity = self._vectors[:n_bodies], self._vectors[n_bodies:]
        self.position, self.landmarks = self.bodies[:n_agents], self.bodies[n_agents:]

        pairs = [(i, j) for i, j in itertools.combinations(range(len(radii)), 2) if i < n_agents]
        self.first, self.second = np.array(pairs).T
        self.reach = np.array([radii[i] + radii[j] for i, j in pairs], np.float32)[:, None]
        # (E, P): how the forces of the P pairs add up on the agents; landmarks do not move.
        bodies = np.eye(len(radii), dtype=np.float32)
        self.share = (bodies[self.first] - bodies[self.second]).T[:n_agents]

    def place(self, position: Array, velocity: Array, landmarks: Array) -> None:
        """Starts from here: (M, E, 2), (M, E, 2), (M, L, 2)."""
        for mine, given in ((self.position, position), (self.velocity, velocity), (self.landmarks, landmarks)):
            mine[:] = np.moveaxis(given, 0, -1)

    def move(self, actions: Array) -> None:
        """One step of time under actions (E, 2, M)."""
        delta = self.bodies[self.first] - self.bodies[self.second]  # (P, 2, M)
        distance = np.sqrt(np.maximum(_squared_norm(delta), 1e-18))
        overlap = (self.reach - distance) / CONTACT_MARGIN
        penetration = CONTACT_MARGIN * (np.maximum(overlap, 0.0) + np.log1p(np.exp(-np.abs(overlap))))
        pushes = delta * (CONTACT_FORCE * penetration / distance)[:, None]
        forces = self.gains * actions + (self.share @ pushes.reshape(len(pushes), -1)).reshape(self.position.shape)
        self.velocity *= 1.0 - DAMPING
        self.velocity += TIME_STEP * forces
        if self.max_speeds is not None:
            speed = np.sqrt(_squared_norm(self.velocity))
            self.velocity *= (self.max_speeds / np.maximum(speed, self.max_speeds))[:, None]
        self.position += TIME_STEP * self.velocity

    def view(self, i: int) -> list[Array]:
        """What agent i sees, as rows of coefficients of the world's vectors: itself, landmarks, other agents."""
        vectors = np.eye(len(self._vectors), dtype=np.float32)
        bodies, velocities = np.split(vectors, [len(self.bodies)])
        relative = bodies - bodies[i]
        landmarks, others = relative[self.n_agents :], np.delete(relative[: self.n_agents], i, axis=0)
        return [velocities[i : i + 1], bodies[i : i + 1], landmarks, others]

    def look(self, views: Array) -> Array:
        """(M, 2K) coordinates of the K vectors that `observer` made `views` for."""
        return self._vectors.reshape(-1, self.n_envs).T @ views

    @staticmethod
    def observer(coefficients: list[Array]) -> Array:
        """Rows of coefficients, K together, -> the matrix for `look`."""
        return np.kron(np.concatenate(coefficients), np.eye(2, dtype=np.float32)).T.copy()


class BatchSpread(_Batch):
    """M environments of `particle/spread` with N agents.

    The matrix of observations grows with N³ a step and environment: this is made for teams of up to about ten.
    """

    def __init__(self, n_envs: int, n_agents: int = 3):
        super().__init__(n_envs, [SPREAD_RADIUS] * n_agents, n_agents, n_agents, SPREAD_GAIN)
        self.action_shape = (n_envs, n_agents, 2)
        self.half_side = 1.0 if n_agents <= 3 else 2.0
        silence = np.zeros((n_agents - 1, len(self._vectors)), np.float32)
        self.views = self.observer([row for i in range(n_agents) for row in (*self.view(i), silence)])

    def reset(self, rng: np.random.Generator) -> Array:
        """Everything uniform in the square, at rest."""
        self.bodies[:] = rng.uniform(-self.half_side, self.half_side, self.bodies.shape)
        self.velocity[:] = 0.0
        return self.observe()

    def step(self, actions: Array) -> tuple[Array, Array]:
        """(M, N, 2) -> (M, N, O), (M, N)."""
        self.move(np.moveaxis(actions, 0, -1))
        return self.observe(), self._rewards()

    def observe(self) -> Array:
        """(M, N, O)."""
        return self.look(self.views).reshape(self.n_envs, self.n_agents, -1)

    def _rewards(self) -> Array:
        between = _squared_norm(self.landmarks[:, None] - self.position[None])  # (L, N, M)
        covered = (1.0 / np.maximum(np.sqrt(between.min(axis=1)), 1.0 / MAX_COVER)).sum(axis=0)
        squared = _squared_norm(self.position[self.first] - self.position[self.second])  # (P, M)
        touching = (squared < self.reach**2).astype(np.float32)
        return (covered - COLLISION_COST * (np.abs(self.share) @ touching)).T


class BatchPursuit(_Batch):
    """M environments of `particle/tag` or `particle/world` with a frozen prey."""

    def __init__(self, n_envs: int, scenario: Scenario, prey: "Prey"):
        radii = [PREDATOR_RADIUS] * N_PREDATORS + [scenario.prey_radius] + [OBSTACLE_RADIUS] * scenario.n_obstacles
        gains = [PREDATOR_GAIN] * N_PREDATORS + [PREY_GAIN]
        speeds = [PREDATOR_SPEED] * N_PREDATORS + [PREY_SPEED]
        super().__init__(n_envs, radii, N_PREDATORS + 1, scenario.n_landmarks, gains, speeds)
        self.action_shape = (n_envs, N_PREDATORS, 2)
        self.scenario, self.prey = scenario, _PreyNetwork(prey)
        self.forests = self.landmarks[scenario.n_landmarks - scenario.n_forests :]
        agents_radii = np.array(radii[: self.n_agents], np.float32)
        self.forest_reach = (agents_radii + FOREST_RADIUS)[:, None, None]
        prey_velocity = np.eye(len(self._vectors), dtype=np.float32)[-1:]
        predators = [row for i in range(N_PREDATORS) for row in (*self.view(i), prey_velocity)]
        self.predator_views = self.observer(predators)
        self.prey_views = self.observer(self.view(N_PREDATORS))

    def reset(self, rng: np.random.Generator) -> Array:
        """Agents and landmarks uniform in their squares, at rest."""
        self.position[:] = rng.uniform(-1.0, 1.0, self.position.shape)
        self.landmarks[:] = rng.uniform(-0.9, 0.9, self.landmarks.shape)
        self.velocity[:] = 0.0
        return self.observe()

    def step(self, actions: Array) -> tuple[Array, Array]:
        """(M, 3, 2) -> (M, 3, O), (M, 3)."""
        prey_obs = np.concatenate([self.look(self.prey_views), self._in_forests()[:, N_PREDATORS]], axis=-1)
        everyone = np.concatenate([actions, self.prey.act(prey_obs)[:, None]], axis=1)
        self.move(np.moveaxis(everyone, 0, -1))
        return self.observe(), self._rewards()

    def observe(self) -> Array:
        """(M, 3, O)."""
        obs = self.look(self.predator_views).reshape(self.n_envs, N_PREDATORS, -1)
        return np.concatenate([obs, self._in_forests()[:, :N_PREDATORS]], axis=-1)

    def _in_forests(self) -> Array:
        """(M, E, forests): 1 inside, -1 outside."""
        squared = _squared_norm(self.position[:, None] - self.forests[None])  # (E, forests, M)
        return np.moveaxis(np.where(squared < self.forest_reach**2, np.float32(1.0), np.float32(-1.0)), -1, 0)

    def _rewards(self) -> Array:
        distances = np.sqrt(_squared_norm(self.position[:N_PREDATORS] - self.position[N_PREDATORS]))  # (3, M)
        touches = (distances < PREDATOR_RADIUS + self.scenario.prey_radius).astype(np.float32).sum(axis=0)
        rewards = self.scenario.touch_reward * touches - SHAPING * distances.sum(axis=0)
        return np.repeat(rewards[:, None], N_PREDATORS, axis=1)


def _squared_norm(vectors: Array) -> Array:
    """(…, 2, M) -> (…, M)."""
    x, y = vectors[..., 0, :], vectors[..., 1, :]
    return x * x + y * y


class Body:
    """An agent or a landmark of a loop environment."""

    def __init__(
        self,
        radius: float,
        collides: bool,
        movable: bool = False,
        gain: float = 0.0,
        max_speed: float | None = None,
    ):
        self.radius, self.collides, self.movable = radius, collides, movable
        self.gain, self.max_speed = gain, max_speed
        self.position, self.velocity = np.zeros(2), np.zeros(2)


class _Loop:
    """One world as a list of objects: agents, then landmarks."""

    n_envs = 1

    def __init__(self, agents: list[Body], landmarks: list[Body]):
        self.agents, self.landmarks = agents, landmarks

    def place(self, position: Array, velocity: Array, landmarks: Array) -> None:
        """Starts from here: (E, 2), (E, 2), (L, 2)."""
        for agent, p, v in zip(self.agents, position, velocity, strict=True):
            agent.position, agent.velocity = np.array(p, float), np.array(v, float)
        for landmark, p in zip(self.landmarks, landmarks, strict=True):
            landmark.position = np.array(p, float)

    def move(self, actions: list[Array]) -> None:
        """One step of time, one action for each agent."""
        bodies = self.agents + self.landmarks
        forces = [agent.gain * action for agent, action in zip(self.agents, actions, strict=True)]
        for i, a in enumerate(self.agents):
            for j in range(i + 1, len(bodies)):
                b = bodies[j]
                if not (a.collides and b.collides):
                    continue
                push = contact(a, b)
                forces[i] = forces[i] + push
                if b.movable:
                    forces[j] = forces[j] - push
        for agent, force in zip(self.agents, forces, strict=True):
            agent.velocity = agent.velocity * (1.0 - DAMPING) + force * TIME_STEP
            if agent.max_speed is not None:
                speed = np.sqrt(np.sum(np.square(agent.velocity)))
                if speed > agent.max_speed:
                    agent.velocity = agent.velocity / speed * agent.max_speed
            agent.position = agent.position + agent.velocity * TIME_STEP

    def view(self, agent: Body) -> list[Array]:
        """What an agent sees of itself, the landmarks and the other agents."""
        landmarks = [landmark.position - agent.position for landmark in self.landmarks]
        others = [other.position - agent.position for other in self.agents if other is not agent]
        return [agent.velocity, agent.position, *landmarks, *others]


class LoopSpread(_Loop):
    """One environment of `particle/spread` with N agents."""

    def __init__(self, n_agents: int = 3):
        agents = [Body(SPREAD_RADIUS, collides=True, movable=True, gain=SPREAD_GAIN) for _ in range(n_agents)]
        super().__init__(agents, [Body(0.05, collides=False) for _ in range(n_agents)])
        self.action_shape = (n_agents, 2)
        self.half_side = 1.0 if n_agents <= 3 else 2.0

    def reset(self, rng: np.random.Generator) -> Array:
        """Everything uniform in the square, at rest."""
        for body in self.agents + self.landmarks:
            body.position, body.velocity = rng.uniform(-self.half_side, self.half_side, 2), np.zeros(2)
        return self.observe()

    def step(self, actions: Array) -> tuple[Array, Array]:
        """(N, 2) -> (N, O), (N,)."""
        self.move(list(actions))
        return self.observe(), np.array([self._reward(agent) for agent in self.agents])

    def observe(self) -> Array:
        """(N, O)."""
        silence = [np.zeros(2)] * (len(self.agents) - 1)
        return np.stack([np.concatenate(self.view(agent) + silence) for agent in self.agents])

    def _reward(self, agent: Body) -> float:
        reward = 0.0
        for landmark in self.landmarks:
            reward += min(1.0 / max(min(distance(other, landmark) for other in self.agents), 1e-9), MAX_COVER)
        for other in self.agents:
            if other is not agent and distance(other, agent) < other.radius + agent.radius:
                reward -= COLLISION_COST
        return reward


class LoopPursuit(_Loop):
    """One environment of `particle/tag` or `particle/world` with a frozen prey."""

    def __init__(self, scenario: Scenario, prey: "Prey"):
        self.predators = [
            Body(PREDATOR_RADIUS, True, movable=True, gain=PREDATOR_GAIN, max_speed=PREDATOR_SPEED)
            for _ in range(N_PREDATORS)
        ]
        self.prey = Body(scenario.prey_radius, True, movable=True, gain=PREY_GAIN, max_speed=PREY_SPEED)
        obstacles = [Body(OBSTACLE_RADIUS, collides=True) for _ in range(scenario.n_obstacles)]
        food = [Body(0.03, collides=False) for _ in range(scenario.n_food)]
        self.forests = [Body(FOREST_RADIUS, collides=False) for _ in range(scenario.n_forests)]
        super().__init__([*self.predators, self.prey], obstacles + food + self.forests)
        self.action_shape = (N_PREDATORS, 2)
        self.touch_reward, self.network = scenario.touch_reward, _PreyNetwork(prey)

    def reset(self, rng: np.random.Generator) -> Array:
        """Agents and landmarks uniform in their squares, at rest."""
        for agent in self.agents:
            agent.position, agent.velocity = rng.uniform(-1.0, 1.0, 2), np.zeros(2)
        for landmark in self.landmarks:
            landmark.position = rng.uniform(-0.9, 0.9, 2)
        return self.observe()

    def step(self, actions: Array) -> tuple[Array, Array]:
        """(3, 2) -> (3, O), (3,)."""
        prey_obs = np.concatenate([*self.view(self.prey), self._in_forests(self.prey)])
        self.move([*actions, self.network.act(prey_obs)])
        return self.observe(), np.array([self._reward() for _ in self.predators])

    def observe(self) -> Array:
        """(3, O)."""
        views = [[*self.view(agent), self.prey.velocity, self._in_forests(agent)] for agent in self.predators]
        return np.stack([np.concatenate(view) for view in views])

    def _in_forests(self, agent: Body) -> Array:
        inside = [distance(agent, forest) < agent.radius + forest.radius for forest in self.forests]
        return np.array([1.0 if is_inside else -1.0 for is_inside in inside])

    def _reward(self) -> float:
        reward = 0.0
        for predator in self.predators:
            reward -= SHAPING * distance(predator, self.prey)
            if distance(predator, self.prey) < predator.radius + self.prey.radius:
                reward += self.touch_reward
        return reward


def distance(a: Body, b: Body) -> float:
    """Between two bodies."""
    return np.sqrt(np.sum(np.square(a.position - b.position)))


def contact(a: Body, b: Body) -> Array:
    """(2,) the force on the first of two bodies that touch."""
    apart = max(distance(a, b), 1e-9)
    penetration = CONTACT_MARGIN * np.logaddexp(0.0, (a.radius + b.radius - apart) / CONTACT_MARGIN)
    return CONTACT_FORCE * penetration * (a.position - b.position) / apart
