"""OMAR and MA-CQL, whose critics are the same, against NumPy; and the search."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import A, N, batch, float64, jit, make, np_critic, np_mlp, of, parts, started, step

from omarl_jax.algorithms import omar

CASES = [
    ("omar", {}),
    (
        "omar",
        {"centralised": True, "policy_samples": True, "published_density": True, "search": "cem", "search_steps": 2},
    ),
    ("omar", {"search": "random_shooting", "input_norm": "none"}),
    ("cql", {"policy_samples": True}),
]


def losses(name: str, config: Any, state: Any, after: Any, one: Any, key: jax.Array) -> dict[str, float]:
    """What a round must report, in float64. Only random numbers come from JAX; `after` is the state after the round."""
    groups = 1 if config.centralised else N
    seen = {field: parts(getattr(one, field), groups) for field in ("obs", "next_obs", "actions")}
    own_obs, own_next_obs = parts(one.obs, N), parts(one.next_obs, N)
    cql_key, search_key = jax.random.split(key) if name == "omar" else (key, None)
    state, after = float64((state, after))
    found: dict[str, list[float]] = {"critic_loss": [], "cql_penalty": [], "q": [], "policy_loss": [], "imitation": []}

    def policies(params: Any, obs: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.tanh(np_mlp(of(params, i), obs[i])) for i in range(N)], axis=1)

    # --- critics ---
    next_actions = parts(policies(state.target_policy, own_next_obs), groups)
    around = [parts(policies(state.policy.params, obs), groups) for obs in (own_obs, own_next_obs)]
    for g, group_key in enumerate(jax.random.split(cql_key, groups)):
        rewards, terminal = np.asarray(one.rewards, np.float64), np.asarray(one.terminal)
        r, d = (rewards[:, g], terminal[:, g]) if groups == N else (rewards.mean(axis=1), terminal.all(axis=1))
        y = r + config.gamma * (1 - d) * np_critic(
            of(state.target_critic, g), seen["next_obs"][g], next_actions[g]
        ).min(axis=0)
        critic, obs, actions = of(state.critic, g), seen["obs"][g], seen["actions"][g]
        q = np_critic(critic, obs, actions)
        shape = (config.cql_samples, *actions.shape)
        uniform_key, *keys = jax.random.split(group_key, 3 if config.policy_samples else 1)
        uniform = np.asarray(jax.random.uniform(uniform_key, shape, minval=-1.0), np.float64)
        terms = [np_critic(critic, obs, uniform) + shape[-1] * np.log(2)]
        for kind, noise_key in zip(around, keys, strict=False):
            noise = config.sample_noise * np.asarray(jax.random.normal(noise_key, shape), np.float64)
            density = np.prod(
                np.exp(-0.5 * (noise / config.sample_noise) ** 2) / (config.sample_noise * np.sqrt(2 * np.pi)), axis=-1
            )
            subtracted = density if config.published_density else np.log(density)
            terms.append(np_critic(critic, obs, np.clip(kind[g] + noise, -1, 1)) - subtracted)
        penalty = np.logaddexp.reduce(np.concatenate(terms, axis=1), axis=1) - q
        found["critic_loss"].append(np.square(q - y).mean(axis=1).sum())
        found["cql_penalty"].append(penalty.mean(axis=1).sum())
        found["q"].append(q.mean())

    # --- policies, judged by the critics of after the round ---
    own_actions = policies(state.policy.params, own_obs)
    for i in range(N):
        own = own_actions[:, i]

        def value(actions: np.ndarray, i: int = i) -> np.ndarray:
            if groups == 1:
                others = np.broadcast_to(seen["actions"][0], (*actions.shape[:-1], N * A)).copy()
                others[..., i * A : (i + 1) * A] = actions
                actions = others
            g = 0 if groups == 1 else i
            return np_critic(of(after.critic, g), seen["obs"][g], actions)[0]

        loss = config.policy_penalty * np.square(own).mean()
        if name == "cql":
            loss -= value(own).mean()
        else:
            best, best_value = np_search(config, value, jax.random.split(search_key, N)[i], own.shape)
            better = np.where((best_value > value(own))[:, None], best, own)
            found["imitation"].append(np.square(own - better).mean())
            loss += config.omar_coef * found["imitation"][-1] - (1 - config.omar_coef) * value(own).mean()
        found["policy_loss"].append(loss)
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def np_search(config: Any, value: Any, key: jax.Array, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The best candidate of each row in the last iteration, and its value."""
    rows = np.arange(shape[0])
    if config.search == "random_shooting":
        draws = jax.random.uniform(key, (config.search_steps * config.search_samples, *shape), minval=-1.0)
        pool = np.asarray(draws, np.float64)
        values = value(pool)
    mean, std = np.zeros(shape), np.full(shape, config.search_std)
    elites, elite_values = np.zeros((0, *shape)), np.zeros((0, shape[0]))
    for step_key in jax.random.split(key, config.search_steps) if config.search != "random_shooting" else ():
        noise = np.asarray(jax.random.normal(step_key, (config.search_samples, *shape[::-1])), np.float64)
        drawn = np.clip(mean + std * noise.swapaxes(1, 2), -1, 1)
        pool, values = np.concatenate([drawn, elites]), np.concatenate([value(drawn), elite_values])
        if config.search == "cem":
            order = np.argsort(-values, axis=0)[: config.search_elites]
            elites, elite_values = pool[order, rows], values[order, rows]
            mean, std = elites.mean(axis=0), elites.std(axis=0, ddof=1)
        else:
            weights = np.exp(values - values.max(axis=0))
            mean = np.einsum("kb,kba->ba", weights / weights.sum(axis=0), pool)
            std = np.sqrt(np.square(pool - mean).mean(axis=0))
    best = values.argmax(axis=0)
    return pool[best, rows], values[best, rows]


@pytest.mark.parametrize(("name", "overrides"), CASES)
def test_a_round_in_numpy(name: str, overrides: dict[str, Any]) -> None:
    config, _ = make(name, batch_size=24, omar_coef=0.6, cql_alpha=0.7, tau=0.05, **overrides)
    state = started(name, config)
    one, key = batch(0, config.batch_size), jax.random.key(11)
    after, metrics = step(name)(config, state, one, key)
    expected = losses(name, config, state, after, one, key)
    assert expected.keys() == metrics.keys() - {"saturation"}
    for metric, value in expected.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-3, atol=1e-5, err_msg=metric)
    for target, online in (("target_critic", after.critic), ("target_policy", after.policy.params)):
        moved = jax.tree.map(lambda old, new: 0.95 * old + 0.05 * new, getattr(state, target), online)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), getattr(after, target), moved)


def test_no_imitation_where_the_policy_is_best_already() -> None:
    """All actions are worth the same to this critic, before and after its step: all but its last bias stays 0."""
    config, _ = make("omar", batch_size=24, omar_coef=1.0, policy_penalty=0.0)
    state = started("omar", config)
    zeroed = ("critic", "critic_optimiser", "policy_optimiser")
    state = state._replace(**{name: jax.tree.map(jnp.zeros_like, getattr(state, name)) for name in zeroed})
    after, metrics = step("omar")(config, state, batch(0, config.batch_size), jax.random.key(0))
    assert metrics["imitation"] == 0
    assert not jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), state.critic, after.critic))
    jax.tree.map(np.testing.assert_array_equal, after.policy.params, state.policy.params)


def two_peaks(actions: jax.Array) -> jax.Array:
    """A broad low peak at -0.5, whose slope rules at 0, and a narrow high one at 0.75: (…, 1) -> (…)."""
    x = actions[..., 0]
    return 3 * jnp.exp(-jnp.square((x + 0.5) / 0.5)) + 9 * jnp.exp(-jnp.square((x - 0.75) / 0.2))


@pytest.mark.parametrize("kind", ["omar", "cem", "random_shooting"])
def test_search_finds_the_higher_of_two_peaks(kind: Any) -> None:
    assert jax.grad(lambda x: two_peaks(x[None]))(jnp.float32(0)) < 0  # where a policy's gradient would never go
    config = omar.Config(search=kind)
    found, value = jit(lambda key: omar.search(two_peaks, key, (500, 1), config))(jax.random.key(0))
    assert ((found > 0.4) & (found <= 1)).mean() > 0.8
    np.testing.assert_allclose(value, two_peaks(found), rtol=1e-4)


@pytest.mark.parametrize("kind", ["omar", "cem", "random_shooting"])
def test_search_finds_the_top_of_a_hill_for_each_observation(kind: Any) -> None:
    tops = jax.random.uniform(jax.random.key(1), (200, A), minval=-0.9, maxval=0.9)
    config = omar.Config(search=kind, search_steps=5, search_samples=40)

    def q(actions: jax.Array) -> jax.Array:
        return -20 * jnp.square(actions - tops).sum(axis=-1)

    found, _ = jit(lambda key: omar.search(q, key, tops.shape, config))(jax.random.key(0))
    assert jnp.abs(found - tops).mean() < 0.08  # 0.9 for a random action
