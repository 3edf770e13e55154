"""The launch file as `ros2 launch` sees it; runs where launch, launch_ros and (for the last tests) ros2cli are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('launch', reason='launch is not on the package index: part of a full ROS 2 install')
pytest.importorskip('launch_ros', reason='launch_ros is not on the package index: part of a full ROS 2 install')

import yaml  # noqa: E402
from launch.actions import DeclareLaunchArgument  # noqa: E402
from launch_ros.actions import Node  # noqa: E402
from launching import module_of, started_by  # noqa: E402

from instructvla_ros import config, launch_checks, resources  # noqa: E402
from instructvla_ros.settings import Embodiment  # noqa: E402
from launch import LaunchContext  # noqa: E402

FILE = Path(__file__).resolve().parents[2] / 'launch' / 'franka.launch.py'


def description() -> Any:
    return module_of(FILE).generate_launch_description()


def started(**arguments: str) -> dict[str, dict[str, Any]]:
    return started_by(description(), **arguments)


def test_every_argument_is_described():
    declared = [e for e in description().entities if isinstance(e, DeclareLaunchArgument)]
    assert len(declared) >= 10
    for argument in declared:
        assert argument.description and argument.description != 'no description given', argument.name


def test_the_simulator_comes_with_the_checkpoint_of_the_package_and_moves():
    nodes = started()
    assert set(nodes) == {'sim_node', 'controller_node', 'policy_node', 'viz_node'}
    assert (nodes['policy_node']['policy'], nodes['policy_node']['checkpoint']) == ('instructvla', 'tiny')
    assert nodes['controller_node'] == {
        'embodiment': 'franka.yaml', 'use_sim_time': False, 'dry_run': False, 'start_enabled': True,
        'backend': 'direct', 'gripper_driver': 'topic', 'chunk_lease': 0.18,
    }  # fmt: skip


def test_a_real_robot_starts_in_dry_run_disabled_and_without_a_simulator():
    nodes = started(robot='real')
    assert set(nodes) == {'controller_node', 'policy_node', 'viz_node'}
    assert nodes['policy_node']['policy'] == 'hold'
    assert nodes['controller_node']['dry_run'] is True
    assert nodes['controller_node']['start_enabled'] is False
    assert nodes['controller_node']['gripper_driver'] == 'franka' and nodes['controller_node']['backend'] == 'direct'


def test_mock_hardware_is_a_panda_under_moveit_that_may_move():
    nodes = started(robot='fake')
    assert set(nodes) == {'controller_node', 'policy_node', 'viz_node'}
    assert nodes['controller_node'] == {
        'embodiment': 'panda.yaml', 'use_sim_time': False, 'dry_run': False, 'start_enabled': True,
        'backend': 'moveit', 'gripper_driver': 'gripper_command', 'chunk_lease': 0.18,
    }  # fmt: skip
    assert nodes['policy_node']['policy'] == 'hold' and nodes['viz_node']['publish_tf'] is False


def test_our_nodes_take_the_namespace_and_rviz_does_not():
    context = LaunchContext()
    context.launch_configurations['namespace'] = '/left'
    for entity in description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
        elif isinstance(entity, Node):
            entity._perform_substitutions(context)
            ours = entity.node_package == 'instructvla_ros'
            assert ('/left' in (entity.expanded_node_namespace or '')) is ours, entity.node_executable


@pytest.mark.parametrize(
    'given, policy, checkpoint',
    [
        ({'task': 'pick'}, 'instructvla', 'tiny'),
        ({'task': 'stack'}, 'expert', ''),
        ({'task': 'stack', 'checkpoint': '/runs/a'}, 'instructvla', '/runs/a'),
        ({'policy': 'expert'}, 'expert', ''),
        ({'policy': 'hold'}, 'hold', ''),
        ({'policy': 'instructvla', 'task': 'stack'}, 'instructvla', 'tiny'),
        ({'robot': 'real'}, 'hold', ''),
        ({'robot': 'real', 'checkpoint': '/runs/a'}, 'instructvla', '/runs/a'),
        ({'robot': 'fake'}, 'hold', ''),
    ],
)
def test_who_decides(given, policy, checkpoint):
    for node in ('policy_node', 'reasoning_node'):
        said = started(reasoning='separate', **given)[node]
        assert (said['policy'], said['checkpoint']) == (policy, checkpoint)


def test_without_pytorch_the_expert_shows_the_simulator(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None)
    assert resources.choose_policy('put') == ('expert', '')
    assert resources.choose_policy('put', 'auto', 'mine') == ('instructvla', 'mine')


@pytest.mark.parametrize('robot, usual', [('sim', 'topic'), ('real', 'franka'), ('fake', 'gripper_command')])
def test_the_gripper_is_that_of_the_embodiment(robot, usual, tmp_path):
    def driver(**arguments: str) -> str:
        return started(robot=robot, **arguments)['controller_node']['gripper_driver']

    assert driver() == usual
    own = config.load(Embodiment, resources.config_file('franka.yaml'))
    own = config.replace(own, gripper=config.replace(own.gripper, driver='parallel_gripper_command'))
    file = tmp_path / 'own.yaml'
    file.write_text(yaml.safe_dump(config.to_dict(own)))
    expected = 'topic' if robot == 'sim' else 'parallel_gripper_command'  # the simulator hears nothing else
    assert driver(embodiment=str(file)) == expected
    assert driver(embodiment=str(file), gripper='franka') == 'franka'
    file.write_text('gripper: {driver: fingers}')
    assert driver(embodiment=str(file)) == ('topic' if robot == 'sim' else 'auto'), 'the node says what is wrong'


@pytest.mark.parametrize(
    'argument, given, executable, parameter, expected',
    [
        ('embodiment', 'panda.yaml', 'controller_node', 'embodiment', 'panda.yaml'),
        ('policy', 'hold', 'policy_node', 'policy', 'hold'),
        ('checkpoint', '/runs/a', 'policy_node', 'checkpoint', '/runs/a'),
        ('device', 'cpu', 'policy_node', 'device', 'cpu'),
        ('reasoning', 'off', 'policy_node', 'reasoning', 'off'),
        ('dry_run', 'true', 'controller_node', 'dry_run', True),
        ('enable', 'false', 'controller_node', 'start_enabled', False),
        ('task', 'stack', 'sim_node', 'task', 'stack'),
        ('seed', '7', 'sim_node', 'seed', 7),
        ('use_sim_time', 'true', 'policy_node', 'use_sim_time', True),
        ('embodiment', 'panda.yaml', 'viz_node', 'embodiment', 'panda.yaml'),
        ('robot', 'sim', 'viz_node', 'publish_tf', True),
        ('robot', 'real', 'viz_node', 'publish_tf', False),
        ('rviz', 'true', 'viz_node', 'use_sim_time', False),
        ('controller', 'moveit', 'controller_node', 'backend', 'moveit'),
        ('gripper', 'parallel_gripper_command', 'controller_node', 'gripper_driver', 'parallel_gripper_command'),
        ('web', 'true', 'web_node', 'host', '127.0.0.1'),
    ],
)
def test_arguments_reach_their_node(argument, given, executable, parameter, expected):
    assert started(**{argument: given})[executable][parameter] == expected


def test_slow_motion_of_the_simulator():
    slow = started(sim_speed='0.5', web='true', reasoning='separate', rviz='true')
    assert len(slow) >= 6 and all(values['use_sim_time'] is True for values in slow.values())
    assert slow['sim_node']['speed'] == slow['policy_node']['sim_speed'] == slow['reasoning_node']['sim_speed'] == 0.5
    assert slow['controller_node']['chunk_lease'] == pytest.approx(0.36)
    assert started(sim_speed='1.0')['policy_node']['use_sim_time'] is False


@pytest.mark.parametrize(
    'arguments, words',
    [
        ({'sim_speed': '3'}, "the speed is '3'; give auto, or 0.05 to 1"),
        ({'sim_speed': '0.5', 'robot': 'fake'}, 'sim_speed:=0.5 is for robot:=sim'),
    ],
)
def test_a_speed_that_cannot_work_is_said_before_anything_starts(arguments, words):
    context = LaunchContext()
    context.launch_configurations.update(arguments)
    for entity in description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    with pytest.raises(RuntimeError, match=words):
        module_of(FILE).check(context)


def test_reasoning_in_its_own_process():
    assert 'reasoning_node' in started(reasoning='separate')


def test_rviz_shows_and_viz_can_be_left_out():
    assert {'rviz2', 'viz_node'} <= set(started(rviz='true', viz='false'))
    assert not {'rviz2', 'viz_node'} & set(started(viz='false'))
    assert 'rviz2' not in started()


def test_the_operator_page_starts_when_asked_for():
    assert 'web_node' not in started()
    page = started(web='true', web_port='9001', web_host='0.0.0.0', embodiment='panda.yaml')['web_node']
    assert (page['port'], page['host'], page['embodiment']) == (9001, '0.0.0.0', 'panda.yaml')


def test_recording_when_asked_for():
    assert 'record_node' not in started() and 'record_node' not in started(record='false')
    assert started(record='true', use_sim_time='true', embodiment='panda.yaml')['record_node'] == {
        'folder': 'recordings', 'use_sim_time': True, 'embodiment': 'panda.yaml'
    }
    assert started(record='/data/monday')['record_node']['folder'] == '/data/monday'


@pytest.mark.skipif(shutil.which('ros2') is None, reason='the ros2 command is part of a full ROS 2 install')
def test_show_args_and_a_life_from_start_to_ctrl_c(tmp_path):
    shown = subprocess.run(
        ['ros2', 'launch', str(FILE), '--show-args'], capture_output=True, text=True, timeout=60, check=True
    )
    assert "'robot'" in shown.stdout and 'object at 0x' not in shown.stdout
    env = {**os.environ, 'ROS_LOG_DIR': str(tmp_path)}
    with (tmp_path / 'out.txt').open('w') as log:
        process = subprocess.Popen(
            ['ros2', 'launch', str(FILE), 'seed:=3'], stdout=log, stderr=subprocess.STDOUT, env=env,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300.0  # a busy machine takes a minute to load the checkpoint
        while 'waiting' not in (tmp_path / 'out.txt').read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(2.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60.0) in (0, 1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    text = (tmp_path / 'out.txt').read_text()
    assert text.count('finished cleanly') == 4, text
    assert 'process has died' not in text, text


@pytest.mark.skipif(shutil.which('ros2') is None, reason='the ros2 command is part of a full ROS 2 install')
def test_a_dead_controller_ends_the_launch(tmp_path):
    with (tmp_path / 'out.txt').open('w') as log:
        process = subprocess.Popen(
            ['ros2', 'launch', str(FILE), 'embodiment:=no_such.yaml'], stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, 'ROS_LOG_DIR': str(tmp_path)}, start_new_session=True,
        )
    try:
        process.wait(timeout=60.0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert 'no_such.yaml' in (tmp_path / 'out.txt').read_text()


@pytest.mark.skipif(shutil.which('ros2') is None, reason='the ros2 command is part of a full ROS 2 install')
def test_an_argument_that_cannot_work_ends_the_launch_before_anything_starts(tmp_path):
    done = subprocess.run(
        ['ros2', 'launch', str(FILE), 'seed:=many', 'web:=true', 'web_port:=http', 'use_sim_time:=2'],
        capture_output=True, text=True, timeout=60, env={**os.environ, 'ROS_LOG_DIR': str(tmp_path)},
    )
    text = done.stdout + done.stderr
    for sentence in (
        'seed:=many has to be a whole number', 'web_port:=http has to be a whole number',
        'use_sim_time:=2 has to be true or false',
    ):
        assert sentence in text, text
    assert done.returncode != 0 and 'process started' not in text, text


@pytest.mark.parametrize('file', ['franka.launch.py', 'replay.launch.py'])
def test_a_missing_rviz_is_said_before_anything_starts(file, monkeypatch):
    loaded = module_of(FILE.with_name(file))
    context = LaunchContext()
    context.launch_configurations.update(rviz='true', bag='monday')
    for entity in loaded.generate_launch_description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
    monkeypatch.setattr(launch_checks, 'installed', lambda name: name != 'rviz2')
    with pytest.raises(RuntimeError, match='rviz:=true needs the package rviz2: sudo apt install'):
        loaded.check(context)
    monkeypatch.setattr(launch_checks, 'installed', lambda name: True)
    assert loaded.check(context) is None


# -- arms that are not ours -------------------------------------------------------------------------------------------

ARM = FILE.with_name('arm.launch.py')
VENDOR = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument('robot_ip', default_value='none'),
        Node(package='rviz2', executable='rviz2'),
        ExecuteProcess(cmd=['echo', 'vendor for', LaunchConfiguration('robot_ip')], output='screen'),
    ])
"""


def install(prefix: Path, packages: tuple[str, ...], launch_file: str = '') -> None:
    """Empty packages in a prefix; the first one with a launch file."""
    for k, name in enumerate(packages):
        marker = prefix / 'share' / 'ament_index' / 'resource_index' / 'packages' / name
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text('')
        folder = prefix / 'share' / name / 'launch'
        folder.mkdir(parents=True, exist_ok=True)
        if k == 0 and launch_file:
            (folder / launch_file).write_text(VENDOR)


def run(*arguments: str, tmp_path: Path, prefix: Path | None = None) -> str:
    paths = ([str(prefix)] if prefix else []) + os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    done = subprocess.run(
        ['ros2', 'launch', str(ARM), *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, 'ROS_LOG_DIR': str(tmp_path), 'AMENT_PREFIX_PATH': os.pathsep.join(paths)},
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize('robot', ['fake', 'real'])
def test_what_is_missing_for_an_arm_is_named_in_full(robot, tmp_path, monkeypatch):
    arm = module_of(ARM)
    package, file, others, _ = arm.BRING_UP[robot]
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    text = arm.missing(robot)
    assert text.startswith(f'robot:={robot} needs {package}, {others[0]}, ')
    assert 'apt install' in text if robot == 'fake' else 'build franka_ros2' in text
    install(tmp_path, (package, *others[:-1]))
    assert f'needs {others[-1]}: ' in arm.missing(robot)
    install(tmp_path, (package, *others))
    assert f'no launch/{file}' in arm.missing(robot)
    install(tmp_path, (package, *others), file)
    assert arm.missing(robot) == ''


@pytest.mark.skipif(shutil.which('ros2') is None, reason='the ros2 command is part of a full ROS 2 install')
def test_the_launch_file_of_the_vendor_is_used_without_its_rviz(tmp_path):
    arm = module_of(ARM)
    for robot, arguments, said in (
        ('fake', (), 'vendor for none'), ('real', ('robot_ip:=10.0.0.2',), 'vendor for 10.0.0.2')
    ):
        package, file, others, _ = arm.BRING_UP[robot]
        install(tmp_path / robot, (package, *others), file)
        text = run(f'robot:={robot}', *arguments, tmp_path=tmp_path, prefix=tmp_path / robot)
        assert said in text and 'rviz' not in text, text


@pytest.mark.skipif(shutil.which('ros2') is None, reason='the ros2 command is part of a full ROS 2 install')
@pytest.mark.skipif(bool(os.environ.get('ROS_DISTRO')), reason='says what is missing where something is missing')
def test_without_the_vendor_the_launch_ends_with_one_sentence(tmp_path):
    text = run('robot:=fake', tmp_path=tmp_path)
    assert 'robot:=fake needs moveit_resources_panda_moveit_config' in text and 'apt install' in text
    assert run('robot:=real', tmp_path=tmp_path).count('ERROR') == 0, 'its driver runs already: nothing to start'
