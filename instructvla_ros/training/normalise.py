"""Statistics of training chunks, in the released form of ``dataset_statistics.json`` (specification 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.statistics import MASK, describe
from ..errors import DataError
from .frames import FrameStore

FLOOR = np.array([0.01] * 3 + [0.04] * 3 + [0.0])
"""Smallest q99 - q01 of a planned step [m], [rad]: what hardly ever moves must not become loud noise."""


def statistics_of(stores: Sequence[FrameStore], name: str) -> dict[str, Any]:
    """Content of ``dataset_statistics.json`` with one dataset ``name`` made of all frames with motion.

    Raises:
        DataError: no frame has motion.
    """
    moving = [s for s in stores if s.has_actions]
    if not moving:
        raise DataError('no dataset has motion: statistics cannot be computed')
    actions = np.concatenate([np.asarray(s.actions, np.float64)[np.asarray(s.valid)] for s in moving])
    proprio = np.concatenate([np.asarray(s.proprio, np.float64) for s in moving])
    entry = {
        'action': {**describe(actions, FLOOR, keep_constant=False), 'mask': MASK},
        'proprio': describe(proprio, np.zeros(proprio.shape[1])),
        'num_transitions': len(proprio),
        'num_trajectories': sum(len(s.texts) for s in moving),
    }
    return {name: entry}
