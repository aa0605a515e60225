"""MuJoCo's physics of a robot above a floor: accelerations under soft constraints, and steps in time.

Coordinates are (Q, B), velocities (V, B), with the batch last and the hinges of a robot limb by limb.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omarl_envs.mujoco.constraints import at_points, collisions, contact_push, contacts, limits
from omarl_envs.mujoco.models import Engine, Model
from omarl_envs.mujoco.numbers import Number, computed_once, dot, number
from omarl_envs.mujoco.rigid import (
    drifts,
    force_cross,
    hinge_constant,
    inertias,
    inward,
    join,
    joint_matrix,
    motions,
    parts,
    pose,
    solve,
    split,
    total,
)


def acceleration(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> Any:
    """The accelerations (V, B) of robots, and the pose and inertias that they follow from.

    They minimise half the squared distance from the unconstrained acceleration in the metric of the mass matrix, and
    Σ weight · min(u + offset, 0)² / 2 over constraints: Newton's method, from a guess. Full steps can go round among
    the pieces of that function for ever, so each eighth one is halved.
    """
    coordinates, velocities = split(model, q), split(model, v)
    at = pose(model, coordinates)
    of_parts = inertias(model, engine, at)
    touching = contacts(model, engine, at)
    side, ends = limits(model, engine, coordinates.limbs)
    speeds = motions(at, velocities)
    damped = [
        [dot(d, at_points(speed)) * of.row.damping for d in of.directions]
        for of, speed in zip(touching, speeds, strict=True)
    ]
    biases = [
        inertia @ drift + force_cross(speed, inertia @ speed)
        for inertia, drift, speed in zip(of_parts, drifts(at, velocities), speeds, strict=True)
    ]
    forces = joint_forces(model, coordinates.limbs, velocities.limbs, control)
    armature = hinge_constant(model, "armature")
    hinges = len(parts(model).hinged)
    pairs = collisions(model, engine, at)

    def newton(k: Any, values: Any) -> Any:
        a = split(model, values)
        moving = motions(at, a)
        pushes = [contact_push(*x) for x in zip(touching, damped, moving, strict=True)]
        wrenches = [
            inertia @ move + bias - push.wrench
            for inertia, move, bias, push in zip(of_parts, moving, biases, pushes, strict=True)
        ]
        of_root = wrenches[0] + total(wrenches[1])
        x = side * (a.limbs + velocities.limbs * ends.damping).value + ends.offset
        weight = jnp.where(x < 0.0, ends.weight, 0.0)
        limbs = dot(at.axes[1], inward(wrenches[1], hinges)) + armature * a.limbs - forces + Number(side * weight * x)
        stiff = [inertia + push.stiffness for inertia, push in zip(of_parts, pushes, strict=True)]
        matrix = joint_matrix(at, stiff[0], stiff[1], armature + Number(weight))
        root = jnp.concatenate([dot(axis, of_root).value for axis in at.axes[0]])
        force = limbs.value
        for g, row in pairs:
            x = (g * (a.limbs + velocities.limbs * row.damping).value).sum(axis=0) + row.offset
            weight = jnp.where(x < 0.0, row.weight, 0.0)
            force = force + g * (weight * x)
            matrix = matrix._replace(limbs=matrix.limbs + g[:, None] * g[None] * weight)
        share = jnp.where(k % 8 == 7, 0.5, 1.0).astype(values.dtype)
        return values - share * join(*computed_once(solve, matrix, root, force))

    return jax.lax.fori_loop(0, iterations, newton, guess), at, of_parts


def joint_forces(model: Model, q: Number, v: Number, control: Any) -> Number:
    """Springs, dampers and motors of hinges, (D, L, B)."""
    motors = {name: (k, gear) for k, (name, gear) in enumerate(model.motors)}
    of = np.array([[motors[b.joints[0].name] for b in bodies] for bodies in parts(model).hinged])  # (D, L, 2)
    motor = Number(jnp.clip(control, -1.0, 1.0)[of[..., 0].astype(int)]) * number(of[..., 1, None])
    return motor - q * hinge_constant(model, "stiffness") - v * hinge_constant(model, "damping")


def euler(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> tuple:
    """One step of semi-implicit Euler, in which the damping of hinges is implicit."""
    h = model.timestep
    a, at, of_parts = acceleration(model, engine, q, v, control, guess, iterations)
    damping = hinge_constant(model, "damping") * h
    matrix = joint_matrix(at, of_parts[0], of_parts[1], hinge_constant(model, "armature") + damping)
    root = jnp.zeros((len(at.axes[0]), a.shape[-1]), a.dtype)
    change = solve(matrix, root, (split(model, a).limbs * damping).value)
    v = v + h * (a - join(*change))
    return q + h * v, v, a


def _moved(model: Model, q: Any, v: Any, h: Any) -> Any:
    """Coordinates (Q, B) after h seconds at velocities v (V, B)."""
    if model.root.joints[0].kind != "free":
        return q + h * v
    turned = _quaternion_turned(q[3:7], v[3:6] * h)
    return jnp.concatenate([q[:3] + h * v[:3], turned, q[7:] + h * v[6:]])


def _quaternion_turned(quaternion: Any, rotation: Any) -> Any:
    """A quaternion (4, B), turned by a rotation vector (3, B) in its own frame."""
    angle = jnp.sqrt(jnp.square(rotation).sum(axis=0) + 1e-30)
    s = jnp.sin(0.5 * angle) / angle
    w, x, y, z = quaternion
    a, (b, c, d) = jnp.cos(0.5 * angle), rotation * s
    product = jnp.stack(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ]
    )
    return product * jax.lax.rsqrt(jnp.square(product).sum(axis=0))


def runge_kutta(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> tuple:
    """One step of the classical Runge-Kutta method, explicit in everything."""
    h = model.timestep
    parts_of_step = jnp.array([0.0, 0.5, 0.5, 1.0], v.dtype) * h
    weights = jnp.array([1.0, 2.0, 2.0, 1.0], v.dtype) / 6.0

    def stage(k: Any, values: tuple) -> tuple:  # a loop, so that the acceleration is compiled once
        speed, slope, mean_speed, mean_slope = values
        at, speed = _moved(model, q, speed, parts_of_step[k]), v + parts_of_step[k] * slope
        slope = acceleration(model, engine, at, speed, control, slope, iterations)[0]
        return speed, slope, mean_speed + weights[k] * speed, mean_slope + weights[k] * slope

    start = (v, guess, jnp.zeros_like(v), jnp.zeros_like(v))
    _, last, mean_speed, mean_slope = jax.lax.fori_loop(0, 4, stage, start)
    return _moved(model, q, mean_speed, h), v + h * mean_slope, last


ITERATIONS = 6
"""Steps of Newton's method from the last acceleration."""

BLOCK = 128
"""Robots that CPUs simulate together: enough to pay for the start of each kernel, and few enough for the cache."""


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def control_steps(model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int) -> tuple:
    """`frame_skip` steps of the physics under one control: coordinates, velocities, acceleration, and how far x moved.

    The way is summed by itself, so that its rounding does not grow with the distance from the start.
    """
    step = euler if model.integrator == "euler" else runge_kutta

    def whole(q: Any, v: Any, control: Any, guess: Any) -> tuple:
        def one(_: Any, values: tuple) -> tuple:
            q, v, a = values
            return step(model, engine, q, v, control, a, iterations)

        moved, v, a = jax.lax.fori_loop(0, model.frame_skip, one, (q.at[0].set(0.0), v, guess))
        return moved.at[0].add(q[0]), v, a, moved[0]

    def in_blocks(*xs: Any) -> tuple:
        size = xs[0].shape[-1]
        blocks = -(-size // BLOCK)
        wide = -(-size // blocks)
        numbers = jnp.minimum(jnp.arange(blocks * wide), size - 1).reshape(blocks, wide)  # the last robot fills up
        out = jax.lax.map(lambda numbers: whole(*(x[:, numbers] for x in xs)), numbers)
        return tuple(jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)[..., :size] for x in out)

    if q.shape[-1] <= BLOCK:
        return whole(q, v, control, guess)
    return jax.lax.platform_dependent(q, v, control, guess, cpu=in_blocks, default=whole)


def simulate(
    model: Model, engine: Engine, q: Any, v: Any, control: Any, guess: Any, iterations: int = ITERATIONS
) -> tuple[Any, Any, Any, Any]:
    """One control step of one robot; under `vmap`, of a batch that is simulated together.

    Args:
        model: the robot.
        engine: whose inertias and margins it has.
        q, v: coordinates (Q,) and velocities (V,).
        control: (U,), clipped to [-1, 1].
        guess: (V,), the last acceleration, from which the solver starts.
        iterations: of Newton's method.

    Returns:
        coordinates, velocities, acceleration, and the way () along x.
    """

    @jax.custom_batching.custom_vmap
    def batch(q: Any, v: Any, control: Any, guess: Any) -> tuple:
        return control_steps(model, engine, q, v, control, guess, iterations)

    @batch.def_vmap
    def rule(size: int, batched: list[bool], *args: Any) -> tuple:
        whole = [
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(args, batched, strict=True)
        ]
        flat = [jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in whole]
        out = batch(*flat)
        parts = [x.reshape(*x.shape[:-1], size, -1) for x in out]
        return tuple(jnp.moveaxis(x, -2, 0) for x in parts), (True,) * 4

    q, v, a, way = batch(*(x[:, None] for x in (q, v, control, guess)))
    return q[:, 0], v[:, 0], a[:, 0], way[0]
