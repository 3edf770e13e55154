"""Messages <-> datatypes: round trips, and every way a message can be malformed."""

from __future__ import annotations

import array
import math

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image, JointState

from instructvla_ros import config, resources
from instructvla_ros.datatypes import (
    ActionChunk,
    Reasoning,
    ReasoningKind,
    RobotState,
    SceneObject,
    SceneState,
    Verdict,
    VerdictAction,
)
from instructvla_ros.errors import ChunkError, ObservationError
from instructvla_ros.geometry import pose, rotation_angle
from instructvla_ros.nodes import convert, convert_image, convert_robot
from instructvla_ros.settings import Embodiment

EMBODIMENT = config.load(Embodiment, resources.config_file('franka.yaml'))
finite = st.floats(-1e3, 1e3, allow_nan=False)
stamps = st.integers(0, (2**31 - 1) * 10**9)
unit_poses = st.tuples(finite, finite, finite, st.integers(0, 2**32 - 1)).map(
    lambda v: pose(v[:3], Rotation.random(random_state=v[3]))
)
words = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=30)


def over_the_wire(message):
    """What a subscriber gets."""
    return deserialize_message(serialize_message(message), type(message))


@given(st.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1))
def test_stamp_round_trip(ns):
    assert convert.stamp_from_msg(over_the_wire(convert.stamp_to_msg(ns))) == ns


def test_stamp_out_of_range_is_refused():
    with pytest.raises(ObservationError, match='does not fit'):
        convert.stamp_to_msg(2**31 * 10**9)


@given(unit_poses)
def test_pose_round_trip(matrix):
    back = convert.pose_from_msg(over_the_wire(convert.pose_to_msg(matrix)))
    np.testing.assert_allclose(back, matrix, atol=1e-9)


def test_pose_normalises_and_refuses_zero_by_name():
    message = Pose()
    message.orientation.w = 2.0
    np.testing.assert_allclose(convert.pose_from_msg(message), np.eye(4))
    message.orientation.w = 0.0
    with pytest.raises(ObservationError, match='target.*quaternion.*norm 0'):
        convert.pose_from_msg(message, 'target')
    message.orientation.w = math.nan
    with pytest.raises(ObservationError, match='finite'):
        convert.pose_from_msg(message)


def make_chunk(**changes) -> ActionChunk:
    fields = dict(
        id='chunk-1',
        observation_stamp_ns=5_000_000_001,
        created_stamp_ns=5_100_000_002,
        step_period=0.1,
        steps=np.arange(21.0).reshape(3, 7),
        frame_id='fr3_link0',
        reference_pose=pose([0.4, 0.1, 0.3], Rotation.from_euler('xyz', [3.0, 0.1, 0.2])),
        delta_frame='tool',
        rotation='rotvec',
        instruction='put the red cube in the bowl',
        policy='expert',
        reasoning_id='reasoning-7',
        checkpoint_revision='abc',
        model_latency=0.05,
        done=True,
    )
    return ActionChunk(**{**fields, **changes})


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 20),
    seed=st.integers(0, 1000),
    frame=st.sampled_from(['base', 'tool']),
    rotation=st.sampled_from(['rpy', 'rotvec']),
    stamp=stamps,
    text=words,
    reference=unit_poses,
    done=st.booleans(),
)
def test_chunk_round_trip(rows, seed, frame, rotation, stamp, text, reference, done):
    steps = np.random.default_rng(seed).normal(size=(rows, 7))
    steps[0, 0] = math.nan if seed % 5 == 0 else steps[0, 0]  # the ladder, not the converter, names it
    chunk = make_chunk(
        steps=steps, delta_frame=frame, rotation=rotation, observation_stamp_ns=stamp, created_stamp_ns=stamp,
        instruction=text, reference_pose=reference, done=done,
    )  # fmt: skip
    back = convert.chunk_from_msg(over_the_wire(convert.chunk_to_msg(chunk)))
    np.testing.assert_array_equal(back.steps, chunk.steps)
    np.testing.assert_allclose(back.reference_pose[:3, 3], reference[:3, 3])
    assert rotation_angle(back.reference_pose, reference) < 1e-7
    for name in ('id', 'observation_stamp_ns', 'created_stamp_ns', 'step_period', 'frame_id', 'delta_frame', 'rotation',
                 'instruction', 'policy', 'reasoning_id', 'checkpoint_revision', 'model_latency', 'done'):  # fmt: skip
        assert getattr(back, name) == getattr(chunk, name), name


MALFORMED = {
    'no id': (lambda m: setattr(m, 'id', ''), 'without id'),
    'no frame': (lambda m: setattr(m.header, 'frame_id', ''), 'frame_id'),
    'horizon 0': (lambda m: setattr(m, 'horizon', 0), 'horizon 0'),
    'huge horizon': (lambda m: setattr(m, 'horizon', 2**31), 'horizon'),
    'too few steps': (lambda m: setattr(m, 'steps', [0.0] * 20), '20 numbers.*needs 21'),
    'no steps': (lambda m: setattr(m, 'steps', []), '0 numbers'),
    'delta frame': (lambda m: setattr(m, 'delta_frame', 9), 'delta_frame 9'),
    'rotation': (lambda m: setattr(m, 'rotation', 7), 'rotation 7'),
    'period 0': (lambda m: setattr(m, 'step_period', 0.0), 'step_period'),
    'period nan': (lambda m: setattr(m, 'step_period', math.nan), 'step_period'),
    'period inf': (lambda m: setattr(m, 'step_period', math.inf), 'step_period'),
    'latency nan': (lambda m: setattr(m, 'model_latency', math.nan), 'model_latency'),
    'latency negative': (lambda m: setattr(m, 'model_latency', -1.0), 'model_latency'),
    'reference unset': (lambda m: setattr(m.reference_pose.orientation, 'w', 0.0), 'reference_pose'),
    'reference nan': (lambda m: setattr(m.reference_pose.position, 'x', math.nan), 'reference_pose'),
}


@pytest.mark.parametrize('case', MALFORMED)
def test_malformed_chunk_is_refused(case):
    change, reason = MALFORMED[case]
    message = convert.chunk_to_msg(make_chunk(reference_pose=np.eye(4)))
    change(message)
    with pytest.raises(ChunkError, match=reason):
        convert.chunk_from_msg(message)


@settings(deadline=None, max_examples=30)
@given(words, words, stamps, st.sampled_from(list(ReasoningKind)), st.booleans())
def test_reasoning_round_trip(text, instruction, stamp, kind, final):
    said = Reasoning('reasoning-1', stamp, instruction, text, kind, 12, 0.25, 'chunk-9', final, 'expert')
    assert convert.reasoning_from_msg(over_the_wire(convert.reasoning_to_msg(said, 'camera'))) == said


def test_reasoning_of_unknown_kind_is_refused():
    message = convert.reasoning_to_msg(Reasoning('reasoning-1', 0, '', ''))
    message.kind = 9
    with pytest.raises(ObservationError, match='kind 9'):
        convert.reasoning_from_msg(message)


@pytest.mark.parametrize('action', list(VerdictAction))
def test_verdict_round_trip(action):
    verdict = Verdict('workspace', action, 'x', 0.9, 0.8, 'm', 'x is 0.9 m', 'chunk-1')
    assert convert.verdict_from_msg(over_the_wire(convert.verdict_to_msg(verdict))) == verdict


def test_scene_round_trip():
    cube = SceneObject('red_cube_1', 'cube', 'red', 'small', pose([0.4, 0, 0.02]), np.array([0.04, 0.04, 0.04]))
    drawer = SceneObject('drawer_1', 'drawer', '', '', pose([0.6, 0, 0.1]), np.array([0.2, 0.2, 0.1]), 0.07)
    scene = SceneState(
        7_000_000_003, {'red_cube_1': cube, 'drawer_1': drawer}, pose([0.4, 0, 0.3]), 0.5, 'red_cube_1', 'red_cube_1',
        'drawer_1', 'put', 'put the red cube in the drawer', 42, 3, 0.4, True, 1.5, 40.0,
    )  # fmt: skip
    back = convert.scene_from_msg(over_the_wire(convert.scene_to_msg(scene, 'fr3_link0')))
    assert list(back.objects) == list(scene.objects)
    np.testing.assert_allclose(back.objects['drawer_1'].pose, drawer.pose, atol=1e-12)
    np.testing.assert_allclose(back.tcp_pose, scene.tcp_pose, atol=1e-12)
    assert back.objects['drawer_1'].opening == 0.07
    for name in ('stamp_ns', 'gripper', 'held', 'target', 'destination', 'task', 'instruction', 'seed', 'episode',
                 'progress', 'success', 'elapsed', 'time_limit'):  # fmt: skip
        assert getattr(back, name) == getattr(scene, name), name


@settings(deadline=None)
@given(st.permutations(range(9)), st.floats(0, 1), st.integers(0, 1000))
def test_joint_state_is_read_by_name_in_any_order(order, openness, seed):
    rng = np.random.default_rng(seed)
    state = RobotState(4_000_000_000, rng.normal(size=7), rng.normal(size=7), openness)
    message = over_the_wire(convert_robot.robot_state_to_msg(state, EMBODIMENT))
    for field in ('name', 'position', 'velocity'):
        values = list(getattr(message, field))
        setattr(message, field, [values[k] for k in order])
    back = convert_robot.robot_state_from_msg(message, EMBODIMENT)
    np.testing.assert_array_equal(back.q, state.q)
    np.testing.assert_array_equal(back.dq, state.dq)
    assert back.gripper == pytest.approx(openness) and back.stamp_ns == state.stamp_ns


def joint_message() -> JointState:
    return convert_robot.robot_state_to_msg(RobotState(0, np.zeros(7), np.zeros(7), 0.5), EMBODIMENT)


def drop(message: JointState, joint: str) -> None:
    k = list(message.name).index(joint)
    for field in ('name', 'position', 'velocity'):
        values = list(getattr(message, field))
        setattr(message, field, values[:k] + values[k + 1 :])


def test_missing_joint_is_named():
    message = joint_message()
    drop(message, 'fr3_joint4')
    with pytest.raises(ObservationError, match='fr3_joint4 missing'):
        convert_robot.robot_state_from_msg(message, EMBODIMENT)
    with pytest.raises(ObservationError, match='fr3_joint1.*missing.*has elbow'):
        convert_robot.robot_state_from_msg(JointState(name=['elbow'], position=[0.0]), EMBODIMENT)


@pytest.mark.parametrize('field', ['position', 'velocity'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_non_finite_joint_is_named(field, value):
    message = joint_message()
    getattr(message, field)[2] = value
    with pytest.raises(ObservationError, match=f'{field} of fr3_joint3'):
        convert_robot.robot_state_from_msg(message, EMBODIMENT)


def test_lengths_have_to_fit():
    message = joint_message()
    message.position = list(message.position)[:-1]
    with pytest.raises(ObservationError, match='9 names, 8 positions'):
        convert_robot.robot_state_from_msg(message, EMBODIMENT)
    message = joint_message()
    message.velocity = [0.0]
    with pytest.raises(ObservationError, match='9 names, 1 velocities'):
        convert_robot.robot_state_from_msg(message, EMBODIMENT)
    message.velocity = []
    np.testing.assert_array_equal(convert_robot.robot_state_from_msg(message, EMBODIMENT).dq, np.zeros(7))


def test_fingers_may_come_in_messages_of_their_own():
    reader = convert_robot.JointReader(EMBODIMENT)
    arm = joint_message()
    drop(arm, 'fr3_finger_joint1')
    drop(arm, 'fr3_finger_joint2')
    with pytest.raises(ObservationError, match='fr3_finger_joint1.*never seen'):
        reader.read(arm)
    fingers = JointState(name=['fr3_finger_joint2', 'fr3_finger_joint1'], position=[0.03, 0.03])
    assert reader.read(fingers) is None
    state = reader.read(arm)
    assert state is not None and state.gripper == pytest.approx(0.75)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 9), st.booleans(), stamps)
def test_trajectory_round_trip(points, joints, moving, stamp):
    rng = np.random.default_rng(points * 10 + joints)
    names = [f'joint{k}' for k in range(joints)]
    times = np.cumsum(rng.uniform(0.001, 1.0, points))
    q = rng.normal(size=(points, joints))
    dq = rng.normal(size=(points, joints)) if moving else None
    message = over_the_wire(convert_robot.trajectory_to_msg(names, times, q, dq, stamp))
    got_names, got_times, got_q, got_dq = convert_robot.trajectory_from_msg(message)
    assert got_names == names and convert.stamp_from_msg(message.header.stamp) == stamp
    np.testing.assert_allclose(got_times, times, atol=1e-9)
    np.testing.assert_array_equal(got_q, q)
    if moving:
        np.testing.assert_array_equal(got_dq, dq)
    else:
        assert got_dq is None


def test_ragged_trajectories_are_refused():
    message = convert_robot.trajectory_to_msg(['a', 'b'], [0.1, 0.2], np.zeros((2, 2)), np.zeros((2, 2)), 0)
    message.points[1].velocities = array.array('d', [0.0])
    with pytest.raises(ObservationError, match='point 1: 1 velocities for 2'):
        convert_robot.trajectory_from_msg(message)
    message.points = []
    with pytest.raises(ObservationError, match='without points'):
        convert_robot.trajectory_from_msg(message)


@given(st.floats(-0.5, 1.5))
def test_gripper_round_trip(openness):
    message = over_the_wire(convert_robot.gripper_to_msg(openness, EMBODIMENT, 0))
    width = convert_robot.gripper_width_from_msg(message, EMBODIMENT)
    assert width == pytest.approx(min(max(openness, 0.0), 1.0) * 0.08)


@pytest.mark.parametrize('width', [math.nan, -0.01, 0.2])
def test_impossible_gripper_width_is_refused(width):
    message = convert_robot.gripper_to_msg(1.0, EMBODIMENT, 0)
    message.width = width
    with pytest.raises(ObservationError, match='width'):
        convert_robot.gripper_width_from_msg(message, EMBODIMENT)


def test_camera_info_round_trip_and_uncalibrated():
    k = np.array([[600.0, 0, 320], [0, 601.0, 240], [0, 0, 1]])
    got, width, height = convert.intrinsics_from_msg(over_the_wire(convert.camera_info_to_msg(k, 640, 480, 'cam', 5)))
    np.testing.assert_array_equal(got, k)
    assert (width, height) == (640, 480)
    with pytest.raises(ObservationError, match='not calibrated'):
        convert.intrinsics_from_msg(CameraInfo(width=640, height=480))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
def test_image_round_trip(height, width, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    message = over_the_wire(convert_image.image_to_msg(rgb, 9, 'cam'))
    np.testing.assert_array_equal(convert_image.image_from_msg(message), rgb)
    assert message.encoding == 'rgb8' and message.header.frame_id == 'cam'


def test_image_writer_reuses_its_buffer_and_follows_the_size():
    writer = convert_image.ImageWriter('cam')
    first = writer(np.full((4, 5, 3), 7, dtype=np.uint8), 1)
    data = first.data
    second = writer(np.full((4, 5, 3), 9, dtype=np.uint8), 2)
    assert second is first and second.data is data and set(second.data) == {9}
    third = writer(np.full((2, 2, 3), 1, dtype=np.uint8), 3)
    assert (third.height, third.width, third.step, len(third.data)) == (2, 2, 6, 12)
    with pytest.raises(ObservationError, match='uint8 RGB'):
        writer(np.zeros((4, 5), dtype=np.uint8), 1)


def test_image_with_impossible_step_is_refused():
    message = Image(height=480, width=640, step=640, encoding='rgb8', data=array.array('B', bytes(640 * 480)))
    with pytest.raises(ObservationError, match='step 640.*1920'):
        convert_image.image_from_msg(message)


class Bridge:
    """Stands for cv_bridge: remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def imgmsg_to_cv2(self, message, encoding):
        self.asked.append((message.encoding, encoding))
        return np.zeros((message.height, message.width, 3), dtype=np.uint8)


def test_cv_bridge_is_used_for_bayer_after_the_layout_was_checked(monkeypatch):
    bridge = Bridge()
    monkeypatch.setattr(convert_image, '_bridge', bridge)
    message = Image(height=4, width=6, step=6, encoding='bayer_rggb8', data=array.array('B', bytes(24)))
    assert convert_image.image_from_msg(message).shape == (4, 6, 3)
    assert bridge.asked == [('bayer_rggb8', 'rgb8')]
    message.step = 5
    with pytest.raises(ObservationError, match='step 5'):
        convert_image.image_from_msg(message)
    assert len(bridge.asked) == 1


def test_compressed_round_trip():
    rgb = np.full((32, 48, 3), (200, 40, 60), dtype=np.uint8)
    message = over_the_wire(convert_image.compressed_to_msg(rgb, 3, 'cam', 95))
    assert 'jpeg' in message.format and message.header.stamp == Time(nanosec=3)
    assert np.abs(convert_image.compressed_from_msg(message).astype(int) - rgb).max() < 6
