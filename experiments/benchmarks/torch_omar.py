"""OMAR in eager PyTorch, as research code has it: one agent after the other. The baseline of our training speed.

The update is that of Pan et al. (ICML 2022) for the particle tasks, the same mathematics as `omarl_jax`'s OMAR, on a
buffer of random transitions. Nothing is compiled or captured and nothing is slowed down: what does not need gradients
runs without them, and all candidate actions of a batch go through the critic in one pass.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OBS_DIM, ACTION_DIM = 18, 2  # of particle/spread with three agents
BUFFER_SIZE = 100_000
WARM_UP_UPDATES = 3


class Config(NamedTuple):
    """Hyperparameters, as published for the particle tasks (alpha and omar_coe: spread, medium)."""

    hidden: int = 64
    batch_size: int = 1024
    learning_rate: float = 0.01
    gamma: float = 0.95
    tau: float = 0.01
    max_grad_norm: float = 0.5
    cql_alpha: float = 5.0
    cql_samples: int = 10
    omar_coe: float = 1.0
    omar_iterations: int = 3
    omar_samples: int = 10
    omar_mu: float = 0.0
    omar_sigma: float = 2.0


class Batch(NamedTuple):
    """Transitions of one agent. obs, next_obs: (B, O), actions: (B, A), rewards, terminal: (B,)."""

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    next_obs: Tensor
    terminal: Tensor


class Policy(nn.Module):
    """Observations, normalised over the batch, -> actions in [-1, 1]."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: int):
        super().__init__()
        last = nn.Linear(hidden, action_dim)
        nn.init.uniform_(last.weight, -3e-3, 3e-3)
        self.layers = nn.Sequential(nn.BatchNorm1d(obs_dim), *_hidden_layers(obs_dim, hidden), last, nn.Tanh())

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B, A)."""
        return self.layers(obs)


class TwinCritic(nn.Module):
    """Two values of observation and action behind one shared normalisation."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: int):
        super().__init__()
        inputs = obs_dim + action_dim
        self.norm = nn.BatchNorm1d(inputs)
        self.first = nn.Sequential(*_hidden_layers(inputs, hidden), nn.Linear(hidden, 1))
        self.second = nn.Sequential(*_hidden_layers(inputs, hidden), nn.Linear(hidden, 1))

    def forward(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, O), (B, A) -> (B,), (B,)."""
        inputs = self.norm(torch.cat([obs, actions], dim=-1))
        return self.first(inputs).squeeze(-1), self.second(inputs).squeeze(-1)

    def q1(self, obs: Tensor, actions: Tensor) -> Tensor:
        """(B, O), (B, A) -> (B,), the first of the two alone."""
        return self.first(self.norm(torch.cat([obs, actions], dim=-1))).squeeze(-1)


def _hidden_layers(inputs: int, hidden: int) -> list[nn.Module]:
    return [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]


class Agent:
    """Networks, targets and optimisers of one agent. All networks stay in training mode, as in the published code."""

    def __init__(self, obs_dim: int, action_dim: int, config: Config):
        self.config = config
        self.policy = Policy(obs_dim, action_dim, config.hidden)
        self.critic = TwinCritic(obs_dim, action_dim, config.hidden)
        self.target_policy = copy.deepcopy(self.policy)
        self.target_critic = copy.deepcopy(self.critic)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.learning_rate)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.learning_rate)

    def update(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step of the critic, then one of the policy; returns their losses."""
        critic_loss = self.critic_loss(batch)
        _descend(self.critic_optimizer, self.critic, critic_loss, self.config.max_grad_norm)
        policy_loss = self.policy_loss(batch.obs)
        _descend(self.policy_optimizer, self.policy, policy_loss, self.config.max_grad_norm)
        return critic_loss.detach(), policy_loss.detach()

    def critic_loss(self, batch: Batch) -> Tensor:
        """Σ_k (Q_k - y)² + α CQL_k, with y = r + γ (1 - d) min(Q̄1, Q̄2)(o', π̄(o'))."""
        with torch.no_grad():
            next_q1, next_q2 = self.target_critic(batch.next_obs, self.target_policy(batch.next_obs))
            bootstrap = self.config.gamma * (1.0 - batch.terminal) * torch.minimum(next_q1, next_q2)
            target = batch.rewards + bootstrap
        q1, q2 = self.critic(batch.obs, batch.actions)
        loss = F.mse_loss(q1, target) + F.mse_loss(q2, target)

        n, action_dim = self.config.cql_samples, batch.actions.shape[-1]
        random = torch.empty(len(batch.obs) * n, action_dim).uniform_(-1.0, 1.0)
        random_q = self.critic(batch.obs.repeat_interleave(n, dim=0), random)
        for q, of_random in zip((q1, q2), random_q, strict=True):
            loss = loss + self.config.cql_alpha * cql_penalty(of_random.view(-1, n), q, action_dim)
        return loss

    def policy_loss(self, obs: Tensor) -> Tensor:
        """c (π(o) - â)² - (1 - c) Q1(o, π(o)) + 10⁻³ π(o)²."""
        config = self.config
        actions = self.policy(obs)
        values = self.critic.q1(obs, actions)
        imitation = F.mse_loss(actions, self.better_actions(obs, actions.detach(), values.detach()))
        return config.omar_coe * imitation - (1.0 - config.omar_coe) * values.mean() + 1e-3 * actions.square().mean()

    @torch.no_grad()
    def better_actions(self, obs: Tensor, actions: Tensor, values: Tensor) -> Tensor:
        """(B, A) â: what the zeroth-order optimiser found, or the policy's own action where that is worth more."""

        def values_of(candidates: Tensor) -> Tensor:
            """(B, K, A) -> (B, K)."""
            _, k, _ = candidates.shape
            return self.critic.q1(obs.repeat_interleave(k, dim=0), candidates.flatten(0, 1)).view(-1, k)

        found, found_values = zeroth_order_search(values_of, len(obs), actions.shape[-1], self.config)
        return torch.where((found_values > values)[:, None], found, actions)

    @torch.no_grad()
    def update_targets(self) -> None:
        """θ̄ ← τ θ + (1 - τ) θ̄; the running statistics of the targets are their own."""
        for target, online in ((self.target_policy, self.policy), (self.target_critic, self.critic)):
            for old, new in zip(target.parameters(), online.parameters(), strict=True):
                old.lerp_(new, self.config.tau)


def cql_penalty(random_q: Tensor, data_q: Tensor, action_dim: int) -> Tensor:
    """() How much more than the data's actions random ones are worth.

    Args:
        random_q: (B, K), values of K actions uniform in [-1, 1]^A.
        data_q: (B,), values of the actions in the data.
        action_dim: A; the density of the random actions is 0.5^A.
    """
    return (torch.logsumexp(random_q - action_dim * math.log(0.5), dim=1) - data_q).mean()


def zeroth_order_search(
    values: Callable[[Tensor], Tensor], n: int, action_dim: int, config: Config
) -> tuple[Tensor, Tensor]:
    """(B, A), (B,) the best candidate of the last iteration, and its value.

    Each iteration samples around the softmax-weighted mean of the one before.

    Args:
        values: (B, K, A) candidates -> (B, K).
        n: B.
        action_dim: A.
        config: `omar_iterations`, `omar_samples` (K), `omar_mu`, `omar_sigma`.
    """
    mean = torch.full((n, action_dim), config.omar_mu)
    deviation = torch.full((n, action_dim), config.omar_sigma)
    for _ in range(config.omar_iterations):
        noise = torch.randn(n, config.omar_samples, action_dim)
        candidates = (mean[:, None] + deviation[:, None] * noise).clamp(-1.0, 1.0)
        q = values(candidates)
        mean = (torch.softmax(q, dim=1)[..., None] * candidates).sum(dim=1)
        deviation = (candidates - mean[:, None]).square().mean(dim=1).sqrt()
    best, index = q.max(dim=1)
    return candidates[torch.arange(n), index], best


def _descend(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor, max_grad_norm: float) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
    optimizer.step()


class Buffer:
    """Random transitions of N agents, in memory."""

    def __init__(self, n_agents: int, obs_dim: int, action_dim: int, size: int):
        self.size = size
        self.data = [
            Batch(
                obs=torch.randn(size, obs_dim),
                actions=torch.rand(size, action_dim) * 2.0 - 1.0,
                rewards=torch.randn(size),
                next_obs=torch.randn(size, obs_dim),
                terminal=torch.zeros(size),
            )
            for _ in range(n_agents)
        ]

    def sample(self, agent: int, batch_size: int) -> Batch:
        """B transitions of one agent.

        With replacement: drawing without it from a large buffer would cost more than the update itself.
        """
        index = torch.randint(self.size, (batch_size,))
        return Batch(*(column[index] for column in self.data[agent]))


def update_all(agents: list[Agent], buffer: Buffer) -> None:
    """One update of every agent, each on a batch of its own, then of all targets."""
    for i, agent in enumerate(agents):
        agent.update(buffer.sample(i, agent.config.batch_size))
    for agent in agents:
        agent.update_targets()


def updates_per_second(
    n_agents: int = 3, batch_size: int = 1024, hidden: int = 64, seconds: float = 5.0, threads: int = 2
) -> float:
    """Updates per second, each of critic, policy and targets of all agents.

    Args:
        n_agents: N.
        batch_size: B, of each agent.
        hidden: width of the layers.
        seconds: how long to measure; the warm-up comes on top.
        threads: of PyTorch, as long as this runs.
    """
    config = Config(hidden=hidden, batch_size=batch_size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        agents = [Agent(OBS_DIM, ACTION_DIM, config) for _ in range(n_agents)]
        buffer = Buffer(n_agents, OBS_DIM, ACTION_DIM, BUFFER_SIZE)
        for _ in range(WARM_UP_UPDATES):
            update_all(agents, buffer)
        updates, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            update_all(agents, buffer)
            updates += 1
        return updates / elapsed
    finally:
        torch.set_num_threads(before)
