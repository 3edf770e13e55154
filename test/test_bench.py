"""`instructvla bench`: what is measured, the file, the tables, and what happens where a part cannot run."""

from __future__ import annotations

import importlib.util
import json

import pytest

from instructvla_ros import cli, config
from instructvla_ros.commands import bench
from instructvla_ros.evaluation.bench_control import measure_control
from instructvla_ros.resources import config_file
from instructvla_ros.settings import Control, Embodiment

ARM = config.load(Embodiment, config_file('franka.yaml'))


def invoke(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(['bench', *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_control_times_every_period_and_its_parts():
    control = config.load(Control, config_file('controller.yaml'))
    found = measure_control(ARM, control, 2.0)
    parts = found['parts']
    assert found['period'] == pytest.approx(0.01)
    assert parts['period while tracking']['count'] == parts['period while holding']['count'] == 200
    assert parts['chunk admission']['count'] == 10
    # It moves from the first chunk on: a period without inverse kinematics is one that holds.
    assert 180 <= parts['inverse kinematics']['count'] <= 200
    for times in parts.values():
        assert 0.0 < times['p50'] <= times['p99'] <= times['max']
    assert parts['inverse kinematics']['p50'] < parts['period while tracking']['p50']


def test_control_through_the_command_line(capsys, tmp_path):
    out = tmp_path / 'new' / 'b.json'
    code, text, err = invoke(capsys, 'control', '--quick', '--out', str(out))
    assert code == 0, err
    assert 'control: one period' in err and 'inverse kinematics' in text and str(out) in text
    saved = json.loads(out.read_text())
    assert saved['control']['parts']['period while tracking']['count'] == 500
    assert saved['machine'] and saved['versions']['python'] and len(saved['load_after']) == 3
    assert 'model' not in saved and 'transport' not in saved


def test_model_side_by_side(capsys, tmp_path):
    pytest.importorskip('torch', reason='the model needs torch (pip install .[model])')
    pytest.importorskip('transformers', reason='the model needs transformers (pip install .[model])')
    out = tmp_path / 'b.json'
    code, text, err = invoke(
        capsys,
        'model',
        '--size',
        'tiny',
        '--stage',
        '2',
        '--repeats',
        '1',
        '--device',
        'cpu',
        '--json',
        '--out',
        str(out),
    )
    assert code == 0 and not err
    found = json.loads(text)
    assert found == json.loads(out.read_text())
    (model,) = found['model']
    assert (model['size'], model['stage'], model['dtype'], model['device']) == ('tiny', 2, 'float32', 'cpu')
    assert 1e6 < model['parameters'] < 1e7 and all(s['repeats'] == 1 for s in model['steps'])
    steps = {s['step']: s for s in model['steps']}
    assert set(steps) == {
        'action only, bias',
        'action only, block',
        'sentence of 20 + action',
        'latent reused every second step',
    }
    for step in steps.values():
        assert step['difference'] < 1e-4 and step['ratio'] == pytest.approx(step['plain_s'] / step['fast_s'])
    bench_tables = importlib.import_module('instructvla_ros.commands._bench_tables')
    bench_tables.show(found)
    assert 'tiny, stage 2, float32, cpu' in ' '.join(capsys.readouterr().out.split())


def test_what_cannot_run_is_left_out_or_refused_by_name(capsys, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *rest: None if name in ('torch', 'rclpy') else real(name, *rest)
    )
    out = tmp_path / 'b.json'
    code, text, _ = invoke(capsys, 'all', '--quick', '--out', str(out))
    assert code == 0 and 'model was left out: torch is missing' in text and 'transport was left out' in text
    saved = json.loads(out.read_text())
    assert 'skipped' in saved['model'] and 'parts' in saved['control']
    for part, words in (('model', 'torch is missing'), ('transport', 'rclpy is not installed')):
        code, _, err = invoke(capsys, part, '--out', str(out))
        assert code == 2 and words in err and err.count('\n') == 1


def test_a_part_that_fails_does_not_lose_the_others(capsys, tmp_path, monkeypatch):
    def fail(*_):
        raise bench.SetupError('the sender ended with exit code 1')

    monkeypatch.setattr(bench, '_transport', fail)
    monkeypatch.setattr(bench, '_model', lambda *_: [])
    monkeypatch.setattr(bench, '_obstacle', lambda part: '')
    out = tmp_path / 'b.json'
    code, text, _ = invoke(capsys, '--quick', '--out', str(out))
    saved = json.loads(out.read_text())
    assert code == 1 and 'transport failed: the sender' in text
    assert saved['control']['parts'] and saved['transport']['failed']


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['engine'], 'invalid choice'),
        (['model', '--size', 'huge'], 'invalid choice'),
        (['model', '--repeats', '-1'], '--repeats -1'),
        (['model', '--threads', '-2'], '--threads -2'),
        (['model', '--size', 'tiny', '--device', 'tpu'], "device 'tpu'"),
        (['model', '--size', 'tiny', '--dtype', 'float3'], "'float3'"),
        (['control', '--out', '.'], 'is a folder'),
    ],
)
def test_bad_options_end_in_one_line(capsys, monkeypatch, tmp_path, arguments, words):
    if '--size' in arguments and 'tiny' in arguments:
        pytest.importorskip('torch', reason='the model needs torch (pip install .[model])')
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke(capsys, *arguments)
    assert code == 2 and words in err and not out
    assert not (tmp_path / 'runs').exists()
