"""Two-state gripper with hysteresis, so that a wavering openness does not chatter."""

from __future__ import annotations

from ..settings import Gripper


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
