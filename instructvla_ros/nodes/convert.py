"""The datatypes of layer 0 as ROS messages, and back; with convert_image the only place that knows both.

The way back is :mod:`instructvla_ros.decoding`, which checks whatever arrives: a message that cannot be used raises
ObservationError or ChunkError with the numbers, and nothing of it reaches the rest of the package.
"""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, Vector3
from sensor_msgs.msg import CameraInfo

from instructvla_ros.msg import ActionChunk as ActionChunkMsg
from instructvla_ros.msg import Reasoning as ReasoningMsg
from instructvla_ros.msg import SafetyVerdict, SimObject, SimState

from ..datatypes import ActionChunk, Reasoning, SceneState, Verdict
from ..decoding import FRAMES, ROTATIONS, SECOND
from ..decoding import chunk_from_msg as chunk_from_msg
from ..decoding import intrinsics_from_msg as intrinsics_from_msg
from ..decoding import pose_from_msg as pose_from_msg
from ..decoding import reasoning_from_msg as reasoning_from_msg
from ..decoding import scene_from_msg as scene_from_msg
from ..decoding import stamp_from_msg as stamp_from_msg
from ..decoding import verdict_from_msg as verdict_from_msg
from ..errors import ObservationError
from ..geometry import Array, quat_from_pose


def stamp_to_msg(stamp_ns: int) -> Time:
    """builtin_interfaces/Time of nanoseconds.

    Raises:
        ObservationError: outside the 32-bit seconds of the message.
    """
    seconds, nanoseconds = divmod(int(stamp_ns), SECOND)
    if not -(2**31) <= seconds < 2**31:
        raise ObservationError(f'stamp {stamp_ns} ns does not fit into builtin_interfaces/Time')
    return Time(sec=seconds, nanosec=nanoseconds)


def pose_to_msg(pose: Array) -> Pose:
    """geometry_msgs/Pose of a (4, 4) pose [m]."""
    out = Pose()
    out.position.x, out.position.y, out.position.z = (float(v) for v in pose[:3, 3])
    q = out.orientation
    q.x, q.y, q.z, q.w = (float(v) for v in quat_from_pose(pose))
    return out


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
        delta_frame=next(k for k, v in FRAMES.items() if v == chunk.delta_frame),
        rotation=next(k for k, v in ROTATIONS.items() if v == chunk.rotation),
        horizon=chunk.horizon,
        steps=np.asarray(chunk.steps, dtype=np.float64).ravel().tolist(),
        reference_pose=pose_to_msg(chunk.reference_pose),
        done=bool(chunk.done),
    )
    message.header.stamp = stamp_to_msg(chunk.created_stamp_ns)
    message.header.frame_id = chunk.frame_id
    return message


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
