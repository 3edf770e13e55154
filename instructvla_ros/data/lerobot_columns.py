"""Which columns of a LeRobot dataset are tcp pose, gripper, joints and cameras: guessed by their names, or told.

The format fixes names of files and of book-keeping columns, not what a robot's numbers mean. A guess is only made where
the names are clear, is always reported, and every part can be replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ..errors import DataError, suggest
from .lerobot import Source, axis_names

RotationKind = Literal['rpy', 'rotvec', 'quat']
_SELECTOR = re.compile(r'(?P<key>[^\[\]]+)(?:\[(?P<first>\d+)(?P<range>:(?P<end>\d+)?)?\])?')
_ROTATIONS: tuple[tuple[RotationKind, tuple[str, ...]], ...] = (
    ('quat', ('qx', 'qy', 'qz', 'qw')),
    ('quat', ('rx', 'ry', 'rz', 'rw')),
    ('rpy', ('roll', 'pitch', 'yaw')),
    ('rotvec', ('rx', 'ry', 'rz')),
    ('rotvec', ('wx', 'wy', 'wz')),
)
# Words that make a column something else than the measured tool.
_OTHER = re.compile(r'delta|vel|torque|force|effort|wrench|current|target|goal|object|cube|marker|camera|cmd|command')
_TOOL = re.compile(
    r'(?:ee|eef|tcp|end|effector|hand|flange|tool|cartesian|pose|pos|position|orientation|rot|rotation|state|panda|fr3)'
)
_JOINT = re.compile(r'(?:^|[_.])joint(?:_?(?:pos|positions?|states?|angles?))?[_.]?(\d+)(?:[_.](?:pos|position|q))?$')
_KNOWN_POSE = ('observation.state.cartesian_position', 'observation.cartesian_position')
_KNOWN_JOINTS = (
    'observation.state.joint_position', 'observation.joint_position', 'observation.state.joint_positions',
    'observation.joint_positions', 'observation.state.joints',
)  # fmt: skip
_KNOWN_VELOCITIES = (
    'observation.state.joint_velocity', 'observation.joint_velocity', 'observation.state.joint_velocities',
    'observation.joint_velocities',
)  # fmt: skip
_KNOWN_GRIPPER = ('observation.state.gripper_position', 'observation.gripper_position', 'observation.state.gripper')
_KNOWN_COMMAND = ('action.gripper_position', 'action.gripper')


@dataclass(frozen=True)
class Columns:
    """Selectors: 'key', 'key[3]' or 'key[0:3]' (end not included).

    Attributes:
        position: tcp xyz [m]. rotation: its orientation, read as ``rotation_kind`` (rpy: fixed axes [rad]; quat: xyzw).
        joints, velocities: [rad], [rad/s]. gripper: measured opening. command: commanded opening.
        closed, opened: values of a closed and of an open gripper in both gripper columns.
        views: camera key -> view name. success: true or above 0 in the last frame of a success.
    """

    position: str = ''
    rotation: str = ''
    rotation_kind: RotationKind = 'rpy'
    joints: str = ''
    velocities: str = ''
    gripper: str = ''
    command: str = ''
    closed: float = 0.0
    opened: float = 1.0
    success: str = ''
    views: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.closed == self.opened:
            raise DataError(f'a closed and an open gripper cannot have the same value {self.closed}')
        if self.rotation_kind not in ('rpy', 'rotvec', 'quat'):
            raise DataError(f"rotation kind {self.rotation_kind!r}; allowed: 'rpy', 'rotvec', 'quat'")

    def selectors(self) -> dict[str, str]:
        """Field -> selector of everything that is selected."""
        names = ('position', 'rotation', 'joints', 'velocities', 'gripper', 'command', 'success')
        return {n: getattr(self, n) for n in names if getattr(self, n)}


def parse(selector: str, features: Mapping[str, Mapping[str, Any]]) -> tuple[str, slice]:
    """Column and range of a selector.

    Raises:
        DataError: no such column, or outside it.
    """
    match = _SELECTOR.fullmatch(selector)
    if match is None:
        raise DataError(f"column {selector!r}: write 'name', 'name[3]' or 'name[0:3]'")
    key = match['key']
    if key not in features:
        raise DataError(f'the dataset has no column {key!r}.{suggest(key, features)}')
    width = int(features[key]['shape'][0]) if features[key]['shape'] else 1
    first = int(match['first'] or 0)
    end = first + 1 if match['first'] and not match['range'] else int(match['end'] or width)
    if not 0 <= first < end <= width:
        raise DataError(f'column {selector!r}: {key} has {width} numbers')
    return key, slice(first, end)


def guess(source: Source, told: Columns = Columns()) -> tuple[Columns, list[str]]:  # noqa: B008  # frozen
    """Fill what was not told from the names of the columns.

    Returns:
        Columns, and one line for each guess that rests on a convention rather than on a name.
    """
    notes: list[str] = []
    found: dict[str, Any] = {}
    numbers = {
        k: f for k, f in source.features.items() if f['dtype'].startswith(('float', 'int')) and len(f['shape']) == 1
    }
    states = {k: f for k, f in numbers.items() if k.startswith('observation')}
    if not (told.position and told.rotation):
        pose = _pose(states, notes)
        if told.rotation:
            pose.pop('rotation_kind', None)
        found |= {k: v for k, v in pose.items() if k == 'rotation_kind' or not getattr(told, k)}
    if not told.joints:
        found['joints'] = _joints(states)
    if not told.velocities:
        found['velocities'] = next((k for k in _KNOWN_VELOCITIES if k in states), '')
    if not told.gripper:
        found['gripper'] = _gripper(states, _KNOWN_GRIPPER)
    if not told.command:
        found['command'] = _gripper({k: f for k, f in numbers.items() if k.startswith('action')}, _KNOWN_COMMAND)
    if not told.success:
        names = ('next.success', 'is_episode_successful', 'success')
        found['success'] = next((n for n in names if n in source.features), '')
    if not told.views:
        found['views'] = {k: k.removeprefix('observation.images.').removeprefix('observation.').replace('.', '_')
                          for k in source.cameras}  # fmt: skip
    kept = {f.name for f in fields(Columns)}
    columns = replace(told, **{k: v for k, v in found.items() if v and k in kept})
    if (columns.gripper or columns.command) and (told.closed, told.opened) == (0.0, 1.0):
        notes.append('gripper values are read as 0 closed .. 1 open; tell if they are not (DROID has 1 closed)')
    for selector in columns.selectors().values():
        parse(selector, source.features)
    unknown = sorted(set(columns.views) - set(source.cameras))
    if unknown:
        raise DataError(f'the dataset has no camera {unknown[0]!r}.{suggest(unknown[0], source.cameras)}')
    if len(set(columns.views.values())) < len(columns.views):
        raise DataError(f'two cameras with the same view name: {dict(columns.views)}')
    return columns, notes


def describe(source: Source) -> str:
    """The columns of a dataset in one line each, for a message."""
    lines = []
    for key, feature in source.features.items():
        names = axis_names(feature)
        size = ' x '.join(str(n) for n in feature['shape'])
        lines.append(f'  {key} ({feature["dtype"]}, {size})' + (f': {", ".join(names)}' if names else ''))
    return '\n'.join(lines)


def _pose(states: Mapping[str, Mapping[str, Any]], notes: list[str]) -> dict[str, Any]:
    for key, feature in states.items():
        names = [_bare(n) for n in axis_names(feature)]
        if len(names) != feature['shape'][0]:
            continue
        at = _run(names, ('x', 'y', 'z'))
        if at is None:
            continue
        for kind, last in _ROTATIONS:
            turn = _run(names, last)
            if turn is not None:
                if last[0] == 'rx' and kind == 'rotvec':
                    notes.append(f'{key} {", ".join(last)} are read as a rotation vector; tell if they are angles')
                return {
                    'position': f'{key}[{at}:{at + 3}]', 'rotation': f'{key}[{turn}:{turn + len(last)}]',
                    'rotation_kind': kind,
                }  # fmt: skip
    for key in _KNOWN_POSE:
        if key in states and states[key]['shape'][0] == 6:
            notes.append(f'{key} is read as x, y, z, roll, pitch, yaw')
            return {'position': f'{key}[0:3]', 'rotation': f'{key}[3:6]', 'rotation_kind': 'rpy'}
    return {}


def _joints(states: Mapping[str, Mapping[str, Any]]) -> str:
    for key, feature in states.items():
        if _OTHER.search(key):
            continue
        numbered = [
            (at, int(m[1])) for at, n in enumerate(axis_names(feature)) if (m := _JOINT.search(n)) and 'finger' not in n
        ]
        run = [number for _, number in numbered]
        if len(run) >= 6 and run == list(range(run[0], run[0] + len(run))):
            first = numbered[0][0]
            if [at for at, _ in numbered] == list(range(first, first + len(run))):
                return f'{key}[{first}:{first + len(run)}]'
    return next((f'{k}[0:7]' for k in _KNOWN_JOINTS if k in states and states[k]['shape'][0] in (7, 8)), '')


def _gripper(states: Mapping[str, Mapping[str, Any]], known: tuple[str, ...]) -> str:
    for key in known:
        if key in states and states[key]['shape'][0] == 1:
            return key
    for key, feature in states.items():
        for at, name in enumerate(axis_names(feature)):
            if 'gripper' in name.lower() and not re.search(r'torque|vel|force|effort|current', name.lower()):
                return f'{key}[{at}]'
    return ''


def _bare(name: str) -> str:
    """'ee_pose.x' -> 'x', 'ee_x.pos' -> 'x'; '' when the name speaks of something else than the tool."""
    low = name.lower()
    if _OTHER.search(low):
        return ''
    parts = [p for p in re.split(r'[._]', low) if p]
    while len(parts) > 1 and parts[-1] in ('pos', 'position'):
        parts.pop()
    return parts[-1] if parts and all(_TOOL.fullmatch(p) for p in parts[:-1]) else ''


def _run(names: list[str], wanted: tuple[str, ...]) -> int | None:
    """Where ``wanted`` stands in a row."""
    n = len(wanted)
    return next((k for k in range(len(names) - n + 1) if tuple(names[k : k + n]) == wanted), None)
