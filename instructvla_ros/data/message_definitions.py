"""Definitions of message types, as a bag stores them so that it can be read where nobody knows the types.

The text of the installed ROS comes first (``share/<package>/msg/<Name>.msg``), then our own messages, then those that
the library rosbags knows.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .. import resources
from ..errors import DataError

_TYPE = re.compile(r'([a-z][a-z0-9_]*)/msg/([A-Za-z][A-Za-z0-9_]*)')


class Definition(NamedTuple):
    """Message definition with those it uses (format ros2msg), and its RIHS01 hash."""

    text: str
    digest: str


def split_type(msgtype: str) -> tuple[str, str]:
    """Package and name of 'sensor_msgs/msg/Image'.

    Raises:
        DataError: not the name of a message type.
    """
    match = _TYPE.fullmatch(msgtype)
    if match is None:
        raise DataError(f'{msgtype!r} is not a message type; expected something like sensor_msgs/msg/Image')
    return match[1], match[2]


def definition(msgtype: str) -> Definition:
    """Definition of a message type.

    Raises:
        DataError: nobody here knows it; the message says where was looked.
    """
    split_type(msgtype)
    store = _store()
    _register(store, msgtype, set())
    text, _ = store.generate_msgdef(msgtype, ros_version=2)
    return Definition(text, store.hash_rihs01(msgtype))


def typestore(msgtypes: Iterable[str] = ()) -> Any:
    """Store of the library rosbags (:class:`rosbags.typesys.store.Typestore`) that knows the given types too."""
    store = _store()
    for msgtype in msgtypes:
        _register(store, msgtype, set())
    return store


@lru_cache(maxsize=1)
def _store() -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.EMPTY)


@lru_cache(maxsize=1)
def _known() -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.LATEST)


def _register(store: Any, msgtype: str, open_: set[str]) -> None:
    if msgtype in store.fielddefs or msgtype in open_:
        return
    from rosbags.typesys import get_types_from_msg

    package, name = split_type(msgtype)
    file = _file(package, name)
    if file is not None:
        found = get_types_from_msg(file.read_text(encoding='utf-8'), msgtype)
    elif msgtype in _known().fielddefs:
        found = {msgtype: _known().fielddefs[msgtype]}
    else:
        raise DataError(
            f'no definition of {msgtype}: no {package}/msg/{name}.msg in the sourced ROS 2, and not one of the common '
            f'messages. Source the workspace that has {package}'
        )
    open_.add(msgtype)
    for _, fields in found.values():
        for used in _used(fields):
            _register(store, used, open_)
    store.register(found)


def _used(fields: Iterable[tuple[str, Any]]) -> Iterable[str]:
    """Message types among the fields; a field is (kind, (name, length)) or (kind, ((kind, ...), length))."""
    for _, (kind, content) in fields:
        while isinstance(content, tuple) and isinstance(content[0], tuple):
            kind, content = content[0]
        name = content[0] if isinstance(content, tuple) else content
        if isinstance(name, str) and '/msg/' in name:
            yield name


def _file(package: str, name: str) -> Path | None:
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    folders = [Path(p) / 'share' / package for p in (*prefixes, sys.prefix)]
    if package == resources.PACKAGE:
        folders.append(resources.share_directory())
    return next((f for d in folders if (f := d / 'msg' / f'{name}.msg').is_file()), None)
