"""Backends turn tcp poses into joint positions. ``direct`` uses the URDF and our own kinematics, no MoveIt."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..geometry import Array
from ..settings import Embodiment
from .bounds import Bounds
from .collision import CollisionCheck
from .kinematics import IkStep, Kinematics


class Backend(Protocol):
    """What the controller needs from whoever knows the arm. Joint arrays are (n,) [rad], poses (4, 4) [m]."""

    @property
    def reference(self) -> Array:
        """Joint reference that :meth:`track` moves."""

    def forward(self, q: Array) -> Array:
        """Tcp pose at joint positions."""

    def position(self, q: Array) -> Array:
        """Tcp position (3,) at joint positions."""

    def reset(self, q: Array) -> None:
        """Start the joint reference at q."""

    def track(self, target: Array, dt: float, speed: float = 1.0) -> IkStep:
        """Move the joint reference one period towards a tcp pose, with at most this share of the velocity bounds."""

    def collision(self, q: Array) -> str:
        """What collides at q, '' when free or unknown."""


class DirectBackend:
    """Differential inverse kinematics on the URDF, seeded by the previous solution, with self-collision check.

    Args:
        embodiment: the arm. bounds: its motion bounds. kinematics: to share; made from the embodiment when omitted.
        check_collisions: False leaves the collision rung out.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        bounds: Bounds,
        kinematics: Kinematics | None = None,
        check_collisions: bool = True,
    ) -> None:
        source = kinematics or Kinematics(embodiment)
        self.kinematics = source.limited(bounds.lower, bounds.upper, bounds.velocity)
        self._reference = np.array(embodiment.home, dtype=np.float64)
        self._check: CollisionCheck | None = None
        if check_collisions:
            self._check = CollisionCheck(embodiment, source.urdf, bounds.safety.table_height)

    @property
    def reference(self) -> Array:
        """Joint reference (n,) [rad]."""
        return self._reference

    def forward(self, q: Array) -> Array:
        """Tcp pose (4, 4) at q."""
        return self.kinematics.forward(q)

    def position(self, q: Array) -> Array:
        """Tcp position (3,) at q."""
        return self.kinematics.position(q)

    def reset(self, q: Array) -> None:
        """Start the joint reference at q."""
        self._reference = np.array(q, dtype=np.float64)

    def track(self, target: Array, dt: float, speed: float = 1.0) -> IkStep:
        """One differential step of the reference; it stays where it is when the step stalls."""
        step = self.kinematics.step(self._reference, target, dt, speed)
        self._reference = step.q
        return step

    def collision(self, q: Array) -> str:
        """What collides at q."""
        return self._check(q) if self._check is not None else ''
