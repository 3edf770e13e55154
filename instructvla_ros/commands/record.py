"""Record demonstrations into a rosbag2 bag that opens at any moment, also after a crash.

Subscribes to the cameras and their calibration, the joint states, the commands to the arm, and what policy and
controller say, as the embodiment names them, and stores the robot's description and the instruction with them. Mark
episodes with single keys (s start, e end, y success, d discard, q quit) or with the services
/instructvla/record/{start,stop,success,discard}; discarding deletes nothing. Ctrl-C ends the recording.
`ros2 bag record` makes bags that are just as good: see --ros2-command and docs/recording.md. The exit code is 1 when a
full disk ended the recording.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ORDER = 20
HELP = 'record demonstrations into a bag, with episodes marked'
EXAMPLES = (
    "instructvla record --instruction 'put the red cube in the bowl'",
    'instructvla record --out bags/monday --compress --only-episodes',
    'instructvla record --topics /ft_sensor/wrench --skip /tf',
    'instructvla record --ros2-command        # the same with ros2 bag record',
    'instructvla record --repair bags/monday  # index and metadata of a bag that was cut off',
)
_HINT = 's start   e end   y success   d discard   q quit'
_KEYS = {'s': 'start', 'e': 'stop', 'y': 'success', 'd': 'discard'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        '--out', default='', help='folder of the bag, which must not exist (default: recordings/<stamp>)'
    )
    parser.add_argument('--instruction', default='', help='what is demonstrated, until another one is heard')
    parser.add_argument(
        '--embodiment', default='franka.yaml', help='robot: a file of config/ or a path (default: franka.yaml)'
    )
    parser.add_argument('--topics', nargs='+', default=[], metavar='TOPIC', help='further topics to record')
    parser.add_argument('--skip', nargs='+', default=[], metavar='TOPIC', help='topics to leave out')
    parser.add_argument('--storage', default='mcap', choices=('mcap', 'sqlite3'), help='format (default: mcap)')
    parser.add_argument('--compress', action='store_true', help='zstd: less disk, more processor')
    parser.add_argument('--only-episodes', action='store_true', help='keep only what lies between start and stop')
    parser.add_argument('--max-duration', type=float, default=0.0, metavar='S', help='end after so many seconds')
    parser.add_argument(
        '--min-free', type=float, default=1000.0, metavar='MB', help='free disk at which it ends (default: 1000)'
    )
    parser.add_argument('--use-sim-time', action='store_true', help='take the time of arrival from /clock')
    parser.add_argument('--json', action='store_true', help='print the summary as one JSON object and nothing else')
    parser.add_argument('--ros2-command', action='store_true', help='print the `ros2 bag record` command and end')
    parser.add_argument(
        '--repair', default='', metavar='BAG', help='rebuild index and metadata of a bag that was cut off, and end'
    )


def run(arguments: argparse.Namespace) -> int:
    """Record, or one of the two things that need no ROS."""
    if arguments.repair:
        return _repair(arguments)
    if arguments.ros2_command:
        return _print_command(arguments)
    from .. import graph_session

    graph_session.require_ros()
    from ..nodes import record_node
    from ._keys import Keys
    from ._record_view import RecordView

    nodes: list[Any] = []

    def pressed(key: str) -> None:
        if not nodes:
            return
        node = nodes[0]
        if key == 'q':
            node.finish()
        elif key in _KEYS:
            view.note(_mark(node, _KEYS[key]))
        elif key.isprintable():
            view.note(f'{key!r} is no key here: {_HINT}')

    with RecordView(quiet=arguments.json) as view, Keys(pressed) as keys:

        def started(node: Any) -> None:
            nodes.append(node)
            view.follow(node.recording.status, _HINT if keys.active else '')

        code, summary = record_node.record(ros_arguments(arguments), started)
    if summary is None:
        return code
    if arguments.json:
        print(json.dumps({**summary, 'exit_code': code}), flush=True)
    else:
        _print_summary(summary, record_node.describe(summary))
    return code


def ros_arguments(arguments: argparse.Namespace) -> list[str]:
    """Options as parameters of the record node."""
    from ..graph import yaml_value

    values: dict[str, Any] = {
        'embodiment': arguments.embodiment,
        'storage': arguments.storage,
        'compress': arguments.compress,
        'only_episodes': arguments.only_episodes,
        'max_duration': float(arguments.max_duration),
        'min_free': float(arguments.min_free),
        'use_sim_time': arguments.use_sim_time,
        'instruction': arguments.instruction,
        'out': arguments.out,
    }
    for name in ('topics', 'skip'):
        if getattr(arguments, name):
            values[name] = getattr(arguments, name)
    out = ['--ros-args', '--log-level', 'record_node:=error', '--log-level', 'instructvla.record_node:=error']
    for name, value in values.items():
        out += ['-p', f'{name}:={yaml_value(value)}']
    return out


def _mark(node: Any, kind: str) -> str:
    from ..errors import DataError

    try:
        return str(node.mark(kind))
    except DataError as err:
        return str(err)


def _print_summary(summary: dict[str, Any], text: str) -> None:
    print(text)
    for name in summary['never_came']:
        print(f'  {name} never came')
    for episode in summary['episodes']:
        seconds = 'not ended' if episode['seconds'] is None else f'{episode["seconds"]:.1f} s'
        judged = episode['result'] or 'not judged'
        print(f'  episode {episode["index"]}: {seconds}, {judged}, “{episode["instruction"]}”')
    sys.stdout.flush()


def _print_command(arguments: argparse.Namespace) -> int:
    from .. import config, resources
    from ..data.recording_topics import bag_command, watched_topics
    from ..settings import Embodiment

    robot = config.load(Embodiment, resources.config_file(arguments.embodiment))
    topics = watched_topics(robot, arguments.topics, arguments.skip)
    print(bag_command(topics, arguments.storage, arguments.out))
    return 0


def _repair(arguments: argparse.Namespace) -> int:
    from ..data.bag_repair import repair_bag

    done = repair_bag(Path(arguments.repair).expanduser())
    if arguments.json:
        print(json.dumps(done))
    else:
        cut = f', {done["removed"]} bytes of a torn end removed' if done['removed'] else ''
        print(f'{done["path"]}: {done["messages"]} messages, {done["seconds"]:.1f} s{cut}')
    return 0
