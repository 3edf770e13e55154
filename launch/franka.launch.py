"""Bring up the robot (simulated or real), the controller and the policy.

    ros2 launch instructvla_ros franka.launch.py                       # simulator, the checkpoint of this package
    ros2 launch instructvla_ros franka.launch.py robot:=real policy:=instructvla checkpoint:=/path/to/run

    ros2 launch instructvla_ros franka.launch.py robot:=fake           # MoveIt with mock hardware, a Panda

``robot:=sim`` needs nothing but this package. ``robot:=real`` expects the arm's own drivers (franka_ros2 and a camera
driver) to be running, or starts that of the arm when ``robot_ip`` is given; it moves nothing until ``dry_run:=false``
and the service ``/instructvla/enable`` are given.
"""

import functools
from collections.abc import Callable

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
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

from instructvla_ros import config
from instructvla_ros.errors import ConfigError, InstructVLAError
from instructvla_ros.launch_checks import problems
from instructvla_ros.pace import read_speed, stretched_lease
from instructvla_ros.resources import choose_policy, config_file, transport_profile
from instructvla_ros.settings import Control, Embodiment
from launch import LaunchContext, LaunchDescription

PACKAGE = 'instructvla_ros'
TIME_TO_END = '20'  # s from Ctrl-C until a node is killed: it brakes, closes its bag, lets its model go


def value(source: str | Substitution, kind: type) -> ParameterValue:
    """Launch argument, by name, or substitution as a ROS parameter of one type."""
    return ParameterValue(LaunchConfiguration(source) if isinstance(source, str) else source, value_type=kind)


def chosen(name: str, otherwise: Substitution) -> Substitution:
    """Value of a launch argument, or ``otherwise`` when it is 'auto'."""
    return IfElseSubstitution(
        EqualsSubstitution(LaunchConfiguration(name), 'auto'), otherwise, LaunchConfiguration(name)
    )


class InContext(Substitution):
    """Text that a function makes of the launch arguments."""

    def __init__(self, decide: Callable[[Callable[[str], str]], str]) -> None:
        super().__init__()
        self._decide = decide

    def describe(self) -> str:
        return f'{self._decide.__name__}()'

    def perform(self, context: LaunchContext) -> str:
        return self._decide(lambda name: LaunchConfiguration(name).perform(context))


def brain(given: Callable[[str], str]) -> tuple[str, str]:
    """Policy and checkpoint: in the simulator as the demo, on a robot only what was named."""
    policy, checkpoint = given('policy'), given('checkpoint')
    if given('robot') == 'sim':
        return choose_policy(given('task'), policy, checkpoint)
    if policy == 'auto':
        policy = 'instructvla' if checkpoint else 'hold'
    return policy, checkpoint


def policy_of(given: Callable[[str], str]) -> str:
    return brain(given)[0]


def checkpoint_of(given: Callable[[str], str]) -> str:
    return brain(given)[1]


def embodiment_of(given: Callable[[str], str]) -> str:
    usual = 'panda.yaml' if given('robot') == 'fake' else 'franka.yaml'
    return usual if given('embodiment') == 'auto' else given('embodiment')


def gripper_of(given: Callable[[str], str]) -> str:
    """The driver that was named, else that of the embodiment, else the usual one of the arm."""
    robot = given('robot')
    if given('gripper') != 'auto':
        return given('gripper')
    if robot == 'sim':
        return 'topic'  # the simulator hears nothing else
    try:
        driver = config.load(Embodiment, config_file(embodiment_of(given))).gripper.driver
    except InstructVLAError:
        return 'auto'  # the node says what is wrong with the file
    return driver if driver != 'auto' else {'real': 'franka', 'fake': 'gripper_command'}[robot]


@functools.cache
def speed(text: str) -> float:
    """Simulated seconds per second; measured once for all who ask."""
    return read_speed(text)


def speed_of(given: Callable[[str], str]) -> float:
    return speed(given('sim_speed')) if given('robot') == 'sim' else 1.0


def sim_speed_of(given: Callable[[str], str]) -> str:
    return str(speed_of(given))


def use_sim_time_of(given: Callable[[str], str]) -> str:
    return given('use_sim_time') if speed_of(given) == 1.0 else 'true'


def chunk_lease_of(given: Callable[[str], str]) -> str:
    return str(stretched_lease(config.load(Control, config_file('controller.yaml')).chunk_lease, speed_of(given)))


def check(context: LaunchContext) -> None:
    """End the launch when an argument cannot work, while nothing has been started."""
    kinds = {'seed': int, 'web_port': int, 'use_sim_time': bool}

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    found = problems(given, kinds)
    try:
        if speed(given('sim_speed')) != 1.0 and given('robot') != 'sim':
            found.append(f'sim_speed:={given("sim_speed")} is for robot:=sim; other arms keep real time')
    except ConfigError as err:
        found.append(f'sim_speed: {err}')
    if found:
        raise RuntimeError('; '.join(found))


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
            choices=['auto', 'direct', 'moveit', 'moveit_py'],
            description='direct: our own kinematics and collision check; moveit: move_group checks every chunk and '
            'plans large motions (docs/moveit.md); moveit_py: the same by moveit_py, without a move_group; auto: '
            'moveit for fake, otherwise direct',
        ),
        DeclareLaunchArgument(
            'gripper',
            default_value='auto',
            choices=['auto', 'topic', 'franka', 'gripper_command', 'parallel_gripper_command'],
            description='who moves the fingers; auto: topic in the simulator, else gripper.driver of the embodiment; '
            'where that is auto too, franka on the real arm and gripper_command for fake',
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
            description='who decides; expert reads simulator state and cannot run on a robot; auto: the checkpoint if '
            'one is named; else in the simulator the checkpoint of this package for the tasks pick and put, the expert '
            'for others, and on a robot hold',
        ),
        DeclareLaunchArgument(
            'checkpoint', default_value='', description="run directory, hub id, or 'tiny', for instructvla"
        ),
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
            'sim_speed',
            default_value='1.0',
            description='simulated seconds per second, 0.05 to 1, or auto: what this machine keeps up with; below 1 '
            'every node takes the time from /clock',
        ),
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
                'FASTDDS_DEFAULT_PROFILES_FILE', default_value=str(transport_profile())
            ),
            description='Fast DDS profile for camera images; by default the one that fits into /dev/shm',
        ),
    ]
    sim_time = value(InContext(use_sim_time_of), bool)
    sim_speed = value(InContext(sim_speed_of), float)
    common = {'embodiment': value(InContext(embodiment_of), str), 'use_sim_time': sim_time}
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
            sigterm_timeout=TIME_TO_END,
        )

    thinking = {
        'policy': value(InContext(policy_of), str),
        'checkpoint': value(InContext(checkpoint_of), str),
        'device': value('device', str),
        'reasoning': value('reasoning', str),
        'sim_speed': sim_speed,
    }
    sim = node(
        'sim_node',
        {'task': value('task', str), 'seed': value('seed', int), 'speed': sim_speed},
        condition=IfCondition(simulated),
    )
    enabled = chosen('enable', NotSubstitution(real))
    controller = node(
        'controller_node',
        {
            'dry_run': value(chosen('dry_run', real), bool),
            'start_enabled': value(enabled, bool),
            'backend': value(chosen('controller', IfElseSubstitution(fake, 'moveit', 'direct')), str),
            'gripper_driver': value(InContext(gripper_of), str),
            'chunk_lease': value(InContext(chunk_lease_of), float),
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
        parameters=[{'use_sim_time': sim_time}],
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
            OpaqueFunction(function=check),
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
