"""Which image and which joint state belong to one observation: the rule of the live node and of recordings.

Pure functions on stamps. A frame is ``(stamp_ns, anything)``; the anything is passed on untouched, so that a recording
can be paired before a single picture is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from .datatypes import PROPRIO_DIM, RobotState
from .geometry import Array, xyz_rpy_from_pose

T = TypeVar('T')
FRAMES_KEPT = 4
"""Newest frames per view that take part: enough to find partners for a camera that lags by two frames."""


def newest_set(frames: Mapping[str, Sequence[tuple[int, T]]], slop_ns: int) -> dict[str, tuple[int, T]] | None:
    """Newest set with one frame per view whose stamps lie within ``slop_ns`` of its oldest member, or None.

    Args:
        frames: per view, stamps increasing.
    """
    anchors = sorted((s for row in frames.values() for s, _ in row), reverse=True)
    for anchor in anchors:
        chosen: dict[str, tuple[int, T]] = {}
        for name, row in frames.items():
            near = next((f for f in row if f[0] >= anchor), None)
            if near is None or near[0] - anchor > slop_ns:
                break
            chosen[name] = near
        else:
            return chosen
    return None


def state_between(
    before: RobotState | None, after: RobotState | None, stamp_ns: int, limit_ns: int
) -> RobotState | None:
    """Joint state at ``stamp_ns``: interpolated between neighbours at most ``limit_ns`` apart, else the nearer one.

    Args:
        before, after: last state with a stamp <= ``stamp_ns`` and first one behind it.
    """
    if before is not None and after is not None and after.stamp_ns - before.stamp_ns <= limit_ns:
        s = (stamp_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
        return RobotState(
            stamp_ns=stamp_ns,
            q=(1.0 - s) * before.q + s * after.q,
            dq=(1.0 - s) * before.dq + s * after.dq,
            gripper=(1.0 - s) * before.gripper + s * after.gripper,
        )
    candidates = [c for c in (before, after) if c is not None]
    return min(candidates, key=lambda c: abs(c.stamp_ns - stamp_ns)) if candidates else None


def proprio(tcp: Array, openness: float) -> Array:
    """(8,) tcp xyz [m], roll pitch yaw [rad], 0 (pad), openness 0..1, of T_base_tcp (4, 4)."""
    out = np.zeros(PROPRIO_DIM)
    out[:6] = xyz_rpy_from_pose(tcp)
    out[7] = min(max(openness, 0.0), 1.0)
    return out
