"""Output ``servo``: the commanded tool pose goes to MoveIt Servo, which finds the joints and watches for collisions.

Servo is told once that commands are poses; then every period's commanded pose is sent, at a bounded rate and with the
time of the command. When they end Servo brings the arm to rest (``incoming_command_timeout``). When Servo halts, or
leaves, what is being played is dropped. A node and executor of its own, so that start-up may wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from ..control.kinematics import Kinematics
from ..errors import SetupError
from ..geometry import Array
from ..settings import Control, Embodiment
from . import qos
from .convert import pose_to_msg, stamp_to_msg
from .moveit_backend import tcp_to_link

try:
    from moveit_msgs.msg import ServoStatus
    from moveit_msgs.srv import ServoCommandType
except ImportError as err:  # MoveIt is optional
    MISSING = (
        f'output: servo needs the messages of MoveIt ({err}): install ros-<distro>-moveit and source it, or set '
        'output: trajectory'
    )
    ServoStatus = ServoCommandType = None
else:
    MISSING = ''

LOOK = 0.1  # s between two looks at whether Servo is there
ANSWER = 2.0  # s to switch the type of commands


class ServoLink:
    """Talks to a servo_node.

    Args:
        halted: called with the reason, from a thread of this object, as long as Servo halts the arm, and when it left.
        status: called with the name and text of each status that is new.

    Raises:
        SetupError: moveit_msgs is missing, Servo is not there in time, or does not take poses.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        control: Control,
        halted: Callable[[str], None],
        status: Callable[[str, str], None] = lambda name, text: None,
    ) -> None:
        if MISSING:
            raise SetupError(MISSING)
        servo = control.moveit.servo
        self.name = servo.node.rstrip('/')
        self._frame = embodiment.base_frame
        self._tip = np.eye(4)
        if servo.tip:
            self._tip = tcp_to_link(Kinematics(embodiment).urdf, embodiment.tcp_frame, servo.tip)
        self._period_ns = int(1e9 / servo.rate)
        self._halted, self._status = halted, status
        self._codes = {
            value: name
            for name in dir(ServoStatus)
            if name.isupper() and isinstance(value := getattr(ServoStatus, name), int)
        }
        self._stops = {
            code for code, name in self._codes.items() if name == 'INVALID' or name.startswith('HALT')
        }
        self._code: int | None = None
        self._sent_ns = 0
        self._ready = False
        self._asked = 0.0  # when the switch was asked for, 0: not under way
        self._problem = f'nobody offers {self.name}/switch_command_type; start servo_node, or set output: trajectory'
        self._node = Node(
            'servo_link', namespace='/instructvla', use_global_arguments=False, start_parameter_services=False,
            enable_rosout=False,
        )  # fmt: skip
        self._poses = self._node.create_publisher(PoseStamped, f'{self.name}/pose_target_cmds', qos.COMMAND)
        self._switch: Any = self._node.create_client(ServoCommandType, f'{self.name}/switch_command_type')
        self._node.create_subscription(ServoStatus, f'{self.name}/status', self._on_status, qos.EVENT)
        self._node.create_timer(LOOK, self._look)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='servo link', daemon=True)
        self._thread.start()
        deadline = time.monotonic() + control.moveit.startup_wait
        while not self._ready and time.monotonic() < deadline:
            time.sleep(0.02)
        if not self._ready:
            self.close()
            raise SetupError(f'MoveIt Servo: {self._problem} ({control.moveit.startup_wait} s waited)')

    def close(self) -> None:
        """End the executor; Servo halts the arm when no poses come."""
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(timeout=1.0)
        self._node.destroy_node()

    @property
    def problem(self) -> str:
        """Why Servo takes no poses now, '' when it does."""
        return '' if self._ready else f'MoveIt Servo: {self._problem}'

    def send(self, pose: Array, stamp_ns: int) -> None:
        """Send a tcp pose (4, 4) in the base frame, unless one went out less than a period ago. Any thread."""
        if not self._ready or 0 <= stamp_ns - self._sent_ns < self._period_ns:
            return
        self._sent_ns = stamp_ns
        message = PoseStamped(pose=pose_to_msg(pose @ self._tip))
        message.header.frame_id = self._frame
        message.header.stamp = stamp_to_msg(stamp_ns)
        self._poses.publish(message)

    def _on_status(self, message: Any) -> None:
        code = int(message.code)
        if code != self._code:
            self._code = code
            self._status(self._codes.get(code, f'code {code}'), message.message)
        if code in self._stops:
            self._halted(f'MoveIt Servo: {self._codes.get(code, code)} {message.message}'.rstrip())

    def _look(self) -> None:
        if self._ready:
            if self._poses.get_subscription_count() == 0:
                self._ready, self._code = False, None
                self._problem = f'{self.name} left'
                self._halted(self.problem)
        elif self._asked and time.monotonic() - self._asked > ANSWER:
            self._asked = 0.0
            self._problem = f'{self._switch.srv_name} does not answer'
        elif not self._asked and self._switch.service_is_ready() and self._poses.get_subscription_count() > 0:
            self._asked = time.monotonic()
            request = ServoCommandType.Request(command_type=ServoCommandType.Request.POSE)
            self._switch.call_async(request).add_done_callback(self._switched)

    def _switched(self, future: Any) -> None:
        self._asked = 0.0
        response = future.result()
        if response is not None and response.success:
            self._ready = True
        else:
            self._problem = f'{self.name} does not take poses: has its planning group an inverse kinematics plugin?'

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass  # the context ended first
