"""Hand-made doubles for node tests: a robot that only publishes, and policies whose behaviour a test decides."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

import numpy as np
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool

from instructvla_ros import config, resources
from instructvla_ros.action import ExecuteInstruction
from instructvla_ros.datatypes import ActionChunk, Observation, Reasoning, ReasoningKind, RobotState, new_id
from instructvla_ros.msg import ActionChunk as ActionChunkMsg
from instructvla_ros.msg import ControllerState, SafetyVerdict
from instructvla_ros.msg import Reasoning as ReasoningMsg
from instructvla_ros.nodes import convert_image, convert_robot, qos
from instructvla_ros.policy import make_chunk
from instructvla_ros.settings import Embodiment

EMBODIMENT = config.load(Embodiment, resources.config_file('franka.yaml'))


def eventually(condition: Callable[[], Any], timeout: float = 20.0, what: str = '') -> Any:
    """Value of ``condition`` as soon as it is true; fails the test after ``timeout`` [s]."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f'not within {timeout} s: {what or condition}')


class Robot(Node):
    """Publishes two views, joint states and a controller state; a test silences or changes each of them."""

    def __init__(self, camera_rate: float = 20.0, with_controller: bool = True) -> None:
        super().__init__('robot_double', namespace='/instructvla')
        self.silent: set[str] = set()
        self.mode = ControllerState.HOLDING
        self.track = True
        self.dry_run = False
        self.dry_run_calls: list[bool] = []
        self.refuse_chunks = False
        self.gripper_command = 0.25
        self.chunks: list[ActionChunkMsg] = []
        self.arrivals: list[int] = []
        self.sentences: list[ReasoningMsg] = []
        self.frames = 0
        self._image = np.zeros((48, 64, 3), np.uint8)
        self.image_publishers = {
            name: self.create_publisher(Image, view.topic, qos.SENSOR_PUBLISHER)
            for name, view in EMBODIMENT.views.items()
        }
        self._joints = self.create_publisher(JointState, EMBODIMENT.topics.joint_states, qos.SENSOR_PUBLISHER)
        self.instruction = self.create_publisher(String, 'instruction', qos.EVENT)
        self.create_subscription(ActionChunkMsg, 'action_chunk', self._on_chunk, qos.CHUNK)
        self.create_subscription(ReasoningMsg, 'reasoning', self.sentences.append, qos.REASONING)
        self.create_timer(1.0 / camera_rate, self._send_images)
        self.create_timer(0.01, self._send_joints)
        if with_controller:
            self._state = self.create_publisher(ControllerState, 'controller_state', qos.STATE)
            self.create_service(SetBool, 'dry_run', self._on_dry_run)
            self.create_timer(0.02, self._send_state)
        self.client = ActionClient(self, ExecuteInstruction, 'execute')

    def now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _on_chunk(self, message: ActionChunkMsg) -> None:
        self.arrivals.append(self.now_ns())
        self.chunks.append(message)

    def _on_dry_run(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.dry_run = request.data
        self.dry_run_calls.append(request.data)
        response.success = True
        return response

    def _send_images(self) -> None:
        self.frames += 1
        stamp = self.now_ns()
        for name, publisher in self.image_publishers.items():
            if name not in self.silent:
                publisher.publish(convert_image.image_to_msg(self._image, stamp, EMBODIMENT.views[name].frame_id))

    def _send_joints(self) -> None:
        if 'joint_states' not in self.silent:
            state = RobotState(self.now_ns(), np.array(EMBODIMENT.home), np.zeros(7), 0.5)
            self._joints.publish(convert_robot.robot_state_to_msg(state, EMBODIMENT))

    def _send_state(self) -> None:
        message = ControllerState(mode=self.mode, dry_run=self.dry_run, gripper_command=self.gripper_command)
        if self.chunks and self.refuse_chunks:
            message.verdicts = [
                SafetyVerdict(rule='workspace', action=SafetyVerdict.REFUSED, text='too far', chunk_id=c.id)
                for c in self.chunks[-2:]
            ]
        elif self.chunks and self.mode == ControllerState.TRACKING:
            message.chunk_id = self.chunks[-1].id
        self._state.publish(message)


class Run:
    """One goal sent by a client, with what came back."""

    def __init__(self, robot: Robot, instruction: str, duration: float = 0.0, dry_run: bool = False) -> None:
        self.feedback: list[Any] = []
        self.feedback_times: list[float] = []
        goal = ExecuteInstruction.Goal(instruction=instruction, max_duration=duration, dry_run=dry_run)
        assert robot.client.wait_for_server(timeout_sec=5.0)
        sent = robot.client.send_goal_async(goal, feedback_callback=self._on_feedback)
        self.handle = eventually(lambda: sent.done() and sent.result(), what='goal response')
        assert self.handle.accepted
        self._result = self.handle.get_result_async()

    def _on_feedback(self, message: Any) -> None:
        self.feedback.append(message.feedback)
        self.feedback_times.append(time.monotonic())

    def cancel(self) -> None:
        self.handle.cancel_goal_async()

    def result(self, timeout: float = 8.0) -> Any:
        """Result with ``.status`` (GoalStatus) and ``.result``."""
        eventually(self._result.done, timeout, 'result of the goal')
        return self._result.result()


class ScriptedPolicy:
    """Moves by 1 mm per step; a test makes it slow, failing, wordless or done."""

    name = 'instructvla'
    privileged = False

    def __init__(self, revision: str = 'r1') -> None:
        self.checkpoint_revision = revision
        self.delay = 0.0
        self.error: Exception | None = None
        self.wordless = False
        self.think_delay = 0.0
        self.done_after = 10**9
        self.resets = 0
        self.calls = 0
        self.ages: list[float] = []
        self.clock: Callable[[], int] = lambda: 0
        self.threads: set[str] = set()

    def reset(self) -> None:
        self.resets += 1
        self.calls = 0

    def think(self, observation: Observation) -> Reasoning | None:
        time.sleep(self.think_delay)
        if self.wordless:
            return None
        text = f'I will {observation.instruction}.'
        return Reasoning(new_id('say'), observation.stamp_ns, observation.instruction, text, tokens=5, source=self.name)

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        started = time.perf_counter()
        self.threads.add(threading.current_thread().name)
        self.ages.append((self.clock() - observation.stamp_ns) * 1e-9)
        time.sleep(self.delay)
        if self.error is not None:
            raise self.error
        self.calls += 1
        steps = np.zeros((8, 7))
        steps[:, 0] = 0.001
        steps[:, 6] = 1.0
        done = self.calls >= self.done_after
        return make_chunk(self, observation, steps, 0.1, started, reasoning, done)

    def answer(self, observation: Observation, question: str) -> Reasoning:
        time.sleep(self.think_delay)
        return Reasoning(
            new_id('say'), observation.stamp_ns, question, 'A table.', ReasoningKind.ANSWER, source=self.name
        )


SUCCEEDED, CANCELED, ABORTED = GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED, GoalStatus.STATUS_ABORTED


def shut_down(nodes, robot, executors, threads) -> None:
    """End what a test spun: nodes from the last to the first, then their executors and threads."""
    for node in reversed(nodes):
        node.close()
    for executor, thread in zip(executors, threads, strict=True):
        executor.shutdown(timeout_sec=2.0)
        thread.join(timeout=2.0)
    for node in (*nodes, robot):
        node.destroy_node()
