"""Jerk-limited joint motion with a proof: every accepted state is one from which the arm can stop inside the limits.

Each period the law proposes the time-optimal jerk-limited approach to the reference (Ruckig, per joint, solved in
the frame that moves with the reference so that ramps are followed without lag). It then computes the stop of the
whole arm from the proposed state. The proposal is taken only if that stop stays inside the position limits and the
tcp box. Otherwise the arm follows the stop that was proven one period earlier. By induction there is always
such a stop, so no reference whatsoever can drive the arm out. A start outside the limits may only get better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from ruckig import ControlInterface, InputParameter, Ruckig, RuckigError, Synchronization, Trajectory

from ..datatypes import Verdict, VerdictAction
from ..errors import KinematicsError
from ..geometry import Array
from .bounds import Bounds

POSITION_EPS = 1e-7  # rad: rounding of the stop's extrema
BOX_TOLERANCE = 0.002  # m: how far the curved path of a stop may leave the flat faces of the tcp box
BOX_CHECK = 0.0015  # m: the same for the three points of the stop that are looked at; the rest is for what lies between
LONGEST = 60.0  # s
FOLLOW_TOLERANCE = 1e-3  # rad: a lag beyond this is reported
Position = Callable[[Array], Array]
Collision = Callable[[Array], str]


@dataclass(frozen=True)
class StopPlan:
    """A stop of the whole arm; all joints come to rest together, which keeps the tcp near its path.

    Attributes:
        trajectory: from position 0. start: where it begins (n,) [rad].
        low, high: smallest and largest position of every joint over the plan (n,) [rad]. elapsed: time into it [s].
    """

    trajectory: Trajectory
    start: Array
    low: Array
    high: Array
    elapsed: float = 0.0

    @property
    def left(self) -> float:
        """Time to rest [s]."""
        return max(0.0, self.trajectory.duration - self.elapsed)

    def at(self, time: float) -> tuple[Array, Array, Array]:
        """Position [rad], velocity, acceleration ``time`` [s] from now; exactly at rest from the end on."""
        t = self.elapsed + time
        end = self.trajectory.duration
        q, v, a = self.trajectory.at_time(min(t, end))
        if t >= end:
            return self.start + q, np.zeros(len(q)), np.zeros(len(q))
        return self.start + q, np.array(v), np.array(a)


@dataclass(frozen=True)
class MotionState:
    """Commanded motion of the arm.

    Attributes:
        q, dq, ddq: (n,) [rad], [rad/s], [rad/s^2]. plan: the stop being followed, None while tracking.
    """

    q: Array
    dq: Array
    ddq: Array
    plan: StopPlan | None = None

    @classmethod
    def at_rest(cls, q: Array) -> MotionState:
        """The arm standing still at q (n,) [rad]."""
        zero = np.zeros(len(q))
        return cls(np.array(q, dtype=np.float64), zero, zero)

    @property
    def resting(self) -> bool:
        """True when nothing moves."""
        return not (self.dq.any() or self.ddq.any())


def plan_stop(state: MotionState, acceleration: Array, jerk: Array, synchronised: bool = True) -> StopPlan:
    """Jerk-limited stop from a state, within acceleration [rad/s^2] and jerk [rad/s^3] (n,).

    Raises:
        KinematicsError: the numbers of the state are not usable.
    """
    n = len(state.q)
    request = InputParameter(n)
    request.control_interface = ControlInterface.Velocity
    request.synchronization = Synchronization.Time if synchronised else Synchronization.No
    # Positions count from the start: Ruckig includes position 0 in the extrema of a velocity profile.
    request.current_position = [0.0] * n
    request.current_velocity = state.dq.tolist()
    request.current_acceleration = state.ddq.tolist()
    request.target_velocity = [0.0] * n
    request.target_acceleration = [0.0] * n
    request.max_acceleration = acceleration.tolist()
    request.max_jerk = jerk.tolist()
    trajectory = Trajectory(n)
    try:
        Ruckig(n).calculate(request, trajectory)
    except (RuckigError, ValueError) as err:
        if synchronised:
            return plan_stop(state, acceleration, jerk, synchronised=False)
        raise KinematicsError(f'no stop from q {state.q.tolist()}, dq {state.dq.tolist()}: {err}') from err
    extrema = trajectory.position_extrema
    low = state.q + [e.min for e in extrema]
    high = state.q + [e.max for e in extrema]
    return StopPlan(trajectory, state.q, low, high)


class TimeLaw:
    """The last rungs of the ladder: joint position, velocity, acceleration and jerk, tcp box, collision.

    Args:
        bounds: the limits.
        position: tcp position (3,) [m] of joint positions (n,); without it the tcp box is not checked here.
        collision: names what collides at joint positions (n,), '' when free; None when the backend cannot tell.

    A function of its arguments only; the members are scratch memory.
    """

    def __init__(self, bounds: Bounds, position: Position | None = None, collision: Collision | None = None) -> None:
        self.bounds, self.position, self.collision = bounds, position, collision
        n = len(bounds.joints)
        self._solver = Ruckig(n)
        self._trajectory = Trajectory(n)
        request = InputParameter(n)
        request.synchronization = Synchronization.No
        request.target_position = [0.0] * n
        request.target_velocity = [0.0] * n
        request.target_acceleration = [0.0] * n
        request.max_acceleration = bounds.acceleration.tolist()
        request.max_jerk = bounds.jerk.tolist()
        self._request = request

    def brake(self, state: MotionState) -> MotionState:
        """The state one period later on the way to rest; a stop once begun is followed to its end."""
        if state.plan is None and state.resting:
            return state
        plan = state.plan or plan_stop(state, self.bounds.acceleration, self.bounds.jerk)
        q, dq, ddq = plan.at(self.bounds.period)
        if plan.left <= self.bounds.period:
            return MotionState(q, dq, ddq)
        return MotionState(q, dq, ddq, replace(plan, elapsed=plan.elapsed + self.bounds.period))

    def advance(
        self, state: MotionState, q_ref: Array, dq_ref: Array, scale: float = 1.0
    ) -> tuple[MotionState, tuple[Verdict, ...]]:
        """One period towards a moving reference.

        Args:
            state: commanded now.
            q_ref, dq_ref: where the reference is at the end of the period and how fast it moves (n,) [rad], [rad/s].
            scale: share of the velocity bound that may be used now, 0..1 (start ramp).

        Returns:
            The commanded state one period later and a verdict per thing clipped, scaled or held.
        """
        b = self.bounds
        if not (np.isfinite(q_ref).all() and np.isfinite(dq_ref).all()):
            verdict = Verdict('finite', VerdictAction.HELD, 'joint reference', text='the joint reference is not finite')
            return self.brake(state), (verdict,)
        verdicts: list[Verdict] = []
        wanted, goal = q_ref, np.clip(q_ref, b.lower, b.upper)
        if (goal != wanted).any():
            verdicts.append(self._clip('joint_position', wanted, goal, 'rad', VerdictAction.CLIPPED))
        ceiling = b.velocity * min(max(scale, 0.01), 1.0)
        # A reference near a position limit must itself be able to stop before it.
        up = np.sqrt(b.acceleration * np.maximum(b.upper - goal, 0.0))
        down = np.sqrt(b.acceleration * np.maximum(goal - b.lower, 0.0))
        speed = np.clip(dq_ref, -np.minimum(0.95 * ceiling, down), np.minimum(0.95 * ceiling, up))
        if (np.abs(dq_ref) > ceiling * (1.0 + 1e-6)).any():
            limited = np.clip(dq_ref, -ceiling, ceiling)
            verdicts.append(self._clip('joint_velocity', dq_ref, limited, 'rad/s', VerdictAction.SCALED))
        proposal = self._approach(state, goal, speed, ceiling)
        if proposal is None:
            text = 'the time law has no solution from this state; braking'
            verdicts.append(Verdict('time_law', VerdictAction.HELD, 'arm', text=text))
            return self.brake(state), tuple(verdicts)
        objection = self._objection(state, proposal)
        stopping: list[int] = []
        while objection is not None:
            verdicts.append(objection)
            if objection.rule != 'joint_position' or b.joints.index(objection.subject) in stopping:
                return self.brake(state), tuple(verdicts)
            # One joint at its limit must not pin the others down: it stops, they go on if that can still be stopped.
            stopping.append(b.joints.index(objection.subject))
            proposal = self._stopping(state, proposal, stopping)
            objection = self._objection(state, proposal)
        self._report_lag(state, proposal, goal, speed, verdicts)
        return proposal, tuple(verdicts)

    def _approach(self, state: MotionState, goal: Array, speed: Array, ceiling: Array) -> MotionState | None:
        period = self.bounds.period
        away = state.q - (goal - speed * period)
        # Ruckig refuses trajectories of hours; beyond a minute the first period is the same.
        far = LONGEST * (ceiling - np.abs(speed))
        away = np.minimum(np.maximum(away, -far), far)
        request = self._request
        request.current_position = away.tolist()
        request.current_velocity = (state.dq - speed).tolist()
        request.current_acceleration = state.ddq.tolist()
        request.max_velocity = (ceiling - speed).tolist()
        request.min_velocity = (-ceiling - speed).tolist()
        try:
            self._solver.calculate(request, self._trajectory)
        except (RuckigError, ValueError):  # the binding turns some result codes into ValueError
            return None
        q, v, a = self._trajectory.at_time(period)
        proposal = MotionState(state.q - away + q + speed * period, speed + np.array(v), np.array(a))
        return proposal if np.isfinite(proposal.q).all() and np.isfinite(proposal.dq).all() else None

    def _stopping(self, state: MotionState, proposal: MotionState, joints: list[int]) -> MotionState:
        """The proposal with some joints on their way to rest instead."""
        braked = self.brake(state)
        q, dq, ddq = proposal.q.copy(), proposal.dq.copy(), proposal.ddq.copy()
        q[joints], dq[joints], ddq[joints] = braked.q[joints], braked.dq[joints], braked.ddq[joints]
        return MotionState(q, dq, ddq)

    def _objection(self, state: MotionState, proposal: MotionState) -> Verdict | None:
        """Why the stop from the proposed state is not acceptable, or None."""
        b = self.bounds
        plan = plan_stop(proposal, b.acceleration, b.jerk)
        low, high = plan.low, plan.high
        reference: StopPlan | None = None
        if (low < b.lower - POSITION_EPS).any() or (high > b.upper + POSITION_EPS).any():
            reference = state.plan or plan_stop(state, b.acceleration, b.jerk)
            below = np.minimum(b.lower, reference.low) - low
            above = high - np.maximum(b.upper, reference.high)
            k = int(np.argmax(np.maximum(below, above)))
            if max(below[k], above[k]) > POSITION_EPS:
                value, limit = (low[k], b.lower[k]) if below[k] > above[k] else (high[k], b.upper[k])
                text = f'{b.joints[k]} could not stop before {limit:.4f} rad (would reach {value:.4f} rad); it stops'
                numbers = float(value), float(limit)
                return Verdict('joint_position', VerdictAction.HELD, b.joints[k], *numbers, 'rad', text)
        if self.position is not None:
            excess, axis, value, limit = self._outside_box(proposal, plan)
            if excess > BOX_CHECK:
                reference = reference or state.plan or plan_stop(state, b.acceleration, b.jerk)
                if excess > self._outside_box(state, reference)[0] + 1e-6:
                    text = f'the tcp could not stop before {axis} = {limit:.4f} m (would reach {value:.4f} m); braking'
                    return Verdict('workspace_stop', VerdictAction.HELD, axis, value, limit, 'm', text)
        if self.collision is not None:
            hit = self.collision(plan.at(plan.left)[0]) or self.collision(proposal.q)
            if hit:
                return Verdict('collision', VerdictAction.HELD, hit, text=f'{hit} would collide; braking')
        return None

    def _outside_box(self, state: MotionState, plan: StopPlan) -> tuple[float, str, float, float]:
        """How far the tcp leaves the box on a stop [m], on which axis, where it gets, and the face."""
        assert self.position is not None
        b = self.bounds
        left = plan.left
        points = [self.position(state.q)]
        if left > b.period:
            points += [self.position(plan.at(0.5 * left)[0]), self.position(plan.at(left)[0])]
        p = np.array(points)
        out = np.maximum(b.box_lower - p, p - b.box_upper)
        row, axis = divmod(int(np.argmax(out)), 3)
        value = float(p[row, axis])
        limit = float(b.box_lower[axis] if value < b.box_lower[axis] + 1e-9 else b.box_upper[axis])
        return float(out[row, axis]), 'xyz'[axis], value, limit

    def _clip(self, rule: str, wanted: Array, given: Array, unit: str, action: VerdictAction) -> Verdict:
        k = int(np.argmax(np.abs(wanted - given)))
        joint = self.bounds.joints[k]
        text = f'{joint}: asked {wanted[k]:.4f} {unit}, allowed {given[k]:.4f} {unit}'
        return Verdict(rule, action, joint, float(wanted[k]), float(given[k]), unit, text)

    def _report_lag(
        self, state: MotionState, proposal: MotionState, goal: Array, speed: Array, verdicts: list[Verdict]
    ) -> None:
        lag = np.abs(proposal.q - goal)
        k = int(np.argmax(lag))
        if lag[k] <= FOLLOW_TOLERANCE:
            return
        b = self.bounds
        asked = float(2.0 * (goal[k] - state.q[k] - state.dq[k] * b.period) / b.period**2)
        joint = b.joints[k]
        if abs(asked) > b.acceleration[k]:
            rule, value, limit, unit = 'joint_acceleration', asked, float(b.acceleration[k]), 'rad/s^2'
        else:
            asked = float((asked - state.ddq[k]) / b.period)
            rule, value, limit, unit = 'joint_jerk', asked, float(b.jerk[k]), 'rad/s^3'
        text = f'{joint} follows {lag[k]:.4f} rad behind: asked {value:.3g} {unit}, allowed {limit:.3g} {unit}'
        verdicts.append(Verdict(rule, VerdictAction.SCALED, joint, value, limit, unit, text))
