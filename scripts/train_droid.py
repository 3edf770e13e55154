#!/usr/bin/env python3
"""Real recordings end to end: DROID files to episodes, split, fine-tuning on site, error on held-out episodes.

    python scripts/train_droid.py ~/droid_subset --init models/franka --out runs/droid

Without --init a new model of a preset is trained in stage 1 on the same episodes: that shows the way from files to
numbers, not what a pretrained model can do. The robot is another one than that of the checkpoint, so the statistics are
computed from the data. The result is compared with the best that looks at nothing: always predicting the mean chunk of
the training. A policy acts on one draw of the flow, and a draw of even a perfect model is further from the recording
than the mean of its draws, so both are told. The weights judged are the last ones, not chosen by the held-out episodes.
Every part goes on where it stopped. Numbers are written to OUT/result.json, the page to OUT/train/report.html.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

MOST = 200
"""Frames that the result is measured on, evenly over the held-out episodes; all when there are fewer."""
DRAWS = 8
"""Of the noise, for what the model expects."""
PARTS = {'translation': slice(0, 3), 'rotation': slice(3, 6), 'gripper': slice(6, 7)}


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
    add(
        '--hold',
        default='repeated',
        choices=('repeated', 'any'),
        help='repeated: hold out only what another demonstration with the same sentence was trained on; any: also '
        'places and tasks that training never saw',
    )
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
    print(f'{"held out, rms":24s}{"action":>9s}' + ''.join(f'{k:>13s}' for k in PARTS) + f'{"end of chunk":>15s}')
    for name, found in result['error'].items():
        each = ''.join(f'{found[k]:13.3f}' for k in PARTS)
        print(f'{name:24s}{found["action"]:9.3f}{each}{found["end_mm"]:12.1f} mm')
    print(f'action: {result["ratio"]:.0%} of the mean chunk\nreport: {outcome.report}')
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
    split(Dataset.open(whole), stay, held, args.share, args.seed, repeated=args.hold == 'repeated')
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
    """Errors of the last weights on the held-out episodes, beside those of the mean chunk.

    Actions are measured in the units the model predicts: half the range of each channel in training is 1.
    """
    import numpy as np

    from instructvla_ros.commands.train import read_options
    from instructvla_ros.data.episodes import Dataset
    from instructvla_ros.training.objective import Objective
    from instructvla_ros.training.setup import prepare
    from instructvla_ros.training.validate import drawn

    options = read_options('onsite', [str(parts[0])], str(outcome.checkpoint), [f'validation=[{parts[1]}]', 'fewest=1'])
    run = prepare(replace(options, seed=args.seed), args.out, progress=False)
    held, statistics = run.held_out[0], run.statistics
    assert statistics is not None
    objective = Objective(run.bundle.model, run.options).eval()
    rows = held.rows[np.unique(np.linspace(0, len(held.rows) - 1, min(len(held.rows), MOST)).astype(int))]
    wanted, valid = np.asarray(held.store.actions[rows], np.float64), held.store.valid[rows][..., None]
    shown = run.train[0]
    seen = shown.store.valid[shown.rows][..., None]
    mean = (shown.store.actions[shown.rows] * seen).sum(0) / np.maximum(seen.sum(0), 1)
    half = np.where(statistics.mask, np.maximum(statistics.q99 - statistics.q01, 1e-9) / 2, 0.5)

    rng = np.random.default_rng(args.seed)
    parts_of = [rows[k : k + 16] for k in range(0, len(rows), 16)]
    told = np.concatenate([drawn(objective, held, part, rng, statistics, DRAWS) for part in parts_of], axis=1)

    def errors(chunks: Any) -> dict[str, float]:
        off = (chunks - wanted) / half * valid
        squares = (off**2).sum((0, 1)) / valid.sum()
        out = {name: float(np.sqrt(squares[at].mean())) for name, at in PARTS.items()}
        out['action'] = float(np.sqrt(squares.mean()))
        end = ((chunks - wanted) * valid)[:, :, :3].sum(1)
        out['end_mm'] = 1000 * float(np.median(np.linalg.norm(end, axis=1)))
        out['gripper_right'] = float(((chunks[..., 6] > 0.5) == (wanted[..., 6] > 0.5))[valid[..., 0]].mean())
        return {k: round(v, 4) for k, v in out.items()}

    many = f'mean of {DRAWS} draws'
    judged = {'one draw': told[0], many: told.mean(0), 'the mean chunk': np.broadcast_to(mean, wanted.shape)}
    error = {name: errors(value) for name, value in judged.items()}
    return {
        'checkpoint': str(outcome.checkpoint),
        'init': args.init or f'random weights of {args.model}',
        'steps': outcome.steps,
        'train_episodes': len(Dataset.open(parts[0])),
        'held_out_episodes': [e.id for e in Dataset.open(parts[1]).index],
        'held_out_frames': len(rows),
        'error': error,
        'ratio': error[many]['action'] / error['the mean chunk']['action'],
    }


if __name__ == '__main__':
    from instructvla_ros.errors import InstructVLAError

    try:
        raise SystemExit(main())
    except InstructVLAError as error:
        raise SystemExit(f'train_droid: {error}') from None
