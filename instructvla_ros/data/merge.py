"""Datasets put together, and taken apart by episodes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..errors import DataError
from .episodes import Dataset, Meta, Writer

_PIECE = re.compile(r'(.+-\d{3})-\d+')
_SAME = ('embodiment', 'step_period', 'views', 'delta_frame', 'rotation', 'frame_id', 'chunk_period')


def merge(
    sources: Sequence[Dataset], out: str | Path, name: str = '', progress: Callable[[int], None] = lambda n: None
) -> Dataset:
    """All episodes of the sources in one new dataset; an id that occurs twice gets the name of its dataset.

    Args:
        progress: told the number of episodes that are done.

    Raises:
        DataError: no sources, they differ in something that matters (named), or ``out`` is one of them.
    """
    if not sources:
        raise DataError('merge: no datasets given')
    target = Path(out)
    first = sources[0].meta
    for source in sources:
        if source.path.resolve() == target.resolve():
            raise DataError(f'merge: {target} is both source and target')
        for key in _SAME:
            if getattr(source.meta, key) != getattr(first, key):
                raise DataError(
                    f'merge: {source.path} has {key} {getattr(source.meta, key)}, {sources[0].path} has '
                    f'{getattr(first, key)}; build them with the same settings'
                )
    done = 0
    seen: set[str] = set()
    with Writer(target, replace(first, name=name or target.name or first.name)) as writer:
        for number, source in enumerate(sources):
            for entry in source.index:
                new = entry.id if entry.id not in seen else f'{source.meta.name}.{number}.{entry.id}'[-120:]
                seen.add(new)
                if not writer.has(new):  # an interrupted merge goes on
                    writer.add(replace(source.read(entry.id), id=new))
                done += 1
                progress(done)
    return Dataset.open(target)


def split_ids(dataset: Dataset, share: float, seed: int, repeated: bool = False) -> tuple[list[str], list[str]]:
    """Ids of the episodes that stay and of those held out; pieces of one demonstration stay together.

    Args:
        share: of the demonstrations that are held out, 0..1; at least one stays and one goes.
        repeated: take the share of each instruction by itself, and only of instructions that were demonstrated with
            success at least twice: what is held out was then shown, in another demonstration, to what is trained.

    Raises:
        DataError: fewer than two demonstrations (``repeated``: of one instruction), or a share outside of 0..1.
    """
    if not 0.0 < share < 1.0:
        raise DataError(f'split: the share is {share}, allowed is more than 0 and less than 1')
    groups: dict[str, list[str]] = {}
    for entry in dataset.index:
        match = _PIECE.fullmatch(entry.id)
        groups.setdefault(match[1] if match else entry.id, []).append(entry.id)
    kinds = [sorted(groups)]
    if repeated:
        kinds = _repeated(dataset, groups)
        if not kinds:
            raise DataError(f'split: no instruction of {dataset.path} was demonstrated with success at least twice')
    if len(kinds[0]) < 2:
        raise DataError(f'split: {dataset.path} has {len(kinds[0])} demonstration(s), at least two are needed')
    chance = random.Random(seed)
    held: list[str] = []
    for names in kinds:
        chance.shuffle(names)
        count = min(max(1, round(share * len(names))), len(names) - 1)
        held += [i for name in names[:count] for i in groups[name]]
    order = [e.id for e in dataset.index]
    return [i for i in order if i not in held], [i for i in order if i in held]


def _repeated(dataset: Dataset, groups: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Demonstrations of every instruction that has two or more without a failed piece, sorted."""
    entries = {e.id: e for e in dataset.index}
    kinds: dict[str, list[str]] = {}
    for name in sorted(groups):
        pieces = [entries[i] for i in groups[name]]
        if pieces[0].instruction and all(p.success is not False for p in pieces):
            kinds.setdefault(pieces[0].instruction, []).append(name)
    return [kinds[k] for k in sorted(kinds) if len(kinds[k]) > 1]


def split(
    dataset: Dataset,
    stay: str | Path,
    held_out: str | Path,
    share: float,
    seed: int,
    progress: Callable[[int], None] = lambda n: None,
    repeated: bool = False,
) -> tuple[Dataset, Dataset]:
    """Two new datasets out of one, by demonstrations; the same seed gives the same parts.

    Raises:
        DataError: as :func:`split_ids`, or a target is the source or cannot be written.
    """
    done = 0
    parts = []
    for path, ids in zip((stay, held_out), split_ids(dataset, share, seed, repeated), strict=True):
        target = Path(path)
        if target.resolve() == dataset.path.resolve():
            raise DataError(f'split: {target} is both source and target')
        meta = Meta(**{**asdict(dataset.meta), 'name': target.name or dataset.meta.name})
        with Writer(target, meta) as writer:
            for episode_id in ids:
                if not writer.has(episode_id):
                    writer.add(dataset.read(episode_id))
                done += 1
                progress(done)
        parts.append(Dataset.open(target))
    return parts[0], parts[1]
