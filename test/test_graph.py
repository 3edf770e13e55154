"""graph.py: nothing it starts outlives it, and a node that dies is named with its last words. No ROS needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructvla_ros import graph
from instructvla_ros.graph import Graph, NodeDied, NodeSpec, yaml_value

STAND_IN = """
import json, os, signal, subprocess, sys, time
how = sys.argv[1]
print('started', how, os.environ['ROS_DOMAIN_ID'], flush=True)
if how == 'dies':
    print('cannot open the camera', file=sys.stderr, flush=True)
    sys.exit(3)
if how == 'deaf':
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if how == 'family':
    print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)
if how == 'talks':
    for k in range(3):
        print(json.dumps({'k': k}), flush=True)
    sys.exit(0)
try:
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    print('clean end', flush=True)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Folder with a module ``stand_in`` that a node can be."""
    (tmp_path / 'stand_in.py').write_text(STAND_IN)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    monkeypatch.delenv('ROS_DOMAIN_ID', raising=False)
    return 'stand_in'


def spec(module: str, how: str, **options) -> NodeSpec:
    return NodeSpec(how, module, arguments=[how], **options)


def alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def wait_for(condition, seconds: float = 8.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_stops_by_interrupt_first_and_keeps_the_logs(module, tmp_path):
    with Graph([spec(module, 'runs')], tmp_path / 'log') as running:
        pid = running.pid('runs')
        assert wait_for(lambda: 'started' in running.tail('runs'))
        assert running.tail('runs').split()[2] == str(running.domain)
    assert not alive(pid)
    assert 'clean end' in (tmp_path / 'log' / 'runs.log').read_text()


def test_a_deaf_node_and_the_child_of_a_node_end_too(module, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, '_POLITE', 0.3)
    with Graph([spec(module, 'deaf'), spec(module, 'family')], tmp_path) as running:
        pids = [running.pid('deaf'), running.pid('family')]
        assert wait_for(lambda: len((tmp_path / 'family.log').read_text().split()) >= 4)
        pids.append(int((tmp_path / 'family.log').read_text().split()[3]))
        assert all(alive(p) for p in pids)
    assert wait_for(lambda: not any(alive(p) for p in pids), 3.0)


def test_early_death_is_reported_with_the_tail_of_the_log(module, tmp_path):
    with Graph([spec(module, 'runs'), spec(module, 'dies')], tmp_path) as running:
        assert wait_for(lambda: running.exit_code('dies') is not None)
        with pytest.raises(NodeDied, match=r'dies ended with exit code 3(.|\n)*cannot open the camera'):
            running.check()


def test_death_by_signal_is_named(module, tmp_path):
    with Graph([spec(module, 'runs')], tmp_path) as running:
        os.kill(running.pid('runs'), signal.SIGKILL)
        assert wait_for(lambda: running.exit_code('runs') is not None)
        with pytest.raises(NodeDied, match='SIGKILL'):
            running.check()


def test_lines_of_a_piped_node(module, tmp_path):
    with Graph([spec(module, 'talks', piped=True, ends=True)], tmp_path) as running:
        said = [line for line in running.lines('talks') if line]
    assert said[1:] == ['{"k": 0}', '{"k": 1}', '{"k": 2}']


def test_lines_end_with_an_error_when_another_node_dies(module, tmp_path):
    with Graph([spec(module, 'dies'), spec(module, 'runs', piped=True)], tmp_path) as running:
        with pytest.raises(NodeDied, match='dies'):
            for _ in running.lines('runs'):
                pass


def test_restart_gives_a_new_process(module, tmp_path):
    with Graph([spec(module, 'runs')], tmp_path) as running:
        before = running.pid('runs')
        assert wait_for(lambda: 'started' in running.tail('runs'))
        running.restart('runs')
        assert running.pid('runs') != before and not alive(before)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_survives_the_parent(module, tmp_path, number):
    script = (
        'import sys, time\n'
        'from instructvla_ros.graph import Graph, NodeSpec\n'
        f'nodes = [NodeSpec(how, {module!r}, arguments=[how]) for how in ("runs", "deaf")]\n'
        f'with Graph(nodes, {str(tmp_path / "log")!r}) as g:\n'
        '    print(g.pid("runs"), g.pid("deaf"), flush=True)\n'
        '    time.sleep(60)\n'
    )
    parent = subprocess.Popen(
        [sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
    )
    pids = [int(p) for p in parent.stdout.readline().split()]
    logs = [tmp_path / 'log' / f'{name}.log' for name in ('runs', 'deaf')]
    assert wait_for(lambda: all('started' in log.read_text() for log in logs))
    parent.send_signal(number)
    assert wait_for(lambda: not any(alive(p) for p in pids), 12.0)
    parent.wait(timeout=10)


def test_two_graphs_get_different_domains(monkeypatch):
    taken = [graph.Domain() for _ in range(5)]
    try:
        assert len({d.number for d in taken}) == 5
        assert all(d.number in graph.DOMAINS for d in taken)
    finally:
        for d in taken:
            d.release()


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', '42')
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', '/mine.xml')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    env = graph.environment(7)
    assert (env['ROS_DOMAIN_ID'], env['FASTDDS_DEFAULT_PROFILES_FILE'], env['ROS_AUTOMATIC_DISCOVERY_RANGE']) == (
        '42',
        '/mine.xml',
        'SUBNET',
    )


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (True, 'true'),
        (3, '3'),
        (0.1, '0.1'),
        ('put it: "there"', '"put it: \\"there\\""'),
        ('12', '"12"'),
        ([1.0, 2.0], '[1.0, 2.0]'),
        ('', '""'),
    ],
)
def test_parameter_values_keep_their_type(value, text):
    import yaml

    assert yaml_value(value) == text
    assert yaml.safe_load(text) == value
