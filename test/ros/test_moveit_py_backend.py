"""Backend moveit_py in its process, against a stand-in for moveit_py (test/ros/standin_moveit_py)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip('moveit_msgs.srv', reason='moveit_msgs is not installed: part of MoveIt 2')

from rclpy.parameter import Parameter  # noqa: E402
from test_controller_node import EMBODIMENT, Arm, enabled, eventually  # noqa: E402
from test_moveit_backend import HOME, KIN, action_of, question  # noqa: E402

from instructvla_ros import config, resources  # noqa: E402
from instructvla_ros.control.clearance import Answer, Question  # noqa: E402
from instructvla_ros.control.collision import CollisionCheck  # noqa: E402
from instructvla_ros.control.srdf import semantic_description  # noqa: E402
from instructvla_ros.errors import KinematicsError, SetupError  # noqa: E402
from instructvla_ros.msg import ControllerState, SafetyVerdict  # noqa: E402
from instructvla_ros.nodes.controller_node import ControllerNode  # noqa: E402
from instructvla_ros.nodes.moveit_link import MoveItError  # noqa: E402
from instructvla_ros.nodes.moveit_py_backend import MoveItPyBackend  # noqa: E402
from instructvla_ros.nodes.moveit_py_config import parameters  # noqa: E402
from instructvla_ros.settings import Control, Embodiment, MoveIt, Obstacle  # noqa: E402

HERE = Path(__file__).resolve().parent
WALL = Obstacle('wall', (0.4, 0.02, 0.6), (0.45, 0.2, 0.4))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put the stand-in where the process finds it; the function makes it misbehave."""
    paths = [str(HERE / 'standin_moveit_py'), str(HERE), os.environ.get('PYTHONPATH', '')]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(p for p in paths if p))
    monkeypatch.delenv('STANDIN_TROUBLE', raising=False)
    return lambda trouble: monkeypatch.setenv('STANDIN_TROUBLE', trouble)


def control(**moveit: Any) -> Control:
    return Control(backend='moveit_py', moveit=MoveIt(**{'timeout': 2.0, 'startup_wait': 120.0, **moveit}))


class Asker:
    def __init__(self, settings: Control, embodiment: Embodiment = EMBODIMENT) -> None:
        self.answers: list[Answer] = []
        self.backend = MoveItPyBackend(embodiment, settings, self.answers.append)

    def judge(self, asked: Question, timeout: float = 30.0) -> Answer:
        self.answers.clear()
        self.backend.ask(asked)
        return eventually(lambda: self.answers and self.answers[0], timeout, 'answer')


@pytest.fixture
def ask(installed: Callable[[str], None]) -> Iterator[Callable[..., Asker]]:
    made: list[Asker] = []

    def build(**moveit: Any) -> Asker:
        made.append(Asker(control(**moveit)))
        return made[-1]

    yield build
    for each in made:
        each.backend.close()


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ways_are_judged_and_motions_planned(ask: Callable[..., Asker]) -> None:
    asker = ask(obstacles=(WALL,))
    free = asker.judge(question((0.0, -0.15, 0.0)))
    assert (free.free, free.obstacle, free.failure) == (17, '', '')
    blocked = asker.judge(question((0.0, 0.3, 0.0)))
    assert 2 < blocked.free < 15 and not blocked.failure
    assert (blocked.subject, blocked.obstacle) == ('scene', 'the arm would touch something in the scene')
    assert asker.judge(question((0.0, 0.0, 0.0))).free == 17, 'the base stands in the table and may'
    away = HOME + np.array([-0.6, 0.2, 0, 0, 0, 0, 0])
    route = asker.backend.plan(away, HOME)
    np.testing.assert_allclose(route.at(0.0)[0], away, atol=1e-6)
    np.testing.assert_allclose(route.at(route.duration)[0], HOME, atol=1e-6)
    assert np.abs(route.velocities).max() <= 0.21 * max(EMBODIMENT.limits.velocity), 'home_speed is 0.2'
    with pytest.raises(MoveItError, match='found no way: PLANNING_FAILED'):
        asker.backend.plan(HOME + [0.9, 0, 0, 0, 0, 0, 0], HOME - [0.6, 0, 0, 0, 0, 0, 0])


def test_a_state_that_touches_itself_is_named(ask: Callable[..., Asker]) -> None:
    folded = next(q for q in np.random.default_rng(1).uniform(*_limits(), (4000, 7)) if CHECK(q))
    found = ask(scene=False).backend.process.call('states', 5.0, path=[HOME.tolist(), folded.tolist()])
    assert (found['free'], found['subject']) == (1, 'self')


CHECK = CollisionCheck(EMBODIMENT, KIN.urdf)


def _limits() -> tuple[Any, Any]:
    return EMBODIMENT.limits.lower, EMBODIMENT.limits.upper


def test_the_process_ends_with_its_backend_and_does_not_crash(installed: Callable[[str], None], capfd: Any) -> None:
    asker = Asker(control())
    pid = asker.backend.process.pid
    assert running(pid)
    asker.backend.close()
    assert not running(pid)
    text = capfd.readouterr()
    assert 'Segmentation' not in text.err and '[INFO] [moveit_py]: loading' in text.err and not text.out


def test_a_process_that_dies_makes_the_arm_hold(installed: Callable[[str], None], ask: Callable[..., Asker]) -> None:
    installed('crash')
    asker = ask()
    answer = asker.judge(question((0.0, 0.1, 0.0)))
    assert answer.failure == 'the process of moveit_py ended (exit code -6)'
    assert 'ended (exit code -6)' in asker.judge(question((0.0, 0.1, 0.0))).failure, 'and later too'
    with pytest.raises(MoveItError, match='ended'):
        asker.backend.plan(HOME, HOME)


def test_an_answer_that_is_late_is_not_used(installed: Callable[[str], None], ask: Callable[..., Asker]) -> None:
    installed('slow')
    asker = ask(timeout=0.3)
    assert 'moveit_py did not answer within' in asker.judge(question((0.0, 0.1, 0.0), 3)).failure
    time.sleep(0.5)
    assert not asker.backend.process._answers


@pytest.mark.parametrize(
    ('trouble', 'moveit', 'said'),
    [
        ('start', {}, 'moveit_py does not start: Unable to construct robot model'),
        ('', {'check': 'cartesian'}, 'check: cartesian needs backend moveit'),
        ('', {'config_package': 'no_such_moveit_config'}, 'config_package no_such_moveit_config'),
        ('', {'startup_wait': 0.01}, r'did not answer within 10 ms; choose backend moveit or direct'),
    ],
)
def test_what_does_not_work_is_one_sentence(
    installed: Callable[[str], None], trouble: str, moveit: dict[str, Any], said: str
) -> None:
    installed(trouble)
    with pytest.raises(SetupError, match=said):
        Asker(control(**moveit))


def test_without_moveit_py_the_way_out_is_said_or_taken(spin: Callable[..., None]) -> None:
    with pytest.raises(SetupError, match='moveit_py cannot be imported.*ros-<distro>-moveit-py.*or choose backend'):
        Asker(control())
    node = ControllerNode(
        parameter_overrides=[Parameter('backend', value='moveit_py'), Parameter('backend_fallback', value=True)]
    )
    spin(node)
    assert node._moveit is None


def test_the_controller_stops_before_the_wall(
    spin: Callable[..., None], installed: Callable[[str], None], tmp_path: Path
) -> None:
    file = tmp_path / 'controller.yaml'
    wall = '{name: wall, size: [0.4, 0.02, 0.6], position: [0.45, 0.2, 0.4]}'
    file.write_text(f'backend: moveit_py\nmoveit: {{timeout: 2.0, startup_wait: 120.0, obstacles: [{wall}]}}\n')
    given = {'config': str(file), 'ramp_time': 0.05, 'chunk_lease': 0.0}
    node, arm = ControllerNode(parameter_overrides=[Parameter(k, value=v) for k, v in given.items()]), Arm()
    spin(node)
    spin(arm)
    eventually(
        lambda: arm.states and arm.states[-1].measured_positions and arm.chunks.get_subscription_count(), 30.0, 'graph'
    )
    enabled(arm)
    start = arm.tcp()
    arm.play(step=(0, 0.02, 0, 0, 0, 0, 1.0), horizon=16)
    verdict = action_of(arm, 'collision', 20.0)
    assert verdict.action == SafetyVerdict.CLIPPED and 'something in the scene' in verdict.text
    eventually(lambda: arm.mode == ControllerState.HOLDING, 20.0, what='HOLDING')
    assert -0.002 < (arm.tcp() - start)[1] < 0.15


# -- configuration of our own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('file', ['franka.yaml', 'panda.yaml'])
def test_the_semantic_description_fits_our_own_collision_check(file: str) -> None:
    robot = config.load(Embodiment, resources.config_file(file))
    urdf = resources.robot_description(robot.name)
    root = ElementTree.fromstring(semantic_description(robot, urdf, 'arm'))
    chain = root.find('group/chain')
    assert (chain.get('base_link'), chain.get('tip_link')) == (robot.base_frame, robot.tcp_frame)
    assert [g.get('name') for g in root.findall('group')] == ['arm', f'{robot.name}_hand']
    allowed = {frozenset((e.get('link1'), e.get('link2'))) for e in root.findall('disable_collisions')}
    links = {e.get('name') for e in ElementTree.fromstring(urdf).findall('link')}
    assert all(pair <= links and len(pair) == 2 for pair in allowed)
    check = CollisionCheck(robot, urdf)
    names = [g.name.rpartition('_')[0] for g in check.geometry.geometryObjects]
    ours = {frozenset((names[p.first], names[p.second])) for p in check.geometry.collisionPairs}
    every = {frozenset((a, b)) for a in names for b in names if a != b}
    assert allowed == every - ours
    assert frozenset((f'{robot.name}_link0', f'{robot.name}_hand')) not in allowed


def test_the_parameters_hold_what_moveit_cpp_reads() -> None:
    found = parameters(EMBODIMENT, Control(home_speed=0.1, moveit=MoveIt(planning_time=3.0)))
    assert found['planning_pipelines'] == {'pipeline_names': ['ompl']}
    assert found['plan_request_params']['planning_time'] == 3.0
    assert found['plan_request_params']['max_velocity_scaling_factor'] == 0.1
    controller = found['moveit_simple_controller_manager']
    assert controller['controller_names'] == ['fr3_arm_controller']
    assert controller['fr3_arm_controller']['joints'] == list(EMBODIMENT.arm_joints)
    limits = found['robot_description_planning']['joint_limits']['fr3_joint2']
    assert (limits['max_velocity'], limits['min_position']) == (1.0, -1.5133)
    pilz = parameters(EMBODIMENT, Control(moveit=MoveIt(pipeline='pilz_industrial_motion_planner')))
    adapters = pilz['pilz_industrial_motion_planner']['response_adapters']
    assert not any('TimeOptimal' in a for a in adapters) and pilz['plan_request_params']['planner_id'] == 'PTP'


def test_a_plan_that_makes_no_sense_is_refused(ask: Callable[..., Asker], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ask().backend
    for plan in ({'times': [0.0, 1.0], 'positions': [[0.0]], 'velocities': [[0.0]]}, {'times': [0.0]}):
        monkeypatch.setattr(backend.process, 'call', lambda *a, plan=plan, **k: plan)
        with pytest.raises(KinematicsError, match='cannot be used'):
            backend.plan(HOME, HOME)
