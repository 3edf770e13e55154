"""A measurement ends by its own time limit, whatever it waits for, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructvla_ros.evaluation.time_limit import EXIT_LATE

SCRIPT = """
import os, signal, subprocess, sys, threading, time
from instructvla_ros.evaluation import time_limit
time_limit._POLITE = time_limit._LAST_WORDS = 1.0

def main():
{body}

sys.exit(time_limit.limited(main, {seconds}))
"""
SLEEPER = "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True)"


def start(folder: Path, *lines: str, seconds: float = 1.0) -> subprocess.Popen[str]:
    """A script whose ``main`` has these lines."""
    file = folder / 'measure.py'
    file.write_text(SCRIPT.format(body='\n'.join(f'    {line}' for line in lines), seconds=seconds))
    return subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether a process ends; one that is dead and not yet waited for counts as gone."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
        except OSError:
            return True
        if state == 'Z':
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize('code', [0, 1, 7])
def test_the_exit_code_of_a_script_that_ends_is_its_own(tmp_path: Path, code: int) -> None:
    process = start(tmp_path, "print('measured')", f'return {code}', seconds=60.0)
    out, _ = process.communicate(timeout=60.0)
    assert (process.returncode, out.strip()) == (code, 'measured')


def test_a_script_that_waits_for_ever_says_where(tmp_path: Path) -> None:
    process = start(tmp_path, 'def stuck(): threading.Event().wait()', 'stuck()')
    _, said = process.communicate(timeout=60.0)
    assert process.returncode == EXIT_LATE
    assert 'measure.py did not end within 1 s' in said and 'in stuck' in said


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks at processes in /proc')
def test_one_that_hears_no_signal_is_killed_with_what_it_started(tmp_path: Path) -> None:
    deaf = 'signal.signal(signal.SIGINT, signal.SIG_IGN)'
    process = start(tmp_path, SLEEPER, deaf, 'def deaf(): time.sleep(60)', 'deaf()')
    out, said = process.communicate(timeout=60.0)
    assert process.returncode == EXIT_LATE
    assert 'in deaf' in said, 'SIGABRT prints the stacks of all threads'
    assert gone(int(out))


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks at processes in /proc')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_what_it_started(tmp_path: Path, number: int) -> None:
    process = start(tmp_path, SLEEPER, 'time.sleep(60)', seconds=60.0)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(process.pid, number)
    process.communicate(timeout=60.0)
    assert process.returncode == 128 + signal.SIGINT
    assert gone(pid)
