"""The path of one action chunk: absolute tcp poses over time, smooth to the first derivative."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from ..datatypes import ActionChunk
from ..geometry import Array, integrate


def fade(s: float, offset: Array, slope: Array) -> Array:
    """Cubic from ``offset`` with derivative ``slope`` (per unit of s) at s = 0 to rest in 0 at s = 1."""
    if s >= 1.0:
        return np.zeros(len(offset))
    rest = 1.0 - s
    return np.asarray(rest * rest * ((1.0 + 2.0 * s) * offset + s * slope))


@dataclass(frozen=True)
class Path:
    """Knots P_0 .. P_H at multiples of the step period after ``start_ns``, blended by a uniform quadratic B-spline.

    The curve is the moving average over one step of the straight lines between the knots: it stays in their convex
    hull (no overshoot, no excursion out of a box that holds the knots), its velocity is continuous, and it rests in
    P_H half a step after the last knot.

    Attributes:
        start_ns: time of P_0 [ns]. period: between knots [s]. positions: (H+1, 3) [m]. rotations: (H+1, 3, 3).
        moves: (H+2, 6) to each knot from the one before: translation [m], and rotation vector in the frame of either
            knot [rad]. The first is how the arm came to P_0 in the period before, the last, behind P_H, is none.
    """

    start_ns: int
    period: float
    positions: Array
    rotations: Array
    moves: Array

    @classmethod
    def of_chunk(
        cls, chunk: ActionChunk, base: Array, lower: Array, upper: Array, velocity: Array | None = None
    ) -> Path:
        """Path of the chunk's deltas from pose ``base`` (4, 4), knots clipped to a box (3,) [m].

        ``velocity`` (6,) in the base frame [m/s], [rad/s] is that of the arm on its way to P_0; at rest when omitted.
        """
        poses = np.concatenate([base[None], integrate(base, chunk.steps, chunk.delta_frame, chunk.rotation)])
        positions = poses[:, :3, 3].copy()
        positions[1:] = np.clip(positions[1:], lower, upper)
        rotations = poses[:, :3, :3].copy()
        moves = np.zeros((len(positions) + 1, 6))
        moves[1:-1, :3] = np.diff(positions, axis=0)
        moves[1:-1, 3:] = [pin.log3(a.T @ b) for a, b in zip(rotations[:-1], rotations[1:], strict=True)]
        if velocity is not None:
            moves[0, :3] = chunk.step_period * velocity[:3]
            moves[0, 3:] = chunk.step_period * (rotations[0].T @ velocity[3:])
        return cls(chunk.observation_stamp_ns, chunk.step_period, positions, rotations, moves)

    @property
    def duration(self) -> float:
        """Time from P_0 until the curve rests in P_H [s]."""
        return (len(self.positions) - 0.5) * self.period

    def at(self, time: float) -> Array:
        """Pose (4, 4) ``time`` [s] after the start."""
        last = len(self.positions) - 1
        u = min(max(time / self.period, 0.0), last + 0.5)
        k = min(int(u + 0.5), last)
        f = u - k
        before, after = 0.5 * (0.5 - f) ** 2, 0.5 * (0.5 + f) ** 2
        # Seen from knot k the way back is the move to it turned the other way.
        move = after * self.moves[k + 1] - before * self.moves[k]
        out = np.zeros((4, 4))
        out[3, 3] = 1.0
        out[:3, 3] = self.positions[k] + move[:3]
        out[:3, :3] = self.rotations[k] @ pin.exp3(move[3:])
        return out
