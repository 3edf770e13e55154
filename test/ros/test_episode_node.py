"""The episode node alone: what it says when the graph is not there, and how it refuses bad parameters."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from instructvla_ros.errors import ConfigError
from instructvla_ros.graph import NodeSpec


def run_node(tmp_path: Path, **parameters) -> subprocess.CompletedProcess[str]:
    spec = NodeSpec('episode_node', 'instructvla_ros.nodes.episode_node', parameters)
    return subprocess.run(spec.command(), capture_output=True, text=True, cwd=tmp_path, timeout=60)


def episodes(tmp_path: Path, text: str = '{"task": "pick", "seed": 0, "instruction": ""}\n') -> str:
    file = tmp_path / 'todo.jsonl'
    file.write_text(text)
    return str(file)


def test_a_silent_graph_is_named(tmp_path):
    done = run_node(tmp_path, episodes=episodes(tmp_path), output=str(tmp_path / 'out'), ready_timeout=1.5)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 2
    assert events[0]['event'] == 'waiting' and events[-1]['event'] == 'error'
    for name in ('joint states', 'simulator state', 'camera wrist', 'service /sim/reset', 'action execute'):
        assert name in events[0]['silent'] and name in events[-1]['text']


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({}, 'episodes and output are needed'),
        ({'episodes': 'nowhere.jsonl', 'output': 'out'}, 'nowhere.jsonl'),
        ({'episodes': 'todo.jsonl', 'output': 'out', 'episodez': 'x'}, "Did you mean 'episodes'"),
        ({'episodes': 'x', 'output': 'out', 'settle': -1.0}, 'settle'),
    ],
)
def test_bad_parameters_are_one_line(tmp_path, parameters, words):
    episodes(tmp_path)
    done = run_node(tmp_path, **parameters)
    assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize('text', ['', '[1, 2]\n', '{"task": \n'])
def test_bad_episode_files_are_refused(tmp_path, text):
    from instructvla_ros.nodes.episode_files import read_episodes

    with pytest.raises(ConfigError, match='todo.jsonl'):
        read_episodes(Path(episodes(tmp_path, text)))


def test_result_rows_are_strict_json(tmp_path):
    from instructvla_ros.nodes.episode_files import append_json

    append_json(tmp_path / 'rows.jsonl', {'value': float('nan')})
    append_json(tmp_path / 'rows.jsonl', {'value': 2.0})
    assert [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()] == [
        {'value': None},
        {'value': 2.0},
    ]
