#!/usr/bin/env python3
"""Measure backend moveit: from a chunk to the trajectory that is checked, against the stand-in move_group.

    python scripts/bench_moveit.py --chunks 200 --steps 16

Needs moveit_msgs. The stand-in (test/ros/standin_move_group.py) runs in a process of its own and really checks every
state for collision, so the numbers are those of the calls, the inverse kinematics and a small scene; a real move_group
has its own speed. ``--check cartesian`` measures one call for the whole way. Exit code 0 when the median is within the
limit, 1 when not, 2 when it could not be measured, 3 when it did not end within ``--timeout``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from instructvla_ros import config, graph, resources
from instructvla_ros.control.clearance import Answer
from instructvla_ros.control.controller import Controller
from instructvla_ros.datatypes import ActionChunk, RobotState, VerdictAction, new_id
from instructvla_ros.errors import InstructVLAError, SetupError
from instructvla_ros.evaluation.time_limit import limited
from instructvla_ros.nodes.moveit_backend import MoveItBackend
from instructvla_ros.settings import Control, Embodiment, MoveIt

STANDIN = Path(__file__).resolve().parent.parent / 'test' / 'ros' / 'standin_move_group.py'
LIMIT = 20.0  # median [ms]
WARM_UP = 10  # chunks


class Bench:
    """A controller that is at home, and the time of each answer."""

    def __init__(self, control: Control) -> None:
        self.embodiment = config.load(Embodiment, resources.config_file('franka.yaml'))
        self.answered = threading.Event()
        self.answer: Answer | None = None
        self.backend = MoveItBackend(self.embodiment, control, self.on_answer)
        self.controller = Controller(self.embodiment, control, clearance=self.backend)
        self.verdicts: list[str] = []
        self.home = np.array(self.embodiment.home)
        self.pose = self.controller.backend.forward(self.home)

    def on_answer(self, answer: Answer) -> None:
        """Let the controller act on it, in the thread of the backend as in the node."""
        for verdict in self.controller.on_answer(answer, self.now):
            if verdict.action in (VerdictAction.REFUSED, VerdictAction.HELD):
                self.verdicts.append(verdict.text)
        self.answered.set()

    def measure(self, steps: int) -> float:
        """Time from a chunk to the first command that tracks it [s]."""
        rest = RobotState(time.time_ns(), self.home, np.zeros(7), 1.0)
        self.controller.enable(False)
        self.now = rest.stamp_ns
        for _ in range(3):
            self.now += 10_000_000
            self.controller.tick(self.now, RobotState(self.now, self.home, np.zeros(7), 1.0))
        self.controller.enable(True)
        self.now += 10_000_000
        self.controller.tick(self.now, RobotState(self.now, self.home, np.zeros(7), 1.0))
        deltas = np.zeros((steps, 7))
        deltas[:, 1], deltas[:, 2], deltas[:, 6] = 0.008, -0.004, 1.0
        chunk = ActionChunk(
            new_id('chunk'), self.now, self.now, 0.1, deltas, self.embodiment.base_frame, self.pose, policy='bench'
        )
        self.answered.clear()
        begin = time.perf_counter()
        refused = [v for v in self.controller.on_chunk(chunk, self.now) if v.action is VerdictAction.REFUSED]
        if refused or not self.answered.wait(5.0):
            raise SetupError(f'no answer within 5 s: {[v.text for v in refused] or self.verdicts}')
        self.now += 10_000_000
        output = self.controller.tick(self.now, RobotState(self.now, self.home, np.zeros(7), 1.0))
        took = time.perf_counter() - begin
        if output.chunk_id != chunk.id:
            raise SetupError(f'the chunk is not played: {self.verdicts[-1:] or [v.text for v in output.verdicts]}')
        return took


@contextmanager
def standin() -> Iterator[None]:
    """The stand-in move_group in a domain of its own.

    Raises:
        SetupError: a step inside failed because it had ended; with the end of what it said.
    """
    domain = graph.Domain()
    os.environ.update(ROS_DOMAIN_ID=str(domain.number), ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST')
    with tempfile.TemporaryFile('w+') as said:
        process = subprocess.Popen(
            [sys.executable, str(STANDIN)], stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            preexec_fn=graph.bind_to_parent(os.getpid()),
        )  # fmt: skip
        try:
            yield
        except InstructVLAError as err:
            if process.poll() is None:
                raise
            said.seek(0)
            raise SetupError(
                f'{err}. The stand-in had ended with {process.returncode}:\n{said.read()[-2000:]}'
            ) from None
        finally:
            process.terminate()
            try:
                process.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            domain.release()


def measure(chunks: int, steps: int, check: str, resolution: float) -> list[float]:
    """Times of chunks [ms], those for warming up left out.

    Raises:
        SetupError: moveit_msgs is not installed, or a chunk got no trajectory.
    """
    import rclpy

    with standin():
        rclpy.init(args=[])
        try:
            print('waiting for the stand-in', file=sys.stderr, flush=True)
            moveit = MoveIt(check=check, resolution=resolution, timeout=2.0, startup_wait=60.0)
            bench = Bench(Control(backend='moveit', ramp_time=0.0, moveit=moveit))
            print(f'{WARM_UP + chunks} chunks', file=sys.stderr, flush=True)
            try:
                return [1e3 * bench.measure(steps) for _ in range(WARM_UP + chunks)][WARM_UP:]
            finally:
                bench.backend.close()
        finally:
            rclpy.shutdown()


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--chunks', type=int, default=200, help=f'measured, after {WARM_UP} for warming up')
    parser.add_argument('--steps', type=int, default=16, help='of a chunk')
    parser.add_argument('--check', choices=('states', 'cartesian'), default='states', help='how move_group is asked')
    parser.add_argument(
        '--resolution', type=float, default=MoveIt().resolution, help='of --check states [rad]; 0: every state'
    )
    parser.add_argument('--limit', type=float, default=LIMIT, help='median that passes [ms]')
    parser.add_argument('--timeout', type=float, default=240.0, help='seconds after which it is given up')
    parser.add_argument('--json', action='store_true', help='print the numbers as JSON')
    return parser.parse_args(argv)


def main() -> int:
    """Run and print p50, p90, p99 in ms."""
    arguments = arguments_of()
    try:
        times = measure(arguments.chunks, arguments.steps, arguments.check, arguments.resolution)
    except InstructVLAError as err:
        print(f'error: {err}', file=sys.stderr)
        return 2
    p50, p90, p99 = np.percentile(times, (50, 90, 99)).tolist()
    numbers = {'steps': arguments.steps, 'check': arguments.check, 'p50': p50, 'p90': p90, 'p99': p99}
    if arguments.json:
        print(json.dumps(numbers))
    else:
        print(f'{arguments.steps} steps, {arguments.check}: p50 {p50:.1f} ms, p90 {p90:.1f} ms, p99 {p99:.1f} ms')
    return 0 if p50 <= arguments.limit else 1


if __name__ == '__main__':
    sys.exit(limited(main, arguments_of().timeout))
