"""Adaptive ensemble of overlapping action chunks (CogACT's, as the InstructVLA evaluation uses it).

For one instant every stored chunk predicts an action p_i. With the newest as reference:
``c_i = p_i . p_ref / (|p_i| |p_ref| + 1e-7)`` over all 7 dimensions, ``w_i = exp(alpha c_i) / sum``,
result ``sum w_i p_i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from ..datatypes import ActionChunk
from ..geometry import Array


def ensemble_weights(predictions: ArrayLike, alpha: float) -> Array:
    """Weights (K,), sum 1, of predictions (K, D) for the same instant, newest first."""
    p = np.atleast_2d(np.asarray(predictions, dtype=np.float64))
    norms = np.linalg.norm(p, axis=1)
    cosine = p @ p[0] / (norms * norms[0] + 1e-7)
    w = np.exp(alpha * cosine)
    return np.asarray(w / w.sum())


def ensemble_step(predictions: ArrayLike, alpha: float) -> Array:
    """Weighted mean (D,) of predictions (K, D) for the same instant, newest first; the gripper becomes fractional."""
    p = np.atleast_2d(np.asarray(predictions, dtype=np.float64))
    return np.asarray(ensemble_weights(p, alpha) @ p)


def compatible(chunk: ActionChunk, newest: ActionChunk) -> bool:
    """True when the steps of two chunks mean the same thing: period, frames, rotation, instruction."""
    return (
        chunk.step_period == newest.step_period
        and chunk.delta_frame == newest.delta_frame
        and chunk.rotation == newest.rotation
        and chunk.frame_id == newest.frame_id
        and chunk.instruction == newest.instruction
    )


def ensemble_chunk(chunks: Sequence[ActionChunk], alpha: float) -> ActionChunk:
    """The newest chunk with every step replaced by the ensemble of what all chunks predict for that step's time.

    Args:
        chunks: newest first. Step k of the newest meets step ``k + round((t_newest - t_i) / step_period)`` of chunk i,
            t being the observation stamps; chunks that mean something else, or end before, do not take part.
        alpha: weight of the cosine similarity.
    """
    newest = chunks[0]
    others = [c for c in chunks[1:] if compatible(c, newest)]
    shifts = [round((newest.observation_stamp_ns - c.observation_stamp_ns) * 1e-9 / newest.step_period) for c in others]
    steps = np.empty(newest.steps.shape)
    for k, step in enumerate(newest.steps):
        rows = [step]
        rows += [c.steps[k + s] for c, s in zip(others, shifts, strict=True) if 0 <= k + s < c.horizon]
        steps[k] = ensemble_step(rows, alpha)
    return replace(newest, steps=steps)
