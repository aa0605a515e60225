"""C MuJoCo as the judge of our physics: its models, episodes that it simulates, and the arrays that it computes.

Run as a script it writes the states that the tests compare, 100 a body and engine, into `data/`.

    python tests/envs/mujoco_judge.py                                  the committed states
    python tests/envs/mujoco_judge.py --states 1000 --folder /tmp/x    more of them, elsewhere
    python tests/envs/mujoco_judge.py --policies                       the committed linear policies, in a few minutes
"""

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import mujoco
import numpy as np

Array = np.ndarray
Engine = Literal["2.0", "current"]
ENGINES: tuple[Engine, ...] = ("2.0", "current")
FOLDER = Path(__file__).parent / "data"
ASSETS = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
HORIZON = 1000


@dataclasses.dataclass(frozen=True)
class Body:
    """What Gymnasium's `-v4` environment says of a body besides its XML file.

    Attributes:
        file: in Gymnasium's assets.
        frame_skip: steps of the physics in one of control.
        noise: coordinates start within ± this of where the model rests.
        normal: whether velocities start normal with the noise as deviation, instead of within ± the noise.
        healthy: whether an episode goes on; of coordinates (…, Q) and velocities (…, V), NumPy's or JAX's.
        clip: of the velocities in an observation.
        hidden: leading coordinates that are not observed.
        cost: of the squared action.
        bonus: reward of every step.
    """

    file: str
    frame_skip: int
    noise: float
    normal: bool
    healthy: Callable[[Any, Any], Any]
    clip: float = math.inf
    hidden: int = 1
    cost: float = 1e-3
    bonus: float = 1.0


def _hopper_stands(q: Any, v: Any) -> Any:
    small = (abs(q[..., 2:]) < 100.0).all(axis=-1) & (abs(v) < 100.0).all(axis=-1)
    return small & (q[..., 1] > 0.7) & (abs(q[..., 2]) < 0.2)


def _walker_stands(q: Any, v: Any) -> Any:
    return (q[..., 1] > 0.8) & (q[..., 1] < 2.0) & (abs(q[..., 2]) < 1.0)


def _ant_stands(q: Any, v: Any) -> Any:
    finite = (abs(q) < math.inf).all(axis=-1) & (abs(v) < math.inf).all(axis=-1)
    return finite & (q[..., 2] >= 0.2) & (q[..., 2] <= 1.0)


def _always(q: Any, v: Any) -> Any:
    return q[..., 0] == q[..., 0]


BODIES = {
    "halfcheetah": Body("half_cheetah.xml", 5, 0.1, True, _always, cost=0.1, bonus=0.0),
    "hopper": Body("hopper.xml", 4, 5e-3, False, _hopper_stands, clip=10.0),
    "walker2d": Body("walker2d.xml", 4, 5e-3, False, _walker_stands, clip=10.0),
    "ant": Body("ant.xml", 5, 0.1, True, _ant_stands, hidden=2, cost=0.5),
}
PAIRS = [(0, 2), (0, 3), (1, 3)]
"""Bodies of Hopper that collide: torso and leg, torso and foot, thigh and foot."""


@functools.cache
def judge(body: str, engine: Engine, exact: bool = True) -> mujoco.MjModel:
    """The judge's model, whose solver converges to rounding, or stops at its usual tolerance.

    `current` is Gymnasium's file. `2.0` has the inertias that MuJoCo 2.0 gave to capsules; it took the larger of two
    margins where current versions add them, so they are halved.
    """
    text = (ASSETS / BODIES[body].file).read_text()
    # MuJoCo warns of this attribute and says to call `mj_setTotalmass` instead; all arrays come out equal.
    attribute = ' settotalmass="14"'
    assert (attribute in text) == (body == "halfcheetah")
    spec = mujoco.MjSpec.from_string(text.replace(attribute, ""))
    model = spec.compile()
    total = 14.0 if body == "halfcheetah" else None
    if engine == "2.0":
        masses, centres, inertias = cylinder_inertials(spec, model, total)
        spec.compiler.inertiafromgeom = mujoco.mjtInertiaFromGeom.mjINERTIAFROMGEOM_FALSE
        for k, part in enumerate(spec.bodies[1:]):
            part.explicitinertial, part.mass, part.ipos = True, masses[k], centres[k]
            part.fullinertia = inertias[k][(0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)]
        for geom in spec.geoms:
            geom.margin /= 2.0
        model = spec.compile()
    elif total is not None:
        mujoco.mj_setTotalmass(model, total)
        mujoco.mj_setConst(model, mujoco.MjData(model))
    if exact:
        model.opt.tolerance, model.opt.iterations = 0.0, 100
    return model


def cylinder_inertials(spec: Any, model: Any, total: float | None) -> tuple[Array, Array, Array]:
    """Masses (K,), centres (K, 3) and inertias (K, 3, 3) by the formula of MuJoCo up to 2.1.0.

    It took a capsule of radius r and half length h for a cylinder of length 2 h + r.
    """
    masses, centres, inertias = [], [], []
    for k in range(1, model.nbody):
        parts = []
        for g in np.flatnonzero(model.geom_bodyid == k):
            density, (r, h, _) = spec.geoms[g].density, model.geom_size[g]
            if model.geom_type[g] == mujoco.mjtGeom.mjGEOM_SPHERE:
                mass = density * 4.0 / 3.0 * np.pi * r**3
                moments = np.full(3, 0.4 * mass * r**2)
            else:
                length = 2.0 * h + r
                mass = density * np.pi * r**2 * length
                moments = mass * np.array([r**2 / 4.0 + length**2 / 12.0] * 2 + [r**2 / 2.0])
            turned = np.empty(9)
            mujoco.mju_quat2Mat(turned, model.geom_quat[g])
            turned = turned.reshape(3, 3)
            parts.append((mass, model.geom_pos[g], turned @ np.diag(moments) @ turned.T))
        mass = sum(m for m, _, _ in parts)
        centre = sum(m * at for m, at, _ in parts) / mass
        apart = [(m, at - centre, inertia) for m, at, inertia in parts]
        inertias.append(sum(i + m * (d @ d * np.eye(3) - np.outer(d, d)) for m, d, i in apart))
        masses.append(mass)
        centres.append(centre)
    scale = 1.0 if total is None else total / sum(masses)
    return scale * np.array(masses), np.array(centres), scale * np.array(inertias)


def reset(body: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """Coordinates and velocities at the start of an episode, as Gymnasium draws them."""
    model, noise = judge(body, "current"), BODIES[body].noise
    q = model.qpos0 + rng.uniform(-noise, noise, model.nq)
    v = noise * rng.standard_normal(model.nv) if BODIES[body].normal else rng.uniform(-noise, noise, model.nv)
    if body == "ant":
        q[3:7] /= np.linalg.norm(q[3:7])
    return q, v


def observe(body: str, q: Array, v: Array) -> Array:
    """The observation (…, O) of the `-v4` environment."""
    about = BODIES[body]
    return np.concatenate([q[..., about.hidden :], np.clip(v, -about.clip, about.clip)], axis=-1)


def act_linearly(weights: Array, seen: Array) -> Array:
    """The clipped action of weights (U, O + 1), whose last column is a bias, at an observation (O,)."""
    return np.clip(weights[:, :-1] @ seen + weights[:, -1], -1.0, 1.0)


Policy = Callable[[int, Array, Array], Array]


@functools.cache
def linear_policies() -> dict[str, Array]:
    """The committed policies: (U, O + 1), whose last column is a bias."""
    with np.load(FOLDER / "mujoco_policies.npz") as file:
        return {body: file[body] for body in BODIES}


def linear(body: str, q: Array, v: Array) -> Array:
    """The action of a body's committed policy."""
    return act_linearly(linear_policies()[body], observe(body, q, v))


def policies(body: str, rng: np.random.Generator) -> dict[str, Policy]:
    """Ways to act for one episode, as functions of the step and of coordinates and velocities."""
    size = judge(body, "current").nu
    memory = np.zeros(size)

    def held(draw: Callable[[], Array], longest: int) -> Policy:
        until = 0

        def act(step: int, q: Array, v: Array) -> Array:
            nonlocal until
            if step >= until:
                memory[:], until = draw(), step + int(rng.integers(1, longest))
            return memory.copy()

        return act

    speed, shift, height = rng.uniform(0.05, 0.5), rng.uniform(0.0, 2.0 * np.pi, size), rng.uniform(0.2, 1.2, size)
    return {
        "random": lambda step, q, v: rng.uniform(-1.0, 1.0, size),
        "held": held(lambda: rng.uniform(-1.2, 1.2, size), 20),  # beyond the range, where motors clip
        "bang": held(lambda: rng.choice([-1.0, 1.0], size), 40),
        "gait": lambda step, q, v: height * np.sin(speed * step + shift),
        "linear": lambda step, q, v: linear(body, q, v) + 0.1 * rng.standard_normal(size),
    }


def advance(model: Any, data: Any, q: Array, v: Array, control: Array, frames: int) -> tuple[Array, Array]:
    """Coordinates and velocities after so many steps of the physics."""
    data.qpos[:], data.qvel[:], data.ctrl[:] = q, v, control
    data.qacc_warmstart[:] = 0.0
    mujoco.mj_step(model, data, frames)
    return data.qpos.copy(), data.qvel.copy()


def arrays(body: str, engine: Engine, q: Array, v: Array, control: Array) -> dict[str, Array]:
    """What the judge computes at a state, and the state after one control step.

    Contacts with the floor stand in the order of shapes, each with its first end (against its axis) and its second one;
    that of a sphere has the first place. The two rows normal ± μ t₁ of a contact stand in ascending order, then those
    of t₂, since the sign of a tangent means nothing. `moved` is a row's Jacobian times the acceleration, `reference`
    the row's reference acceleration, and `resistance` its regularisation. What does not exist is NaN. Hopper's `PAIRS`
    of bodies have one row each.
    """
    model = judge(body, engine)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = q, v, control
    mujoco.mj_forward(model, data)
    assert not data.warning.number.any()
    mass = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, mass)
    moved = np.zeros(data.nefc)
    mujoco.mj_mulJacVec(model, data, moved, data.qacc)
    shapes = [g for g in range(model.ngeom) if model.geom_bodyid[g]]
    hinges = model.nu
    out = {
        "mass": mass[np.tril_indices(model.nv)],
        "bias": data.qfrc_bias.copy(),
        "acceleration": data.qacc.copy(),
        "floor_distance": np.full((len(shapes), 2), np.nan),
        "floor_resistance": np.full((len(shapes), 2), np.nan),
        "floor_reference": np.full((len(shapes), 2, 4), np.nan),
        "floor_moved": np.full((len(shapes), 2, 4), np.nan),
        "limit_side": np.zeros(hinges),
        "limit_distance": np.full(hinges, np.nan),
        "limit_resistance": np.full(hinges, np.nan),
        "limit_reference": np.full(hinges, np.nan),
        "pair_distance": np.full(3, np.nan),
        "pair_resistance": np.full(3, np.nan),
        "pair_reference": np.full(3, np.nan),
        "pair_moved": np.full(3, np.nan),
    }
    for row in np.flatnonzero(data.efc_type == mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT):
        joint = data.efc_id[row] - (model.njnt - hinges)
        dof = model.jnt_dofadr[data.efc_id[row]]
        unit = np.zeros(data.nefc)
        mujoco.mj_mulJacVec(model, data, unit, np.eye(model.nv)[dof])
        out["limit_side"][joint] = unit[row]
        out["limit_distance"][joint] = data.efc_pos[row]
        out["limit_resistance"][joint], out["limit_reference"][joint] = data.efc_R[row], data.efc_aref[row]
    for contact in data.contact:
        rows = slice(contact.efc_address, contact.efc_address + (4 if contact.dim == 3 else 1))
        ground, shape = contact.geom
        if model.geom_bodyid[ground]:
            place: tuple[int, ...] = (PAIRS.index(tuple(sorted(model.geom_bodyid[contact.geom] - 1))),)
            kind = "pair"
            assert np.isnan(out["pair_distance"][place]), "Two contacts of one pair."
        else:
            axis = data.geom_xmat[shape].reshape(3, 3)[:, 2] * model.geom_size[shape, 1]
            ends = data.geom_xpos[shape] + np.outer((-1.0, 1.0), axis)
            nearest = int(np.argmin(np.linalg.norm(ends - contact.pos, axis=1)))
            place = (shapes.index(shape), nearest)
            kind = "floor"
        out[f"{kind}_distance"][place] = contact.dist
        out[f"{kind}_resistance"][place] = data.efc_R[rows.start]
        assert np.ptp(data.efc_R[rows]) == 0.0
        for key, of_rows in (("reference", data.efc_aref), ("moved", moved)):
            values = of_rows[rows]
            out[f"{kind}_{key}"][place] = np.sort(values.reshape(2, 2)).ravel() if kind == "floor" else values[0]
    next_data = mujoco.MjData(model)
    out["next_qpos"], out["next_qvel"] = advance(model, next_data, q, v, control, BODIES[body].frame_skip)
    return out


class Visited(NamedTuple):
    """A state that an episode visited.

    Attributes:
        qpos, qvel, control: coordinates, velocities and the action there.
        guess: the acceleration that the judge found last, 0 at the start.
        step: number of control steps before.
        ended: whether the episode would have ended before.
        collides: whether bodies touched each other when the step before ended.
    """

    qpos: Array
    qvel: Array
    control: Array
    guess: Array
    step: int
    ended: bool
    collides: bool


def states(body: str, engine: Engine, number: int, seed: int) -> dict[str, Array]:
    """States of episodes of all policies, each with the judge's arrays.

    Of each policy's episodes one half goes on until the horizon after what would end it. A few states are taken from an
    episode at random times, one of them from those with collisions of bodies where there are any.
    """
    rng = np.random.default_rng([seed, list(BODIES).index(body), ENGINES.index(engine)])
    names = list(policies(body, rng))
    share = number // len(names)
    rows: list[dict[str, Any]] = []
    for kind, name in enumerate(names):
        while (missing := share * (kind + 1) - len(rows)) > 0:
            visited = list(episode(body, engine, name, rng, beyond=bool(rng.integers(2))))
            few = list(rng.choice(len(visited), min(max(4, share // 25), len(visited), missing), replace=False))
            if (colliding := np.flatnonzero([x.collides for x in visited])).size:
                few[0] = rng.choice(colliding)
            for row in (visited[k] for k in few):
                found = arrays(body, engine, row.qpos, row.qvel, row.control)
                if not is_ambiguous(body, engine, row.qpos, found["next_qpos"]):
                    rows.append(row._asdict() | {"policy": kind} | found)
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def is_ambiguous(body: str, engine: Engine, q: Array, next_q: Array) -> bool:
    """Whether bodies of Hopper that touch have axes which cross, or become parallel within a control step.

    Where axes cross, rounding decides in which direction the judge lets bodies push each other. Within 1e-4 rad of
    parallel it sees two contacts of the same bodies, and elsewhere one.
    """
    model, sides = judge(body, engine), []
    data = mujoco.MjData(model)
    for place in (q, next_q):
        data.qpos[:] = place
        mujoco.mj_forward(model, data)
        pairs = [c for c in data.contact if (model.geom_bodyid[c.geom] > 0).all()]
        if any(c.dist + model.geom_size[c.geom, 0].sum() < 1e-6 for c in pairs):
            return True
        axes = data.geom_xmat.reshape(-1, 3, 3)[:, :, 2]
        sides.append({tuple(c.geom): np.cross(*axes[c.geom])[1] for c in pairs})
    return any(sides[0][pair] * sides[1][pair] < 0.0 for pair in sides[0].keys() & sides[1].keys())


def episode(body: str, engine: Engine, policy: str, rng: np.random.Generator, beyond: bool) -> Iterator[Visited]:
    """The states of one episode, which goes on until the horizon if `beyond` says so."""
    model = judge(body, engine, exact=False)
    data = mujoco.MjData(model)
    act = policies(body, rng)[policy]
    (q, v), guess, ended, collides = reset(body, rng), np.zeros(model.nv), False, False
    for step in range(HORIZON):
        control = act(step, q, v)
        yield Visited(q, v, control, guess, step, ended, collides)
        q, v = advance(model, data, q, v, control, BODIES[body].frame_skip)
        guess = data.qacc.copy()
        if body == "ant":
            q[3:7] /= np.linalg.norm(q[3:7])
        collides = bool((model.geom_bodyid[data.contact.geom] > 0).all(axis=1).any())
        ended = ended or not BODIES[body].healthy(q, v)
        if ended and not beyond:
            return


def load(body: str, engine: Engine, folder: Path = FOLDER) -> dict[str, Array]:
    """States that were written before."""
    with np.load(folder / f"mujoco_{body}_{engine}.npz") as file:
        return dict(file)


def save(body: str, engine: Engine, number: int, seed: int, folder: Path) -> None:
    """Writes states into a folder, and prints what they hold."""
    found = states(body, engine, number, seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"mujoco_{body}_{engine}.npz"
    np.savez_compressed(path, judge=mujoco.__version__, **found)
    touch, limit, pair = (
        (~np.isnan(found[f"{x}_distance"])).reshape(number, -1).any(axis=1) for x in ("floor", "limit", "pair")
    )
    print(
        f"{path.name}: MuJoCo {mujoco.__version__}, {number} states, {path.stat().st_size // 1024} KiB; "
        f"{touch.mean():.0%} touch the floor, {limit.mean():.0%} are beyond a limit, {(~touch & ~limit).mean():.0%} "
        f"neither, {found['ended'].mean():.0%} after an end, {pair.mean():.0%} with collisions of bodies",
        flush=True,
    )


def search(body: str, seconds: float, seed: int) -> Array:
    """A linear policy, found by augmented random search (Mania et al. 2018)."""
    rng, (q, v) = np.random.default_rng(seed), reset(body, np.random.default_rng(seed))
    about, model = BODIES[body], judge(body, "current", exact=False)
    data, size = mujoco.MjData(model), len(observe(body, q, v))
    total, square, count = np.zeros(size), np.zeros(size), 0
    mean, deviation, best = np.zeros(size), np.ones(size), -math.inf
    weights, out = np.zeros((model.nu, size)), np.zeros((model.nu, size + 1))

    def folded(weights: Array) -> Array:
        return np.column_stack([weights / deviation, -weights / deviation @ mean])

    def play(weights: Array) -> float:
        """The return without bonus, so that standing still is worth nothing."""
        nonlocal total, square, count
        policy, gain = folded(weights), 0.0
        data.qpos[:], data.qvel[:] = reset(body, rng)
        for _ in range(HORIZON):
            seen = observe(body, data.qpos, data.qvel)
            total, square, count = total + seen, square + seen**2, count + 1
            start, data.ctrl[:] = data.qpos[0], act_linearly(policy, seen)
            mujoco.mj_step(model, data, about.frame_skip)
            moved = (data.qpos[0] - start) / (model.opt.timestep * about.frame_skip)
            gain += moved - about.cost * data.ctrl @ data.ctrl
            if not about.healthy(data.qpos, data.qvel):
                break
        return gain

    begin, noise, rate, number, top = time.monotonic(), 0.03, 0.02, 16, 8
    while time.monotonic() - begin < seconds:
        directions = rng.standard_normal((number, *weights.shape))
        gains = np.array([[play(weights + sign * noise * d) for sign in (1.0, -1.0)] for d in directions])
        chosen = np.argsort(-gains.max(axis=1))[:top]
        scale = rate / (top * max(float(gains[chosen].std()), 1e-6))
        weights = weights + scale * np.tensordot(gains[chosen] @ [1.0, -1.0], directions[chosen], 1)
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 1e-4))
        if gains.mean() > best:
            best, out = float(gains.mean()), folded(weights)
    return out


def played(body: str, engine: Engine, policy: str, episodes: int, seed: int) -> Array:
    """Returns (E,) of episodes in which C MuJoCo simulates the actions of `random` or `linear`."""
    rng, about = np.random.default_rng(seed), BODIES[body]
    model = judge(body, engine, exact=False)
    data, returns = mujoco.MjData(model), np.zeros(episodes)
    for k in range(episodes):
        data.qpos[:], data.qvel[:] = reset(body, rng)
        data.qacc_warmstart[:] = 0.0
        for _ in range(HORIZON):
            drawn = rng.uniform(-1.0, 1.0, model.nu)
            data.ctrl[:] = drawn if policy == "random" else linear(body, data.qpos, data.qvel)
            start = data.qpos[0]
            mujoco.mj_step(model, data, about.frame_skip)
            moved = (data.qpos[0] - start) / (model.opt.timestep * about.frame_skip)
            returns[k] += moved + about.bonus - about.cost * data.ctrl @ data.ctrl
            if not about.healthy(data.qpos, data.qvel):
                break
    return returns


def main() -> None:
    """Writes what the arguments say."""
    parser = argparse.ArgumentParser(description="Makes the states that the tests of our physics compare.")
    parser.add_argument("--states", type=int, default=100, help="how many of each body and engine")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write them")
    parser.add_argument("--policies", action="store_true", help="search linear policies instead, 150 s each")
    arguments = parser.parse_args()
    if arguments.policies:
        found = {body: search(body, 150.0, arguments.seed) for body in BODIES}
        np.savez_compressed(arguments.folder / "mujoco_policies.npz", **found)
        return
    for body in BODIES:
        for engine in ENGINES:
            save(body, engine, arguments.states, arguments.seed, arguments.folder)


if __name__ == "__main__":
    main()
