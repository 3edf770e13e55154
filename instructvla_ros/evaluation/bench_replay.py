"""Speed, memory and repeatability of the direct replay: two 640x480 cameras at 15 Hz, joints at 100 Hz, tiny model.

The bag is made up (a wandering arm, drawn pictures), and so are the weights unless a checkpoint is named. Both cost
what real ones cost.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import config, imaging, resources
from ..data.rebag import BagWriter
from ..settings import Embodiment
from .replay import ReplayOptions
from .replay_asking import TOGETHER
from .replay_session import Outcome, Replayer, deployment, open_recording

START_NS = 1_700_000_000_000_000_000
WORDS = 'put the red cube in the bowl'
TARGET = 8.0
"""Seconds of recording per second that a user should get on two cores."""


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
    from ..model.checkpoint import create, save
    from ..model.config import preset
    from ..model.tokenizer import train_tokenizer

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


def measure_replay(
    seconds: float = 60.0,
    memory_seconds: float = 600.0,
    repeats: int = 3,
    *,
    raw: bool = False,
    safety: bool = True,
    checkpoint: str = '',
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Replay a made-up bag again and again, then a long one once.

    Args:
        seconds: length of the bag for the speed. memory_seconds: of the one for the memory; 0: leave it out.
        raw: raw pictures instead of JPEG. safety: with the controller in dry-run. checkpoint: instead of random
        weights.

    Returns:
        ``speed``: times_real_time (median), all, one_by_one (median of runs in between that ask about each observation
        alone), target, chunks, per_chunk_ms by stage; ``repeatable``: whether every run decided the same bit for bit;
        ``memory``: see :meth:`Memory.growth`, and seconds, wall.
    """
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix='bench-replay-') as place:
        folder = Path(place)
        options = ReplayOptions(judge=safety)
        progress('replay: weights and bag')
        plan = deployment('', checkpoint or str(make_checkpoint(folder)), options=options, overrides={'device': 'cpu'})
        replayer = Replayer(plan)

        def replay(bag: Path, together: int = TOGETHER) -> tuple[Outcome, float]:
            replayer.plan = replace(plan, options=replace(options, together=together))
            with open_recording(bag, plan.embodiment) as recording:
                began = time.perf_counter()
                outcome = replayer.run(recording)
                return outcome, time.perf_counter() - began

        make_bag(folder / 'speed', seconds, raw)
        progress('replay: once to warm up')
        first = digest(replay(folder / 'speed')[0])
        runs, alone = [], []
        for k in range(repeats):
            progress(f'replay: {seconds:g} s of bag, {k + 1} of {repeats}')
            runs.append(replay(folder / 'speed'))
            progress(f'replay: {seconds:g} s of bag one by one, {k + 1} of {repeats}')
            alone.append(seconds / replay(folder / 'speed', 1)[1])
        speeds = [seconds / wall for _, wall in runs]
        latency = runs[-1][0].metrics['latency']
        result['speed'] = {
            'times_real_time': statistics.median(speeds),
            'all': speeds,
            'one_by_one': statistics.median(alone),
            'target': TARGET,
            'chunks': len(runs[-1][0].trace.chunks),
            'per_chunk_ms': {k: 1e3 * (latency[k]['p50'] or 0.0) for k in latency},
        }
        result['repeatable'] = {digest(outcome) for outcome, _ in runs} == {first}
        if memory_seconds > 0:
            progress(f'replay: memory over {memory_seconds:g} s of bag')
            make_bag(folder / 'memory', memory_seconds, raw)
            with Memory() as memory:
                _, wall = replay(folder / 'memory')
            result['memory'] = {**memory.growth(), 'seconds': memory_seconds, 'wall': wall}
    return result
