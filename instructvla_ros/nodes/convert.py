"""ROS messages <-> the datatypes of layer 0; with convert_image the only place that knows both.

Whatever arrives is checked here: a message that cannot be used raises ObservationError or ChunkError with the numbers,
and nothing of it reaches the rest of the package.
"""

from __future__ import annotations

import math

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, Vector3
from sensor_msgs.msg import CameraInfo

from instructvla_ros.msg import ActionChunk as ActionChunkMsg
from instructvla_ros.msg import Reasoning as ReasoningMsg
from instructvla_ros.msg import SafetyVerdict, SimObject, SimState

from ..datatypes import (
    STEP_DIM,
    ActionChunk,
    Reasoning,
    ReasoningKind,
    SceneObject,
    SceneState,
    Verdict,
    VerdictAction,
)
from ..errors import ChunkError, ObservationError
from ..geometry import Array, DeltaFrame, RotationConvention, pose_from_xyz_quat, quat_from_pose

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
