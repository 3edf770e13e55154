"""The walls between the layers, read from the source: who may import whom, and which library belongs to which room."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = 'instructvla_ros'
FOLDER = Path(str(importlib.util.find_spec(PACKAGE).submodule_search_locations[0]))
GENERATED = {'msg', 'srv', 'action', 'lib'}
MOST_LINES = 450

# The room (first part of the module name) and its layer. Imports go down, or stay in the layer (never in layer 1).
LAYERS = {
    'errors': 0, 'geometry': 0, 'datatypes': 0, 'config': 0, 'settings': 0, 'resources': 0, 'imaging': 0,
    'wording': 0, 'decoding': 0, 'pairing': 0, 'camera_view': 0, 'launch_checks': 0,
    'model': 1, 'control': 1, 'data': 1, 'sim': 1,
    'policy': 2, 'policy_expert': 2, 'observing': 2, 'goals': 2, 'training': 2, 'evaluation': 2,
    'graph': 2, 'graph_session': 2, 'doctor': 2, 'pace': 2, 'visual': 2, 'annotate': 2, 'operator_page': 2,
    'nodes': 3, 'commands': 3, 'cli': 3,
}  # fmt: skip

ROS = ('rclpy', 'rcl_interfaces', 'rosidl_', 'rosbag2_py', 'builtin_interfaces', 'std_srvs', 'message_filters', 'tf2_',
       'cv_bridge', 'diagnostic_updater', 'ament_index_python')  # fmt: skip
MOVEIT = ('moveit', 'moveit_msgs')
# Library -> rooms that may import it. The tensor edge of data/ is the one module named here.
ROOMS = {
    'torch': ('model', 'policy', 'training', 'evaluation', 'data.tensors'),
    'transformers': ('model', 'training'),
    'safetensors': ('model', 'training', 'data.tensors'),
    'mujoco': ('sim',),
    'pinocchio': ('control',),
    'pink': ('control',),
    'ruckig': ('control',),
    'websockets': ('operator_page',),
}


@dataclass(frozen=True)
class Import:
    """One import statement: where, what (dotted), and whether an ImportError of it is handled."""

    module: str
    line: int
    target: str
    optional: bool
    typing_only: bool

    def __str__(self) -> str:
        return f'{self.module} line {self.line} imports {self.target}'


def modules() -> dict[str, Path]:
    """Dotted name (inside the package) and file of every module that is written by hand."""
    found = {}
    for file in sorted(FOLDER.rglob('*.py')):
        parts = file.relative_to(FOLDER).with_suffix('').parts
        if parts[0] not in GENERATED:
            name = '.'.join(p for p in parts if p != '__init__')
            found[name] = file
    return found


def imports(name: str, file: Path) -> Iterator[Import]:
    """Every import in a file, those inside functions too."""
    package = name.split('.') if file.name == '__init__.py' else name.split('.')[:-1]
    package = [p for p in package if p]

    def walk(node: ast.AST, optional: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(name, child.lineno, alias.name, optional, typing_only)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ''
                if child.level:
                    above = package[: len(package) - child.level + 1]
                    base = '.'.join([PACKAGE, *above, *([base] if base else [])])
                for alias in child.names:
                    yield Import(name, child.lineno, f'{base}.{alias.name}', optional, typing_only)
            elif isinstance(child, ast.Try):
                guarded = any('ImportError' in ast.dump(h.type) or 'ModuleNotFoundError' in ast.dump(h.type)
                              for h in child.handlers if h.type is not None)  # fmt: skip
                yield from walk(child, optional or guarded, typing_only)
            elif isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.dump(child.test):
                yield from walk(child, optional, True)
            else:
                yield from walk(child, optional, typing_only)

    yield from walk(ast.parse(file.read_text(encoding='utf-8'), str(file)), False, False)


EVERY = [i for name, file in modules().items() for i in imports(name, file)]


def room(dotted: str) -> str:
    """Room of a module of this package, '' for the package itself."""
    return dotted.split('.')[0]


def inner(found: Import) -> str:
    """Target inside this package without the package's name, '' for anything else."""
    return found.target[len(PACKAGE) + 1 :] if found.target.startswith(f'{PACKAGE}.') else ''


def named(target: str, names: tuple[str, ...]) -> bool:
    """Whether the top-level package of an import is one of the names (or starts with one ending in '_')."""
    top = target.split('.')[0]
    return any(top == n or (n.endswith('_') and top.startswith(n)) for n in names)


def is_ros(found: Import) -> bool:
    """Whether an import needs ROS: rclpy, message packages, our own messages."""
    top = found.target.split('.')[0]
    return named(found.target, ROS) or top.endswith('_msgs') or room(inner(found)) in GENERATED - {'lib'}


def test_the_reader_sees_imports() -> None:
    """Guard of the guard: a reader that finds nothing would pass everything."""
    assert len(modules()) > 20
    assert any(i.module == 'datatypes' and inner(i).startswith('errors') for i in EVERY)
    assert any(i.module == 'geometry' and i.target.startswith('scipy') for i in EVERY)


def test_every_module_has_a_layer() -> None:
    unknown = sorted({room(name) for name in modules() if name} - set(LAYERS))
    assert not unknown, f'say in LAYERS of {Path(__file__).name} to which layer these belong: {unknown}'


def test_imports_go_down() -> None:
    wrong = []
    for found in EVERY:
        target = room(inner(found))
        if not found.module or target not in LAYERS:
            continue
        here, there = LAYERS[room(found.module)], LAYERS[target]
        if there > here or (here == there == 1 and room(found.module) != target):
            wrong.append(f'{found} (layer {here} -> layer {there})')
    assert not wrong, '\n'.join(wrong)


def test_ros_only_in_nodes() -> None:
    wrong = [str(i) for i in EVERY if is_ros(i) and room(i.module) != 'nodes']
    assert not wrong, '\n'.join(wrong)


def test_moveit_only_in_its_backend() -> None:
    wrong = [str(i) for i in EVERY if named(i.target, MOVEIT) and 'moveit' not in i.module.rpartition('.')[2]]
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('library', sorted(ROOMS))
def test_library_only_in_its_rooms(library: str) -> None:
    rooms = ROOMS[library]
    used = [i for i in EVERY if named(i.target, (library,))]
    wrong = [str(i) for i in used if not any(i.module == r or i.module.startswith(f'{r}.') for r in rooms)]
    assert not wrong, f'{library} belongs to {", ".join(rooms)}:\n' + '\n'.join(wrong)


def test_init_files_are_empty() -> None:
    """rosidl installs an empty ``__init__.py`` over ours on some distributions; code there would vanish."""
    full = [str(f.relative_to(FOLDER)) for f in modules().values() if f.name == '__init__.py' and f.read_text().strip()]
    assert not full, f'must be empty: {full}'


def test_files_stay_small() -> None:
    lengths = {str(f.relative_to(FOLDER)): len(f.read_text(encoding='utf-8').splitlines()) for f in modules().values()}
    long = {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
    assert not long, f'over {MOST_LINES} lines, one idea each: {long}'


def test_no_module_takes_the_name_of_a_generated_one() -> None:
    taken = {'types', *GENERATED} & {name.split('.')[-1] for name in modules() if name}
    assert not taken


def import_all(names: list[str], blocked: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter in which some packages do not exist."""
    program = f"""
import importlib, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + '.') for b in {blocked!r}):
            raise ModuleNotFoundError(f'No module named {{name!r}} (blocked)', name=name)
sys.meta_path.insert(0, Wall())
bad = []
for name in {names!r}:
    try:
        importlib.import_module(name)
    except Exception as err:
        bad.append(f'{{name}}: {{type(err).__name__}}: {{err}}')
print('\\n'.join(bad))
sys.exit(bool(bad))
"""
    return subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120, cwd='/')


def test_layers_0_to_2_import_without_ros() -> None:
    names = [f'{PACKAGE}.{n}' for n in modules() if n and LAYERS.get(room(n), 0) <= 2]
    blocked = sorted({i.target.split('.')[0] for i in EVERY if is_ros(i) and not inner(i)} | {'rclpy'})
    blocked += [f'{PACKAGE}.{kind}' for kind in ('msg', 'srv', 'action')]
    done = import_all(names, blocked)
    assert done.returncode == 0, done.stdout + done.stderr


def test_control_and_simulator_import_without_torch() -> None:
    """``TORCH=none make setup`` still gives a working demo with the scripted expert."""
    rooms = {r for r, layer in LAYERS.items() if layer == 0}
    rooms |= {'control', 'sim', 'policy', 'policy_expert', 'observing', 'goals', 'graph', 'cli'}
    names = [f'{PACKAGE}.{n}' for n in modules() if n and room(n) in rooms]
    done = import_all(names, ['torch', 'transformers', 'safetensors', 'tokenizers'])
    assert done.returncode == 0, done.stdout + done.stderr
