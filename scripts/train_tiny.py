#!/usr/bin/env python3
"""Make the tiny checkpoint from nothing: scenes, demonstrations, stage 0 (words), stage 1, stage 2.

    python scripts/train_tiny.py --out runs/tiny

Every part goes on where it stopped; remove its folder to make it again. Options of the stages are in
config/training/tiny_*.yaml. Times are written to OUT/times.json, numbers of each stage to OUT/<stage>/log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from instructvla_ros.cli import main as command_line
from instructvla_ros.evaluation.machine import usable_cores
from instructvla_ros.training.generate import Job, generate, jobs
from instructvla_ros.training.launching import INTERRUPTED

ALIKE = 0.6
"""Share of distractors in the colour of the target, in those scenes."""
SLIP = 0.1
"""Share of chunks with an object in hand that lose it, in demonstrations of what to do about that."""
STAGES: dict[str, dict[str, float]] = {
    'words': {'still': 0.5, 'still_alike': 0.25, 'still_twins': 0.25},
    'stage1': {
        'demonstrations': 0.3, 'alike': 0.2, 'twins': 0.22,
        'still': 0.12, 'still_alike': 0.08, 'still_twins': 0.08,
    },
    'stage2': {
        'demonstrations': 0.2, 'alike': 0.14, 'twins': 0.18, 'slips': 0.14,
        'still': 0.14, 'still_alike': 0.1, 'still_twins': 0.1,
    },
}  # fmt: skip
"""Stage -> data -> share of its batches: sentences need many scenes, and motion motion."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--out', type=Path, default=Path('runs/tiny'))
    add('--scenes', type=int, default=8000, help='pictures of scenes for stage 0; as many more of things alike')
    add('--demonstrations', type=int, default=400)
    add('--alike', type=int, default=300, help='more of them, among things of the colour of the target')
    add('--twins', type=int, default=300, help='more of them, beside the same thing in another size')
    add('--slips', type=int, default=240, help='more of them, in which the object is lost on the way')
    add('--workers', type=int, default=usable_cores(), help='processes that make demonstrations')
    add('--processes', type=int, default=0, help='of the training; 0: one with a GPU, else as cores allow, at most 8')
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
        'slips': jobs(looks, args.slips, 30_000, slip=SLIP),
    }
    folders = {name: args.out / 'data' / name for name in wanted}
    try:
        for name, todo in wanted.items():
            part(args.out, name, lambda n=name, t=todo: make(folders[n], t, args.workers))
        init: Path | None = None
        for name, shares in STAGES.items():
            part(args.out, name, lambda n=name, s=shares, i=init: stage(n, s, i, args))
            init = args.out / name / 'checkpoint'
    except KeyboardInterrupt:
        print('interrupted; the same command goes on', file=sys.stderr)
        return 130
    result = args.out / 'checkpoint'
    if result.exists():
        shutil.rmtree(result)
    shutil.copytree(args.out / 'stage2' / 'checkpoint', result)
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


def stage(name: str, shares: dict[str, float], init: Path | None, args: argparse.Namespace) -> None:
    """One training run."""
    words = ['train', f'tiny_{name}', '--out', str(args.out / name)]
    words += ['--data', *(str(args.out / 'data' / data) for data in shares)]
    words += ['--init', str(init)] if init else []
    words += ['--processes', str(args.processes or processes())]
    changes = [f'shares={list(shares.values())}']
    changes += [s.removeprefix(f'{name}.') for s in args.set if s.startswith(f'{name}.')]
    code = command_line([*words, '--set', *changes])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def processes() -> int:
    """One with a GPU; else a power of two, which divides the batches, of at most eight."""
    import torch

    return 1 if torch.cuda.is_available() else 2 ** min(3, usable_cores().bit_length() - 1)


if __name__ == '__main__':
    raise SystemExit(main())
