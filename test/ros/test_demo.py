"""`instructvla demo` and `evaluate graph` end to end: real processes, real DDS, and nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructvla_ros.evaluation import metrics, runlog

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('instructvla_ros.nodes.controller_node') is None, reason='there is no controller node'
)
NODES = ('sim_node', 'controller_node', 'policy_node', 'episode_node')


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != 'ROS_DOMAIN_ID'}  # the demo finds a free one
    return subprocess.Popen(
        [sys.executable, '-m', 'instructvla_ros.cli', *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment,
    )


def run(*arguments: str, cwd: Path, timeout: float = 300.0) -> tuple[int, str, str]:
    process = start(*arguments, cwd=cwd)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        pytest.fail(f'took longer than {timeout} s:\n{out}\n{err}')
    return process.returncode, out, err


def processes_of(folder: Path) -> list[int]:
    """Processes whose working directory is in the folder: the nodes of its graph."""
    found = []
    for entry in Path('/proc').iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / 'cwd')).is_relative_to(folder.resolve()):
                state = (entry / 'stat').read_text().rsplit(')', 1)[1].split()[0]
                found += [int(entry.name)] if state != 'Z' else []
        except OSError:
            continue
    return found


def gone(folder: Path, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not processes_of(folder):
            return True
        time.sleep(0.1)
    return False


def test_the_shipped_checkpoint_drives_the_demo(tmp_path):
    """It says what it will do, names the object it was asked for, and acts on the sentence; it may still fail."""
    folder = tmp_path / 'run'
    words = 'drop the red cube into the bowl please'
    short = ('--no-video', '--time-limit', '9')
    code, out, err = run('demo', *short, '--say', words, '--out', str(folder), '--json', cwd=tmp_path)
    result = json.loads(out)
    assert code == (0 if result['success'] else 1), f'{out}\n{err}'
    assert (result['instruction'], result['meant']) == (words, 'put the red cube in the bowl')
    log = runlog.load(folder)
    assert log.meta['policy'] == 'instructvla' and log.meta['checkpoint'] == 'tiny'
    said = [r['text'] for r in log.reasoning]
    right = ['red cube' in text and 'bowl' in text for text in said]
    assert said and right[0] and sum(right) >= 0.75 * len(right), said
    assert set(log.chunk_reasoning) & {r['id'] for r in log.reasoning}
    assert metrics.summarize(log)['chunks']['count'] > 10


def test_demo_with_video(tmp_path):
    folder = tmp_path / 'run'
    began = time.monotonic()
    code, out, err = run('demo', '--policy', 'expert', '--out', str(folder), '--json', cwd=tmp_path)
    wall = time.monotonic() - began
    assert code == 0, f'{out}\n{err}'
    assert gone(folder, 1.0)
    result = json.loads(out)
    assert result['success'] and result['instruction'] == 'put the red cube in the bowl'
    assert result['wall_time'] < wall < 90.0 / result['speed']
    assert {p.name for p in (folder / 'log').iterdir()} == {f'{name}.log' for name in NODES}

    log = runlog.load(folder)
    summary = metrics.summarize(log)
    assert log.meta['success'] and log.meta['policy'] == 'expert'
    assert summary['chunks']['played'] >= 0.7 * summary['chunks']['count'] > 10
    assert summary['sentences'] >= 2 and set(log.chunk_reasoning) & {r['id'] for r in log.reasoning}
    # Loose bounds: they hold on a loaded machine and catch a wrong clock, unit or association.
    latency = summary['latency']
    assert 0.0 < latency['without_policy']['p50'] < 0.5
    assert latency['total']['p50'] >= latency['without_policy']['p50']
    assert 0.005 < summary['controller']['period']['p50'] < 0.02
    assert 0.3 < summary['path']['measured'] < 5.0
    assert max(summary['tracking']['rms']) < 0.2
    assert summary['controller']['gripper_changes'] >= 2

    video = log.video
    assert video['views'] == ['third_person', 'wrist'] and video['size'] == [1280, 480]
    assert 0.6 * result['duration'] < video['frames'] / video['rate'] < result['duration'] + 4.0
    html = (folder / 'report.html').read_text()
    assert 'src="data:video/mp4;base64,' in html and 'put the red cube in the bowl' in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_demo_without_video_of_another_task(tmp_path):
    code, out, err = run(
        'demo', '--task', 'pick', '--seed', '3', '--policy', 'expert', '--no-video', '--out', str(tmp_path / 'run'),
        cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, f'{out}\n{err}'
    assert f'report: {tmp_path / "run" / "report.html"}' in out
    assert 'solved' in err and 'I will' in err
    log = runlog.load(tmp_path / 'run')
    assert not log.video and not len(log.frames.stamp_ns) and not (tmp_path / 'run' / 'video.mp4').exists()
    assert '<video' not in (tmp_path / 'run' / 'report.html').read_text()


@pytest.mark.parametrize(
    ('number', 'policy'), [(signal.SIGINT, 'auto'), (signal.SIGTERM, 'expert'), (signal.SIGKILL, 'expert')]
)
def test_demo_killed_in_the_middle_leaves_nothing(tmp_path, number, policy):
    folder = tmp_path / 'run'
    process = start('demo', '--policy', policy, '--out', str(folder), cwd=tmp_path)
    try:
        seen = ''
        while 'I will' not in seen:  # the arm moves
            line = process.stderr.readline()
            assert line, f'ended early:\n{seen}'
            seen += line
        assert len(processes_of(folder)) >= len(NODES)
        process.send_signal(number)
        assert gone(folder), f'still running after {number.name}: {processes_of(folder)}'
        assert process.wait(timeout=10) == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    finally:
        process.kill()
        process.communicate()


def test_evaluate_runs_episodes_on_one_graph_and_continues(tmp_path):
    def evaluate(episodes: int) -> tuple[dict, str]:
        arguments = (
            'evaluate',
            'graph',
            '--task',
            'pick',
            '--episodes',
            str(episodes),
            '--out',
            str(tmp_path / 'runs'),
            '--speed',
            'auto',
        )
        code, out, err = run(*arguments, '--json', cwd=tmp_path)
        assert code == 0, f'{out}\n{err}'
        return json.loads(out)['tasks']['pick'], (tmp_path / 'runs' / 'log' / 'sim_node.log').read_text()

    first, log = evaluate(2)
    assert first['episodes'] == 2 and first['successes'] >= 1
    assert len(re.findall(r'episode \d+:', log)) == 2
    second, log = evaluate(3)
    assert second['episodes'] == 3
    assert len(re.findall(r'episode \d+:', log)) == 3, 'the first two were run again'
    rows = [json.loads(line) for line in (tmp_path / 'runs' / 'episodes.jsonl').read_text().splitlines()]
    assert [r['seed'] for r in rows] == [0, 1, 2] and all(r['latency']['without_policy']['p50'] for r in rows)
    assert gone(tmp_path / 'runs', 1.0)
