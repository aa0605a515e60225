"""One update of the continuous methods once more in NumPy, from the equations in their docstrings.

Losses are written for one network at a time and nothing here is derived by JAX: a gradient is the imaginary part of the
loss after a tiny imaginary step of each parameter, which is exact where differences of real steps are not. What carries
a stop-gradient (targets, weights, actions found by the search) is computed once and held; batch statistics are computed
anew in each evaluation of a loss.

Layer names, the fields of `State`, the start of a method and the splits of random keys are known to the first two
sections alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from omarl_envs.spec import TaskSpec
from problems import METHODS, context, float64, of

from omarl_jax.networks import Norm
from omarl_jax.types import Stats, Transition

# --- What the learned state looks like ---


class Network(NamedTuple):
    """The parameters of one policy, which has one head, or of the critics of one agent, which share a normalisation.

    Attributes:
        heads: layers (weights (I, O), biases (O,)) of each, complex, as are scale and shift.
        affine: scale and shift of the normalised inputs, each (I,); None without batch normalisation.
    """

    heads: list[list[tuple[np.ndarray, np.ndarray]]]
    affine: tuple[np.ndarray, np.ndarray] | None


@dataclasses.dataclass
class Learner:
    """What a method learns: lists have one entry an agent, or one for all if the critic is centralised."""

    policies: list[Network]
    critics: list[Network]
    target_policies: list[Network]
    target_critics: list[Network]
    mean: np.ndarray  # (N, O), that normalise what the policy sees when it acts
    var: np.ndarray

    def tree(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def from_state(state: Any) -> Learner:
    """A copy of what a method has learned."""
    state = float64(_networks(state))
    net = state.policy
    stats = net.stats or Norm(np.zeros(0), np.zeros(0))
    return Learner(
        policies=_each(policy_network, net.params),
        critics=_each(critic_network, getattr(state, "critic", None)),
        target_policies=_each(policy_network, getattr(state, "target_policy", None)),
        target_critics=_each(critic_network, getattr(state, "target_critic", None)),
        mean=np.array(stats.mean),
        var=np.array(stats.var),
    )


def _networks(state: Any) -> Any:
    """The part of a state that holds networks, without what standardises inputs or counts updates."""
    state = getattr(state, "learner", state)
    return getattr(state, "networks", state)


def _with_networks(state: Any, networks: Any) -> Any:
    if hasattr(state, "learner"):
        return state._replace(learner=_with_networks(state.learner, networks))
    return state._replace(networks=networks) if hasattr(state, "networks") else networks


def _each(network: Callable[[Any], Network], params: Any) -> list[Network]:
    if params is None:
        return []
    n = len(jax.tree.leaves(params)[0])
    return [jax.tree.map(lambda x: np.array(x, complex), network(of(params, i))) for i in range(n)]


def policy_network(params: Any) -> Network:
    """The parameters of one policy, or of one agent's values of discrete actions."""
    layers = [params[f"layer_{i}"] for i in range(sum(name.startswith("layer") for name in params))]
    return Network([[(x["kernel"], x["bias"]) for x in layers]], _affine(params))


def critic_network(params: Any) -> Network:
    """The parameters of one agent's critics."""
    layers = [params[f"layer_{i}"] for i in range(sum(name.startswith("layer") for name in params))]
    heads = [[(x["kernel"][head], x["bias"][head]) for x in layers] for head in range(len(layers[0]["bias"]))]
    return Network(heads, _affine(params))


def _affine(params: Any) -> tuple[np.ndarray, np.ndarray] | None:
    return (params["norm"]["scale"], params["norm"]["bias"]) if "norm" in params else None


def fixed_statistics(config: Any, stats: Stats) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation that observations are normalised by, (N, O)."""
    if config.input_norm == "dataset":
        return np.asarray(stats.obs_mean), np.asarray(stats.obs_std)
    return np.zeros(stats.obs_mean.shape), np.ones(stats.obs_mean.shape)


def subject(name: str, config: Any, spec: TaskSpec, stats: Stats) -> tuple[Any, Callable[..., tuple[Any, Any]]]:
    """The method that is tested: a state to begin with, and (config, state, batch, key) -> state, metrics, in float64.

    Noise on all parameters puts the targets far from what is learned, and makes policies differ from 0.
    """
    rng = np.random.default_rng(1)

    def noisy(tree: Any) -> Any:
        return jax.tree.map(lambda x: x + 0.5 * rng.normal(size=x.shape), tree)

    method = METHODS[name].make(config, spec)
    state = method.init(jax.random.key(0), context(method, spec, stats))
    nets = _networks(state)
    others = {"critic", "target_critic", "target_policy"}.intersection(nets._fields)
    nets = nets._replace(
        policy=nets.policy._replace(params=noisy(nets.policy.params)),
        **{field: noisy(getattr(nets, field)) for field in sorted(others)},
    )
    state = _with_networks(state, nets)
    state = jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    return state, jax.jit(lambda config, *inputs: METHODS[name].make(config, spec).update(*inputs))


# --- What random numbers an update draws ---


class Draws(NamedTuple):
    """Random numbers of one update.

    Attributes:
        target_noise: (B, N, A), normal.
        uniform: (K, B, A') in [-1, 1] for each critic: the penalty's samples.
        around: two (K, B, A') for each critic, normal: those around the policy's actions here and next.
        search: for each agent the (K, B, A) of each iteration, normal, or uniform for random shooting.
    """

    target_noise: np.ndarray | None = None
    uniform: list[np.ndarray] | None = None
    around: list[list[np.ndarray]] | None = None
    search: list[list[np.ndarray]] | None = None


def draws(name: str, config: Any, key: jax.Array, n: int, batch: Transition) -> Draws:
    """The random numbers that a method draws from its key."""
    if name in ("td3_bc", "matd3"):
        return Draws(target_noise=np.asarray(jax.random.normal(key, batch.actions.shape)))
    if name == "cql":
        return Draws(None, *_conservative(config, key, n, batch), None)
    if name == "omar":
        cql_key, search_key = jax.random.split(key)
        return Draws(None, *_conservative(config, cql_key, n, batch), _search(config, search_key, n, batch))
    return Draws()


def _conservative(config: Any, key: jax.Array, n: int, batch: Transition) -> tuple[list[Any], list[Any]]:
    first, *others = jax.random.split(key, 3 if config.policy_samples else 1)
    shape = (config.cql_samples, *batch.actions.shape)
    uniform = jax.random.uniform(first, shape, minval=-1.0, maxval=1.0)
    normal = [_of_critics(jax.random.normal(other, shape), config) for other in others]
    uniform_of_critics = _of_critics(uniform, config)
    return uniform_of_critics, [list(of_kinds) for of_kinds in zip(*normal, strict=True)] or [[]] * n


def _of_critics(x: jax.Array, config: Any) -> list[np.ndarray]:
    """(K, B, N, A) -> the (K, B, A') of each critic."""
    x = np.asarray(x)
    return [x.reshape(*x.shape[:2], -1)] if config.centralised else list(np.moveaxis(x, 2, 0))


def _search(config: Any, key: jax.Array, n: int, batch: Transition) -> list[list[np.ndarray]]:
    b, _, a = batch.actions.shape
    k, steps = config.search_samples, config.search_steps
    if config.search == "random_shooting":
        drawn = [np.asarray(jax.random.uniform(key, (steps * k, b, n, a), minval=-1.0))]
    else:
        drawn = [
            np.asarray(jax.random.normal(one, (k, a, n, b))).transpose(0, 3, 2, 1)
            for one in jax.random.split(key, steps)
        ]
    return [[x[:, :, i] for x in drawn] for i in range(n)]


# --- Networks ---


def outputs(network: Network, x: np.ndarray, fixed: tuple[Any, Any]) -> np.ndarray:
    """(…, I) -> (heads, …, O), of normalised inputs; `fixed` is mean and deviation where the batch's are not used."""
    if network.affine is None:
        x = (x - fixed[0]) / fixed[1]
    else:
        axes = tuple(range(x.ndim - 1))
        x = x - x.mean(axis=axes)
        x = x / np.sqrt(np.mean(x**2, axis=axes) + 1e-5) * network.affine[0] + network.affine[1]
    heads = []
    for layers in network.heads:
        y = x
        for i, (weights, bias) in enumerate(layers):
            y = (np.maximum(y, 0) if i else y) @ weights + bias
        heads.append(y)
    out = np.stack(heads)
    return out if out.imag.any() else out.real


def tanh_gaussian_log_prob(out: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """log N(u; μ, σ) - log(1 - tanh² u) of actions tanh u, (…, 2 A), (…, A) -> (…)."""
    mean, log_std = np.split(out, 2, axis=-1)
    log_std, actions = np.clip(log_std, -5, 2), np.clip(actions, -1 + 1e-6, 1 - 1e-6)
    gaussian = -0.5 * np.square((np.arctanh(actions) - mean) / np.exp(log_std)) - log_std - 0.5 * np.log(2 * np.pi)
    return (gaussian - np.log(1 - np.square(actions))).sum(axis=-1)


# --- Steps ---


class Adam:
    """Clips gradients to a norm and steps along them, for one network."""

    def __init__(self, network: Network) -> None:
        self.leaves = jax.tree.leaves(network)  # the arrays themselves, which a step changes in place
        self.moments = [(np.zeros(leaf.shape), np.zeros(leaf.shape)) for leaf in self.leaves]
        self.steps = 0

    def step(self, loss: Callable[[], float], config: Any) -> float:
        """One step on a loss of these arrays; returns the norm of its gradient before it is cut."""
        slopes = [self._slope(loss, leaf) for leaf in self.leaves]
        norm = np.sqrt(sum(np.square(slope).sum() for slope in slopes))
        self.steps += 1
        for leaf, slope, (mean, square) in zip(self.leaves, slopes, self.moments, strict=True):
            cut = slope * min(1.0, config.grad_clip / norm)
            mean[...] = 0.9 * mean + 0.1 * cut
            square[...] = 0.999 * square + 0.001 * cut**2
            unbiased = mean / (1 - 0.9**self.steps), square / (1 - 0.999**self.steps)
            leaf -= config.lr * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        return float(norm)

    @staticmethod
    def _slope(loss: Callable[[], float], leaf: np.ndarray) -> np.ndarray:
        slope, step = np.zeros(leaf.shape), 1e-30
        for index in np.ndindex(leaf.shape):
            leaf[index] += 1j * step
            slope[index] = np.imag(loss()) / step
            leaf[index] = leaf[index].real
        return slope


class Reference:
    """A method's learning, update by update."""

    def __init__(self, name: str, stats: Stats, config: Any, learner: Learner) -> None:
        self.name, self.learner = name, learner
        self.n = len(learner.policies)
        self.joint = getattr(config, "centralised", False)  # critics see all agents
        self.for_team = self.joint and name != "matd3"  # and learn for all of them, not for one each
        self.policy_optimisers = [Adam(network) for network in learner.policies]
        self.critic_optimisers = [Adam(network) for network in learner.critics]
        self.obs_mean, self.obs_std = fixed_statistics(config, stats)
        self.updates = 0

    def update(self, config: Any, batch: Transition, draws: Draws) -> tuple[dict[str, float], dict[str, list[float]]]:
        """One update. Returns the metrics and the norms of the gradients of policies and critics."""
        batch = float64(batch)
        found: dict[str, list[float]] = {}
        norms: dict[str, list[float]] = {"critic": [], "policy": []}
        learner, begun = self.learner, [self.actions(self.learner.policies, x) for x in (batch.obs, batch.next_obs)]

        def record(metrics: dict[str, float]) -> None:
            for metric, value in metrics.items():
                found.setdefault(metric, []).append(value)

        if learner.critics:
            targets = self.targets(config, batch, draws)
            losses = [self.critic_loss(config, batch, draws, g, targets[g], begun) for g in range(len(learner.critics))]
            for loss, optimiser in zip(losses, self.critic_optimisers, strict=True):
                record(loss()[1])
                norms["critic"].append(optimiser.step(lambda loss=loss: loss()[0], config))
        policy_is_due = self.updates % getattr(config, "policy_delay", 1) == 0
        self.updates += 1
        for i, optimiser in enumerate(self.policy_optimisers):
            loss = self.policy_loss(config, batch, draws, i)
            record(loss()[1])
            if policy_is_due:
                norms["policy"].append(optimiser.step(lambda loss=loss: loss()[0], config))
        if policy_is_due:
            self.move(learner.target_policies, learner.policies if learner.target_policies else [], config)
            self.move(learner.target_critics, learner.critics, config)
            around = (batch.obs, batch.next_obs) if getattr(config, "policy_samples", False) else ()
            for seen in (*around, batch.obs) if config.input_norm == "batch" else ():
                learner.mean += 0.1 * (seen.mean(axis=0) - learner.mean)
                learner.var += 0.1 * (seen.var(axis=0, ddof=1) - learner.var)
        return {metric: float(np.mean(values)) for metric, values in found.items()}, norms

    def move(self, targets: list[Network], networks: list[Network], config: Any) -> None:
        for target, online in zip(jax.tree.leaves(targets), jax.tree.leaves(networks), strict=True):
            target += config.tau * (online - target)

    # --- what networks see and say ---

    def policy_output(self, policies: list[Network], obs: np.ndarray, i: int) -> np.ndarray:
        """(B, N, O) -> (B, outputs) before any tanh."""
        return outputs(policies[i], obs[:, i], (self.obs_mean[i], self.obs_std[i]))[0]

    def actions(self, policies: list[Network], obs: np.ndarray) -> np.ndarray:
        """What deterministic policies do, (B, N, O) -> (B, N, A)."""
        return np.stack([np.tanh(self.policy_output(policies, obs, i)) for i in range(self.n)], axis=1)

    def view(self, x: np.ndarray, g: int) -> np.ndarray:
        """What critic g sees of (…, N, X)."""
        return x.reshape(*x.shape[:-2], -1) if self.joint else x[..., g, :]

    def values(self, critic: Network, obs: np.ndarray, actions: np.ndarray, g: int) -> np.ndarray:
        """Of critic g, (B, N, O), (…, B, A') -> (heads, …, B)."""
        mean, std = self.view(self.obs_mean, g), self.view(self.obs_std, g)
        seen = np.broadcast_to(self.view(obs, g), (*actions.shape[:-1], len(mean)))
        width = actions.shape[-1]
        fixed = np.append(mean, np.zeros(width)), np.append(std, np.ones(width))
        return outputs(critic, np.concatenate([seen, actions], axis=-1), fixed)[..., 0]

    def judged(self, batch: Transition, own: np.ndarray, i: int) -> np.ndarray:
        """Values of agent i's actions (…, B, A), the others acting as in the data, by the first of its critics."""
        g = 0 if self.for_team else i
        if self.joint:
            joint = np.broadcast_to(batch.actions, (*own.shape[:-1], *batch.actions.shape[1:])).astype(own.dtype)
            joint[..., i, :] = own
            own = joint.reshape(*own.shape[:-1], -1)
        return self.values(self.learner.critics[g], batch.obs, own, g)[0]

    def rewards_and_ends(self, batch: Transition, g: int) -> tuple[np.ndarray, np.ndarray]:
        """(B,), (B,) of critic g."""
        if self.for_team:
            return batch.rewards.mean(axis=1), batch.terminal.min(axis=1)
        return batch.rewards[:, g], batch.terminal[:, g]

    # --- critics ---

    def targets(self, config: Any, batch: Transition, draws: Draws) -> list[np.ndarray]:
        """y of each critic, (B,)."""
        learner, targets = self.learner, []
        next_actions = batch.next_actions
        if learner.target_policies:
            next_actions = self.actions(learner.target_policies, batch.next_obs)
        if draws.target_noise is not None:
            noise = np.clip(
                config.target_noise * draws.target_noise, -config.target_noise_clip, config.target_noise_clip
            )
            next_actions = np.clip(next_actions + noise, -1, 1)
        for g, critic in enumerate(learner.target_critics):
            rewards, ends = self.rewards_and_ends(batch, g)
            following = self.values(critic, batch.next_obs, self.view(next_actions, g), g).min(axis=0)
            if self.name == "icq":
                weights = softmax_weights((1 - ends) * following, config.critic_temperature)
                following *= np.minimum(weights, 1) if config.published_clip else weights
            targets.append(rewards + config.gamma * (1 - ends) * following)
        return targets

    def critic_loss(
        self, config: Any, batch: Transition, draws: Draws, g: int, target: np.ndarray, around: list[np.ndarray]
    ) -> Callable[[], tuple[float, dict[str, float]]]:
        """A function of the critic's arrays as they are when it is called. `around`: the policies' actions."""
        critic, samples = self.learner.critics[g], self.samples(config, draws, g, around)

        def loss() -> tuple[float, dict[str, float]]:
            q = self.values(critic, batch.obs, self.view(batch.actions, g), g)
            td_loss = sum(np.mean((of_head - target) ** 2) for of_head in q)
            metrics = {"critic_loss": td_loss, "q": q.mean()}
            if not samples:
                return td_loss, metrics
            terms = [self.values(critic, batch.obs, actions, g) - subtracted for actions, subtracted in samples]
            penalty = np.log(np.exp(np.concatenate(terms, axis=1)).sum(axis=1)) - q
            metrics["cql_penalty"] = penalty.mean(axis=1).sum()
            return td_loss + config.cql_alpha * metrics["cql_penalty"], metrics

        return loss

    def samples(
        self, config: Any, draws: Draws, g: int, around: list[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray | float]]:
        """Actions (K, B, A') that the penalty holds down, and what is subtracted from their values."""
        if draws.uniform is None or draws.around is None:
            return []
        samples: list[tuple[np.ndarray, np.ndarray | float]] = []
        samples.append((draws.uniform[g], np.log(0.5) * draws.uniform[g].shape[-1]))
        for centre, noise in zip(around if config.policy_samples else [], draws.around[g], strict=True):
            density = np.exp(-0.5 * noise**2) / (config.sample_noise * np.sqrt(2 * np.pi))
            density = density.prod(axis=-1)
            actions = np.clip(self.view(centre, g) + config.sample_noise * noise, -1, 1)
            samples.append((actions, density if config.published_density else np.log(density)))
        return samples

    # --- policies ---

    def policy_loss(
        self, config: Any, batch: Transition, draws: Draws, i: int
    ) -> Callable[[], tuple[float, dict[str, float]]]:
        """A function of the policy's arrays as they are when it is called; critics are those of after their step."""
        data = batch.actions[:, i]
        stochastic = self.name == "icq" or getattr(config, "stochastic", False)
        begun = self.policy_output(self.learner.policies, batch.obs, i)
        weights, best = np.ones(len(data)), data
        if self.name == "icq":
            weights = softmax_weights(self.worth(config, batch, 0 if self.for_team else i), config.policy_temperature)
        elif self.name == "td3_bc":
            weights = config.alpha / np.abs(self.judged(batch, np.tanh(begun), i)).mean()
        elif self.name == "omar":
            best = self.best(config, batch, draws, np.tanh(begun), i)

        def loss() -> tuple[float, dict[str, float]]:
            out = self.policy_output(self.learner.policies, batch.obs, i)
            if stochastic:
                own = np.tanh(out[:, : data.shape[-1]])
                total = -np.mean(weights * tanh_gaussian_log_prob(out, data))
                return total, {"policy_loss": total, "saturation": np.mean(np.abs(own) > 0.99)}
            own = np.tanh(out)
            distance = np.mean((own - best) ** 2)
            if self.name == "bc":
                return distance, {"policy_loss": distance, "saturation": np.mean(np.abs(own) > 0.99)}
            q = self.judged(batch, own, i).mean()
            total = {
                "td3_bc": lambda: -weights * q + distance,
                "omar": lambda: config.omar_coef * distance - (1 - config.omar_coef) * q,
            }.get(self.name, lambda: -q)()
            total += config.policy_penalty * np.mean(own**2)
            metrics = {"policy_loss": total, "saturation": np.mean(np.abs(own) > 0.99)}
            return total, metrics | ({"omar_loss": distance} if self.name == "omar" else {})

        return loss

    def worth(self, config: Any, batch: Transition, g: int) -> np.ndarray:
        """What ICQ weighs the data's actions by, (B,)."""
        critic = self.learner.critics[g]
        worth = self.values(critic, batch.obs, self.view(batch.actions, g), g).min(axis=0)
        if not config.published_advantage:
            return worth
        rewards, ends = self.rewards_and_ends(batch, g)
        following = self.values(critic, batch.next_obs, self.view(batch.next_actions, g), g).min(axis=0)
        return rewards + config.gamma * (1 - ends) * following - worth

    def best(self, config: Any, batch: Transition, draws: Draws, own: np.ndarray, i: int) -> np.ndarray:
        """OMAR's â, (B, A): the policy's action, or the best of the search's last iteration if that is better."""
        assert draws.search is not None
        rows = np.arange(len(own))
        mean, std = np.zeros(own.shape), np.full(own.shape, config.search_std)
        elites, of_elites = np.zeros((0, *own.shape)), np.zeros((0, len(own)))
        for noise in draws.search[i]:
            drawn = noise if config.search == "random_shooting" else np.clip(mean + std * noise, -1, 1)
            pool = np.concatenate([drawn, elites])
            values = np.concatenate([self.judged(batch, drawn, i), of_elites])
            if config.search == "cem":
                order = np.argsort(-values, axis=0, kind="stable")[: config.search_elites]
                elites, of_elites = pool[order, rows], values[order, rows]
                mean, std = elites.mean(axis=0), elites.std(axis=0, ddof=1)
            else:
                weights = np.exp(values - values.max(axis=0))[..., None]
                mean = (weights * pool).sum(axis=0) / weights.sum(axis=0)
                std = np.sqrt(np.mean((pool - mean) ** 2, axis=0))
        best = values.argmax(axis=0)
        better = values[best, rows] > self.judged(batch, own, i)
        return np.where(better[:, None], pool[best, rows], own)


def softmax_weights(values: np.ndarray, temperature: float) -> np.ndarray:
    """B softmax(values / temperature), (B,)."""
    weights = np.exp((values - values.max()) / temperature)
    return len(values) * weights / weights.sum()
