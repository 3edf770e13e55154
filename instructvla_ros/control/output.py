"""What the controller says after every period."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..datatypes import JointCommand, Verdict
from ..geometry import Array


class Mode(IntEnum):
    """Same numbers as ControllerState.msg."""

    DISABLED = 0
    HOLDING = 1
    TRACKING = 2
    DECELERATING = 3
    STOPPED = 4


@dataclass(frozen=True)
class ControllerOutput:
    """Result of one period.

    Attributes:
        command: to send, or None: send nothing. commanded_pose, measured_pose: tcp (4, 4) in the base frame [m];
            identity before the first joint state.
        gripper: commanded openness 0 or 1. gripper_changed: a gripper command is due now.
        mode, chunk_id, reasoning_id, step_index (-1: none), observation_stamp_ns (0: none): what is being played.
        q, dq: commanded (n,) [rad], [rad/s], also in dry-run; None before the first joint state.
        verdicts: what the ladder refused, scaled, clipped or held since the previous period.
    """

    command: JointCommand | None
    commanded_pose: Array
    measured_pose: Array
    gripper: float
    gripper_changed: bool
    mode: Mode
    chunk_id: str = ''
    reasoning_id: str = ''
    step_index: int = -1
    observation_stamp_ns: int = 0
    verdicts: tuple[Verdict, ...] = ()
    q: Array | None = None
    dq: Array | None = None
