"""Numbers of a recorded run: latency per stage, tracking, jitter, safety. Pure functions of a :class:`RunLog`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .runlog import MODES, RunLog

Floats = NDArray[np.float64]
STAGES = ('to_policy', 'policy', 'to_command')


def percentiles(values: ArrayLike) -> dict[str, Any]:
    """count, mean, p50, p95, p99 and max of the finite values; the numbers are None when there is none."""
    v = np.asarray(values, dtype=np.float64).ravel()
    v = v[np.isfinite(v)]
    if not len(v):
        return {'count': 0, 'mean': None, 'p50': None, 'p95': None, 'p99': None, 'max': None}
    p50, p95, p99 = np.percentile(v, [50, 95, 99])
    return {
        'count': len(v),
        'mean': float(v.mean()),
        'p50': float(p50),
        'p95': float(p95),
        'p99': float(p99),
        'max': float(v.max()),
    }


def first_command_ns(log: RunLog) -> NDArray[np.int64]:
    """Stamp [ns] of the first controller period that played each chunk; 0 for a chunk that was never played."""
    out = np.zeros(len(log.chunks.created_ns), dtype=np.int64)
    rows, first = np.unique(log.controller.chunk, return_index=True)
    for row, k in zip(rows, first, strict=True):
        if row >= 0:
            out[row] = log.controller.stamp_ns[k]
    return out


def chunk_latency(log: RunLog) -> dict[str, Floats]:
    """Seconds per stage for every chunk that was played.

    ``to_policy``: camera stamp until the policy began (transport, waiting for the other inputs). ``policy``: its own
    time. ``to_command``: chunk made until the first command that plays it. ``total``: camera stamp until then.
    ``without_policy``: total minus the policy's own time.
    """
    command = first_command_ns(log)
    played = command > 0
    c = log.chunks
    total = (command - c.observation_ns)[played] / 1e9
    ready = (c.created_ns - c.observation_ns)[played] / 1e9
    # A policy counts at the speed the simulator was asked for: one that fell behind makes that too much.
    policy = np.minimum(c.model_latency[played], np.maximum(ready, 0.0))
    return {
        'to_policy': ready - policy,
        'policy': policy,
        'to_command': (command - c.created_ns)[played] / 1e9,
        'total': total,
        'without_policy': total - policy,
    }


def tracking_error(log: RunLog) -> Floats:
    """Commanded minus measured joints (N, n) [rad] for the periods in which the controller moved the arm."""
    c = log.controller
    moving = (c.mode == MODES.index('TRACKING')) | (c.mode == MODES.index('DECELERATING'))
    error = c.commanded_q - c.measured_q
    return np.asarray(error[moving & np.all(np.isfinite(error), axis=1)], dtype=np.float64)


def path_length(xyz: Floats) -> float:
    """Length [m] of a path (N, 3); non-finite points are left out."""
    points = xyz[np.all(np.isfinite(xyz), axis=1)]
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum()) if len(points) > 1 else 0.0


def mode_spans(log: RunLog) -> list[tuple[str, float, float]]:
    """Controller mode over time: (mode, start, end) in seconds of the run."""
    return [(MODES[int(v)], a, b) for v, a, b in spans(log.seconds(log.controller.stamp_ns), log.controller.mode)]


def spans(time: Floats, values: ArrayLike) -> list[tuple[Any, float, float]]:
    """Runs of equal neighbours in ``values`` as (value, start, end); a run ends where the next begins."""
    v = np.asarray(values)
    if not len(v):
        return []
    cuts = np.flatnonzero(v[1:] != v[:-1]) + 1
    starts = np.concatenate([[0], cuts])
    ends = np.concatenate([cuts, [len(v) - 1]])
    return [(v[a], float(time[a]), float(time[b])) for a, b in zip(starts, ends, strict=True)]


def verdict_summary(log: RunLog) -> list[dict[str, Any]]:
    """One entry per (rule, action, subject unit): count, worst value with its limit, first time [s], a sample sentence.

    Worst is the value furthest beyond its limit. Most frequent first.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for verdict in log.verdicts:
        if verdict['action'] != 'PASSED':
            groups.setdefault((verdict['rule'], verdict['action']), []).append(verdict)
    out = []
    for (rule, action), members in groups.items():
        worst = max(members, key=_excess)
        subjects = sorted({m['subject'] for m in members if m['subject']})
        out.append(
            {
                'rule': rule,
                'action': action,
                'count': len(members),
                'subjects': subjects,
                'value': worst['value'],
                'limit': worst['limit'],
                'unit': worst['unit'],
                'text': worst['text'],
                'first_s': float(log.seconds(members[0]['stamp_ns'])),
            }
        )
    return sorted(out, key=lambda entry: (-entry['count'], entry['rule']))


def _excess(verdict: dict[str, Any]) -> float:
    value, limit = verdict['value'], verdict['limit']
    if value is None or limit is None or not np.isfinite([value, limit]).all():
        return -np.inf
    return abs(value) - abs(limit)


def frame_statistics(log: RunLog) -> dict[str, dict[str, Any]]:
    """Per view: frames, rate [Hz] and transport time [s] (header stamp until the recorder had the image)."""
    out = {}
    for k, view in enumerate(log.views):
        mine = log.frames.view == k
        stamps = log.frames.stamp_ns[mine]
        gaps = np.diff(stamps) / 1e9
        out[view] = {
            'frames': int(mine.sum()),
            'rate': float(1.0 / np.mean(gaps)) if len(gaps) and np.mean(gaps) > 0 else None,
            'longest_gap': float(gaps.max()) if len(gaps) else None,
            'transport': percentiles((log.frames.received_ns[mine] - stamps) / 1e9),
        }
    return out


def stop_times(log: RunLog, asked_ns: int, still: float = 0.01) -> dict[str, Any]:
    """What the arm did after a stop was asked for at ``asked_ns``.

    Args:
        still: joint speed below which the arm counts as at rest [rad/s].

    Returns:
        latched: time until the controller said STOPPED [s] or None. rest: time until every measured joint was
        slower than ``still`` for good [s] or None. travel: largest joint change from the stop to the end [rad].
    """
    c = log.controller
    after = c.stamp_ns >= asked_ns
    time = (c.stamp_ns[after] - asked_ns) / 1e9
    stopped = np.flatnonzero(c.mode[after] == MODES.index('STOPPED'))
    q = c.measured_q[after]
    if len(q) < 3 or not np.all(np.isfinite(q)):
        return {'latched': float(time[stopped[0]]) if len(stopped) else None, 'rest': None, 'travel': None}
    # Over five periods: the joint states come with their own rate, single differences would show it.
    k = min(5, len(q) - 1)
    dt = np.maximum(time[k:] - time[:-k], 1e-6)
    fast = np.flatnonzero(np.abs(q[k:] - q[:-k]).max(axis=1) / dt > still)
    at_rest = 0.0 if not len(fast) else float(time[fast[-1] + k])
    return {
        'latched': float(time[stopped[0]]) if len(stopped) else None,
        'rest': at_rest if not len(fast) or fast[-1] + k < len(q) - 1 else None,
        'travel': float(np.abs(q - q[0]).max()),
    }


def summarize(log: RunLog) -> dict[str, Any]:
    """Everything the report and ``metrics.json`` show, in SI units."""
    c = log.controller
    period = c.loop_period[c.loop_period > 0]
    nominal = log.meta.get('control_rate')
    jitter = np.abs(period - (1.0 / nominal if nominal else np.median(period) if len(period) else 0.0))
    error = tracking_error(log)
    latency = chunk_latency(log)
    time = log.seconds(c.stamp_ns)
    modes: dict[str, float] = {}
    for mode, start, end in mode_spans(log):
        modes[mode] = modes.get(mode, 0.0) + end - start
    gripper = np.flatnonzero(np.diff((c.gripper > 0.5).astype(np.int8)))
    return {
        'duration': float(time[-1] - time[0]) if len(time) else 0.0,
        'chunks': {'count': len(log.chunks.created_ns), 'played': len(latency['total'])},
        'sentences': len(log.reasoning),
        'latency': {name: percentiles(values) for name, values in latency.items()},
        'controller': {
            'periods': len(period),
            'period': percentiles(period),
            'jitter': percentiles(jitter),
            'modes': modes,
            'commands': len(log.commands.stamp_ns),
            'gripper_changes': len(gripper),
        },
        'tracking': {
            'rms': [float(v) for v in np.sqrt(np.mean(error**2, axis=0))] if len(error) else [],
            'max': [float(v) for v in np.abs(error).max(axis=0)] if len(error) else [],
            'joints': list(log.joint_names),
        },
        'path': {'commanded': path_length(c.commanded_xyz), 'measured': path_length(c.measured_xyz)},
        'cameras': frame_statistics(log),
        'verdicts': verdict_summary(log),
    }
