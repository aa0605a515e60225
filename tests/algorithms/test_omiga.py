"""OMIGA against NumPy, in closed form, and on a game whose answer is known."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs import make
from omarl_envs.spec import TaskSpec
from problems import float64, jit
from reference import Adam, tanh_gaussian_log_prob
from shared_networks import mixing, of_agents, q_values

from omarl_jax.algorithms import find
from omarl_jax.types import Context, Stats, Transition, View

N, O, A, ROWS = 2, 3, 2, 12  # noqa: E741  # the letters of the shapes
METHOD = find("omiga")


def task(kind: Any) -> TaskSpec:
    return TaskSpec(f"toy/{kind}", kind, n_agents=N, obs_dim=O, action_dim=A, state_dim=4, episode_length=5)


def transitions(kind: str, seed: int) -> Transition:
    """Agents that end at different times, and rewards that differ between agents."""
    rng = np.random.default_rng(seed)
    discrete = kind == "discrete"
    terminal = rng.random((ROWS, N)) < 0.4
    terminal[:2] = True
    return Transition(
        obs=rng.normal(1.0, 2.0, (ROWS, N, O)),
        actions=rng.integers(A, size=(ROWS, N)) if discrete else rng.uniform(-1, 1, (ROWS, N, A)),
        rewards=rng.normal(-1.0, 3.0, (ROWS, N)),
        next_obs=rng.normal(-1.0, 2.0, (ROWS, N, O)),
        terminal=terminal,
        truncated=np.zeros(ROWS, bool),
        state=rng.normal(size=(ROWS, 4)),
        next_state=rng.normal(size=(ROWS, 4)),
        returns_to_go=rng.normal(size=(ROWS, N)),
    )


def losses(config: Any, nets: dict[str, Any], batch: Transition) -> dict[str, Callable[[], Any]]:
    """The three losses as functions of the arrays in `nets`, whatever carries no gradient being held."""
    real = {name: float64(jax.tree.map(np.real, net)) for name, net in nets.items()}
    target_q, target_mixer = real["target_q"]
    w, _ = mixing(target_mixer, batch.state)
    w = w if config.global_weights else np.ones_like(w)
    next_w, next_b = mixing(target_mixer, batch.next_state)
    next_v = (next_w * of_agents(real["target_v"], batch.next_obs)[..., 0]).sum(axis=1) + next_b
    rewards = (batch.returns_to_go if config.published_rewards else batch.rewards).mean(axis=1)
    y = rewards + config.gamma * ~batch.terminal.all(axis=1) * next_v
    old_q = q_values(target_q, batch.obs, batch.actions)

    def exponent(v: np.ndarray) -> np.ndarray:
        z = w * (old_q - v) / config.alpha
        return np.where(z.real > 10, 10, np.where(z.real < -10, -10, z))

    held = exponent(of_agents(real["v"], batch.obs)[..., 0])
    m = max(held.max(), -1.0)

    def q_loss() -> Any:
        q_params, mixer_params = nets["q"]
        online_w, online_b = mixing(mixer_params, batch.state)
        total = (online_w * q_values(q_params, batch.obs, batch.actions)).sum(axis=1) + online_b
        return np.mean((total - y) ** 2)

    def v_loss() -> Any:
        v = of_agents(nets["v"], batch.obs)[..., 0]
        return np.mean(np.exp(exponent(v) - m) + np.exp(-m) * w * v / config.alpha)

    def policy_loss() -> Any:
        out = of_agents(nets["policy"], batch.obs)
        if batch.actions.ndim == 2:
            log_pi = out - np.log(np.exp(out).sum(axis=-1, keepdims=True))
            log_pi = np.take_along_axis(log_pi, batch.actions[..., None], axis=-1)[..., 0]
        else:
            log_pi = tanh_gaussian_log_prob(out, batch.actions)
        return -np.mean(np.exp(held) * log_pi)

    return {"q": q_loss, "v": v_loss, "policy": policy_loss}


@pytest.mark.parametrize(
    ("kind", "overrides", "above"),
    [
        ("continuous", {"alpha": 0.3}, 0.0),
        ("discrete", {"alpha": 2.0, "published_rewards": True}, 0.0),
        ("discrete", {"alpha": 5.0, "global_weights": False}, 0.0),
        ("discrete", {"alpha": 5.0, "global_weights": False}, 40.0),  # no z is above -1
    ],
)
def test_five_updates_in_numpy(kind: str, overrides: dict[str, Any], above: float) -> None:
    """In float64. The first gradients are clipped; with the small α, some exponents are, too.

    `above` is added to V.
    """
    spec = task(kind)
    settings = {"hidden": (5,), "mixer_hidden": 4, "lr": 0.02, "tau": 0.1, "gamma": 0.9, "batch_size": ROWS}
    config = METHOD.configure(spec, settings | overrides)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        state = METHOD.make(config, spec).init(jax.random.key(0), Context(Stats.unknown(spec)))
        noisy = lambda tree: jax.tree.map(lambda x: x + 0.5 * rng.normal(size=x.shape), tree)  # noqa: E731
        fields = ("q", "v", "target_q", "target_v")
        state = state._replace(
            policy=state.policy._replace(params=noisy(state.policy.params)),
            **{field: noisy(getattr(state, field)) for field in fields},
        )
        state.v["layer_1"]["bias"] += above
        state = jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
        trees = {field: getattr(state, field) for field in fields} | {"policy": state.policy.params}
        nets = {name: jax.tree.map(lambda x: np.array(x, complex), tree) for name, tree in trees.items()}
        optimisers = {name: Adam(nets[name]) for name in ("policy", "q", "v")}
        update = jax.jit(lambda config, *inputs: METHOD.make(config, spec).update(*inputs))
        for number, clip in enumerate((0.01, 1e9, 1e9, 1e9, 1e9)):
            now, batch = dataclasses.replace(config, grad_clip=clip), transitions(kind, number)
            of_old = losses(now, nets, batch)
            state, metrics = update(now, state, jax.tree.map(jnp.asarray, batch), jax.random.key(0))
            for metric, name in (("critic_loss", "q"), ("value_loss", "v"), ("policy_loss", "policy")):
                np.testing.assert_allclose(metrics[metric], of_old[name]().real, rtol=1e-6, err_msg=metric)
            for name, optimiser in optimisers.items():
                norm = optimiser.step(of_old[name], now)
                assert above or (norm > clip) == (number == 0)
            for target, online in (("target_q", "q"), ("target_v", "v")):
                for x, y in zip(jax.tree.leaves(nets[target]), jax.tree.leaves(nets[online]), strict=True):
                    x += config.tau * (y - x)  # in place
            found = {field: getattr(state, field) for field in fields} | {"policy": state.policy.params}
            for name, tree in found.items():
                for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(nets[name]), strict=True):
                    np.testing.assert_allclose(x, y.real, rtol=0, atol=1e-5 * config.lr, err_msg=f"{name}, {number}")


@pytest.mark.parametrize("global_weights", [True, False])
def test_values_are_the_soft_maximum_over_the_behaviour(global_weights: bool) -> None:
    """V = (α / w) log Σ μ exp(w Q / α) and Σ μ exp z = 1, for values Q and weights w that stay as they are."""
    spec = TaskSpec("toy/tabular", "discrete", n_agents=N, obs_dim=1, action_dim=3, state_dim=2, episode_length=1)
    overrides = {"hidden": (16,), "alpha": 0.5, "lr": 0.03, "batch_size": 10, "grad_clip": 1e9}
    config = METHOD.configure(spec, overrides | {"global_weights": global_weights})
    config = dataclasses.replace(config, tau=0.0)  # targets stay
    actions = np.array([[0, 2], [0, 2], [0, 1], [0, 1], [0, 1], [1, 0], [1, 0], [1, 0], [2, 0], [2, 0]])
    ones = np.ones((10, N, 1), np.float32)
    batch = Transition(
        obs=ones,
        actions=actions.astype(np.int32),
        rewards=np.ones((10, N), np.float32),
        next_obs=ones,
        terminal=np.ones((10, N), bool),
        truncated=np.zeros(10, bool),
        state=np.ones((10, 2), np.float32),
        next_state=np.ones((10, 2), np.float32),
    )
    batch = jax.tree.map(jnp.asarray, batch)
    state = METHOD.make(config, spec).init(jax.random.key(0), Context(Stats.unknown(spec)))
    q_params, mixer_params = state.target_q
    q_params = jax.tree.map(lambda x: 3 * x, q_params)  # values that differ
    state = state._replace(target_q=(q_params, mixer_params))

    @jit
    def learn(state: Any) -> Any:
        def step(number: jax.Array, state: Any) -> Any:
            now = dataclasses.replace(config, lr=config.lr * (1 - number / 4000))
            return METHOD.make(now, spec).update(state, batch, jax.random.key(0))[0]

        return jax.lax.fori_loop(0, 4000, step, state)

    state = learn(state)
    q = of_agents(float64(q_params), np.ones((1, N, 1)))[0]  # (N, A)
    w = mixing(float64(mixer_params), np.ones((1, 2)))[0][0] if global_weights else np.ones(N)
    v = of_agents(float64(state.v), np.ones((1, N, 1)))[0, :, 0]
    assert w.min() > 0.01
    for i in range(N):
        mu = np.bincount(actions[:, i], minlength=3) / 10
        expected = config.alpha / w[i] * np.log((mu * np.exp(w[i] * q[i] / config.alpha)).sum())
        np.testing.assert_allclose(v[i], expected, atol=2e-3)
        np.testing.assert_allclose((mu * np.exp(w[i] * (q[i] - v[i]) / config.alpha)).sum(), 1.0, atol=5e-3)
        # The policy is the behaviour reweighted by exp z.
        logits = of_agents(float64(state.policy.params), np.ones((1, N, 1)))[0, i]
        pi = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(pi, mu * np.exp(w[i] * (q[i] - v[i]) / config.alpha), atol=0.02)


def test_uniform_play_of_the_climbing_game_ends_at_the_best_sum() -> None:
    """A linear mixer fits the payoffs by a sum of the players' own values, which the third actions maximise.

    That is 5 of 11: the known limit of value decomposition on this game, and no fault of learning.
    """
    payoff = np.asarray(make("matrix/climbing").payoff)
    assert payoff.mean(axis=1).argmax() == payoff.mean(axis=0).argmax() == 2 != payoff.argmax()
    spec = TaskSpec("toy/climbing", "discrete", n_agents=2, obs_dim=1, action_dim=3, state_dim=2, episode_length=1)
    config = METHOD.configure(spec, {"hidden": (16,), "alpha": 1.0, "lr": 0.01, "batch_size": 9, "tau": 0.05})
    actions = np.stack(np.meshgrid(np.arange(3), np.arange(3), indexing="ij"), axis=-1).reshape(9, 2)
    ones = np.ones((9, 2, 1), np.float32)
    batch = Transition(
        obs=ones,
        actions=actions.astype(np.int32),
        rewards=np.repeat(payoff.reshape(9, 1), 2, axis=1).astype(np.float32),
        next_obs=ones,
        terminal=np.ones((9, 2), bool),
        truncated=np.zeros(9, bool),
        state=ones[..., 0],
        next_state=ones[..., 0],
    )
    method = METHOD.make(config, spec)
    state = method.init(jax.random.key(0), Context(Stats.unknown(spec)))
    batch = jax.tree.map(jnp.asarray, batch)
    step = lambda i, state: method.update(state, batch, jax.random.key(0))[0]  # noqa: E731
    state = jit(lambda state: jax.lax.fori_loop(0, 1000, step, state))(state)
    view = View(jnp.ones((2, 1)), jnp.ones((2, 3), bool))
    np.testing.assert_array_equal(method.act(state.policy, view, (), jax.random.key(0))[0], [2, 2])
    fit = payoff.mean(axis=1)[:, None] + payoff.mean(axis=0) - payoff.mean()
    values = method.values(state, batch)  # (1, 9, 1)
    np.testing.assert_allclose(np.asarray(values).reshape(3, 3), fit, atol=0.5)
