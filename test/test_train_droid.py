"""Real recordings of a Franka, from their files to an error on held-out episodes; where they lie beside the source."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip('torch')
pytest.importorskip('pinocchio')

from training_doubles import SMALL  # noqa: E402

from instructvla_ros.model.checkpoint import load  # noqa: E402
from instructvla_ros.training.record import read_facts, read_predictions  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
DROID = ROOT.parent / 'shared' / 'realdata' / 'droid_franka'
EPISODES = ('droid_subset/annotation/train/1.json', 'droid_subset/annotation/train/0.json',
            'droid_new_setup/annotation/val/0006.json')  # fmt: skip


@pytest.mark.skipif(not DROID.is_dir(), reason='../shared/realdata/droid_franka is not here')
def test_droid_files_become_a_checkpoint_and_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location('train_droid', ROOT / 'scripts' / 'train_droid.py')
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (tmp_path / 'small.yaml').write_text(SMALL)
    words = [str(DROID / e) for e in EPISODES] + [
        '--out',
        str(tmp_path / 'run'),
        '--model',
        str(tmp_path / 'small.yaml'),
    ]
    words += ['--share', '0.34', '--hold', 'any']
    words += ['--set', 'steps=3', 'batch=4', 'fewest=1', 'validation_frames=8', 'validate_every=3']
    code = script.main(words)
    told = capsys.readouterr().out
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert code == (0 if result['ratio']['action'] < 1.0 else 1), 'the exit code says whether the mean chunk was beaten'
    assert result['train_episodes'] == 2 and len(result['held_out_episodes']) == 1 and result['steps'] == 3
    error = result['error']
    one, still, many, mean = (error[k] for k in (script.NOISY, script.STILL, script.MANY, script.MEAN))
    assert 1.0 < mean['end_mm'] < 500.0 and 0.0 < mean['action'] < 1.5 and 0.0 <= one['gripper_right'] <= 1.0
    assert many['action'] < one['action'], 'the mean of draws has less noise than one of them'
    assert still['action'] < one['action'], 'without noise there is none that weights of three steps leave in'
    nothing = error[script.NOTHING]
    assert nothing['gripper_right'] > 0.7, 'fingers seldom change their mind'
    assert result['ratio']['absolute'] == pytest.approx(still['absolute'] / mean['absolute'])
    assert 'droid_new_setup has 1 demonstration(s), at least two are needed: all of it is trained on' in told
    assert f'{mean["end_mm"]:.1f} mm' in told
    facts = read_facts(tmp_path / 'run' / 'train')
    assert facts['datasets'][0]['embodiment'] == 'panda' and facts['validation'][0]['held_out'] == 1
    assert len(read_predictions(tmp_path / 'run' / 'train')) == 1
    assert (tmp_path / 'run' / 'train' / 'report.html').is_file()
    bundle = load(tmp_path / 'run' / 'train' / 'checkpoint')
    slow, fast = bundle.dataset('droid_new_setup'), bundle.dataset('droid_subset')
    assert (slow.q99 > slow.q01)[:6].all() and (fast.q99 != slow.q99)[:6].all(), 'each place is scaled by itself'
