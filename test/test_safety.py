"""The safety ladder: nothing leaves the limits, whatever goes in, and everything it does has a name."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from instructvla_ros import config
from instructvla_ros.control.bounds import Bounds
from instructvla_ros.control.direct import DirectBackend
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.control.safety import HOLD_TIME, Motion, halt, move, trajectory_points
from instructvla_ros.control.safety_chunk import check_chunk
from instructvla_ros.control.safety_motion import (
    check_jump,
    check_state,
    check_tracking,
    clip_to_workspace,
    limit_speed,
)
from instructvla_ros.control.time_law import BOX_TOLERANCE, MotionState, TimeLaw, plan_stop
from instructvla_ros.datatypes import ActionChunk, JointCommand, RobotState, VerdictAction
from instructvla_ros.errors import ConfigError
from instructvla_ros.geometry import pose, rotation_angle
from instructvla_ros.resources import config_file
from instructvla_ros.settings import Control, Embodiment, JointLimits, Safety

ARM = config.load(Embodiment, config_file('franka.yaml'))
CONTROL = Control()
BOUNDS = Bounds.from_settings(ARM, CONTROL)
KIN = Kinematics(ARM)
HOME = np.array(ARM.home)
NOW = 1_700_000_000_000_000_000
S = 1_000_000_000

# A slow arm on which the jerk limit really binds at 100 Hz.
SOFT = config.replace(ARM, limits=config.replace(ARM.limits, jerk=(60.0,) * 7))
SOFT_BOUNDS = Bounds.from_settings(SOFT, CONTROL)


def chunk(**changes) -> ActionChunk:
    base = {
        'id': 'c1',
        'observation_stamp_ns': NOW - S // 10,
        'created_stamp_ns': NOW - S // 20,
        'step_period': 0.1,
        'steps': np.tile([0.01, 0, 0, 0, 0, 0.05, 1.0], (8, 1)),
        'frame_id': ARM.base_frame,
        'reference_pose': KIN.forward(HOME),
    }
    return ActionChunk(**{**base, **changes})


def only(verdicts, rule):
    assert [v.rule for v in verdicts] == [rule]
    assert verdicts[0].text
    return verdicts[0]


# --- chunks -----------------------------------------------------------------------------------------------------


def test_a_good_chunk_passes_untouched():
    good = chunk()
    assert check_chunk(good, NOW, BOUNDS) == (good, ())


BAD = [
    ('finite', {'steps': np.full((8, 7), np.nan)}),
    ('finite', {'steps': np.where(np.eye(8, 7) > 0, np.inf, 0.0)}),
    ('finite', {'reference_pose': np.full((4, 4), np.nan)}),
    ('finite', {'reference_pose': np.zeros((4, 4))}),
    ('finite', {'reference_pose': np.diag([1.0, 1.0, -1.0, 1.0])}),
    ('finite', {'reference_pose': np.eye(3)}),
    ('finite', {'reference_pose': pose([1e6, 0, 0])}),
    ('step_range', {'steps': np.full((8, 7), 1e9)}),
    ('chunk_shape', {'step_period': 0.001}),
    ('chunk_shape', {'step_period': 1e6}),
    ('chunk_shape', {'steps': np.zeros((2000, 7))}),
    ('future_stamp', {'created_stamp_ns': NOW + S}),
    ('future_stamp', {'observation_stamp_ns': NOW + S}),
    ('chunk_age', {'created_stamp_ns': NOW - S}),
    ('observation_age', {'observation_stamp_ns': NOW - 2 * S}),
    ('chunk_age', {'created_stamp_ns': 0, 'observation_stamp_ns': 0}),
    ('chunk_expired', {'observation_stamp_ns': NOW - 9 * S // 10}),
    ('frame', {'frame_id': 'world'}),
    ('frame', {'frame_id': ''}),
]


@pytest.mark.parametrize('rule, changes', BAD, ids=[f'{r}-{next(iter(c))}-{i}' for i, (r, c) in enumerate(BAD)])
def test_bad_chunks_are_refused_by_name(rule, changes):
    checked, verdicts = check_chunk(chunk(**changes), NOW, BOUNDS)
    verdict = only(verdicts, rule)
    assert checked is None and verdict.action is VerdictAction.REFUSED and verdict.chunk_id == 'c1'


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.floats(-99, 99), min_size=7, max_size=7), min_size=1, max_size=6),
    st.sampled_from(['rpy', 'rotvec']),
)
def test_large_steps_are_scaled_in_their_own_direction(rows, rotation):
    steps = np.array(rows)
    before = chunk(steps=steps, rotation=rotation, observation_stamp_ns=NOW)
    after, verdicts = check_chunk(before, NOW, BOUNDS)
    assert after is not None
    names = {v.rule for v in verdicts}
    far = np.linalg.norm(after.steps[:, :3], axis=1)
    assert np.all(far <= CONTROL.safety.max_step_translation * (1 + 1e-9))
    for old, new in zip(steps, after.steps, strict=True):
        as_rotation = Rotation.from_rotvec if rotation == 'rotvec' else lambda a: Rotation.from_euler('xyz', a)
        turn, asked = as_rotation(new[3:6]).as_rotvec(), as_rotation(old[3:6]).as_rotvec()
        if rotation == 'rotvec':
            turn, asked = new[3:6], old[3:6]
        assert np.linalg.norm(turn) <= CONTROL.safety.max_step_rotation + 1e-9
        if np.linalg.norm(asked) < 3.1 or rotation == 'rotvec':  # the axis of half a turn has no sign
            assert np.allclose(np.cross(turn, asked), 0.0, atol=1e-6 * (1 + np.linalg.norm(asked)))
        assert np.allclose(np.cross(new[:3], old[:3]), 0.0, atol=1e-9 * (1 + np.linalg.norm(old[:3])))
        assert 0.0 <= new[6] <= 1.0
    assert ('step_translation' in names) == bool(np.any(np.linalg.norm(steps[:, :3], axis=1) > 0.08))
    assert ('gripper_range' in names) == bool(np.any((steps[:, 6] < 0) | (steps[:, 6] > 1)))
    assert np.array_equal(before.steps, steps), 'the received chunk is not changed'


# --- Cartesian rungs --------------------------------------------------------------------------------------------

coordinates = st.lists(st.floats(-3, 3), min_size=3, max_size=3)


@given(coordinates)
def test_workspace_and_table_clip_each_axis_by_name(xyz):
    clipped, verdicts = clip_to_workspace(pose(xyz), BOUNDS)
    p = clipped[:3, 3]
    assert np.all(p >= BOUNDS.box_lower) and np.all(p <= BOUNDS.box_upper)
    for axis, asked, got in zip('xyz', xyz, p, strict=True):
        named = [v for v in verdicts if v.subject == axis]
        assert bool(named) == (abs(asked - got) > 1e-6)
        for verdict in named:
            assert verdict.value == pytest.approx(asked) and verdict.limit == pytest.approx(got) and verdict.unit == 'm'
    if xyz[2] < -0.01:
        assert [v.rule for v in verdicts if v.subject == 'z'] == ['table']


@given(coordinates, coordinates, st.floats(0.01, 1.0))
def test_tcp_speed_is_limited_along_the_way(start, turn, scale):
    target = pose(start, Rotation.from_rotvec(turn))
    out, verdicts = limit_speed(np.eye(4), target, BOUNDS, scale)
    reach = scale * CONTROL.safety.max_cartesian_speed * 0.01
    swing = scale * CONTROL.safety.max_rotation_speed * 0.01
    assert np.linalg.norm(out[:3, 3]) <= reach * (1 + 1e-9)
    assert rotation_angle(np.eye(4), out) <= swing * (1 + 1e-6)
    assert np.allclose(np.cross(out[:3, 3], start), 0.0, atol=1e-9)
    assert bool(verdicts) == (out is not target)


def test_joint_states_are_judged_by_name():
    good = RobotState(NOW, HOME, np.zeros(7), 1.0)
    assert check_state(good, NOW, BOUNDS) is None
    cases = {
        'missing': None,
        'size': replace(good, q=HOME[:6]),
        'finite': replace(good, q=HOME * np.nan),
        'age': replace(good, stamp_ns=NOW - S),
        'future': replace(good, stamp_ns=NOW + S),
    }
    for subject, state in cases.items():
        verdict = check_state(state, NOW, BOUNDS)
        assert verdict.rule == 'joint_state' and verdict.subject == subject and verdict.text
    assert check_state(replace(good, gripper=float('nan')), NOW, BOUNDS).subject == 'finite'


def test_jumps_and_tracking_errors_name_the_joint():
    moved = HOME + np.eye(7)[3] * 0.3
    assert check_jump(HOME, HOME + 0.1, BOUNDS) is None
    assert check_jump(HOME, moved, BOUNDS).subject == 'fr3_joint4'
    assert check_tracking(HOME, moved, BOUNDS).subject == 'fr3_joint4'
    assert check_tracking(HOME, HOME + 0.2, BOUNDS) is None


# --- time law ---------------------------------------------------------------------------------------------------

unit = st.floats(-1.0, 1.0)
reference = st.one_of(
    st.lists(unit, min_size=7, max_size=7),
    st.lists(st.floats(-50, 50), min_size=7, max_size=7),
    st.just([float('nan')] * 7),
    st.just([float('inf')] * 7),
)
moves = st.lists(
    st.tuples(reference, st.lists(st.floats(-3, 3), min_size=7, max_size=7), st.integers(1, 30)), max_size=6
)


def differences(history, period):
    q = np.array([m.q for m in history])
    v = np.diff(q, axis=0) / period
    a = np.diff(v, axis=0) / period
    return q, v, a, np.diff(a, axis=0) / period


def assert_inside(history, b, outside=0.0):
    """Position, velocity, acceleration and jerk by finite differences, to 1e-6 of the limit."""
    q, v, a, j = differences(history, b.period)
    assert np.all(q >= b.lower - outside - 1e-6) and np.all(q <= b.upper + outside + 1e-6)
    for values, limit in ((v, b.velocity), (a, b.acceleration), (j, b.jerk)):
        assert np.all(np.isfinite(values))
        assert np.all(np.abs(values) <= limit * (1 + 1e-6) + 1e-6)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([BOUNDS, SOFT_BOUNDS]), st.lists(unit, min_size=7, max_size=7), moves, st.floats(0.0, 1.0))
def test_no_reference_drives_the_joints_out_of_any_limit(b, start, script, scale):
    centre, span = 0.5 * (b.lower + b.upper), 0.5 * (b.upper - b.lower)
    law = TimeLaw(b)
    state = MotionState.at_rest(centre + np.array(start) * span)
    history = [state, state, state]
    for target, speed, repeats in script:
        q_ref = centre + 1.5 * np.array(target) * span
        for _ in range(repeats):
            following, verdicts = law.advance(state, q_ref, np.array(speed), scale)
            if not np.all(np.isfinite(q_ref)):
                assert only(verdicts, 'finite').action is VerdictAction.HELD
            elif np.abs(following.q - q_ref).max() > 1e-3:
                assert verdicts, 'a reference that is not met is explained'
            state = following
            history.append(state)
    assert_inside(history, b)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-0.4, 0.4), min_size=7, max_size=7), st.integers(0, 2**31))
def test_a_start_outside_the_position_limits_only_gets_better(excess, seed):
    rng = np.random.default_rng(seed)
    b = BOUNDS
    start = np.clip(HOME + rng.uniform(-3, 3, 7), b.lower, b.upper) + np.array(excess)
    law = TimeLaw(b)
    state = MotionState.at_rest(start)
    history = [state, state, state]
    low, high = np.minimum(b.lower, start), np.maximum(b.upper, start)
    goal = rng.uniform(b.lower, b.upper)
    for _ in range(200):
        state, _ = law.advance(state, goal, np.zeros(7))
        assert np.all(state.q >= low - 1e-6) and np.all(state.q <= high + 1e-6)
        history.append(state)
    _, v, a, j = differences(history, b.period)
    assert np.all(np.abs(v) <= b.velocity * (1 + 1e-6)) and np.all(np.abs(a) <= b.acceleration * (1 + 1e-6) + 1e-6)
    for _ in range(800):
        state, _ = law.advance(state, goal, np.zeros(7))
    assert np.allclose(state.q, goal, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([BOUNDS, SOFT_BOUNDS]),
    st.lists(unit, min_size=7, max_size=7),
    st.lists(unit, min_size=7, max_size=7),
)
def test_every_state_of_the_law_comes_to_rest_within_the_stop_time(b, speed, acceleration):
    # The states the law can be in: the velocity that an acceleration still leads to is inside its bound as well.
    ddq = np.array(acceleration) * b.acceleration
    dq = np.array(speed) * (b.velocity - 0.5 * ddq**2 / b.jerk)
    law = TimeLaw(b)
    state = MotionState(HOME, dq, ddq)
    for _ in range(int(CONTROL.safety.stop_time / b.period)):
        state = law.brake(state)
    assert state.resting
    assert law.brake(state) is state


def test_extrema_of_stops_are_those_of_their_samples():
    rng = np.random.default_rng(5)
    for _ in range(200):
        still = rng.integers(0, 2, 7)
        state = MotionState(
            rng.uniform(-2, 2, 7), still * rng.uniform(-1, 1, 7), rng.integers(0, 2, 7) * rng.uniform(-5, 5, 7)
        )
        plan = plan_stop(state, BOUNDS.acceleration, BOUNDS.jerk)
        samples = np.array([plan.at(t)[0] for t in np.linspace(0, plan.left, 150)])
        assert np.all(plan.low <= samples.min(axis=0) + 1e-9) and np.all(plan.high >= samples.max(axis=0) - 1e-9)
        assert np.all(plan.high - samples.max(axis=0) < 1e-4) and np.all(samples.min(axis=0) - plan.low < 1e-4)


def test_ramps_are_followed_without_lag():
    law = TimeLaw(BOUNDS)
    state, speed = MotionState.at_rest(HOME), 0.4 * BOUNDS.velocity
    goal = HOME.copy()
    for _ in range(60):
        goal = goal + speed * BOUNDS.period
        state, _ = law.advance(state, goal, speed)
    assert np.allclose(state.q, goal, atol=1e-6) and np.allclose(state.dq, speed, atol=1e-6)


# --- the whole step ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_no_target_drives_the_arm_out_of_any_limit(seed):
    rng = np.random.default_rng(seed)
    backend = DirectBackend(ARM, BOUNDS, KIN, check_collisions=bool(rng.integers(2)))
    law = TimeLaw(BOUNDS, backend.position, backend.collision)
    q = np.clip(HOME + rng.uniform(-0.4, 0.4, 7), BOUNDS.lower, BOUNDS.upper)
    backend.reset(q)
    motion = Motion(MotionState.at_rest(q), backend.forward(q))
    tip = backend.position(q)
    outside = max(0.0, float(np.max(np.maximum(BOUNDS.box_lower - tip, tip - BOUNDS.box_upper))))
    history = [motion.joints] * 3
    target = motion.target
    for k in range(150):
        if k % 10 == 0:
            target = pose(rng.uniform(-1.5, 1.5, 3), Rotation.random(rng=rng))
            if rng.random() < 0.2:
                target = target * np.nan
        motion, verdicts = move(motion, target, law, backend, float(rng.uniform(0.05, 1.0)))
        if np.isnan(target).any():
            assert only(verdicts, 'finite').action is VerdictAction.HELD
        reached = backend.forward(motion.joints.q)
        if np.abs(reached - target).max() > 0.02:
            assert verdicts, 'an unmet target is explained'
        assert all(v.rule and v.text for v in verdicts)
        p = reached[:3, 3]
        excess = float(np.max(np.maximum(BOUNDS.box_lower - p, p - BOUNDS.box_upper)))
        assert excess <= max(BOX_TOLERANCE, outside) + 1e-5
        history.append(motion.joints)
    assert_inside(history, BOUNDS)
    for _ in range(30):
        motion = halt(motion, law, backend)
        history.append(motion.joints)
    assert motion.joints.resting
    assert_inside(history, BOUNDS)


def test_the_table_is_approached_without_touching_the_plane():
    backend = DirectBackend(ARM, BOUNDS, KIN)
    law = TimeLaw(BOUNDS, backend.position, backend.collision)
    backend.reset(HOME)
    motion = Motion(MotionState.at_rest(HOME), backend.forward(HOME))
    target = motion.target.copy()
    target[:3, 3] = [0.45, 0.1, -0.3]
    lowest, named = 1.0, set()
    for _ in range(400):
        motion, verdicts = move(motion, target, law, backend)
        named |= {v.rule for v in verdicts}
        lowest = min(lowest, float(backend.position(motion.joints.q)[2]))
    assert lowest >= BOUNDS.box_lower[2] - BOX_TOLERANCE
    assert backend.position(motion.joints.q)[2] == pytest.approx(0.005, abs=1e-3)
    assert 'table' in named


def test_a_collision_named_by_the_backend_stops_the_arm():
    wall = 0.35

    def collision(q):
        return 'wall' if KIN.position(q)[0] > wall else ''

    backend = DirectBackend(ARM, BOUNDS, KIN, check_collisions=False)
    law = TimeLaw(BOUNDS, backend.position, collision)
    backend.reset(HOME)
    motion = Motion(MotionState.at_rest(HOME), backend.forward(HOME))
    target = motion.target.copy()
    target[0, 3] += 0.3
    hits = []
    for _ in range(300):
        motion, verdicts = move(motion, target, law, backend)
        hits += [v for v in verdicts if v.rule == 'collision']
        assert KIN.position(motion.joints.q)[0] <= wall
    assert hits and hits[0].action is VerdictAction.HELD and 'wall' in hits[0].text


# --- the tail of every command ----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.lists(unit, min_size=7, max_size=7),
    st.lists(unit, min_size=7, max_size=7),
    st.lists(unit, min_size=7, max_size=7),
)
def test_every_command_ends_in_a_stop_inside_the_limits(place, speed, acceleration):
    ddq = np.array(acceleration) * BOUNDS.acceleration
    dq = np.array(speed) * (BOUNDS.velocity - 0.5 * ddq**2 / BOUNDS.jerk)
    room = 0.5 * dq**2 / BOUNDS.acceleration + 0.02
    q = 0.5 * (BOUNDS.lower + BOUNDS.upper) + np.array(place) * (0.5 * (BOUNDS.upper - BOUNDS.lower) - room)
    command = JointCommand(NOW, q, dq, 1.0, 0.02, ddq)
    times, positions, velocities = trajectory_points(command, ARM.limits)
    assert times[0] == 0.02 and np.all(np.diff(times) > 1e-3)
    assert np.array_equal(positions[0], q) and np.allclose(velocities[0], dq)
    assert np.all(velocities[-1] == 0.0)
    assert np.all(positions >= np.array(ARM.limits.lower)) and np.all(positions <= np.array(ARM.limits.upper))
    assert np.all(velocities[-2:] == 0.0) and np.array_equal(positions[-1], positions[-2])
    assert times[-2] <= 0.02 + CONTROL.safety.stop_time
    assert times[-1] - times[-2] >= HOLD_TIME - 1e-9
    mean = np.diff(velocities, axis=0) / np.diff(times)[:, None]
    assert np.all(np.abs(mean) <= np.array(ARM.limits.acceleration) * (1 + 1e-6) + 1e-6)


def test_a_command_at_rest_holds_so_long_that_a_late_message_is_still_taken():
    times, positions, velocities = trajectory_points(JointCommand(NOW, HOME, np.zeros(7), 1.0, 0.02), ARM.limits)
    assert times[0] == 0.02 and times[-1] >= 0.02 + HOLD_TIME
    assert np.array_equal(positions, [HOME, HOME]) and not velocities.any()


# --- settings ---------------------------------------------------------------------------------------------------


def test_speeds_are_capped_so_that_the_stop_time_holds():
    short = Bounds.from_settings(ARM, Control(safety=Safety(stop_time=0.1)))
    assert np.all(short.velocity <= short.acceleration * 0.08)
    assert np.all(BOUNDS.velocity <= 0.6 * np.array(ARM.limits.velocity) + 1e-12)


@pytest.mark.parametrize(
    'changes',
    [{'stop_time': 0.05}, {'position_margin': 2.0}, {'table_height': 1.5}],
)
def test_settings_that_leave_no_room_are_refused(changes):
    control = Control(rate=20.0) if 'stop_time' in changes else Control()
    narrow = config.replace(
        ARM,
        limits=JointLimits(
            *(tuple(v) for v in (HOME - 1.0, HOME + 1.0, ARM.limits.velocity, ARM.limits.acceleration, ARM.limits.jerk))
        ),
    )
    with pytest.raises(ConfigError):
        Bounds.from_settings(narrow, replace(control, safety=Safety(**changes)))
