"""The package as it is installed: messages, files, declared dependencies, and a wheel built from the source."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_imports import EVERY, inner, is_ros, modules

from instructvla_ros import resources

PACKAGE = 'instructvla_ros'
ROOT = Path(__file__).resolve().parent.parent
# Import name -> name on the package index, where they differ.
DISTRIBUTIONS = {'PIL': 'pillow', 'yaml': 'pyyaml', 'pinocchio': 'pin', 'pink': 'pin-pink'}
# ROS packages that are used when they are there and never required.
OPTIONAL_ROS = {
    'cv_bridge', 'moveit', 'moveit_msgs', 'control_msgs', 'franka_msgs', 'tf2_ros', 'tf2_msgs', 'launch', 'launch_ros',
}


def normal(name: str) -> str:
    """Name of a distribution as the package index compares it."""
    return re.sub(r'[-_.]+', '-', name).lower()


def declared() -> dict[str, str]:
    """Distributions in pyproject.toml by normal name, with the extra they belong to ('' for always)."""
    tomllib = pytest.importorskip('tomllib', reason='reads TOML: Python 3.11 or newer')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    groups = {'': project['dependencies'], **project['optional-dependencies']}
    return {normal(re.match(r'[\w.-]+', text)[0]): extra for extra, texts in groups.items() for text in texts}


def package_xml() -> ElementTree.Element:
    """Root element of package.xml."""
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def interface_files() -> list[Path]:
    """Every .msg, .srv and .action file."""
    return sorted(f for kind in ('msg', 'srv', 'action') for f in (ROOT / kind).glob(f'*.{kind}'))


def test_one_version() -> None:
    text = (ROOT / 'pyproject.toml').read_text()
    versions = {package_xml().findtext('version'), re.search(r'^version = "(.+)"$', text, re.M)[1]}
    assert len(versions) == 1


def test_package_xml() -> None:
    xml = package_xml()
    assert xml.get('format') == '3'
    assert xml.findtext('license') == 'Apache-2.0' and 'Apache License' in (ROOT / 'LICENSE').read_text()
    assert xml.findtext('member_of_group') == 'rosidl_interface_packages'
    depends = {e.text for e in xml if e.tag.endswith('depend')}
    hard = {d for d in depends if d.startswith(('franka', 'moveit'))}
    assert not hard, f'not in rosdistro, or optional: {hard}'


def test_interfaces_depend_on_what_is_declared() -> None:
    """What the message files use is what CMake and package.xml name."""
    used = set()
    for file in interface_files():
        for line in file.read_text().splitlines():
            used |= set(re.findall(r'^\s*(\w+)/\w+', line.split('#')[0]))
    cmake = re.search(r'_interface_dependencies ([\w\s]+)\)', (ROOT / 'CMakeLists.txt').read_text())[1].split()
    depends = {e.text for e in package_xml().iter('depend')}
    assert used <= set(cmake) and set(cmake) <= depends


def test_ros_imports_are_declared() -> None:
    names = {e.text for e in package_xml() if e.tag in ('depend', 'exec_depend')}
    used = {i.target.split('.')[0] for i in EVERY if is_ros(i) and not inner(i) and not i.optional}
    assert used - OPTIONAL_ROS <= names, f'add to package.xml: {sorted(used - OPTIONAL_ROS - names)}'


def loaded_by_pytest() -> set[str]:
    """Modules, below the package, that only pytest loads."""
    tomllib = pytest.importorskip('tomllib', reason='reads TOML: Python 3.11 or newer')
    points = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['entry-points']['pytest11']
    return {module.removeprefix(f'{PACKAGE}.') for module in points.values()}


def test_python_imports_are_declared() -> None:
    have, plugins = declared(), loaded_by_pytest()
    assert {'numpy', 'mujoco', 'torch', 'pytest'} <= set(have)
    missing = set()
    for found in EVERY:
        top = found.target.split('.')[0]
        if top in sys.stdlib_module_names or top == PACKAGE or is_ros(found) or found.optional or top in OPTIONAL_ROS:
            continue
        if top == 'pytest' and found.module in plugins:
            continue
        if have.get(normal(DISTRIBUTIONS.get(top, top)), 'none') not in ('', 'model'):
            missing.add(f'{found} ({normal(DISTRIBUTIONS.get(top, top))})')
    assert not missing, 'not in pyproject.toml:\n' + '\n'.join(sorted(missing))


def test_direct_dependencies_are_pinned() -> None:
    text = (ROOT / 'requirements' / 'constraints.txt').read_text()
    pinned = {normal(name) for name in re.findall(r'^([A-Za-z][\w.-]*)==', text, re.M)}
    assert set(declared()) <= pinned, f'add to constraints.txt: {sorted(set(declared()) - pinned)}'


def test_no_package_index_is_named() -> None:
    files = [ROOT / n for n in ('Makefile', 'setup.py', 'pyproject.toml', 'README.md')]
    files += [f for folder in ('requirements', 'scripts', 'docs', '.ci') for f in (ROOT / folder).rglob('*')]
    for file in files:
        if file.is_file() and file.suffix != '.png':
            text = file.read_text(errors='replace')
            assert not re.search(r'index-url[= ]+https?:|download\.pytorch|pypi\.org', text), file


def test_share_files() -> None:
    share = resources.share_directory()
    for name in ('package.xml', 'config/franka.yaml', 'config/fastdds.xml', 'urdf/franka.urdf.xacro'):
        assert (share / name).is_file(), f'{name} is not in {share}'


def prefix() -> Path | None:
    """Prefix of colcon or of the environment in which the package is installed; None when it is only on PYTHONPATH."""
    folder = Path(str(importlib.util.find_spec(PACKAGE).submodule_search_locations[0]))
    places = [*folder.parents, Path(sys.prefix)]
    return next((p for p in places if (p / 'share' / PACKAGE / 'package.xml').is_file()), None)


def test_ament_index_and_executables() -> None:
    where = prefix()
    if where is None:
        pytest.skip('the package is not installed with pip or colcon')
    assert (where / 'share/ament_index/resource_index/packages' / PACKAGE).is_file()
    names = ('policy', 'reasoning', 'controller', 'sim', 'episode', 'record', 'replay', 'viz', 'web')
    for node in (*(f'{name}_node' for name in names), 'instructvla', 'train'):
        file = where / 'lib' / PACKAGE / node
        assert file.is_file() and os.access(file, os.X_OK), f'{file} is not there or not executable'


def test_executable_is_shell_and_python(tmp_path: Path) -> None:
    """The template runs the Python of its prefix when there is one, and hands over arguments and exit code."""
    text = (ROOT / 'resource' / 'executable.in').read_text()
    ast.parse(text.replace('@MODULE@', 'json.tool'))
    file = tmp_path / 'lib' / 'package' / 'say'
    file.parent.mkdir(parents=True)
    (tmp_path / 'bin').mkdir()
    file.write_text(text.replace('@MODULE@', 'saying'))
    file.chmod(0o755)
    (file.parent / 'saying.py').write_text('import sys\ndef main():\n    print(sys.argv[1:])\n    return 3\n')
    (tmp_path / 'bin' / 'python3').write_text(f'#!/bin/sh\nexec "{sys.executable}" -X utf8 "$@"\n')
    (tmp_path / 'bin' / 'python3').chmod(0o755)
    done = subprocess.run([str(file), 'a b', '--c'], capture_output=True, text=True, cwd='/')
    assert done.returncode == 3 and "['a b', '--c']" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(('name', 'code'), [('slow_node', 0), ('slow', 128 + signal.SIGINT)])
@pytest.mark.parametrize('ignored', [False, True])
def test_an_executable_that_is_interrupted_while_it_loads_goes_without_a_word(
    tmp_path: Path, name: str, code: int, ignored: bool
) -> None:
    """Also when the shell that started it has SIGINT ignored, as for everything in its background."""
    text = (ROOT / 'resource' / 'executable.in').read_text().replace('@MODULE@', name)
    (tmp_path / 'say').write_text(text)
    (tmp_path / f'{name}.py').write_text("print('loading', flush=True)\nimport time\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / 'say')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == 'loading\n'
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30.0) == ('', '') and process.returncode == code


def test_built_messages_are_those_of_the_source() -> None:
    """A build that is older than the .msg files, or a source folder that shadows the build, shows here."""
    pytest.importorskip('rclpy', reason='needs ROS 2')
    msg = importlib.import_module(f'{PACKAGE}.msg')
    srv = importlib.import_module(f'{PACKAGE}.srv')
    action = importlib.import_module(f'{PACKAGE}.action')
    for file in interface_files():
        name = file.stem
        built = {
            'msg': lambda n: [getattr(msg, n)],
            'srv': lambda n: [getattr(srv, n).Request, getattr(srv, n).Response],
            'action': lambda n: [getattr(action, n).Goal, getattr(action, n).Result, getattr(action, n).Feedback],
        }[file.suffix[1:]](name)
        parts = re.split(r'^---.*$', file.read_text(), flags=re.M)
        assert len(parts) == len(built), file
        for part, kind in zip(parts, built, strict=True):
            fields = [line.split('#')[0].split() for line in part.splitlines()]
            names = [f[1] for f in fields if len(f) == 2 and '=' not in f[1]]
            have = [n for n in kind.get_fields_and_field_types() if n != 'structure_needs_at_least_one_member']
            assert have == names, f'{file.name}: the built message has other fields; run `make setup` or colcon build'


@pytest.mark.parametrize('setting, value, says', [('ROS_DISTRO', 'foxy', 'kilted'), ('TORCH', 'gpu', 'cuda')])
def test_setup_refuses_what_it_does_not_know(setting: str, value: str, says: str, tmp_path: Path) -> None:
    env = {'PATH': os.environ['PATH'], 'HOME': str(tmp_path), 'VENV': str(tmp_path / 'venv'), setting: value}
    done = subprocess.run(['bash', str(ROOT / 'scripts/setup.sh')], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and value in done.stderr and says in done.stderr
    assert not (tmp_path / 'venv').exists()


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Wheel built without messages from a copy of the source, as on a machine without ROS."""
    try:
        metadata.version('setuptools')
    except metadata.PackageNotFoundError:
        pytest.skip('setuptools is not installed here')
    folder = tmp_path_factory.mktemp('source')
    source = folder / 'copy'
    skip = shutil.ignore_patterns('.*', 'build', 'runs', 'install', 'log', '*.so', '__pycache__', 'test')
    shutil.copytree(ROOT, source, ignore=skip)
    env = {**os.environ, 'INSTRUCTVLA_MESSAGES': 'off', 'PIP_NO_INDEX': '1'}
    program = 'from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))'
    command = [sys.executable, '-c', program, str(folder)]
    done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(folder.glob('*.whl')))


def test_wheel_without_ros_is_pure(wheel: zipfile.ZipFile) -> None:
    assert Path(str(wheel.filename)).name.endswith('-none-any.whl')
    assert not [n for n in wheel.namelist() if n.endswith('.so') or n.startswith(f'{PACKAGE}/msg')]


def test_wheel_has_every_module_and_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for file in (ROOT / PACKAGE).rglob('*'):
        relative = file.relative_to(ROOT)
        generated = file.suffix in ('.pyc', '.so') or relative.parts[1] in ('msg', 'srv', 'action', 'lib')
        if file.is_file() and not generated:
            assert str(relative) in names, f'{relative} is not in the wheel'
    data = next(n for n in names if '.data/data/' in n).split('.data/')[0] + '.data/data'
    for folder in ('config', 'urdf', 'launch', 'msg', 'srv', 'action'):
        for file in (ROOT / folder).rglob('*'):
            if file.is_file() and '__pycache__' not in file.parts:
                assert f'{data}/share/{PACKAGE}/{file.relative_to(ROOT)}' in names
    assert f'{data}/share/ament_index/resource_index/packages/{PACKAGE}' in names
    node = wheel.getinfo(f'{data}/lib/{PACKAGE}/policy_node')
    assert node.external_attr >> 16 & 0o111, 'executables must stay executable'


def test_rooms_have_packages() -> None:
    """A folder without ``__init__.py`` would be left out of a wheel."""
    folders = {file.parent for file in modules().values()}
    assert not [str(f) for f in folders if not (f / '__init__.py').is_file()]
