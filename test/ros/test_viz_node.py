"""The visualisation node between a small double of the graph and a viewer; and the RViz configuration for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from doubles import EMBODIMENT, eventually
from nav_msgs.msg import Path
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from visualization_msgs.msg import Marker, MarkerArray

from instructvla_ros import resources
from instructvla_ros.control.frames import LinkFrames
from instructvla_ros.datatypes import ActionChunk, Reasoning, Verdict, VerdictAction
from instructvla_ros.errors import ConfigError
from instructvla_ros.geometry import integrate, pose_from_xyz_rpy
from instructvla_ros.msg import ActionChunk as ActionChunkMsg
from instructvla_ros.msg import ControllerState
from instructvla_ros.msg import Reasoning as ReasoningMsg
from instructvla_ros.nodes import convert, convert_image, convert_visual, qos
from instructvla_ros.nodes.viz_node import VizNode

START = pose_from_xyz_rpy([0.45, 0.0, 0.3, np.pi, 0.0, 0.0])
VIEW = EMBODIMENT.views['third_person']
SECOND = 1_000_000_000


class Graph(Node):
    """Speaks as policy, controller, robot and camera, and keeps what the node under test says."""

    def __init__(self) -> None:
        super().__init__('graph_double', namespace='/instructvla')
        self.got: dict[str, list[Any]] = {}
        self.chunks = self.create_publisher(ActionChunkMsg, 'action_chunk', qos.CHUNK_PUBLISHER)
        self.states = self.create_publisher(ControllerState, 'controller_state', qos.STATE)
        self.said = self.create_publisher(ReasoningMsg, 'reasoning', qos.REASONING)
        self.description = self.create_publisher(String, EMBODIMENT.topics.robot_description, qos.LATCHED)
        self.joints = self.create_publisher(JointState, EMBODIMENT.topics.joint_states, qos.SENSOR_PUBLISHER)
        self.images = self.create_publisher(Image, VIEW.topic, qos.SENSOR_PUBLISHER)
        self.infos = self.create_publisher(CameraInfo, VIEW.info_topic, qos.SENSOR_PUBLISHER)

    def watch(self, kind: Any, topic: str) -> list[Any]:
        """List that fills with the messages of a topic."""
        got = self.got.setdefault(topic, [])
        self.create_subscription(kind, topic, got.append, qos.EVENT)
        return got

    def chunk(self, name: str = 'chunk-a', frame_id: str = '') -> ActionChunk:
        """Send a chunk that moves forward."""
        steps = np.zeros((4, 7))
        steps[:, 0], steps[:, 6] = 0.02, 1.0
        out = ActionChunk(
            name, 5 * SECOND, 5 * SECOND, 0.1, steps, frame_id or EMBODIMENT.base_frame, START, reasoning_id='say-a'
        )
        self.chunks.publish(convert.chunk_to_msg(out))
        return out

    def state(self, stamp: int = 5 * SECOND, x: float = 0.45, verdicts: tuple[Verdict, ...] = ()) -> None:
        """Send what a controller reports."""
        pose = START.copy()
        pose[0, 3] = x
        message = ControllerState(
            joint_names=list(EMBODIMENT.arm_joints), measured_positions=list(EMBODIMENT.home), chunk_id='chunk-a',
            measured_pose=convert.pose_to_msg(pose), commanded_pose=convert.pose_to_msg(pose),
            verdicts=[convert.verdict_to_msg(v) for v in verdicts],
        )  # fmt: skip
        message.header.stamp = convert.stamp_to_msg(stamp)
        self.states.publish(message)

    def sentence(self, text: str = 'I will move to the red cube.') -> None:
        """Send a sentence."""
        self.said.publish(convert.reasoning_to_msg(Reasoning('say-a', 0, 'pick the red cube', text)))


@pytest.fixture
def graph(spin: Callable[..., None]) -> Graph:
    node = Graph()
    spin(node)
    return node


@pytest.fixture
def start(spin: Callable[..., None]) -> Callable[..., VizNode]:
    def build(**parameters: Any) -> VizNode:
        node = VizNode(parameter_overrides=[Parameter(k, value=v) for k, v in {'rate': 30.0, **parameters}.items()])
        spin(node)
        return node

    return build


def connected(graph: Graph) -> None:
    eventually(
        lambda: graph.chunks.get_subscription_count() and graph.states.get_subscription_count(), what='it listens'
    )


def namespaces(message: MarkerArray) -> set[str]:
    return {m.ns for m in message.markers if m.action == Marker.ADD}


def test_it_listens_only_while_somebody_looks(graph: Graph, start: Callable[..., VizNode]) -> None:
    start()
    eventually(lambda: graph.said.get_subscription_count(), what='sentences are always heard')
    assert graph.chunks.get_subscription_count() == graph.states.get_subscription_count() == 0
    assert graph.images.get_subscription_count() == 0
    graph.watch(MarkerArray, 'markers')
    connected(graph)
    assert graph.images.get_subscription_count() == 0, 'no image without somebody who looks at one'
    for subscription in list(graph.subscriptions):
        if subscription.topic_name.endswith('/markers'):
            graph.destroy_subscription(subscription)
    eventually(lambda: graph.chunks.get_subscription_count() == 0, what='it stops listening')


def test_markers_of_a_life(graph: Graph, start: Callable[..., VizNode]) -> None:
    start(fade_time=0.3, verdict_time=0.3)
    graph.sentence()  # before anybody looks: sentences are kept
    got = graph.watch(MarkerArray, 'markers')
    connected(graph)
    eventually(lambda: got, what='markers')
    assert got[0].markers[0].action == Marker.DELETEALL
    graph.chunk()
    graph.state(verdicts=(Verdict('workspace', VerdictAction.CLIPPED, 'z', -0.01, 0.0, 'm', 'low', 'chunk-a'),))
    wanted = {'workspace', 'table', 'thought', 'thought_ids', 'chunk_path', 'chunk_points', 'chunk_gripper',
              'chunk_label', 'verdict', 'verdict_place'}  # fmt: skip
    full = eventually(lambda: next((m for m in got if namespaces(m) >= wanted), None), what='everything is shown')
    assert namespaces(full) == wanted
    for marker in full.markers:
        assert marker.header.frame_id == EMBODIMENT.base_frame and marker.action == Marker.ADD
        assert marker.pose.orientation.w == 1.0 and min(marker.scale.x, marker.scale.y, marker.scale.z) > 0.0
        assert marker.color.a > 0.0 and len(marker.colors) in (0, len(marker.points))
    by_name = {m.ns: m for m in full.markers}
    assert by_name['thought'].text == 'I will move to the red cube.' and by_name['thought'].type == 9
    assert 'say-a -> chunk-a' in by_name['thought_ids'].text
    assert np.allclose([p.x for p in by_name['chunk_path'].points], 0.45 + 0.02 * np.arange(5))
    deleted = eventually(
        lambda: {m.ns for a in got for m in a.markers if m.action == Marker.DELETE} >= {'chunk_path', 'verdict'},
        what='what faded is deleted',
    )
    assert deleted and namespaces(got[-1]) == {'workspace', 'table', 'thought', 'thought_ids'}


def test_paths(graph: Graph, start: Callable[..., VizNode]) -> None:
    start(fade_time=0.3)
    predicted, executed = graph.watch(Path, 'predicted_path'), graph.watch(Path, 'executed_path')
    connected(graph)
    chunk = graph.chunk()
    eventually(lambda: predicted, what='a prediction')
    path = predicted[0]
    expected = np.vstack([START[:3, 3], integrate(START, chunk.steps)[:, :3, 3]])
    assert path.header.frame_id == EMBODIMENT.base_frame
    assert np.allclose([[p.pose.position.x, p.pose.position.y, p.pose.position.z] for p in path.poses], expected)
    assert convert.stamp_from_msg(path.poses[2].header.stamp) == 5 * SECOND + 2 * SECOND // 10
    eventually(lambda: len(predicted) > 1 and not predicted[-1].poses, what='the prediction disappears')
    for k in range(4):
        graph.state(stamp=(5 + k) * SECOND, x=0.45 + 0.01 * k)
    eventually(lambda: executed and len(executed[-1].poses) == 4, what='an executed path')
    assert [round(p.pose.position.x, 3) for p in executed[-1].poses] == [0.45, 0.46, 0.47, 0.48]


def send_image(graph: Graph, frame_id: str = VIEW.frame_id) -> None:
    k = np.array([[565.0, 0.0, 320.0], [0.0, 565.0, 240.0], [0.0, 0.0, 1.0]])
    graph.infos.publish(convert.camera_info_to_msg(k, 640, 480, frame_id, SECOND))
    graph.images.publish(convert_image.image_to_msg(np.full((480, 640, 3), 80, np.uint8), SECOND, frame_id))


def test_annotated_image_shows_words_and_path(graph: Graph, start: Callable[..., VizNode]) -> None:
    node = start(image_rate=30.0)
    graph.sentence()
    got = graph.watch(Image, 'annotated_image')
    connected(graph)
    eventually(lambda: graph.images.get_subscription_count() and graph.infos.get_subscription_count(), what='camera')

    def newest() -> np.ndarray:
        del got[:]
        eventually(lambda: (send_image(graph), got)[1], what='an annotated image')
        return convert_image.image_from_msg(got[-1])

    plain = newest()
    assert np.all(plain[:480] == 80) and plain[480:].max() > 220
    assert got[-1].header.frame_id == VIEW.frame_id and convert.stamp_from_msg(got[-1].header.stamp) == SECOND
    graph.chunk()
    eventually(lambda: node._board.prediction, what='the chunk arrives')
    assert np.all(newest()[:480] == 80), 'without the robot description it is not known where the camera is'
    # A picture that was on its way may have been drawn before the chunk came.
    eventually(lambda: (newest(), 'no robot description' in node.diagnostics.status().message)[1], what='the reason')
    graph.description.publish(String(data=resources.robot_description(EMBODIMENT.name)))
    eventually(lambda: node._frames, what='the description')
    graph.chunk('chunk-b')
    eventually(lambda: node._board.prediction and node._board.prediction[0].id == 'chunk-b', what='another chunk')
    eventually(lambda: np.any(newest()[:480] != 80), what='a picture with the path')
    rows, columns = np.nonzero(np.any(newest()[:480] != 80, axis=2))
    assert len(rows) > 50 and abs(np.mean(columns) - 320) < 5, 'the path runs in the plane of the camera'
    assert 'projection' not in node.diagnostics.status().message


def test_bad_messages_are_counted(graph: Graph, start: Callable[..., VizNode]) -> None:
    node = start()
    got = graph.watch(MarkerArray, 'markers')
    connected(graph)
    graph.chunk('chunk-w', frame_id='world')
    graph.chunks.publish(ActionChunkMsg(id='empty'))
    graph.said.publish(ReasoningMsg(text='without id'))
    graph.states.publish(ControllerState(measured_positions=[0.0], measured_pose=convert.pose_to_msg(START)))
    graph.description.publish(String(data='not a description'))
    eventually(lambda: node.diagnostics.counted('action_chunk dropped') == 2, what='two chunks dropped')
    eventually(lambda: node.diagnostics.counted('reasoning dropped') == 1, what='a sentence dropped')
    eventually(lambda: node.diagnostics.counted('robot_description dropped') == 1, what='a description dropped')
    seen = len(got)
    eventually(lambda: len(got) > seen + 2, what='it still draws')
    assert node.diagnostics.counted('drawing dropped') == 0


def test_an_unknown_view_is_refused(ros: None) -> None:
    with pytest.raises(ConfigError, match='wrist'):
        VizNode(parameter_overrides=[Parameter('view', value='wrst')])


def test_transforms_of_the_links() -> None:
    frames = LinkFrames(resources.robot_description(EMBODIMENT.name), EMBODIMENT.base_frame)
    frames.set_joints(dict(zip(EMBODIMENT.arm_joints, EMBODIMENT.home, strict=True)))
    messages = convert_visual.transforms_to_msg(frames.poses(), frames.base, 7 * SECOND)
    by_child = {m.child_frame_id: m for m in messages}
    assert len(by_child) == len(frames.links) - 1 and frames.base not in by_child
    assert {m.header.frame_id for m in messages} == {EMBODIMENT.base_frame}
    got, expected = by_child[EMBODIMENT.tcp_frame].transform, frames.pose(EMBODIMENT.tcp_frame)
    assert np.allclose([got.translation.x, got.translation.y, got.translation.z], expected[:3, 3])
    q = got.rotation
    assert q.x**2 + q.y**2 + q.z**2 + q.w**2 == pytest.approx(1.0)


def test_transforms_are_published_for_who_asks(graph: Graph, start: Callable[..., VizNode]) -> None:
    tf2 = pytest.importorskip('tf2_msgs.msg', reason='tf2_msgs is part of a full ROS 2 install')
    start(publish_tf=True)
    graph.description.publish(String(data=resources.robot_description(EMBODIMENT.name)))
    got = graph.watch(tf2.TFMessage, '/tf')
    eventually(lambda: graph.joints.get_subscription_count(), what='joint states')
    message = JointState(name=list(EMBODIMENT.arm_joints), position=list(EMBODIMENT.home))
    message.header.stamp.sec = 3
    graph.joints.publish(message)
    eventually(lambda: got, what='transforms')
    assert got[0].transforms[0].header.stamp.sec == 3


def test_rviz_shows_the_topics_the_node_publishes(ros: None) -> None:
    node = VizNode()
    try:
        published = dict(node.get_publisher_names_and_types_by_node('viz_node', '/instructvla'))
        qos_of = {p.topic_name: p.qos_profile for p in node.publishers}
    finally:
        node.destroy_node()
    text = resources.config_file('instructvla.rviz').read_text(encoding='utf-8')
    manager = yaml.safe_load(text)['Visualization Manager']
    assert manager['Global Options']['Fixed Frame'] == EMBODIMENT.base_frame
    kinds = {'MarkerArray': 'visualization_msgs/msg/MarkerArray', 'Path': 'nav_msgs/msg/Path',
             'Image': 'sensor_msgs/msg/Image'}  # fmt: skip
    seen = set()
    for display in manager['Displays']:
        assert display['Enabled'] is True and display['Value'] is True, display['Name']
        topic = display.get('Topic') or display.get('Description Topic')
        if topic is None:
            continue
        assert {'Value', 'Depth', 'History Policy', 'Reliability Policy', 'Durability Policy'} <= set(topic)
        name = topic['Value']
        seen.add(name)
        if name in published:
            assert published[name] == [kinds[display['Class'].rpartition('/')[2]]]
            if topic['Durability Policy'] == 'Transient Local':
                assert qos_of[name].durability.name == 'TRANSIENT_LOCAL', f'{name}: RViz would get nothing'
    drawn = {t for t in published if t.startswith('/instructvla/') and not t.endswith('/diagnostics')}
    assert drawn == {f'/instructvla/{t}' for t in ('markers', 'predicted_path', 'executed_path', 'annotated_image')}
    others = {EMBODIMENT.topics.robot_description, EMBODIMENT.views['wrist'].topic, '/instructvla/replay/markers'}
    assert seen == drawn | others  # those of a replay are empty without one

