"""Two replays of one recording side by side: how far two checkpoints drift apart, and which one is nearer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..datatypes import ActionChunk
from ..errors import DataError
from .replay_diagnosis import FAULT, diagnose
from .replay_metrics import chunk_poses, word_f1, words
from .replay_trace import Trace, align

RESAMPLES, BLOCKS = 2000, 20


def compare(a: Trace, b: Trace, labels: tuple[str, str] = ('A', 'B')) -> dict[str, Any]:
    """Drift between two replays, over the observations both were asked at.

    Returns:
        chunks: in common. drift per dimension and of the end of a chunk [m], the same in units of the error of ``a``;
        end_error_change: mean change of the distance at the end of a chunk from a to b [m] with a 95 % interval (blocks
        of the recording resampled); better: the label of the nearer one, '' when the interval contains 0; sentences:
        share that is equal, mean word F1; faults: found in one and not in the other.

    Raises:
        DataError: they have no observation in common, or differ in step period.
    """
    ours = {c.chunk.observation_stamp_ns: k for k, c in enumerate(a.chunks)}
    theirs = {c.chunk.observation_stamp_ns: k for k, c in enumerate(b.chunks)}
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise DataError('the two replays have no observation in common; replay the same recording at the same rate')
    left, right = align(a), align(b)
    if left.period != right.period:
        raise DataError(f'the two replays have steps of {left.period} and {right.period} s')
    i, j = [ours[s] for s in common], [theirs[s] for s in common]
    h = min(left.predicted.shape[1], right.predicted.shape[1])
    first, second = chunk_poses(left)[i][:, : h + 1], chunk_poses(right)[j][:, : h + 1]
    truth = left.poses[i][:, : h + 1]
    apart = np.linalg.norm(first[..., :3, 3] - second[..., :3, 3], axis=-1)
    end = [np.linalg.norm(p[:, h, :3, 3] - truth[:, h, :3, 3], axis=-1) for p in (first, second)]
    change = end[1] - end[0]
    usable = np.isfinite(change)
    low, high = interval(change[usable])
    mean = float(change[usable].mean()) if usable.any() else None
    better = '' if mean is None or low <= 0.0 <= high else labels[1] if mean < 0 else labels[0]
    steps = left.predicted[i][:, :h] - right.predicted[j][:, :h]
    same_frame = (left.frame, left.rotation) == (right.frame, right.rotation)
    said = [
        (a.sentences[a.chunks[x].sentence]['text'], b.sentences[b.chunks[y].sentence]['text'])
        for x, y in zip(i, j, strict=True)
        if a.chunks[x].sentence >= 0 and b.chunks[y].sentence >= 0
    ]
    faults = [{d.name for d in diagnose(t) if d.result == FAULT} for t in (a, b)]
    out: dict[str, Any] = {
        'labels': list(labels),
        'chunks': len(common),
        'drift_end': float(np.nanmean(apart[:, h])),
        'drift_horizon': np.nanmean(apart, axis=0),
        'drift_dimension': np.sqrt(np.nanmean(steps**2, axis=(0, 1))) if same_frame else None,
        'identical': bool(same_frame and np.array_equal(steps, np.zeros_like(steps))),
        'end_error': [float(np.nanmean(e)) if np.isfinite(e).any() else None for e in end],
        'end_error_change': mean,
        'interval': [low, high],
        'better': better,
        'gripper_agreement': float(
            ((left.predicted[i][:, :h, 6] > 0.5) == (right.predicted[j][:, :h, 6] > 0.5)).mean()
        ),
        'sentences_equal': float(np.mean([x == y for x, y in said])) if said else None,
        'sentences_word_f1': float(np.mean([word_f1(words(x), words(y)) for x, y in said])) if said else None,
        'faults_gone': sorted(faults[0] - faults[1]),
        'faults_new': sorted(faults[1] - faults[0]),
        'times': a.seconds(np.array(common)),
        'change': change,
    }
    out['text'] = _sentence(out)
    return out


def interval(change: Any, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean, with consecutive values resampled in blocks because neighbours are not independent."""
    values = np.asarray(change, dtype=np.float64)
    if len(values) < 4:
        return -float('inf'), float('inf')
    parts = np.array_split(values, min(BLOCKS, len(values) // 2))
    sums, counts = np.array([p.sum() for p in parts]), np.array([len(p) for p in parts])
    pick = np.random.default_rng(seed).integers(0, len(parts), (RESAMPLES, len(parts)))
    means = sums[pick].sum(axis=1) / counts[pick].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def reproduces(trace: Trace) -> dict[str, Any]:
    """How far the chunks recorded in the bag are from those of the replay, at the observations both rest on."""
    mine: dict[int, ActionChunk] = {c.chunk.observation_stamp_ns: c.chunk for c in trace.chunks}
    pairs = [(mine[c.observation_stamp_ns], c) for c in trace.recorded_chunks if c.observation_stamp_ns in mine]
    if not pairs:
        return {'chunks': 0, 'largest': None, 'identical': None}
    apart = [float(np.abs(x.steps[: y.horizon] - y.steps[: x.horizon]).max()) for x, y in pairs]
    return {'chunks': len(pairs), 'largest': max(apart), 'identical': sum(v == 0.0 for v in apart)}


def _sentence(c: dict[str, Any]) -> str:
    first, second = c['labels']
    if c['identical']:
        return f'{first} and {second} give the same {c["chunks"]} chunks, bit for bit'
    text = f'{second} is {1000 * c["drift_end"]:.1f} mm from {first} at the end of a chunk'
    if c['end_error_change'] is not None:
        low, high = c['interval']
        change = 1000 * c['end_error_change']
        text += f'; against the recording {change:+.1f} mm ({1000 * low:+.1f} .. {1000 * high:+.1f})'
        text += f', {c["better"]} is nearer' if c['better'] else ', no clear difference'
    if c['faults_new']:
        text += f'; new faults: {", ".join(c["faults_new"])}'
    if c['faults_gone']:
        text += f'; gone: {", ".join(c["faults_gone"])}'
    return text
