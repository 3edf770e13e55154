"""Service home with backend direct: the straight way, slowly, or a reason."""

from __future__ import annotations

import numpy as np
import pytest
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger
from test_controller_node import EMBODIMENT, Arm, enabled, eventually

from instructvla_ros.msg import ControllerState
from instructvla_ros.nodes.controller_node import ControllerNode

HOME = np.array(EMBODIMENT.home)


LOW = np.array([0.3, 0.35, 0.0, 0.0, 0.0, 0.2, -0.4])  # from home: aside, and 0.2 m lower


@pytest.fixture
def setup(spin, request):
    arm = Arm()
    arm.follower.reset(HOME + LOW)
    # Joint states may be late on a loaded machine; that silence stops the arm is tested with the controller.
    changes = {'ramp_time': 0.05, 'chunk_lease': 0.0, 'home_speed': 0.4, 'safety.max_state_age': 2.0}
    changes.update(getattr(request, 'param', {}))
    controller = ControllerNode(parameter_overrides=[Parameter(k, value=v) for k, v in changes.items()])
    spin(controller)
    spin(arm)
    eventually(lambda: arm.states and arm.states[-1].measured_positions, timeout=20.0, what='graph')
    arm.home = arm.create_client(Trigger, 'home')
    assert arm.home.wait_for_service(timeout_sec=20.0)
    return arm


def go(arm: Arm) -> Trigger.Response:
    future = arm.home.call_async(Trigger.Request())
    return eventually(lambda: future.done() and future.result(), 20.0, 'answer of home')


def test_home_is_reached_slowly_and_answered_on_arrival(setup):
    arm = setup
    assert not go(arm).success, 'disabled'
    enabled(arm)
    answer = go(arm)
    assert answer.success and 'at home after' in answer.message, answer.message
    np.testing.assert_allclose(arm.follower.sample(arm.now_ns())[0], HOME, atol=5e-3)
    speeds = [np.array(p.velocities) / EMBODIMENT.limits.velocity for m in arm.commands for p in m.points]
    fastest = max(np.abs(s).max() for s in speeds)
    assert 0.05 < fastest < 0.43 and not arm.refused


def test_chunks_wait_until_the_arm_is_home_and_stop_ends_the_way(setup):
    arm = setup
    enabled(arm)
    future = arm.home.call_async(Trigger.Request())
    eventually(lambda: arm.mode == ControllerState.TRACKING, what='on its way')
    chunk = arm.send()
    eventually(lambda: 'route' in arm.verdicts(chunk.id), what='refusal')
    arm.call('stop')
    answer = eventually(lambda: future.done() and future.result(), what='answer')
    assert not answer.success and 'stop service' in answer.message
    eventually(arm.resting, what='rest')
    assert np.abs(arm.follower.sample(arm.now_ns())[0] - HOME).max() > 0.05


@pytest.mark.parametrize('setup', [{'safety.workspace_upper': [0.8, 0.6, 0.4]}], indirect=True)
def test_a_way_that_is_not_free_is_not_begun(setup):
    arm = setup
    enabled(arm)
    start = arm.follower.sample(arm.now_ns())[0]
    answer = go(arm)
    assert not answer.success and 'the straight way home is not free' in answer.message
    assert 'leave the workspace at z' in answer.message and 'moveit can plan' in answer.message
    np.testing.assert_allclose(arm.follower.sample(arm.now_ns())[0], start, atol=1e-3)
