"""Messages to the datatypes of layer 0, by their fields: the same code reads what a node hears and what a bag holds.

A message is any object with the fields of the ROS message, from rclpy or decoded from a bag; ROS is not needed.
Whatever arrives is checked: a message that cannot be used raises ObservationError or ChunkError with the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import imaging
from .datatypes import (
    STEP_DIM,
    ActionChunk,
    Image,
    Reasoning,
    ReasoningKind,
    RobotState,
    SceneObject,
    SceneState,
    Verdict,
    VerdictAction,
)
from .errors import ChunkError, ObservationError
from .geometry import Array, DeltaFrame, RotationConvention, pose_from_xyz_quat
from .settings import Embodiment

SECOND = 1_000_000_000
FRAMES: dict[int, DeltaFrame] = {0: 'base', 1: 'tool'}
"""ActionChunk.delta_frame by its number in the message."""
ROTATIONS: dict[int, RotationConvention] = {0: 'rpy', 1: 'rotvec'}
"""ActionChunk.rotation by its number in the message."""
_MAX_HORIZON = 1024


def stamp_from_msg(stamp: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return int(stamp.sec) * SECOND + int(stamp.nanosec)


def pose_from_msg(message: Any, name: str = 'pose') -> Array:
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


def intrinsics_from_msg(message: Any) -> tuple[Array, int, int]:
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


def chunk_from_msg(message: Any) -> ActionChunk:
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
    if message.delta_frame not in FRAMES:
        raise ChunkError(f'{name}: delta_frame {message.delta_frame}, allowed 0 (base) or 1 (tool)')
    if message.rotation not in ROTATIONS:
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
        delta_frame=FRAMES[message.delta_frame],
        rotation=ROTATIONS[message.rotation],
        instruction=message.instruction,
        policy=message.policy,
        reasoning_id=message.reasoning_id,
        checkpoint_revision=message.checkpoint_revision,
        model_latency=float(message.model_latency),
        done=bool(message.done),
    )


def reasoning_from_msg(message: Any) -> Reasoning:
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


def verdict_from_msg(message: Any) -> Verdict:
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


def scene_from_msg(message: Any) -> SceneState:
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

    def read(self, message: Any) -> RobotState | None:
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
            self._openness = min(max(sum(travel.tolist()) / len(fingers) / self._half_width, 0.0), 1.0)
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
        numbers = values.tolist()
        if all(map(math.isfinite, numbers)):
            return
        for name, value in zip(names, numbers, strict=True):
            if not math.isfinite(value):
                raise ObservationError(f'joint state: {what} of {name} is {value}')


def robot_state_from_msg(message: Any, embodiment: Embodiment) -> RobotState:
    """State of arm and gripper from one complete message; see :class:`JointReader`.

    Raises:
        ObservationError: as there, and when the message lacks the arm.
    """
    state = JointReader(embodiment).read(message)
    if state is None:
        raise ObservationError(f'joint state: {", ".join(embodiment.arm_joints)} missing')
    return state


def gripper_width_from_msg(message: Any, embodiment: Embodiment) -> float:
    """Distance between the fingers [m].

    Raises:
        ObservationError: not finite, or outside what the gripper can do.
    """
    largest = embodiment.gripper.max_width
    if not math.isfinite(message.width) or not -1e-6 <= message.width <= largest + 1e-6:
        raise ObservationError(f'gripper command: width {message.width} m, allowed 0 .. {largest} m')
    return float(np.clip(message.width, 0.0, largest))


def image_from_msg(message: Any) -> Image:
    """Colour image (H, W, 3) uint8 RGB of a sensor_msgs/Image; plain rgb8 shares the memory of the message.

    Raises:
        ObservationError: size, step and data do not fit together, or the encoding holds no colours.
    """
    return imaging.to_rgb(
        message.data, message.height, message.width, message.step, message.encoding, bool(message.is_bigendian)
    )


def compressed_from_msg(message: Any) -> Image:
    """Colour image (H, W, 3) uint8 RGB of a sensor_msgs/CompressedImage, JPEG or PNG.

    Raises:
        ObservationError: not decodable, or a depth image.
    """
    return imaging.decode(message.data, message.format)
