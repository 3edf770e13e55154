"""docs/EXTENDING.md is run: its files are written, its diffs applied to a copy of the package, its scripts started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'EXTENDING.md'
BLOCK = re.compile(r'^```\w+ (\S+)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
IGNORED = shutil.ignore_patterns('__pycache__')

if not PAGE.is_file():
    pytest.skip('docs/ is not beside the tests (installed package)', allow_module_level=True)
BLOCKS = dict(BLOCK.findall(PAGE.read_text(encoding='utf-8')))


def apply(diff: str, folder: Path) -> None:
    """Apply a diff without line numbers: what a hunk takes away has to be in its file exactly once."""
    hunks: list[tuple[Path, list[str], list[str]]] = []
    file = folder
    for line in diff.splitlines():
        if line.startswith('+++ b/'):
            file = folder / line[6:]
        elif line.startswith('@@'):
            hunks.append((file, [], []))
        elif not line.startswith('--- '):
            _, old, new = hunks[-1]
            if line[:1] in (' ', '-'):
                old.append(line[1:])
            if line[:1] in (' ', '+'):
                new.append(line[1:])
    for target, old, new in hunks:
        text, before = target.read_text(encoding='utf-8'), '\n'.join(old) + '\n'
        assert old and text.count(before) == 1, f'{target.name} has {text.count(before)} times:\n{before}'
        target.write_text(text.replace(before, '\n'.join(new) + '\n'), encoding='utf-8')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Folder with a copy of the package, its share files, and every block of the page."""
    folder = tmp_path_factory.mktemp('extending')
    for name in ('instructvla_ros', 'config', 'urdf'):
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    shutil.copy(ROOT / 'package.xml', folder)
    for name, text in BLOCKS.items():
        (folder / name).write_text(text, encoding='utf-8')
    return folder


def run(place: Path, script: str) -> str:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(place)}
    command = [sys.executable, script]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f'{script}\n{done.stdout}\n{done.stderr}'
    return done.stdout


def test_the_page_has_what_it_promises():
    assert {'six.urdf', 'six.yaml', 'raise.diff', 'nodding.py', 'policy.diff'} <= set(BLOCKS)
    assert len([name for name in BLOCKS if name.startswith('try_')]) == 5
    named = re.findall(r'`((?:instructvla_ros|config|test)/[\w/]+\.(?:py|yaml))`', PAGE.read_text(encoding='utf-8'))
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).is_file(), f'docs/EXTENDING.md names {name}, which is not there'


@pytest.mark.parametrize('script', ['try_robot.py', 'try_camera.py', 'try_policy.py'])
def test_scripts_run(place, script):
    print(run(place, script))


def test_the_new_task_is_solved_by_the_expert(place):
    apply(BLOCKS['raise.diff'], place)
    assert run(place, 'try_task.py').startswith("'please hoist the blue cube high': solved after")


def test_the_new_policy_has_a_name(place):
    apply(BLOCKS['policy.diff'], place)
    assert run(place, 'try_policy_by_name.py') == 'made nodding\n'
