"""How long the arm takes to follow its command."""

from __future__ import annotations

from collections import deque

import numpy as np

from ..geometry import Array

MAX_LAG = 0.3  # s
MIN_SPEED = 0.05  # rad/s: slower motion says nothing about the lag
MEMORY = 5.0  # s of motion
PRIOR = 0.5  # rad^2/s: how much motion (speed squared times time) outweighs the start value


class LagEstimator:
    """Regression of ``commanded(t) - measured(t) = lag * commanded velocity`` over the last seconds of motion.

    A constant offset such as sag enters with the sign of the velocity and averages out over both directions.

    Args:
        start: value before the arm has moved [s]. enabled: False keeps it.
    """

    def __init__(self, start: float, enabled: bool = True) -> None:
        self._start, self._enabled = start, enabled
        self._commands: deque[tuple[int, Array, Array]] = deque(maxlen=256)
        self._last_ns: int | None = None
        self._numerator, self._weight = start * PRIOR, PRIOR

    @property
    def value(self) -> float:
        """Present estimate [s]."""
        return min(max(self._numerator / self._weight, 0.0), MAX_LAG) if self._enabled else self._start

    def restart(self) -> None:
        """Forget the recorded commands (the command jumped), keep the estimate."""
        self._commands.clear()
        self._last_ns = None

    def command(self, now_ns: int, q: Array, dq: Array) -> None:
        """Record a commanded position and velocity (n,)."""
        self._commands.append((now_ns, q, dq))

    def measure(self, stamp_ns: int, q: Array) -> None:
        """Learn from a measured position (n,); a stamp seen before is ignored."""
        if not self._enabled or (self._last_ns is not None and stamp_ns <= self._last_ns):
            return
        dt = 0.0 if self._last_ns is None else min((stamp_ns - self._last_ns) * 1e-9, 0.1)
        self._last_ns = stamp_ns
        for k in range(len(self._commands) - 1, -1, -1):
            if self._commands[k][0] <= stamp_ns:
                break
        else:
            return
        t, commanded, velocity = self._commands[k]
        square = float(velocity @ velocity)
        if square < MIN_SPEED**2:
            return
        commanded = commanded + velocity * min((stamp_ns - t) * 1e-9, 0.05)
        keep = float(np.exp(-dt / MEMORY))
        self._numerator = keep * self._numerator + dt * float((commanded - q) @ velocity)
        self._weight = keep * self._weight + dt * square
