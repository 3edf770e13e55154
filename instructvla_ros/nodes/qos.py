"""Quality of service of every topic, in one place.

A best-effort subscriber accepts reliable and best-effort publishers, a reliable one only reliable publishers. So the
publishers here are reliable (any subscriber matches) and subscribers of sensors are best effort with a queue of one:
only the newest message matters to a control loop.
"""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy


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

CHUNK_LEASE = 0.18
"""Silence of its process after which the middleware calls a chunk publisher dead [s]."""

CHUNK = _profile(4)
"""Action chunks: none may be lost unsaid, a late one is refused by its age."""

CHUNK_PUBLISHER = _profile(4)
CHUNK_PUBLISHER.liveliness = LivelinessPolicy.AUTOMATIC
CHUNK_PUBLISHER.liveliness_lease_duration = Duration(seconds=CHUNK_LEASE)
"""Publishers of chunks prove that their process lives, so that a killed policy is noticed before its chunk ends."""

COMMAND = _profile(1)
"""Joint trajectories: reliable because joint_trajectory_controller asks for it; each replaces the last."""

EVENT = _profile(10)
"""Gripper commands, instructions, diagnostics."""

STATE = _profile(100)
"""Controller state: a verdict is in one message only, so a subscriber that is busy for 2 s must not lose it."""

LATCHED = _profile(1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Robot description: who comes late gets the last one."""

REASONING = _profile(10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Sentences of the model: who comes late gets the last ten."""

HISTORY = _profile(5000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""What a player of a recording tells piece by piece, five times a second: who comes late gets all of it."""

TRANSFORMS = _profile(100)
"""/tf, as tf2_ros has it."""


def chunk_executor(lease: float) -> QoSProfile:
    """Subscriber that moves an arm: takes chunks only from publishers that prove that their process lives.

    Args:
        lease: silence after which it is told that one died [s]; 0: any publisher will do. Publisher and subscriber
            have to be in different processes: Fast DDS does not assert liveliness inside one.
    """
    profile = _profile(4)
    if lease > 0.0:
        profile.liveliness = LivelinessPolicy.AUTOMATIC
        profile.liveliness_lease_duration = Duration(seconds=lease)
    return profile
