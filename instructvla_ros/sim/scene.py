"""What stands on the table: pure data sampled from a seed, before MuJoCo is involved.

Base frame: origin in the robot base, table top is the plane z = 0, x forward, y left. Lengths in m, angles in rad.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..datatypes import SceneObject
from ..errors import TaskError, suggest
from ..geometry import Array
from ..settings import Randomization

Vec3 = tuple[float, float, float]
Rgb = tuple[float, float, float]

COLORS: Mapping[str, Rgb] = {
    'red': (0.80, 0.08, 0.07),
    'green': (0.10, 0.55, 0.14),
    'blue': (0.07, 0.22, 0.78),
    'yellow': (0.92, 0.78, 0.06),
    'orange': (0.95, 0.42, 0.03),
    'purple': (0.44, 0.12, 0.62),
    'white': (0.93, 0.93, 0.91),
    'black': (0.05, 0.05, 0.06),
}
"""Linear RGB of the colour words."""

SIZES: Mapping[str, float] = {'small': 0.030, 'medium': 0.040, 'large': 0.050}
"""Width of a graspable object by size word [m]; the hand opens 0.08 m."""

GRASPABLE = ('cube', 'ball', 'cylinder')
CONTAINERS = ('bowl', 'plate')
CATEGORIES = (*GRASPABLE, *CONTAINERS, 'drawer')
TEXTURES = ('plain', 'wood', 'stone', 'cloth')

BOWL_EXTENT: Vec3 = (0.150, 0.150, 0.055)
PLATE_EXTENT: Vec3 = (0.170, 0.170, 0.018)
DRAWER_EXTENT: Vec3 = (0.180, 0.200, 0.095)
DRAWER_TRAVEL = 0.14
"""How far the drawer can be pulled out of its housing [m]."""
HANDLE_STANDOFF = 0.045
"""Distance of the handle's axis from the drawer front [m]."""
HANDLE_RADIUS = 0.010
HANDLE_LENGTH = 0.056
HANDLE_HEIGHT = 0.052
"""Height of the middle of the vertical handle over the table [m]."""

WORKSPACE_X = (0.41, 0.66)
WORKSPACE_Y = (-0.27, 0.27)
"""Where an object can be grasped from above with the joint limits of the FR3 (checked to 0.2 m height) [m]."""


@dataclass(frozen=True)
class ObjectSpec:
    """One object before the simulation.

    Attributes:
        name: unique in the scene, for example ``red_cube``.
        category: one of :data:`CATEGORIES`. color: word of :data:`COLORS`. size: word of :data:`SIZES` or ''.
        xyz: centre in the base frame [m]. yaw: about z [rad]; a drawer with yaw 0 opens towards -x, to the robot.
        extent: full size along its own axes [m].
        rgb: the colour that is drawn, 0..1 (the word's colour with jitter).
        opening: how far a drawer is open at the start [m].
    """

    name: str
    category: str
    color: str
    size: str
    xyz: Vec3
    yaw: float
    extent: Vec3
    rgb: Rgb
    opening: float = 0.0


@dataclass(frozen=True)
class Look:
    """How the scene looks; nothing here changes the physics.

    Attributes:
        table_rgb, table_rgb2: the two colours of the table's texture, 0..1. texture: one of :data:`TEXTURES`.
        texture_seed: the texture is drawn from it.
        light_position: of the main light [m]; it shines on the middle of the workspace.
        light: brightness of the main light 0..1. ambient: brightness of everything else 0..1.
        wall_rgb: colour of what lies behind the table, 0..1.
        camera_shift: added to the position of the cameras fixed to the world [m].
    """

    table_rgb: Rgb = (0.60, 0.54, 0.46)
    table_rgb2: Rgb = (0.50, 0.43, 0.35)
    texture: str = 'wood'
    texture_seed: int = 0
    light_position: Vec3 = (1.0, -0.8, 1.8)
    light: float = 0.5
    ambient: float = 0.38
    wall_rgb: Rgb = (0.62, 0.65, 0.68)
    camera_shift: Vec3 = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SceneSpec:
    """Everything a :class:`~instructvla_ros.sim.world.World` needs to build one scene."""

    objects: tuple[ObjectSpec, ...] = ()
    look: Look = field(default_factory=Look)
    seed: int = 0

    def __post_init__(self) -> None:
        names = [o.name for o in self.objects]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise TaskError(f'object names must be unique in a scene, repeated: {", ".join(twice)}')


def make_object(
    category: str,
    color: str = '',
    size: str = '',
    xy: tuple[float, float] = (0.5, 0.0),
    yaw: float = 0.0,
    *,
    name: str = '',
    rng: np.random.Generator | None = None,
    color_jitter: float = 0.0,
    opening: float = 0.0,
) -> ObjectSpec:
    """Object standing on the table at ``xy`` [m].

    Args:
        color: word; drawers and empty words get a default. size: word; graspable objects default to 'medium'.
        color_jitter: half width of the uniform change of each colour channel, drawn from ``rng``.

    Raises:
        TaskError: unknown category, colour or size, or a drawer opened beyond its travel; with the nearest names.
    """
    if category not in CATEGORIES:
        raise TaskError(f'unknown object category {category!r}.{suggest(category, CATEGORIES)}')
    if category in GRASPABLE:
        size = size or 'medium'
        if size not in SIZES:
            raise TaskError(f'unknown size {size!r}.{suggest(size, SIZES)}')
        width = SIZES[size]
        extent = (width, width, 1.25 * width if category == 'cylinder' else width)
    else:
        size = ''
        extent = {'bowl': BOWL_EXTENT, 'plate': PLATE_EXTENT, 'drawer': DRAWER_EXTENT}[category]
    if category == 'drawer':
        color, rgb = '', (0.44, 0.31, 0.20)
    else:
        color = color or 'white'
        if color not in COLORS:
            raise TaskError(f'unknown colour {color!r}.{suggest(color, COLORS)}')
        rgb = COLORS[color]
    if not 0.0 <= opening <= (DRAWER_TRAVEL if category == 'drawer' else 0.0):
        raise TaskError(f'{category}: opening {opening} m, allowed 0 .. {DRAWER_TRAVEL} m and only for a drawer')
    if rng is not None and color_jitter > 0.0:
        shifted = np.clip(np.asarray(rgb) + rng.uniform(-color_jitter, color_jitter, 3), 0.01, 0.98)
        rgb = (float(shifted[0]), float(shifted[1]), float(shifted[2]))
    return ObjectSpec(
        name=name or '_'.join(w for w in (color, category) if w),
        category=category,
        color=color,
        size=size,
        xyz=(float(xy[0]), float(xy[1]), extent[2] / 2),
        yaw=float(yaw),
        extent=extent,
        rgb=rgb,
        opening=float(opening),
    )


def place(spec: ObjectSpec, xy: tuple[float, float], yaw: float | None = None) -> ObjectSpec:
    """The same object standing somewhere else on the table."""
    return replace(
        spec, xyz=(float(xy[0]), float(xy[1]), spec.extent[2] / 2), yaw=spec.yaw if yaw is None else float(yaw)
    )


def with_unique_names(objects: Iterable[ObjectSpec]) -> tuple[ObjectSpec, ...]:
    """Objects whose repeated names got ``_2``, ``_3``, ... appended."""
    out: list[ObjectSpec] = []
    taken: set[str] = set()
    for spec in objects:
        name, n = spec.name, 1
        while name in taken:
            n += 1
            name = f'{spec.name}_{n}'
        taken.add(name)
        out.append(replace(spec, name=name))
    return tuple(out)


def keepout(spec: ObjectSpec) -> list[tuple[float, float, float]]:
    """Discs (x, y, radius) [m] that nothing else may enter: the object plus room for an open hand beside it.

    The open hand spans 0.12 m, so two graspable objects stay 0.11 m apart. A drawer also keeps the
    floor free over which it and its handle slide.
    """
    x, y, _ = spec.xyz
    if spec.category in GRASPABLE:
        return [(x, y, 0.055)]
    if spec.category in CONTAINERS:
        return [(x, y, spec.extent[0] / 2 + 0.01)]
    depth, width, _ = spec.extent
    radius = width / 2 + 0.02
    front = -(depth / 2 + DRAWER_TRAVEL + HANDLE_STANDOFF + 0.03)
    along = np.linspace(depth / 2 - radius / 2, front + radius, 5)
    c, s = math.cos(spec.yaw), math.sin(spec.yaw)
    return [(x + c * float(a), y + s * float(a), radius) for a in along]


def overlaps(a: ObjectSpec, b: ObjectSpec, extra: float = 0.0) -> bool:
    """Whether the keep-out discs of two objects come closer than ``extra`` [m]."""
    return any(math.hypot(ax - bx, ay - by) < ar + br + extra for ax, ay, ar in keepout(a) for bx, by, br in keepout(b))


def arrange(
    rng: np.random.Generator,
    objects: Sequence[ObjectSpec],
    fixed: Sequence[ObjectSpec] = (),
    *,
    x: tuple[float, float] = WORKSPACE_X,
    y: tuple[float, float] = WORKSPACE_Y,
    yaw: float = 0.6,
    extra: float = 0.0,
) -> tuple[ObjectSpec, ...]:
    """Put objects at random free places of the rectangle ``x``, ``y`` with a random yaw in ``-yaw .. yaw``.

    Args:
        fixed: objects already placed; they stay where they are and are not returned.
        extra: additional distance between any two objects [m].

    Raises:
        TaskError: so many objects do not fit.
    """
    for _ in range(60):
        done: list[ObjectSpec] = []
        for spec in objects:
            for _ in range(80):
                xy = (float(rng.uniform(*x)), float(rng.uniform(*y)))
                candidate = place(spec, xy, float(rng.uniform(-yaw, yaw)))
                if not any(overlaps(candidate, other, extra) for other in (*fixed, *done)):
                    done.append(candidate)
                    break
            else:
                break
        if len(done) == len(objects):
            return tuple(done)
    raise TaskError(
        f'{len(objects)} objects beside {len(fixed)} others do not fit into '
        f'x {x[0]} .. {x[1]} m, y {y[0]} .. {y[1]} m; ask for fewer distractors'
    )


def sample_look(rng: np.random.Generator, randomization: Randomization) -> Look:
    """Table, light and camera of one scene; strength 0 of a part gives the defaults of :class:`Look`."""
    base = Look()
    light, table, camera = randomization.light, randomization.table, randomization.camera
    # Every draw is made whatever the strengths, so that switching one part off leaves the others as they were.
    swing = rng.uniform(-1.0, 1.0, 3)
    brightness, fill = rng.uniform(-1.0, 1.0, 2)
    texture = str(rng.choice(TEXTURES))
    texture_seed = int(rng.integers(0, 2**31))
    tint, tone, contrast = rng.uniform(-1.0, 1.0, 3), rng.uniform(-1.0, 0.5), rng.uniform(0.0, 1.0)
    wall = rng.uniform(-1.0, 1.0, 3)
    shift = rng.uniform(-1.0, 1.0, 3)

    # Mostly lighter or darker, a little warmer or colder: tables are seldom green.
    first = np.clip(np.asarray(base.table_rgb) + table * (0.10 * tint + 0.30 * tone), 0.12, 0.80)
    second = first * (1.0 - (0.12 + 0.35 * table * contrast))
    position = np.asarray(base.light_position) + light * swing * np.array([1.2, 1.6, 0.6])
    return Look(
        table_rgb=_triple(first) if table else base.table_rgb,
        table_rgb2=_triple(second) if table else base.table_rgb2,
        texture=texture if table else base.texture,
        texture_seed=texture_seed if table else base.texture_seed,
        light_position=_triple(position),
        light=float(np.clip(base.light * (1.0 + 0.7 * light * brightness), 0.15, 0.75)),
        ambient=float(np.clip(base.ambient * (1.0 + 0.6 * light * fill), 0.12, 0.45)),
        wall_rgb=_triple(np.clip(np.asarray(base.wall_rgb) + 0.25 * table * wall, 0.1, 0.9)),
        camera_shift=_triple(camera * shift),
    )


def handle_position(drawer: SceneObject) -> Array:
    """Middle of the handle (3,) of a drawer in the base frame [m]; its axis is vertical."""
    local = np.array(
        [-(drawer.extent[0] / 2 + drawer.opening + HANDLE_STANDOFF), 0.0, HANDLE_HEIGHT - drawer.extent[2] / 2]
    )
    return np.asarray(drawer.pose[:3, :3] @ local + drawer.pose[:3, 3], dtype=np.float64)


def opening_direction(drawer: SceneObject) -> Array:
    """Unit vector (3,) in the base frame along which the drawer opens."""
    return np.asarray(-drawer.pose[:3, 0], dtype=np.float64)


def _triple(values: Array) -> Vec3:
    return (float(values[0]), float(values[1]), float(values[2]))
