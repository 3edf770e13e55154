"""The clock of a training loop, and how it is asked to stop."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class Clock:
    """Steps per second since the last question, without what is done inside ``with``."""

    def __init__(self) -> None:
        self._begin, self._steps, self._paused, self._since = time.monotonic(), 0, 0.0, 0.0

    def tick(self) -> None:
        """A step is done."""
        self._steps += 1

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._paused += time.monotonic() - self._since

    def rate(self) -> float:
        """Steps per second; counting starts anew."""
        now = time.monotonic()
        found = self._steps / max(now - self._begin - self._paused, 1e-9)
        self._begin, self._steps, self._paused = now, 0, 0.0
        return found


class Stop:
    """Ctrl-C and SIGTERM end the loop after the step they fall into, so that what is saved is whole.

    ``asked`` says so. A second Ctrl-C ends at once, without saving. Outside of the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
