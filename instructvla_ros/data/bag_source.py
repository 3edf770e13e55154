"""What the storage readers of bags share: channels, problems, bounded decompression.

A bag is untrusted input. Nothing here allocates more than a header says *and* a limit allows, and what cannot be read
becomes a :class:`Problem` that names file, topic and time instead of an exception in the middle of a recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError
from .zstd import zstd

MAX_CHUNK = 256 * 2**20
"""Largest chunk or message that is unpacked [bytes]."""
MAX_UNPACKED = 256 * 2**30
"""Largest file that is unpacked from file compression [bytes]."""
MAX_PROBLEMS = 200
_BLOCK = 1 << 20
_ZSTD, _LZ4 = b'\x28\xb5\x2f\xfd', b'\x04\x22\x4d\x18'


@dataclass(frozen=True)
class Problem:
    """Something in a bag that could not be used.

    Attributes:
        file: name of the file. topic: '' when unknown. recorded_ns: time of recording, 0 when unknown [ns].
    """

    file: str
    text: str
    topic: str = ''
    recorded_ns: int = 0

    def __str__(self) -> str:
        topic = f', {self.topic}' if self.topic else ''
        time = f', t = {self.recorded_ns * 1e-9:.3f} s' if self.recorded_ns else ''
        return f'{self.file}{topic}{time}: {self.text}'


class Problems:
    """Problems in the order they were met; beyond :data:`MAX_PROBLEMS` only counted. The same one is listed once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.count = 0
        self._seen: set[Problem] = set()

    def add(self, problem: Problem) -> None:
        """Note a problem; a bag that is read twice meets it twice and lists it once."""
        if problem in self._seen:
            return
        self.count += 1
        if len(self.found) < MAX_PROBLEMS:
            self._seen.add(problem)
            self.found.append(problem)


@dataclass(frozen=True)
class Channel:
    """One topic of one file.

    Attributes:
        definition: message definition stored with it, '' when there is none. format: 'ros2msg' or 'ros2idl'.
        digest: type hash (RIHS01) stored with it, or ''.
    """

    id: int
    topic: str
    type: str
    definition: str = ''
    format: str = 'ros2msg'
    digest: str = ''


@dataclass
class Contents:
    """What a file holds: channels by id, messages by channel, first and last time of recording [ns] (0: empty)."""

    channels: dict[int, Channel] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    first_ns: int = 0
    last_ns: int = 0

    def span(self, first_ns: int, last_ns: int) -> None:
        """Widen the time span."""
        self.first_ns = min(self.first_ns, first_ns) if self.first_ns else first_ns
        self.last_ns = max(self.last_ns, last_ns)


class Source(Protocol):
    """A storage file opened for reading."""

    path: Path
    contents: Contents

    def read(self, wanted: set[int]) -> Iterator[tuple[int, int, bytes | memoryview]]:
        """Channel id, time of recording [ns] and serialised message, in the order of time."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def unpack(data: bytes | memoryview, kind: str, limit: int, partial: bool = False) -> bytes:
    """Decompress ``kind`` 'zstd' or 'lz4' to at most ``limit`` bytes.

    Args:
        partial: the data is cut off; give what can be had.

    Raises:
        DataError: damaged, larger than allowed, or an unknown kind.
    """
    if limit > MAX_CHUNK:
        raise DataError(f'{limit} bytes once unpacked, allowed are {MAX_CHUNK}')
    machine: Any
    if kind == 'zstd':
        machine = zstd.ZstdDecompressor()
    elif kind == 'lz4':
        machine = _lz4().LZ4FrameDecompressor()
    else:
        raise DataError(f'compressed with {kind!r}; zstd and lz4 can be read')
    out = bytearray()
    try:
        chunk = machine.decompress(bytes(data), limit + 1)
        while chunk:
            out += chunk
            if machine.eof or len(out) > limit:
                break
            chunk = machine.decompress(b'', limit + 1 - len(out)) if not machine.needs_input else b''
    except (RuntimeError, ValueError, EOFError, zstd.ZstdError) as err:
        if not partial:
            raise DataError(f'{kind} data is damaged: {err}') from None
    if len(out) > limit:
        raise DataError(f'{kind} data is larger than the {limit} bytes it should have')
    if not machine.eof and not partial:
        raise DataError(f'{kind} data ends too early')
    return bytes(out)


def unpack_message(data: bytes | memoryview) -> bytes | memoryview:
    """A message without message compression. CDR begins with a zero byte, compressed data does not.

    Raises:
        DataError: damaged, or too large.
    """
    head = bytes(data[:4])
    if head == _ZSTD:
        return unpack(data, 'zstd', MAX_CHUNK)
    if head == _LZ4:
        return unpack(data, 'lz4', MAX_CHUNK)
    return data


def unpack_file(packed: Path, target: Path) -> str:
    """Undo file compression; '' or what was wrong after the part that could be had."""
    done = 0
    with packed.open('rb') as source, target.open('wb') as out:
        head = source.read(4)
        source.seek(0)
        machine: Any
        if head == _ZSTD:
            machine = zstd.ZstdDecompressor()
        elif head == _LZ4:
            machine = _lz4().LZ4FrameDecompressor()
        else:
            return 'not compressed with zstd or lz4'
        try:
            while not machine.eof:
                block = source.read(_BLOCK) if machine.needs_input else b''
                if machine.needs_input and not block:
                    return f'cut off after {done} unpacked bytes'
                piece = machine.decompress(block, 4 * _BLOCK)
                done += len(piece)
                if done > MAX_UNPACKED:
                    return f'larger than {MAX_UNPACKED} bytes once unpacked'
                out.write(piece)
        except (RuntimeError, ValueError, EOFError, zstd.ZstdError) as err:
            return f'damaged after {done} unpacked bytes: {err}'
    return ''


def _lz4() -> Any:
    try:
        import lz4.frame
    except ImportError:
        raise DataError('lz4 data needs the package lz4; install it with `pip install lz4`') from None
    return lz4.frame
