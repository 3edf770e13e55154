"""Bring up an arm that is not ours: MoveIt with mock hardware, or a Franka with its driver and MoveIt.

    ros2 launch instructvla_ros arm.launch.py robot:=fake
    ros2 launch instructvla_ros arm.launch.py robot:=real robot_ip:=172.16.0.2

Included by franka.launch.py. The launch files of the vendors do the work; what is missing for them is said before
anything starts.
"""

from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch.actions import DeclareLaunchArgument, GroupAction, OpaqueFunction, SetLaunchConfiguration
from launch.launch_context import LaunchContext
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from launch import LaunchDescription

# Package with the launch file, the file, and what it starts in turn; then how to get them.
BRING_UP = {
    'fake': (
        'moveit_resources_panda_moveit_config',
        'demo.launch.py',
        (
            'moveit_configs_utils', 'moveit_ros_move_group', 'moveit_planners_ompl', 'controller_manager',
            'joint_state_broadcaster', 'joint_trajectory_controller', 'robot_state_publisher', 'tf2_ros',
        ),
        'sudo apt install ros-$ROS_DISTRO-moveit ros-$ROS_DISTRO-moveit-resources-panda-moveit-config '
        'ros-$ROS_DISTRO-ros2-control ros-$ROS_DISTRO-ros2-controllers, and source /opt/ros/$ROS_DISTRO/setup.bash',
    ),
    'real': (
        'franka_fr3_moveit_config',
        'moveit.launch.py',
        ('franka_bringup', 'franka_hardware', 'franka_gripper', 'franka_description', 'moveit_ros_move_group',
         'controller_manager', 'joint_trajectory_controller'),
        'build franka_ros2, franka_description and libfranka from source (they are not released as packages) beside '
        'MoveIt, and source that workspace',
    ),
}  # fmt: skip


def share(package: str) -> Path | None:
    """Share directory of a package, None when it is not installed."""
    try:
        return Path(get_package_share_directory(package))
    except PackageNotFoundError:
        return None


def missing(robot: str) -> str:
    """What is not installed for an arm, and the way out; '' when nothing."""
    package, file, others, remedy = BRING_UP[robot]
    absent = [name for name in (package, *others) if share(name) is None]
    if absent:
        return f'robot:={robot} needs {", ".join(absent)}: {remedy}'
    folder = share(package)
    if folder is None or not (folder / 'launch' / file).is_file():
        return f'robot:={robot}: the installed {package} has no launch/{file}; start the arm by hand (docs/franka.md)'
    return ''


def is_rviz(entity: LaunchDescriptionEntity) -> bool:
    """Whether an entity is an RViz of the vendor: ours is started by rviz:=true."""
    return isinstance(entity, Node) and entity.node_package == 'rviz2'


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The vendor's launch file without its RViz, or nothing when the drivers run already."""
    robot, address = (context.launch_configurations[name] for name in ('robot', 'robot_ip'))
    if robot == 'sim' or (robot == 'real' and not address):
        return []
    problem = missing(robot)
    if problem:
        raise RuntimeError(problem)
    package, file, _, _ = BRING_UP[robot]
    folder = share(package)
    assert folder is not None
    source = PythonLaunchDescriptionSource(str(folder / 'launch' / file))
    entities = source.get_launch_description(context).entities
    given = {} if robot == 'fake' else {'robot_ip': address, 'use_fake_hardware': 'false', 'load_gripper': 'true'}
    settings = [SetLaunchConfiguration(name, text) for name, text in given.items()]
    return [GroupAction([*settings, *(e for e in entities if not is_rviz(e))], scoped=True, forwarding=False)]


def generate_launch_description() -> LaunchDescription:
    """Arguments and the bring-up of the arm they name."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'robot', default_value='fake', choices=['sim', 'fake', 'real'],
                description='fake: MoveIt and ros2_control with mock hardware (Panda); real: a Franka; sim: nothing',
            ),
            DeclareLaunchArgument(
                'robot_ip', default_value='',
                description='address of the Franka; empty: its driver is running already, nothing is started',
            ),
            OpaqueFunction(function=bring_up),
        ]
    )  # fmt: skip
