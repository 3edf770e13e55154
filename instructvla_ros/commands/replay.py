"""A recording through a policy, without a robot: what would today's checkpoint have done yesterday?

Takes bags (mcap or sqlite3) and datasets of episodes, asks the policy on the recording's clock, and compares with
what was really done. Writes report.html, metrics.json and junit.xml to --out. Exit code 0: all limits kept, 1: not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ORDER = 5
HELP = 'what a checkpoint would have done in a recording, judged by limits'
EXAMPLES = (
    'instructvla replay bags/monday --checkpoint runs/today',
    'instructvla replay bags/monday --compare runs/yesterday runs/today',
    'instructvla replay bags/* --checkpoint runs/today --limits limits.yaml --junit junit.xml --no-video',
    'instructvla replay bags/monday --policy recorded            # the best there can be, as a reference',
    'instructvla replay bags/other --checkpoint runs/today --topic /joint_states=/robot/joint_states',
    'instructvla replay data/put --episode all --checkpoint runs/today --json',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('recordings', nargs='+', metavar='BAG', help='bags, or datasets of episodes')
    who = parser.add_argument_group('policy')
    who.add_argument('--checkpoint', default='', help='run directory or hub id')
    who.add_argument('--compare', nargs=2, metavar=('A', 'B'), help='two checkpoints instead of one')
    who.add_argument('--policy', default='', help='instructvla (default), hold, expert or recorded')
    who.add_argument('--seed', type=int, default=0, help='of the noise the actions start from (default: 0)')
    who.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:1')
    who.add_argument('--reasoning', choices=('shared', 'off'), default='shared', help='sentences too, or not at all')
    who.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='any key of policy.yaml')
    what = parser.add_argument_group('recording')
    what.add_argument('--instruction', default='', help='instead of the recorded instructions')
    what.add_argument('--embodiment', default='franka.yaml', help='robot: a file of config/ or a path')
    what.add_argument('--topic', action='append', default=[], metavar='WANTED=RECORDED', help='another topic name')
    what.add_argument('--episode', default='', help="id in a dataset, or 'all' (default: the first)")
    what.add_argument('--start', type=float, default=0.0, help='seconds to leave out at the start')
    what.add_argument('--duration', type=float, default=0.0, help='seconds to replay (default: to the end)')
    how = parser.add_argument_group('judgement')
    how.add_argument('--limits', default='replay.yaml', help='YAML with limits (default: config/replay.yaml)')
    how.add_argument('--latency', type=float, default=0.0, help='seconds from picture to chunk at the controller')
    how.add_argument('--at', choices=('rate', 'recorded'), default='rate', help='when to ask the policy')
    how.add_argument(
        '--one-by-one', action='store_true', help='ask about each observation alone, as on the robot: every latency'
    )
    how.add_argument('--no-safety', action='store_true', help='leave the controller in dry-run out')
    out = parser.add_argument_group('results')
    out.add_argument('--out', default='', help='folder (default: runs/replay-<stamp>)')
    out.add_argument('--no-video', action='store_true', help='no pictures in the report: faster')
    out.add_argument('--calibration', default='', help='YAML with camera poses, for bags without them')
    out.add_argument('--junit', default='', help='JUnit XML here instead of in --out')
    out.add_argument('--json', action='store_true', help='print the results as one JSON object')


def run(arguments: argparse.Namespace) -> int:
    """Replay everything; 0 when every limit was kept."""
    from ..evaluation import replay_job
    from ..settings import PolicySettings
    from ._pairs import changes, pairs

    job = replay_job.Job(
        recordings=tuple(arguments.recordings),
        checkpoints=tuple(arguments.compare or (arguments.checkpoint,)),
        policy=arguments.policy,
        embodiment=arguments.embodiment,
        instruction=arguments.instruction,
        topics=pairs('--topic', arguments.topic),
        episode=arguments.episode,
        overrides={
            'seed': arguments.seed,
            'device': arguments.device,
            'reasoning': arguments.reasoning,
            **changes('--set', arguments.set, PolicySettings),
        },
        start=arguments.start,
        duration=arguments.duration or float('inf'),
        latency=arguments.latency,
        at=arguments.at,
        judge=not arguments.no_safety,
        one_by_one=arguments.one_by_one,
        limits=arguments.limits,
        out=arguments.out,
        video=not arguments.no_video,
        calibration=arguments.calibration,
        command=' '.join(['instructvla', 'replay', *map(_quoted, sys.argv[2:])]),
    )
    with _Line(arguments.json) as line:
        results = replay_job.run(job, line)
    if arguments.junit:
        Path(arguments.junit).write_text(results.junit(), encoding='utf-8')
    if arguments.json:
        print(json.dumps(results.plain(), allow_nan=False))
    else:
        print(results.table())
        print(f'results: {results.folder}', file=sys.stderr)
    return 0 if results.passed else 1


class _Line:
    """One line on a terminal that says how far it is; silent elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._live = not quiet and sys.stderr.isatty()
        self._shown = -1.0

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self._shown >= 0:
            print('\r\033[K', end='', file=sys.stderr, flush=True)

    def __call__(self, name: str, done: float, total: float) -> None:
        if self._live and (done < self._shown or done - self._shown > 0.5):
            self._shown = done
            share = f' of {total:.0f} s' if total > 0 else ' s'
            print(f'\r\033[K{name}: {done:.0f}{share}', end='', file=sys.stderr, flush=True)


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
