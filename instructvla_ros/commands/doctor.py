"""Say what this machine has and what is missing: ROS, middleware, transport, GPU, OpenGL, cameras, versions."""

from __future__ import annotations

import argparse

ORDER = 2
HELP = 'what this machine has and what is missing'
EXAMPLES = ('instructvla doctor', 'instructvla doctor --json | jq .')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--json', action='store_true', help='print the findings as JSON')


def run(arguments: argparse.Namespace) -> int:
    """Run the checks; 1 when something that is needed is missing."""
    from ..doctor import run as diagnose

    return diagnose(as_json=arguments.json)
