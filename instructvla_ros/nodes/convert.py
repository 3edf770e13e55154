"""ROS messages <-> the datatypes of layer 0; with convert_image the only place that knows both.

Whatever arrives is checked here: a message that cannot be used raises ObservationError or ChunkError with the numbers,
and nothing of it reaches the rest of the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, Vector3
from sensor_msgs.msg import CameraInfo, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from instructvla_ros.msg import ActionChunk as ActionChunkMsg
from instructvla_ros.msg import GripperCommand, SafetyVerdict, SimObject, SimState
from instructvla_ros.msg import Reasoning as ReasoningMsg

from ..datatypes import (
    STEP_DIM,
    ActionChunk,
    Reasoning,
    ReasoningKind,
    RobotState,
    SceneObject,
    SceneState,
    Verdict,
    VerdictAction,
)
from ..errors import ChunkError, ObservationError
from ..geometry import Array, DeltaFrame, RotationConvention, pose_from_xyz_quat, quat_from_pose
from ..settings import Embodiment

_SECOND = 1_000_000_000
_FRAMES: dict[int, DeltaFrame] = {ActionChunkMsg.FRAME_BASE: 'base', ActionChunkMsg.FRAME_TOOL: 'tool'}
_ROTATIONS: dict[int, RotationConvention] = {
    ActionChunkMsg.ROTATION_RPY: 'rpy',
    ActionChunkMsg.ROTATION_ROTVEC: 'rotvec',
}
_MAX_HORIZON = 1024


def stamp_to_msg(stamp_ns: int) -> Time:
    """builtin_interfaces/Time of nanoseconds.

    Raises:
        ObservationError: outside the 32-bit seconds of the message.
    """
    seconds, nanoseconds = divmod(int(stamp_ns), _SECOND)
    if not -(2**31) <= seconds < 2**31:
        raise ObservationError(f'stamp {stamp_ns} ns does not fit into builtin_interfaces/Time')
    return Time(sec=seconds, nanosec=nanoseconds)


def stamp_from_msg(stamp: Time) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return int(stamp.sec) * _SECOND + int(stamp.nanosec)


def pose_to_msg(pose: Array) -> Pose:
    """geometry_msgs/Pose of a (4, 4) pose [m]."""
    out = Pose()
    out.position.x, out.position.y, out.position.z = (float(v) for v in pose[:3, 3])
    q = out.orientation
    q.x, q.y, q.z, q.w = (float(v) for v in quat_from_pose(pose))
    return out


def pose_from_msg(message: Pose, name: str = 'pose') -> Array:
    """Pose (4, 4) of a geometry_msgs/Pose; the quaternion is normalised.

    Args:
        name: what the pose is, for the error.

    Raises:
        ObservationError: not finite, or the quaternion is (near) zero.
    """
    p, q = message.position, message.orientation
    values = (p.x, p.y, p.z, q.x, q.y, q.z, q.w)
    if not all(math.isfinite(v) for v in values):
        raise ObservationError(f'{name}: position and orientation must be finite, got {values}')
    norm = math.sqrt(q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w)
    if not 1e-3 < norm < 1e3:
        raise ObservationError(
            f'{name}: quaternion ({q.x}, {q.y}, {q.z}, {q.w}) has norm {norm:.3g}; a unit quaternion is needed '
            '(an unset orientation should be 0 0 0 1)'
        )
    return pose_from_xyz_quat(values[:3], values[3:])


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


def camera_info_to_msg(k: Array, width: int, height: int, frame_id: str, stamp_ns: int) -> CameraInfo:
    """CameraInfo of a pinhole camera without distortion.

    Args:
        k: (3, 3) intrinsic matrix [px].
    """
    message = CameraInfo(width=width, height=height, distortion_model='plumb_bob', d=[0.0] * 5)
    message.header.stamp = stamp_to_msg(stamp_ns)
    message.header.frame_id = frame_id
    message.k = np.asarray(k, dtype=np.float64).reshape(9)
    message.r = np.eye(3).reshape(9)
    message.p = np.hstack([np.asarray(k, dtype=np.float64), np.zeros((3, 1))]).reshape(12)
    return message


def intrinsics_from_msg(message: CameraInfo) -> tuple[Array, int, int]:
    """Intrinsic matrix (3, 3) [px], width and height.

    Raises:
        ObservationError: uncalibrated (focal length 0), not finite, or without a size.
    """
    k = np.asarray(message.k, dtype=np.float64).reshape(3, 3)
    if not np.all(np.isfinite(k)) or k[0, 0] <= 0 or k[1, 1] <= 0 or message.width == 0 or message.height == 0:
        raise ObservationError(
            f'camera info of {message.header.frame_id!r}: not calibrated '
            f'({message.width} x {message.height}, focal lengths {k[0, 0]}, {k[1, 1]})'
        )
    return k, int(message.width), int(message.height)


def chunk_to_msg(chunk: ActionChunk) -> ActionChunkMsg:
    """ActionChunk message."""
    message = ActionChunkMsg(
        id=chunk.id,
        reasoning_id=chunk.reasoning_id,
        instruction=chunk.instruction,
        policy=chunk.policy,
        checkpoint_revision=chunk.checkpoint_revision,
        observation_stamp=stamp_to_msg(chunk.observation_stamp_ns),
        model_latency=float(chunk.model_latency),
        step_period=float(chunk.step_period),
        delta_frame=next(k for k, v in _FRAMES.items() if v == chunk.delta_frame),
        rotation=next(k for k, v in _ROTATIONS.items() if v == chunk.rotation),
        horizon=chunk.horizon,
        steps=np.asarray(chunk.steps, dtype=np.float64).ravel().tolist(),
        reference_pose=pose_to_msg(chunk.reference_pose),
        done=bool(chunk.done),
    )
    message.header.stamp = stamp_to_msg(chunk.created_stamp_ns)
    message.header.frame_id = chunk.frame_id
    return message


def chunk_from_msg(message: ActionChunkMsg) -> ActionChunk:
    """Chunk of a message. Non-finite steps pass: the safety ladder names them.

    Raises:
        ChunkError: any other field is malformed, with the numbers.
    """
    name = f'chunk {message.id or "without id"}'
    if not message.id:
        raise ChunkError('chunk without id')
    if not message.header.frame_id:
        raise ChunkError(f'{name}: header.frame_id is empty, the robot base frame is needed')
    if not 1 <= message.horizon <= _MAX_HORIZON:
        raise ChunkError(f'{name}: horizon {message.horizon}, allowed 1 .. {_MAX_HORIZON}')
    steps = np.array(message.steps, dtype=np.float64)
    if steps.size != message.horizon * STEP_DIM:
        raise ChunkError(
            f'{name}: {steps.size} numbers in steps, horizon {message.horizon} needs {message.horizon * STEP_DIM}'
        )
    if message.delta_frame not in _FRAMES:
        raise ChunkError(f'{name}: delta_frame {message.delta_frame}, allowed 0 (base) or 1 (tool)')
    if message.rotation not in _ROTATIONS:
        raise ChunkError(f'{name}: rotation {message.rotation}, allowed 0 (rpy) or 1 (rotvec)')
    if not math.isfinite(message.model_latency) or message.model_latency < 0.0:
        raise ChunkError(f'{name}: model_latency {message.model_latency} s')
    try:
        reference = pose_from_msg(message.reference_pose, 'reference_pose')
    except ObservationError as err:
        raise ChunkError(f'{name}: {err}') from None
    return ActionChunk(
        id=message.id,
        observation_stamp_ns=stamp_from_msg(message.observation_stamp),
        created_stamp_ns=stamp_from_msg(message.header.stamp),
        step_period=float(message.step_period),
        steps=steps.reshape(message.horizon, STEP_DIM),
        frame_id=message.header.frame_id,
        reference_pose=reference,
        delta_frame=_FRAMES[message.delta_frame],
        rotation=_ROTATIONS[message.rotation],
        instruction=message.instruction,
        policy=message.policy,
        reasoning_id=message.reasoning_id,
        checkpoint_revision=message.checkpoint_revision,
        model_latency=float(message.model_latency),
        done=bool(message.done),
    )


def reasoning_to_msg(reasoning: Reasoning, frame_id: str = '') -> ReasoningMsg:
    """Reasoning message; ``frame_id`` is the camera it speaks about."""
    message = ReasoningMsg(
        id=reasoning.id,
        instruction=reasoning.instruction,
        text=reasoning.text,
        kind=reasoning.kind.value,
        tokens=reasoning.tokens,
        latency=float(reasoning.latency),
        first_chunk_id=reasoning.first_chunk_id,
        final=reasoning.final,
        source=reasoning.source,
    )
    message.header.stamp = stamp_to_msg(reasoning.stamp_ns)
    message.header.frame_id = frame_id
    return message


def reasoning_from_msg(message: ReasoningMsg) -> Reasoning:
    """Sentence of a message.

    Raises:
        ObservationError: no id, or an unknown kind.
    """
    if not message.id:
        raise ObservationError('reasoning without id')
    kinds = {kind.value: kind for kind in ReasoningKind}
    if message.kind not in kinds:
        raise ObservationError(f'reasoning {message.id}: kind {message.kind}, allowed {sorted(kinds)}')
    return Reasoning(
        id=message.id,
        stamp_ns=stamp_from_msg(message.header.stamp),
        instruction=message.instruction,
        text=message.text,
        kind=kinds[message.kind],
        tokens=int(message.tokens),
        latency=float(message.latency),
        first_chunk_id=message.first_chunk_id,
        final=bool(message.final),
        source=message.source,
    )


def verdict_to_msg(verdict: Verdict) -> SafetyVerdict:
    """SafetyVerdict message."""
    return SafetyVerdict(
        rule=verdict.rule,
        action=verdict.action.value,
        subject=verdict.subject,
        value=float(verdict.value),
        limit=float(verdict.limit),
        unit=verdict.unit,
        text=verdict.text,
        chunk_id=verdict.chunk_id,
    )


def verdict_from_msg(message: SafetyVerdict) -> Verdict:
    """Verdict of a message.

    Raises:
        ObservationError: unknown action.
    """
    actions = {action.value: action for action in VerdictAction}
    if message.action not in actions:
        raise ObservationError(f'verdict {message.rule}: action {message.action}, allowed {sorted(actions)}')
    return Verdict(
        message.rule,
        actions[message.action],
        message.subject,
        float(message.value),
        float(message.limit),
        message.unit,
        message.text,
        message.chunk_id,
    )


def scene_to_msg(scene: SceneState, frame_id: str) -> SimState:
    """SimState message; ``frame_id`` is the robot base frame."""
    message = SimState(
        task=scene.task,
        instruction=scene.instruction,
        seed=scene.seed,
        episode=scene.episode,
        progress=float(scene.progress),
        success=bool(scene.success),
        elapsed=float(scene.elapsed),
        time_limit=float(scene.time_limit),
        target=scene.target,
        destination=scene.destination,
        tcp_pose=pose_to_msg(scene.tcp_pose),
        gripper=float(scene.gripper),
        held_object=scene.held,
    )
    message.header.stamp = stamp_to_msg(scene.stamp_ns)
    message.header.frame_id = frame_id
    for thing in scene.objects.values():
        extent = Vector3(**dict(zip('xyz', (float(v) for v in thing.extent), strict=True)))
        message.objects.append(
            SimObject(
                name=thing.name,
                category=thing.category,
                color=thing.color,
                size=thing.size,
                pose=pose_to_msg(thing.pose),
                extent=extent,
                opening=float(thing.opening),
            )
        )
    return message


def scene_from_msg(message: SimState) -> SceneState:
    """Ground truth of a message.

    Raises:
        ObservationError: a pose is not valid (named), or two objects share a name.
    """
    objects = {
        thing.name: SceneObject(
            thing.name,
            thing.category,
            thing.color,
            thing.size,
            pose_from_msg(thing.pose, f'pose of {thing.name}'),
            np.array([thing.extent.x, thing.extent.y, thing.extent.z]),
            float(thing.opening),
        )
        for thing in message.objects
    }
    if len(objects) != len(message.objects):
        raise ObservationError('simulator state: two objects share a name')
    return SceneState(
        stamp_ns=stamp_from_msg(message.header.stamp),
        objects=objects,
        tcp_pose=pose_from_msg(message.tcp_pose, 'tcp_pose'),
        gripper=float(message.gripper),
        held=message.held_object,
        target=message.target,
        destination=message.destination,
        task=message.task,
        instruction=message.instruction,
        seed=int(message.seed),
        episode=int(message.episode),
        progress=float(message.progress),
        success=bool(message.success),
        elapsed=float(message.elapsed),
        time_limit=float(message.time_limit),
    )


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
