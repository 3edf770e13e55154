"""instructvla doctor --moveit against a stand-in move_group: what fits, what does not, and what to do."""

from __future__ import annotations

import pytest

from instructvla_ros import doctor
from instructvla_ros.cli import main
from instructvla_ros.nodes import moveit_messages
from instructvla_ros.nodes.moveit_doctor import check

CONTROL = 'controller.yaml'
needs_messages = pytest.mark.skipif(bool(moveit_messages.MISSING), reason='moveit_msgs is not installed')


def by_topic(findings) -> dict[str, doctor.Finding]:
    return {f.topic: f for f in findings}


def test_without_messages_it_says_what_to_install(ros, monkeypatch):
    monkeypatch.setattr('instructvla_ros.nodes.moveit_link.MISSING', 'the messages of MoveIt are not installed (x)')
    (finding,) = check('franka.yaml', CONTROL, 0.1)
    assert finding.level == doctor.MISSING and 'not installed' in finding.text and 'direct' in finding.remedy


def test_a_bad_configuration_is_a_finding(ros):
    (finding,) = check('no_such.yaml', CONTROL, 0.1)
    assert finding.topic == 'configuration' and 'no_such.yaml' in finding.text


@needs_messages
def test_without_move_group_the_services_and_topics_are_named(ros, capsys):
    found = by_topic(check('franka.yaml', CONTROL, 0.2))
    assert '/check_state_validity' in found['move_group'].text and found['move_group'].remedy
    assert found['arm controller'].level == found['joint states'].level == doctor.MISSING
    assert '/fr3_arm_controller/joint_trajectory' in found['arm controller'].text


@needs_messages
def test_an_installation_that_fits(spin):
    from standin_move_group import StandinMoveGroup
    from test_controller_node import EMBODIMENT, Arm

    group = StandinMoveGroup(EMBODIMENT)
    spin(group)
    spin(Arm())
    found = by_topic(check('franka.yaml', CONTROL, 20.0))
    assert {t: f.level for t, f in found.items() if t not in ('planning scene', 'moveit_py')} == dict.fromkeys(
        ['messages', 'move_group', 'planning group', 'joint limits', 'tip', 'arm controller', 'joint states'], doctor.OK
    )
    assert found['planning scene'].level == doctor.NOTE and 'without table' in found['planning scene'].text
    group.add_box('table', (1.0, 1.0, 0.1), (0.4, 0.0, -0.05))
    assert by_topic(check('franka.yaml', CONTROL, 20.0))['planning scene'].level == doctor.OK


@needs_messages
def test_another_arm_another_group_and_tighter_limits_are_named(spin, tmp_path):
    from standin_move_group import StandinMoveGroup
    from test_controller_node import EMBODIMENT

    group = StandinMoveGroup(EMBODIMENT, group='arm')
    urdf = group.kinematics.urdf.replace('upper="2.7437"', 'upper="1.0"')
    group.set_parameters([type(group.get_parameter('robot_description'))('robot_description', value=urdf)])
    spin(group)
    found = by_topic(check('franka.yaml', CONTROL, 20.0))
    assert 'no group fr3_arm' in found['planning group'].text and 'one of: arm' in found['planning group'].remedy
    assert urdf != group.kinematics.urdf
    assert 'fr3_joint1' in found['joint limits'].text and found['joint limits'].level == doctor.MISSING
    panda = by_topic(check('panda.yaml', CONTROL, 20.0))
    assert 'panda_joint1' in panda['joints'].text and panda['tip'].level == doctor.MISSING


def test_the_command(ros, capsys):
    code = main(['doctor', '--moveit', '--embodiment', 'no_such.yaml'])
    assert code == 1 and 'no_such.yaml' in capsys.readouterr().out
