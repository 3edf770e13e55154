"""Verbs of ``instructvla dataset`` around other formats: export, import (LeRobot) and annotate (VLA-IT)."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from ..data.lerobot_import import ImportOptions

EXPORT_FORMATS = ('lerobot', 'vla-it')
IMPORT_FORMATS = ('lerobot',)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``dataset export``."""
    parser.add_argument('dataset', help='folder of episodes')
    parser.add_argument('out', help='new folder (lerobot) or file (vla-it)')
    parser.add_argument('--to', choices=EXPORT_FORMATS, required=True, help='lerobot (v3.0), vla-it (annotations)')
    parser.add_argument('--codec', default='h264', help='h264 (default) or av1')
    parser.add_argument('--crf', type=int, default=None, help='video quality, lower is better (default: 18, av1: 24)')
    parser.add_argument('--robot-type', default='', help="name in info.json (default: the dataset's embodiment)")


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``dataset import --from lerobot``."""
    parser.add_argument('source', help='folder of the LeRobot dataset (v3.0 or v2.1)')
    parser.add_argument('out', help='folder of episodes to write or go on with')
    parser.add_argument('--from', dest='origin', choices=IMPORT_FORMATS, required=True, help='format of the source')
    add_lerobot_options(parser)


def add_lerobot_options(parser: argparse.ArgumentParser) -> None:
    """What can be told about a LeRobot dataset of other origin."""
    group = parser.add_argument_group('datasets of other origin', "columns: 'name', 'name[3]' or 'name[0:3]'")
    group.add_argument('--name', default='', help="name of the new dataset (default: the folder's)")
    group.add_argument('--embodiment', default='', help='robot: a file of config/ or a path')
    group.add_argument('--pose-from-joints', action='store_true', help="tcp pose by the robot's kinematics")
    group.add_argument('--position', default='', metavar='COLUMN', help='tcp x y z [m]')
    group.add_argument('--rotation', default='', metavar='COLUMN', help='tcp orientation')
    group.add_argument('--rotation-kind', default='rpy', choices=('rpy', 'rotvec', 'quat'), help='quat: xyzw')
    group.add_argument('--joints', default='', metavar='COLUMN', help='joint positions [rad]')
    group.add_argument('--velocities', default='', metavar='COLUMN', help='joint velocities [rad/s]')
    group.add_argument('--gripper', default='', metavar='COLUMN', help='measured gripper')
    group.add_argument('--command', default='', metavar='COLUMN', help='commanded gripper')
    group.add_argument('--gripper-range', nargs=2, type=float, default=(0.0, 1.0), metavar=('CLOSED', 'OPEN'),
                       help='values of a closed and an open gripper (default: 0 1; DROID: 1 0)')  # fmt: skip
    group.add_argument('--view', action='append', default=[], metavar='KEY=NAME',
                       help='camera to take and its view name, repeatable (default: all)')  # fmt: skip
    group.add_argument('--stride', type=int, default=1, help='take every n-th frame (default: 1)')
    group.add_argument('--episodes', default='', metavar='FROM:TO', help='episode numbers, end not included')
    group.add_argument('--quality', type=int, default=95, help='of the JPEG pictures; 0: PNG (default: 95)')


def add_annotate_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``dataset annotate``."""
    parser.add_argument('dataset', help='folder of episodes')
    parser.add_argument('out', help='folder for the annotated copy')
    parser.add_argument('--file', action='append', default=[], help='VLA-IT annotations, repeatable; later ones win')
    parser.add_argument('--group', default='', help="file_path in the files (default: the dataset's name)")
    parser.add_argument('--no-primitives', action='store_true', help='no move primitives from motion')
    parser.add_argument('--skip-bad', action='store_true', help='leave out entries of another form and count them')


def run_export(arguments: argparse.Namespace) -> int:
    """Write a dataset in another format."""
    from ..data.episodes import Dataset

    dataset = Dataset.open(arguments.dataset)
    if arguments.to == 'vla-it':
        from ..data.vla_it import write_dataset

        count = write_dataset(dataset, arguments.out)
        _tell(arguments, {'path': arguments.out, 'annotated': count, 'episodes': len(dataset)},
              f'{arguments.out}: annotations of {count} of {len(dataset)} episodes')  # fmt: skip
        return 0
    from ..data.lerobot_export import ExportOptions, export_dataset
    from ._dataset_tables import bar

    options = ExportOptions(arguments.codec, arguments.crf, arguments.robot_type)
    with bar('exporting', 1.0, arguments.json) as show:
        done = export_dataset(dataset, arguments.out, options, lambda n, total: show(n / total))
    facts = {'path': str(done.path), 'episodes': done.episodes, 'frames': done.frames, 'tasks': done.tasks}
    text = f'{done.path}: {done.episodes} episodes, {done.frames} frames, {done.tasks} sentences'
    _tell(arguments, {**facts, 'notes': done.notes}, text, done.notes)
    return 0


def run_import(arguments: argparse.Namespace) -> int:
    """Read a LeRobot dataset; 1 when episodes could not be read."""
    from ..data.lerobot_import import import_dataset
    from ._dataset_tables import bar

    options = import_options(arguments)
    with bar('importing', 1.0, arguments.json) as show:
        done = import_dataset(arguments.source, arguments.out, options, lambda n, total: show(n / total))
    notes = list(done.notes)
    if done.columns is not None:
        chosen = {**done.columns.selectors(), 'views': ', '.join(f'{k} as {v}' for k, v in done.columns.views.items())}
        notes = [f'{field}: {value}' for field, value in chosen.items()] + notes
    notes += [f'episode {number} left out: {why}' for number, why in done.failed.items()]
    path, failed = str(done.dataset.path), len(done.failed)
    text = f'{path}: {done.episodes} episodes, {done.frames} frames taken, {failed} left out'
    facts = {'path': path, 'episodes': done.episodes, 'frames': done.frames, 'failed': failed, 'notes': notes}
    _tell(arguments, facts, text, notes)
    return 1 if done.failed else 0


def run_annotate(arguments: argparse.Namespace) -> int:
    """Copy a dataset with annotations."""
    from ..data.annotating import annotate_dataset
    from ..data.episodes import Dataset
    from ..data.vla_it import Annotations
    from ._dataset_tables import bar

    files = [Annotations.open(f, strict=not arguments.skip_bad) for f in arguments.file]
    dataset, motion = Dataset.open(arguments.dataset), not arguments.no_primitives
    with bar('annotating', 1.0, arguments.json) as show:
        done = annotate_dataset(
            dataset, arguments.out, files, arguments.group, motion, lambda n, total: show(n / total)
        )
    notes = [p for f in files for p in f.problems]
    if done.unused:
        notes.append(f'{done.unused} entries of the files belong to no episode of this dataset')
    path = str(done.dataset.path)
    text = (
        f'{path}: {done.episodes} episodes written, {done.texts} with texts of a file, {done.primitives} with move '
        'primitives from motion'
    )
    facts = {'path': path, 'episodes': done.episodes, 'texts': done.texts, 'primitives': done.primitives}
    _tell(arguments, {**facts, 'unused': done.unused, 'notes': notes}, text, notes)
    return 0


def import_options(arguments: argparse.Namespace) -> ImportOptions:
    """Options of an import from the command line.

    Raises:
        DataError: a view or a range of episodes that cannot be read.
    """
    from ..data.lerobot_columns import Columns
    from ..data.lerobot_import import ImportOptions

    views = {}
    for item in arguments.view:
        key, mark, name = item.partition('=')
        if not mark or not key or not name:
            raise DataError(f'--view {item!r}: KEY=NAME is needed, for example observation.images.front=base')
        views[key] = name
    closed, opened = arguments.gripper_range
    columns = Columns(
        arguments.position, arguments.rotation, arguments.rotation_kind, arguments.joints, arguments.velocities,
        arguments.gripper, arguments.command, closed, opened, views=views,
    )  # fmt: skip
    more = _robot(arguments.embodiment) if arguments.embodiment else {}
    if arguments.pose_from_joints and not more:
        raise DataError('--pose-from-joints needs --embodiment, for example --embodiment franka.yaml')
    return ImportOptions(
        columns, arguments.name, arguments.embodiment, stride=arguments.stride, quality=arguments.quality,
        episodes=_numbers(arguments.episodes), pose_from_joints=arguments.pose_from_joints, **more,
    )  # fmt: skip


def _robot(name: str) -> dict[str, Any]:
    from .. import config, resources
    from ..control.kinematics import Kinematics
    from ..settings import Embodiment

    robot = config.load(Embodiment, resources.config_file(name))
    forward = Kinematics(robot).forward
    return {
        'forward': forward, 'delta_frame': robot.delta_frame, 'rotation': robot.rotation, 'frame_id': robot.base_frame,
    }  # fmt: skip


def _numbers(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    first, mark, end = text.partition(':')
    try:
        return tuple(range(int(first or 0), int(end))) if mark else (int(first),)
    except ValueError:
        raise DataError(f'--episodes {text!r}: a number or FROM:TO is needed, for example 0:10') from None


def _tell(arguments: argparse.Namespace, facts: dict[str, Any], text: str, notes: Any = ()) -> None:
    if arguments.json:
        print(json.dumps(facts))
        return
    print(text)
    for note in notes:
        print(f'  {note}')
