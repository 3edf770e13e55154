"""Bring up the robot (simulated or real), the controller and the policy.

    ros2 launch instructvla_ros franka.launch.py                       # simulator, scripted expert
    ros2 launch instructvla_ros franka.launch.py robot:=real policy:=instructvla checkpoint:=/path/to/run

    ros2 launch instructvla_ros franka.launch.py robot:=fake           # MoveIt with mock hardware, a Panda

``robot:=sim`` needs nothing but this package. ``robot:=real`` expects the arm's own drivers (franka_ros2 and a camera
driver) to be running, or starts that of the arm when ``robot_ip`` is given; it moves nothing until ``dry_run:=false``
and the service ``/instructvla/enable`` are given.
"""

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    LogInfo,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitution import Substitution
from launch.substitutions import (
    AndSubstitution,
    EnvironmentVariable,
    EqualsSubstitution,
    IfElseSubstitution,
    LaunchConfiguration,
    NotEqualsSubstitution,
    NotSubstitution,
    OrSubstitution,
    PathJoinSubstitution,
    ThisLaunchFileDir,
)
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

PACKAGE = 'instructvla_ros'


def value(source: str | Substitution, kind: type) -> ParameterValue:
    """Launch argument, by name, or substitution as a ROS parameter of one type."""
    return ParameterValue(LaunchConfiguration(source) if isinstance(source, str) else source, value_type=kind)


def chosen(name: str, otherwise: Substitution) -> Substitution:
    """Value of a launch argument, or ``otherwise`` when it is 'auto'."""
    return IfElseSubstitution(
        EqualsSubstitution(LaunchConfiguration(name), 'auto'), otherwise, LaunchConfiguration(name)
    )


def generate_launch_description() -> LaunchDescription:
    """Arguments, environment, nodes."""
    simulated = EqualsSubstitution(LaunchConfiguration('robot'), 'sim')
    fake = EqualsSubstitution(LaunchConfiguration('robot'), 'fake')
    real = EqualsSubstitution(LaunchConfiguration('robot'), 'real')
    arguments = [
        DeclareLaunchArgument(
            'robot',
            default_value='sim',
            choices=['sim', 'fake', 'real'],
            description='the simulator of this package, MoveIt with mock hardware (a Panda), or a Franka',
        ),
        DeclareLaunchArgument(
            'robot_ip', default_value='', description='real: address of the arm; empty: its driver is running already'
        ),
        DeclareLaunchArgument(
            'controller',
            default_value='auto',
            choices=['auto', 'direct', 'moveit'],
            description='direct: our own kinematics and collision check; moveit: move_group checks every chunk and '
            'plans large motions (docs/moveit.md); auto: moveit for fake, otherwise direct',
        ),
        DeclareLaunchArgument(
            'gripper',
            default_value='auto',
            choices=['auto', 'topic', 'franka', 'gripper_command', 'parallel_gripper_command'],
            description='who moves the fingers; auto: topic in the simulator, franka on the real arm, gripper_command '
            'for fake',
        ),
        DeclareLaunchArgument(
            'namespace', default_value='/instructvla', description='of our nodes; topics of the robot keep their names'
        ),
        DeclareLaunchArgument(
            'embodiment',
            default_value='auto',
            description='file in config/ or path: joints, limits, topics; auto: panda.yaml for fake, else franka.yaml',
        ),
        DeclareLaunchArgument(
            'policy',
            default_value='auto',
            choices=['auto', 'hold', 'expert', 'instructvla'],
            description='who decides; expert reads simulator state and cannot run on a robot; auto: expert in the '
            'simulator, hold on a robot',
        ),
        DeclareLaunchArgument('checkpoint', default_value='', description='run directory or hub id for instructvla'),
        DeclareLaunchArgument('device', default_value='auto', description='auto, cpu, cuda, cuda:1, ...'),
        DeclareLaunchArgument(
            'reasoning',
            default_value='shared',
            choices=['shared', 'separate', 'off'],
            description='sentences in the process of the policy, in their own process, or not at all',
        ),
        DeclareLaunchArgument(
            'dry_run',
            default_value='auto',
            choices=['auto', 'true', 'false'],
            description='publish everything, send nothing to the arm; auto: only on a real robot',
        ),
        DeclareLaunchArgument(
            'enable',
            default_value='auto',
            choices=['auto', 'true', 'false'],
            description='enable the controller at start; auto: not on a real robot',
        ),
        DeclareLaunchArgument('task', default_value='put', description='task the simulator starts with'),
        DeclareLaunchArgument('seed', default_value='0', description='seed of that task'),
        DeclareLaunchArgument(
            'viz',
            default_value='true',
            choices=['true', 'false'],
            description='start viz_node: markers, paths and an annotated image; idle while nobody looks',
        ),
        DeclareLaunchArgument(
            'rviz',
            default_value='false',
            choices=['true', 'false'],
            description='start RViz with config/instructvla.rviz (package rviz2), and viz_node',
        ),
        DeclareLaunchArgument(
            'web',
            default_value='false',
            choices=['true', 'false'],
            description="serve the operator's page (docs/web.md); its address is printed",
        ),
        DeclareLaunchArgument('web_host', default_value='127.0.0.1', description='address the page listens on; other '
                              'than loopback needs the token that is printed'),
        DeclareLaunchArgument('web_port', default_value='8765', description='TCP port of the page; 0: any free one'),
        DeclareLaunchArgument(
            'record',
            default_value='false',
            description='false; true: record a bag into recordings/<date and time>; or the folder that gets such bags '
            '(docs/recording.md)',
        ),
        DeclareLaunchArgument('use_sim_time', default_value='false', description='take the time from /clock'),
        DeclareLaunchArgument('log_level', default_value='info', description='debug, info, warn, error'),
        DeclareLaunchArgument(
            'transport_profile',
            default_value=EnvironmentVariable(
                'FASTDDS_DEFAULT_PROFILES_FILE',
                default_value=PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'fastdds.xml']),
            ),
            description='Fast DDS profile; the default one is too small for camera images',
        ),
    ]
    embodiment = chosen('embodiment', IfElseSubstitution(fake, 'panda.yaml', 'franka.yaml'))
    common = {'embodiment': value(embodiment, str), 'use_sim_time': value('use_sim_time', bool)}
    log = ['--log-level', LaunchConfiguration('log_level')]

    def node(executable: str, *parameters: dict, condition: IfCondition | None = None) -> Node:
        return Node(
            package=PACKAGE,
            executable=executable,
            namespace=LaunchConfiguration('namespace'),
            output='screen',
            parameters=[common, *parameters],
            ros_arguments=log,
            condition=condition,
        )

    thinking = {
        'policy': value(chosen('policy', IfElseSubstitution(simulated, 'expert', 'hold')), str),
        'checkpoint': value('checkpoint', str),
        'device': value('device', str),
        'reasoning': value('reasoning', str),
    }
    sim = node(
        'sim_node', {'task': value('task', str), 'seed': value('seed', int)}, condition=IfCondition(simulated)
    )
    enabled = chosen('enable', NotSubstitution(real))
    by_robot = IfElseSubstitution(simulated, 'topic', IfElseSubstitution(real, 'franka', 'gripper_command'))
    controller = node(
        'controller_node',
        {
            'dry_run': value(chosen('dry_run', real), bool),
            'start_enabled': value(enabled, bool),
            'backend': value(chosen('controller', IfElseSubstitution(fake, 'moveit', 'direct')), str),
            'gripper_driver': value(chosen('gripper', by_robot), str),
        },
    )
    policy = node('policy_node', thinking)
    reasoning = node(
        'reasoning_node',
        thinking,
        condition=IfCondition(EqualsSubstitution(LaunchConfiguration('reasoning'), 'separate')),
    )
    rviz = LaunchConfiguration('rviz')
    # The links come from viz_node in the simulator only: a real arm brings its own robot_state_publisher.
    viz = node(
        'viz_node',
        {'publish_tf': value(simulated, bool)},
        condition=IfCondition(OrSubstitution(LaunchConfiguration('viz'), rviz)),
    )
    page = node(
        'web_node',
        {'host': value('web_host', str), 'port': value('web_port', int)},
        condition=IfCondition(LaunchConfiguration('web')),
    )
    recording = LaunchConfiguration('record')
    recorder = node(
        'record_node',
        {'folder': value(IfElseSubstitution(EqualsSubstitution(recording, 'true'), 'recordings', recording), str)},
        condition=IfCondition(NotEqualsSubstitution(recording, 'false')),
    )
    screen = Node(
        package='rviz2',
        executable='rviz2',
        output='screen',
        arguments=['-d', PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'instructvla.rviz'])],
        parameters=[{'use_sim_time': value('use_sim_time', bool)}],
        condition=IfCondition(rviz),
    )

    def ends(needed: Node, why: str) -> RegisterEventHandler:
        # Without the simulator or the controller the rest would only wait: say so and stop.
        end = EmitEvent(event=Shutdown(reason=why))
        return RegisterEventHandler(OnProcessExit(target_action=needed, on_exit=[end]))

    arm = IncludeLaunchDescription(
        PathJoinSubstitution([ThisLaunchFileDir(), 'arm.launch.py']),
        launch_arguments={name: LaunchConfiguration(name) for name in ('robot', 'robot_ip')}.items(),
        condition=IfCondition(NotSubstitution(simulated)),
    )
    real_enabled = AndSubstitution(real, enabled)
    return LaunchDescription(
        [
            *arguments,
            SetEnvironmentVariable('FASTDDS_DEFAULT_PROFILES_FILE', LaunchConfiguration('transport_profile')),
            LogInfo(
                msg='robot:=real with enable:=true: the arm may move as soon as an instruction arrives',
                condition=IfCondition(real_enabled),
            ),
            arm,
            ends(sim, 'the simulator ended'),
            ends(controller, 'the controller ended'),
            sim,
            controller,
            policy,
            reasoning,
            viz,
            page,
            recorder,
            screen,
        ]
    )
