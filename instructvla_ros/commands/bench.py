"""Latency and throughput of the parts on this machine.

model      one step of the model, the reference's order of work against the fast path, side by side (random weights)
control    one period of the controller and its parts, without ROS
transport  images and joint states between two processes over DDS (needs ROS 2)
train      one optimiser step, the reference's order of work against ours, side by side (random weights)
graph      end to end through the running graph: camera stamp to command stamp, per stage (needs ROS 2)
replay     a made-up bag through the direct replay: speed, memory, repeatability

Without an argument: a quick round of the first three, as far as they can run here; the others by name or with `all`.
Results are printed and written as JSON; --history keeps the main numbers with commit and machine, and draws them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError, SetupError
from . import _bench_more

ORDER = 45
HELP = 'latency and throughput of model, control and transport on this machine'
EXAMPLES = (
    'instructvla bench                                   # a quick round of everything, 2-3 minutes',
    'instructvla bench model --size medium --stage 2 --repeats 10',
    'instructvla bench model --size eagle2_2b --stage 2 --device cuda --dtype bfloat16',
    'instructvla bench model --size eagle2_2b --stage 2 --device cpu --dtype bfloat16 --only bias --repeats 1',
    'instructvla bench control --json',
    'instructvla bench train --size medium --stage 1 --repeats 7',
    'instructvla bench transport --quick --out runs/transport.json',
    'instructvla bench graph --episodes 10              # the checkpoint that ships',
    'instructvla bench all --history --note "two idle cores"',
)
PARTS = ('model', 'control', 'transport')
EVERY = (*PARTS, 'train', *_bench_more.PARTS)
SIZES = ('tiny', 'medium', 'eagle2_2b')
STAGES = (1, 2)
DTYPES = ('auto', 'float32', 'bfloat16', 'both')
STEPS = ('bias', 'block', 'sentence', 'reuse')
QUICK_BUDGET = 8.0  # longest time for the repeats of one step of the model [s]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('what', nargs='?', choices=(*EVERY, 'all'), help='default: the first three, quickly')
    parser.add_argument(
        '--size', action='append', choices=SIZES, default=[], help='of the model, repeatable (default: tiny, medium)'
    )
    parser.add_argument('--stage', type=int, action='append', choices=STAGES, default=[], help='repeatable')
    parser.add_argument(
        '--dtype',
        default='auto',
        choices=DTYPES,
        help='of the model; both: float32, and the fast path in bfloat16 as well (auto: at medium size where the CPU '
        'has instructions for it)',
    )
    parser.add_argument(
        '--only', action='append', choices=STEPS, default=[], help='step of the model to time, repeatable'
    )
    parser.add_argument('--capture', default='auto', choices=('auto', 'on', 'off'), help='as in config/policy.yaml')
    parser.add_argument('--compile', action='store_true', help='torch.compile of the fast path; takes minutes')
    parser.add_argument('--device', default='auto', help='auto (default), cpu, cuda, cuda:1, ...')
    parser.add_argument('--repeats', type=int, default=0, help='of every step of the model (default: 5, quick: 3)')
    parser.add_argument(
        '--threads', type=int, default=0, help='of the model on a CPU (default: all cores; quick: 1, as in the graph)'
    )
    parser.add_argument('--embodiment', default='franka.yaml', help='robot: a file of config/ or a path')
    parser.add_argument('--quick', action='store_true', help='less of everything: medium only in stage 2')
    _bench_more.add_arguments(parser)
    parser.add_argument('--out', default='', help='file of the results (default: runs/bench-<stamp>.json)')
    parser.add_argument('--json', action='store_true', help='print the results as JSON and nothing else')


def run(args: argparse.Namespace) -> int:
    """Measure and report; 1 when a part failed on the way.

    Raises:
        ConfigError: an option is out of range. SetupError: the one part that was asked for cannot run here.
    """
    for name in ('repeats', 'threads'):
        if getattr(args, name) < 0:
            raise ConfigError(f'--{name} {getattr(args, name)}: give 1 or more, or 0 for the default')
    _bench_more.check(args)
    from ..evaluation import machine

    quick = args.quick or args.what is None
    wanted = PARTS if args.what is None else EVERY if args.what == 'all' else (args.what,)
    out = _file(args.out)
    say = _Steps(args.json)
    results: dict[str, Any] = {
        'created': time.strftime('%Y-%m-%d %H:%M:%S'),
        'machine': machine.facts(),
        'versions': machine.versions(),
        'load_before': _load(),
    }
    measure: dict[str, Callable[..., Any]] = {
        'model': _model,
        'control': _control,
        'transport': _transport,
        'train': _train,
        'graph': _bench_more.graph,
        'replay': _bench_more.replay,
    }
    began, code = time.monotonic(), 0
    with say:
        for part in wanted:
            say.heading = ''
            if (reason := _obstacle(part)) and len(wanted) > 1:
                results[part] = {'skipped': reason}
                continue
            if reason:
                raise SetupError(reason)
            try:
                results[part] = measure[part](args, quick, say)
            except SetupError as err:  # the other parts are worth keeping
                results[part], code = {'failed': str(err)}, 1
    results['load_after'] = _load()
    results['seconds'] = round(time.monotonic() - began, 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    if args.json:
        print(json.dumps(results))
    else:
        from ._bench_tables import show

        show(results)
        print(f'results: {out}')
    for file in _bench_more.remember(args, results):
        print(f'history: {file}', file=sys.stderr)
    return code


def _obstacle(part: str) -> str:
    """Why a part cannot run on this machine, or ''."""
    if part in ('model', 'train', 'replay'):
        missing = [n for n in ('torch', 'transformers') if importlib.util.find_spec(n) is None]
        extra = "install the package with its model extra: pip install '.[model]'"
        return f'{missing[0]} is missing; {extra}' if missing else ''
    if part in ('transport', 'graph'):
        from ..graph_session import require_ros

        try:
            require_ros()
        except SetupError as err:
            return str(err)
    return ''


def _model(args: argparse.Namespace, quick: bool, say: _Steps) -> list[dict[str, Any]]:
    say('model: loading torch')
    from ..model.bench import measure_preset

    found = []
    for size in args.size or ['tiny', 'medium']:
        # In a quick round the larger model is timed only as it is served.
        for stage in args.stage or ([2] if quick and size != 'tiny' else STAGES):
            say.heading = f'model {size}, stage {stage}: '
            found.append(
                measure_preset(
                    size,
                    stage,
                    device=args.device,
                    dtype=args.dtype,
                    repeats=args.repeats or (3 if quick else 5),
                    threads=args.threads or (1 if quick else 0),
                    budget=QUICK_BUDGET if quick and not args.repeats else math.inf,
                    progress=say,
                    capture=args.capture,
                    compile=args.compile,
                    only=args.only,
                )
            )
    return found


def _train(args: argparse.Namespace, quick: bool, say: _Steps) -> list[dict[str, Any]]:
    say('train: loading torch')
    from ..training.bench import measure_step

    found = []
    for size in args.size or ['tiny', 'medium']:
        for stage in args.stage or STAGES:
            say.heading = f'train {size}, stage {stage}: '
            timing = measure_step(
                size,
                f'stage{stage}',
                batch=2 if quick else 4,
                repeats=args.repeats or (3 if quick else 5),
                device=args.device,
                threads=args.threads or (1 if quick else 0),
                progress=say,
            )
            found.append(timing.to_dict())
    return found


def _control(args: argparse.Namespace, quick: bool, say: _Steps) -> dict[str, Any]:
    from .. import config, resources
    from ..evaluation.bench_control import measure_control
    from ..settings import Control, Embodiment

    say('control: one period of the controller')
    embodiment = config.load(Embodiment, resources.config_file(args.embodiment))
    control = config.load(Control, resources.config_file('controller.yaml'))
    return measure_control(embodiment, control, 5.0 if quick else 20.0)


def _transport(args: argparse.Namespace, quick: bool, say: _Steps) -> dict[str, Any]:
    from ..graph import NODES, Graph, NodeSpec

    module, seconds = f'{NODES}.transport_bench', 3.0 if quick else 15.0
    say('transport: images and joint states between two processes')
    with tempfile.TemporaryDirectory(prefix='instructvla_bench_') as logs:
        specs = [
            NodeSpec('receiver', module, {'role': 'receive'}, piped=True, ends=True),
            NodeSpec('sender', module, {'role': 'send', 'seconds': seconds}, ends=True),
        ]
        deadline = time.monotonic() + 2 * seconds + 60.0
        with Graph(specs, logs) as graph:
            for line in graph.lines('receiver'):
                if line.startswith('{'):
                    return dict(json.loads(line))
                if time.monotonic() > deadline or graph.exit_code('sender') is not None:
                    break
            said = graph.tail('sender') + '\n' + graph.tail('receiver')
    raise SetupError(f'the two processes did not find each other or ended early. Their logs:\n{said}')


def _file(given: str) -> Path:
    if given:
        out = Path(given).expanduser()
        if out.is_dir():
            raise ConfigError(f'--out {given} is a folder; give a file, for example {out / "bench.json"}')
        return out.resolve()
    return (Path('runs') / f'bench-{time.strftime("%Y%m%d-%H%M%S")}.json').resolve()


def _load() -> list[float]:
    return [round(v, 2) for v in os.getloadavg()]


class _Steps:
    """What is measured now: a live line on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.heading = ''
        self._quiet = quiet
        self._status: Any = None

    def __enter__(self) -> _Steps:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(file=sys.stderr).status('starting')
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, text: str) -> None:
        text = self.heading + text
        if self._status is not None:
            self._status.update(text)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)
