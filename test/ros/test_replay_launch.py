"""replay.launch.py as `ros2 launch` sees it; runs where launch and launch_ros are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('launch', reason='launch is not on the package index: part of a full ROS 2 install')
pytest.importorskip('launch_ros', reason='launch_ros is not on the package index: part of a full ROS 2 install')

from launch.actions import DeclareLaunchArgument  # noqa: E402
from launching import module_of, started_by  # noqa: E402

FILE = Path(__file__).resolve().parents[2] / 'launch' / 'replay.launch.py'


def description() -> Any:
    return module_of(FILE).generate_launch_description()


def started(**arguments: str) -> dict[str, dict[str, Any]]:
    return started_by(description(), **arguments)


def test_every_argument_is_described_and_the_bag_is_required():
    declared = {e.name: e for e in description().entities if isinstance(e, DeclareLaunchArgument)}
    for argument in declared.values():
        assert argument.description and argument.description != 'no description given', argument.name
    assert declared['bag'].default_value is None
    with pytest.raises(RuntimeError, match='bag'):
        started()


def test_nothing_can_move_and_everybody_follows_the_clock_of_the_recording():
    nodes = started(bag='bags/monday', checkpoint='/runs/a', policy='instructvla', rate='0.5')
    assert set(nodes) == {'replay_node', 'policy_node', 'controller_node', 'viz_node'}
    assert nodes['controller_node']['dry_run'] is True
    assert nodes['policy_node']['policy'] == 'instructvla' and nodes['policy_node']['checkpoint'] == '/runs/a'
    player = nodes.pop('replay_node')
    assert player['bag'] == 'bags/monday' and player['rate'] == 0.5 and player['use_sim_time'] is False
    assert all(values['use_sim_time'] is True for values in nodes.values())


def test_rviz_on_request():
    assert 'rviz2' in started(bag='a', rviz='true') and 'viz_node' in started(bag='a', rviz='true', viz='false')
    assert 'viz_node' not in started(bag='a', viz='false')


def test_the_page_on_request_and_staying_to_look():
    nodes = started(bag='a', web='true', web_port='0', stay='true')
    assert nodes['web_node']['use_sim_time'] is True and nodes['web_node']['port'] == 0
    assert nodes['replay_node']['stay'] is True and started(bag='a')['replay_node']['stay'] is False
    assert 'web_node' not in started(bag='a')
