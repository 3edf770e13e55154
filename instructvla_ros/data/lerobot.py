"""The LeRobot dataset format v3.0 on disk, and v2.1 for reading: paths, tables, feature descriptions.

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet  videos/<key>/chunk-000/file-000.mp4

Several episodes share a file; ``meta/episodes`` says which rows and which seconds are whose. v2.1 has a file per
episode and JSON lines in ``meta/``. Source: the format pages and released datasets of huggingface/lerobot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, SetupError

VERSION = 'v3.0'
CHUNK_FILES = 1000
DATA_MB, VIDEO_MB = 100, 200
DATA_PATH = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO_PATH = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
EPISODES_PATH = 'meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
INFO, STATS, TASKS = 'meta/info.json', 'meta/stats.json', 'meta/tasks.parquet'
OWN = 'meta/instructvla.jsonl'
"""Our own file beside theirs: what the format has no place for. Other readers do not look at it."""
STATE, JOINTS, VELOCITIES, ACTION, STAMP = (
    'observation.state', 'observation.joint_position', 'observation.joint_velocity', 'action', 'observation.stamp_ns',
)  # fmt: skip
IMAGES, EXTRA = 'observation.images.', 'extra.'
BOOKKEEPING = ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index')


def arrow() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        SetupError: not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as err:
        raise _needs('pyarrow') from err
    return pyarrow, pyarrow.parquet


def video_library() -> Any:
    """The module ``av``.

    Raises:
        SetupError: not installed.
    """
    try:
        import av
    except ImportError as err:
        raise _needs('av') from err
    return av


def _needs(name: str) -> SetupError:
    return SetupError(f"LeRobot datasets need {name}, which is not installed: pip install 'instructvla_ros[lerobot]'")


@dataclass(frozen=True)
class Location:
    """Where an episode is.

    Attributes:
        index: episode_index. length: rows. tasks: its sentences.
        data: table file. videos: feature key -> (file, second of its first frame).
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, tuple[Path, float]]


@dataclass(frozen=True)
class Source:
    """A LeRobot dataset opened for reading.

    Attributes:
        fps: frames per second. features: as in info.json. episodes: in order. own: lines of our file, or ().
    """

    path: Path
    version: str
    fps: float
    robot: str
    features: Mapping[str, Mapping[str, Any]]
    episodes: tuple[Location, ...]
    own: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def cameras(self) -> list[str]:
        """Keys of colour pictures."""
        return [k for k, f in self.features.items() if f['dtype'] in ('video', 'image') and not is_depth(f)]


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a picture feature holds depth."""
    places = [feature.get('info') or {}, feature.get('video_info') or {}]
    return any(p.get('is_depth_map') or p.get('video.is_depth_map') for p in places if isinstance(p, Mapping))


def size_of(feature: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) of a picture feature, whichever order its shape has."""
    shape, names = list(feature['shape']), axis_names(feature)
    initials = [n[:1].lower() for n in names]
    if len(shape) == 3 and sorted(initials) == ['c', 'h', 'w']:
        return int(shape[initials.index('w')]), int(shape[initials.index('h')])
    if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
        return int(shape[2]), int(shape[1])
    return int(shape[1]), int(shape[0])


def axis_names(feature: Mapping[str, Any]) -> list[str]:
    """Names of the entries of a feature: a list, a list inside an object, or nothing."""
    names = feature.get('names')
    if isinstance(names, Mapping):
        names = next(iter(names.values()), None) if len(names) == 1 else list(names)
    return [str(n) for n in names] if isinstance(names, (list, tuple)) else []


def open_source(folder: str | Path) -> Source:
    """Read the meta data of a LeRobot dataset, v3.0 or v2.1.

    Raises:
        DataError: not one, of another version, or damaged; names the file.
    """
    path = Path(folder)
    info = _json(path / INFO, path)
    version = str(info.get('codebase_version', ''))
    if not version.startswith(('v3.', 'v2.')):
        raise DataError(f'{path / INFO}: codebase_version {version!r}; v3.0 and v2.1 can be read')
    try:
        fps = float(info['fps'])
        features = {str(k): dict(f) for k, f in info['features'].items()}
        for key, feature in features.items():
            if not isinstance(feature.get('dtype'), str) or not isinstance(feature.get('shape'), (list, tuple)):
                raise DataError(f"{path / INFO}: feature {key!r} needs 'dtype' and 'shape'")
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise DataError(f'{path / INFO} is damaged: {err!r}') from None
    if not (np.isfinite(fps) and fps > 0):
        raise DataError(f'{path / INFO}: fps is {fps}')
    reader = _episodes_v3 if version.startswith('v3.') else _episodes_v2
    episodes = tuple(reader(path, info, [k for k, f in features.items() if f['dtype'] == 'video']))
    if not episodes:
        raise DataError(f'{path} holds no episodes')
    return Source(path, version, fps, str(info.get('robot_type') or ''), features, episodes, tuple(_own_lines(path)))


def path_in(folder: Path, template: Any, **values: Any) -> Path:
    """Path of a template of info.json, which must stay inside the dataset."""
    try:
        file = (folder / str(template).format(**values)).resolve()
        inside = file.is_relative_to(folder.resolve())
    except (KeyError, IndexError, ValueError, AttributeError) as err:
        raise DataError(f'{folder / INFO}: path template {template!r} cannot be used: {err!r}') from None
    if not inside:
        raise DataError(f'{folder / INFO}: path template {template!r} leaves the dataset')
    return file


def read_table(file: Path) -> Any:
    """A Parquet file as a pyarrow table."""
    pa, parquet = arrow()
    try:
        # ParquetFile reads this one file; the dataset reader would guess partitions from the folder names.
        return parquet.ParquetFile(file).read()
    except FileNotFoundError:
        raise DataError(f'{file} is missing; was the download complete?') from None
    except (OSError, pa.ArrowException) as err:
        raise DataError(f'{file} cannot be read as Parquet: {err}') from None


def _episodes_v3(path: Path, info: Mapping[str, Any], videos: list[str]) -> list[Location]:
    files = sorted((path / 'meta' / 'episodes').glob('*/*.parquet'))
    if not files:
        raise DataError(f'{path} has no meta/episodes/chunk-*/file-*.parquet; was the download complete?')
    found = []
    for file in files:
        table = read_table(file)
        rows = table.select([c for c in table.column_names if not c.startswith('stats/')]).to_pylist()
        try:
            for row in rows:
                place = {'chunk_index': int(row['data/chunk_index']), 'file_index': int(row['data/file_index'])}
                where = {}
                for key in videos:
                    at = {k: int(row[f'videos/{key}/{k}']) for k in ('chunk_index', 'file_index')}
                    clip = path_in(path, info.get('video_path') or VIDEO_PATH, video_key=key, **at)
                    where[key] = (clip, float(row[f'videos/{key}/from_timestamp']))
                data = path_in(path, info.get('data_path') or DATA_PATH, **place)
                tasks = tuple(str(t) for t in row.get('tasks') or ())
                found.append(Location(int(row['episode_index']), int(row['length']), tasks, data, where))
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(f'{file}: an episode lacks {err}') from None
    return sorted(found, key=lambda e: e.index)


def _episodes_v2(path: Path, info: Mapping[str, Any], videos: list[str]) -> list[Location]:
    file = path / 'meta' / 'episodes.jsonl'
    found = []
    try:
        size = int(info.get('chunks_size') or CHUNK_FILES)
        for line in file.read_text(encoding='utf-8').splitlines():
            row = json.loads(line)
            index = int(row['episode_index'])
            place = {'episode_chunk': index // size, 'episode_index': index}
            where = {k: (path_in(path, info.get('video_path'), video_key=k, **place), 0.0) for k in videos}
            tasks = tuple(str(t) for t in row.get('tasks') or ())
            data = path_in(path, info.get('data_path'), **place)
            found.append(Location(index, int(row['length']), tasks, data, where))
    except OSError as err:
        raise DataError(f'{file} cannot be read: {err.strerror}') from None
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as err:
        raise DataError(f'{file} is damaged: {err!r}') from None
    return found


def _own_lines(path: Path) -> list[Mapping[str, Any]]:
    file = path / OWN
    if not file.is_file():
        return []
    try:
        lines = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]
    except (OSError, ValueError) as err:
        raise DataError(f'{file} is damaged ({err}); remove it to read the dataset as one of another origin') from None
    if not all(isinstance(line, Mapping) for line in lines):
        raise DataError(f'{file}: every line has to be an object')
    return lines


def _json(file: Path, folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except OSError:
        raise DataError(f'{folder} is not a LeRobot dataset: {file} cannot be read') from None
    except ValueError as err:
        raise DataError(f'{file} is damaged: {err}') from None
    if not isinstance(content, dict):
        raise DataError(f'{file}: an object is needed')
    return content
