"""How fast a simulated second may pass on this machine, so that the whole graph keeps up with it."""

from __future__ import annotations

import subprocess
import sys

from .errors import ConfigError
from .evaluation.machine import usable_cores

_NEEDED = 48e6  # additions per second of all processes at which the graph with the tiny model keeps real time
_PROCESSES = 4  # of the graph: more cores than that do not make it faster
MIN_SPEED = 0.05  # simulated seconds per second
LONGEST_LEASE = 60.0  # that the controller takes [s]
SPEEDS = (1.0, 0.5, 0.33, 0.25, 0.2, 0.15, 0.1)
_COUNT = """
import time

def count(seconds):
    total, added, begin = 0, 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        for k in range(20_000):
            total += k
        added += 20_000
    return added / passed

print(count(0.4))
"""


def additions_per_second() -> float:
    """What the interpreter, which a graph of Python nodes lives on, adds on all usable cores; takes half a second.

    At once on all of them: two cores may be two threads of one, and others may be at work too.

    Raises:
        ConfigError: no process can be started.
    """
    command = [sys.executable, '-I', '-S', '-c', _COUNT]
    counting = []
    try:
        for _ in range(min(usable_cores(), _PROCESSES)):
            counting.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))
        return sum(float(process.communicate(timeout=30)[0]) for process in counting)
    except (OSError, ValueError, subprocess.TimeoutExpired) as err:
        raise ConfigError(f'how fast this machine is cannot be measured ({err}); name a speed, such as 0.5') from None
    finally:
        for process in counting:
            if process.poll() is None:
                process.kill()
            process.wait()


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


def comfortable_speed(pace: float | None = None) -> float:
    """Simulated seconds per second, one of :data:`SPEEDS`.

    Args:
        pace: additions per second, as :func:`additions_per_second` measures them, which it does when left out.
    """
    share = (additions_per_second() if pace is None else pace) / _NEEDED
    return next((s for s in SPEEDS if s <= share), SPEEDS[-1])
