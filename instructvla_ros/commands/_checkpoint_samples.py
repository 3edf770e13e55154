"""Frames with the steps that followed them, for `instructvla checkpoint choose-mask`: a file, or recorded episodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..data.episodes import Dataset
from ..errors import CheckpointError, DataError
from ..model.choose import Sample
from ..model.config import ModelConfig
from ..training.frames import windows


def from_file(file: Path, limit: int) -> Iterator[Sample]:
    """The first ``limit`` samples of an .npz.

    Raises:
        CheckpointError: it lacks an array, or their lengths differ.
    """
    try:
        with np.load(file, allow_pickle=False) as data:
            arrays = {k: data[k] for k in ('views', 'proprio', 'steps', 'instruction')}
    except (OSError, ValueError, KeyError) as err:
        raise CheckpointError(f'{file} is not a sample file with views, proprio, steps, instruction: {err}') from None
    if len({len(a) for a in arrays.values()}) != 1:
        raise CheckpointError(f'{file}: the arrays have different lengths')
    for i in range(min(limit, len(arrays['views']))):
        yield Sample(tuple(arrays['views'][i]), arrays['proprio'][i], str(arrays['instruction'][i]), arrays['steps'][i])


def from_episodes(dataset: Dataset, config: ModelConfig, episodes: int, limit: int, seed: int) -> Iterator[Sample]:
    """About ``limit`` random frames of random episodes, as many of each, with whole chunks behind them.

    Views, chunks and periods are those of training: the first views of the dataset, one step per frame or the stored
    chunks. Failed episodes are left out: what they do is not what the model was trained to do.

    Args:
        episodes: how many are drawn; all when there are fewer.

    Raises:
        DataError: too few views, or no episode is as long as a chunk.
    """
    views = tuple(dataset.meta.views)[: config.views]
    if len(views) < config.views:
        raise DataError(f'{dataset.path} has the views {", ".join(views) or "none"}, the model sees {config.views}')
    rng = np.random.default_rng(seed)
    good = [k for k, entry in enumerate(dataset.index) if entry.success is not False]
    chosen = sorted(rng.permutation(len(good))[:episodes].tolist())
    each, found = max(-(-limit // max(len(chosen), 1)), 1), 0
    for number in chosen:
        episode = dataset.read(good[number])
        steps, valid = windows(episode, config.horizon)
        whole = np.flatnonzero(valid.all(axis=1))
        for k in sorted(rng.permutation(whole)[:each].tolist()):
            if found == limit:
                return
            found += 1
            pictures = tuple(episode.views[v][k] for v in views)
            yield Sample(pictures, episode.proprio[k], episode.instruction, steps[k])
    if not found:
        raise DataError(
            f'{dataset.path}: none of {len(chosen)} episodes drawn has {config.horizon} steps behind a frame; '
            'the model predicts so many'
        )
