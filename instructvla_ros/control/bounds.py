"""The numbers the safety ladder works with, computed once from the embodiment and the settings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..geometry import Array
from ..settings import Control, Embodiment, Safety


@dataclass(frozen=True)
class Bounds:
    """Bounds of the commanded motion; every array is per arm joint unless said otherwise.

    Attributes:
        joints: names. lower, upper: positions with the margin taken off [rad].
        velocity [rad/s], acceleration [rad/s^2], jerk [rad/s^3]: scaled limits. The speed and the acceleration are
            lowered where a joint could not come to rest within ``safety.stop_time`` otherwise.
        box_lower, box_upper: (3,) tcp box [m]; its floor is the table plane plus clearance when that is higher.
        period: of the controller [s]. frame_id: base frame that chunks have to name. safety: the settings.
    """

    joints: tuple[str, ...]
    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array
    jerk: Array
    box_lower: Array
    box_upper: Array
    period: float
    frame_id: str
    safety: Safety

    @classmethod
    def from_settings(cls, embodiment: Embodiment, control: Control) -> Bounds:
        """Bounds for an embodiment under the control settings.

        Raises:
            ConfigError: a margin, scale or box leaves no room to move.
        """
        safety, limits = control.safety, embodiment.limits
        lower = np.asarray(limits.lower, dtype=np.float64) + safety.position_margin
        upper = np.asarray(limits.upper, dtype=np.float64) - safety.position_margin
        for name, lo, hi in zip(embodiment.arm_joints, lower, upper, strict=True):
            if not lo < hi:
                raise ConfigError(f'safety.position_margin {safety.position_margin} rad leaves {name} no room')
        jerk = safety.jerk_scale * np.asarray(limits.jerk, dtype=np.float64)
        acceleration = safety.acceleration_scale * np.asarray(limits.acceleration, dtype=np.float64)
        velocity = safety.velocity_scale * np.asarray(limits.velocity, dtype=np.float64)
        if min(jerk.min(), acceleration.min(), velocity.min()) <= 0.0:
            raise ConfigError('limits: velocity, acceleration and jerk of every joint have to be above 0')
        period = 1.0 / control.rate
        # A stop from speed v with the acceleration still rising takes at most v / a + 2 a / j; two periods pass first.
        time = safety.stop_time - 2.0 * period
        if time <= 0.0:
            raise ConfigError(
                f'safety.stop_time {safety.stop_time} s has to be above two controller periods ({2.0 * period} s)'
            )
        acceleration = np.minimum(acceleration, 0.25 * jerk * time)
        velocity = np.minimum(velocity, acceleration * (time - 2.0 * acceleration / jerk))
        box_lower = np.asarray(safety.workspace_lower, dtype=np.float64).copy()
        box_upper = np.asarray(safety.workspace_upper, dtype=np.float64)
        box_lower[2] = max(box_lower[2], safety.table_height + safety.table_clearance)
        if not box_lower[2] < box_upper[2]:
            raise ConfigError(
                f'safety: the table plane plus clearance ({box_lower[2]} m) is above the workspace ({box_upper[2]} m)'
            )
        return cls(
            tuple(embodiment.arm_joints),
            lower,
            upper,
            velocity,
            acceleration,
            jerk,
            box_lower,
            box_upper,
            period,
            embodiment.base_frame,
            safety,
        )
