#!/usr/bin/env python3
"""What 20 demonstrations of something new do to a checkpoint: success before and after, on the new task and the old.

    python scripts/measure_onsite.py --init models/tiny --task close_drawer

The demonstrations come from the scripted expert, with seeds that no test uses. A part of every batch is rehearsed: a
few demonstrations of the old tasks, so that learning the new one does not cost them. Every part goes on where it
stopped. Numbers, with the seconds of each part, are written to OUT/result.json, the page of the training to
OUT/train/report.html.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

FIRST = 500_000
"""Seed of the first demonstration: beyond those of the shipped checkpoint's training, below those of the tests."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--init', default='models/tiny', help='checkpoint to start from')
    add('--task', default='close_drawer', help='what is new to it')
    add('--old', nargs='*', default=['pick', 'put'], metavar='TASK', help='what it must not forget')
    add('--demonstrations', type=int, default=20, help='of the new task')
    add('--rehearse', type=int, default=40, help='demonstrations of the old tasks in all; 0: none')
    add('--old-data', metavar='FOLDER', help='episodes of the old tasks that exist, instead of making some')
    add('--share', type=float, default=0.5, help='of a batch that is rehearsed')
    add('--episodes', type=int, default=40, help='of the test, per task')
    add('--run', default='tiny_onsite', help='options of the training: a name or a YAML file, as instructvla train has')
    add('--out', type=Path, default=Path('runs/onsite'))
    add('--workers', type=int, default=os.cpu_count() or 1, help='processes that act')
    add('--processes', type=int, default=1, help='of the training, which share each batch; on CPU cores one each')
    add('--set', nargs='+', default=[], metavar='KEY=VALUE', help='options of the training, for example steps=600')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Demonstrate, test, train, test; 130 when interrupted."""
    from instructvla_ros.data.episodes import Dataset

    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    try:
        data = timed(seconds, 'demonstrate', lambda: demonstrate(args))
        before = timed(seconds, 'test before', lambda: tested(args, args.init, 'before'))
        checkpoint = timed(seconds, 'train', lambda: trained(args, data))
        after = timed(seconds, 'test after', lambda: tested(args, str(checkpoint), 'after'))
    except KeyboardInterrupt:
        print('interrupted; the same command goes on', file=sys.stderr)
        return 130
    result = {
        'init': args.init,
        'task': args.task,
        'run': args.run,
        'changes': args.set,
        'processes': args.processes,
        'demonstrations': args.demonstrations,
        'rehearsed': len(Dataset.open(Path(args.old_data))) if args.old_data else args.rehearse,
        'seconds': {k: round(v, 1) for k, v in seconds.items()},
        'before': before,
        'after': after,
    }
    (args.out / 'result.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    for kind in before:
        print(f'{kind}: {before[kind]["solved"]}/{before[kind]["episodes"]} before, ', end='')
        print(f'{after[kind]["solved"]}/{after[kind]["episodes"]} after')
    print(f'{seconds["train"] / 60:.1f} min of training; report: {args.out / "train" / "report.html"}')
    return 0


def timed(seconds: dict[str, float], name: str, work: Any) -> Any:
    """Do ``work``, and note how long it took (of a part that was done before: only of this time)."""
    begin = time.monotonic()
    result = work()
    seconds[name] = time.monotonic() - begin
    return result


def demonstrate(args: argparse.Namespace) -> list[Path]:
    """Episodes of the new task, and of the old ones."""
    from instructvla_ros.training.generate import generate, jobs

    made = [(args.out / 'data' / 'new', (args.task,), args.demonstrations)]
    if args.rehearse and not args.old_data:
        made.append((args.out / 'data' / 'old', tuple(args.old), args.rehearse))
    for folder, tasks, count in made:
        generate(folder, jobs(tasks, count, FIRST), args.workers)
    return [folder for folder, _, _ in made] + ([Path(args.old_data)] if args.old_data else [])


def trained(args: argparse.Namespace, data: list[Path]) -> Path:
    """The checkpoint after ``instructvla train``."""
    from instructvla_ros.cli import main as instructvla

    changes = [f'shares=[{1 - args.share},{args.share}]'] if len(data) > 1 else []
    words = ['train', args.run, '--init', args.init, '--data', *map(str, data), '--out', str(args.out / 'train')]
    words += ['--set', *changes, *args.set] if changes or args.set else []
    if (code := instructvla([*words, '--processes', str(args.processes)])) == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise SystemExit(code)
    return args.out / 'train' / 'checkpoint'


def tested(args: argparse.Namespace, checkpoint: str, name: str) -> dict[str, dict[str, int]]:
    """Solved and tried episodes of the new task and of the old ones, scenes that no training saw."""
    from instructvla_ros.cli import main as instructvla

    found = {}
    for kind, tasks in (('new', [args.task]), ('old', args.old)):
        if not tasks:
            continue
        suite = args.out / f'{kind}.yaml'
        suite.write_text(
            f'name: {kind}\ntitle: {kind} tasks\nfamily: plain\n'
            f'tasks: {{{", ".join(f"{t}: {args.episodes}" for t in tasks)}}}\nseed: 1000000\n',
            encoding='utf-8',
        )
        folder = args.out / 'tests' / f'{name}_{kind}'
        words = ['evaluate', 'sim', '--checkpoint', checkpoint, '--suite', str(suite), '--sentence', 'on']
        words += ['--workers', str(args.workers), '--videos', 'none', '--out', str(folder), '--json']
        with redirect_stdout(io.StringIO()) as printed:
            if (code := instructvla(words)) != 0:
                raise SystemExit(code)
        # Not the file of episodes: it also keeps those of other weights that were tested in the same folder.
        (row,) = json.loads(printed.getvalue())['table']
        found[kind] = {'solved': row['successes'], 'episodes': row['episodes']}
    return found


if __name__ == '__main__':
    from instructvla_ros.errors import InstructVLAError

    try:
        raise SystemExit(main())
    except InstructVLAError as error:
        raise SystemExit(f'measure_onsite: {error}') from None
