"""Recorded against predicted motion as shapes in space, with a time line above the table; no ROS.

Everything is in the robot base frame [m]. Recorded motion is violet, predicted motion runs from blue (now) to yellow
(end of the chunk); red bars join what belongs to the same time. The time line hangs in the plane x = ``BAR_X`` and goes
from left (+y of its ``BAR``) to the end of the recording.
"""

from __future__ import annotations

import numpy as np

from ..geometry import Array
from ..visual import Kind, Shape, time_colors, wrap
from .replay_timeline import Motion, Shown, Timeline

RECORDED = (0.80, 0.45, 1.0)
MISSED = (1.0, 0.25, 0.25)
MOST_POINTS = 500  # of the recorded path
BAR_X, BAR_Z = -0.30, 0.95  # plane and height of the time line [m]
BAR = (-0.60, 0.60)  # y of the beginning and of the end of the recording [m]
HEIGHT, FULL = 0.20, 0.10  # height of the error curve for an error of FULL [m]
_TICK = 0.02
_WHITE, _GREY, _DIM = (1.0, 1.0, 1.0), (0.62, 0.65, 0.70), (0.36, 0.39, 0.44)
_WORDS = ((0.20, 0.55, 0.85), (0.16, 0.70, 0.62))  # sentences, in turn
_ACTIONS = {
    'SCALED': (1.0, 0.85, 0.2),
    'CLIPPED': (1.0, 0.60, 0.1),
    'REFUSED': (1.0, 0.10, 0.15),
    'HELD': (0.95, 0.25, 0.75),
}


def shapes(timeline: Timeline, now: float) -> list[Shape]:
    """What is visible when ``now`` [s] of the recording has been played; empty before its motion is known."""
    motion = timeline.motion
    if motion is None:
        return []
    begun = [s for s in timeline.shown if s.times[0] <= now + 1e-6]
    out = _path(motion, now) + _bar(motion, timeline, begun, now)
    return out + (_chunk(begun[-1]) if begun else [])


def _path(motion: Motion, now: float) -> list[Shape]:
    """The whole recorded path, what is played in full colour, and the gripper where it is now."""
    seconds = np.linspace(0.0, motion.duration, min(len(motion.track.stamps_ns), MOST_POINTS))
    points = motion.track.poses(motion.stamps(seconds))[:, :3, 3]
    good = np.isfinite(points[:, 0])
    seconds, points = seconds[good], points[good]
    colors = np.column_stack([np.tile(RECORDED, (len(points), 1)), np.where(seconds <= now, 0.95, 0.30)])
    out = []
    if len(points) > 1:
        out.append(Shape('replay_recorded', 0, Kind.LINE_STRIP, (0.004,) * 3, (*RECORDED, 1.0), points=points,
                         colors=colors, text=motion.name))  # fmt: skip
    here = motion.track.poses(motion.stamps(np.array([np.clip(now, 0.0, motion.duration)])))[0, :3, 3]
    if np.isfinite(here).all():
        out.append(Shape('replay_now', 0, Kind.SPHERE, (0.022,) * 3, (*_WHITE, 0.9), position=here, text='recorded'))
    return out


def _chunk(shown: Shown) -> list[Shape]:
    """The newest chunk, the recorded motion of the same time, and what lies between."""
    name = shown.row['id']
    predicted, recorded = shown.predicted[:, :3, 3], shown.recorded[:, :3, 3]
    known = np.isfinite(recorded[:, 0])
    colors = time_colors(len(predicted))
    out = [_dots('replay_predicted_points', predicted, colors, name)]
    if len(predicted) > 1:
        out.append(Shape('replay_predicted', 0, Kind.LINE_STRIP, (0.006,) * 3, (*_WHITE, 1.0), points=predicted,
                         colors=colors, text=name))  # fmt: skip
    if known.any():
        violet = np.tile((*RECORDED, 1.0), (int(known.sum()), 1))
        out.append(_dots('replay_same_time', recorded[known], violet, 'recorded at the times of the chunk'))
        pairs = np.stack([predicted[known], recorded[known]], axis=1).reshape(-1, 3)
        out.append(Shape('replay_error', 0, Kind.LINE_LIST, (0.0025,) * 3, (*MISSED, 0.8), points=pairs, text=name))
        end = predicted[-1]
        out.append(Shape('replay_error_text', 0, Kind.TEXT, (0.026,) * 3, (*MISSED, 1.0),
                         position=end + [0.0, 0.0, 0.05], text=_distance(shown)))  # fmt: skip
    return out


def _dots(space: str, points: Array, colors: Array, text: str) -> Shape:
    return Shape(space, 0, Kind.SPHERE_LIST, (0.011,) * 3, (*_WHITE, 1.0), points=points, colors=colors, text=text)


def _distance(shown: Shown) -> str:
    known = np.flatnonzero(np.isfinite(shown.error))
    if not len(known) or known[-1] == 0:
        return 'nothing was recorded then'
    last = known[-1]
    return f'{1e3 * shown.error[last]:.0f} mm apart after {shown.times[last] - shown.times[0]:.1f} s'


def _bar(motion: Motion, timeline: Timeline, begun: list[Shown], now: float) -> list[Shape]:
    """The time line: played part, sentences, seams, verdicts, error at the end of each chunk, and the cursor."""
    at = float(np.clip(now, 0.0, motion.duration))
    head = f'{at:.1f} of {motion.duration:.1f} s   {motion.name}'
    if begun:
        head += f'\n{begun[-1].row["id"]}: {_distance(begun[-1])}'
    words = [text for t, text in timeline.sentences() if t <= now]
    if words:
        head += '\n' + wrap(words[-1], 70, 1)[0]
    bar = np.stack([_place(motion, 0.0), _place(motion, at), _place(motion, at), _place(motion, motion.duration)])
    tints = np.array([(*_WHITE, 0.9)] * 2 + [(*_DIM, 0.9)] * 2)
    out = [
        Shape('replay_bar', 0, Kind.LINE_LIST, (0.008,) * 3, (*_WHITE, 0.9), points=bar, colors=tints, text='time'),
        Shape('replay_cursor', 0, Kind.SPHERE, (0.035,) * 3, (*_WHITE, 1.0), position=_place(motion, at), text='now'),
        Shape('replay_text', 0, Kind.TEXT, (0.036,) * 3, (*_WHITE, 1.0),
              position=_place(motion, 0.5 * motion.duration) + [0.0, 0.0, HEIGHT + 0.11], text=head),
    ]  # fmt: skip
    seams = [s.times[0] for s in begun]
    rows: list[tuple[str, list[tuple[Array, Array, tuple[float, ...]]]]] = [
        ('replay_seams', [(_place(motion, t, -0.5), _place(motion, t, -1.5), (*_GREY, 0.8)) for t in seams]),
        ('replay_sentences', _spans(motion, timeline.sentences(), now)),
        ('replay_verdicts', [(_place(motion, t, 0.5), _place(motion, t, 2.0), (*_ACTIONS.get(a, _GREY), 1.0))
                             for t, a in timeline.marks()[-MOST_POINTS:] if 0.0 <= t <= motion.duration]),
    ]  # fmt: skip
    for space, lines in rows:
        if lines:
            points = np.array([p for a, b, _ in lines for p in (a, b)])
            colors = np.array([c for *_, c in lines for _ in range(2)])
            thick = 0.014 if space == 'replay_sentences' else 0.004
            out.append(Shape(space, 0, Kind.LINE_LIST, (thick,) * 3, (*_GREY, 1.0), points=points, colors=colors))
    return out + _curve(motion, begun)


def _curve(motion: Motion, begun: list[Shown]) -> list[Shape]:
    """Distance at the end of each chunk over the time line, at most ``FULL`` m high."""
    points, colors = [], []
    for shown in begun[-MOST_POINTS:]:
        known = np.flatnonzero(np.isfinite(shown.error))
        if len(known):
            share = min(float(shown.error[known[-1]]) / FULL, 1.0)
            points.append(_place(motion, float(shown.times[0])) + [0.0, 0.0, 0.05 + HEIGHT * share])
            colors.append((*(share * np.array(MISSED) + (1.0 - share) * np.array((0.35, 0.9, 0.45))), 0.95))
    if len(points) < 2:
        return []
    return [
        Shape('replay_curve', 0, Kind.LINE_STRIP, (0.005,) * 3, (*MISSED, 1.0), points=np.array(points),
              colors=np.array(colors), text='distance at the end of each chunk')
    ]  # fmt: skip


def _spans(motion: Motion, said: list[tuple[float, str]], now: float) -> list[tuple[Array, Array, tuple[float, ...]]]:
    out: list[tuple[Array, Array, tuple[float, ...]]] = []
    for k, (t, _) in enumerate(said[-MOST_POINTS:]):
        until = said[-MOST_POINTS:][k + 1][0] if k + 1 < len(said[-MOST_POINTS:]) else max(now, t)
        out.append((_place(motion, t, -2.2), _place(motion, until, -2.2), (*_WORDS[k % 2], 0.95)))
    return out


def _place(motion: Motion, seconds: float, ticks: float = 0.0) -> Array:
    """Where a time is on the bar, ``ticks`` of its height above."""
    share = min(max(seconds / max(motion.duration, 1e-9), 0.0), 1.0)
    return np.array([BAR_X, BAR[0] + share * (BAR[1] - BAR[0]), BAR_Z + _TICK * ticks])
