"""SE(3) on homogeneous 4x4 matrices and SciPy rotations.

Conventions, stated once: lengths in m, angles in rad, quaternions are xyzw, ``rpy`` is fixed-axis
roll-pitch-yaw (SciPy's extrinsic ``'xyz'``, REP 103), a pose ``T_a_b`` maps points of frame b into frame a.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

DeltaFrame = Literal['base', 'tool']
RotationConvention = Literal['rpy', 'rotvec']
Array = NDArray[np.float64]


def pose(xyz: ArrayLike, rotation: Rotation | None = None) -> Array:
    """Homogeneous (4, 4) pose from a position [m] and a rotation (identity when omitted)."""
    out = np.eye(4)
    out[:3, 3] = np.asarray(xyz, dtype=np.float64)
    if rotation is not None:
        out[:3, :3] = rotation.as_matrix()
    return out


def pose_from_xyz_rpy(xyz_rpy: ArrayLike) -> Array:
    """Pose (4, 4) from (6,) x y z [m], roll pitch yaw [rad]."""
    v = np.asarray(xyz_rpy, dtype=np.float64)
    return pose(v[:3], Rotation.from_euler('xyz', v[3:6]))


def xyz_rpy_from_pose(matrix: Array) -> Array:
    """(6,) x y z [m], roll pitch yaw [rad] of a pose (4, 4)."""
    rpy = Rotation.from_matrix(matrix[:3, :3]).as_euler('xyz')
    return np.concatenate([matrix[:3, 3], rpy])


def pose_from_xyz_quat(xyz: ArrayLike, quat_xyzw: ArrayLike) -> Array:
    """Pose (4, 4) from a position [m] and a quaternion xyzw (normalised here; a zero one raises ValueError)."""
    return pose(xyz, Rotation.from_quat(np.asarray(quat_xyzw, dtype=np.float64)))


def quat_from_pose(matrix: Array) -> Array:
    """Quaternion (4,) xyzw of a pose (4, 4)."""
    return np.asarray(Rotation.from_matrix(matrix[:3, :3]).as_quat(), dtype=np.float64)


def inverse(matrix: Array) -> Array:
    """Inverse of a pose (4, 4)."""
    out = np.eye(4)
    out[:3, :3] = matrix[:3, :3].T
    out[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return out


def _rotation(values: Array, convention: RotationConvention) -> Rotation:
    if convention == 'rpy':
        return Rotation.from_euler('xyz', values)
    if convention == 'rotvec':
        return Rotation.from_rotvec(values)
    raise ValueError(f"rotation convention {convention!r}: use 'rpy' or 'rotvec'")


def apply_delta(
    matrix: Array, delta: ArrayLike, frame: DeltaFrame = 'base', convention: RotationConvention = 'rpy'
) -> Array:
    """Pose (4, 4) moved by a delta (6,) dx dy dz [m], rotation [rad]; or N of both, (N, 4, 4) and (N, 6).

    frame 'base': p' = p + d, R' = dR R. frame 'tool': p' = p + R d, R' = R dR.
    """
    d = np.asarray(delta, dtype=np.float64)
    rot = _rotation(d[..., 3:6], convention).as_matrix()
    turn = matrix[..., :3, :3]
    out = np.zeros(matrix.shape)
    out[..., 3, 3] = 1.0
    if frame == 'base':
        out[..., :3, 3] = matrix[..., :3, 3] + d[..., :3]
        out[..., :3, :3] = rot @ turn
    elif frame == 'tool':
        out[..., :3, 3] = matrix[..., :3, 3] + (turn @ d[..., :3, None])[..., 0]
        out[..., :3, :3] = turn @ rot
    else:
        raise ValueError(f"delta frame {frame!r}: use 'base' or 'tool'")
    return out


def delta_between(
    start: Array, end: Array, frame: DeltaFrame = 'base', convention: RotationConvention = 'rpy'
) -> Array:
    """Delta (6,) that :func:`apply_delta` needs to take ``start`` to ``end``."""
    d = end[:3, 3] - start[:3, 3]
    if frame == 'base':
        rot = end[:3, :3] @ start[:3, :3].T
    elif frame == 'tool':
        d = start[:3, :3].T @ d
        rot = start[:3, :3].T @ end[:3, :3]
    else:
        raise ValueError(f"delta frame {frame!r}: use 'base' or 'tool'")
    r = Rotation.from_matrix(rot)
    angles = r.as_euler('xyz') if convention == 'rpy' else r.as_rotvec()
    return np.concatenate([d, angles])


def integrate(
    start: Array, deltas: ArrayLike, frame: DeltaFrame = 'base', convention: RotationConvention = 'rpy'
) -> Array:
    """Poses (H, 4, 4) reached after each of the deltas (H, >=6), starting from ``start``."""
    rows = np.atleast_2d(np.asarray(deltas, dtype=np.float64))
    if frame not in ('base', 'tool'):
        raise ValueError(f"delta frame {frame!r}: use 'base' or 'tool'")
    out = np.zeros((len(rows), 4, 4))
    out[:, 3, 3] = 1.0
    turns = _rotation(rows[:, 3:6], convention).as_matrix()
    position, turn = start[:3, 3], start[:3, :3]
    for k, row in enumerate(rows):
        if frame == 'base':
            position, turn = position + row[:3], turns[k] @ turn
        else:
            position, turn = position + turn @ row[:3], turn @ turns[k]
        out[k, :3, 3], out[k, :3, :3] = position, turn
    return out


def rotation_angle(a: Array, b: Array) -> float:
    """Angle [rad] between the orientations of two poses or rotation matrices."""
    rel = a[:3, :3].T @ b[:3, :3]
    return float(np.linalg.norm(Rotation.from_matrix(rel).as_rotvec()))


def interpolate(a: Array, b: Array, s: float) -> Array:
    """Pose between ``a`` (s = 0) and ``b`` (s = 1): straight line and constant-axis rotation."""
    rel = Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).as_rotvec()
    out = np.eye(4)
    out[:3, 3] = (1.0 - s) * a[:3, 3] + s * b[:3, 3]
    out[:3, :3] = a[:3, :3] @ Rotation.from_rotvec(s * rel).as_matrix()
    return out


def look_at(eye: ArrayLike, target: ArrayLike, up: ArrayLike = (0.0, 0.0, 1.0)) -> Array:
    """Pose (4, 4) of a camera optical frame (REP 103: x right, y down, z forward) at ``eye`` facing ``target`` [m]."""
    e, t, u = (np.asarray(v, dtype=np.float64) for v in (eye, target, up))
    z = t - e
    norm = np.linalg.norm(z)
    if norm < 1e-9:
        raise ValueError('look_at: eye and target are the same point')
    z /= norm
    x = np.cross(z, u)
    if np.linalg.norm(x) < 1e-9:
        raise ValueError('look_at: up is parallel to the viewing direction')
    x /= np.linalg.norm(x)
    out = np.eye(4)
    out[:3, :3] = np.column_stack([x, np.cross(z, x), z])
    out[:3, 3] = e
    return out
