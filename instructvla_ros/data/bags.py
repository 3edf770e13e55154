"""Bags of ``ros2 bag record`` and of this package, read without ROS: mcap and sqlite3, compressed, split, cut off.

    with open_bag('bags/monday') as bag:
        for record in bag.messages(['/joint_states', '/camera/color/image_raw']):
            record.stamp_ns, record.value
        bag.problems

A bag is read message by message in the order of recording; nothing but the current chunk is in memory. What cannot be
read is left out and listed in :attr:`Bag.problems` with file, topic and time.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ChunkError, DataError, ObservationError, suggest
from . import bag_types
from .bag_files import find_files, read_metadata, unpacked
from .bag_mcap import McapSource
from .bag_source import Channel, Problem, Problems, Source, unpack_message
from .bag_sqlite import SqliteSource
from .bag_values import READERS, header_stamp


@dataclass(frozen=True)
class TopicInfo:
    """One topic of a bag.

    Attributes:
        name: as asked for, after the mapping. recorded_as: name in the bag.
        type: 'sensor_msgs/msg/Image', ... count: messages. rate: per second of the bag [Hz].
    """

    name: str
    type: str
    count: int
    rate: float
    recorded_as: str


@dataclass(frozen=True)
class Record:
    """One message.

    Attributes:
        stamp_ns: header stamp, 0 for a message without one [ns]. recorded_ns: when it was recorded [ns].
        index: number of the message in its topic, the same each time the bag is read; those that cannot be decoded
            are counted.
        value: see :mod:`instructvla_ros.data.bag_values`; the message itself when its type has no reader there.
        message: object with the fields of the ROS message.
    """

    topic: str
    type: str
    stamp_ns: int
    recorded_ns: int
    index: int
    value: Any
    message: Any


class Bag:
    """An opened bag; use it in a ``with`` statement or call :meth:`close`.

    Attributes:
        topics: by name. start_ns, end_ns: first and last time of recording [ns]. files: names, in order.
        metadata: content of ``metadata.yaml``, empty when there is none.
    """

    def __init__(self, path: str | Path, topics: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self._problems = Problems()
        self._sources: list[Source] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._mapping = {recorded: name for name, recorded in (topics or {}).items()}
        if len(self._mapping) != len(topics or {}):
            raise DataError('topics: two names are mapped to the same topic of the bag')
        try:
            files = find_files(self.path)
            self.metadata: Mapping[str, Any] = read_metadata(self.path, files, self._problems)
            self.files = [file.name for file in files]
            self._open(files)
        except BaseException:
            self.close()
            raise
        filled = [s.contents for s in self._sources if s.contents.last_ns]
        self.start_ns = min((c.first_ns for c in filled), default=0)
        self.end_ns = max((c.last_ns for c in filled), default=0)
        self.topics = self._list_topics()
        self._check_mapping(topics or {})

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        for source in self._sources:
            source.close()
        self._sources = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def duration(self) -> float:
        """Time between the first and the last message [s]."""
        return (self.end_ns - self.start_ns) * 1e-9

    @property
    def problems(self) -> list[Problem]:
        """What could not be read so far; grows while messages are read."""
        return list(self._problems.found)

    @property
    def problem_count(self) -> int:
        """How many problems there were, listed or not."""
        return self._problems.count

    def note(self, problem: Problem) -> None:
        """Add what a reader of the messages found wrong with one."""
        self._problems.add(problem)

    def find(self, kind: str) -> list[str]:
        """Names of the topics of a type such as 'sensor_msgs/msg/Image'."""
        return [t.name for t in self.topics.values() if t.type == kind]

    def require(self, name: str, kinds: Iterable[str] = ()) -> TopicInfo:
        """A topic that has to be there.

        Raises:
            DataError: it is not in the bag, has no messages or another type; names what the bag has.
        """
        info = self.topics.get(name)
        if info is None:
            raise DataError(
                f'{self.path} has no topic {name}.{suggest(name, self.topics)} '
                'Map another name to it with `topics` (--topic WANTED=RECORDED)'
            )
        wanted = tuple(kinds)
        if wanted and info.type not in wanted:
            raise DataError(f'{self.path}: topic {name} is {info.type}, needed is {" or ".join(wanted)}')
        if not info.count:
            raise DataError(f'{self.path}: topic {name} has no messages')
        return info

    def messages(
        self, names: Iterable[str] | None = None, select: Callable[[str, int], bool] | None = None
    ) -> Iterator[Record]:
        """Messages in the order of recording. May be called again, one iteration at a time.

        Args:
            names: topics; every one that can be decoded when left out.
            select: (topic, index) -> whether to decode this message; others are passed over cheaply.

        Raises:
            DataError: a named topic is not in the bag, or its type cannot be decoded.
        """
        wanted = list(self.topics) if names is None else [self.require_known(n).name for n in dict.fromkeys(names)]
        decoders: dict[tuple[int, int], tuple[str, str, Callable[[Any], Any], Callable[[Any], Any] | None]] = {}
        for position, source in enumerate(self._sources):
            for channel in source.contents.channels.values():
                name = self._name(channel.topic)
                if name in wanted:
                    try:
                        decode = bag_types.decoder(channel, self._noter(source, channel))
                    except DataError as err:
                        if names is not None:
                            raise DataError(f'{source.path.name}, {channel.topic}: {err}') from None
                        self._problems.add(Problem(source.path.name, str(err), channel.topic))
                        continue
                    decoders[position, channel.id] = (name, channel.type, decode, READERS.get(channel.type))
        counts = dict.fromkeys(wanted, -1)
        for position, channel_id, recorded, raw in self._raw({key: True for key in decoders}):
            name, kind, decode, read = decoders[position, channel_id]
            counts[name] += 1
            if select is not None and not select(name, counts[name]):
                continue
            try:
                message = decode(unpack_message(raw))
                stamp = header_stamp(message)
                value = read(message) if read is not None else message
            except (*bag_types.BAD_MESSAGE, ObservationError, ChunkError, DataError) as err:
                reason = (str(err).splitlines() or [type(err).__name__])[0][:200]
                self._problems.add(
                    Problem(self._sources[position].path.name, f'message left out: {reason}', name, recorded)
                )
                continue
            yield Record(name, kind, stamp, recorded, counts[name], value, message)

    def require_known(self, name: str) -> TopicInfo:
        """A topic of the bag, with or without messages.

        Raises:
            DataError: not in the bag.
        """
        return self.topics[name] if name in self.topics else self.require(name)

    def _open(self, files: list[Path]) -> None:
        failed: list[str] = []
        for file in files:
            try:
                real = file
                if file.suffix in ('.zstd', '.zst', '.lz4'):
                    if self._folder is None:
                        self._folder = tempfile.TemporaryDirectory(prefix='instructvla-bag-')
                    real = unpacked(file, Path(self._folder.name), self._problems)
                kind = McapSource if real.suffix == '.mcap' else SqliteSource
                self._sources.append(kind(real, self._problems))
            except DataError as err:
                failed.append(str(err))
                self._problems.add(Problem(file.name, f'left out: {err}'))
        if not self._sources:
            raise DataError(f'{self.path} cannot be read: {"; ".join(failed[:3])}')
        self._sources.sort(key=lambda s: s.contents.first_ns)

    def _raw(self, wanted: Mapping[tuple[int, int], bool]) -> Iterator[tuple[int, int, int, bytes | memoryview]]:
        """Source, channel, time and message over all files; files that overlap in time are merged."""

        def stream(position: int) -> Iterator[tuple[int, int, int, bytes | memoryview]]:
            ids = {channel for source, channel in wanted if source == position}
            for channel, stamp, raw in self._sources[position].read(ids) if ids else ():
                yield position, channel, stamp, raw

        group: list[int] = []
        end = -1
        groups: list[list[int]] = []
        for position, source in enumerate(self._sources):
            if group and source.contents.first_ns < end:
                group.append(position)
            else:
                group = [position]
                groups.append(group)
            end = max(end, source.contents.last_ns)
        for group in groups:
            streams = [stream(position) for position in group]
            yield from heapq.merge(*streams, key=lambda item: item[2]) if len(streams) > 1 else streams[0]

    def _list_topics(self) -> dict[str, TopicInfo]:
        found: dict[str, TopicInfo] = {}
        seconds = self.duration
        for source in self._sources:
            for channel in source.contents.channels.values():
                name = self._name(channel.topic)
                count = source.contents.counts.get(channel.id, 0)
                before = found.get(name)
                if before is not None:
                    if before.type != channel.type:
                        self._problems.add(
                            Problem(source.path.name, f'has the types {before.type} and {channel.type}', channel.topic)
                        )
                        continue
                    count += before.count
                rate = (count - 1) / seconds if seconds > 0.0 and count > 1 else 0.0
                found[name] = TopicInfo(name, channel.type, count, rate, channel.topic)
        return dict(sorted(found.items()))

    def _check_mapping(self, topics: Mapping[str, str]) -> None:
        recorded = {t.recorded_as for t in self.topics.values()}
        for name, source in topics.items():
            if source not in recorded:
                raise DataError(f'{self.path} has no topic {source} to be used as {name}.{suggest(source, recorded)}')

    def _name(self, recorded: str) -> str:
        if recorded in self._mapping:
            return self._mapping[recorded]
        # The name is taken by the topic that was mapped to it.
        return f'{recorded} (as recorded)' if recorded in self._mapping.values() else recorded

    def _noter(self, source: Source, channel: Channel) -> Callable[[str], None]:
        return lambda text: self._problems.add(Problem(source.path.name, text, channel.topic))


def open_bag(path: str | Path, topics: Mapping[str, str] | None = None) -> Bag:
    """Open a bag: a folder, or one ``.mcap`` or ``.db3`` file, also with file compression.

    Args:
        topics: name that is wanted -> name in the bag, for robots with other names.

    Raises:
        DataError: no bag, nothing in it can be read, or a mapped topic is not in it.
    """
    return Bag(path, topics)
