"""Settings as ROS parameters: same bounds, one clear line when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import rclpy
from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.parameter import Parameter
from std_msgs.msg import String

from instructvla_ros import config, resources
from instructvla_ros.errors import ConfigError, SetupError
from instructvla_ros.nodes import params, runtime
from instructvla_ros.settings import Control, Embodiment, Sim


def node(**overrides) -> runtime.BaseNode:
    given = [Parameter(name.replace('__', '.'), value=value) for name, value in overrides.items()]
    return runtime.BaseNode('tested', parameter_overrides=given)


@pytest.fixture(autouse=True)
def context(ros):
    yield


def test_defaults_come_from_the_file_and_overrides_win():
    tested = node(rate=50.0, safety__max_chunk_age=0.25, safety__workspace_lower=[0.2, -0.5, 0.01])
    settings = params.load_settings(tested, Control, 'controller.yaml')
    assert (settings.rate, settings.safety.max_chunk_age) == (50.0, 0.25)
    assert settings.safety.workspace_lower == (0.2, -0.5, 0.01)
    assert settings.strategy == config.load(Control, resources.config_file('controller.yaml')).strategy
    assert tested.get_parameter('rate').value == 50.0
    params.seal(tested)


def test_every_scalar_is_described_with_its_bounds():
    tested = node()
    settings = params.load_settings(tested, Control, 'controller.yaml')
    rate = tested.describe_parameter('rate')
    assert rate.description == 'controller periods per second [Hz]' and rate.read_only
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (10.0, 1000.0)
    size = tested.describe_parameter('ensemble_size')
    assert (size.integer_range[0].from_value, size.integer_range[0].to_value) == (1, 32)
    assert 'direct, moveit' in tested.describe_parameter('backend').additional_constraints
    flat = {}

    def walk(data, path=''):
        for key, value in data.items():
            walk(value, f'{path}{key}.') if isinstance(value, dict) else flat.update({path + key: value})

    walk(config.to_dict(settings))
    for name, value in flat.items():
        got = tested.get_parameter(name).value
        if isinstance(value, list):
            got = json.loads(got) if isinstance(got, str) else list(got)  # what has no parameter type is shown as JSON
        assert got == value, name
        assert tested.describe_parameter(name).description, name


def test_whole_numbers_are_taken_for_floats():
    tested = node(rate=50, safety__workspace_upper=[1, 1, 1])
    settings = params.load_settings(tested, Control, 'controller.yaml')
    assert settings.rate == 50.0 and settings.safety.workspace_upper == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ('override', 'reason'),
    [
        ({'rate': 5000.0}, 'rate: 5000.0 Hz is above the largest allowed value 1000.0 Hz'),
        ({'rate': 'fast'}, "rate: expected a number, got 'fast'"),
        ({'dry_run': 1}, 'dry_run: expected true or false'),
        ({'backend': 'dircet'}, "'dircet' is not allowed. Did you mean 'direct'"),
        ({'safety__workspace_lower': [0.1, 0.2]}, 'safety.workspace_lower: expected 3 values, got 2'),
        ({'safety__workspace_lower': [0.1, 0.2, 5.0]}, 'workspace z'),
        ({'ensemble_size': 2.5}, 'ensemble_size: expected a whole number'),
    ],
)
def test_bad_overrides_are_refused(override, reason):
    with pytest.raises(ConfigError) as err:
        params.load_settings(node(**override), Control, 'controller.yaml')
    assert reason in str(err.value)


def test_unknown_overrides_are_refused_with_the_nearest_names():
    tested = node(safty__max_chunk_age=0.2)
    params.load_settings(tested, Control, 'controller.yaml')
    with pytest.raises(ConfigError, match=r"safty.max_chunk_age: unknown.*Did you mean 'safety.max_chunk_age'"):
        params.seal(tested)


def test_after_sealing_nothing_new_can_be_set():
    tested = node()
    params.load_settings(tested, Control, 'controller.yaml')
    params.seal(tested)
    result = tested.set_parameters([Parameter('rtae', value=3.0)])[0]
    assert not result.successful and "'rate'" in result.reason


def test_settings_read_at_start_cannot_change():
    tested = node()
    params.load_settings(tested, Control, 'controller.yaml', live=('dry_run',))
    result = tested.set_parameters([Parameter('rate', value=20.0)])[0]
    assert not result.successful and 'rate' in result.reason
    assert tested.get_parameter('rate').value == 100.0


def test_live_settings_change_and_are_checked():
    seen: list[Control] = []
    tested = node()
    params.load_settings(
        tested, Control, 'controller.yaml', live=('dry_run', 'safety.max_chunk_age', 'safety.workspace_lower'),
        on_change=seen.append,
    )  # fmt: skip
    assert tested.set_parameters([Parameter('dry_run', value=True)])[0].successful
    assert tested.set_parameters([Parameter('safety.max_chunk_age', value=0.3)])[0].successful
    assert tested.set_parameters([Parameter('safety.workspace_lower', value=[0.2, 0.0, 0.0])])[0].successful
    assert seen[-1].dry_run and seen[-1].safety.max_chunk_age == 0.3
    assert seen[-1].safety.workspace_lower == (0.2, 0.0, 0.0)
    result = tested.set_parameters([Parameter('safety.workspace_lower', value=[0.2, 0.0, 7.0])])[0]
    assert not result.successful and 'workspace z' in result.reason
    assert not tested.set_parameters([Parameter('safety.max_chunk_age', value=-1.0)])[0].successful
    assert len(seen) == 3 and tested.get_parameter('safety.max_chunk_age').value == 0.3


def test_live_names_have_to_exist():
    with pytest.raises(ConfigError, match="'dry_run'"):
        params.load_settings(node(), Control, 'controller.yaml', live=('dryrun',))


def test_cameras_come_from_the_file_only():
    tested = node()
    settings = params.load_settings(tested, Sim, 'sim.yaml')
    shown = json.loads(tested.get_parameter('cameras').value)
    assert [c['view'] for c in shown] == [c.view for c in settings.cameras]
    with pytest.raises(ConfigError, match='set it in the file given by `config`'):
        params.load_settings(node(cameras='[]'), Sim, 'sim.yaml')


def test_empty_arrays_keep_their_type():
    tested = node()
    base = Embodiment()
    assert params.declare(tested, Embodiment, base, prefix='robot') == base
    assert tested.describe_parameter('robot.home').type == Parameter.Type.DOUBLE_ARRAY.value
    assert tested.describe_parameter('robot.arm_joints').type == Parameter.Type.STRING_ARRAY.value


def test_prefix_groups_names_and_errors():
    tested = node(robot__gripper__max_width=0.07)
    base = config.load(Embodiment, resources.config_file('franka.yaml'))
    assert params.declare(tested, Embodiment, base, prefix='robot').gripper.max_width == 0.07
    with pytest.raises(ConfigError, match='robot.gripper.max_width'):
        params.declare(node(robot__gripper__max_width=7.0), Embodiment, base, prefix='robot')


def test_embodiment_by_name_or_path(tmp_path):
    assert params.load_embodiment(node(embodiment='panda.yaml')).name == 'panda'
    with pytest.raises(SetupError, match='pandda.yaml.*panda.yaml'):
        params.load_embodiment(node(embodiment='pandda.yaml'))
    own = tmp_path / 'mine.yaml'
    own.write_text('hoem: [0.0]\n')
    with pytest.raises(ConfigError, match="'home'"):
        params.load_embodiment(node(embodiment=str(own)))


PROGRAM = textwrap.dedent(
    """
    import os
    import time
    from instructvla_ros.nodes import params, runtime
    from instructvla_ros.settings import Control

    class Small(runtime.BaseNode):
        def __init__(self):
            super().__init__('small')
            params.load_settings(self, Control, 'controller.yaml')
            self.create_timer(0.05, self.ready)

        def ready(self):
            print('ready', flush=True)

        def close(self):
            print('closed', flush=True)

        if 'TEST_SLOW_START' in os.environ:
            def __init__(self):
                print('building', flush=True)
                time.sleep(60)

    raise SystemExit(runtime.run(Small))
    """
)


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['--ros-args', '-p', 'rate:=5000.0'], 'largest allowed value'),
        (['--ros-args', '-p', 'rtae:=50.0'], "'rate'"),
        (['--ros-args', '-p', 'config:=absent.yaml'], 'controller.yaml'),
        (['--ros-args', '-p', 'rate'], 'rate'),
        (['--frobnicate'], "unknown argument '--frobnicate'"),
    ],
)
def test_bad_start_is_one_line_and_exit_code_2(arguments, reason):
    process = start(*arguments)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 2, error
    ours = [line for line in error.splitlines() if line.startswith('error: ')]
    assert len(ours) == 1 and reason in ours[0] and 'Traceback' not in error


@pytest.mark.parametrize('name', ['sim', 'controller', 'policy', 'reasoning', 'viz', 'web', 'record', 'replay'])
def test_every_node_that_is_refused_says_why_in_one_line(name):
    """Also when it had built half of itself: nothing that its destruction needs may be missing then."""
    done = subprocess.run(
        [sys.executable, '-m', f'instructvla_ros.nodes.{name}_node', '--ros-args', '-p', 'embodiment:=absent.yaml'],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ') and 'absent.yaml' in lines[0], done.stderr


@pytest.mark.parametrize('number', ['SIGINT', 'SIGTERM'])
def test_signals_close_the_node_and_exit_with_0(number):
    process = start()
    assert process.stdout is not None and process.stdout.readline().strip() == 'ready'
    process.send_signal(getattr(signal, number))
    out, error = process.communicate(timeout=10)
    assert process.returncode == 0, error
    assert out.split()[-1] == 'closed' and 'Traceback' not in error


@pytest.mark.parametrize('number', ['SIGINT', 'SIGTERM'])
def test_a_signal_while_a_node_is_built_does_not_wait_for_it(number, monkeypatch):
    monkeypatch.setenv('TEST_SLOW_START', '1')
    process = start()
    assert process.stdout is not None and process.stdout.readline().strip() == 'building'
    process.send_signal(getattr(signal, number))
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (0, '', ''), 'neither closed, for it never was, nor a word'


def test_a_signal_that_comes_twice_at_once_still_closes_the_node():
    """A terminal signals the whole group and the launch file each of its processes."""
    process = start()
    assert process.stdout is not None and process.stdout.readline().strip() == 'ready'
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=10)
    assert process.returncode == 0 and out.split()[-1] == 'closed', error


CHURN = textwrap.dedent(
    """
    import time
    from rclpy.callback_groups import ReentrantCallbackGroup
    from std_msgs.msg import String
    from instructvla_ros.nodes import runtime

    class Churn(runtime.BaseNode):
        def __init__(self):
            super().__init__('churn')
            self.end = time.monotonic() + 4.0
            self.heard = []
            self.create_timer(0.001, lambda: None)
            self.create_timer(0.0015, self.turn, callback_group=ReentrantCallbackGroup())

        def turn(self):
            heard, self.heard = self.heard, []
            for subscription in heard:
                self.destroy_subscription(subscription)
            if not heard:
                self.heard = [self.create_subscription(String, f'a{k}', print, 1) for k in range(8)]
            if time.monotonic() > self.end:
                self.leave()

        def close(self):
            print('closed', flush=True)

    raise SystemExit(runtime.run(Churn, threads=4))
    """
)


def test_subscriptions_may_be_taken_away_while_the_executor_waits_for_them():
    done = subprocess.run([sys.executable, '-c', CHURN], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, 'closed\n'), done.stderr


def test_guard_keeps_the_node_alive_and_counts(spin):
    tested = node()
    good: list[str] = []

    def callback(message: String) -> None:
        if message.data == 'bad':
            raise ConfigError('this one is bad')
        if message.data == 'worse':
            raise ZeroDivisionError('a defect')
        good.append(message.data)

    tested.create_subscription(String, 'words', tested.guard('words', callback), 10)
    publisher = tested.create_publisher(String, 'words', 10)
    spin(tested)
    deadline = time.monotonic() + 5.0
    while publisher.get_subscription_count() == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    for word in ('bad', 'worse', 'bad', 'good'):
        publisher.publish(String(data=word))
    while not good and time.monotonic() < deadline:
        time.sleep(0.01)
    assert good == ['good'] and tested.diagnostics.counted('words dropped') == 3
    status = tested.diagnostics.status()
    values = {v.key: v.value for v in status.values}
    assert values['words dropped [count]'] == '3' and 'this one is bad' in values['words dropped [last reason]']


def test_a_thread_that_outlives_its_context_has_nothing_to_report(monkeypatch):
    context = rclpy.Context()
    context.init()
    left = runtime.BaseNode('left', context=context)
    publisher = left.create_publisher(String, 'words', 1)
    said: list[str] = []
    monkeypatch.setattr(left, 'warn', lambda key, text: said.append(text))

    def step() -> None:
        try:
            publisher.publish(String())
        except InvalidHandle as err:
            left.drop('step', err)

    publisher.destroy()
    step()
    assert len(said) == 1, 'a handle that is missing while the node lives is a defect'
    context.shutdown()
    step()
    assert len(said) == 1


def test_diagnostics_levels_and_numbers():
    from diagnostic_msgs.msg import DiagnosticStatus

    tested = node()
    health = tested.diagnostics
    assert health.status().level == DiagnosticStatus.OK
    health.count('chunks refused', 'too old')
    health.latency('inference', 0.010)
    status = health.status()
    assert status.level == DiagnosticStatus.WARN and 'too old' in status.message
    values = {v.key: v.value for v in status.values}
    assert values['chunks refused [count]'] == '1' and values['inference p50/p99 [ms]'] == '10.00 / 10.00'
    assert health.status().level == DiagnosticStatus.OK  # an event speaks once, its count stays
    health.expect('joint_states', 0.05)
    assert health.status().level == DiagnosticStatus.STALE
    health.tick('joint_states')
    assert health.status().level == DiagnosticStatus.OK
    health.condition('policy', DiagnosticStatus.ERROR, 'no weights')
    assert health.status().level == DiagnosticStatus.ERROR and health.status().level == DiagnosticStatus.ERROR
    health.condition('policy', DiagnosticStatus.OK)
    assert health.status().level == DiagnosticStatus.OK
    assert health.status().name == '/instructvla/tested'
