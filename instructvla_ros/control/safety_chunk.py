"""Rungs of the safety ladder that look at an action chunk before it may move anything. Pure: no clock, no state.

In order: finite numbers, stamps (future, chunk age, observation age, already over), frame, gripper range, and
the translation and rotation of each step. What is refused, scaled or clipped is named with numbers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from ..datatypes import ActionChunk, Verdict, VerdictAction
from ..geometry import Array
from .bounds import Bounds

MAX_HORIZON = 1024
MIN_STEP_PERIOD = 0.005  # s
MAX_DURATION = 120.0  # s
MAX_REFERENCE_DISTANCE = 10.0  # m
MAX_NUMBER = 100.0  # m, rad: a step beyond this is broken, not large


def check_chunk(chunk: ActionChunk, now_ns: int, bounds: Bounds) -> tuple[ActionChunk | None, tuple[Verdict, ...]]:
    """Admit a chunk, possibly with its steps scaled, or refuse it.

    Args:
        chunk: as received. now_ns: time of the clock that stamped it [ns]. bounds: of this robot.

    Returns:
        The chunk to play, or None when refused; and one verdict per thing refused, scaled or clipped.
    """
    refused = _finite(chunk) or _stamps(chunk, now_ns, bounds) or _frame(chunk, bounds)
    if refused is not None:
        return None, (refused,)
    steps, verdicts = _scale_steps(chunk, bounds)
    openness = steps[:, 6]
    outside = np.maximum(-openness, openness - 1.0)
    worst = int(np.argmax(outside))
    if outside[worst] > 0.0:
        value = float(openness[worst])
        limit = 1.0 if value > 1.0 else 0.0
        text = f'gripper openness {value:.3f} of step {worst} is outside 0..1'
        verdicts.append(Verdict('gripper_range', VerdictAction.CLIPPED, 'gripper', value, limit, '', text, chunk.id))
        steps = steps.copy()
        np.clip(openness, 0.0, 1.0, out=steps[:, 6])
    return (chunk if steps is chunk.steps else replace(chunk, steps=steps)), tuple(verdicts)


def _refuse(chunk: ActionChunk, rule: str, subject: str, value: float, limit: float, unit: str, text: str) -> Verdict:
    return Verdict(rule, VerdictAction.REFUSED, subject, float(value), float(limit), unit, text, chunk.id)


def _finite(chunk: ActionChunk) -> Verdict | None:
    bad = ~np.isfinite(chunk.steps)
    if bad.any():
        k, column = np.argwhere(bad)[0]
        text = f'{int(bad.sum())} numbers of the chunk are not finite; first: step {k}, column {column}'
        return _refuse(chunk, 'finite', 'steps', float(bad.sum()), 0.0, 'numbers', text)
    largest = float(np.abs(chunk.steps).max())
    if largest > MAX_NUMBER:
        text = f'a step holds the number {largest:.3g}; beyond {MAX_NUMBER:g} it cannot be a motion'
        return _refuse(chunk, 'step_range', 'steps', largest, MAX_NUMBER, '', text)
    pose = np.asarray(chunk.reference_pose)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        text = 'the reference pose is not a finite 4x4 matrix'
        return _refuse(chunk, 'finite', 'reference_pose', np.nan, 0.0, '', text)
    rotation = pose[:3, :3]
    bounded = np.clip(rotation, -2.0, 2.0)  # no overflow from absurd numbers
    defect = float(np.abs(bounded.T @ bounded - np.eye(3)).max())
    if defect > 1e-3 or rotation[0] @ _cross(rotation[1], rotation[2]) < 0.0:
        text = f'the reference pose holds no rotation matrix (defect {defect:.3g})'
        return _refuse(chunk, 'finite', 'reference_pose', defect, 1e-3, '', text)
    distance = float(np.abs(pose[:3, 3]).max())
    if distance > MAX_REFERENCE_DISTANCE:
        text = f'the reference pose is {distance:.3g} m from the base'
        return _refuse(chunk, 'finite', 'reference_pose', distance, MAX_REFERENCE_DISTANCE, 'm', text)
    if chunk.horizon > MAX_HORIZON:
        text = f'{chunk.horizon} steps; at most {MAX_HORIZON} are allowed'
        return _refuse(chunk, 'chunk_shape', 'horizon', chunk.horizon, MAX_HORIZON, 'steps', text)
    if chunk.step_period < MIN_STEP_PERIOD:
        text = f'step period {chunk.step_period} s; at least {MIN_STEP_PERIOD} s is allowed'
        return _refuse(chunk, 'chunk_shape', 'step_period', chunk.step_period, MIN_STEP_PERIOD, 's', text)
    if chunk.duration > MAX_DURATION:
        text = f'the chunk lasts {chunk.duration:.3g} s; at most {MAX_DURATION} s is allowed'
        return _refuse(chunk, 'chunk_shape', 'duration', chunk.duration, MAX_DURATION, 's', text)
    return None


def _cross(a: Array, b: Array) -> Array:
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _stamps(chunk: ActionChunk, now_ns: int, bounds: Bounds) -> Verdict | None:
    safety = bounds.safety
    created = (now_ns - chunk.created_stamp_ns) * 1e-9
    observed = (now_ns - chunk.observation_stamp_ns) * 1e-9
    for subject, age in (('created', created), ('observation', observed)):
        if -age > safety.max_future:
            text = f'the {subject} stamp lies {-age:.3f} s in the future; allowed is {safety.max_future} s'
            return _refuse(chunk, 'future_stamp', subject, -age, safety.max_future, 's', text)
    if created > safety.max_chunk_age:
        text = f'the chunk was made {created:.3f} s ago; allowed is {safety.max_chunk_age} s'
        return _refuse(chunk, 'chunk_age', 'created', created, safety.max_chunk_age, 's', text)
    if observed > safety.max_observation_age:
        text = f'the chunk rests on an observation {observed:.3f} s old; allowed is {safety.max_observation_age} s'
        return _refuse(chunk, 'observation_age', 'observation', observed, safety.max_observation_age, 's', text)
    if observed >= chunk.duration:
        text = f'all {chunk.horizon} steps ({chunk.duration:.3f} s) had elapsed, {observed:.3f} s after the observation'
        return _refuse(chunk, 'chunk_expired', 'observation', observed, chunk.duration, 's', text)
    return None


def _frame(chunk: ActionChunk, bounds: Bounds) -> Verdict | None:
    if chunk.frame_id == bounds.frame_id:
        return None
    text = f'the chunk is in frame {chunk.frame_id!r}; this robot takes {bounds.frame_id!r}'
    return _refuse(chunk, 'frame', chunk.frame_id, float('nan'), float('nan'), '', text)


def _scale_steps(chunk: ActionChunk, bounds: Bounds) -> tuple[Array, list[Verdict]]:
    """Bring the translation and rotation of every step to its bound, keeping the direction."""
    steps, verdicts = chunk.steps, []
    far = np.sqrt((steps[:, :3] ** 2).sum(axis=1))
    limit = bounds.safety.max_step_translation
    if (far > limit).any():
        k = int(np.argmax(far))
        text = f'{int((far > limit).sum())} steps move further than {limit} m; worst: step {k} with {far[k]:.4g} m'
        verdicts.append(
            Verdict('step_translation', VerdictAction.SCALED, f'step {k}', float(far[k]), limit, 'm', text, chunk.id)
        )
        steps = steps.copy()
        steps[:, :3] *= np.minimum(1.0, limit / np.maximum(far, 1e-300))[:, None]
    limit = bounds.safety.max_step_rotation
    # |angle| <= sum of the three angles in both conventions, so small steps need no conversion.
    if (np.abs(steps[:, 3:6]).sum(axis=1) > limit).any():
        if chunk.rotation == 'rotvec':
            vectors = steps[:, 3:6]
        else:
            vectors = Rotation.from_euler('xyz', steps[:, 3:6]).as_rotvec()
        angles = np.sqrt((vectors**2).sum(axis=1))
        if (angles > limit).any():
            k = int(np.argmax(angles))
            over, worst = int((angles > limit).sum()), float(angles[k])
            text = f'{over} steps turn further than {limit} rad; worst: step {k} with {worst:.4g} rad'
            verdicts.append(
                Verdict('step_rotation', VerdictAction.SCALED, f'step {k}', worst, limit, 'rad', text, chunk.id)
            )
            vectors = vectors * np.minimum(1.0, limit / np.maximum(angles, 1e-300))[:, None]
            steps = steps.copy()
            steps[:, 3:6] = vectors if chunk.rotation == 'rotvec' else Rotation.from_rotvec(vectors).as_euler('xyz')
    return steps, verdicts
