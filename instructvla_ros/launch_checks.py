"""What can be wrong with launch arguments, found before anything starts.

An exception in the middle of a launch ends ``ros2 launch`` but not the processes it is about to start: they would stay
behind, a controller among them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

RVIZ = (
    'rviz:=true needs the package rviz2: sudo apt install ros-$ROS_DISTRO-rviz2, and source '
    "/opt/ros/$ROS_DISTRO/setup.bash; the operator's page (web:=true) needs neither"
)
_WORDS = {int: 'a whole number', float: 'a number', bool: 'true or false'}


def problems(given: Callable[[str], str], kinds: Mapping[str, type]) -> list[str]:
    """Sentences about the arguments, empty when all is well.

    Args:
        given: value of an argument. kinds: arguments that become parameters of this type (int, float or bool).
    """
    out = []
    for name, kind in kinds.items():
        text = given(name)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = None
        if type(value) is not kind and not (kind is float and type(value) is int):
            out.append(f'{name}:={text} has to be {_WORDS[kind]}')
    if given('rviz') == 'true' and not installed('rviz2'):
        out.append(RVIZ)
    return out


def installed(package: str) -> bool:
    """Whether a ROS package is in a sourced prefix, by the ament index (REP 122)."""
    index = Path('share/ament_index/resource_index/packages')
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    return any((Path(prefix) / index / package).is_file() for prefix in prefixes if prefix)
