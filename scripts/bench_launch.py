#!/usr/bin/env python3
"""Measure a launch: from the start of `ros2 launch ... franka.launch.py robot:=sim` to the first motion of the arm.

    python scripts/bench_launch.py --runs 5
    python scripts/bench_launch.py policy:=expert task:=stack        # launch arguments as they are

Needs the ros2 command and launch_ros. The instruction of the scene is sent as soon as the policy takes goals; motion is
the first joint velocity above the threshold in /joint_states after that. Times count from the start of the process and
hold every step before them. Exit code 0 when every run moved within the limit, 1 when one was later, 2 when one ended
or was given up, 3 when the script did not come to its end in time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from instructvla_ros import graph, resources
from instructvla_ros.errors import SetupError
from instructvla_ros.evaluation.time_limit import limited
from instructvla_ros.goals import Outcome

LIMIT = 30.0  # s
SETTLED = 0.3  # s: the arm of a simulator that has just started may still sag
STEPS = ('joint_states', 'action_server', 'accepted', 'sentence', 'chunk', 'command', 'motion')


class Stopwatch:
    """Listens to the graph that is being launched and sends the instruction.

    Attributes:
        times: name of :data:`STEPS` -> seconds since the start. instruction: that was sent.
    """

    def __init__(self, began: float, threshold: float, instruction: str) -> None:
        import rclpy
        from rclpy.action import ActionClient
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import JointState
        from trajectory_msgs.msg import JointTrajectory

        from instructvla_ros.action import ExecuteInstruction
        from instructvla_ros.msg import ActionChunk, Reasoning, SimState
        from instructvla_ros.nodes import qos

        self.times: dict[str, float] = {}
        self.moved = threading.Event()
        self.instruction = instruction
        self.outcome = ''
        self._began, self._threshold, self._goal = began, threshold, ExecuteInstruction.Goal
        self._context = rclpy.Context()
        self._context.init(args=[])
        self._node = rclpy.create_node('bench_launch', namespace='/instructvla', context=self._context)
        node = self._node
        topic = '/fr3_arm_controller/joint_trajectory'
        node.create_subscription(JointState, '/joint_states', self._on_joints, qos.SENSOR)
        node.create_subscription(SimState, '/sim/state', self._on_scene, qos.SENSOR)
        node.create_subscription(JointTrajectory, topic, lambda _: self._mark('command', 'chunk'), qos.COMMAND)
        node.create_subscription(ActionChunk, 'action_chunk', lambda _: self._mark('chunk', 'accepted'), qos.CHUNK)
        node.create_subscription(Reasoning, 'reasoning', lambda _: self._mark('sentence', 'accepted'), qos.REASONING)
        self._client = ActionClient(node, ExecuteInstruction, 'execute')
        self._timer = node.create_timer(0.05, self._look)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(timeout=2.0)
        self._node.destroy_node()
        self._context.try_shutdown()

    def _mark(self, name: str, after: str = '') -> None:
        if name not in self.times and (not after or after in self.times):
            self.times[name] = time.monotonic() - self._began

    def _on_joints(self, message: Any) -> None:
        self._mark('joint_states')
        begun = self.times.get('accepted')
        now = time.monotonic() - self._began
        if begun is None or now < self.times['joint_states'] + SETTLED or self.moved.is_set():
            return
        if message.velocity and max(abs(v) for v in message.velocity) > self._threshold:
            self._mark('motion')
            self.moved.set()

    def _on_scene(self, message: Any) -> None:
        self.instruction = self.instruction or message.instruction

    def _look(self) -> None:
        if self._client.server_is_ready() and self.instruction:
            self._mark('action_server')
            self._timer.cancel()
            sent = self._client.send_goal_async(self._goal(instruction=self.instruction, max_duration=60.0))
            sent.add_done_callback(self._answered)

    def _answered(self, future: Any) -> None:
        goal = future.result()
        if goal.accepted:
            self._mark('accepted')
            goal.get_result_async().add_done_callback(self._ended)
        else:
            self.outcome = 'the goal was rejected'

    def _ended(self, future: Any) -> None:
        result = future.result().result
        self.outcome = f'the instruction ended before the arm moved: {Outcome(result.outcome).name} {result.reason}'


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Launch once; times by step [s].

    Raises:
        SetupError: it ended, or did not move in time; with the end of its output.
    """
    file = resources.share_directory() / 'launch' / 'franka.launch.py'
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / 'launch.txt'
        with log.open('w') as out:
            began = time.monotonic()
            process = subprocess.Popen(
                ['ros2', 'launch', str(file), 'robot:=sim', *arguments.launch], stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, 'ROS_LOG_DIR': folder}, start_new_session=True,
                # SIGTERM: should this script be killed, launch still ends its nodes.
                preexec_fn=graph.bind_to_parent(os.getpid(), signal.SIGTERM),
            )  # fmt: skip
        watch = None
        try:
            watch = Stopwatch(began, arguments.threshold, arguments.instruction)
            while not watch.moved.wait(0.05):
                late = time.monotonic() - began > arguments.timeout
                if process.poll() is not None or late or watch.outcome:
                    why = watch.outcome or ('no motion in time' if late else 'the launch ended')
                    text = log.read_text(encoding='utf-8')[-3000:]
                    raise SetupError(f'{why}; reached {", ".join(watch.times) or "nothing"}\n{text}')
            return {name: round(watch.times[name], 2) for name in STEPS if name in watch.times}
        finally:
            if watch is not None:
                watch.close()
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a launch as Ctrl-C does, and wait."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=20.0)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def arguments_of() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('launch', nargs='*', help='launch arguments, name:=value')
    parser.add_argument('--runs', type=int, default=1)
    parser.add_argument('--instruction', default='', help='instead of the sentence of the scene')
    parser.add_argument('--threshold', type=float, default=0.05, help='joint velocity that counts as motion [rad/s]')
    parser.add_argument('--limit', type=float, default=LIMIT, help='seconds to the first motion that pass')
    parser.add_argument('--timeout', type=float, default=120.0, help='seconds after which a run is given up')
    parser.add_argument('--json', action='store_true', help='print the runs as one JSON object')
    return parser.parse_args()


def main() -> int:
    """Measure, print, judge."""
    arguments = arguments_of()
    domain = None
    runs = []
    try:
        if shutil.which('ros2') is None:
            raise SetupError('the ros2 command is not here: source a ROS 2 installation')
        if 'ROS_DOMAIN_ID' not in os.environ:
            domain = graph.Domain()
            os.environ['ROS_DOMAIN_ID'] = str(domain.number)
        os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(resources.transport_profile()))
        for _ in range(arguments.runs):
            runs.append(measure(arguments))
            if not arguments.json:
                print('  '.join(f'{name} {seconds:.1f} s' for name, seconds in runs[-1].items()), flush=True)
    except SetupError as err:
        print(f'error: {err}', file=sys.stderr)
        return 2
    finally:
        if domain is not None:
            domain.release()
    motion = [run['motion'] for run in runs]
    slowest = max(motion)
    if arguments.json:
        print(json.dumps({'runs': runs, 'median': statistics.median(motion), 'slowest': slowest}))
    else:
        print(f'first motion after {statistics.median(motion):.1f} s (median of {len(runs)}), {slowest:.1f} s at most')
    return 0 if slowest <= arguments.limit else 1


if __name__ == '__main__':
    given = arguments_of()
    sys.exit(limited(main, given.runs * (given.timeout + 40.0) + 20.0))  # a launch may take 20 s to end
