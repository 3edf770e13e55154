"""A recording in progress: messages go through a bounded queue to a thread that writes, so nobody waits for a disk.

Once a second the bag is brought to the disk in a state that opens, and the free space is looked at. A disk that is full
or gone ends the recording with a reason; what was written stays. See docs/recording.md.
"""

from __future__ import annotations

import errno
import math
import shutil
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..config import option
from ..errors import DataError, SetupError
from .bag_writer import STORAGES, BagWriter, Qos
from .marks import MARK_NAME, Episodes, Mark, Span
from .message_definitions import Definition, definition
from .recording_status import Meter, Status, Watched, problems

_STRING = 'std_msgs/msg/String'
_LATCHED = Qos('reliable', 'transient_local', 1)
_MB = 2**20
_OVERHEAD = 300  # memory of a waiting message besides its data [bytes]


@dataclass(frozen=True)
class RecordingOptions:
    """How to record."""

    storage: str = option('mcap', 'format of the bag', choices=STORAGES)
    compress: bool = option(False, 'compress with zstd; pays for raw images, costs processor time')
    only_episodes: bool = option(False, 'keep what lies between a start and a stop mark only')
    min_free: float = option(1000.0, 'free disk space at which the recording ends', unit='MB', ge=1.0)
    silent_after: float = option(2.0, 'silence after which a topic is reported', unit='s', ge=0.1, le=3600.0)
    max_duration: float = option(0.0, 'length at which the recording ends; 0: no limit', unit='s', ge=0.0)
    queue: float = option(256.0, 'memory for messages that wait for the disk', unit='MB', ge=1.0, le=65536.0)
    flush_period: float = option(1.0, 'longest time a message waits to be safe', unit='s', ge=0.1, le=60.0)


class _Message(NamedTuple):
    topic: str
    stamp_ns: int
    data: bytes


class _NewTopic(NamedTuple):
    topic: str
    msgtype: str
    definition: Definition
    qos: Qos


class Recording:
    """Records from its making until :meth:`close`, or until the disk or the time limit ends it.

    ``add_topic``, ``write``, ``mark`` and ``status`` may be called from any thread and do not wait for the disk.

    Args:
        path: folder of the bag; must not exist.
        watched: topics that are expected; silence of the periodic ones is reported.
        embodiment: YAML text of the robot, stored in the bag. robot: its name. instruction: what is demonstrated.
        namespace: of the marks, the embodiment and the instruction. free: bytes that a folder's disk has left.

    Attributes:
        ended: set when the recording has ended by itself; :meth:`status` says why.

    Raises:
        SetupError: the folder exists or cannot be written, or the disk has less than the margin.
    """

    def __init__(
        self,
        path: Path,
        options: RecordingOptions,
        watched: Sequence[Watched] = (),
        embodiment: str = '',
        robot: str = '',
        instruction: str = '',
        namespace: str = '/instructvla',
        free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ):
        self._options = options
        self._free = free
        self.path = path
        left = free(next(p for p in (path, *path.parents) if p.is_dir()))
        if left < options.min_free * _MB:
            raise SetupError(
                f'{path}: the disk has {left / _MB:.0f} MB left, recording ends at {options.min_free:.0f} MB. '
                'Make room, choose another disk, or lower min_free'
            )
        self._bag = BagWriter(path, options.storage, options.compress, {'robot': robot} if robot else {})
        self._channels: dict[str, int] = {}
        self._latched: set[str] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._queue: deque[_Message | _NewTopic] = deque()
        self._queued = 0  # bytes
        self._unwritten = 0  # messages that were accepted and could not be written
        self._closing = False
        self.ended = threading.Event()
        self._reason = ''
        self._began = time.monotonic()
        self._closed_at: float | None = None
        self._left = left
        self._byte_rate = 0.0
        self._bytes = 0
        self._safe_ns = 0
        self._episodes = Episodes()
        self._instruction = instruction
        self._meter = Meter(self._began, options.silent_after)
        self._meter.watch(watched)
        self._mark_topic = f'{namespace}/{MARK_NAME}'
        said = f'{namespace}/instruction'
        self._instruction_topics = (said, f'{namespace}/current_instruction')
        string = definition(_STRING)
        opening = {f'{namespace}/embodiment': embodiment, said: instruction}
        self._opening = {topic: text for topic, text in opening.items() if text}
        for topic in self._opening:
            self._announce(_NewTopic(topic, _STRING, string, _LATCHED))
        self._announce(_NewTopic(self._mark_topic, _STRING, string, Qos()))
        self._thread = threading.Thread(target=self._run, name='recording', daemon=True)
        self._thread.start()

    def add_topic(self, topic: str, msgtype: str, qos: Qos | None = None) -> None:
        """Announce a topic before its first message; again for the same topic is allowed.

        Raises:
            DataError: nobody knows the message type, or the topic has another one already.
        """
        before = self._meter.counters.get(topic)
        if before is not None and before.msgtype not in ('', msgtype):
            raise DataError(f'{topic} is recorded as {before.msgtype}; {msgtype} cannot go into the same topic')
        if before is None or not before.msgtype:
            self._announce(_NewTopic(topic, msgtype, definition(msgtype), qos or Qos()))

    def write(self, topic: str, stamp_ns: int, data: bytes) -> bool:
        """Take a serialized message in; False when it is not kept (see drops, only_episodes, ended).

        Args:
            topic: announced before. stamp_ns: time of arrival [ns]. data: CDR bytes.

        Raises:
            DataError: the topic was not announced.
        """
        with self._lock:
            counter = self._meter.counter(topic)
            if not counter.msgtype:
                raise DataError(f'{topic}: announce the topic before its first message')
            counter.seen += 1
            counter.last_seen = time.monotonic()
            if self._closing or self.ended.is_set():
                return False
            if self._options.only_episodes and not self._episodes.running and topic not in self._latched:
                return False
            if self._queued + len(data) + _OVERHEAD > self._options.queue * _MB:
                counter.dropped += 1
                return False
        if topic in self._instruction_topics:
            self._instruction = string_from_cdr(data) or self._instruction
        self._open(stamp_ns)
        self._accept(_Message(topic, stamp_ns, data))
        return True

    def mark(self, kind: str, stamp_ns: int, instruction: str = '') -> list[Mark]:
        """Mark start, stop, success or discard; the marks that were written.

        Args:
            instruction: what is demonstrated; empty: the newest one that was given or heard.

        Raises:
            DataError: nothing can be marked in this way now, or the recording has ended.
        """
        with self._lock:
            if self._closing or self.ended.is_set():
                raise DataError(f'the recording has ended{": " + self._reason if self._reason else ""}')
            if instruction:
                self._instruction = instruction
            marks = self._episodes.mark(kind, stamp_ns, self._instruction)
        self._write_marks(marks, stamp_ns)
        return marks

    def set_instruction(self, instruction: str) -> None:
        """Sentence of the episodes to come."""
        self._instruction = instruction

    def status(self) -> Status:
        """State at this moment."""
        with self._lock:
            now = self._closed_at or time.monotonic()
            silent = self._meter.silent(now)
            room = self._left - self._options.min_free * _MB
            return Status(
                path=str(self.path),
                seconds=now - self._began,
                bytes=self._bytes,
                rate=self._byte_rate,
                free=self._left,
                seconds_left=room / self._byte_rate if self._byte_rate > 0.0 else math.inf,
                backlog=self._queued / (self._options.queue * _MB),
                safe_ns=self._safe_ns,
                instruction=self._instruction,
                episodes=tuple(self._episodes.spans),
                topics=self._meter.topics(now),
                ended=self._reason,
                problems=problems(silent, self._meter.counters),
            )

    def close(self, stamp_ns: int = 0, reason: str = 'stopped') -> dict[str, Any]:
        """End the recording, write what is pending, and return the summary. Safe to call twice.

        An episode that still runs gets its stop mark.

        Args:
            stamp_ns: now [ns]. reason: kept when the recording has not ended by itself.
        """
        if self._closed_at is None:
            if self._episodes.running and not self.ended.is_set():
                self.mark('stop', stamp_ns)
            self._open(stamp_ns)
            with self._lock:
                self._closing = True
            self._wake.set()
            self._thread.join()
            self._finish()
            self._reason = self._reason or reason
            self._closed_at = time.monotonic()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """What was recorded; JSON-able."""
        status = self.status()
        judged = [s.result for s in status.episodes]
        with self._lock:
            never = self._meter.never()
        return {
            'path': status.path,
            'storage': self._options.storage,
            'ended': status.ended,
            'seconds': round(status.seconds, 2),
            'bytes': status.bytes,
            'messages': sum(self._bag.written.messages.values()),
            'dropped': sum(t.dropped for t in status.topics),
            'unwritten': self._unwritten,
            'never_came': never,
            'episodes': [_episode(s) for s in status.episodes],
            'successes': judged.count('success'),
            'discarded': judged.count('discard'),
            'topics': {
                t.name: {'type': t.msgtype, 'messages': t.messages, 'bytes': t.bytes, 'dropped': t.dropped}
                for t in status.topics
            },
        }

    # Queue.

    def _announce(self, topic: _NewTopic) -> None:
        with self._lock:
            self._meter.counter(topic.topic).msgtype = topic.msgtype
            if topic.qos.durability == 'transient_local':
                self._latched.add(topic.topic)
            self._queue.append(topic)

    def _accept(self, message: _Message) -> None:
        with self._lock:
            counter = self._meter.counter(message.topic)
            counter.stored += 1
            counter.bytes += len(message.data)
            self._queue.append(message)
            self._queued += len(message.data) + _OVERHEAD
        self._wake.set()

    def _open(self, stamp_ns: int) -> None:
        """Store embodiment and instruction, with the stamp of the first message: before it nobody knows the clock."""
        with self._lock:
            opening, self._opening = self._opening, {}
        for topic, text in opening.items():
            self._accept(_Message(topic, stamp_ns, string_to_cdr(text)))

    def _write_marks(self, marks: Sequence[Mark], stamp_ns: int) -> None:
        self._open(stamp_ns)
        for k, mark in enumerate(marks):  # a stop and its judgement keep their order by their stamps
            self._accept(_Message(self._mark_topic, stamp_ns + k, string_to_cdr(mark.to_json())))

    # The thread of the disk.

    def _run(self) -> None:
        due = time.monotonic() + self._options.flush_period
        while not self.ended.is_set():
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            closing = self._closing  # before the queue is emptied, so that nothing is left behind
            try:
                self._drain()
                if time.monotonic() >= due:
                    self._checkpoint(time.monotonic() - due + self._options.flush_period)
                    due = time.monotonic() + self._options.flush_period
            except OSError as err:
                self._end(_said(err, self.path))
            except Exception as err:  # nobody else would hear of a defect on this thread
                self._end(f'{type(err).__name__}: {err}')
                raise
            if closing:
                return

    def _drain(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, _NewTopic):
                self._channels[item.topic] = self._bag.add_topic(item.topic, item.msgtype, item.definition, item.qos)
                continue
            with self._lock:
                self._queued -= len(item.data) + _OVERHEAD
            self._bag.write(self._channels[item.topic], item.stamp_ns, item.data)

    def _checkpoint(self, elapsed: float) -> None:
        self._bag.flush()
        size, left = self._bag.size(), self._free(self.path)
        now = time.monotonic()
        with self._lock:
            self._byte_rate = 0.5 * self._byte_rate + 0.5 * (size - self._bytes) / max(elapsed, 1e-3)
            self._bytes, self._left, self._safe_ns = size, left, self._bag.written.last_ns
            self._meter.measure(now)
        limit = self._options.max_duration
        if left < self._options.min_free * _MB:
            self._end(
                f'the disk has {left / _MB:.0f} MB left, the margin is {self._options.min_free:.0f} MB: '
                'recording ended, everything so far is in the bag'
            )
        elif limit and now - self._began >= limit:
            self._end(f'the time limit of {limit:g} s')

    def _end(self, reason: str) -> None:
        with self._lock:
            self._reason = self._reason or reason
        self.ended.set()

    def _finish(self) -> None:
        """Close the bag, after the thread has ended."""
        try:
            if not self.ended.is_set() or self._reason.startswith('the time limit'):
                self._drain()
        except OSError as err:
            self._end(_said(err, self.path))
        try:
            self._bag.close()
        except OSError as err:
            self._end(_said(err, self.path))
        with self._lock:
            self._bytes, self._safe_ns = self._bag.size(), self._bag.written.last_ns
            accepted = sum(c.stored for c in self._meter.counters.values())
            self._unwritten = accepted - sum(self._bag.written.messages.values())


def string_to_cdr(text: str) -> bytes:
    """``std_msgs/String`` in CDR, little endian."""
    data = text.encode() + b'\0'
    return b'\0\1\0\0' + struct.pack('<I', len(data)) + data


def string_from_cdr(data: bytes) -> str:
    """Text of a ``std_msgs/String`` in CDR; '' when it is not one."""
    if len(data) < 8:
        return ''
    (length,) = struct.unpack_from('<I' if data[1] & 1 else '>I', data, 4)
    return bytes(data[8 : 8 + length]).rstrip(b'\0').decode(errors='replace')


def _said(err: OSError, path: Path) -> str:
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'the disk of {path} is full: recording ended, everything up to the last second is in the bag'
    return f'{path} cannot be written any more ({err.strerror}): recording ended, the bag holds what was written before'


def _episode(span: Span) -> dict[str, Any]:
    seconds = None if span.stop_ns is None else round((span.stop_ns - span.start_ns) * 1e-9, 3)
    return {'index': span.index, 'instruction': span.instruction, 'seconds': seconds, 'result': span.result}
