"""The planning scene of the stand-ins for MoveIt: boxes, self-collision and straight plans with our own kinematics."""

from __future__ import annotations

from typing import Any

import coal
import numpy as np
import pinocchio as pin
from moveit_msgs.msg import MoveItErrorCodes, PlanningScene
from rclpy.duration import Duration
from trajectory_msgs.msg import JointTrajectoryPoint

from instructvla_ros.control.bounds import Bounds
from instructvla_ros.control.collision import CollisionCheck
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.control.route import straight_route
from instructvla_ros.geometry import Array
from instructvla_ros.nodes.convert import pose_from_msg
from instructvla_ros.settings import Control, Embodiment


class Cell:
    """An arm among boxes.

    Attributes:
        scene: as MoveIt would send it. q: joints of the arm now [rad].
    """

    def __init__(self, embodiment: Embodiment, kinematics: Kinematics) -> None:
        self.embodiment, self.kinematics = embodiment, kinematics
        self._check = CollisionCheck(embodiment, kinematics.urdf)
        self._model, self._geometry = self._check.model, self._check.geometry
        self._data = self._model.createData()
        self._placements = self._geometry.createData()
        self.scene = PlanningScene()
        self.q = np.array(embodiment.home)

    def own_contact(self, q: Array) -> str:
        """What of the arm touches itself at q."""
        return self._check(q)

    def inside_limits(self, q: Array) -> bool:
        limits = self.embodiment.limits
        return bool((q >= limits.lower).all() and (q <= limits.upper).all())

    def _allowed(self, a: str, b: str) -> bool:
        matrix = self.scene.allowed_collision_matrix
        names = list(matrix.entry_names)
        return a in names and b in names and bool(matrix.entry_values[names.index(a)].enabled[names.index(b)])

    def contacts(self, q: Array) -> list[tuple[str, str, float]]:
        """Bodies that touch at q: the arm with itself, the arm with the scene."""
        found = []
        own = self.own_contact(q)
        if own:
            found.append((*own.split(' and '), 0.001))
        pin.forwardKinematics(self._model, self._data, q)
        pin.updateGeometryPlacements(self._model, self._data, self._geometry, self._placements)
        for item in self.scene.world.collision_objects:
            box = coal.Box(*item.primitives[0].dimensions)
            where = pose_from_msg(item.pose) @ pose_from_msg(item.primitive_poses[0])
            there = coal.Transform3s(where[:3, :3], where[:3, 3])
            for k, body in enumerate(self._geometry.geometryObjects):
                link = body.name.rpartition('_')[0]
                if self._allowed(item.id, link):
                    continue
                placement = self._placements.oMg[k]
                here = coal.Transform3s(placement.rotation, placement.translation)
                result = coal.CollisionResult()
                if coal.collide(body.geometry, here, box, there, coal.CollisionRequest(), result):
                    found.append((link, item.id, abs(result.getContact(0).penetration_depth)))
        return found

    def apply(self, new: Any) -> bool:
        """Take a difference over; False when an object is in a frame that is not known."""
        names = [o.id for o in new.world.collision_objects]
        kept = [o for o in self.scene.world.collision_objects if o.id not in names]
        self.scene.world.collision_objects = kept + list(new.world.collision_objects)
        if new.allowed_collision_matrix.entry_names:
            self.scene.allowed_collision_matrix = new.allowed_collision_matrix
        return all(o.header.frame_id == self.embodiment.base_frame for o in new.world.collision_objects)

    def plan(self, start: Array, goal: Array, speed: float, trajectory: Any) -> int:
        """Fill a RobotTrajectory with the straight way; an error code."""
        route = straight_route(start, goal, Bounds.from_settings(self.embodiment, Control()), speed)
        times = np.linspace(0.0, route.duration, 20) if route.duration else np.zeros(1)
        points = [route.at(t) for t in times]
        if any(self.contacts(q) for q, _ in points):
            return int(MoveItErrorCodes.PLANNING_FAILED)
        trajectory.joint_trajectory.joint_names = list(self.embodiment.arm_joints)
        trajectory.joint_trajectory.points = [
            JointTrajectoryPoint(
                positions=q.tolist(), velocities=dq.tolist(), time_from_start=Duration(seconds=float(t)).to_msg()
            )
            for t, (q, dq) in zip(times, points, strict=True)
        ]
        return int(MoveItErrorCodes.SUCCESS)
