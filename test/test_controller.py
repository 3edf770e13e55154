"""The controller as a whole: convergence at any latency, dead-man, latch, faults, and never beyond a limit."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from instructvla_ros import config
from instructvla_ros.control.controller import Controller, ControllerOutput, Mode
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.control.safety import trajectory_points
from instructvla_ros.control.time_law import BOX_TOLERANCE
from instructvla_ros.datatypes import ActionChunk, RobotState, VerdictAction
from instructvla_ros.resources import config_file
from instructvla_ros.settings import Control, Embodiment, Safety

ARM = config.load(Embodiment, config_file('franka.yaml'))
KIN = Kinematics(ARM)
HOME = np.array(ARM.home)
T0 = 1_700_000_000_000_000_000
PERIOD = 10_000_000
names = iter(range(10**9))
NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)


class Rig:
    """A controller and an arm that follows its command 20 ms and a first-order lag later."""

    def __init__(self, q=HOME, lag=0.05, sag=0.0, enabled=True, **changes):
        self.controller = Controller(ARM, Control(**{'ramp_time': 0.3, **changes}), KIN)
        self.bounds = self.controller.bounds
        self.q, self.dq, self.lag, self.sag = np.array(q, dtype=float), np.zeros(7), lag, sag
        self.way = deque([self.q.copy()] * 2, maxlen=2)
        self.now, self.outputs, self.state = T0, [], None
        self.tick()
        if enabled:
            assert self.controller.enable(True) == ''
            self.tick()

    def measured(self) -> RobotState:
        return RobotState(self.now, self.q.copy(), self.dq.copy(), 1.0)

    def tick(self, state='measured', period=PERIOD) -> ControllerOutput:
        self.now += period
        out = self.controller.tick(self.now, self.measured() if isinstance(state, str) else state)
        target = self.way[0]
        if out.command is not None:
            self.way.append(out.command.q)
        self.dq = (target + self.sag - self.q) / max(self.lag, 0.01)
        self.q = self.q + self.dq * 0.01
        self.outputs.append(out)
        return out

    def run(self, seconds, **kwargs):
        return [self.tick(**kwargs) for _ in range(round(seconds * 100))]

    def chunk(self, steps=None, delay=0.0, **changes) -> ActionChunk:
        if steps is None:
            steps = np.zeros((8, 7))
            steps[:, 1], steps[:, 6] = 0.02, 1.0
        stamp = self.now - round(delay * 1e9)
        fields = {
            'reference_pose': KIN.forward(self.q),
            'frame_id': ARM.base_frame,
            'reasoning_id': 'because',
            **changes,
        }
        return ActionChunk(f'c{next(names)}', stamp, stamp, 0.1, steps, **fields)

    def feed(self, *args, **kwargs):
        return self.controller.on_chunk(self.chunk(*args, **kwargs), self.now)


def rules(outputs) -> set:
    return {v.rule for o in outputs for v in o.verdicts}


def check_limits(rig, outputs, ends=()):
    """Finite differences of consecutive commands at the controller rate, tolerance 1e-6 of each limit."""
    b = rig.bounds
    run = []
    for o in outputs:
        if o.command is None or rules([o]) & {'clock', 'loop_period'}:
            run = []
        if o.command is None:
            continue
        q = o.command.q
        assert np.isfinite(q).all() and np.isfinite(o.command.dq).all()
        run = [*run[-3:], q]
        d = [np.array(run)]
        for _ in range(3):
            d.append(np.diff(d[-1], axis=0) / b.period)
        for values, limit in zip(d[1:], (b.velocity, b.acceleration, b.jerk), strict=True):
            if len(values):
                assert np.all(np.abs(values[-1]) <= limit * (1 + 1e-6) + 1e-5)
        assert np.all(np.abs(o.command.dq) <= b.velocity * (1 + 1e-6))
        assert np.all(q >= b.lower - 1e-6) and np.all(q <= b.upper + 1e-6)


# --- convergence ------------------------------------------------------------------------------------------------


def reach(latency, lag=0.05, strategy='replace', sag=0.0, speed=0.25):
    """A policy that aims at a fixed goal from the pose it sees, every 0.2 s."""
    rig = Rig(lag=lag, sag=sag, strategy=strategy)
    start = KIN.forward(rig.q)
    goal = start[:3, 3] + [0.1, 0.12, -0.15]
    pending, tips = [], []
    for k in range(500):
        if k % 20 == 0:
            steps, at = np.zeros((8, 7)), KIN.position(rig.q)
            for row in steps:
                way = goal - at
                row[:3] = way * min(1.0, 0.1 * speed / max(np.linalg.norm(way), 1e-9))
                at = at + row[:3]
            pending.append((k + round(100 * latency), rig.chunk(steps)))
        while pending and pending[0][0] <= k:
            refused = [
                v for v in rig.controller.on_chunk(pending.pop(0)[1], rig.now) if v.action is VerdictAction.REFUSED
            ]
            assert not refused
        rig.tick()
        tips.append((rig.outputs[-1].commanded_pose[:3, 3], KIN.position(rig.q)))
    check_limits(rig, rig.outputs)
    direction = (goal - start[:3, 3]) / np.linalg.norm(goal - start[:3, 3])
    ahead = [((c - goal) @ direction, (m - goal) @ direction) for c, m in tips]
    along = [(c - start[:3, 3]) - ((c - start[:3, 3]) @ direction) * direction for c, _ in tips]
    arrived = next(k for k, (_, m) in enumerate(tips) if np.linalg.norm(m - goal) < 0.01) * 0.01
    return {
        'commanded_overshoot': max(c for c, _ in ahead),
        'measured_overshoot': max(m for _, m in ahead),
        'off_line': max(np.linalg.norm(a) for a in along),
        'error': np.linalg.norm(tips[-1][1] - goal),
        'arrived': arrived,
    }


@pytest.mark.parametrize('strategy', ['replace', 'blend', 'ensemble'])
@pytest.mark.parametrize('latency', [0.0, 0.1, 0.3])
def test_a_goal_is_reached_without_overshoot_at_any_latency(strategy, latency):
    result = reach(latency, strategy=strategy)
    assert result['measured_overshoot'] < 0.003 and result['commanded_overshoot'] < 0.005
    assert result['off_line'] < 0.006
    assert result['error'] < 0.002
    assert result['arrived'] < 1.6 + latency


@pytest.mark.parametrize('lag', [0.0, 0.1, 0.2])
def test_the_lag_of_the_arm_does_not_make_it_overshoot(lag):
    assert reach(0.1, lag=lag)['measured_overshoot'] < 0.004


def test_an_arm_that_sags_still_arrives():
    assert reach(0.1, sag=np.array([0.0, 0.01, 0.0, 0.01, 0.0, 0.0, 0.0]))['error'] < 0.002


# --- modes ------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_enable_and_before_a_joint_state():
    rig = Rig(enabled=False)
    assert rig.feed()[0].rule == 'disabled'
    outputs = rig.run(0.3)
    assert all(o.command is None and o.mode is Mode.DISABLED for o in outputs)
    assert np.allclose(outputs[-1].commanded_pose, outputs[-1].measured_pose)
    blind = Controller(ARM, Control(start_enabled=True), KIN)
    out = blind.tick(T0, None)
    assert out.command is None and out.q is None and rules([out]) == {'joint_state'}
    assert blind.on_chunk(rig.chunk(), rig.now)[0].rule == 'joint_state'


def test_enable_holds_then_tracks_then_decelerates_then_holds():
    rig = Rig()
    assert all(o.mode is Mode.HOLDING and np.array_equal(o.command.q, HOME) for o in rig.run(0.2))
    assert rig.feed() == []
    outputs = rig.run(2.0)
    modes = [o.mode for o in outputs]
    assert modes[0] is Mode.TRACKING and modes[-1] is Mode.HOLDING
    assert outputs[5].chunk_id and outputs[5].reasoning_id == 'because' and outputs[5].observation_stamp_ns
    assert outputs[-1].chunk_id == '' and outputs[-1].step_index == -1
    assert 'dead_man' in rules(outputs)
    assert KIN.position(rig.q)[1] == pytest.approx(0.16, abs=0.01)


def test_the_first_commands_ramp_in():
    slow, fast = Rig(ramp_time=2.0), Rig(ramp_time=0.0)
    speeds = {}
    for name, rig in (('slow', slow), ('fast', fast)):
        rig.feed(np.tile([0.0, 0.04, 0, 0, 0, 0, 1.0], (8, 1)))
        speeds[name] = max(np.abs(o.command.dq).max() for o in rig.run(0.25))
    assert speeds['slow'] < 0.3 * speeds['fast']


@pytest.mark.parametrize('cut', [0.12, 0.3, 0.61])
def test_dead_man_brings_a_moving_arm_to_rest_in_300_ms(cut):
    rig = Rig(ramp_time=0.0, play_time=cut)
    rig.feed(np.tile([0.02, 0.04, -0.02, 0, 0, 0.1, 1.0], (8, 1)))
    outputs = rig.run(1.5)
    end = next(k for k, o in enumerate(outputs) if 'dead_man' in rules([o]))
    assert end == pytest.approx(100 * cut, abs=2)
    assert np.abs(outputs[end - 1].command.dq).max() > 0.1, 'it was moving'
    rest = next(k for k, o in enumerate(outputs[end:]) if not o.command.dq.any())
    assert rest <= 30 and all(o.mode is Mode.HOLDING for o in outputs[end + rest :])
    check_limits(rig, outputs)


def test_stop_brakes_latches_and_only_reset_leaves_it():
    rig = Rig(ramp_time=0.0)
    rig.feed(np.tile([0.0, 0.04, 0, 0, 0, 0, 1.0], (8, 1)))
    rig.run(0.4)
    rig.controller.stop('operator')
    assert 'braking' in rig.controller.reset()
    outputs = rig.run(0.3)
    assert all(o.mode is Mode.STOPPED for o in outputs) and not outputs[-1].command.dq.any()
    assert 'stop_latch' in rules(outputs) and any('operator' in v.text for o in outputs for v in o.verdicts)
    assert rig.feed()[0].rule == 'stop_latch'
    assert 'reset' in rig.controller.enable(True)
    rig.controller.enable(False)
    assert rig.run(0.2)[-1].mode is Mode.STOPPED
    assert rig.controller.reset() == '' and rig.tick().mode is Mode.DISABLED
    assert 'not set' in rig.controller.reset()
    assert rig.feed()[0].rule == 'disabled'
    assert rig.controller.enable(True) == ''
    rig.tick()
    assert rig.feed() == [] and rig.tick().mode is Mode.TRACKING
    check_limits(rig, rig.outputs)


def test_disable_brakes_and_then_sends_nothing():
    rig = Rig(ramp_time=0.0)
    rig.feed()
    rig.run(0.4)
    rig.controller.enable(False)
    outputs = rig.run(0.6)
    sent = [o for o in outputs if o.command is not None]
    assert 0 < len(sent) <= 31 and not sent[-1].command.dq.any() and outputs[-1].command is None
    assert all(o.mode is Mode.DISABLED for o in outputs)


def test_enabling_again_while_braking_does_not_make_the_command_jump():
    rig = Rig(ramp_time=0.0)
    rig.feed()
    rig.run(0.4)
    rig.controller.enable(False)
    rig.run(0.05)
    rig.controller.enable(True)
    rig.run(0.5)
    assert all(o.command is not None for o in rig.outputs[3:])
    check_limits(rig, rig.outputs)


def test_an_arm_that_was_moved_while_stopped_is_taken_over_where_it_is_even_in_the_same_period():
    rig = Rig(ramp_time=0.0)
    rig.controller.stop('operator')
    rig.run(0.1)
    rig.q = HOME + np.array([0.0, 0.4, 0, 0, 0, 0, 0])
    rig.way.extend([rig.q.copy()] * 2)
    assert 'tracking_error' in rules(rig.run(0.05)), 'it is seen that the arm is not where it was held'
    moved = rig.q = HOME + np.array([0.0, 0.4, 0, 0, 0, 0, 0])
    rig.dq = np.zeros(7)
    assert rig.controller.reset() == '' and rig.controller.enable(True) == ''
    out = rig.tick()
    assert out.mode is Mode.HOLDING and np.abs(out.command.q - moved).max() < 1e-9
    assert rig.feed() == [] and rig.tick().mode is Mode.TRACKING


def test_dry_run_computes_everything_and_sends_nothing():
    rig = Rig(dry_run=True, ramp_time=0.0)
    steps = np.zeros((8, 7))
    steps[:, 1] = 0.02
    assert rig.feed(steps) == []
    outputs = rig.run(0.6)
    assert all(o.command is None and not o.gripper_changed for o in outputs)
    assert outputs[-1].mode is Mode.TRACKING
    assert outputs[-1].commanded_pose[1, 3] > 0.05 and abs(outputs[-1].measured_pose[1, 3]) < 1e-9
    rig.controller.dry_run = False
    out = rig.tick()
    assert np.allclose(out.command.q, rig.q), 'the command starts at the measured position'


def test_the_gripper_is_commanded_on_change_only():
    rig = Rig()
    steps = np.zeros((8, 7))
    steps[:, 6] = [1, 1, 0.5, 0.45, 0.1, 0.5, 0.5, 0.9]
    rig.feed(steps)
    changes = [(o.gripper, o.step_index) for o in rig.run(1.2) if o.gripper_changed]
    assert changes == [(0.0, 4), (1.0, 7)]


# --- faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'broken, subject',
    [
        (lambda s: None, 'missing'),
        (lambda s: replace(s, q=s.q[:5]), 'size'),
        (lambda s: replace(s, q=s.q * np.nan), 'finite'),
        (lambda s: replace(s, dq=np.full(7, np.inf)), 'finite'),
        (lambda s: replace(s, stamp_ns=s.stamp_ns - 10**9), 'age'),
        (lambda s: replace(s, stamp_ns=s.stamp_ns + 10**9), 'future'),
        (lambda s: replace(s, stamp_ns=-(10**18)), 'age'),
    ],
)
def test_broken_joint_states_stop_the_arm_by_name_and_it_recovers(broken, subject):
    rig = Rig(ramp_time=0.0)
    rig.feed(np.tile([0.0, 0.04, 0, 0, 0, 0, 1.0], (8, 1)))
    rig.run(0.3)
    outputs = [rig.tick(state=broken(rig.measured())) for _ in range(60)]
    assert any(v.subject == subject for o in outputs for v in o.verdicts)
    commands = [o.command for o in outputs]
    rest = next(k for k, c in enumerate(commands) if not c.dq.any())
    assert rest <= 20 + 30, 'max_state_age, then the stop time'
    assert commands[rest + 1 :] == [None] * (len(commands) - rest - 1), 'an arm that is not heard is left alone'
    assert outputs[-1].mode is Mode.HOLDING
    assert rig.feed()[0].rule == 'joint_state'
    rig.run(0.1)
    assert rig.feed() == [] and rig.tick().mode is Mode.TRACKING
    check_limits(rig, rig.outputs)


def test_an_arm_that_moved_while_it_was_not_heard_is_not_pulled_back():
    rig = Rig(ramp_time=0.0)
    rig.feed()
    rig.run(0.3)
    rig.run(1.0, state=None)
    rig.q = rig.q + 0.05  # its driver was restarted, say; less than the bound on the tracking error
    rig.way.extend([rig.q.copy()] * 2)
    out = rig.tick()
    assert np.array_equal(out.command.q, out.q) and np.allclose(out.command.q, rig.q) and not out.command.dq.any()
    rig.run(0.3)
    assert rig.feed() == [] and rig.tick().mode is Mode.TRACKING
    check_limits(rig, rig.outputs[-30:])


def test_one_broken_joint_state_is_named_and_bridged():
    rig = Rig()
    rig.feed()
    rig.run(0.2)
    out = rig.tick(state=replace(rig.measured(), q=HOME * np.nan))
    assert out.mode is Mode.TRACKING and rules([out]) >= {'joint_state'}


def test_a_restarted_simulator_is_noticed_and_the_arm_taken_over_where_it_is():
    rig = Rig(ramp_time=0.0)
    rig.feed()
    rig.run(0.4)
    rig.q, rig.dq = HOME + 0.3, np.zeros(7)
    rig.now -= 60 * 10**9
    out = rig.tick()
    assert 'clock' in rules([out]) and out.mode is Mode.HOLDING
    assert np.allclose(out.command.q, HOME + 0.3)
    assert rig.feed() == [] and rig.tick().mode is Mode.TRACKING


def test_a_clock_that_stands_still_moves_nothing():
    rig = Rig()
    rig.feed()
    moving = rig.run(0.3)[-1]
    for _ in range(50):
        out = rig.controller.tick(rig.now, rig.measured())
        assert out.command is None and np.array_equal(out.q, moving.q) and out.mode is Mode.TRACKING


def test_missed_periods_continue_on_the_stop_the_arm_was_following():
    rig = Rig(ramp_time=0.0)
    rig.feed(np.tile([0.0, 0.04, 0, 0, 0, 0, 1.0], (8, 1)))
    before = rig.run(0.4)[-1].command
    times, positions, velocities = trajectory_points(before, ARM.limits)
    out = rig.tick(period=80_000_000)
    assert 'loop_period' in rules([out])
    # The new command, due 20 ms from now, lies about where the tail would have been then.
    expected = np.array([np.interp(0.1, times, p) for p in positions.T])
    assert np.abs(out.command.q - expected).max() < 0.02
    rest = rig.tick(period=2 * 10**9)
    assert not rest.command.dq.any() and 'loop_period' in rules([rest])


def test_a_blocked_arm_is_not_pushed_further():
    rig = Rig(ramp_time=0.0)
    frozen = rig.measured()
    rig.feed(np.tile([0.0, 0.07, 0, 0, 0, 0, 1.0], (8, 1)))
    outputs = [rig.tick(state=replace(frozen, stamp_ns=rig.now + PERIOD)) for _ in range(150)]
    assert 'tracking_error' in rules(outputs)
    assert np.abs(outputs[-1].command.q - HOME).max() < 0.25 + 0.2 and not outputs[-1].command.dq.any()
    (verdict,) = rig.controller.on_chunk(rig.chunk(), rig.now)
    assert verdict.rule == 'tracking_error'


def test_an_arm_that_follows_is_not_taken_for_a_blocked_one_because_its_states_are_late():
    rig = Rig(ramp_time=0.0, safety=Safety(max_state_age=1.0))
    seen = deque([rig.measured()], maxlen=31)
    turn = np.tile([0.0, 0.0, 0, 0, 0, 0.08, 1.0], (16, 1))
    outputs = []
    for k in range(200):
        if k % 40 == 0:
            rig.feed(turn)
        seen.append(rig.measured())
        outputs.append(rig.tick(state=seen[0]))  # 0.3 s old
    behind = [np.abs(o.command.q - rig.outputs[0].q).max() for o in outputs]
    assert max(behind) > 0.6, 'it turned further than the bound on the tracking error'
    fastest = max(np.abs(o.command.dq).max() for o in outputs)
    assert 0.3 * fastest > 0.2, 'fast enough for its lateness to be worth a good part of that bound'
    assert 'tracking_error' not in rules(outputs)


def test_a_moving_arm_is_not_taken_over():
    rig = Rig(enabled=False)
    rig.controller.enable(True)
    out = rig.tick(state=replace(rig.measured(), dq=np.eye(7)[2]))
    assert out.command is None and rules([out]) == {'anchor'} and out.verdicts[0].subject == 'fr3_joint3'


def test_an_unreachable_goal_is_held_naming_joint_or_bound():
    rig = Rig(ramp_time=0.0, safety=Safety(workspace_lower=(-2, -2, 0), workspace_upper=(2, 2, 2)))
    for _ in range(40):
        rig.feed(np.tile([0.08, 0, 0, 0, 0, 0, 1.0], (8, 1)))
        outputs = rig.run(0.1)
    held = [v for o in outputs for v in o.verdicts if v.rule == 'ik']
    assert held and (
        held[-1].subject == 'reach' or 'fr3_joint' in held[-1].subject or held[-1].subject == 'singularity'
    )
    assert np.abs(outputs[-1].command.dq).max() < 0.05
    check_limits(rig, rig.outputs)


# --- anything at all --------------------------------------------------------------------------------------------

event = st.sampled_from(
    ['tick'] * 8
    + ['chunk'] * 4
    + ['bad chunk', 'nan state', 'no state', 'old state', 'stop', 'reset', 'enable', 'disable']
    + ['late', 'back', 'frozen', 'dry', 'wet']
)


@settings(max_examples=30, deadline=None, phases=NO_SHRINK)
@given(st.lists(st.tuples(event, st.integers(1, 12)), min_size=5, max_size=40), st.integers(0, 2**31))
def test_no_sequence_of_events_leaves_the_limits_or_raises(script, seed):
    rng = np.random.default_rng(seed)
    start = np.clip(
        HOME + rng.uniform(-0.2, 0.2, 7), np.array(ARM.limits.lower) + 0.03, np.array(ARM.limits.upper) - 0.03
    )
    rig = Rig(q=start, strategy=str(rng.choice(['replace', 'blend', 'ensemble'])), ramp_time=0.05)
    c = rig.controller
    latched = False
    for what, repeats in script:
        steps = rng.uniform(-0.1, 0.1, (int(rng.integers(1, 9)), 7)) * rng.choice([0.1, 1.0, 5.0])
        if what == 'chunk':
            c.on_chunk(rig.chunk(steps, delay=float(rng.uniform(0, 0.5))), rig.now)
        elif what == 'bad chunk':
            bad = rig.chunk(
                np.where(rng.random(steps.shape) < 0.2, np.nan, steps), frame_id=str(rng.choice(['fr3_link0', 'x']))
            )
            refused = c.on_chunk(bad, rig.now)
            assert refused or np.isfinite(bad.steps).all()
        elif what == 'stop':
            c.stop('test')
            latched = True
        elif what == 'reset':
            latched = latched and c.reset() != ''
        elif what in ('enable', 'disable'):
            assert (c.enable(what == 'enable') == '') != (latched and what == 'enable')
        elif what in ('dry', 'wet'):
            c.dry_run = what == 'dry'
        for k in range(repeats):
            state = rig.measured()
            if what == 'nan state':
                state = replace(state, q=state.q * np.nan)
            elif what == 'no state':
                state = None
            elif what == 'old state':
                state = replace(state, stamp_ns=state.stamp_ns - 10**10)
            period = PERIOD + int(rng.normal(0, 1e6))
            if k == 0:
                period = {'late': 10**8 * int(rng.integers(1, 9)), 'back': -(10**9), 'frozen': 0}.get(what, period)
            out = rig.tick(state=state, period=period)
            assert (out.mode is Mode.STOPPED) == latched
            assert all(v.rule and v.text for v in out.verdicts)
            if latched:
                assert out.chunk_id == ''
            if out.command is not None:
                p = KIN.position(out.command.q)
                assert np.all(p >= rig.bounds.box_lower - BOX_TOLERANCE - 0.05), 'near the box it started in'
    check_limits(rig, rig.outputs)


def test_the_commanded_pose_is_that_of_the_commanded_joints():
    rig = Rig(ramp_time=0.0)
    rig.feed()
    for out in rig.run(0.3):
        assert np.allclose(out.commanded_pose, KIN.forward(out.q))
        assert np.array_equal(out.command.q, out.q) and np.array_equal(out.command.dq, out.dq)


def test_a_dropped_chunk_brakes_the_arm_at_once_and_the_next_one_goes_on():
    rig = Rig(ramp_time=0.0)
    rig.feed(np.tile([0.0, 0.04, 0, 0, 0, 0, 1.0], (8, 1)))
    assert np.abs(rig.run(0.3)[-1].dq).max() > 0.05
    rig.controller.drop_chunk('its publisher died')
    after = rig.run(0.3)
    dead_man = [v for o in after for v in o.verdicts if v.rule == 'dead_man']
    assert dead_man and dead_man[0].action is VerdictAction.HELD and 'its publisher died' in dead_man[0].text
    assert not after[-1].dq.any() and after[-1].mode is Mode.HOLDING
    rig.feed()
    assert rig.run(0.2)[-1].mode is Mode.TRACKING


def test_dropping_nothing_says_nothing():
    rig = Rig()
    rig.run(0.1)
    rig.controller.drop_chunk('its publisher died')
    assert 'dead_man' not in rules(rig.run(0.1))


def test_an_arm_driven_into_a_joint_limit_can_leave_it():
    rig = Rig(ramp_time=0.0)
    low = rig.bounds.lower[3]
    q = HOME.copy()
    q[3] = low + 0.01
    rig = Rig(q=q, ramp_time=0.0)
    for _ in range(6):
        rig.feed(np.tile([-0.03, 0.0, -0.03, 0, 0, 0, 1.0], (8, 1)))
        rig.run(0.2)
    assert rig.q[3] - low < 2e-3, 'it stands at the limit'
    for _ in range(4):
        rig.feed(np.tile([0.03, 0.0, 0.03, 0, 0, 0, 1.0], (8, 1)))
        rig.run(0.2)
    assert rig.q[3] - low > 0.2


def test_one_joint_at_its_limit_does_not_pin_the_others_down():
    """The wrist stands at its limit and is asked to turn further while the tcp is asked to move: the tcp moves."""
    q = HOME.copy()
    q[6] = Rig().bounds.upper[6] - 2e-4
    rig = Rig(q=q, ramp_time=0.0)
    start = KIN.forward(rig.q)[:3, 3]
    for _ in range(8):
        rig.feed(np.tile([0.0, 0.02, -0.01, 0, 0, -0.1, 1.0], (8, 1)))
        rig.run(0.2)
    assert np.linalg.norm(KIN.forward(rig.q)[:3, 3] - start) > 0.1
    assert rig.q[6] <= rig.bounds.upper[6] + 1e-6
