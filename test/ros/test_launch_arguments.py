"""Every launch argument that README names exists, and does something; every one that exists is named there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('launch', reason='launch is not on the package index: part of a full ROS 2 install')
pytest.importorskip('launch_ros', reason='launch_ros is not on the package index: part of a full ROS 2 install')

from launching import declared, effects, module_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# A value other than the default for each argument, and what has to be given beside it for the argument to matter.
FRANKA: dict[str, tuple[str, dict[str, str]]] = {
    'robot': ('real', {}),
    'robot_ip': ('10.0.0.2', {'robot': 'real'}),
    'controller': ('moveit', {}),
    'gripper': ('gripper_command', {}),
    'namespace': ('/left', {}),
    'embodiment': ('panda.yaml', {}),
    'policy': ('expert', {}),
    'checkpoint': ('/runs/a', {}),
    'device': ('cpu', {}),
    'reasoning': ('separate', {}),
    'dry_run': ('true', {}),
    'enable': ('true', {'robot': 'real'}),
    'task': ('stack', {}),
    'seed': ('7', {}),
    'sim_speed': ('0.5', {}),
    'viz': ('false', {}),
    'rviz': ('true', {}),
    'web': ('true', {}),
    'web_host': ('0.0.0.0', {'web': 'true'}),
    'web_port': ('9001', {'web': 'true'}),
    'record': ('/data', {}),
    'use_sim_time': ('true', {}),
    'log_level': ('debug', {}),
    'transport_profile': ('/own.xml', {}),
}
REPLAY: dict[str, tuple[str, dict[str, str]]] = {
    'bag': ('bags/monday', {}),
    'episode': ('e-1', {}),
    'instruction': ('wave', {}),
    'rate': ('0.5', {}),
    'wait': ('5.0', {}),
    'out': ('runs/x', {}),
    'limits': ('own.yaml', {}),
    'embodiment': ('panda.yaml', {}),
    'policy': ('instructvla', {}),
    'checkpoint': ('/runs/a', {}),
    'device': ('cpu', {}),
    'reasoning': ('off', {}),
    'viz': ('false', {}),
    'rviz': ('true', {}),
    'web': ('true', {}),
    'web_host': ('0.0.0.0', {'web': 'true'}),
    'web_port': ('9001', {'web': 'true'}),
    'stay': ('true', {}),
    'log_level': ('debug', {}),
    'transport_profile': ('/own.xml', {}),
}
TRAIN: dict[str, tuple[str, dict[str, str]]] = {
    'run': ('stage1', {}),
    'data': ('datasets/a', {}),
    'init': ('models/a', {}),
    'out': ('runs/x', {}),
    'set': ('steps=5', {}),
    'dry_run': ('true', {}),
    'deploy': ('true', {}),
    'service': ('/left/load_checkpoint', {'deploy': 'true'}),
}
NEEDED = {'franka': {}, 'replay': {'bag': 'bags/other'}, 'train': {'out': 'runs/other'}}
EACH = [(file, name) for file, those in (('franka', FRANKA), ('replay', REPLAY), ('train', TRAIN)) for name in those]


def loaded(file: str) -> Any:
    return module_of(ROOT / 'launch' / f'{file}.launch.py')


def in_readme(file: str) -> set[str]:
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    if file == 'franka':
        table = text.split('franka.launch.py` takes', 1)[1].split('\n\n')[1]
        cells = [line.split('|')[1] for line in table.splitlines()[2:]]
        return {name for cell in cells for name in re.findall(r'`(\w+)`', cell)}
    entry = text.split(f'* `{file}.launch.py`:', 1)[1].split('\n* ')[0].split('\n\n')[0]
    return {name for name in re.findall(r'`(\w+)`', re.sub(r'\([^)]*\)', '', entry)) if name}


@pytest.mark.parametrize('file', ['franka', 'replay', 'train', 'arm'])
def test_readme_names_the_arguments_there_are(file: str) -> None:
    assert in_readme(file) == set(declared(loaded(file)))


@pytest.mark.parametrize(('file', 'those'), [('franka', FRANKA), ('replay', REPLAY), ('train', TRAIN)])
def test_no_argument_is_left_out_here(file: str, those: dict[str, Any]) -> None:
    assert set(those) == set(declared(loaded(file)))


@pytest.mark.parametrize(('file', 'name'), EACH, ids=[f'{file}-{name}' for file, name in EACH])
def test_an_argument_changes_what_is_started(file: str, name: str) -> None:
    value, beside = {'franka': FRANKA, 'replay': REPLAY, 'train': TRAIN}[file][name]
    module, beside = loaded(file), {**NEEDED[file], **beside}
    before, after = effects(module, **beside), effects(module, **{**beside, name: value})
    assert before != after
    # A value is seen where it goes, except of switches, which start or leave out something.
    if value not in ('true', 'false', 'separate', 'off', 'real', 'stage1', 'moveit') and name != 'record':
        assert any(value.split('=')[-1] in line for line in set(after) - set(before)), after
