"""The record node between a double of the robot and hand-made publishers; the bag is read back with rosbags."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from doubles import EMBODIMENT, Robot, eventually
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from instructvla_ros import config
from instructvla_ros.data.marks import MARK_TOPIC
from instructvla_ros.data.message_definitions import definition
from instructvla_ros.errors import ConfigError, SetupError
from instructvla_ros.nodes import qos
from instructvla_ros.nodes.record_node import RecordNode
from instructvla_ros.settings import Embodiment

CAMERA = EMBODIMENT.views['third_person']


class Rig(Node):
    """Publishes hand-made messages, keeps them, and the bytes as they are on the wire."""

    def __init__(self) -> None:
        super().__init__('rig', namespace='/instructvla')
        self.sent: dict[str, list[Any]] = {}
        self.wire: dict[str, list[bytes]] = {}
        self._made: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}
        self.said: list[str] = []
        self.create_subscription(String, MARK_TOPIC, lambda m: self.said.append(m.data), qos.EVENT)
        self.states: list[dict[str, Any]] = []
        self.create_subscription(String, 'record/status', lambda m: self.states.append(json.loads(m.data)), qos.EVENT)

    def publisher(self, topic: str, kind: Any, profile: Any = qos.EVENT) -> Any:
        if topic not in self._made:
            made = self._made[topic] = self.create_publisher(kind, topic, profile)
            # Not serialize_message: its padding bytes are whatever the memory held.
            self.create_subscription(kind, topic, self.wire.setdefault(made.topic_name, []).append, profile, raw=True)
        return self._made[topic]

    def say(self, topic: str, message: Any, profile: Any = qos.EVENT) -> None:
        publisher = self.publisher(topic, type(message), profile)
        self.sent.setdefault(publisher.topic_name, []).append(message)
        publisher.publish(message)

    def heard(self, *topics: str) -> None:
        """Wait until somebody listens to these topics."""
        for topic in topics:
            publisher = self._made[topic]
            eventually(lambda p=publisher: p.get_subscription_count() > 1, 20.0, f'a second subscriber of {topic}')

    def call(self, name: str) -> Any:
        client = self._asked.setdefault(name, self.create_client(Trigger, name))
        assert client.wait_for_service(timeout_sec=20.0)
        future = client.call_async(Trigger.Request())
        return eventually(lambda: future.done() and future.result(), 20.0, f'service {name}')


@pytest.fixture
def rig(spin: Callable[..., None]) -> Rig:
    node = Rig()
    spin(node)
    return node


@pytest.fixture
def start(spin: Callable[..., None], tmp_path: Path) -> Callable[..., RecordNode]:
    def build(**parameters: Any) -> RecordNode:
        given = {'out': str(tmp_path / 'bag'), 'min_free': 1.0, 'flush_period': 0.2, **parameters}
        node = RecordNode(parameter_overrides=[Parameter(k, value=v) for k, v in given.items()])
        spin(node)
        return node

    return build


def contents(bag: Path) -> tuple[dict[str, list[bytes]], dict[str, Any], dict[str, list[Any]]]:
    """Bytes, connection and decoded messages by topic."""
    raw: dict[str, list[bytes]] = {}
    decoded: dict[str, list[Any]] = {}
    with AnyReader([bag]) as reader:
        about = {c.topic: c for c in reader.connections}
        for connection, _, data in reader.messages():
            raw.setdefault(connection.topic, []).append(bytes(data))
            decoded.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    return raw, about, decoded


def stored(node: RecordNode, topic: str) -> int:
    return next((t.messages for t in node.recording.status().topics if t.name == topic), 0)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_every_byte_arrives_in_the_bag(rig: Rig, start: Callable[..., RecordNode], storage: str) -> None:
    description = EMBODIMENT.topics.robot_description
    rig.say(description, String(data='<robot/>'), qos.LATCHED)  # long before the recorder
    rig.publisher(CAMERA.topic, Image, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    rig.publisher(CAMERA.info_topic, CameraInfo)
    rig.publisher(EMBODIMENT.topics.joint_states, JointState)
    node = start(storage=storage, topics=['extra'])
    rig.publisher('extra', String)
    rig.heard(CAMERA.topic, CAMERA.info_topic, EMBODIMENT.topics.joint_states, 'extra')
    names = (CAMERA.topic, CAMERA.info_topic, EMBODIMENT.topics.joint_states, '/instructvla/extra')
    for k in range(20):
        image = Image(width=64, height=48, encoding='rgb8', step=192, data=np.full(9216, k, np.uint8).tobytes())
        image.header.frame_id = CAMERA.frame_id
        rig.say(CAMERA.topic, image)
        rig.say(CAMERA.info_topic, CameraInfo(width=64, height=48, k=[float(k)] * 9))
        rig.say(EMBODIMENT.topics.joint_states, JointState(name=['a', 'b'], position=[0.1 * k, -1.0]))
        rig.say('extra', String(data='é' * k))
        eventually(
            lambda k=k: all(stored(node, n) > k and len(rig.wire[n]) > k for n in names), 20.0, f'message {k} is taken'
        )
    eventually(lambda: stored(node, description) and rig.wire[description], 20.0, 'the latched description')
    node.close()
    raw, about, decoded = contents(node.recording.path)
    for name in (*names, description):
        assert raw[name] == rig.wire[name], name
        kind = type(rig.sent[name][0])
        assert [deserialize_message(data, kind) for data in raw[name]] == rig.sent[name], name
    assert about['/instructvla/extra'].msgtype == 'std_msgs/msg/String'
    qualities = {n: about[n].ext.offered_qos_profiles[0] for n in (CAMERA.topic, description)}
    assert qualities[CAMERA.topic].reliability.name == 'BEST_EFFORT'
    assert qualities[description].durability.name == 'TRANSIENT_LOCAL'
    robot = config.from_dict(Embodiment, yaml.safe_load(decoded['/instructvla/embodiment'][0].data))
    assert robot == EMBODIMENT
    assert node.recording.summary()['unwritten'] == 0


def test_the_double_of_the_robot_is_recorded_with_our_messages(
    spin: Callable[..., None], start: Callable[..., RecordNode]
) -> None:
    robot = Robot()
    spin(robot)
    node = start()
    topics = [v.topic for v in EMBODIMENT.views.values()]
    topics += [EMBODIMENT.topics.joint_states, '/instructvla/controller_state']
    eventually(lambda: all(stored(node, t) > 5 for t in topics), 30.0, 'all topics are recorded')
    node.close()
    _, about, decoded = contents(node.recording.path)
    assert about['/instructvla/controller_state'].msgdef.data == definition('instructvla_ros/msg/ControllerState').text
    assert decoded['/instructvla/controller_state'][0].mode == robot.mode
    assert decoded[topics[0]][0].height == 48
    counts = {t.name: t.messages for t in node.recording.status().topics}
    assert counts == {name: len(decoded.get(name, ())) for name in counts}


def test_definitions_are_those_of_the_running_graph(rig: Rig, start: Callable[..., RecordNode]) -> None:
    """The hash that DDS announces and the one in the bag are computed by different programs."""
    rig.publisher(CAMERA.info_topic, CameraInfo)
    offered = eventually(lambda: rig.get_publishers_info_by_topic(CAMERA.info_topic), 10.0, 'discovery')[0]
    assert str(offered.topic_type_hash) == definition('sensor_msgs/msg/CameraInfo').digest


def test_marks_by_service(rig: Rig, start: Callable[..., RecordNode]) -> None:
    node = start(instruction='put the red cube in the bowl')
    refused = rig.call('record/stop')
    assert not refused.success and 'no episode has begun' in refused.message
    assert 'episode 1 begins' in rig.call('record/start').message
    assert 'episode 1 is running' in rig.call('record/start').message
    assert rig.call('record/success').success
    rig.publisher('instruction', String)
    rig.heard('instruction')
    rig.say('instruction', String(data='open the drawer'))
    eventually(lambda: node.recording.status().instruction == 'open the drawer', 10.0, 'the sentence is heard')
    assert rig.call('record/start').success and rig.call('record/stop').success
    assert 'stays in the bag' in rig.call('record/discard').message
    eventually(lambda: len(rig.said) == 6, 10.0, 'marks are published too')
    node.close()
    _, _, decoded = contents(node.recording.path)
    marks = [json.loads(m.data) for m in decoded[MARK_TOPIC]]
    assert [(m['mark'], m['episode']) for m in marks] == [
        ('start', 1), ('stop', 1), ('success', 1), ('start', 2), ('stop', 2), ('discard', 2),
    ]  # fmt: skip
    assert [m['instruction'] for m in marks] == ['put the red cube in the bowl'] * 3 + ['open the drawer'] * 3
    assert [json.loads(text) for text in rig.said] == marks
    said = [m.data for m in decoded['/instructvla/instruction']]
    assert said == ['put the red cube in the bowl', 'open the drawer']


def test_the_sentence_can_be_set_while_it_records(start: Callable[..., RecordNode]) -> None:
    node = start()
    assert node.set_parameters([Parameter('instruction', value='close the drawer')])[0].successful
    assert 'close the drawer' in node.mark('start')
    assert not node.set_parameters([Parameter('storage', value='sqlite3')])[0].successful


def test_silent_and_missing_topics_are_named(rig: Rig, start: Callable[..., RecordNode]) -> None:
    joints = EMBODIMENT.topics.joint_states
    rig.publisher(joints, JointState)
    node = start(silent_after=0.5, skip=[EMBODIMENT.views['wrist'].topic])
    rig.heard(joints)
    rig.say(joints, JointState())
    eventually(lambda: stored(node, joints), 10.0, 'one message')
    eventually(
        lambda: any(f'{joints} silent for' in p for s in rig.states for p in s['problems']), 20.0, 'silence is reported'
    )
    assert any(f'{CAMERA.topic} has not come' in p for p in node.recording.status().problems)
    assert not any('wrist_camera/color/image_raw' in p for p in node.recording.status().problems)
    status = node.diagnostics.status()
    assert status.level == b'\x01' and joints in status.message
    node.close()
    never = node.recording.summary()['never_came']
    assert CAMERA.topic in never and CAMERA.info_topic in never and joints not in never


def test_a_publisher_that_comes_later_is_matched(rig: Rig, start: Callable[..., RecordNode]) -> None:
    """The subscription follows what publishers offer: first nobody, then a best-effort one, then a latched one."""
    node = start(topics=['one', 'two'])
    best = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    rig.create_subscription(String, 'one', lambda m: None, best)  # the topic exists before its publisher
    eventually(lambda: '/instructvla/one' in node._inputs, 20.0, 'the recorder waits')
    rig.publisher('one', String, best)
    rig.heard('one')
    rig.say('one', String(data='a'), best)
    rig.say('two', String(data='b'), latched)
    eventually(lambda: stored(node, '/instructvla/one') and stored(node, '/instructvla/two'), 20.0, 'both')


def test_a_foreign_type_is_named_and_does_no_harm(rig: Rig, start: Callable[..., RecordNode], monkeypatch) -> None:
    node = start(topics=['odd'])
    monkeypatch.setattr(
        node, 'get_topic_names_and_types', lambda: [('/instructvla/odd', ['no_such_msgs/msg/Thing'])]
    )
    eventually(lambda: '/instructvla/odd' in node._refused, 10.0, 'it is refused')
    assert 'source the workspace that has no_such_msgs' in node.diagnostics.status().message


def test_refusals_at_the_start(ros: None, tmp_path: Path) -> None:
    def node(**parameters: Any) -> RecordNode:
        return RecordNode(parameter_overrides=[Parameter(k, value=v) for k, v in parameters.items()])

    (tmp_path / 'taken').mkdir()
    with pytest.raises(SetupError, match='never overwrites'):
        node(out=str(tmp_path / 'taken'))
    with pytest.raises(SetupError, match=r'MB left, recording ends at'):
        node(out=str(tmp_path / 'big'), min_free=1e12)
    with pytest.raises(ConfigError, match='would not be recorded anyway'):
        node(out=str(tmp_path / 'skip'), skip=['/nothing'])
    with pytest.raises(ConfigError, match='unknown parameter'):
        node(out=str(tmp_path / 'typo'), storag='mcap')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['taken']


def run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, '-m', 'instructvla_ros.nodes.record_node', '--ros-args', '-p', f'out:={folder}', *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(os.environ), cwd=folder.parent,
    )  # fmt: skip


def recorded(folder: Path) -> int:
    """Messages that metadata.yaml speaks of while the recorder still writes."""
    file = folder / 'metadata.yaml'
    if not file.is_file():
        return 0
    return int(yaml.safe_load(file.read_text())['rosbag2_bagfile_information']['message_count'])


@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGKILL])
def test_the_process_ends_and_the_bag_opens(spin: Callable[..., None], tmp_path: Path, end: int) -> None:
    robot = Robot()
    spin(robot)
    process = run(tmp_path / 'bag', '-p', 'min_free:=1.0')
    try:
        eventually(lambda: recorded(tmp_path / 'bag') > 200, 150.0, 'messages are on the disk')
        before = recorded(tmp_path / 'bag')
        process.send_signal(end)
        text = process.communicate(timeout=60.0)[1]
    finally:
        if process.poll() is None:
            process.kill()
    raw, _, decoded = contents(tmp_path / 'bag')
    assert sum(map(len, raw.values())) >= before
    assert decoded['/instructvla/embodiment']
    if end == signal.SIGINT:
        assert process.returncode == 0
        assert 'messages, ' in text and 'camera_info never came' in text


def test_a_time_limit_ends_the_process(tmp_path: Path) -> None:
    process = run(tmp_path / 'bag', '-p', 'max_duration:=0.5', '-p', 'min_free:=1.0')
    started = time.monotonic()
    try:
        text = process.communicate(timeout=150.0)[1]
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0 and 'time limit of 0.5 s' in text, text
    assert time.monotonic() - started < 150.0


def test_the_verb_with_keys(spin: Callable[..., None], tmp_path: Path) -> None:
    """Start, success, a wrong key and quit, typed into a terminal while the robot speaks."""
    robot = Robot()
    spin(robot)
    words = ['record', '--out', str(tmp_path / 'bag'), '--instruction', 'wave', '--min-free', '1']
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, '-m', 'instructvla_ros.cli', *words])
    text, typed, deadline = '', '', time.monotonic() + 180.0

    def type_after(key: str, seen: str) -> None:
        nonlocal typed
        if key not in typed and seen in text:
            os.write(terminal, key.encode())
            typed += key

    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                text += os.read(terminal, 4096).decode(errors='replace')
            except OSError:  # Linux, when the other side has closed
                break
        if recorded(tmp_path / 'bag') > 100:
            type_after('z', 's start   e end')
            type_after('s', "'z' is no key here")
            type_after('y', "episode 1 begins: 'wave'")
            type_after('q', 'episode 1 is a success')
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, text
    assert '1 episodes (1 success, 0 discarded)' in text and 'camera_info never came' in text
    _, _, decoded = contents(tmp_path / 'bag')
    assert [json.loads(m.data)['mark'] for m in decoded[MARK_TOPIC]] == ['start', 'stop', 'success']


def test_the_verb_with_json(spin: Callable[..., None], tmp_path: Path) -> None:
    robot = Robot()
    spin(robot)
    words = ['record', '--out', str(tmp_path / 'bag'), '--min-free', '1', '--json', '--storage', 'sqlite3']
    process = subprocess.Popen(
        [sys.executable, '-m', 'instructvla_ros.cli', *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        eventually(lambda: recorded(tmp_path / 'bag') > 100, 150.0, 'messages are on the disk')
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60.0)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary['messages'] > 100 and summary['storage'] == 'sqlite3' and summary['unwritten'] == 0
    assert CAMERA.info_topic in summary['never_came'] and summary['topics'][CAMERA.topic]['messages'] > 0
