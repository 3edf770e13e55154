"""Play a recording into the running graph: policy, controller in dry-run, and what RViz shows.

    ros2 launch instructvla_ros replay.launch.py bag:=bags/monday policy:=instructvla checkpoint:=/path/to/run
    ros2 launch instructvla_ros replay.launch.py bag:=bags/monday rviz:=true rate:=0.5
    ros2 launch instructvla_ros replay.launch.py bag:=bags/monday web:=true stay:=true

Everything runs on the clock of the recording. Ends when the recording is over, with a report when ``out`` is given.
Nothing is sent to an arm: the controller computes and judges every command, and publishes none.
"""

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import (
    EnvironmentVariable,
    LaunchConfiguration,
    OrSubstitution,
    PathJoinSubstitution,
)
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from instructvla_ros.launch_checks import problems
from instructvla_ros.resources import transport_profile
from launch import LaunchContext, LaunchDescription

PACKAGE = 'instructvla_ros'


def value(name: str, kind: type) -> ParameterValue:
    """Launch argument as a ROS parameter of one type."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def check(context: LaunchContext) -> None:
    """End the launch when an argument cannot work, while nothing has been started."""
    kinds = {'rate': float, 'wait': float, 'web_port': int}
    found = problems(lambda name: LaunchConfiguration(name).perform(context), kinds)
    if found:
        raise RuntimeError('; '.join(found))


def generate_launch_description() -> LaunchDescription:
    """Arguments, environment, nodes."""
    arguments = [
        DeclareLaunchArgument('bag', description='recording to play: a bag, or a dataset of episodes'),
        DeclareLaunchArgument('episode', default_value='', description='episode of a dataset; empty: the first'),
        DeclareLaunchArgument('instruction', default_value='', description='instead of the recorded instructions'),
        DeclareLaunchArgument('rate', default_value='1.0', description='seconds of the recording per second'),
        DeclareLaunchArgument('wait', default_value='60.0', description='longest time to wait for the graph [s]'),
        DeclareLaunchArgument('out', default_value='', description='folder for report.html; empty: no report'),
        DeclareLaunchArgument('limits', default_value='replay.yaml', description='what has to be kept to pass'),
        DeclareLaunchArgument(
            'embodiment', default_value='franka.yaml', description='file in config/ or path: joints, limits, topics'
        ),
        DeclareLaunchArgument(
            'policy',
            default_value='hold',
            choices=['hold', 'expert', 'instructvla'],
            description='who decides; expert needs a recording of the simulator with /sim/state',
        ),
        DeclareLaunchArgument('checkpoint', default_value='', description='run directory or hub id for instructvla'),
        DeclareLaunchArgument('device', default_value='auto', description='auto, cpu, cuda, cuda:1, ...'),
        DeclareLaunchArgument(
            'reasoning', default_value='shared', choices=['shared', 'off'], description='sentences too, or not at all'
        ),
        DeclareLaunchArgument(
            'viz',
            default_value='true',
            choices=['true', 'false'],
            description='start viz_node; idle while nobody looks',
        ),
        DeclareLaunchArgument(
            'rviz', default_value='false', choices=['true', 'false'], description='start RViz (package rviz2) as well'
        ),
        DeclareLaunchArgument(
            'web',
            default_value='false',
            choices=['true', 'false'],
            description="serve the operator's page with the timeline of recorded against predicted motion",
        ),
        DeclareLaunchArgument('web_host', default_value='127.0.0.1', description='address the page listens on'),
        DeclareLaunchArgument('web_port', default_value='8765', description='TCP port of the page; 0: any free one'),
        DeclareLaunchArgument(
            'stay',
            default_value='false',
            choices=['true', 'false'],
            description='keep everything running when the recording is over, to look at it; Ctrl-C ends it',
        ),
        DeclareLaunchArgument('log_level', default_value='info', description='debug, info, warn, error'),
        DeclareLaunchArgument(
            'transport_profile',
            default_value=EnvironmentVariable(
                'FASTDDS_DEFAULT_PROFILES_FILE', default_value=str(transport_profile())
            ),
            description='Fast DDS profile for camera images; by default the one that fits into /dev/shm',
        ),
    ]
    log = ['--log-level', LaunchConfiguration('log_level')]
    embodiment = {'embodiment': value('embodiment', str)}

    def node(executable: str, *parameters: dict, condition: IfCondition | None = None, clock: bool = True) -> Node:
        return Node(
            package=PACKAGE,
            executable=executable,
            output='screen',
            parameters=[embodiment, {'use_sim_time': clock}, *parameters],
            ros_arguments=log,
            condition=condition,
        )

    texts = {name: value(name, str) for name in ('bag', 'episode', 'instruction', 'out', 'limits')}
    numbers = {name: value(name, float) for name in ('rate', 'wait')}
    # The player makes the clock and does not follow it.
    player = node('replay_node', texts, numbers, {'stay': value('stay', bool)}, clock=False)
    # The recorded arm moves by itself, so the controller often has no starting point: that must not end a goal.
    patient = {'max_refusals': 1_000_000}
    policy = node(
        'policy_node', patient, {name: value(name, str) for name in ('policy', 'checkpoint', 'device', 'reasoning')}
    )
    controller = node('controller_node', {'dry_run': True, 'start_enabled': True})
    rviz = LaunchConfiguration('rviz')
    viz = node(
        'viz_node', {'publish_tf': True}, condition=IfCondition(OrSubstitution(LaunchConfiguration('viz'), rviz))
    )
    page = node(
        'web_node',
        {'host': value('web_host', str), 'port': value('web_port', int)},
        condition=IfCondition(LaunchConfiguration('web')),
    )
    screen = Node(
        package='rviz2',
        executable='rviz2',
        output='screen',
        arguments=['-d', PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'instructvla.rviz'])],
        parameters=[{'use_sim_time': True}],
        condition=IfCondition(rviz),
    )

    def ends(needed: Node, why: str) -> RegisterEventHandler:
        return RegisterEventHandler(
            OnProcessExit(target_action=needed, on_exit=[EmitEvent(event=Shutdown(reason=why))])
        )

    return LaunchDescription(
        [
            *arguments,
            OpaqueFunction(function=check),
            SetEnvironmentVariable('FASTDDS_DEFAULT_PROFILES_FILE', LaunchConfiguration('transport_profile')),
            ends(player, 'the recording is over'),
            ends(policy, 'the policy ended'),
            ends(controller, 'the controller ended'),
            policy,
            controller,
            viz,
            page,
            screen,
            player,
        ]
    )
