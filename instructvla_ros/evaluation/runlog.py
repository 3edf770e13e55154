"""One recorded run on disk: ``recording.npz`` (numbers), ``run.json`` (words) and a video beside them.

Every table is a frozen dataclass of columns with one row per message; :class:`Table` collects rows and makes it.
Stamps are nanoseconds of ROS time, lengths m, angles rad, poses in the robot base frame. Nothing is pickled, so
a run of somebody else can be opened safely.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InstructVLAError, suggest

FORMAT = 1
RECORDING, WORDS, VIDEO = 'recording.npz', 'run.json', 'video.mp4'
MODES = ('DISABLED', 'HOLDING', 'TRACKING', 'DECELERATING', 'STOPPED')
_PLAIN = (str, int, bool, type(None))
JOINTS = -1  # stands for the number of arm joints in a column's shape
Column = NDArray[Any]


class RunLogError(InstructVLAError):
    """A recorded run is incomplete, damaged or of another version."""


def column(dtype: str, *shape: int, doc: str = '') -> Any:
    """Column with one value of ``shape`` per row; ``JOINTS`` in the shape is the number of arm joints."""
    return field(default_factory=lambda: np.empty(0), metadata={'dtype': dtype, 'shape': shape, 'doc': doc})


@dataclass(frozen=True)
class ControllerRows:
    """What the controller said about each period that it published."""

    stamp_ns: Column = column('i8', doc='time of the command')
    received_ns: Column = column('i8', doc='when the recorder got it')
    mode: Column = column('i1', doc='index into MODES')
    commanded_q: Column = column('f8', JOINTS, doc='rad')
    measured_q: Column = column('f8', JOINTS, doc='rad')
    commanded_dq: Column = column('f8', JOINTS, doc='rad/s')
    commanded_xyz: Column = column('f8', 3, doc='tcp, m')
    measured_xyz: Column = column('f8', 3, doc='tcp, m')
    gripper: Column = column('f8', doc='openness commanded, 0 closed .. 1 open')
    chunk: Column = column('i4', doc='row of ChunkRows that is played, -1 if none')
    step: Column = column('i4', doc='step of that chunk, -1 if none')
    loop_period: Column = column('f8', doc='s since the previous period')


@dataclass(frozen=True)
class JointRows:
    """Joint states as the robot published them."""

    stamp_ns: Column = column('i8')
    received_ns: Column = column('i8')
    q: Column = column('f8', JOINTS, doc='rad')
    gripper: Column = column('f8', doc='measured openness, 0 closed .. 1 open')


@dataclass(frozen=True)
class CommandRows:
    """Joint trajectories that went to the arm."""

    stamp_ns: Column = column('i8')
    received_ns: Column = column('i8')


@dataclass(frozen=True)
class ChunkRows:
    """Action chunks; the steps of all of them are in ``RunLog.steps``."""

    observation_ns: Column = column('i8', doc='header stamp of the oldest image used')
    created_ns: Column = column('i8')
    received_ns: Column = column('i8')
    model_latency: Column = column('f8', doc='s')
    step_period: Column = column('f8', doc='s')
    tool_frame: Column = column('i1', doc='1: deltas in the tool frame, 0: base frame')
    rotvec: Column = column('i1', doc='1: rotation vectors, 0: fixed-axis roll pitch yaw')
    reference_pose: Column = column('f8', 4, 4, doc='tcp at the observation')
    first: Column = column('i8', doc='first row in RunLog.steps')
    horizon: Column = column('i4', doc='number of rows in RunLog.steps')


@dataclass(frozen=True)
class FrameRows:
    """Camera frames; ``view`` indexes ``RunLog.views``."""

    stamp_ns: Column = column('i8')
    received_ns: Column = column('i8')
    view: Column = column('i1')


@dataclass(frozen=True)
class TaskRows:
    """How the task stood, from the simulator's ground truth."""

    stamp_ns: Column = column('i8')
    progress: Column = column('f8', doc='0 .. 1')
    success: Column = column('i1')
    tcp_xyz: Column = column('f8', 3, doc='m')


Rows = TypeVar('Rows')


class Table(Generic[Rows]):
    """Collects rows of one kind; appending is cheap, :meth:`build` makes the columns."""

    def __init__(self, kind: type[Rows], joints: int):
        self._kind = kind
        self._joints = joints
        self._columns: dict[str, list[Any]] = {f.name: [] for f in dataclasses.fields(kind)}  # type: ignore[arg-type]

    def append(self, **row: Any) -> None:
        """Add one row; every column must be named."""
        if row.keys() != self._columns.keys():
            wrong = sorted(row.keys() ^ self._columns.keys())
            raise RunLogError(f'{self._kind.__name__}: columns {", ".join(wrong)} missing or unknown')
        for name, value in row.items():
            self._columns[name].append(value)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def build(self) -> Rows:
        """The table so far.

        Raises:
            RunLogError: rows of different shape in one column.
        """
        built = {}
        for f in dataclasses.fields(self._kind):  # type: ignore[arg-type]
            shape = _shape(f, self._joints)
            try:
                built[f.name] = np.array(self._columns[f.name], dtype=f.metadata['dtype']).reshape(len(self), *shape)
            except ValueError as err:
                raise RunLogError(f'{self._kind.__name__}.{f.name}: rows do not fit {shape}: {err}') from None
        return self._kind(**built)


@dataclass(frozen=True)
class RunLog:
    """A recorded run.

    Attributes:
        meta: what was run and how it ended (task, instruction, seed, policy, outcome, success, duration, command, ...).
        joint_names: in the order of every joint column. views: camera names.
        steps: (sum of horizons, 7) steps of all chunks. chunk_ids: (rows of ``chunks``) ids and what conditioned them.
        reasoning: dicts id, stamp_ns, text, kind, tokens, latency, source.
        verdicts: dicts stamp_ns, rule, action, subject, value, limit, unit, text, chunk_id.
        objects: the scene's objects at the start and at the end, names of target and destination.
        video: file, views, start_ns, frames, dropped, size; empty without video.
    """

    meta: Mapping[str, Any]
    joint_names: tuple[str, ...]
    views: tuple[str, ...] = ()
    controller: ControllerRows = field(default_factory=ControllerRows)
    joints: JointRows = field(default_factory=JointRows)
    commands: CommandRows = field(default_factory=CommandRows)
    chunks: ChunkRows = field(default_factory=ChunkRows)
    frames: FrameRows = field(default_factory=FrameRows)
    task: TaskRows = field(default_factory=TaskRows)
    steps: Column = field(default_factory=lambda: np.empty((0, 7)))
    chunk_ids: tuple[str, ...] = ()
    chunk_reasoning: tuple[str, ...] = ()
    reasoning: tuple[dict[str, Any], ...] = ()
    verdicts: tuple[dict[str, Any], ...] = ()
    objects: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A table left out is an empty one whose columns have their full shape.
        for name, kind in _TABLES.items():
            if not len(getattr(self, name).stamp_ns if name != 'chunks' else self.chunks.created_ns):
                object.__setattr__(self, name, Table(kind, len(self.joint_names)).build())

    @property
    def start_ns(self) -> int:
        """Time zero of every plot: ``meta['start_ns']`` or the first stamp there is."""
        given = self.meta.get('start_ns')
        if given is not None:
            return int(given)
        stamps = [t.stamp_ns[0] for t in (self.controller, self.joints, self.frames, self.task) if len(t.stamp_ns)]
        return int(min(stamps)) if stamps else 0

    def seconds(self, stamps_ns: Any) -> NDArray[np.float64]:
        """Seconds since :attr:`start_ns`, same shape as ``stamps_ns``."""
        return (np.asarray(stamps_ns, dtype=np.int64) - self.start_ns) / 1e9

    def chunk_steps(self, row: int) -> NDArray[np.float64]:
        """Steps (H, 7) of one chunk."""
        first = int(self.chunks.first[row])
        return self.steps[first : first + int(self.chunks.horizon[row])]


_TABLES: dict[str, type[Any]] = {
    'controller': ControllerRows,
    'joints': JointRows,
    'commands': CommandRows,
    'chunks': ChunkRows,
    'frames': FrameRows,
    'task': TaskRows,
}
_WORDS = ('joint_names', 'views', 'chunk_ids', 'chunk_reasoning', 'reasoning', 'verdicts', 'objects', 'video')


def save(log: RunLog, folder: str | Path) -> Path:
    """Write ``recording.npz`` and ``run.json`` into ``folder`` (made when missing), each complete or not at all."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    numbers = {
        f'{name}.{f.name}': getattr(getattr(log, name), f.name)
        for name, kind in _TABLES.items()
        for f in dataclasses.fields(kind)
    }
    numbers['steps'] = np.asarray(log.steps, dtype=np.float64)
    partial = place / f'.{RECORDING}.part'
    with partial.open('wb') as file:
        np.savez_compressed(file, **numbers)
    os.replace(partial, place / RECORDING)
    words = {'format': FORMAT, 'meta': dict(log.meta), **{name: getattr(log, name) for name in _WORDS}}
    write_json(place / WORDS, words)
    return place


def load(folder: str | Path) -> RunLog:
    """Open a run written by :func:`save`.

    Raises:
        RunLogError: a file or column is missing, damaged or of another version.
    """
    place = Path(folder)
    try:
        words = json.loads((place / WORDS).read_text(encoding='utf-8'))
        with np.load(place / RECORDING, allow_pickle=False) as archive:
            numbers = {name: archive[name] for name in archive.files}
    except FileNotFoundError as err:
        raise RunLogError(f'{place} is not a recorded run: {Path(err.filename).name} is missing') from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise RunLogError(f'{place}: damaged recording: {err}') from None
    if not isinstance(words, dict) or words.get('format') != FORMAT:
        found = words.get('format') if isinstance(words, dict) else type(words).__name__
        raise RunLogError(f'{place / WORDS}: format {found!r}, this version reads {FORMAT}; record the run again')
    joints = len(words['joint_names'])
    tables: dict[str, Any] = {name: _table(place, name, kind, numbers, joints) for name, kind in _TABLES.items()}
    lists: dict[str, Any] = {
        n: tuple(words[n]) for n in ('joint_names', 'views', 'chunk_ids', 'chunk_reasoning', 'reasoning', 'verdicts')
    }
    return RunLog(
        meta=words['meta'], steps=numbers['steps'], objects=words['objects'], video=words['video'], **lists, **tables
    )


def _table(place: Path, name: str, kind: type[Any], numbers: dict[str, Column], joints: int) -> Any:
    columns, rows = {}, None
    for f in dataclasses.fields(kind):
        key = f'{name}.{f.name}'
        if key not in numbers:
            raise RunLogError(f'{place / RECORDING}: column {key} is missing.{suggest(key, numbers)}')
        values = numbers[key]
        rows = len(values) if rows is None else rows
        if values.shape != (rows, *_shape(f, joints)) and values.size:
            raise RunLogError(f'{place / RECORDING}: {key} is {values.shape}, expected {(rows, *_shape(f, joints))}')
        columns[f.name] = values
    return kind(**columns)


def _shape(f: dataclasses.Field[Any], joints: int) -> tuple[int, ...]:
    return tuple(joints if n == JOINTS else n for n in f.metadata['shape'])


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON (NaN and infinity become null) in one step."""
    partial = path.with_name(f'.{path.name}.part')
    partial.write_text(json.dumps(plain(data), indent=1, allow_nan=False) + '\n', encoding='utf-8')
    os.replace(partial, path)


def plain(data: Any) -> Any:
    """Plain JSON data: numpy scalars and arrays become numbers and lists, non-finite numbers become None."""
    kind = type(data)
    if kind is float:
        return data if math.isfinite(data) else None
    if kind in _PLAIN:  # most of what comes, so first: abstract classes are slow to ask
        return data
    if isinstance(data, (list, tuple)):
        return [plain(v) for v in data]
    if isinstance(data, Mapping):
        return {str(k): plain(v) for k, v in data.items()}
    if isinstance(data, np.ndarray):
        return plain(data.tolist())
    if isinstance(data, np.generic):
        return plain(data.item())
    if isinstance(data, float) and not math.isfinite(data):
        return None
    if isinstance(data, Path):
        return str(data)
    return data
