"""Plays action chunks: which pose to aim at now, and which gripper opening.

The deltas of a chunk mean "from the pose at the observation". The arm was then following the command given one
tracking lag earlier, so the deltas are integrated from that *commanded* pose, ``C(observation - lag)``, and the
resulting absolute path is played one lag ahead, at ``now + lag``. Consequences:

* steps that elapsed while the model was thinking are skipped by time, not by count;
* a policy that plans from what it sees gets the same path at any latency: in steady motion consecutive
  chunks describe the same path, and a goal is reached without overshoot, because the path ends in it;
* a constant offset between command and measurement (sag, friction) is carried along, so a chunk of zeros holds;
* beyond ``rebase_distance`` or ``rebase_angle`` from the pose the policy saw, the path starts at that pose instead.

Integrating from the command at take-over, the plain alternative, adds what was executed during the latency to the
goal: it overshoots by speed times lag. Where a new path does not meet the running target, the difference in pose
and velocity fades out along a cubic, so the target and its velocity are continuous at every seam.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from ..datatypes import ActionChunk, Verdict, VerdictAction
from ..geometry import Array, interpolate, rotation_angle
from ..settings import Control
from .bounds import Bounds
from .ensemble import compatible, ensemble_chunk
from .path import Path, fade

HISTORY = 70.0  # s of commanded poses that are kept at most; observations older than that cannot be admitted
CATCH_UP = 0.5  # share of the tcp speed bound that closing a gap at a seam may use
SLOPE_STEP = 1e-3  # s: difference quotient for the velocity of a path


@dataclass(frozen=True)
class Sample:
    """What a chunk asks for at one instant.

    Attributes:
        pose: (4, 4) to aim at [m]. gripper: openness 0..1. step_index: step that is due now.
        chunk: being played.
    """

    pose: Array
    gripper: float
    step_index: int
    chunk: ActionChunk


@dataclass(frozen=True)
class _Play:
    """One chunk being played, with the fade that joins it to the motion before it."""

    chunk: ActionChunk
    path: Path
    lag: float
    admitted_ns: int
    offset: Array  # (6,) position [m], rotation vector in the base frame [rad]
    slope: Array  # (6,) derivative of the offset per fade time
    fade_time: float

    def at(self, now_ns: int, lag: float | None = None) -> Array:
        """Target pose (4, 4) at a time [ns]."""
        pose = self.path.at((now_ns - self.path.start_ns) * 1e-9 + self.lag)
        s = (now_ns - self.admitted_ns) * 1e-9 / self.fade_time
        if s < 1.0:
            rest = fade(max(s, 0.0), self.offset, self.slope)
            pose[:3, 3] += rest[:3]
            pose[:3, :3] = pin.exp3(rest[3:]) @ pose[:3, :3]
        return pose

    def velocity(self, now_ns: int) -> Array:
        """Velocity (6,) of the target in the base frame [m/s], [rad/s], looking back from a time [ns]."""
        step = round(SLOPE_STEP * 1e9)
        return _difference(self.at(now_ns - step), self.at(now_ns)) / SLOPE_STEP


def _difference(a: Array, b: Array) -> Array:
    """Position and base-frame rotation vector (6,) that take pose a to pose b."""
    return np.concatenate([b[:3, 3] - a[:3, 3], pin.log3(b[:3, :3] @ a[:3, :3].T)])


class ChunkPlayer:
    """Thread-safe; chunks must have passed the chunk rungs of the safety ladder."""

    def __init__(self, control: Control, bounds: Bounds) -> None:
        self.control, self.bounds = control, bounds
        self._lock = threading.RLock()
        self._history: deque[tuple[int, Array]] = deque(maxlen=max(16, int(HISTORY * control.rate)))
        self._chunks: deque[ActionChunk] = deque(maxlen=control.ensemble_size)
        self._play: _Play | None = None
        self._target = np.eye(4)

    @property
    def active(self) -> bool:
        """True while a chunk is being played."""
        with self._lock:
            return self._play is not None

    def reset(self, pose: Array, now_ns: int) -> None:
        """Forget everything; the arm stands at ``pose`` (4, 4)."""
        with self._lock:
            self._history.clear()
            self._history.append((now_ns, pose))
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
            if not self._history or now_ns > self._history[-1][0]:
                self._history.append((now_ns, pose))

    def commanded(self, time_ns: int) -> Array:
        """Pose (4, 4) that was commanded at a time [ns]; the oldest or newest known outside the record."""
        with self._lock:
            newer: tuple[int, Array] | None = None
            for stamp, pose in reversed(self._history):
                if stamp <= time_ns:
                    if newer is None:
                        return pose
                    return interpolate(pose, newer[1], (time_ns - stamp) / (newer[0] - stamp))
                newer = (stamp, pose)
            return newer[1] if newer is not None else self._target

    def admit(self, chunk: ActionChunk, now_ns: int, lag: float = 0.0) -> tuple[Verdict, ...]:
        """Take a chunk over, or refuse it.

        Args:
            chunk: checked. now_ns: time of the take-over [ns]. lag: time by which the arm follows its command [s].

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
            base = self._base(chunk, lag, verdicts)
            played = self._ensemble(chunk)
            path = Path.of_chunk(played, base, self.bounds.box_lower, self.bounds.box_upper)
            self._play = self._join(played, path, now_ns, lag)
            return tuple(verdicts)

    def sample(self, now_ns: int) -> Sample | None:
        """What to aim at at a time [ns]; None when no chunk is left to play (the dead-man then acts)."""
        with self._lock:
            play = self._play
            if play is None:
                return None
            since = (now_ns - play.path.start_ns) * 1e-9
            if since + play.lag > play.path.duration + self.control.hold_after or (
                0.0 < self.control.play_time < (now_ns - play.admitted_ns) * 1e-9
            ):
                self._play = None
                self._chunks.clear()
                return None
            pose = play.at(now_ns)
            self._target = pose
            index = min(max(int(since / play.path.period), 0), play.chunk.horizon - 1)
            return Sample(pose, float(play.chunk.steps[index, 6]), index, play.chunk)

    def _refuse(self, chunk: ActionChunk, why: str) -> Verdict:
        text = f'chunk {chunk.id}: {why}'
        return Verdict('chunk_order', VerdictAction.REFUSED, 'observation', text=text, chunk_id=chunk.id)

    def _base(self, chunk: ActionChunk, lag: float, verdicts: list[Verdict]) -> Array:
        base = self.commanded(chunk.observation_stamp_ns - round(lag * 1e9))
        seen = np.asarray(chunk.reference_pose, dtype=np.float64)
        distance = float(np.linalg.norm(base[:3, 3] - seen[:3, 3]))
        angle = rotation_angle(base, seen)
        control = self.control
        for value, limit, unit in ((distance, control.rebase_distance, 'm'), (angle, control.rebase_angle, 'rad')):
            if value > limit:
                text = (
                    f'the command was {value:.3f} {unit} from the pose the policy saw (bound {limit} {unit}); '
                    'the chunk starts at the latter'
                )
                verdicts.append(Verdict('rebase', VerdictAction.PASSED, 'tcp', value, limit, unit, text, chunk.id))
                clean = np.eye(4)
                clean[:3, 3] = seen[:3, 3]
                clean[:3, :3] = pin.Quaternion(seen[:3, :3]).normalized().matrix()
                return clean
        return base

    def _ensemble(self, chunk: ActionChunk) -> ActionChunk:
        if self.control.strategy != 'ensemble':
            return chunk
        if self._chunks and not compatible(self._chunks[0], chunk):
            self._chunks.clear()
        self._chunks.appendleft(chunk)
        return ensemble_chunk(list(self._chunks), self.control.ensemble_alpha)

    def _join(self, chunk: ActionChunk, path: Path, now_ns: int, lag: float) -> _Play:
        zero = np.zeros(6)
        fresh = _Play(chunk, path, lag, now_ns, zero, zero, 1.0)
        new, old = fresh.at(now_ns), self._play
        offset = _difference(new, old.at(now_ns) if old else self._target)
        slope = (old.velocity(now_ns) if old else zero) - fresh.velocity(now_ns)
        safety = self.bounds.safety
        gap = float(np.linalg.norm(offset[:3])) / max(safety.max_cartesian_speed, 1e-6)
        turn = float(np.linalg.norm(offset[3:])) / max(safety.max_rotation_speed, 1e-6)
        # The cubic is steepest in its middle: 1.5 offsets per fade time.
        time = max(1.5 / CATCH_UP * max(gap, turn), chunk.step_period, 2.0 * self.bounds.period)
        if self.control.strategy == 'blend':
            time = max(time, self.control.blend_time)
        return _Play(chunk, path, lag, now_ns, offset, slope * time, time)
