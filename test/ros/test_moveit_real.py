"""The real move_group with mock hardware: `pytest -m moveit test/ros/test_moveit_real.py` where MoveIt is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from instructvla_ros import config, doctor, resources
from instructvla_ros.control.clearance import Answer, Question
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.nodes import moveit_messages
from instructvla_ros.settings import Control, Embodiment, MoveIt, Obstacle

ARM = Path(__file__).resolve().parents[2] / 'launch' / 'arm.launch.py'
PANDA = config.load(Embodiment, resources.config_file('panda.yaml'))
KIN = Kinematics(PANDA)
HOME = np.array(PANDA.home)


def _missing() -> str:
    if moveit_messages.MISSING:
        return moveit_messages.MISSING
    if shutil.which('ros2') is None or importlib.util.find_spec('launch_ros') is None:
        return 'the ros2 command and launch_ros are not installed'
    spec = importlib.util.spec_from_file_location('arm_launch', ARM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.missing('fake')


pytestmark = [pytest.mark.moveit, pytest.mark.skipif(bool(_missing()), reason=_missing() or 'MoveIt is here')]


@pytest.fixture(scope='module')
def move_group(tmp_path_factory) -> Iterator[None]:
    """MoveIt with mock hardware, as franka.launch.py robot:=fake starts it."""
    folder = tmp_path_factory.mktemp('moveit')
    with (folder / 'out.txt').open('w') as log:
        process = subprocess.Popen(
            ['ros2', 'launch', str(ARM), 'robot:=fake'], stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, 'ROS_LOG_DIR': str(folder)},
        )  # fmt: skip
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_doctor_finds_it_fit(move_group, ros):
    from instructvla_ros.nodes.moveit_doctor import check

    deadline = time.monotonic() + 60.0
    while True:
        found = check('panda.yaml', 'controller.yaml', 30.0)
        bad = [f for f in found if f.level == doctor.MISSING]
        if not bad or time.monotonic() > deadline:
            break
        time.sleep(2.0)
    assert not bad, doctor.render(found)


START = KIN.forward(HOME)
CRATE = Obstacle('crate', (0.4, 0.1, 0.6), (float(START[0, 3]), float(START[1, 3]) + 0.3, 0.4))


@pytest.mark.parametrize('check', ['states', 'cartesian'])
def test_it_judges_ways_and_plans(move_group, ros, check):
    from instructvla_ros.nodes.moveit_backend import MoveItBackend

    settings = MoveIt(check=check, tip='panda_hand', timeout=2.0, startup_wait=60.0, obstacles=(CRATE,))
    judge(MoveItBackend, Control(backend='moveit', moveit=settings))


@pytest.mark.skipif(importlib.util.find_spec('moveit') is None, reason='moveit_py is not installed')
@pytest.mark.parametrize('package', ['', 'moveit_resources_panda_moveit_config'])
def test_moveit_py_judges_ways_and_plans(move_group, ros, package):
    from instructvla_ros.nodes.moveit_py_backend import MoveItPyBackend

    settings = MoveIt(config_package=package, timeout=2.0, startup_wait=60.0, obstacles=(CRATE,))
    judge(MoveItPyBackend, Control(backend='moveit_py', moveit=settings))


def judge(kind, control: Control) -> None:
    """A free way, one into the crate, and a motion home."""
    answers: list[Answer] = []
    start = START
    backend = kind(PANDA, control, answers.append)
    try:
        for direction, free in (((0.0, -0.2, 0.0), True), ((0.0, 0.3, 0.0), False)):
            poses = np.tile(start, (17, 1, 1))
            poses[:, :3, 3] += np.linspace(0.0, 1.0, 17)[:, None] * np.array(direction)
            answers.clear()
            backend.ask(Question(None, HOME, 0, 0.1 * np.arange(17), poses))  # type: ignore[arg-type]
            deadline = time.monotonic() + 20.0
            while not answers and time.monotonic() < deadline:
                time.sleep(0.01)
            assert answers and not answers[0].failure, answers
            assert (answers[0].free == 17) is free, answers[0]
        away = HOME + np.array([-0.6, 0.2, 0, 0, 0, 0, 0])
        route = backend.plan(away, HOME)
        np.testing.assert_allclose(route.at(route.duration)[0], HOME, atol=0.01)
    finally:
        backend.close()
