"""Joint states, joint trajectories and gripper commands <-> the datatypes of layer 0: what goes to and from the arm.

Like ``convert``: a message that cannot be used raises ObservationError with the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from instructvla_ros.msg import GripperCommand

from ..datatypes import RobotState
from ..errors import ObservationError
from ..geometry import Array
from ..settings import Embodiment
from .convert import stamp_from_msg, stamp_to_msg

_SECOND = 1_000_000_000


class JointReader:
    """Reads sensor_msgs/JointState by name, in any order.

    Drivers differ: one message holds arm and fingers, or each comes in messages of its own on the same topic. The last
    openness is therefore remembered.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        """Read the joints named in ``embodiment``."""
        self._arm = embodiment.arm_joints
        self._fingers = embodiment.gripper.joints
        self._half_width = embodiment.gripper.max_width / 2.0
        self._layout: tuple[tuple[str, ...], list[int], list[int]] | None = None
        self._openness: float | None = None if self._fingers else 0.0

    def read(self, message: JointState) -> RobotState | None:
        """State of the arm, or None when the message holds only the fingers.

        Velocities are zero when the driver sends none.

        Raises:
            ObservationError: a joint is missing (named), lengths differ, a number is not finite, or the fingers have
                never been seen.
        """
        names = tuple(message.name)
        arm, fingers = self._indices(names)
        position = np.asarray(message.position, dtype=np.float64)
        if position.size != len(names):
            raise ObservationError(f'joint state: {len(names)} names, {position.size} positions')
        if fingers:
            travel = position[fingers]
            self._require_finite(travel, self._fingers, 'position')
            self._openness = float(np.clip(travel.mean() / self._half_width, 0.0, 1.0))
        if not arm:
            return None
        q = position[arm]
        self._require_finite(q, self._arm, 'position')
        velocity = np.asarray(message.velocity, dtype=np.float64)
        if velocity.size == 0:
            dq = np.zeros(len(arm))
        elif velocity.size == len(names):
            dq = velocity[arm]
            self._require_finite(dq, self._arm, 'velocity')
        else:
            raise ObservationError(f'joint state: {len(names)} names, {velocity.size} velocities')
        if self._openness is None:
            raise ObservationError(
                f'joint state: {self._fingers[0]} is missing and was never seen; the gripper has to publish its joints'
            )
        return RobotState(stamp_from_msg(message.header.stamp), q, dq, self._openness)

    def _indices(self, names: tuple[str, ...]) -> tuple[list[int], list[int]]:
        if self._layout is not None and self._layout[0] == names:
            return self._layout[1], self._layout[2]
        where = {name: k for k, name in enumerate(names)}
        if len(where) != len(names):
            raise ObservationError('joint state: a joint name appears twice')
        groups: list[list[int]] = []
        for wanted in (self._arm, self._fingers):
            missing = [name for name in wanted if name not in where]
            if missing and len(missing) < len(wanted):
                raise ObservationError(f'joint state: {", ".join(missing)} missing')
            groups.append([] if missing else [where[name] for name in wanted])
        if not groups[0] and not groups[1]:
            have = ', '.join(names[:9]) or 'nothing'
            raise ObservationError(f'joint state: {", ".join(self._arm)} missing; the message has {have}')
        self._layout = (names, groups[0], groups[1])
        return groups[0], groups[1]

    @staticmethod
    def _require_finite(values: Array, names: Sequence[str], what: str) -> None:
        for name, value in zip(names, values, strict=True):
            if not math.isfinite(value):
                raise ObservationError(f'joint state: {what} of {name} is {value}')


def robot_state_from_msg(message: JointState, embodiment: Embodiment) -> RobotState:
    """State of arm and gripper from one complete message; see :class:`JointReader`.

    Raises:
        ObservationError: as there, and when the message lacks the arm.
    """
    state = JointReader(embodiment).read(message)
    if state is None:
        raise ObservationError(f'joint state: {", ".join(embodiment.arm_joints)} missing')
    return state


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
        seconds, nanoseconds = divmod(round(float(t) * _SECOND), _SECOND)
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
    times = [p.time_from_start.sec + p.time_from_start.nanosec / _SECOND for p in message.points]
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


def gripper_width_from_msg(message: GripperCommand, embodiment: Embodiment) -> float:
    """Distance between the fingers [m].

    Raises:
        ObservationError: not finite, or outside what the gripper can do.
    """
    largest = embodiment.gripper.max_width
    if not math.isfinite(message.width) or not -1e-6 <= message.width <= largest + 1e-6:
        raise ObservationError(f'gripper command: width {message.width} m, allowed 0 .. {largest} m')
    return float(np.clip(message.width, 0.0, largest))
