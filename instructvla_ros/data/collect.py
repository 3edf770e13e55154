"""Many bags into one dataset, each once: a bag that is in already is recognised by its content and passed over.

Beside the episodes lies ``built.jsonl`` with one line per bag: fingerprint of its content, settings, and the report.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..camera_view import is_plain
from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from ..settings import Embodiment
from .align import BuildOptions
from .bag_files import find_files
from .bag_values import STRING
from .bags import Bag, open_bag
from .build import Forward, Report, build_episodes
from .episodes import Meta, Writer

LEDGER = 'built.jsonl'
EMBODIMENT_TOPIC = '/instructvla/embodiment'
_BLOCKS, _BLOCK = 64, 65536


@dataclass(frozen=True)
class Job:
    """What to build and how; the last three are functions of the layers above.

    Attributes:
        embodiment: of all bags, or None: the one recorded in each bag, else ``default``.
        topics: name wanted -> name in the bags. name: of the dataset.
        kinematics: embodiment -> forward kinematics. progress: (bag number, share of it) told while building.
    """

    options: BuildOptions
    embodiment: Embodiment | None
    default: Embodiment
    kinematics: Callable[[Embodiment], Forward]
    instruction: str = ''
    topics: Mapping[str, str] | None = None
    name: str = ''
    progress: Callable[[int, float], None] = lambda number, share: None


def find_bags(paths: Sequence[str | Path]) -> list[Path]:
    """Bags among the paths: each a bag, or a folder of bags.

    Raises:
        DataError: a path is neither.
    """
    out: list[Path] = []
    for path in map(Path, paths):
        try:
            find_files(path)
            out.append(path)
            continue
        except DataError as err:
            if not path.is_dir():
                raise
            reason = err
        inside = []
        for child in sorted(path.iterdir()):
            try:
                if child.is_dir():
                    find_files(child)
                    inside.append(child)
            except DataError:
                continue  # a folder of something else
        if not inside:
            raise reason
        out += inside
    return out


def fingerprint(path: Path) -> str:
    """Hash of names, sizes and 64 blocks spread over each file of a bag; recordings are never edited in place."""
    digest = hashlib.sha256()
    for file in find_files(path):
        size = file.stat().st_size
        digest.update(f'{file.suffix} {size}\n'.encode())
        with file.open('rb') as data:
            for k in range(_BLOCKS if size > _BLOCKS * _BLOCK else -(-size // _BLOCK)):
                data.seek(k * size // _BLOCKS if size > _BLOCKS * _BLOCK else k * _BLOCK)
                digest.update(data.read(_BLOCK))
            data.seek(max(0, size - _BLOCK))
            digest.update(data.read(_BLOCK))
    return digest.hexdigest()[:24]


def collect(paths: Sequence[str | Path], out: str | Path, job: Job) -> list[Report]:
    """Build every bag into the dataset ``out``; continues where an interrupted call stopped.

    Raises:
        DataError: a bag cannot be used (named), was built with other settings, is seen with another crop, flip or turn
            than those before it, or does not fit into the dataset. Bags before it are in the dataset.
    """
    folder = Path(out)
    bags = find_bags(paths)
    done = _read_ledger(folder)
    reports: list[Report] = []
    for number, path in enumerate(bags):
        key = fingerprint(path)
        with open_bag(path, job.topics) as bag:
            robot = job.embodiment or embodiment_in(bag) or job.default
            settings = _settings(job, robot)
            before = done.get(key)
            if before is not None:
                if before['settings'] != settings:
                    raise DataError(
                        f'{path} is in {folder} already, built with other settings; build into another folder, or '
                        'with the same settings'
                    )
                reports.append(Report(**{**before['report'], 'cached': True}))
                job.progress(number, 1.0)
                continue
            _refuse_mixture(path, folder, settings, [entry['settings'] for entry in done.values()])
            prefix = _prefix(path, key + settings['hash'])
            report = Report(str(path))

            def progress(share: float, number: int = number) -> None:
                job.progress(number, share)

            _build(bag, folder, job, robot, prefix, report, progress)
        entry = {'key': key, 'settings': settings, 'report': asdict(report)}
        done[key] = entry
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / LEDGER, 'a', encoding='utf-8') as ledger:
                ledger.write(json.dumps(entry) + '\n')
        except OSError as err:
            raise DataError(f'cannot write {folder / LEDGER}: {err.strerror}') from None
        reports.append(report)
    return reports


def _build(
    bag: Bag,
    folder: Path,
    job: Job,
    robot: Embodiment,
    prefix: str,
    report: Report,
    progress: Callable[[float], None],
) -> None:
    known = _known(folder)
    writer: Writer | None = None
    episodes = build_episodes(
        bag, robot, job.kinematics(robot), job.options,
        prefix=prefix, report=report, instruction=job.instruction, skip=known.__contains__, progress=progress,
    )  # fmt: skip
    for episode, meta in episodes:
        if writer is None:
            writer = _writer(folder, meta, job.name or folder.name or 'dataset', bag.path)
        writer.add(episode)


def _writer(folder: Path, meta: Meta, name: str, bag: Path) -> Writer:
    try:
        return Writer(folder, Meta(**{**asdict(meta), 'name': name}))
    except DataError as err:
        raise DataError(f'{bag} does not fit into the dataset: {err}') from None


def embodiment_in(bag: Bag) -> Embodiment | None:
    """The robot that the recorder wrote into the bag, or None.

    Raises:
        DataError: there is one and it is not valid.
    """
    import yaml

    info = bag.topics.get(EMBODIMENT_TOPIC)
    if info is None or info.type != STRING or not info.count:
        return None
    record = next(bag.messages([EMBODIMENT_TOPIC]), None)
    if record is None:
        return None
    try:
        return from_dict(Embodiment, yaml.safe_load(record.value))
    except (yaml.YAMLError, ConfigError, RecursionError) as err:
        raise DataError(
            f'{bag.path}: the embodiment recorded on {EMBODIMENT_TOPIC} is not valid ({err}); '
            'give one with --embodiment'
        ) from None


def _settings(job: Job, robot: Embodiment) -> dict[str, Any]:
    text = json.dumps(
        {
            'options': to_dict(job.options),
            'robot': to_dict(robot),
            'instruction': job.instruction,
            'topics': dict(sorted((job.topics or {}).items())),
        },
        sort_keys=True,
    )
    seen = {
        name: {'crop': list(view.crop), 'flip': view.flip, 'rotate': view.rotate}
        for name, view in robot.views.items()
        if not is_plain(view)
    }
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {'hash': digest, 'step_period': job.options.step_period, 'seen': seen}


def _refuse_mixture(path: Path, folder: Path, settings: dict[str, Any], before: list[dict[str, Any]]) -> None:
    for other in before:
        if other.get('seen', {}) != settings['seen']:
            raise DataError(
                f'{path} is seen as {settings["seen"] or "recorded"}, the bags in {folder} as '
                f'{other.get("seen") or "recorded"} (crop, flip and rotate of the views): a policy would be trained '
                'on both; give one --embodiment for all bags, or build into another folder'
            )


def _known(folder: Path) -> set[str]:
    from .episodes import META, Dataset

    return {e.id for e in Dataset.open(folder).index} if (folder / META).is_file() else set()


def _prefix(path: Path, key: str) -> str:
    """Beginning of the episode ids: the name of the bag, and what tells it from another bag of that name."""
    name = re.sub(r'[^A-Za-z0-9._-]+', '_', path.name.split('.')[0]).strip('._-')[:60] or 'bag'
    return f'{name}-{hashlib.sha256(key.encode()).hexdigest()[:6]}'


def _read_ledger(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / LEDGER
    out: dict[str, dict[str, Any]] = {}
    if not file.is_file():
        return out
    for line in file.read_text(encoding='utf-8').splitlines():
        try:
            entry = json.loads(line)
            Report(**entry['report'])
            out[entry['key']] = entry
        except (ValueError, TypeError, KeyError):
            continue  # a line cut off by a kill: that bag is built again, its episodes are kept
    return out
