"""The contracts between the rooms of this package: frozen, plain numpy, no ROS.

Stamps are integer nanoseconds of the clock that stamped the sensor messages. Lengths in m, angles in rad,
quaternions xyzw, images uint8 RGB (H, W, 3). The arrays inside are treated as read-only.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from .errors import ChunkError, ObservationError
from .geometry import Array, DeltaFrame, RotationConvention

Image = NDArray[np.uint8]
STEP_DIM = 7
PROPRIO_DIM = 8


def new_id(prefix: str) -> str:
    """Short unique id such as ``chunk-1f0c9a2b7d3e``."""
    return f'{prefix}-{uuid.uuid4().hex[:12]}'


@dataclass(frozen=True)
class RobotState:
    """What the arm reports.

    Attributes:
        stamp_ns: header stamp of the joint state [ns].
        q: joint positions (n,) [rad].
        dq: joint velocities (n,) [rad/s].
        gripper: openness, 0 closed .. 1 open.
    """

    stamp_ns: int
    q: Array
    dq: Array
    gripper: float


@dataclass(frozen=True)
class SceneObject:
    """One object of the simulated scene (ground truth, never available on a robot).

    Attributes:
        name: unique in the scene. category: cube, ball, cylinder, bowl, plate, drawer.
        color, size: empty when the object has none.
        pose: (4, 4) of its centre in the robot base frame [m].
        extent: (3,) full size along its own axes [m].
        opening: how far a drawer is open [m], else 0.
    """

    name: str
    category: str
    color: str
    size: str
    pose: Array
    extent: Array
    opening: float = 0.0


@dataclass(frozen=True)
class SceneState:
    """Ground truth of the simulator at one instant; ``privileged`` in an :class:`Observation`.

    Attributes:
        stamp_ns: simulated time [ns].
        objects: by name.
        tcp_pose: (4, 4) measured tool centre point in the base frame [m].
        gripper: measured openness 0..1.
        held: name of the object between the fingers, or ''.
        target, destination: names of the objects the current task is about, or ''.
        task, instruction, seed, episode: of the last reset.
        progress: 0..1; success: the task's predicate holds now.
        elapsed, time_limit: [s].
    """

    stamp_ns: int
    objects: Mapping[str, SceneObject]
    tcp_pose: Array
    gripper: float
    held: str = ''
    target: str = ''
    destination: str = ''
    task: str = ''
    instruction: str = ''
    seed: int = 0
    episode: int = 0
    progress: float = 0.0
    success: bool = False
    elapsed: float = 0.0
    time_limit: float = 0.0


@dataclass(frozen=True)
class Observation:
    """Everything a policy may look at, synchronised.

    Attributes:
        stamp_ns: header stamp of the oldest view used [ns].
        views: camera name -> uint8 RGB (H, W, 3).
        proprio: (8,) tcp xyz [m], roll pitch yaw [rad], 0 (pad), gripper openness [0..1], in ``frame_id``.
        q, dq: joint positions [rad] and velocities [rad/s], (n,).
        frame_id: robot base frame.
        instruction: what the person asked for.
        view_stamps_ns: header stamp of each view [ns].
        privileged: simulator ground truth, or None; a policy that reads it cannot run on a robot.
    """

    stamp_ns: int
    views: Mapping[str, Image]
    proprio: Array
    q: Array
    dq: Array
    frame_id: str
    instruction: str
    view_stamps_ns: Mapping[str, int] = field(default_factory=dict)
    privileged: SceneState | None = None

    def __post_init__(self) -> None:
        if self.proprio.shape != (PROPRIO_DIM,) or not np.all(np.isfinite(self.proprio)):
            raise ObservationError(
                f'proprio must be {PROPRIO_DIM} finite numbers (xyz, rpy, pad, openness), got {self.proprio!r}'
            )
        for name, image in self.views.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise ObservationError(
                    f'view {name!r} must be uint8 RGB (H, W, 3), got {image.dtype} {image.shape}'
                )


class ReasoningKind(Enum):
    """What a sentence of the model is."""

    PLAN = 0
    ANSWER = 1
    CAPTION = 2


@dataclass(frozen=True)
class Reasoning:
    """Words of the model, tied by ``id`` to the chunks they condition.

    Attributes:
        stamp_ns: header stamp of the image it speaks about [ns].
        latency: time to generate it [s].
        tokens: number of generated tokens; 0 when no model generated it.
        source: name of the policy.
    """

    id: str
    stamp_ns: int
    instruction: str
    text: str
    kind: ReasoningKind = ReasoningKind.PLAN
    tokens: int = 0
    latency: float = 0.0
    first_chunk_id: str = ''
    final: bool = True
    source: str = ''


@dataclass(frozen=True)
class ActionChunk:
    """H future end-effector steps predicted from one observation.

    Attributes:
        id: unique. observation_stamp_ns: of the oldest view used [ns]. created_stamp_ns: when it was made [ns].
        step_period: [s]. Step k is meant for the interval that begins at observation + k * step_period.
        steps: (H, 7) dx dy dz [m], rotation delta [rad], gripper openness [0 closed .. 1 open].
        delta_frame: 'base' or 'tool'. rotation: 'rpy' or 'rotvec'. frame_id: robot base frame.
        reference_pose: (4, 4) tcp pose at the observation in ``frame_id`` [m].
        model_latency: [s]. reasoning_id: sentence that conditioned it or ''. done: the policy thinks it is finished.

    Raises:
        ChunkError: shape, period or ids are not valid. Non-finite numbers are left to the safety ladder,
            which has to name them.
    """

    id: str
    observation_stamp_ns: int
    created_stamp_ns: int
    step_period: float
    steps: Array
    frame_id: str
    reference_pose: Array
    delta_frame: DeltaFrame = 'base'
    rotation: RotationConvention = 'rpy'
    instruction: str = ''
    policy: str = ''
    reasoning_id: str = ''
    checkpoint_revision: str = ''
    model_latency: float = 0.0
    done: bool = False

    def __post_init__(self) -> None:
        if self.steps.ndim != 2 or self.steps.shape[1] != STEP_DIM or len(self.steps) == 0:
            raise ChunkError(f'chunk {self.id}: steps must be (H >= 1, {STEP_DIM}), got {self.steps.shape}')
        if not (np.isfinite(self.step_period) and self.step_period > 0):
            raise ChunkError(f'chunk {self.id}: step_period must be positive seconds, got {self.step_period}')
        if self.delta_frame not in ('base', 'tool') or self.rotation not in ('rpy', 'rotvec'):
            raise ChunkError(
                f'chunk {self.id}: delta_frame {self.delta_frame!r} / rotation {self.rotation!r}; '
                "allowed are 'base' or 'tool' and 'rpy' or 'rotvec'"
            )

    @property
    def horizon(self) -> int:
        """Number of steps H."""
        return len(self.steps)

    @property
    def duration(self) -> float:
        """H * step_period [s]."""
        return self.horizon * self.step_period


@dataclass(frozen=True)
class Ask:
    """One observation to act on. think: say a new sentence about it first."""

    observation: Observation
    think: bool = False


@dataclass(frozen=True)
class Act:
    """The sentence about an observation, None where none was asked for or there are no words, and the chunk."""

    said: Reasoning | None
    chunk: ActionChunk


class VerdictAction(Enum):
    """What the safety ladder did about one thing."""

    PASSED = 0
    SCALED = 1
    CLIPPED = 2
    REFUSED = 3
    HELD = 4


@dataclass(frozen=True)
class Verdict:
    """One decision of the safety ladder, with the numbers.

    Attributes:
        rule: rung name. subject: joint, axis or input. value, limit: in ``unit``. text: one sentence.
    """

    rule: str
    action: VerdictAction
    subject: str = ''
    value: float = float('nan')
    limit: float = float('nan')
    unit: str = ''
    text: str = ''
    chunk_id: str = ''


@dataclass(frozen=True)
class JointCommand:
    """What goes to the arm for one controller period.

    Attributes:
        stamp_ns: time of the command [ns].
        q, dq: positions (n,) [rad] and velocities (n,) [rad/s] to be reached ``horizon`` seconds after the stamp.
        gripper: openness 0..1.
        ddq: acceleration (n,) [rad/s^2] at the same time, or None when unknown; shapes the stop tail.
    """

    stamp_ns: int
    q: Array
    dq: Array
    gripper: float
    horizon: float
    ddq: Array | None = None
