"""Launch files as `ros2 launch` sees them, for the tests of each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, LogInfo, SetEnvironmentVariable
from launch.substitutions import LocalSubstitution
from launch.utilities import normalize_to_list_of_substitutions, perform_substitutions
from launch_ros.actions import Node
from launch_ros.utilities import evaluate_parameters

from launch import LaunchContext


def module_of(file: Path) -> Any:
    """A launch file as a module."""
    spec = importlib.util.spec_from_file_location(file.name.split('.')[0], file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def started_by(description: Any, **arguments: str) -> dict[str, dict[str, Any]]:
    """Executables that would start with these launch arguments, and their parameters."""
    context = LaunchContext()
    context.launch_configurations.update(arguments)
    for entity in description.entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    out = {}
    for entity in description.entities:
        if isinstance(entity, Node) and (entity.condition is None or entity.condition.evaluate(context)):
            values: dict[str, Any] = {}
            for group in evaluate_parameters(context, entity._Node__parameters):
                values.update(group)
            out[entity.node_executable] = values
    return out


def effects(loaded: Any, **arguments: str) -> list[str]:
    """Everything a launch file would do with these launch arguments, one line each: processes, environment, words.

    Functions of the file (``OpaqueFunction``) are not called; what a file of ours hands to them is in ``command``.
    """
    context = LaunchContext()
    context.launch_configurations.update(arguments)
    entities = loaded.generate_launch_description().entities
    out = []
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    for entity in entities:
        if entity.condition is not None and not entity.condition.evaluate(context):
            continue
        if isinstance(entity, Node):
            entity._perform_substitutions(context)
            values = [str(group) for group in evaluate_parameters(context, entity._Node__parameters)]
            parts = [normalize_to_list_of_substitutions(part) for part in entity.cmd[1:]]
            plain = [part for part in parts if not isinstance(part[0], LocalSubstitution)]  # those are the parameters
            words = [perform_substitutions(context, part) for part in plain]
            where = f'{entity.expanded_node_namespace or ""} {entity.node_executable}'
            out.append(' '.join([where, *words, *values]))
        elif isinstance(entity, SetEnvironmentVariable):
            out.append(perform_substitutions(context, entity.value))
        elif isinstance(entity, LogInfo):
            out.append(perform_substitutions(context, entity.msg))
        elif isinstance(entity, IncludeLaunchDescription):
            handed = [(name, v.perform(context)) for name, v in entity.launch_arguments]
            out.append(f'include {handed}')
    if hasattr(loaded, 'command'):
        out.append(' '.join(loaded.command(context)))
    return out


def declared(loaded: Any) -> list[str]:
    """Names of the arguments of a launch file."""
    return [e.name for e in loaded.generate_launch_description().entities if isinstance(e, DeclareLaunchArgument)]
