"""MA-CIQR in eager PyTorch, as research code has it: one agent after the other. A baseline of our training speed.

The update is that of Eldeeb et al. (2024) with its fractions on the right axis, the same mathematics as `omarl_jax`'s
MA-CIQR, on a buffer of random transitions.
"""

import copy
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

OBS_DIM, N_ACTIONS, N_AGENTS = 14, 55, 2  # of uav/iot
BUFFER_SIZE = 4_800
WARM_UP_UPDATES = 10


class Config(NamedTuple):
    """Hyperparameters, as published."""

    hidden: int = 256
    quantiles: int = 8
    batch_size: int = 128
    learning_rate: float = 1e-5
    gamma: float = 0.99
    tau: float = 0.01
    cql_alpha: float = 1.0
    risk: float = 1.0


class Agent:
    """The network of one UAV, its target and its optimiser."""

    def __init__(self, config: Config):
        self.config = config
        q, h = config.quantiles, config.hidden
        layers = [nn.Linear(OBS_DIM, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, q * N_ACTIONS)]
        self.network = nn.Sequential(*layers, nn.Unflatten(1, (q, N_ACTIONS)))
        self.target = copy.deepcopy(self.network)
        self.optimiser = torch.optim.Adam(self.network.parameters(), config.learning_rate)
        self.fractions = config.risk * (2 * torch.arange(q) + 1) / (2 * q)

    def loss(self, obs: Tensor, actions: Tensor, rewards: Tensor, next_obs: Tensor, terminal: Tensor) -> Tensor:
        """The loss of one batch: obs, next_obs (B, O), actions (B,) integers, rewards and terminal (B,)."""
        rows = torch.arange(len(actions))
        with torch.no_grad():
            following = self.target(next_obs)  # (B, Q, A)
            best = following.mean(1).argmax(1)
            continuing = (1.0 - terminal)[:, None] * following[rows, :, best]
            target = rewards[:, None] + self.config.gamma * continuing  # (B, Q)
        values = self.network(obs)
        own = values[rows, :, actions]  # (B, Q)
        delta = target[:, None, :] - own[:, :, None]  # (B, atoms, targets)
        huber = torch.where(delta.abs() <= 1.0, 0.5 * delta**2, delta.abs() - 0.5)
        weight = (self.fractions[:, None] - (delta.detach() < 0).float()).abs()
        penalty = (values.logsumexp(2) - own).sum(1).mean()
        return 0.5 * (weight * huber).mean(2).sum(1).mean() + self.config.cql_alpha * penalty

    def update(self, *batch: Tensor) -> None:
        """One step of the network, and of its target."""
        loss = self.loss(*batch)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, self.config.tau)


def updates_per_second(seconds: float = 5.0, threads: int = 2) -> float:
    """Updates per second, each of network and target of both agents.

    Args:
        seconds: how long to measure; the warm-up comes on top.
        threads: of PyTorch, as long as this runs.
    """
    config = Config()
    buffer = (
        torch.randn(BUFFER_SIZE, OBS_DIM),
        torch.randint(N_ACTIONS, (BUFFER_SIZE, N_AGENTS)),
        torch.randn(BUFFER_SIZE),
        torch.randn(BUFFER_SIZE, OBS_DIM),
        torch.zeros(BUFFER_SIZE),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        agents = [Agent(config) for _ in range(N_AGENTS)]

        def update() -> None:
            drawn = torch.randint(BUFFER_SIZE, (config.batch_size,))
            obs, actions, rewards, next_obs, terminal = (column[drawn] for column in buffer)
            for i, agent in enumerate(agents):
                agent.update(obs, actions[:, i], rewards, next_obs, terminal)

        for _ in range(WARM_UP_UPDATES):
            update()
        updates, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            update()
            updates += 1
        return updates / elapsed
    finally:
        torch.set_num_threads(before)
