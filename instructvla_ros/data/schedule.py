"""Which observations of a recording become the frames of an episode: one every step period, gaps named.

Frames follow the schedule ``first + k * step_period``; the observation nearest to it is taken, views that are apart
counting as distance. A camera whose rate is a multiple of the wanted one (within 5 %) sets the pace itself, so that its
clock and ours drifting apart never skips a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .align import BuildOptions, Candidate

_SAME = 0.05


@dataclass(frozen=True)
class Row:
    """One frame: its time [ns], its pictures, and whether they were shown before (a bridged gap)."""

    stamp_ns: int
    pictures: Candidate
    repeated: bool = False


@dataclass(frozen=True)
class Run:
    """Consecutive frames, and why they end where they do ('' at the end of the recording)."""

    rows: tuple[Row, ...]
    reason: str = ''


def schedule(candidates: Sequence[Candidate], options: BuildOptions, known: Callable[[int], bool]) -> list[Run]:
    """Runs of frames out of the observations of one time line.

    Args:
        candidates: by increasing stamp. known: whether there is a joint state at a stamp [ns].
    """
    period = round(options.step_period * 1e9)
    gap_ns = max(round(options.max_gap * 1e9), period)
    usable = [c for c in candidates if known(c.stamp_ns)]
    runs: list[Run] = []
    if not usable:
        return runs
    stamps = np.array([c.stamp_ns for c in usable], np.int64)
    spreads = np.array([c.spread_ns for c in usable], np.int64)
    spacing = float(np.median(np.diff(stamps))) if len(stamps) > 1 else float(period)
    per_frame = max(1, round(period / spacing))
    follow = abs(period / (per_frame * spacing) - 1.0) < _SAME
    tolerance = spacing / 2.0
    window = (0.75 if follow else 0.55) * period  # a camera that sets the pace may be late, a schedule may not

    rows = [Row(int(stamps[0]), usable[0])]
    at, target = 0, int(stamps[0])
    while at + 1 < len(usable):
        target += period
        high = max(at + 2, int(np.searchsorted(stamps, target + period, side='right')))
        low = min(max(at + 1, int(np.searchsorted(stamps, target - period))), high - 1)
        cost = np.abs(stamps[low:high] - target) + spreads[low:high]
        best = low + int(np.argmin(cost))
        off = int(stamps[best]) - target
        if abs(off) <= window and stamps[best] > rows[-1].stamp_ns:
            at = best
            rows.append(Row(int(stamps[at]), usable[at]))
            if follow or off > tolerance:
                target = int(stamps[at])
            continue
        following = int(stamps[at + 1])
        silent = following - usable[at].stamp_ns
        if following <= rows[-1].stamp_ns:
            at += 1  # the picture of a time that was bridged already
            target = rows[-1].stamp_ns
        elif silent <= gap_ns and known(target):
            rows.append(Row(target, usable[at], True))
        else:
            there = any(usable[at].stamp_ns < c.stamp_ns < following for c in candidates)
            what = 'joint states' if there or silent <= gap_ns else 'pictures'
            reason = f'no {what} for {silent * 1e-9:.2f} s after t = {usable[at].stamp_ns * 1e-9:.3f} s'
            runs.append(Run(_trimmed(rows), reason))
            at += 1
            target = int(stamps[at])
            rows = [Row(target, usable[at])]
    runs.append(Run(_trimmed(rows)))
    return runs


def _trimmed(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Without repeated pictures at the end: they would show what comes after them too late."""
    end = len(rows)
    while end > 1 and rows[end - 1].repeated:
        end -= 1
    return tuple(rows[:end])
