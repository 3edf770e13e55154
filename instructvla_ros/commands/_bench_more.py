"""Parts of `instructvla bench` that run a whole thing: the graph end to end, the direct replay; and the history."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HISTORY = 'docs/results/bench.jsonl'
PARTS = ('graph', 'replay')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of these parts."""
    parser.add_argument('--checkpoint', default='', help='of graph and replay (default: tiny, the one that ships)')
    parser.add_argument('--policy', default='', help='of graph, instead of a checkpoint: expert or hold')
    parser.add_argument('--episodes', type=int, default=0, help='of graph (default: 6, quick: 2)')
    parser.add_argument(
        '--seconds', type=float, default=0.0, help='length of the bag of replay (default: 60, quick: 15)'
    )
    parser.add_argument(
        '--history',
        nargs='?',
        const=HISTORY,
        default='',
        metavar='FILE',
        help=f'append the main numbers to a file (default: {HISTORY}) and draw all its runs into FILE with .png',
    )
    parser.add_argument('--note', default='', help='a few words for the history')


def check(args: argparse.Namespace) -> None:
    """Refuse values that cannot be.

    Raises:
        ConfigError: with what is allowed.
    """
    from ..errors import ConfigError

    if args.episodes < 0:
        raise ConfigError(f'--episodes {args.episodes}: give 1 or more, or 0 for the default')
    if not (args.seconds == 0.0 or args.seconds >= 5.0):
        raise ConfigError(f'--seconds {args.seconds:g}: give 5 or more, or 0 for the default')
    if args.checkpoint and args.policy:
        raise ConfigError('--policy and --checkpoint exclude each other')
    if args.history and Path(args.history).is_dir():
        raise ConfigError(f'--history {args.history} is a folder; give a file, for example {HISTORY}')


def graph(args: argparse.Namespace, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Camera stamp to command stamp through the running graph."""
    from ..evaluation.bench_graph import measure_graph

    policy = args.policy or 'instructvla'
    checkpoint = (args.checkpoint or 'tiny') if policy == 'instructvla' else ''
    with tempfile.TemporaryDirectory(prefix='instructvla_bench_') as folder:
        return measure_graph(
            Path(folder) / 'run',
            policy=policy,
            checkpoint=checkpoint,
            episodes=args.episodes or (2 if quick else 6),
            embodiment=args.embodiment,
            progress=say,
        )


def replay(args: argparse.Namespace, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Direct replay of a made-up bag."""
    from ..evaluation.bench_replay import measure_replay

    seconds = args.seconds or (15.0 if quick else 60.0)
    repeats = args.repeats or (2 if quick else 3)
    return measure_replay(seconds, 0.0 if quick else 600.0, repeats, checkpoint=args.checkpoint or 'tiny', progress=say)


def remember(args: argparse.Namespace, results: dict[str, Any]) -> list[str]:
    """Append to the history and draw it; returns the files, none when nothing was asked for.

    Raises:
        DataError: nothing was measured.
    """
    if not args.history:
        return []
    from ..evaluation import bench_history

    file = Path(args.history).expanduser().resolve()
    bench_history.append(results, file, args.note)
    picture = bench_history.draw(bench_history.read(file), file.with_suffix('.png'))
    return [str(file), str(picture)]


def graph_table(found: dict[str, Any]) -> Any:
    """Table of the stages."""
    from rich.table import Table

    from ..evaluation.bench_graph import STAGES

    name = found['checkpoint'] or found['policy']
    table = Table(title=f'graph: camera stamp to command stamp, {name}, {found["solved"]}/{found["episodes"]} solved')
    table.add_column('stage')
    keys = ('p50', 'p95', 'p99', 'max')
    table.add_column('chunks', justify='right')
    for key in keys:
        table.add_column(f'{key} [ms]', justify='right')
    rows = [*((STAGES[k], v) for k, v in found['stages'].items()), ('jitter of the period', found['jitter'])]
    for title, s in rows:
        times = ('-' if s[key] is None else f'{s[key] * 1e3:.1f}' for key in keys)
        table.add_row(title, str(s['count']), *times)
    return table


def replay_table(found: dict[str, Any]) -> Any:
    """Table of the direct replay."""
    from rich.table import Table

    speed = found['speed']
    table = Table(title='replay: two 640x480 cameras at 15 Hz, direct')
    for name in ('what', 'measured', 'wanted'):
        table.add_column(name, justify='left' if name == 'what' else 'right')
    table.add_row('seconds of recording per second', f'{speed["times_real_time"]:.1f}', f'{speed["target"]:.0f}')
    table.add_row('the same, each observation asked about alone', f'{speed["one_by_one"]:.1f}', '')
    for stage, ms in speed['per_chunk_ms'].items():
        table.add_row(f'{stage}, per chunk (median)', f'{ms:.1f} ms', '')
    table.add_row('repeatable bit for bit', 'yes' if found['repeatable'] else 'NO', 'yes')
    if 'memory' in found:
        m = found['memory']
        table.add_row(f'memory growth over {m["seconds"]:.0f} s', f'{m["growth_mb"]:+.0f} MB', '0 MB')
    return table
