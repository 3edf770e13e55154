#!/usr/bin/env python3
"""Success rate of the scripted expert through the real control path, in process, without ROS and without rendering.

    python scripts/measure_expert.py --seeds 100
    python scripts/measure_expert.py --seeds 100 --latency 0.15 --tasks pick put
    python scripts/measure_expert.py --policy random --seeds 10 --out runs/random.json   # has to score 0

Interrupt it at any time; the same command goes on where it stopped. Results are in --out (JSON), one row per episode.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

SAVE_EVERY = 5.0
_WORKER: dict[str, Any] = {}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--tasks', nargs='*', default=[], metavar='TASK', help='default: all')
    add('--seeds', type=int, default=100, help='episodes per task')
    add('--start', type=int, default=0, help='first seed')
    add('--policy', default='expert', choices=('expert', 'hold', 'random'))
    add('--latency', type=float, default=0.0, help='from observation to chunk [s]')
    add('--noise', type=float, default=0.0, help='standard deviation of the translation noise per step [m]')
    add('--rotation-noise', type=float, default=0.0, help='the same for the rotation [rad]')
    add('--drop', type=float, default=0.0, help='probability that a chunk is lost')
    add('--chunk-rate', type=float, help='chunks per second [Hz]; default: config/policy.yaml')
    add('--step-period', type=float, help='[s]; default: config/policy.yaml')
    add('--horizon', type=int, help='steps per chunk; default: config/policy.yaml')
    add('--embodiment', default='franka.yaml', help='file in config/')
    add('--workers', type=int, default=max(1, (os.cpu_count() or 2) // 2))
    add('--out', type=Path, default=Path('runs/expert.json'))
    return parser.parse_args(argv)


def setting(args: argparse.Namespace) -> dict[str, Any]:
    """What decides a result besides task and seed; rows of another setting are not mixed in."""
    names = (
        'policy',
        'latency',
        'noise',
        'rotation_noise',
        'drop',
        'chunk_rate',
        'step_period',
        'horizon',
        'embodiment',
    )
    return {name: getattr(args, name) for name in names}


def prepare(conditions: dict[str, Any]) -> None:
    """Load everything once per worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    from instructvla_ros import config, resources
    from instructvla_ros import settings as s
    from instructvla_ros.control.kinematics import Kinematics
    from instructvla_ros.sim.world import World

    given = {k: conditions[k] for k in ('chunk_rate', 'step_period', 'horizon') if conditions[k] is not None}
    name = conditions['policy']
    policy = config.load(
        s.PolicySettings,
        resources.config_file('policy.yaml'),
        {**given, 'policy': 'hold' if name == 'random' else name},
    )
    embodiment = config.load(s.Embodiment, resources.config_file(conditions['embodiment']))
    sim = config.load(s.Sim, resources.config_file('sim.yaml'))
    control = config.load(s.Control, resources.config_file('controller.yaml'))
    _WORKER.update(
        conditions=conditions,
        sim=sim,
        embodiment=embodiment,
        control=control,
        policy_settings=policy,
        world=World(sim, embodiment, render=False),
        kinematics=Kinematics(embodiment),
    )


def episode(job: tuple[str, int]) -> dict[str, Any]:
    """Run one episode in a worker; the row for the file."""
    from instructvla_ros.evaluation.baseline import RandomPolicy
    from instructvla_ros.evaluation.rollout import Disturbance, run_episode
    from instructvla_ros.policy import make_policy
    from instructvla_ros.sim.tasks import make_episode

    task, seed = job
    w, c = _WORKER, _WORKER['conditions']
    begin = time.perf_counter()
    settings = w['policy_settings']
    result = run_episode(
        make_episode(task, seed, randomization=w['sim'].randomization),
        RandomPolicy(settings, seed) if c['policy'] == 'random' else make_policy(settings, w['embodiment']),
        views=False,
        sim=w['sim'],
        embodiment=w['embodiment'],
        control=w['control'],
        policy_settings=settings,
        world=w['world'],
        kinematics=w['kinematics'],
        disturbance=Disturbance(c['latency'], c['noise'], c['rotation_noise'], c['drop'], seed),
    )
    fields = (
        'task',
        'seed',
        'instruction',
        'success',
        'done',
        'best_progress',
        'time',
        'chunks',
        'verdicts',
        'table_touches',
        'path_length',
        'failure',
        'detail',
    )
    row = {name: getattr(result, name) for name in fields}
    return {**row, 'wall': time.perf_counter() - begin}


def load(path: Path, conditions: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same conditions.

    Raises:
        SystemExit: the file belongs to other conditions or is damaged.
    """
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
        same, rows = data['conditions'] == conditions, list(data['episodes'])
    except (ValueError, KeyError, TypeError) as err:
        raise SystemExit(f'{path} is not a result of this script ({err}); remove it or choose another --out') from err
    if not same:
        raise SystemExit(f'{path} was measured under other conditions {data["conditions"]}; choose another --out')
    return rows


def save(path: Path, conditions: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix('.part')
    draft.write_text(json.dumps({'conditions': conditions, 'episodes': rows}, indent=1) + '\n', encoding='utf-8')
    draft.replace(path)


def table(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    """Text table: successes, 95 % Wilson interval, time, path, failures."""
    import numpy as np

    from instructvla_ros.evaluation.scores import wilson

    lines = [
        f'{"task":<13} {"success":>9}  {"95 % interval":<14} {"time s p50 p90":>15} {"path m":>7} {"touches":>7}'
        '  failures'
    ]
    for task in tasks:
        mine = [r for r in rows if r['task'] == task]
        if not mine:
            continue
        good = [r for r in mine if r['success']]
        low, high = wilson(len(good), len(mine))
        times = [r['time'] for r in good] or [float('nan')]
        p50, p90 = np.percentile(times, (50, 90))
        failures = Counter(r['failure'] for r in mine if not r['success'])
        seeds = {k: [r['seed'] for r in mine if r['failure'] == k][:6] for k in failures}
        lines.append(
            f'{task:<13} {len(good):>4}/{len(mine):<4}  {100 * low:5.1f}-{100 * high:5.1f} % '
            f'{p50:>8.1f} {p90:>6.1f} {np.median([r["path_length"] for r in mine]):>7.2f} '
            f'{sum(r["table_touches"] for r in mine):>7}  '
            + ', '.join(f'{k} {n} (seeds {", ".join(map(str, seeds[k]))})' for k, n in failures.most_common())
        )
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure what is still missing, print the table; 1 when interrupted."""
    args = arguments(argv)
    from tqdm import tqdm

    from instructvla_ros.errors import suggest
    from instructvla_ros.sim.tasks import TASKS

    tasks = args.tasks or list(TASKS)
    for task in tasks:
        if task not in TASKS:
            raise SystemExit(f'unknown task {task!r}.{suggest(task, TASKS)}')
    conditions = setting(args)
    rows = load(args.out, conditions)
    have = {(r['task'], r['seed']) for r in rows}
    jobs = [(t, s) for s in range(args.start, args.start + args.seeds) for t in tasks if (t, s) not in have]
    interrupted = False
    # A plain `kill` or a time limit ends it as Ctrl-C does: results saved, workers gone.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if jobs:
        context = multiprocessing.get_context('spawn')
        with context.Pool(min(args.workers, len(jobs)), prepare, (conditions,)) as pool:
            bar = tqdm(total=len(jobs), unit='episode', disable=not sys.stderr.isatty())
            saved = time.monotonic()
            try:
                for row in pool.imap_unordered(episode, jobs):
                    rows.append(row)
                    bar.update()
                    if time.monotonic() - saved > SAVE_EVERY:
                        save(args.out, conditions, rows)
                        saved = time.monotonic()
            except KeyboardInterrupt:
                for number in (signal.SIGINT, signal.SIGTERM):  # once is enough: what follows has to finish
                    signal.signal(number, signal.SIG_IGN)
                interrupted = True
                pool.terminate()
            finally:
                bar.close()
                rows.sort(key=lambda r: (r['task'], r['seed']))
                save(args.out, conditions, rows)
    wanted = [r for r in rows if r['task'] in tasks and args.start <= r['seed'] < args.start + args.seeds]
    print(table(wanted, tasks))
    print(f'{args.out}{": interrupted, the same command goes on" if interrupted else ""}')
    return 1 if interrupted else 0


if __name__ == '__main__':
    raise SystemExit(main())
