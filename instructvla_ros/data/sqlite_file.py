"""A rosbag2 sqlite3 file (schema version 4) whose transactions end at every :meth:`SqliteFile.flush`.

Nothing is written between two flushes (``cache_spill = OFF``), so the file of a process that was killed holds whole
transactions: readers that ignore the journal, as rosbag2's do, find it in order unless the kill fell into a flush.
Then :func:`repair`, or any program that opens the file for writing, takes the last transaction back.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from ..errors import DataError
from .mcap_file import CHUNK_BYTES, Totals, merged
from .zstd import zstd

_SCHEMA = """
CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);
CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, serialization_format TEXT NOT NULL,
  offered_qos_profiles TEXT NOT NULL, type_description_hash TEXT NOT NULL);
CREATE TABLE message_definitions(id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL, encoding TEXT NOT NULL,
  encoded_message_definition TEXT NOT NULL, type_description_hash TEXT NOT NULL);
CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL,
  data BLOB NOT NULL);
CREATE INDEX timestamp_idx ON messages (timestamp ASC);
"""


class SqliteFile:
    """Writer; the same methods as :class:`~instructvla_ros.data.mcap_file.McapFile`.

    Args:
        path: of the new file. compress: zstd, each message by itself (the bag says so in its metadata).

    Attributes:
        written: what the file on the disk holds, up to the last successful flush.

    Raises:
        OSError: the file exists or cannot be made.
    """

    suffix = '.db3'

    def __init__(self, path: Path, compress: bool = False):
        self.path = path
        self.written = Totals()
        self._compress = compress
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        self._types: set[str] = set()
        self._topics = 0
        self._size = 0
        self._pending = Totals()
        self._open = True
        # Made by one thread, written by another; never by two at a time.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ('journal_mode = TRUNCATE', 'synchronous = NORMAL', 'cache_spill = OFF'):
                self._db.execute(f'PRAGMA {pragma}')
            self._db.executescript(f'BEGIN; {_SCHEMA} COMMIT;')
            self._db.execute('INSERT INTO schema VALUES (4, ?)', (os.environ.get('ROS_DISTRO', 'unknown'),))
            self._db.execute('BEGIN')
        except sqlite3.Error as err:
            self._db.close()
            raise _system_error(err, path) from err

    def add_topic(self, topic: str, msgtype: str, definition: str, digest: str, qos: str) -> int:
        """Announce a topic; its id for :meth:`write`."""
        self._topics += 1
        if msgtype not in self._types:
            self._types.add(msgtype)
            self._execute(
                'INSERT INTO message_definitions(topic_type, encoding, encoded_message_definition, '
                "type_description_hash) VALUES (?, 'ros2msg', ?, ?)",
                (msgtype, definition, digest),
            )
        self._execute("INSERT INTO topics VALUES (?, ?, ?, 'cdr', ?, ?)", (self._topics, topic, msgtype, qos, digest))
        self._pending.messages[self._topics] = 0
        return self._topics

    def write(self, channel: int, stamp_ns: int, data: bytes) -> None:
        """Add a message to the transaction; large ones go to the disk.

        Raises:
            OSError: the disk is full or gone. The file keeps what it held after the last flush.
        """
        stored = zstd.compress(data, 1) if self._compress else data
        self._execute('INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)', (channel, stamp_ns, stored))
        self._pending.add(channel, stamp_ns)
        self._size += len(stored)
        if self._size >= CHUNK_BYTES:
            self.flush()

    def flush(self, sync: bool = True) -> None:
        """End the transaction and begin the next; SQLite itself waits for the disk.

        Raises:
            OSError: the disk is full or gone; what was pending is dropped, the file on the disk stays whole.
        """
        pending, self._pending, self._size = self._pending, Totals(), 0
        self._execute('COMMIT')
        self.written = merged(self.written, pending)
        self._execute('BEGIN')

    def close(self) -> None:
        """Flush and close. Safe to call twice.

        Raises:
            OSError: as :meth:`flush`; the file is closed all the same.
        """
        if not self._open:
            return
        self._open = False
        try:
            self.flush()
            self._execute('COMMIT')
            self._execute('PRAGMA journal_mode = DELETE')  # nothing but the bag's own file is left
        finally:
            self._db.close()

    def size(self) -> int:
        """Bytes of the file."""
        return os.stat(self.path).st_size

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.Error as err:
            self._pending, self._size = Totals(), 0
            if self._db.in_transaction:  # SQLite may have taken it back by itself
                self._db.execute('ROLLBACK')
            self._db.execute('BEGIN')
            raise _system_error(err, self.path) from err


def repair(path: Path) -> Totals:
    """Take back a transaction that was cut off, and count what there is.

    Raises:
        DataError: not a rosbag2 database, or damaged beyond that.
    """
    db = sqlite3.connect(path)
    try:
        if db.execute('PRAGMA quick_check').fetchone() != ('ok',):
            raise DataError(f'{path} is damaged; try the program sqlite3 with its command .recover')
        counts = dict(db.execute('SELECT id, 0 FROM topics').fetchall())
        counts.update(db.execute('SELECT topic_id, count(*) FROM messages GROUP BY topic_id').fetchall())
        first, last = db.execute('SELECT min(timestamp), max(timestamp) FROM messages').fetchone()
    except sqlite3.Error as err:
        raise DataError(f'{path}: {err}') from err
    finally:
        db.close()
    return Totals(counts, first or 0, last or 0)


def _system_error(err: sqlite3.Error, path: Path) -> OSError:
    # The error code itself is known to Python from 3.11 on only.
    return OSError(errno.ENOSPC if 'full' in str(err) else errno.EIO, str(err), str(path))
