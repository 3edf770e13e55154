"""Where the cameras of a recording are: from its own messages, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .. import camera_view, config, resources
from ..config import option
from ..control.frames import LinkFrames
from ..errors import ConfigError, ObservationError, SetupError
from ..geometry import Array, pose_from_xyz_rpy
from ..settings import Embodiment
from .replay_source import CameraEvent, DescriptionEvent, Event, FrameTreeEvent, StateEvent

MOST_LINKS = 32


@dataclass(frozen=True)
class CameraPose:
    """Calibration of one view: pinhole in pixels of an image of ``size``, and its optical frame on a link."""

    focal: tuple[float, float] = option((1.0, 1.0), 'fx, fy', unit='px')
    centre: tuple[float, float] = option((0.0, 0.0), 'cx, cy', unit='px')
    size: tuple[int, int] = option((640, 480), 'width, height of the image these numbers are for', unit='px')
    link: str = option('', 'link the camera is fixed to; empty: the base frame')
    xyz: tuple[float, float, float] = option((0.0, 0.0, 0.0), 'optical frame (z forward) on the link', unit='m')
    rpy: tuple[float, float, float] = option((0.0, 0.0, 0.0), 'the same, fixed-axis roll pitch yaw', unit='rad')

    @property
    def intrinsics(self) -> Array:
        """(3, 3) [px]."""
        (fx, fy), (cx, cy) = self.focal, self.centre
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Calibration:
    """Cameras by view name (the file given with --calibration)."""

    cameras: dict[str, CameraPose] = option({}, 'calibration by view')


def load_calibration(file: str) -> Calibration:
    """Read a calibration file; '' gives none.

    Raises:
        ConfigError: not readable, or a key or value is not allowed.
    """
    return config.load(Calibration, file) if file else Calibration()


class Cameras:
    """Collects what a recording says about its cameras and answers where a view looks from at this moment.

    A file wins over ``views.*.mount`` of the embodiment, which wins over the robot description in the recording, which
    wins over its ``/tf_static``. Links between the base and a camera on the hand come from the joints. Numbers for the
    camera's own picture become those for what the policy sees of it.
    """

    def __init__(self, embodiment: Embodiment, calibration: Calibration | None = None) -> None:
        self._robot = embodiment
        self._given: Mapping[str, CameraPose] = (calibration or Calibration()).cameras
        unknown = sorted(set(self._given) - set(embodiment.views))
        if unknown:
            raise ConfigError(
                f'calibration of {", ".join(unknown)}: {embodiment.name} has the views {", ".join(embodiment.views)}'
            )
        self._frames = {name: view.frame_id for name, view in embodiment.views.items()}
        self._intrinsics: dict[str, tuple[Array, tuple[int, int]]] = {}
        self._parents: dict[str, tuple[str, Array]] = {}
        self._described: LinkFrames | None = None
        self._own: LinkFrames | None = None
        self._joints: dict[str, float] = {}

    def take(self, event: Event) -> None:
        """Remember what an event says about the cameras."""
        if isinstance(event, StateEvent):
            count = len(self._robot.arm_joints)
            if len(event.state.q) >= count:
                self._joints = dict(zip(self._robot.arm_joints, event.state.q[:count].tolist(), strict=True))
        elif isinstance(event, CameraEvent):
            self._intrinsics[event.view] = (event.intrinsics, event.size)
            if event.frame_id:
                self._frames[event.view] = event.frame_id
        elif isinstance(event, FrameTreeEvent):
            self._parents[event.child] = (event.parent, event.pose)
        elif isinstance(event, DescriptionEvent) and self._described is None:
            try:
                self._described = LinkFrames(event.urdf, self._robot.base_frame)
            except SetupError:
                self._described = None  # a description of another robot says nothing about this one

    def intrinsics(self, view: str, width: int, height: int) -> Array | None:
        """(3, 3) from the optical frame to homogeneous pixels of what the policy sees, of this size; or None."""
        if view in self._given:
            k, size = self._given[view].intrinsics, self._given[view].size
        elif view in self._intrinsics:
            k, size = self._intrinsics[view]
        else:
            return None
        seen = self._robot.views[view]
        try:
            k, size = camera_view.intrinsics(seen, k, *size), camera_view.size(seen, *size)
        except ObservationError:
            return None  # numbers for a picture that cannot be cropped that way are not about this one
        scale = np.diag([width / size[0], height / size[1], 1.0])
        return np.asarray(scale @ k)

    def pose(self, view: str) -> Array | None:
        """T_base_optical (4, 4) [m] now, or None when the recording does not say."""
        given = self._given.get(view)
        if given is not None:
            link = self._link(given.link) if given.link else np.eye(4)
            return None if link is None else link @ pose_from_xyz_rpy((*given.xyz, *given.rpy))
        mounted = camera_view.mount(self._robot.views[view]) if view in self._robot.views else None
        if mounted is not None:
            link = self._link(self._robot.views[view].mount.link)
            return None if link is None else link @ mounted
        frame = self._frames.get(view, '')
        if frame and self._described is not None and frame in self._described.links:
            self._described.set_joints(self._joints)
            return self._described.pose(frame)
        pose = np.eye(4)
        for _ in range(MOST_LINKS):
            if frame not in self._parents:
                return None
            frame, step = self._parents[frame]
            pose = step @ pose
            link = self._link(frame)
            if link is not None:
                return link @ pose
        return None

    def _link(self, name: str) -> Array | None:
        """Pose of a link of the robot itself."""
        if name == self._robot.base_frame:
            return np.eye(4)
        if self._own is None:
            urdf = resources.robot_description(self._robot.name, self._robot.description)
            self._own = LinkFrames(urdf, self._robot.base_frame)
        for known in (self._described, self._own):
            if known is not None and name in known.links:
                known.set_joints(self._joints)
                return known.pose(name)
        return None
