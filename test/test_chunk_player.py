"""Playing chunks: the path they mean, the seams between them, the weights of the ensemble, the gripper."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from instructvla_ros import config
from instructvla_ros.control.bounds import Bounds
from instructvla_ros.control.chunk_player import ChunkPlayer
from instructvla_ros.control.ensemble import ensemble_chunk, ensemble_step, ensemble_weights
from instructvla_ros.control.gripper import GripperSwitch
from instructvla_ros.control.path import Path, fade
from instructvla_ros.datatypes import ActionChunk, VerdictAction
from instructvla_ros.geometry import integrate, pose, rotation_angle
from instructvla_ros.resources import config_file
from instructvla_ros.settings import Control, Embodiment, Gripper

ARM = config.load(Embodiment, config_file('franka.yaml'))
START = pose([0.45, 0.0, 0.3], Rotation.from_euler('x', np.pi))
T0 = 1_700_000_000_000_000_000
BIG = (np.full(3, -10.0), np.full(3, 10.0))
names = iter(range(10**9))
NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking a whole simulation takes minutes


def ns(seconds: float) -> int:
    return T0 + round(seconds * 1e9)


def chunk(steps, observed=0.0, base=START, **changes) -> ActionChunk:
    full = np.zeros((len(steps), 7))
    full[:, 6] = 1.0
    full[:, : np.shape(steps)[1]] = steps
    fields = {'frame_id': ARM.base_frame, 'step_period': 0.1, **changes}
    return ActionChunk(f'c{next(names)}', ns(observed), ns(observed), steps=full, reference_pose=base, **fields)


def player(**changes) -> ChunkPlayer:
    control = Control(**changes)
    out = ChunkPlayer(control, Bounds.from_settings(ARM, control))
    out.reset(START, ns(0.0))
    return out


def line(speed, count=8, axis=1):
    steps = np.zeros((count, 3))
    steps[:, axis] = 0.1 * speed
    return steps


# --- path -------------------------------------------------------------------------------------------------------

small = st.floats(-0.05, 0.05)
random_steps = st.lists(st.lists(small, min_size=6, max_size=6), min_size=1, max_size=8).map(np.array)


@settings(max_examples=60, deadline=None)
@given(random_steps, st.sampled_from(['base', 'tool']), st.sampled_from(['rpy', 'rotvec']))
def test_a_path_begins_at_its_base_and_rests_in_the_integral_of_its_deltas(steps, frame, rotation):
    what = chunk(steps, delta_frame=frame, rotation=rotation)
    path = Path.of_chunk(what, START, *BIG)
    end = integrate(START, steps, frame, rotation)[-1]
    assert np.allclose(path.at(path.duration), end, atol=1e-9)
    assert np.allclose(path.at(1e9), end, atol=1e-9)
    assert np.allclose(path.at(path.duration - 1e-4), end, atol=1e-6), 'arrives at rest'
    start = path.at(0.0)
    assert np.linalg.norm(start[:3, 3] - START[:3, 3]) <= np.linalg.norm(steps[0, :3]) / 8 + 1e-12


@settings(max_examples=20, deadline=None)
@given(random_steps)
def test_a_path_and_its_velocity_are_continuous_and_stay_in_the_hull_of_the_knots(steps):
    path = Path.of_chunk(chunk(steps), START, *BIG)
    dt = 0.002
    poses = [path.at(t) for t in np.arange(0.0, path.duration + 0.05, dt)]
    p = np.array([x[:3, 3] for x in poses])
    assert np.all(p >= path.positions.min(axis=0) - 1e-12) and np.all(p <= path.positions.max(axis=0) + 1e-12)
    velocity = np.diff(p, axis=0) / dt
    assert np.abs(np.diff(velocity, axis=0) / dt).max() <= 2 * np.abs(steps[:, :3]).max() / 0.01 * 1.01 + 1e-9
    turning = np.array([rotation_angle(a, b) for a, b in zip(poses[:-1], poses[1:], strict=True)]) / dt
    assert np.abs(np.diff(turning)).max() <= 0.05, 'no step in the turning rate'


def test_knots_are_kept_inside_the_box():
    lower, upper = np.array([0.2, -0.1, 0.01]), np.array([0.8, 0.1, 0.9])
    path = Path.of_chunk(chunk(line(-0.8, axis=2)), START, lower, upper)
    assert path.positions[:, 2].min() == 0.01
    assert min(path.at(t)[2, 3] for t in np.linspace(0, 1, 300)) >= 0.01


def test_fade_leaves_with_its_slope_and_arrives_at_rest():
    offset, slope = np.array([1.0, -2.0]), np.array([0.5, 0.0])
    h = 1e-6
    assert np.allclose(fade(0.0, offset, slope), offset)
    assert np.allclose((fade(h, offset, slope) - offset) / h, slope, atol=1e-4)
    assert np.allclose(fade(1.0, offset, slope), 0.0) and np.allclose(fade(1.0 - h, offset, slope) / h, 0.0, atol=1e-4)


# --- ensemble ---------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(-1, 1), min_size=7, max_size=7), min_size=1, max_size=8), st.floats(0, 10))
def test_weights_sum_to_one_and_follow_the_formula(rows, alpha):
    p = np.array(rows)
    w = ensemble_weights(p, alpha)
    assert np.all(w > 0) and w.sum() == pytest.approx(1.0)
    expected = []
    for row in p:
        c = float(np.dot(row, p[0])) / (np.linalg.norm(row) * np.linalg.norm(p[0]) + 1e-7)
        expected.append(np.exp(alpha * c))
    assert np.allclose(w, np.array(expected) / np.sum(expected))
    assert np.allclose(ensemble_step(p, alpha), (w[:, None] * p).sum(axis=0))


def test_alpha_zero_is_the_mean_and_a_large_alpha_follows_the_newest():
    p = np.array([[1.0, 0, 0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0, 0]])
    assert np.allclose(ensemble_step(p, 0.0), p.mean(axis=0))
    assert np.allclose(ensemble_step(p, 30.0), p[0], atol=1e-9)


def test_shifted_identical_predictions_return_the_chunk_itself():
    rng = np.random.default_rng(0)
    future = rng.uniform(-0.05, 0.05, (14, 7))
    chunks = [
        replace(chunk(np.zeros((8, 6)), observed=0.1 * k), steps=future[k : k + 8], id=f'e{k}') for k in (3, 2, 1, 0)
    ]
    assert np.allclose(ensemble_chunk(chunks, 0.1).steps, future[3:11], atol=1e-12)


def test_each_step_meets_the_prediction_of_older_chunks_for_the_same_time():
    old = chunk(np.arange(8)[:, None] * np.ones((8, 3)) * 0.01, observed=0.0)
    new = chunk(np.zeros((8, 3)), observed=0.2)
    steps = ensemble_chunk([new, old], 0.0).steps
    assert np.allclose(steps[:6, 0], 0.5 * 0.01 * np.arange(2, 8))
    assert np.allclose(steps[6:, 0], 0.0), 'the old chunk has ended by then'


@pytest.mark.parametrize(
    'change', [{'rotation': 'rotvec'}, {'delta_frame': 'tool'}, {'instruction': 'x'}, {'step_period': 0.2}]
)
def test_chunks_of_another_meaning_do_not_take_part(change):
    new = chunk(line(0.1))
    assert np.array_equal(ensemble_chunk([new, chunk(line(0.5), **change)], 0.1).steps, new.steps)


# --- player -----------------------------------------------------------------------------------------------------


def targets(p: ChunkPlayer, start: float, stop: float, dt=0.01, follow=True):
    out = []
    for t in np.arange(start, stop, dt):
        sample = p.sample(ns(t))
        if sample is None:
            break
        out.append(sample)
        if follow:
            p.record(ns(t), sample.pose)
    return out


def test_a_chunk_plays_at_its_own_speed_and_then_expires():
    p = player()
    assert p.sample(ns(0.0)) is None
    assert p.admit(chunk(line(0.2)), ns(0.0)) == ()
    samples = targets(p, 0.0, 3.0)
    y = np.array([s.pose[1, 3] for s in samples])
    assert y[-1] == pytest.approx(0.16, abs=2e-4)
    assert np.gradient(y, 0.01)[20:70] == pytest.approx(0.2, abs=1e-6)
    assert 0.8 <= 0.01 * len(samples) <= 0.9 and not p.active
    assert [s.step_index for s in samples] == sorted(s.step_index for s in samples)
    assert samples[-1].step_index == 7


def test_hold_after_keeps_the_last_pose():
    p = player(hold_after=0.5)
    p.admit(chunk(line(0.2)), ns(0.0))
    assert 1.3 <= 0.01 * len(targets(p, 0.0, 3.0)) <= 1.4


def test_play_time_ends_a_chunk_early():
    p = player(play_time=0.3)
    p.admit(chunk(line(0.2)), ns(0.0))
    assert 0.29 <= 0.01 * len(targets(p, 0.0, 3.0)) <= 0.32


@pytest.mark.parametrize('latency', [0.0, 0.1, 0.3])
@pytest.mark.parametrize('lag', [0.0, 0.1])
def test_replanning_with_latency_follows_the_same_path_at_the_same_speed(latency, lag):
    """The policy moves on at 0.2 m/s from the pose it saw; the arm follows its command ``lag`` later."""
    p = player()
    history, pending, y = [START], [], []
    for k in range(250):
        t = 0.01 * k
        if k % 20 == 0:
            seen = history[max(0, len(history) - 1 - round(lag / 0.01))]
            pending.append((t + latency, chunk(line(0.2), observed=t, base=seen)))
        while pending and pending[0][0] <= t + 1e-9:
            p.admit(pending.pop(0)[1], ns(t))
        sample = p.sample(ns(t))
        history.append(sample.pose if sample else history[-1])
        p.record(ns(t), history[-1])
        y.append(history[-1][:3, 3])
    y = np.array(y)
    assert np.allclose(y[:, [0, 2]], START[[0, 2], 3], atol=1e-9)
    speed = np.diff(y[:, 1]) / 0.01
    begin = round((latency + 0.15) / 0.01)
    assert speed[begin:] == pytest.approx(0.2, abs=0.012), 'no hurry, no pause at the seams'
    assert y[-1, 1] == pytest.approx(0.2 * (2.5 - latency - 0.06), abs=0.02)


def test_steps_the_arm_has_done_during_the_latency_are_skipped_others_are_not():
    p = player()
    p.admit(chunk(line(0.2, 16)), ns(0.0))
    targets(p, 0.0, 0.5)
    where = p.sample(ns(0.5)).pose
    # Observed at 0.2, arriving at 0.5: the arm has gone on with the old chunk, so three steps are done.
    p.admit(chunk(line(0.2, 16), observed=0.2, base=p.commanded(ns(0.2))), ns(0.5))
    after = p.sample(ns(0.5))
    assert np.allclose(after.pose, where, atol=1e-6)
    assert after.step_index in (2, 3)
    # An arm that stood still meanwhile has done none of them.
    q = player()
    q.admit(chunk(line(0.2, 16), observed=0.0), ns(0.3))
    assert q.sample(ns(0.3)).step_index == 0


def test_the_path_down_and_up_again_is_not_cut_short():
    down_up = np.concatenate([line(-0.4, 4, 2), np.zeros((2, 3)), line(0.4, 4, 2)])
    p = player()
    p.admit(chunk(down_up), ns(0.0))
    targets(p, 0.0, 0.2)
    p.admit(chunk(down_up, observed=0.0), ns(0.2))
    z = [s.pose[2, 3] for s in targets(p, 0.2, 2.0)]
    assert min(z) == pytest.approx(START[2, 3] - 0.16, abs=1e-3) and z[-1] == pytest.approx(START[2, 3], abs=1e-6)


@settings(max_examples=25, deadline=None, phases=NO_SHRINK)
@given(
    st.sampled_from(['replace', 'blend', 'ensemble']),
    st.lists(st.tuples(random_steps, st.floats(0.0, 0.4), st.integers(5, 80)), min_size=2, max_size=5),
    st.integers(0, 2**31),
)
def test_targets_are_continuous_whatever_the_chunks_say(strategy, script, seed):
    rng = np.random.default_rng(seed)
    p = player(strategy=strategy)
    dt, t, poses = 0.005, 0.0, [START]
    for steps, latency, ticks in script:
        seen = p.commanded(ns(t - latency)).copy()
        seen[:3, 3] += rng.uniform(-0.02, 0.02, 3)
        p.admit(chunk(steps, observed=max(0.0, t - latency), base=seen), ns(t))
        for _ in range(ticks):
            t += dt
            sample = p.sample(ns(t))
            if sample is not None:
                poses.append(sample.pose)
                p.record(ns(t), sample.pose)
    xyz = np.array([x[:3, 3] for x in poses])
    speeds = np.diff(xyz, axis=0) / dt
    # The steps ask for up to 0.5 m/s per axis, closing a gap for about half the speed bound more.
    assert np.linalg.norm(speeds, axis=1).max() < 2.5
    assert np.linalg.norm(np.diff(speeds, axis=0), axis=1).max() < 0.3, 'no step in the velocity at a seam'
    turns = [rotation_angle(a, b) for a, b in zip(poses[:-1], poses[1:], strict=True)]
    assert max(turns) / dt < 5.0


def test_blending_takes_its_time():
    gaps = {}
    for strategy in ('replace', 'blend'):
        p = player(strategy=strategy, blend_time=0.6)
        p.admit(chunk(line(0.2, 12)), ns(0.0))
        targets(p, 0.0, 0.3)
        base = p.commanded(ns(0.3)).copy()
        base[0, 3] += 0.01
        p.admit(chunk(line(0.2, 12), observed=0.3, base=base), ns(0.3))
        *_, last = targets(p, 0.31, 0.43)
        gaps[strategy] = abs(last.pose[0, 3] - base[0, 3])
    assert gaps['replace'] < 1e-3 < 5e-3 < gaps['blend']


def test_a_chunk_of_zeros_holds_an_arm_that_sags():
    p = player()
    sagging = START.copy()
    sagging[2, 3] -= 0.008
    for k in range(200):
        t = 1.0 + 0.01 * k
        if k % 20 == 0:
            p.admit(chunk(np.zeros((8, 3)), observed=t, base=sagging), ns(t))
        sample = p.sample(ns(t))
        p.record(ns(t), sample.pose)
        assert sample.pose[2, 3] == pytest.approx(START[2, 3], abs=1e-9)


def test_an_arm_far_from_its_command_starts_where_it_was_seen():
    p = player()
    away = START.copy()
    away[1, 3] += 0.1
    verdicts = p.admit(chunk(line(0.1), observed=1.0, base=away), ns(1.0))
    assert [v.rule for v in verdicts] == ['rebase'] and verdicts[0].value == pytest.approx(0.1)
    last = targets(p, 1.0, 4.0)[-1]
    assert last.pose[1, 3] == pytest.approx(0.1 + 0.08, abs=2e-4)


def test_a_path_is_slowed_to_the_speed_bounds_and_nothing_is_lost():
    p = player()
    p.admit(chunk(line(0.4)), ns(0.0))
    reach, pose_now, ys = 0.1 * 0.5 * 0.01, START, []
    for k in range(400):
        sample = p.sample(ns(0.01 * k), pose_now, scale=0.1)
        if sample is None:
            break
        assert np.linalg.norm(sample.pose[:3, 3] - pose_now[:3, 3]) <= reach * 1.05
        pose_now = sample.pose
        ys.append(pose_now[1, 3])
    assert len(ys) > 180 and sample is None, 'a path that is held up does not keep its chunk for ever'
    assert np.all(np.diff(ys) >= -1e-12)


def test_order_and_duplicates_are_refused_by_name():
    p = player()
    first = chunk(line(0.1), observed=0.2)
    assert p.admit(first, ns(0.2)) == ()
    for other in (first, chunk(line(0.1), observed=0.1)):
        (verdict,) = p.admit(other, ns(0.25))
        assert verdict.rule == 'chunk_order' and verdict.action is VerdictAction.REFUSED
    assert p.sample(ns(0.3)).chunk.id == first.id


def test_the_gripper_waits_for_the_arm():
    steps = np.zeros((8, 7))
    steps[:, 1], steps[:, 6] = 0.02, [1, 1, 1, 1, 0, 0, 0, 0]
    p = player(tracking_lag=0.1)
    p.admit(chunk(steps), ns(0.0))
    closing = next(k for k, s in enumerate(targets(p, 0.0, 1.0)) if s.gripper < 0.5)
    assert 0.01 * closing == pytest.approx(0.4 + 0.1 - 0.06, abs=0.07)


def test_threads_may_admit_while_others_sample():
    p, errors, done = player(), [], threading.Event()

    def feed():
        try:
            for k in range(60):
                p.admit(chunk(line(0.1), observed=0.01 * k), ns(0.01 * k))
        except Exception as err:
            errors.append(err)
        done.set()

    thread = threading.Thread(target=feed)
    thread.start()
    while not done.is_set():
        sample = p.sample(ns(0.3))
        if sample is not None:
            p.record(ns(0.3), sample.pose)
            assert np.isfinite(sample.pose).all()
    thread.join()
    assert errors == []


# --- gripper ----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), max_size=60))
def test_the_gripper_changes_only_across_both_thresholds(values):
    switch = GripperSwitch(Gripper(close_below=0.4, open_above=0.6))
    for value in values:
        before = switch.value
        changed = switch.update(value)
        assert changed == (switch.value != before)
        if changed:
            assert value < 0.4 if switch.value == 0.0 else value > 0.6
        if value < 0.4:
            assert switch.value == 0.0
        if value > 0.6:
            assert switch.value == 1.0


def test_the_gripper_adopts_what_it_finds():
    switch = GripperSwitch(Gripper())
    switch.reset(0.1)
    assert switch.value == 0.0 and not switch.update(0.5) and switch.update(0.9)
