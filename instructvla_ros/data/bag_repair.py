"""Index and metadata of a bag whose recorder was killed, for programs that insist on them (``ros2 bag play``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from . import mcap_repair, sqlite_file
from .bag_mcap import McapSource
from .bag_source import Problems, Source
from .bag_sqlite import SqliteSource
from .bag_writer import METADATA, Qos, Topic, write_metadata
from .mcap_file import Totals


def repair_bag(folder: Path) -> dict[str, Any]:
    """Make a bag of one file whole again, in place: what follows the last whole record is removed.

    The qualities of service of its topics are kept where ``metadata.yaml`` has them.

    Returns:
        path, messages, seconds and the number of bytes removed.

    Raises:
        DataError: no bag, of several files, compressed as a whole, or nothing in it is whole. OSError: not writable.
    """
    files = [f for f in sorted(folder.glob('*')) if f.suffix in ('.mcap', '.db3')] if folder.is_dir() else []
    if len(files) != 1:
        raise DataError(
            f'{folder}: {len(files)} storage files (.mcap, .db3); a bag of one file can be repaired. '
            'For others there is `ros2 bag reindex`'
        )
    file, removed = files[0], 0
    source: Source
    if file.suffix == '.mcap':
        totals, removed = mcap_repair.repair(file)
        source = McapSource(file, Problems())
    else:
        totals = sqlite_file.repair(file)
        source = SqliteSource(file, Problems())
    try:
        channels = source.contents.channels
    finally:
        source.close()
    known = _metadata(folder)
    topics = {
        number: Topic(c.topic, c.type, c.digest, known['qos'].get(c.topic, Qos())) for number, c in channels.items()
    }
    storage = 'mcap' if file.suffix == '.mcap' else 'sqlite3'
    write_metadata(folder, storage, file.name, topics, totals, known['per_message'], known['custom'])
    return {
        'path': str(folder),
        'messages': sum(totals.messages.values()),
        'seconds': _seconds(totals),
        'removed': removed,
    }


def _seconds(totals: Totals) -> float:
    return (totals.last_ns - totals.first_ns) * 1e-9


def _metadata(folder: Path) -> dict[str, Any]:
    """What the old metadata says and no storage file does; nothing when there is none, or it is not in order."""
    out: dict[str, Any] = {'qos': {}, 'per_message': False, 'custom': None}
    try:
        data = yaml.safe_load((folder / METADATA).read_text(encoding='utf-8'))['rosbag2_bagfile_information']
        out['per_message'] = str(data.get('compression_mode')).lower() == 'message'
        out['custom'] = data.get('custom_data')
        for entry in data['topics_with_message_count']:
            about = entry['topic_metadata']
            profile = about['offered_qos_profiles'][0]
            out['qos'][about['name']] = Qos(profile['reliability'], profile['durability'], int(profile['depth']))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return out
    return out
