#!/usr/bin/env python3
"""Make the tiny checkpoint from nothing: scenes, demonstrations, stage 0 (words, pointing), stage 1, stage 2.

    python scripts/train_tiny.py --out runs/tiny

Every part goes on where it stopped; remove its folder to make it again. Options of the stages are in
config/training/tiny_*.yaml. Times are written to OUT/times.json, numbers of each stage to OUT/<stage>/log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from instructvla_ros.training.generate import Job, generate, jobs

ALIKE = 0.6
"""Share of distractors in the colour of the target, in those scenes."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--out', type=Path, default=Path('runs/tiny'))
    add('--scenes', type=int, default=10000, help='pictures of scenes for stage 0; as many more of things alike')
    add('--demonstrations', type=int, default=900)
    add('--alike', type=int, default=300, help='more of them, among things of the colour of the target')
    add('--twins', type=int, default=400, help='more of them, beside the same thing in another size')
    add('--workers', type=int, default=os.cpu_count() or 1, help='processes that make demonstrations')
    add('--threads', type=int, default=os.cpu_count() or 1, help='of the training')
    add('--set', nargs='+', default=[], metavar='STAGE.KEY=VALUE', help='for example stage1.steps=100')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Make what is missing; 130 when interrupted."""
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    acts, looks, half = ('pick', 'put'), ('pick', 'put', 'put'), args.scenes // 2
    wanted = {
        'still': jobs(looks, args.scenes, 100_000, still=True),
        'still_alike': jobs(looks, half, 200_000, still=True, alike=ALIKE),
        'still_twins': jobs(looks, half, 300_000, still=True, alike=ALIKE, twins=True),
        'demonstrations': jobs(acts, args.demonstrations),
        'alike': jobs(acts, args.alike, 2000, alike=ALIKE),
        'twins': jobs(acts, args.twins, 10_000, alike=ALIKE, twins=True),
    }
    folders = {name: args.out / 'data' / name for name in wanted}
    still = [folders[n] for n in wanted if n.startswith('still')]
    motion = [folder for folder in folders.values() if folder not in still]
    try:
        for name, todo in wanted.items():
            part(args.out, name, lambda n=name, t=todo: make(folders[n], t, args.workers))
        runs = {n: args.out / n for n in ('words', 'pointing', 'stage1', 'stage2')}
        for name, data, init in (
            ('words', still, None),
            ('pointing', [*still, *motion], runs['words'] / 'checkpoint'),
            ('stage1', motion, runs['pointing'] / 'checkpoint'),
            ('stage2', [*motion, *still], runs['stage1'] / 'checkpoint'),
        ):
            part(args.out, name, lambda n=name, d=data, i=init: stage(n, d, i, runs[n], args))
    except KeyboardInterrupt:
        print('interrupted; the same command goes on', file=sys.stderr)
        return 130
    result = args.out / 'checkpoint'
    if result.exists():
        shutil.rmtree(result)
    shutil.copytree(runs['stage2'] / 'checkpoint', result)
    print(f'{result}: instructvla evaluate sim --checkpoint {result}')
    return 0


def part(out: Path, name: str, work: Callable[[], None]) -> None:
    """Run one part unless it is done, and write down how long it took."""
    file = out / 'times.json'
    times = json.loads(file.read_text()) if file.is_file() else {}
    if times.get(name, {}).get('done'):
        return
    begin = time.monotonic()
    finished = False
    try:
        work()
        finished = True
    finally:
        spent = times.get(name, {}).get('seconds', 0.0) + time.monotonic() - begin
        times[name] = {'seconds': round(spent, 1), 'done': finished}
        file.write_text(json.dumps(times, indent=1) + '\n')


def make(folder: Path, wanted: list[Job], workers: int) -> None:
    """Episodes of one kind."""
    made = generate(folder, wanted, workers)
    print(f'{folder}: {made.episodes} episodes, {made.frames} frames, {made.failed} demonstrations failed')
    for error in made.errors[:5]:
        print(f'  not made: {error}', file=sys.stderr)


def stage(name: str, data: list[Path], init: Path | None, out: Path, args: argparse.Namespace) -> None:
    """One training run."""
    import torch

    from instructvla_ros.commands.train import read_options
    from instructvla_ros.training.loop import train

    torch.set_num_threads(args.threads)
    # Sentences need many scenes, and motion needs motion: by frames alone, pictures of scenes would be one in nine.
    changes = ['shares=[0.25,0.15,0.15,0.2,0.1,0.15]'] if name == 'stage2' else []
    changes += [s.removeprefix(f'{name}.') for s in args.set if s.startswith(f'{name}.')]
    options = read_options(f'tiny_{name}', [str(d) for d in data], str(init) if init else '', changes)
    if train(options, out).interrupted:
        raise KeyboardInterrupt


if __name__ == '__main__':
    raise SystemExit(main())
