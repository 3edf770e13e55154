"""Annotations in the format of the VLA-IT data set (specification 9.5): read, look up, check, write.

    { file_path: { episode_id: { "features": { "move_primitive": [one text per frame] },
                                 "alt_instruction": { "Caption": text, "QA": [{question, answer}, ...],
                                                      "CR": [...], "CC": [...] } } } }

A file of some hundred MB is scanned once, record by record, which checks the form and remembers byte ranges; entries
are parsed again when they are asked for. So memory holds the names of the episodes and a few recent entries.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError
from .episodes import Dataset, Episode
from .jsonscan import load, records
from .prompts import caption, move_primitive, pairs

LISTS = ('QA', 'CR', 'CC')
_RECENT = 64


@dataclass(frozen=True)
class FrameLabels:
    """What is known about one frame: ``primitive`` and ``alt_instruction`` of its episode, None where absent."""

    primitive: str | None
    alt_instruction: Mapping[str, Any] | None


class Annotations:
    """An annotation file opened for look-ups. Can be sent to worker processes: it holds no open file."""

    def __init__(self, file: Path, ranges: dict[tuple[str, str], tuple[int, int]], problems: list[str]) -> None:
        self.file, self._ranges, self.problems = file, ranges, problems
        self._recent: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()

    @staticmethod
    def open(file: str | Path, strict: bool = True) -> Annotations:
        """Scan and check a file.

        Args:
            strict: refuse the file at the first entry of another form; otherwise leave such entries out and list them
                in ``problems``. A file that is not JSON is refused either way.

        Raises:
            DataError: names file, file_path and episode_id.
        """
        path = Path(file)
        ranges: dict[tuple[str, str], tuple[int, int]] = {}
        problems: list[str] = []
        for record in records(path, depth=2):
            key = (record.keys[0], record.keys[1])
            try:
                check(record.value)
                if key in ranges:
                    raise DataError('the entry is there twice')
            except DataError as err:
                problem = f'{path}: {key[0]} / {key[1]}: {err}'
                if strict:
                    raise DataError(problem) from None
                problems.append(problem)
                continue
            ranges[key] = (record.start, record.end)
        return Annotations(path, ranges, problems)

    def __len__(self) -> int:
        return len(self._ranges)

    def keys(self) -> Iterable[tuple[str, str]]:
        """(file_path, episode_id) of every entry, in the order of the file."""
        return self._ranges.keys()

    def entry(self, file_path: str, episode_id: str | int) -> dict[str, Any] | None:
        """Entry of an episode, or None when it has none."""
        key = (file_path, str(episode_id))
        if key not in self._ranges:
            return None
        if key in self._recent:
            self._recent.move_to_end(key)
        else:
            self._recent[key] = load(self.file, *self._ranges[key])
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
        return self._recent[key]

    def frame(self, file_path: str, episode_id: str | int, frame: int) -> FrameLabels | None:
        """Labels of a frame; None when the episode has no entry, or its entry has no such frame.

        An entry without move primitives has no frames to count, so every frame finds its texts.
        """
        entry = self.entry(file_path, episode_id)
        if entry is None or frame < 0:
            return None
        labels = (entry.get('features') or {}).get('move_primitive') or ()
        if labels and frame >= len(labels):
            return None
        return FrameLabels(move_primitive(entry, frame), entry.get('alt_instruction') or None)

    def lookup(self, key: str) -> FrameLabels | None:
        """Labels by the key of the reference: ``file_path + '_' + episode_id + '_' + frame``."""
        head, _, frame = key.rpartition('_')
        file_path, mark, episode_id = head.rpartition('_')
        if not mark or not frame.isdecimal():
            raise DataError(f"annotation key {key!r}: '<file_path>_<episode_id>_<frame>' is needed")
        return self.frame(file_path, episode_id, int(frame))

    def annotate(self, episode: Episode, file_path: str, episode_id: str | int | None = None) -> Episode:
        """The episode with its entry of this file on top of what it has; unchanged when there is none.

        Args:
            file_path: group in the file, for own data the name of the dataset. episode_id: the episode's id if None.

        Raises:
            DataError: the entry has move primitives for another number of frames.
        """
        entry = self.entry(file_path, episode.id if episode_id is None else episode_id)
        if entry is None:
            return episode
        labels = (entry.get('features') or {}).get('move_primitive')
        if labels and len(labels) != len(episode):
            raise DataError(
                f'{self.file}: {file_path} / {episode.id} has {len(labels)} move primitives, the episode has '
                f'{len(episode)} frames'
            )
        return replace(episode, annotations=_merged(episode.annotations, entry))


def check(entry: Any) -> None:
    """Check the form of one entry.

    Raises:
        DataError: names the field.
    """
    if not isinstance(entry, Mapping):
        raise DataError(f"an object with 'features' and 'alt_instruction' is needed, got {type(entry).__name__}")
    features = entry.get('features')
    move_primitive(entry, 0)
    if isinstance(features, Mapping):
        for at, label in enumerate(features.get('move_primitive') or ()):
            if label is not None and not isinstance(label, str):
                raise DataError(f"'move_primitive' of frame {at} is {label!r}, a string is needed")
    caption(entry)
    for kind in LISTS:
        pairs(entry, kind)


def write(file: str | Path, entries: Iterable[tuple[str, str | int, Mapping[str, Any]]]) -> int:
    """Write (file_path, episode_id, entry) triples, grouped by file_path as they come; whole or not at all.

    Returns:
        Entries written.

    Raises:
        DataError: an entry of another form, a group that comes twice, or the file cannot be written.
    """
    path = Path(file)
    draft = path.with_name(path.name + '.part')
    seen: set[str] = set()
    ids: set[str] = set()
    group: str | None = None
    count = 0
    try:
        with draft.open('w', encoding='utf-8') as out:
            out.write('{')
            for file_path, episode_id, entry in entries:
                try:
                    check(entry)
                except DataError as err:
                    raise DataError(f'{file_path} / {episode_id}: {err}') from None
                name = str(episode_id)
                if file_path != group:
                    if file_path in seen:
                        raise DataError(f'{file_path!r} comes twice: give the entries of one file_path together')
                    out.write('\n},' if group is not None else '')
                    out.write(f'\n{json.dumps(file_path)}: {{')
                    seen.add(file_path)
                    group, ids = file_path, set()
                if name in ids:
                    raise DataError(f'{file_path} / {name} comes twice')
                mark = ',' if ids else ''
                out.write(f'{mark}\n {json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}')
                ids.add(name)
                count += 1
            out.write('\n}\n}\n' if group is not None else '}\n')
        os.replace(draft, path)
    except OSError as err:
        raise DataError(f'{path} cannot be written: {err.strerror}') from None
    finally:
        draft.unlink(missing_ok=True)
    return count


def write_dataset(dataset: Dataset, file: str | Path) -> int:
    """Write the annotations of a dataset's episodes, under its name and their ids; returns how many had some."""
    entries = ((dataset.meta.name, e.id, e.annotations) for e in dataset if e.annotations)
    return write(file, entries)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    out = {**old, **new}
    for key in ('features', 'alt_instruction'):
        if old.get(key) and new.get(key):
            out[key] = {**old[key], **new[key]}
    return out
