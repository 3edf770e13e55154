"""The joint commands of the last moments: a measurement is compared with what was commanded when it was taken.

Joint states arrive late, over a busy network by a good part of a second. Compared with the command of now, an arm that
follows well would look as if it were behind by its speed times that age.
"""

from __future__ import annotations

from collections import deque

from ..geometry import Array


class Commanded:
    """Positions (n,) [rad] by time [ns].

    Args:
        keep: how far back they are needed [s].
    """

    def __init__(self, keep: float) -> None:
        self._keep = int(keep * 1e9)
        self._past: deque[tuple[int, Array]] = deque()

    def clear(self) -> None:
        """Forget everything, as when the command starts at another position."""
        self._past.clear()

    def record(self, now_ns: int, q: Array) -> None:
        """Remember the command of a time; one that is not later than the last is left out."""
        if self._past and now_ns <= self._past[-1][0]:
            return
        self._past.append((now_ns, q))
        # The last one before the span is still needed to interpolate.
        while len(self._past) > 1 and self._past[1][0] <= now_ns - self._keep:
            self._past.popleft()

    def at(self, time_ns: int, otherwise: Array) -> Array:
        """Command at a time, linear between two of them; the oldest or newest outside; ``otherwise`` without any."""
        newer: tuple[int, Array] | None = None
        for stamp, q in reversed(self._past):
            if stamp <= time_ns:
                if newer is None:
                    return q
                share = (time_ns - stamp) / (newer[0] - stamp)
                return q + share * (newer[1] - q)
            newer = (stamp, q)
        return otherwise if newer is None else newer[1]
