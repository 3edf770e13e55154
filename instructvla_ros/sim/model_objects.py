"""Objects of a scene as MuJoCo bodies.

Graspable things are one primitive each. Bowl and plate are drawn as a turned mesh and collide as a ring of boxes,
so that things really lie inside. The drawer is a housing of boxes with a tray on a sliding joint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .gl import mujoco
from .model_arm import GROUP_HIDDEN, set_vector
from .scene import (
    DRAWER_TRAVEL,
    GRASPABLE,
    HANDLE_HEIGHT,
    HANDLE_LENGTH,
    HANDLE_RADIUS,
    HANDLE_STANDOFF,
    ObjectSpec,
    Rgb,
)

SOLREF = (0.004, 1.0)
FRICTION = (1.0, 0.02, 0.0006)
MASS = 0.1
"""Mass of a graspable object [kg]."""
GROUP_SEEN = 1

BOX, BALL, ROD, CAPSULE = (
    mujoco.mjtGeom.mjGEOM_BOX,
    mujoco.mjtGeom.mjGEOM_SPHERE,
    mujoco.mjtGeom.mjGEOM_CYLINDER,
    mujoco.mjtGeom.mjGEOM_CAPSULE,
)


def add_object(spec: mujoco.MjSpec, thing: ObjectSpec) -> None:
    """Add one object; its body carries the object's name, a drawer's moving part ``<name>/tray``."""
    body = spec.worldbody.add_body(name=thing.name, pos=thing.xyz, quat=_yaw(thing.yaw))
    if thing.category == 'drawer':
        _drawer(spec, body, thing)
        return
    body.add_freejoint(name=f'{thing.name}/free')
    if thing.category in GRASPABLE:
        _graspable(spec, body, thing)
    else:
        _container(spec, body, thing)


def material(
    spec: mujoco.MjSpec, name: str, rgb: Rgb | Sequence[float], specular: float = 0.12, emission: float = 0.0
) -> str:
    """Material of one colour, made once per name."""
    if spec.material(name) is None:
        spec.add_material(name=name, rgba=[*rgb, 1.0], specular=specular, shininess=0.35, emission=emission)
    return name


def _yaw(angle: float) -> list[float]:
    return [math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)]


def _solid(body: Any, kind: Any, size: Sequence[float], **extra: Any) -> Any:
    options: dict[str, Any] = {
        'condim': 4,
        'friction': FRICTION,
        'solref': SOLREF,
        'group': GROUP_SEEN,
        **extra,
    }
    return body.add_geom(type=kind, size=[*size, *[0.0] * (3 - len(size))], **options)


def _graspable(spec: mujoco.MjSpec, body: Any, thing: ObjectSpec) -> None:
    half = [0.5 * v for v in thing.extent]
    paint = material(spec, thing.name, thing.rgb)
    if thing.category == 'cube':
        _solid(body, BOX, half, mass=MASS, material=paint)
    elif thing.category == 'cylinder':
        _solid(body, ROD, [half[0], half[2]], mass=MASS, material=paint)
    else:
        # Without rolling friction a ball would leave the table on its own.
        _solid(body, BALL, half[:1], mass=MASS, material=paint, condim=6)


def _container(spec: mujoco.MjSpec, body: Any, thing: ObjectSpec) -> None:
    radius, height = thing.extent[0] / 2, thing.extent[2]
    if thing.category == 'bowl':
        foot, wall, floor, sides, mass = 0.62 * radius, 0.005, 0.007, 18, 0.25
    else:
        foot, wall, floor, sides, mass = 0.66 * radius, 0.005, 0.006, 18, 0.25
    bottom = -height / 2
    # Outer profile from the middle of the foot to the rim and back inside; (radius, z).
    drop = 0.5 * wall
    profile = [
        (0.0, bottom),
        (foot, bottom),
        (foot + 0.45 * (radius - foot), bottom + 0.30 * height),
        (radius, bottom + height - drop),
        (radius - 0.3 * wall, bottom + height),
        (radius - 1.2 * wall, bottom + height - drop),
        (foot + 0.45 * (radius - foot) - wall, bottom + 0.30 * height + 0.6 * wall),
        (foot - 0.4 * wall, bottom + floor),
        (0.0, bottom + floor),
    ]
    _turned_mesh(spec, f'{thing.name}/shape', profile)
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_MESH,
        meshname=f'{thing.name}/shape',
        material=material(spec, thing.name, thing.rgb),
        contype=0,
        conaffinity=0,
        mass=0.0,
        group=GROUP_SEEN,
    )
    _solid(body, ROD, [foot, floor / 2], pos=[0, 0, bottom + floor / 2], mass=0.6 * mass, group=GROUP_HIDDEN)
    # The wall: boxes that lean outwards from the foot to the rim, overlapping their neighbours a little.
    inner_foot, inner_rim = foot - wall, radius - wall
    run, rise = inner_rim - inner_foot, height - floor
    lean = math.atan2(run, rise)
    size = [wall / 2, 1.05 * (inner_rim + wall) * math.tan(math.pi / sides), math.hypot(run, rise) / 2]
    middle = (inner_foot + inner_rim) / 2 + wall / 2 * math.cos(lean)
    for k in range(sides):
        a = 2 * math.pi * k / sides
        turn = np.zeros(4)
        mujoco.mju_mulQuat(turn, np.array(_yaw(a)), np.array([math.cos(lean / 2), 0.0, math.sin(lean / 2), 0.0]))
        at = [middle * math.cos(a), middle * math.sin(a), bottom + floor + rise / 2 - wall / 2 * math.sin(lean)]
        _solid(body, BOX, size, pos=at, quat=turn, mass=0.4 * mass / sides, group=GROUP_HIDDEN)


def _turned_mesh(spec: mujoco.MjSpec, name: str, profile: Sequence[tuple[float, float]], steps: int = 48) -> None:
    """Surface of revolution about z of a closed profile that starts and ends on the axis."""
    rings = profile[1:-1]
    angles = np.linspace(0.0, 2 * math.pi, steps, endpoint=False)
    points = [(0.0, 0.0, profile[0][1])]
    for r, z in rings:
        points += [(r * math.cos(a), r * math.sin(a), z) for a in angles]
    points.append((0.0, 0.0, profile[-1][1]))
    faces: list[tuple[int, int, int]] = []
    last = len(points) - 1
    for k in range(steps):
        n = (k + 1) % steps
        faces.append((0, 1 + n, 1 + k))
        for ring in range(len(rings) - 1):
            a, b = 1 + ring * steps, 1 + (ring + 1) * steps
            faces += [(a + k, a + n, b + k), (a + n, b + n, b + k)]
        top = 1 + (len(rings) - 1) * steps
        faces.append((last, top + k, top + n))
    mesh = spec.add_mesh(name=name)
    mesh.uservert = np.asarray(points, dtype=np.float64).ravel()
    mesh.userface = np.asarray(faces, dtype=np.int32).ravel()
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL


def _drawer(spec: mujoco.MjSpec, body: Any, thing: ObjectSpec) -> None:
    """Housing fixed to the table, open towards -x, and a tray with a vertical handle."""
    depth, width, height = thing.extent
    wood = material(spec, thing.name, thing.rgb)
    front = material(spec, f'{thing.name}/front', [min(1.0, 1.25 * c + 0.04) for c in thing.rgb])
    metal = material(spec, f'{thing.name}/metal', (0.75, 0.76, 0.78), specular=0.4)
    t = 0.006
    for size, at in (
        ([depth / 2, width / 2, t / 2], [0, 0, height / 2 - t / 2]),
        ([depth / 2, t / 2, height / 2], [0, width / 2 - t / 2, 0]),
        ([depth / 2, t / 2, height / 2], [0, -width / 2 + t / 2, 0]),
        ([t / 2, width / 2, height / 2], [depth / 2 - t / 2, 0, 0]),
    ):
        _solid(body, BOX, size, pos=at, material=wood)

    tray = body.add_body(name=f'{thing.name}/tray')
    joint = tray.add_joint(name=f'{thing.name}/slide', type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[-1, 0, 0])
    joint.limited = True
    joint.range = [0.0, DRAWER_TRAVEL]
    joint.solref_limit = [0.004, 1.0]
    # Enough friction to stay where it is left, little against a grip of 30 N per finger.
    joint.frictionloss = 1.5
    set_vector(joint, 'damping', 6.0)
    w, d = width - 2 * t - 0.006, depth - t - 0.004
    low = -height / 2 + 0.003
    wall = 0.055
    x0 = -depth / 2
    for size, at, paint in (
        ([d / 2, w / 2, t / 2], [x0 + d / 2, 0, low + t / 2], wood),
        ([d / 2, t / 2, wall / 2], [x0 + d / 2, w / 2 - t / 2, low + wall / 2], wood),
        ([d / 2, t / 2, wall / 2], [x0 + d / 2, -w / 2 + t / 2, low + wall / 2], wood),
        ([t / 2, w / 2, wall / 2], [x0 + d - t / 2, 0, low + wall / 2], wood),
        ([t, w / 2, (height - t - 0.008) / 2], [x0 + t, 0, low + (height - t - 0.008) / 2], front),
    ):
        _solid(tray, BOX, size, pos=at, material=paint, mass=0.08)
    z = HANDLE_HEIGHT - height / 2
    x = x0 - HANDLE_STANDOFF
    _solid(
        tray,
        CAPSULE,
        [HANDLE_RADIUS, HANDLE_LENGTH / 2 - HANDLE_RADIUS],
        pos=[x, 0, z],
        material=metal,
        mass=0.03,
        friction=(1.2, 0.02, 0.001),
    )
    for dz in (-0.012, 0.012):
        _solid(
            tray,
            BOX,
            [HANDLE_STANDOFF / 2, 0.004, 0.004],
            pos=[x + HANDLE_STANDOFF / 2, 0, z + dz],
            material=metal,
            mass=0.01,
        )
    spec.add_exclude(bodyname1=thing.name, bodyname2=tray.name)
