"""Puts an MCAP file right that was cut off: by a power cut, a full disk, or a recorder that was killed."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError
from .mcap_file import (
    CHANNEL,
    CHUNK,
    DATA_END,
    FOOTER,
    FOOTER_BYTES,
    HEADER,
    MAGIC,
    MESSAGE,
    MESSAGE_INDEX,
    SCHEMA,
    ChunkFacts,
    Totals,
    chunk_index,
    merged,
    message_indexes,
    record,
    tail,
    write_at,
)
from .zstd import zstd


def repair(path: Path) -> tuple[Totals, int]:
    """Give a file its index and footer back, in place; what follows the last whole record is removed.

    A file that ends as it should is left as it is.

    Returns:
        What the file holds, and how many bytes were removed.

    Raises:
        DataError: not an MCAP file, nothing in it is whole, or its chunks are compressed in another way than zstd.
        OSError: it cannot be read or written.
    """
    with path.open('rb') as file:
        whole = _scan(file, path)
        size = os.fstat(file.fileno()).st_size
    if whole.complete:
        return whole.totals, 0
    if not whole.channels:
        raise DataError(f'{path}: the first chunk was cut off; there is nothing to recover')
    rest = tail(
        whole.end + len(whole.rebuilt),
        list(whole.schemas.values()), list(whole.channels.values()), whole.indexes, whole.totals,
    )  # fmt: skip
    with path.open('r+b') as file:
        file.truncate(whole.end)
        write_at(file.fileno(), whole.end, whole.rebuilt + rest)
        os.fsync(file.fileno())
    return whole.totals, size - whole.end


@dataclass
class _Whole:
    end: int = len(MAGIC)  # offset behind the last whole record
    complete: bool = False
    schemas: dict[int, bytes] = field(default_factory=dict)
    channels: dict[int, bytes] = field(default_factory=dict)
    indexes: list[bytes] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    rebuilt: bytes = b''  # message indexes of the last chunk that were cut off

    def note(self, kind: int, body: bytes) -> None:
        """Take in a schema, a channel or a message."""
        if kind == SCHEMA:
            self.schemas.setdefault(struct.unpack_from('<H', body)[0], record(kind, body))
        elif kind == CHANNEL:
            channel = struct.unpack_from('<H', body)[0]
            self.channels.setdefault(channel, record(kind, body))
            self.totals.messages.setdefault(channel, 0)
        elif kind == MESSAGE:
            channel, _, stamp = struct.unpack_from('<HIQ', body)
            self.totals.add(channel, stamp)


@dataclass
class _Chunk:
    facts: ChunkFacts
    index: dict[int, list[tuple[int, int]]]
    content: _Whole
    offsets: dict[int, int] = field(default_factory=dict)


def _scan(file: BinaryIO, path: Path) -> _Whole:
    whole = _Whole()
    if file.read(len(MAGIC)) != MAGIC:
        raise DataError(f'{path} is not an MCAP file')
    chunk: _Chunk | None = None
    try:
        for kind, start, body in _records(file):
            if kind == MESSAGE_INDEX and chunk is not None:
                chunk.offsets[struct.unpack_from('<H', body)[0]] = start
            else:
                _seal(whole, chunk)
                chunk = None
            if kind == DATA_END:
                whole.complete = _ends_well(file, start)
                break
            if kind == CHUNK:
                chunk = _read_chunk(start, body)
            elif kind in (HEADER, SCHEMA, CHANNEL, MESSAGE):
                whole.note(kind, body)
            whole.end = start + 9 + len(body)
    except (struct.error, EOFError, ValueError, zstd.ZstdError):
        pass  # here begins what was cut off
    _seal(whole, chunk, last=True)
    return whole


def _records(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Opcode, offset and content of each record."""
    size = os.fstat(file.fileno()).st_size
    start = file.tell()
    while start < size:
        kind, length = struct.unpack('<BQ', file.read(9))
        if start + 9 + length > size:
            raise EOFError
        yield kind, start, file.read(length)
        start += 9 + length
        file.seek(start)


def _read_chunk(start: int, body: bytes) -> _Chunk:
    first, last, size, crc, length = struct.unpack_from('<QQQII', body)
    name = body[32 : 32 + length].decode()
    packed = body[40 + length :]
    if name not in ('', 'zstd'):
        raise DataError(f'its chunks are compressed with {name!r}; only zstd and uncompressed ones can be recovered')
    raw = zstd.decompress(packed) if name else packed
    if len(raw) != size or (crc and zlib.crc32(raw) != crc):
        raise ValueError('the chunk is damaged')
    content, index, at = _Whole(), dict[int, list[tuple[int, int]]](), 0
    while at < len(raw):
        kind, length = struct.unpack_from('<BQ', raw, at)
        inner = raw[at + 9 : at + 9 + length]
        content.note(kind, inner)
        if kind == MESSAGE:
            channel, _, stamp = struct.unpack_from('<HIQ', inner)
            index.setdefault(channel, []).append((stamp, at))
        at += 9 + length
    return _Chunk(ChunkFacts(first, last, start, 9 + len(body), name, len(packed), size), index, content)


def _seal(whole: _Whole, chunk: _Chunk | None, last: bool = False) -> None:
    """Take in a chunk whose index records have all been read; those that were cut off are built again."""
    if chunk is None:
        return
    offsets = dict(chunk.offsets)
    if last:
        missing = {c: rows for c, rows in chunk.index.items() if c not in offsets}
        whole.rebuilt, found = message_indexes(missing, whole.end)
        offsets.update(found)
    length = whole.end + len(whole.rebuilt) - chunk.facts.start - chunk.facts.length
    whole.indexes.append(chunk_index(chunk.facts, offsets, length))
    whole.schemas = {**chunk.content.schemas, **whole.schemas}
    whole.channels = {**chunk.content.channels, **whole.channels}
    whole.totals = merged(whole.totals, chunk.content.totals)


def _ends_well(file: BinaryIO, data_end: int) -> bool:
    """Whether the first footer behind the end of the data is the end of the file, and points to the summary there."""
    size = os.fstat(file.fileno()).st_size
    file.seek(data_end)
    for kind, start, body in _records(file):
        if kind == FOOTER:
            file.seek(size - len(MAGIC))
            (summary,) = struct.unpack_from('<Q', body)
            return start == size - FOOTER_BYTES and file.read() == MAGIC and (not summary or data_end < summary < start)
    return False
