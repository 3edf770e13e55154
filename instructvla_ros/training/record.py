"""What the report of a run is made from: facts of the run, and what the model does on episodes it never saw."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datatypes import Image
from ..errors import DataError
from ..evaluation import machine
from ..geometry import Array
from .examples import Examples
from .objective import Objective
from .plan import plan
from .setup import Run
from .validate import act

FACTS, PREDICTIONS = 'run.json', 'predictions.npz'
EPISODES = 3
FRAMES = 80
"""Most frames of an episode that are predicted; of longer ones every second, third, ..."""


@dataclass(frozen=True)
class Prediction:
    """The model on one held-out episode, at every frame from what it really saw there.

    Attributes:
        times: (n,) [s] from the start. recorded, predicted: (n, 7) first step of the chunk, physical units; recorded
            is nan where the episode ends. ends: (n,) distance between the ends of both chunks [m], nan at the end.
        still: (n,) the same for a chunk that does not move. picture: what the language model sees in the first frame.
    """

    episode: str
    instruction: str
    times: Array
    recorded: Array
    predicted: Array
    ends: Array
    still: Array
    picture: Image


def write_facts(run: Run, folder: Path) -> None:
    """Write ``run.json``: options, plan, datasets, machine, versions.

    Raises:
        DataError: the disk is full.
    """
    made = plan(run.options)
    content = {
        'created': time.strftime('%Y-%m-%d %H:%M'),
        'command': [Path(sys.argv[0]).name, *sys.argv[1:]],
        'options': asdict(run.options),
        'plan': {**asdict(made), 'total_gb': made.total_gb},
        'datasets': [dataset_facts(e, [h for h in run.held_out if h.store is e.store]) for e in run.train],
        'validation': [dataset_facts(h, [h]) for h in run.held_out if all(h.store is not e.store for e in run.train)],
        'shares': [float(s) for s in run.shares],
        'machine': machine.facts() | ({'GPU': torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        'versions': machine.versions(),
    }
    _write(folder / FACTS, (json.dumps(content, indent=1) + '\n').encode())


def dataset_facts(examples: Examples, held_out: list[Examples]) -> dict[str, Any]:
    """What a dataset holds, in plain data."""
    store = examples.store
    aside = {int(k) for h in held_out for k in np.unique(h.store.episode[h.rows])}
    return {
        'name': store.meta.name,
        'path': str(store.place.parent.parent),
        'embodiment': store.meta.embodiment,
        'episodes': len(store.texts),
        'failed': sum(t.success is False for t in store.texts),
        'held_out': len(aside),
        'frames': len(store),
        'period': store.meta.step_period,
        'views': list(store.meta.views),
        'instructions': len({t.instruction for t in store.texts}),
        'annotated': sum(bool(t.annotations) or bool(t.info.get('objects')) for t in store.texts),
    }


def predict(objective: Objective, run: Run, most: int = EPISODES) -> list[Prediction]:
    """Run the model along up to ``most`` held-out episodes; none for runs without motion."""
    out: list[Prediction] = []
    if run.options.retell:
        return out
    objective.eval()
    for examples in run.held_out:
        store = examples.store
        if not store.has_actions or examples.statistics is None:
            continue
        for episode in np.unique(store.episode[examples.rows])[: most - len(out)]:
            rows = np.flatnonzero(store.episode == episode)
            out.append(_along(objective, run, examples, rows[:: max(1, -(-len(rows) // FRAMES))]))
    objective.train()
    return out


def _along(objective: Objective, run: Run, examples: Examples, rows: Any) -> Prediction:
    store, rng = examples.store, np.random.default_rng(7)
    size = max(1, min(run.options.batch // run.options.accumulate, 64))
    parts = [rows[k : k + size] for k in range(0, len(rows), size)]
    chunks = np.concatenate([act(objective, examples, part, rng) for part in parts])
    wanted, valid = np.asarray(store.actions[rows], np.float64), np.asarray(store.valid[rows])
    recorded = np.where(valid[:, :1], wanted[:, 0], np.nan)
    moved = (wanted * valid[..., None])[:, :, :3].sum(1)
    told = (chunks * valid[..., None])[:, :, :3].sum(1)
    some = valid[:, 0]
    text = store.texts[int(store.episode[rows[0]])]
    return Prediction(
        text.id,
        text.instruction,
        store.frame[rows] * store.meta.step_period,
        recorded,
        chunks[:, 0],
        np.where(some, np.linalg.norm(told - moved, axis=1), np.nan),
        np.where(some, np.linalg.norm(moved, axis=1), np.nan),
        np.array(store.joined[rows[0]]),
    )


_ARRAYS = ('times', 'recorded', 'predicted', 'ends', 'still', 'picture')


def write_predictions(found: list[Prediction], folder: Path) -> None:
    """Write ``predictions.npz``.

    Raises:
        DataError: the disk is full.
    """
    import io

    text = json.dumps([[p.episode, p.instruction] for p in found])
    arrays = {f'{name}_{k}': getattr(p, name) for k, p in enumerate(found) for name in _ARRAYS}
    out = io.BytesIO()
    np.savez_compressed(out, text=np.frombuffer(text.encode(), np.uint8), **arrays)
    _write(folder / PREDICTIONS, out.getvalue())


def read_predictions(folder: Path) -> list[Prediction]:
    """What :func:`write_predictions` wrote; empty when there is nothing or it is damaged."""
    try:
        with np.load(folder / PREDICTIONS, allow_pickle=False) as arrays:
            names = json.loads(bytes(arrays['text']))
            return [Prediction(*n, *(arrays[f'{a}_{k}'] for a in _ARRAYS)) for k, n in enumerate(names)]
    except (OSError, ValueError, KeyError, EOFError):
        return []


def read_facts(folder: Path) -> Mapping[str, Any]:
    """Content of ``run.json``.

    Raises:
        DataError: no run in this folder, or the file is damaged.
    """
    file = folder / FACTS
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except OSError:
        raise DataError(f'{folder} holds no training run: no {FACTS}. Train with `instructvla train`') from None
    except ValueError as err:
        raise DataError(f'{file} is damaged: {err}') from None
    if not isinstance(content, dict):
        raise DataError(f'{file} is damaged: it is not an object')
    return content


def peak_memory() -> float:
    """Most memory this process has held [GB]: of the GPU when there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == 'darwin' else peak * 1024 / 1e9


def _write(file: Path, content: bytes) -> None:
    draft = file.with_name(f'{file.name}.part')
    try:
        draft.write_bytes(content)
        os.replace(draft, file)
    except OSError as err:
        draft.unlink(missing_ok=True)
        raise DataError(f'cannot write {file}: {err.strerror}') from None
