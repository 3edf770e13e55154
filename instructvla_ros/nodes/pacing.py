"""Periodic deadlines on the monotonic clock, and that clock in simulated seconds."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(speed: float = 1.0) -> Callable[[], float]:
    """Steady clock [s] that runs at ``speed`` simulated seconds per second.

    Not the ROS clock: that one stands still when a simulator or a bag ends, and deadlines have to pass all the same.
    """
    return time.monotonic if speed == 1.0 else lambda: speed * time.monotonic()


class Pacer:
    """Deadlines every ``period``: no drift, short delays are caught up, long ones are skipped.

    Args:
        period: [s]. catch_up: largest backlog that is worked off by shorter periods [s].
    """

    def __init__(self, period: float, catch_up: float = 0.1) -> None:
        if not period > 0.0:
            raise ValueError(f'period {period} s must be positive')
        self._period = period
        self._catch_up = max(catch_up, period)
        self._next = time.monotonic() + period

    @property
    def remaining(self) -> float:
        """Time until the next deadline [s]; negative when it has passed."""
        return self._next - time.monotonic()

    def advance(self) -> float:
        """Set the next deadline after the present one has been served.

        Returns:
            Time that was skipped because the backlog was too large [s], a multiple of the period; else 0.
        """
        self._next += self._period
        late = -self.remaining
        if late <= self._catch_up:
            return 0.0
        skipped = int(late / self._period) * self._period
        self._next += skipped
        return skipped

    def wait(self) -> float:
        """Sleep until the deadline and set the next one; returns the time skipped as :meth:`advance` does."""
        remaining = self.remaining
        if remaining > 0.0:
            time.sleep(remaining)
        return self.advance()
