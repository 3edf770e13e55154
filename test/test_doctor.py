"""The doctor: what it says about good and about broken machines, without crashing on either."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from instructvla_ros import doctor, resources
from instructvla_ros.doctor import MISSING, NOTE, OK, Finding

DDS = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_BUILTIN_TRANSPORTS')


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No Fast DDS setting of the caller."""
    for name in DDS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def images(rmw: str = 'rmw_fastrtps_cpp') -> Finding:
    """What the doctor says about images on this middleware."""
    return next(f for f in doctor.transport(rmw) if f.topic == 'images')


def test_report_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """All checks in one go: JSON and exit code agree, nothing could not be checked."""
    code = doctor.run(as_json=True)
    findings = [Finding(**entry) for entry in json.loads(capsys.readouterr().out)]
    topics = {'machine', 'python', 'ROS 2', 'rendering', 'GPU', 'torch', 'cameras', 'optional'}
    assert topics <= {f.topic for f in findings}
    assert code == int(any(f.level == MISSING for f in findings))
    assert not [f for f in findings if 'could not be checked' in f.text]
    assert all(f.remedy for f in findings if f.level == MISSING)


def test_render() -> None:
    text = doctor.render([Finding('a', OK, 'fine'), Finding('longer', MISSING, 'gone', 'get it')])
    assert '[ok  ] a       fine' in text and '-> get it' in text
    assert text.endswith('1 missing; start with the first one.')
    assert doctor.render([Finding('a', NOTE, 'so so')]).endswith('Everything the demo needs is here.')


def test_probe_answers_and_says_why_not() -> None:
    assert doctor.probe('print("noise"); print(\'{"a": 1}\')', 20) == ({'a': 1}, '')
    assert doctor.probe('raise ImportError("no such library")', 20) == ({}, 'ImportError: no such library')
    assert doctor.probe('import os; os._exit(7)', 20) == ({}, 'exit code 7')
    assert doctor.probe('print("not json")', 20)[0] == {}
    answer, why = doctor.probe('import time; time.sleep(60)', 0.5)
    assert not answer and 'no answer' in why


def test_probe_does_not_see_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'shadow_module.py').write_text('')
    monkeypatch.chdir(tmp_path)
    answer, why = doctor.probe('import shadow_module', 20)
    assert not answer and 'shadow_module' in why


def test_a_failing_check_is_a_finding() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding('x', OK, 'so far')
        raise PermissionError('not allowed')

    (finding,) = doctor._checked(broken)
    assert finding.level == NOTE and 'not allowed' in finding.text


def test_without_ros(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'rclpy' else found(name, *a))
    (finding,) = doctor.ros()
    assert finding.level == MISSING and 'make setup' in finding.remedy


def test_ros_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('rclpy', reason='needs ROS 2')
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_of_nobody_cpp')
    (finding,) = doctor.ros()
    assert finding.level == MISSING and 'does not start a node' in finding.text


def test_messages_are_found_where_they_are_built() -> None:
    pytest.importorskip('rclpy', reason='needs ROS 2')
    (finding,) = [f for f in doctor.ros() if f.topic == 'messages']
    assert finding.level == OK, finding.text


def test_no_transport_profile(plain: pytest.MonkeyPatch) -> None:
    finding = images()
    assert finding.level == NOTE and 'best effort' in finding.text
    assert str(resources.transport_profile()) in finding.remedy


@pytest.mark.parametrize('name', ['fastdds.xml', 'fastdds_small.xml'])
def test_our_profiles_are_good(name: str, plain: pytest.MonkeyPatch) -> None:
    plain.setenv('FASTDDS_DEFAULT_PROFILES_FILE', str(resources.config_file(name)))
    assert images().level == OK


def test_the_profile_without_shared_memory_says_what_it_costs(plain: pytest.MonkeyPatch) -> None:
    plain.setenv('FASTDDS_DEFAULT_PROFILES_FILE', str(resources.config_file('fastdds_udp.xml')))
    assert images().level != OK and 'UDP alone' in images().text


def test_profiles_that_do_not_do(plain: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / 'profile.xml'
    plain.setenv('FASTDDS_DEFAULT_PROFILES_FILE', str(file))
    assert 'does not exist' in images().text
    file.write_text('<dds><profiles>')
    assert 'not a valid profile' in images().text
    file.write_text('<dds xmlns="http://www.eprosima.com"><segment_size>524288</segment_size></dds>')
    assert images().level == NOTE and 'no shared memory segment' in images().text
    plain.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'LARGE_DATA')
    assert 'not seen' in images().text
    assert 'rmw_cyclonedds_cpp' in images('rmw_cyclonedds_cpp').text


def test_deprecated_variable_is_named(plain: pytest.MonkeyPatch) -> None:
    plain.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', str(resources.config_file('fastdds.xml')))
    assert images().level == OK and 'deprecated' in images().text


def test_small_shared_memory_takes_the_small_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type('Usage', (), {'free': 60 * 2**20, 'total': 64 * 2**20})
    monkeypatch.setattr(resources.shutil, 'disk_usage', lambda path: usage)
    assert resources.transport_profile().name == 'fastdds_small.xml'
    monkeypatch.setattr(usage, 'free', 2**30)
    assert resources.transport_profile().name == 'fastdds.xml'


def test_no_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('mujoco')
    monkeypatch.setenv('MUJOCO_GL', 'osmesa')
    monkeypatch.setenv('PYOPENGL_PLATFORM', 'nonsense')
    (finding,) = doctor.graphics()
    assert finding.level == MISSING and 'libegl1' in finding.remedy


def test_versions_are_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / 'requirements').mkdir()
    pins = ['numpy==0.0.1; python_version >= "3.8"', 'numpy==9.9.9; python_version < "3.8"', 'scipy==0.2', 'gone==1.0']
    (tmp_path / 'requirements' / 'constraints.txt').write_text('\n'.join(pins))
    monkeypatch.setattr(resources, 'share_directory', lambda: tmp_path)
    (finding,) = [f for f in doctor.python() if f.topic == 'versions']
    assert finding.level == NOTE
    assert 'tested: 0.0.1' in finding.text and 'tested: 0.2' in finding.text
    assert '9.9.9' not in finding.text and 'gone' not in finding.text


def test_ros_packages_are_found_in_sourced_prefixes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / 'share' / 'franka_bringup').mkdir(parents=True)
    (tmp_path / 'share' / 'franka_bringup' / 'package.xml').write_text('<package/>')
    assert not doctor.has_ros_package('franka_bringup')
    monkeypatch.setenv('AMENT_PREFIX_PATH', os.pathsep.join(['/nowhere', str(tmp_path)]))
    assert doctor.has_ros_package('franka_bringup')
    assert any(f.topic == 'optional' and 'Franka driver' in f.text and f.level == OK for f in doctor.extras())
