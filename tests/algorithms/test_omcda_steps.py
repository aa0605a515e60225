"""Updates of OMCDA against NumPy: all parameters, prices, influences and metrics, in float64."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs.spec import TaskSpec
from problems import context, float64
from reference import Adam, tanh_gaussian_log_prob
from shared_networks import mixing, of_agents, q_values

from omarl_jax.algorithms import find
from omarl_jax.types import Transition

N, O, ROWS, SAMPLES, UPDATES = 2, 3, 12, 3, 10  # noqa: E741  # the letters of the shapes
METHOD = find("omcda")
HALVES = {"rewards": "", "costs": "cost_"}
NETS = ("q", "v", "target_q", "target_v")
# Of ten updates: influence is measured in every second, with a rate of 2/5; shares are even in the first three.
SCHEDULES = {"influence_period": 0.2, "smoothing": 0.5, "warm_start": 0.25, "alpha_rate": 2.0}
SMALL = {"hidden": (5,), "mixer_hidden": 4, "lr": 0.02, "tau": 0.1, "gamma": 0.9, "batch_size": ROWS}


def task(kind: Any) -> TaskSpec:
    size = {"continuous": 2, "discrete": 3}[kind]
    return TaskSpec(f"toy/{kind}", kind, n_agents=N, obs_dim=O, action_dim=size, state_dim=4, episode_length=5)


def transitions(kind: str, seed: int) -> Transition:
    """Agents that end at different times, rewards that differ between agents, and actions that are not all legal."""
    rng = np.random.default_rng(seed)
    discrete = kind == "discrete"
    terminal = rng.random((ROWS, N)) < 0.4
    terminal[:2] = True
    actions = rng.integers(3, size=(ROWS, N)) if discrete else rng.uniform(-1, 1, (ROWS, N, 2))
    legal = (rng.random((ROWS, N, 3)) < 0.7) | (actions[..., None] == np.arange(3)) if discrete else None
    return Transition(
        obs=rng.normal(1.0, 2.0, (ROWS, N, O)),
        actions=actions,
        rewards=rng.normal(-1.0, 3.0, (ROWS, N)),
        next_obs=rng.normal(-1.0, 2.0, (ROWS, N, O)),
        terminal=terminal,
        truncated=np.zeros(ROWS, bool),
        state=rng.normal(size=(ROWS, 4)),
        next_state=rng.normal(size=(ROWS, 4)),
        action_mask=legal,
    )


def clip(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Of complex numbers by their real part, where they lose their imaginary part."""
    return np.where(x.real > high, high, np.where(x.real < low, low, x))


class Gaussian:
    """Squashed by tanh, of outputs (B, N, 2 A)."""

    def __init__(self, outputs: np.ndarray, legal: None, noise: np.ndarray):
        mean, log_std = np.split(outputs, 2, axis=-1)
        self.outputs, self.noise = outputs, noise
        self.mean, self.std = clip(mean, -9, 9), np.exp(clip(log_std, -5, 2))

    def log_prob(self, actions: np.ndarray) -> np.ndarray:
        return tanh_gaussian_log_prob(np.concatenate([self.mean, np.log(self.std)], axis=-1), actions)

    def kl(self, other: Any) -> np.ndarray:
        squares = (self.std**2 + (self.mean - other.mean) ** 2) / (2 * other.std**2)
        return (np.log(other.std / self.std) + squares - 0.5).sum(axis=-1)

    def support(self) -> tuple[np.ndarray, np.ndarray]:
        actions = np.tanh(self.mean + self.std * self.noise)
        return actions, np.full(actions.shape[:-1], 1 / SAMPLES)


class Categorical:
    """Over legal actions, of logits (B, N, A)."""

    def __init__(self, outputs: np.ndarray, legal: np.ndarray, noise: None):
        self.outputs = outputs
        weights = np.exp(outputs) * legal
        self.probabilities = weights / weights.sum(axis=-1, keepdims=True)

    def log_prob(self, actions: np.ndarray) -> np.ndarray:
        found = np.take_along_axis(np.broadcast_to(self.probabilities, (*actions.shape, 3)), actions[..., None], -1)
        return np.log(np.where(found == 0, 1.0, found))[..., 0]  # what is illegal has no weight

    def kl(self, other: Any) -> np.ndarray:
        legal = self.probabilities != 0
        ratio = np.where(legal, self.probabilities, 1.0) / np.where(legal, other.probabilities, 1.0)
        return (self.probabilities * np.log(ratio)).sum(axis=-1)

    def support(self) -> tuple[np.ndarray, np.ndarray]:
        actions = np.broadcast_to(np.arange(3)[:, None, None], (3, ROWS, N))
        return actions, np.moveaxis(self.probabilities, -1, 0)


def square_mixing(params: Any, state: np.ndarray, alpha: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """w (B, N, N) and b (B, N)."""
    if kind == "identity":
        return np.tile(np.eye(N), (len(state), 1, 1)), np.zeros((len(state), N))
    hidden = np.maximum(state @ params["layer_0"]["kernel"] + params["layer_0"]["bias"], 0)
    w, b = (hidden @ params[name]["kernel"] + params[name]["bias"] for name in ("weights", "bias"))
    w = w.reshape(-1, N, N)
    if kind == "hyper":
        return w * np.sign(w.real), b
    columns = np.exp(w) / np.exp(w).sum(axis=1, keepdims=True)
    return columns * alpha[None, None, :] / alpha[None, :, None], b


def q_of_many(params: Any, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """(K, B, N) of actions (K, B, N, …)."""
    return np.stack([q_values(params, obs, one) for one in actions])


class Reference:
    """One update after the other; `nets` are the arrays that are learned, complex, and changed in place."""

    def __init__(self, kind: str, config: Any, nets: dict[str, Any], numbers: dict[str, Any]) -> None:
        self.kind, self.nets, self.updates = kind, nets, 0
        self.log_alpha, self.influence, self.share = (numbers[name] for name in ("log_alpha", "influence", "share"))
        self.optimisers = {name: Adam(nets[name]) for name in ("policy", "q", "v", "cost_q", "cost_v") if name in nets}

    def update(self, config: Any, batch: Transition, noise: Any, drawn: np.ndarray) -> dict[str, Any]:
        held = {name: float64(jax.tree.map(np.real, net)) for name, net in self.nets.items()}
        alpha = np.exp(self.log_alpha)
        losses, kl, estimate, v = self.losses(config, batch, held, alpha, noise)
        metrics = {name: loss().real for name, loss in losses.items()}
        self.norms = [optimiser.step(losses[name], config) for name, optimiser in self.optimisers.items()]
        for name in [name for name in self.nets if "target" in name]:
            pairs = map(jax.tree.leaves, (self.nets[name], self.nets[name.replace("target_", "")]))
            for old, new in zip(*pairs, strict=True):
                old += config.tau * (new - old)  # in place

        if due := self.updates % 2 == 0:
            self.influence = 0.6 * self.influence + 0.4 * estimate
        scaled = self.influence / (np.abs(self.influence).mean() + 1e-6) / config.temperature
        self.share = {
            "influence": np.exp(scaled) / np.exp(scaled).sum(),
            "uniform": np.full(N, 1 / N),
            "random": drawn if due else self.share,
            "random_once": self.share,
        }[config.allocation]
        share = self.share if self.updates >= 3 else np.full(N, 1 / N)
        budget = share * config.d_tot
        moved = self.log_alpha + 2.0 / UPDATES * (kl - budget) / (kl + budget)
        self.log_alpha = np.minimum(np.maximum(moved, np.log(config.alpha_min)), np.log(config.alpha_max))
        self.updates += 1
        return metrics | {
            "influence": self.influence,
            "share": share,
            "budget": budget,
            "kl": kl,
            "kl_over_budget": kl / budget,
            "alpha": np.exp(self.log_alpha),
            "at_bound": self.log_alpha != moved,
            "v_r": v.mean(axis=0),
        }

    def losses(
        self, config: Any, batch: Transition, held: dict[str, Any], alpha: np.ndarray, noise: Any
    ) -> tuple[dict[str, Callable[[], Any]], np.ndarray, np.ndarray, np.ndarray]:
        """Losses of the arrays in `nets`, the mean KL (N,), the estimate of influence (N,) and V of rewards (B, N)."""
        nets, apart, kind = self.nets, "cost_q" in self.nets, config.conservative_mixer
        goes_on = config.gamma * ~batch.terminal.all(axis=1)
        of_v = lambda params, obs: of_agents(params, obs)[..., 0]  # noqa: E731
        target_q, target_mixer = held["target_q"]
        next_w, next_b = mixing(target_mixer, batch.next_state)
        next_v = (next_w * of_v(held["target_v"], batch.next_obs)).sum(axis=1) + next_b
        y = batch.rewards.mean(axis=1) + goes_on * next_v
        w, _ = mixing(target_mixer, batch.state)
        old_q, v = q_values(target_q, batch.obs, batch.actions), of_v(held["v"], batch.obs)
        if apart:
            cost_q, cost_mixer = held["target_cost_q"]
            next_wc, next_bc = square_mixing(cost_mixer, batch.next_state, alpha, kind)
            next_vc = np.einsum("bkj,bj->bk", next_wc, of_v(held["target_cost_v"], batch.next_obs)) + next_bc
            cost_y = goes_on[:, None] * next_vc
            wc, _ = square_mixing(cost_mixer, batch.state, alpha, kind)
            old_qc = q_values(cost_q, batch.obs, batch.actions)
            matrix = wc  # that weighs conservative values in the exponent, (B, N, N)
            if not config.published_exponent:
                matrix = np.stack([np.diag([alpha @ row[:, i] / alpha[i] for i in range(N)]) for row in wc])

        def exponent(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # and what of it these values take away
            if not apart:
                taken = w * values / alpha
                return w * old_q / alpha - taken, taken
            taken = np.einsum("bij,bj->bi", matrix, values)
            return w * (old_q - v) / alpha + np.einsum("bij,bj->bi", matrix, old_qc) - taken, taken

        z, _ = exponent(of_v(held["cost_v"], batch.obs) if apart else v)
        self.z, z = z, clip(z, -10, 10)
        weights = np.minimum(np.exp(z), 100)

        def policy(params: Any) -> Any:
            return self.distribution(of_agents(params, batch.obs), batch, noise)

        def q_loss() -> Any:
            q_params, mixer_params = nets["q"]
            online_w, online_b = mixing(mixer_params, batch.state)
            total = (online_w * q_values(q_params, batch.obs, batch.actions)).sum(axis=1) + online_b
            return np.mean((total - y) ** 2)

        def cost_q_loss() -> Any:
            q_params, mixer_params = nets["cost_q"]
            online_w, online_b = square_mixing(mixer_params, batch.state, alpha, kind)
            values = q_values(q_params, batch.obs, batch.actions)
            totals = np.einsum("bkj,bj->bk", online_w, values) + online_b
            return np.mean((totals - cost_y) ** 2)

        def normalisation_loss() -> Any:
            exponents, taken = exponent(of_v(nets["cost_v" if apart else "v"], batch.obs))
            inside = clip(exponents, -10, 10)
            m = max(inside.real.max(), -1)
            beyond = exponents - np.real(clip(exponents, -10, 10))  # grows as a line where it is clipped
            g = np.where(np.abs(exponents.real) < 10, np.exp(inside), np.exp(inside.real) * (1 + beyond))
            return np.mean(np.exp(-m) * (g + taken))

        def v_loss() -> Any:
            return np.mean(weights * (old_q - of_v(nets["v"], batch.obs)) ** 2) / weights.mean()

        def policy_loss() -> Any:
            return -np.mean(np.exp(z) * policy(nets["policy"]).log_prob(batch.actions))

        losses = {"policy": policy_loss, "q": q_loss, "v": v_loss if apart else normalisation_loss}
        losses |= {"cost_q": cost_q_loss, "cost_v": normalisation_loss} if apart else {}
        pi, behaviour = policy(held["policy"]), policy(held["behaviour"])
        gains = w * (old_q - v), weights
        estimate = self.estimate(config, batch, pi, behaviour, w, target_q, gains, noise)
        return losses, pi.kl(behaviour).mean(axis=0), estimate, v

    def distribution(self, outputs: np.ndarray, batch: Transition, noise: Any) -> Any:
        return {"continuous": Gaussian, "discrete": Categorical}[self.kind](outputs, batch.action_mask, noise)

    def estimate(
        self, config: Any, batch: Transition, pi: Any, behaviour: Any, w: Any, q_params: Any, gains: Any, noise: Any
    ) -> np.ndarray:
        """Influence (N,), by a loop over agents and states."""
        if config.influence == "in_sample":
            gain, weights = gains
            ratio = pi.log_prob(batch.actions) - behaviour.log_prob(batch.actions) - pi.kl(behaviour)
            return (weights * gain * ratio).sum(axis=0) / ((weights * ratio**2).sum(axis=0) + 1e-6)
        if config.influence == "covariance":
            actions, p = pi.support()
            values = w * q_of_many(q_params, batch.obs, actions)
            ratio = pi.log_prob(actions) - behaviour.log_prob(actions)
            found = np.zeros((ROWS, N))
            for b, i in np.ndindex(ROWS, N):
                x, y, each = values[:, b, i], ratio[:, b, i], p[:, b, i]
                covariance = (each * x * y).sum() - (each * x).sum() * (each * y).sum()
                found[b, i] = covariance / ((each * y**2).sum() - (each * y).sum() ** 2 + 1e-6)
            return found.mean(axis=0)
        slopes = []
        for entry in range(pi.outputs.shape[-1]):  # each by an imaginary step of one output of all policies
            moved = pi.outputs.astype(complex)
            moved[..., entry] += 1e-30j
            policy = self.distribution(moved, batch, noise)
            actions, p = policy.support()
            value = (p * w * q_of_many(q_params, batch.obs, actions)).sum(axis=0)
            slopes.append((value.imag / 1e-30, policy.kl(behaviour).imag / 1e-30))
        of_value, of_kl = np.moveaxis(np.array(slopes), 0, -1)  # (B, N, X)
        return ((of_value * of_kl).sum(axis=-1) / ((of_kl**2).sum(axis=-1) + 1e-6)).mean(axis=0)


LOSSES = {
    "policy_loss": "policy",
    "critic_loss": "q",
    "value_loss": "v",
    "conservative_loss": "cost_q",
    "normalisation_loss": "cost_v",
}


@pytest.mark.parametrize(
    ("kind", "overrides", "above"),
    [
        ("continuous", {}, 0.0),
        ("continuous", {"influence": "covariance", "conservative_mixer": "hyper", "published_exponent": True}, 0.0),
        ("continuous", {"influence": "in_sample", "decoupled": False}, 0.0),
        ("discrete", {"conservative_mixer": "hyper", "temperature": 0.5, "alpha_min": 0.25}, 0.0),
        ("discrete", {"influence": "covariance", "conservative_mixer": "identity", "allocation": "random"}, 0.0),
        ("discrete", {"conservative_mixer": "identity", "allocation": "random_once"}, 60.0),  # no z is above -1
    ],
)
def test_five_updates_in_numpy(kind: str, overrides: dict[str, Any], above: float) -> None:
    """The first gradients are longer than they may be; some exponents are clipped on either side.

    `above` is added to the conservative V.
    """
    spec = task(kind)
    config = METHOD.configure(spec, SMALL | SCHEDULES | {"influence_samples": SAMPLES, "alpha_min": 0.05} | overrides)
    rng = np.random.default_rng(1)

    def noisy(tree: Any) -> Any:
        return jax.tree.map(lambda x: x + 0.5 * rng.normal(size=x.shape), tree)

    def learned(state: Any) -> dict[str, Any]:
        halves = {label: getattr(state, half) for half, label in HALVES.items() if getattr(state, half) is not None}
        found = {}
        for label, half in halves.items():
            found |= {f"{'target_' * ('target' in net)}{label}{net[-1]}": getattr(half, net) for net in NETS}
        return found | {"policy": state.policy.params, "behaviour": state.behaviour.params}

    with jax.enable_x64(True):
        method = METHOD.make(config, spec)
        state = method.init(jax.random.key(0), context(method, spec)._replace(updates=UPDATES))
        halves = {half: getattr(state, half) for half in HALVES if getattr(state, half) is not None}
        halves = {
            half: values._replace(**{net: noisy(getattr(values, net)) for net in NETS})
            for half, values in halves.items()
        }
        state = state._replace(
            policy=state.policy._replace(params=noisy(state.policy.params)),
            behaviour=state.behaviour._replace(params=noisy(state.behaviour.params)),
            log_alpha=jnp.log(jnp.array([0.1, 0.3])),
            **halves,
        )
        state = jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
        if above:
            state.costs.v["layer_1"]["bias"] += above
        nets = {name: jax.tree.map(lambda x: np.array(x, complex), net) for name, net in learned(state).items()}
        numbers = {name: np.asarray(getattr(state, name)) for name in ("log_alpha", "influence", "share")}
        reference = Reference(kind, config, nets, numbers)
        update = jax.jit(lambda config, *inputs: METHOD.make(config, spec).update(*inputs))
        clipped = np.zeros(2, bool)
        for number, limit in enumerate((0.01, 1e9, 1e9, 1e9, 1e9)):
            now, key = dataclasses.replace(config, grad_clip=limit), jax.random.key(number)
            batch = transitions(kind, number)
            noise_key, share_key = jax.random.split(key)
            shape = (SAMPLES, *batch.actions.shape)
            noise = None if kind == "discrete" else np.asarray(jax.random.normal(noise_key, shape))
            drawn = np.asarray(jax.random.dirichlet(share_key, jnp.ones(N)))
            expected = reference.update(now, batch, noise, drawn)
            state, metrics = update(now, state, jax.tree.map(jnp.asarray, batch), key)
            assert above or all((norm > limit) == (number == 0) for norm in reference.norms)
            assert not above or reference.z.max() < -1
            clipped |= (reference.z > 10).any(), (reference.z < -10).any()
            of_losses = {metric: expected.pop(name) for metric, name in LOSSES.items() if name in expected}
            if state.costs is None:
                of_losses["normalisation_loss"] = of_losses.pop("value_loss")
            for name, value in (expected | of_losses).items():
                np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=f"{name}, update {number}")
            assert metrics.keys() == {"q", *expected, *of_losses}
            np.testing.assert_allclose(state.share, reference.share, rtol=1e-6)
            for name, tree in learned(state).items():
                for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(nets[name]), strict=True):
                    np.testing.assert_allclose(x, y.real, rtol=0, atol=1e-5 * config.lr, err_msg=f"{name}, {number}")
        assert clipped.all() or above
