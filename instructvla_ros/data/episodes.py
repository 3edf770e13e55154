"""Episodes on disk: one folder per dataset, one file per episode, pictures kept encoded.

    meta.json  index.jsonl  episodes/<id>.npz  dataset_statistics.json (written by ``instructvla dataset stats``)

The index gains one line per episode after its file is complete, so an interrupted writer leaves a valid dataset and
goes on where it stopped. The files hold arrays and bytes only: nothing in them is executed.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from ..datatypes import PROPRIO_DIM, STEP_DIM, Image
from ..errors import DataError, ObservationError
from ..geometry import Array
from ..imaging import decode

FORMAT = 'instructvla_ros/episodes/1'
META, INDEX, FOLDER = 'meta.json', 'index.jsonl', 'episodes'
_ID = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,120}')
_EXTRA, _VIEW = 'extra/', 'view/'


@dataclass(frozen=True)
class Meta:
    """What holds for every episode of a dataset.

    Attributes:
        step_period: time between two frames [s]. views: name -> (width, height) [px].
        delta_frame: 'base' or 'tool'; rotation: 'rpy' or 'rotvec', of the actions. frame_id: robot base frame.
        chunk_period: step of the chunks in ``extras['chunks']`` [s]; 0: ``step_period``.
    """

    name: str
    embodiment: str
    step_period: float
    views: Mapping[str, tuple[int, int]]
    delta_frame: str = 'base'
    rotation: str = 'rpy'
    frame_id: str = ''
    notes: str = ''
    chunk_period: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.step_period) and self.step_period > 0.0):
            raise DataError(f'step_period must be positive seconds, got {self.step_period}')
        if self.delta_frame not in ('base', 'tool') or self.rotation not in ('rpy', 'rotvec'):
            raise DataError(
                f"delta_frame {self.delta_frame!r} / rotation {self.rotation!r}; allowed are 'base' or 'tool' "
                "and 'rpy' or 'rotvec'"
            )
        object.__setattr__(self, 'views', {str(k): (int(v[0]), int(v[1])) for k, v in self.views.items()})


class Frames(Sequence[Image]):
    """Pictures of one view, kept as JPEG or PNG bytes and decoded when asked for: ``frames[k]`` is uint8 RGB."""

    def __init__(self, blobs: Sequence[bytes]) -> None:
        self._blobs = tuple(bytes(b) for b in blobs)

    @staticmethod
    def encode(images: Iterable[Image], quality: int = 95) -> Frames:
        """Compress uint8 RGB pictures (H, W, 3); ``quality`` 0 keeps them exact (PNG)."""
        blobs = []
        for image in images:
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DataError(f'pictures must be uint8 RGB (H, W, 3), got {getattr(image, "shape", type(image))}')
            out = io.BytesIO()
            if quality:
                PilImage.fromarray(image).save(out, 'JPEG', quality=quality, subsampling=0)
            else:
                PilImage.fromarray(image).save(out, 'PNG', compress_level=1)
            blobs.append(out.getvalue())
        return Frames(blobs)

    def __len__(self) -> int:
        return len(self._blobs)

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return Frames(self._blobs[k])
        try:
            return decode(self._blobs[k])
        except ObservationError as err:
            raise DataError(f'picture {k} of {len(self)}: {err}') from None

    def encoded(self, k: int) -> bytes:
        """JPEG or PNG bytes of picture k."""
        return self._blobs[k]


@dataclass(frozen=True)
class Episode:
    """One demonstration of T frames, one every ``step_period`` seconds.

    Attributes:
        stamps_ns: (T,) [ns]. proprio: (T, 8) as in :class:`~instructvla_ros.datatypes.Observation`.
        q, dq: (T, n) [rad], [rad/s].
        actions: (T, 7) motion of the tcp from frame k to k + 1 [m], [rad] in the conventions of the dataset, and the
            commanded openness 0..1; the last row has no motion.
        views: pictures by view name, T of each.
        annotations: entry in the VLA-IT format (specification 9.5), or empty.
        success: None when nobody said. info: anything that JSON holds. extras: arrays with leading dimension T.

    Raises:
        DataError: lengths or shapes differ, or a number is not finite; names the field and the first bad frame.
    """

    id: str
    instruction: str
    step_period: float
    stamps_ns: Array
    proprio: Array
    q: Array
    dq: Array
    actions: Array
    views: Mapping[str, Frames]
    annotations: Mapping[str, Any] = field(default_factory=dict)
    success: bool | None = None
    source: str = ''
    info: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise DataError(f'episode id {self.id!r}: use letters, digits, dot, dash and underscore')
        t = len(self.stamps_ns)
        if t == 0:
            raise DataError(f'episode {self.id} has no frames')
        for name, width in (('proprio', PROPRIO_DIM), ('actions', STEP_DIM), ('q', None), ('dq', None)):
            value = getattr(self, name)
            if value.ndim != 2 or len(value) != t or (width is not None and value.shape[1] != width):
                raise DataError(f'episode {self.id}: {name} must be ({t}, {width or "joints"}), got {value.shape}')
            bad = ~np.isfinite(value).all(axis=1)
            if bad.any():
                raise DataError(f'episode {self.id}: {name} is not finite in frame {int(bad.argmax())} of {t}')
        for name, frames in self.views.items():
            if len(frames) != t:
                raise DataError(f'episode {self.id}: view {name!r} has {len(frames)} pictures for {t} frames')
        for name, value in self.extras.items():
            if len(value) != t:
                raise DataError(f'episode {self.id}: extra {name!r} has {len(value)} rows for {t} frames')

    def __len__(self) -> int:
        return len(self.stamps_ns)


@dataclass(frozen=True)
class Entry:
    """Line of the index."""

    id: str
    frames: int
    instruction: str
    success: bool | None = None
    source: str = ''


class Dataset:
    """A dataset opened for reading."""

    def __init__(self, path: Path, meta: Meta, index: list[Entry]) -> None:
        self.path, self.meta, self.index = path, meta, index
        self._by_id = {e.id: e for e in index}

    @staticmethod
    def open(path: str | Path) -> Dataset:
        """Read meta data and index.

        Raises:
            DataError: not a dataset, damaged, or of another version.
        """
        folder = Path(path)
        meta = _read_meta(folder)
        index: list[Entry] = []
        file = folder / INDEX
        lines = file.read_text(encoding='utf-8').splitlines() if file.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                index.append(Entry(**json.loads(line)))
            except (ValueError, TypeError) as err:
                if number == len(lines):  # the writer was killed in the middle of a line
                    break
                raise DataError(f'{file} line {number} is damaged: {err}') from None
        return Dataset(folder, meta, index)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Episode]:
        return (self.read(k) for k in range(len(self)))

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return sum(e.frames for e in self.index)

    def read(self, which: int | str) -> Episode:
        """Episode by position or id; its pictures stay encoded.

        Raises:
            DataError: no such episode, or its file is missing or damaged.
        """
        if isinstance(which, str) and which not in self._by_id:
            raise DataError(f'{self.path} has no episode {which!r}; it has {len(self)}, see {INDEX}')
        entry = self._by_id[which] if isinstance(which, str) else self.index[which]
        return _read_episode(self.path / FOLDER / f'{entry.id}.npz', entry.id, self.meta)


class Writer:
    """Adds episodes to a dataset, new or existing. Usable in a ``with`` statement.

    Raises:
        DataError: the folder holds a dataset with other meta data, or something else.
    """

    def __init__(self, path: str | Path, meta: Meta) -> None:
        self.path, self.meta = Path(path), meta
        try:
            (self.path / FOLDER).mkdir(parents=True, exist_ok=True)
            if (self.path / META).is_file():
                found = _read_meta(self.path)
                if found != meta:
                    odd = [k for k in asdict(meta) if getattr(found, k) != getattr(meta, k)]
                    raise DataError(
                        f'{self.path} already holds a dataset with another {", ".join(odd)} '
                        f'({", ".join(str(getattr(found, k)) for k in odd)}); write to another folder'
                    )
            else:
                text = json.dumps({'format': FORMAT, **asdict(meta)}, indent=1) + '\n'
                _replace(self.path / META, text.encode())
        except OSError as err:
            raise DataError(f'cannot write to {self.path}: {err.strerror}') from None
        self._known = {e.id for e in Dataset.open(self.path).index}
        self._mend_index()

    def has(self, episode_id: str) -> bool:
        """Whether this episode is already there."""
        return episode_id in self._known

    def add(self, episode: Episode) -> None:
        """Write an episode whole or not at all.

        Raises:
            DataError: the id is taken, the views or the period are not those of the dataset, or the disk is full.
        """
        if self.has(episode.id):
            raise DataError(f'{self.path} already has an episode {episode.id!r}')
        if set(episode.views) != set(self.meta.views):
            raise DataError(
                f'episode {episode.id} has the views {sorted(episode.views)}, the dataset {sorted(self.meta.views)}'
            )
        if abs(episode.step_period - self.meta.step_period) > 1e-9:
            raise DataError(
                f'episode {episode.id} has a step of {episode.step_period} s, the dataset {self.meta.step_period} s'
            )
        entry = Entry(episode.id, len(episode), episode.instruction, episode.success, episode.source)
        try:
            _replace(self.path / FOLDER / f'{episode.id}.npz', _pack(episode))
            with open(self.path / INDEX, 'a', encoding='utf-8') as index:
                index.write(json.dumps(asdict(entry)) + '\n')
        except OSError as err:
            raise DataError(
                f'episode {episode.id} was not written to {self.path}: {err.strerror}; the {len(self._known)} '
                'episodes before it are safe'
            ) from None
        self._known.add(episode.id)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is pending: every episode is on disk when ``add`` returns."""

    def _mend_index(self) -> None:
        """Cut off a half-written last line, so that the next one starts where it should."""
        file = self.path / INDEX
        if file.is_file():
            data = file.read_bytes()
            if data and not data.endswith(b'\n'):
                _replace(file, data[: data.rfind(b'\n') + 1])
                self._known = {e.id for e in Dataset.open(self.path).index}


def _read_meta(folder: Path) -> Meta:
    file = folder / META
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        version = content.pop('format')
        if version != FORMAT:
            raise DataError(f'{folder} has the format {version!r}, this version reads {FORMAT!r}')
        return Meta(**content)
    except OSError as err:
        raise DataError(
            f'{folder} is not a dataset of episodes ({META}: {err.strerror}); make one with `instructvla dataset build`'
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f'{file} is damaged: {err}') from None


def _pack(episode: Episode) -> bytes:
    arrays: dict[str, Array] = {
        name: np.asarray(getattr(episode, name)) for name in ('stamps_ns', 'proprio', 'q', 'dq', 'actions')
    }
    for name, frames in episode.views.items():
        blobs = [frames.encoded(k) for k in range(len(frames))]
        arrays[f'{_VIEW}{name}/ends'] = np.cumsum([len(b) for b in blobs])
        arrays[f'{_VIEW}{name}/bytes'] = np.frombuffer(b''.join(blobs), np.uint8)
    arrays.update({f'{_EXTRA}{k}': np.asarray(v) for k, v in episode.extras.items()})
    text = {
        'id': episode.id,
        'instruction': episode.instruction,
        'step_period': episode.step_period,
        'annotations': dict(episode.annotations),
        'success': episode.success,
        'source': episode.source,
        'info': dict(episode.info),
    }
    arrays['text'] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _read_episode(file: Path, name: str, meta: Meta) -> Episode:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            text = json.loads(bytes(arrays['text']))
            views = {}
            for view in meta.views:
                data, ends = bytes(arrays[f'{_VIEW}{view}/bytes']), arrays[f'{_VIEW}{view}/ends']
                starts = np.concatenate(([0], ends[:-1]))
                views[view] = Frames([data[a:b] for a, b in zip(starts, ends, strict=True)])
            return Episode(
                views=views,
                extras={k.removeprefix(_EXTRA): arrays[k] for k in arrays.files if k.startswith(_EXTRA)},
                **{k: arrays[k] for k in ('stamps_ns', 'proprio', 'q', 'dq', 'actions')},
                **text,
            )
    except FileNotFoundError:
        raise DataError(f'the file of episode {name} is missing: {file}') from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as err:
        raise DataError(f'the file of episode {name} is damaged ({err}): {file}') from None


def _replace(file: Path, content: bytes) -> None:
    draft = file.with_name(file.name + '.part')
    try:
        draft.write_bytes(content)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
