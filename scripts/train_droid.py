#!/usr/bin/env python3
"""Real recordings end to end: DROID files to episodes, split, fine-tuning on site, error on held-out episodes.

    python scripts/train_droid.py ~/droid_subset --init models/franka --out runs/droid

Each folder becomes a dataset of its own, scaled by itself (``statistics=own``): arms of several places move at several
speeds. What another camera beside the arm saw of the same demonstrations is trained on too: other pictures, the same
motion. Without --init a new model of a preset is trained in stage 1 on the same episodes: that shows the way from files
to numbers, not what a pretrained model can do.

The result is compared with the best that looks at nothing: always predicting the mean chunk of the training on the same
dataset; and with staying still, fingers open or shut as they are, which is strong where an arm moves slowly. What a
policy does is told with the noise of training (``noise: 1`` of config/policy.yaml) and without any (``noise: 0``),
beside the mean of several draws. The weights judged are the last ones, not chosen by the held-out episodes. Every part
goes on where it stopped. Numbers are written to OUT/result.json, the page to OUT/train/report.html.
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
"""Frames of a dataset that the result is measured on, evenly over its held-out episodes; all when there are fewer."""
DRAWS = 8
"""Of the noise, for what the model expects."""
PARTS = {'translation': slice(0, 3), 'rotation': slice(3, 6), 'gripper': slice(6, 7)}
NOISY, STILL, MANY = 'policy, noise 1', 'policy, noise 0', f'mean of {DRAWS} draws'
MEAN, NOTHING = 'the mean chunk', 'stay as it is'


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('source', nargs='+', type=Path, help='folders with annotation/ and videos/ of DROID')
    add('--out', type=Path, default=Path('runs/droid'))
    add('--init', default='', help='checkpoint with two views; without, stage 1 of --model from random weights')
    add('--model', default='tiny', help='preset or YAML file of the new model without --init')
    add('--embodiment', default='panda.yaml')
    add('--step-period', type=float, default=0.2, help='seconds; the videos have 3 to 5 pictures in a second')
    add('--instruction', default='do the task on the table', help='for episodes that come without words')
    add('--share', type=float, default=0.25, help='of the demonstrations that are held out')
    add(
        '--exterior',
        nargs='+',
        type=int,
        default=[0, 1],
        metavar='NUMBER',
        help='videos of the cameras that stand beside the arm: trained on all of them, held out of the first',
    )
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
    """Build, split, train, judge; 0 when the policy beats the mean chunk, 1 when not, 130 when interrupted."""
    args = arguments(argv)
    began = time.monotonic()
    trained, held = build(args)
    built = time.monotonic()
    outcome = train(args, trained, held)
    if outcome.interrupted:
        print('interrupted; the same command goes on', file=sys.stderr)
        return 130
    result = judge(args, trained, held, outcome)
    result['seconds'] = {'build': round(built - began, 1), 'train': round(time.monotonic() - built, 1)}
    (args.out / 'result.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    columns = ('action', 'absolute', *PARTS, 'gripper_right')
    print(f'{"held out":18s}' + ''.join(f'{k:>14s}' for k in columns) + f'{"end of chunk":>15s}')
    for name, found in result['error'].items():
        print(f'{name:18s}' + ''.join(f'{found[k]:14.3f}' for k in columns) + f'{found["end_mm"]:12.1f} mm')
    told = ', '.join(f'{k} {v:.0%}' for k, v in result['ratio'].items())
    print(f'policy with noise 0, of the mean chunk: {told}\nreport: {outcome.report}')
    return 0 if result['ratio']['action'] < 1.0 else 1


def build(args: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Datasets to train on, and held-out ones of the first of them in the same order."""
    from instructvla_ros.data.episodes import Dataset
    from instructvla_ros.data.merge import split
    from instructvla_ros.errors import DataError

    both, alone = [], []
    for name, sources in places(args.source).items():
        whole, stay, held = (args.out / 'data' / n / name for n in ('all', 'train', 'held_out'))
        convert(args, sources, whole, args.exterior[0])
        others = [whole.with_name(f'{name}_camera{number}') for number in args.exterior[1:]]
        for other, number in zip(others, args.exterior[1:], strict=True):
            convert(args, sources, other, number)
        try:
            split(Dataset.open(whole), stay, held, args.share, args.seed, repeated=args.hold == 'repeated')
        except DataError as err:
            print(f'{err}: all of it is trained on')
            alone += [whole, *others]
        else:
            both.append((stay, held))
            alone += [only(other, Dataset.open(stay), stay.with_name(other.name)) for other in others]
    if not both:
        raise DataError('nothing can be held out: give more demonstrations of a sentence, or --hold any')
    return [stay for stay, _ in both] + alone, [held for _, held in both]


def convert(args: argparse.Namespace, sources: list[Path], out: Path, exterior: int) -> None:
    """Build a dataset that sees through one of the cameras beside the arm."""
    from instructvla_ros.cli import main as instructvla

    words = ['dataset', 'build', '--from', 'droid', *map(str, sources), '--out', str(out)]
    words += ['--embodiment', args.embodiment, '--step-period', str(args.step_period)]
    words += ['--camera', f'third_person={exterior}', '--camera', 'wrist=2']
    if (code := instructvla([*words, '--instruction', args.instruction])) != 0:
        raise SystemExit(code)


def only(whole: Path, wanted: Any, out: Path) -> Path:
    """Dataset of those episodes of ``whole`` that ``wanted`` has too."""
    from instructvla_ros.data.episodes import Dataset, Writer

    source, ids = Dataset.open(whole), {e.id for e in wanted.index}
    with Writer(out, replace(source.meta, name=out.name)) as writer:
        for entry in source.index:
            if entry.id in ids and not writer.has(entry.id):
                writer.add(source.read(entry.id))
    return out


def places(sources: list[Path]) -> dict[str, list[Path]]:
    """Sources by the folder that holds annotation/ and videos/, with a name for each."""
    roots: dict[Path, list[Path]] = {}
    for source in sources:
        whole = source.resolve()
        roots.setdefault(whole.parents[2] if whole.suffix == '.json' else whole, []).append(source)
    names: dict[str, list[Path]] = {}
    for root, found in roots.items():
        names[root.name if root.name not in names else f'{root.name}-{len(names)}'] = found
    return names


def train(args: argparse.Namespace, trained: list[Path], held: list[Path]) -> Any:
    """One run: on site from a checkpoint, or stage 1 of a new model with the options of the run on site."""
    import torch

    from instructvla_ros.commands.train import read_options
    from instructvla_ros.training.loop import train as run

    if args.threads:
        torch.set_num_threads(args.threads)
    changes = [given(held), 'statistics=own', 'angles=steady', 'general_batch=0', 'fewest=1', f'seed={args.seed}']
    if not args.init:
        changes += ['recipe=stage1', f'model={args.model}', 'lr=0.0008', 'draws=4', 'augment=full']
    options = read_options('onsite', [str(t) for t in trained], args.init, [*changes, *args.set])
    return run(options, args.out / 'train')


def given(held: list[Path]) -> str:
    """Option that names the held-out folders."""
    return f'validation=[{", ".join(str(h) for h in held)}]'


def judge(args: argparse.Namespace, trained: list[Path], held: list[Path], outcome: Any) -> dict[str, Any]:
    """Errors of the last weights on the held-out episodes, beside those of the mean chunk.

    Actions are measured in the units the model predicts: half the range of each channel in the training on the same
    dataset is 1.
    """
    import numpy as np

    from instructvla_ros.commands.train import read_options
    from instructvla_ros.data.episodes import Dataset
    from instructvla_ros.training.objective import Objective
    from instructvla_ros.training.setup import prepare
    from instructvla_ros.training.validate import drawn

    scales = ['statistics=own', 'angles=steady', *(c for c in args.set if c.startswith(('statistics=', 'angles=')))]
    changes = [given(held), 'fewest=1', *scales]
    options = read_options('onsite', [str(t) for t in trained], str(outcome.checkpoint), changes)
    run = prepare(replace(options, seed=args.seed), args.out, progress=False)
    objective = Objective(run.bundle.model, run.options).eval()
    rng = np.random.default_rng(args.seed)
    offs: dict[str, list[Any]] = {}
    moved: dict[str, list[Any]] = {}
    right: dict[str, list[Any]] = {}
    for shown, aside in zip(run.train, run.held_out, strict=False):
        store, scale = aside.store, aside.statistics
        assert scale is not None
        rows = aside.rows[np.unique(np.linspace(0, len(aside.rows) - 1, min(len(aside.rows), MOST)).astype(int))]
        wanted, valid = np.asarray(store.actions[rows], np.float64), np.asarray(store.valid[rows])
        seen = shown.store.valid[shown.rows][..., None]
        mean = (shown.store.actions[shown.rows] * seen).sum(0) / np.maximum(seen.sum(0), 1)
        half = np.where(scale.mask, np.maximum(scale.q99 - scale.q01, 1e-9) / 2, 0.5)
        parts = [rows[k : k + 16] for k in range(0, len(rows), 16)]
        told = np.concatenate([drawn(objective, aside, part, rng, DRAWS) for part in parts], axis=1)
        still = np.concatenate([drawn(objective, aside, part, rng, 1, 0.0) for part in parts], axis=1)
        nothing = np.zeros_like(wanted)
        nothing[..., 6] = store.proprio[rows][:, 7:] > 0.5
        judged = {NOISY: told[0], STILL: still[0], MANY: told.mean(0), MEAN: np.broadcast_to(mean, wanted.shape)}
        judged[NOTHING] = nothing
        for name, chunks in judged.items():
            error = chunks - wanted
            offs.setdefault(name, []).append((error / half)[valid])
            ends = (error * valid[..., None])[:, :, :3].sum(1)
            moved.setdefault(name, []).append(1000 * np.linalg.norm(ends, axis=1))
            right.setdefault(name, []).append(((chunks[..., 6] > 0.5) == (wanted[..., 6] > 0.5))[valid])
    error = {}
    for name, values in offs.items():
        off = np.concatenate(values)
        found = {'action': float(np.sqrt((off**2).mean())), 'absolute': float(np.abs(off).mean())}
        found |= {part: float(np.sqrt((off[:, at] ** 2).mean())) for part, at in PARTS.items()}
        found['gripper_right'] = float(np.concatenate(right[name]).mean())
        found['end_mm'] = float(np.median(np.concatenate(moved[name])))
        error[name] = {k: round(v, 4) for k, v in found.items()}
    return {
        'checkpoint': str(outcome.checkpoint),
        'init': args.init or f'random weights of {args.model}',
        'steps': outcome.steps,
        'train_episodes': len({t.id for e in run.train for t in e.store.texts if t.success is not False}),
        'train_datasets': [e.store.meta.name for e in run.train],
        'held_out_episodes': [e.id for h in held for e in Dataset.open(h).index],
        'held_out_frames': sum(len(m) for m in moved[MEAN]),
        'error': error,
        'ratio': {k: error[STILL][k] / error[MEAN][k] for k in ('action', 'absolute', 'translation', 'end_mm')},
    }


if __name__ == '__main__':
    from instructvla_ros.errors import InstructVLAError

    try:
        raise SystemExit(main())
    except InstructVLAError as error:
        raise SystemExit(f'train_droid: {error}') from None
