"""How the scripted expert's hand moves: bounded, slowing down, over obstacles, into a funnel above its goal.

Everything is a function of the present pose, so a plan can be made anew at any moment and from an old state.
The hand points down; its yaw is the heading of the tcp's x axis, and the fingers open along the tcp's y axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from ..datatypes import SceneObject
from ..geometry import Array
from . import relations as rel
from .scene import DRAWER_TRAVEL, HANDLE_STANDOFF

HAND_SPAN = 0.075
"""Half of the space the open hand sweeps around the tcp, with a margin [m]."""
INNER_RADIUS, INNER_HEIGHT = 0.415, 0.40
"""Nearer to the base than this radius [m] an arm pointing down reaches no lower than this height [m]."""
FINGERTIP = 0.012
"""How far the fingertips reach below the tcp [m]."""


@dataclass(frozen=True)
class Pace:
    """Bounds of the motion.

    Attributes:
        around, radial, vertical: speed of the tcp about the base axis, away from it, and up [m/s]; together they
            are the half axes of an ellipsoid. What 60 % of the joint speeds of an FR3 allow over the table: joints 2
            and 4 make the radial and the vertical part, so these are the slow ones.
        spin: [rad/s].
        gain: speed per remaining distance [1/s]; small enough that the lag of an arm causes no overshoot.
        slope: steepness of the funnel above a goal [m/m]. tolerance: half width of its neck [m].
    """

    around: float = 0.25
    radial: float = 0.17
    vertical: float = 0.15
    spin: float = 1.0
    gain: float = 4.0
    slope: float = 4.0
    tolerance: float = 0.006


@dataclass(frozen=True)
class Goal:
    """Where the tcp should go.

    Attributes:
        xyz: [m]. yaw: [rad], None keeps the present one.
        clear: height [m] that the tcp keeps on its way until it is over the goal; None: straight line.
        slow: share of the full speed.
        blocked: the hand is not ready to go down (fingers still closed): it waits at the mouth of the funnel.
    """

    xyz: Array
    yaw: float | None = None
    clear: float | None = None
    slow: float = 1.0
    blocked: bool = False


def yaw_of(tcp: Array) -> float:
    """Heading of the tcp's x axis [rad]."""
    return float(np.arctan2(tcp[1, 0], tcp[0, 0]))


def downward(yaw: float) -> Array:
    """Rotation matrix (3, 3) of a tcp that points straight down with this heading."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def wrap(angle: float, period: float = 2 * np.pi) -> float:
    """``angle`` moved by whole periods into -period/2 .. period/2."""
    return float((angle + period / 2) % period - period / 2)


def step_to(tcp: Array, goal: Goal, dt: float, pace: Pace) -> Array:
    """Base-frame delta (6,) of ``dt`` seconds from pose ``tcp`` (4, 4) towards ``goal``."""
    share = 1.0 - np.exp(-pace.gain * dt)
    turn = _turn(tcp, goal.yaw, dt, pace, share)
    offset = np.asarray(goal.xyz, dtype=np.float64) - tcp[:3, 3]
    if goal.clear is not None:
        flat = float(np.hypot(offset[0], offset[1]))
        error = 0.0 if goal.yaw is None else abs(wrap(goal.yaw - yaw_of(tcp)))
        # A wrong heading widens the distance, so the hand turns before it goes down.
        flat += 0.08 * max(0.0, error - 0.08) + (1.0 if goal.blocked else 0.0)
        height = goal.xyz[2] + float(
            np.clip(pace.slope * (flat - pace.tolerance), 0.0, max(0.0, goal.clear - goal.xyz[2]))
        )
        if float(np.hypot(tcp[0, 3], tcp[1, 3])) < INNER_RADIUS:
            height = max(height, min(float(tcp[2, 3]), INNER_HEIGHT))
        offset[2] = height - tcp[2, 3]
        # Too low for this place: first up, then sideways.
        offset[:2] *= float(np.clip(1.0 - (offset[2] - 0.015) / 0.03, 0.0, 1.0))
    length = float(np.linalg.norm(offset))
    if length < 1e-9:
        return np.concatenate([np.zeros(3), turn])
    wanted = max(share, min(1.0, 0.02 * dt / length))
    allowed = goal.slow * dt / max(_slowness(tcp, offset, pace), 1e-9)
    return np.concatenate([offset * min(wanted, allowed), turn])


def _slowness(tcp: Array, offset: Array, pace: Pace) -> float:
    """Least time [s] for the whole of ``offset`` (3,)."""
    outward = tcp[:2, 3] / max(float(np.hypot(*tcp[:2, 3])), 1e-6)
    along = float(offset[:2] @ outward)
    across = float(outward[0] * offset[1] - outward[1] * offset[0])
    return float(np.linalg.norm([across / pace.around, along / pace.radial, offset[2] / pace.vertical]))


def _turn(tcp: Array, yaw: float | None, dt: float, pace: Pace, share: float) -> Array:
    goal = downward(yaw_of(tcp) if yaw is None else yaw)
    vector = Rotation.from_matrix(goal @ tcp[:3, :3].T).as_rotvec()
    angle = float(np.linalg.norm(vector))
    if angle < 1e-6:
        return np.zeros(3)
    vector *= min(angle * share, pace.spin * dt) / angle
    return np.asarray(Rotation.from_rotvec(vector).as_euler('xyz'), dtype=np.float64)


def clearance(start: Array, end: Array, objects: Iterable[SceneObject], hang: float, margin: float = 0.04) -> float:
    """Height of the tcp [m] that clears every object on the straight way from ``start`` to ``end``.

    Args:
        start, end: positions (>= 2,) [m]. hang: how far the lowest carried point is below the tcp [m].
    """
    height = 0.02
    for obj in objects:
        for x, y, r, top in discs(obj):
            if _segment_distance(np.array([x, y]), start[:2], end[:2]) < r + HAND_SPAN:
                height = max(height, top)
    return height + hang + margin


def discs(obj: SceneObject) -> list[tuple[float, float, float, float]]:
    """Footprint as discs: x, y, radius, height of the top [m]; a drawer is covered by several, handle included."""
    x, y, _ = obj.pose[:3, 3]
    if obj.category != 'drawer':
        return [(float(x), float(y), rel.radius(obj), rel.top(obj))]
    depth, width, _ = obj.extent
    front = -(depth / 2 + min(obj.opening, DRAWER_TRAVEL) + HANDLE_STANDOFF)
    return [
        (float(x + obj.pose[0, 0] * a), float(y + obj.pose[1, 0] * a), float(width / 2), rel.top(obj))
        for a in np.linspace(front + width / 2, depth / 2 - width / 4, 4)
    ]


def _segment_distance(point: Array, a: Array, b: Array) -> float:
    way = b - a
    length = float(way @ way)
    s = 0.0 if length < 1e-12 else float(np.clip((point - a) @ way / length, 0.0, 1.0))
    return float(np.hypot(*(a + s * way - point)))
