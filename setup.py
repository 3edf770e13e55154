"""pip build of the package. Metadata is in pyproject.toml, the messages are built by CMakeLists.txt.

With a ROS 2 that has the message generators (sourced, or installed as wheels in this environment) the messages are
built into the wheel, or into the source tree for ``pip install -e .``. Without one, the parts that need no ROS are
installed and the build says what is missing. ``INSTRUCTVLA_MESSAGES=require`` makes that an error, ``off`` skips it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

PACKAGE = 'instructvla_ros'
ROOT = Path(__file__).resolve().parent
GENERATED = ('msg', 'srv', 'action')
PYTHON = f'python{sys.version_info.major}.{sys.version_info.minor}'


def ros_prefixes() -> list[Path]:
    """Prefixes with ROS 2 message generators for this Python: what is sourced, else this environment itself."""
    sourced = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    for prefixes in (sourced, [Path(sys.prefix)]):
        if any((p / 'share' / 'rosidl_default_generators').is_dir() for p in prefixes):
            return prefixes
    return []


def message_environment(prefixes: list[Path]) -> dict[str, str]:
    """Environment for CMake. pip's build isolation hides site-packages from child processes; this undoes it."""
    env = dict(os.environ)
    env['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), env.get('PATH', os.defpath)])
    paths = [str(p) for p in prefixes]
    env['AMENT_PREFIX_PATH'] = os.pathsep.join(paths)
    before = [p for p in env.get('CMAKE_PREFIX_PATH', '').split(os.pathsep) if p and p not in paths]
    env['CMAKE_PREFIX_PATH'] = os.pathsep.join(paths + before)
    modules = [p for p in env.get('PYTHONPATH', '').split(os.pathsep) if p and 'pip-build-env' not in p]
    for prefix in prefixes:
        if prefix != Path(sys.prefix):
            folders = (prefix / 'lib' / PYTHON / 'site-packages', prefix / 'local' / 'lib' / PYTHON / 'dist-packages')
            modules += [str(f) for f in folders if f.is_dir() and str(f) not in modules]
    env.pop('PYTHONPATH', None)
    if modules:
        env['PYTHONPATH'] = os.pathsep.join(modules)
    return env


def stop(text: str) -> None:
    """End the build with a message that pip shows."""
    raise SystemExit(f'\n{PACKAGE}: {text}\n')


def build_messages(prefixes: list[Path]) -> Path:
    """Build and install the messages with CMake into a private prefix below ``build/``; return that prefix."""
    env = message_environment(prefixes)
    missing = [
        name
        for name, programs in (('cmake', ['cmake']), ('make', ['make', 'ninja']), ('g++', ['c++', 'g++', 'clang++']))
        if not any(shutil.which(p, path=env['PATH']) for p in programs)
    ]
    if missing:
        stop(
            f'building the ROS 2 messages needs {", ".join(missing)}. On Debian or Ubuntu: '
            f'sudo apt-get install -y {" ".join(missing)}. To install without messages: INSTRUCTVLA_MESSAGES=off'
        )
    check = subprocess.run(
        [sys.executable, '-c', 'import rosidl_generator_py, rosidl_adapter'], env=env, capture_output=True, text=True
    )
    if check.returncode:
        stop(
            f'the ROS 2 in {env["AMENT_PREFIX_PATH"]} is not made for {PYTHON} ({sys.executable}), or is incomplete:\n'
            f'{check.stderr.strip()}\nUse the Python it was built for, or `make setup`, which repairs the wheels'
        )
    # One build folder per Python and ROS: several environments may share the checkout.
    key = hashlib.sha256('\n'.join([sys.prefix, PYTHON, *map(str, prefixes)]).encode()).hexdigest()[:8]
    folder = ROOT / 'build' / f'messages-{key}'
    prefix = folder / 'prefix'
    configure = [
        'cmake', '-S', str(ROOT), '-B', str(folder), '-DINSTRUCTVLA_MESSAGES_ONLY=ON', '-DBUILD_TESTING=OFF',
        f'-DCMAKE_INSTALL_PREFIX={prefix}', f'-DPython3_EXECUTABLE={sys.executable}',
    ]  # fmt: skip
    build = ['cmake', '--build', str(folder), '--parallel', str(os.cpu_count() or 1)]
    install = ['cmake', '--install', str(folder)]
    for attempt in range(2):
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / 'build.log'
        with log.open('w') as out:
            for command in (configure, build, install):
                if command is install:
                    shutil.rmtree(prefix, ignore_errors=True)
                if subprocess.run(command, env=env, stdout=out, stderr=subprocess.STDOUT).returncode:
                    break
            else:
                return prefix
        tail = '\n'.join(log.read_text(errors='replace').splitlines()[-40:])
        if attempt == 0:  # an interrupted or outdated build folder is the usual reason: start over
            shutil.rmtree(folder)
    raise SystemExit(f'\n{tail}\n{PACKAGE}: the messages did not build with the ROS 2 in {env["AMENT_PREFIX_PATH"]}\n')


def replace(source: Path, target: Path) -> None:
    """Copy a file so that a process that has the old one open keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}.{os.getpid()}')
    shutil.copy2(source, part)
    os.replace(part, target)


class BuildMessages(build_ext):
    """Put the built messages where Python will import them from."""

    def run(self) -> None:
        """Build, then fill ``build_lib`` (wheel) or the source tree (editable), and name the prefix files."""
        prefix = build_messages(ros_prefixes())
        modules = next(prefix.rglob(f'{PACKAGE}/msg/__init__.py')).parents[1]
        in_place = self.inplace or getattr(self, 'editable_mode', False)
        target = (ROOT if in_place else Path(self.build_lib)) / PACKAGE
        self.written = []
        for file in sorted(modules.rglob('*')):
            relative = file.relative_to(modules)
            if file.suffix == '.so' or (file.suffix == '.py' and relative.parts[0] in GENERATED):
                replace(file, target / relative)
                self.written.append(str(target / relative))
        libraries = sorted((prefix / 'lib').glob('*.so'))
        if in_place:
            for file in libraries:
                replace(file, target / 'lib' / file.name)
            kept = {Path(p).name for p in self.written}
            for kind in GENERATED:  # a message that was renamed or removed must not stay importable
                for file in (target / kind).glob('*'):
                    if file.is_file() and file.name not in kept:
                        file.unlink()
        shared = [p for p in sorted(prefix.rglob('*')) if p.is_file() and p.relative_to(prefix).parts[0] != 'lib']
        have = {str(Path(folder) / Path(f).name) for folder, files in self.distribution.data_files for f in files}
        for file in libraries + shared:
            relative = file.relative_to(prefix)
            if str(relative) not in have and 'parent_prefix_path' not in relative.parts:
                self.distribution.data_files.append((str(relative.parent), [str(file.relative_to(ROOT))]))

    def get_outputs(self) -> list[str]:
        """Files of the wheel; none for an editable install, whose files lie in the source tree."""
        return [] if getattr(self, 'editable_mode', False) else getattr(self, 'written', [])

    def get_output_mapping(self) -> dict[str, str]:
        """setuptools asks for it in editable mode; nothing has to be linked."""
        return {}


class BuildModules(build_py):
    """Build from clean: setuptools would otherwise keep modules that no longer exist."""

    def run(self) -> None:
        """Remove what an earlier build left, then copy the modules."""
        if not getattr(self, 'editable_mode', False):
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()


class PrefixDistribution(Distribution):
    """Install the prefix files for an editable install too, where setuptools asks for them by this name only."""

    def has_data(self) -> bool:
        """There are always files for ``share/``."""
        return True


def executables() -> list[str]:
    """Write the executables of ``lib/instructvla_ros`` (for ``ros2 run`` and launch files) and return their paths."""
    template = (ROOT / 'resource' / 'executable.in').read_text()
    modules = {f.stem: f'{PACKAGE}.nodes.{f.stem}' for f in sorted((ROOT / PACKAGE / 'nodes').glob('*_node.py'))}
    modules['instructvla'] = f'{PACKAGE}.cli'
    modules['train'] = f'{PACKAGE}.commands.train'
    folder = ROOT / 'build' / 'executables'
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        (folder / name).write_text(template.replace('@MODULE@', module))
        (folder / name).chmod(0o755)
    return [str((folder / name).relative_to(ROOT)) for name in modules]


def share_files() -> list[tuple[str, list[str]]]:
    """Files of the prefix that need no build: share/, the ament index and the executables."""
    share = f'share/{PACKAGE}'
    files: dict[str, list[str]] = {
        share: ['package.xml'],
        'share/ament_index/resource_index/packages': [f'resource/{PACKAGE}'],
        f'lib/{PACKAGE}': executables(),
    }
    for top in ('config', 'launch', 'models', 'requirements', 'urdf', 'msg', 'srv', 'action'):
        for file in sorted((ROOT / top).rglob('*')):
            if file.is_file() and '__pycache__' not in file.parts:
                relative = file.relative_to(ROOT)
                files.setdefault(f'{share}/{relative.parent}', []).append(str(relative))
    return list(files.items())


def package_files(packages: list[str]) -> dict[str, list[str]]:
    """Files beside the modules that are not Python (templates, small weights)."""
    found: dict[str, list[str]] = {}
    for package in packages:
        folder = ROOT / package.replace('.', '/')
        found[package] = [f.name for f in folder.iterdir() if f.is_file() and f.suffix not in ('.py', '.pyc', '.so')]
    return found


def messages_wanted() -> bool:
    """Whether this build makes the messages; says so when they will be missing."""
    mode = os.environ.get('INSTRUCTVLA_MESSAGES', 'auto')
    if mode not in ('auto', 'require', 'off'):
        stop(f'INSTRUCTVLA_MESSAGES={mode!r} is not one of auto, require, off')
    if mode == 'off':
        return False
    if ros_prefixes():
        return True
    text = (
        'no ROS 2 with message generators is sourced or installed in this environment. The parts that need no ROS '
        'work (model, control, simulator, training, offline replay); nodes and `instructvla demo` do not. '
        'For the whole: `make setup`, or source a ROS 2 and install again'
    )
    if mode == 'require':
        stop(text)
    print(f'{PACKAGE}: {text}', file=sys.stderr)
    return False


packages = find_packages(
    include=[PACKAGE, f'{PACKAGE}.*'],
    exclude=[f'{PACKAGE}.{kind}{tail}' for kind in (*GENERATED, 'lib') for tail in ('', '.*')],
)
setup(
    distclass=PrefixDistribution,
    packages=packages,
    package_data=package_files(packages),
    include_package_data=False,
    data_files=share_files(),
    ext_modules=[Extension(f'{PACKAGE}._messages', sources=[])] if messages_wanted() else [],
    cmdclass={'build_ext': BuildMessages, 'build_py': BuildModules},
    zip_safe=False,
)
