"""The pytest plugin as a user would use it: in a run of its own, on the small simulator bag of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BAG = Path(__file__).resolve().parent / 'data' / 'sim_put'
PLUGIN = 'instructvla_ros.evaluation.pytest_replay'


def pytest_of_a_user(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'pytest', '-q', '-rA', '-p', 'no:cacheprovider', *arguments]
    installed = subprocess.run(
        [sys.executable, '-c', 'from importlib.metadata import entry_points as e; print(e(group="pytest11"))'],
        capture_output=True,
        text=True,
    )
    if PLUGIN not in installed.stdout:  # a checkout that was not installed again since the plugin exists
        command += ['-p', PLUGIN]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)


def test_recordings_become_tests(tmp_path: Path) -> None:
    limits = tmp_path / 'limits.yaml'
    limits.write_text(
        'limits:\n  path.rebased_end.p95: {max: 0.001}\n  gripper.recall: {min: 2}\nfaults: [action_delay]\n'
    )
    (tmp_path / 'test_mine.py').write_text(
        'def test_the_plate_is_named(replayed):\n'
        "    assert any('plate' in s['text'] for s in replayed.trace.sentences)\n"
        'def test_nothing_to_do_with_it(request):\n'
        "    assert 'replayed' not in request.fixturenames\n"
    )
    done = pytest_of_a_user(
        tmp_path, '--bag', str(BAG), '--replay-policy', 'recorded', '--replay-limits', str(limits)
    )
    out = done.stdout
    assert done.returncode == 1, out + done.stderr
    assert '1 failed' in out and '5 passed' in out, out
    assert 'gripper.recall: 1, allowed at least 2' in out
    assert 'Traceback' not in out and 'replay_limits.py' not in out
    assert 'test_the_plate_is_named[sim_put]' in out


def test_a_recording_that_cannot_be_read_fails_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / 'bags' / 'broken').mkdir(parents=True)
    (tmp_path / 'bags' / 'broken' / 'broken.mcap').write_bytes(b'nothing')
    done = pytest_of_a_user(tmp_path, '--bag', str(tmp_path / 'bags'), '--replay-policy', 'recorded')
    assert done.returncode == 1 and 'cannot be replayed' in done.stdout, done.stdout


def test_the_plugin_is_silent_without_recordings(tmp_path: Path) -> None:
    (tmp_path / 'conftest.py').write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--mine', default='')\n"
    )
    (tmp_path / 'test_mine.py').write_text(
        'import sys\n'
        'import pytest\n'
        'def test_nothing_is_imported():\n'
        "    assert 'torch' not in sys.modules and 'instructvla_ros.evaluation.replay' not in sys.modules\n"
        'def test_skipped(replayed):\n'
        '    raise AssertionError\n'
        '@pytest.fixture\n'
        'def own():\n'
        '    return 1\n'
        'def test_own(own):\n'
        '    assert own == 1\n'
    )
    done = pytest_of_a_user(tmp_path)
    assert done.returncode == 0 and '2 passed, 1 skipped' in done.stdout, done.stdout
    assert 'give recordings with --bag' in done.stdout


@pytest.mark.parametrize(('name', 'place'), [('--checkpoint', 'conftest'), ('--bag', 'theirs')])
def test_an_option_of_somebody_else_stays_theirs(tmp_path: Path, name: str, place: str) -> None:
    (tmp_path / 'theirs.py').write_text('')
    (tmp_path / f'{place}.py').write_text(
        f"def pytest_addoption(parser):\n    parser.addoption({name!r}, default='x', dest='their_own')\n"
    )
    (tmp_path / 'test_mine.py').write_text(
        "def test_it(pytestconfig):\n    assert pytestconfig.option.their_own == 'y'\n"
    )
    env_path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'theirs', '-p', PLUGIN, name, 'y']
    env = {**os.environ, 'PYTHONPATH': env_path, 'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1'}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_path_is_a_usage_error(tmp_path: Path) -> None:
    done = pytest_of_a_user(tmp_path, '--bag', 'nowhere')
    assert done.returncode == 4 and 'nowhere' in done.stderr, done.stdout + done.stderr
