"""Who moves the fingers, behind one interface: the topic of the simulator, or an action of a gripper driver.

Commands come on change only (hysteresis in ``control/gripper.py``) and the newest wins: a goal that is under way is
cancelled and its end awaited before the next is sent, because a Franka hand aborts what overlaps.
"""

from __future__ import annotations

import importlib
import threading
import time
from abc import ABC, abstractmethod
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient

from instructvla_ros.msg import GripperCommand

from ..control.gripper import judge_gripper
from ..errors import SetupError
from ..settings import Embodiment
from . import qos
from .convert_robot import gripper_to_msg
from .diagnostics import OK, WARN
from .runtime import BaseNode

PERIOD = 0.1  # s between two looks at what is left to do
RETRY = 0.5  # s until a command that found no server, or failed, is sent again
SETTLE = 0.2  # s after the end of a goal until the joint states show where the fingers are
ATTEMPTS = 3  # of one command that fails

PACKAGES = {
    'franka': ('franka_msgs', ('Move', 'Grasp'), 'build franka_ros2'),
    'gripper_command': ('control_msgs', ('GripperCommand',), 'install ros-<distro>-control-msgs'),
    'parallel_gripper_command': ('control_msgs', ('ParallelGripperCommand',), 'install ros-<distro>-control-msgs'),
}


class GripperDriver:
    """Publishes every command on the gripper topic: the simulator, RViz and recordings listen to it."""

    def __init__(self, node: BaseNode, embodiment: Embodiment) -> None:
        self.node, self.embodiment = node, embodiment
        self._topic = node.create_publisher(GripperCommand, embodiment.topics.gripper_command, qos.EVENT)

    def command(self, openness: float) -> None:
        """Open (above 0.5) or close. Returns at once; any thread."""
        self._topic.publish(gripper_to_msg(openness, self.embodiment, self.node.now_ns()))

    def measured(self, openness: float) -> None:
        """Tell the openness 0..1 that the joint states show."""


class ActionGripper(GripperDriver, ABC):
    """A gripper behind an action."""

    def __init__(self, node: BaseNode, embodiment: Embodiment) -> None:
        super().__init__(node, embodiment)
        self._lock = threading.RLock()
        self._wanted: float | None = None  # not yet done
        self._running: float | None = None
        self._handle: Any = None
        self._client_of: ActionClient | None = None  # of the running goal
        self._attempts = 0
        self._not_before = 0.0  # next attempt
        self._ended: tuple[float, bool, float | None, str] | None = None  # when, success, width, detail
        self._openness: float | None = None
        node.create_timer(PERIOD, self._look)

    @abstractmethod
    def goal(self, openness: float) -> tuple[ActionClient, Any]:
        """Client and goal for an openness of 0 or 1."""

    @abstractmethod
    def outcome(self, result: Any, succeeded: bool) -> tuple[bool, float | None]:
        """Whether the driver calls it a success, and the width between the fingers if it says so [m]."""

    def measured(self, openness: float) -> None:
        """Tell the openness 0..1 that the joint states show."""
        self._openness = openness

    def command(self, openness: float) -> None:
        """Publish, and send a goal as soon as the one before is over."""
        super().command(openness)
        with self._lock:
            self._wanted, self._attempts, self._ended = openness, 0, None
            if self._running is None:
                self._send()
            elif self._handle is not None and self._running != openness:
                self._handle.cancel_goal_async()

    def _look(self) -> None:
        now = time.monotonic()
        with self._lock:
            if self._client_of is not None and not self._client_of.server_is_ready():
                self._running = self._handle = self._client_of = None  # it died: no result will come
            if self._wanted is None or self._running is not None:
                return
            if self._ended is not None:
                if now - self._ended[0] >= SETTLE:
                    self._judge(*self._ended[1:])
                    self._ended = None
            elif now >= self._not_before:
                self._send()

    def _send(self) -> None:
        assert self._wanted is not None
        self._not_before = time.monotonic() + RETRY
        client, goal = self.goal(self._wanted)
        if not client.server_is_ready():
            name = client._action_name
            text = f'nobody offers the action {name} ({self.embodiment.gripper.driver}); start the gripper driver'
            self.node.diagnostics.condition('gripper', WARN, text)
            self.node.warn('gripper', text)
            return
        self._running, self._handle, self._client_of = self._wanted, None, client
        self._attempts += 1
        client.send_goal_async(goal).add_done_callback(self._accepted)

    def _accepted(self, future: Any) -> None:
        with self._lock:
            handle = future.result()
            if self._running is None:
                return
            if not handle.accepted:
                self._end(False, None, 'the goal was rejected')
                return
            self._handle = handle
            handle.get_result_async().add_done_callback(self._finished)
            if self._wanted != self._running:
                handle.cancel_goal_async()

    def _finished(self, future: Any) -> None:
        with self._lock:
            response = future.result()
            if self._running is None:
                return
            success, width = self.outcome(response.result, response.status == GoalStatus.STATUS_SUCCEEDED)
            self._end(success, width, str(getattr(response.result, 'error', '')))

    def _end(self, success: bool, width: float | None, detail: str) -> None:
        openness = self._running
        self._running = self._handle = self._client_of = None
        if self._wanted != openness:  # cancelled for a newer one
            if self._wanted is not None:
                self._send()
            return
        self._ended = time.monotonic(), success, width, detail

    def _judge(self, success: bool, width: float | None, detail: str) -> None:
        openness = self._wanted
        assert openness is not None
        gripper = self.embodiment.gripper
        if width is None and self._openness is not None:
            width = self._openness * gripper.max_width
        outcome = judge_gripper(openness < 0.5, success, width, gripper)
        text = f'{outcome.text} ({detail})' if outcome.failed and detail else outcome.text
        self.node.diagnostics.value('gripper', text)
        if outcome.failed and self._attempts < ATTEMPTS:
            self.node.warn('gripper', f'the gripper {text}; trying again')
            return  # the timer sends it
        self._wanted = None
        self.node.diagnostics.condition('gripper', WARN if outcome.failed else OK, f'the gripper {text}')
        if outcome.failed:
            self.node.warn('gripper', f'the gripper {text}; given up after {ATTEMPTS} attempts')


class FrankaGripper(ActionGripper):
    """franka_gripper: Move opens, Grasp closes with force and is content with any width."""

    def __init__(self, node: BaseNode, embodiment: Embodiment) -> None:
        super().__init__(node, embodiment)
        self._kinds = action_types('franka')
        base = action_name(embodiment)
        self._move = ActionClient(node, self._kinds['Move'], f'{base}/move')
        self._grasp = ActionClient(node, self._kinds['Grasp'], f'{base}/grasp')

    def goal(self, openness: float) -> tuple[ActionClient, Any]:
        """Move to the full width, or grasp."""
        gripper = self.embodiment.gripper
        if openness >= 0.5:
            return self._move, self._kinds['Move'].Goal(width=gripper.max_width, speed=gripper.speed)
        goal = self._kinds['Grasp'].Goal(width=0.0, speed=gripper.speed, force=gripper.max_effort)
        goal.epsilon.inner = goal.epsilon.outer = gripper.max_width  # the default 5 mm calls a thick object a failure
        return self._grasp, goal

    def outcome(self, result: Any, succeeded: bool) -> tuple[bool, float | None]:
        """Its result has no width."""
        return succeeded and result.success, None


class CommandGripper(ActionGripper):
    """control_msgs/GripperCommand: franka_gripper's gripper_action, or GripperActionController."""

    def __init__(self, node: BaseNode, embodiment: Embodiment) -> None:
        super().__init__(node, embodiment)
        self._kind = action_types('gripper_command')['GripperCommand']
        self._client = ActionClient(node, self._kind, action_name(embodiment))

    def goal(self, openness: float) -> tuple[ActionClient, Any]:
        """Position (half or full width, ``gripper.command``) and effort."""
        gripper = self.embodiment.gripper
        goal = self._kind.Goal()
        goal.command.position = finger_position(self.embodiment, openness)
        goal.command.max_effort = gripper.max_effort
        return self._client, goal

    def outcome(self, result: Any, succeeded: bool) -> tuple[bool, float | None]:
        """The width comes from the joint states: drivers differ in what ``position`` of the result means."""
        return succeeded or result.reached_goal, None


class ParallelGripper(ActionGripper):
    """control_msgs/ParallelGripperCommand: parallel_gripper_action_controller (Kilted and later)."""

    def __init__(self, node: BaseNode, embodiment: Embodiment) -> None:
        super().__init__(node, embodiment)
        if not embodiment.gripper.joints:
            raise SetupError('gripper.driver parallel_gripper_command: gripper.joints has to name the finger joint')
        self._kind = action_types('parallel_gripper_command')['ParallelGripperCommand']
        self._client = ActionClient(node, self._kind, action_name(embodiment))

    def goal(self, openness: float) -> tuple[ActionClient, Any]:
        """Position of the first finger joint, with effort and speed."""
        gripper = self.embodiment.gripper
        goal = self._kind.Goal()
        goal.command.name = [gripper.joints[0]]
        goal.command.position = [finger_position(self.embodiment, openness)]
        goal.command.velocity = [gripper.speed]
        goal.command.effort = [gripper.max_effort]
        return self._client, goal

    def outcome(self, result: Any, succeeded: bool) -> tuple[bool, float | None]:
        """A stalled closing is a grasp."""
        return succeeded or result.reached_goal, None


def finger_position(embodiment: Embodiment, openness: float) -> float:
    """Position of a command: half the width is that of one finger's joint [m]."""
    width = openness * embodiment.gripper.max_width
    return width if embodiment.gripper.command == 'full' else 0.5 * width


def action_name(embodiment: Embodiment) -> str:
    """Name of the action, or for franka of the node that has them."""
    gripper = embodiment.gripper
    if gripper.action != 'auto':
        return gripper.action.rstrip('/')
    controller = f'/{embodiment.name}_hand_controller/gripper_cmd'  # as in moveit_resources_panda_moveit_config
    return {
        'franka': '/franka_gripper',
        'gripper_command': '/franka_gripper/gripper_action' if embodiment.name == 'fr3' else controller,
        'parallel_gripper_command': controller,
    }[gripper.driver]


def action_types(driver: str) -> dict[str, Any]:
    """Action classes a driver needs, by name.

    Raises:
        SetupError: the package is missing or too old.
    """
    package, names, remedy = PACKAGES[driver]
    try:
        module = importlib.import_module(f'{package}.action')
    except ImportError as err:
        raise SetupError(
            f'gripper.driver {driver} needs the package {package} ({err}): {remedy} and source it, or choose another '
            'driver'
        ) from None
    absent = [name for name in names if not hasattr(module, name)]
    if absent:
        raise SetupError(f'gripper.driver {driver}: {package} has no {", ".join(absent)}; {remedy}, or another driver')
    return {name: getattr(module, name) for name in names}


def make_gripper(node: BaseNode, embodiment: Embodiment) -> GripperDriver:
    """The driver named by ``gripper.driver``; for ``auto`` the topic.

    Raises:
        SetupError: its messages are not installed.
    """
    kinds = {
        'auto': GripperDriver,
        'topic': GripperDriver,
        'franka': FrankaGripper,
        'gripper_command': CommandGripper,
        'parallel_gripper_command': ParallelGripper,
    }
    return kinds[embodiment.gripper.driver](node, embodiment)
