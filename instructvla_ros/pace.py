"""How fast a simulated second may pass on this machine, so that the whole graph keeps up with it."""

from __future__ import annotations

import statistics
import time

from .errors import ConfigError
from .evaluation.machine import usable_cores

_ROUNDS, _COUNT = 7, 200_000
_NEEDED = 24e6  # additions per second and core, of two cores, at which the graph with the tiny model keeps real time
MIN_SPEED = 0.05  # simulated seconds per second
LONGEST_LEASE = 60.0  # that the controller takes [s]
SPEEDS = (1.0, 0.5, 0.33, 0.25, 0.2, 0.15, 0.1)


def additions_per_second() -> float:
    """Speed of the interpreter, which is what a graph of Python nodes lives on; takes a tenth of a second or two."""
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        total = 0
        for k in range(_COUNT):
            total += k
        times.append(time.perf_counter() - began)
    return _COUNT / statistics.median(times)


def read_speed(text: str) -> float:
    """Simulated seconds per second that a person asked for: a number, or ``auto``.

    Raises:
        ConfigError: neither, or out of bounds.
    """
    if text == 'auto':
        return comfortable_speed()
    try:
        speed = float(text)
    except ValueError:
        speed = float('nan')
    return check_speed(speed, repr(text))


def check_speed(speed: float, told: str = '') -> float:
    """The same speed; ``told`` is how it was written.

    Raises:
        ConfigError: out of bounds, or not a number.
    """
    if not MIN_SPEED <= speed <= 1.0:
        raise ConfigError(
            f'the speed is {told or speed}; give auto, or {MIN_SPEED} to 1 simulated seconds per second, such as 0.5'
        )
    return speed


def stretched_lease(lease: float, speed: float) -> float:
    """``chunk_lease`` [s] at a speed: the middleware counts it in seconds of the machine."""
    return min(lease / speed, LONGEST_LEASE)


def comfortable_speed(pace: float | None = None, usable: int | None = None) -> float:
    """Simulated seconds per second, one of :data:`SPEEDS`.

    Four processes share the cores, so more than two of them make up for slow ones, up to a point.

    Args:
        pace: additions per second of one core; measured when left out. usable: cores; those of this process.
    """
    pace = additions_per_second() if pace is None else pace
    usable = usable_cores() if usable is None else usable
    share = pace / _NEEDED * min(usable, 4) / 2.0
    return next((s for s in SPEEDS if s <= share), SPEEDS[-1])
