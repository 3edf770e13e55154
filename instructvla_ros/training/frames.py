"""Frames ready for the model: every picture of a dataset resized once, in memory-mapped files beside it.

The resized pictures are those the live policy makes (``model.images``), so training and deployment see the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.episodes import Dataset, Episode, Meta
from ..datatypes import PROPRIO_DIM, STEP_DIM
from ..errors import DataError
from ..model.config import ModelConfig
from ..model.images import dino_place, dino_square, join_views, siglip_square

Array = NDArray[Any]
CACHE = 'cache'
OBJECTS = 8
"""Objects of a scene that grounding labels are kept for."""


@dataclass(frozen=True)
class EpisodeText:
    """What is said about an episode: its instruction, VLA-IT annotations, and facts of a simulated scene."""

    id: str
    instruction: str
    annotations: Mapping[str, Any]
    info: Mapping[str, Any]
    success: bool | None


class FrameStore:
    """All frames of one dataset for one model size.

    Attributes:
        episode: (N,) position of the episode in ``texts``. frame: (N,) frame in its episode.
        joined: (N, S, S, 3) uint8 of the VLM. views: (N, V, S', S', 3) uint8 of DINO.
        proprio: (N, 8). actions: (N, H, 7) physical units. valid: (N, H) False after the end of the episode.
        points: (N, V, objects, 2) 0..1 in each picture, nan when not visible or not known.
    """

    def __init__(self, meta: Meta, texts: list[EpisodeText], arrays: Mapping[str, Array], place: Path) -> None:
        self.meta, self.texts, self.place = meta, texts, place
        self.episode, self.frame = arrays['episode'], arrays['frame']
        self.joined, self.views = arrays['joined'], arrays['views']
        self.proprio, self.actions, self.valid = arrays['proprio'], arrays['actions'], arrays['valid']
        self.points = arrays['points']

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def has_actions(self) -> bool:
        """False for pictures of scenes without motion."""
        return bool(self.valid[:, 0].any())

    def of_episodes(self, chosen: Array) -> Array:
        """Indices of the frames whose episode is marked in ``chosen`` (episodes,) bool."""
        return np.flatnonzero(chosen[self.episode])


def open_frames(path: str | Path, config: ModelConfig, progress: bool = True) -> FrameStore:
    """Frames of a dataset, resized now or read from the cache of an earlier call.

    Raises:
        DataError: the dataset is empty or damaged, or has fewer views than the model, or the disk is full.
    """
    dataset = Dataset.open(path)
    if not len(dataset):
        raise DataError(f'{path} has no episodes')
    views = tuple(dataset.meta.views)[: config.views]
    if len(views) < config.views:
        raise DataError(f'{path} has the views {", ".join(views) or "none"}, the model sees {config.views}')
    place = _place(dataset, config)
    if not (place / 'done.json').is_file():
        _build(dataset, views, config, place, progress)
    arrays = {n: np.load(place / f'{n}.npy', mmap_mode='r') for n in ('joined', 'views')}
    arrays.update({n: np.load(place / f'{n}.npy') for n in _SMALL})
    texts = [EpisodeText(**t) for t in json.loads((place / 'done.json').read_text(encoding='utf-8'))]
    return FrameStore(dataset.meta, texts, arrays, place)


_SMALL = ('episode', 'frame', 'proprio', 'actions', 'valid', 'points')


def windows(episode: Episode, horizon: int, stride: int = 1) -> tuple[Array, Array]:
    """Chunks (T, H, 7) and validity (T, H) of an episode: ``extras['chunks']`` or the motion that follows each frame.

    Past the end the motion is zero and the gripper keeps its last command (specification 9.4).
    """
    t = len(episode)
    if 'chunks' in episode.extras:
        chunks = np.asarray(episode.extras['chunks'], np.float64)
        if chunks.shape[1] < horizon:
            missing = horizon - chunks.shape[1]
            ok = np.concatenate((np.ones(chunks.shape[1], bool), np.zeros(missing, bool)))
            tail = np.repeat(chunks[:, -1:], missing, axis=1) * ([0.0] * 6 + [1.0])
            return np.concatenate((chunks, tail), axis=1), np.tile(ok & (t > 1), (t, 1))
        return chunks[:, :horizon], np.full((t, horizon), t > 1)
    at = np.arange(t)[:, None] + stride * np.arange(horizon)
    inside = at < t - 1
    chunks = np.array(episode.actions[np.minimum(at, t - 1)])
    chunks[~inside, : STEP_DIM - 1] = 0.0
    return chunks, inside


def in_joined(points: Array, views: int) -> Array:
    """Points (..., V, n, 2) of the single pictures -> (..., V, n, 2) in the joined square the VLM sees."""
    out = np.array(points, np.float32)
    offset = np.arange(views, dtype=np.float32)[:, None]
    out[..., 0] = (out[..., 0] + offset) / views
    return out


def in_crop(points: Array, width: int, height: int, size: int) -> Array:
    """Points (..., 2) of a picture -> (..., 2) in the centre crop DINO sees; nan outside of it."""
    new, (left, top) = dino_place(width, height, size)
    out = (np.asarray(points, np.float32) * np.array(new, np.float32) - (left, top)) / size
    outside = ~((out >= 0.0) & (out <= 1.0)).all(axis=-1)
    out[outside] = np.nan
    return np.asarray(out, np.float32)


def _place(dataset: Dataset, config: ModelConfig) -> Path:
    """Folder of the cache: changes with the episodes and with every size that the pictures depend on."""
    key = json.dumps(
        [
            [e.id for e in dataset.index],
            dataset.frames,
            config.views,
            config.horizon,
            config.vision.image_size,
            config.dino.image_size,
        ]
    )
    return dataset.path / CACHE / hashlib.sha256(key.encode()).hexdigest()[:12]


def _build(dataset: Dataset, views: tuple[str, ...], config: ModelConfig, place: Path, progress: bool) -> None:
    n, s, d = dataset.frames, config.vision.image_size, config.dino.image_size
    place.mkdir(parents=True, exist_ok=True)
    big = {'joined': (n, s, s, 3), 'views': (n, len(views), d, d, 3)}
    try:
        memory = {
            k: np.lib.format.open_memmap(str(place / f'{k}.npy'), 'w+', np.uint8, shape) for k, shape in big.items()
        }
    except OSError as err:
        raise DataError(f'no room for the cache of {dataset.path}: {err.strerror}; it needs {_size(big)}') from None
    small: dict[str, list[Array]] = {k: [] for k in _SMALL}
    texts: list[dict[str, Any]] = []
    row = 0
    bar = tqdm(dataset, total=len(dataset), desc=f'resize {dataset.path.name}', unit='episode', disable=not progress)
    for number, episode in enumerate(bar):
        t = len(episode)
        for k in range(t):
            pictures = [episode.views[v][k] for v in views]
            memory['joined'][row + k] = siglip_square(join_views(pictures), s, quick=True)
            for j, picture in enumerate(pictures):
                memory['views'][row + k, j] = dino_square(picture, d, quick=True)
        chunks, valid = windows(episode, config.horizon)
        small['episode'].append(np.full(t, number))
        small['frame'].append(np.arange(t))
        small['proprio'].append(episode.proprio.reshape(t, PROPRIO_DIM).astype(np.float32))
        small['actions'].append(chunks.astype(np.float32))
        small['valid'].append(valid)
        small['points'].append(_points(episode, views))
        info = {k: v for k, v in episode.info.items() if k != 'sentences'}
        texts.append(
            {
                'id': episode.id,
                'instruction': episode.instruction,
                'annotations': dict(episode.annotations),
                'info': info,
                'success': episode.success,
            }
        )
        row += t
    for array in memory.values():
        array.flush()
    for name, parts in small.items():
        np.save(place / f'{name}.npy', np.concatenate(parts))
    draft = place / 'done.part'
    draft.write_text(json.dumps(texts), encoding='utf-8')
    os.replace(draft, place / 'done.json')


def _points(episode: Episode, views: tuple[str, ...]) -> Array:
    out = np.full((len(episode), len(views), OBJECTS, 2), np.nan, np.float32)
    for j, view in enumerate(views):
        points = episode.extras.get(f'points_{view}')
        if points is not None:
            count = min(points.shape[1], OBJECTS)
            out[:, j, :count] = points[:, :count]
    return out


def _size(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f'{sum(int(np.prod(s)) for s in shapes.values()) / 1e9:.1f} GB'
