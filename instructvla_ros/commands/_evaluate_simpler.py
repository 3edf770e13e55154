"""`instructvla evaluate simpler`: SimplerEnv and SimplerEnv-Instruct, where `simpler_env` is installed."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evaluation.simpler_policy import SimplerPolicy

HELP = 'SimplerEnv and SimplerEnv-Instruct (needs simpler_env)'


def add_way(ways: Any) -> None:
    """Declare the way and its options."""
    way = ways.add_parser('simpler', help=HELP, description=HELP)
    way.set_defaults(run_way=run)
    way.add_argument('--checkpoint', default='', help='run directory or hub id')
    way.add_argument(
        '--policy', default='instructvla', choices=('instructvla', 'hold'), help='hold: try the loop without weights'
    )
    way.add_argument(
        '--suite',
        action='append',
        default=[],
        metavar='NAME|FILE',
        help='simplerenv, simplerenv_instruct (default: both), or a YAML file',
    )
    way.add_argument('--only', action='append', default=[], metavar='NAME', help='column, task or launch (see --list)')
    way.add_argument(
        '--seeds', type=int, default=1, help='passes with another noise seed each (default: 1; the paper: 3)'
    )
    way.add_argument(
        '--limit', type=int, default=0, help='trials per launch, to try it out; a cell is measured only without it'
    )
    way.add_argument(
        '--sentence-period', type=int, default=20, help='steps between two sentences; 0: act without words'
    )
    way.add_argument('--latent-period', type=int, default=1, help='steps per latent (the paper caches 2)')
    way.add_argument(
        '--ensemble', type=int, default=0, help='chunks in the ensemble; 0: 2 for the Google robot, 7 for WidowX'
    )
    way.add_argument('--dataset', default='', help="statistics of the actions; default: the robot's data set")
    way.add_argument(
        '--mask', default='', choices=('', 'bias', 'block'), help="attention mask; default: the checkpoint's"
    )
    way.add_argument('--device', default='auto')
    way.add_argument('--videos', default='failures', choices=('failures', 'all', 'none'))
    way.add_argument('--name', default='', help='of the row in the table (default: from the checkpoint)')
    way.add_argument('--out', default='', help='folder; the same one continues a run (default: runs/simpler-<name>)')
    way.add_argument('--list', action='store_true', help='show columns, tasks and trial counts, run nothing')
    way.add_argument('--tables', action='store_true', help='only write the tables, with what the folder has')
    way.add_argument('--json', action='store_true', help='print the scores as one JSON object')


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; 0 when every wanted episode ran, 1 when some could not.

    Raises:
        SetupError: simpler_env or the model's libraries are not installed.
        CheckpointError, ConfigError, TaskError: what was asked for is not possible.
    """
    from ..errors import ConfigError
    from ..evaluation import simpler, simpler_report
    from ..evaluation.simpler_tasks import SUITES, read_suite

    suites = [read_suite(name) for name in arguments.suite or SUITES]
    if arguments.list:
        return _list(suites, arguments.json)
    if min(arguments.seeds, 1 + arguments.limit) < 1:
        raise ConfigError('--seeds must be at least 1 and --limit must not be negative')
    if arguments.policy == 'instructvla' and not arguments.checkpoint and not arguments.tables:
        raise ConfigError('--checkpoint is needed (a run directory or a hub id), or --policy hold to try the loop')
    name = arguments.name or _name(arguments)
    folder = Path(arguments.out or f'runs/simpler-{name}')
    unavailable: dict[str, str] = {}
    complete = True
    if not arguments.tables:
        installed = simpler.SimplerEnv()  # first: the advice what to install must not wait for the weights
        policies, identity = _policies(arguments)
        options = simpler.Options((), tuple(range(arguments.seeds)), arguments.limit, arguments.videos)
        chosen = [(s, _wanted(s, arguments.only, suites)) for s in suites]
        for suite, only in chosen:
            if only is None:
                continue
            options = simpler.Options(only, options.seeds, options.limit, options.videos)
            job = simpler.Run(suite, folder / suite.name, policies, identity, installed.make, options)
            _drive(job, suite.title, arguments.json)
            unavailable.update(job.unavailable)
            complete = complete and not job.missing()
    summaries = {}
    for suite in suites:
        rows = simpler.read_rows(folder / suite.name / simpler.RESULTS)
        if rows:
            summaries[suite.name] = simpler_report.summarize(suite, rows, arguments.limit)
    facts = _facts(folder, suites)
    page = simpler_report.write(
        folder,
        summaries,
        name=name,
        note='measured here' if summaries else '',
        facts=facts,
        command=shlex.join(['instructvla', *sys.argv[1:]]),
        unavailable=unavailable,
        suites={s.name: s for s in suites},
    )
    if arguments.json:
        print((folder / 'summary.json').read_text(encoding='utf-8'))
    else:
        _print(summaries)
    print(f'table: {page}', file=sys.stderr)
    return 0 if complete else 1


def _wanted(suite: Any, only: list[str], suites: list[Any]) -> tuple[str, ...] | None:
    """Names of ``--only`` that this suite knows; None when they are all another suite's."""
    from ..errors import TaskError

    if not only:
        return ()
    known, unknown = [], []
    for name in only:
        fits = []
        for s in suites:
            try:
                s.choose([name])
                fits.append(s.name)
            except TaskError as err:
                unknown.append(err)
        if not fits:
            raise unknown[-1]
        if suite.name in fits:
            known.append(name)
    return tuple(known) if known else None


def _policies(arguments: argparse.Namespace) -> tuple[Callable[[str, int], SimplerPolicy], dict[str, Any]]:
    from ..evaluation.simpler_policy import SETUPS, SimplerPolicy, find_setup, load_policies
    from ..policy import HoldPolicy

    made: dict[tuple[str, int], SimplerPolicy] = {}
    words = {'sentence_period': arguments.sentence_period, 'ensemble': arguments.ensemble}
    identity: dict[str, Any] = {'policy': arguments.policy, 'checkpoint': arguments.checkpoint, **words}
    if arguments.policy == 'hold':

        def hold(setup: str, seed: int) -> SimplerPolicy:
            s = find_setup(setup)
            return made.setdefault((setup, seed), SimplerPolicy(HoldPolicy(1 / s.control_freq, 1), s, **words))

        return hold, identity
    options = {'latent_period': arguments.latent_period, 'mask': arguments.mask, 'dataset': arguments.dataset}
    policies = load_policies(arguments.checkpoint, SETUPS, device=arguments.device, **words, **options)
    identity.update(options)
    identity['revision'] = next(iter(policies.values())).policy.checkpoint_revision
    identity['state'] = next(iter(policies.values())).state

    def learned(setup: str, seed: int) -> SimplerPolicy:
        if (setup, seed) not in made:
            base = policies[setup]
            policy = base.policy.with_settings(seed=seed)  # type: ignore[attr-defined]
            made[setup, seed] = SimplerPolicy(policy, base.setup, state=base.state, **words)
        return made[setup, seed]

    return learned, identity


def _drive(job: Any, title: str, quiet: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    total, missing = job.total, len(job.missing())
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), disable=quiet) as bar:
        task = bar.add_task(title, total=total, completed=total - missing)
        for row in job.run():
            mark = 'solved' if row['success'] else 'not solved'
            bar.console.print(
                f'{row["launch"]} ({row["trial"]}): {mark}, {row["steps"]} steps', highlight=False, markup=False
            )
            bar.advance(task)
        for launch, reason in job.unavailable.items():
            bar.console.print(f'left out: {launch}: {reason}', highlight=False, markup=False)


def _facts(folder: Path, suites: list[Any]) -> dict[str, Any]:
    from ..evaluation import simpler

    for suite in suites:
        file = folder / suite.name / simpler.RUN
        if file.is_file():
            return {k: v for k, v in json.loads(file.read_text(encoding='utf-8')).items() if k != 'suite'}
    return {}


def _name(arguments: argparse.Namespace) -> str:
    base = Path(arguments.checkpoint).name if arguments.checkpoint else arguments.policy
    return base if arguments.sentence_period else f'{base}-without-words'


def _list(suites: list[Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps({s.name: {x.name: len(x.trials()) for x in s.launches} for s in suites}, indent=1))
        return 0
    for suite in suites:
        print(f'{suite.title}: {len(suite.launches)} launches, {suite.trials} trials')
        for column in suite.columns:
            launches = suite.of(column.name)
            print(f'  {column.name:12s} {column.title}: {sum(len(x.trials()) for x in launches)} trials')
            tasks: dict[str, list[int]] = {}
            for x in launches:
                tasks.setdefault(x.name.split(': ')[0], []).append(len(x.trials()))
            for task, counts in tasks.items():
                print(f'    {task:55s} {len(counts):4d} x {counts[0]}')
    return 0


def _print(summaries: dict[str, Any]) -> None:
    for summary in summaries.values():
        print(summary['suite'])
        for name, column in summary['columns'].items():
            score = 'not measured' if column['score'] is None else f'{column["score"]:.1f} %'
            print(f'  {name:14s}{score:>14s}   {column["successes"]}/{column["trials"]} of {column["wanted"]} trials')
