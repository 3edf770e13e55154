"""Where the records of a large JSON file are: one pass, a few MB of memory, then any record by its byte range."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError

BLOCK = 1 << 22
LARGEST = 1 << 28  # bytes of one record; more is a broken file, not a record


@dataclass(frozen=True)
class Record:
    """A record found by a scan.

    Attributes:
        keys: names of the objects around it, outermost first. start, end: byte range in the file.
        value: the parsed record, to check its form. Non-ASCII characters in its strings are not decoded.
    """

    keys: tuple[str, ...]
    start: int
    end: int
    value: Any


def records(file: str | Path, depth: int) -> Iterator[Record]:
    """Records of a file in order: members ``depth`` objects down, or with depth 0 the items of an array or of lines.

    Raises:
        DataError: cannot be read, or is not JSON of this form; names the file and the byte.
    """
    path = Path(file)
    try:
        with path.open('rb') as stream:
            scanner = _Scanner(stream, path)
            yield from scanner.items() if depth == 0 else scanner.members(depth, ())
            scanner.finish(depth)
    except OSError as err:
        raise DataError(f'{path} cannot be read: {err.strerror}') from None


def load(file: str | Path, start: int, end: int) -> Any:
    """Parse the record at a byte range.

    Raises:
        DataError: the file is gone, or was changed since it was scanned.
    """
    try:
        with Path(file).open('rb') as stream:
            stream.seek(start)
            return json.loads(stream.read(end - start).decode('utf-8'), strict=False)
    except OSError as err:
        raise DataError(f'{file} cannot be read: {err.strerror}') from None
    except ValueError as err:  # JSON and UTF-8
        raise DataError(f'{file}: no JSON record at byte {start} ({err}); was it changed while in use?') from None


class _Scanner:
    """Pull parser over a window of the file. The window is text in Latin-1, so that a character is a byte."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._text, self._at, self._base = '', 0, 0
        self._ended = False
        self._decoder = json.JSONDecoder(strict=False)
        self._more(BLOCK)
        if self._text.startswith('\xef\xbb\xbf'):  # byte order mark
            self._at = 3

    def items(self) -> Iterator[Record]:
        """Items of an array, or values one after the other (JSON lines)."""
        listed = self._peek() == '['
        if listed:
            self._at += 1
        while self._peek() not in ((']',) if listed else ('',)):
            value, start, end = self._value()
            yield Record((), start, end, value)
            if listed and not self._next_item(']'):
                break
        if listed:
            self._expect(']')

    def members(self, depth: int, keys: tuple[str, ...]) -> Iterator[Record]:
        """Members of nested objects."""
        self._expect('{')
        while self._peek() != '}':
            name, start, end = self._value()
            if not isinstance(name, str):
                raise self._error('a name in quotation marks is needed here', keys)
            # The window is Latin-1: a name with other characters is read again as the UTF-8 it is.
            inner = (*keys, name if name.isascii() else str(load(self._path, start, end)))
            self._expect(':')
            if depth > 1:
                if self._peek() != '{':
                    raise self._error('an object is needed here', inner)
                yield from self.members(depth - 1, inner)
            else:
                value, start, end = self._value(inner)
                yield Record(inner, start, end, value)
            if not self._next_item('}'):
                break
        self._expect('}')

    def finish(self, depth: int) -> None:
        """Nothing may follow."""
        if self._peek():
            raise self._error('text after the end of the data')

    def _value(self, keys: tuple[str, ...] = ()) -> tuple[Any, int, int]:
        self._peek()
        size = BLOCK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number at the edge of the window may go on behind it.
                if end < len(self._text) or self._ended:
                    break
            except RecursionError:
                raise self._error('nested too deeply', keys) from None
            except json.JSONDecodeError as err:
                if self._ended:
                    self._at = min(err.pos, len(self._text))
                    raise self._error(err.msg[0].lower() + err.msg[1:], keys) from None
            if len(self._text) - self._at > LARGEST:
                raise self._error(f'a record of more than {LARGEST >> 20} MB, or a missing quotation mark', keys)
            self._more(size)
            size *= 2
        start, self._at = self._base + self._at, end
        return value, start, self._base + end

    def _next_item(self, closing: str) -> bool:
        mark = self._peek()
        if mark == ',':
            self._at += 1
            if self._peek() == closing:
                raise self._error(f'a comma before {closing!r}')
            return True
        return False

    def _expect(self, mark: str) -> None:
        found = self._peek()
        if found != mark:
            raise self._error(f'{mark!r} expected, {repr(found) if found else "end of file"} found')
        self._at += 1

    def _peek(self) -> str:
        while True:
            while self._at < len(self._text) and self._text[self._at] in ' \t\r\n':
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ''
            self._more(BLOCK)

    def _more(self, size: int) -> None:
        """Forget what is behind, read on."""
        data = self._stream.read(size)
        self._ended = not data
        self._base += self._at
        self._text, self._at = self._text[self._at :] + data.decode('latin-1'), 0

    def _error(self, text: str, keys: tuple[str, ...] = ()) -> DataError:
        where = f' in {" / ".join(keys)}' if keys else ''
        return DataError(f'{self._path} is not valid at byte {self._base + self._at}{where}: {text}')
