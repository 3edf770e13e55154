"""Quality of service of every topic, in one place.

A best-effort subscriber accepts reliable and best-effort publishers, a reliable one only reliable publishers. So the
publishers here are reliable (any subscriber matches) and subscribers of sensors are best effort with a queue of one:
only the newest message matters to a control loop.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(
    depth: int,
    reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE,
    durability: DurabilityPolicy = DurabilityPolicy.VOLATILE,
) -> QoSProfile:
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability, durability=durability)


SENSOR = _profile(1, ReliabilityPolicy.BEST_EFFORT)
"""Subscribers of images, camera infos, joint states, simulator state; publisher and subscribers of the clock."""

SENSOR_PUBLISHER = _profile(1)
"""Publishers of images, camera infos, joint states and simulator state."""

CHUNK = _profile(4)
"""Action chunks: none may be lost unsaid, a late one is refused by its age."""

COMMAND = _profile(1)
"""Joint trajectories: reliable because joint_trajectory_controller asks for it; each replaces the last."""

EVENT = _profile(10)
"""Gripper commands, instructions, diagnostics, controller state."""

LATCHED = _profile(1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Robot description: who comes late gets the last one."""

REASONING = _profile(10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Sentences of the model: who comes late gets the last ten."""
