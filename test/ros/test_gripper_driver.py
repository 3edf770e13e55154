"""Gripper drivers against stand-in action servers that behave like the real ones, thick objects included."""

from __future__ import annotations

import importlib
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from test_controller_node import EMBODIMENT, eventually

from instructvla_ros.control.gripper import judge_gripper
from instructvla_ros.errors import SetupError
from instructvla_ros.msg import GripperCommand
from instructvla_ros.nodes import qos
from instructvla_ros.nodes.gripper_driver import PACKAGES, action_name, action_types, finger_position, make_gripper
from instructvla_ros.nodes.runtime import BaseNode

KINDS = ('franka', 'gripper_command', 'parallel_gripper_command')


def embodiment(driver: str, **changes: Any):
    return replace(EMBODIMENT, gripper=replace(EMBODIMENT.gripper, driver=driver, **changes))


def installed(driver: str) -> bool:
    try:
        importlib.import_module(f'{PACKAGES[driver][0]}.action')
    except ImportError:
        return False
    return True


def needs(driver: str) -> Any:
    return pytest.param(
        driver, marks=pytest.mark.skipif(not installed(driver), reason=f'{PACKAGES[driver][0]} is not installed')
    )


class Hand(Node):
    """A hand with an object of some thickness [m] between its fingers, behind the actions of one driver."""

    def __init__(self, driver: str, thickness: float = 0.0, time_s: float = 0.05) -> None:
        super().__init__('hand_double')
        self.driver, self.thickness, self.time = driver, thickness, time_s
        self.width = 0.08
        self.goals: list[Any] = []
        self.overlaps = 0
        self.stuck = False
        self.reject = False
        self._busy = threading.Lock()
        name = action_name(embodiment(driver))
        types = action_types(driver)
        served = {f'{name}/{k.lower()}': v for k, v in types.items()} if driver == 'franka' else {
            name: next(iter(types.values()))
        }
        self.servers = [
            ActionServer(
                self, kind, where, self._execute, callback_group=ReentrantCallbackGroup(),
                cancel_callback=lambda _: CancelResponse.ACCEPT,
            )
            for where, kind in served.items()
        ]  # fmt: skip

    def close(self) -> None:
        """Take the actions away; destroying the node alone leaves them in the graph."""
        for server in self.servers:
            server.destroy()
        self.servers = []

    def _target(self, goal: Any) -> tuple[float, float]:
        """Width asked for, and the largest difference that counts as success [m]."""
        if self.driver == 'franka':
            return goal.width, goal.epsilon.outer if hasattr(goal, 'epsilon') else 0.005
        if self.driver == 'gripper_command':
            return 2.0 * goal.command.position, 0.005
        return 2.0 * goal.command.position[0], 0.005

    def _execute(self, handle: Any) -> Any:
        if not self._busy.acquire(blocking=False):
            self.overlaps += 1
            self._busy.acquire()
        try:
            goal = handle.request
            self.goals.append(goal)
            result = self._result(goal)
            deadline = time.monotonic() + self.time
            while time.monotonic() < deadline:
                if handle.is_cancel_requested:
                    handle.canceled()
                    return result
                time.sleep(0.005)
            target, tolerance = self._target(goal)
            if not self.stuck:
                self.width = max(target, self.thickness) if target < self.width else target
            reached = abs(self.width - target) <= tolerance
            if self.driver == 'franka':
                result.success, result.error = reached, '' if reached else 'stuck'
                handle.succeed() if reached else handle.abort()
            else:
                result.reached_goal = reached
                result.stalled = not reached
                handle.succeed() if reached else handle.abort()
            return result
        finally:
            self._busy.release()

    def _result(self, goal: Any) -> Any:
        _, names, _ = PACKAGES[self.driver]
        types = action_types(self.driver)
        name = next(n for n in names if type(goal).__name__.startswith(n))
        return types[name].Result()


class Rig:
    """A node with a driver, a hand, and what the joint states would say."""

    def __init__(self, driver: str, hand: Hand | None, **changes: Any) -> None:
        self.node = BaseNode('gripper_test')
        self.hand = hand
        self.heard: list[GripperCommand] = []
        self.driver = make_gripper(self.node, embodiment(driver, **changes))
        self.node.create_subscription(
            GripperCommand, EMBODIMENT.topics.gripper_command, self.heard.append, qos.EVENT
        )
        if hand is not None:
            self.node.create_timer(0.01, lambda: self.driver.measured(hand.width / 0.08))

    def text(self) -> str:
        return {v.key: v.value for v in self.node.diagnostics.status().values}.get('gripper', '')


@pytest.fixture
def rig(spin, request):
    made: list[tuple[MultiThreadedExecutor, Hand]] = []

    def start(driver: str, thickness: float = 0.0, **changes: Any) -> Rig:
        hand = Hand(driver, thickness)
        executor = MultiThreadedExecutor(num_threads=4)
        executor.add_node(hand)
        threading.Thread(target=executor.spin, daemon=True).start()
        made.append((executor, hand))
        out = Rig(driver, hand, **changes)
        spin(out.node)
        return out

    yield start
    for executor, hand in made:
        executor.shutdown(timeout_sec=2.0)
        hand.close()
        hand.destroy_node()


@pytest.mark.parametrize('driver', [needs(k) for k in KINDS])
def test_close_and_open(rig, driver):
    made = rig(driver)
    made.driver.command(0.0)
    eventually(lambda: made.hand.width == 0.0, 10.0, 'closed')
    eventually(lambda: 'nothing between' in made.text(), 10.0, made.text)
    made.driver.command(1.0)
    eventually(lambda: made.hand.width == 0.08, 10.0, 'open')
    eventually(lambda: made.text() == 'open', 10.0, made.text)
    assert len(made.hand.goals) == 2 and [round(g.width, 2) for g in made.heard] == [0.0, 0.08]


@pytest.mark.parametrize('driver', [needs(k) for k in KINDS])
def test_a_thick_object_is_held_and_not_a_failure(rig, driver):
    made = rig(driver, thickness=0.045)
    made.driver.command(0.0)
    eventually(lambda: made.text() == 'holds something 45 mm wide', 10.0, made.text)
    time.sleep(1.2)
    assert len(made.hand.goals) == 1, 'it is not tried again'


@pytest.mark.parametrize('driver', [needs('franka')])
def test_franka_grasps_with_force_and_any_width(rig, driver):
    made = rig(driver)
    made.driver.command(0.0)
    goal = eventually(lambda: made.hand.goals and made.hand.goals[0], 10.0, 'goal')
    assert (goal.width, goal.force, goal.epsilon.inner, goal.epsilon.outer) == (0.0, 30.0, 0.08, 0.08)


@pytest.mark.parametrize('driver', [needs(k) for k in KINDS])
def test_the_newest_command_wins_and_goals_do_not_overlap(rig, driver):
    made = rig(driver)
    made.hand.time = 0.4
    for openness in (0.0, 1.0, 0.0, 1.0, 0.0):
        made.driver.command(openness)
        time.sleep(0.05)
    eventually(lambda: made.hand.width == 0.0, 15.0, 'closed')
    assert made.hand.overlaps == 0 and len(made.hand.goals) <= 5
    eventually(lambda: 'nothing between' in made.text(), 10.0, made.text)


@pytest.mark.parametrize('driver', [needs(k) for k in KINDS])
def test_a_stuck_hand_is_tried_three_times_and_named(rig, driver):
    made = rig(driver)
    made.hand.width, made.hand.stuck = 0.02, True
    made.driver.command(1.0)
    eventually(lambda: len(made.hand.goals) == 3, 15.0, 'three attempts')
    eventually(lambda: 'did not open: the fingers are 20 mm apart' in made.node.diagnostics.status().message, 10.0)
    time.sleep(1.0)
    assert len(made.hand.goals) == 3


@pytest.mark.parametrize('driver', [needs('gripper_command')])
def test_a_driver_that_comes_late_gets_the_command(spin, driver):
    made = Rig(driver, None)
    spin(made.node)
    made.driver.command(0.0)
    eventually(lambda: 'nobody offers the action /franka_gripper' in made.node.diagnostics.status().message, 10.0)
    hand = Hand(driver)
    executor = MultiThreadedExecutor(num_threads=2)
    executor.add_node(hand)
    threading.Thread(target=executor.spin, daemon=True).start()
    try:
        eventually(lambda: hand.width == 0.0, 15.0, 'closed')
    finally:
        executor.shutdown(timeout_sec=2.0)
        hand.close()
        hand.destroy_node()


def test_the_topic_is_the_default_and_needs_nothing(spin):
    made = Rig('topic', None)
    spin(made.node)
    eventually(lambda: made.driver._topic.get_subscription_count(), 10.0)
    made.driver.command(0.0)
    eventually(lambda: made.heard, 10.0, 'command')
    assert made.heard[0].width == 0.0 and made.heard[0].max_effort == EMBODIMENT.gripper.max_effort


def test_a_missing_package_is_named(ros, monkeypatch):
    for driver, package in (('franka', 'franka_msgs'), ('gripper_command', 'control_msgs')):
        with monkeypatch.context() as patch:
            patch.setitem(__import__('sys').modules, f'{package}.action', None)
            node = BaseNode(f'missing_{driver}')
            try:
                with pytest.raises(SetupError, match=f'{driver} needs the package {package}.*choose another driver'):
                    make_gripper(node, embodiment(driver))
            finally:
                node.destroy_node()


def test_names_and_positions():
    assert action_name(embodiment('franka')) == '/franka_gripper'
    assert action_name(embodiment('parallel_gripper_command')) == '/fr3_hand_controller/gripper_cmd'
    assert action_name(embodiment('franka', action='/robot/hand/')) == '/robot/hand'
    assert finger_position(embodiment('gripper_command'), 1.0) == pytest.approx(0.04)
    assert finger_position(embodiment('gripper_command', command='full'), 1.0) == pytest.approx(0.08)


@pytest.mark.parametrize(
    ('closing', 'success', 'width', 'failed', 'holding'),
    [
        (True, True, 0.0, False, False),
        (True, False, 0.04, False, True),
        (True, True, 0.04, False, True),
        (True, False, 0.08, True, False),
        (True, False, None, False, False),
        (False, True, 0.08, False, False),
        (False, False, 0.03, True, False),
        (False, False, None, True, False),
    ],
)
def test_what_the_end_of_a_command_means(closing, success, width, failed, holding):
    outcome = judge_gripper(closing, success, width, EMBODIMENT.gripper)
    assert (outcome.failed, outcome.holding) == (failed, holding) and outcome.text
