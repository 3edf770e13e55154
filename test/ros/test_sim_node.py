"""The simulator node seen from outside: what a robot and its cameras would offer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from instructvla_ros import config, resources
from instructvla_ros.errors import ConfigError, SetupError, TaskError
from instructvla_ros.msg import GripperCommand, SimState
from instructvla_ros.nodes import convert, convert_image, convert_robot, qos
from instructvla_ros.nodes.sim_node import SimNode
from instructvla_ros.settings import Embodiment, Sim
from instructvla_ros.srv import ResetWorld

EMBODIMENT = config.load(Embodiment, resources.config_file('franka.yaml'))
HOME = np.array(EMBODIMENT.home)


def eventually(condition: Callable[[], Any], timeout: float = 8.0, what: str = '') -> Any:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f'not within {timeout} s: {what}')


class Client(Node):
    """Listens to everything except images, which a test asks for by name."""

    def __init__(self) -> None:
        super().__init__('client')
        self.heard: dict[str, list[Any]] = {}
        topics = EMBODIMENT.topics
        self.listen(JointState, topics.joint_states)
        self.listen(SimState, '/sim/state')
        self.listen(Clock, '/clock')
        self.trajectory = self.create_publisher(JointTrajectory, topics.joint_trajectory, qos.COMMAND)
        self.gripper = self.create_publisher(GripperCommand, topics.gripper_command, qos.EVENT)
        self.reset = self.create_client(ResetWorld, '/sim/reset')

    def listen(self, kind: Any, topic: str, profile: Any = qos.SENSOR) -> list[Any]:
        messages = self.heard.setdefault(topic, [])
        self.create_subscription(kind, topic, messages.append, profile)
        return messages

    @property
    def joints(self) -> JointState:
        return eventually(lambda: self.heard['/joint_states'], what='joint states')[-1]

    @property
    def state(self) -> SimState:
        return eventually(lambda: self.heard['/sim/state'], what='ground truth')[-1]

    def call_reset(self, **request: Any) -> ResetWorld.Response:
        assert self.reset.wait_for_service(timeout_sec=20.0)
        future = self.reset.call_async(ResetWorld.Request(**request))
        return eventually(lambda: future.done() and future.result(), what='answer of /sim/reset')

    def move(self, q: np.ndarray, seconds: float = 1.5, **changes: Any) -> None:
        names = changes.get('names', EMBODIMENT.arm_joints)
        self.trajectory.publish(convert_robot.trajectory_to_msg(names, [seconds], [q], np.zeros((1, len(q))), 0))


@pytest.fixture(scope='module')
def sim_file(tmp_path_factory) -> Path:
    """Small pictures, so that the tests are quick."""
    text = resources.config_file('sim.yaml').read_text()
    file = tmp_path_factory.mktemp('config') / 'sim.yaml'
    file.write_text(text.replace('fovy:', 'width: 160\n    height: 120\n    fovy:'))
    assert all(c.width == 160 for c in config.load(Sim, file).cameras)
    return file


@pytest.fixture
def start(spin, sim_file) -> Callable[..., tuple[Client, SimNode]]:
    def make(**overrides: Any) -> tuple[Client, SimNode]:
        given = {'config': str(sim_file), 'task': 'pick', 'seed': 3, **overrides}
        sim = SimNode(parameter_overrides=[Parameter(k, value=v) for k, v in given.items()])
        client = Client()
        spin(sim)
        spin(client)
        eventually(lambda: client.heard['/joint_states'] and client.trajectory.get_subscription_count(), what='graph')
        return client, sim

    return make


def stamp(message: Any) -> int:
    return convert.stamp_from_msg(message.clock if isinstance(message, Clock) else message.header.stamp)


def test_joint_states_clock_and_description_are_those_of_a_robot(start):
    client, _ = start()
    description = client.listen(String, '/robot_description', qos.LATCHED)
    state = convert_robot.robot_state_from_msg(client.joints, EMBODIMENT)
    np.testing.assert_allclose(state.q, HOME, atol=0.02)
    assert state.gripper > 0.95 and np.abs(state.dq).max() < 0.1
    before, begin = len(client.heard['/joint_states']), time.monotonic()
    time.sleep(2.0)
    rate = (len(client.heard['/joint_states']) - before) / (time.monotonic() - begin)
    assert 60.0 < rate < 110.0  # 100 Hz; a loaded machine may lose some best effort messages
    for topic in ('/joint_states', '/clock'):
        stamps = np.array([stamp(m) for m in client.heard[topic]])
        assert np.all(np.diff(stamps) > 0), topic
    assert abs(stamp(client.joints) - time.time_ns()) < 0.5e9, 'simulated time starts at system time'
    text = eventually(lambda: description, what='robot description')[0].data
    assert 'fr3_hand_tcp' in text and 'camera_color_optical_frame' in text


def test_images_have_their_size_stamp_and_calibration(start):
    client, sim = start(jpeg_quality=90)
    received: dict[str, list[Any]] = {}
    for name, view in EMBODIMENT.views.items():
        received[name] = client.listen(Image, view.topic)
        received[name + ' info'] = client.listen(CameraInfo, view.info_topic)
        received[name + ' jpeg'] = client.listen(CompressedImage, view.topic + '/compressed')
    eventually(lambda: all(len(m) > 5 for m in received.values()), what='all kinds of images')
    for name, view in EMBODIMENT.views.items():
        message = received[name][-1]
        image = convert_image.image_from_msg(message)
        assert image.shape == (120, 160, 3) and image.std() > 5.0 and message.header.frame_id == view.frame_id
        jpegs = {stamp(m): convert_image.compressed_from_msg(m) for m in received[name + ' jpeg']}
        raws = {stamp(m): convert_image.image_from_msg(m) for m in received[name]}
        common = sorted(jpegs.keys() & raws.keys())
        assert common and np.abs(jpegs[common[0]].astype(int) - raws[common[0]]).mean() < 4.0
        k, width, height = convert.intrinsics_from_msg(received[name + ' info'][-1])
        assert (width, height) == (160, 120) and k[0, 2] == pytest.approx(79.5)
    third, wrist = ({stamp(m) for m in received[v]} for v in EMBODIMENT.views)
    assert len(third & wrist) >= 0.5 * min(len(third), len(wrist)), 'both cameras show the same instants'
    assert sim.diagnostics.counted('frame of wrist dropped') == 0


def test_views_nobody_listens_to_are_not_drawn(start):
    client, sim = start()
    images = client.listen(Image, EMBODIMENT.views['wrist'].topic)
    eventually(lambda: len(images) > 3, what='wrist images')
    keys = [v.key for v in sim.diagnostics.status().values]
    assert any('render wrist' in k for k in keys) and not any('render third_person' in k for k in keys)


def test_trajectories_move_the_arm_and_bad_ones_are_refused_with_a_reason(start):
    client, sim = start()
    goal = HOME + np.array([0.2, 0.1, -0.1, 0.1, 0.1, 0.0, 0.2])
    client.move(goal)
    eventually(
        lambda: np.abs(convert_robot.robot_state_from_msg(client.joints, EMBODIMENT).q - goal).max() < 0.02, what='goal'
    )
    client.move(goal[:6], names=EMBODIMENT.arm_joints[:6])
    eventually(lambda: sim.diagnostics.counted('trajectories rejected') == 1, what='rejection')
    client.move(HOME + np.array([1.5, 0, 0, 0, 0, 0, 0]), seconds=0.01)
    eventually(lambda: sim.diagnostics.counted('trajectories rejected') == 2, what='rejection of a jump')
    values = {v.key: v.value for v in sim.diagnostics.status().values}
    assert 'rad/s' in values['trajectories rejected [last reason]']
    broken = convert_robot.trajectory_to_msg(EMBODIMENT.arm_joints, [1.0], [HOME], [np.zeros(7)], 0)
    broken.points[0].positions = [0.0]
    client.trajectory.publish(broken)
    eventually(lambda: sim.diagnostics.counted('joint_trajectory dropped') == 1, what='malformed')
    np.testing.assert_allclose(convert_robot.robot_state_from_msg(client.joints, EMBODIMENT).q, goal, atol=0.03)


def test_gripper_follows_its_command(start):
    client, sim = start()
    client.gripper.publish(convert_robot.gripper_to_msg(0.25, EMBODIMENT, 0))
    eventually(
        lambda: abs(convert_robot.robot_state_from_msg(client.joints, EMBODIMENT).gripper - 0.25) < 0.05, what='closed'
    )
    client.gripper.publish(GripperCommand(width=3.0))
    eventually(lambda: sim.diagnostics.counted('gripper_command dropped') == 1, what='refusal')


def test_reset_starts_an_episode_and_names_what_it_does_not_know(start):
    client, _ = start()
    first = client.state
    assert (first.task, first.seed, first.episode) == ('pick', 3, 1) and first.target in {o.name for o in first.objects}
    client.move(HOME + 0.2)
    answer = client.call_reset(task='pikc', seed=1)
    assert not answer.success and "'pick'" in answer.message
    answer = client.call_reset(instruction='put the red cube in the bowl', seed=5)
    assert answer.success and answer.episode == 2 and answer.instruction == 'put the red cube in the bowl'
    state = eventually(lambda: client.state if client.state.episode == 2 else None, what='new episode')
    assert (state.task, state.seed, state.instruction) == ('put', 5, 'put the red cube in the bowl')
    assert 'red' in state.target and 'bowl' in state.destination and not state.success and state.progress < 0.5
    time.sleep(0.3)
    np.testing.assert_allclose(convert_robot.robot_state_from_msg(client.joints, EMBODIMENT).q, HOME, atol=0.02)
    assert client.call_reset(seed=6).success
    assert eventually(lambda: client.state if client.state.episode == 3 else None, what='third').task == 'put'
    answer = client.call_reset(instruction='sing a song')
    assert not answer.success and answer.message
    assert client.call_reset(seed=-4).success is False
    stamps = np.array([stamp(m) for m in client.heard['/joint_states']])
    assert np.all(np.diff(stamps) > 0), 'time goes on through a reset'


def test_speed_scales_simulated_time(start):
    client, _ = start(speed=2.0)
    begin, first = time.monotonic(), stamp(client.joints)
    time.sleep(1.0)
    ratio = (stamp(client.joints) - first) * 1e-9 / (time.monotonic() - begin)
    assert 1.6 < ratio < 2.4


def test_two_best_effort_listeners_get_full_size_images(spin, ros):
    """A policy and a recorder share the cameras; full size needs the transport profile of config/fastdds.xml."""
    sim = SimNode(parameter_overrides=[Parameter('seed', value=1)])
    listeners = [Client(), Client()]
    topic = EMBODIMENT.views['third_person'].topic
    received = [client.listen(Image, topic) for client in listeners]
    spin(sim)
    for client in listeners:
        spin(client)
    eventually(lambda: all(len(m) > 10 for m in received), 10.0, 'images for both')


@pytest.mark.parametrize(
    ('overrides', 'error', 'reason'),
    [
        ({'task': 'pikc'}, TaskError, "'pick'"),
        ({'timestep': 1.0}, ConfigError, 'timestep'),
        ({'embodiment': 'pandda.yaml'}, SetupError, 'panda.yaml'),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(ros, overrides, error, reason):
    with pytest.raises(error, match=reason):
        SimNode(parameter_overrides=[Parameter(k, value=v) for k, v in overrides.items()])


def test_a_camera_without_topic_is_refused(ros, tmp_path):
    file = tmp_path / 'sim.yaml'
    file.write_text('cameras: [{view: thrid_person, position: [1, 0, 1]}]\n')
    with pytest.raises(ConfigError, match="'third_person'"):
        SimNode(parameter_overrides=[Parameter('config', value=str(file))])


def test_as_a_process_it_ends_cleanly_and_says_what_is_wrong(sim_file):
    command = [sys.executable, '-m', 'instructvla_ros.nodes.sim_node', '--ros-args', '-p', f'config:={sim_file}']
    environment = dict(os.environ)
    wrong = subprocess.run([*command, '-p', 'task:=pikc'], env=environment, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "'pick'" in wrong.stderr and 'Traceback' not in wrong.stderr
    for _ in range(4):  # the last words of its constructor: the signal comes before the end of it, or behind
        process = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            while 'on the table' not in process.stderr.readline():
                assert process.poll() is None
            process.terminate()
            _, error = process.communicate(timeout=15)
            assert process.returncode == 0 and 'Traceback' not in error, error
        finally:
            process.kill()
        process.communicate()
