"""`instructvla evaluate sim`: Tabletop-Instruct, our suites in the simulator, without ROS and on all cores."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evaluation.suite_cell import Setup
    from ..evaluation.suites import Case, Suite

HELP = 'Tabletop-Instruct: plain, aggregated, situated instructions and robustness, with and without the sentence'


def add_way(ways: Any) -> None:
    """Declare the way and its options."""
    way = ways.add_parser('sim', help=HELP, description=HELP)
    way.set_defaults(run_way=run)
    way.add_argument('--checkpoint', default='', help='run directory or hub id; chooses the policy instructvla')
    way.add_argument('--policy', default='', help='instructvla (with --checkpoint), expert (default without) or hold')
    way.add_argument(
        '--suite',
        action='append',
        default=[],
        metavar='NAME|FILE',
        help='plain, aggregation, situated (default: these three), robustness, or a YAML file; may be repeated',
    )
    way.add_argument(
        '--instructions', default='', metavar='FILE', help='YAML list of sentences, each with scene or seed, and target'
    )
    way.add_argument('--episodes', type=int, default=0, help="per task, variant and suite (default: the suite's own)")
    way.add_argument(
        '--sentence',
        default='',
        choices=('on', 'off', 'both'),
        help='let the policy think before it acts (default: both for instructvla, else on)',
    )
    way.add_argument('--strategies', default='', metavar='A,B', help='compare replace,ensemble,blend,realtime')
    way.add_argument('--latency', type=float, default=None, help="injected, in seconds, instead of the suites' own")
    way.add_argument('--workers', type=int, default=0, help='processes (default: one per core, at most 8)')
    way.add_argument(
        '--together',
        type=int,
        default=0,
        help='episodes of a process that the model is asked about at once (default: 8, 1 without a model); '
        'the results are the same up to rounding',
    )
    way.add_argument('--videos', default='none', choices=('none', 'failures', 'all'))
    way.add_argument('--embodiment', default='franka.yaml', help='robot: a file of config/ or a path')
    way.add_argument('--device', default='', help='of the model, such as cuda:0 (default: that of config/policy.yaml)')
    way.add_argument(
        '--set', action='append', default=[], metavar='KEY=VALUE', help='any key of policy.yaml, for example noise=0'
    )
    way.add_argument('--out', default='', help='folder; the same one continues a run (default: runs/<stamp>)')
    way.add_argument('--list', action='store_true', help='show what would be asked, run nothing')
    way.add_argument('--json', action='store_true', help='print the scores as one JSON object')


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; 0 when every wanted episode ran.

    Raises:
        ConfigError, CheckpointError, SetupError, TaskError: what was asked for is not possible.
    """
    from ..evaluation import suite_report, suite_runner
    from ..graph_session import new_folder

    suites = _suites(arguments)
    setup = _setup(arguments)
    wanted = _cases(arguments, suites, setup)
    if arguments.list:
        return _list(wanted, arguments.json)
    workers = arguments.workers or suite_runner.default_workers()
    suite_runner.check(wanted, setup, workers)
    folder = new_folder(arguments.out)
    setup = _with_folder(setup, folder)
    rows = _run(wanted, setup, workers, arguments.json)
    facts = {
        'policy': setup.policy.policy,
        'privileged': setup.policy.policy == 'expert',
        'checkpoint': setup.policy.checkpoint,
        'checkpoint_name': Path(setup.policy.checkpoint).name,
        'revision': next((r['revision'] for r in rows if r.get('revision')), ''),
    }
    command = shlex.join(['instructvla', *_said_arguments(arguments)])
    summary = suite_report.write_results(folder, rows, facts, suites, command)
    print(f'results: {folder / "report.html"}', file=sys.stderr)
    _print(summary, arguments.json)
    return 0


def _suites(arguments: argparse.Namespace) -> list[Suite]:
    from ..evaluation import suites

    names = arguments.suite or ([] if arguments.instructions else suites.DEFAULT)
    return [suites.read_suite(name) for name in dict.fromkeys(names)]


def _setup(arguments: argparse.Namespace) -> Setup:
    from .. import config, resources
    from ..errors import ConfigError
    from ..evaluation.suite_cell import Setup
    from ..evaluation.suite_runner import TOGETHER
    from ..settings import Control, Embodiment, PolicySettings, Sim
    from ._pairs import changes

    name = arguments.policy or ('instructvla' if arguments.checkpoint else 'expert')
    if (name == 'instructvla') != bool(arguments.checkpoint):
        raise ConfigError(
            'the policy instructvla needs --checkpoint (a run directory or a hub id), and no other has one'
        )
    chosen = {**changes('--set', arguments.set, PolicySettings), 'policy': name, 'checkpoint': arguments.checkpoint}
    if arguments.device:
        chosen['device'] = arguments.device
    return Setup(
        embodiment=config.load(Embodiment, resources.config_file(arguments.embodiment)),
        sim=config.load(Sim, resources.config_file('sim.yaml')),
        control=config.load(Control, resources.config_file('controller.yaml')),
        policy=config.load(PolicySettings, resources.config_file('policy.yaml'), chosen),
        videos=arguments.videos,
        together=arguments.together or (TOGETHER if name == 'instructvla' else 1),
    )


def _with_folder(setup: Setup, folder: Path) -> Setup:
    from dataclasses import replace

    return replace(setup, folder=str(folder))


def _cases(arguments: argparse.Namespace, suites: Sequence[Suite], setup: Setup) -> list[Case]:
    from ..errors import ConfigError
    from ..evaluation.sentences_file import read_sentences
    from ..evaluation.suites import cases, multiplied

    if arguments.episodes < 0:
        raise ConfigError(f'--episodes {arguments.episodes}: use a whole number from 1')
    found = [c for s in suites for c in cases(s, setup.sim.randomization, arguments.episodes)]
    if arguments.instructions:
        found += read_sentences(arguments.instructions, setup.sim.randomization)
    way = arguments.sentence or ('both' if setup.policy.policy == 'instructvla' else 'on')
    sentences = {'on': [True], 'off': [False], 'both': [True, False]}[way]
    strategies = [s.strip() for s in arguments.strategies.split(',') if s.strip()]
    return multiplied(found, sentences, strategies, arguments.latency)


def _list(wanted: Sequence[Case], as_json: bool) -> int:
    rows: list[dict[str, Any]] = [
        {
            'suite': c.suite,
            'variant': c.variant.name,
            'task': c.episode.task,
            'seed': c.episode.seed,
            'kind': c.kind,
            'instruction': c.episode.instruction,
            'target': c.episode.target,
            'destination': c.episode.destination,
            'sentence': c.sentence,
            'strategy': c.strategy,
        }
        for c in wanted
    ]
    if as_json:
        print(json.dumps(rows))
        return 0
    for r in rows:
        place = f' -> {r["destination"]}' if r['destination'] else ''
        more = ', '.join(w for w in (r['variant'], r['strategy'], '' if r['sentence'] else 'no sentence') if w)
        print(f'{r["suite"]:12s} {r["kind"]:14s} {r["seed"]:8d}  {r["instruction"]}  [{r["target"]}{place}]  {more}')
    print(f'{len(rows)} episodes', file=sys.stderr)
    return 0


def _run(wanted: Sequence[Case], setup: Setup, workers: int, quiet: bool) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from ..evaluation.suite_cell import case_id
    from ..evaluation.suite_runner import RESULTS, earlier, run_cases

    identity = setup.identity()
    ids = {case_id(c, identity) for c in wanted}
    done = [r for r in earlier(Path(setup.folder) / RESULTS) if r['id'] in ids]
    columns = (
        TextColumn('[bold]{task.fields[rate]}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn('[dim]{task.fields[last]}', markup=True),
    )
    solved = sum(bool(r['success']) for r in done)
    ran = len(done)
    if done and not quiet:
        print(f'{ran} of {len(ids)} episodes are already there', file=sys.stderr)

    with Progress(*columns, console=Console(file=sys.stderr), disable=quiet) as bar:
        shown = bar.add_task('', total=len(ids), completed=ran, rate='starting', last='')

        def on_row(row: dict[str, Any]) -> None:
            nonlocal solved, ran
            from rich.markup import escape

            solved, ran = solved + bool(row['success']), ran + 1
            last = escape(f'{row["outcome"].replace("_", " ")}: {row["instruction"]}'[:70])
            bar.update(shown, completed=ran, rate=f'{100 * solved / ran:.0f} % solved', last=last)

        return run_cases(wanted, setup, workers, on_row)


def _seam(value: float | None, width: int, scale: float) -> str:
    return f'{"-":>{width}s}' if value is None else f'{scale * value:{width}.1f}'


def _said_arguments(arguments: argparse.Namespace) -> list[str]:
    out = ['evaluate', 'sim']
    for name in ('checkpoint', 'policy', 'instructions', 'sentence', 'strategies', 'device'):
        if getattr(arguments, name):
            out += [f'--{name}', str(getattr(arguments, name))]
    for change in arguments.set:
        out += ['--set', change]
    for suite in arguments.suite:
        out += ['--suite', suite]
    if arguments.episodes:
        out += ['--episodes', str(arguments.episodes)]
    if arguments.latency is not None:
        out += ['--latency', f'{arguments.latency:g}']
    if arguments.embodiment != 'franka.yaml':
        out += ['--embodiment', arguments.embodiment]
    return out


def _print(summary: dict[str, Any], as_json: bool) -> None:
    from ..evaluation import runlog

    if as_json:
        print(json.dumps(runlog.plain(summary), allow_nan=False))
        return
    # What happens where chunks take over is asked for with the strategies.
    seams = any(e['strategy'] for e in summary['table'])
    print(
        f'{"suite":34s}{"sentence":>9s}{"solved":>11s}{"":>7s}{"95 % interval":>16s}{"median s":>10s}{"jerk":>8s}'
        + (f'{"at seams":>10s}{"gap mm":>8s}{"jump mm/s":>11s}' if seams else '')
    )
    for e in summary['table']:
        name = ', '.join(w for w in (e['suite'], e['variant'], e['strategy']) if w)
        low, high = e['interval']
        median = f'{e["success_after"]["p50"]:.1f}' if e['success_after']['p50'] is not None else '-'
        count = f'{e["successes"]}/{e["episodes"]}'
        print(
            f'{name:34s}{"yes" if e["sentence"] else "no":>9s}{count:>11s}{100 * e["rate"]:5.0f} %'
            f'{f"{100 * low:.0f} .. {100 * high:.0f} %":>16s}{median:>10s}{e["jerk"]:8.1f}'
            + (
                _seam(e['seam_jerk'], 10, 1.0) + _seam(e['seam_gap'], 8, 1e3) + _seam(e['seam_jump'], 11, 1e3)
                if seams
                else ''
            )
        )
    for suite, p in summary['paired'].items():
        if p:
            low, high = p['interval']
            print(
                f'{suite}: the sentence changes the rate by {100 * p["change"]:+.1f} points '
                f'({100 * low:+.1f} .. {100 * high:+.1f})'
            )
    kinds: dict[str, int] = {}
    for e in summary['table']:
        for kind, count in e['outcomes'].items():
            kinds[kind] = kinds.get(kind, 0) + (count if kind != 'solved' else 0)
    said = ', '.join(f'{kind.replace("_", " ")} {n}' for kind, n in sorted(kinds.items(), key=lambda kn: -kn[1]) if n)
    print(f'failures: {said or "none"}')
