"""Show a simulated Franka obey a sentence through the real ROS 2 graph.

Starts the simulator, the controller and the policy as separate processes, gives the instruction, and writes
runs/<stamp>/report.html: video, what the policy said, path of the tool, joints, safety, latency. The exit code is 0
only when the task was solved. Who acts: the checkpoint that comes with the package where it has learned the task, else
the scripted expert, which reads the simulator's ground truth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..resources import choose_policy

ORDER = 1
HELP = 'a simulated Franka obeys a sentence; ends with a report'
EXAMPLES = (
    'instructvla demo',
    "instructvla demo --instruction 'stack the green cube on the blue cube' --seed 3",
    'instructvla demo --words situated --seed 4    # never named, only described',
    "instructvla demo --instruction 'pick up the blue cube' --say 'get me the thing the colour of the sky'",
    'instructvla demo --task open_drawer --no-video',
    'instructvla demo --policy expert    # the script instead of the model',
    'instructvla demo --web              # cameras, arm, thoughts, instructions and STOP in a browser',
    'instructvla demo --keep-open        # then: ros2 topic list, in another terminal',
    'instructvla demo --speed 0.25       # slow motion: a quarter of real time',
)
DEFAULT = 'put the red cube in the bowl'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        '--task',
        default='',
        help='pick, put, move_near, stack, open_drawer, close_drawer; found from the instruction when left out',
    )
    parser.add_argument(
        '--instruction', default='', help=f'what to do, in words (default: {DEFAULT!r}, or the sentence of --task)'
    )
    parser.add_argument(
        '--say',
        default='',
        metavar='TEXT',
        help='what the policy is told, in any words; --instruction is what is meant, for the scene and the judge',
    )
    parser.add_argument(
        '--words',
        default='',
        help='let the scene choose what is said, from sentences that no training has seen: aggregation (other words, '
        'places, negation) or situated (described, not named)',
    )
    parser.add_argument('--seed', type=int, default=1, help='of the scene (default: 1)')
    parser.add_argument(
        '--policy',
        default='auto',
        help='expert, hold, instructvla, or auto (default): the checkpoint that comes with this package where it has '
        'learned the task (pick, put), else the scripted expert, which reads the simulator',
    )
    parser.add_argument(
        '--checkpoint', default='', help='name, run directory or hub id, for --policy instructvla (default: tiny)'
    )
    parser.add_argument(
        '--embodiment', default='franka.yaml', help='robot: a file of config/ or a path (default: franka.yaml)'
    )
    parser.add_argument(
        '--speed',
        default='auto',
        help='simulated seconds per second, 0.05 to 1, or auto (default): 1 where the machine keeps up with the whole '
        'graph, else as slowly as it needs',
    )
    parser.add_argument('--time-limit', type=float, default=0.0, help='seconds for the task (default: its own limit)')
    parser.add_argument('--out', default='', help='folder of the run (default: runs/<stamp>)')
    parser.add_argument('--no-video', action='store_true', help='record no images: less work for a slow machine')
    parser.add_argument('--bag', action='store_true', help='record a rosbag2 bag too, into <folder of the run>/bag')
    parser.add_argument('--keep-open', action='store_true', help='leave the graph running afterwards until Ctrl-C')
    parser.add_argument(
        '--web', action='store_true', help="serve the operator's page, and leave the graph running until Ctrl-C"
    )
    parser.add_argument('--web-port', type=int, default=8765, help='TCP port of that page (default: 8765)')
    parser.add_argument('--json', action='store_true', help='print the result as one JSON object and nothing else')


def run(arguments: argparse.Namespace) -> int:
    """Run the demo."""
    from .. import graph_session as session
    from ..pace import read_speed

    began = time.monotonic()
    instruction = arguments.instruction.strip() or ('' if arguments.task else DEFAULT)
    session.require_ros()
    asked = session.EpisodeRequest(arguments.task, arguments.seed, instruction, arguments.say.strip())
    request = session.check_episode(asked)
    if arguments.words:
        if arguments.say:
            raise ConfigError('give --say or --words, not both')
        request = session.in_other_words(request, arguments.words)
    arguments.policy, arguments.checkpoint = choose_policy(request.task, arguments.policy, arguments.checkpoint)
    if request.said and arguments.policy == 'expert':
        raise ConfigError(
            f'the scripted expert, which does {request.task!r} here, understands plain commands only; leave --say and '
            '--words out, or take a task that a checkpoint knows'
        )
    options = session.GraphOptions(
        policy=arguments.policy,
        checkpoint=arguments.checkpoint,
        embodiment=arguments.embodiment,
        record=True,
        video=not arguments.no_video,
        bag=arguments.bag,
        time_limit=arguments.time_limit,
        web_port=arguments.web_port if arguments.web else None,
        speed=read_speed(arguments.speed),
    )
    session.check_options(options)
    folder = session.new_folder(arguments.out)
    if (folder / session.RESULTS).exists():  # an earlier run into the same --out
        (folder / session.RESULTS).unlink()
    from ._progress import Progress

    with Progress(quiet=arguments.json) as progress, session.Session([request], folder, options) as running:
        if arguments.web:
            address = f'http://127.0.0.1:{arguments.web_port}/'
            print(f"operator's page: {address}", file=sys.stderr if arguments.json else sys.stdout, flush=True)
        progress.pace(options.speed)
        for event in running.events():
            progress.update(event)
        row = running.rows[0]
        report = _report(folder, arguments, running.graph.domain, options.speed)
        progress.pause()
        result = {**_result(row, folder, report, time.monotonic() - began), 'speed': options.speed}
        _print(result, arguments.json)
        if arguments.keep_open or arguments.web:
            _wait(running, arguments.json)
    return 0 if row['success'] else 1


def _report(folder: Path, arguments: argparse.Namespace, domain: int, speed: float) -> Path:
    from ..evaluation import machine, metrics, runlog
    from ..evaluation.report import write_report

    log = runlog.load(folder)
    facts: dict[str, Any] = {
        'policy': arguments.policy,
        'checkpoint': arguments.checkpoint,
        'domain_id': domain,
        'speed': speed,
        'created': time.strftime('%Y-%m-%d %H:%M:%S'),
        'command': shlex.join(['instructvla', *sys.argv[1:]]) if sys.argv[1:2] == ['demo'] else 'instructvla demo',
        'machine': machine.facts(),
        'versions': machine.versions(),
    }
    log = dataclasses.replace(log, meta={**log.meta, **facts})
    runlog.save(log, folder)
    runlog.write_json(folder / 'metrics.json', metrics.summarize(log))
    return write_report(folder, log)


def _result(row: dict[str, Any], folder: Path, report: Path, wall: float) -> dict[str, Any]:
    names = (
        'task',
        'seed',
        'instruction',
        'meant',
        'policy',
        'success',
        'success_after',
        'outcome',
        'reason',
        'duration',
        'chunks',
        'latency',
        'jitter',
        'verdicts',
    )
    return {
        **{name: row.get(name) for name in names},
        'folder': str(folder),
        'report': str(report),
        'wall_time': round(wall, 2),
    }


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)
        return
    latency = result['latency']['without_policy']
    if latency['p50'] is not None:
        print(
            f'camera to command, without policy time: {latency["p50"] * 1e3:.1f} ms median, '
            f'{latency["p99"] * 1e3:.1f} ms p99'
        )
    print(f'report: {result["report"]}  ({result["wall_time"]:.0f} s in all)', flush=True)


def _wait(running: Any, as_json: bool) -> None:
    stream = sys.stderr if as_json else sys.stdout
    graph = running.graph
    print(
        f'The graph keeps running. Look at it from another terminal with\n'
        f'  export ROS_DOMAIN_ID={graph.domain} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST\n'
        f'Ctrl-C stops it.',
        file=stream,
        flush=True,
    )
    try:
        while True:
            graph.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        print('stopping', file=stream)
