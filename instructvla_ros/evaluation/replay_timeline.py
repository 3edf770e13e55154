"""Recorded against predicted motion on one axis of time, as plain data for whoever shows it; no ROS.

:func:`read_motion` reads what was recorded ahead of the playing, :class:`Timeline` collects what the graph answers and
gives it in pieces. Both come out as JSON: seconds since the first recorded joint state, rows
``[x, y, z, turn x, turn y, turn z, openness]`` in m, degrees from the first recorded orientation (rotation vector in
the base frame) and 0 closed .. 1 open. What is not known is null.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ..datatypes import ActionChunk, Reasoning, ReasoningKind, Verdict, VerdictAction
from ..errors import DataError
from ..visual import chunk_poses
from .replay_source import ChunkEvent, GripperEvent, Recording, SaidEvent, StateEvent, WordsEvent, due_ns
from .replay_trace import Data, Track, TrackBuilder
from .replay_verdicts import Verdicts
from .runlog import plain

CHANNELS = ('x', 'y', 'z', 'turn x', 'turn y', 'turn z', 'gripper')
MOST_ROWS = 3000  # of the recorded motion that are shown
MOST_CHUNKS = 4000  # remembered; the oldest are dropped
_SHORTEST = 15_000_000  # ns between two recorded states that are kept
_SAME = 0.3  # s: equal verdicts nearer than this in time are one with a count


@dataclass(frozen=True)
class Motion:
    """What was recorded, without its pictures.

    Attributes:
        start_ns: zero of the time axis. instructions, notes: (time [s], text), '' ends an instruction.
        seams: observation times of the chunks of the policy that ran during the recording [s].
    """

    name: str
    track: Track
    start_ns: int
    instructions: tuple[tuple[float, str], ...] = ()
    notes: tuple[tuple[float, str], ...] = ()
    seams: tuple[float, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds from the first to the last joint state."""
        return self.track.duration

    def rows(self, poses: Data, openness: Data) -> Data:
        """Rows (..., 7) of poses (..., 4, 4) [m] and openness (...); NaN where the pose is."""
        flat = poses.reshape(-1, 4, 4)
        out = np.full((len(flat), 7), np.nan)
        good = np.isfinite(flat).all(axis=(1, 2))
        if good.any():
            begin = Rotation.from_quat(self.track.quat[0])
            turn = Rotation.from_matrix(flat[good, :3, :3]) * begin.inv()
            out[good, :3] = flat[good, :3, 3]
            out[good, 3:6] = np.degrees(turn.as_rotvec())
            out[good, 6] = np.asarray(openness, dtype=np.float64).reshape(-1)[good]
        return out.reshape(*poses.shape[:-2], 7)

    def stamps(self, seconds: Data) -> Data:
        """Stamps [ns] of times [s]."""
        return self.start_ns + np.round(np.asarray(seconds) * 1e9).astype(np.int64)

    def at(self, seconds: Data) -> Data:
        """Rows (N, 7) at times (N,) [s]; NaN outside the recording."""
        stamps = self.stamps(seconds)
        return self.rows(self.track.poses(stamps), self.track.gripper(stamps))

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        count = min(len(self.track.stamps_ns), MOST_ROWS)
        at = np.linspace(0.0, self.duration, max(count, 2))
        return {
            'name': self.name,
            'duration': round(self.duration, 3),
            'channels': list(CHANNELS),
            't': [round(t, 3) for t in at.tolist()],
            'rows': _rounded(self.at(at)),
            'instructions': [list(w) for w in self.instructions],
            'notes': [list(n) for n in self.notes],
            'seams': list(self.seams),
        }


def read_motion(
    recording: Recording, forward: Callable[[Data], Data], duration: float = float('inf'), instruction: str = ''
) -> Motion:
    """Read the motion and the words of a recording once, without its pictures.

    Args:
        forward: joints (n,) -> tcp pose (4, 4). duration: how much of it [s]. instruction: instead of the recorded.

    Raises:
        DataError: it cannot be read or holds fewer than two joint states.
    """
    forward = recording.forward or forward
    motion = TrackBuilder()
    words: list[tuple[int, str]] = []
    notes: list[tuple[int, str]] = []
    seams: list[int] = []
    first: int | None = None
    for event in recording.events(pictures=False):
        first = due_ns(event) if first is None else first
        if due_ns(event) - first > duration * 1e9:
            break
        if isinstance(event, StateEvent):
            if event.stamp_ns < motion.last_ns + _SHORTEST or not np.isfinite(event.state.q).all():
                continue
            pose = event.pose if event.pose is not None else forward(event.state.q)
            motion.state(event.stamp_ns, pose, event.state.gripper)
        elif isinstance(event, GripperEvent):
            motion.command(event.stamp_ns, event.openness)
        elif isinstance(event, WordsEvent):
            words.append((event.stamp_ns, event.instruction.strip()))
        elif isinstance(event, SaidEvent) and event.text:
            notes.append((event.stamp_ns, event.text))
        elif isinstance(event, ChunkEvent):
            seams.append(event.chunk.observation_stamp_ns)
    if len(motion) < 2:
        raise DataError(f'{recording.name} holds {len(motion)} usable joint states: there is no motion to show')
    track = motion.track()
    start = int(track.stamps_ns[0])

    def since(stamp: int) -> float:
        return round((stamp - start) * 1e-9, 3)

    if instruction:
        words = [(start, instruction)]
    return Motion(
        recording.name,
        track,
        start,
        tuple((since(s), w) for s, w in words),
        tuple((since(s), n) for s, n in notes),
        tuple(since(s) for s in seams),
    )


@dataclass(frozen=True)
class Shown:
    """A predicted chunk beside the recorded motion of the same time.

    Attributes:
        times: (n + 1,) [s]. predicted, recorded: poses (n + 1, 4, 4) [m], recorded NaN after the end of the recording.
        error: (n + 1,) distance between them [m]. row: the same as JSON data.
    """

    times: Data
    predicted: Data
    recorded: Data
    error: Data
    row: dict[str, Any]


class Timeline:
    """What the graph answers while a recording is played. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.motion: Motion | None = None
        self._chunks: OrderedDict[str, ActionChunk] = OrderedDict()
        self._shown: OrderedDict[str, Shown] = OrderedDict()
        self._said: OrderedDict[str, Reasoning] = OrderedDict()
        self._verdicts = Verdicts(pause=_SAME, per_chunk=False)
        self._news: set[int] = set()
        self._new_words: dict[str, Reasoning] = {}

    def chunk(self, chunk: ActionChunk) -> None:
        """The policy sent a chunk."""
        with self._lock:
            self._chunks[chunk.id] = chunk
            while len(self._chunks) > MOST_CHUNKS:
                self._chunks.popitem(last=False)

    def said(self, said: Reasoning) -> None:
        """The policy said something."""
        if said.kind is ReasoningKind.PLAN and said.final:
            with self._lock:
                self._new_words[said.id] = self._said[said.id] = said

    def verdict(self, stamp_ns: int, verdict: Verdict) -> None:
        """The controller decided something; equal decisions in a row are counted."""
        if verdict.action is VerdictAction.PASSED:
            return
        with self._lock:
            self._news.add(self._verdicts.add(stamp_ns, verdict))

    @property
    def shown(self) -> list[Shown]:
        """Chunks so far, oldest first."""
        with self._lock:
            return list(self._shown.values())

    def sentences(self) -> list[tuple[float, str]]:
        """When the policy said what [s]."""
        with self._lock:
            motion = self.motion
            return [] if motion is None else [(self._since(s.stamp_ns), s.text) for s in self._said.values()]

    def marks(self) -> list[tuple[float, str]]:
        """When the controller decided what (action) [s]."""
        with self._lock:
            entries = self._verdicts.entries if self.motion is not None else []
            return [(self._since(v['stamp_ns']), v['action']) for v in entries]

    def news(self, now_ns: int) -> dict[str, Any] | None:
        """What came since the last call, as JSON data with the time ``now`` [s]; None before the motion is known."""
        with self._lock:
            if self.motion is None:
                return None
            fresh = [c for name, c in self._chunks.items() if name not in self._shown]
            for chunk in fresh:
                self._shown[chunk.id] = self._beside(self.motion, chunk)
            while len(self._shown) > MOST_CHUNKS:
                self._shown.popitem(last=False)
            out = {
                'now': round(self._since(now_ns), 3),
                'chunks': [self._shown[c.id].row for c in fresh],
                'sentences': [self._sentence(s) for s in self._new_words.values()],
                'verdicts': [self._judged(k) for k in sorted(self._news)],
            }
            self._new_words, self._news = {}, set()
            return dict(plain(out))

    def _since(self, stamp_ns: int) -> float:
        return (stamp_ns - self.motion.start_ns) * 1e-9 if self.motion is not None else 0.0

    def _beside(self, motion: Motion, chunk: ActionChunk) -> Shown:
        predicted = chunk_poses(chunk)
        count = len(predicted)
        times = self._since(chunk.observation_stamp_ns) + chunk.step_period * np.arange(count)
        recorded = motion.track.poses(motion.stamps(times))
        steps = chunk.steps[: count - 1, 6]
        openness = np.append(steps, steps[-1:]) if count > 1 else np.full(count, np.nan)
        error = np.linalg.norm(predicted[:, :3, 3] - recorded[:, :3, 3], axis=1)
        row = {
            'id': chunk.id,
            't': round(float(times[0]), 3),
            'dt': round(chunk.step_period, 4),
            'rows': _rounded(motion.rows(predicted, openness)),
            'error': _rounded(1e3 * error[None], 1)[0],
            'said': chunk.reasoning_id,
            'policy': chunk.policy,
            'done': chunk.done,
        }
        return Shown(times, predicted, recorded, error, row)

    def _sentence(self, said: Reasoning) -> dict[str, Any]:
        return {'id': said.id, 't': round(self._since(said.stamp_ns), 3), 'text': said.text}

    def _judged(self, k: int) -> dict[str, Any]:
        entry = self._verdicts.entries[k]
        v = {name: value for name, value in entry.items() if not name.endswith('_ns')}
        t, until = (round(self._since(entry[name]), 3) for name in ('stamp_ns', 'until_ns'))
        return {'n': k, 't': t, 'until': until, **v}


def _rounded(rows: Data, digits: int = 4) -> list[list[float | None]]:
    return [[round(v, digits) if np.isfinite(v) else None for v in row] for row in np.asarray(rows).tolist()]
