"""``instructvla train``: stage 1, stage 2, or fine-tuning on site."""

from __future__ import annotations

import argparse
import json
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
    'instructvla train stage1 --data datasets/a datasets/b --out runs/stage1 --set lr=0.0001 batch=64',
    'instructvla train stage2 --init runs/stage1/best --data datasets/a --out runs/stage2 --dry-run',
    'accelerate launch -m instructvla_ros.cli train stage1 --data datasets/a --out runs/stage1   # several GPUs',
)
RUNS = ('onsite', 'stage1', 'stage2', 'tiny_stage0', 'tiny_stage1', 'tiny_stage2')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add('run', metavar='RUN', help=f'{", ".join(RUNS)} (files in config/training/), or a YAML file of your own')
    add('--data', nargs='+', default=[], metavar='DIR', help='datasets of episodes (`instructvla dataset build`)')
    add('--init', default='', metavar='CHECKPOINT', help='start from it; without, from random weights of --set model=')
    add('--out', required=True, metavar='DIR', help='of the run; the same command goes on where it stopped')
    add('--set', nargs='+', default=[], metavar='KEY=VALUE', help='other options, for example steps=500 lr=0.0001')
    add('--dry-run', action='store_true', help='say what would be trained and the memory it needs, and stop')
    add('--json', action='store_true', help='result as JSON')


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 130 when interrupted."""
    options = read_options(args.run, args.data, args.init, args.set)
    if args.dry_run:
        from ..training.plan import plan

        found = plan(options)
        print(json.dumps(asdict(found), indent=1) if args.json else found.text())
        return 0
    from ..training.loop import train

    result = train(options, args.out, progress=not args.json)
    if args.json:
        print(json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in asdict(result).items()}))
    elif result.interrupted:
        print(f'interrupted after {result.steps} steps; the same command goes on')
    else:
        print(f'{result.steps} steps; checkpoint {result.checkpoint}, best {result.best}')
    return 130 if result.interrupted else 0


def read_options(name: str, data: list[str], init: str, changes: list[str]) -> Training:
    """Options of a run file with the changes of the command line.

    Raises:
        ConfigError: no such file, unknown key, or a value that is not allowed.
    """
    import yaml

    if name.endswith(('.yaml', '.yml')):
        file = Path(name)
        if not file.is_file():
            raise ConfigError(f'no such file: {file}')
    elif name in RUNS:
        file = Path(config_file(f'training/{name}.yaml'))
    else:
        raise ConfigError(f'no training run {name!r}.{suggest(name, RUNS)}')
    given: dict[str, object] = {}
    for change in changes:
        key, equals, value = change.partition('=')
        if not equals:
            raise ConfigError(f'--set {change}: write KEY=VALUE')
        given[key] = yaml.safe_load(value)
    if data:
        given['datasets'] = tuple(data)
    if init:
        given['init'] = init
    return load(Training, file, given)
