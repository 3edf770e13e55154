"""The ROS-free heart of controller_node: chunks in, one joint command per period out.

Owns the mode, the start ramp, the stop latch and the anchor (where the command starts); the ladder itself is in
``safety``, what a chunk asks for in ``chunk_player``. Thread-safe: chunks and services may come from other threads.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from ..datatypes import ActionChunk, JointCommand, RobotState, Verdict, VerdictAction
from ..geometry import Array
from ..settings import Control, Embodiment
from .bounds import Bounds
from .chunk_player import ChunkPlayer, Sample
from .clearance import Answer, Clearance, Gate
from .direct import Backend, DirectBackend
from .gripper import GripperSwitch
from .history import History, linear
from .kinematics import Kinematics
from .output import ControllerOutput, Mode
from .route import Route, RouteRun
from .safety import Motion, halt, move
from .safety_chunk import check_chunk
from .safety_motion import check_rest, check_state, check_tracking
from .time_law import MotionState, TimeLaw, plan_stop

HORIZON_PERIODS = 2.0  # a command is to be reached this many periods after its stamp
LATE_PERIODS = 2.0  # after this many periods without a new command the arm follows the stop at the end of the last one
ANCHOR_SPEED = 0.2  # rad/s: above this a measured arm is not taken as the start of a command
MIN_RAMP = 0.05  # share of the speed bounds at the first command
SLOWED = 0.98  # a path played slower than this share of its speed is reported


class Controller:
    """See the module. ``tick`` every ``1 / control.rate`` seconds, ``on_chunk`` for each chunk.

    Args:
        embodiment, control: configuration. kinematics: to share. backend: instead of ``direct``.
        clearance: asked about the way of every chunk before it is played; nobody is asked when omitted.

    Raises:
        ConfigError, SetupError: the settings leave no room, or the robot description lacks something.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        control: Control,
        kinematics: Kinematics | None = None,
        backend: Backend | None = None,
        clearance: Clearance | None = None,
    ) -> None:
        self.embodiment, self.control = embodiment, control
        self.bounds = Bounds.from_settings(embodiment, control)
        self.backend: Backend = backend or DirectBackend(embodiment, self.bounds, kinematics)
        self.law = TimeLaw(self.bounds, self.backend.position, self.backend.collision)
        self.player = ChunkPlayer(control, self.bounds)
        self._past = History(control.safety.max_state_age, linear)
        self._gate = None if clearance is None else Gate(clearance, control.moveit.timeout, control.moveit.spacing)
        self._run: RouteRun | None = None
        self._gripper = GripperSwitch(embodiment.gripper)
        self._gripper_due = False
        self._lock = threading.RLock()
        self._enabled = control.start_enabled
        self._dry_run = control.dry_run
        self._latch = ''
        self._driving = False  # commands are sent: from enable until disabled and at rest
        self._motion: Motion | None = None
        self._measured: RobotState | None = None
        self._measured_pose = np.eye(4)
        self._pose = np.eye(4)  # commanded
        self._output: ControllerOutput | None = None
        self._last_ns: int | None = None
        self._ramp_ns: int | None = None
        self._blocked = ''  # why no chunk is taken at the moment
        self._pending: list[Verdict] = []

    @property
    def dry_run(self) -> bool:
        """Everything is computed, nothing is sent. Setting it makes the command start at the measured position."""
        return self._dry_run

    @dry_run.setter
    def dry_run(self, on: bool) -> None:
        with self._lock:
            if on != self._dry_run:
                self._dry_run = on
                self._driving = False
                self._unanchor()

    @property
    def enabled(self) -> bool:
        """Chunks may move the arm."""
        return self._enabled

    @property
    def stop_reason(self) -> str:
        """Why the stop latch is set, '' when it is not."""
        return self._latch

    def enable(self, on: bool) -> str:
        """Switch on (from the measured position, with a ramp) or off (brake, then release). '' or why not."""
        with self._lock:
            if on and self._latch:
                return f'the stop latch is set ({self._latch}); call reset first'
            if on and not self._enabled:
                self._ramp_ns = None
                if self._blocked == 'tracking_error' and (self._motion is None or self._motion.joints.resting):
                    self._driving = False  # somebody moved the arm while it was stopped
                if not self._driving:
                    self._unanchor()
            self._enabled = on
            return ''

    def stop(self, reason: str) -> None:
        """Set the stop latch: brake within the limits and hold. Only :meth:`reset` clears it."""
        with self._lock:
            self._latch = reason or 'stop'
            text = f'stopped: {self._latch}'
            self._pending.append(Verdict('stop_latch', VerdictAction.HELD, 'arm', text=text))

    def reset(self) -> str:
        """Clear the stop latch; the controller is then disabled. Returns '' or why not."""
        with self._lock:
            if not self._latch:
                return 'the stop latch is not set'
            if self._motion is not None and not self._motion.joints.resting:
                return 'the arm is still braking; try again when it is at rest'
            self._latch = ''
            self._enabled = False
            return ''

    def on_chunk(self, chunk: ActionChunk, now_ns: int) -> list[Verdict]:
        """Admit a chunk or refuse it by name (a REFUSED verdict); the verdicts also appear in the next output."""
        with self._lock:
            verdicts = list(self._admit(chunk, now_ns))
            self._pending += verdicts
            return verdicts

    def drop_chunk(self, reason: str) -> None:
        """Forget what is being played, as when no fresh chunk came: the arm brakes and holds until the next one."""
        with self._lock:
            if self._gate is not None:
                self._gate.drop()
            if self._motion is None or not self.player.active:
                return
            self.player.stop(self._motion.target)
            text = f'no fresh chunk: {reason}; braking and holding'
            self._pending.append(Verdict('dead_man', VerdictAction.HELD, 'chunk', text=text))

    def on_answer(self, answer: Answer, now_ns: int) -> tuple[Verdict, ...]:
        """Play, shorten or refuse the chunk that was asked about; the verdicts also appear in the next output."""
        with self._lock:
            if self._gate is None:
                return ()
            chunk, verdicts = self._gate.settle(answer)
            if chunk is not None:
                verdicts = (*verdicts, *(self._refusal(chunk) or self.player.admit(chunk, now_ns)))
            elif verdicts and self._motion is not None:
                self.player.stop(self._motion.target)  # brake: what is in the way may be in the way of the old chunk
            self._pending += verdicts
            return verdicts

    def follow(self, route: Route, name: str) -> RouteRun:
        """Follow a route from where the arm stands; chunks are refused meanwhile. ``done`` is set at its end.

        Args:
            route: has to begin at the commanded joints. name: of the motion, for the verdicts.
        """
        run = RouteRun.of(route, name, self.bounds)
        with self._lock:
            problem = ''
            if self._latch:
                problem = f'the stop latch is set ({self._latch}); call reset, then enable'
            elif not self._enabled:
                problem = 'the controller is not enabled'
            elif self._run is not None:
                problem = 'another motion is under way'
            elif self._motion is None or self._blocked:
                problem = self._blocked or 'no joint state has arrived'
            elif self.player.active or not self._motion.joints.resting:
                problem = 'the arm moves; try again when it is at rest'
            elif np.abs(route.positions[0] - self._motion.joints.q).max() > self.bounds.safety.max_joint_jump:
                problem = 'the arm is not where the motion begins'
            if problem:
                self._pending.append(run.end(problem))
            else:
                self._run = run
            return run

    def joints(self) -> Array | None:
        """Commanded joint positions (n,) [rad], None before the first joint state."""
        with self._lock:
            return None if self._motion is None else np.array(self._motion.joints.q)

    def _refusal(self, chunk: ActionChunk) -> tuple[Verdict, ...]:
        """Why no chunk is taken in the present state, () when one is."""

        def refused(rule: str, text: str) -> tuple[Verdict, ...]:
            return (Verdict(rule, VerdictAction.REFUSED, 'chunk', text=text, chunk_id=chunk.id),)

        if self._latch:
            return refused('stop_latch', f'the stop latch is set ({self._latch}); call reset, then enable')
        if not self._enabled:
            return refused('disabled', 'the controller is not enabled')
        if self._motion is None:
            return refused('joint_state', 'the arm has no starting point yet: no usable joint state, or it still moves')
        if self._blocked:
            return refused(self._blocked, f'no chunk is taken while {self._blocked} holds the arm')
        if self._run is not None:
            return refused('route', f'no chunk is taken on the way of {self._run.name}')
        return ()

    def _admit(self, chunk: ActionChunk, now_ns: int) -> tuple[Verdict, ...]:
        refusal = self._refusal(chunk)
        if refusal:
            return refusal
        checked, verdicts = check_chunk(chunk, now_ns, self.bounds)
        if checked is None:
            return verdicts
        if self._gate is not None and self._motion is not None:
            return (*verdicts, *self._gate.ask(checked, self.player, self._motion.joints.q, now_ns))
        return (*verdicts, *self.player.admit(checked, now_ns))

    def tick(self, now_ns: int, state: RobotState | None) -> ControllerOutput:
        """One period.

        Args:
            now_ns: the clock that stamps chunks and joint states [ns]. A clock that stands still (paused simulator)
                advances nothing; one that runs backwards or leaps makes the command start at the measured position.
            state: newest joint state; absent, stale or broken ones make the arm brake and hold.
        """
        with self._lock:
            elapsed = None if self._last_ns is None else (now_ns - self._last_ns) * 1e-9
            if self._output is not None and elapsed is not None and 0.0 <= elapsed < 0.5 * self.bounds.period:
                mode = Mode.STOPPED if self._latch else self._output.mode
                return replace(self._output, command=None, gripper_changed=False, verdicts=(), mode=mode)
            verdicts, self._pending = self._pending, []
            self._last_ns = now_ns
            self._check_clock(elapsed, verdicts)
            fresh = self._take_state(state, now_ns, verdicts)
            if fresh is None and self._motion is not None and self._motion.joints.resting:
                # Whatever happens to an arm that is not heard (its driver restarts), it is not pulled back afterwards.
                self._unanchor()
            if self._motion is None and not self._anchor(fresh, now_ns, verdicts):
                return self._compose(None, verdicts, now_ns)
            sample = self._advance(now_ns, fresh, verdicts)
            return self._compose(sample, verdicts, now_ns)

    def _unanchor(self) -> None:
        """Forget the commanded motion; the next fresh joint state becomes its start."""
        self._motion = None
        self._ramp_ns = None
        self._blocked = ''
        self._end_run('the arm starts again at its measured position')
        if self._gate is not None:
            self._gate.drop()
        self.player.stop(self._measured_pose)

    def _check_clock(self, elapsed: float | None, verdicts: list[Verdict]) -> None:
        """Act on a clock that went back, or on periods that were missed."""
        if elapsed is None or 0.0 <= elapsed <= LATE_PERIODS * self.bounds.period:
            return
        if elapsed < 0.0:
            text = f'the clock went back by {-elapsed:.3f} s; starting again at the measured position'
            verdicts.append(Verdict('clock', VerdictAction.HELD, 'now', elapsed, 0.0, 's', text))
            self._measured = None
            self._unanchor()
            return
        limit = LATE_PERIODS * self.bounds.period
        text = f'{elapsed:.3f} s passed since the last period; the arm was following its stop meanwhile'
        verdicts.append(Verdict('loop_period', VerdictAction.HELD, 'now', elapsed, limit, 's', text))
        if self._motion is None or not self._driving or self._dry_run:
            self._unanchor()
            return
        # The arm had no new command and went along the stop that ends every command (trajectory_points).
        limits = self.embodiment.limits
        plan = plan_stop(self._motion.joints, np.asarray(limits.acceleration), np.asarray(limits.jerk))
        q, dq, ddq = plan.at(elapsed - self.bounds.period)
        joints = MotionState(q, dq, np.clip(ddq, -self.bounds.acceleration, self.bounds.acceleration))
        pose = self.backend.forward(joints.q)
        self._motion = Motion(joints, pose)
        self.backend.reset(joints.q)
        if elapsed > self.bounds.safety.stop_time:
            self.player.stop(pose)

    def _take_state(self, state: RobotState | None, now_ns: int, verdicts: list[Verdict]) -> RobotState | None:
        """The joint state to act on: this one, or the last good one while it is young enough."""
        fault = check_state(state, now_ns, self.bounds)
        if fault is None and state is not None:
            self._measured = state
            self._measured_pose = self.backend.forward(state.q)
            return state
        if fault is not None:
            verdicts.append(fault)
        if self._measured is not None and check_state(self._measured, now_ns, self.bounds) is None:
            return self._measured
        return None

    def _anchor(self, fresh: RobotState | None, now_ns: int, verdicts: list[Verdict]) -> bool:
        """Start the commanded motion at the measured position; False when that is not possible yet."""
        if fresh is None:
            return False
        moving = check_rest(fresh, ANCHOR_SPEED, self.bounds)
        if moving is not None:
            verdicts.append(moving)
            return False
        pose = self.backend.forward(fresh.q)
        self._motion = Motion(MotionState.at_rest(fresh.q), pose)
        self._pose = pose
        self.backend.reset(fresh.q)
        self.player.reset(pose, now_ns)
        self._past.clear()
        if not self._driving:
            self._gripper.reset(fresh.gripper)
        return True

    def _advance(self, now_ns: int, fresh: RobotState | None, verdicts: list[Verdict]) -> Sample | None:
        assert self._motion is not None
        active = self._enabled and not self._latch
        self._driving = self._driving or active
        self._blocked = ''
        if fresh is None:
            self._blocked = 'joint_state'
        elif self._driving and not self._dry_run:
            error = check_tracking(self._past.at(fresh.stamp_ns, self._motion.joints.q), fresh.q, self.bounds)
            if error is not None:
                verdicts.append(error)
                self._blocked = 'tracking_error'
        if self._gate is not None:
            overdue = self._gate.overdue(now_ns)
            if overdue is not None:
                verdicts.append(overdue)
                self.player.stop(self._motion.target)
        if self._run is not None:
            if active and not self._blocked:
                self._follow(self._run, now_ns, verdicts)
                return None
            why = next((v.text for v in reversed(verdicts) if v.rule in {self._blocked, 'stop_latch'}), '')
            self._end_run(why or 'the controller was disabled')
        playing = self.player.active
        if not active or self._blocked or not playing:
            self._halt(now_ns, playing, active, fresh, verdicts)
            return None
        if self._ramp_ns is None:
            self._ramp_ns = now_ns
        ramp = self.control.ramp_time
        scale = 1.0 if ramp <= 0.0 else min(1.0, max(MIN_RAMP, (now_ns - self._ramp_ns) * 1e-9 / ramp))
        sample = self.player.sample(now_ns, self._motion.target, scale)
        if sample is None:
            self._halt(now_ns, playing, active, fresh, verdicts)
            return None
        if sample.share < SLOWED:
            limit = scale * self.bounds.safety.max_cartesian_speed
            text = f'the path is played at {100 * sample.share:.0f} % of its speed, for the speed bounds of the tcp'
            verdict = Verdict('cartesian_speed', VerdictAction.SCALED, 'tcp', sample.speed, limit, 'm/s', text)
            verdicts.append(replace(verdict, chunk_id=sample.chunk.id))
        self._motion, changes = move(self._motion, sample.pose, self.law, self.backend, scale, sample.chunk.id)
        verdicts += changes
        self._gripper_due = self._gripper.update(sample.gripper) or self._gripper_due
        self._record(now_ns)
        return sample

    def _follow(self, run: RouteRun, now_ns: int, verdicts: list[Verdict]) -> None:
        """One period along a route; the time law decides what of it is done."""
        assert self._motion is not None
        q, dq = run.advance(self.bounds.period)
        joints, changes = self.law.advance(self._motion.joints, q, dq, run.ceiling)
        verdicts += changes
        self.backend.reset(joints.q)
        self._motion = Motion(joints, self.backend.forward(joints.q))
        self._record(now_ns)
        late = float(np.abs(joints.q - q).max())
        problem = run.over(joints.q, joints.dq)
        if late > self.bounds.safety.max_joint_jump:
            why = changes[-1].text if changes else 'the limits of the arm'
            problem = f'the arm cannot follow ({late:.3f} rad behind): {why}'
        if problem is not None:
            self._end_run(problem)

    def _end_run(self, problem: str) -> None:
        if self._run is not None:
            self._pending.append(self._run.end(problem))
            self._run = None

    def _halt(
        self, now_ns: int, playing: bool, active: bool, fresh: RobotState | None, verdicts: list[Verdict]
    ) -> None:
        assert self._motion is not None
        if playing and active and not self._blocked:
            speed = float(np.abs(self._motion.joints.dq).max())
            text = f'no fresh chunk: braking from {speed:.3f} rad/s and holding'
            verdicts.append(Verdict('dead_man', VerdictAction.HELD, 'chunk', speed, 0.0, 'rad/s', text))
        rested = self._motion.joints.resting
        self._motion = halt(self._motion, self.law, self.backend)
        self.player.stop(self._motion.target)
        self._record(now_ns)
        if self._enabled or not rested:  # the last command that is sent is one at rest
            return
        self._driving = self._driving and bool(self._latch)
        if fresh is not None and not self._driving:
            self._motion = None  # released: follow the measured arm
            self._anchor(fresh, now_ns, [])

    def _record(self, now_ns: int) -> None:
        assert self._motion is not None
        self._pose = self.backend.forward(self._motion.joints.q)
        self.player.record(now_ns, self._pose)
        self._past.record(now_ns, self._motion.joints.q)

    def _mode(self, sample: Sample | None) -> Mode:
        if self._latch:
            return Mode.STOPPED
        if not self._enabled:
            return Mode.DISABLED
        if sample is not None or self._run is not None:
            return Mode.TRACKING
        if self._motion is not None and not self._motion.joints.resting:
            return Mode.DECELERATING
        return Mode.HOLDING

    def _compose(self, sample: Sample | None, verdicts: list[Verdict], now_ns: int) -> ControllerOutput:
        joints = self._motion.joints if self._motion is not None else None
        command = None
        if joints is not None and self._driving and not self._dry_run:
            horizon = HORIZON_PERIODS * self.bounds.period
            command = JointCommand(now_ns, joints.q, joints.dq, self._gripper.value, horizon, joints.ddq)
        changed = self._gripper_due and not self._dry_run
        self._gripper_due = False
        chunk = sample.chunk if sample is not None else None
        self._output = ControllerOutput(
            command=command,
            commanded_pose=self._pose if joints is not None else self._measured_pose,
            measured_pose=self._measured_pose,
            gripper=self._gripper.value,
            gripper_changed=changed,
            mode=self._mode(sample),
            chunk_id=chunk.id if chunk else '',
            reasoning_id=chunk.reasoning_id if chunk else '',
            step_index=sample.step_index if sample else -1,
            observation_stamp_ns=chunk.observation_stamp_ns if chunk else 0,
            verdicts=tuple(verdicts),
            q=joints.q if joints is not None else None,
            dq=joints.dq if joints is not None else None,
        )
        return self._output
