"""Annotations for a whole dataset: from VLA-IT files, from motion, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .episodes import Dataset, Writer
from .primitives import annotate
from .vla_it import Annotations


@dataclass(frozen=True)
class Annotated:
    """What was done.

    Attributes:
        episodes: written. texts: how many got an entry of a file. primitives: how many got labels from motion.
        unused: entries of the files that no episode asked for.
    """

    dataset: Dataset
    episodes: int
    texts: int
    primitives: int
    unused: int


def annotate_dataset(
    dataset: Dataset,
    out: str | Path,
    files: Sequence[Annotations] = (),
    group: str = '',
    primitives: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Annotated:
    """Write a copy of a dataset with annotations; goes on where an interrupted run stopped.

    Args:
        files: entries are looked up under ``group`` and the episode's id; a later file goes over an earlier one.
        group: file_path in the files; the dataset's name when empty.
        primitives: label motion where an episode has no move primitives, neither of its own nor from a file.

    Raises:
        DataError: an entry does not fit its episode, or the folder holds something else.
    """
    name = group or dataset.meta.name
    done = texts = labelled = 0
    used = [set[str]() for _ in files]
    with Writer(out, dataset.meta) as writer:
        for number, entry in enumerate(dataset.index, 1):
            for file, seen in zip(files, used, strict=True):
                if file.entry(name, entry.id) is not None:
                    seen.add(entry.id)
            if not writer.has(entry.id):
                episode = dataset.read(entry.id)
                texts += any(file.entry(name, entry.id) is not None for file in files)
                for file in files:
                    episode = file.annotate(episode, name)
                if primitives and not (episode.annotations.get('features') or {}).get('move_primitive'):
                    episode = annotate(episode)
                    labelled += 1
                writer.add(episode)
                done += 1
            progress(number, len(dataset))
    unused = sum(len(file) - len(seen) for file, seen in zip(files, used, strict=True))
    return Annotated(Dataset.open(out), done, texts, labelled, unused)
