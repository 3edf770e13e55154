"""Faults that a mean error hides, each with a test of its own and a name.

Every test asks which of two explanations the predicted steps follow, and is blind to how large and how noisy they are:
a policy that is merely timid or poor is not accused. Standard errors come from leaving out one tenth of the replay at
a time, because neighbouring chunks overlap. A test that has too little evidence says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .replay_metrics import (
    LEAST_ROTATION,
    LEAST_TRANSLATION,
    MOVED,
    baselines,
    executed,
    leaves_start,
    match_events,
    switch_events,
)
from .replay_trace import Aligned, Convention, Data, Trace, align, deltas

FAULT, CLEAR, UNKNOWN = 'fault', 'clear', 'cannot tell'
PARTS = 10  # of the replay, for the standard errors
FEWEST = 8  # chunks
SURE = 3.0  # standard errors
LEAST_LAG = 0.5  # steps
LEAST_LEAN = 0.3  # share of the motion that follows the other convention more than the declared one
CONVENTIONS: tuple[tuple[str, Convention], ...] = (
    ('base', 'rpy'),
    ('base', 'rotvec'),
    ('tool', 'rpy'),
    ('tool', 'rotvec'),
    ('base', 'rpy_moving'),
    ('tool', 'rpy_moving'),
)
_SPOKEN = {
    'rpy': 'roll-pitch-yaw about fixed axes',
    'rotvec': 'rotation vectors',
    'rpy_moving': 'roll-pitch-yaw about moving axes',
}


@dataclass(frozen=True)
class Diagnosis:
    """Outcome of one test.

    Attributes:
        name: of the fault. result: 'fault', 'clear' or 'cannot tell'. text: one sentence with the numbers.
        advice: what to do about the fault. numbers: the statistics behind it.
    """

    name: str
    result: str
    text: str
    advice: str = ''
    numbers: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def diagnose(trace: Trace, aligned: Aligned | None = None) -> list[Diagnosis]:
    """Every test, in a fixed order; faults are those with ``result == 'fault'``.

    Raises:
        DataError: the policy was never asked.
    """
    a = aligned if aligned is not None else align(trace)
    convention = rotation_convention(a)
    # The other tests on the motion look at it in the convention that fits, so that one fault does not hide another.
    frame, rotation = (
        (convention.numbers['fits_frame'], convention.numbers['fits_rotation'])
        if convention.result == FAULT
        else (a.frame, a.rotation)
    )
    return [
        gripper_inverted(a),
        action_delay(trace, a, frame, rotation),
        convention,
        axes_mixed(a, convention.result == FAULT),
        wrong_scale(a, frame, rotation),
        stays_at_start(a),
        no_better_than_mean(a),
    ]


def gripper_inverted(a: Aligned) -> Diagnosis:
    """Does the gripper do the opposite: closed where the recording is open, and the other way round."""
    name = 'gripper_inverted'
    good = np.isfinite(a.predicted[..., 6]) & np.isfinite(a.recorded[..., 6])
    mine, theirs = a.predicted[..., 6][good], a.recorded[..., 6][good]
    times, rows = executed(a)
    wanted = switch_events(times, a.recorded[rows[:, 0], rows[:, 1], 6])
    found = switch_events(times, a.predicted[rows[:, 0], rows[:, 1], 6])
    opposite = match_events([(t, -kind) for t, kind in wanted], found)
    same = match_events(wanted, found)
    advice = (
        'openness is 1 open, 0 closed here; set the convention of the gripper where the data was made or in the '
        'statistics of the checkpoint'
    )
    if len(mine) < FEWEST:
        return Diagnosis(name, UNKNOWN, 'too few steps with a recorded gripper')
    straight, crossed = float(np.abs(mine - theirs).mean()), float(np.abs(mine - (1.0 - theirs)).mean())
    numbers: dict[str, Any] = {
        'error': straight,
        'error_inverted': crossed,
        'events_matched': len(same),
        'events_matched_inverted': len(opposite),
    }
    if not wanted:
        if straight > 0.7 and crossed < 0.3:
            where = 'closed' if theirs.mean() > 0.5 else 'open'
            text = (
                f'the recorded gripper never moves, and the policy keeps it {where} all along '
                f'(mean error {straight:.2f}, inverted {crossed:.2f})'
            )
            return Diagnosis(name, FAULT, text, advice, numbers)
        quiet = 'the recorded gripper never moves; inversion shows at events only'
        return Diagnosis(name, CLEAR if straight < 0.3 else UNKNOWN, quiet, '', numbers)
    spread = float(mine.std() * theirs.std())
    r = float(((mine - mine.mean()) * (theirs - theirs.mean())).mean() / spread) if spread > 1e-6 else 0.0
    numbers['correlation'] = r
    if r < -0.3 and crossed < 0.7 * straight and len(opposite) >= len(same):
        text = (
            f'the gripper does the opposite: correlation {r:+.2f} with the recorded openness, {len(opposite)} of '
            f'{len(wanted)} events happen in the wrong direction, {len(same)} in the right one'
        )
        return Diagnosis(name, FAULT, text, advice, numbers)
    if r > 0.3:
        text = f'correlation {r:+.2f} with the recorded openness, {len(same)} of {len(wanted)} events matched'
        return Diagnosis(name, CLEAR, text, '', numbers)
    text = f'correlation {r:+.2f} with the recorded openness is too weak either way'
    return Diagnosis(name, UNKNOWN, text, '', numbers)


def action_delay(trace: Trace, a: Aligned, frame: str, rotation: Convention) -> Diagnosis:
    """Does the predicted motion fit the recorded one better some steps earlier or later.

    The residual is projected on half the difference between the motion one step before and one step after. For a
    motion that comes exactly L = 1 steps late the projection is 1 whatever its spectrum; scaling and noise leave it
    at 0. The grid search over the lag has to agree.
    """
    name = 'action_delay'
    grid = np.arange(-3.0, 3.01, 0.25)
    shifted = {float(lag): _recorded_at(trace, a, lag, frame, rotation) for lag in grid}
    usable = np.isfinite(a.predicted[..., 0])
    for steps in shifted.values():
        usable &= np.isfinite(steps[..., 0])
    here = shifted[0.0]
    weight = _weights(here, usable)
    predicted = a.predicted[..., :6]
    slope = 0.5 * (shifted[1.0] - shifted[-1.0])

    def lag_of(keep: Data) -> float:
        mask = usable & keep[:, None]
        top = _dot(predicted - here, slope, weight, mask)
        bottom = _dot(slope, slope, weight, mask)
        return top / bottom if bottom > 0 else float('nan')

    def errors(keep: Data) -> Data:
        mask = usable & keep[:, None]
        return np.array([_dot(predicted - s, predicted - s, weight, mask) for s in shifted.values()])

    chunks: Data = np.asarray(usable.any(axis=1))
    if chunks.sum() < FEWEST or not np.isfinite(lag_of(chunks)):
        return Diagnosis(name, UNKNOWN, 'too few chunks with recorded motion before and after them')
    lag, error = lag_of(chunks), _spread(lag_of, chunks)
    cost = errors(chunks)
    best = float(grid[int(np.argmin(cost))])
    at_zero, at_best = float(cost[len(grid) // 2]), float(cost.min())
    gain = 1.0 - at_best / at_zero if at_zero > 0 else 0.0
    numbers = {
        'lag_steps': lag,
        'standard_error': error,
        'best_lag_steps': best,
        'error_reduction': gain,
        'lag_seconds': best * a.period,
        'grid': grid.tolist(),
        'cost': (cost / max(float(cost.max()), 1e-300)).tolist(),
    }
    sure = abs(lag) - SURE * error > 0.2 and abs(lag) > LEAST_LAG
    if sure and abs(best) >= LEAST_LAG and np.sign(best) == np.sign(lag) and gain > 0.02:
        word = 'late' if best > 0 else 'early'
        text = (
            f'the motion comes {abs(best):.2g} steps ({abs(best) * a.period:.2f} s) {word}: shifted by that, '
            f'{100 * gain:.0f} % of the squared error is gone (lag {lag:+.2f} \u00b1 {error:.2f} steps)'
        )
        advice = (
            'compare how actions and observations were paired when the data was made: action k has to be the motion '
            'from frame k to frame k + 1'
        )
        return Diagnosis(name, FAULT, text, advice, numbers)
    if abs(lag) + SURE * error < 1.0:
        return Diagnosis(name, CLEAR, f'lag {lag:+.2f} \u00b1 {error:.2f} steps', '', numbers)
    return Diagnosis(name, UNKNOWN, f'lag {lag:+.2f} \u00b1 {error:.2f} steps: too uncertain', '', numbers)


def rotation_convention(a: Aligned) -> Diagnosis:
    """Are the numbers meant in another frame or rotation convention than the chunks declare.

    For each alternative the predicted steps are projected on what distinguishes it from the declared convention,
    clear of what both share. The lean is +s for steps that follow the alternative with slope s, -s for steps that
    follow the declaration, 0 for steps that follow neither.
    """
    name = 'rotation_convention'
    declared = a.recorded[..., :6]
    predicted = a.predicted[..., :6]
    usable = np.isfinite(declared[..., 0]) & np.isfinite(predicted[..., 0])
    chunks: Data = np.asarray(usable.any(axis=1))
    weight = _weights(declared, usable)
    own = _dot(predicted - declared, predicted - declared, weight, usable)
    tests: list[dict[str, Any]] = []
    for frame, rotation in CONVENTIONS:
        if (frame, rotation) == (a.frame, a.rotation):
            continue
        other = a.recorded_as(frame, rotation)
        lean = _lean(predicted, declared, other, weight, usable)
        value = lean(chunks) if chunks.sum() >= FEWEST else float('nan')
        tests.append(
            {
                'frame': frame,
                'rotation': rotation,
                'lean': value,
                'standard_error': _spread(lean, chunks) if np.isfinite(value) else float('nan'),
                'error': _dot(predicted - other, predicted - other, weight, usable),
            }
        )
    said = f'{a.rotation} in the {a.frame} frame'
    numbers: dict[str, Any] = {'declared_frame': a.frame, 'declared_rotation': a.rotation, 'tests': tests}
    known = [t for t in tests if np.isfinite(t['lean'])]
    if not known:
        return Diagnosis(name, UNKNOWN, 'too little recorded motion to tell the conventions apart', '', numbers)
    found = [
        t for t in known if t['error'] < own and t['lean'] - SURE * t['standard_error'] > 0 and t['lean'] > LEAST_LEAN
    ]
    if found:
        best = min(found, key=lambda t: t['error'])
        numbers |= {'fits_frame': best['frame'], 'fits_rotation': best['rotation']}
        what = [
            *([f'the {best["frame"]} frame instead of the {a.frame} frame'] if best['frame'] != a.frame else []),
            *(
                [f'{_SPOKEN[best["rotation"]]} instead of {_SPOKEN[a.rotation]}']
                if best['rotation'] != a.rotation
                else []
            ),
        ]
        text = (
            f'the steps are declared {said}, but they follow {" and ".join(what)} '
            f'(lean {best["lean"]:+.2f} \u00b1 {best["standard_error"]:.2f}; '
            f'squared error {100 * (1 - best["error"] / own):.1f} % lower)'
        )
        advice = (
            f'set delta_frame: {best["frame"]} and rotation: {best["rotation"]} in the embodiment, or make the '
            'data in the declared convention'
        )
        return Diagnosis(name, FAULT, text, advice, numbers)
    open_ones = [t for t in known if t['lean'] + 2.0 * t['standard_error'] > 0]
    if not open_ones:
        text = f'the steps follow what they declare: {said}'
        return Diagnosis(name, CLEAR, text, '', numbers)
    doubt = ', '.join(
        f'{t["rotation"]} in {t["frame"]} ({t["lean"]:+.2f} \u00b1 {t["standard_error"]:.2f})' for t in open_ones
    )
    return Diagnosis(name, UNKNOWN, f'{said} cannot be told from {doubt}', '', numbers)


def axes_mixed(a: Aligned, other_fault: bool) -> Diagnosis:
    """Are axes of the translation swapped or mirrored."""
    name = 'axes_mixed'
    mine, theirs = _rows(a.predicted[..., :3], a.recorded[..., :3])
    active = np.sqrt((theirs**2).mean(axis=0)) > 1e-3 if len(theirs) else np.zeros(3, dtype=bool)
    if len(mine) < 10 * FEWEST or not active.any():
        return Diagnosis(name, UNKNOWN, 'too little recorded motion')
    with np.errstate(invalid='ignore', divide='ignore'):
        r = np.nan_to_num(np.corrcoef(mine.T, theirs.T)[:3, 3:])
    r[:, ~active] = 0.0
    numbers = {'correlation': r.tolist()}
    bad = []
    for k in np.flatnonzero(active):
        j = int(np.argmax(np.abs(r[:, k])))
        if abs(r[j, k]) > 0.6 and (j != k or r[j, k] < 0) and r[k, k] < 0.3:
            sign = '-' if r[j, k] < 0 else '+'
            bad.append(f'recorded {"xyz"[k]} appears as predicted {sign}{"xyz"[j]} ({r[j, k]:+.2f})')
    if bad and not other_fault:
        advice = 'check the base frame of the recording and the axes of the action data'
        return Diagnosis(name, FAULT, '; '.join(bad), advice, numbers)
    diagonal = [f'{"xyz"[k]} {r[k, k]:+.2f}' for k in np.flatnonzero(active)]
    result = CLEAR if bool(np.all(r.diagonal()[active] > 0.3)) else UNKNOWN
    return Diagnosis(name, result, f'correlation per axis: {", ".join(diagonal)}', '', numbers)


def wrong_scale(a: Aligned, frame: str, rotation: Convention) -> Diagnosis:
    """Are translations or rotations too large or too small by a factor, as with units or statistics that do not fit."""
    name = 'wrong_scale'
    recorded = a.recorded_as(frame, rotation)
    numbers: dict[str, Any] = {}
    bad, said = [], []
    parts = (('translation', slice(0, 3), LEAST_TRANSLATION), ('rotation', slice(3, 6), LEAST_ROTATION))
    for what, part, least in parts:
        mine, theirs = _rows(a.predicted[..., part], recorded[..., part])
        power, mixed, own = (float((u * v).sum()) for u, v in ((theirs, theirs), (mine, theirs), (mine, mine)))
        if len(mine) < FEWEST or power < least**2 * len(mine) or own <= 0:
            continue
        r = mixed / np.sqrt(power * own)
        # Between the two regressions: noise on either side alone would bend the factor.
        factor = float(np.sqrt(own / power)) if r > 0 else float('nan')
        numbers[what] = {'correlation': r, 'factor': factor}
        said.append(f'{what} x {factor:.2f} at correlation {r:+.2f}')
        if r > 0.6 and (factor > 3.0 or factor < 1.0 / 3.0):
            bad.append(f'{what} is {factor:.3g} times the recorded one (correlation {r:+.2f})')
    if bad:
        advice = 'compare units (m, rad), the step period and the dataset statistics of the checkpoint'
        return Diagnosis(name, FAULT, '; '.join(bad), advice, numbers)
    sure = any(v['correlation'] > 0.6 for v in numbers.values())
    return Diagnosis(name, CLEAR if sure else UNKNOWN, '; '.join(said) or 'too little recorded motion', '', numbers)


def stays_at_start(a: Aligned) -> Diagnosis:
    """Does the policy never leave the pose it starts from, although the recording does."""
    name = 'stays_at_start'
    numbers = leaves_start(a)
    if numbers['leaves'] is None:
        return Diagnosis(name, UNKNOWN, f'the recorded tcp moved less than {MOVED} m itself', '', numbers)
    text = (
        f'predicted {numbers["predicted_travel"]:.3f} m away from the start, '
        f'recorded {numbers["recorded_travel"]:.3f} m'
    )
    if numbers['leaves']:
        return Diagnosis(name, CLEAR, text, '', numbers)
    advice = 'the policy holds still: still frames at the start of the training episodes are the usual reason'
    return Diagnosis(name, FAULT, text, advice, numbers)


def no_better_than_mean(a: Aligned) -> Diagnosis:
    """Is the error no smaller than that of always answering with the mean recorded step."""
    name = 'no_better_than_mean'
    still = baselines(a)['mean'] - a.recorded
    error = a.predicted - a.recorded
    usable = np.isfinite(error[..., 0])
    chunks: Data = np.asarray(usable.any(axis=1))
    if chunks.sum() < FEWEST:
        return Diagnosis(name, UNKNOWN, 'too few chunks with recorded motion')
    weight = _weights(a.recorded[..., :6], usable)

    def skill(keep: Data) -> float:
        mask = usable & keep[:, None]
        base = _dot(still[..., :6], still[..., :6], weight, mask)
        return 1.0 - _dot(error[..., :6], error[..., :6], weight, mask) / base if base > 0 else float('nan')

    value, spread = skill(chunks), _spread(skill, chunks)
    numbers = {'skill': value, 'standard_error': spread}
    text = f'{100 * value:.0f} \u00b1 {100 * spread:.0f} % of the variance of the recorded steps is explained'
    if not np.isfinite(value):
        return Diagnosis(name, UNKNOWN, 'the recorded motion does not vary', '', numbers)
    if value + 2.0 * spread < 0.05:
        advice = 'the policy does not follow what it sees here; compare views, instruction and statistics with training'
        return Diagnosis(name, FAULT, text, advice, numbers)
    return Diagnosis(name, CLEAR if value - 2.0 * spread > 0.0 else UNKNOWN, text, '', numbers)


def _recorded_at(trace: Trace, a: Aligned, lag: float, frame: str, rotation: Convention) -> Data:
    """Recorded steps (C, H, 6) that began ``lag`` steps earlier."""
    steps = np.arange(a.predicted.shape[1] + 1) - lag
    times = a.stamps_ns[:, None] + np.round(steps * a.period * 1e9).astype(np.int64)
    out = deltas(trace.track.poses(times), frame, rotation)
    out[np.isnan(a.recorded[..., 0])] = np.nan
    return out


def _weights(steps: Data, usable: Data) -> Data:
    """(6,) that make translation and rotation count the same, by their recorded power; less for one that hardly is."""
    out = np.zeros(6)
    for part, least in ((slice(0, 3), LEAST_TRANSLATION), (slice(3, 6), LEAST_ROTATION)):
        values = steps[..., part][usable]
        power = float((values**2).sum(axis=-1).mean()) if len(values) else 0.0
        out[part] = 1.0 / max(power, least**2)
    return out


def _dot(a: Data, b: Data, weight: Data, mask: Data) -> float:
    return float((np.where(mask[..., None], a * b, 0.0) * weight).sum())


def _lean(
    predicted: Data, declared: Data, other: Data, weight: Data, usable: Data
) -> Callable[[Data], float]:
    shared, apart = 0.5 * (declared + other), other - declared

    def lean(keep: Data) -> float:
        mask = usable & keep[:, None]
        common = _dot(shared, shared, weight, mask)
        if common <= 0.0:
            return float('nan')
        pure = apart - _dot(apart, shared, weight, mask) / common * shared
        power = _dot(pure, pure, weight, mask)
        # Conventions that differ by less than a thousandth of the motion are the same for this recording.
        if power < 1e-6 * common:
            return float('nan')
        return 2.0 * _dot(predicted, pure, weight, mask) / power

    return lean


def _spread(statistic: Callable[[Data], float], chunks: Data) -> float:
    """Standard error of a statistic by the jackknife over consecutive parts of the replay."""
    where = np.flatnonzero(chunks)
    parts = np.array_split(where, min(PARTS, len(where)))
    values = []
    for part in parts:
        keep = chunks.copy()
        keep[part] = False
        values.append(statistic(keep))
    v = np.array(values)
    v = v[np.isfinite(v)]
    if len(v) < 2:
        return float('inf')
    return float(np.sqrt((len(v) - 1) / len(v) * ((v - v.mean()) ** 2).sum()))


def _rows(mine: Data, theirs: Data) -> tuple[Data, Data]:
    good = np.isfinite(mine).all(axis=-1) & np.isfinite(theirs).all(axis=-1)
    return mine[good], theirs[good]
