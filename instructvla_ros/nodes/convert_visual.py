"""Shapes and poses to visualization_msgs, nav_msgs and transforms: what RViz shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from geometry_msgs.msg import Point, PoseStamped, TransformStamped
from nav_msgs.msg import Path
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from ..geometry import Array, quat_from_pose
from ..visual import Shape
from .convert import pose_to_msg, stamp_to_msg


def marker_to_msg(shape: Shape, frame_id: str) -> Marker:
    """Marker (action ADD) in a frame; stamp 0, so that RViz takes the newest transform it has."""
    message = Marker(ns=shape.namespace, id=shape.id, type=shape.kind.value, action=Marker.ADD, text=shape.text)
    message.header.frame_id = frame_id
    position = message.pose.position
    position.x, position.y, position.z = (float(v) for v in shape.position)
    message.pose.orientation.w = 1.0
    message.scale.x, message.scale.y, message.scale.z = (float(v) for v in shape.scale)
    message.color = _color(shape.color)
    message.points = [Point(x=x, y=y, z=z) for x, y, z in np.asarray(shape.points, dtype=np.float64).tolist()]
    if shape.colors is not None:
        message.colors = [_color(row) for row in np.asarray(shape.colors, dtype=np.float64).tolist()]
    return message


def markers_to_msg(
    shapes: Iterable[Shape], gone: Iterable[tuple[str, int]], frame_id: str, clear: bool = False
) -> MarkerArray:
    """MarkerArray that shows ``shapes`` and deletes the markers ``gone``.

    Args:
        clear: first delete whatever an earlier publisher of the topic has left.
    """
    markers = []
    if clear:
        everything = Marker(action=Marker.DELETEALL)
        everything.header.frame_id = frame_id
        everything.pose.orientation.w = 1.0
        markers.append(everything)
    for namespace, number in gone:
        message = Marker(ns=namespace, id=number, action=Marker.DELETE)
        message.header.frame_id = frame_id
        message.pose.orientation.w = 1.0
        markers.append(message)
    markers += [marker_to_msg(shape, frame_id) for shape in shapes]
    return MarkerArray(markers=markers)


def pose_stamped_to_msg(pose: Array, stamp_ns: int, frame_id: str) -> PoseStamped:
    """PoseStamped of a (4, 4) pose [m]."""
    message = PoseStamped(pose=pose_to_msg(pose))
    message.header.stamp = stamp_to_msg(stamp_ns)
    message.header.frame_id = frame_id
    return message


def path_to_msg(poses: list[PoseStamped], frame_id: str) -> Path:
    """Path whose header carries the stamp of its last pose; an empty one removes the path from the screen."""
    message = Path(poses=poses)
    message.header.frame_id = frame_id
    if poses:
        message.header.stamp = poses[-1].header.stamp
    return message


def transforms_to_msg(poses: Mapping[str, Array], parent: str, stamp_ns: int) -> list[TransformStamped]:
    """One transform per link from ``T_parent_link`` (4, 4) [m]."""
    out = []
    for child, pose in poses.items():
        message = TransformStamped(child_frame_id=child)
        message.header.stamp = stamp_to_msg(stamp_ns)
        message.header.frame_id = parent
        t, r = message.transform.translation, message.transform.rotation
        t.x, t.y, t.z = (float(v) for v in pose[:3, 3])
        r.x, r.y, r.z, r.w = (float(v) for v in quat_from_pose(pose))
        out.append(message)
    return out


def _color(rgba: Iterable[float]) -> ColorRGBA:
    r, g, b, a = (float(v) for v in rgba)
    return ColorRGBA(r=r, g=g, b=b, a=a)
