"""Two-state gripper with hysteresis, so that a wavering openness does not chatter; what the end of a command means."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import Gripper

EMPTY = 0.002  # m: fingers nearer than this hold nothing


class GripperSwitch:
    """Opens above ``open_above``, closes below ``close_below``, and keeps its state in between."""

    def __init__(self, gripper: Gripper) -> None:
        self._gripper = gripper
        self.value = 1.0

    def reset(self, openness: float) -> None:
        """Adopt the state nearest to a measured openness 0..1, without a command."""
        self.value = 1.0 if openness >= 0.5 * (self._gripper.close_below + self._gripper.open_above) else 0.0

    def update(self, openness: float) -> bool:
        """Feed the openness 0..1 that is asked for; True when the state changed and a command is due."""
        if self.value > 0.5 and openness < self._gripper.close_below:
            self.value = 0.0
            return True
        if self.value < 0.5 and openness > self._gripper.open_above:
            self.value = 1.0
            return True
        return False


@dataclass(frozen=True)
class GripperOutcome:
    """How a gripper command ended.

    Attributes:
        failed: it did not do what was asked. holding: something is between the fingers. text: in words.
    """

    failed: bool
    holding: bool
    text: str


def judge_gripper(closing: bool, success: bool, width: float | None, gripper: Gripper) -> GripperOutcome:
    """What the end of an action means.

    Drivers call a closing that ends before the width that was asked for a failure (franka_gripper aborts beyond its
    ``default_grasp_epsilon``): for a hand that closes on something, that is the success.

    Args:
        closing: fingers were told to close. success: what the driver says. width: between the fingers [m], None when
            unknown.
    """
    if closing:
        if width is None:
            return GripperOutcome(False, False, 'closed' if success else 'closed on something, or not at all')
        if width <= EMPTY:
            return GripperOutcome(False, False, 'closed, nothing between the fingers')
        if width >= gripper.max_width - EMPTY and not success:
            return GripperOutcome(True, False, f'did not close: the fingers are {1000 * width:.0f} mm apart')
        return GripperOutcome(False, True, f'holds something {1000 * width:.0f} mm wide')
    if success:
        return GripperOutcome(False, False, 'open')
    at = 'at an unknown width' if width is None else f'{1000 * width:.0f} mm apart'
    return GripperOutcome(True, False, f'did not open: the fingers are {at}')
