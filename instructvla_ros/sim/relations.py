"""Geometry between objects of a scene: what counts as in, on, near and stacked, and where a thing could go.

Used by the task predicates and by the scripted expert, so that both mean the same by a word. Base frame, lengths in m.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..datatypes import SceneObject, SceneState
from ..geometry import Array, pose
from .scene import GRASPABLE, SceneSpec

REACH_X, REACH_Y = (0.43, 0.65), (-0.28, 0.28)
"""Where objects stand and are set down [m]; an arm that points down gets into its joint limits nearer to the base."""
NEAR_GAP = 0.08
"""Largest free space between two footprints that still counts as near [m]: 40 mm cubes with centres 12 cm apart."""
NEAR_AIM = 0.05
"""Free space the expert leaves [m]."""
FREE_SPACE = 0.055
"""Room around a placed object that other objects must leave for the opening fingers [m]."""


def scene_objects(spec: SceneSpec) -> dict[str, SceneObject]:
    """The objects of a scene as they are planned to stand, by name."""
    out = {}
    for o in spec.objects:
        c, s = np.cos(o.yaw), np.sin(o.yaw)
        matrix = pose(o.xyz)
        matrix[:2, :2] = [[c, -s], [s, c]]
        out[o.name] = SceneObject(o.name, o.category, o.color, o.size, matrix, np.asarray(o.extent), o.opening)
    return out


def half_height(obj: SceneObject) -> float:
    """Half of the vertical span of an object as it lies now [m]."""
    if obj.category == 'ball':
        return float(obj.extent[2] / 2)
    return float(np.abs(obj.pose[2, :3]) @ obj.extent / 2)


def bottom(obj: SceneObject) -> float:
    """Height of the lowest point [m]."""
    return float(obj.pose[2, 3]) - half_height(obj)


def top(obj: SceneObject) -> float:
    """Height of the highest point [m]."""
    return float(obj.pose[2, 3]) + half_height(obj)


def radius(obj: SceneObject) -> float:
    """Half width of the footprint [m] (of a cube: from its centre to a face)."""
    return float(max(obj.extent[0], obj.extent[1]) / 2)


def distance(a: SceneObject, b: SceneObject) -> float:
    """Horizontal distance between two centres [m]."""
    return float(np.hypot(*(a.pose[:2, 3] - b.pose[:2, 3])))


def gap(a: SceneObject, b: SceneObject) -> float:
    """Horizontal free space between two footprints [m]; negative when they overlap."""
    return distance(a, b) - radius(a) - radius(b)


def on_table(obj: SceneObject) -> bool:
    """Whether the object's lowest point is at the height of the table."""
    return abs(bottom(obj)) < 0.012


def tray_centre(drawer: SceneObject) -> Array:
    """Middle (3,) of the part of a drawer that is out of its housing, at the drawer's own height [m]."""
    local = np.array([-(drawer.extent[0] + drawer.opening) / 2, 0.0, 0.0])
    return np.asarray(drawer.pose[:3, :3] @ local + drawer.pose[:3, 3])


def placed(target: SceneObject, destination: SceneObject, relation: str) -> bool:
    """Whether ``target`` stands in the relation to ``destination``; says nothing about motion or the gripper.

    * in a bowl: its centre is at least 2 cm inside the rim and its lowest point below the rim;
    * on a plate: its centre is over the plate and its lowest point at most 12 mm over the rim;
    * in a drawer: its centre is in the tray, below the top of the housing;
    * on a cube: its centre is over that cube, its bottom within 12 mm of that cube's top;
    * near: both on the table, free space between them 0 .. :data:`NEAR_GAP`.
    """
    if relation == 'near':
        standing = on_table(target) and (destination.category not in GRASPABLE or on_table(destination))
        return standing and 0.0 <= gap(target, destination) <= NEAR_GAP
    if destination.category == 'bowl':
        return (
            distance(target, destination) <= radius(destination) - 0.02 and bottom(target) <= top(destination) - 0.003
        )
    if destination.category == 'plate':
        low = -0.004 <= bottom(target) <= top(destination) + 0.012
        return distance(target, destination) <= radius(destination) - 0.01 and low
    if destination.category == 'drawer':
        local = destination.pose[:3, :3].T @ (target.pose[:3, 3] - destination.pose[:3, 3])
        depth, width, height = destination.extent
        inside = -depth / 2 - destination.opening < local[0] < depth / 2 and abs(local[1]) < width / 2
        return bool(inside and local[2] < height / 2)
    over = distance(target, destination) <= radius(destination)
    return over and abs(bottom(target) - top(destination)) <= 0.012


def released(scene: SceneState, target: SceneObject, max_width: float = 0.08) -> bool:
    """Whether the hand has let go: nothing reported as held, and fingers wider than the object or away from it."""
    if scene.held == target.name:
        return False
    away = float(np.linalg.norm(scene.tcp_pose[:3, 3] - target.pose[:3, 3]))
    return scene.gripper * max_width > float(np.min(target.extent[:2])) + 0.004 or away > 0.06


def near_spot(
    objects: Mapping[str, SceneObject], target: SceneObject, destination: SceneObject
) -> tuple[float, float] | None:
    """Free place (x, y) beside ``destination`` with :data:`NEAR_AIM` between the two, or None.

    Of 24 directions the nearest to ``target`` that is within reach and leaves room for the hand is taken, so the
    choice gets firmer while the object is carried there.
    """
    reach = radius(target) + radius(destination) + NEAR_AIM
    others = [o for o in objects.values() if o.name not in (target.name, destination.name)]
    best, best_cost = None, np.inf
    for angle in np.arange(24) * (2 * np.pi / 24):
        xy = destination.pose[:2, 3] + reach * np.array([np.cos(angle), np.sin(angle)])
        inside = REACH_X[0] - 0.01 <= xy[0] <= REACH_X[1] + 0.02 and REACH_Y[0] - 0.03 <= xy[1] <= REACH_Y[1] + 0.03
        if not inside or not is_free(xy, radius(target) + FREE_SPACE, others):
            continue
        cost = float(np.hypot(*(xy - target.pose[:2, 3])))
        if cost < best_cost:
            best, best_cost = (float(xy[0]), float(xy[1])), cost
    return best


def is_free(xy: Array, clearance: float, others: Iterable[SceneObject]) -> bool:
    """Whether no footprint of ``others`` comes closer than ``clearance`` to ``xy`` [m]."""
    return all(float(np.hypot(*(xy - o.pose[:2, 3]))) >= clearance + radius(o) for o in others)
