"""A small recorded demonstration: messages that can be written to a bag and fed to the live synchroniser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from instructvla_ros.data.rebag import BagWriter
from instructvla_ros.settings import Embodiment, Gripper, JointLimits, View

T0 = 1_700_000_000_000_000_000
MS = 1_000_000
FRONT, WRIST, JOINTS = '/front/image', '/wrist/image', '/joint_states'
NAMES = ('j1', 'j2', 'j3', 'j4', 'j5', 'j6', 'j7')


def robot(**changes: object) -> Embodiment:
    """An arm with two cameras whose kinematics are easy to follow (see :func:`forward`)."""
    fields: dict[str, object] = {
        'name': 'fr3',
        'base_frame': 'base',
        'arm_joints': NAMES,
        'home': (0.0,) * 7,
        'limits': JointLimits((-3.0,) * 7, (3.0,) * 7, (2.0,) * 7, (5.0,) * 7, (50.0,) * 7),
        'gripper': Gripper(joints=('f1', 'f2'), max_width=0.08),
        'views': {'front': View(topic=FRONT), 'wrist': View(topic=WRIST)},
    }
    return Embodiment(**{**fields, **changes})  # type: ignore[arg-type]


def forward(q: np.ndarray) -> np.ndarray:
    """T_base_tcp: the first three joints move along x, y, z, the fourth turns about z."""
    c, s = np.cos(q[3]), np.sin(q[3])
    out = np.eye(4)
    out[:2, :2] = [[c, -s], [s, c]]
    out[:3, 3] = q[:3]
    return out


def joint_angles(t: float) -> np.ndarray:
    """A smooth motion."""
    return np.array([0.3 + 0.1 * t, 0.05 * np.sin(2 * t), 0.2 + 0.02 * t, 0.3 * t, 0.1, 0.2, 0.3])


def picture(k: int, shade: int, size: tuple[int, int] = (32, 24)) -> np.ndarray:
    """Different for every frame and view."""
    rng = np.random.default_rng(1000 * shade + k)
    return rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


Edit = Callable[[str, int, int], 'int | None']
"""(topic, number, stamp) -> stamp to use, or None to leave the message out."""


def messages(
    seconds: float = 2.0, camera: float = 15.0, joints: float = 100.0, wrist_delay: float = 0.008
) -> Iterator[tuple[int, str, int]]:
    """(stamp [ns], topic, number) in the order of arrival, which is that of the stamps."""
    events = [(T0 + round(k / camera * 1e9), FRONT, k) for k in range(int(seconds * camera))]
    events += [(T0 + round((k / camera + wrist_delay) * 1e9), WRIST, k) for k in range(int(seconds * camera))]
    events += [(T0 + round((k / joints - 0.02) * 1e9), JOINTS, k) for k in range(int((seconds + 0.1) * joints))]
    return iter(sorted(events))


def write(
    path: Path,
    *,
    seconds: float = 2.0,
    camera: float = 15.0,
    storage: str = 'mcap',
    compression: str = '',
    edit: Edit = lambda topic, number, stamp: stamp,
    size: Callable[[str, int], tuple[int, int]] = lambda topic, number: (32, 24),
    position: Callable[[int, np.ndarray], np.ndarray] = lambda number, q: q,
    before: Callable[[BagWriter], None] = lambda bag: None,
    after: Callable[[BagWriter], None] = lambda bag: None,
    skip: tuple[str, ...] = (),
    lag: int = 0,
    jpeg: bool = False,
) -> Path:
    """Write the demonstration as a bag.

    Args:
        edit: header stamps. size: of a picture. position: of the seven joints. lag: time of recording minus stamp [ns].
    """
    with BagWriter(path, storage, compression) as bag:
        before(bag)
        for stamp, topic, number in messages(seconds, camera):
            edited = edit(topic, number, stamp)
            if topic in skip or edited is None:
                continue
            if topic == JOINTS:
                t = (stamp - T0) * 1e-9
                width = 0.08 if t < 1.0 else 0.03
                q = [*position(number, joint_angles(t)), width / 2, width / 2]
                bag.joints(topic, edited, (*NAMES, 'f1', 'f2'), q, [0.1] * 7 + [0.0] * 2, recorded_ns=stamp + lag)
            elif jpeg:
                from instructvla_ros.imaging import encode_jpeg

                shown = picture(number, 1 if topic == FRONT else 2, size(topic, number))
                bag.compressed(topic, edited, encode_jpeg(shown, 90), recorded_ns=stamp + lag)
            else:
                shown = picture(number, 1 if topic == FRONT else 2, size(topic, number))
                bag.image(topic, edited, shown, recorded_ns=stamp + lag)
        after(bag)
    return path
