"""The API reference builds, and a broken docstring reference is an error. `make docs` builds all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / 'scripts' / 'build_docs.py'
MODULES = ('instructvla_ros.geometry', 'instructvla_ros.datatypes', 'instructvla_ros.errors', 'instructvla_ros.config')

pytest.importorskip('pdoc', reason='the API reference needs pdoc (pip install .[dev])')


def build(out, *modules, **environment):
    import os

    command = [sys.executable, str(SCRIPT), '--out', str(out), *modules]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


def test_it_builds_without_warnings(tmp_path):
    done = build(tmp_path / 'api', *MODULES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(' 0 warnings\n')
    page = (tmp_path / 'api' / 'instructvla_ros' / 'geometry.html').read_text()
    assert 'apply_delta' in page and 'Homogeneous (4, 4) pose' in page


def test_a_warning_is_an_error(tmp_path):
    """A default value that cannot be shown, and an annotation that cannot be resolved, are what pdoc warns about."""
    (tmp_path / 'broken.py').write_text(
        'from __future__ import annotations\n\ndef f(x: NoSuchType) -> None:\n    """Do nothing."""\n'
    )
    done = build(tmp_path / 'api', 'broken', PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and 'NoSuchType' in done.stderr
