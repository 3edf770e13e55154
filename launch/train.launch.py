"""Train, with the arguments of `instructvla train`; made to run beside a graph, whose policy node gets the result.

    ros2 launch instructvla_ros train.launch.py data:=datasets/monday init:=models/franka out:=runs/monday deploy:=true
    ros2 launch instructvla_ros train.launch.py run:=stage1 data:="datasets/a datasets/b" out:=runs/a set:="steps=500"

Ends when training ends. Ctrl-C saves the state; the same command goes on from there.
"""

import shlex

from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, OpaqueFunction
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

from launch import LaunchContext, LaunchDescription

PACKAGE = 'instructvla_ros'


def command(context: LaunchContext) -> list[str]:
    """Arguments of the executable ``train``."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    words = [given('run'), '--out', given('out')]
    for option, name in (('--data', 'data'), ('--set', 'set')):
        if given(name):
            words += [option, *shlex.split(given(name))]
    if given('init'):
        words += ['--init', given('init')]
    if given('dry_run') == 'true':
        words.append('--dry-run')
    if given('deploy') == 'true':
        words += ['--deploy', given('service')]
    return words


def start(context: LaunchContext) -> list[ExecuteProcess]:
    """The process, and the end of the launch with it."""
    return [
        ExecuteProcess(
            cmd=[ExecutableInPackage('train', PACKAGE), *command(context)],
            name='train',
            output='screen',
            emulate_tty=True,
            sigterm_timeout='120',  # a large state takes its time to be written
            sigkill_timeout='120',
            on_exit=[EmitEvent(event=Shutdown(reason='training has ended'))],
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Arguments and the one process."""
    yes_no = ['true', 'false']
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'run', default_value='onsite', description='onsite, stage1, stage2, a tiny_ stage, or a YAML file'
            ),
            DeclareLaunchArgument('data', default_value='', description='folders of episodes, separated by blanks'),
            DeclareLaunchArgument('init', default_value='', description='checkpoint to start from; empty: a new model'),
            DeclareLaunchArgument('out', description='folder of the run; an earlier run in it goes on'),
            DeclareLaunchArgument('set', default_value='', description='other options, KEY=VALUE separated by blanks'),
            DeclareLaunchArgument(
                'dry_run', default_value='false', choices=yes_no, description='only say what would be trained'
            ),
            DeclareLaunchArgument(
                'deploy', default_value='false', choices=yes_no, description='give the result to the policy node'
            ),
            DeclareLaunchArgument(
                'service',
                default_value='/instructvla/load_checkpoint',
                description='of the policy node, with its namespace',
            ),
            OpaqueFunction(function=start),
        ]
    )
