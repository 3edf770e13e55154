"""What joint_trajectory_controller does with a JointTrajectory, and what a Franka refuses. Pure: no clock, no I/O.

Semantics of ros2_controllers on Jazzy and Kilted with ``interpolate_from_desired_state: true``: a new trajectory
replaces the old one at once, even when its stamp lies in the future; a bridge runs from the last commanded state to
its first future point; points in the past are skipped; the last point is held. Where the bridge would be too fast,
because the message came late, it takes longer and the rest follows later, as behind a joint limiter of ros2_control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..geometry import Array
from ..settings import Embodiment

TOLERANCE = 1e-6
"""How far beyond a limit still counts as on it [rad, rad/s]: rounding, not headroom."""
CATCH_UP = 0.25
"""How much longer than asked a bridge may take [s]; beyond it the trajectory asks for a leap and is refused."""


class _Path(NamedTuple):
    """Replaced as a whole, so that one thread may sample while another accepts."""

    base_ns: int
    times: Array
    q: Array
    v: Array | None


class TrajectoryFollower:
    """The commanded joint state as a function of time. May be sampled from any thread.

    Args:
        embodiment: names, order and limits of the joints. q: where the arm stands (n,) [rad].
        allow_nonzero_end: accept a last point that still moves; the arm then stops on it at once.
    """

    def __init__(self, embodiment: Embodiment, q: ArrayLike, allow_nonzero_end: bool = False):
        self.joints = tuple(embodiment.arm_joints)
        limits = embodiment.limits
        self._lower, self._upper = np.asarray(limits.lower), np.asarray(limits.upper)
        self._speed = np.asarray(limits.velocity)
        self._allow_nonzero_end = allow_nonzero_end
        self.reset(q)

    def reset(self, q: ArrayLike) -> None:
        """Forget any trajectory and hold ``q`` (n,) [rad]."""
        where = np.array(q, dtype=np.float64)
        if where.shape != (len(self.joints),) or not np.all(np.isfinite(where)):
            raise ValueError(f'q must be {len(self.joints)} finite numbers, got {where!r}')
        self._path = _Path(0, np.zeros(1), where[None], None)

    def accept(
        self,
        joint_names: Sequence[str],
        times_s: ArrayLike,
        positions: ArrayLike,
        velocities: ArrayLike | None,
        stamp_ns: int,
        now_ns: int,
    ) -> str:
        """Replace the trajectory at once, or leave everything as it was and say why.

        Args:
            joint_names: all arm joints, in any order; the columns below follow it.
            times_s: (m,) ``time_from_start`` [s], strictly increasing.
            positions: (m, n) [rad]. velocities: (m, n) [rad/s] or None/empty: linear interpolation.
            stamp_ns: header stamp [ns]; 0 is now. now_ns: the time [ns].

        Returns:
            '' when accepted, else one sentence that names the joint, the number and the limit.
        """
        names = tuple(joint_names)
        reason = '' if names == self.joints else self._names_fit(names)
        if reason:
            return reason
        t, q = np.asarray(times_s, dtype=np.float64), np.asarray(positions, dtype=np.float64)
        v = None if velocities is None or np.size(velocities) == 0 else np.asarray(velocities, dtype=np.float64)
        reason = self._shapes_fit(t, q, v)
        if reason:
            return reason
        if names != self.joints:
            order = [names.index(name) for name in self.joints]
            q, v = q[:, order], None if v is None else v[:, order]
        if v is not None and not self._allow_nonzero_end and np.any(np.abs(v[-1]) > TOLERANCE):
            k = int(np.argmax(np.abs(v[-1])))
            return f'the last point must be at rest, {self.joints[k]} has {v[-1, k]:.4g} rad/s'
        offset = 0.0 if stamp_ns == 0 else (stamp_ns - now_ns) * 1e-9
        ahead = t + offset > 0.0
        if not ahead[-1]:
            return f'the last point lies {-(t[-1] + offset):.3f} s in the past'

        start_q, start_v = self.sample(now_ns)
        times = np.concatenate([[0.0], t[ahead] + offset])
        path = np.vstack([start_q, q[ahead]])
        slopes = None if v is None else np.vstack([start_v, v[ahead]])
        reason, bridge_holds = self._within_limits(times, path, slopes)
        if not bridge_holds:
            times[1:] += self._delay(times[1], path[:2], None if slopes is None else slopes[:2])
            reason, _ = self._within_limits(times, path, slopes)
        if reason:
            return reason
        self._path = _Path(now_ns, times, path, slopes)
        return ''

    def sample(self, now_ns: int) -> tuple[Array, Array]:
        """Commanded q (n,) [rad] and dq (n,) [rad/s]; after the end the last point, at rest."""
        base_ns, times, path, slopes = self._path
        t = (now_ns - base_ns) * 1e-9
        if t >= times[-1]:
            return path[-1].copy(), np.zeros(len(self.joints))
        t = max(t, 0.0)
        k = int(np.searchsorted(times, t, side='right')) - 1
        h = times[k + 1] - times[k]
        s = t - times[k]
        q0, q1 = path[k], path[k + 1]
        if slopes is None:
            slope = (q1 - q0) / h
            return q0 + s * slope, slope
        b, c, d = slopes[k], *_cubic(q0, q1, slopes[k], slopes[k + 1], h)
        return q0 + s * (b + s * (c + s * d)), b + s * (2.0 * c + 3.0 * s * d)

    def _names_fit(self, names: Sequence[str]) -> str:
        unknown = [n for n in names if n not in self.joints]
        missing = [n for n in self.joints if n not in names]
        if unknown or missing or len(names) != len(self.joints):
            parts = [f'unknown {", ".join(unknown)}'] if unknown else []
            parts += [f'missing {", ".join(missing)}'] if missing else []
            return (
                f'joint names: {"; ".join(parts) or "a name is repeated"}. All of {", ".join(self.joints)} are needed'
            )
        return ''

    def _shapes_fit(self, t: Array, q: Array, v: Array | None) -> str:
        n = len(self.joints)
        if t.ndim != 1 or t.size == 0:
            return 'the trajectory has no points'
        for label, values in (('positions', q), ('velocities', v)):
            if values is None:
                continue
            if values.shape != (t.size, n):
                return f'{label} must be given for all {n} joints at all {t.size} points, got shape {values.shape}'
            if not np.all(np.isfinite(values)):
                return f'{label} contain a number that is not finite'
        if not np.all(np.isfinite(t)) or t[0] < 0.0:
            return f'time_from_start must be finite and >= 0, the first is {t[0]}'
        if np.any(np.diff(t) <= 0.0):
            k = int(np.argmax(np.diff(t) <= 0.0))
            return f'time_from_start must strictly increase, point {k + 1} has {t[k + 1]:.6f} s after {t[k]:.6f} s'
        return ''

    def _delay(self, h: float, q: Array, v: Array | None) -> float:
        """Time by which the bridge over ``h`` [s] has to be longer to keep the speed limits, at most CATCH_UP [s]."""
        for delay in np.linspace(0.0, CATCH_UP, 26):
            span = h + delay
            if v is None:
                speed = np.abs(q[1] - q[0]) / span
            else:
                speed = _cubic_extrema(q, v, np.full((1, 1), span))[2][0]
            if np.all(speed <= self._speed):
                return float(delay)
        return 0.0

    def _within_limits(self, times: Array, q: Array, v: Array | None) -> tuple[str, bool]:
        """What leaves its limits on the whole path, bridge included, and whether the bridge keeps the speed limits."""
        h = np.diff(times)[:, None]
        if v is None:
            low, high = q.min(axis=0), q.max(axis=0)
            speeds = np.abs(np.diff(q, axis=0) / h)
        else:
            low, high, speeds = _cubic_extrema(q, v, h)
        bridge_holds = bool((speeds[0] <= self._speed).all())
        speed, start = speeds.max(axis=0), q[0]
        # An arm that already stands beyond a limit may come back, it may not go further.
        floor, ceiling = np.minimum(self._lower, start) - TOLERANCE, np.maximum(self._upper, start) + TOLERANCE
        # A number that is not one fits no limit.
        fits = (low >= floor) & (high <= ceiling) & (speed <= self._speed + TOLERANCE)
        if fits.all():
            return '', bridge_holds
        k = int(np.argmin(fits))
        name = self.joints[k]
        for value in (low[k], high[k]):
            if not floor[k] <= value <= ceiling[k]:
                limits = f'{self._lower[k]:.4f} .. {self._upper[k]:.4f} rad'
                return f'{name} would go to {value:.4f} rad, allowed {limits}', bridge_holds
        return f'{name} would move at {speed[k]:.3f} rad/s, allowed {self._speed[k]:.3f} rad/s', bridge_holds


def _cubic(q0: Array, q1: Array, v0: Array, v1: Array, h: Array | float) -> tuple[Array, Array]:
    """Coefficients c, d of q0 + v0 s + c s^2 + d s^3 that reaches q1 with v1 after h."""
    mean = (q1 - q0) / h
    return np.asarray((3.0 * mean - 2.0 * v0 - v1) / h), np.asarray((v0 + v1 - 2.0 * mean) / np.square(h))


def _cubic_extrema(q: Array, v: Array, h: Array) -> tuple[Array, Array, Array]:
    """Smallest and largest position (n,) over all m segments, and the largest speed of each (m, n)."""
    q0, b = q[:-1], v[:-1]
    c, d = _cubic(q0, q[1:], b, v[1:], h)
    with np.errstate(divide='ignore', invalid='ignore'):
        turn = -c / (3.0 * d)
        root = np.sqrt(np.maximum(c * c - 3.0 * b * d, 0.0))
        # Both roots of b + 2 c s + 3 d s^2 in the form that does not cancel; d = 0 leaves the single root -b / 2c.
        big = -(c + np.copysign(root, c))
        times = np.stack([big / (3.0 * d), b / big, turn])
    inside = np.clip(np.where(np.isfinite(times), times, 0.0), 0.0, h)
    extrema = q0 + inside[:2] * (b + inside[:2] * (c + inside[:2] * d))
    fastest = np.abs(b + inside[2] * (2.0 * c + 3.0 * inside[2] * d))
    low = np.minimum(extrema.min(axis=(0, 1)), q.min(axis=0))
    high = np.maximum(extrema.max(axis=(0, 1)), q.max(axis=0))
    return low, high, np.maximum(fastest, np.maximum(np.abs(b), np.abs(v[1:])))
