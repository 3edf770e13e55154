"""Joint states, joint trajectories and gripper commands <-> the datatypes of layer 0: what goes to and from the arm.

Like ``convert``: a message that cannot be used raises ObservationError with the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from instructvla_ros.msg import GripperCommand

from ..datatypes import RobotState
from ..decoding import SECOND
from ..decoding import JointReader as JointReader
from ..decoding import gripper_width_from_msg as gripper_width_from_msg
from ..decoding import robot_state_from_msg as robot_state_from_msg
from ..errors import ObservationError
from ..geometry import Array
from ..settings import Embodiment
from .convert import stamp_to_msg


def robot_state_to_msg(state: RobotState, embodiment: Embodiment) -> JointState:
    """sensor_msgs/JointState with arm and fingers; the fingers' velocities are not part of RobotState and sent as 0."""
    fingers = embodiment.gripper.joints
    travel = state.gripper * embodiment.gripper.max_width / 2.0
    message = JointState(name=[*embodiment.arm_joints, *fingers])
    message.header.stamp = stamp_to_msg(state.stamp_ns)
    message.header.frame_id = embodiment.base_frame
    message.position = [*state.q.tolist(), *[travel] * len(fingers)]
    message.velocity = [*state.dq.tolist(), *[0.0] * len(fingers)]
    return message


def trajectory_to_msg(
    joint_names: Sequence[str], times_s: Sequence[float], positions: Any, velocities: Any, stamp_ns: int
) -> JointTrajectory:
    """JointTrajectory message.

    Args:
        times_s: (k,) time_from_start [s]. positions: (k, n) [rad]. velocities: (k, n) [rad/s] or None.
        stamp_ns: start of the trajectory [ns]; 0 means now.
    """
    message = JointTrajectory(joint_names=list(joint_names))
    message.header.stamp = stamp_to_msg(stamp_ns)
    rows = np.asarray(positions, dtype=np.float64).tolist()
    speeds = np.asarray(velocities, dtype=np.float64).tolist() if velocities is not None else [[]] * len(rows)
    for t, q, dq in zip(times_s, rows, speeds, strict=True):
        point = JointTrajectoryPoint(positions=q, velocities=dq)
        seconds, nanoseconds = divmod(round(float(t) * SECOND), SECOND)
        point.time_from_start.sec, point.time_from_start.nanosec = seconds, nanoseconds
        message.points.append(point)
    return message


def trajectory_from_msg(message: JointTrajectory) -> tuple[list[str], list[float], Array, Array | None]:
    """Joint names, times (k,) [s], positions (k, n) [rad], velocities (k, n) [rad/s] or None when no point has any.

    Raises:
        ObservationError: no points, rows of different length, or only some points have velocities.
    """
    names = list(message.joint_names)
    if not message.points:
        raise ObservationError('trajectory without points')
    times = [p.time_from_start.sec + p.time_from_start.nanosec / SECOND for p in message.points]
    positions = _rows('positions', [p.positions for p in message.points], len(names))
    speeds = [p.velocities for p in message.points]
    velocities = _rows('velocities', speeds, len(names)) if any(len(row) for row in speeds) else None
    return names, times, positions, velocities


def _rows(what: str, rows: Sequence[Sequence[float]], width: int) -> Array:
    for k, row in enumerate(rows):
        if len(row) != width:
            raise ObservationError(f'trajectory point {k}: {len(row)} {what} for {width} joints')
    return np.array([list(row) for row in rows], dtype=np.float64)


def gripper_to_msg(openness: float, embodiment: Embodiment, stamp_ns: int) -> GripperCommand:
    """GripperCommand of an openness 0 closed .. 1 open."""
    gripper = embodiment.gripper
    width = float(np.clip(openness, 0.0, 1.0)) * gripper.max_width
    message = GripperCommand(width=width, speed=gripper.speed, max_effort=gripper.max_effort)
    message.header.stamp = stamp_to_msg(stamp_ns)
    return message
