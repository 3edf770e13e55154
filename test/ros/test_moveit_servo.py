"""Output servo: the controller's poses to a stand-in for MoveIt Servo that moves the arm, halts it, and goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('moveit_msgs.srv', reason='moveit_msgs is not installed: part of MoveIt 2')

from geometry_msgs.msg import PoseStamped  # noqa: E402
from moveit_msgs.msg import ServoStatus  # noqa: E402
from moveit_msgs.srv import ServoCommandType  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from test_controller_node import EMBODIMENT, FORWARD, Arm, enabled, eventually  # noqa: E402

from instructvla_ros.control.kinematics import Kinematics  # noqa: E402
from instructvla_ros.datatypes import RobotState  # noqa: E402
from instructvla_ros.errors import SetupError  # noqa: E402
from instructvla_ros.geometry import Array, inverse  # noqa: E402
from instructvla_ros.msg import ControllerState  # noqa: E402
from instructvla_ros.nodes import convert, convert_robot, qos  # noqa: E402
from instructvla_ros.nodes.controller_node import ControllerNode  # noqa: E402
from instructvla_ros.nodes.moveit_backend import tcp_to_link  # noqa: E402
from instructvla_ros.nodes.moveit_servo import ServoLink  # noqa: E402
from instructvla_ros.settings import Control, MoveIt, Servo  # noqa: E402

KIN = Kinematics(EMBODIMENT)
FRESH = 0.5  # s; Servo itself takes 0.1, a loaded test machine more
TIP = 'fr3_link8'


class ServoArm(Arm):
    """An arm whose joints Servo finds: poses of its tip, in the base frame, with a stamp, once it was told to."""

    def __init__(self, takes_poses: bool = True, tip: str = '') -> None:
        super().__init__()
        self.q = np.array(EMBODIMENT.home)
        self.code = ServoStatus.NO_WARNING
        self.takes_poses, self.asked = takes_poses, []
        self.poses: list[PoseStamped] = []
        self.unused: list[str] = []
        self._offset = inverse(tcp_to_link(KIN.urdf, EMBODIMENT.tcp_frame, tip)) if tip else np.eye(4)
        self.server = Node('servo_node')
        self.server.create_service(ServoCommandType, '~/switch_command_type', self._on_switch)
        self.server.create_subscription(PoseStamped, '~/pose_target_cmds', self._on_pose, qos.COMMAND)
        self._status = self.server.create_publisher(ServoStatus, '~/status', qos.EVENT)
        self.server.create_timer(0.02, self._say)

    def _say(self) -> None:
        self._status.publish(ServoStatus(code=self.code, message='as the test wants it'))

    def _on_switch(self, request: Any, response: Any) -> Any:
        self.asked.append(request.command_type)
        response.success = self.takes_poses and request.command_type == ServoCommandType.Request.POSE
        return response

    def _on_pose(self, message: PoseStamped) -> None:
        self.poses.append(message)
        age = (self.now_ns() - convert.stamp_from_msg(message.header.stamp)) * 1e-9
        if not self.asked:
            self.unused.append('before the switch')
        elif message.header.frame_id != EMBODIMENT.base_frame:
            self.unused.append(f'frame {message.header.frame_id}')
        elif not -0.05 < age < FRESH:
            self.unused.append(f'{age} s old')
        elif self.code not in (ServoStatus.HALT_FOR_COLLISION, ServoStatus.INVALID):
            target = convert.pose_from_msg(message.pose) @ self._offset
            for _ in range(2):
                self.q = KIN.step(self.q, target, 0.2).q

    def _tick(self) -> None:
        state = RobotState(self.now_ns(), self.q, np.zeros(7), 1.0)
        self._joints.publish(convert_robot.robot_state_to_msg(state, EMBODIMENT))

    def commanded(self) -> Array:
        return convert.pose_from_msg(self.states[-1].commanded_pose)[:3, 3]

    def tcp(self) -> Array:
        return FORWARD(self.q)[:3, 3]


@pytest.fixture
def moving(spin: Callable[..., None], request: Any, tmp_path: Path) -> tuple[ServoArm, ControllerNode]:
    tip = getattr(request, 'param', '')
    arm = ServoArm(tip=tip)
    spin(arm, arm.server)
    given = {
        'output': 'servo', 'moveit.servo.tip': tip, 'moveit.startup_wait': 60.0, 'ramp_time': 0.05, 'chunk_lease': 0.0,
    }  # fmt: skip
    controller = ControllerNode(parameter_overrides=[Parameter(k, value=v) for k, v in given.items()])
    spin(controller)
    eventually(
        lambda: arm.states and arm.states[-1].measured_positions and arm.chunks.get_subscription_count(), what='graph'
    )
    return arm, controller


@pytest.mark.parametrize('moving', ['', TIP], indirect=True)
def test_servo_moves_the_arm_along_the_chunk(moving: tuple[ServoArm, ControllerNode]) -> None:
    arm, _ = moving
    assert arm.asked == [ServoCommandType.Request.POSE] and not arm.poses
    enabled(arm)
    start = arm.tcp()
    arm.play(step=(0.005, 0.0, -0.004, 0, 0, 0, 1.0), horizon=16)
    eventually(lambda: arm.mode == ControllerState.HOLDING and arm.states[-1].chunk_id == '', what='HOLDING again')
    moved = arm.tcp() - start
    # How far the arm gets is a matter of how much of the chunk a loaded machine drops; where it goes is not.
    assert 0.004 < moved[0] < 0.085 and abs(moved[1]) < 3e-3
    assert moved[2] / moved[0] == pytest.approx(-0.8, abs=0.15)
    np.testing.assert_allclose(arm.tcp(), arm.commanded(), atol=3e-3)
    assert not arm.commands, 'nothing goes to the trajectory controller'
    stamps = [convert.stamp_from_msg(p.header.stamp) for p in arm.poses]
    assert min(np.diff(stamps)) > 0.9e9 / 50, 'at most 50 poses per second'
    assert not [text for text in arm.unused if 'old' not in text]


def test_while_servo_halts_nothing_is_played(moving: tuple[ServoArm, ControllerNode]) -> None:
    arm, controller = moving
    enabled(arm)
    arm.play(step=(0.004, 0, 0, 0, 0, 0, 1.0), horizon=30)
    arm.code = ServoStatus.HALT_FOR_COLLISION
    verdicts = lambda: [v.text for s in list(arm.states) for v in s.verdicts if v.rule == 'dead_man']  # noqa: E731
    text = eventually(lambda: next(iter(verdicts()), ''), what='verdict')
    assert 'MoveIt Servo: HALT_FOR_COLLISION' in text and 'braking and holding' in text
    eventually(lambda: arm.mode == ControllerState.HOLDING, what='HOLDING')
    eventually(lambda: 'HALT_FOR_COLLISION' in controller.diagnostics.status().message, what='diagnostics')
    arm.code = ServoStatus.NO_WARNING
    eventually(lambda: 'HALT_FOR_COLLISION' not in controller.diagnostics.status().message, what='diagnostics again')


def test_home_needs_joints(moving: tuple[ServoArm, ControllerNode]) -> None:
    arm, _ = moving
    enabled(arm)
    home = arm.create_client(Trigger, 'home')
    assert home.wait_for_service(timeout_sec=20.0)
    future = home.call_async(Trigger.Request())
    answer = eventually(lambda: future.done() and future.result(), what='answer')
    assert not answer.success and 'home needs output: trajectory' in answer.message


def test_a_servo_that_leaves_is_noticed_and_told_again_when_it_comes_back(spin: Callable[..., None]) -> None:
    first, reasons = ServoArm(), []
    executor, over = SingleThreadedExecutor(), threading.Event()
    executor.add_node(first.server)

    def work() -> None:
        while not over.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    link = None
    try:
        link = ServoLink(EMBODIMENT, Control(output='servo', moveit=MoveIt(startup_wait=60.0)), reasons.append)
        assert link.problem == ''
        over.set()
        thread.join()
        first.server.destroy_node()
        eventually(lambda: link.problem, what='it left')
        assert link.problem == reasons[-1] == 'MoveIt Servo: /servo_node left'
        again = ServoArm()
        spin(again, again.server)
        link.send(FORWARD(again.q), time.time_ns())
        eventually(lambda: not link.problem, what='it is back')
        assert again.asked == [ServoCommandType.Request.POSE]
    finally:
        over.set()
        thread.join()
        if link is not None:
            link.close()
        executor.shutdown(timeout_sec=1.0)
        first.destroy_node()


@pytest.mark.parametrize('there', [True, False])
def test_without_a_servo_that_takes_poses_it_does_not_start(spin: Callable[..., None], there: bool) -> None:
    said = 'nobody offers /servo_node/switch_command_type; start servo_node'
    if there:
        arm = ServoArm(takes_poses=False)
        spin(arm, arm.server)
        said = '/servo_node does not take poses'
    with pytest.raises(SetupError, match=said):
        ServoLink(EMBODIMENT, Control(output='servo', moveit=MoveIt(startup_wait=3.0 if there else 0.3)), print)


def test_a_tip_that_moves_against_the_tool_is_refused(ros: None) -> None:
    settings = MoveIt(servo=Servo(tip='fr3_link3'), startup_wait=0.1)
    with pytest.raises(SetupError, match="tip 'fr3_link3' moves against"):
        ServoLink(EMBODIMENT, Control(output='servo', moveit=settings), print)
