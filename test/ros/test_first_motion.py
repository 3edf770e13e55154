"""scripts/bench_launch.py: the launch of the README really moves the arm, and its steps come in order."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'bench_launch.py'
pytestmark = pytest.mark.skipif(
    shutil.which('ros2') is None or importlib.util.find_spec('launch_ros') is None,
    reason='the ros2 command and launch_ros are part of a full ROS 2 install',
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), '--json', '--timeout', '300', *arguments], capture_output=True, text=True,
        timeout=400, env=dict(os.environ),
    )  # fmt: skip


def test_the_arm_moves_after_the_steps_before_it() -> None:
    # The time itself is for a quiet machine.
    done = run('--limit', '300', 'viz:=false', 'sim_speed:=auto')
    assert done.returncode == 0, done.stderr
    (times,) = json.loads(done.stdout)['runs']
    order = [times[k] for k in ('joint_states', 'action_server', 'accepted', 'chunk', 'command', 'motion')]
    assert order == sorted(order) and 0.0 < order[0], times
    assert 'sentence' in times, 'the checkpoint of the package says what it does'


def test_what_goes_wrong_is_shown_with_the_output_of_the_launch() -> None:
    done = run('embodiment:=no_such.yaml')
    assert done.returncode == 2 and 'the launch ended; reached nothing' in done.stderr
    assert 'no_such.yaml' in done.stderr
