"""``instructvla train``: stage 1, stage 2, or fine-tuning on site; a page about the run; weights to a running graph."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..config import load
from ..errors import ConfigError, suggest
from ..resources import config_file
from ..training.settings import Training

ORDER = 32
HELP = 'fine-tune a checkpoint, or train one, on episodes'
EXAMPLES = (
    'instructvla train onsite --init models/franka --data datasets/monday --out runs/monday',
    'instructvla train onsite --init models/franka --data datasets/monday --out runs/monday --deploy',
    'instructvla train onsite --out runs/monday --report-only   # the page again, also while the run goes on',
    'instructvla train stage1 --data datasets/a datasets/b --out runs/stage1 --set lr=0.0001 batch=64',
    'instructvla train stage2 --init runs/stage1/best --data datasets/a --out runs/stage2 --dry-run',
    'instructvla train onsite --init models/franka --data datasets/monday --out runs/monday --processes 2   # 2 cores',
    'accelerate launch --num_processes 4 -m instructvla_ros.cli train stage1 --data datasets/a --out runs/stage1',
    'torchrun --nproc_per_node 4 -m instructvla_ros.cli train stage1 ... --set sharded=true   # FSDP',
)
RUNS = (
    'onsite',
    'stage1',
    'stage2',
    'tiny_words',
    'tiny_stage1',
    'tiny_stage2',
    'tiny_together',
    'tiny_onsite',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add('run', metavar='RUN', help=f'{", ".join(RUNS)} (files in config/training/), or a YAML file of your own')
    add('--data', nargs='+', default=[], metavar='DIR', help='datasets of episodes (`instructvla dataset build`)')
    add('--init', default='', metavar='CHECKPOINT', help='start from it; without, from random weights of --set model=')
    add('--out', required=True, metavar='DIR', help='of the run; the same command goes on where it stopped')
    add('--set', nargs='+', default=[], metavar='KEY=VALUE', help='other options, for example steps=500 lr=0.0001')
    add('--dry-run', action='store_true', help='say what would be trained and the memory it needs, and stop')
    add(
        '--processes',
        type=int,
        default=1,
        metavar='N',
        help='train in so many processes, with a GPU or a share of the cores each; they share each batch (default: 1)',
    )
    add('--report-only', action='store_true', help='write report.html of the run in --out and stop')
    add(
        '--deploy',
        nargs='?',
        const='/instructvla/load_checkpoint',
        default='',
        metavar='SERVICE',
        help='afterwards give the checkpoint to the policy node that runs (default: /instructvla/load_checkpoint)',
    )
    add('--json', action='store_true', help='result as JSON')


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 130 when interrupted."""
    if args.report_only:
        return _report(args)
    options = read_options(args.run, args.data, args.init, args.set)
    if args.dry_run:
        from ..training.plan import plan

        found = plan(options)
        print(json.dumps({**asdict(found), 'total_gb': found.total_gb}, indent=1) if args.json else found.text())
        return 0
    if args.deploy:  # not after an hour of training
        from .. import graph_session

        graph_session.require_ros()
    if args.processes != 1:
        return _together(args, options)
    from ..training.loop import train

    result = train(options, args.out, progress=not args.json)
    if result.report is None:  # one of several processes, and not the one that speaks
        return 130 if result.interrupted else 0
    told = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(result).items()}
    if not result.best.is_dir():
        told['best'], told['best_loss'] = None, None
    if not args.json:
        if result.interrupted:
            print(f'interrupted after {result.steps} steps; the same command goes on')
        else:
            print(f'{result.steps} steps')
        print(f'checkpoint: {result.checkpoint}')
        if result.best.is_dir():
            print(f'best:       {result.best} (held-out loss {result.best_loss:.4f})')
        print(f'report:     {link(result.report)}')
    if args.deploy and not result.interrupted:
        from ..nodes.deploying import deploy

        told['deployed'] = deploy(result.checkpoint, args.deploy)
        if not args.json:
            print(f'deployed:   {told["deployed"]}')
    if args.json:
        print(json.dumps(told))
    return 130 if result.interrupted else 0


def _together(args: argparse.Namespace, options: Training) -> int:
    """Run the same command in several processes."""
    from ..training.launching import launch, share

    if args.processes < 1:
        raise ConfigError(f'--processes {args.processes}: at least one')
    words = ['train', args.run, '--out', args.out, '--set', *args.set, *share(options, args.processes)]
    words += ['--data', *args.data] if args.data else []
    words += ['--init', args.init] if args.init else []
    words += ['--deploy', args.deploy] if args.deploy else []
    words += ['--json'] if args.json else []
    return launch(words, args.processes)


def main(argv: Sequence[str] | None = None) -> int:
    """The verb alone, for ``ros2 run instructvla_ros train``; what follows --ros-args is not for it."""
    from ..cli import main as command_line

    given = list(sys.argv[1:] if argv is None else argv)
    if '--ros-args' in given:
        given = given[: given.index('--ros-args')]
    return command_line(['train', *given])


def link(file: Path) -> str:
    """Path of a file; on a terminal one that can be clicked (OSC 8)."""
    uri = file.resolve().as_uri()
    if not sys.stdout.isatty() or os.environ.get('TERM') == 'dumb':
        return str(file)
    return f'\033]8;;{uri}\033\\{file}\033]8;;\033\\'


def _report(args: argparse.Namespace) -> int:
    from ..training.report import write_report

    page = write_report(args.out)
    print(json.dumps({'report': str(page)}) if args.json else f'report: {link(page)}')
    return 0


def read_options(name: str, data: list[str], init: str, changes: list[str]) -> Training:
    """Options of a run file with the changes of the command line.

    Raises:
        ConfigError: no such file, unknown key, or a value that is not allowed.
    """
    from ._pairs import changes as values

    if name.endswith(('.yaml', '.yml')):
        file = Path(name)
        if not file.is_file():
            raise ConfigError(f'no such file: {file}')
    elif name in RUNS:
        file = Path(config_file(f'training/{name}.yaml'))
    else:
        raise ConfigError(f'no training run {name!r}.{suggest(name, RUNS)}')
    given: dict[str, object] = values('--set', changes, Training)
    if data:
        given['datasets'] = tuple(data)
    if init:
        given['init'] = init
    return load(Training, file, given)
