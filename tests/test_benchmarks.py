"""What the benchmarks compare with computes the right thing, and what they report is so.

Environments agree step for step, OMAR with known answers, OMIGA and OMCDA with ours after an update.
"""

import dataclasses
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from omarl_envs import make
from omarl_envs.particle.physics import State
from omarl_envs.particle.prey import Prey
from omarl_envs.particle.pursuit import TAG, WORLD, Pursuit
from omarl_envs.particle.spread import Spread

from omarl_jax import algorithms, make_algorithm
from omarl_jax.data.dataset import concat_datasets, sample
from omarl_jax.data.validation import validate
from omarl_jax.networks import blocks
from omarl_jax.types import Context, Stats, Transition

# The benchmarks are scripts, no part of the installed packages.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"))

import measuring
import naive_env
import numpy_particle
import same_bits
import short

N_ENVS, LENGTH = 64, 25


@pytest.fixture(scope="module")
def preys(tmp_path_factory):
    """A random prey for tag and one for world: the network, and the file the environment reads it from."""
    rng, made = np.random.default_rng(1), {}
    for scenario in (TAG, WORLD):
        n = scenario.prey_obs_dim
        shapes = [(n,)] * 4 + [(n, 64), (64,), (64, 64), (64,), (64, 2), (2,)]
        arrays = [rng.normal(0.0, 0.3, shape).astype(np.float32) for shape in shapes]
        prey = Prey(*arrays)._replace(bn_var=np.abs(arrays[3]) + 0.1)
        path = tmp_path_factory.mktemp("prey") / f"{scenario.name}.npz"
        np.savez(path, **prey._asdict())
        made[scenario.name] = prey, path
    return made


def _start(n_bodies, n_landmarks):
    """Positions so close together that bodies touch from the first step on."""
    rng = np.random.default_rng(0)
    position = rng.uniform(-0.5, 0.5, (N_ENVS, n_bodies, 2))
    velocity = rng.uniform(-0.5, 0.5, (N_ENVS, n_bodies, 2))
    landmarks = rng.uniform(-0.5, 0.5, (N_ENVS, n_landmarks, 2))
    return [array.astype(np.float32) for array in (position, velocity, landmarks)]


def _rollout(env, start, actions):
    """Observations (T, M, N, O) and rewards (T, M, N) of an environment of the package."""
    position, velocity, landmarks = map(jnp.asarray, start)
    keys = jax.random.split(jax.random.key(0), N_ENVS)
    state = State(keys, jnp.zeros((N_ENVS,), jnp.int32), position, velocity, landmarks)

    def step(state, action):
        state, timestep = jax.vmap(env.step)(state, action)
        return state, (timestep.observation.agents_view, timestep.reward)

    return map(np.asarray, jax.jit(lambda state: jax.lax.scan(step, state, actions))(state)[1])


def _compare(batch, loop, env, start):
    actions = np.random.default_rng(2).uniform(-1.0, 1.0, (LENGTH, *batch.action_shape)).astype(np.float32)
    obs, rewards = _rollout(env, start, actions)
    batch.place(*start)
    for t in range(LENGTH):
        seen, paid = batch.step(actions[t])
        assert seen.dtype == paid.dtype == np.float32
        np.testing.assert_allclose(seen, obs[t], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(paid, rewards[t], rtol=1e-4, atol=1e-4)
    for m in range(4):
        loop.place(*(array[m] for array in start))
        for t in range(LENGTH):
            seen, paid = loop.step(actions[t, m])
            np.testing.assert_allclose(seen, obs[t, m], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(paid, rewards[t, m], rtol=1e-4, atol=1e-4)
    return obs, rewards


@pytest.mark.parametrize("n_agents", [3, 5])
def test_spread_agrees(n_agents):
    batch, loop = numpy_particle.BatchSpread(N_ENVS, n_agents), numpy_particle.LoopSpread(n_agents)
    start = _start(n_agents, n_agents)
    obs, rewards = _compare(batch, loop, Spread(n_agents), start)
    assert np.ptp(rewards, axis=-1).max() >= 5.0  # someone collided, and not with everyone
    actions = np.random.default_rng(2).uniform(-1.0, 1.0, (LENGTH, *batch.action_shape)).astype(np.float32)
    naive_obs, naive_rewards = _rollout(naive_env.NaiveSpread(n_agents), start, actions)
    np.testing.assert_allclose(naive_obs, obs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(naive_rewards, rewards, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tag", "world"])
def test_pursuit_agrees(name, preys):
    scenario = {"tag": TAG, "world": WORLD}[name]
    theirs = {"tag": numpy_particle.TAG, "world": numpy_particle.WORLD}[name]
    prey, path = preys[name]
    batch, loop = numpy_particle.BatchPursuit(N_ENVS, theirs, prey), numpy_particle.LoopPursuit(theirs, prey)
    obs, rewards = _compare(batch, loop, Pursuit(scenario, path), _start(4, scenario.n_landmarks))
    assert rewards.max() > 1.0  # a predator caught the prey
    if name == "world":
        assert np.unique(obs[..., -2:]).tolist() == [-1.0, 1.0]  # forests were entered and left


@pytest.mark.parametrize("n_agents", [3, 5])
def test_resets_draw_from_the_same_squares(n_agents):
    rng = np.random.default_rng(0)
    obs = numpy_particle.BatchSpread(512, n_agents).reset(rng)
    loop = numpy_particle.LoopSpread(n_agents)
    obs_loop = np.stack([loop.reset(rng) for _ in range(64)])
    half_side = Spread(n_agents).half_side
    for views, margin in ((obs, 0.01), (obs_loop, 0.1)):
        assert (views[..., :2] == 0.0).all()
        own = np.abs(views[..., 2:4]).max()
        assert half_side - margin < own <= half_side


@pytest.fixture
def torch_omar():
    """The PyTorch baseline, on one thread: two wait for each other where the tests run in parallel."""
    torch = pytest.importorskip("torch")
    import torch_omar

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield torch_omar
    torch.set_num_threads(threads)


def test_torch_cql_penalty_estimates_the_integral_over_actions(torch_omar):
    torch = torch_omar.torch
    constant = torch_omar.cql_penalty(torch.full((7, 10), 3.0), torch.full((7,), 2.0), 2)
    assert constant.item() == pytest.approx(1.0 + math.log(10 * 4), abs=1e-5)
    # log ∫ exp(w·a) da over [-1, 1]², and log K more because the published sum is not divided by K
    w, k = torch.tensor([1.5, -0.7]), 20_000
    linear = torch_omar.cql_penalty((torch.rand(16, k, 2) * 2.0 - 1.0) @ w, torch.zeros(16), 2)
    integral = sum(math.log(2.0 * math.sinh(x) / x) for x in w.tolist())
    assert linear.item() == pytest.approx(integral + math.log(k), abs=0.01)


def test_torch_search_samples_around_the_softmax_mean(torch_omar):
    torch, n, best = torch_omar.torch, 400, np.array([0.5, -0.25])
    asked = []

    def values(candidates):
        asked.append(candidates.numpy().astype(float))
        return torch.from_numpy(-3.0 * ((asked[-1] - best) ** 2).sum(-1)).float()

    torch.manual_seed(0)
    found, worth = torch_omar.zeroth_order_search(values, n, 2, torch_omar.Config())
    torch.manual_seed(0)
    mean, deviation = np.zeros((n, 2)), np.full((n, 2), 2.0)
    assert len(asked) == 3
    for candidates in asked:
        noise = torch.randn(n, 10, 2).numpy()
        np.testing.assert_allclose(
            candidates, np.clip(mean[:, None] + deviation[:, None] * noise, -1.0, 1.0), atol=1e-5
        )
        weights = np.exp(-3.0 * ((candidates - best) ** 2).sum(-1))
        mean = np.einsum("bk,bka->ba", weights / weights.sum(1, keepdims=True), candidates)
        deviation = np.sqrt(((candidates - mean[:, None]) ** 2).mean(1))
    np.testing.assert_array_equal(found, asked[-1][np.arange(n), weights.argmax(1)])
    np.testing.assert_allclose(worth, -3.0 * ((found.numpy() - best) ** 2).sum(-1), rtol=1e-5, atol=1e-6)


def test_torch_losses_in_closed_form(torch_omar):
    """Networks that output constants: Q = 0.5, target Q1 = 2 and Q2 = 3, π = tanh(1)."""
    torch, config = torch_omar.torch, torch_omar.Config(hidden=8, omar_coe=0.3)
    agent = torch_omar.Agent(3, 2, config)
    constants = {agent.critic.first: 0.5, agent.critic.second: 0.5, agent.policy.layers[:-1]: 1.0}
    constants |= {agent.target_critic.first: 2.0, agent.target_critic.second: 3.0}
    for layers, constant in constants.items():
        torch.nn.init.zeros_(layers[-1].weight)
        torch.nn.init.constant_(layers[-1].bias, constant)
    rewards, terminal = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    batch = torch_omar.Batch(torch.randn(4, 3), torch.rand(4, 2), rewards, torch.randn(4, 3), terminal)
    errors = 0.5 - np.array([1.0 + 0.95 * 2.0, -2.0, 0.5 + 0.95 * 2.0, 3.0])
    expected = 2.0 * np.mean(errors**2) + 5.0 * 2.0 * math.log(10 * 4)
    assert agent.critic_loss(batch).item() == pytest.approx(expected, rel=1e-5)
    # Nothing is worth more than the policy's own action, so there is nothing to imitate.
    expected = -0.7 * 0.5 + 1e-3 * math.tanh(1.0) ** 2
    assert agent.policy_loss(batch.obs).item() == pytest.approx(expected, rel=1e-5)


def _bandit(torch_omar, n=256):
    """One-step episodes that pay -|a - a*(o)|², and a*. Both a and a*(o) are uniform in [-1, 1]."""
    torch = torch_omar.torch
    obs, actions = torch.randn(n, 2), torch.rand(n, 2) * 2.0 - 1.0
    best = torch.erf(obs / math.sqrt(2.0))
    return torch_omar.Batch(obs, actions, -(actions - best).square().sum(-1), obs, torch.ones(n)), best


@pytest.mark.parametrize("omar_coe", [0.0, 1.0])
def test_torch_agent_solves_a_bandit(torch_omar, omar_coe):
    torch = torch_omar.torch
    agent = torch_omar.Agent(2, 2, torch_omar.Config(hidden=32, cql_alpha=0.0, omar_coe=omar_coe))
    for _ in range(200):
        agent.update(_bandit(torch_omar)[0])
    batch, best = _bandit(torch_omar)
    with torch.no_grad():
        values, actions = agent.critic(batch.obs, batch.actions), agent.policy(batch.obs)
    for q in values:
        assert (q - batch.rewards).abs().mean() < 0.3  # rewards have a standard deviation of 0.84
    # The critic normalises the batch's actions, so their scale means nothing to its gradient, only their order does.
    for i in range(2):
        assert np.corrcoef(actions[:, i], best[:, i])[0, 1] > 0.9
    if omar_coe == 1.0:
        assert (actions - best).abs().mean() < 0.2


def test_torch_targets_follow_at_tau_and_keep_their_own_statistics(torch_omar):
    torch = torch_omar.torch
    agent = torch_omar.Agent(2, 2, torch_omar.Config(hidden=8))
    agent.update(_bandit(torch_omar)[0])
    networks = [(agent.target_policy, agent.policy), (agent.target_critic, agent.critic)]
    before = [[p.clone() for p in target.parameters()] for target, _ in networks]
    statistics = [b.clone() for target, _ in networks for b in target.buffers()]
    agent.update_targets()
    for (target, online), olds in zip(networks, before, strict=True):
        for p, old, new in zip(target.parameters(), olds, online.parameters(), strict=True):
            torch.testing.assert_close(p, 0.99 * old + 0.01 * new)
            assert not torch.equal(old, new)  # the update moved every parameter
    after = [b for target, _ in networks for b in target.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(statistics, after, strict=True))


def test_the_pytorch_ciqr_has_the_loss_of_ours():
    torch = pytest.importorskip("torch")
    import torch_ciqr

    env = make("uav/iot")
    algorithm = make_algorithm("ciqr", env.task_spec)
    rng = np.random.default_rng(0)
    n = torch_ciqr.N_AGENTS
    stats = Stats(jnp.zeros((n, torch_ciqr.OBS_DIM)), jnp.ones((n, torch_ciqr.OBS_DIM)))
    state = algorithm.init(jax.random.key(0), Context(stats))
    state = state._replace(target=jax.tree.map(lambda x: 0.9 * x, state.target))
    obs, next_obs = rng.normal(size=(2, 32, torch_ciqr.OBS_DIM)).astype(np.float32)
    actions = rng.integers(0, torch_ciqr.N_ACTIONS, (32, n)).astype(np.int32)
    rewards, terminal = rng.normal(size=32).astype(np.float32), rng.random(32) < 0.3
    each = lambda x: np.repeat(x[:, None], n, axis=1)  # noqa: E731
    batch = Transition(each(obs), actions, each(rewards), each(next_obs), each(terminal), np.zeros(32, bool))
    _, metrics = algorithm.update(state, batch, jax.random.key(1))

    losses = []
    for i in range(n):
        agent = torch_ciqr.Agent(torch_ciqr.Config())
        for network, params in ((agent.network, state.policy.net.params), (agent.target, state.target)):
            for number, layer in enumerate((network[0], network[2], network[4])):
                of = jax.tree.map(lambda x, i=i: torch.from_numpy(np.array(x[i])), params[f"layer_{number}"])
                layer.weight.data, layer.bias.data = of["kernel"].T.contiguous(), of["bias"]
        arrays = (obs, actions[:, i].astype(np.int64), rewards, next_obs, terminal.astype(np.float32))
        losses.append(agent.loss(*map(torch.from_numpy, arrays)).item())
    assert np.mean(losses) == pytest.approx(float(metrics["critic_loss"] + metrics["cql_penalty"]), rel=1e-4)


def test_the_naive_uav_task_is_the_same_task():
    """But for whom bad luck strikes, which draws from other random numbers."""
    import naive_uav

    ours, naive = make("uav/iot", risk_probability=1.0), naive_uav.NaiveUav(risk_probability=1.0)
    state, _ = ours.reset(jax.random.key(0))
    for t in range(20):
        actions = jax.random.randint(jax.random.key(t), (2,), 0, 55)
        next_state, timestep = ours.step(state, actions)
        naive_state, naive_timestep = naive.step(state, actions)
        np.testing.assert_array_equal(next_state.ages, naive_state.ages)
        np.testing.assert_array_equal(next_state.cells, naive_state.cells)
        np.testing.assert_allclose(timestep.reward, naive_timestep.reward, rtol=1e-5)
        state = next_state


def _batch(name: str, spec, config, terminal=()):
    """The method and a batch of random transitions."""
    algorithm = algorithms.find(name).make(config, spec)
    data, (window,) = concat_datasets([measuring.synthetic_dataset(spec, 5_000)], algorithm.needs)
    batch = sample(data, window, jax.random.key(1), algorithm.needs)
    ended = np.zeros(batch.terminal.shape, bool)
    ended[list(terminal)] = True
    return algorithm, batch._replace(terminal=jnp.asarray(ended))


def test_an_update_of_the_pytorch_omiga_is_an_update_of_ours():
    torch = pytest.importorskip("torch")
    import torch_omiga

    spec = dataclasses.replace(measuring.OMIGA_SPEC, n_agents=3, obs_dim=5, action_dim=2, state_dim=15)
    # α so small that some exponents are clipped, and a small limit of gradients
    ours = {"hidden": (16, 16), "mixer_hidden": 8, "batch_size": 32, "alpha": 0.005, "grad_clip": 0.1, "tau": 0.3}
    algorithm, batch = _batch("omiga", spec, algorithms.find("omiga").configure(spec, ours), terminal=(0, 3))
    rewards = jnp.broadcast_to(batch.rewards[:, :1], batch.rewards.shape)
    batch = batch._replace(rewards=rewards)
    start = algorithm.init(jax.random.key(0), Context(Stats.unknown(spec)))
    start = start._replace(  # targets that differ from what follows them
        target_q=jax.tree.map(lambda x: 1.5 * x, start.target_q),
        target_v=jax.tree.map(lambda x: 0.5 * x, start.target_v),
    )

    config = torch_omiga.Config(16, 8, 32, alpha=0.005, tau=0.3, max_grad_norm=0.1)
    learner = torch_omiga.Learner(3, 5, 2, config)

    def layers(state):
        """(PyTorch's layer, our parameters) of all layers; those of a critic begin with (1,), its heads."""
        plain = (
            (learner.policy, state.policy.params),
            (learner.v, state.v),
            (learner.target_v, state.target_v),
            (learner.q, jax.tree.map(lambda x: x[0], state.q[0])),
            (learner.target_q, jax.tree.map(lambda x: x[0], state.target_q[0])),
        )
        for network, params in plain:
            for number in range(3):
                yield network[2 * number], params[f"layer_{number}"]
        for mixer, params in ((learner.mixer, state.q[1]), (learner.target_mixer, state.target_q[1])):
            for layer, name in ((mixer.first, "layer_0"), (mixer.weights, "weights"), (mixer.bias, "bias")):
                yield layer, params[name]

    for layer, params in layers(start):
        layer.weight.data = torch.from_numpy(np.array(params["kernel"]).T.copy())
        layer.bias.data = torch.from_numpy(np.array(params["bias"]))
    arrays = (batch.obs, batch.actions, rewards[:, 0], batch.next_obs, batch.terminal[:, 0].astype(jnp.float32))
    theirs = torch_omiga.Batch(*(torch.from_numpy(np.array(x)) for x in arrays))
    with torch.no_grad():
        weights, _ = learner.target_mixer(theirs.obs.flatten(1))
        q = learner.target_q(learner.with_ids(theirs.obs, theirs.actions)).squeeze(-1)
        z = weights * (q - learner.v(learner.with_ids(theirs.obs)).squeeze(-1)) / config.alpha
    for part in (z > 10.0, z < -10.0, z.abs() < 9.0):
        assert part.any()

    end, metrics = jax.jit(algorithm.update)(start, batch, jax.random.key(2))
    losses = learner.update(theirs)
    for name, loss in zip(("policy_loss", "critic_loss", "value_loss"), losses, strict=True):
        assert loss.item() == pytest.approx(float(metrics[name]), rel=1e-4)
    for layer, params in layers(end):
        np.testing.assert_allclose(layer.weight.detach().numpy().T, params["kernel"], atol=1e-5)
        np.testing.assert_allclose(layer.bias.detach().numpy(), params["bias"], atol=1e-5)


def test_an_update_of_the_pytorch_omcda_is_an_update_of_ours(monkeypatch):
    """With the same samples for influence, which is measured and allocates in this update."""
    torch = pytest.importorskip("torch")
    import torch_omcda

    spec = dataclasses.replace(measuring.OMIGA_SPEC, n_agents=3, obs_dim=5, action_dim=2, state_dim=15)
    # α so small that some exponents are clipped, and a small limit of gradients
    ours = {"hidden": (16, 16), "mixer_hidden": 8, "batch_size": 32, "grad_clip": 0.1, "tau": 0.3, "warm_start": 0.0}
    made = algorithms.find("omcda").configure(spec, ours | {"alpha": 0.005, "alpha_min": 0.001})
    algorithm, batch = _batch("omcda", spec, made, terminal=(0, 3))
    batch = batch._replace(rewards=jnp.broadcast_to(batch.rewards[:, :1], batch.rewards.shape))
    parts = algorithms.untrained(algorithm.needs.parts, spec)
    start = algorithm.init(jax.random.key(0), Context(Stats.unknown(spec), parts=parts))
    other = lambda tree, factor: jax.tree.map(lambda x: factor * x, tree)  # noqa: E731
    start = start._replace(  # everything differs from what it began like
        policy=other(start.policy, 1.2),
        log_alpha=start.log_alpha + jnp.array([0.0, 0.5, 1.0]),
        rewards=start.rewards._replace(
            target_q=other(start.rewards.target_q, 1.5), target_v=other(start.rewards.target_v, 0.5)
        ),
        costs=start.costs._replace(
            target_q=other(start.costs.target_q, 1.5), target_v=other(start.costs.target_v, 0.5)
        ),
    )

    alpha = {"alpha": 0.005, "alpha_bounds": (0.001, 100.0), "warm_start": 0}
    learner = torch_omcda.Learner(3, 5, 2, torch_omcda.Config(16, 8, 32, tau=0.3, max_grad_norm=0.1, **alpha))
    learner.log_alpha = torch.from_numpy(np.array(start.log_alpha))

    def layers(state):
        """(PyTorch's layer, our parameters) of all layers; those of a critic begin with (1,), its heads."""
        head = lambda params: jax.tree.map(lambda x: x[0], params)  # noqa: E731
        plain = [(learner.policy, state.policy.params), (learner.behaviour, state.behaviour.params)]
        mixers = []
        for half, nets in ((state.rewards, (0, 1, 2)), (state.costs, (3, 4, 5))):
            v, q, mixer = nets
            for networks, v_params, (q_params, mixer_params) in (
                (learner.online, half.v, half.q),
                (learner.targets, half.target_v, half.target_q),
            ):
                plain += [(networks[v], v_params), (networks[q], head(q_params))]
                mixers.append((networks[mixer], mixer_params))
        for network, params in plain:
            for number in range(3):
                yield network[2 * number], params[f"layer_{number}"]
        for mixer, params in mixers:
            for layer, name in ((mixer.first, "layer_0"), (mixer.weights, "weights"), (mixer.bias, "bias")):
                yield layer, params[name]

    for layer, params in layers(start):
        layer.weight.data = torch.from_numpy(np.array(params["kernel"]).T.copy())
        layer.bias.data = torch.from_numpy(np.array(params["bias"]))
    arrays = (batch.obs, batch.actions, batch.rewards[:, 0], batch.next_obs, batch.terminal[:, 0].astype(jnp.float32))
    theirs = torch_omcda.Batch(*(torch.from_numpy(np.array(x)) for x in arrays))
    key = jax.random.key(2)
    noise = jax.random.normal(jax.random.split(key)[0], (1, *batch.actions.shape))[0]
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.from_numpy(np.array(noise)))

    end, metrics = jax.jit(algorithm.update)(start, batch, key)
    losses = learner.update(theirs)
    names = ("policy_loss", "critic_loss", "value_loss", "conservative_loss", "normalisation_loss")
    for name, loss in zip(names, losses, strict=True):
        assert loss.item() == pytest.approx(float(metrics[name]), rel=1e-4)
    np.testing.assert_allclose(learner.influence, end.influence, rtol=1e-3)
    np.testing.assert_allclose(learner.log_alpha, end.log_alpha, rtol=1e-5)
    assert (end.log_alpha != start.log_alpha).all()
    for layer, params in layers(end):
        np.testing.assert_allclose(layer.weight.detach().numpy().T, params["kernel"], atol=1e-5)
        np.testing.assert_allclose(layer.bias.detach().numpy(), params["bias"], atol=1e-5)


@pytest.mark.parametrize("name", ["omar", "omiga", "omcda", "ciqr"])
def test_the_counted_products_are_those_that_xla_counts(name, monkeypatch):
    """XLA counts everything, so a few per cent more."""
    monkeypatch.setattr(blocks, "_BLOCK", 1 << 20)  # it counts the body of a loop once
    tasks = {"omar": "particle/spread", "ciqr": "uav/iot"}
    spec = make(tasks[name]).task_spec if name in tasks else measuring.OMIGA_SPEC
    always = {"influence_period": 1e-6} if name == "omcda" else {}  # it counts the branch that measures influence
    config = algorithms.find(name).configure(spec, always)
    algorithm = algorithms.find(name).make(config, spec)
    context = Context(Stats.unknown(spec), parts=algorithms.untrained(algorithm.needs.parts, spec))
    state = jax.eval_shape(lambda key: algorithm.init(key, context), jax.random.key(0))
    each, batch_size = (config.batch_size, spec.n_agents), config.batch_size
    discrete = spec.kind == "discrete"
    arrays = {
        "obs": jnp.zeros((*each, spec.obs_dim)),
        "actions": jnp.zeros(each, jnp.int32) if discrete else jnp.zeros((*each, spec.action_dim)),
        "rewards": jnp.zeros(each),
        "next_obs": jnp.zeros((*each, spec.obs_dim)),
        "terminal": jnp.zeros(each, bool),
        "truncated": jnp.zeros(batch_size, bool),
        "state": jnp.zeros((batch_size, spec.state_dim)),
        "next_state": jnp.zeros((batch_size, spec.state_dim)),
    }
    update = jax.jit(algorithm.update).lower(state, Transition(**arrays), jax.random.key(0)).compile()
    counted = getattr(measuring, f"{name}_flops")(config, spec)
    assert counted < update.cost_analysis()["flops"] < 1.06 * counted


def test_the_random_data_are_valid_and_consist_of_whole_episodes():
    dataset = measuring.synthetic_dataset(measuring.OMIGA_SPEC, 3_000)
    validate(dataset)
    assert dataset.size == 3_000
    assert dataset.whole_episodes.tolist() == [True] * 3


def test_runs_for_which_memory_is_too_small_are_trained_in_smaller_groups(monkeypatch):
    class Trainer:
        def __init__(self, method, configs, seeds, datasets, data_of, env, placement):
            self.width = placement.slots // placement.devices

        def advance(self, updates):
            if self.width > 30:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

    monkeypatch.setattr(short, "Trainer", Trainer)
    monkeypatch.setattr(short, "SECONDS", 0.0)
    # On a CPU a device takes one run at a time unless told otherwise.
    default = short.Placement.default
    monkeypatch.setattr(short.Placement, "default", lambda runs, most=None: default(runs, most or runs))
    spec = dataclasses.replace(measuring.OMIGA_SPEC, episode_length=10)
    rows = short.training_rows("omiga", spec, (20, 100), deadline=math.inf)
    assert [(row["runs"], row["side_by_side"], row["status"]) for row in rows] == [
        (20, 20, "measured"),
        (100, 100, "out of memory"),
        (100, 50, "out of memory"),
        (100, 25, "measured"),
    ]
    late = short.training_rows("omiga", spec, (20, 100), deadline=-math.inf)
    assert [row["status"] for row in late] == ["skipped", "skipped"]

    def broken(self, updates):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(Trainer, "advance", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        short.training_rows("omiga", spec, (20,), deadline=math.inf)


def test_processes_that_print_other_hashes_do_not_agree():
    first = {"backend": "gpu", "omar": "a", "omiga": "b"}
    assert same_bits.agreement(first, dict(first)) == {"omar": True, "omiga": True}
    assert same_bits.agreement(first, first | {"omiga": "c"}) == {"omar": True, "omiga": False}
    assert same_bits.agreement(first, first | {"backend": "cpu"}) == "one ran on gpu and one on cpu"
    assert same_bits.agreement(first, "killed") == same_bits.agreement("killed", first) == "killed"


def test_every_task_has_rows_of_environment_steps(monkeypatch):
    monkeypatch.setattr(short, "SECONDS", 0.0)
    rows = short.environment_rows(["matrix/xor", "particle/spread"], (4, 8), deadline=math.inf)
    assert [(row["task"], row["environments"], row["status"]) for row in rows] == [
        (task, n, "measured") for task in ("matrix/xor", "particle/spread") for n in (4, 8)
    ]
    assert all(row["steps_per_second"] > 0.0 for row in rows)
