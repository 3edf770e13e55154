"""Plays action chunks: which pose to aim at now, and which gripper opening.

The deltas of a chunk mean "from the pose at the observation" P. They are integrated from the command that makes the
arm be at P, which is P plus the standing offset between command and measurement (sag, friction). That gives an
absolute path. Where to enter it: while the model was thinking the arm moved on, so the path is entered at the
point nearest to the running target, at most as late as the measured latency (plus the lead of the command over the arm)
allows, and played at its own speed from there.

* The steps that the arm has executed during the latency are skipped, by where it is; a step it has not executed is not.
* In steady motion consecutive chunks describe the same path whatever the latency and the lag of the arm, so the seams
  vanish; a policy that aims at a goal reaches it without overshoot, because every path ends in it.
* The offset is ``C(observation - tracking_lag) - P``, C being the commanded poses, learned only while the command
  stands still (in motion it holds unmodelled dynamics, and feeding those back through the latency oscillates). So
  a chunk of zeros holds an arm that sags. Beyond ``rebase_distance`` or ``rebase_angle`` it is dropped.

Two plainer ways were tried and are worse: integrating from the command at take-over adds what was executed during the
latency to the goal (overshoot of speed times lag); skipping by the clock alone makes an arm that started late
hurry after the plan, run ahead of its next observation, and overshoot. Where a path does not meet the running target,
the difference in pose and velocity fades out along a cubic, so the target and its velocity are continuous.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from math import sqrt

import numpy as np
import pinocchio as pin

from ..datatypes import ActionChunk, Verdict, VerdictAction
from ..geometry import Array, interpolate
from ..settings import Control
from .bounds import Bounds
from .ensemble import compatible, ensemble_chunk
from .history import History
from .path import Path, fade

HISTORY = 2.0  # s of commanded poses that are kept beyond the oldest observation that may be admitted
CATCH_UP = 0.5  # share of the tcp speed bound that closing a gap at a seam may use
STILL_TIME = 0.4  # s: the command stands still when over this time it moved less than the following
STILL_DISTANCE = 0.001  # m
STILL_ANGLE = 0.005  # rad
LEAD = 0.3  # s by which a target may be ahead of the arm
GRID = 0.25  # of a step period: first search for the entry point
REFINEMENTS = 6
LONGEST_PERIOD = 0.1  # s: a late period does not make the path leap
ENTRY_TOLERANCE = 1e-4  # m: points this much further count as equally near
TURN_WEIGHT = 0.3  # m per rad
SLOPE_STEP = 1e-3  # s: difference quotient for the velocity of a path


@dataclass(frozen=True)
class Sample:
    """What a chunk asks for at one instant.

    Attributes:
        pose: (4, 4) to aim at [m]. gripper: openness 0..1. step_index: step that is due now.
        chunk: being played. share: of the path's own speed that was allowed; speed: tcp speed it asked for [m/s].
    """

    pose: Array
    gripper: float
    step_index: int
    chunk: ActionChunk
    share: float = 1.0
    speed: float = 0.0


@dataclass(frozen=True)
class _Play:
    """One chunk being played, with the fade that joins it to the motion before it. Times are into the path [s]."""

    chunk: ActionChunk
    path: Path
    entry: float
    admitted_ns: int
    offset: Array  # (6,) position [m], rotation vector in the base frame [rad]
    slope: Array  # (6,) derivative of the offset per fade time
    fade_time: float

    def at(self, time: float) -> Array:
        """Target pose (4, 4)."""
        pose = self.path.at(time)
        s = (time - self.entry) / self.fade_time
        if s < 1.0:
            rest = fade(max(s, 0.0), self.offset, self.slope)
            pose[:3, 3] += rest[:3]
            pose[:3, :3] = pin.exp3(rest[3:]) @ pose[:3, :3]
        return pose

    def velocity(self, time: float) -> Array:
        """Velocity (6,) of the target in the base frame [m/s], [rad/s]."""
        return _difference(self.at(time), self.at(time + SLOPE_STEP)) / SLOPE_STEP


def _difference(a: Array, b: Array) -> Array:
    """Position and base-frame rotation vector (6,) that take pose a to pose b."""
    return np.concatenate([b[:3, 3] - a[:3, 3], pin.log3(b[:3, :3] @ a[:3, :3].T)])


class ChunkPlayer:
    """Thread-safe; chunks must have passed the chunk rungs of the safety ladder."""

    def __init__(self, control: Control, bounds: Bounds) -> None:
        self.control, self.bounds = control, bounds
        self._lock = threading.RLock()
        self._history = History(HISTORY + control.safety.max_observation_age, interpolate)
        self._chunks: deque[ActionChunk] = deque(maxlen=control.ensemble_size)
        self._play: _Play | None = None
        self._time = 0.0  # into the path being played [s]
        self._rate = 1.0  # of the path's own speed, in the last period
        self._sampled_ns = 0
        self._target = np.eye(4)
        self._offset = np.zeros(6)  # standing command minus measurement: position [m], base-frame rotation vector [rad]

    @property
    def active(self) -> bool:
        """True while a chunk is being played."""
        with self._lock:
            return self._play is not None

    def reset(self, pose: Array, now_ns: int) -> None:
        """Forget everything; the arm stands at ``pose`` (4, 4)."""
        with self._lock:
            self._history.clear()
            self._history.record(now_ns, pose)
            self._offset = np.zeros(6)
            self.stop(pose)

    def stop(self, pose: Array) -> None:
        """Drop the chunk; the next one starts from ``pose`` (4, 4)."""
        with self._lock:
            self._play = None
            self._chunks.clear()
            self._target = pose

    def record(self, now_ns: int, pose: Array) -> None:
        """Remember the pose (4, 4) that was really commanded at a time [ns]."""
        with self._lock:
            self._history.record(now_ns, pose)

    def commanded(self, time_ns: int) -> Array:
        """Pose (4, 4) that was commanded at a time [ns]; the oldest or newest known outside the record."""
        with self._lock:
            return self._history.at(time_ns, self._target)

    def admit(self, chunk: ActionChunk, now_ns: int) -> tuple[Verdict, ...]:
        """Take a chunk over, or refuse it.

        Args:
            chunk: checked. now_ns: time of the take-over [ns].

        Returns:
            A REFUSED verdict when the chunk is out of order; otherwise what was changed.
        """
        with self._lock:
            if self._play is not None:
                newest = self._play.chunk
                if chunk.id == newest.id:
                    return (self._refuse(chunk, 'this chunk is being played already'),)
                if chunk.observation_stamp_ns < newest.observation_stamp_ns:
                    return (
                        self._refuse(
                            chunk, f'its observation is older than that of {newest.id}, which is being played'
                        ),
                    )
            verdicts: list[Verdict] = []
            base = self._base(chunk, verdicts)
            played = self._ensemble(chunk)
            running = np.zeros(6) if self._play is None else self._rate * self._play.velocity(self._time)
            path = Path.of_chunk(played, base, self.bounds.box_lower, self.bounds.box_upper, running)
            self._play = self._join(played, path, running, now_ns)
            return tuple(verdicts)

    def preview(
        self, chunk: ActionChunk, now_ns: int, spacing: float, most: int
    ) -> tuple[Array, Array, tuple[Verdict, ...]]:
        """The way the arm would be led if this chunk were admitted now; nothing is changed.

        Args:
            spacing: time between two samples [s], larger where more than ``most`` samples would result.

        Returns:
            Times into the path (k,) [s] and poses (k, 4, 4), from the entry to the end; and the REFUSED verdict.
        """
        with self._lock:
            kept = self._play, self._time, self._rate, self._sampled_ns, self._offset, list(self._chunks)
            try:
                verdicts = self.admit(chunk, now_ns)
                play = self._play
                refused = tuple(v for v in verdicts if v.action is VerdictAction.REFUSED)
                if refused or play is None:
                    return np.zeros(0), np.zeros((0, 4, 4)), refused
                end = max(play.path.duration, play.entry + play.fade_time)
                count = min(max(int(np.ceil((end - play.entry) / spacing)), 1), most - 1) + 1
                times = np.linspace(play.entry, end, count)
                return times, np.array([play.at(t) for t in times]), ()
            finally:
                self._play, self._time, self._rate, self._sampled_ns, self._offset, chunks = kept
                self._chunks.clear()
                self._chunks.extend(chunks)

    def sample(self, now_ns: int, start: Array | None = None, scale: float = 1.0) -> Sample | None:
        """What to aim at at a time [ns]; None when no chunk is left to play (the dead-man then acts).

        The path is followed at its own speed, or slower when the next target would be further from ``start`` (4, 4),
        the pose aimed at before, than the tcp speed bounds times ``scale`` allow in one period: an arm that
        is held up does not have to hurry afterwards.
        """
        with self._lock:
            play = self._play
            if play is None:
                return None
            elapsed = min(max((now_ns - self._sampled_ns) * 1e-9, 0.0), LONGEST_PERIOD)
            self._sampled_ns = now_ns
            share, speed, ahead = self._share(play, elapsed, start, scale)
            self._time += share * elapsed
            self._rate = share
            if self._over(play, now_ns):
                self._play = None
                self._chunks.clear()
                return None
            self._target = play.at(self._time) if ahead is None else ahead
            reached = self._time - self.control.tracking_lag  # what the arm itself, and so the gripper, has come to
            index = min(max(int(reached / play.path.period), 0), play.chunk.horizon - 1)
            return Sample(self._target, float(play.chunk.steps[index, 6]), index, play.chunk, share, speed)

    def _over(self, play: _Play, now_ns: int) -> bool:
        control = self.control
        # A path that is held up for good (an unreachable pose) does not keep its chunk alive.
        longest = play.path.duration + control.hold_after + control.safety.max_observation_age
        # The fade is played to its end too: a chunk without a successor leaves the target at rest.
        return (
            self._time > max(play.path.duration, play.entry + play.fade_time) + control.hold_after
            or (now_ns - play.path.start_ns) * 1e-9 > longest
            or 0.0 < control.play_time < (now_ns - play.admitted_ns) * 1e-9
        )

    def _share(
        self, play: _Play, elapsed: float, start: Array | None, scale: float
    ) -> tuple[float, float, Array | None]:
        """Share of the elapsed time by which to advance on the path; the tcp speed that the whole would take; the pose
        (4, 4) at its end, if it is taken whole."""
        if start is None or elapsed <= 0.0:
            return 1.0, 0.0, None
        safety, period = self.bounds.safety, self.bounds.period
        reach = scale * safety.max_cartesian_speed * period
        swing = scale * safety.max_rotation_speed * period

        def excess(ahead: Array) -> tuple[float, float]:
            step = ahead[:3, 3] - start[:3, 3]
            turn = pin.log3(ahead[:3, :3] @ start[:3, :3].T)
            distance, angle = sqrt(step @ step), sqrt(turn @ turn)
            return max(distance / max(reach, 1e-9), angle / max(swing, 1e-9)), distance / period

        end = play.at(self._time + elapsed)
        whole, speed = excess(end)
        if whole <= 1.0:
            return 1.0, speed, end
        low, high = 0.0, 1.0
        for _ in range(REFINEMENTS):
            middle = 0.5 * (low + high)
            if excess(play.at(self._time + middle * elapsed))[0] <= 1.0:
                low = middle
            else:
                high = middle
        return low, speed, None

    def _refuse(self, chunk: ActionChunk, why: str) -> Verdict:
        text = f'chunk {chunk.id}: {why}'
        return Verdict('chunk_order', VerdictAction.REFUSED, 'observation', text=text, chunk_id=chunk.id)

    def _base(self, chunk: ActionChunk, verdicts: list[Verdict]) -> Array:
        """Commanded pose (4, 4) from which the deltas of a chunk start."""
        then = chunk.observation_stamp_ns - round(self.control.tracking_lag * 1e9)
        seen, commanded = np.asarray(chunk.reference_pose, dtype=np.float64), self.commanded(then)
        difference = _difference(seen, commanded)
        distance, angle = float(np.linalg.norm(difference[:3])), float(np.linalg.norm(difference[3:]))
        control = self.control
        for value, limit, unit in ((distance, control.rebase_distance, 'm'), (angle, control.rebase_angle, 'rad')):
            if value > limit:
                text = (
                    f'the command was {value:.3f} {unit} from the pose the policy saw (bound {limit} {unit}); '
                    'the chunk starts at the latter'
                )
                verdicts.append(Verdict('rebase', VerdictAction.PASSED, 'tcp', value, limit, unit, text, chunk.id))
                difference = np.zeros(6)
                self._offset = difference
        moved = _difference(self.commanded(then - round(STILL_TIME * 1e9)), commanded)
        if np.linalg.norm(moved[:3]) <= STILL_DISTANCE and np.linalg.norm(moved[3:]) <= STILL_ANGLE:
            self._offset = difference
        base = np.eye(4)
        base[:3, 3] = seen[:3, 3] + self._offset[:3]
        rotation = pin.Quaternion(seen[:3, :3]).normalized().matrix()
        base[:3, :3] = pin.exp3(self._offset[3:]) @ rotation
        return base

    def _ensemble(self, chunk: ActionChunk) -> ActionChunk:
        if self.control.strategy != 'ensemble':
            return chunk
        if self._chunks and not compatible(self._chunks[0], chunk):
            self._chunks.clear()
        self._chunks.appendleft(chunk)
        return ensemble_chunk(list(self._chunks), self.control.ensemble_alpha)

    def _join(self, chunk: ActionChunk, path: Path, running: Array, now_ns: int) -> _Play:
        zero = np.zeros(6)
        entry = self._entry(path, self._target, (now_ns - chunk.observation_stamp_ns) * 1e-9)
        fresh = _Play(chunk, path, entry, now_ns, zero, zero, 1.0)
        offset = _difference(fresh.at(entry), self._target)
        slope = running - fresh.velocity(entry)
        safety = self.bounds.safety
        gap = float(np.linalg.norm(offset[:3])) / max(safety.max_cartesian_speed, 1e-6)
        turn = float(np.linalg.norm(offset[3:])) / max(safety.max_rotation_speed, 1e-6)
        # The cubic is steepest in its middle: 1.5 offsets per fade time.
        time = max(1.5 / CATCH_UP * max(gap, turn), chunk.step_period, 2.0 * self.bounds.period)
        if self.control.strategy == 'blend':
            time = max(time, self.control.blend_time)
        self._time, self._rate = entry, 1.0
        if self._play is None:
            self._sampled_ns = now_ns
        return _Play(chunk, path, entry, now_ns, offset, slope * time, time)

    def _entry(self, path: Path, target: Array, elapsed: float) -> float:
        """Time into the path [s] at which it comes nearest to the target; the earliest if there are several."""
        latest = min(max(elapsed, 0.0) + LEAD, path.duration)
        step = min(GRID * path.period, 0.05)

        def distance(time: float) -> float:
            d = _difference(path.at(time), target)
            return sqrt(d[:3] @ d[:3] + TURN_WEIGHT**2 * (d[3:] @ d[3:]))

        times = np.arange(0.0, latest + 0.5 * step, step)
        values = np.array([distance(t) for t in times])
        best = int(np.argmax(values <= values.min() + ENTRY_TOLERANCE))
        low, high = max(times[best] - step, 0.0), min(times[best] + step, latest)
        for _ in range(REFINEMENTS):
            third = (high - low) / 3.0
            if distance(low + third) <= distance(high - third):
                high -= third
            else:
                low += third
        middle = 0.5 * (low + high)
        return float(middle if distance(middle) < values[best] else times[best])
