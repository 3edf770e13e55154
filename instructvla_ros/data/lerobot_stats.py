"""Statistics in the form of LeRobot: min, max, mean, std, count and five quantiles per feature."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..datatypes import Image
from ..geometry import Array

QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}
Stats = dict[str, Array]
_PICTURES, _SIDE = 40, 160


def of_rows(values: Array) -> Stats:
    """Statistics of (T, n) numbers over T: arrays (n,)."""
    v = np.asarray(values, dtype=np.float64)
    v = v.reshape(len(v), -1)
    out = {'min': v.min(axis=0), 'max': v.max(axis=0), 'mean': v.mean(axis=0), 'std': v.std(axis=0)}
    out['count'] = np.array([len(v)])
    out.update({name: np.quantile(v, q, axis=0) for name, q in QUANTILES.items()})
    return out


class PictureStats:
    """Statistics per colour, 0..1, of some pictures of an episode that pass through."""

    def __init__(self, frames: int) -> None:
        self._every = max(1, frames // _PICTURES)
        self._kept: list[Image] = []

    def watch(self, images: Iterable[Image]) -> Iterator[Image]:
        """The same pictures; some are remembered at low resolution."""
        for k, image in enumerate(images):
            if k % self._every == 0:
                stride = max(1, max(image.shape[:2]) // _SIDE)
                self._kept.append(image[::stride, ::stride].copy())
            yield image

    def result(self) -> Stats:
        """Arrays (3, 1, 1); the count is in pictures."""
        pixels = np.concatenate([p.reshape(-1, 3) for p in self._kept]).astype(np.float64) / 255.0
        out = {k: v if k == 'count' else v.reshape(3, 1, 1) for k, v in of_rows(pixels).items()}
        out['count'] = np.array([len(self._kept)])
        return out


def merge(episodes: Iterable[Mapping[str, Stats]]) -> dict[str, Stats]:
    """Statistics of all episodes together.

    Mean and standard deviation are exact. Quantiles of a union are not known from those of its parts: the lowest of the
    lower and the highest of the upper ones is given, as LeRobot does.
    """
    parts: dict[str, list[Stats]] = {}
    for episode in episodes:
        for key, stats in episode.items():
            parts.setdefault(key, []).append(stats)
    return {key: _merged(found) for key, found in parts.items()}


def plain(stats: Mapping[str, Mapping[str, Array]]) -> dict[str, Any]:
    """For JSON and Parquet: lists."""
    return {key: {name: np.asarray(v).tolist() for name, v in one.items()} for key, one in stats.items()}


def _merged(parts: list[Stats]) -> Stats:
    counts = np.array([float(p['count'][0]) for p in parts])
    shape = (-1,) + (1,) * parts[0]['mean'].ndim
    weights = (counts / counts.sum()).reshape(shape)
    means = np.stack([p['mean'] for p in parts])
    mean = (weights * means).sum(axis=0)
    spread = np.stack([p['std'] for p in parts]) ** 2 + (means - mean) ** 2
    out = {
        'min': np.min([p['min'] for p in parts], axis=0), 'max': np.max([p['max'] for p in parts], axis=0),
        'mean': mean, 'std': np.sqrt((weights * spread).sum(axis=0)), 'count': np.array([int(counts.sum())]),
    }  # fmt: skip
    for name, q in QUANTILES.items():
        out[name] = (np.min if q <= 0.5 else np.max)([p[name] for p in parts], axis=0)
    return out
