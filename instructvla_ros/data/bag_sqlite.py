"""rosbag2 files of the sqlite3 storage, read row by row so that a damaged page costs its rows and not the bag."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from .bag_source import MAX_CHUNK, Channel, Contents, Problem, Problems

_SMALL = 300  # bytes of a message that certainly lies in one page, the smallest of which has 512
_HOLES = 64  # damaged stretches that are jumped over
_STEPS = 200_000_000  # virtual machine steps of one statement; more means a file made to hang its reader


class SqliteSource:
    """One ``.db3`` file.

    Raises:
        DataError: not a database, or its tables are not those of rosbag2.
    """

    def __init__(self, path: Path, problems: Problems) -> None:
        self.path = path
        self.contents = Contents()
        self._problems = problems
        journal = path.with_name(path.name + '-wal')
        # A journal holds what a killed recorder wrote last; without one nothing but the file itself is touched.
        mode = 'ro' if journal.is_file() and journal.stat().st_size else 'ro&immutable=1'
        name = path.resolve().as_uri()
        try:
            self._connection = sqlite3.connect(f'{name}?mode={mode}', uri=True, check_same_thread=False)
        except sqlite3.Error as err:
            raise DataError(f'cannot open {path}: {err}') from None
        try:
            if hasattr(self._connection, 'setlimit'):  # Python 3.11
                self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CHUNK)
            self._connection.execute('PRAGMA trusted_schema = OFF')
            self._connection.execute('PRAGMA cell_size_check = ON')
            self._limit()
            try:
                self._open()
            except sqlite3.DatabaseError as err:
                # SQLite refuses a file that is shorter than its header says, unless it is told to mend the schema.
                # The connection cannot write, so the file stays as it is.
                self._note(f'is damaged or cut off: {err}; reading what is whole')
                self.contents = Contents()
                self._connection.execute('PRAGMA writable_schema = ON')
                self._open()
                self._drop_half_written()
        except sqlite3.Error as err:
            self._connection.close()
            raise DataError(f'{path} is damaged or not a bag: {err}') from None
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def read(self, wanted: set[int]) -> Iterator[tuple[int, int, bytes | memoryview]]:
        """Channel id, time of recording [ns] and message, in the order of time."""
        cursor = self._connection.cursor()
        for row in self._order:
            number, channel, stamp = (int(v) for v in row)
            if channel not in wanted:
                continue
            topic = self.contents.channels[channel].topic
            try:
                self._limit()
                found = cursor.execute('SELECT data FROM messages WHERE id = ?', (number,)).fetchone()
            except (sqlite3.Error, OverflowError, MemoryError) as err:
                self._note(f'message {number} left out: {err}', topic, stamp)
                continue
            if found is None or not isinstance(found[0], bytes) or len(found[0]) > MAX_CHUNK:
                self._note(f'message {number} left out: it has no usable data', topic, stamp)
                continue
            yield channel, stamp, found[0]

    def _open(self) -> None:
        tables = {
            name: [row[1] for row in self._connection.execute(f'PRAGMA table_info({name})')]
            for name in ('topics', 'messages', 'message_definitions')
        }
        query = "SELECT name, type FROM sqlite_master WHERE name IN ('topics', 'messages')"
        kinds = dict(self._connection.execute(query))
        if set(kinds.values()) != {'table'} or len(kinds) != 2:
            raise DataError(f'{self.path} is not a bag: it has no tables `topics` and `messages`')
        definitions: dict[str, tuple[str, str]] = {}
        if 'encoded_message_definition' in tables['message_definitions']:
            rows = self._connection.execute(
                'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
            )
            definitions = {str(name): (str(form), str(text)) for name, form, text in rows}
        digest = 'type_description_hash' if 'type_description_hash' in tables['topics'] else "''"
        query = f'SELECT id, name, type, serialization_format, {digest} FROM topics'
        for number, topic, kind, encoding, hashed in self._connection.execute(query):
            if encoding != 'cdr':
                self._note(f'is encoded as {encoding!r}, only cdr can be read', str(topic))
                continue
            form, text = definitions.get(str(kind), ('ros2msg', ''))
            self.contents.channels[int(number)] = Channel(
                int(number), str(topic), str(kind), text, form, str(hashed or '')
            )
        self._order = self._rows()
        for channel in self.contents.channels:
            self.contents.counts[channel] = int(np.count_nonzero(self._order[:, 1] == channel))
        if len(self._order):
            self.contents.span(int(self._order[0, 2]), int(self._order[-1, 2]))

    def _rows(self) -> np.ndarray:
        """(N, 3) id, topic and time of recording of every readable row, in the order of time."""
        rows: list[tuple[int, int, int]] = []
        last, step, holes = -(2**63), 1, 0
        while holes < _HOLES:
            try:
                self._limit()
                # Walks the table, not the index on time, whose pages may lie behind the end of a cut-off file.
                query = 'SELECT id, topic_id, timestamp FROM messages NOT INDEXED WHERE id > ? ORDER BY id'
                for number, channel, stamp in self._connection.execute(query, (last,)):
                    last, step = number, 1
                    if channel in self.contents.channels and isinstance(stamp, int) and 0 < stamp < 2**63:
                        rows.append((number, channel, stamp))
                break
            except (sqlite3.Error, OverflowError) as err:
                if not holes:
                    self._note(f'is damaged behind message {last if rows else 0}: {err}; reading what is whole')
                holes += 1
                last, step = max(last, 0) + step, 2 * step
        if holes and not rows:
            raise DataError(f'{self.path} is damaged: no message in it can be read')
        table = np.array(rows, np.int64).reshape(-1, 3)
        return table[np.lexsort((table[:, 0], table[:, 2]))]

    def _drop_half_written(self) -> None:
        """Leave out the last large message of a cut-off file: SQLite gives zeros for a last page that is not there."""
        for number in sorted((int(n) for n in self._order[:, 0]), reverse=True):
            try:
                self._limit()
                found = self._connection.execute('SELECT length(data), data FROM messages WHERE id = ?', (number,))
                size = (found.fetchone() or (0,))[0]
            except (sqlite3.Error, OverflowError, MemoryError):
                continue
            if isinstance(size, int) and size >= _SMALL:
                _, channel, stamp = (int(v) for v in self._order[self._order[:, 0] == number][0])
                self._note(
                    f'message {number} left out: it may be incomplete', self.contents.channels[channel].topic, stamp
                )
                self._order = self._order[self._order[:, 0] != number]
                return

    def _limit(self) -> None:
        """Start counting the work of the next statement."""
        left = [_STEPS // 100_000]

        def step() -> int:
            left[0] -= 1
            return int(left[0] < 0)

        self._connection.set_progress_handler(step, 100_000)

    def _note(self, text: str, topic: str = '', recorded_ns: int = 0) -> None:
        self._problems.add(Problem(self.path.name, text, topic, recorded_ns))
