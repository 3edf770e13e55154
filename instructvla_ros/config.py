"""Typed configuration: frozen dataclasses, loaded from YAML, refused when a key is unknown.

A field declared with :func:`option` carries its description, unit and bounds. The same declaration validates
YAML files and becomes a ROS parameter (``nodes/params.py``), so there is one place for each default.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .errors import ConfigError, suggest

T = TypeVar('T')


def option(
    default: Any,
    doc: str,
    *,
    unit: str = '',
    ge: float | None = None,
    le: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Dataclass field with a description, a unit, inclusive bounds (also per element of a tuple) or choices."""
    meta = {'doc': doc, 'unit': unit, 'ge': ge, 'le': le, 'choices': tuple(choices) if choices else None}
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return dataclasses.field(default_factory=lambda: default, metadata=meta)
    if isinstance(default, type) and dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=default, metadata=meta)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def hints(cls: type) -> dict[str, Any]:
    """Resolved type of every field of a configuration class."""
    return typing.get_type_hints(cls)


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = '') -> T:
    """Build a configuration from plain data.

    Raises:
        ConfigError: unknown key (with the nearest valid names), wrong type, or value out of bounds.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f'{where or cls.__name__}: expected keys and values, got {type(data).__name__}')
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    types_ = hints(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        at = f'{where}.{key}' if where else str(key)
        if key not in fields:
            raise ConfigError(f'{at}: unknown key.{suggest(str(key), fields)}')
        values[key] = _convert(types_[key], value, at)
        _check(fields[key], values[key], at)
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f'{where or cls.__name__}: missing {", ".join(missing)}')
    try:
        return cls(**values)
    except ConfigError as err:
        raise ConfigError(f'{where}: {err}' if where else str(err)) from None


def load(cls: type[T], path: str | Path, overrides: Mapping[str, Any] | None = None) -> T:
    """Read a YAML file into ``cls``; ``overrides`` are dotted keys set on top.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit ``cls``.
    """
    file = Path(path)
    try:
        data = yaml.safe_load(file.read_text(encoding='utf-8')) or {}
    except OSError as err:
        raise ConfigError(f'cannot read configuration {file}: {err.strerror}') from None
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f'{file} is not valid YAML: {err}') from None
    if not isinstance(data, dict):
        raise ConfigError(f'{file}: expected keys and values at the top, got {type(data).__name__}')
    for dotted, value in (overrides or {}).items():
        node = data
        *parents, last = dotted.split('.')
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f'{dotted}: {part} is a value, not a group')
        node[last] = value
    try:
        return from_dict(cls, data)
    except ConfigError as err:
        raise ConfigError(f'{file}: {err}') from None


def to_dict(config: Any) -> Any:
    """Plain data (dicts, lists, scalars) of a configuration, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {k: to_dict(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    return config


def replace(config: T, **changes: Any) -> T:
    """Copy with some fields changed, validated like :func:`from_dict`."""
    cls = type(config)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in changes.items():
        if key not in fields:
            raise ConfigError(f'{key}: unknown key.{suggest(key, fields)}')
        _check(fields[key], value, key)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _convert(hint: Any, value: Any, at: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, at)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f'{at}: {value!r} is not allowed.{suggest(value, args)}')
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        return _convert(inner[0], value, at)
    if origin is tuple:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise ConfigError(f'{at}: expected a list, got {value!r}')
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], v, f'{at}[{i}]') for i, v in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(f'{at}: expected {len(args)} values, got {len(value)}')
        return tuple(_convert(a, v, f'{at}[{i}]') for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin in (dict, Mapping) or (origin is not None and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise ConfigError(f'{at}: expected keys and values, got {value!r}')
        return {str(k): _convert(args[1], v, f'{at}.{k}') for k, v in value.items()}
    if hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f'{at}: expected true or false, got {value!r}')
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f'{at}: expected a whole number, got {value!r}')
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f'{at}: expected a number, got {value!r}')
        if math.isnan(value):
            raise ConfigError(f'{at}: NaN is not allowed')
        return float(value)
    if hint is str:
        if not isinstance(value, str):
            raise ConfigError(f'{at}: expected text, got {value!r}')
        return value
    return value


def _check(field: dataclasses.Field[Any], value: Any, at: str) -> None:
    meta = field.metadata
    choices, ge, le = meta.get('choices'), meta.get('ge'), meta.get('le')
    unit = f' {meta["unit"]}' if meta.get('unit') else ''
    for v in value if isinstance(value, tuple) else (value,):
        if choices and v not in choices:
            raise ConfigError(f'{at}: {v!r} is not allowed.{suggest(v, choices)}')
        if isinstance(v, (int, float)) and not isinstance(v, bool):
            if ge is not None and v < ge:
                raise ConfigError(f'{at}: {v}{unit} is below the smallest allowed value {ge}{unit}')
            if le is not None and v > le:
                raise ConfigError(f'{at}: {v}{unit} is above the largest allowed value {le}{unit}')
