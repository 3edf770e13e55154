"""The controller node against an arm that does exactly what it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import Quaternion
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from instructvla_ros import config, resources
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.datatypes import ActionChunk, RobotState, new_id
from instructvla_ros.geometry import Array
from instructvla_ros.msg import ActionChunk as ActionChunkMsg
from instructvla_ros.msg import ControllerState, GripperCommand
from instructvla_ros.nodes import convert, convert_robot, qos
from instructvla_ros.nodes.controller_node import ControllerNode
from instructvla_ros.settings import Embodiment
from instructvla_ros.sim.trajectory import TrajectoryFollower

EMBODIMENT = config.load(Embodiment, resources.config_file('franka.yaml'))
FORWARD = Kinematics(EMBODIMENT).forward
TOPICS = EMBODIMENT.topics


def eventually(condition: Callable[[], Any], timeout: float = 15.0, what: Any = '') -> Any:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f'not within {timeout} s: {what() if callable(what) else what}')


class Arm(Node):
    """Follows trajectories perfectly, publishes its joints, records everything it hears."""

    def __init__(self, clock: bool = False) -> None:
        super().__init__('arm_double', namespace='/instructvla')
        self.follower = TrajectoryFollower(EMBODIMENT, EMBODIMENT.home)
        self.commands: list[JointTrajectory] = []
        self.rejected: list[str] = []
        self.grips: list[GripperCommand] = []
        self.states: list[ControllerState] = []
        self.silent = False
        self.time_shift = 0
        self.frozen: int | None = None
        self._joints = self.create_publisher(JointState, TOPICS.joint_states, qos.SENSOR_PUBLISHER)
        self.chunks = self.create_publisher(ActionChunkMsg, 'action_chunk', qos.CHUNK_PUBLISHER)
        self._clock_pub = self.create_publisher(Clock, '/clock', qos.SENSOR_PUBLISHER) if clock else None
        self.create_subscription(JointTrajectory, TOPICS.joint_trajectory, self._on_command, qos.COMMAND)
        self.create_subscription(GripperCommand, TOPICS.gripper_command, self.grips.append, qos.EVENT)
        self.create_subscription(ControllerState, 'controller_state', self.states.append, qos.STATE)
        self.remote = {
            name: self.create_client(kind, name)
            for name, kind in (('enable', SetBool), ('dry_run', SetBool), ('stop', Trigger), ('reset', Trigger))
        }
        self.create_timer(0.01, self._tick)

    def now_ns(self) -> int:
        return self.frozen if self.frozen is not None else time.time_ns() + self.time_shift

    def _on_command(self, message: JointTrajectory) -> None:
        self.commands.append(message)
        stamp = convert.stamp_from_msg(message.header.stamp)
        reason = self.follower.accept(*convert_robot.trajectory_from_msg(message), stamp, self.now_ns())
        if reason:
            self.rejected.append(reason)

    def _tick(self) -> None:
        now = self.now_ns()
        if self._clock_pub is not None:
            self._clock_pub.publish(Clock(clock=convert.stamp_to_msg(now)))
        if not self.silent:
            q, dq = self.follower.sample(now)
            self._joints.publish(convert_robot.robot_state_to_msg(RobotState(now, q, dq, 1.0), EMBODIMENT))

    def tcp(self) -> Array:
        return FORWARD(self.follower.sample(self.now_ns())[0])[:3, 3]

    def call(self, name: str, on: bool | None = None) -> Any:
        client = self.remote[name]
        assert client.wait_for_service(timeout_sec=20.0), name
        request = Trigger.Request() if on is None else SetBool.Request(data=on)
        future = client.call_async(request)
        return eventually(lambda: future.done() and future.result(), what=f'answer of {name}')

    def send(self, step=(0.005, 0, 0, 0, 0, 0, 1.0), horizon: int = 8, **changes: Any) -> ActionChunk:
        now = self.now_ns()
        fields = dict(
            id=new_id('chunk'), observation_stamp_ns=now, created_stamp_ns=now, step_period=0.1,
            steps=np.tile(np.array(step, dtype=float), (horizon, 1)), frame_id=EMBODIMENT.base_frame,
            reference_pose=FORWARD(self.follower.sample(now)[0]), policy='test',
        )  # fmt: skip
        chunk = ActionChunk(**{**fields, **changes})
        self.chunks.publish(convert.chunk_to_msg(chunk))
        return chunk

    def play(self, **changes: Any) -> str:
        """Send a chunk until one is played (a loaded machine may make one too old); returns its id."""
        for _ in range(4):
            chunk = self.send(**changes)
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline and not self.verdicts(chunk.id).keys() & {'chunk_age', 'joint_state'}:
                if any(s.chunk_id == chunk.id for s in list(self.states)):
                    return chunk.id
                time.sleep(0.005)
        raise AssertionError(f'no chunk was played, the last one: {self.verdicts(chunk.id)}, mode {self.mode}')

    def resting(self) -> bool:
        return float(np.abs(self.follower.sample(self.now_ns())[1]).max()) < 1e-6

    @property
    def refused(self) -> list[str]:
        """Rejected trajectories but those that came too late, which a loaded machine may cause."""
        return [r for r in self.rejected if 'in the past' not in r]

    def verdicts(self, chunk_id: str) -> dict[str, str]:
        return {v.rule: v.text for s in list(self.states) for v in s.verdicts if v.chunk_id == chunk_id}

    @property
    def mode(self) -> int:
        return self.states[-1].mode if self.states else -1


@pytest.fixture
def setup(spin) -> tuple[Arm, ControllerNode]:
    arm = Arm()
    # Fast DDS does not assert liveliness between two nodes of one process.
    changes = {'ramp_time': 0.05, 'chunk_lease': 0.0}
    controller = ControllerNode(parameter_overrides=[Parameter(k, value=v) for k, v in changes.items()])
    spin(controller)
    spin(arm)
    eventually(
        lambda: arm.states and arm.states[-1].measured_positions and arm.chunks.get_subscription_count(), what='graph'
    )
    return arm, controller


def enabled(arm: Arm) -> None:
    assert arm.call('enable', True).success
    eventually(lambda: arm.mode == ControllerState.HOLDING, what='HOLDING')


def test_a_disabled_controller_refuses_by_name_and_sends_nothing(setup):
    arm, _ = setup
    chunk = arm.send()
    eventually(lambda: 'disabled' in arm.verdicts(chunk.id), what='verdict')
    assert arm.mode == ControllerState.DISABLED and not arm.commands


def test_a_chunk_moves_the_arm_by_its_deltas(setup):
    arm, controller = setup
    enabled(arm)
    start = arm.tcp()
    chunk = arm.send(step=(0.005, 0.0, -0.004, 0, 0, 0, 1.0))
    state = eventually(lambda: next((s for s in arm.states if s.chunk_id == chunk.id), None), what='TRACKING')
    assert state.mode == ControllerState.TRACKING
    assert convert.stamp_from_msg(state.observation_stamp) == chunk.observation_stamp_ns
    eventually(lambda: arm.mode == ControllerState.HOLDING and arm.states[-1].chunk_id == '', what='HOLDING again')
    moved = arm.tcp() - start
    # Steps that had elapsed before the start are skipped and the end is braked: most of it, straight, not beyond.
    assert 0.025 < moved[0] < 0.042 and -0.034 < moved[2] < -0.018 and abs(moved[1]) < 0.004
    assert not arm.refused
    for message in arm.commands[:: max(1, len(arm.commands) // 50)]:
        assert max(np.abs(message.points[-1].velocities)) == 0.0
    assert controller.diagnostics.counted('action_chunk dropped') == 0


def test_every_command_carries_its_stop(setup):
    arm, controller = setup
    enabled(arm)
    arm.send(step=(0.01, 0, 0, 0, 0, 0, 1.0))
    eventually(lambda: any(np.abs(m.points[0].velocities).max() > 0.1 for m in arm.commands), what='motion')
    moving = next(m for m in arm.commands if np.abs(m.points[0].velocities).max() > 0.1)
    times = [p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in moving.points]
    assert len(times) > 2 and np.all(np.diff(times) > 0) and times[-1] < 0.6
    controller.close()  # a controller that ends brakes first
    eventually(arm.resting, what='rest')
    assert not arm.refused


def test_stop_is_latched_until_reset(setup):
    arm, _ = setup
    enabled(arm)
    arm.send(step=(0.008, 0, 0, 0, 0, 0, 1.0))
    eventually(lambda: arm.mode == ControllerState.TRACKING, what='TRACKING')
    time.sleep(0.2)
    assert arm.call('stop').success
    eventually(lambda: arm.mode == ControllerState.STOPPED, what='STOPPED')
    eventually(arm.resting, 1.5, 'rest')
    chunk = arm.send()
    eventually(lambda: 'stop_latch' in arm.verdicts(chunk.id), what='refusal')
    answer = arm.call('enable', True)
    assert not answer.success and 'reset' in answer.message
    assert arm.call('reset').success
    eventually(lambda: arm.mode == ControllerState.DISABLED, what='DISABLED')
    enabled(arm)
    arm.play()


def test_dry_run_publishes_everything_and_moves_nothing(setup):
    arm, _ = setup
    assert arm.call('dry_run', True).success
    enabled(arm)
    sent, start = len(arm.commands), arm.tcp()
    played = arm.play(step=(0.005, 0, 0, 0, 0, 0, 0.0))
    eventually(lambda: arm.mode == ControllerState.HOLDING, what='HOLDING')
    tracked = [s for s in arm.states if s.chunk_id == played]
    # On a loaded machine the chunk begins late and most of its steps have elapsed; some of it is always played.
    assert tracked[-1].commanded_pose.position.x - start[0] > 0.002 and all(s.dry_run for s in tracked)
    assert len(arm.commands) == sent and not arm.grips
    np.testing.assert_allclose(arm.tcp(), start)


@pytest.mark.parametrize(
    ('break_it', 'rule'),
    [
        (lambda m: setattr(m, 'horizon', 3), 'malformed'),
        (lambda m: setattr(m.reference_pose, 'orientation', Quaternion(w=0.0)), 'malformed'),
        (lambda m: m.steps.__setitem__(9, float('nan')), 'finite'),
        (lambda m: setattr(m.header, 'frame_id', 'world'), 'frame'),
    ],
)  # fmt: skip
def test_bad_chunks_are_refused_by_name_and_the_node_lives(setup, break_it, rule):
    arm, _ = setup
    enabled(arm)
    good = ActionChunk(
        'chunk-bad', arm.now_ns(), arm.now_ns(), 0.1, np.zeros((8, 7)), EMBODIMENT.base_frame,
        FORWARD(np.array(EMBODIMENT.home)),
    )  # fmt: skip
    message = convert.chunk_to_msg(good)
    break_it(message)
    arm.chunks.publish(message)
    verdicts = eventually(lambda: arm.verdicts('chunk-bad'), what='verdict')
    assert any(rule in name for name in verdicts), verdicts
    arm.play()


def test_gripper_is_told_on_change_only(setup):
    arm, _ = setup
    enabled(arm)
    for openness in (1.0, 0.0, 0.0, 0.5, 1.0):
        arm.play(step=(0, 0, 0, 0, 0, 0, openness), horizon=2)
        eventually(lambda: arm.mode == ControllerState.HOLDING, what='HOLDING')
    assert [round(g.width, 3) for g in arm.grips] == [0.0, 0.08]
    assert arm.grips[0].max_effort == EMBODIMENT.gripper.max_effort


def test_silent_joint_states_stop_the_arm(setup):
    arm, _ = setup
    enabled(arm)
    arm.send(step=(0.008, 0, 0, 0, 0, 0, 1.0), horizon=12)
    eventually(lambda: arm.mode == ControllerState.TRACKING, what='TRACKING')
    time.sleep(0.3)
    arm.silent = True
    eventually(arm.resting, 1.5, 'rest')
    time.sleep(0.2)
    chunk = arm.send()
    eventually(lambda: 'joint_state' in arm.verdicts(chunk.id), what=lambda: f'refusal, but {arm.verdicts(chunk.id)}')
    arm.silent = False
    time.sleep(0.2)
    arm.play()


def on_simulated_time(spin) -> Arm:
    """An arm that makes the time, held by a controller that takes its time from it."""
    arm = Arm(clock=True)
    controller = ControllerNode(
        parameter_overrides=[Parameter('use_sim_time', value=True), Parameter('start_enabled', value=True)]
    )
    spin(controller)
    spin(arm)
    eventually(lambda: arm.mode == ControllerState.HOLDING and arm.chunks.get_subscription_count(), what='HOLDING')
    return arm


def test_a_clock_that_jumps_back_is_survived(spin):
    arm = on_simulated_time(spin)
    arm.play()
    arm.follower.reset(EMBODIMENT.home)
    arm.time_shift = -3600 * 10**9
    time.sleep(0.3)
    eventually(lambda: arm.mode == ControllerState.HOLDING, what='HOLDING after the jump')
    arm.play()


def test_a_clock_that_stands_still_hides_nothing(spin):
    arm = on_simulated_time(spin)
    arm.frozen = arm.now_ns()
    time.sleep(0.5)
    arm.states.clear()
    arm.commands.clear()
    time.sleep(2.0)
    heard = len(arm.states)
    assert 3 <= heard <= 12, f'{heard} states in 2 s of a clock that stands still'
    assert len(arm.commands) <= 1, 'no time, no commands'
    assert arm.call('stop').success
    eventually(lambda: arm.mode == ControllerState.STOPPED, what='STOPPED')


def test_as_a_process_it_keeps_its_pace_and_brakes_when_told_to_end(spin):
    arm = Arm()
    spin(arm)
    process = subprocess.Popen(
        [sys.executable, '-m', 'instructvla_ros.nodes.controller_node', '--ros-args', '-p', 'start_enabled:=true',
         '-p', 'state_rate:=100.0'],
        env=dict(os.environ), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        eventually(
            lambda: arm.mode == ControllerState.HOLDING and arm.chunks.get_subscription_count(), 40.0, 'HOLDING'
        )
        arm.states.clear()
        for _ in range(5):
            arm.send(step=(0.004, 0, 0, 0, 0, 0, 1.0), horizon=12)
            time.sleep(0.2)
        periods = np.array([s.loop_period for s in arm.states])
        assert abs(np.median(periods) - 0.01) < 5e-4, np.percentile(periods, (1, 50, 99))
        assert np.abs(arm.follower.sample(arm.now_ns())[1]).max() > 0.0, 'it has to move when the signal comes'
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=10.0)
        assert process.returncode == 0, error
        eventually(lambda: max(np.abs(arm.commands[-1].points[0].velocities)) == 0.0, what='a last command at rest')
        assert 'Traceback' not in error and not arm.refused
    finally:
        process.kill()
        process.communicate()
