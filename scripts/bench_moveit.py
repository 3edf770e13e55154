#!/usr/bin/env python3
"""Measure backend moveit: from a chunk to the trajectory that is checked, against the stand-in move_group.

    python scripts/bench_moveit.py --chunks 200 --steps 16

Needs moveit_msgs. The stand-in (test/ros/standin_move_group.py) runs in a process of its own and really checks every
state for collision, so the numbers are those of the calls, the inverse kinematics and a small scene; a real move_group
has its own speed. ``--check cartesian`` measures one call for the whole way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

import rclpy

from instructvla_ros import config, resources
from instructvla_ros.control.clearance import Answer
from instructvla_ros.control.controller import Controller
from instructvla_ros.datatypes import ActionChunk, RobotState, VerdictAction, new_id
from instructvla_ros.nodes.moveit_backend import MoveItBackend
from instructvla_ros.settings import Control, Embodiment, MoveIt

STANDIN = Path(__file__).resolve().parent.parent / 'test' / 'ros' / 'standin_move_group.py'


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
            raise SystemExit(f'no answer: {refused or self.verdicts}')
        self.now += 10_000_000
        output = self.controller.tick(self.now, RobotState(self.now, self.home, np.zeros(7), 1.0))
        took = time.perf_counter() - begin
        if output.chunk_id != chunk.id:
            raise SystemExit(f'the chunk is not played: {self.verdicts[-1:] or [v.text for v in output.verdicts]}')
        return took


def main() -> None:
    """Run and print p50, p90, p99 in ms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--chunks', type=int, default=200, help='measured, after ten for warming up')
    parser.add_argument('--steps', type=int, default=16, help='of a chunk')
    parser.add_argument('--check', choices=('states', 'cartesian'), default='states', help='how move_group is asked')
    parser.add_argument('--json', action='store_true', help='print the numbers as JSON')
    arguments = parser.parse_args()
    standin = subprocess.Popen([sys.executable, str(STANDIN)], env=dict(os.environ))
    rclpy.init(args=[])
    try:
        moveit = MoveIt(check=arguments.check, timeout=2.0, startup_wait=30.0)
        bench = Bench(Control(backend='moveit', ramp_time=0.0, moveit=moveit))
        try:
            times = [1e3 * bench.measure(arguments.steps) for _ in range(10 + arguments.chunks)][10:]
        finally:
            bench.backend.close()
    finally:
        rclpy.shutdown()
        standin.terminate()
        standin.wait(timeout=10.0)
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    numbers = {'steps': arguments.steps, 'check': arguments.check, 'p50': p50, 'p90': p90, 'p99': p99}
    if arguments.json:
        print(json.dumps(numbers))
    else:
        print(f'{arguments.steps} steps, {arguments.check}: p50 {p50:.1f} ms, p90 {p90:.1f} ms, p99 {p99:.1f} ms')


if __name__ == '__main__':
    main()
