"""Message definitions of a bag, and the decoders made from them.

Definitions come from the bag. The CDR decoder (`rosbags`) compiles them, so every name in them is checked against the
grammar of ROS names and every size against a limit first, and constants and default values are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from .. import resources
from ..errors import DataError, SetupError
from .bag_source import Channel

Types = dict[str, Any]
_TYPE = re.compile(r'[A-Za-z][A-Za-z0-9_]*(/(msg|srv|action))?/[A-Za-z][A-Za-z0-9_]*')
_FIELD = re.compile(r'[A-Za-z][A-Za-z0-9_]*')
_MAX_TEXT, _MAX_TYPES, _MAX_FIELDS, _MAX_ITEMS, _MAX_NESTED = 2**20, 512, 1024, 65536, 256
BAD_MESSAGE = (SerdeError, KeyError, IndexError, TypeError, ValueError, OverflowError, MemoryError, RecursionError)
"""What decoding a damaged message may raise."""
_BAD = (*BAD_MESSAGE, TypesysError, AssertionError, SyntaxError)


@lru_cache(maxsize=1)
def standard_types() -> Typestore:
    """Types of ROS 2 Jazzy and of this package; the ones used when a bag holds no definitions."""
    store = get_typestore(Stores.ROS2_JAZZY)
    try:
        folder = resources.share_directory() / 'msg'
    except SetupError:
        return store
    ours: Types = {}
    for file in sorted(folder.glob('*.msg')):
        ours.update(get_types_from_msg(file.read_text(encoding='utf-8'), f'instructvla_ros/msg/{file.stem}'))
    if ours:
        store.register(ours)
    return store


def decoder(channel: Channel, note: Callable[[str], None]) -> Callable[[bytes | memoryview], Any]:
    """Function that decodes the CDR messages of a channel into an object with the fields of the message.

    Args:
        note: told what is odd about the definition and what was done about it.

    Raises:
        DataError: the type is not known and its definition is missing or unusable.
    """
    store = standard_types()
    known = channel.type in store.fielddefs
    if channel.definition:
        try:
            store = _store_of(channel, store)
        except DataError as err:
            if not known:
                raise
            note(f'{err}; using the known definition of {channel.type}')
    elif not known:
        raise DataError(f'the type {channel.type!r} is not known and the bag holds no definition of it')
    if channel.digest:
        try:
            expected = store.hash_rihs01(channel.type)
        except _BAD:
            expected = ''
        if expected and expected != channel.digest:
            note(f'the type hash of {channel.type} is {channel.digest[:16]}, its definition gives {expected[:16]}')
    name = channel.type
    try:
        store.get_msgdef(name)
    except _BAD as err:
        raise DataError(f'the definition of {name!r} cannot be used: {err}') from None
    return lambda raw: store.deserialize_cdr(raw, name)


def _store_of(channel: Channel, standard: Typestore) -> Typestore:
    """The standard store when the definition says the same, else one of its own."""
    types = parse_definition(channel.definition, channel.type, channel.format)
    have = standard.fielddefs
    if channel.type not in types:
        raise DataError(f'the definition stored with {channel.type!r} defines something else')
    if all(name in have and _same(have[name][1], fields) for name, (_, fields) in types.items()):
        return standard
    pending, needed = [channel.type], dict[str, Any]()
    while pending:
        name = pending.pop()
        if name in needed:
            continue
        if name in types:
            found = types[name]
        elif name in have:
            found = ([], list(have[name][1]))
        else:
            raise DataError(f'the definition of {channel.type!r} uses {name!r} without defining it')
        needed[name] = found
        pending += [d for _, desc in found[1] if (d := _named(desc))]
    _refuse_cycles(needed)
    store = get_typestore(Stores.EMPTY)
    try:
        store.register(needed)
    except _BAD as err:
        raise DataError(f'the definition of {channel.type!r} cannot be used: {err}') from None
    return store


def parse_definition(text: str, name: str, form: str = 'ros2msg') -> Types:
    """Types of a stored definition, checked and without constants.

    Raises:
        DataError: not a definition, or names or sizes in it are not allowed.
    """
    if len(text) > _MAX_TEXT or not _TYPE.fullmatch(name):
        raise DataError(f'the definition of {name[:80]!r} is too long or its name is not one of ROS')
    types: Types = {}
    try:
        if form == 'ros2msg':
            types = dict(get_types_from_msg(text, name))
        else:
            for part in text.split('=' * 80 + '\n'):
                if part.strip():
                    body = part.split('\n', 1)[1] if part.startswith('IDL: ') else part
                    types.update(get_types_from_idl(body))
    except _BAD as err:
        reason = (str(err).splitlines() or [''])[0][:120]
        raise DataError(f'the definition of {name!r} cannot be read: {reason}') from None
    if len(types) > _MAX_TYPES:
        raise DataError(f'the definition of {name!r} has {len(types)} types, allowed are {_MAX_TYPES}')
    checked: Types = {}
    for each, (_, fields) in types.items():
        if not _TYPE.fullmatch(each) or len(fields) > _MAX_FIELDS:
            raise DataError(f'the definition of {name!r} has a type {each[:80]!r} that is not allowed')
        for field_name, desc in fields:
            if not _FIELD.fullmatch(field_name) or not _sane(desc):
                raise DataError(f'the definition of {name!r} has a field {field_name[:80]!r} that is not allowed')
        checked[each] = ([], list(fields))
    return checked


def _sane(desc: Any) -> bool:
    kind, rest = desc
    if kind == Nodetype.BASE:
        return bool(_FIELD.fullmatch(rest[0]))
    if kind == Nodetype.NAME:
        return bool(_TYPE.fullmatch(rest))
    inner, size = rest
    # Fixed arrays of texts or messages are unrolled into code, one block per item.
    nested = inner[0] != Nodetype.BASE or inner[1][0] == 'string'
    limit = _MAX_NESTED if nested and kind == Nodetype.ARRAY else _MAX_ITEMS if kind == Nodetype.ARRAY else 2**32
    return 0 <= size <= limit and _sane(inner)


def _named(desc: Any) -> str:
    kind, rest = desc
    if kind == Nodetype.NAME:
        return str(rest)
    return _named(rest[0]) if kind in (Nodetype.ARRAY, Nodetype.SEQUENCE) else ''


def _same(a: Any, b: Any) -> bool:
    return [(n, tuple(d)) for n, d in a] == [(n, tuple(d)) for n, d in b]


def _refuse_cycles(types: Types) -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above or len(above) > 64:
            raise DataError(f'the definition of {name!r} contains itself')
        if name in done:
            return
        for _, desc in types[name][1]:
            if inner := _named(desc):
                visit(inner, (*above, name))
        done.add(name)

    for name in types:
        visit(name, ())
