"""Differential inverse kinematics: exact, inside every bound, calm where it cannot go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from instructvla_ros.config import load, replace
from instructvla_ros.control.collision import CollisionCheck
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.errors import KinematicsError, SetupError
from instructvla_ros.geometry import interpolate, pose, rotation_angle
from instructvla_ros.resources import config_file
from instructvla_ros.settings import Embodiment

ARM = load(Embodiment, config_file('franka.yaml'))
KIN = Kinematics(ARM)
LOWER, UPPER = np.array(ARM.limits.lower), np.array(ARM.limits.upper)
VELOCITY = np.array(ARM.limits.velocity)
HOME = np.array(ARM.home)
DT = 0.01

fractions = st.lists(st.floats(0.0, 1.0), min_size=7, max_size=7).map(np.array)
joints = fractions.map(lambda f: LOWER + f * (UPPER - LOWER))


def run(target, q=HOME, steps=1500, dt=DT):
    """Steps until the target is reached or the arm rests; returns the last step, the path and the number of steps."""
    path = [np.array(q)]
    step = None
    for _ in range(steps):
        step = KIN.step(path[-1], target, dt)
        path.append(step.q)
        if not step.limited_by or step.stalled:
            break
    return step, np.array(path)


@settings(max_examples=60, deadline=None)
@given(joints)
def test_errors_are_those_of_forward_kinematics_and_small_steps_do_not_lose_the_target(q):
    target = KIN.forward(q).copy()
    target[:3, 3] += [1e-4, -1e-4, 5e-5]
    step = KIN.step(q, target, 0.1)
    reached = KIN.forward(step.q)
    assert np.linalg.norm(reached[:3, 3] - target[:3, 3]) == pytest.approx(step.position_error, abs=1e-9)
    assert rotation_angle(reached, target) == pytest.approx(step.rotation_error, abs=1e-6)
    # Within tolerance the elbow may drift towards home, at a singularity at the cost of this much.
    assert step.position_error <= 3e-4 and step.rotation_error <= 1e-3


@settings(max_examples=100, deadline=None)
@given(joints, joints, st.sampled_from([0.001, 0.01, 0.1]), st.sampled_from([0.05, 0.5, 1.0]))
def test_every_step_stays_inside_position_and_velocity_limits(q, goal, dt, speed):
    step = KIN.step(q, KIN.forward(goal), dt, speed)
    assert np.all(np.abs(step.dq) <= speed * VELOCITY * (1 + 1e-9))
    assert np.all(step.q >= LOWER - 1e-12) and np.all(step.q <= UPPER + 1e-12)
    assert np.allclose(step.q, q + step.dq * dt, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(joints, st.lists(st.floats(-0.2, 0.2), min_size=7, max_size=7), joints)
def test_a_start_outside_the_limits_does_not_raise_and_does_not_get_worse(q, outside, goal):
    start = np.where(np.array(outside) > 0, UPPER, LOWER) + outside
    step = KIN.step(start, KIN.forward(goal), DT)
    excess = np.maximum(0.0, np.maximum(LOWER - start, start - UPPER))
    after = np.maximum(0.0, np.maximum(LOWER - step.q, step.q - UPPER))
    assert np.all(after <= excess + 1e-12)
    assert np.all(np.abs(step.dq) <= VELOCITY * (1 + 1e-9))


def test_a_reachable_pose_is_reached_exactly():
    target = KIN.forward(HOME) @ pose([0.05, -0.08, 0.1], Rotation.from_euler('xyz', [0.2, -0.1, 0.4]))
    step, path = run(target)
    assert step.limited_by == '' and not step.stalled
    assert step.position_error < 1e-4 and step.rotation_error < 1e-3
    assert len(path) < 150


def test_a_figure_is_followed_within_a_tenth_of_a_millimetre():
    centre = KIN.forward(HOME)
    q, worst = HOME, 0.0
    for k in range(800):
        a = 2 * np.pi * k / 400
        target = centre.copy()
        target[:3, 3] += [0.1 * np.sin(a), 0.1 * np.sin(2 * a), 0.08 * (1 - np.cos(a))]
        step = KIN.step(q, target, 0.02)
        q = step.q
        worst = max(worst, step.position_error)
    assert worst < 1e-4


def test_far_targets_are_approached_on_the_straight_line():
    start = KIN.forward(HOME)
    target = start.copy()
    target[:3, 3] += [0.15, 0.2, -0.15]
    _, path = run(target)
    direction = (target - start)[:3, 3]
    direction /= np.linalg.norm(direction)
    tips = np.array([KIN.position(q) for q in path]) - start[:3, 3]
    away = tips - np.outer(tips @ direction, direction)
    assert np.linalg.norm(away, axis=1).max() < 0.003


@pytest.mark.parametrize(
    'place', [(1.2, 0.0, 0.3), (0.0, 0.0, 0.2), (0.3, 0.9, 0.5), (0.05, 0.0, 1.5), (-0.6, 0.0, 0.4), (0.5, 0.0, -0.9)]
)
def test_an_unreachable_target_ends_at_rest_and_names_what_is_in_the_way(place):
    target = KIN.forward(HOME).copy()
    target[:3, 3] = place
    step, path = run(target, steps=3000)
    assert step.stalled and np.all(step.dq == 0.0)
    words = step.limited_by.split()
    assert step.limited_by == 'reach' or (words[0] in ARM.arm_joints and words[1] == 'position')
    # At rest it stays: the same call again does not move.
    assert np.array_equal(KIN.step(step.q, target, DT).q, step.q)
    # No joint winds or rattles: it rests soon, and no joint travels much further than from start to end.
    assert len(path) <= 400
    travelled = np.abs(np.diff(path, axis=0)).sum(axis=0)
    assert np.all(travelled <= 1.5 * np.abs(path[-1] - path[0]) + 1.0)


def test_near_a_singularity_speeds_stay_low_for_a_slow_target():
    stretched = np.array([0.0, 0.6, 0.0, -0.4461, 0.0, 1.2, 0.78])
    target = KIN.forward(stretched).copy()
    q = stretched
    fastest = 0.0
    for _ in range(800):
        target[:3, 3] += [0.0005, 0.0, 0.0]  # 0.05 m/s outwards, soon beyond the reach
        step = KIN.step(q, target, DT)
        q = step.q
        fastest = max(fastest, np.abs(step.dq).max())
    assert fastest < 1.0
    assert step.limited_by and np.abs(step.dq).max() < 0.1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-0.25, 0.25), min_size=7, max_size=7))
def test_solve_recovers_poses_of_the_arm(offset):
    goal = KIN.forward(np.clip(HOME + offset, LOWER + 0.1, UPPER - 0.1))
    result = KIN.solve(goal, HOME)
    reached = KIN.forward(result.q)
    assert np.linalg.norm(reached[:3, 3] - goal[:3, 3]) < 2e-4
    assert rotation_angle(reached, goal) < 2e-3
    assert np.all(result.dq == 0.0)


def test_solve_names_the_obstacle():
    target = KIN.forward(HOME).copy()
    target[:3, 3] = [1.3, 0.0, 0.4]
    with pytest.raises(KinematicsError, match=r'limited by (fr3_joint\d position|reach)'):
        KIN.solve(target, HOME)


def test_tighter_bounds_are_kept():
    tight = KIN.limited(HOME - 0.1, HOME + 0.1, 0.5 * VELOCITY)
    target = KIN.forward(HOME).copy()
    target[:3, 3] += [0.3, 0.3, 0.0]
    q = HOME
    for _ in range(400):
        step = tight.step(q, target, DT)
        q = step.q
        assert np.all(np.abs(q - HOME) <= 0.1 + 1e-12)
        assert np.all(np.abs(step.dq) <= 0.5 * VELOCITY + 1e-9)
    assert 'position' in step.limited_by


@pytest.mark.parametrize(
    'q, target, dt',
    [
        (np.full(7, np.nan), np.eye(4), DT),
        (np.zeros(6), np.eye(4), DT),
        (HOME, np.full((4, 4), np.inf), DT),
        (HOME, np.zeros((4, 4)), DT),
        (HOME, np.diag([1.0, 1.0, -1.0, 1.0]), DT),
        (HOME, np.eye(3), DT),
        (HOME, np.eye(4), 0.0),
        (HOME, np.eye(4), float('nan')),
    ],
)
def test_bad_input_is_named(q, target, dt):
    with pytest.raises(KinematicsError):
        KIN.step(q, target, dt)


def test_missing_joints_and_frames_are_named_with_the_nearest():
    with pytest.raises(SetupError, match='fr3_hand_tcp'):
        Kinematics(replace(ARM, tcp_frame='fr3_hand_tpc'), KIN.urdf)
    with pytest.raises(SetupError, match='fr3_joint1'):
        Kinematics(replace(ARM, arm_joints=('fr3_jiont1', *ARM.arm_joints[1:])), KIN.urdf)
    swapped = (ARM.arm_joints[0], ARM.arm_joints[2], ARM.arm_joints[1], *ARM.arm_joints[3:])
    with pytest.raises(SetupError, match='kinematic order'):
        Kinematics(replace(ARM, arm_joints=swapped), KIN.urdf)
    with pytest.raises(SetupError, match='moves with a joint'):
        Kinematics(replace(ARM, base_frame='fr3_link3'), KIN.urdf)


def test_the_target_is_not_changed_and_results_are_copies():
    target = interpolate(KIN.forward(HOME), pose([0.5, 0.1, 0.4], Rotation.from_euler('x', np.pi)), 0.2)
    before = target.copy()
    first = KIN.step(HOME, target, DT)
    kept = first.q.copy()
    KIN.step(HOME + 0.1, target, DT)
    assert np.array_equal(target, before) and np.array_equal(first.q, kept)


def test_collision_check_tells_home_from_folded_and_from_the_table():
    check = CollisionCheck(ARM, KIN.urdf, table_height=0.0)
    assert check(HOME) == ''
    low = KIN.forward(HOME).copy()
    low[:3, 3] = [0.4, 0.0, 0.03]
    assert check(KIN.solve(low, HOME).q) == '', 'grasping height must be free'
    low[2, 3] = -0.15
    assert 'table' in check(KIN.solve(low, HOME).q)
    assert CollisionCheck(ARM, KIN.urdf)(HOME) == ''
