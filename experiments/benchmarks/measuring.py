"""What the long and the short form of the benchmark share: data, loops, and the arithmetic of an update."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from omarl_envs import TaskSpec
from omarl_envs.base import MultiAgentEnv
from rich.console import Console

from omarl_jax import algorithms, rollout
from omarl_jax.data.dataset import Dataset, EpisodeStore
from omarl_jax.types import Part

console = Console()
MJX_STEPS = 10  # control steps in one call, since it is slow on CPUs

# The published task of OMIGA: HalfCheetah with one joint for each agent, whose number is part of its observation.
OMIGA_SPEC = TaskSpec(
    "synthetic/cheetah",
    "continuous",
    n_agents=6,
    obs_dim=23,
    action_dim=1,
    state_dim=138,
    episode_length=1_000,
    state_is_obs=True,
)


def synthetic_dataset(spec: TaskSpec, size: int = 100_000) -> Dataset:
    """Random transitions of a continuous task, in whole episodes, about `size` of them."""
    rng, rows = np.random.default_rng(0), spec.episode_length + 1
    n = max(1, size // spec.episode_length) * rows
    closing = np.arange(n) % rows == spec.episode_length
    agents = (n, spec.n_agents)
    actions = rng.uniform(-1.0, 1.0, (*agents, spec.action_dim)).astype(np.float32)
    rewards = rng.normal(size=agents).astype(np.float32)
    actions[closing], rewards[closing] = 0.0, 0.0
    obs = rng.normal(size=(*agents, spec.obs_dim)).astype(np.float32)
    truncated = np.roll(closing, -1)
    store = EpisodeStore(obs, actions, rewards, np.zeros(agents, bool), truncated, closing)
    return Dataset(dataclasses.replace(spec, state_is_obs=True, state_dim=spec.n_agents * spec.obs_dim), store, {})


def untrained_parts(name: str, config: Any, spec: TaskSpec, runs: int) -> dict[str, Any]:
    """The frozen parts of a method for so many runs, before they are trained: that changes no speed."""
    fresh = algorithms.untrained(algorithms.find(name).make(config, spec).needs.parts, spec)
    return jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], runs, axis=0), fresh)


def rate(work: Callable[[], Any], seconds: float) -> float:
    """How often a second `work` is done."""
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or done == 0:
        work()
        done += 1
    return done / (time.perf_counter() - began)


def episodes(env: MultiAgentEnv, n_envs: int, count: int, redraw: bool = True) -> Callable[[int], Any]:
    """A compiled function that plays some episodes in all environments and uses up everything they show.

    The environments are divided among the devices; without `redraw` all episodes have the same random actions. The
    environment is the last axis of the random actions, because on
    CPUs random numbers in arrays with a short last axis take six times as long.
    """
    devices, spec = jax.device_count(), env.task_spec
    n = n_envs // devices

    def actions(key: jax.Array) -> jax.Array:
        if spec.kind == "discrete":
            return jax.random.randint(key, (spec.n_agents, n), 0, spec.action_dim).T
        return jax.random.uniform(key, (spec.action_dim, spec.n_agents, n), minval=-1.0).T

    def step(carry: tuple[Any, jax.Array], key: jax.Array) -> tuple[tuple[Any, jax.Array], None]:
        state, total = carry
        state, timestep = jax.vmap(env.step)(state, actions(key) if redraw else key)
        view = timestep.observation.agents_view
        return (state, total + view.sum(axis=(1, 2)) + timestep.reward.sum(axis=1)), None

    def episode(carry: tuple[jax.Array, Any], key: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
        total, drawn = carry
        reset_key, key = jax.random.split(key)
        state, _ = jax.vmap(env.reset)(jax.random.split(reset_key, n))
        steps = jax.random.split(key, spec.episode_length) if redraw else drawn
        (_, total), _ = jax.lax.scan(step, (state, total), steps)
        return (total, drawn), None

    def play(seed: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), jax.lax.axis_index("environments"))
        drawn = None if redraw else jax.lax.map(actions, jax.random.split(key, spec.episode_length))
        return jax.lax.scan(episode, (jnp.zeros(n), drawn), jax.random.split(key, count))[0][0]

    return _on_all_devices(play, "environments")


def evaluation(env: MultiAgentEnv, n_envs: int, length: int = 200) -> Callable[[int], float]:
    """A function that plays an untrained policy of BC in environments on every device, and tells the steps it took.

    Args:
        env: the task; its episodes are cut off after `length` steps from now on.
        n_envs: environments on each device.
        length: steps of an episode; all are simulated, also after an early end.
    """
    spec = env.task_spec = dataclasses.replace(env.task_spec, episode_length=length)
    part = Part("bc", {"input_norm": "none"}, updates=1)
    method = algorithms.find(part.algorithm)
    algorithm = method.make(method.configure(spec, part.hyperparameters), spec)
    policy = algorithms.untrained({"policy": part}, spec)["policy"]

    def play(seed: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), jax.lax.axis_index("environments"))
        return rollout.evaluate(env, algorithm.act, algorithm.carry, policy, key, n_envs)["return"]

    run = _on_all_devices(play, "environments")
    return lambda seed: float(run(seed).size * length)


def mjx_steps(name: str, n_envs: int) -> dict[str, Callable[[float], float]]:
    """Functions that measure control steps a second of MJX for some seconds, without policy, reward or resets.

    Named by the solver's iterations: those of the model file, which are `stock`, 8 and 4. Empty if MJX or Gymnasium is
    not installed.

    Args:
        name: the environment of Gymnasium whose robot it is.
        n_envs: robots on each device.
    """
    try:
        import gymnasium
        from mujoco import mjx
    except ImportError:
        console.print("MJX is not installed: robots are measured without it.")
        return {}

    env: Any = gymnasium.make(name).unwrapped
    env.reset(seed=0)

    def measured(iterations: str) -> Callable[[float], float]:
        model = mjx.put_model(env.model, impl="jax")
        if iterations != "stock":
            model = model.tree_replace({"opt.iterations": int(iterations)})
        start = mjx.put_data(env.model, env.data, impl="jax")

        def play(seed: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(seed), jax.lax.axis_index("environments"))
            controls = jax.random.uniform(key, (MJX_STEPS, n_envs, env.model.nu), minval=-1.0)

            def control_step(data: Any, control: jax.Array) -> tuple[Any, None]:
                data = data.replace(ctrl=control)
                return jax.lax.fori_loop(0, env.frame_skip, lambda _, data: mjx.step(model, data), data), None

            return jax.vmap(lambda control: jax.lax.scan(control_step, start, control)[0].qpos, in_axes=1)(controls)

        run = _on_all_devices(play, "environments")
        run(0)
        return lambda seconds: jax.device_count() * n_envs * MJX_STEPS * rate(lambda: run(1), seconds)

    return {iterations: measured(iterations) for iterations in ("stock", "8", "4")}


def gymnasium_steps(names: Mapping[str, str]) -> dict[str, Callable[[float], float]]:
    """Functions that measure steps a second of Gymnasium's environments, one of each on one core, for some seconds.

    Empty if Gymnasium or MuJoCo is not installed.
    """
    try:
        import gymnasium
        import mujoco  # noqa: F401
    except ImportError:
        console.print("Gymnasium with MuJoCo is not installed: its robots are measured without a baseline.")
        return {}

    def measured(name: str) -> Callable[[float], float]:
        env = gymnasium.make(name).unwrapped
        actions = np.random.default_rng(0).uniform(-1.0, 1.0, (1_000, *env.action_space.shape))

        def steps() -> None:
            env.reset(seed=0)
            for action in actions:
                if env.step(action)[2]:
                    env.reset()

        return lambda seconds: len(actions) * rate(steps, seconds)

    return {task: measured(name) for task, name in names.items()}


_PRODUCTS = 200  # in one call of the program


def matmul() -> Callable[[float], float]:
    """Makes a function that measures how fast this machine multiplies float32 matrices, in FLOP/s of all devices.

    Products are those of OMIGA's largest layer, 768 × 256 × 256, each with the result of the one before; on
    accelerators 64 side by side, as many runs are.
    """
    side_by_side = 1 if jax.default_backend() == "cpu" else 64
    weights = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (256, 256)))[0]  # keeps lengths as they are

    def multiply(seed: jax.Array) -> jax.Array:
        x = jax.random.normal(jax.random.key(seed), (side_by_side, 768, 256))
        x = jax.lax.fori_loop(0, _PRODUCTS, lambda _, x: x @ weights, x)
        return jnp.square(x).mean()[None]

    program = _on_all_devices(multiply, "devices")
    program(0)
    flops = product(768 * side_by_side, 256, 256) * _PRODUCTS * jax.device_count()
    return lambda seconds: flops * rate(lambda: program(1), seconds)


def _on_all_devices(function: Callable[[jax.Array], jax.Array], axis: str) -> Callable[[int], Any]:
    mesh = jax.make_mesh((jax.device_count(),), (axis,))
    spread = jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(axis), check_vma=False
    )
    compiled = jax.jit(spread)
    return lambda seed: compiled(seed).block_until_ready()


# --- FLOPs of the matrix products of one update ---
#
# A product of (rows, inputs) with (inputs, outputs) is 2 · rows · inputs · outputs. A network that learns makes three
# for each layer: forward, gradient of the weights, gradient of the inputs; the last is not needed in the first layer.
# What is not a product (activations, random numbers, the search's softmax, Adam) is not counted.


def product(rows: int, inputs: int, outputs: int) -> int:
    """FLOPs of (rows, inputs) times (inputs, outputs)."""
    return 2 * rows * inputs * outputs


def forward(rows: int, *widths: int) -> int:
    """FLOPs of a forward pass through layers of these widths, the inputs first."""
    return sum(product(rows, *layer) for layer in _layers(widths))


def learned(rows: int, *widths: int) -> int:
    """FLOPs of a forward pass, and of the gradient of all weights."""
    return 3 * forward(rows, *widths) - product(rows, *widths[:2])


def _layers(widths: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    yield from itertools.pairwise(widths)


def omiga_flops(config: Any, spec: TaskSpec) -> int:
    """FLOPs of an update of OMIGA with shared networks and continuous actions.

    Policy, Q, V and the mixer learn; the targets of Q and V are evaluated once and that of the mixer in two states. V
    is evaluated once for its own loss and the policy's.
    """
    rows, seen = config.batch_size * spec.n_agents, spec.obs_dim + spec.n_agents
    pair = seen + spec.action_dim
    policy = learned(rows, seen, *config.hidden, 2 * spec.action_dim)
    q = learned(rows, pair, *config.hidden, 1) + forward(rows, pair, *config.hidden, 1)
    v = learned(rows, seen, *config.hidden, 1) + forward(rows, seen, *config.hidden, 1)
    mixer = config.batch_size, spec.state_dim, config.mixer_hidden, spec.n_agents + 1
    return policy + q + v + learned(*mixer) + 2 * forward(*mixer)


def omcda_flops(config: Any, spec: TaskSpec, updates: int = 1_000_000) -> int:
    """FLOPs of an update of OMCDA with shared networks and continuous actions, and influence by one sample a state.

    The policy learns, and the behaviour is evaluated once. Both halves have a Q, a V and a mixer that learn, and their
    targets as in OMIGA. Where influence is measured, the target of Q is evaluated for another action, with the gradient
    of that action.
    """
    rows, seen, n = config.batch_size * spec.n_agents, spec.obs_dim + spec.n_agents, spec.n_agents
    widths, pair = (*config.hidden, 1), seen + spec.action_dim
    policy = rows, seen, *config.hidden, 2 * spec.action_dim
    policies = learned(*policy) + forward(*policy)
    q = learned(rows, pair, *widths) + forward(rows, pair, *widths)
    v = learned(rows, seen, *widths) + forward(rows, seen, *widths)
    mixers = 0
    for outputs in (n + 1, n * n + n):
        mixer = config.batch_size, spec.state_dim, config.mixer_hidden, outputs
        mixers += learned(*mixer) + 2 * forward(*mixer)
    influence = 2 * forward(rows, pair, *widths)
    return policies + 2 * q + 2 * v + mixers + influence // max(1, round(config.influence_period * updates))


def ciqr_flops(config: Any, spec: TaskSpec) -> int:
    """FLOPs of an update of MA-CIQR: each agent's network learns, and its target is evaluated once."""
    widths = spec.obs_dim, *config.hidden, config.quantiles * spec.action_dim
    return spec.n_agents * (learned(config.batch_size, *widths) + forward(config.batch_size, *widths))


def omar_flops(config: Any, spec: TaskSpec) -> int:
    """FLOPs of an update of independent OMAR with uniform samples.

    Of each agent: the policy learns, and its target is evaluated once. Both heads of the target critic judge one
    action, both of the critic learn from the data's action and from K samples, and one judges the policy's own action,
    with the gradient of that action, and the candidates of the search. The share of the observation in the first layer
    of a critic is computed once in each pass, whatever the number of actions.
    """
    batch, width = config.batch_size, config.hidden[0]

    def judge(actions: int) -> int:  # one head
        rest = forward(batch * actions, spec.action_dim, *config.hidden, 1)
        return product(batch, spec.obs_dim, width) + rest

    def learn(actions: int) -> int:
        rest = learned(batch * actions, spec.action_dim, *config.hidden, 1)
        return 2 * product(batch, spec.obs_dim, width) + rest

    own = judge(1) + forward(batch, spec.action_dim, *config.hidden, 1)
    policy_widths = batch, spec.obs_dim, *config.hidden, spec.action_dim
    policy = learned(*policy_widths) + forward(*policy_widths)
    critic = 2 * (judge(1) + learn(1) + learn(config.cql_samples))
    return spec.n_agents * (policy + critic + own + config.search_steps * judge(config.search_samples))
