#!/usr/bin/env python3
"""Real recordings end to end: DROID files to episodes, split, fine-tuning on site, error on held-out episodes.

    python scripts/train_droid.py ~/droid_subset --init models/franka --out runs/droid

Without --init a new model of a preset is trained in stage 1 on the same episodes: that shows the way from files to
numbers, not what a pretrained model can do. The robot is another one than that of the checkpoint, so the statistics are
computed from the data. The result is compared with the best that looks at nothing: always predicting the mean chunk.
Every part goes on where it stopped. Numbers are written to OUT/result.json, the page to OUT/train/report.html.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

MOST = 600
"""Frames that the result is measured on; fewer when the held-out episodes are shorter."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('source', nargs='+', help='folders with annotation/ and videos/ of DROID')
    add('--out', type=Path, default=Path('runs/droid'))
    add('--init', default='', help='checkpoint with two views; without, stage 1 of --model from random weights')
    add('--model', default='tiny', help='preset or YAML file of the new model without --init')
    add('--embodiment', default='panda.yaml')
    add('--step-period', type=float, default=0.2, help='seconds; the videos have 3 to 5 pictures in a second')
    add('--instruction', default='do the task on the table', help='for episodes that come without words')
    add('--share', type=float, default=0.25, help='of the demonstrations that are held out')
    add('--seed', type=int, default=0, help='of the split and of the training')
    add('--threads', type=int, default=0, help='of the training; 0: all cores')
    add('--set', nargs='+', default=[], metavar='KEY=VALUE', help='options of the training, for example steps=600')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Build, split, train, judge; 0 when the model beats the mean chunk, 1 when not, 130 when interrupted."""
    args = arguments(argv)
    began = time.monotonic()
    parts = build(args)
    built = time.monotonic()
    outcome = train(args, parts)
    if outcome.interrupted:
        print('interrupted; the same command goes on', file=sys.stderr)
        return 130
    result = judge(args, parts, outcome)
    result['seconds'] = {'build': round(built - began, 1), 'train': round(time.monotonic() - built, 1)}
    (args.out / 'result.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    own, mean, grip = result['end_mm'], result['mean_mm'], result['gripper']
    print(f'held out: chunks end {own:.1f} mm from the recorded ones, the mean chunk {mean:.1f} mm ({own / mean:.0%})')
    print(f'gripper right in {grip:.0%} of the steps\nreport: {outcome.report}')
    return 0 if result['ratio'] < 1.0 else 1


def build(args: argparse.Namespace) -> tuple[Path, Path]:
    """Episodes, then two datasets: to train on, and held out."""
    from instructvla_ros.cli import main as instructvla
    from instructvla_ros.data.episodes import Dataset
    from instructvla_ros.data.merge import split

    whole, stay, held = (args.out / 'data' / n for n in ('all', 'train', 'held_out'))
    words = ['dataset', 'build', '--from', 'droid', *args.source, '--out', str(whole)]
    words += [
        '--embodiment',
        args.embodiment,
        '--step-period',
        str(args.step_period),
        '--instruction',
        args.instruction,
    ]
    if (code := instructvla(words)) != 0:
        raise SystemExit(code)
    split(Dataset.open(whole), stay, held, args.share, args.seed)
    return stay, held


def train(args: argparse.Namespace, parts: tuple[Path, Path]) -> Any:
    """One run: on site from a checkpoint, or stage 1 of a new model with the options of the run on site."""
    import torch

    from instructvla_ros.commands.train import read_options
    from instructvla_ros.training.loop import train as run

    if args.threads:
        torch.set_num_threads(args.threads)
    changes = [f'validation=[{parts[1]}]', 'statistics=data', 'general_batch=0', f'seed={args.seed}']
    if not args.init:
        changes += ['recipe=stage1', f'model={args.model}', 'lr=0.0008', 'draws=4', 'augment=full']
    options = read_options('onsite', [str(parts[0])], args.init, [*changes, *args.set])
    return run(options, args.out / 'train')


def judge(args: argparse.Namespace, parts: tuple[Path, Path], outcome: Any) -> dict[str, Any]:
    """Errors of the checkpoint with the smallest held-out loss, on the held-out episodes."""
    from dataclasses import replace

    from instructvla_ros.commands.train import read_options
    from instructvla_ros.data.episodes import Dataset
    from instructvla_ros.training.objective import Objective
    from instructvla_ros.training.setup import prepare
    from instructvla_ros.training.validate import validate

    best = outcome.best if outcome.best.is_dir() else outcome.checkpoint
    options = read_options('onsite', [str(parts[0])], str(best), [f'validation=[{parts[1]}]', 'fewest=1'])
    run = prepare(replace(options, seed=args.seed), args.out, progress=False)
    frames = Dataset.open(parts[1]).frames
    found = validate(Objective(run.bundle.model, run.options), run.held_out[0], run.statistics, min(frames, MOST), 16)
    return {
        'checkpoint': str(best),
        'init': args.init or f'random weights of {args.model}',
        'steps': outcome.steps,
        'train_episodes': len(Dataset.open(parts[0])),
        'held_out_episodes': len(Dataset.open(parts[1])),
        'held_out_frames': frames,
        **{k: round(v, 4) for k, v in found.items()},
        'ratio': found['end_mm'] / found['mean_mm'],
    }


if __name__ == '__main__':
    from instructvla_ros.errors import InstructVLAError

    try:
        raise SystemExit(main())
    except InstructVLAError as error:
        raise SystemExit(f'train_droid: {error}') from None
