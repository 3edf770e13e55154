"""Where the scripted expert takes hold of an object, and where it lets go of one. Base frame, lengths in m."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..datatypes import SceneObject, SceneState
from ..geometry import Array
from . import relations as rel
from .expert_motion import discs, wrap, yaw_of

LOWEST_GRASP, LOWEST_BALL = 0.020, 0.016
"""Lowest tcp height over the table at a grasp [m]: the palm stays over bowls, but a ball is held at its middle."""
MAX_YAW = np.deg2rad(95.0)
"""Largest turn of the hand away from straight ahead, to stay clear of the limits of the last joint."""
FINGER_REACH, FINGER_SIZE = 0.053, 0.016
PALM_REACH, PALM_HEIGHT = 0.085, 0.038
"""Half length of the palm along the fingers' motion, and its height over the tcp [m]."""
GENTLE = 0.004
"""Height above its support at which an object is let go [m]."""


@dataclass(frozen=True)
class Grasp:
    """tcp position (3,) [m], heading [rad] and the width [m] at which the fingers meet the object."""

    xyz: Array
    yaw: float
    width: float


def grasp_of(obj: SceneObject, objects: Mapping[str, SceneObject], yaw_now: float) -> Grasp:
    """Grasp from above at the object's centre, aligned with its faces.

    Of the headings that fit, the nearest to the present one is taken, unless a finger would come down on another
    object.
    """
    others = [o for o in objects.values() if o.name != obj.name and not _under(obj, o)]
    xyz = np.array(obj.pose[:3, 3])
    xyz[2] = max(xyz[2], LOWEST_BALL if obj.category == 'ball' else LOWEST_GRASP)
    best, best_cost = yaw_now, np.inf
    for yaw in _headings(obj, yaw_now):
        cost = abs(wrap(yaw - yaw_now)) + 0.2 * abs(yaw) + 3.0 * sum(_in_the_way(o, xyz, yaw) for o in others)
        if cost < best_cost:
            best, best_cost = yaw, cost
    return Grasp(xyz, float(best), float(min(obj.extent[0], obj.extent[1])))


def release_of(scene: SceneState, obj: SceneObject, destination: SceneObject, relation: str) -> tuple[Array, float]:
    """Position (3,) of the *object's centre* and heading of the tcp at which a held object is let go.

    Raises:
        LookupError: there is no free place beside ``destination``.
    """
    half = rel.half_height(obj)
    yaw = yaw_of(scene.tcp_pose)
    xy = np.array(destination.pose[:2, 3])
    if relation == 'near':
        spot = rel.near_spot(scene.objects, obj, destination)
        if spot is None:
            raise LookupError(f'no free place near {destination.name}')
        xy, z = np.array(spot), half + GENTLE
    elif destination.category == 'bowl':
        # The open fingers stay above the rim; the object hangs below it and falls about 3 cm.
        z = rel.top(destination) + half - 0.012
    elif destination.category == 'plate':
        z = rel.top(destination) + half + GENTLE / 2
    elif destination.category == 'drawer':
        xy, z = rel.tray_centre(destination)[:2], rel.top(destination) - 0.010
        yaw = float(np.arctan2(destination.pose[1, 0], destination.pose[0, 0]))
    else:
        z = rel.top(destination) + half + GENTLE
        yaw += wrap(_face(destination) - _face(obj), np.pi / 2)
    return np.array([xy[0], xy[1], z]), yaw


def free_place(scene: SceneState, obj: SceneObject) -> Array:
    """Nearest place (x, y) where the held object ``obj`` can be set down on the table."""
    others = [o for o in scene.objects.values() if o.name != obj.name]
    here = scene.tcp_pose[:2, 3]
    for distance in np.arange(0.0, 0.5, 0.03):
        for angle in np.arange(12) * (np.pi / 6):
            xy = here + distance * np.array([np.cos(angle), np.sin(angle)])
            xy = np.clip(xy, (rel.REACH_X[0], rel.REACH_Y[0]), (rel.REACH_X[1], rel.REACH_Y[1]))
            if rel.is_free(xy, rel.radius(obj) + rel.FREE_SPACE, others):
                return np.asarray(xy)
    return np.asarray(here)


def _in_the_way(other: SceneObject, xyz: Array, yaw: float) -> bool:
    """Whether a finger or the palm of a hand that grasps at ``xyz`` would meet ``other``."""
    side = np.array([np.sin(yaw), -np.cos(yaw)])
    for x, y, radius, top in discs(other):
        for reach in (FINGER_REACH, PALM_REACH) if top > xyz[2] + PALM_HEIGHT else (FINGER_REACH,):
            for sign in (-1.0, 1.0):
                if float(np.hypot(*(xyz[:2] + sign * reach * side - (x, y)))) < 1.1 * radius + FINGER_SIZE:
                    return True
    return False


def _headings(obj: SceneObject, yaw_now: float) -> list[float]:
    upright = abs(float(obj.pose[2, 2])) > 0.7
    if obj.category == 'ball' or (obj.category == 'cylinder' and upright):
        return [float(np.clip(yaw_now, -MAX_YAW, MAX_YAW)), *np.linspace(-np.pi / 3, np.pi / 3, 9)]
    if obj.category == 'cylinder':
        period, heading = np.pi, float(np.arctan2(obj.pose[1, 2], obj.pose[0, 2]))
    else:
        period, heading = np.pi / 2, _face(obj)
    options = [wrap(heading, period) + k * period for k in (-1, 0, 1)]
    return [y for y in options if abs(y) <= MAX_YAW] or [min(options, key=abs)]


def _face(obj: SceneObject) -> float:
    """Heading of one side of a box, whichever of its faces is up [rad]."""
    axis = int(np.argmin(np.abs(obj.pose[2, :3])))
    return float(np.arctan2(obj.pose[1, axis], obj.pose[0, axis]))


def _under(obj: SceneObject, other: SceneObject) -> bool:
    """Whether ``obj`` lies in or on ``other``, which is then no obstacle beside it."""
    if other.category == 'drawer':
        return rel.placed(obj, other, 'in')
    return rel.distance(obj, other) < rel.radius(other) and rel.bottom(obj) > rel.bottom(other) - 0.005
