"""Where the links and cameras of a robot description are, for given joints; forward kinematics of the whole URDF."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pinocchio as pin

from ..errors import SetupError, suggest
from ..geometry import Array


class LinkFrames:
    """Poses of links relative to one of them. Not thread-safe.

    Args:
        urdf: text. base: link the poses are relative to.
        mounted: further frames by name, each with its link and its pose (4, 4) [m] on it, as from
            ``camera_view.mounts``; one that the description has too is taken from here.

    Raises:
        SetupError: the text is no URDF, or has no such link.
    """

    def __init__(self, urdf: str, base: str, mounted: Mapping[str, tuple[str, Array]] | None = None) -> None:
        try:
            self._model = pin.buildModelFromXML(urdf)
        except (ValueError, RuntimeError) as err:
            raise SetupError(f'the robot description cannot be read: {err}') from None
        self._data = self._model.createData()
        self.base = base
        self._mounted = dict(mounted or {})
        described = [f.name for f in self._model.frames if f.type == pin.FrameType.BODY]
        self._described = tuple(dict.fromkeys(described))
        self.links = tuple(dict.fromkeys([*described, *self._mounted]))
        """Names of all links."""
        for link, _ in self._mounted.values():
            self._index(link)
        self._base = self._index(base)
        self._at = {
            name: joint.idx_q
            for name, joint in zip(self._model.names, self._model.joints, strict=True)
            if joint.nq == 1
        }
        self._q = pin.neutral(self._model)

    def _index(self, link: str) -> int:
        if link not in self._described:
            raise SetupError(f'the robot description has no link {link!r}.{suggest(link, self._described)}')
        return int(self._model.getFrameId(link, pin.FrameType.BODY))

    def is_fixed(self, link: str) -> bool:
        """Whether no joint lies between the base and a link.

        Raises:
            SetupError: no such link.
        """
        link, _ = self._mounted.get(link, (link, None))
        frames = self._model.frames
        return bool(frames[self._index(link)].parentJoint == frames[self._base].parentJoint)

    def set_joints(self, positions: Mapping[str, float]) -> None:
        """Move joints [rad or m]; names that the description lacks and numbers that are not finite are ignored."""
        for name, value in positions.items():
            if name in self._at and np.isfinite(value):
                self._q[self._at[name]] = value

    def poses(self) -> dict[str, Array]:
        """T_base_link (4, 4) [m] of every link other than the base."""
        self._update()
        return {link: self._pose(link) for link in self.links if link != self.base}

    def pose(self, link: str) -> Array:
        """T_base_link (4, 4) [m].

        Raises:
            SetupError: no such link.
        """
        self._update()
        return self._pose(link)

    def _update(self) -> None:
        pin.framesForwardKinematics(self._model, self._data, self._q)

    def _pose(self, link: str) -> Array:
        parent, on_parent = self._mounted.get(link, (link, None))
        relative = self._data.oMf[self._base].inverse() * self._data.oMf[self._index(parent)]
        pose = np.asarray(relative.homogeneous, dtype=np.float64)
        return pose if on_parent is None else pose @ on_parent
