#!/usr/bin/env python3
"""Run demo episodes for a long time and watch the processes: memory, stops, success.

    python scripts/soak.py --minutes 30 --out runs/soak

Every few episodes the arm is stopped in the middle of its motion and has to stay where it is until the latch is reset.
Writes soak.json and soak.png into the folder. Exit code 0 only when memory stayed flat and no stop was missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from instructvla_ros.commands._progress import Progress
from instructvla_ros.evaluation import machine, runlog, scores
from instructvla_ros.graph_session import EpisodeRequest, GraphOptions, Session, new_folder

WARM_UP = 0.2  # share of the time that caches, thread stacks and allocators get to settle
FLAT = 0.05  # growth of the resident memory that counts as flat
REST = 1.0  # longest time from a stop to an arm at rest [s]


def resident_mb(pid: int) -> float:
    """Resident memory of a process [MB]; NaN when it has gone."""
    try:
        for line in Path(f'/proc/{pid}/status').read_text().splitlines():
            if line.startswith('VmRSS:'):
                return int(line.split()[1]) / 1024.0
    except OSError:
        pass
    return float('nan')


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used [s]; NaN when it has gone."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    except OSError:
        return float('nan')
    return (int(fields[11]) + int(fields[12])) / 100.0


def growth(memory: list[float]) -> float:
    """Growth of the memory from after the warm-up to the end, as a share."""
    values = np.array([m for m in memory if np.isfinite(m)])
    if len(values) < 10:
        return float('nan')
    begin = int(len(values) * WARM_UP)
    width = max(1, len(values) // 10)
    return float(np.median(values[-width:]) / np.median(values[begin : begin + width]) - 1.0)


class Watch(threading.Thread):
    """Samples memory and processor time of the graph's processes."""

    def __init__(self, pids: dict[str, int], period: float):
        super().__init__(daemon=True)
        self.pids, self.period = pids, period
        self.time: list[float] = []
        self.memory: dict[str, list[float]] = {name: [] for name in pids}
        self.cpu: dict[str, list[float]] = {name: [] for name in pids}
        self.over = threading.Event()

    def run(self) -> None:
        """Sample until :attr:`over`."""
        began = time.monotonic()
        while not self.over.is_set():
            self.time.append(time.monotonic() - began)
            for name, pid in self.pids.items():
                self.memory[name].append(resident_mb(pid))
                self.cpu[name].append(cpu_seconds(pid))
            self.over.wait(self.period)


def summarize(rows: list[dict[str, Any]], watch: Watch) -> dict[str, Any]:
    """Numbers of the whole run."""
    drills = [r['drill'] for r in rows if 'drill' in r]
    missed = [d for d in drills if d['latched'] is None or d['rest'] is None or d['rest'] > REST]
    elapsed = watch.time[-1] - watch.time[0] if len(watch.time) > 1 else float('nan')
    return {
        'minutes': elapsed / 60.0,
        'tasks': scores.by_task([r for r in rows if 'drill' not in r]),
        'stops': {
            'asked': len(drills),
            'missed': len(missed),
            'rest': scores.percentiles(_numbers(drills, 'rest')),
            'latched': scores.percentiles(_numbers(drills, 'latched')),
        },
        'memory': {n: {'growth': growth(m), 'first_mb': m[0], 'last_mb': m[-1]} for n, m in watch.memory.items()},
        'cpu_cores': {n: (c[-1] - c[0]) / elapsed for n, c in watch.cpu.items() if len(c) > 1},
        'machine': machine.facts(),
        'versions': machine.versions(),
    }


def _numbers(drills: list[dict[str, Any]], name: str) -> list[float]:
    return [float('nan') if d[name] is None else d[name] for d in drills]


def draw(file: Path, watch: Watch) -> None:
    """Memory of every process over time."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.2), layout='constrained')
    for name, values in watch.memory.items():
        axes.plot(np.array(watch.time) / 60.0, values, label=f'{name} ({100 * growth(values):+.1f} %)')
    axes.set(xlabel='minutes', ylabel='resident memory [MB]', ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=2)
    figure.savefig(file, dpi=130)


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=30.0)
    parser.add_argument(
        '--task', action='append', default=[], help='several are taken in turn (default: pick, put, stack)'
    )
    parser.add_argument('--policy', default='expert')
    parser.add_argument('--stop-every', type=int, default=5, help='episodes between two stop drills; 0: none')
    parser.add_argument('--period', type=float, default=2.0, help='seconds between two samples')
    parser.add_argument('--out', default='')
    arguments = parser.parse_args()
    folder = new_folder(arguments.out)
    tasks = arguments.task or ['pick', 'put', 'stack']
    # An episode takes at least three seconds: more of them than can be run.
    count = int(arguments.minutes * 20) + 10
    # Shifted from round to round, so that the stop drills meet every task.
    requests = [EpisodeRequest(tasks[(k + k // len(tasks)) % len(tasks)], k) for k in range(count)]
    options = GraphOptions(policy=arguments.policy, parameters={'episode_node': {'stop_every': arguments.stop_every}})
    deadline = time.monotonic() + arguments.minutes * 60.0
    with Progress() as progress, Session(requests, folder, options) as running:
        watch = Watch(
            {name: running.graph.pid(name) for name in ('sim_node', 'controller_node', 'policy_node', 'episode_node')},
            arguments.period,
        )
        for event in running.events():
            progress.update(event)
            if event['event'] == 'ready':
                watch.start()
            if event['event'] == 'result' and time.monotonic() > deadline:
                break
        watch.over.set()
    summary = summarize(running.rows, watch)
    runlog.write_json(folder / 'soak.json', {**summary, 'time_s': watch.time, 'memory_mb': watch.memory})
    draw(folder / 'soak.png', watch)
    print(json.dumps(runlog.plain({k: summary[k] for k in ('minutes', 'stops', 'memory', 'cpu_cores')}), indent=1))
    for task, s in summary['tasks'].items():
        print(f'{task}: {s["successes"]} of {s["episodes"]} solved')
    print(f'results: {folder}')
    flat = all(not m['growth'] > FLAT for m in summary['memory'].values())
    return 0 if flat and not summary['stops']['missed'] else 1


if __name__ == '__main__':
    sys.exit(main())
