"""An MCAP file (https://mcap.dev/spec, version 0, profile ros2) that is complete after every :meth:`McapFile.flush`.

Index and footer are written behind each chunk, and the next chunk begins where they were. So the file of a process that
was killed opens like any other, index included, with everything up to the last flush. While the file grows, a footer at
its new end points to the old index, which is written over last: see :meth:`McapFile._grow`. What a kill in that last
write, a power cut or another recorder leaves behind is put right by ``mcap_repair.py``.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .zstd import zstd

MAGIC = b'\x89MCAP0\r\n'
CHUNK_BYTES = 16 * 2**20  # the index behind each chunk costs a write too
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = 1, 2, 3, 4, 5, 6, 7, 8
STATISTICS, SUMMARY_OFFSET, DATA_END = 0x0B, 0x0E, 0x0F
FOOTER_BYTES = 9 + 20 + len(MAGIC)
DATA_END_BYTES = 9 + 4


@dataclass
class Totals:
    """What a file holds: messages by channel id, and the first and last log time [ns] (0 when empty)."""

    messages: dict[int, int] = field(default_factory=dict)
    first_ns: int = 0
    last_ns: int = 0

    def add(self, channel: int, stamp_ns: int) -> None:
        """Count a message of a channel."""
        if not self.last_ns:
            self.first_ns = self.last_ns = stamp_ns
        self.messages[channel] = self.messages.get(channel, 0) + 1
        self.first_ns, self.last_ns = min(self.first_ns, stamp_ns), max(self.last_ns, stamp_ns)


@dataclass(frozen=True)
class ChunkFacts:
    """Times [ns], place and length of the record in the file, compression, and bytes before and after it."""

    first_ns: int
    last_ns: int
    start: int
    length: int
    compression: str
    packed: int
    size: int


class McapFile:
    """Writer.

    Args:
        path: of the new file. compress: zstd inside each chunk.

    Attributes:
        written: what the file on the disk holds, up to the last successful flush.

    Raises:
        OSError: the file exists or cannot be made.
    """

    suffix = '.mcap'

    def __init__(self, path: Path, compress: bool = False):
        self.path = path
        self.written = Totals()
        self._compress = compress
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        head = MAGIC + record(HEADER, text('ros2') + text('instructvla_ros'))
        self._end = len(head)  # of the data section: where the next chunk goes
        self._schemas: list[bytes] = []
        self._schema_ids: dict[str, int] = {}
        self._channels: list[bytes] = []
        self._indexes: list[bytes] = []
        self._sequence: dict[int, int] = {}
        self._new()
        ending = self._tail(self._end)
        self._ending = len(ending)  # bytes of index and footer
        write_at(self._fd, 0, head + ending)

    def add_topic(self, topic: str, msgtype: str, definition: str, digest: str, qos: str) -> int:
        """Announce a topic; its id for :meth:`write`.

        Args:
            definition: message definition with its dependencies (ros2msg). digest: RIHS01 hash, may be empty.
            qos: offered QoS profiles as YAML, may be empty.
        """
        if msgtype not in self._schema_ids:
            self._schema_ids[msgtype] = len(self._schemas) + 1
            body = struct.pack('<H', len(self._schemas) + 1) + text(msgtype) + text('ros2msg') + text(definition)
            self._schemas.append(record(SCHEMA, body))
            self._put(self._schemas[-1])
        channel = len(self._channels) + 1
        meta = {'offered_qos_profiles': qos, 'topic_type_hash': digest}
        pairs = b''.join(text(k) + text(v) for k, v in meta.items())
        body = struct.pack('<HH', channel, self._schema_ids[msgtype]) + text(topic) + text('cdr')
        self._channels.append(record(CHANNEL, body + struct.pack('<I', len(pairs)) + pairs))
        self._put(self._channels[-1])
        self._pending.messages[channel] = 0
        return channel

    def write(self, channel: int, stamp_ns: int, data: bytes) -> None:
        """Add a message to the chunk that is being filled; full chunks go to the disk.

        Raises:
            OSError: the disk is full or gone. The file keeps what it held after the last flush.
        """
        self._index.setdefault(channel, []).append((stamp_ns, self._size))
        sequence = self._sequence[channel] = self._sequence.get(channel, 0) + 1
        head = struct.pack('<BQHIQQ', MESSAGE, 22 + len(data), channel, sequence & 0xFFFFFFFF, stamp_ns, stamp_ns)
        self._put(head)
        self._put(data)
        self._pending.add(channel, stamp_ns)
        if self._size >= CHUNK_BYTES:
            self.flush(sync=False)

    def flush(self, sync: bool = True) -> None:
        """Write what is pending, and index and footer behind it.

        Args:
            sync: wait until the disk has it, for power cuts.

        Raises:
            OSError: the disk is full or gone; what was pending is dropped, the file on the disk stays whole.
        """
        if not self._size:
            return
        raw, index, pending = b''.join(self._parts), self._index, self._pending
        self._new()  # a chunk that cannot be written must not be tried for ever
        kept, end = self.written, self._end
        name, packed = ('zstd', zstd.compress(raw, 1)) if self._compress else ('', raw)
        head = struct.pack('<QQQI', pending.first_ns, pending.last_ns, len(raw), zlib.crc32(raw)) + text(name)
        chunk = record(CHUNK, head + struct.pack('<Q', len(packed)) + packed)
        facts = ChunkFacts(pending.first_ns, pending.last_ns, end, len(chunk), name, len(packed), len(raw))
        rows, offsets = message_indexes(index, end + len(chunk))
        self._indexes.append(chunk_index(facts, offsets, len(rows)))
        chunk += rows
        self.written = merged(kept, pending)
        ending = self._tail(end + len(chunk))
        try:
            self._grow(end, chunk + ending, len(chunk))
        except OSError:
            self._indexes.pop()
            self.written = kept
            old = self._tail(end)
            # These blocks were allocated before: writing them again needs no space.
            os.ftruncate(self._fd, end + len(old))
            write_at(self._fd, end, old)
            raise
        self._end, self._ending = end + len(chunk), len(ending)
        if sync:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Flush and close. Safe to call twice.

        Raises:
            OSError: as :meth:`flush`; the file is closed all the same.
        """
        if self._fd < 0:
            return
        try:
            self.flush()
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def size(self) -> int:
        """Bytes of messages in the file, not counting the index."""
        return self._end

    def _grow(self, start: int, data: bytes, chunk: int) -> None:
        """Replace index and footer at ``start`` by ``data``: a chunk of so many bytes, index and footer.

        A kill may come between any two bytes of a large write. So first the file gets its new length by a footer that
        points to the old index, then all that lies behind the old end is written, then the footer that points to the
        new index, and last, a small write, what stands where the old index was.
        """
        if chunk <= self._ending:  # nothing large, and the new index would lie over the old one
            write_at(self._fd, start, data)
            return
        last = start + len(data) - FOOTER_BYTES
        write_at(self._fd, last, footer(start + DATA_END_BYTES))
        write_at(self._fd, start + self._ending, data[self._ending : -FOOTER_BYTES])
        write_at(self._fd, last, data[-FOOTER_BYTES:])
        write_at(self._fd, start, data[: self._ending])

    def _new(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._index: dict[int, list[tuple[int, int]]] = {}
        self._pending = Totals()

    def _put(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)

    def _tail(self, start: int) -> bytes:
        return tail(start, self._schemas, self._channels, self._indexes, self.written)


# Records.


def record(kind: int, body: bytes) -> bytes:
    """One record: opcode, length, content."""
    return struct.pack('<BQ', kind, len(body)) + body


def text(value: str) -> bytes:
    """A length-prefixed string."""
    data = value.encode()
    return struct.pack('<I', len(data)) + data


def message_indexes(index: Mapping[int, list[tuple[int, int]]], start: int) -> tuple[bytes, dict[int, int]]:
    """Index records of a chunk, to be written at ``start``, and the offset of each by channel.

    Args:
        index: by channel, log time [ns] and offset inside the chunk of each message.
    """
    out, offsets = b'', {}
    for channel, rows in index.items():
        offsets[channel] = start + len(out)
        body = struct.pack('<HI', channel, 16 * len(rows)) + b''.join(struct.pack('<QQ', *row) for row in rows)
        out += record(MESSAGE_INDEX, body)
    return out, offsets


def chunk_index(chunk: ChunkFacts, offsets: Mapping[int, int], length: int) -> bytes:
    """Entry of the summary for a chunk whose index records, ``length`` bytes in all, follow it."""
    pairs = b''.join(struct.pack('<HQ', *pair) for pair in offsets.items())
    entry = struct.pack('<QQQQI', chunk.first_ns, chunk.last_ns, chunk.start, chunk.length, len(pairs)) + pairs
    entry += struct.pack('<Q', length) + text(chunk.compression)
    return record(CHUNK_INDEX, entry + struct.pack('<QQ', chunk.packed, chunk.size))


def tail(start: int, schemas: list[bytes], channels: list[bytes], indexes: list[bytes], totals: Totals) -> bytes:
    """End of the data section, summary and footer, for a data section that ends at ``start``."""
    counts = b''.join(struct.pack('<HQ', c, n) for c, n in sorted(totals.messages.items()))
    statistics = struct.pack(
        '<QHIIIIQQI', sum(totals.messages.values()), len(schemas), len(channels), 0, 0, len(indexes),
        totals.first_ns, totals.last_ns, len(counts),
    )  # fmt: skip
    groups = [
        (SCHEMA, schemas),
        (CHANNEL, channels),
        (STATISTICS, [record(STATISTICS, statistics + counts)]),
        (CHUNK_INDEX, indexes),
    ]
    out = [record(DATA_END, struct.pack('<I', 0))]
    summary = at = start + len(out[0])
    offsets = []
    for kind, records in groups:
        length = sum(map(len, records))
        out += records
        if length:
            offsets.append(record(SUMMARY_OFFSET, struct.pack('<BQQ', kind, at, length)))
        at += length
    return b''.join([*out, *offsets, footer(summary, at)])


def footer(summary: int, offsets: int = 0) -> bytes:
    """Last bytes of a file whose summary begins at ``summary``, and its summary offsets (0: none) at ``offsets``."""
    return record(FOOTER, struct.pack('<QQI', summary, offsets, 0)) + MAGIC


def write_at(fd: int, offset: int, data: bytes) -> None:
    """Write all of ``data`` at ``offset``, in one system call where the system takes it."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        offset += done
        view = view[done:]


def merged(a: Totals, b: Totals) -> Totals:
    """Sum of two; either may be empty."""
    filled = [t for t in (a, b) if any(t.messages.values())]
    counts = {c: a.messages.get(c, 0) + b.messages.get(c, 0) for c in {**a.messages, **b.messages}}
    return Totals(counts, min((t.first_ns for t in filled), default=0), max((t.last_ns for t in filled), default=0))
