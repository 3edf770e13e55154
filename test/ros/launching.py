"""Launch files as `ros2 launch` sees them, for the tests of each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from launch.actions import DeclareLaunchArgument
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
