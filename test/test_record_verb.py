"""The verb `instructvla record` without ROS: topics, command line, status line, single keys."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructvla_ros import cli, config, resources
from instructvla_ros.commands import record
from instructvla_ros.commands._record_view import RecordView, line
from instructvla_ros.data.bag_writer import BagWriter
from instructvla_ros.data.marks import Span
from instructvla_ros.data.message_definitions import definition
from instructvla_ros.data.recording import string_to_cdr
from instructvla_ros.data.recording_status import Status, TopicStatus
from instructvla_ros.data.recording_topics import bag_command, watched_topics
from instructvla_ros.errors import ConfigError
from instructvla_ros.graph_session import EpisodeRequest, GraphOptions, specs
from instructvla_ros.settings import Embodiment

ROBOT = config.load(Embodiment, resources.config_file('franka.yaml'))


def test_topics_of_a_robot() -> None:
    topics = {t.name: t for t in watched_topics(ROBOT, ['/force', 'note'], ['/tf', '/sim/state'])}
    required = {n for n, t in topics.items() if t.required}
    cameras = {v.topic for v in ROBOT.views.values()} | {v.info_topic for v in ROBOT.views.values()}
    assert required == cameras | {'/joint_states', '/force', '/instructvla/note'}
    assert {'/gripper/command', '/robot_description', '/instructvla/reasoning', '/tf_static'} <= set(topics)
    assert not {'/tf', '/sim/state'} & set(topics)
    with pytest.raises(ConfigError, match="Did you mean '/joint_states'"):
        watched_topics(ROBOT, skip=['/joint_state'])


def test_the_command_for_ros2_bag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['record', '--ros2-command', '--out', 'my bag', '--storage', 'sqlite3']) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:8] == ['ros2', 'bag', 'record', '-s', 'sqlite3', '-o', 'my bag', '--topics']
    assert words[8:] == [t.name for t in watched_topics(ROBOT)]
    assert shlex.split(bag_command(watched_topics(ROBOT)))[3:6] == ['-s', 'mcap', '--topics']


def test_options_become_parameters() -> None:
    parser = argparse.ArgumentParser()
    record.add_arguments(parser)
    words = ['--topics', '/a', '/b', '--compress', '--instruction', 'put "it" down', '--min-free', '5']
    given = parser.parse_args(words)
    words = record.ros_arguments(given)
    assert words[0] == '--ros-args'
    values = dict(w.split(':=', 1) for w in words if ':=' in w and not w.endswith(':=error'))
    assert values['topics'] == '["/a", "/b"]' and values['compress'] == 'true' and values['min_free'] == '5.0'
    assert values['instruction'] == '"put \\"it\\" down"' and 'skip' not in values


def test_the_demo_records_a_bag_when_asked(tmp_path: Path) -> None:
    request = EpisodeRequest('pick', 0)
    found = {s.name: s for s in specs(GraphOptions(bag=True), tmp_path, request)}
    assert found['record_node'].parameters['out'] == str(tmp_path / 'bag')
    assert 'record_node' not in {s.name for s in specs(GraphOptions(), tmp_path, request)}


def test_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = BagWriter(tmp_path / 'bag')
    channel = bag.add_topic('/a', 'std_msgs/msg/String', definition('std_msgs/msg/String'))
    for k in range(3):
        bag.write(channel, 10**9 * k + 1, string_to_cdr('x'))
        bag.flush()
    bag.close()
    (tmp_path / 'bag' / 'metadata.yaml').unlink()
    file = tmp_path / 'bag' / 'bag_0.mcap'
    file.write_bytes(file.read_bytes()[:-1])
    assert cli.main(['record', '--repair', str(tmp_path / 'bag'), '--json']) == 0
    done = json.loads(capsys.readouterr().out)
    assert done['messages'] == 3 and done['seconds'] == pytest.approx(2.0) and done['removed'] > 0
    assert (tmp_path / 'bag' / 'metadata.yaml').is_file()
    assert cli.main(['record', '--repair', str(tmp_path / 'none')]) == 2
    assert '0 storage files' in capsys.readouterr().err


def status(**changes: object) -> Status:
    base = {
        'path': '/bags/a', 'seconds': 75.0, 'bytes': 10**9, 'rate': 27e6, 'free': 10**11, 'seconds_left': 3700.0,
        'backlog': 0.0, 'safe_ns': 0, 'instruction': '', 'episodes': (),
        'topics': (TopicStatus('/a', 'x', 10, 100, 30.0, 0, 0.0), TopicStatus('/b', 'x', 0, 0, 0.0, 0, 0.0)),
    }  # fmt: skip
    return Status(**{**base, **changes})  # type: ignore[arg-type]


def test_the_line_says_what_matters() -> None:
    calm = line(status())
    assert '01:15' in calm and '1 topics 30/s' in calm and '27.0 MB/s' in calm and 'disk for 1 h 1 min' in calm
    episodes = (Span(1, 'a', 1, 2, 'success'), Span(2, 'open the drawer', 3))
    busy = line(status(episodes=episodes, problems=('/wrist silent for 3 s',) * 4, backlog=0.5))
    assert 'episode 2 “open the drawer”' in busy and '/wrist silent' in busy and 'and 2 more' in busy
    assert 'queue 50 %' in busy and '●' in busy and '○' in calm


def test_without_a_terminal_problems_are_printed_when_they_come() -> None:
    out = io.StringIO()
    now = [status()]
    with RecordView(stream=out) as view:
        view.follow(lambda: now[0], '')
        now[0] = status(problems=('/wrist [bold] silent for 3 s',))
        deadline = time.monotonic() + 10.0
        while '/wrist' not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert '/bags/a' in out.getvalue() and '/wrist [bold] silent' in out.getvalue()


KEYS = """
import sys, termios, time
from instructvla_ros.commands._keys import Keys
pressed = []
before = termios.tcgetattr(0)
with Keys(pressed.append) as keys:
    print('active', keys.active, flush=True)
    while 'q' not in pressed:
        time.sleep(0.01)
print('pressed', ''.join(pressed), termios.tcgetattr(0) == before, flush=True)
"""


def test_keys_come_one_by_one_and_the_terminal_is_put_back() -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, '-c', KEYS])
    text, sent, deadline = '', False, time.monotonic() + 30.0
    try:
        while '\n' not in text.partition('pressed')[2] and time.monotonic() < deadline:  # a read may end mid-line
            if select.select([terminal], [], [], 0.1)[0]:
                text += os.read(terminal, 1000).decode()
            if 'active True' in text and not sent:
                os.write(terminal, b'seq')
                sent = True
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    assert 'pressed seq True' in text


def test_without_a_terminal_there_are_no_keys() -> None:
    program = 'from instructvla_ros.commands._keys import Keys\nwith Keys(print) as keys: print(keys.active)'
    done = subprocess.run([sys.executable, '-c', program], input='s', capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == 'False' and not done.stderr
