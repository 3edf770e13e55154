"""Success rates over many seeds, in process (`expert`) or through the whole graph (`graph`).

`expert` runs simulator, policy and controller in this process without ROS and as fast as the machine can.
`graph` starts the ROS 2 processes once and runs every episode through them in real time; results go to
<out>/episodes.jsonl one by one, and the same command continues where an interrupted one stopped.
`sim` runs the suites of Tabletop-Instruct on a checkpoint, in process and on all cores.
`simpler` runs the paper's benchmarks where simpler_env is installed, `language` scores what a checkpoint says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import _evaluate_language, _evaluate_sim, _evaluate_simpler

OTHER_WAYS = (_evaluate_sim, _evaluate_simpler, _evaluate_language)
ORDER = 3
HELP = 'success rates over many seeds, in process or through the graph'
EXAMPLES = (
    'instructvla evaluate expert --task put --episodes 100',
    'instructvla evaluate graph --task put --episodes 30 --seed 0 --out runs/put',
    'instructvla evaluate graph --task pick --task stack --episodes 10 --json',
    'instructvla evaluate sim --checkpoint models/mine --sentence both',
    'instructvla evaluate simpler --list',
    'instructvla evaluate language --checkpoint models/mine --data data/validation',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two ways and their options."""
    ways = parser.add_subparsers(dest='way', required=True, metavar='expert | graph | sim | simpler | language')
    for name, text in (('expert', 'in process, without ROS'), ('graph', 'through the ROS 2 graph')):
        way = ways.add_parser(name, help=text, description=text)
        way.add_argument(
            '--task', action='append', default=[], help='may be given several times; all tasks when left out'
        )
        way.add_argument('--instruction', default='', help="the same sentence for every seed instead of the task's own")
        way.add_argument('--episodes', type=int, default=30, help='seeds per task (default: 30)')
        way.add_argument('--seed', type=int, default=0, help='first seed (default: 0)')
        way.add_argument('--embodiment', default='franka.yaml', help='robot: a file of config/ or a path')
        way.add_argument('--json', action='store_true', help='print the scores as one JSON object')
        way.add_argument('--out', default='', help='folder for results (graph: runs/<stamp> when left out)')
        if name == 'graph':
            way.add_argument('--policy', default='expert', help='expert (default), hold or instructvla')
            way.add_argument('--checkpoint', default='', help='run directory or hub id, for --policy instructvla')
            way.add_argument(
                '--time-limit', type=float, default=0.0, help="seconds per episode (default: the task's own limit)"
            )
            way.add_argument(
                '--speed',
                default='1',
                help='simulated seconds per second, 0.05 to 1 (default), or auto: what this machine keeps up with',
            )
            way.add_argument('--record', action='store_true', help='keep a recording with video of every episode')
    for module in OTHER_WAYS:
        module.add_way(ways)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; 0 when every episode ran."""
    if hasattr(arguments, 'run_way'):
        return int(arguments.run_way(arguments))
    from .. import graph_session as session
    from ..errors import ConfigError

    if arguments.episodes < 1:
        raise ConfigError(f'--episodes {arguments.episodes}: at least one is needed')
    wanted = [session.check_episode(e) for e in _requests(arguments)]
    rows = _graph(arguments, wanted) if arguments.way == 'graph' else _expert(arguments, wanted)
    _print(rows, arguments.json)
    return 0 if len(rows) == len(wanted) else 1


def _requests(arguments: argparse.Namespace) -> list[Any]:
    from ..graph_session import EpisodeRequest
    from ..sim.tasks import TASKS

    tasks = arguments.task or ([''] if arguments.instruction else list(TASKS))
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    return [EpisodeRequest(task, seed, arguments.instruction) for task in tasks for seed in seeds]


def _graph(arguments: argparse.Namespace, wanted: list[Any]) -> list[dict[str, Any]]:
    from .. import graph_session as session
    from ..evaluation import machine, runlog, scores
    from ..pace import read_speed
    from ._progress import Progress

    options = session.GraphOptions(
        policy=arguments.policy,
        checkpoint=arguments.checkpoint,
        embodiment=arguments.embodiment,
        record=arguments.record,
        time_limit=arguments.time_limit,
        speed=read_speed(arguments.speed),
    )
    session.check_options(options)
    folder = session.new_folder(arguments.out)
    keys = {e.key() for e in wanted}
    before = [
        r
        for r in session.read_results(folder / session.RESULTS)
        if _row_key(r) in keys
        and (r.get('policy'), r.get('checkpoint', '')) == (arguments.policy, arguments.checkpoint)
    ]
    done = {_row_key(r) for r in before}
    missing = [e for e in wanted if e.key() not in done]
    fresh: list[dict[str, Any]] = []
    with Progress(quiet=arguments.json) as progress:
        if before:
            progress.note(f'{len(before)} of {len(wanted)} episodes are already in {folder / session.RESULTS}')
        if missing:
            progress.pace(options.speed)
            with session.Session(missing, folder, options) as running:
                for event in running.events():
                    progress.update(event)
                fresh = running.rows
    rows = [*before, *fresh]
    summary = {
        'policy': arguments.policy,
        'speed': options.speed,
        'tasks': scores.by_task(rows),
        'machine': machine.facts(),
        'versions': machine.versions(),
    }
    runlog.write_json(folder / 'summary.json', summary)
    print(f'results: {folder}', file=sys.stderr)
    return rows


def _row_key(row: dict[str, Any]) -> tuple[str, int, str, str]:
    return row.get('task', ''), row.get('seed', -1), row.get('asked', ''), row.get('said', '')


def _expert(arguments: argparse.Namespace, wanted: list[Any]) -> list[dict[str, Any]]:
    from .. import config, resources
    from ..control.kinematics import Kinematics
    from ..evaluation.rollout import run_episode
    from ..policy import make_policy
    from ..settings import Control, Embodiment, PolicySettings, Sim
    from ..sim.tasks import make_episode
    from ..sim.world import World

    embodiment = config.load(Embodiment, resources.config_file(arguments.embodiment))
    sim = config.load(Sim, resources.config_file('sim.yaml'))
    control = config.load(Control, resources.config_file('controller.yaml'))
    settings = config.load(PolicySettings, resources.config_file('policy.yaml'), {'policy': 'expert'})
    policy = make_policy(settings, embodiment)
    world, kinematics = World(sim, embodiment, render=False), Kinematics(embodiment)
    rows: list[dict[str, Any]] = []
    try:
        for request in wanted:
            episode = make_episode(request.task, request.seed, request.instruction, sim.randomization)
            result = run_episode(
                episode,
                policy,
                sim=sim,
                embodiment=embodiment,
                control=control,
                policy_settings=settings,
                world=world,
                kinematics=kinematics,
            )
            rows.append(_row(result))
            if not arguments.json:
                mark = 'solved' if result.success else f'NOT SOLVED, {result.failure}: {result.detail}'
                print(
                    f'{result.task} {result.seed:4d}  {result.time:6.1f} s  {mark}  ({result.instruction})',
                    file=sys.stderr,
                )
    finally:
        world.close()
    if arguments.out:
        folder = Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'episodes.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows), encoding='utf-8')
    return rows


def _row(result: Any) -> dict[str, Any]:
    return {
        'task': result.task,
        'seed': result.seed,
        'instruction': result.instruction,
        'policy': result.policy,
        'success': result.success,
        'outcome': 'SUCCEEDED' if result.success else result.failure,
        'reason': result.detail,
        'progress': result.progress,
        'duration': result.time,
        'success_after': result.time if result.success else None,
        'chunks': result.chunks,
        'verdicts': {name.replace('/', ' '): count for name, count in result.verdicts.items()},
    }


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    from ..evaluation import runlog, scores

    table = scores.by_task(rows)
    if as_json:
        print(json.dumps(runlog.plain({'tasks': table}), allow_nan=False))
        return
    print(f'{"task":14s}{"solved":>10s}{"95 % interval":>18s}{"median s":>10s}')
    for task, s in table.items():
        low, high = s['interval']
        median = f'{s["success_after"]["p50"]:.1f}' if s['success_after']['p50'] is not None else '-'
        interval = f'{100 * low:.0f} .. {100 * high:.0f} %'
        print(f'{task:14s}{s["successes"]:5d}/{s["episodes"]:<4d}{interval:>18s}{median:>10s}')
    for task, s in table.items():
        for f in s['failures']:
            print(f'  {task} seed {f["seed"]}: {f["outcome"]}, {f["reason"]}')
