"""OMCDA in eager PyTorch, all agents in one batch. The baseline of our training speed.

The same mathematics as `omarl_jax`'s OMCDA has by default, for continuous actions, on OMIGA's buffer of random
transitions. Nothing is compiled or captured and nothing is slowed down: what does not need gradients runs without them,
and each V and the policy are evaluated once for all that needs them. The behaviour is not trained, which changes no
speed.
"""

import copy
import time
from typing import NamedTuple

import torch
import torch_omiga
from torch import Tensor, nn
from torch.nn import functional as F
from torch_omiga import LARGEST_EXPONENT, Batch, Mixer, log_prob, mlp, random_batch, sample

_LARGEST_WEIGHT = 100.0


class Config(NamedTuple):
    """Hyperparameters; those of allocation are what ours are in a million updates."""

    hidden: int = 256
    mixer_hidden: int = 64
    batch_size: int = 128
    learning_rate: float = 5e-4
    gamma: float = 0.99
    tau: float = 0.005
    max_grad_norm: float = 1.0
    d_tot: float = 1.2
    alpha: float = 10.0
    alpha_step: float = 3e-4
    alpha_bounds: tuple[float, float] = (0.1, 100.0)
    influence_every: int = 100
    influence_rate: float = 0.05
    warm_start: int = 100_000


class SquareMixer(nn.Module):
    """Weights s_kj α_j / α_k of N values, Σ_k s_kj = 1, and biases that start at 0, from the state."""

    def __init__(self, state_dim: int, n_agents: int, hidden: int):
        super().__init__()
        self.first = nn.Linear(state_dim, hidden)
        self.weights = nn.Linear(hidden, n_agents * n_agents)
        self.bias = nn.Linear(hidden, n_agents)
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.bias.bias)

    def forward(self, state: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S), (N,) -> w (B, N, N), b (B, N)."""
        x = torch.relu(self.first(state))
        shares = self.weights(x).unflatten(-1, (len(alpha), len(alpha))).softmax(dim=-2)
        return shares * alpha / alpha[:, None], self.bias(x)


class Learner:
    """Networks that all agents share, targets, optimisers, prices and shares."""

    def __init__(self, n_agents: int, obs_dim: int, action_dim: int, config: Config):
        self.config, seen, state_dim = config, obs_dim + n_agents, n_agents * obs_dim
        self.policy = mlp(seen, config.hidden, 2 * action_dim)
        self.behaviour = copy.deepcopy(self.policy)
        self.v, self.cost_v = mlp(seen, config.hidden, 1), mlp(seen, config.hidden, 1)
        self.q, self.cost_q = (mlp(obs_dim + action_dim + n_agents, config.hidden, 1) for _ in range(2))
        self.mixer = Mixer(state_dim, n_agents, config.mixer_hidden)
        self.cost_mixer = SquareMixer(state_dim, n_agents, config.mixer_hidden)
        self.online = (self.v, self.q, self.mixer, self.cost_v, self.cost_q, self.cost_mixer)
        self.targets = tuple(map(copy.deepcopy, self.online))
        self.target_v, self.target_q, self.target_mixer = self.targets[:3]
        self.target_cost_v, self.target_cost_q, self.target_cost_mixer = self.targets[3:]
        self.ids = torch.eye(n_agents)
        self.trained = (
            [*self.policy.parameters()],
            [*self.q.parameters(), *self.mixer.parameters()],
            [*self.v.parameters()],
            [*self.cost_q.parameters(), *self.cost_mixer.parameters()],
            [*self.cost_v.parameters()],
        )
        self.optimizers = [torch.optim.Adam(params, lr=config.learning_rate) for params in self.trained]
        self.log_alpha = torch.full((n_agents,), config.alpha).log()
        self.influence, self.updates = torch.zeros(n_agents), 0

    def update(self, batch: Batch) -> tuple[Tensor, ...]:
        """One step of everything; returns the losses of policy, Q, V, Qc and Vc."""
        config = self.config
        outputs, losses, w = self.losses(batch)
        with torch.no_grad():
            behaviour = self.behaviour(self.with_ids(batch.obs))
            divergence = kl(outputs, behaviour).mean(0)  # (N,)
        if self.updates % config.influence_every == 0:
            measured = self.measure(batch, outputs.detach(), behaviour, w)
            self.influence = self.influence.lerp(measured, config.influence_rate)
        share = torch.full_like(self.influence, 1.0 / len(self.influence))
        if self.updates >= config.warm_start:
            share = (self.influence / (self.influence.abs().mean() + 1e-6)).softmax(0)
        budget = config.d_tot * share
        step = config.alpha_step * (divergence - budget) / (divergence + budget + 1e-12)
        self.log_alpha = (self.log_alpha + step).clamp(*torch.tensor(config.alpha_bounds).log())
        self.updates += 1
        for loss, params, optimizer in zip(losses, self.trained, self.optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(params, config.max_grad_norm)
            optimizer.step()
        self.update_targets()
        return losses

    def losses(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """The policy's outputs, the losses at the parameters as they are, and the target mixer's weights (B, N)."""
        config, alpha = self.config, self.log_alpha.exp()
        seen, next_seen = self.with_ids(batch.obs), self.with_ids(batch.next_obs)
        pairs = self.with_ids(batch.obs, batch.actions)
        state, next_state = batch.obs.flatten(1), batch.next_obs.flatten(1)
        with torch.no_grad():
            goes_on = config.gamma * (1.0 - batch.terminal)  # (B,)
            next_w, next_b = self.target_mixer(next_state)
            target = batch.rewards + goes_on * ((next_w * self.target_v(next_seen).squeeze(-1)).sum(1) + next_b)
            next_wc, next_bc = self.target_cost_mixer(next_state, alpha)
            next_cost = (next_wc @ self.target_cost_v(next_seen)).squeeze(-1) + next_bc  # (B, N)
            cost_target = goes_on[:, None] * next_cost
            old_w, _ = self.target_mixer(state)  # (B, N)
            old_wc, _ = self.target_cost_mixer(state, alpha)  # (B, N, N)
            own = torch.einsum("k,bki->bi", alpha, old_wc) / alpha
            old_q, old_cost_q = (net(pairs).squeeze(-1) for net in (self.target_q, self.target_cost_q))

        w, b = self.mixer(state)
        q_loss = F.mse_loss((w * self.q(pairs).squeeze(-1)).sum(1) + b, target)
        wc, bc = self.cost_mixer(state, alpha)
        cost_q_loss = F.mse_loss((wc @ self.cost_q(pairs)).squeeze(-1) + bc, cost_target)

        v, cost_v = self.v(seen).squeeze(-1), self.cost_v(seen).squeeze(-1)  # (B, N)
        z = old_w / alpha * (old_q - v.detach()) + own * (old_cost_q - cost_v)
        clipped = z.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
        shift = clipped.detach().max().clamp(min=-1.0)
        cost_v_loss = ((clipped - shift).exp() * (1.0 + z - clipped) + (-shift).exp() * own * cost_v).mean()
        raised = clipped.detach().exp()
        weights = raised.clamp(max=_LARGEST_WEIGHT)
        v_loss = (weights * (old_q - v).square()).mean() / weights.mean()

        outputs = self.policy(seen)
        policy_loss = -(raised * log_prob(outputs, batch.actions)).mean()
        return outputs, (policy_loss, q_loss, v_loss, cost_q_loss, cost_v_loss), old_w

    def measure(self, batch: Batch, outputs: Tensor, behaviour: Tensor, w: Tensor) -> Tensor:
        """Influence (N,): the least-squares ratio of two slopes by the policy's outputs, from one sample a state."""
        outputs = outputs.requires_grad_()
        mean, std = normal(outputs)
        actions = torch.tanh(mean + std * torch.randn_like(mean))
        value = (w * self.target_q(self.with_ids(batch.obs, actions)).squeeze(-1)).sum()
        (of_value,) = torch.autograd.grad(value, outputs)
        (of_kl,) = torch.autograd.grad(kl(outputs, behaviour).sum(), outputs)
        return ((of_value * of_kl).sum(-1) / (of_kl.square().sum(-1) + 1e-6)).mean(0)

    @torch.no_grad()
    def update_targets(self) -> None:
        """θ̄ ← τ θ + (1 - τ) θ̄."""
        for target, online in zip(self.targets, self.online, strict=True):
            for old, new in zip(target.parameters(), online.parameters(), strict=True):
                old.lerp_(new, self.config.tau)

    def with_ids(self, *inputs: Tensor) -> Tensor:
        """(B, N, X) each -> (B, N, sum of X + N), the agent's one-hot number last."""
        return torch.cat([*inputs, self.ids.expand(len(inputs[0]), -1, -1)], dim=-1)


def normal(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, N, A) of the Gaussian before tanh, of outputs (B, N, 2A)."""
    mean, log_std = outputs.chunk(2, dim=-1)
    return mean.clamp(-9.0, 9.0), log_std.clamp(-5.0, 2.0).exp()


def kl(outputs: Tensor, other: Tensor) -> Tensor:
    """KL(π || μ), (B, N), of Gaussians squashed by tanh with these outputs (B, N, 2A)."""
    (mean, std), (other_mean, other_std) = normal(outputs), normal(other)
    squares = (std.square() + (mean - other_mean).square()) / (2.0 * other_std.square())
    return ((other_std / std).log() + squares - 0.5).sum(-1)


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
        sizes = torch_omiga.N_AGENTS, torch_omiga.OBS_DIM, torch_omiga.ACTION_DIM
        learner, size = Learner(*sizes, config), torch_omiga.BUFFER_SIZE
        buffer = random_batch(size)
        for _ in range(torch_omiga.WARM_UP_UPDATES):
            learner.update(sample(buffer, size, config.batch_size))
        updates, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            learner.update(sample(buffer, size, config.batch_size))
            updates += 1
        return updates / elapsed
    finally:
        torch.set_num_threads(before)
