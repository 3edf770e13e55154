"""Dataset statistics: actions and proprioception between physical units and [-1, 1] (specification 7)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datatypes import PROPRIO_DIM, STEP_DIM
from ..errors import CheckpointError, suggest
from ..geometry import Array

GRIPPER = STEP_DIM - 1
GRIPPER_THRESHOLD = 0.5


@dataclass(frozen=True)
class Statistics:
    """Quantiles of one dataset.

    Attributes:
        q01, q99: (7,) of the actions. mask: (7,) True where an action is scaled.
        proprio_q01, proprio_q99: (8,), or None when the dataset has none.
    """

    name: str
    q01: Array
    q99: Array
    mask: Array
    proprio_q01: Array | None = None
    proprio_q99: Array | None = None

    def finish(self, raw: Array) -> Array:
        """Clip to [-1, 1] and make the gripper 0 or 1; any leading shape (..., 7)."""
        out = np.clip(raw, -1.0, 1.0)
        out[..., GRIPPER] = np.where(out[..., GRIPPER] < GRIPPER_THRESHOLD, 0.0, 1.0)
        return out

    def unnormalize(self, normalized: Array) -> Array:
        """Finished actions (..., 7) -> metres, radians, openness; float64."""
        scaled = 0.5 * (normalized.astype(np.float64) + 1.0) * (self.q99 - self.q01) + self.q01
        return np.where(self.mask, scaled, normalized)

    def normalize(self, actions: Array) -> Array:
        """Inverse of :meth:`unnormalize` for training targets (..., 7), clipped to [-1, 1] where scaled."""
        span = np.where(self.q99 > self.q01, self.q99 - self.q01, 1.0)
        scaled = np.clip(2.0 * (actions - self.q01) / span - 1.0, -1.0, 1.0)
        return np.where(self.mask, np.where(self.q99 > self.q01, scaled, 0.0), actions)

    def normalize_proprio(self, proprio: Array) -> Array:
        """(..., 8) -> [-1, 1], 0 where the quantiles are equal; float64.

        Raises:
            CheckpointError: this dataset has no proprio statistics.
        """
        if self.proprio_q01 is None or self.proprio_q99 is None:
            raise CheckpointError(
                f'statistics of {self.name!r} have no proprio q01/q99, but the model reads the arm state'
            )
        q01, q99 = self.proprio_q01, self.proprio_q99
        scaled = np.clip(2.0 * (np.asarray(proprio, np.float64) - q01) / (q99 - q01 + 1e-8) - 1.0, -1.0, 1.0)
        return np.where(q99 == q01, 0.0, scaled)


def read_statistics(source: str | Path | Mapping[str, Any], name: str = '', proprio: bool = False) -> Statistics:
    """Read one dataset of ``dataset_statistics.json``.

    Args:
        source: the file, or its content.
        name: dataset; may be empty when the file has exactly one.
        proprio: require proprio statistics.

    Raises:
        CheckpointError: file, dataset or key missing, or of the wrong length.
    """
    where = 'dataset_statistics.json'
    if not isinstance(source, Mapping):
        where = str(source)
        try:
            source = json.loads(Path(source).read_text(encoding='utf-8'))
        except OSError as err:
            raise CheckpointError(f'cannot read {where}: {err.strerror}') from None
        except ValueError as err:
            raise CheckpointError(f'{where} is not JSON: {err}') from None
    if not isinstance(source, Mapping) or not source:
        raise CheckpointError(f'{where} holds no dataset')
    if not name:
        if len(source) != 1:
            raise CheckpointError(f'{where} holds {len(source)} datasets, name one: {", ".join(sorted(source))}')
        name = next(iter(source))
    if name not in source:
        raise CheckpointError(f'{where} has no dataset {name!r}.{suggest(name, source)}')
    entry = source[name]
    action = _group(entry, 'action', f'{where}: {name}')
    q01, q99 = (_vector(action, k, STEP_DIM, f'{where}: {name}.action') for k in ('q01', 'q99'))
    mask = np.asarray(action.get('mask', [True] * STEP_DIM), bool)
    if mask.shape != (STEP_DIM,):
        raise CheckpointError(f'{where}: {name}.action.mask must have {STEP_DIM} entries, got {mask.shape}')
    p01 = p99 = None
    if proprio or (isinstance(entry, Mapping) and 'proprio' in entry):
        group = _group(entry, 'proprio', f'{where}: {name}')
        p01, p99 = (_vector(group, k, PROPRIO_DIM, f'{where}: {name}.proprio') for k in ('q01', 'q99'))
    return Statistics(name, q01, q99, mask, p01, p99)


def _group(entry: Any, key: str, where: str) -> Mapping[str, Any]:
    group = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(group, Mapping):
        raise CheckpointError(f'{where} lacks the group {key!r} with q01 and q99')
    return group


def _vector(group: Mapping[str, Any], key: str, size: int, where: str) -> Array:
    if key not in group:
        raise CheckpointError(f'{where} lacks {key!r}; needed are q01 and q99')
    try:
        value = np.asarray(group[key], np.float64)
    except (TypeError, ValueError):
        raise CheckpointError(f'{where}.{key} is not a list of numbers') from None
    if value.shape != (size,) or not np.all(np.isfinite(value)):
        raise CheckpointError(f'{where}.{key} must be {size} finite numbers, got shape {value.shape}')
    return value
