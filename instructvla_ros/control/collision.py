"""Self-collision and table check on the primitives of the robot description (Pinocchio and Coal, about 20 us)."""

from __future__ import annotations

import numpy as np
import pinocchio as pin

from ..geometry import Array
from ..settings import Embodiment

try:  # Coal was called hpp-fcl before Pinocchio 3.
    import coal
except ImportError:  # pragma: no cover - depends on the installed Pinocchio
    import hppfcl as coal

NEIGHBOURS = 3  # bodies at most this many joints apart touch by construction, or cannot meet
TABLE = 'table'


class CollisionCheck:
    """Names what collides at joint positions; '' when nothing does. Not thread-safe.

    The table is a half-space under ``table_height`` [m] in the base frame. The base and the first link stand in it;
    the fingers, which have to reach objects on it, are left to the tcp's table plane.

    Args:
        embodiment: joints to move; the others are locked. urdf: description text with collision geometry.
        table_height: [m], or None for no table.
    """

    def __init__(self, embodiment: Embodiment, urdf: str, table_height: float | None = None) -> None:
        full = pin.buildModelFromXML(urdf)
        geometry = pin.buildGeomFromUrdfString(full, urdf, pin.GeometryType.COLLISION)
        locked = [full.getJointId(n) for n in list(full.names)[1:] if n not in embodiment.arm_joints]
        self.model, self.geometry = pin.buildReducedModel(full, geometry, locked, pin.neutral(full))
        # Adding the table moves the objects in memory: keep values, not references.
        bodies = [(o.name, o.parentJoint) for o in self.geometry.geometryObjects]
        pairs = [
            (i, j)
            for i in range(len(bodies))
            for j in range(i + 1, len(bodies))
            if abs(bodies[i][1] - bodies[j][1]) > NEIGHBOURS
        ]
        if table_height is not None:
            base = full.frames[full.getFrameId(embodiment.base_frame)].placement
            plane = coal.Halfspace(np.array([0.0, 0.0, 1.0]), float(table_height))
            table = self.geometry.addGeometryObject(pin.GeometryObject(TABLE, 0, base, plane))
            pairs += [(i, table) for i, (name, joint) in enumerate(bodies) if joint >= 2 and 'finger' not in name]
        for i, j in pairs:
            self.geometry.addCollisionPair(pin.CollisionPair(i, j))
        self.data, self.geometry_data = self.model.createData(), self.geometry.createData()

    def __call__(self, q: Array) -> str:
        """What collides at joint positions (n,) [rad], such as ``'fr3_link2_0 and fr3_hand_1'``, or ''."""
        if not pin.computeCollisions(self.model, self.data, self.geometry, self.geometry_data, q, True):
            return ''
        for k, pair in enumerate(self.geometry.collisionPairs):
            if self.geometry_data.collisionResults[k].isCollision():
                objects = self.geometry.geometryObjects
                return f'{objects[pair.first].name} and {objects[pair.second].name}'
        return 'two bodies'
