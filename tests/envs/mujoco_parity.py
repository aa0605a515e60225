"""How far our physics lies from C MuJoCo's: measurements that the tests assert, and the table of all of them.

Errors are |ours - theirs| / max(1, |theirs|), the largest of a state's numbers.

    python tests/envs/mujoco_parity.py --folder experiments/results/mujoco_parity
"""

import argparse
import contextlib
import csv
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco_judge as judge
import numpy as np
from mujoco_judge import BODIES, ENGINES, Array, Engine
from omarl_envs import make
from omarl_envs.mujoco import constraints, models, physics, rigid
from omarl_envs.mujoco.models import Model
from omarl_envs.mujoco.numbers import dot

MODELS: dict[str, Model] = {
    "halfcheetah": models.half_cheetah(),
    "hopper": models.hopper(),
    "walker2d": models.walker2d(),
    "ant": models.ant(),
}
TASKS = {
    "halfcheetah": "mujoco/halfcheetah-6x1",
    "hopper": "mujoco/hopper-3x1",
    "walker2d": "mujoco/walker2d-2x3",
    "ant": "mujoco/ant-2x4",
}
EXACT = 30
"""Newton steps after which nothing is left of the solver's own error."""


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Computes in float64. What was traced in one precision must not serve the other, so JAX's caches are emptied."""
    jax.clear_caches()
    with jax.enable_x64(True):
        yield
    jax.clear_caches()


def errors(ours: Any, theirs: Array) -> Array:
    """The largest error of each state: (B,) from (B, …); what does not exist, NaN, must be so in both."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape
    assert np.array_equal(np.isnan(ours), np.isnan(theirs)), "Other constraints than the judge's exist."
    apart = np.nan_to_num(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs)))
    return apart.reshape(len(apart), -1).max(axis=1)


def pieces(body: str, engine: Engine, states: dict[str, Array]) -> dict[str, Array]:
    """Our arrays at states, laid out as the judge's (`mujoco_judge.arrays`), and the acceleration.

    This is the one place of the tests that knows how the engine is built.
    """
    model = MODELS[body]
    hinges, limbs = len(rigid.parts(model).hinged), len(model.limbs)

    def edges(points: constraints.Contacts, motion: Any) -> Any:
        """What a motion is along each edge of the pyramids: (…, B, 4)."""
        normal, *tangents = (dot(d, constraints.at_points(motion)).value for d in points.directions)
        slips = [sign * points.friction * x for x in tangents for sign in (1.0, -1.0)]
        return jnp.stack([jnp.broadcast_to(normal + x, points.row.offset.shape) for x in slips], axis=-1)

    def compute(q: Any, v: Any, control: Any, guess: Any, a: Any) -> dict[str, Any]:
        coordinates, velocities, accelerations = (rigid.split(model, x) for x in (q, v, a))
        at = rigid.pose(model, coordinates)
        inertias, speeds = rigid.inertias(model, engine, at), rigid.motions(at, velocities)
        momenta = [
            inertia @ drift + rigid.force_cross(speed, inertia @ speed)
            for inertia, drift, speed in zip(inertias, rigid.drifts(at, velocities), speeds, strict=True)
        ]
        total = momenta[0] + rigid.total(momenta[1])
        of_root = jnp.concatenate([dot(axis, total).value for axis in at.axes[0]])
        touching = zip(constraints.contacts(model, engine, at), speeds, rigid.motions(at, accelerations), strict=True)
        side, ends = constraints.limits(model, engine, coordinates.limbs)
        return {
            "matrix": rigid.joint_matrix(at, *inertias, rigid.hinge_constant(model, "armature")),
            "bias": rigid.join(of_root, dot(at.axes[1], rigid.inward(momenta[1], hinges)).value),
            "floor": [(points.row, edges(points, x), edges(points, y)) for points, x, y in touching],
            "limits": (ends, side * velocities.limbs.value, side),
            "pairs": [
                (row, *((jacobian * x.limbs.value).sum(axis=0) for x in (velocities, accelerations)))
                for jacobian, row in constraints.collisions(model, engine, at)
            ],
            "acceleration": physics.acceleration(model, engine, q, v, control, guess, EXACT)[0],
        }

    with float64():
        columns = (states[key].T for key in ("qpos", "qvel", "control", "guess", "acceleration"))
        found = jax.tree.map(np.asarray, jax.jit(compute)(*columns))

    size, number = found["bias"].shape
    root = size - limbs * hinges
    mass, matrix = np.zeros((number, size, size)), found["matrix"]
    mass[:, :root, :root] = np.moveaxis(matrix.root, -1, 0)
    for limb in range(limbs):
        own = slice(root + limb * hinges, root + (limb + 1) * hinges)
        mass[:, own, :root] = matrix.cross[:, :, limb].T
        mass[:, own, own] = matrix.limbs[:, :, limb].T
    out = {"mass": mass[(slice(None), *np.tril_indices(size))]}
    out["bias"] = found["bias"].T

    def resistance(row: constraints.Row) -> Array:
        with np.errstate(divide="ignore"):
            return np.where(row.weight > 0.0, 1.0 / row.weight, np.nan)

    shapes = sum(len(b.shapes) for b in model.bodies)
    floor = {"floor_resistance": np.full((number, shapes, 2), np.nan)}
    floor |= {key: np.full((number, shapes, 2, 4), np.nan) for key in ("floor_reference", "floor_moved")}
    for place, (part, index) in points_of(body).items():
        row, speed, moved = found["floor"][part]
        here = (slice(None), *place)
        floor["floor_resistance"][here] = resistance(row)[index]
        exists = np.where(row.weight[index] > 0.0, 1.0, np.nan)[:, None]
        floor["floor_reference"][here] = exists * (-row.damping * speed[index] - row.offset[index][:, None])
        floor["floor_moved"][here] = exists * moved[index]
    out |= floor

    def by_hinge(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(-1, number).T

    row, speed, side = found["limits"]
    out["limit_resistance"] = by_hinge(resistance(row))
    exists = 0.0 * out["limit_resistance"]
    out["limit_reference"] = exists + by_hinge(-row.damping * speed - row.offset)
    out["limit_side"] = np.where(np.isnan(exists), 0.0, by_hinge(side))
    for key in ("resistance", "reference", "moved"):
        out[f"pair_{key}"] = np.full((number, 3), np.nan)
    for pair, (row, speed, moved) in enumerate(found["pairs"]):
        out["pair_resistance"][:, pair] = resistance(row)[0]
        exists = 0.0 * out["pair_resistance"][:, pair]
        out["pair_reference"][:, pair] = exists + (-row.damping * speed - row.offset)[0]
        out["pair_moved"][:, pair] = exists + moved[0]
    for key in ("floor_reference", "floor_moved"):
        out[key] = np.sort(out[key].reshape(number, shapes, 2, 2, 2)).reshape(number, shapes, 2, 4)
    return out | {"acceleration": found["acceleration"].T}


def points_of(body: str) -> dict[tuple[int, int], tuple[int, tuple[int, ...]]]:
    """Of each shape's ends in the judge's order: the part of the engine's contacts, and the index there."""
    of_bodies: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    model, parts, count = MODELS[body], rigid.parts(MODELS[body]), 0
    for part, _ in parts.root:
        many = len(constraints._points(part)[0])
        of_bodies[part.name] = [(0, (count + k, 0)) for k in range(many)]
        count += many
    for d, carried in enumerate(parts.hinged):
        for limb, part in enumerate(carried):
            of_bodies[part.name] = [(1, (d, k, limb)) for k in range(len(constraints._points(part)[0]))]
    out = {}
    for number, (name, shape, ends) in enumerate(shape_ends(body)):
        here = of_bodies[name][:1] if shape.start == shape.end else of_bodies[name][:2]
        of_bodies[name] = of_bodies[name][len(here) :]
        first = int(np.argmin(np.linalg.norm(ends - np.array(shape.start), axis=1)))
        for k, place in enumerate(here):
            out[number, abs(first - k)] = place
    assert not any(of_bodies.values()) and len(model.bodies) == len(of_bodies)
    return out


def shape_ends(body: str) -> list[tuple[str, models.Capsule, Array]]:
    """Our shapes in the judge's order, each with the name of its body and the ends (2, 3) that the judge gives it."""
    theirs, out = judge.judge(body, "current"), []
    shapes = [(k, b.name, shape) for k, b in enumerate(MODELS[body].bodies) for shape in b.shapes]
    geoms = np.flatnonzero(theirs.geom_bodyid)
    for geom, (k, name, shape) in zip(geoms, shapes, strict=True):
        assert theirs.geom_bodyid[geom] == k + 1
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, theirs.geom_quat[geom])
        half = rotation.reshape(3, 3)[:, 2] * theirs.geom_size[geom, 1]
        out.append((name, shape, theirs.geom_pos[geom] + np.outer((-1.0, 1.0), half)))
    return out


def stepped(
    body: str, engine: Engine, states: dict[str, Array], iterations: int = physics.ITERATIONS
) -> dict[str, Array]:
    """Our state after one control step, in the precision that holds, and the way along x."""
    arguments = [jnp.asarray(states[key], float) for key in ("qpos", "qvel", "control", "guess")]
    simulate = functools.partial(physics.simulate, MODELS[body], engine, iterations=iterations)
    q, v, a, way = jax.jit(jax.vmap(lambda q, v, u, guess: simulate(q, v, u, guess)))(*arguments)
    return {"next_qpos": np.asarray(q), "next_qvel": np.asarray(v), "next_guess": np.asarray(a), "way": np.asarray(way)}


def step_errors(ours: dict[str, Array], theirs: dict[str, Array]) -> Array:
    """Errors (B,) of states after one control step."""
    return np.maximum(*(errors(ours[key], theirs[key]) for key in ("next_qpos", "next_qvel")))


def after_ten(body: str, engine: Engine, states: dict[str, Array]) -> Array:
    """Errors (B,) after ten control steps with random actions, in float64."""
    model, frames, rng = judge.judge(body, engine), BODIES[body].frame_skip, np.random.default_rng(10)
    controls = rng.uniform(-1.0, 1.0, (10, *states["control"].shape))
    data, theirs = mujoco.MjData(model), []
    for k, (q, v) in enumerate(zip(states["qpos"], states["qvel"], strict=True)):
        for control in controls[:, k]:
            q, v = judge.advance(model, data, q, v, control, frames)
        theirs.append((q, v))

    def ten(q: Any, v: Any, guess: Any, controls: Any) -> Any:
        def step(carry: Any, control: Any) -> Any:
            q, v, a, _ = physics.simulate(MODELS[body], engine, *carry[:2], control, carry[2], EXACT)
            return (q, v, a), None

        return jax.lax.scan(step, (q, v, guess), controls)[0]

    with float64():
        start = (jnp.asarray(states[key]) for key in ("qpos", "qvel", "guess"))
        q, v, _ = jax.jit(jax.vmap(ten, in_axes=(0, 0, 0, 1)))(*start, jnp.asarray(controls))
        ours = np.asarray(q), np.asarray(v)
    return np.maximum(*(errors(a, np.array(b)) for a, b in zip(ours, zip(*theirs, strict=True), strict=True)))


def returns(body: str, engine: Engine, policy: str, episodes: int, seed: int) -> Array:
    """Returns (E,) of our task's episodes, of the policy `random` or `linear` (see `mujoco_judge.played`)."""
    env, weights = make(TASKS[body], engine=engine, observations="full"), jnp.asarray(judge.linear_policies()[body])
    spec = env.task_spec

    def act(observation: Any, key: Any) -> Any:
        if policy == "random":
            return jax.random.uniform(key, (spec.n_agents, spec.action_dim), minval=-1.0, maxval=1.0)
        seen = observation.state[: weights.shape[1] - 1]
        return jnp.clip(weights[:, :-1] @ seen + weights[:, -1], -1.0, 1.0).reshape(spec.n_agents, spec.action_dim)

    def play(key: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            state, observation, goes_on, gain = carry
            state, timestep = env.step(state, act(observation, key))
            gain = gain + jnp.where(goes_on, timestep.reward.mean(), 0.0)
            return (state, timestep.observation, goes_on & ~timestep.last(), gain), None

        state, timestep = env.reset(key)
        start = (state, timestep.observation, jnp.bool_(True), jnp.zeros(()))
        return jax.lax.scan(step, start, jax.random.split(key, judge.HORIZON))[0][-1]

    return np.asarray(jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(seed), episodes)), np.float64)


def standard_errors(ours: Array, theirs: Array) -> float:
    """How many standard errors lie between two means."""
    return float(abs(ours.mean() - theirs.mean()) / np.hypot(*(x.std(ddof=1) / len(x) ** 0.5 for x in (ours, theirs))))


Kind = Literal["piece", "step", "step, default solver", "ten steps", "step in float32", "step in float32, exact solver"]


class Row(NamedTuple):
    """A line of the table: a measurement of a body and engine.

    Errors are those that 50, 99 and 100 % of the states do not exceed. In float32 a constraint may begin a stage too
    early or too late, wherever the judge itself jumps if coordinates move by 1e-8; so the largest error means little.
    Measurements are in float64 and with `EXACT` Newton steps unless they say otherwise; `piece` compares an array.
    """

    body: str
    engine: str
    kind: Kind
    what: str
    states: int
    median: float
    most: float
    largest: float
    worst: str


def row(body: str, engine: Engine, kind: Kind, states: dict[str, Array], found: Array, what: str = "state") -> Row:
    """Summarises errors (B,) of states."""
    worst = int(np.argmax(found))
    names = list(judge.policies(body, np.random.default_rng(0)))
    about = f"state {worst}: {names[states['policy'][worst]]}, step {states['step'][worst]}"
    about += ", after an end" if states["ended"][worst] else ""
    quantiles = (float(x) for x in np.quantile(found, (0.5, 0.99, 1.0), method="lower"))
    return Row(body, engine, kind, what, len(found), *quantiles, about)


def measure(body: str, engine: Engine, states: dict[str, Array]) -> Iterator[Row]:
    """All errors of one body and engine."""
    for key, ours in pieces(body, engine, states).items():
        if np.isfinite(states[key]).any():
            yield row(body, engine, "piece", states, errors(ours, states[key]), key.replace("_", " "))
    exact, default = EXACT, physics.ITERATIONS
    kinds: list[tuple[Kind, int]] = [("step", exact), ("step, default solver", default)]
    for kind, iterations in kinds:
        with float64():
            found = step_errors(stepped(body, engine, states, iterations), states)
        yield row(body, engine, kind, states, found)
    yield row(body, engine, "ten steps", states, after_ten(body, engine, states))
    kinds = [("step in float32, exact solver", exact), ("step in float32", default)]
    for kind, iterations in kinds:
        yield row(body, engine, kind, states, step_errors(stepped(body, engine, states, iterations), states))


def main() -> None:
    """Writes the table as Markdown and CSV."""
    parser = argparse.ArgumentParser(description="Measures how far our physics lies from C MuJoCo's.")
    parser.add_argument("--states", type=int, default=1000, help="how many of each body and engine")
    parser.add_argument("--bodies", nargs="+", choices=BODIES, default=list(BODIES))
    parser.add_argument("--episodes", type=int, default=200, help="whose returns are compared; 0 for none")
    parser.add_argument("--folder", type=Path, default=Path("experiments/results/mujoco_parity"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows, returned = [], []
    for body in arguments.bodies:
        for engine in ENGINES:
            for found in measure(body, engine, judge.states(body, engine, arguments.states, 1)):
                rows.append(found)
                print(*found, sep=", ", flush=True)
            for policy in ("random", "linear") if arguments.episodes else ():
                ours = returns(body, engine, policy, arguments.episodes, 2)
                theirs = judge.played(body, engine, policy, arguments.episodes, 3)
                returned.append((body, engine, policy, ours, theirs))
                print(body, engine, policy, ours.mean(), theirs.mean(), standard_errors(ours, theirs), flush=True)
    table = [r._replace(states=str(r.states)) for r in rows]
    heading = f"MuJoCo {mujoco.__version__}, {jax.devices()[0].device_kind}, JAX {jax.__version__}"
    lines = [
        f"How far our physics lies from C: {heading}.",
        "",
        "Errors are \\|Δ\\| / max(1, \\|value\\|), the largest of a state's numbers; in float64 and with",
        f"{EXACT} Newton steps unless the table says otherwise. By default there are {physics.ITERATIONS}.",
        "",
        "| body | engine | compared | of | states | median | 99 % | largest | where |",
        "|---|---|---|---|---|---|---|---|---|",
        *(" | ".join(["", *r[:5], *(f"{x:.1e}" for x in r[5:8]), r.worst, ""]).strip() for r in table),
        "",
        f"Mean returns of {arguments.episodes} episodes, ± standard errors, and the difference in standard errors.",
        "",
        "| body | engine | policy | ours | C | apart |",
        "|---|---|---|---|---|---|",
    ]
    for body, engine, policy, *both in returned:
        means = " | ".join(f"{x.mean():.1f} ± {x.std(ddof=1) / len(x) ** 0.5:.1f}" for x in both)
        lines.append(f"| {body} | {engine} | {policy} | {means} | {standard_errors(*both):.1f} |")
    (arguments.folder / "table.md").write_text("\n".join(lines) + "\n")
    with open(arguments.folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*Row._fields, "judge"])
        writer.writerows([*r, mujoco.__version__] for r in rows)


if __name__ == "__main__":
    main()
