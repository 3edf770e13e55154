"""The messages of MoveIt, where they are installed, and what we put into them. Nothing else imports moveit_msgs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..control.route import Route
from ..control.scene import Box
from ..errors import KinematicsError
from ..geometry import Array
from .convert import pose_to_msg

try:
    from moveit_msgs.msg import (
        AllowedCollisionEntry,
        CollisionObject,
        Constraints,
        JointConstraint,
        MoveItErrorCodes,
        PlanningScene,
        PlanningSceneComponents,
        RobotState,
    )
    from moveit_msgs.srv import (
        ApplyPlanningScene,
        GetCartesianPath,
        GetMotionPlan,
        GetPlanningScene,
        GetPositionFK,
        GetStateValidity,
    )
    from shape_msgs.msg import SolidPrimitive
except ImportError as err:  # MoveIt is optional
    MISSING = f'the messages of MoveIt are not installed ({err}): install ros-<distro>-moveit and source it'
    SERVICES: dict[str, Any] = {}
else:
    MISSING = ''
    SERVICES = {
        'check_state_validity': GetStateValidity,
        'compute_cartesian_path': GetCartesianPath,
        'plan_kinematic_path': GetMotionPlan,
        'apply_planning_scene': ApplyPlanningScene,
        'get_planning_scene': GetPlanningScene,
        'compute_fk': GetPositionFK,
    }

GOAL_TOLERANCE = 1e-3  # rad


def robot_state(joints: Sequence[str], q: Array) -> RobotState:
    """Arm joints (n,) [rad] as a difference to what move_group knows: fingers and attached objects stay."""
    state = RobotState(is_diff=True)
    state.joint_state.name = list(joints)
    state.joint_state.position = q.tolist()
    return state


def validity_request(joints: Sequence[str], q: Array, group: str) -> Any:
    """Is the arm free of collisions at q (n,) [rad]?"""
    return GetStateValidity.Request(robot_state=robot_state(joints, q), group_name=group)


def contacts(response: Any) -> list[tuple[str, str]]:
    """Pairs of bodies that touch, deepest first, each once."""
    ordered = sorted(response.contacts, key=lambda c: -abs(c.depth))
    return list(dict.fromkeys((c.contact_body_1, c.contact_body_2) for c in ordered))


def cartesian_request(joints: Sequence[str], q: Array, poses: Array, group: str, link: str, frame: str) -> Any:
    """Follow poses (k, 4, 4) of a link in a frame [m] from joints q (n,) [rad], free of collisions."""
    request = GetCartesianPath.Request(group_name=group, link_name=link, max_step=0.01, avoid_collisions=True)
    request.header.frame_id = frame
    request.start_state = robot_state(joints, q)
    request.waypoints = [pose_to_msg(pose) for pose in poses]
    return request


def joint_positions(message: Any, joints: Sequence[str]) -> Array:
    """Positions (k, n) [rad] of the points of a RobotTrajectory, in our order of joints.

    Raises:
        KinematicsError: a joint is missing.
    """
    return _columns(message, joints, 'positions')


def joint_velocities(message: Any, joints: Sequence[str]) -> Array:
    """Velocities (k, n) [rad/s] of the points of a RobotTrajectory, in our order of joints.

    Raises:
        KinematicsError: a joint, or a velocity, is missing.
    """
    return _columns(message, joints, 'velocities')


def plan_request(
    joints: Sequence[str], start: Array, goal: Array, group: str, speed: float, time: float
) -> Any:
    """Plan from joints to joints (n,) [rad] with a share of the speed limits, in at most ``time`` [s]."""
    request = GetMotionPlan.Request()
    plan = request.motion_plan_request
    plan.group_name = group
    plan.start_state = robot_state(joints, start)
    plan.num_planning_attempts = 3
    plan.allowed_planning_time = time
    plan.max_velocity_scaling_factor = plan.max_acceleration_scaling_factor = speed
    plan.goal_constraints = [
        Constraints(
            joint_constraints=[
                JointConstraint(
                    joint_name=name, position=float(q), tolerance_above=GOAL_TOLERANCE, tolerance_below=GOAL_TOLERANCE,
                    weight=1.0,
                )
                for name, q in zip(joints, goal, strict=True)
            ]
        )
    ]  # fmt: skip
    return request


def route_of_plan(response: Any, joints: Sequence[str]) -> Route:
    """The planned motion.

    Raises:
        KinematicsError: MoveIt found none, or one that cannot be used.
    """
    answer = response.motion_plan_response
    if not succeeded(answer.error_code):
        raise KinematicsError(f'MoveIt found no way: {error_name(answer.error_code)}')
    positions = joint_positions(answer.trajectory, joints)
    velocities = joint_velocities(answer.trajectory, joints)
    points = answer.trajectory.joint_trajectory.points
    times = np.array([p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in points])
    return Route.of_points(times, positions, velocities, len(joints))


def succeeded(code: Any) -> bool:
    """Whether a MoveItErrorCodes says success."""
    return bool(code.val == MoveItErrorCodes.SUCCESS)


def error_name(code: Any) -> str:
    """Name of a MoveItErrorCodes value, such as NO_IK_SOLUTION."""
    for name in dir(MoveItErrorCodes):
        if name.isupper() and getattr(MoveItErrorCodes, name) == code.val:
            return f'{name} ({code.val})'
    return f'error code {code.val}'


def scene_components() -> Any:
    """Question for the names of the objects and the allowed contacts."""
    kinds = PlanningSceneComponents
    return GetPlanningScene.Request(
        components=kinds(components=kinds.WORLD_OBJECT_NAMES | kinds.ALLOWED_COLLISION_MATRIX)
    )


def object_names(response: Any) -> list[str]:
    """Names of the objects in the answer of get_planning_scene."""
    return [o.id for o in response.scene.world.collision_objects]


def contact_matrix(response: Any) -> tuple[list[str], list[list[bool]]]:
    """Allowed collision matrix in the answer of get_planning_scene: names and square matrix."""
    matrix = response.scene.allowed_collision_matrix
    return list(matrix.entry_names), [list(row.enabled) for row in matrix.entry_values]


def scene_request(
    boxes: Sequence[Box], frame: str, before: Any, names: list[str], matrix: list[list[bool]]
) -> Any:
    """Add boxes to the planning scene, with these allowed contacts; ``before`` is the answer of get_planning_scene."""
    scene = PlanningScene(is_diff=True)
    scene.robot_state.is_diff = True
    for box in boxes:
        item = CollisionObject(id=box.name, operation=CollisionObject.ADD)
        item.header.frame_id = frame
        item.pose.orientation.w = 1.0
        item.primitives = [SolidPrimitive(type=SolidPrimitive.BOX, dimensions=box.size.tolist())]
        item.primitive_poses = [pose_to_msg(box.pose)]
        scene.world.collision_objects.append(item)
    # A matrix in a difference replaces the whole one, so what is there is sent back with ours added.
    allowed = scene.allowed_collision_matrix
    allowed.entry_names = names
    allowed.entry_values = [AllowedCollisionEntry(enabled=row) for row in matrix]
    allowed.default_entry_names = list(before.scene.allowed_collision_matrix.default_entry_names)
    allowed.default_entry_values = list(before.scene.allowed_collision_matrix.default_entry_values)
    return ApplyPlanningScene.Request(scene=scene)


def forward_request(joints: Sequence[str], q: Array, links: Sequence[str], frame: str) -> Any:
    """Where are links at q (n,) [rad]?"""
    request = GetPositionFK.Request(fk_link_names=list(links), robot_state=robot_state(joints, q))
    request.header.frame_id = frame
    return request


def _columns(message: Any, joints: Sequence[str], field: str) -> Array:
    trajectory = message.joint_trajectory
    missing = [name for name in joints if name not in trajectory.joint_names]
    if missing:
        raise KinematicsError(f'the trajectory of MoveIt lacks {", ".join(missing)}')
    order = [trajectory.joint_names.index(name) for name in joints]
    rows = [list(getattr(p, field)) for p in trajectory.points]
    if any(len(row) != len(trajectory.joint_names) for row in rows):
        raise KinematicsError(f'the trajectory of MoveIt has points without {field}')
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(trajectory.joint_names))[:, order]
