"""Say what this machine has and what is missing: ROS, middleware, transport, GPU, OpenGL, cameras, versions; MoveIt."""

from __future__ import annotations

import argparse
import importlib.util
import json

ORDER = 2
HELP = 'what this machine has and what is missing'
EXAMPLES = (
    'instructvla doctor',
    'instructvla doctor --json | jq .',
    'instructvla doctor --moveit --embodiment panda.yaml',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--json', action='store_true', help='print the findings as JSON')
    parser.add_argument('--moveit', action='store_true', help='check the move_group that runs now, and nothing else')
    parser.add_argument('--embodiment', default='franka.yaml', help='with --moveit: file in config/ or path')
    parser.add_argument('--config', default='controller.yaml', help='with --moveit: settings of the controller')


def run(arguments: argparse.Namespace) -> int:
    """Run the checks; 1 when something that is needed is missing."""
    from .. import doctor

    if not arguments.moveit:
        return doctor.run(as_json=arguments.json)
    if importlib.util.find_spec('rclpy') is None:
        way = 'make setup, or source /opt/ros/<distro>/setup.bash in this shell'
        findings = [doctor.Finding('ROS 2', doctor.MISSING, 'rclpy cannot be imported', way)]
    else:
        from ..nodes.moveit_doctor import check

        findings = check(arguments.embodiment, arguments.config)
    print(json.dumps([vars(f) for f in findings], indent=2) if arguments.json else doctor.render(findings))
    return int(any(f.level == doctor.MISSING for f in findings))
