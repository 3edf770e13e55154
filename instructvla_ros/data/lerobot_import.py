"""Import of LeRobot datasets, v3.0 and v2.1: our own exports exactly, those of others as far as their columns go.

Actions are always made from the motion of the tcp, never from the recorded action, whose meaning differs from dataset
to dataset; only the gripper command is taken from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ..errors import DataError
from ..geometry import Array, DeltaFrame, RotationConvention, delta_between, pose, xyz_rpy_from_pose
from . import lerobot as form
from .episodes import Dataset, Episode, Frames, Meta, Writer
from .lerobot_columns import Columns, describe, guess, parse
from .lerobot_export import OWN_FORMAT
from .lerobot_video import VideoSource

JPEG_QUALITY = 95


@dataclass(frozen=True)
class ImportOptions:
    """How to import a dataset of another origin; our own exports need none of it but ``quality``.

    Attributes:
        columns: what is told about the columns; the rest is guessed.
        name: of the new dataset, its folder's name when empty. embodiment: robot_type of the dataset when empty.
        forward: tcp pose (4, 4) [m] of joint positions (n,), used when the dataset has no pose, or always with
            ``pose_from_joints``: the tool point of a dataset's pose is often another one.
        delta_frame, rotation, frame_id: conventions of the new dataset.
        stride: take every n-th frame. quality: of the JPEG pictures, 0 for PNG.
        episodes: numbers to take, None for all.
    """

    columns: Columns = field(default_factory=Columns)
    name: str = ''
    embodiment: str = ''
    forward: Callable[[Array], Array] | None = None
    pose_from_joints: bool = False
    delta_frame: DeltaFrame = 'base'
    rotation: RotationConvention = 'rpy'
    frame_id: str = ''
    stride: int = 1
    quality: int = JPEG_QUALITY
    episodes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Imported:
    """What was taken. ``notes``: what was guessed or is missing; ``failed``: episode number -> reason."""

    dataset: Dataset
    episodes: int
    frames: int
    columns: Columns | None
    notes: tuple[str, ...]
    failed: Mapping[int, str]


def import_dataset(
    folder: str | Path,
    out: str | Path,
    options: ImportOptions = ImportOptions(),  # noqa: B008  # frozen
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Imported:
    """Read a LeRobot dataset into a new or interrupted dataset of ours; episodes that are there are passed over.

    An episode that cannot be read is left out and named in ``failed``.

    Raises:
        DataError: not a LeRobot dataset, columns that cannot be used (with all there are), or no episode can be read.
        SetupError: pyarrow or av is not installed.
    """
    form.arrow()
    source = form.open_source(folder)
    if source.features and any(f['dtype'] == 'video' for f in source.features.values()):
        form.video_library()
    reader = _Own(source, options) if source.own else _Foreign(source, options)
    wanted = [e for e in source.episodes if options.episodes is None or e.index in options.episodes]
    if not wanted:
        raise DataError(f'{source.path} has none of the episodes {options.episodes}; it has {len(source.episodes)}')
    done, frames, failed = 0, 0, dict[int, str]()
    try:
        with Writer(out, reader.meta) as writer:
            for count, location in enumerate(wanted, 1):
                if not writer.has(reader.name_of(location)):
                    try:
                        episode = reader.episode(location)
                    except DataError as err:
                        failed[location.index] = str(err)
                    else:
                        writer.add(episode)
                        done, frames = done + 1, frames + len(episode)
                progress(count, len(wanted))
    finally:
        reader.video.close()
    if failed and len(failed) == len(wanted):
        raise DataError(f'no episode of {source.path} can be read; the first: {next(iter(failed.values()))}')
    columns = reader.columns if isinstance(reader, _Foreign) else None
    return Imported(Dataset.open(out), done, frames, columns, tuple(dict.fromkeys(reader.notes)), failed)


class _Reader:
    """Rows and pictures of episodes."""

    meta: Meta

    def __init__(self, source: form.Source, options: ImportOptions) -> None:
        self.source, self.options = source, options
        self.video = VideoSource()
        self.notes: list[str] = []
        self._file: Path | None = None
        self._table: Any = None

    def rows(self, location: form.Location, keys: list[str]) -> dict[str, Any]:
        """Columns of an episode as arrays (T,) or (T, n), in the order of the frames."""
        if location.data != self._file:
            self._table, self._file = form.read_table(location.data), location.data
        names = self._table.column_names
        absent = [k for k in keys if k not in names]
        if absent:
            raise DataError(f'{location.data} lacks the columns {", ".join(absent)}; it has {", ".join(names)}')
        table = self._table
        if 'episode_index' in names:
            table = table.filter(table.column('episode_index').to_numpy() == location.index)
        if len(table) != location.length or not len(table):
            raise DataError(
                f'{location.data} has {len(table)} frames of episode {location.index}, the meta data says '
                f'{location.length}'
            )
        if 'frame_index' in names:
            table = table.take(np.argsort(table.column('frame_index').to_numpy(), kind='stable'))
        return {k: _numbers(table.column(k), location, k) for k in keys}

    def pictures(self, location: form.Location, key: str, times: Array, rows: Mapping[str, Any]) -> Frames:
        """Pictures of one camera: those in the table as they are, those of a video at these times [s]."""
        if self.source.features[key]['dtype'] == 'image':
            cells = [cell.get('bytes') if isinstance(cell, Mapping) else None for cell in rows[key]]
            blobs = [b for b in cells if isinstance(b, bytes) and b.startswith((b'\xff\xd8', b'\x89PNG'))]
            if len(blobs) < len(cells):
                raise DataError(f'{location.data}: pictures of {key} are not in the table, or neither JPEG nor PNG')
            return Frames(blobs)
        file, start = location.videos[key]
        found = self.video.frames(file, (start + times).tolist(), tolerance=0.55 / self.source.fps)
        return Frames.encode(found, self.options.quality)


class _Own(_Reader):
    """Our own export: everything is known."""

    def __init__(self, source: form.Source, options: ImportOptions) -> None:
        super().__init__(source, options)
        head = source.own[0]
        if head.get('format') != OWN_FORMAT:
            raise DataError(
                f'{source.path / form.OWN} has the format {head.get("format")!r}, this version reads {OWN_FORMAT!r}'
            )
        if len(source.own) - 1 < len(source.episodes):
            raise DataError(
                f'{source.path / form.OWN} names {len(source.own) - 1} of {len(source.episodes)} episodes; was the '
                'dataset changed by another program? Remove this file to read it as one of another origin'
            )
        try:
            self.meta = Meta(**head['meta'])
        except (KeyError, TypeError) as err:
            raise DataError(f'{source.path / form.OWN} is damaged: {err!r}') from None

    def name_of(self, location: form.Location) -> str:
        return str(self._line(location).get('id', ''))

    def episode(self, location: form.Location) -> Episode:
        keys = [form.STATE, form.ACTION, form.STAMP, 'timestamp']
        optional = [k for k in (form.JOINTS, form.VELOCITIES) if k in self.source.features]
        extras = [k for k in self.source.features if k.startswith(form.EXTRA)]
        rows = self.rows(location, [*keys, *optional, *extras])
        line, t = self._line(location), location.length
        none = np.empty((t, 0))
        joints, speeds = (_wide(rows[k]) if k in rows else none for k in (form.JOINTS, form.VELOCITIES))
        views = {v: self.pictures(location, form.IMAGES + v, _times(rows), rows) for v in self.meta.views}
        return Episode(
            id=self.name_of(location), instruction=location.tasks[0] if location.tasks else '',
            step_period=self.meta.step_period, stamps_ns=rows[form.STAMP], proprio=_wide(rows[form.STATE]), q=joints,
            dq=speeds, actions=_wide(rows[form.ACTION]), views=views, annotations=line.get('annotations') or {},
            success=line.get('success'), source=str(line.get('source', '')), info=line.get('info') or {},
            extras={k.removeprefix(form.EXTRA): rows[k] for k in extras},
        )  # fmt: skip

    def _line(self, location: form.Location) -> Mapping[str, Any]:
        return self.source.own[location.index + 1]


class _Foreign(_Reader):
    """A dataset of others."""

    def __init__(self, source: form.Source, options: ImportOptions) -> None:
        super().__init__(source, options)
        if options.stride < 1:
            raise DataError(f'stride {options.stride}: at least 1')
        c, notes = guess(source, options.columns)
        if options.pose_from_joints:
            c = replace(c, position='', rotation='')
        self.columns = c
        self.notes += notes
        self._check(c)
        features = source.features
        self._pick = {field: parse(selector, features) for field, selector in c.selectors().items()}
        for field_, widths in (('position', (3,)), ('rotation', (4,) if c.rotation_kind == 'quat' else (3,)),
                               ('gripper', (1,)), ('command', (1,))):  # fmt: skip
            if field_ in self._pick:
                key, part = self._pick[field_]
                if part.stop - part.start not in widths:
                    raise DataError(
                        f'{field_} {getattr(c, field_)!r} has {part.stop - part.start} numbers, {widths[0]} are needed'
                    )
        views = {name: form.size_of(features[key]) for key, name in c.views.items()}
        if not views:
            raise DataError(f'{source.path} has no camera, a policy cannot be trained without one')
        skipped = [k for k, f in features.items() if form.is_depth(f)]
        if skipped:
            self.notes.append(f'depth pictures are left out: {", ".join(skipped)}')
        self.meta = Meta(
            options.name or _safe(source.path.resolve().name), options.embodiment or source.robot or 'unknown',
            options.stride / source.fps, views, options.delta_frame, options.rotation, options.frame_id,
            f'imported from LeRobot {source.version}',
        )  # fmt: skip

    def _check(self, c: Columns) -> None:
        if not (c.position and c.rotation) and not (c.joints and self.options.forward):
            why = (
                'the joints are there: name the robot (embodiment) to get the pose from them'
                if c.joints
                else "tell which columns they are, for example position 'observation.state[0:3]'"
            )
            raise DataError(
                f'{self.source.path}: no tcp position and orientation found among the columns; {why}. It has:\n'
                f'{describe(self.source)}'
            )
        if not c.joints:
            self.notes.append('no joint positions: q and dq stay empty')
        if c.joints and not c.velocities:
            self.notes.append('no joint velocities: taken from the positions')
        if not c.position or not c.rotation:
            self.notes.append('no tcp pose: computed from the joints')
        if not c.gripper:
            self.notes.append(
                'no measured gripper: ' + ('its command is used' if c.command else 'it counts as open throughout')
            )

    def name_of(self, location: form.Location) -> str:
        return f'{self.meta.name}-{location.index:06d}'

    def episode(self, location: form.Location) -> Episode:
        stride = self.options.stride
        keys = {key for key, _ in self._pick.values()} | {'timestamp'}
        images = [k for k in self.columns.views if self.source.features[k]['dtype'] == 'image']
        rows = {k: v[::stride] for k, v in self.rows(location, [*sorted(keys), *images]).items()}
        times, t = _times(rows), len(rows['timestamp'])
        q = self._values(rows, 'joints', t)
        dq = self._values(rows, 'velocities', t)
        if q.shape[1] and not dq.shape[1]:
            dq = np.gradient(q, self.meta.step_period, axis=0) if t > 1 else np.zeros_like(q)
        poses = self._poses(rows, q)
        opening = self._opening(rows, 'gripper', location)
        command = self._opening(rows, 'command', location)
        if opening is None:
            opening = command if command is not None else np.ones(t)
        if command is None:  # what the gripper did next is what it was told
            command = np.append(opening[1:], opening[-1:])
        proprio = np.zeros((t, 8))
        proprio[:, :6] = [xyz_rpy_from_pose(p) for p in poses]
        proprio[:, 7] = opening
        actions = np.zeros((t, 7))
        for k in range(t - 1):
            actions[k, :6] = delta_between(poses[k], poses[k + 1], self.options.delta_frame, self.options.rotation)
        actions[:, 6] = command
        views = {name: self.pictures(location, key, times, rows) for key, name in self.columns.views.items()}
        if not location.tasks or not location.tasks[0].strip():
            self.notes.append('some episodes have no sentence; training needs one')
        if len(location.tasks) > 1:
            self.notes.append('some episodes have several sentences; the first is the instruction, all are in info')
        key, part = self._pick.get('success', ('', slice(0, 1)))
        success = bool(np.ravel(_wide(rows[key])[-1, part])[0] > 0) if key else None
        return Episode(
            id=self.name_of(location), instruction=location.tasks[0] if location.tasks else '',
            step_period=self.meta.step_period, stamps_ns=np.round(times * 1e9).astype(np.int64), proprio=proprio, q=q,
            dq=dq, actions=actions, views=views, success=success, source=f'lerobot:{self.source.path.name}',
            info={'tasks': list(location.tasks), 'episode_index': location.index},
        )  # fmt: skip

    def _values(self, rows: Mapping[str, Any], name: str, t: int) -> Array:
        if name not in self._pick:
            return np.empty((t, 0))
        key, part = self._pick[name]
        return _wide(rows[key])[:, part]

    def _poses(self, rows: Mapping[str, Any], q: Array) -> list[Array]:
        c, forward = self.columns, self.options.forward
        if not (c.position and c.rotation):
            assert forward is not None  # checked with the columns
            return [forward(row) for row in q]
        xyz = self._values(rows, 'position', len(q))
        turn = self._values(rows, 'rotation', len(q))
        if not (np.isfinite(xyz).all() and np.isfinite(turn).all()):
            raise DataError('the tcp pose is not finite')
        if c.rotation_kind == 'quat' and (np.linalg.norm(turn, axis=1) < 1e-6).any():
            raise DataError('a quaternion of the tcp pose has no length')
        if c.rotation_kind == 'rpy':
            turns = Rotation.from_euler('xyz', turn)
        else:
            turns = Rotation.from_quat(turn) if c.rotation_kind == 'quat' else Rotation.from_rotvec(turn)
        return [pose(p, r) for p, r in zip(xyz, turns, strict=True)]

    def _opening(self, rows: Mapping[str, Any], name: str, location: form.Location) -> Array | None:
        if name not in self._pick:
            return None
        key, part = self._pick[name]
        c = self.columns
        value = (_wide(rows[key])[:, part][:, 0] - c.closed) / (c.opened - c.closed)
        low, high = float(value.min()), float(value.max())
        if not (low >= -0.1 and high <= 1.1):
            raw = _wide(rows[key])[:, part]
            raise DataError(
                f'episode {location.index}: {getattr(c, name)} runs from {raw.min():.4g} to {raw.max():.4g}, not '
                f'between closed {c.closed:g} and open {c.opened:g}; tell the values of a closed and an open gripper'
            )
        return np.clip(value, 0.0, 1.0)


def _numbers(column: Any, location: form.Location, key: str) -> Any:
    """A column as an array; cells with pictures stay objects."""
    pa, _ = form.arrow()
    column = column.combine_chunks()
    if pa.types.is_struct(column.type):
        cells = np.empty(len(column), dtype=object)
        cells[:] = column.to_pylist()
        return cells
    try:
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            return np.asarray(column.to_pylist(), dtype=np.float64)
        if pa.types.is_fixed_size_list(column.type):
            return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        return column.to_numpy(zero_copy_only=False)
    except (ValueError, TypeError, pa.ArrowException) as err:
        raise DataError(f'{location.data}: column {key} of episode {location.index} is uneven: {err}') from None


def _times(rows: Mapping[str, Any]) -> Array:
    times = np.asarray(rows['timestamp'], dtype=np.float64).ravel()
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise DataError('the timestamps of an episode go back')
    return times


def _wide(values: Any) -> Array:
    """(T,) or (T, n) as float64 (T, n)."""
    array = np.asarray(values, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


def _safe(name: str) -> str:
    return re.sub(r'[^A-Za-z0-9._-]+', '_', name).lstrip('._-')[:100] or 'lerobot'
