"""Move primitives: what the arm does in words, from its motion (specification 9.7).

The window of the source spans three frames at 3 Hz; :func:`span_for` keeps its two thirds of a second at other rates,
because the thresholds are distances and angles, not speeds. x points forward, y left, z up (REP 103).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from ..datatypes import PROPRIO_DIM
from ..errors import DataError
from ..geometry import Array
from .episodes import Episode

STATE_DIM = 8
STOP = 'stop'
WINDOW = 2.0 / 3.0
"""Time between first and last frame of the window at the rate of the source [s]."""
THRESHOLD = 0.02
LARGEST_STEP = 0.06
_PITCH, _YAW = -1.0 / 3.0, 1.0 / 5.0
_MOVES = (('forward', 'backward'), ('left', 'right'), ('up', 'down'))
_TURNS = (('tilt up', 'tilt down'), ('rotate counterclockwise', 'rotate clockwise'), ('close gripper', 'open gripper'))


def span_for(step_period: float) -> int:
    """Frames from the first to the last of a window at this rate; at least 1.

    Args:
        step_period: time between frames [s].
    """
    if not (np.isfinite(step_period) and step_period > 0.0):
        raise DataError(f'step_period must be positive seconds, got {step_period}')
    return max(1, round(WINDOW / step_period))


def primitives(state: ArrayLike, span: int = 2) -> list[str]:
    """One text per frame; the last ``span`` frames, which have no full window, are 'stop'.

    Args:
        state: (T, 8) tcp xyz [m], quaternion xyzw, closedness of the gripper (0 open .. 1 closed).
        span: frames between the two that are compared.

    Raises:
        DataError: another shape, numbers that are not finite, or a quaternion without length.
    """
    s = np.asarray(state, dtype=np.float64)
    if s.ndim != 2 or s.shape[1] != STATE_DIM:
        raise DataError(f'move primitives need a state (T, {STATE_DIM}): xyz, quaternion, closedness; got {s.shape}')
    if span < 1:
        raise DataError(f'the window must span at least 1 frame, got {span}')
    bad = ~np.isfinite(s).all(axis=1) | (np.linalg.norm(s[:, 3:7], axis=1) < 1e-9)
    if bad.any():
        raise DataError(f'state of frame {int(bad.argmax())}: not finite, or a quaternion of length 0')
    features = _features(s, span)
    signs = (features > THRESHOLD).astype(np.int64) - (features < -THRESHOLD)
    # Few of the 729 combinations occur: name each once.
    kinds, which = np.unique(signs, axis=0, return_inverse=True)
    names = [_name(kind) for kind in kinds]
    return [names[k] for k in which.ravel()] + [STOP] * (len(s) - len(signs))


def state_from_proprio(proprio: ArrayLike) -> Array:
    """State (T, 8) for :func:`primitives` from proprioception (T, 8): xyz, rpy, pad, openness."""
    p = np.asarray(proprio, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != PROPRIO_DIM:
        raise DataError(f'proprio must be (T, {PROPRIO_DIM}), got {p.shape}')
    if not np.isfinite(p).all():
        raise DataError(f'proprio is not finite in frame {int((~np.isfinite(p).all(axis=1)).argmax())}')
    quaternion = Rotation.from_euler('xyz', p[:, 3:6]).as_quat() if len(p) else np.empty((0, 4))
    return np.concatenate([p[:, :3], quaternion, 1.0 - p[:, 7:8]], axis=1)


def annotate(episode: Episode) -> Episode:
    """The episode with ``features / move_primitive`` in its annotations; everything else stays."""
    labels = primitives(state_from_proprio(episode.proprio), span_for(episode.step_period))
    features: dict[str, Any] = {**episode.annotations.get('features', {}), 'move_primitive': labels}
    return replace(episode, annotations={**episode.annotations, 'features': features})


def _features(s: Array, span: int) -> Array:
    """(T - span, 6): x, y, z, pitch, yaw, closing, scaled so that one threshold fits all."""
    if len(s) <= span:
        return np.empty((0, 6))
    first, last = s[:-span], s[span:]
    step = last[:, :3] - first[:, :3]
    length = np.abs(step).sum(axis=1, keepdims=True)
    step *= np.minimum(1.0, LARGEST_STEP / np.maximum(length, 1e-12))
    turn = (Rotation.from_quat(last[:, 3:7]) * Rotation.from_quat(first[:, 3:7]).inv()).as_euler('xyz')
    closing = last[:, 7:] - first[:, 7:]
    return np.concatenate([step, _PITCH * turn[:, 1:2], _YAW * turn[:, 2:3], closing], axis=1)


def _name(signs: Array) -> str:
    def chosen(words: tuple[tuple[str, str], ...], values: Array) -> list[str]:
        return [pair[0] if v > 0 else pair[1] for pair, v in zip(words, values, strict=True) if v]

    moves = chosen(_MOVES, signs[:3])
    parts = ([' '.join(['move', *moves])] if moves else []) + chosen(_TURNS, signs[3:])
    return ', '.join(parts) or STOP
