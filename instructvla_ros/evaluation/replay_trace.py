"""What a replay leaves behind: the recorded motion, every chunk and sentence, and every verdict on them.

Numbers go to ``replay.npz``, words to ``replay.json``; nothing is pickled.
"""

from __future__ import annotations

import json
import zipfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..datatypes import ActionChunk
from ..errors import DataError
from .runlog import plain

FORMAT = 2
NUMBERS, WORDS = 'replay.npz', 'replay.json'
MAX_GAP = 0.6  # s between two joint states over which the motion is not interpolated
Data = NDArray[Any]
Convention = Literal['rpy', 'rotvec', 'rpy_moving']
_EULER = {'rpy': 'xyz', 'rpy_moving': 'XYZ'}


@dataclass(frozen=True)
class Track:
    """The motion that was recorded.

    Attributes:
        stamps_ns: (N,) [ns], increasing. xyz: (N, 3) tcp in the base frame [m]. quat: (N, 4) xyzw.
        openness: (N,) measured 0..1. commands_ns: (M,), commanded: (M,) openness the gripper was told.
    """

    stamps_ns: Data
    xyz: Data
    quat: Data
    openness: Data
    commands_ns: Data = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    commanded: Data = field(default_factory=lambda: np.zeros(0))

    def poses(self, stamps_ns: Data) -> Data:
        """Poses (..., 4, 4) at stamps (...) [ns]; NaN outside the recording and in its gaps."""
        t = np.asarray(stamps_ns, dtype=np.int64)
        flat = t.ravel()
        out = np.full((len(flat), 4, 4), np.nan)
        if len(self.stamps_ns) > 1:
            right = np.clip(np.searchsorted(self.stamps_ns, flat, side='right'), 1, len(self.stamps_ns) - 1)
            left = right - 1
            span = (self.stamps_ns[right] - self.stamps_ns[left]).astype(np.float64)
            s = (flat - self.stamps_ns[left]) / np.maximum(span, 1.0)
            exact = (flat == self.stamps_ns[left]) | (flat == self.stamps_ns[right])
            good = (s >= 0.0) & (s <= 1.0) & ((span <= MAX_GAP * 1e9) | exact)
            a, b, s = left[good], right[good], s[good, None]
            first = Rotation.from_quat(self.quat[a])
            turn = (first.inv() * Rotation.from_quat(self.quat[b])).as_rotvec()
            out[good] = np.eye(4)
            out[good, :3, :3] = (first * Rotation.from_rotvec(s * turn)).as_matrix()
            out[good, :3, 3] = (1.0 - s) * self.xyz[a] + s * self.xyz[b]
        return out.reshape(*t.shape, 4, 4)

    def gripper(self, stamps_ns: Data) -> Data:
        """Openness (...) that was commanded at stamps (...) [ns], or measured where no command was recorded."""
        t = np.asarray(stamps_ns, dtype=np.int64)
        source, values = (
            (self.commands_ns, self.commanded) if len(self.commanded) else (self.stamps_ns, self.openness)
        )
        if not len(values):
            return np.full(t.shape, np.nan)
        k = np.searchsorted(source, t.ravel(), side='right') - 1
        out = values[np.maximum(k, 0)].astype(np.float64)
        if len(self.commanded) and len(self.openness):
            # Before the first command the gripper stands where it is.
            out[k < 0] = self.openness[0]
        elif len(self.stamps_ns):
            out[t.ravel() > self.stamps_ns[-1]] = np.nan
        return out.reshape(t.shape)

    @property
    def duration(self) -> float:
        """Seconds from the first to the last joint state."""
        return float(self.stamps_ns[-1] - self.stamps_ns[0]) * 1e-9 if len(self.stamps_ns) else 0.0


class TrackBuilder:
    """Collects a :class:`Track`: 112 bytes a state, because a recording may be long."""

    def __init__(self) -> None:
        self._stamps, self._states = array('q'), array('d')  # of a state: three rows of its pose, openness
        self._told_at, self._told = array('q'), array('d')

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def last_ns(self) -> int:
        """Stamp of the newest state [ns]; before the first one no stamp is older."""
        return self._stamps[-1] if self._stamps else -(2**63)

    def state(self, stamp_ns: int, pose: Data, openness: float) -> bool:
        """The tcp was at pose (4, 4). False: the stamp went back; of two motions over each other the first counts."""
        if stamp_ns <= self.last_ns:
            return False
        self._stamps.append(stamp_ns)
        self._states.extend(pose[:3].ravel().tolist())
        self._states.append(openness)
        return True

    def command(self, stamp_ns: int, openness: float) -> None:
        """The gripper was told this openness; a stamp that goes back is left out."""
        if not self._told_at or stamp_ns >= self._told_at[-1]:
            self._told_at.append(stamp_ns)
            self._told.append(openness)

    def track(self) -> Track:
        """What there is so far."""
        rows = np.array(self._states).reshape(-1, 13)
        poses = rows[:, :12].reshape(-1, 3, 4)
        return Track(
            np.array(self._stamps, dtype=np.int64),
            poses[..., 3].copy(),
            Rotation.from_matrix(poses[..., :3]).as_quat() if len(poses) else np.zeros((0, 4)),
            rows[:, 12].copy(),
            np.array(self._told_at, dtype=np.int64),
            np.array(self._told, dtype=np.float64),
        )


def deltas(poses: Data, frame: str, rotation: Convention) -> Data:
    """Steps (..., H, 6) between neighbours of poses (..., H + 1, 4, 4), as ``geometry.delta_between`` gives them.

    Args:
        rotation: also 'rpy_moving', Euler angles about the moving axes, which no checkpoint of this package uses.
    """
    a, b = poses[..., :-1, :, :], poses[..., 1:, :, :]
    shift = b[..., :3, 3] - a[..., :3, 3]
    back = np.swapaxes(a[..., :3, :3], -1, -2)
    if frame == 'tool':
        shift = (back @ shift[..., None])[..., 0]
        turn = back @ b[..., :3, :3]
    else:
        turn = b[..., :3, :3] @ back
    flat = turn.reshape(-1, 3, 3)
    out = np.full((len(flat), 6), np.nan)
    good = np.isfinite(flat).all(axis=(1, 2))
    if good.any():
        r = Rotation.from_matrix(flat[good])
        out[good, 3:] = r.as_rotvec() if rotation == 'rotvec' else r.as_euler(_EULER[rotation])
        out[good, :3] = shift.reshape(-1, 3)[good]
    return out.reshape(*shift.shape[:-1], 6)


@dataclass(frozen=True)
class Judged:
    """One chunk with what became of it.

    Attributes:
        chunk: ids are numbered, so that two replays give the same. refused: the rule, or ''.
        think, infer, decode: seconds of this machine. sentence: index into ``Trace.sentences`` or -1.
        until_ns: end of its instruction; the motion recorded after it answers other words.
    """

    chunk: ActionChunk
    refused: str = ''
    think: float = 0.0
    infer: float = 0.0
    decode: float = 0.0
    sentence: int = -1
    until_ns: int = 2**62


@dataclass(frozen=True)
class Trace:
    """A finished replay.

    Attributes:
        meta: name, policy, checkpoint, revision, seed, mode, command, counts of events, wall time, ...
        track: recorded motion. chunks: in the order of their observations.
        sentences: dicts stamp_ns, text, instruction, latency, tokens. notes: recorded or annotated sentences
            (stamp_ns, text). verdicts: entries of :class:`~.replay_verdicts.Verdicts`.
        stale: reason -> how often there was no observation. trouble: what could not be read. missing: what the
            recording lacks. recorded_chunks: of the policy that ran during the recording.
    """

    meta: dict[str, Any]
    track: Track
    chunks: tuple[Judged, ...]
    sentences: tuple[dict[str, Any], ...] = ()
    notes: tuple[dict[str, Any], ...] = ()
    verdicts: tuple[dict[str, Any], ...] = ()
    stale: dict[str, int] = field(default_factory=dict)
    trouble: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    recorded_chunks: tuple[ActionChunk, ...] = ()

    @property
    def start_ns(self) -> int:
        """Zero of the time axis [ns]."""
        starts = [int(self.track.stamps_ns[0])] if len(self.track.stamps_ns) else []
        starts += [c.chunk.observation_stamp_ns for c in self.chunks[:1]]
        return min(starts) if starts else 0

    def seconds(self, stamps_ns: Any) -> Data:
        """Seconds since the start."""
        return np.asarray(np.asarray(stamps_ns, dtype=np.int64) - self.start_ns, dtype=np.float64) * 1e-9


@dataclass(frozen=True)
class Aligned:
    """Predicted and recorded steps side by side.

    Attributes:
        predicted, recorded: (C, H, 7), NaN where a chunk is shorter, or the recording or the instruction is over.
        poses: (C, H + 1, 4, 4) recorded, from the observation on. reference: (C, 4, 4) the policy saw.
        stamps_ns: (C,) of the observations. period: of a step [s]. frame, rotation: of the chunks.
    """

    predicted: Data
    recorded: Data
    poses: Data
    reference: Data
    stamps_ns: Data
    period: float
    frame: str
    rotation: Convention

    def recorded_as(self, frame: str, rotation: Convention) -> Data:
        """Recorded motion (C, H, 6) in other conventions."""
        return deltas(self.poses, frame, rotation)


def align(trace: Trace) -> Aligned:
    """Put the recorded motion beside every chunk.

    Raises:
        DataError: there is no chunk, or the chunks differ in step period or conventions.
    """
    rows = trace.chunks
    if not rows:
        why = max(trace.stale, key=lambda k: trace.stale[k], default='the recording holds no picture or no joint state')
        raise DataError(f'{trace.meta.get("recording", "the recording")}: the policy was never asked; {why}')
    first = rows[0].chunk
    kinds = {(r.chunk.step_period, r.chunk.delta_frame, r.chunk.rotation) for r in rows}
    if len(kinds) > 1:
        raise DataError(f'the chunks differ in step period or conventions ({sorted(kinds)}); replay with one policy')
    horizon = max(r.chunk.horizon for r in rows)
    predicted = np.full((len(rows), horizon, 7), np.nan)
    for k, row in enumerate(rows):
        predicted[k, : row.chunk.horizon] = row.chunk.steps
    stamps = np.array([r.chunk.observation_stamp_ns for r in rows], dtype=np.int64)
    times = stamps[:, None] + np.round(np.arange(horizon + 1) * first.step_period * 1e9).astype(np.int64)
    poses = trace.track.poses(times)
    poses[times > np.array([r.until_ns for r in rows])[:, None]] = np.nan
    recorded = np.full_like(predicted, np.nan)
    recorded[..., :6] = deltas(poses, first.delta_frame, first.rotation)
    recorded[..., 6] = trace.track.gripper(times[:, :-1])
    recorded[np.isnan(recorded[..., 0])] = np.nan
    recorded[np.isnan(predicted)] = np.nan
    reference = np.array([r.chunk.reference_pose for r in rows])
    return Aligned(predicted, recorded, poses, reference, stamps, first.step_period, first.delta_frame, first.rotation)


def save(trace: Trace, folder: str | Path) -> Path:
    """Write a trace into a folder and return it."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    t = trace.track
    arrays: dict[str, Any] = {name: getattr(t, name) for name in Track.__dataclass_fields__}
    arrays |= _pack('chunk', [r.chunk for r in trace.chunks]) | _pack('recorded', trace.recorded_chunks)
    for name in ('think', 'infer', 'decode', 'sentence', 'until_ns'):
        arrays[f'judged_{name}'] = np.array([getattr(r, name) for r in trace.chunks])
    np.savez_compressed(place / NUMBERS, **arrays)
    words = {
        'format': FORMAT,
        'meta': trace.meta,
        'chunks': [_words(r.chunk) | {'refused': r.refused} for r in trace.chunks],
        'recorded_chunks': [_words(c) for c in trace.recorded_chunks],
        **{name: getattr(trace, name) for name in ('sentences', 'notes', 'verdicts', 'stale', 'trouble', 'missing')},
    }
    (place / WORDS).write_text(json.dumps(plain(words), allow_nan=False), encoding='utf-8')
    return place


def load(folder: str | Path) -> Trace:
    """Read what :func:`save` wrote.

    Raises:
        DataError: missing, damaged, or of another version.
    """
    place = Path(folder)
    try:
        words = json.loads((place / WORDS).read_text(encoding='utf-8'))
        if words.get('format') != FORMAT:
            raise DataError(f'{place / WORDS} has the format {words.get("format")!r}, this version reads {FORMAT}')
        with np.load(place / NUMBERS, allow_pickle=False) as file:
            n = {name: file[name] for name in file.files}
        chunks = _unpack('chunk', n, words['chunks'])
        judged = tuple(
            Judged(
                chunk,
                said['refused'],
                float(n['judged_think'][k]),
                float(n['judged_infer'][k]),
                float(n['judged_decode'][k]),
                int(n['judged_sentence'][k]),
                int(n['judged_until_ns'][k]),
            )
            for k, (chunk, said) in enumerate(zip(chunks, words['chunks'], strict=True))
        )
        return Trace(
            meta=words['meta'],
            track=Track(**{name: n[name] for name in Track.__dataclass_fields__}),
            chunks=judged,
            sentences=tuple(words['sentences']),
            notes=tuple(words['notes']),
            verdicts=tuple(words['verdicts']),
            stale=words['stale'],
            trouble=words['trouble'],
            missing=tuple(words['missing']),
            recorded_chunks=tuple(_unpack('recorded', n, words['recorded_chunks'])),
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as err:
        raise DataError(f'{place} holds no finished replay ({err}); run `instructvla replay` again') from None


_TEXTS = ('id', 'frame_id', 'delta_frame', 'rotation', 'instruction', 'policy', 'reasoning_id', 'checkpoint_revision')
_VALUES = ('observation_stamp_ns', 'created_stamp_ns', 'step_period', 'model_latency', 'done')


def _words(chunk: ActionChunk) -> dict[str, str]:
    return {name: getattr(chunk, name) for name in _TEXTS}


def _pack(prefix: str, chunks: Sequence[ActionChunk]) -> dict[str, Any]:
    out = {f'{prefix}_{name}': np.array([getattr(c, name) for c in chunks]) for name in _VALUES}
    out[f'{prefix}_reference'] = np.array([c.reference_pose for c in chunks]).reshape(-1, 4, 4)
    out[f'{prefix}_horizon'] = np.array([c.horizon for c in chunks], dtype=np.int64)
    out[f'{prefix}_steps'] = np.concatenate([c.steps for c in chunks]) if chunks else np.empty((0, 7))
    return out


def _unpack(prefix: str, n: dict[str, Any], words: Sequence[dict[str, str]]) -> list[ActionChunk]:
    ends = np.cumsum(n[f'{prefix}_horizon'])
    out = []
    for k, said in enumerate(words):
        values = {name: n[f'{prefix}_{name}'][k].item() for name in _VALUES}
        steps = n[f'{prefix}_steps'][ends[k] - n[f'{prefix}_horizon'][k] : ends[k]]
        texts: dict[str, Any] = {name: said[name] for name in _TEXTS}
        out.append(ActionChunk(**values, **texts, steps=steps, reference_pose=n[f'{prefix}_reference'][k]))
    return out
