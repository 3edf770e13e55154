"""Cropped, flipped and turned views on a real graph: what the policy gets, and what is drawn into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from doubles import EMBODIMENT, eventually
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from test_viz_node import START, Graph

from instructvla_ros import annotate, camera_view, config, resources
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.data.align import BuildOptions
from instructvla_ros.data.bags import open_bag
from instructvla_ros.data.build import Report, build_episodes
from instructvla_ros.data.rebag import BagWriter
from instructvla_ros.datatypes import Observation, RobotState
from instructvla_ros.geometry import pose_from_xyz_rpy
from instructvla_ros.nodes import convert, convert_image, convert_robot, qos
from instructvla_ros.nodes.inputs import Inputs
from instructvla_ros.nodes.runtime import BaseNode
from instructvla_ros.nodes.viz_node import VizNode
from instructvla_ros.settings import Embodiment, Mount, PolicySettings, View

RNG = np.random.default_rng(3)
SEEN = {
    'third_person': View(
        topic='/camera/color/image_raw', info_topic='/camera/color/camera_info', frame_id='camera_color_optical_frame',
        crop=(8, 4, 48, 40), flip='horizontal', rotate=90, mount=Mount('fr3_link0', (0.9, 0.0, 0.7), (-2.2, 0.0, 1.57)),
    ),
    'wrist': View(topic='/wrist_camera/color/image_raw/compressed', crop=(0, 0, 40, 48), flip='both', rotate=180),
}  # fmt: skip
ROBOT = config.replace(EMBODIMENT, views=SEEN)


class Listener(BaseNode):
    """A node that observes and does nothing."""

    def __init__(self) -> None:
        super().__init__('listener')
        self.inputs = Inputs(self, ROBOT, PolicySettings(max_view_age=10.0, max_state_age=10.0), False)


class Driver(Node):
    """Cameras and arm."""

    def __init__(self) -> None:
        super().__init__('driver')
        front, wrist = SEEN.values()
        self.front = self.create_publisher(Image, front.topic, qos.SENSOR_PUBLISHER)
        self.wrist = self.create_publisher(CompressedImage, wrist.topic, qos.SENSOR_PUBLISHER)
        self.joints = self.create_publisher(JointState, ROBOT.topics.joint_states, qos.SENSOR_PUBLISHER)

    def ready(self) -> bool:
        return all(p.get_subscription_count() for p in (self.front, self.wrist, self.joints))


def test_the_node_sees_what_a_dataset_of_the_same_messages_holds(spin: Callable[..., None], tmp_path: Path) -> None:
    listener, driver = Listener(), Driver()
    spin(listener, driver)
    eventually(driver.ready, what='connections')
    base, images = listener.now_ns(), []
    q = np.array(ROBOT.home)
    with BagWriter(tmp_path / 'bag') as bag:
        for k in range(8):
            stamp = base + k * 100_000_000
            front = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            jpeg = convert_image.compressed_to_msg(front[:, ::-1], stamp, '', 90)
            images.append((stamp, front, jpeg))
            bag.image(SEEN['third_person'].topic, stamp, front)
            bag.compressed(SEEN['wrist'].topic, stamp, bytes(jpeg.data))
            names = (*ROBOT.arm_joints, *ROBOT.gripper.joints)
            bag.joints(ROBOT.topics.joint_states, stamp, names, [*q, 0.02, 0.02], [0.0] * 9)
    with open_bag(tmp_path / 'bag') as source:
        (episode, _), = build_episodes(
            source, ROBOT, Kinematics(ROBOT).forward, BuildOptions(quality=0, min_frames=2), prefix='e',
            report=Report('x'), instruction='go',
        )  # fmt: skip
    stamp, front, jpeg = images[2]
    driver.joints.publish(convert_robot.robot_state_to_msg(RobotState(stamp, q, np.zeros(7), 0.5), ROBOT))
    driver.front.publish(convert_image.image_to_msg(front, stamp, ''))
    driver.wrist.publish(jpeg)
    seen = eventually(lambda: isinstance(s := listener.inputs.observe(), Observation) and s, what='an observation')
    k = episode.stamps_ns.tolist().index(stamp)
    for name in SEEN:
        np.testing.assert_array_equal(seen.views[name], episode.views[name][k])
    assert seen.views['third_person'].shape == (48, 40, 3)
    np.testing.assert_allclose(seen.proprio, episode.proprio[k], atol=1e-9)


@pytest.fixture
def looking(spin: Callable[..., None], tmp_path: Path) -> Graph:
    """viz_node with these cameras, and the graph around it."""
    file = tmp_path / 'robot.yaml'
    file.write_text(yaml.safe_dump(config.to_dict(ROBOT)))
    assert config.load(Embodiment, file) == ROBOT
    graph = Graph()
    spin(graph)
    spin(VizNode(parameter_overrides=[Parameter('rate', value=30.0), Parameter('embodiment', value=str(file))]))
    return graph


def test_the_path_is_drawn_where_the_policy_sees_it(looking: Graph) -> None:
    got = looking.watch(Image, 'annotated_image')
    eventually(lambda: looking.images.get_subscription_count() and looking.infos.get_subscription_count())
    eventually(looking.chunks.get_subscription_count)
    looking.description.publish(String(data=resources.robot_description(ROBOT.name)))
    view = SEEN['third_person']
    k = np.array([[60.0, 0.0, 31.5], [0.0, 60.0, 23.5], [0.0, 0.0, 1.0]])
    front = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    chunk = looking.chunk()

    def drawn() -> Image | None:
        looking.infos.publish(convert.camera_info_to_msg(k, 64, 48, 'another_frame', 1))
        now = looking.get_clock().now().nanoseconds
        looking.images.publish(convert_image.image_to_msg(front, now, 'another_frame'))
        seen = camera_view.prepare(view, front)
        return got[-1] if got and bytes(got[-1].data[: 3 * 40 * 48]) != seen.tobytes() else None

    message = eventually(drawn, what='a picture with a path')
    picture = convert_image.image_from_msg(message)[:48]
    seen = camera_view.prepare(view, front)
    assert (message.width, seen.shape) == (40, (48, 40, 3))
    camera = pose_from_xyz_rpy([*view.mount.xyz, *view.mount.rpy])
    path = START[:3, 3] + np.arange(5)[:, None] * [0.02, 0.0, 0.0]
    expected = annotate.project(path, camera_view.intrinsics(view, k, 64, 48), camera)
    assert ((expected > 4) & (expected < [35, 43])).all(), 'the test would prove nothing with a path outside'
    changed = np.argwhere((picture != seen).any(axis=2))[:, ::-1]
    assert len(changed)
    assert np.abs(changed - expected[:, None]).max(axis=2).min(axis=0).max() < 12, 'only around the path'
    for point in expected:
        assert np.abs(changed - point).max(axis=1).min() < 1.5, 'and all along it'
    assert chunk.horizon == 4


def test_a_configured_camera_is_on_tf_static(looking: Graph) -> None:
    tf2 = pytest.importorskip('tf2_msgs.msg', reason='tf2_msgs is not on the package index: part of a full ROS 2')
    got: list[Any] = []
    looking.create_subscription(tf2.TFMessage, '/tf_static', got.append, qos.LATCHED)
    eventually(lambda: got, what='the transform')
    (transform,) = got[0].transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ('fr3_link0', 'camera_color_optical_frame')
    assert transform.transform.translation.x == pytest.approx(0.9)
