"""A rosbag2 bag (metadata version 9) that opens at any moment while it is written, also when its writer is killed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from ..errors import SetupError
from .mcap_file import McapFile, Totals
from .message_definitions import Definition
from .sqlite_file import SqliteFile

STORAGES = ('mcap', 'sqlite3')
METADATA = 'metadata.yaml'
_VERSION = 9
_NEVER = {'sec': 9223372036, 'nsec': 854775807}


@dataclass(frozen=True)
class Qos:
    """The part of a quality of service that decides whether a player's messages arrive.

    Attributes:
        reliability: 'reliable' or 'best_effort'. durability: 'volatile' or 'transient_local'. depth: of the history.
    """

    reliability: str = 'reliable'
    durability: str = 'volatile'
    depth: int = 10

    def profile(self) -> dict[str, Any]:
        """As rosbag2 writes it."""
        return {
            'history': 'keep_last',
            'depth': self.depth,
            'reliability': self.reliability,
            'durability': self.durability,
            'deadline': dict(_NEVER),
            'lifespan': dict(_NEVER),
            'liveliness': 'automatic',
            'liveliness_lease_duration': dict(_NEVER),
            'avoid_ros_namespace_conventions': False,
        }


@dataclass(frozen=True)
class Topic:
    """A topic of a bag: name, type ('sensor_msgs/msg/Image'), RIHS01 hash, offered quality of service."""

    name: str
    msgtype: str
    digest: str
    qos: Qos


class Storage(Protocol):
    """What a bag needs from its file; raises OSError where the disk refuses."""

    path: Path
    written: Totals

    def add_topic(self, topic: str, msgtype: str, definition: str, digest: str, qos: str) -> int:
        """Announce a topic; its id for :meth:`write`."""
        ...

    def write(self, channel: int, stamp_ns: int, data: bytes) -> None:
        """Add a message."""
        ...

    def flush(self, sync: bool = True) -> None:
        """Bring everything to the disk, so that the file opens."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...

    def size(self) -> int:
        """Bytes on the disk."""
        ...


class BagWriter:
    """Writes one bag. Not for several threads at once.

    Args:
        path: folder of the bag; must not exist. storage: 'mcap' or 'sqlite3'.
        compress: zstd; per chunk in mcap, per message in sqlite3.
        custom: text that goes into the metadata.

    Raises:
        SetupError: the folder exists or cannot be made.
    """

    def __init__(
        self, path: Path, storage: str = 'mcap', compress: bool = False, custom: Mapping[str, str] | None = None
    ):
        if storage not in STORAGES:
            raise SetupError(f'storage {storage!r}; use one of {", ".join(STORAGES)}')
        self.path = path
        self.topics: dict[int, Topic] = {}
        self._storage_name = storage
        self._custom = dict(custom or {})
        # In mcap the compression is said by each chunk.
        self._per_message = compress and storage == 'sqlite3'
        if path.exists() or path.is_symlink():
            raise SetupError(f'{path} exists; a recording never overwrites one. Choose another folder')
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except OSError as err:
            raise SetupError(f'cannot make {path}: {err.strerror}. Choose a folder that can be written') from err
        kind: type[Storage] = McapFile if storage == 'mcap' else SqliteFile
        suffix = '.mcap' if storage == 'mcap' else '.db3'
        try:
            self._file: Storage = kind(path / f'{path.name}_0{suffix}', compress)  # type: ignore[call-arg]
            self._describe()
        except OSError as err:
            raise SetupError(f'cannot write in {path}: {err.strerror}') from err

    def add_topic(self, name: str, msgtype: str, definition: Definition, qos: Qos | None = None) -> int:
        """Announce a topic; its id for :meth:`write`.

        Raises:
            OSError: the disk refuses.
        """
        qos = qos or Qos()
        text = yaml.safe_dump([qos.profile()], sort_keys=False)
        channel = self._file.add_topic(name, msgtype, definition.text, definition.digest, text)
        self.topics[channel] = Topic(name, msgtype, definition.digest, qos)
        self._describe()  # before its first message: readers go by the metadata
        return channel

    def write(self, channel: int, stamp_ns: int, data: bytes) -> None:
        """Add a serialized (CDR) message with the time it was received at.

        Raises:
            OSError: the disk refuses; the bag keeps what it held after the last flush.
        """
        self._file.write(channel, stamp_ns, data)

    def flush(self) -> None:
        """Bring everything to the disk, the metadata too.

        Raises:
            OSError: the disk refuses; what was pending is dropped and the bag stays whole.
        """
        self._file.flush()
        self._describe()

    def close(self) -> None:
        """Flush and close. Safe to call twice.

        Raises:
            OSError: as :meth:`flush`; the bag is closed and opens all the same.
        """
        try:
            self._file.close()
        finally:
            self._describe()

    @property
    def written(self) -> Totals:
        """What is on the disk."""
        return self._file.written

    def size(self) -> int:
        """Bytes on the disk."""
        return self._file.size()

    def _describe(self) -> None:
        name = self._file.path.name
        write_metadata(
            self.path, self._storage_name, name, self.topics, self.written, self._per_message, self._custom
        )


def write_metadata(
    folder: Path,
    storage: str,
    file: str,
    topics: Mapping[int, Topic],
    totals: Totals,
    per_message: bool = False,
    custom: Mapping[str, str] | None = None,
) -> None:
    """Write ``metadata.yaml`` in one step: readers see the old one or the new one.

    Args:
        file: name of the only file. per_message: its messages are zstd compressed one by one.

    Raises:
        OSError: the disk refuses; the old metadata stays.
    """
    count = sum(totals.messages.values())
    start = {'nanoseconds_since_epoch': totals.first_ns if count else 2**63 - 1}
    duration = {'nanoseconds': totals.last_ns - totals.first_ns}
    listed = [
        {
            'topic_metadata': {
                'name': topic.name,
                'type': topic.msgtype,
                'serialization_format': 'cdr',
                'offered_qos_profiles': [topic.qos.profile()],
                'type_description_hash': topic.digest,
            },
            'message_count': totals.messages.get(channel, 0),
        }
        for channel, topic in topics.items()
    ]
    information = {
        'version': _VERSION,
        'storage_identifier': storage,
        'duration': duration,
        'starting_time': start,
        'message_count': count,
        'topics_with_message_count': listed,
        'compression_format': 'zstd' if per_message else '',
        'compression_mode': 'message' if per_message else '',
        'relative_file_paths': [file],
        'files': [{'path': file, 'starting_time': start, 'duration': duration, 'message_count': count}],
        'custom_data': dict(custom) if custom else None,
        'ros_distro': os.environ.get('ROS_DISTRO', 'unknown'),
    }
    part = folder / f'.{METADATA}.part'
    try:
        text = yaml.dump({'rosbag2_bagfile_information': information}, Dumper=_Plain, sort_keys=False)
        part.write_text(text, encoding='utf-8')
        os.replace(part, folder / METADATA)
    except OSError:
        part.unlink(missing_ok=True)
        raise


class _Plain(yaml.SafeDumper):
    """Anchors for repeated values are YAML, but nobody expects them here."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
