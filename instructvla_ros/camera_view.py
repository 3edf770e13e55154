"""From the picture of a camera to the picture the policy sees: crop, then flip, then turn, as ``views`` say.

The live nodes, the reader of bags, the replay and the rollouts in the simulator all call :func:`prepare`, so a policy
is deployed on the pictures it was trained on. Recordings keep the camera's own pictures and camera infos.

Pixels are (u, v) with the centre of the top left one at (0, 0). Flip and turn cannot be said with a focal length and a
centre alone: :func:`intrinsics` gives a general (3, 3) matrix that goes with the unchanged optical frame of the camera.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .datatypes import Image
from .errors import ConfigError, ObservationError
from .geometry import Array, pose_from_xyz_rpy
from .settings import View


def is_plain(view: View) -> bool:
    """Whether the policy sees the camera's picture as it is."""
    return not view.crop and view.flip == 'none' and view.rotate == 0


def changed(views: Mapping[str, View]) -> list[str]:
    """Names of the views that are cropped, flipped or turned."""
    return [name for name, view in views.items() if not is_plain(view)]


def prepare(view: View, image: Image) -> Image:
    """What the policy sees of a camera picture (H, W, 3); the picture itself when the view changes nothing.

    Raises:
        ObservationError: the crop does not lie inside the picture, with the numbers.
    """
    if is_plain(view):
        return image
    x, y, width, height = _part(view, image.shape[1], image.shape[0])
    seen = image[y : y + height, x : x + width]
    if view.flip in ('horizontal', 'both'):
        seen = seen[:, ::-1]
    if view.flip in ('vertical', 'both'):
        seen = seen[::-1]
    return np.ascontiguousarray(np.rot90(seen, -(view.rotate // 90)))  # numpy turns the other way round


def size(view: View, width: int, height: int) -> tuple[int, int]:
    """Width and height [px] of the prepared picture of a camera that gives ``width`` x ``height``.

    Raises:
        ObservationError: as :func:`prepare`.
    """
    _, _, width, height = _part(view, width, height)
    return (width, height) if view.rotate % 180 == 0 else (height, width)


def mapping(view: View, width: int, height: int) -> Array:
    """Homogeneous (3, 3) from pixels of the camera's picture of this size to pixels of the prepared one.

    Raises:
        ObservationError: as :func:`prepare`.
    """
    x, y, width, height = _part(view, width, height)
    out = np.array([[1.0, 0.0, -x], [0.0, 1.0, -y], [0.0, 0.0, 1.0]])
    if view.flip in ('horizontal', 'both'):
        out = np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ out
    if view.flip in ('vertical', 'both'):
        out = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, height - 1.0], [0.0, 0.0, 1.0]]) @ out
    for _ in range(view.rotate // 90):
        out = np.array([[0.0, -1.0, height - 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) @ out
        width, height = height, width
    return out


def intrinsics(view: View, k: Array, width: int, height: int) -> Array:
    """(3, 3) from points in the camera's optical frame to homogeneous pixels of the prepared picture.

    Args:
        k: (3, 3) pinhole matrix [px] of the camera's picture, which has ``width`` x ``height`` pixels.

    Raises:
        ObservationError: as :func:`prepare`.
    """
    return np.asarray(mapping(view, width, height) @ np.asarray(k, np.float64))


def mount(view: View) -> Array | None:
    """Pose (4, 4) [m] of the optical frame on ``view.mount.link``; None when the robot description says where it is."""
    if not view.mount.link:
        return None
    return pose_from_xyz_rpy((*view.mount.xyz, *view.mount.rpy))


def mounts(views: Mapping[str, View]) -> dict[str, tuple[str, Array]]:
    """Optical frame -> its link and its pose (4, 4) [m] on it, of the views that say so themselves.

    Raises:
        ConfigError: such a view has no ``frame_id``, or two of them share one.
    """
    out: dict[str, tuple[str, Array]] = {}
    for name, view in views.items():
        pose = mount(view)
        if pose is None:
            continue
        if not view.frame_id or view.frame_id in out:
            why = 'is used by another view' if view.frame_id else 'is empty'
            raise ConfigError(f'views.{name}.mount says where the camera is, but views.{name}.frame_id {why}')
        out[view.frame_id] = (view.mount.link, pose)
    return out


def _part(view: View, width: int, height: int) -> tuple[int, int, int, int]:
    if not view.crop:
        return 0, 0, width, height
    x, y, w, h = view.crop
    if x + w > width or y + h > height:
        raise ObservationError(
            f'{view.topic or "view"}: the crop {list(view.crop)} (x, y, width, height) reaches to ({x + w}, {y + h}), '
            f'the picture has {width} x {height} pixels; correct views.*.crop or the resolution of the camera'
        )
    return x, y, w, h
