"""Stands in for move_group: the same services with real moveit_msgs, answered with our own kinematics.

Run as a program it serves until a signal arrives; in a test, make a :class:`StandinMoveGroup` and spin it.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from moveit_msgs.msg import ContactInformation, MoveItErrorCodes
from moveit_msgs.srv import (
    ApplyPlanningScene,
    GetCartesianPath,
    GetMotionPlan,
    GetPlanningScene,
    GetPositionFK,
    GetPositionIK,
    GetStateValidity,
)
from rclpy.node import Node
from standin_cell import Cell
from trajectory_msgs.msg import JointTrajectoryPoint

from instructvla_ros import config, resources
from instructvla_ros.control.frames import LinkFrames
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.errors import KinematicsError
from instructvla_ros.geometry import Array
from instructvla_ros.nodes.convert import pose_from_msg, pose_to_msg
from instructvla_ros.settings import Embodiment


class StandinMoveGroup(Node):
    """A planning scene of boxes, self-collision, straight plans; a test makes it slow, silent or wrong.

    Attributes:
        calls: number of requests by service. delay: before each answer [s]. silent: services that never answer.
        group: the only planning group it knows.
    """

    def __init__(self, embodiment: Embodiment, group: str = '', namespace: str = '') -> None:
        super().__init__('move_group', namespace=namespace)
        self.embodiment = embodiment
        self.group = group or f'{embodiment.name}_arm'
        self.kinematics = Kinematics(embodiment)
        self.frames = LinkFrames(self.kinematics.urdf, embodiment.base_frame)
        self.cell = Cell(embodiment, self.kinematics)
        self.declare_parameter('robot_description', self.kinematics.urdf)
        self.declare_parameter('robot_description_semantic', self._semantics())
        self.calls: dict[str, int] = {}
        self.delay = 0.0
        self.silent: set[str] = set()
        for name, kind, answer in (
            ('check_state_validity', GetStateValidity, self._validity),
            ('compute_cartesian_path', GetCartesianPath, self._cartesian),
            ('plan_kinematic_path', GetMotionPlan, self._plan),
            ('apply_planning_scene', ApplyPlanningScene, self._apply),
            ('get_planning_scene', GetPlanningScene, self._get),
            ('compute_fk', GetPositionFK, self._forward),
            ('compute_ik', GetPositionIK, self._inverse),
        ):
            self.create_service(kind, name, self._served(name, answer))

    def _served(self, name: str, answer: Any) -> Any:
        def serve(request: Any, response: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            while name in self.silent:
                time.sleep(0.01)
            if self.delay:
                time.sleep(self.delay)
            return answer(request, response)

        return serve

    def _semantics(self) -> str:
        chain = f'<chain base_link="{self.embodiment.base_frame}" tip_link="{self.embodiment.tcp_frame}"/>'
        return f'<robot name="{self.embodiment.name}"><group name="{self.group}">{chain}</group></robot>'

    def close(self) -> None:
        """End every silence."""
        self.silent.clear()

    def add_box(self, name: str, size: tuple[float, float, float], at: tuple[float, float, float]) -> None:
        """Put a box into the scene as somebody else would."""
        from instructvla_ros.control.scene import Box
        from instructvla_ros.nodes.moveit_messages import scene_request

        pose = np.eye(4)
        pose[:3, 3] = at
        box = Box(name, np.array(size), pose, ())
        request = scene_request([box], self.embodiment.base_frame, self.cell, [], [])
        self.cell.scene.world.collision_objects.extend(request.scene.world.collision_objects)

    def _joints(self, state: Any) -> Array:
        q = self.cell.q.copy()
        for name, value in zip(state.joint_state.name, state.joint_state.position, strict=True):
            if name in self.embodiment.arm_joints:
                q[self.embodiment.arm_joints.index(name)] = value
        return q

    def _validity(self, request: Any, response: Any) -> Any:
        q = self._joints(request.robot_state)
        touching = self.cell.contacts(q)
        response.valid = request.group_name in (self.group, '') and self.cell.inside_limits(q) and not touching
        response.contacts = [
            ContactInformation(contact_body_1=a, contact_body_2=b, depth=depth) for a, b, depth in touching
        ]
        return response

    def _tcp(self, link: str) -> Array:
        """T_link_tcp, whatever the joints."""
        return np.linalg.inv(self.frames.pose(link)) @ self.frames.pose(self.embodiment.tcp_frame)

    def _cartesian(self, request: Any, response: Any) -> Any:
        q = self._joints(request.start_state)
        if request.group_name != self.group:
            response.error_code.val = MoveItErrorCodes.INVALID_GROUP_NAME
            return response
        offset = self._tcp(request.link_name)
        trajectory = response.solution.joint_trajectory
        trajectory.joint_names = list(reversed(self.embodiment.arm_joints))
        done = 0
        for pose in request.waypoints:
            try:
                step = self.kinematics.solve(pose_from_msg(pose) @ offset, q)
            except KinematicsError:
                break
            if request.avoid_collisions and self.cell.contacts(step.q):
                break
            q = step.q
            done += 1
            trajectory.points.append(JointTrajectoryPoint(positions=q[::-1].tolist()))
        response.fraction = done / max(len(request.waypoints), 1)
        response.error_code.val = MoveItErrorCodes.SUCCESS
        return response

    def _plan(self, request: Any, response: Any) -> Any:
        plan, answer = request.motion_plan_request, response.motion_plan_response
        start = self._joints(plan.start_state)
        goal = start.copy()
        for wanted in plan.goal_constraints[0].joint_constraints:
            goal[self.embodiment.arm_joints.index(wanted.joint_name)] = wanted.position
        if plan.group_name != self.group:
            answer.error_code.val = MoveItErrorCodes.INVALID_GROUP_NAME
        else:
            speed = plan.max_velocity_scaling_factor
            answer.error_code.val = self.cell.plan(start, goal, speed, answer.trajectory)
        return response

    def _apply(self, request: Any, response: Any) -> Any:
        response.success = self.cell.apply(request.scene)
        return response

    def _get(self, _request: Any, response: Any) -> Any:
        response.scene = self.cell.scene
        return response

    def _forward(self, request: Any, response: Any) -> Any:
        q = self._joints(request.robot_state)
        self.frames.set_joints(dict(zip(self.embodiment.arm_joints, q, strict=True)))
        links = [n for n in request.fk_link_names if n in self.frames.links]
        response.error_code.val = MoveItErrorCodes.SUCCESS if links else MoveItErrorCodes.INVALID_LINK_NAME
        response.fk_link_names = links
        for link in links:
            pose = PoseStamped(pose=pose_to_msg(self.frames.pose(link)))
            pose.header.frame_id = self.embodiment.base_frame
            response.pose_stamped.append(pose)
        return response

    def _inverse(self, request: Any, response: Any) -> Any:
        ik = request.ik_request
        try:
            offset = self._tcp(ik.ik_link_name or self.embodiment.tcp_frame)
            step = self.kinematics.solve(pose_from_msg(ik.pose_stamped.pose) @ offset, self._joints(ik.robot_state))
        except KinematicsError:
            response.error_code.val = MoveItErrorCodes.NO_IK_SOLUTION
            return response
        response.solution.joint_state.name = list(self.embodiment.arm_joints)
        response.solution.joint_state.position = step.q.tolist()
        blocked = ik.avoid_collisions and self.cell.contacts(step.q)
        response.error_code.val = MoveItErrorCodes.NO_IK_SOLUTION if blocked else MoveItErrorCodes.SUCCESS
        return response


def main() -> None:
    """Serve the embodiment named on the command line (franka.yaml) until a signal arrives."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    name = sys.argv[1] if len(sys.argv) > 1 else 'franka.yaml'
    rclpy.init(args=[])
    node = StandinMoveGroup(config.load(Embodiment, resources.config_file(name)))
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
