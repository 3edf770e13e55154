"""What was commanded a moment ago: observations and joint states are compared with the command of their own time.

Both arrive late, over a busy network by a good part of a second. Compared with the command of now, an arm that follows
well would look as if it were behind by its speed times that age.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..geometry import Array


class History:
    """Commands by time [ns]. Not thread-safe.

    Args:
        keep: how far back they are needed [s].
        between: ``between(a, b, s)`` is the command at share ``s`` of the time from ``a`` to ``b``.
    """

    def __init__(self, keep: float, between: Callable[[Array, Array, float], Array]) -> None:
        self._keep, self._between = int(keep * 1e9), between
        self._past: deque[tuple[int, Array]] = deque()

    def clear(self) -> None:
        """Forget everything, as when the command starts at another position."""
        self._past.clear()

    def record(self, now_ns: int, command: Array) -> None:
        """Remember the command of a time; one that is not later than the last is left out."""
        if self._past and now_ns <= self._past[-1][0]:
            return
        self._past.append((now_ns, command))
        # The last one before the span is still needed to interpolate.
        while len(self._past) > 1 and self._past[1][0] <= now_ns - self._keep:
            self._past.popleft()

    def at(self, time_ns: int, otherwise: Array) -> Array:
        """Command at a time; the oldest or newest known outside the record, ``otherwise`` when it is empty."""
        newer: tuple[int, Array] | None = None
        for stamp, command in reversed(self._past):
            if stamp <= time_ns:
                if newer is None:
                    return command
                return self._between(command, newer[1], (time_ns - stamp) / (newer[0] - stamp))
            newer = (stamp, command)
        return otherwise if newer is None else newer[1]


def linear(a: Array, b: Array, s: float) -> Array:
    """Between two joint positions (n,)."""
    return a + s * (b - a)
