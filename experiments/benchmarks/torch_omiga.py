"""OMIGA in eager PyTorch, all agents in one batch. The baseline of our training speed.

The update is that of Wang et al. (NeurIPS 2023) for continuous actions, the same mathematics as `omarl_jax`'s OMIGA,
on a buffer of random transitions at the published sizes. Nothing is compiled or captured and nothing is slowed down:
what does not need gradients runs without them, and V is evaluated once for its own loss and the policy's.
"""

import copy
import math
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_AGENTS, OBS_DIM, ACTION_DIM = 6, 23, 1  # of HalfCheetah with one joint for each agent
BUFFER_SIZE = 100_000
WARM_UP_UPDATES = 10
LARGEST_EXPONENT = 10.0


class Config(NamedTuple):
    """Hyperparameters, as published."""

    hidden: int = 256
    mixer_hidden: int = 64
    batch_size: int = 128
    learning_rate: float = 5e-4
    alpha: float = 10.0
    gamma: float = 0.99
    tau: float = 0.005
    max_grad_norm: float = 1.0


class Batch(NamedTuple):
    """Transitions. obs, next_obs: (B, N, O), actions: (B, N, A), rewards, terminal: (B,); the state is all obs."""

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    next_obs: Tensor
    terminal: Tensor


class Mixer(nn.Module):
    """Non-negative weights of N values and a bias, from the state."""

    def __init__(self, state_dim: int, n_agents: int, hidden: int):
        super().__init__()
        self.first = nn.Linear(state_dim, hidden)
        self.weights = nn.Linear(hidden, n_agents)
        self.bias = nn.Linear(hidden, 1)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> w (B, N), b (B,)."""
        x = torch.relu(self.first(state))
        return self.weights(x).abs(), self.bias(x).squeeze(-1)


class Learner:
    """Networks that all agents share, targets and optimisers."""

    def __init__(self, n_agents: int, obs_dim: int, action_dim: int, config: Config):
        self.config = config
        seen = obs_dim + n_agents  # an agent sees its number
        self.policy = mlp(seen, config.hidden, 2 * action_dim)
        self.v = mlp(seen, config.hidden, 1)
        self.q = mlp(obs_dim + action_dim + n_agents, config.hidden, 1)
        self.mixer = Mixer(n_agents * obs_dim, n_agents, config.mixer_hidden)
        self.target_v, self.target_q, self.target_mixer = map(copy.deepcopy, (self.v, self.q, self.mixer))
        self.ids = torch.eye(n_agents)
        self.trained = (
            [*self.policy.parameters()],
            [*self.q.parameters(), *self.mixer.parameters()],
            [*self.v.parameters()],
        )
        self.optimizers = [torch.optim.Adam(params, lr=config.learning_rate) for params in self.trained]

    def update(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One step of all networks and their targets; returns the losses of policy, Q and V."""
        losses = self.losses(batch)
        for loss, params, optimizer in zip(losses, self.trained, self.optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(params, self.config.max_grad_norm)
            optimizer.step()
        self.update_targets()
        return losses

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """L_π, L_Q and L_V, all at the parameters as they are."""
        config = self.config
        seen, next_seen = self.with_ids(batch.obs), self.with_ids(batch.next_obs)
        pairs = self.with_ids(batch.obs, batch.actions)
        state, next_state = batch.obs.flatten(1), batch.next_obs.flatten(1)
        with torch.no_grad():
            next_w, next_b = self.target_mixer(next_state)
            next_total = (next_w * self.target_v(next_seen).squeeze(-1)).sum(1) + next_b
            target = batch.rewards + config.gamma * (1.0 - batch.terminal) * next_total  # (B,)
            old_w, _ = self.target_mixer(state)  # (B, N)
            old_q = self.target_q(pairs).squeeze(-1)  # (B, N)

        w, b = self.mixer(state)
        q_loss = F.mse_loss((w * self.q(pairs).squeeze(-1)).sum(1) + b, target)

        v = self.v(seen).squeeze(-1)  # (B, N)
        z = (old_w * (old_q - v) / config.alpha).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
        shift = z.detach().max().clamp(min=-1.0)
        v_loss = ((z - shift).exp() + (-shift).exp() * old_w * v / config.alpha).mean()

        policy_loss = -(z.detach().exp() * log_prob(self.policy(seen), batch.actions)).mean()
        return policy_loss, q_loss, v_loss

    @torch.no_grad()
    def update_targets(self) -> None:
        """θ̄ ← τ θ + (1 - τ) θ̄."""
        pairs = ((self.target_v, self.v), (self.target_q, self.q), (self.target_mixer, self.mixer))
        for target, online in pairs:
            for old, new in zip(target.parameters(), online.parameters(), strict=True):
                old.lerp_(new, self.config.tau)

    def with_ids(self, *inputs: Tensor) -> Tensor:
        """(B, N, X) each -> (B, N, sum of X + N), the agent's one-hot number last."""
        return torch.cat([*inputs, self.ids.expand(len(inputs[0]), -1, -1)], dim=-1)


def log_prob(outputs: Tensor, actions: Tensor) -> Tensor:
    """log π(a|o) of a Gaussian squashed by tanh: outputs (B, N, 2A), mean and log std; actions (B, N, A) -> (B, N)."""
    mean, log_std = outputs.chunk(2, dim=-1)
    mean, log_std = mean.clamp(-9.0, 9.0), log_std.clamp(-5.0, 2.0)
    before = torch.atanh(actions.clamp(-1.0 + 1e-6, 1.0 - 1e-6))
    normal = -0.5 * ((before - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2.0 * math.pi)
    return (normal - 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))).sum(-1)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with ReLU."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def random_batch(size: int, n_agents: int = N_AGENTS, obs_dim: int = OBS_DIM, action_dim: int = ACTION_DIM) -> Batch:
    """Random transitions, none of them terminal."""
    return Batch(
        obs=torch.randn(size, n_agents, obs_dim),
        actions=torch.rand(size, n_agents, action_dim) * 2.0 - 1.0,
        rewards=torch.randn(size),
        next_obs=torch.randn(size, n_agents, obs_dim),
        terminal=torch.zeros(size),
    )


def sample(buffer: Iterable[Tensor], size: int, batch_size: int) -> Batch:
    """B transitions of a buffer, drawn with replacement."""
    index = torch.randint(size, (batch_size,))
    return Batch(*(column[index] for column in buffer))


def updates_per_second(seconds: float = 5.0, threads: int = 2) -> float:
    """Updates per second, each of all networks and targets.

    Args:
        seconds: how long to measure; the warm-up comes on top.
        threads: of PyTorch, as long as this runs.
    """
    config = Config()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        learner = Learner(N_AGENTS, OBS_DIM, ACTION_DIM, config)
        buffer = random_batch(BUFFER_SIZE)
        for _ in range(WARM_UP_UPDATES):
            learner.update(sample(buffer, BUFFER_SIZE, config.batch_size))
        updates, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            learner.update(sample(buffer, BUFFER_SIZE, config.batch_size))
            updates += 1
        return updates / elapsed
    finally:
        torch.set_num_threads(before)
