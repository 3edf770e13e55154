"""Settings dataclasses as ROS parameters: same names, descriptions, units and bounds, from one declaration.

Nested groups become dotted names, tuples of scalars become arrays. Fields that ROS parameters cannot hold (cameras,
views) come from the YAML file and appear as read-only text. A parameter can be changed at run time only when the node
lists it as live; everything else is refused with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from .. import config, resources
from ..errors import ConfigError, suggest
from ..settings import Embodiment

T = TypeVar('T')

_SCALARS = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
}
_ARRAYS = {
    bool: Parameter.Type.BOOL_ARRAY,
    int: Parameter.Type.INTEGER_ARRAY,
    float: Parameter.Type.DOUBLE_ARRAY,
    str: Parameter.Type.STRING_ARRAY,
}
_INT64 = 2**63 - 1
_ROS_OWN = ('use_sim_time', 'start_type_description_service')


@dataclasses.dataclass(frozen=True)
class _Leaf:
    path: tuple[str, ...]
    field: dataclasses.Field[Any]
    kind: Parameter.Type | None  # None: only the YAML file can set it

    @property
    def name(self) -> str:
        return '.'.join(self.path)


def load_embodiment(node: Node, default: str = 'franka.yaml') -> Embodiment:
    """Declare the parameter ``embodiment`` and read the robot it names.

    Raises:
        ConfigError, SetupError: the file is missing or not valid.
    """
    name = text_parameter(node, 'embodiment', default, 'robot: a file of config/ or a path')
    return config.load(Embodiment, resources.config_file(name))


def load_settings(
    node: Node,
    cls: type[T],
    default: str,
    *,
    live: Collection[str] = (),
    on_change: Callable[[T], None] | None = None,
) -> T:
    """Declare the parameter ``config``, read the file it names, and declare its settings as parameters.

    Args:
        node: the node that gets the parameters.
        cls: settings dataclass. default: file name in config/ used when ``config`` is not given.
        live: dotted names that may change at run time. on_change: called with the new settings after each change.

    Returns:
        File and parameter overrides together, validated.

    Raises:
        ConfigError, SetupError: the file or an override is not valid.
    """
    name = text_parameter(node, 'config', default, f'settings ({cls.__name__}): a file of config/ or a path')
    return declare(node, cls, config.load(cls, resources.config_file(name)), live=live, on_change=on_change)


def declare(
    node: Node,
    cls: type[T],
    base: T,
    *,
    prefix: str = '',
    live: Collection[str] = (),
    on_change: Callable[[T], None] | None = None,
) -> T:
    """Declare every field of ``cls`` as a parameter whose default is its value in ``base``.

    Raises:
        ConfigError: an override has the wrong type or is out of bounds, or ``live`` names no parameter.
    """
    leaves = list(_leaves(cls, (prefix,) if prefix else ()))
    data: dict[str, Any] = {prefix: config.to_dict(base)} if prefix else config.to_dict(base)
    for leaf in leaves:
        given = _take_override(node, leaf.name)
        if given is None:
            continue
        if leaf.kind is None:
            raise ConfigError(f'{leaf.name}: too structured for a parameter; set it in the file given by `config`')
        _put(data, leaf.path, given)
    settings = _build(cls, data, prefix)
    declared = {leaf.name: leaf for leaf in leaves if leaf.kind is not None}
    for name in live:
        if name not in declared:
            raise ConfigError(f'{name}: not a parameter.{suggest(name, declared)}')
    values = config.to_dict(settings)
    for leaf in leaves:
        _declare_one(node, leaf, _get(values, leaf.path[1:] if prefix else leaf.path), leaf.name in live)
    if live:
        _watch(node, cls, prefix, {n: declared[n] for n in live}, settings, on_change)
    return settings


def text_parameter(node: Node, name: str, default: str, description: str) -> str:
    """Declare one read-only text parameter and return its value.

    Raises:
        ConfigError: the override is not text.
    """
    given = _take_override(node, name)
    value = default if given is None else given
    if not isinstance(value, str):
        raise ConfigError(f'{name}: expected text, got {value!r}')
    descriptor = ParameterDescriptor(description=description, read_only=True)
    node.declare_parameter(name, value, descriptor, ignore_override=True)
    return value


def integer_parameter(node: Node, name: str, default: int, low: int, high: int, description: str) -> int:
    """Declare one read-only whole number between ``low`` and ``high`` and return its value.

    Raises:
        ConfigError: the override is not such a number.
    """
    given = _take_override(node, name)
    value = default if given is None else given
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f'{name}: expected a whole number {low} .. {high}, got {value!r}')
    descriptor = ParameterDescriptor(
        description=description, read_only=True, integer_range=[IntegerRange(from_value=low, to_value=high, step=0)]
    )
    node.declare_parameter(name, value, descriptor, ignore_override=True)
    return value


def seal(node: Node) -> None:
    """Refuse overrides that nobody declared, and parameters that somebody tries to add later.

    Args:
        node: built with overrides declared automatically; every parameter it declared itself has a description.

    Raises:
        ConfigError: an unknown parameter was given, with the nearest valid names.
    """
    given = [n for n in node.get_parameters_by_prefix('') if not n.startswith('qos_overrides.')]
    allowed = {n for n in given if n in _ROS_OWN or node.describe_parameter(n).description}
    for name in given:
        if name not in allowed:
            raise ConfigError(f'{name}: unknown parameter.{suggest(name, allowed)}')

    def refuse_new(parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if not node.has_parameter(parameter.name):
                reason = f'{parameter.name}: unknown parameter.{suggest(parameter.name, allowed)}'
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(refuse_new)


def _leaves(cls: type, path: tuple[str, ...]) -> Iterator[_Leaf]:
    hints = config.hints(cls)
    for field in dataclasses.fields(cls):
        hint, here = hints[field.name], (*path, field.name)
        args = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint), here)
        elif hint in _SCALARS:
            yield _Leaf(here, field, _SCALARS[hint])
        elif typing.get_origin(hint) is tuple and args and args[0] in _ARRAYS:
            yield _Leaf(here, field, _ARRAYS[args[0]])
        else:
            yield _Leaf(here, field, None)


def _take_override(node: Node, name: str) -> Any:
    # The node declares its overrides itself (allow_undeclared); they are taken back and declared again with their
    # description, so that a whole number given for a float, or a typo, meets our message and not a traceback.
    if node.has_parameter(name):
        value = node.get_parameter(name).value
        node.undeclare_parameter(name)
    else:
        value = node.declare_parameter(name, None, ParameterDescriptor(dynamic_typing=True)).value
        node.undeclare_parameter(name)
    return list(value) if hasattr(value, 'typecode') else value


def _declare_one(node: Node, leaf: _Leaf, value: Any, live: bool) -> None:
    descriptor = _descriptor(leaf, live)
    if leaf.kind is None:
        value = json.dumps(value)
    elif isinstance(value, list) and not value:
        value = leaf.kind  # an empty list carries no type: declared by type alone
    node.declare_parameter(leaf.name, value, descriptor, ignore_override=True)


def _descriptor(leaf: _Leaf, live: bool) -> ParameterDescriptor:
    meta = leaf.field.metadata
    unit, ge, le, choices = meta.get('unit'), meta.get('ge'), meta.get('le'), meta.get('choices')
    out = ParameterDescriptor(description=meta.get('doc', '') + (f' [{unit}]' if unit else ''), read_only=not live)
    constraints = []
    if choices:
        constraints.append('one of: ' + ', '.join(choices))
    if leaf.kind is None:
        constraints.append('set it in the file given by `config`')
    if ge is not None or le is not None:
        if leaf.kind is Parameter.Type.DOUBLE:
            out.floating_point_range = [
                FloatingPointRange(
                    from_value=float(ge if ge is not None else -sys.float_info.max),
                    to_value=float(le if le is not None else sys.float_info.max),
                    step=0.0,
                )
            ]
        elif leaf.kind is Parameter.Type.INTEGER:
            low, high = int(ge) if ge is not None else -_INT64, int(le) if le is not None else _INT64
            out.integer_range = [IntegerRange(from_value=low, to_value=high, step=0)]
        else:
            bounds = ([f'>= {ge}'] if ge is not None else []) + ([f'<= {le}'] if le is not None else [])
            constraints.append('each ' + ' and '.join(bounds))
    if not live:
        constraints.append('read at start')
    out.additional_constraints = '; '.join(constraints)
    return out


def _watch(
    node: Node,
    cls: type[T],
    prefix: str,
    live: dict[str, _Leaf],
    settings: T,
    on_change: Callable[[T], None] | None,
) -> None:
    current: dict[str, Any] = {'settings': settings}

    def changed(parameters: list[Parameter]) -> T:
        base = config.to_dict(current['settings'])
        data: dict[str, Any] = {prefix: base} if prefix else base
        for parameter in parameters:
            leaf = live.get(parameter.name)
            if leaf is not None:
                value = parameter.value
                _put(data, leaf.path, list(value) if hasattr(value, 'typecode') else value)
        return _build(cls, data, prefix)

    def check(parameters: list[Parameter]) -> SetParametersResult:
        try:
            changed(parameters)
        except ConfigError as err:
            return SetParametersResult(successful=False, reason=str(err))
        return SetParametersResult(successful=True)

    def apply(parameters: list[Parameter]) -> None:
        if not any(parameter.name in live for parameter in parameters):
            return
        current['settings'] = changed(parameters)
        if on_change is not None:
            on_change(current['settings'])

    node.add_on_set_parameters_callback(check)
    node.add_post_set_parameters_callback(apply)


def _build(cls: type[T], data: dict[str, Any], prefix: str) -> T:
    return config.from_dict(cls, data[prefix], prefix) if prefix else config.from_dict(cls, data)


def _put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value


def _get(data: dict[str, Any], path: tuple[str, ...]) -> Any:
    for part in path[:-1]:
        data = data[part]
    return data[path[-1]]
