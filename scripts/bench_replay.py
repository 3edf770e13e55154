#!/usr/bin/env python3
"""Speed, memory and repeatability of the direct replay: two 640x480 cameras at 15 Hz, joints at 100 Hz, tiny model.

    python scripts/bench_replay.py                       # 60 s bag, then memory over a 600 s bag
    python scripts/bench_replay.py --memory-seconds 0    # speed and repeatability only
    OMP_NUM_THREADS=2 python scripts/bench_replay.py --repeats 5 --json

The bag is made up (a wandering arm, drawn pictures); the weights are random. Both cost what real ones cost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from instructvla_ros import config, imaging, resources
from instructvla_ros.data.rebag import BagWriter
from instructvla_ros.evaluation.replay import ReplayOptions
from instructvla_ros.evaluation.replay_session import Outcome, Replayer, deployment, open_recording
from instructvla_ros.settings import Embodiment

START_NS = 1_700_000_000_000_000_000
WORDS = 'put the red cube in the bowl'
TARGET = 8.0


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=60.0, help='length of the bag for the speed')
    parser.add_argument('--memory-seconds', type=float, default=600.0, help='the same for the memory; 0: leave out')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--raw', action='store_true', help='raw pictures instead of JPEG')
    parser.add_argument('--no-safety', action='store_true', help='without the controller in dry-run')
    parser.add_argument('--checkpoint', default='', help='instead of random weights of the tiny preset')
    parser.add_argument('--json', action='store_true')
    return parser.parse_args()


def make_bag(path: Path, seconds: float, raw: bool) -> None:
    """A bag of the usual topics."""
    robot = config.load(Embodiment, resources.config_file('franka.yaml'))
    y, x = np.mgrid[0:480, 0:640].astype(np.float32)
    rng = np.random.default_rng(0)
    pictures = []
    for k in range(15):
        waves = [128 + 70 * np.sin(x / (30 + 9 * c) + y / 55 + 0.4 * k) for c in range(3)]
        noisy = np.stack(waves, axis=-1) + 12 * rng.standard_normal((480, 640, 3))
        pictures.append(np.clip(noisy, 0, 255).astype(np.uint8))
    encoded = [imaging.encode_jpeg(p, 90) for p in pictures]
    names = (*robot.arm_joints, *robot.gripper.joints)
    with BagWriter(path) as bag:
        bag.text('/instructvla/current_instruction', START_NS, WORDS)
        events = [(k / 100.0, 'joints', k) for k in range(int(seconds * 100))]
        events += [(k / 15.0, 'pictures', k) for k in range(int(seconds * 15))]
        for t, what, k in sorted(events):
            stamp = START_NS + round(t * 1e9)
            if what == 'joints':
                q = np.asarray(robot.home) + 0.2 * np.sin(0.5 * t + np.arange(7)) * min(1.0, t / 3.0)
                travel = 0.04 if int(t / 5) % 2 == 0 else 0.01
                bag.joints(robot.topics.joint_states, stamp, names, [*q, travel, travel], np.zeros(9))
                continue
            for view in robot.views.values():
                if raw:
                    bag.image(view.topic, stamp, pictures[k % 15], view.frame_id)
                else:
                    bag.compressed(f'{view.topic}/compressed', stamp, encoded[k % 15], view.frame_id)


def make_checkpoint(folder: Path) -> Path:
    """Random weights of the tiny preset with statistics of small steps."""
    from instructvla_ros.model.checkpoint import create, save
    from instructvla_ros.model.config import preset
    from instructvla_ros.model.tokenizer import train_tokenizer

    tiny = preset('tiny')
    texts = (WORDS, 'I will move above the red cube and close the gripper.', 'You are a helpful assistant.')
    train_tokenizer(texts, tiny.language.vocab_size, folder / 'tokenizer')
    action = {'q01': [-0.01] * 6 + [0.0], 'q99': [0.01] * 6 + [1.0], 'mask': [True] * 6 + [False]}
    proprio = {'q01': [-1.0] * 8, 'q99': [1.0] * 8}
    bundle = create(tiny, folder / 'tokenizer', {'made_up': {'action': action, 'proprio': proprio}}, seed=0)
    return save(bundle, folder / 'tiny')


class Memory:
    """Samples the resident memory of this process while a block runs [MB]."""

    def __enter__(self) -> Memory:
        self.samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            for line in Path('/proc/self/status').read_text().splitlines():
                if line.startswith('VmRSS:'):
                    self.samples.append(int(line.split()[1]) / 1024.0)

    def growth(self) -> dict[str, float]:
        """Median of the second and of the last tenth, and their difference; the first tenth is starting up."""
        n = max(1, len(self.samples) // 10)
        early, late = statistics.median(self.samples[n : 2 * n] or self.samples), statistics.median(self.samples[-n:])
        return {'early_mb': early, 'late_mb': late, 'growth_mb': late - early, 'peak_mb': max(self.samples)}


def digest(outcome: Outcome) -> str:
    """Hash of everything a replay decided."""
    h = hashlib.sha256()
    for row in outcome.trace.chunks:
        h.update(row.chunk.steps.tobytes() + row.refused.encode() + str(row.chunk.observation_stamp_ns).encode())
    h.update(json.dumps([s['text'] for s in outcome.trace.sentences]).encode())
    h.update(json.dumps(outcome.trace.verdicts, sort_keys=True).encode())
    return h.hexdigest()


def main() -> int:
    """Measure and print."""
    args = arguments()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix='bench-replay-') as place:
        folder = Path(place)
        checkpoint = args.checkpoint or str(make_checkpoint(folder))
        options = ReplayOptions(judge=not args.no_safety)
        plan = deployment('', checkpoint, options=options, overrides={'device': 'cpu'})
        replayer = Replayer(plan)

        def replay(bag: Path) -> tuple[Outcome, float]:
            with open_recording(bag, plan.embodiment) as recording:
                began = time.perf_counter()
                outcome = replayer.run(recording)
                return outcome, time.perf_counter() - began

        make_bag(folder / 'speed', args.seconds, args.raw)
        replay(folder / 'speed')
        runs = [replay(folder / 'speed') for _ in range(args.repeats)]
        speeds = [args.seconds / wall for _, wall in runs]
        digests = {digest(outcome) for outcome, _ in runs}
        latency = runs[-1][0].metrics['latency']
        result['speed'] = {
            'times_real_time': statistics.median(speeds),
            'all': speeds,
            'target': TARGET,
            'chunks': len(runs[-1][0].trace.chunks),
            'per_chunk_ms': {k: 1e3 * (latency[k]['p50'] or 0.0) for k in latency},
        }
        result['repeatable'] = len(digests) == 1
        if args.memory_seconds > 0:
            make_bag(folder / 'memory', args.memory_seconds, args.raw)
            with Memory() as memory:
                outcome, wall = replay(folder / 'memory')
            result['memory'] = {**memory.growth(), 'seconds': args.memory_seconds, 'wall': wall}
    if args.json:
        print(json.dumps(result))
    else:
        s = result['speed']
        stages = ', '.join(f'{k} {v:.1f} ms' for k, v in s['per_chunk_ms'].items())
        print(f'speed       {s["times_real_time"]:.1f} x real time (target {TARGET:.0f}), {s["chunks"]} chunks')
        print(f'per chunk   {stages}')
        print(f'repeatable  {"bit for bit" if result["repeatable"] else "NO"} over {args.repeats} runs')
        if 'memory' in result:
            m = result['memory']
            print(f'memory      {m["early_mb"]:.0f} -> {m["late_mb"]:.0f} MB over {m["seconds"]:.0f} s of bag')
    return 0 if result['repeatable'] else 1


if __name__ == '__main__':
    sys.exit(main())
