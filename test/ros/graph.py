"""The real graph under test: simulator, controller and policy as processes, and a witness that watches and disturbs.

Cameras and joint states reach controller and policy through the witness, which can cut each of them. The joint states
it judges motion by come straight from the simulator.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.action import ActionClient
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import SetBool, Trigger

from instructvla_ros import config, resources
from instructvla_ros.action import ExecuteInstruction
from instructvla_ros.graph import Graph, NodeSpec, node
from instructvla_ros.msg import ActionChunk, ControllerState, SimState
from instructvla_ros.nodes import qos
from instructvla_ros.settings import Embodiment
from instructvla_ros.srv import ResetWorld

EMBODIMENT = config.load(Embodiment, resources.config_file('franka.yaml'))
JOINT_STATES = EMBODIMENT.topics.joint_states
CAMERAS = {name: view.topic for name, view in EMBODIMENT.views.items()}
NODES = ('sim_node', 'controller_node', 'policy_node')
AT_REST = 0.02  # largest joint speed that counts as rest [rad/s]


def eventually(condition: Callable[[], Any], timeout: float = 10.0, what: str | Callable[[], str] = '') -> Any:
    """Value of ``condition`` as soon as it is true; fails the test after ``timeout`` [s], saying ``what`` then."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f'not within {timeout} s: {what() if callable(what) else what}')


@dataclass(frozen=True)
class Moment:
    """Largest joint speed [rad/s] and positions [rad] of one joint state, at its arrival [s, monotonic]."""

    at: float
    speed: float
    q: np.ndarray


class Witness(Node):
    """Hears everything, relays the sensors, and calls services. Every method may be called from the test's thread."""

    def __init__(self) -> None:
        super().__init__('witness', namespace='/instructvla')
        self.cut: set[str] = set()
        self.motion: deque[Moment] = deque(maxlen=6000)
        self.chunks: deque[tuple[float, ActionChunk]] = deque(maxlen=500)
        self.states: deque[tuple[float, ControllerState]] = deque(maxlen=6000)
        self.refusals: dict[str, set[str]] = {}
        self.heard: dict[str, float] = {}
        self.health: dict[str, tuple[float, str]] = {}
        self.scene: SimState | None = None
        self._order = [*EMBODIMENT.arm_joints]
        for topic in (*CAMERAS.values(), JOINT_STATES):
            self._relay(JointState if topic == JOINT_STATES else Image, topic)
        group = MutuallyExclusiveCallbackGroup()

        def listen(kind: Any, topic: str, callback: Callable[[Any], None], profile: Any) -> None:
            self.create_subscription(kind, topic, callback, profile, callback_group=group)

        listen(JointState, JOINT_STATES, self._on_joints, qos.SENSOR)
        listen(SimState, '/sim/state', lambda m: setattr(self, 'scene', m), qos.SENSOR)
        listen(ActionChunk, 'action_chunk', lambda m: self.chunks.append((time.monotonic(), m)), qos.CHUNK)
        listen(ControllerState, 'controller_state', self._on_state, qos.STATE)
        listen(DiagnosticArray, '/diagnostics', self._on_diagnostics, qos.EVENT)
        self.chunk_publisher = self.create_publisher(ActionChunk, 'action_chunk', qos.CHUNK_PUBLISHER)
        self.action = ActionClient(self, ExecuteInstruction, 'execute')
        self._callers: dict[str, Any] = {
            name: self.create_client(kind, name)
            for name, kind in (
                ('enable', SetBool), ('stop', Trigger), ('reset', Trigger), ('dry_run', SetBool),
                ('/sim/reset', ResetWorld),
            )
        }

    def _relay(self, kind: Any, topic: str) -> None:
        publisher = self.create_publisher(kind, f'/relay{topic}', qos.SENSOR_PUBLISHER)

        def forward(data: bytes) -> None:
            self.heard[topic] = time.monotonic()
            if topic not in self.cut:
                publisher.publish(data)

        self.create_subscription(kind, topic, forward, qos.SENSOR, raw=True)

    def _on_joints(self, message: JointState) -> None:
        where = [message.name.index(name) for name in self._order]
        speed = max(abs(message.velocity[k]) for k in where)
        self.motion.append(Moment(time.monotonic(), speed, np.array([message.position[k] for k in where])))

    def _on_state(self, message: ControllerState) -> None:
        self.states.append((time.monotonic(), message))
        for verdict in message.verdicts:
            if verdict.action == verdict.REFUSED:
                self.refusals.setdefault(verdict.chunk_id, set()).add(verdict.rule)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.health[status.name.rpartition('/')[2]] = (time.monotonic(), status.message)

    def call(self, name: str, timeout: float = 10.0, **fields: Any) -> Any:
        """Response of a service."""
        client = self._callers[name]
        assert client.wait_for_service(timeout_sec=timeout), f'no service {name}'
        future = client.call_async(client.srv_type.Request(**fields))
        eventually(future.done, timeout, f'answer of {name}')
        return future.result()

    @property
    def mode(self) -> int:
        """Mode of the newest controller state."""
        return int(self.states[-1][1].mode) if self.states else -1

    def fresh(self, since: float) -> bool:
        """Whether everybody has been heard after ``since``, and the policy node hears all its inputs."""
        topics = (*CAMERAS.values(), JOINT_STATES)
        at, text = self.health.get('policy_node', (0.0, ''))
        hears = at > since and 'waiting for' not in text and 'silent' not in text
        sent = bool(self.states) and self.states[-1][0] > since
        return hears and sent and all(self.heard.get(t, 0.0) > since for t in topics)

    def moving(self) -> bool:
        """The arm moves now."""
        return bool(self.motion) and self.motion[-1].speed > 0.1

    def rest_after(self, since: float, timeout: float = 4.0) -> float:
        """Seconds from ``since`` until the arm was at rest for good (watched for another 0.4 s)."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            moved = [m.at for m in list(self.motion) if m.at > since and m.speed > AT_REST]
            last = moved[-1] if moved else since
            if self.motion and self.motion[-1].at > last + 0.4:
                return last - since
            time.sleep(0.02)
        raise AssertionError(f'the arm still moves {timeout} s later, {self.motion[-1].speed:.3f} rad/s')

    def travel(self, since: float) -> float:
        """Largest joint displacement after ``since`` [rad]."""
        seen = [m.q for m in list(self.motion) if m.at >= since]
        return float(np.ptp(np.array(seen), axis=0).max()) if seen else 0.0


class Goal:
    """A goal that runs, and its result."""

    def __init__(self, witness: Witness, instruction: str, duration: float = 30.0) -> None:
        request = ExecuteInstruction.Goal(instruction=instruction, max_duration=duration)
        # A server that was killed still counts as there for a while, and one that has just started may answer before
        # DDS has matched its answers with us: then the answer is lost and the goal has to be sent again.
        for _ in range(4):
            assert witness.action.wait_for_server(timeout_sec=15.0), 'no action server'
            sent = witness.action.send_goal_async(request)
            deadline = time.monotonic() + 2.5
            while not sent.done() and time.monotonic() < deadline:
                time.sleep(0.005)
            if sent.done():
                break
        assert sent.done(), 'no goal response'
        self.handle = sent.result()
        assert self.handle.accepted
        self._result = self.handle.get_result_async()

    def state(self) -> str:
        """Whether it runs, or how it ended."""
        return f'ended as {self._result.result().result}' if self._result.done() else 'the goal runs'

    def cancel(self) -> Any:
        """Cancel and return the result."""
        self.handle.cancel_goal_async()
        return self.result()

    def result(self, timeout: float = 10.0) -> Any:
        """Result message, once there is one."""
        eventually(self._result.done, timeout, 'result of the goal')
        return self._result.result().result


class Cell:
    """Simulator, controller and policy with a witness between them. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        sim = yaml.safe_load(resources.config_file('sim.yaml').read_text(encoding='utf-8'))
        for camera in sim['cameras']:
            camera.update(width=160, height=120)  # two cores are shared with other tests
        file = folder / 'sim.yaml'
        file.write_text(yaml.safe_dump(sim), encoding='utf-8')
        relayed = ['--ros-args']
        for topic in (*CAMERAS.values(), JOINT_STATES):
            relayed += ['-r', f'{topic}:=/relay{topic}']
        relayed.append('--')
        policy = {'policy': 'expert', 'input_timeout': 1.5}
        self.graph = Graph(
            [
                node('sim_node', {'config': str(file), 'task': 'put', 'seed': 3}),
                NodeSpec('controller_node', 'instructvla_ros.nodes.controller_node', {}, relayed),
                NodeSpec('policy_node', 'instructvla_ros.nodes.policy_node', policy, relayed),
            ],
            folder / 'logs',
        )

    def __enter__(self) -> Cell:
        self.graph.__enter__()
        try:
            rclpy.init()
            self.witness = Witness()
            self._executor = SingleThreadedExecutor()
            self._executor.add_node(self.witness)
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if rclpy.ok():
                self._executor.shutdown(timeout_sec=2.0)
                self._thread.join(timeout=2.0)
                self.witness.destroy_node()
                rclpy.try_shutdown()
        finally:
            self.graph.stop()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except (ExternalShutdownException, InvalidHandle):
            pass  # the context ended first

    def revive(self, name: str) -> None:
        """Start a process again that was killed, and wait until everybody hears everybody."""
        since = time.monotonic() + 0.5  # later than what the killed one said last
        self.graph.restart(name)
        self.wait_ready(since)

    def wait_ready(self, since: float | None = None, patience: float = 40.0) -> None:
        """Wait until every process has been heard after ``since``; at most ``patience`` [s]."""
        start = time.monotonic() if since is None else since

        def ready() -> bool:
            self.graph.check()
            return self.witness.fresh(start)

        witness = self.witness
        eventually(
            ready,
            patience,
            lambda: f'graph since {start}; heard {witness.heard}, mode {witness.mode}, {witness.health}; '
            f'end of the log of the policy node:\n{self.graph.tail("policy_node")}',
        )
        assert self.witness.action.wait_for_server(timeout_sec=20.0), 'no action server'

    def kill(self, name: str) -> float:
        """SIGKILL a process; returns when [s, monotonic]."""
        os.kill(self.graph.pid(name), signal.SIGKILL)
        return time.monotonic()

    def start(self, moving: bool = True) -> Goal:
        """Fresh episode, controller on, goal sent; returns while the arm moves."""
        witness = self.witness
        witness.cut.clear()
        dead = [name for name in NODES if self.graph.exit_code(name) is not None]
        for name in dead:  # a test that failed half way must not fail the next
            self.revive(name)
        assert witness.call('enable', data=False).success
        answer = witness.call('/sim/reset', task='put', seed=3)
        assert answer.success, answer.message
        eventually(lambda: witness.scene and witness.scene.episode == answer.episode, 5.0, 'the new episode')
        time.sleep(0.1)
        witness.call('reset')
        self.enable()
        since = time.monotonic()
        goal = Goal(witness, answer.instruction)
        if moving:
            eventually(
                lambda: witness.moving() and witness.travel(since) > 0.05,
                10.0,
                lambda: f'motion; {goal.state()}, mode {witness.mode}, {len(witness.chunks)} chunks, '
                f'refused {witness.refusals}; heard {witness.heard}, {witness.health}; '
                f'end of the log of the policy node:\n'
                f'{self.graph.tail("policy_node")}',
            )
        return goal

    def enable(self) -> None:
        """Switch the controller on; it refuses until it has seen joint states."""
        eventually(lambda: self.witness.call('enable', data=True).success, 5.0, 'enable')
