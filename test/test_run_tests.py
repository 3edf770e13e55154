"""The runner of the tests: what it sums up, and that only a graph gets a second try."""

import importlib.util
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / 'scripts' / 'run_tests.py'
# Fails until a file beside it says that it ran before.
FLAKY = """
from pathlib import Path
def test_on_time():
    ran = Path(__file__).with_suffix('.ran')
    again, _ = ran.exists(), ran.touch()
    assert again
def test_steady():
    counted = Path(__file__).with_suffix('.count')
    counted.write_text(counted.read_text() + 'x' if counted.exists() else 'x')
"""
BROKEN = 'def test_broken():\n    assert False\n'
GOOD = 'def test_good():\n    pass\n'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own with the runner in it; gives the runner and a function that writes a test file."""
    spec = importlib.util.spec_from_file_location('run_tests', SCRIPT)
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    monkeypatch.setattr(runner, 'ROOT', tmp_path)
    monkeypatch.setenv('PYTEST_DISABLE_PLUGIN_AUTOLOAD', '1')  # what is installed is not needed and takes seconds
    (tmp_path / 'pytest.ini').write_text('[pytest]\n')

    def write(name: str, text: str) -> None:
        path = tmp_path / 'test' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write('test_a.py', GOOD)
    write('test_b.py', GOOD)
    return runner, write


def test_what_misses_a_deadline_once_passes_and_is_named(project, tmp_path, capsys):
    runner, write = project
    write('ros/test_flaky.py', FLAKY)
    assert runner.main(['-q']) == 0
    said = capsys.readouterr().out
    assert 'passed at the second try: test/ros/test_flaky.py: test_on_time' in said
    assert '=== all tests: 4 passed in' in said
    assert (tmp_path / 'test/ros/test_flaky.count').read_text() == 'x', 'what had passed ran again'


@pytest.mark.parametrize(('body', 'code', 'told'), [
    (GOOD, 0, 'passed, and did not end by itself: test/ros/test_stays.py'),
    (BROKEN, 1, 'not passed: test/ros/test_stays.py (exit code 1)'),
])  # fmt: skip
def test_a_process_that_stays_after_its_results_is_ended(project, monkeypatch, capsys, body, code, told):
    runner, write = project
    monkeypatch.setattr(runner, 'LEAVE_S', 1.0)
    stays = 'import threading, time\nthreading.Thread(target=time.sleep, args=(300,)).start()\n'
    write('ros/test_stays.py', stays + body)
    began = time.monotonic()
    assert runner.main(['-q']) == code
    assert told in capsys.readouterr().out and time.monotonic() - began < 60.0


def test_what_fails_twice_fails(project, capsys):
    runner, write = project
    write('ros/test_broken.py', BROKEN + GOOD)
    assert runner.main(['-q']) == 1
    said = capsys.readouterr().out
    assert 'not passed: test/ros/test_broken.py (exit code 1)' in said and 'second try' not in said
    assert '=== all tests: 3 passed, 1 failed in' in said


@pytest.mark.parametrize(('name', 'arguments'), [('test_c.py', ['-q']), ('ros/test_c.py', ['-q', '-x'])])
def test_plain_tests_and_somebody_who_watches_get_one_try(project, capsys, name, arguments):
    runner, write = project
    write(name, FLAKY)
    assert runner.main(arguments) == 1
    assert 'once more' not in capsys.readouterr().out
