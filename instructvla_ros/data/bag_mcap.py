"""MCAP files (https://mcap.dev/spec) read without trust in their index, in the order of time, up to what is whole.

The records are walked from the start, so that a file without footer, with a cut-off last chunk or with a damaged
stretch gives everything that can be read. Chunks with a wrong checksum are left out: a flipped bit in a joint angle
would otherwise be trained on.
"""

from __future__ import annotations

import heapq
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .bag_source import MAX_CHUNK, Channel, Contents, Problem, Problems, unpack

MAGIC = b'\x89MCAP0\r\n'
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = 1, 2, 3, 4, 5, 6, 7, 8
DATA_END, LAST_RECORD = 0x0F, 0x0F
_PENDING = 512 * 2**20  # bytes of messages held back to put chunks that overlap into order
_FUTURE = 2**62  # ns; an empty chunk or a damaged stamp


@dataclass
class _Part:
    """A chunk, or a message outside of chunks."""

    offset: int
    length: int  # of the record's content
    start_ns: int = 0
    end_ns: int = 0
    single: bool = False
    cut: bool = False
    counts: dict[int, int] | None = None  # messages by channel, where the file says it
    verified: bool = False


@dataclass
class _Index:
    """What the summary at the end of the file says."""

    start: int = 0  # of the summary; 0: there is none
    chunks: list[int] = field(default_factory=list)


class McapSource:
    """One MCAP file.

    Raises:
        DataError: it cannot be opened, or nothing in it can be read.
    """

    def __init__(self, path: Path, problems: Problems) -> None:
        self.path = path
        self.contents = Contents()
        self._problems = problems
        self._schemas: dict[int, tuple[str, str, str]] = {}
        try:
            self._file = path.open('rb')
        except OSError as err:
            raise DataError(f'cannot open {path}: {err.strerror}') from None
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            if self._size == 0:
                raise DataError(f'{path} is empty')
            if self._at(0, 8) != MAGIC:
                self._note('does not begin as an MCAP file')
            index = self._summary()
            self._parts = self._walk(index)
            self._learn()
        except BaseException:
            self._file.close()
            raise
        if not self.contents.channels:
            raise DataError(f'{path}: not an MCAP file, or nothing in it is whole')

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, wanted: set[int]) -> Iterator[tuple[int, int, bytes | memoryview]]:
        """Channel id, time of recording [ns] and message, in the order of time."""
        waiting = sorted(
            (p for p in self._parts if p.counts is None or not wanted.isdisjoint(p.counts)),
            key=lambda p: (p.start_ns, p.offset),
            reverse=True,
        )
        heap: list[tuple[int, int, int, bytes | memoryview]] = []
        held = number = 0
        while waiting or heap:
            while waiting and (not heap or waiting[-1].start_ns <= heap[0][0]) and (held < _PENDING or not heap):
                part = waiting.pop()
                for channel, stamp, data in self._messages(part, wanted):
                    heapq.heappush(heap, (stamp, number, channel, data))
                    number += 1
                    held += len(data)
            if heap:
                stamp, _, channel, data = heapq.heappop(heap)
                held -= len(data)
                yield channel, stamp, data

    # Index and records.

    def _summary(self) -> _Index:
        tail = self._at(max(0, self._size - 37), 37)
        if len(tail) < 37 or tail[-8:] != MAGIC or tail[:9] != struct.pack('<BQ', FOOTER, 20):
            self._note('has no end: the recorder was killed or the file is cut off; reading what is whole')
            return _Index()
        (start,) = struct.unpack_from('<Q', tail, 9)
        if not 8 <= start < self._size - 37:
            if start:
                self._note(f'has an index at byte {start}, outside of the file; reading without it')
            return _Index()
        index, at = _Index(start), start
        while at < self._size - 37:
            kind, length = self._head(at)
            if length < 0 or at + 9 + length > self._size - 37 or length > MAX_CHUNK:
                self._note(f'has a damaged index at byte {at}')
                break
            try:
                if kind in (SCHEMA, CHANNEL):
                    self._define(kind, self._at(at + 9, length))
                elif kind == CHUNK_INDEX:
                    index.chunks.append(struct.unpack_from('<QQQ', self._at(at + 9, 24))[2])
            except (struct.error, UnicodeDecodeError):
                self._note(f'has a damaged index at byte {at}')
            at += 9 + length
        index.chunks.sort()
        return index

    def _walk(self, index: _Index) -> list[_Part]:
        """Every chunk and single message, from the record headers."""
        parts: list[_Part] = []
        end = index.start or self._size
        at = len(MAGIC)
        while at < end:
            kind, length = self._head(at)
            if kind == DATA_END and length == 4 and not index.start:
                break
            whole = length >= 0 and at + 9 + length <= end
            if not whole or not 1 <= kind <= LAST_RECORD:
                cut = kind == CHUNK and length > 0 and not index.start
                if cut and (part := self._chunk(at, end - at - 9, True)) is not None:
                    parts.append(part)
                following = next((c for c in index.chunks if at < c < end and self._head(c)[0] == CHUNK), None)
                if not index.start:
                    self._note(f'is cut off at byte {at} of {self._size}')
                    break
                self._note(f'is damaged at byte {at}' + ('' if following is None else f'; going on at {following}'))
                if following is None:
                    break
                at = following
                continue
            try:
                if kind == CHUNK:
                    if (part := self._chunk(at, length, False)) is not None:
                        parts.append(part)
                elif kind == MESSAGE and length >= 22:
                    channel, _, stamp = struct.unpack('<HIQ', self._at(at + 9, 14))
                    parts.append(_Part(at, length, stamp, stamp, single=True, counts={channel: 1}))
                elif kind == MESSAGE_INDEX and parts and not parts[-1].single:
                    channel, size = struct.unpack('<HI', self._at(at + 9, 6))
                    counts = parts[-1].counts = parts[-1].counts or {}
                    if size:  # rosbag2 writes an empty index for every channel
                        counts[channel] = counts.get(channel, 0) + size // 16
                elif kind in (SCHEMA, CHANNEL) and length <= MAX_CHUNK:
                    self._define(kind, self._at(at + 9, length))
            except (struct.error, UnicodeDecodeError):
                self._note(f'has a damaged record at byte {at}')
            at += 9 + length
        return parts

    def _chunk(self, at: int, length: int, cut: bool) -> _Part | None:
        head = self._at(at + 9, 28)
        if length < 40 or len(head) < 28:
            return None
        start, end, _, _ = struct.unpack('<QQQI', head)
        return _Part(at, length, start if start < _FUTURE else 0, end, cut=cut)

    def _learn(self) -> None:
        """Channels and counts; only chunks that say too little about themselves are opened."""
        for part in self._parts:
            known = part.counts is not None and all(c in self.contents.channels for c in part.counts)
            if not known:
                counts: dict[int, int] = {}
                for channel, stamp, _ in self._messages(part, None):
                    counts[channel] = counts.get(channel, 0) + 1
                    part.start_ns = min(part.start_ns or stamp, stamp)
                    part.end_ns = max(part.end_ns, stamp)
                part.counts = counts
            for channel, count in (part.counts or {}).items():
                self.contents.counts[channel] = self.contents.counts.get(channel, 0) + count
            if part.counts and part.start_ns <= part.end_ns < _FUTURE:
                self.contents.span(part.start_ns, part.end_ns)

    def _define(self, kind: int, body: bytes) -> None:
        """Take in a schema or a channel; the first definition of an id counts."""
        if kind == SCHEMA:
            (number,) = struct.unpack_from('<H', body)
            name, at = _string(body, 2)
            encoding, at = _string(body, at)
            text, _ = _string(body, at)
            self._schemas.setdefault(number, (name, encoding, text))
            return
        number, schema = struct.unpack_from('<HH', body)
        topic, at = _string(body, 4)
        encoding, at = _string(body, at)
        (size,) = struct.unpack_from('<I', body, at)
        at, end, meta = at + 4, at + 4 + size, dict[str, str]()
        while at < end:
            key, at = _string(body, at)
            meta[key], at = _string(body, at)
        name, form, text = self._schemas.get(schema, ('', '', ''))
        if number in self.contents.channels:
            return
        if encoding != 'cdr':
            self._note(f'topic {topic} is encoded as {encoding!r}, only cdr can be read')
            return
        digest = meta.get('topic_type_hash', '')
        self.contents.channels[number] = Channel(number, topic, name, text, form, digest)

    # Messages.

    def _messages(self, part: _Part, wanted: set[int] | None) -> Iterator[tuple[int, int, bytes | memoryview]]:
        """Messages of a part; ``wanted`` None: of every channel, and definitions are taken in."""
        if part.single:
            body = self._at(part.offset + 9, min(part.length, MAX_CHUNK))
            channel, _, stamp = struct.unpack_from('<HIQ', body)
            if len(body) == part.length and (wanted is None or channel in wanted):
                yield channel, stamp, memoryview(body)[22:]
            return
        try:
            raw = self._unpacked(part)
        except (DataError, struct.error, UnicodeDecodeError) as err:
            if part.counts is None or wanted is not None:
                self._note(f'chunk at byte {part.offset} left out: {err}', part.start_ns)
            return
        view, at, size = memoryview(raw), 0, len(raw)
        while at + 9 <= size:
            kind, length = struct.unpack_from('<BQ', raw, at)
            start = at + 9
            if start + length > size or not 1 <= kind <= LAST_RECORD:
                if not part.cut:
                    self._note(f'chunk at byte {part.offset} is damaged at its byte {at}', part.start_ns)
                return
            if kind == MESSAGE and length >= 22:
                channel, _, stamp = struct.unpack_from('<HIQ', raw, start)
                if wanted is None or channel in wanted:
                    yield channel, stamp, view[start + 22 : start + length]
            elif kind in (SCHEMA, CHANNEL) and wanted is None:
                try:
                    self._define(kind, raw[start : start + length])
                except (struct.error, UnicodeDecodeError):
                    self._note(f'chunk at byte {part.offset} has a damaged definition', part.start_ns)
            at = start + length

    def _unpacked(self, part: _Part) -> bytes:
        length = min(part.length, MAX_CHUNK + 4096)
        if length < part.length and not part.cut:
            raise DataError(f'{part.length} bytes, allowed are {MAX_CHUNK}')
        body = self._at(part.offset + 9, length)
        _, _, size, crc = struct.unpack_from('<QQQI', body)
        kind, at = _string(body, 28)
        (packed,) = struct.unpack_from('<Q', body, at)
        at += 8
        if at + packed > len(body) and not part.cut:
            raise DataError(f'{packed} bytes do not fit into the record of {part.length}')
        data = memoryview(body)[at : at + packed]
        if not kind:
            raw = bytes(data)
        else:
            raw = unpack(data, kind, size, part.cut)
        if part.cut:
            return raw
        if len(raw) != size:
            raise DataError(f'{len(raw)} bytes instead of {size}')
        if crc and not part.verified and zlib.crc32(raw) != crc:
            raise DataError('the checksum does not fit: the data was changed')
        part.verified = True
        return raw

    def _head(self, at: int) -> tuple[int, int]:
        data = self._at(at, 9)
        if len(data) < 9:
            return 0, -1
        kind, length = struct.unpack('<BQ', data)
        return kind, length

    def _at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(max(0, min(size, self._size - offset)))

    def _note(self, text: str, recorded_ns: int = 0) -> None:
        self._problems.add(Problem(self.path.name, text, recorded_ns=recorded_ns if recorded_ns < _FUTURE else 0))


def _string(body: bytes, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from('<I', body, at)
    end = at + 4 + size
    if end > len(body):
        raise struct.error('a string is longer than its record')
    return body[at + 4 : end].decode(), end
