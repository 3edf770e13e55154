"""Rungs of the safety ladder in Cartesian space and on the joint state. Pure: no clock, no state."""

from __future__ import annotations

import numpy as np
import pinocchio as pin

from ..datatypes import RobotState, Verdict, VerdictAction
from ..geometry import Array
from .bounds import Bounds

CLIP_REPORT = 1e-6  # m


def check_state(state: RobotState | None, now_ns: int, bounds: Bounds) -> Verdict | None:
    """What is wrong with a joint state, or None: absent, wrong size, not finite, stale, or from the future."""
    n = len(bounds.joints)

    def held(subject: str, value: float, limit: float, unit: str, text: str) -> Verdict:
        return Verdict('joint_state', VerdictAction.HELD, subject, value, limit, unit, text)

    if state is None:
        return held('missing', float('nan'), float('nan'), '', 'no joint state has arrived')
    q, dq = np.asarray(state.q), np.asarray(state.dq)
    if q.shape != (n,) or dq.shape != (n,):
        text = f'the joint state has {q.shape} positions and {dq.shape} velocities; this arm has {n} joints'
        return held('size', float(q.size), float(n), 'joints', text)
    if not (np.isfinite(q).all() and np.isfinite(dq).all() and np.isfinite(state.gripper)):
        return held('finite', float('nan'), 0.0, '', 'the joint state holds numbers that are not finite')
    age = (now_ns - state.stamp_ns) * 1e-9
    if age > bounds.safety.max_state_age:
        text = f'the joint state is {age:.3f} s old; allowed is {bounds.safety.max_state_age} s'
        return held('age', age, bounds.safety.max_state_age, 's', text)
    if -age > bounds.safety.max_future:
        text = f'the joint state is stamped {-age:.3f} s in the future; allowed is {bounds.safety.max_future} s'
        return held('future', -age, bounds.safety.max_future, 's', text)
    return None


def check_rest(state: RobotState, limit: float, bounds: Bounds) -> Verdict | None:
    """The joint that moves faster than ``limit`` [rad/s], so that the arm cannot be taken over yet, or None."""
    speed = np.abs(state.dq)
    k = int(np.argmax(speed))
    if speed[k] <= limit:
        return None
    joint = bounds.joints[k]
    text = f'{joint} still moves at {speed[k]:.3f} rad/s; waiting for the arm to rest before taking it over'
    return Verdict('anchor', VerdictAction.HELD, joint, float(speed[k]), limit, 'rad/s', text)


def clip_to_workspace(pose: Array, bounds: Bounds, chunk_id: str = '') -> tuple[Array, tuple[Verdict, ...]]:
    """Pose (4, 4) with its position inside the tcp box and above the table plane, one verdict per axis clipped."""
    position = pose[:3, 3]
    inside = np.minimum(np.maximum(position, bounds.box_lower), bounds.box_upper)
    change = np.abs(inside - position)
    if not change.any():
        return pose, ()
    out = pose.copy()
    out[:3, 3] = inside
    verdicts = []
    floor = bounds.safety.table_height + bounds.safety.table_clearance
    for k in np.flatnonzero(change > CLIP_REPORT):
        axis, value, limit = 'xyz'[k], float(position[k]), float(inside[k])
        rule = 'table' if k == 2 and limit == floor and value < limit else 'workspace'
        text = f'tcp {axis} = {value:.4f} m is outside the allowed range; brought to {limit:.4f} m'
        verdicts.append(Verdict(rule, VerdictAction.CLIPPED, axis, value, limit, 'm', text, chunk_id))
    return out, tuple(verdicts)


def limit_speed(
    previous: Array, target: Array, bounds: Bounds, scale: float = 1.0, chunk_id: str = ''
) -> tuple[Array, tuple[Verdict, ...]]:
    """The target pose (4, 4), or the pose as far towards it as the tcp speed bounds allow in one period.

    Args:
        previous: target of the period before. scale: share of the bounds allowed now, 0..1 (start ramp).
    """
    safety, period = bounds.safety, bounds.period
    step = target[:3, 3] - previous[:3, 3]
    turn = pin.log3(previous[:3, :3].T @ target[:3, :3])
    distance, angle = float(np.sqrt(step @ step)), float(np.sqrt(turn @ turn))
    reach = scale * safety.max_cartesian_speed * period
    swing = scale * safety.max_rotation_speed * period
    if distance <= reach and angle <= swing:
        return target, ()
    verdicts = []
    share = 1.0
    if distance > reach:
        share = min(share, reach / distance)
        value, limit = distance / period, reach / period
        text = f'tcp speed {value:.3f} m/s brought to {limit:.3f} m/s'
        verdicts.append(Verdict('cartesian_speed', VerdictAction.SCALED, 'tcp', value, limit, 'm/s', text, chunk_id))
    if angle > swing:
        share = min(share, swing / angle)
        value, limit = angle / period, swing / period
        text = f'tcp rotation speed {value:.3f} rad/s brought to {limit:.3f} rad/s'
        verdicts.append(Verdict('rotation_speed', VerdictAction.SCALED, 'tcp', value, limit, 'rad/s', text, chunk_id))
    out = np.eye(4)
    out[:3, 3] = previous[:3, 3] + share * step
    out[:3, :3] = previous[:3, :3] @ pin.exp3(share * turn)
    return out, tuple(verdicts)


def check_jump(q: Array, q_next: Array, bounds: Bounds) -> Verdict | None:
    """The joint whose IK solution jumps from one period to the next, or None."""
    jump = np.abs(q_next - q)
    k = int(np.argmax(jump))
    limit = bounds.safety.max_joint_jump
    if jump[k] <= limit:
        return None
    text = f'the inverse kinematics moves {bounds.joints[k]} by {jump[k]:.3f} rad in one period; allowed is {limit} rad'
    return Verdict('ik_jump', VerdictAction.HELD, bounds.joints[k], float(jump[k]), limit, 'rad', text)


def check_tracking(commanded: Array, measured: Array, bounds: Bounds) -> Verdict | None:
    """The joint that is too far from where it is commanded, or None."""
    error = np.abs(commanded - measured)
    k = int(np.argmax(error))
    limit = bounds.safety.max_tracking_error
    if error[k] <= limit:
        return None
    text = (
        f'{bounds.joints[k]} is {error[k]:.3f} rad from its command; allowed is {limit} rad. '
        'Holding; free the arm, then disable and enable to start at the measured position'
    )
    return Verdict('tracking_error', VerdictAction.HELD, bounds.joints[k], float(error[k]), limit, 'rad', text)
