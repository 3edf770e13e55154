"""The simulated joint_trajectory_controller: replacement, stamps, interpolation, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructvla_ros import config
from instructvla_ros.resources import config_file
from instructvla_ros.settings import Embodiment
from instructvla_ros.sim.trajectory import TrajectoryFollower, _cubic_extrema

ARM = config.load(Embodiment, config_file('franka.yaml'))
HOME = np.array(ARM.home)
NAMES = list(ARM.arm_joints)
SPEED = np.array(ARM.limits.velocity)
LOWER, UPPER = np.array(ARM.limits.lower), np.array(ARM.limits.upper)
T0 = 1_700_000_000_000_000_000
S = 1_000_000_000


def follower(**kw):
    return TrajectoryFollower(ARM, HOME, **kw)


def step(amount, joint=0):
    return HOME + amount * np.eye(7)[joint]


def test_holds_start_without_trajectory():
    q, dq = follower().sample(T0)
    assert np.array_equal(q, HOME) and np.array_equal(dq, np.zeros(7))


def test_linear_without_velocities_and_hold_at_end():
    f = follower()
    assert f.accept(NAMES, [1.0], [step(0.4)], None, 0, T0) == ''
    q, dq = f.sample(T0 + S // 4)
    assert q[0] == pytest.approx(0.1) and dq[0] == pytest.approx(0.4)
    q, dq = f.sample(T0 + 5 * S)
    assert q == pytest.approx(step(0.4)) and np.all(dq == 0)


def test_cubic_with_velocities():
    f = follower()
    assert f.accept(NAMES, [1.0], [step(0.4)], [np.zeros(7)], 0, T0) == ''
    q, dq = f.sample(T0 + S // 2)
    assert q[0] == pytest.approx(0.2) and dq[0] == pytest.approx(0.6)  # smooth step: 1.5 times the mean speed
    assert f.sample(T0)[1] == pytest.approx(np.zeros(7))


def test_replacement_starts_from_the_commanded_state():
    f = follower()
    f.accept(NAMES, [1.0], [step(0.4)], [np.zeros(7)], 0, T0)
    now = T0 + S // 2
    before = f.sample(now)
    assert f.accept(NAMES, [1.0], [step(0.0)], [np.zeros(7)], 0, now) == ''
    after = f.sample(now)
    assert after[0] == pytest.approx(before[0]) and after[1] == pytest.approx(before[1])
    assert f.sample(now + S)[0] == pytest.approx(HOME)


def test_future_stamp_drops_the_old_one_at_once():
    f = follower()
    f.accept(NAMES, [1.0], [step(1.0)], None, 0, T0)
    now = T0 + S // 2
    assert f.accept(NAMES, [0.0, 1.0], [step(0.5), step(0.5)], None, now + S, now) == ''
    assert f.sample(now + S // 2)[0][0] == pytest.approx(0.5)  # no longer on the way to 1.0


def test_points_in_the_past_are_skipped():
    f = follower()
    stamp = T0 - S
    assert f.accept(NAMES, [0.5, 2.0], [step(-1.0), step(0.2)], None, stamp, T0) == ''
    assert f.sample(T0 + S // 2)[0][0] == pytest.approx(0.1)


@pytest.mark.parametrize('stamp', [T0 - 2 * S, T0 - S])
def test_trajectory_that_is_over_is_refused(stamp):
    f = follower()
    assert 'in the past' in f.accept(NAMES, [0.5, 1.0], [step(0.1), step(0.2)], None, stamp, T0)
    assert np.array_equal(f.sample(T0 + S)[0], HOME)


def test_columns_follow_the_names():
    f = follower()
    order = [3, 1, 0, 2, 6, 5, 4]
    goal = HOME + np.arange(7) * 0.01
    assert f.accept([NAMES[i] for i in order], [1.0], [goal[order]], None, 0, T0) == ''
    assert f.sample(T0 + 2 * S)[0] == pytest.approx(goal)


@pytest.mark.parametrize(
    'names, times, q, v, part',
    [
        (NAMES[:6], [1.0], [HOME[:6]], None, 'missing fr3_joint7'),
        ([*NAMES[:6], 'elbow'], [1.0], [HOME], None, 'unknown elbow'),
        ([*NAMES, NAMES[0]], [1.0], [[*HOME, 0.0]], None, 'repeated'),
        (NAMES, [], np.zeros((0, 7)), None, 'no points'),
        (NAMES, [1.0], [HOME[:6]], None, 'shape (1, 6)'),
        (NAMES, [1.0, 1.0], [HOME, HOME], None, 'strictly increase'),
        (NAMES, [-0.1, 1.0], [HOME, HOME], None, '>= 0'),
        (NAMES, [1.0], [HOME * np.nan], None, 'not finite'),
        (NAMES, [1.0], [HOME], [np.full(7, np.inf)], 'not finite'),
        (NAMES, [1.0], [HOME], [np.full(7, 0.1)], 'at rest'),
        (NAMES, [0.0], [HOME], None, 'in the past'),
        (NAMES, [9.0], [step(2.5)], None, 'fr3_joint1 would go to 2.5000 rad, allowed -2.3093 .. 2.3093'),
        (NAMES, [0.01], [step(1.0)], None, 'fr3_joint1 would move at 100.000 rad/s, allowed 2.000'),
        (NAMES, [0.1, 1.0], [step(0.0, 3), step(0.1, 3)], [step(1.6, 3) - HOME, np.zeros(7)], 'fr3_joint4 would move'),
    ],
)
def test_refusals_name_the_reason_and_change_nothing(names, times, q, v, part):
    f = follower()
    f.accept(NAMES, [1.0], [step(0.4)], None, 0, T0)
    assert part in f.accept(names, times, q, v, 0, T0)
    assert f.sample(T0 + S // 2)[0][0] == pytest.approx(0.2)


def test_overshoot_between_points_is_seen():
    """Both points are inside the limits, the cubic between them is not."""
    f = TrajectoryFollower(ARM, step(2.0))
    v = np.zeros((2, 7))
    v[0, 0] = 1.9
    reason = f.accept(NAMES, [0.15, 2.0], [step(2.2), step(2.2)], v, 0, T0)
    assert 'fr3_joint1 would go to' in reason


def test_moving_end_only_when_allowed():
    v = [0.1 * np.eye(7)[0]]
    assert 'at rest' in follower().accept(NAMES, [1.0], [step(0.1)], v, 0, T0)
    f = follower(allow_nonzero_end=True)
    assert f.accept(NAMES, [1.0], [step(0.1)], v, 0, T0) == ''
    assert np.all(f.sample(T0 + 2 * S)[1] == 0)


def test_comes_back_from_beyond_a_limit():
    out = HOME.copy()
    out[0] = UPPER[0] + 0.01
    f = TrajectoryFollower(ARM, out)
    assert f.accept(NAMES, [1.0], [HOME * 0 + np.where(np.arange(7) == 0, UPPER[0], HOME)], None, 0, T0) == ''
    f.reset(out)
    assert 'fr3_joint1' in f.accept(NAMES, [1.0], [out + 0.02 * np.eye(7)[0]], None, 0, T0)


def test_reset_refuses_nonsense():
    with pytest.raises(ValueError):
        follower().reset([0.0] * 6)
    with pytest.raises(ValueError):
        follower().reset([np.nan] * 7)


unit = st.floats(-1.0, 1.0, allow_nan=False)


@st.composite
def trajectories(draw):
    m = draw(st.integers(1, 5))
    gaps = draw(st.lists(st.floats(0.005, 1.0), min_size=m, max_size=m))
    moves = np.array(draw(st.lists(st.lists(unit, min_size=7, max_size=7), min_size=m, max_size=m)))
    scale = draw(st.sampled_from([0.01, 0.1, 0.5, 2.0]))
    q = HOME + np.cumsum(scale * moves, axis=0)
    v = None
    if draw(st.booleans()):
        v = np.array(draw(st.lists(st.lists(unit, min_size=7, max_size=7), min_size=m, max_size=m))) * scale * 2
        v[-1] = 0.0
    stamp = draw(st.sampled_from([0, 1, -1])) * draw(st.integers(1, S))
    return np.cumsum(gaps), q, v, stamp


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(trajectories(), st.floats(0.0, 1.5)), min_size=1, max_size=4))
def test_whatever_is_accepted_stays_in_all_limits(messages):
    """Position and speed never leave the limits, position never jumps, refusals have a text and no effect."""
    f, now, accepted = follower(), T0, 0
    for (times, q, v, shift), pause in messages:
        before = f.sample(now)
        reason = f.accept(NAMES, times, q, v, 0 if shift == 0 else now + shift, now)
        accepted += not reason
        after = f.sample(now)
        assert np.allclose(before[0], after[0], atol=1e-9)
        if reason:
            assert np.array_equal(before[1], after[1])
        elif v is not None:
            assert np.allclose(before[1], after[1], atol=1e-9)
        grid = now + np.linspace(0, max(pause, 1e-3) * S, 60).astype(np.int64)
        path = [f.sample(int(t)) for t in grid]
        qs, vs = np.array([p[0] for p in path]), np.array([p[1] for p in path])
        assert np.all(qs >= LOWER - 2e-6) and np.all(qs <= UPPER + 2e-6)
        assert np.all(np.abs(vs) <= SPEED + 2e-6)
        step_limit = SPEED * np.diff(grid)[:, None] * 1e-9
        assert np.all(np.abs(np.diff(qs, axis=0)) <= step_limit + 1e-5)
        now += int(pause * S)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.floats(0.01, 2.0))
def test_extrema_of_a_cubic_are_exact(values, h):
    q, v = np.array(values[:2])[:, None], np.array(values[2:])[:, None]
    low, high, speed = _cubic_extrema(q, v, np.array([[h]]))
    s = np.linspace(0, 1, 2001)
    path = (
        (2 * s**3 - 3 * s**2 + 1) * q[0]
        + (s**3 - 2 * s**2 + s) * h * v[0]
        + (3 * s**2 - 2 * s**3) * q[1]
        + (s**3 - s**2) * h * v[1]
    )
    rate = ((6 * s**2 - 6 * s) * (q[0] - q[1]) / h) + (3 * s**2 - 4 * s + 1) * v[0] + (3 * s**2 - 2 * s) * v[1]
    assert low[0] == pytest.approx(path.min(), abs=1e-5) and low[0] <= path.min() + 1e-9
    assert high[0] == pytest.approx(path.max(), abs=1e-5) and high[0] >= path.max() - 1e-9
    assert (
        speed[0] == pytest.approx(np.abs(rate).max(), rel=1e-3) and speed[0] >= np.abs(rate).max() * (1 - 1e-9) - 1e-9
    )


def test_a_late_command_is_caught_up_within_the_speed_limits():
    """A stream of commands pauses for 80 ms: the next one is not refused, and the arm is back on the stream soon."""
    f = follower()
    speed, period = 0.5, 0.01
    way = lambda t: step(speed * t)  # noqa: E731
    last, fastest = HOME, 0.0
    for k in range(1, 100):
        now = T0 + k * S // 100
        if not 40 <= k < 48:
            t = k * period
            q = [way(t + 0.02), way(t + 0.02) + (step(0.02) - HOME), way(t + 0.02) + (step(0.02) - HOME)]
            v = [(step(speed) - HOME), np.zeros(7), np.zeros(7)]
            assert f.accept(NAMES, [0.02, 0.1, 0.3], q, v, now, now) == ''
        q_now, _ = f.sample(now + S // 100)
        fastest = max(fastest, np.abs(q_now - last).max() / period)
        last = q_now
    assert fastest <= 2.0 + 1e-6
    assert abs(last[0] - way(1.0)[0]) < 0.01
