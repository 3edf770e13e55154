"""``dataset_statistics.json`` of a dataset in the form of the released checkpoints (specification 7.1).

A channel that hardly moves would blow its noise up to the full range of -1 .. 1: the quantiles of the motion are kept
at least :data:`FLOOR` apart, around their middle. A channel that is constant stays constant, which the model's scaling
maps to 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datatypes import PROPRIO_DIM, STEP_DIM
from ..errors import DataError
from ..geometry import Array
from .episodes import FOLDER, Dataset

STATISTICS = 'dataset_statistics.json'
FLOOR = np.array([2e-3, 2e-3, 2e-3, 5e-3, 5e-3, 5e-3, 0.0])
"""Smallest q99 - q01 of an action [m], [rad]; none for the gripper, which is not scaled."""
PROPRIO_FLOOR = np.array([2e-2, 2e-2, 2e-2, 5e-2, 5e-2, 5e-2, 0.0, 0.1])
MASK = [True] * (STEP_DIM - 1) + [False]
FEWEST = 16
"""Frames below which quantiles mean nothing."""


def compute(datasets: Sequence[Dataset], name: str = '') -> dict[str, Any]:
    """Statistics of one or more datasets together, under one name (of the first when empty).

    The last frame of an episode has no motion and does not count as a transition.

    Raises:
        DataError: too few frames, or the datasets differ in what an action means.
    """
    if not datasets:
        raise DataError('statistics of no dataset')
    first = datasets[0].meta
    for dataset in datasets[1:]:
        for key in ('step_period', 'delta_frame', 'rotation'):
            if getattr(dataset.meta, key) != getattr(first, key):
                raise DataError(
                    f'{dataset.path} has {key} {getattr(dataset.meta, key)}, {datasets[0].path} {getattr(first, key)}: '
                    'their actions do not mean the same'
                )
    actions, proprio, episodes = [], [], 0
    for dataset in datasets:
        for entry in dataset.index:
            a, p = _arrays(dataset, entry.id)
            actions.append(a[:-1])
            proprio.append(p)
            episodes += 1
    moved = np.concatenate(actions) if actions else np.empty((0, STEP_DIM))
    if len(moved) < FEWEST:
        raise DataError(f'{datasets[0].path} has {len(moved)} transitions, statistics need at least {FEWEST}')
    return {
        name or first.name: {
            'action': {**describe(moved, FLOOR), 'mask': MASK},
            'proprio': describe(np.concatenate(proprio), PROPRIO_FLOOR),
            'num_transitions': len(moved),
            'num_trajectories': episodes,
        }
    }


def write(dataset: Dataset, content: dict[str, Any]) -> Path:
    """Write ``dataset_statistics.json`` into a dataset.

    Raises:
        DataError: the folder cannot be written.
    """
    file = dataset.path / STATISTICS
    draft = file.with_name(f'{file.name}.part')
    try:
        draft.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
        os.replace(draft, file)
    except OSError as err:
        raise DataError(f'cannot write {file}: {err.strerror}') from None
    return file


def widen(q01: Array, q99: Array, floor: Array, constant: Array) -> tuple[Array, Array]:
    """Quantiles at least ``floor`` apart around their middle; ``constant`` channels are left alone."""
    missing = np.where(constant, 0.0, np.maximum(floor - (q99 - q01), 0.0))
    return q01 - missing / 2.0, q99 + missing / 2.0


def describe(values: Array, floor: Array, keep_constant: bool = True) -> dict[str, list[float]]:
    """One group of the file from values (n, channels); quantiles at least ``floor`` apart.

    Args:
        keep_constant: leave channels that never move at a width of 0, which the model's scaling maps to 0.
    """
    lowest, highest = values.min(axis=0), values.max(axis=0)
    q01, q99 = widen(
        np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0), floor, (lowest == highest) & keep_constant
    )
    numbers = {
        'mean': values.mean(axis=0), 'std': values.std(axis=0), 'max': highest, 'min': lowest, 'q01': q01, 'q99': q99,
    }  # fmt: skip
    return {key: [float(v) for v in value] for key, value in numbers.items()}


def _arrays(dataset: Dataset, episode_id: str) -> tuple[Array, Array]:
    """Actions and proprio of an episode, without its pictures."""
    file = dataset.path / FOLDER / f'{episode_id}.npz'
    try:
        with np.load(file, allow_pickle=False) as arrays:
            actions, proprio = arrays['actions'], arrays['proprio']
    except (OSError, ValueError, KeyError, EOFError) as err:
        raise DataError(f'the file of episode {episode_id} is damaged ({err}): {file}') from None
    if actions.ndim != 2 or actions.shape[1] != STEP_DIM or proprio.shape != (len(actions), PROPRIO_DIM):
        raise DataError(f'episode {episode_id} has actions {actions.shape} and proprio {proprio.shape}: {file}')
    if not (np.isfinite(actions).all() and np.isfinite(proprio).all()):
        raise DataError(f'episode {episode_id} has numbers that are not finite: {file}')
    return actions, proprio
