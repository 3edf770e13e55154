"""Pinhole cameras of the simulator: where they are and what they see. Optical frames follow REP 103 and REP 104."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError, suggest
from ..geometry import Array, look_at, xyz_rpy_from_pose
from ..settings import Embodiment, Sim, SimCamera

FLIP = np.diag([1.0, -1.0, -1.0])
"""Between an OpenGL camera (x right, y up, looking along -z) and an optical frame (x right, y down, z forward)."""


@dataclass(frozen=True)
class CameraModel:
    """Undistorted pinhole camera.

    Attributes:
        view: its name. width, height: of the image [px].
        K: (3, 3) intrinsics [px], the centre of the top left pixel is (0, 0).
        T_base_optical: (4, 4) pose of the optical frame in the robot base frame [m].
    """

    view: str
    width: int
    height: int
    K: Array
    T_base_optical: Array

    def project(self, points: Array) -> tuple[Array, Array]:
        """Pixels (N, 2) and depths (N,) [m] of points (N, 3) in the base frame; depth <= 0 is behind the camera."""
        local = (np.atleast_2d(points) - self.T_base_optical[:3, 3]) @ self.T_base_optical[:3, :3]
        depth = local[:, 2]
        with np.errstate(divide='ignore', invalid='ignore'):
            uv = (local @ self.K.T)[:, :2] / depth[:, None]
        return uv, depth


def intrinsics(camera: SimCamera) -> Array:
    """K (3, 3) [px] from the vertical field of view; square pixels, principal point in the middle."""
    f = 0.5 * camera.height / math.tan(0.5 * math.radians(camera.fovy))
    return np.array([[f, 0.0, 0.5 * (camera.width - 1)], [0.0, f, 0.5 * (camera.height - 1)], [0.0, 0.0, 1.0]])


def optical_pose(camera: SimCamera) -> Array:
    """Pose (4, 4) of the optical frame in the frame of ``camera.parent`` [m].

    Raises:
        ConfigError: position and target coincide, or the view is along ``up``.
    """
    try:
        return look_at(camera.position, camera.target, camera.up)
    except ValueError as err:
        raise ConfigError(f'camera {camera.view!r}: {err}') from None


def find_camera(cameras: tuple[SimCamera, ...], view: str) -> SimCamera:
    """The camera of a view name.

    Raises:
        ConfigError: no such view; with the nearest names.
    """
    for camera in cameras:
        if camera.view == view:
            return camera
    raise ConfigError(f'no camera {view!r} in the simulator.{suggest(view, [c.view for c in cameras])}')


def description_arguments(sim: Sim, embodiment: Embodiment) -> tuple[tuple[str, str], ...]:
    """Arguments for ``urdf/franka.urdf.xacro`` that put its optical frames where the simulator's cameras are.

    A view whose frame is ``<name>_color_optical_frame`` sets ``<name>_xyz`` and ``<name>_rpy``.
    """
    out: list[tuple[str, str]] = []
    for camera in sim.cameras:
        view = embodiment.views.get(camera.view)
        if view is None or not view.frame_id.endswith('_color_optical_frame'):
            continue
        mount = view.frame_id.removesuffix('_color_optical_frame')
        values = xyz_rpy_from_pose(optical_pose(camera))
        out.append((f'{mount}_xyz', ' '.join(f'{v:.9g}' for v in values[:3])))
        out.append((f'{mount}_rpy', ' '.join(f'{v:.9g}' for v in values[3:])))
    return tuple(out)
