"""Backend moveit against a stand-in for move_group: checked, cut, refused and silent; scene, homing, fallback.

Needs moveit_msgs (ros-<distro>-moveit-msgs); everything that can be tested without is in test/test_clearance.py.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip('moveit_msgs.srv', reason='moveit_msgs is not installed: part of MoveIt 2')

from rclpy.parameter import Parameter  # noqa: E402
from standin_move_group import StandinMoveGroup  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from test_controller_node import EMBODIMENT, Arm, enabled, eventually  # noqa: E402

from instructvla_ros.control.clearance import Answer, Question  # noqa: E402
from instructvla_ros.control.kinematics import Kinematics  # noqa: E402
from instructvla_ros.errors import SetupError  # noqa: E402
from instructvla_ros.geometry import Array  # noqa: E402
from instructvla_ros.msg import ControllerState, SafetyVerdict  # noqa: E402
from instructvla_ros.nodes import moveit_messages as messages  # noqa: E402
from instructvla_ros.nodes.controller_node import ControllerNode  # noqa: E402
from instructvla_ros.nodes.moveit_asking import planning_group  # noqa: E402
from instructvla_ros.nodes.moveit_backend import MoveItBackend, tcp_to_link  # noqa: E402
from instructvla_ros.nodes.moveit_link import MoveItError, MoveItLink  # noqa: E402
from instructvla_ros.settings import Control, MoveIt, Obstacle  # noqa: E402

KIN = Kinematics(EMBODIMENT)
HOME = np.array(EMBODIMENT.home)


def control(**moveit) -> Control:
    return Control(backend='moveit', moveit=MoveIt(**{'timeout': 2.0, 'startup_wait': 10.0, **moveit}))


def question(direction: tuple[float, float, float], count: int = 17) -> Question:
    """The way from home along a straight line [m]."""
    poses = np.tile(KIN.forward(HOME), (count, 1, 1))
    poses[:, :3, 3] += np.linspace(0.0, 1.0, count)[:, None] * np.array(direction)
    return Question(None, HOME, 0, 0.1 * np.arange(count), poses)  # type: ignore[arg-type]


class Asker:
    """A backend with its answers."""

    def __init__(self, settings: Control) -> None:
        self.answers: list[Answer] = []
        self.backend = MoveItBackend(EMBODIMENT, settings, self.answers.append)

    def judge(self, asked: Question) -> Answer:
        self.answers.clear()
        self.backend.ask(asked)
        return eventually(lambda: self.answers and self.answers[0], 10.0, 'answer')


@pytest.fixture
def group(spin) -> StandinMoveGroup:
    node = StandinMoveGroup(EMBODIMENT)
    spin(node)
    return node


@pytest.fixture
def asker(group, request):
    made = Asker(control(**getattr(request, 'param', {})))
    yield made
    made.backend.close()


BOTH = pytest.mark.parametrize('asker', [{'check': 'states'}, {'check': 'cartesian'}], indirect=True)


@BOTH
def test_a_free_way_is_free(asker, group):
    answer = asker.judge(question((0.1, 0.1, -0.1)))
    assert answer.failure == '' and answer.obstacle == '' and answer.free == 17
    calls = group.calls.get('check_state_validity', 0), group.calls.get('compute_cartesian_path', 0)
    assert 4 < calls[0] < 17 if calls[0] else calls == (0, 1), 'states along the way, or the whole way at once'


@pytest.mark.parametrize('asker', [{'resolution': 0.0}], indirect=True)
def test_each_state_is_asked_about_where_that_is_wanted(asker, group):
    assert asker.judge(question((0.1, 0.1, -0.1))).free == 17
    assert group.calls['check_state_validity'] == 17


@BOTH
def test_a_box_in_the_way_cuts_before_it(asker, group):
    start = KIN.forward(HOME)[:3, 3]
    group.add_box('crate', (0.4, 0.1, 0.6), (start[0], start[1] + 0.3, 0.4))
    answer = asker.judge(question((0.0, 0.3, 0.0)))
    assert 2 < answer.free < 14 and answer.obstacle and not answer.failure
    if answer.subject != EMBODIMENT.tcp_frame:
        assert 'crate' in answer.subject and 'would touch crate' in answer.obstacle
    free = asker.judge(question((0.0, -0.3, 0.0)))
    assert free.free == 17


@pytest.mark.parametrize('asker', [{'check': 'cartesian', 'tip': 'fr3_hand'}], indirect=True)
def test_the_cartesian_path_of_another_link(asker, group):
    offset = tcp_to_link(KIN.urdf, 'fr3_hand_tcp', 'fr3_hand')
    assert offset[2, 3] == pytest.approx(-0.1034)
    answer = asker.judge(question((0.1, 0.1, -0.1)))
    assert (answer.free, answer.obstacle, answer.failure) == (17, '', '')


@pytest.mark.parametrize('asker', [{'check': 'cartesian', 'elbow': 0.0}], indirect=True)
def test_a_path_with_another_elbow_does_not_count(asker, group):
    answer = asker.judge(question((0.1, 0.1, -0.1)))
    assert answer.rule == 'moveit_path' and answer.free < 17 and 'differs' in answer.obstacle


@pytest.mark.parametrize('asker', [{'timeout': 0.2}], indirect=True)
def test_silence_is_a_failure_with_numbers(asker, group):
    group.silent.add('check_state_validity')
    begin = time.monotonic()
    answer = asker.judge(question((0.1, 0.0, 0.0)))
    assert 'answered 0 of 8 questions sent within' in answer.failure and time.monotonic() - begin < 5.0
    group.silent.clear()
    assert eventually(lambda: not asker.judge(question((0.05, 0.0, 0.0))).failure, 10.0, 'it recovers')


def test_the_scene_has_the_table_and_the_obstacles(group):
    crate = Obstacle('crate', (0.2, 0.3, 0.4), (0.5, 0.4, 0.2), (0.0, 0.0, 0.5), ('fr3_hand',))
    asker = Asker(control(obstacles=(crate,)))
    try:
        items = {o.id: o for o in group.cell.scene.world.collision_objects}
        assert set(items) == {'table', 'crate'}
        assert list(items['table'].primitives[0].dimensions) == [1.6, 1.6, 0.05]
        assert items['table'].primitive_poses[0].position.z == pytest.approx(-0.025)
        assert items['crate'].primitive_poses[0].orientation.z == pytest.approx(np.sin(0.25))
        assert items['crate'].header.frame_id == EMBODIMENT.base_frame
        names, matrix = messages.contact_matrix(type('Answer', (), {'scene': group.cell.scene}))
        assert matrix[names.index('table')][names.index('fr3_leftfinger')]
        assert matrix[names.index('fr3_hand')][names.index('crate')]
        assert not matrix[names.index('table')][names.index('crate')]
        # The base stands on the table and the fingers may reach it; the elbow may not.
        assert asker.judge(question((0.1, 0.0, -0.47))).obstacle == ''
        asker.backend.apply_scene()
        assert len(group.cell.scene.world.collision_objects) == 2
    finally:
        asker.backend.close()


def test_a_plan_is_a_route_and_a_blocked_one_says_so(asker, group):
    away = HOME + np.array([0.6, 0.2, 0, 0, 0, 0, 0])
    route = asker.backend.plan(away, HOME)
    np.testing.assert_allclose(route.at(0.0)[0], away, atol=1e-6)
    np.testing.assert_allclose(route.at(route.duration)[0], HOME, atol=1e-6)
    group.add_box('wall', (0.1, 0.4, 1.0), tuple(KIN.forward(HOME)[:3, 3]))
    with pytest.raises(Exception, match=r'MoveIt found no way: PLANNING_FAILED \(-1\)'):
        asker.backend.plan(away, HOME)


def test_a_link_names_what_is_not_there(ros):
    link = MoveItLink('robot1')
    try:
        assert link.missing(['check_state_validity']) == ['/robot1/check_state_validity']
        with pytest.raises(MoveItError, match='/robot1/compute_fk is not there'):
            request = messages.forward_request(EMBODIMENT.arm_joints, HOME, ['fr3_hand'], 'fr3_link0')
            link.call('compute_fk', request, 1.0)
    finally:
        link.close()


def test_names_of_groups_and_errors():
    assert planning_group(EMBODIMENT, Control()) == 'fr3_arm'
    assert planning_group(EMBODIMENT, control(group='arm')) == 'arm'
    codes = messages.MoveItErrorCodes
    assert messages.error_name(codes(val=codes.NO_IK_SOLUTION)) == 'NO_IK_SOLUTION (-31)'
    assert messages.error_name(codes(val=77)) == 'error code 77'
    with pytest.raises(SetupError, match='fixed to the tcp'):
        tcp_to_link(KIN.urdf, 'fr3_hand_tcp', 'fr3_link3')


# -- the controller node with it --------------------------------------------------------------------------------------


def overrides(**changes) -> list[Parameter]:
    given = {
        'backend': 'moveit', 'ramp_time': 0.05, 'chunk_lease': 0.0, 'moveit.timeout': 2.0, 'moveit.startup_wait': 20.0,
        **changes,
    }  # fmt: skip
    return [Parameter(k, value=v) for k, v in given.items()]


@pytest.fixture
def setup(spin, group) -> tuple[Arm, ControllerNode]:
    arm = Arm()
    controller = ControllerNode(parameter_overrides=overrides())
    spin(controller)
    spin(arm)
    eventually(
        lambda: arm.states and arm.states[-1].measured_positions and arm.chunks.get_subscription_count(), 10.0, 'graph'
    )
    return arm, controller


def action_of(arm: Arm, rule: str, timeout: float = 6.0) -> SafetyVerdict:
    return eventually(
        lambda: next((v for s in list(arm.states) for v in s.verdicts if v.rule == rule), None), timeout, rule
    )


def tcp(arm: Arm) -> Array:
    return arm.tcp()


def test_chunks_move_the_arm_once_checked(setup, group):
    arm, controller = setup
    enabled(arm)
    start = arm.tcp()
    arm.play(step=(0.005, 0.0, -0.004, 0, 0, 0, 1.0), horizon=16)
    eventually(lambda: arm.mode == ControllerState.HOLDING, 10.0, what='HOLDING again')
    moved = arm.tcp() - start
    # A loaded machine misses periods and plays less of the chunk, along the same line.
    assert 0.003 < moved[0] < 0.085 and not arm.refused
    assert moved[2] / moved[0] == pytest.approx(-0.8, abs=0.2)
    assert group.calls['check_state_validity'] >= 4


def test_an_obstacle_stops_the_arm_before_it(setup, group):
    arm, _ = setup
    enabled(arm)
    start = arm.tcp()
    group.add_box('crate', (0.4, 0.1, 0.6), (start[0], start[1] + 0.3, 0.4))
    arm.play(step=(0, 0.02, 0, 0, 0, 0, 1.0), horizon=16)
    verdict = action_of(arm, 'collision')
    assert verdict.action == SafetyVerdict.CLIPPED and 'crate' in verdict.text
    eventually(lambda: arm.mode == ControllerState.HOLDING, 10.0, what='HOLDING')
    assert -0.002 < (arm.tcp() - start)[1] < 0.2 and not group.cell.contacts(arm.follower.sample(arm.now_ns())[0])


def test_a_silent_move_group_holds_the_arm(setup, group):
    arm, _ = setup
    enabled(arm)
    group.silent.add('check_state_validity')
    start = arm.tcp()
    chunk = arm.send(horizon=16)
    eventually(lambda: {'moveit', 'moveit_timeout'} & arm.verdicts(chunk.id).keys(), what='verdict')
    assert not [s for s in arm.states if s.chunk_id == chunk.id]
    np.testing.assert_allclose(arm.tcp(), start, atol=1e-6)


def test_homing_is_planned(setup, group):
    arm, _ = setup
    enabled(arm)
    arm.play(step=(0, 0.01, 0, 0, 0, 0, 1.0), horizon=8)
    eventually(lambda: arm.mode == ControllerState.HOLDING, 10.0, what='HOLDING')
    home = arm.create_client(Trigger, 'home')
    assert home.wait_for_service(timeout_sec=20.0)
    for attempt in range(1, 6):
        future = home.call_async(Trigger.Request())
        answer = eventually(lambda future=future: future.done() and future.result(), 30.0, 'home')
        assert group.calls['plan_kinematic_path'] == attempt
        if answer.success or 'behind' not in answer.message:  # a loaded machine misses periods and falls behind
            break
        eventually(lambda: arm.mode == ControllerState.HOLDING, 10.0, what='HOLDING')
    assert answer.success, answer.message
    np.testing.assert_allclose(arm.follower.sample(arm.now_ns())[0], HOME, atol=5e-3)


def test_without_move_group_it_does_not_start_or_falls_back(ros):
    with pytest.raises(SetupError, match=r'/check_state_validity.*start move_group, or set backend: direct'):
        ControllerNode(parameter_overrides=overrides(**{'moveit.startup_wait': 0.2}))
    node = ControllerNode(parameter_overrides=overrides(**{'moveit.startup_wait': 0.2, 'backend_fallback': True}))
    try:
        assert 'direct instead of moveit' in str(node.diagnostics.status().message)
    finally:
        node.close()
        node.destroy_node()
