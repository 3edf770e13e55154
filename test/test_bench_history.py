"""Benchmarks over time: the numbers that are kept, the line, the picture; the parts graph and replay."""

from __future__ import annotations

import json
import subprocess

import pytest

from instructvla_ros import cli
from instructvla_ros.commands import _bench_more, bench
from instructvla_ros.errors import DataError
from instructvla_ros.evaluation import bench_history

STAGE = {'count': 9, 'mean': 0.07, 'p50': 0.06, 'p95': 0.09, 'p99': 0.12, 'max': 0.2}
RESULTS = {
    'created': '2026-01-02 03:04:05',
    'machine': {'processor': 'One', 'cores': '2 usable of 2'},
    'versions': {'python': '3.11'},
    'load_before': [0.1, 0.1, 0.1],
    'load_after': [1.0, 0.5, 0.1],
    'model': [
        {'size': 'tiny', 'stage': 2, 'dtype': 'float32', 'device': 'cpu',
         'steps': [{'step': 'action only', 'plain_s': 0.06, 'fast_s': 0.03, 'ratio': 2.0}]}
    ],
    'control': {'period': 0.01, 'parts': {'period while tracking': {'p50': 0.001, 'p99': 0.002}}},
    'transport': {'skipped': 'no ROS'},
    'train': {'failed': 'no memory'},
    'graph': {'stages': {'camera to command': STAGE}, 'jitter': STAGE, 'policy': 'instructvla', 'checkpoint': 'tiny',
              'episodes': 2, 'solved': 2},
    'replay': {'speed': {'times_real_time': 5.5, 'one_by_one': 3.7, 'target': 8.0, 'chunks': 30,
                         'per_chunk_ms': {'infer': 30.0}}, 'repeatable': True},
}  # fmt: skip


def test_the_main_numbers_of_every_part_that_ran():
    found = bench_history.numbers(RESULTS)
    model = 'model tiny stage 2 float32 cpu: action only'
    assert found[model] == {'value': 0.03, 'kind': 'time'}
    assert found[f'{model}, against the reference'] == {'value': 2.0, 'kind': 'ratio'}
    assert found['graph tiny: camera to command, p95']['value'] == 0.09
    assert found['replay: direct'] == {'value': 5.5, 'kind': 'speed'}
    assert found['control: period while tracking, p99']['value'] == 0.002
    assert not [n for n in found if n.startswith(('transport', 'train'))]


def test_a_history_grows_by_a_line_and_says_where_and_of_what(tmp_path):
    file = tmp_path / 'new' / 'bench.jsonl'
    bench_history.append(RESULTS, file, 'first')
    bench_history.append({**RESULTS, 'machine': {'processor': 'Two'}}, file)
    with file.open('a') as out:
        out.write('{"format": 1, "numbers": {"cut o')
    first, second = bench_history.read(file)
    assert first['note'] == 'first' and first['created'] == RESULTS['created'] and first['load'][1][0] == 1.0
    assert bench_history.machine_name(first) == 'One, 2 usable of 2' and bench_history.machine_name(second) == 'Two'
    picture = bench_history.draw([first, second], tmp_path / 'bench.png')
    assert picture.read_bytes()[:4] == b'\x89PNG' and picture.stat().st_size > 10_000


def test_nothing_measured_leaves_no_line(tmp_path):
    with pytest.raises(DataError, match='nothing was measured'):
        bench_history.append({'control': {'skipped': 'x'}}, tmp_path / 'h.jsonl')
    assert not (tmp_path / 'h.jsonl').exists()
    with pytest.raises(DataError, match='begins one'):
        bench_history.read(tmp_path / 'h.jsonl')


def test_the_commit_is_that_of_the_source_and_says_when_files_differ(tmp_path):
    assert bench_history.commit(tmp_path) == ''

    def git(*words: str) -> str:
        command = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b', *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git('init', '-q')
    (tmp_path / 'a').write_text('1')
    git('add', 'a')
    git('commit', '-q', '-m', 'a')
    clean = bench_history.commit(tmp_path)
    assert clean == git('rev-parse', '--short', 'HEAD').strip()
    (tmp_path / 'a').write_text('2')
    assert bench_history.commit(tmp_path) == clean + '+'


def test_the_verb_keeps_a_history_when_asked(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, '_control', lambda *_: RESULTS['control'])
    assert cli.main(['bench', 'control', '--out', 'a.json', '--json']) == 0
    assert not (tmp_path / 'docs').exists(), 'only when asked'
    assert cli.main(['bench', 'control', '--out', 'a.json', '--json', '--history', '--note', 'idle']) == 0
    captured = capsys.readouterr()
    entry = json.loads((tmp_path / _bench_more.HISTORY).read_text())
    assert entry['note'] == 'idle' and (tmp_path / 'docs/results/bench.png').is_file()
    assert 'bench.png' in captured.err and json.loads(captured.out.splitlines()[-1])['control']


def test_graph_and_replay_are_shown_in_tables(capsys):
    from instructvla_ros.commands import _bench_tables

    control = {'period': 0.01, 'parts': {}}
    graph = {**RESULTS['graph'], 'stages': {'total': STAGE}}
    _bench_tables.show({**RESULTS, 'control': control, 'model': None, 'graph': graph})
    said = ' '.join(capsys.readouterr().out.split())
    for words in ('camera to command', '60.0', '120.0', 'bit for bit', '5.5', '3.7'):
        assert words in said


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['graph', '--episodes', '-1'], '--episodes -1'),
        (['replay', '--seconds', '2'], '--seconds 2'),
        (['graph', '--policy', 'hold', '--checkpoint', 'x'], 'exclude each other'),
        (['control', '--history', '.'], 'is a folder'),
    ],
)
def test_bad_options_of_the_parts_end_in_one_line(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['bench', *arguments]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / 'runs').exists()


def test_a_short_replay_is_measured():
    pytest.importorskip('torch', reason='the model needs torch (pip install .[model])')
    from instructvla_ros.evaluation.bench_replay import measure_replay

    said: list[str] = []
    found = measure_replay(3.0, 0.0, 2, safety=False, progress=said.append)
    assert found['repeatable'] and found['speed']['times_real_time'] > 0.0 and 10 <= found['speed']['chunks'] <= 16
    assert set(found['speed']['per_chunk_ms']) == {'decode', 'think', 'infer'} and said and 'memory' not in found
