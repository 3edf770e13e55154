"""What a message of a bag says, without ROS: pictures that decode when asked, joints, words, chunks."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import decoding
from ..datatypes import Image, Verdict
from ..errors import ObservationError
from ..geometry import Array
from ..imaging import MAX_DECODED

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
JOINT_STATE, CAMERA_INFO = 'sensor_msgs/msg/JointState', 'sensor_msgs/msg/CameraInfo'
STRING, CLOCK = 'std_msgs/msg/String', 'rosgraph_msgs/msg/Clock'
_OURS = 'instructvla_ros/msg/'
GRIPPER, CONTROLLER = f'{_OURS}GripperCommand', f'{_OURS}ControllerState'
PICTURES = (IMAGE, COMPRESSED)


class Picture:
    """An image message that is decoded by :meth:`rgb`. It holds the memory of its message, so keep few of them."""

    def __init__(self, message: Any, compressed: bool) -> None:
        self._message = message
        self.compressed = compressed
        self.format = str(message.format if compressed else message.encoding)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height [px]; of a compressed picture from its own header.

        Raises:
            ObservationError: there is no picture.
        """
        if not self.compressed:
            width, height = int(self._message.width), int(self._message.height)
            if width <= 0 or height <= 0 or width * height > MAX_DECODED or not len(self._message.data):
                raise ObservationError(f'{self.format or "image"}: {width} x {height} pixels with '
                                       f'{len(self._message.data)} bytes of data')  # fmt: skip
            return width, height
        from PIL import Image as Pillow

        try:
            with Pillow.open(io.BytesIO(bytes(self._message.data)), formats=('JPEG', 'PNG')) as image:
                width, height = image.size
        except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as err:
            raise ObservationError(
                f'compressed image of format {self.format!r} ({len(self._message.data)} bytes) cannot be decoded: {err}'
            ) from None
        if width * height > MAX_DECODED:
            raise ObservationError(f'compressed image of {width} x {height} pixels, allowed are {MAX_DECODED}')
        return width, height

    def rgb(self) -> Image:
        """Colour image (H, W, 3) uint8 RGB, the same pixels the nodes see.

        Raises:
            ObservationError: size and data do not fit together, not decodable, or no colours.
        """
        if self.compressed:
            return decoding.compressed_from_msg(self._message)
        self.size  # noqa: B018 - a picture made to exhaust memory is refused before it is decoded
        return decoding.image_from_msg(self._message)

    def encoded(self) -> bytes | None:
        """JPEG or PNG bytes as they were recorded, or None for a raw image."""
        return bytes(self._message.data) if self.compressed else None


@dataclass(frozen=True)
class Joints:
    """sensor_msgs/JointState. position [rad or m], velocity, effort: (n,), or empty when the driver sends none."""

    names: tuple[str, ...]
    position: Array
    velocity: Array
    effort: Array


@dataclass(frozen=True)
class Camera:
    """sensor_msgs/CameraInfo. k: (3, 3) intrinsic matrix [px]; d: distortion coefficients of ``model``."""

    k: Array
    width: int
    height: int
    d: Array
    model: str


@dataclass(frozen=True)
class GripperOrder:
    """instructvla_ros/GripperCommand: width [m], speed [m/s], max_effort [N]; 0: driver default."""

    width: float
    speed: float
    max_effort: float


@dataclass(frozen=True)
class ControllerSample:
    """instructvla_ros/ControllerState.

    Attributes:
        commanded_q, commanded_dq, measured_q, measured_dq: (n,) [rad], [rad/s].
        commanded_pose, measured_pose: (4, 4) tcp in the base frame [m].
        gripper_command: openness 0..1. step_index: -1 when none. observation_stamp_ns: of the chunk played [ns].
    """

    mode: int
    dry_run: bool
    joint_names: tuple[str, ...]
    commanded_q: Array
    commanded_dq: Array
    measured_q: Array
    measured_dq: Array
    commanded_pose: Array
    measured_pose: Array
    gripper_command: float
    chunk_id: str
    reasoning_id: str
    step_index: int
    observation_stamp_ns: int
    loop_period: float
    verdicts: tuple[Verdict, ...]


def _own(values: Any) -> Array:
    """A copy: a view would keep the whole chunk of the file in memory."""
    return np.array(values, dtype=np.float64)


def _joints(message: Any) -> Joints:
    return Joints(
        tuple(message.name), _own(message.position), _own(message.velocity), _own(message.effort)
    )


def _camera(message: Any) -> Camera:
    k, width, height = decoding.intrinsics_from_msg(message)
    return Camera(np.array(k), width, height, _own(message.d), str(message.distortion_model))


def _gripper(message: Any) -> GripperOrder:
    return GripperOrder(float(message.width), float(message.speed), float(message.max_effort))


def _controller(message: Any) -> ControllerSample:
    return ControllerSample(
        mode=int(message.mode),
        dry_run=bool(message.dry_run),
        joint_names=tuple(message.joint_names),
        commanded_q=_own(message.commanded_positions),
        commanded_dq=_own(message.commanded_velocities),
        measured_q=_own(message.measured_positions),
        measured_dq=_own(message.measured_velocities),
        commanded_pose=decoding.pose_from_msg(message.commanded_pose, 'commanded_pose'),
        measured_pose=decoding.pose_from_msg(message.measured_pose, 'measured_pose'),
        gripper_command=float(message.gripper_command),
        chunk_id=message.chunk_id,
        reasoning_id=message.reasoning_id,
        step_index=int(message.step_index),
        observation_stamp_ns=decoding.stamp_from_msg(message.observation_stamp),
        loop_period=float(message.loop_period),
        verdicts=tuple(decoding.verdict_from_msg(v) for v in message.verdicts),
    )


READERS: dict[str, Callable[[Any], Any]] = {
    IMAGE: lambda m: Picture(m, False),
    COMPRESSED: lambda m: Picture(m, True),
    JOINT_STATE: _joints,
    CAMERA_INFO: _camera,
    STRING: lambda m: str(m.data),
    CLOCK: lambda m: decoding.stamp_from_msg(m.clock),
    GRIPPER: _gripper,
    CONTROLLER: _controller,
    f'{_OURS}ActionChunk': decoding.chunk_from_msg,
    f'{_OURS}Reasoning': decoding.reasoning_from_msg,
    f'{_OURS}SimState': decoding.scene_from_msg,
}
"""Message type -> function that makes the value; of any other type the value is the message."""


def header_stamp(message: Any) -> int:
    """Header stamp of a message [ns]; the time itself for a clock, 0 for messages without one."""
    header = getattr(message, 'header', None)
    if header is not None:
        return decoding.stamp_from_msg(header.stamp)
    clock = getattr(message, 'clock', None)
    return decoding.stamp_from_msg(clock) if clock is not None else 0
