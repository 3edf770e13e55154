"""SE(3) conventions, checked against independent formulas and group axioms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from instructvla_ros import geometry as g

angle = st.floats(-3.0, 3.0)
small = st.floats(-0.5, 0.5)
length = st.floats(-2.0, 2.0)
poses = st.tuples(length, length, length, angle, st.floats(-1.5, 1.5), angle).map(g.pose_from_xyz_rpy)
deltas = st.tuples(small, small, small, small, small, small).map(np.array)
frames = st.sampled_from(['base', 'tool'])
conventions = st.sampled_from(['rpy', 'rotvec'])


def elementary(axis: int, a: float) -> np.ndarray:
    """Rotation matrix about one axis, written out."""
    c, s = np.cos(a), np.sin(a)
    return {
        0: np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        1: np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        2: np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


@given(st.tuples(angle, angle, angle))
def test_rpy_is_fixed_axis(rpy):
    expected = elementary(2, rpy[2]) @ elementary(1, rpy[1]) @ elementary(0, rpy[0])
    np.testing.assert_allclose(g.pose_from_xyz_rpy([0, 0, 0, *rpy])[:3, :3], expected, atol=1e-12)


@given(poses)
def test_round_trips(pose):
    np.testing.assert_allclose(g.pose_from_xyz_rpy(g.xyz_rpy_from_pose(pose)), pose, atol=1e-9)
    np.testing.assert_allclose(g.pose_from_xyz_quat(pose[:3, 3], g.quat_from_pose(pose)), pose, atol=1e-9)
    np.testing.assert_allclose(g.inverse(pose) @ pose, np.eye(4), atol=1e-12)


def test_quaternion_order_is_xyzw():
    half = np.sqrt(0.5)
    pose = g.pose_from_xyz_quat([0, 0, 0], [0, 0, half, half])
    np.testing.assert_allclose(pose[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


@given(poses, deltas, frames, conventions)
def test_delta_between_inverts_apply_delta(start, delta, frame, convention):
    end = g.apply_delta(start, delta, frame, convention)
    np.testing.assert_allclose(g.delta_between(start, end, frame, convention), delta, atol=1e-7)


@given(poses, deltas)
def test_tool_delta_is_right_multiplication(start, delta):
    expected = start @ g.pose_from_xyz_rpy(delta)
    np.testing.assert_allclose(g.apply_delta(start, delta, 'tool', 'rpy'), expected, atol=1e-12)


def test_base_delta_moves_along_base_axes_whatever_the_orientation():
    start = g.pose_from_xyz_rpy([0.4, 0.1, 0.3, np.pi, 0.2, 0.7])
    end = g.apply_delta(start, [0.01, 0, 0, 0, 0, 0.3])
    np.testing.assert_allclose(end[:3, 3] - start[:3, 3], [0.01, 0, 0], atol=1e-12)
    np.testing.assert_allclose(end[:3, :3], elementary(2, 0.3) @ start[:3, :3], atol=1e-12)


@given(poses, st.lists(deltas, min_size=1, max_size=5), frames)
def test_integrate_equals_repeated_application(start, rows, frame):
    out = g.integrate(start, np.array(rows), frame)
    current = start
    for k, row in enumerate(rows):
        current = g.apply_delta(current, row, frame)
        np.testing.assert_allclose(out[k], current, atol=1e-12)


@given(poses, poses)
def test_interpolation_ends_at_both_poses_and_halves_the_angle(a, b):
    np.testing.assert_allclose(g.interpolate(a, b, 0.0), a, atol=1e-9)
    np.testing.assert_allclose(g.interpolate(a, b, 1.0), b, atol=1e-7)
    middle = g.interpolate(a, b, 0.5)
    assert g.rotation_angle(a, middle) == pytest.approx(g.rotation_angle(a, b) / 2, abs=1e-6)


def test_rotation_angle_of_a_known_rotation():
    a = g.pose([0, 0, 0], Rotation.from_rotvec([0.1, 0.2, -0.3]))
    b = g.pose([1, 0, 0], Rotation.from_rotvec([0.1, 0.2, -0.3]) * Rotation.from_rotvec([0, 0.4, 0]))
    assert g.rotation_angle(a, b) == pytest.approx(0.4)


def test_look_at_points_z_at_the_target_and_y_down():
    pose = g.look_at([1, 0, 1], [0, 0, 0])
    np.testing.assert_allclose(pose[:3, 2], np.array([-1, 0, -1]) / np.sqrt(2), atol=1e-12)
    assert pose[2, 1] < 0
    np.testing.assert_allclose(np.linalg.det(pose[:3, :3]), 1.0)


@pytest.mark.parametrize(
    'call', [lambda: g.look_at([0, 0, 0], [0, 0, 0]), lambda: g.look_at([0, 0, 1], [0, 0, 0]),
             lambda: g.apply_delta(np.eye(4), np.zeros(6), 'world'),
             lambda: g.apply_delta(np.eye(4), np.zeros(6), 'base', 'quat'),
             lambda: g.delta_between(np.eye(4), np.eye(4), 'world')],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError):
        call()
