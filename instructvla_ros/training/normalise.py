"""Statistics of training chunks, in the released form of ``dataset_statistics.json`` (specification 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from ..geometry import Array
from .frames import FrameStore

FLOOR = np.array([0.005] * 3 + [0.02] * 3)
"""Smallest half width of the range of a step [m], [rad]: what hardly ever moves must not become loud noise."""


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
        'action': {**_describe(actions, np.concatenate((FLOOR, [0.0]))), 'mask': [True] * 6 + [False]},
        'proprio': _describe(proprio, np.zeros(proprio.shape[1])),
        'num_transitions': len(proprio),
        'num_trajectories': sum(len(s.texts) for s in moving),
    }
    return {name: entry}


def _describe(values: Array, floor: Array) -> dict[str, list[float]]:
    low, high = np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0)
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, floor)
    narrow = (high - low) / 2 < floor
    low, high = np.where(narrow, middle - half, low), np.where(narrow, middle + half, high)
    return {
        'q01': low.tolist(),
        'q99': high.tolist(),
        'mean': values.mean(0).tolist(),
        'std': values.std(0).tolist(),
        'min': values.min(0).tolist(),
        'max': values.max(0).tolist(),
    }
