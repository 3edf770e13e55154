"""Statistics of training chunks, in the released form of ``dataset_statistics.json`` (specification 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.statistics import MASK, describe
from ..errors import DataError
from .frames import FrameStore

ANGLES = slice(3, 6)
"""Roll, pitch and yaw in the state."""
FLOOR = np.array([0.01] * 3 + [0.04] * 3 + [0.0])
"""Smallest q99 - q01 of a planned step [m], [rad]: what hardly ever moves must not become loud noise."""


def statistics_of(stores: Sequence[FrameStore], name: str, steady: bool = False) -> dict[str, Any]:
    """Content of ``dataset_statistics.json`` with one dataset ``name`` made of all frames with motion.

    Args:
        steady: make the quantiles of state angles that jump between -pi and pi equal, which scales them to 0.

    Raises:
        DataError: no frame has motion.
    """
    moving = [s for s in stores if s.has_actions]
    if not moving:
        raise DataError('no dataset has motion: statistics cannot be computed')
    actions = np.concatenate([np.asarray(s.actions, np.float64)[np.asarray(s.valid)] for s in moving])
    proprio = np.concatenate([np.asarray(s.proprio, np.float64) for s in moving])
    state = describe(proprio, np.zeros(proprio.shape[1]))
    for k in jumping(moving) if steady else ():
        state['q01'][k] = state['q99'][k] = float(np.median(proprio[:, k]))
    entry = {
        'action': {**describe(actions, FLOOR, keep_constant=False), 'mask': MASK},
        'proprio': state,
        'num_transitions': len(proprio),
        'num_trajectories': sum(len(s.texts) for s in moving),
    }
    return {name: entry}


def jumping(stores: Sequence[FrameStore]) -> list[int]:
    """Channels of the state that are angles and jump by more than pi between two frames of an episode.

    The roll of a hand that points straight down is pi or -pi by chance: a large input that says nothing.
    """
    found = set()
    for store in stores:
        angles = np.asarray(store.proprio[:, ANGLES], np.float64)
        together = np.diff(store.episode) == 0
        jumps = (np.abs(np.diff(angles, axis=0)) > np.pi) & together[:, None]
        found |= {ANGLES.start + int(k) for k in np.flatnonzero(jumps.any(axis=0))}
    return sorted(found)
