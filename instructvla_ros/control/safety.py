"""The safety ladder as one pure step: (state, command, now, bounds) -> (command, verdicts).

Chunks climb ``safety_chunk.check_chunk`` when they arrive: finite numbers, stamps and ages, frame, per-step bounds.
Every period then climbs :func:`move`: workspace box and table plane, tcp speed, inverse kinematics and jump, and the
time law with joint position, velocity, acceleration, jerk, tcp box, collision. Without a target (no fresh chunk,
stop latch, stale joint state, tracking error) :func:`halt` brakes and holds: at rest within ``stop_time``.
Whatever is refused, scaled, clipped or held is named in a verdict with numbers and units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..datatypes import JointCommand, Verdict, VerdictAction
from ..errors import KinematicsError
from ..geometry import Array
from ..settings import JointLimits
from .direct import Backend
from .kinematics import IkStep
from .safety_motion import check_jump, clip_to_workspace, limit_speed
from .time_law import MotionState, TimeLaw, plan_stop

IK_REPORT = 1e-3  # m, rad: an IK error beyond this is reported
RUN_AWAY = 0.001  # m: a target further than this from what the IK reached is pulled back to it
HOLD_TIME = 0.2  # s: how late a command may arrive and still be taken
TAIL_POINTS = 5


@dataclass(frozen=True)
class Motion:
    """Commanded state of the arm and the tcp pose that was last aimed at (4, 4)."""

    joints: MotionState
    target: Array


def move(
    motion: Motion, pose: Array, law: TimeLaw, backend: Backend, scale: float = 1.0, chunk_id: str = ''
) -> tuple[Motion, tuple[Verdict, ...]]:
    """One period towards a tcp pose (4, 4), through every rung of the ladder.

    Args:
        scale: share of the speed bounds that may be used now, 0..1 (start ramp).

    Returns:
        The motion one period later, inside every bound, and the verdicts.
    """
    bounds = law.bounds
    if not np.isfinite(pose).all():
        text = 'the target pose is not finite'
        verdict = Verdict('finite', VerdictAction.HELD, 'target', text=text, chunk_id=chunk_id)
        return halt(motion, law, backend), (verdict,)
    target, verdicts = clip_to_workspace(pose, bounds, chunk_id)
    target, slowed = limit_speed(motion.target, target, bounds, scale, chunk_id)
    verdicts = (*verdicts, *slowed)
    before = backend.reference
    try:
        step = backend.track(target, bounds.period, scale)
    except KinematicsError as err:
        verdict = Verdict('ik', VerdictAction.HELD, 'target', text=str(err), chunk_id=chunk_id)
        return halt(motion, law, backend), (*verdicts, verdict)
    jump = check_jump(before, step.q, bounds)
    if jump is not None:
        return halt(motion, law, backend), (*verdicts, jump)
    if step.limited_by and (step.position_error > IK_REPORT or step.rotation_error > IK_REPORT):
        verdicts = (*verdicts, _ik_verdict(step, chunk_id))
    joints, limited = law.advance(motion.joints, step.q, step.dq, scale)
    verdicts = (*verdicts, *limited)
    # The reference must not run away from an arm that cannot follow, nor the target from an unreachable pose.
    if np.abs(step.q - joints.q).max() > bounds.safety.max_joint_jump:
        backend.reset(joints.q)
        target = backend.forward(joints.q)
    elif step.position_error > RUN_AWAY:
        target = backend.forward(step.q)
    return Motion(joints, target), verdicts


def halt(motion: Motion, law: TimeLaw, backend: Backend) -> Motion:
    """One period of the way to rest, or of rest."""
    joints = law.brake(motion.joints)
    if joints is motion.joints:
        return motion
    backend.reset(joints.q)
    return Motion(joints, backend.forward(joints.q))


def _ik_verdict(step: IkStep, chunk_id: str) -> Verdict:
    action = VerdictAction.HELD if step.stalled else VerdictAction.CLIPPED
    verb = 'cannot be reached' if step.stalled else 'is not reached yet'
    position, rotation = step.position_error, step.rotation_error
    text = f'the target {verb}: limited by {step.limited_by}; {1000 * position:.1f} mm and {rotation:.3f} rad remain'
    value, unit = (position, 'm') if position > IK_REPORT else (rotation, 'rad')
    return Verdict('ik', action, step.limited_by, value, IK_REPORT, unit, text, chunk_id)


def trajectory_points(command: JointCommand, limits: JointLimits) -> tuple[Array, Array, Array]:
    """Points of the JointTrajectory for one command: the commanded state, then a stop that needs no further command.

    The arm of a controller that died follows the tail and comes to rest. The stop is jerk-limited within
    ``limits``; all joints stop together. The last point repeats the rest, so that a message which arrives late still
    has a point in the future: joint_trajectory_controller rejects one that has none.

    Returns:
        times (k,) after the stamp [s], strictly increasing; positions (k, n) [rad] inside the position limits (or no
        further outside than the command); velocities (k, n) [rad/s], zero in the last point.
    """
    n = len(command.q)
    ddq = np.zeros(n) if command.ddq is None else command.ddq
    state = MotionState(command.q, command.dq, ddq)
    if state.resting:
        times = np.array([command.horizon, command.horizon + HOLD_TIME])
        return times, np.array([command.q, command.q]), np.zeros((2, n))
    plan = plan_stop(state, np.asarray(limits.acceleration), np.asarray(limits.jerk))
    # Very short tails still get well separated points.
    times = max(plan.left, 0.005 * TAIL_POINTS) * np.arange(TAIL_POINTS + 1) / TAIL_POINTS
    points = [plan.at(float(t)) for t in times]
    positions = np.array([p[0] for p in points])
    velocities = np.array([p[1] for p in points])
    velocities[-1] = 0.0
    lower = np.minimum(limits.lower, command.q)
    upper = np.maximum(limits.upper, command.q)
    positions = np.clip(positions, lower, upper)
    end = command.horizon + float(times[-1]) + HOLD_TIME
    return (
        np.append(command.horizon + times, end),
        np.vstack([positions, positions[-1:]]),
        np.vstack([velocities, np.zeros((1, n))]),
    )
