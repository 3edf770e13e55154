"""Parameters for moveit_py: those of a MoveIt configuration package, or our own made from the embodiment."""

from __future__ import annotations

from typing import Any

from ..control.kinematics import Kinematics
from ..control.srdf import semantic_description
from ..errors import SetupError
from ..settings import Control, Embodiment
from .moveit_asking import planning_group

ADAPTERS = 'default_planning_request_adapters'
AFTER = 'default_planning_response_adapters'
PLANNERS = {
    'ompl': 'ompl_interface/OMPLPlanner',
    'pilz_industrial_motion_planner': 'pilz_industrial_motion_planner/CommandPlanner',
}


def parameters(embodiment: Embodiment, control: Control) -> dict[str, Any]:
    """What ``MoveItPy(config_dict=...)`` wants.

    Raises:
        SetupError: the configuration package cannot be used, or the description does not fit.
    """
    package = control.moveit.config_package
    found = of_package(embodiment, package) if package else of_embodiment(embodiment, control)
    return {**found, **_of_moveit_cpp(control, found)}


def of_embodiment(embodiment: Embodiment, control: Control) -> dict[str, Any]:
    """Descriptions, limits, kinematics, planner and controller from our own files; nothing of MoveIt is needed.

    Raises:
        SetupError: the robot description does not fit the embodiment.
    """
    group = planning_group(embodiment, control)
    urdf = Kinematics(embodiment).urdf
    limits = embodiment.limits
    joints = {
        name: {
            'has_velocity_limits': True,
            'max_velocity': limits.velocity[k],
            'has_acceleration_limits': True,
            'max_acceleration': limits.acceleration[k],
            'has_position_limits': True,
            'min_position': limits.lower[k],
            'max_position': limits.upper[k],
        }
        for k, name in enumerate(embodiment.arm_joints)
    }
    pipeline = control.moveit.pipeline
    # Name and action of the controller from its topic: /fr3_arm_controller/joint_trajectory.
    controller = embodiment.topics.joint_trajectory.strip('/').rpartition('/')[0] or 'arm_controller'
    return {
        'robot_description': urdf,
        'robot_description_semantic': semantic_description(embodiment, urdf, group),
        'robot_description_kinematics': {
            group: {
                'kinematics_solver': 'kdl_kinematics_plugin/KDLKinematicsPlugin',
                'kinematics_solver_search_resolution': 0.005,
                'kinematics_solver_timeout': 0.05,
            }
        },
        'robot_description_planning': {'joint_limits': joints},
        pipeline: {
            'planning_plugins': [PLANNERS[pipeline]],
            'request_adapters': [
                f'{ADAPTERS}/{name}'
                for name in ('ResolveConstraintFrames', 'ValidateWorkspaceBounds', 'CheckStartStateBounds',
                             'CheckStartStateCollision')
            ],
            'response_adapters': [
                *([f'{AFTER}/AddTimeOptimalParameterization'] if pipeline == 'ompl' else []),
                f'{AFTER}/ValidateSolution',
            ],
        },
        # MoveItPy wants a controller manager; nothing is executed through it, the controller of this package moves.
        'moveit_controller_manager': 'moveit_simple_controller_manager/MoveItSimpleControllerManager',
        'moveit_simple_controller_manager': {
            'controller_names': [controller],
            controller: {
                'type': 'FollowJointTrajectory',
                'action_ns': 'follow_joint_trajectory',
                'default': True,
                'joints': list(embodiment.arm_joints),
            },
        },
        'moveit_manage_controllers': False,
    }  # fmt: skip


def of_package(embodiment: Embodiment, package: str) -> dict[str, Any]:
    """What a MoveIt configuration package says, such as moveit_resources_panda_moveit_config.

    Raises:
        SetupError: it, or moveit_configs_utils, is not installed, or has another layout.
    """
    try:
        from moveit_configs_utils import MoveItConfigsBuilder
    except ImportError as err:
        raise SetupError(
            f'moveit.config_package {package} needs moveit_configs_utils ({err}): install ros-<distro>-moveit and '
            'source it, or leave config_package empty'
        ) from None
    try:
        return dict(MoveItConfigsBuilder(embodiment.name, package_name=package).to_moveit_configs().to_dict())
    except Exception as err:  # the builder raises many unrelated types; the user needs the package and the reason
        raise SetupError(
            f'moveit.config_package {package} cannot be used ({type(err).__name__}: {err}); name a package made by the '
            'MoveIt setup assistant, or leave it empty'
        ) from err


def _of_moveit_cpp(control: Control, found: dict[str, Any]) -> dict[str, Any]:
    settings = control.moveit
    names = found.get('planning_pipelines', [settings.pipeline])
    names = names.get('pipeline_names', [settings.pipeline]) if isinstance(names, dict) else list(names)
    if settings.pipeline not in names:
        raise SetupError(f'moveit.pipeline {settings.pipeline!r} is not one of the package: {", ".join(names)}')
    return {
        'planning_pipelines': {'pipeline_names': [settings.pipeline]},
        'planning_scene_monitor_options': {
            'name': 'planning_scene_monitor',
            'robot_description': 'robot_description',
        },
        'plan_request_params': {
            'planning_pipeline': settings.pipeline,
            'planner_id': 'PTP' if settings.pipeline.startswith('pilz') else '',
            'planning_attempts': 3,
            'planning_time': settings.planning_time,
            'max_velocity_scaling_factor': control.home_speed,
            'max_acceleration_scaling_factor': control.home_speed,
        },
    }
