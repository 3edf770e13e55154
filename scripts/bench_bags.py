#!/usr/bin/env python3
"""Measure how fast bags become episodes, against real time: two 640x480 cameras at 15 Hz, joints at 100 Hz.

    python scripts/bench_bags.py --seconds 20 --storage mcap sqlite3 --pictures raw jpeg

Writes a bag of synthetic pictures (smooth, with some noise: JPEG cost as of a real scene), builds it with the
kinematics of the Franka, and prints seconds of recording per second of work, on the clock and per second of processor
time (which other programs on the machine disturb less); the median of the repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from instructvla_ros import config, resources
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.data.align import BuildOptions, read_timeline
from instructvla_ros.data.bags import open_bag
from instructvla_ros.data.build import Report, build_episodes
from instructvla_ros.data.episodes import Frames, Writer
from instructvla_ros.data.rebag import BagWriter
from instructvla_ros.settings import Embodiment, View

T0 = 1_700_000_000_000_000_000


def scene(rng: np.random.Generator) -> np.ndarray:
    """(480, 640, 3) uint8: soft shapes and sensor noise."""
    y, x = np.mgrid[0:480, 0:640] / 100.0
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0.3, 3.0, (3, 3))]
    noise = rng.normal(0.0, 3.0, (480, 640, 3))
    return np.clip(128 + 90 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def write(path: Path, robot: Embodiment, seconds: float, storage: str, compression: str, jpeg: bool) -> None:
    """One recording with every message where a camera and a driver would put it."""
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(8)]
    encoded = [Frames.encode([s], 90).encoded(0) for s in scenes] if jpeg else []
    names = (*robot.arm_joints, *robot.gripper.joints)
    events = [(k / 15.0 + 0.004 * v, view.topic, k) for v, view in enumerate(robot.views.values())
              for k in range(int(15 * seconds))]  # fmt: skip
    events += [(k / 100.0 - 0.02, '', k) for k in range(int(100 * (seconds + 0.2)))]
    with BagWriter(path, storage, compression) as bag:
        bag.mark(T0 - 10**7, 'start', 'put the red cube in the bowl')
        for t, topic, k in sorted(events):
            stamp = T0 + round(t * 1e9)
            if not topic:
                q = np.array(robot.home) + 0.2 * np.sin(0.5 * t)
                bag.joints(robot.topics.joint_states, stamp, names, [*q, 0.04, 0.04], [0.0] * len(names))
            elif jpeg:
                bag.compressed(topic, stamp, encoded[k % 8])
            else:
                bag.image(topic, stamp, scenes[k % 8])
        bag.mark(T0 + round(seconds * 1e9), 'success')


def measure(path: Path, out: Path, robot: Embodiment, options: BuildOptions) -> dict[str, float]:
    """Seconds of each part for one bag."""
    forward = Kinematics(robot).forward
    began, worked = time.perf_counter(), time.process_time()
    with open_bag(path) as bag:
        opened = time.perf_counter()
        read_timeline(bag, robot, options)
        scanned, worked_scan = time.perf_counter(), time.process_time()
        report, writer, frames = Report(path.name), None, 0
        made = build_episodes(bag, robot, forward, options, prefix='bench', report=report)
        for episode, meta in made:
            writer = writer or Writer(out, meta)
            writer.add(episode)
            frames += len(episode)
        done, cpu = time.perf_counter(), time.process_time() - worked_scan
        length = bag.duration
    total = (opened - began) + (done - scanned)
    return {
        'length': length, 'open': opened - began, 'first_pass': scanned - opened, 'build': total, 'frames': frames,
        'cpu': cpu, 'first_pass_cpu': worked_scan - worked,
    }  # fmt: skip


def main() -> None:
    """Print a table and, with --json, the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=20.0, help='length of the recording')
    parser.add_argument('--repeat', type=int, default=3)
    parser.add_argument('--storage', nargs='+', default=['mcap', 'sqlite3'])
    parser.add_argument('--pictures', nargs='+', default=['raw', 'jpeg'])
    parser.add_argument('--compression', default='', help="'', chunk or message")
    parser.add_argument('--step-period', type=float, default=0.1)
    parser.add_argument('--quality', type=int, default=95)
    parser.add_argument('--json', action='store_true')
    arguments = parser.parse_args()
    base = config.load(Embodiment, resources.config_file('franka.yaml'))
    options = BuildOptions(step_period=arguments.step_period, quality=arguments.quality)
    rows = []
    for storage in arguments.storage:
        for pictures in arguments.pictures:
            jpeg = pictures == 'jpeg'
            views = {n: View(topic=v.topic + ('/compressed' if jpeg else '')) for n, v in base.views.items()}
            robot = config.replace(base, views=views)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / 'bag'
                write(path, robot, arguments.seconds, storage, arguments.compression, jpeg)
                size = sum(f.stat().st_size for f in path.iterdir()) / 1e6
                runs = [measure(path, Path(folder) / f'out{k}', robot, options) for k in range(arguments.repeat)]
            median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rows.append({
                'storage': storage, 'pictures': pictures, 'compression': arguments.compression, 'megabytes': size,
                'times_real_time': median['length'] / median['build'],
                'times_real_time_per_core': median['length'] / median['cpu'], **median,
            })  # fmt: skip
    if arguments.json:
        print(json.dumps({'load': os.getloadavg()[0], 'cores': os.cpu_count(), 'rows': rows}))
        return
    print(f'{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, step period {arguments.step_period} s')
    heads = f'{"first pass":>12s}{"build":>9s}{"x real time":>13s}{"per core":>10s}'
    print(f'{"storage":9s}{"pictures":9s}{"MB":>8s}{"frames":>8s}{heads}')
    for row in rows:
        print(
            f'{row["storage"]:9s}{row["pictures"]:9s}{row["megabytes"]:8.0f}{row["frames"]:8.0f}'
            f'{row["first_pass"]:10.2f} s{row["build"]:7.2f} s{row["times_real_time"]:13.1f}'
            f'{row["times_real_time_per_core"]:10.1f}'
        )


if __name__ == '__main__':
    main()
