"""Numbers of a replay: how far the predicted motion is from the recorded one, in ways that one mean hides.

Pure functions of a :class:`Trace`. Errors are predicted minus recorded, per step in the conventions of the chunks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..geometry import apply_delta, integrate
from .metrics import percentiles
from .replay_trace import Aligned, Data, Trace, align
from .replay_verdicts import excess

DIMENSIONS = ('dx', 'dy', 'dz', 'rx', 'ry', 'rz', 'gripper')
WINDOW = 0.5  # s within which two gripper events are the same
CLOSE_BELOW, OPEN_ABOVE = 0.4, 0.6
MOVED = 0.02  # m: a recording whose tcp moved less says nothing about leaving the start
LEAST_TRANSLATION = 5e-4  # m per step: a recording that moves less has nothing to predict
LEAST_ROTATION = 2e-3  # rad per step
TURNED = 0.1  # rad, the same for the orientation


def summarize(trace: Trace) -> dict[str, Any]:
    """Everything the report, the limits and ``replay.json`` show, in SI units.

    Raises:
        DataError: the policy was never asked.
    """
    a = align(trace)
    meta = trace.meta
    wall, duration = float(meta.get('wall') or 0.0), float(meta.get('duration') or 0.0)
    return {
        'recording': {
            'name': meta.get('recording', ''),
            'duration': duration,
            'motion': trace.track.duration,
            'frames': meta.get('frames', {}),
            'missing': list(trace.missing),
            'trouble': dict(trace.trouble),
            'stale': dict(trace.stale),
        },
        'policy': {k: meta.get(k, '') for k in ('policy', 'checkpoint', 'revision', 'seed')},
        'chunks': {
            'count': len(trace.chunks),
            'compared': int(np.isfinite(a.recorded[:, 0, 0]).sum()),
            'refused': sum(1 for c in trace.chunks if c.refused),
            'horizon': a.predicted.shape[1],
            'step_period': a.period,
        },
        'action': action_error(a),
        'path': path_error(a),
        'start': leaves_start(a),
        'gripper': gripper_timing(a),
        'seams': seams(a),
        'safety': safety(trace),
        'language': language(trace),
        'latency': {
            name: percentiles([getattr(c, name) for c in trace.chunks if name != 'think' or c.think > 0.0])
            for name in ('decode', 'think', 'infer')
        },
        'speed': {'wall': wall, 'times_real_time': duration / wall if wall > 0 else None},
    }


def baselines(a: Aligned) -> dict[str, Data]:
    """Steps (C, H, 7) of two policies that know nothing: the mean recorded step, and standing still."""
    mean = np.broadcast_to(_mean(a.recorded, (0, 1)), a.recorded.shape)
    still = np.zeros_like(a.recorded)
    still[..., 6] = a.recorded[:, :1, 6]
    return {'mean': mean, 'hold': still}


def action_error(a: Aligned) -> dict[str, Any]:
    """Error per dimension and horizon, with the two baselines beside it; skill is 1 - mse / mse of the baseline."""
    error = a.predicted - a.recorded
    out: dict[str, Any] = {
        'dimensions': list(DIMENSIONS),
        'rmse': np.sqrt(_mean(error**2, 0)),
        'mae': _mean(np.abs(error), 0),
        'bias': _mean(error, (0, 1)),
        'rmse_dimension': np.sqrt(_mean(error**2, (0, 1))),
        'translation_rmse': _root(error[..., :3]),
        'rotation_rmse': _root(error[..., 3:6]),
        'translation_rmse_horizon': np.sqrt(_mean((error[..., :3] ** 2).sum(axis=-1), 0)),
        'rotation_rmse_horizon': np.sqrt(_mean((error[..., 3:6] ** 2).sum(axis=-1), 0)),
    }
    for name, steps in baselines(a).items():
        other = steps - a.recorded
        out[f'{name}_rmse_dimension'] = np.sqrt(_mean(other**2, (0, 1)))
        out[f'{name}_translation_rmse'] = _root(other[..., :3])
        out[f'{name}_rotation_rmse'] = _root(other[..., 3:6])
        out[f'{name}_translation_rmse_horizon'] = np.sqrt(_mean((other[..., :3] ** 2).sum(axis=-1), 0))
        out[f'{name}_rotation_rmse_horizon'] = np.sqrt(_mean((other[..., 3:6] ** 2).sum(axis=-1), 0))
        for part, least in (('translation', LEAST_TRANSLATION), ('rotation', LEAST_ROTATION)):
            base = out[f'{name}_{part}_rmse']
            mine = out[f'{part}_rmse']
            known = mine is not None and base is not None and base > least
            out[f'{part}_skill_over_{name}'] = 1.0 - (mine / base) ** 2 if known else None
    both = np.isfinite(error[..., 6])
    same = (a.predicted[..., 6] > 0.5) == (a.recorded[..., 6] > 0.5)
    out['gripper_accuracy'] = float(same[both].mean()) if both.any() else None
    return out


def path_error(a: Aligned) -> dict[str, Any]:
    """Distance between predicted and recorded tcp positions [m].

    ``rebased``: each chunk integrated from the recorded pose it was asked at, by horizon. ``open_loop``: the steps
    that would be executed until the next chunk, integrated from the first pose without ever looking at the recording.
    """
    chains = chunk_poses(a)
    apart = np.linalg.norm(chains[:, 1:, :3, 3] - a.poses[:, 1:, :3, 3], axis=-1)
    still = np.linalg.norm(a.poses[:, :1, :3, 3] - a.poses[:, 1:, :3, 3], axis=-1)
    last = _last(apart)
    _, path, truth = open_loop(a)
    drift = np.linalg.norm(path[:, :3, 3] - truth[:, :3, 3], axis=-1) if len(path) else np.zeros(0)
    drift = drift[np.isfinite(drift)]
    turned = _angles(path, truth)
    return {
        'rebased_mean': _number(_mean(apart, (0, 1))),
        'rebased_horizon': _mean(apart, 0),
        'rebased_end': percentiles(last),
        'hold_horizon': _mean(still, 0),
        'open_loop_mean': float(drift.mean()) if len(drift) else None,
        'open_loop_end': float(drift[-1]) if len(drift) else None,
        'open_loop_max': float(drift.max()) if len(drift) else None,
        'open_loop_turn_end': float(turned[-1]) if len(turned) else None,
        'recorded_length': _length(truth[:, :3, 3]) if len(truth) else 0.0,
        'predicted_length': _length(path[:, :3, 3]) if len(path) else 0.0,
    }


def chunk_poses(a: Aligned) -> Data:
    """Poses (C, H + 1, 4, 4) of every chunk integrated from the pose the policy saw; NaN where a chunk is shorter."""
    out = np.full((len(a.predicted), a.predicted.shape[1] + 1, 4, 4), np.nan)
    out[:, 0] = a.reference
    going = np.ones(len(a.predicted), dtype=bool)
    for k in range(a.predicted.shape[1]):
        going &= np.isfinite(a.predicted[:, k]).all(axis=-1)
        if not going.any():
            break
        out[going, k + 1] = apply_delta(out[going, k], a.predicted[going, k, :6], _frame(a), _rotation(a))
    return out


def executed(a: Aligned) -> tuple[Data, Data]:
    """The steps that would be played until the next chunk takes over: their start times [ns] (N,) and rows (N, 2)."""
    period = round(a.period * 1e9)
    times, rows = [], []
    for c, start in enumerate(a.stamps_ns):
        until = a.stamps_ns[c + 1] if c + 1 < len(a.stamps_ns) else start + a.predicted.shape[1] * period
        count = int(np.clip(round((until - start) / period), 1, a.predicted.shape[1]))
        for k in range(count):
            times.append(int(start) + k * period)
            rows.append((c, k))
    return np.array(times, dtype=np.int64), np.array(rows, dtype=np.int64).reshape(-1, 2)


def open_loop(a: Aligned) -> tuple[Data, Data, Data]:
    """Times (N + 1,) [ns], poses of the executed steps in a row (N + 1, 4, 4), and the recorded poses then.

    It starts over at the recorded pose where the policy was not asked for longer than a chunk lasts. A step whose
    chunk is replaced in its middle is played in proportion.
    """
    period = round(a.period * 1e9)
    times, rows = executed(a)
    if not len(rows):
        return np.zeros(0, dtype=np.int64), np.zeros((0, 4, 4)), np.zeros((0, 4, 4))
    stamps, truth = [int(times[0])], [a.poses[0, 0]]
    poses, steps, start = [a.reference[:1]], [], a.reference[0]
    for n, (c, k) in enumerate(rows):
        end = int(times[n + 1]) if n + 1 < len(rows) else int(times[n]) + period
        share = (end - int(times[n])) / period
        step = a.predicted[c, k, :6]
        if not np.isfinite(step).all():
            continue
        steps.append(step * (share if share < 1.5 else 1.0))
        stamps.append(end)
        following = a.poses[rows[n + 1][0], rows[n + 1][1]] if n + 1 < len(rows) else a.poses[c, k + 1]
        truth.append(following)
        if share > 1.5 and n + 1 < len(rows):
            poses.append(integrate(start, steps, _frame(a), _rotation(a)))
            steps, start = [], a.reference[rows[n + 1][0]]
    if steps:
        poses.append(integrate(start, steps, _frame(a), _rotation(a)))
    return np.array(stamps, dtype=np.int64), np.concatenate(poses), np.array(truth)


def leaves_start(a: Aligned) -> dict[str, Any]:
    """Whether the predicted motion leaves the pose it starts from, as the recorded one does."""
    _, path, truth = open_loop(a)
    if not len(path):
        return {'recorded_travel': None, 'predicted_travel': None, 'leaves': None}
    want = np.linalg.norm(truth[:, :3, 3] - truth[0, :3, 3], axis=-1)
    have = np.linalg.norm(path[:, :3, 3] - path[0, :3, 3], axis=-1)
    want, turn = want[np.isfinite(want)], _angles(truth, np.broadcast_to(truth[0], truth.shape))
    my_turn = _angles(path, np.broadcast_to(path[0], path.shape))
    recorded, predicted = float(want.max(initial=0.0)), float(have.max(initial=0.0))
    moved, turned = recorded > MOVED, float(turn.max(initial=0.0)) > TURNED
    leaves: bool | None = None
    if moved or turned:
        leaves = (moved and predicted > 0.25 * recorded) or (
            turned and float(my_turn.max(initial=0.0)) > 0.25 * float(turn.max(initial=0.0))
        )
    early = np.searchsorted(want, 0.25 * recorded) if len(want) and moved else 0
    mine = int(np.argmax(have > 0.25 * recorded)) if moved and (have > 0.25 * recorded).any() else None
    late = (mine - int(early)) * a.period if mine is not None and moved else None
    return {'recorded_travel': recorded, 'predicted_travel': predicted, 'leaves': leaves, 'leaves_late': late}


def switch_events(times_ns: Data, openness: Data) -> list[tuple[int, int]]:
    """Changes of a gripper with hysteresis: (time [ns], +1 opened or -1 closed)."""
    good = np.isfinite(openness)
    times_ns, openness = times_ns[good], openness[good]
    if not len(openness):
        return []
    state = 1 if openness[0] >= 0.5 else -1
    out = []
    for t, g in zip(times_ns.tolist(), openness.tolist(), strict=True):
        if state > 0 and g < CLOSE_BELOW:
            state = -1
            out.append((t, -1))
        elif state < 0 and g > OPEN_ABOVE:
            state = 1
            out.append((t, 1))
    return out


def match_events(
    wanted: Sequence[tuple[int, int]], found: Sequence[tuple[int, int]], window: float = WINDOW
) -> list[tuple[int, int]]:
    """Pairs (index in wanted, index in found) of the same kind within the window, nearest first, each used once."""
    limit = window * 1e9
    near = sorted(
        (abs(f[0] - w[0]), i, j)
        for i, w in enumerate(wanted)
        for j, f in enumerate(found)
        if f[1] == w[1] and abs(f[0] - w[0]) <= limit
    )
    pairs, used_w, used_f = [], set(), set()
    for _, i, j in near:
        if i not in used_w and j not in used_f:
            used_w.add(i)
            used_f.add(j)
            pairs.append((i, j))
    return sorted(pairs)


def gripper_timing(a: Aligned, window: float = WINDOW) -> dict[str, Any]:
    """Precision and recall of gripper events within the window, and how late they come [s]."""
    times, rows = executed(a)
    mine = a.predicted[rows[:, 0], rows[:, 1], 6]
    theirs = a.recorded[rows[:, 0], rows[:, 1], 6]
    found, wanted = switch_events(times, mine), switch_events(times, theirs)
    pairs = match_events(wanted, found, window)
    late = [(found[j][0] - wanted[i][0]) * 1e-9 for i, j in pairs]
    return {
        'window': window,
        'recorded_events': len(wanted),
        'predicted_events': len(found),
        'matched': len(pairs),
        'precision': len(pairs) / len(found) if found else None,
        'recall': len(pairs) / len(wanted) if wanted else None,
        'late_median': float(np.median(late)) if late else None,
        'recorded': [[t, kind] for t, kind in wanted],
        'predicted': [[t, kind] for t, kind in found],
    }


def seams(a: Aligned) -> dict[str, Any]:
    """What happens where one chunk takes over from another: speed jumps [m/s], disagreement [m], jerk [m/s^3].

    Directions are compared in the base frame. The jerk of the executed steps stands beside that of the recorded
    motion sampled in the same way.
    """
    velocity = _base_translation(a, a.predicted[..., :3], a.reference) / a.period
    recorded = _base_translation(a, a.recorded[..., :3], a.poses[:, 0]) / a.period
    jumps, apart = [], []
    for c in range(len(a.stamps_ns) - 1):
        shift = (a.stamps_ns[c + 1] - a.stamps_ns[c]) / (a.period * 1e9)
        k = int(round(shift))
        if not 1 <= k < a.predicted.shape[1]:
            continue
        jumps.append(float(np.linalg.norm(velocity[c + 1, 0] - velocity[c, k])))
        old, new = velocity[c, k:], velocity[c + 1, : a.predicted.shape[1] - k]
        apart.append(float(np.linalg.norm((old - new).sum(axis=0)) * a.period))
    times, rows = executed(a)
    known = np.isfinite(a.recorded[rows[:, 0], rows[:, 1], 0])
    times, rows = times[known], rows[known]
    mine, theirs = velocity[rows[:, 0], rows[:, 1]], recorded[rows[:, 0], rows[:, 1]]
    steady = np.diff(times) if len(times) > 1 else np.zeros(0)
    ratio = None
    jerk, reference = _jerk(mine, steady, a.period), _jerk(theirs, steady, a.period)
    if jerk is not None and reference is not None and reference > 1e-6:
        ratio = jerk / reference
    return {
        'speed_jump': percentiles(jumps),
        'disagreement': percentiles(apart),
        'jerk_rms': jerk,
        'recorded_jerk_rms': reference,
        'jerk_ratio': ratio,
    }


def safety(trace: Trace) -> list[dict[str, Any]]:
    """Verdicts that would have fired by rule and action: count, chunks concerned, worst value, a sample sentence."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for v in trace.verdicts:
        groups.setdefault((v['rule'], v['action']), []).append(v)
    out = []
    for (rule, action), members in groups.items():
        worst = max(members, key=lambda v: excess(v['value'], v['limit']))
        out.append(
            {
                'rule': rule,
                'action': action,
                'count': sum(v['count'] for v in members),
                'chunks': len({v['chunk_id'] for v in members if v['chunk_id']}),
                'value': worst['value'],
                'limit': worst['limit'],
                'unit': worst['unit'],
                'text': worst['text'],
                'first_s': float(trace.seconds(members[0]['stamp_ns'])),
            }
        )
    return sorted(out, key=lambda e: (e['action'] != 'REFUSED', -e['count'], e['rule']))


def language(trace: Trace) -> dict[str, Any]:
    """Sentences said, and how far they agree with those recorded or annotated: exact share and mean word F1.

    Each chunk's sentence is compared with the newest note before its observation.
    """
    notes = sorted(trace.notes, key=lambda n: n['stamp_ns'])
    starts = np.array([n['stamp_ns'] for n in notes], dtype=np.int64)
    exact, overlap = [], []
    for row in trace.chunks:
        if row.sentence < 0 or not notes:
            continue
        k = int(np.searchsorted(starts, row.chunk.observation_stamp_ns, side='right')) - 1
        if k < 0:
            continue
        mine, theirs = words(trace.sentences[row.sentence]['text']), words(notes[k]['text'])
        exact.append(mine == theirs)
        overlap.append(word_f1(mine, theirs))
    texts = [s['text'] for s in trace.sentences]
    return {
        'sentences': len(texts),
        'different': len(set(texts)),
        'empty': sum(1 for t in texts if not t.strip()),
        'conditioned': sum(1 for c in trace.chunks if c.sentence >= 0),
        'compared': len(exact),
        'exact': float(np.mean(exact)) if exact else None,
        'word_f1': float(np.mean(overlap)) if overlap else None,
    }


def words(text: str) -> list[str]:
    """Lower-case words of a sentence."""
    return re.findall(r"[a-z0-9']+", text.lower())


def word_f1(a: Sequence[str], b: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words of ``a`` in ``b``, with multiplicity."""
    if not a or not b:
        return float(list(a) == list(b))
    common = sum(min(a.count(w), b.count(w)) for w in set(a))
    return 2.0 * common / (len(a) + len(b))


def _frame(a: Aligned) -> Any:
    return a.frame


def _rotation(a: Aligned) -> Any:
    return a.rotation


def _base_translation(a: Aligned, shift: Data, poses: Data) -> Data:
    if a.frame == 'base':
        return shift
    return np.asarray(np.einsum('cij,chj->chi', poses[:, :3, :3], shift))


def _jerk(velocity: Data, gaps_ns: Data, period: float) -> float | None:
    if len(velocity) < 3:
        return None
    second = (velocity[2:] - 2.0 * velocity[1:-1] + velocity[:-2]) / period**2
    steady = (np.abs(gaps_ns[1:] - period * 1e9) < 0.5 * period * 1e9) & (
        np.abs(gaps_ns[:-1] - period * 1e9) < 0.5 * period * 1e9
    )
    second = second[steady & np.isfinite(second).all(axis=1)]
    return float(np.sqrt((second**2).sum(axis=1).mean())) if len(second) else None


def _length(points: Data) -> float:
    points = points[np.isfinite(points).all(axis=1)]
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum()) if len(points) > 1 else 0.0


def _angles(a: Data, b: Data) -> Data:
    good = np.isfinite(a).all(axis=(1, 2)) & np.isfinite(b).all(axis=(1, 2)) if len(a) else np.zeros(0, dtype=bool)
    trace = np.einsum('nij,nij->n', a[good, :3, :3], b[good, :3, :3]) if len(a) else np.zeros(0)
    return np.asarray(np.arccos(np.clip(0.5 * (trace - 1.0), -1.0, 1.0)))


def _last(values: Data) -> Data:
    out = []
    for row in values:
        good = row[np.isfinite(row)]
        if len(good):
            out.append(good[-1])
    return np.array(out)


def _mean(values: Data, axis: Any) -> Any:
    """Mean of the finite values along ``axis``; NaN where there are none."""
    good = np.isfinite(values)
    count = good.sum(axis=axis)
    total = np.where(good, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _root(error: Data) -> float | None:
    """Root of the mean squared length of the rows."""
    square = (error**2).sum(axis=-1)
    good = square[np.isfinite(square)]
    return float(np.sqrt(good.mean())) if len(good) else None


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
