"""Export of a dataset to LeRobot v3.0."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..geometry import Array
from . import lerobot as form
from . import lerobot_stats as statistics
from .episodes import Dataset, Episode
from .lerobot_video import VideoSink, check_codec

OWN_FORMAT = 'instructvla_ros/lerobot/1'
_STATE_NAMES = ['x', 'y', 'z', 'roll', 'pitch', 'yaw', 'pad', 'gripper']
_ACTION_NAMES = {
    'rpy': ['delta_x', 'delta_y', 'delta_z', 'delta_roll', 'delta_pitch', 'delta_yaw', 'gripper'],
    'rotvec': ['delta_x', 'delta_y', 'delta_z', 'delta_rx', 'delta_ry', 'delta_rz', 'gripper'],
}


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        codec: 'h264' (every player) or 'av1' (smaller, what LeRobot records). quality: CRF, None for the codec's own.
        robot_type: name in info.json; the embodiment of the dataset when empty.
        data_mb, video_mb: a new file begins beyond this size.
    """

    codec: str = 'h264'
    quality: int | None = None
    robot_type: str = ''
    data_mb: float = form.DATA_MB
    video_mb: float = form.VIDEO_MB


@dataclass(frozen=True)
class Exported:
    """What was written; ``notes`` name what the format could not take."""

    path: Path
    episodes: int
    frames: int
    tasks: int
    notes: tuple[str, ...] = ()


def export_dataset(
    dataset: Dataset,
    folder: str | Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  # frozen
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write a dataset as LeRobot v3.0; the folder appears when it is complete.

    Numbers become float32 and pictures a video. Ids, success, sources, annotations and exact stamps go to a file of our
    own beside theirs, so that an import gives the same episodes back.

    Raises:
        DataError: no episodes, the folder is taken, or an episode differs in its joints from the first.
        SetupError: pyarrow or av is not installed.
    """
    form.arrow()
    codec, quality = check_codec(options.codec, options.quality)
    out = Path(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f'{out} is there already; export to a new folder')
    if not len(dataset):
        raise DataError(f'{dataset.path} holds no episodes, there is nothing to export')
    draft = out.with_name(f'.{out.name}.exporting')  # of an export that was killed, if it exists
    shutil.rmtree(draft, ignore_errors=True)
    try:
        (draft / 'meta').mkdir(parents=True)
        job = _Export(dataset, draft, options, codec, quality)
        try:
            for number in range(len(dataset)):
                job.add(dataset.read(number), number)
                progress(number + 1, len(dataset))
        finally:
            job.close()
        done = job.finish(out)
        if out.is_dir():
            out.rmdir()
        os.replace(draft, out)
    except OSError as err:
        raise DataError(f'{out} cannot be written: {err.strerror or err}') from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return done


def rate(step_period: float) -> Fraction:
    """Frames per second: a whole number where the period means one (0.0667 s is 15)."""
    fps = 1.0 / step_period
    if abs(fps - round(fps)) < 5e-3 * fps and round(fps) >= 1:
        return Fraction(round(fps))
    return Fraction(fps).limit_denominator(1000)


@dataclass
class _Export:
    dataset: Dataset
    folder: Path
    options: ExportOptions
    codec: str
    quality: int
    tasks: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    stats: list[dict[str, statistics.Stats]] = field(default_factory=list)
    own: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        meta = self.dataset.meta
        self.fps = rate(meta.step_period)
        self.sinks = {
            view: VideoSink(
                self.folder, form.IMAGES + view, self.fps, size, self.codec, self.quality, self.options.video_mb
            )
            for view, size in meta.views.items()
        }
        self.columns: dict[str, tuple[str, int, list[str]]] = {}
        self.table: Any = None
        self.schema: Any = None
        self.file: Path | None = None
        self.extras: tuple[str, ...] = ()
        self.number, self.frames = -1, 0

    def add(self, episode: Episode, number: int) -> None:
        if not self.columns:
            self._choose_columns(episode)
        values = self._values(episode)
        task = self.tasks.setdefault(episode.instruction, len(self.tasks))
        t = len(episode)
        index: Any = np.arange(t)
        values |= {
            'timestamp': (index / float(self.fps)).astype(np.float32),
            'frame_index': index,
            'episode_index': np.full_like(index, number),
            'index': index + self.frames,
            'task_index': np.full_like(index, task),
        }
        place = self._write_rows(values)
        row: dict[str, Any] = {'episode_index': number, 'tasks': [episode.instruction], 'length': t, **place}
        row |= {'dataset_from_index': self.frames, 'dataset_to_index': self.frames + t}
        stats = {key: statistics.of_rows(value) for key, value in values.items()}
        for view, sink in self.sinks.items():
            watch = statistics.PictureStats(t)
            where = sink.episode(watch.watch(episode.views[view]))
            row |= {f'videos/{sink.key}/{k}': v for k, v in where.items()}
            stats[sink.key] = watch.result()
        self.frames += t
        self.rows.append(row)
        self.stats.append(stats)
        self.own.append(
            {
                'id': episode.id, 'success': episode.success, 'source': episode.source,
                'info': dict(episode.info), 'annotations': dict(episode.annotations),
            }
        )  # fmt: skip

    def close(self) -> None:
        for sink in self.sinks.values():
            sink.close()
        self._close_table()

    def finish(self, path: Path) -> Exported:
        """Write the meta data; the parts of the dataset are complete."""
        self._write_tasks()
        self._write_episodes()
        _write_json(self.folder / form.STATS, statistics.plain(statistics.merge(self.stats)))
        _write_json(self.folder / form.INFO, self._info())
        own = [{'format': OWN_FORMAT, 'meta': asdict(self.dataset.meta)}, *self.own]
        (self.folder / form.OWN).write_text(''.join(json.dumps(line) + '\n' for line in own), encoding='utf-8')
        (self.folder / 'README.md').write_text(self._card(), encoding='utf-8')
        return Exported(path, len(self.rows), self.frames, len(self.tasks), tuple(dict.fromkeys(self.notes)))

    # -- columns ----------------------------------------------------------------------------------------------

    def _choose_columns(self, first: Episode) -> None:
        joints = first.q.shape[1]
        names = [f'joint_{k + 1}' for k in range(joints)]
        chosen: dict[str, tuple[str, int, list[str]]] = {form.STATE: ('float32', 8, _STATE_NAMES)}
        if joints:
            chosen |= {form.JOINTS: ('float32', joints, names), form.VELOCITIES: ('float32', joints, names)}
        chosen[form.ACTION] = ('float32', 7, _ACTION_NAMES[self.dataset.meta.rotation])
        chosen[form.STAMP] = ('int64', 1, ['stamp_ns'])
        for name, value in first.extras.items():
            array = np.asarray(value)
            if array.dtype.kind not in 'fiub' or array.ndim > 2 or '/' in name:
                self.notes.append(f'extra {name!r} left out: only numbers (T,) or (T, n) can be exported')
                continue
            width = 1 if array.ndim == 1 else array.shape[1]
            kind = 'bool' if array.dtype.kind == 'b' else 'float32' if array.dtype.kind == 'f' else 'int64'
            chosen[form.EXTRA + name] = (kind, width, [name] if width == 1 else [f'{name}_{k}' for k in range(width)])
            self.extras += (name,)
        self.columns = chosen
        pa, _ = form.arrow()
        types = {'float32': pa.float32(), 'int64': pa.int64(), 'bool': pa.bool_()}
        fields = [(k, types[kind] if n == 1 else pa.list_(types[kind], n)) for k, (kind, n, _) in chosen.items()]
        fields += [(k, pa.float32() if k == 'timestamp' else pa.int64()) for k in form.BOOKKEEPING]
        self.schema = pa.schema(fields)

    def _values(self, episode: Episode) -> dict[str, Array]:
        found = {
            form.STATE: episode.proprio, form.JOINTS: episode.q, form.VELOCITIES: episode.dq,
            form.ACTION: episode.actions, form.STAMP: episode.stamps_ns,
        }  # fmt: skip
        found |= {form.EXTRA + k: np.asarray(v) for k, v in episode.extras.items()}
        odd = sorted(set(episode.extras) - set(self.extras))
        if odd:
            self.notes.append(f'extras {", ".join(odd)} left out of some episodes: the first episode has none')
        out = {}
        for key, (kind, width, _) in self.columns.items():
            if key not in found:
                raise DataError(f'episode {episode.id} lacks {key.removeprefix(form.EXTRA)!r}, the first one has it')
            value = found[key]
            if (1 if value.ndim == 1 else value.shape[1]) != width:
                raise DataError(f'episode {episode.id}: {key} is {value.shape[1:]} wide, in the first one {width}')
            out[key] = (value[:, 0] if value.ndim == 2 and width == 1 else value).astype(kind)
        return out

    # -- files ------------------------------------------------------------------------------------------------

    def _write_rows(self, values: Mapping[str, Array]) -> dict[str, int]:
        pa, parquet = form.arrow()
        if self.table is None or (self.file and self.file.stat().st_size >= self.options.data_mb * 2**20):
            self._close_table()
            self.number += 1
            self.file = self.folder / form.DATA_PATH.format(**_place(self.number))
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.table = parquet.ParquetWriter(self.file, self.schema, compression='snappy')
        arrays = []
        for kind in self.schema:
            value = np.ascontiguousarray(values[kind.name])
            if pa.types.is_fixed_size_list(kind.type):
                flat = pa.array(value.ravel(), type=kind.type.value_type)
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, kind.type.list_size))
            else:
                arrays.append(pa.array(value, type=kind.type))
        # One row group per episode: a reader of one episode touches nothing else.
        self.table.write_table(pa.Table.from_arrays(arrays, schema=self.schema), row_group_size=1 << 20)
        place = _place(self.number)
        return {f'data/{name}': value for name, value in place.items()}

    def _close_table(self) -> None:
        if self.table is not None:
            self.table.close()
            self.table = None

    def _write_tasks(self) -> None:
        pa, parquet = form.arrow()
        table = pa.table({'task_index': pa.array(list(self.tasks.values()), pa.int64()), 'task': list(self.tasks)})
        # LeRobot reads this table with pandas and expects the sentences as its index.
        column = {'pandas_type': 'int64', 'numpy_type': 'int64', 'metadata': None}
        text = {'pandas_type': 'unicode', 'numpy_type': 'object', 'metadata': None}
        pandas = {
            'index_columns': ['task'],
            'column_indexes': [{'name': None, 'field_name': None, **text, 'metadata': {'encoding': 'UTF-8'}}],
            'columns': [
                {'name': 'task_index', 'field_name': 'task_index', **column},
                {'name': 'task', 'field_name': 'task', **text},
            ],
            'creator': {'library': 'pyarrow', 'version': pa.__version__},
            'pandas_version': '2.0.0',
        }
        parquet.write_table(table.replace_schema_metadata({'pandas': json.dumps(pandas)}), self.folder / form.TASKS)

    def _write_episodes(self) -> None:
        pa, parquet = form.arrow()
        place = {f'meta/episodes/{k}': v for k, v in _place(0).items()}
        rows = []
        for row, stats in zip(self.rows, self.stats, strict=True):
            numbers = {f'stats/{key}/{k}': v for key, one in statistics.plain(stats).items() for k, v in one.items()}
            rows.append({**row, **numbers, **place})
        file = self.folder / form.EPISODES_PATH.format(**_place(0))
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), file, compression='snappy')

    def _info(self) -> dict[str, Any]:
        fps = float(self.fps)
        features: dict[str, Any] = {}
        for key, (kind, width, names) in self.columns.items():
            features[key] = {'dtype': kind, 'shape': [width], 'names': names}
        for view, sink in self.sinks.items():
            width, height = self.dataset.meta.views[view]
            shape = {'shape': [height, width, 3], 'names': ['height', 'width', 'channels']}
            features[sink.key] = {'dtype': 'video', **shape, 'info': sink.info()}
        for key in form.BOOKKEEPING:
            features[key] = {'dtype': 'float32' if key == 'timestamp' else 'int64', 'shape': [1], 'names': None}
        return {
            'codebase_version': form.VERSION,
            'robot_type': self.options.robot_type or self.dataset.meta.embodiment,
            'total_episodes': len(self.rows),
            'total_frames': self.frames,
            'total_tasks': len(self.tasks),
            'chunks_size': form.CHUNK_FILES,
            'data_files_size_in_mb': max(1, math.ceil(self.options.data_mb)),
            'video_files_size_in_mb': max(1, math.ceil(self.options.video_mb)),
            'fps': int(fps) if fps.is_integer() else fps,
            'splits': {'train': f'0:{len(self.rows)}'},
            'data_path': form.DATA_PATH,
            'video_path': form.VIDEO_PATH if self.sinks else None,
            'features': features,
        }

    def _card(self) -> str:
        meta = self.dataset.meta
        return (
            '---\ntags:\n- LeRobot\n- robotics\ntask_categories:\n- robotics\nconfigs:\n- config_name: default\n'
            '  data_files: data/*/*.parquet\n---\n\n'
            f'# {meta.name}\n\n{len(self.rows)} episodes, {self.frames} frames at {float(self.fps):g} Hz, robot '
            f'{meta.embodiment}. LeRobot {form.VERSION}, exported from instructvla_ros.\n\n'
            f'`observation.state`: tcp position [m], fixed-axis roll pitch yaw [rad], 0, gripper openness 0..1, in '
            f"frame '{meta.frame_id or 'base'}'. `action`: motion of the tcp to the next frame "
            f'({meta.delta_frame} frame, {meta.rotation}) and commanded openness.\n\n{meta.notes}\n'
        )


def _place(number: int) -> dict[str, int]:
    return {'chunk_index': number // form.CHUNK_FILES, 'file_index': number % form.CHUNK_FILES}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=4, allow_nan=False) + '\n', encoding='utf-8')
