"""Commanded openness of a parallel gripper over time: from its commands, or from what it did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..geometry import Array

MOVED = 0.08
"""Change of openness that counts as a movement of the fingers, 0..1."""


def commanded(commands: Sequence[tuple[int, float]], times_ns: NDArray[np.int64], initial: float) -> Array:
    """(K,) newest command before each time.

    Args:
        commands: stamp [ns] and openness, in order. initial: measured openness, for times before the first command.
    """
    stamps = np.array([t for t, _ in commands], np.int64)
    values = np.array([1.0 if initial >= 0.5 else 0.0, *(o for _, o in commands)])
    return np.asarray(values[np.searchsorted(stamps, times_ns, side='left')])


def derived(stamps_ns: NDArray[np.int64], openness: Array, times_ns: NDArray[np.int64]) -> Array:
    """(K,) 0 or 1: fingers that begin to close were told to close, until they begin to open.

    An object between the fingers keeps them half open; the command stays 'close' all the same.

    Args:
        stamps_ns, openness: (N,) measured, stamps increasing.
    """
    if len(stamps_ns) == 0:
        return np.ones(len(times_ns))
    changes: list[tuple[int, float]] = []
    state = 1.0 if openness[0] >= 0.5 else 0.0
    first = state
    turn, turn_value = 0, float(openness[0])  # where the fingers were farthest in the direction of the last command
    for k, value in enumerate(np.asarray(openness, np.float64).tolist()):
        beyond = value >= turn_value if state == 1.0 else value <= turn_value
        if beyond:
            turn, turn_value = k, value
        elif abs(value - turn_value) >= MOVED:
            state = 1.0 - state
            changes.append((int(stamps_ns[turn]), state))
            turn, turn_value = k, value
    return commanded(changes, times_ns, first)
