"""Recordings to training data, and looking after it.

`build` turns bags (of `ros2 bag record` or of `instructvla record`; no ROS needed) or DROID files into episodes at the
rate of the model. Bags that are in the dataset already are passed over, so the same command adds what is new.
`inspect` says what is in a dataset, `stats` writes dataset_statistics.json, `merge` and `split` work by episodes.
`export` and `import` speak LeRobot, `annotate` adds texts (VLA-IT) and the motion in words.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import _dataset_lerobot
from ._pairs import pairs

ORDER = 22
HELP = 'bags to episodes; inspect, statistics, merge, split, annotate, LeRobot'
EXAMPLES = (
    'instructvla dataset build bags/monday bags/tuesday --out data/shelf --step-period 0.1',
    'instructvla dataset build bags/kitchen --out data/kitchen --topic /camera/color/image_raw=/cam0/image_raw',
    'instructvla dataset build --from droid ~/droid_subset --out data/droid --embodiment panda.yaml',
    'instructvla dataset inspect data/shelf --sheet sheet.png',
    'instructvla dataset stats data/shelf',
    'instructvla dataset split data/shelf --train data/train --test data/test --share 0.1 --seed 0',
    'instructvla dataset annotate data/shelf data/shelf_it --file shelf_instruction.json',
    'instructvla dataset export data/shelf out/shelf --to lerobot',
    'instructvla dataset import droid data/droid --from lerobot --embodiment franka.yaml --gripper-range 1 0',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest='action', required=True, metavar='<action>')

    def action(name: str, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.add_argument('--json', action='store_true', help='print the result as one JSON object')
        return sub

    build = action('build', 'bags or DROID files to episodes')
    build.add_argument('source', nargs='+', help='bag, folder of bags, or with --from droid the folder of the episodes')
    build.add_argument('--out', required=True, help='folder of the dataset, new or existing')
    build.add_argument('--from', dest='kind', choices=('bags', 'droid'), default='bags', help='kind of source')
    build.add_argument(
        '--embodiment', default='', help='robot: a file of config/ or a path (default: the one in the bag, or franka)'
    )
    build.add_argument('--step-period', type=float, default=None, help='seconds per frame (default 0.1, droid 0.2)')
    build.add_argument('--instruction', default='', help='for all episodes; with droid only where there is none')
    build.add_argument('--name', default='', help='of the dataset (default: the folder)')
    build.add_argument(
        '--topic', action='append', default=[], metavar='WANTED=RECORDED', help='other topic name; may be repeated'
    )
    build.add_argument('--on-gap', choices=('split', 'refuse'), default='split', help='at gaps and clock jumps')
    build.add_argument('--max-gap', type=float, default=None, help='longest silence of a camera to bridge (0.3 s)')
    build.add_argument('--sync-slop', type=float, default=None, help='largest spread of the views of a frame (0.05 s)')
    build.add_argument('--min-frames', type=int, default=None, help='shorter episodes are left out (8)')
    build.add_argument('--quality', type=int, default=None, help='JPEG quality of the pictures, 0: exact PNG (95)')
    build.add_argument(
        '--camera', action='append', default=[], metavar='VIEW=NUMBER', help='droid: video of a view (wrist=2)'
    )

    inspect = action('inspect', 'what is in a dataset')
    inspect.add_argument('dataset')
    inspect.add_argument('--episodes', action='store_true', help='list every episode')
    inspect.add_argument('--sheet', default='', metavar='FILE.png', help='contact sheet of up to 12 episodes')

    stats = action('stats', 'write dataset_statistics.json')
    stats.add_argument('dataset', nargs='+', help='several: statistics over all, written into each')
    stats.add_argument('--name', default='', help='key in the file (default: name of the first dataset)')

    merge = action('merge', 'several datasets into a new one')
    merge.add_argument('dataset', nargs='+')
    merge.add_argument('--out', required=True)
    merge.add_argument('--name', default='')

    split = action('split', 'hold demonstrations out')
    split.add_argument('dataset')
    split.add_argument('--train', required=True, help='new dataset with what stays')
    split.add_argument('--test', required=True, help='new dataset with what is held out')
    split.add_argument('--share', type=float, default=0.1, help='held out, 0..1 (default 0.1)')
    split.add_argument('--seed', type=int, default=0)
    split.add_argument(
        '--repeated', action='store_true', help='only what was demonstrated twice or more: a share of each instruction'
    )

    _dataset_lerobot.add_annotate_arguments(action('annotate', 'a copy with texts of VLA-IT files and move primitives'))
    _dataset_lerobot.add_export_arguments(action('export', 'to LeRobot, or the annotations to a VLA-IT file'))
    _dataset_lerobot.add_import_arguments(action('import', 'from LeRobot'))


def run(arguments: argparse.Namespace) -> int:
    """Do one of the actions; 1 when nothing came out of it."""
    return {
        'build': _build, 'inspect': _inspect, 'stats': _stats, 'merge': _merge, 'split': _split,
        'annotate': _dataset_lerobot.run_annotate, 'export': _dataset_lerobot.run_export,
        'import': _dataset_lerobot.run_import,
    }[arguments.action](arguments)  # fmt: skip


def _build(arguments: argparse.Namespace) -> int:
    from .. import config, resources
    from ..settings import Embodiment

    given = arguments.embodiment
    default = config.load(Embodiment, resources.config_file(given or 'franka.yaml'))
    reports = _droid(arguments, default) if arguments.kind == 'droid' else _bags(arguments, default, bool(given))
    frames = sum(r.frames for r in reports)
    if arguments.json:
        print(json.dumps({'out': arguments.out, 'frames': frames, 'sources': [asdict(r) for r in reports]}))
    else:
        from ._dataset_tables import show_report

        for report in reports:
            print(show_report(report))
        print(f'{arguments.out}: {frames} frames from {len(reports)} source(s)')
    return 0 if frames else 1


def _bags(arguments: argparse.Namespace, default: Any, given: bool) -> list[Any]:
    from .. import config
    from ..control.kinematics import Kinematics
    from ..data.align import BuildOptions
    from ..data.collect import Job, collect, find_bags
    from ._dataset_tables import bar

    names = ('step_period', 'max_gap', 'sync_slop', 'min_frames', 'quality')
    values = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    options = config.from_dict(BuildOptions, {**values, 'on_gap': arguments.on_gap})
    bags = find_bags(arguments.source)
    known: dict[Any, Any] = {}

    def kinematics(robot: Any) -> Any:
        key = json.dumps(config.to_dict(robot), sort_keys=True)
        if key not in known:
            known[key] = Kinematics(robot).forward
        return known[key]

    with bar(f'{len(bags)} bag(s)', len(bags), arguments.json) as show:
        job = Job(
            options=options,
            embodiment=default if given else None,
            default=default,
            kinematics=kinematics,
            instruction=arguments.instruction,
            topics=pairs('--topic', arguments.topic) or None,
            name=arguments.name,
            progress=lambda number, share: show(number + share),
        )
        return collect(bags, arguments.out, job)


def _droid(arguments: argparse.Namespace, robot: Any) -> list[Any]:
    from ..control.kinematics import Kinematics
    from ..data.build import Report
    from ..data.droid import DroidOptions, episode_id, find_annotations, read_episodes
    from ..data.episodes import META, Dataset, Meta, Writer
    from ..errors import ConfigError, DataError
    from ._dataset_tables import bar

    period = arguments.step_period if arguments.step_period is not None else 0.2
    if not 0.01 <= period <= 2.0:
        raise ConfigError(f'--step-period {period}: allowed are 0.01 .. 2 s')
    quality = 95 if arguments.quality is None else arguments.quality
    if not 0 <= quality <= 100:
        raise ConfigError(f'--quality {quality}: allowed are 0 .. 100')
    cameras = {view: int(number) for view, number in pairs('--camera', arguments.camera).items() if number.isdigit()}
    if len(cameras) != len(arguments.camera):
        raise ConfigError('--camera: expected VIEW=NUMBER')
    files = [f for source in arguments.source for f in find_annotations(source)]
    options = DroidOptions(period, cameras or None, arguments.instruction, quality)
    forward = Kinematics(robot).forward
    report = Report(', '.join(arguments.source))
    writer: Any = None
    there = Dataset.open(arguments.out) if (Path(arguments.out) / META).is_file() else None
    known = {e.id: e for e in there.index} if there is not None else {}
    if there is not None and there.meta.step_period != period:
        raise DataError(f'{arguments.out} has a step period of {there.meta.step_period} s; write to another folder')
    with bar(f'{len(files)} episode(s)', len(files), arguments.json) as show:
        for number, file in enumerate(files):
            show(number)
            if (before := known.get(episode_id(file))) is not None:
                report.episodes.append({'id': before.id, 'frames': before.frames, 'instruction': before.instruction})
                continue
            for episode in read_episodes([file], robot, forward, options, report.notes):
                if writer is None:
                    views = {v: (f[0].shape[1], f[0].shape[0]) for v, f in episode.views.items()}
                    name = arguments.name or Path(arguments.out).name
                    writer = Writer(arguments.out, Meta(
                        name, robot.name, period, views, robot.delta_frame, robot.rotation, robot.base_frame,
                        'DROID-style recordings; attribute DROID, Khazatsky et al. 2024'))  # fmt: skip
                writer.add(episode)
                report.seconds += len(episode) * period
                report.episodes.append(
                    {'id': episode.id, 'frames': len(episode), 'instruction': episode.instruction,
                     'success': episode.success})  # fmt: skip
    return [report]


def _inspect(arguments: argparse.Namespace) -> int:
    from ..data.episodes import Dataset
    from ._dataset_tables import bar, contact_sheet, describe, show_description

    dataset = Dataset.open(arguments.dataset)
    with bar('reading', len(dataset), arguments.json) as show:
        about = describe(dataset, arguments.episodes, show)
    if arguments.sheet:
        contact_sheet(dataset, Path(arguments.sheet))
        about['sheet'] = arguments.sheet
    print(json.dumps(about) if arguments.json else show_description(about))
    return 0 if len(dataset) else 1


def _stats(arguments: argparse.Namespace) -> int:
    from ..data import statistics
    from ..data.episodes import Dataset

    datasets = [Dataset.open(path) for path in arguments.dataset]
    content = statistics.compute(datasets, arguments.name)
    files = [statistics.write(dataset, content) for dataset in datasets]
    if arguments.json:
        print(json.dumps(content))
        return 0
    (name, entry), *_ = content.items()
    print(f'{name}: {entry["num_trajectories"]} episodes, {entry["num_transitions"]} transitions')
    for label, low, high in zip(
        ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper'), entry['action']['q01'], entry['action']['q99'], strict=True
    ):
        print(f'  {label:8s} {low:9.4f} .. {high:.4f}')
    print('written to ' + ', '.join(map(str, files)))
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from ..data.episodes import Dataset
    from ..data.merge import merge
    from ._dataset_tables import bar

    sources = [Dataset.open(path) for path in arguments.dataset]
    with bar('merging', sum(map(len, sources)), arguments.json) as show:
        made = merge(sources, arguments.out, arguments.name, show)
    _say(arguments, {'out': str(made.path), 'episodes': len(made), 'frames': made.frames})
    return 0


def _split(arguments: argparse.Namespace) -> int:
    from ..data.episodes import Dataset
    from ..data.merge import split
    from ._dataset_tables import bar

    dataset = Dataset.open(arguments.dataset)
    with bar('splitting', len(dataset), arguments.json) as show:
        parts = split(
            dataset, arguments.train, arguments.test, arguments.share, arguments.seed, show, arguments.repeated
        )
    for part in parts:
        _say(arguments, {'out': str(part.path), 'episodes': len(part), 'frames': part.frames})
    return 0


def _say(arguments: argparse.Namespace, made: dict[str, Any]) -> None:
    text = f'{made["out"]}: {made["episodes"]} episodes, {made["frames"]} frames'
    print(json.dumps(made) if arguments.json else text)
