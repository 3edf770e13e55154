"""Look into a checkpoint, convert a released one, check it against golden vectors, find its attention mask."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, SetupError

if TYPE_CHECKING:
    from ..model.verify import CaseReport

ORDER = 40
HELP = 'inspect, convert, verify model checkpoints'
EXAMPLES = (
    'instructvla checkpoint inspect ShuaiYang03/instructvla_pretraining_v2_query_64_lora --tokenizer Eagle2-2B',
    'instructvla checkpoint convert runs/released models/expert --tokenizer Eagle2-2B --dtype bfloat16',
    'instructvla checkpoint verify test/data/golden --json',
    'instructvla checkpoint choose-mask models/expert datasets/kitchen --episodes 16',
)
DTYPES = ('float32', 'bfloat16')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their options."""
    verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')

    inspect = verbs.add_parser('inspect', help='variant, sizes, datasets and unused tensors of a checkpoint')
    inspect.add_argument('path', help='folder, released run directory, or hub id')
    _released_options(inspect)
    inspect.add_argument('--json', action='store_true', help='machine-readable output')

    convert = verbs.add_parser('convert', help='released run directory -> safetensors, configuration, statistics, card')
    convert.add_argument('path', help='released run directory, its checkpoints/*.pt, or hub id')
    convert.add_argument('out', help='folder to write')
    _released_options(convert)
    convert.add_argument('--mask', choices=('bias', 'block'), help='expert mask to record (see choose-mask)')
    convert.add_argument('--dtype', choices=DTYPES, help='number format of the weights; default: as they are')
    convert.add_argument('--overwrite', action='store_true', help='replace an existing folder')

    verify = verbs.add_parser('verify', help='run golden vectors and compare every array')
    verify.add_argument('path', help='folder with golden.npz beside a checkpoint, or a folder of such folders')
    verify.add_argument('--json', action='store_true', help='machine-readable output')
    verify.add_argument('--engine', choices=('plain', 'fast', 'both'), default='both', help='inference path')
    verify.add_argument(
        '--dtype', choices=DTYPES, default='float32', help='bfloat16 reports the differences without a verdict'
    )
    verify.add_argument('--no-training', action='store_true', help='leave out losses and gradients')

    choose = verbs.add_parser('choose-mask', help='flow loss under both expert masks: which was the model trained with')
    choose.add_argument('path', help='checkpoint')
    choose.add_argument(
        'samples',
        help='dataset of recorded episodes, or an .npz with views (N, V, H, W, 3) uint8, proprio (N, 8), '
        'steps (N, H, 7), instruction (N,)',
    )
    _released_options(choose)
    choose.add_argument(
        '--dataset', default='', help="whose statistics scale the steps (default: the episodes' own, or the only ones)"
    )
    choose.add_argument('--limit', type=int, default=64, help='samples used (default 64)')
    choose.add_argument('--episodes', type=int, default=16, help='episodes the samples are drawn from (default 16)')
    choose.add_argument('--seed', type=int, default=0, help='of the noise, and of the draw')
    choose.add_argument('--json', action='store_true', help='machine-readable output')


def run(args: argparse.Namespace) -> int:
    """Run the chosen verb; 0 on success, 1 when a verification fails.

    Raises:
        CheckpointError: the checkpoint is not usable.
        SetupError: torch or transformers is not installed.
    """
    for library in ('torch', 'transformers'):
        if importlib.util.find_spec(library) is None:
            raise SetupError(f"{library} is missing; install the package with its model extra: pip install '.[model]'")
    verbs = {'inspect': _inspect, 'convert': _convert, 'verify': _verify, 'choose-mask': _choose}
    return verbs[args.verb](args)


def _released_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--views', type=int, help='cameras of a released checkpoint; its file does not say (default 1)')
    parser.add_argument('--tokenizer', help='folder with tokenizer.json of Eagle2-2B, when the run has none')


def _inspect(args: argparse.Namespace) -> int:
    from ..model.verify import describe

    found = describe(args.path, views=args.views, tokenizer=args.tokenizer)
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    for key in ('origin', 'revision', 'stage'):
        print(f'{key:12s} {found[key]}')
    print(f'{"parameters":12s} {found["parameters"] / 1e6:.2f} M, {", ".join(found["dtypes"])}')
    for part, count in found['parts'].items():
        print(f'  {part:26s} {count / 1e6:10.3f} M')
    print(f'{"datasets":12s} {", ".join(found["datasets"]) or "none"}')
    for key, value in found['config'].items():
        print(f'  {key:12s} {value}')
    if found['unused']:
        print(f'{len(found["unused"])} kinds of tensors in the file are not used:')
        for line in found['unused']:
            print(f'  {line}')
    return 0


def _convert(args: argparse.Namespace) -> int:
    from ..model.checkpoint import convert
    from ..model.tensors import number_format

    dtype = number_format(args.dtype) if args.dtype else None
    out = convert(
        args.path,
        args.out,
        dtype=dtype,
        views=args.views,
        mask=args.mask,
        tokenizer=args.tokenizer,
        overwrite=args.overwrite,
    )
    size = sum(f.stat().st_size for f in out.rglob('*') if f.is_file())
    print(f'wrote {out} ({size / 1e9:.3f} GB)')
    return 0


def _verify(args: argparse.Namespace) -> int:
    from ..model.tensors import number_format
    from ..model.verify import golden_cases, verify

    dtype = number_format(args.dtype)
    engines = ('plain', 'fast') if args.engine == 'both' else (args.engine,)
    reports: dict[str, list[CaseReport]] = {engine: [] for engine in engines}
    for case in golden_cases(args.path):
        for engine in engines:
            # The training arrays do not depend on the inference path: once is enough.
            training = not args.no_training and engine == engines[0]
            reports[engine].append(verify(case, fast=engine == 'fast', training=training, dtype=dtype))
            if not args.json:
                _print_report(reports[engine][-1], engine)
    ok = all(r.ok for found in reports.values() for r in found)
    if args.json:
        cases = {engine: [r.to_dict() for r in found] for engine, found in reports.items()}
        print(json.dumps({'ok': ok, 'paths': cases}, indent=1))
    else:
        verdict = 'all arrays within tolerance' if ok else 'FAILED: see the arrays marked with !'
        print(verdict if args.dtype == 'float32' else f'differences of {args.dtype} to float32, without a verdict')
    return 0 if ok else 1


def _print_report(report: CaseReport, engine: str) -> None:
    print(f'{report.case} ({engine} path): {"ok" if report.ok else "FAILED"}')
    for check in report.checks:
        name = check.array if len(check.array) <= 72 else f'{check.array[:5]}...{check.array[-64:]}'
        print(f'  {" " if check.ok else "!"} {name:72s} {check.difference:10.3g}  (<= {check.tolerance:.3g})')


def _choose(args: argparse.Namespace) -> int:
    from ..data.episodes import Dataset
    from ..model.checkpoint import load
    from ..model.choose import choose_mask
    from ._checkpoint_samples import from_episodes, from_file

    for name in ('limit', 'episodes'):
        if getattr(args, name) < 1:
            raise ConfigError(f'--{name} {getattr(args, name)}: give 1 or more')
    place, statistics = Path(args.samples), args.dataset
    recorded = Dataset.open(place) if place.is_dir() else None
    bundle = load(args.path, views=args.views, tokenizer=args.tokenizer)
    if recorded is None:
        samples = from_file(place, args.limit)
    else:
        samples = from_episodes(recorded, bundle.config, args.episodes, args.limit, args.seed)
        if not statistics and recorded.meta.name in bundle.statistics:
            statistics = recorded.meta.name
    choice = choose_mask(bundle, samples, statistics, args.seed)
    if args.json:
        found: dict[str, Any] = {
            'losses': dict(choice.losses),
            'best': choice.best,
            'margin': choice.margin,
            'clear': choice.clear,
            'samples': choice.samples,
        }
        print(json.dumps(found, indent=1))
        return 0
    for mask, loss in choice.losses.items():
        print(f'{mask:6s} flow loss {loss:.6f}')
    verdict = f'use --mask {choice.best}' if choice.clear else 'these samples do not tell; use more'
    print(f'difference {choice.margin:.1f} standard errors over {choice.samples} samples: {verdict}')
    return 0
