"""The files of a bag: which there are, in which order, and what ``metadata.yaml`` says about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from .bag_source import Problem, Problems, unpack_file

METADATA = 'metadata.yaml'
SUFFIXES = ('.mcap', '.db3')
PACKED = ('.zstd', '.zst', '.lz4')
_MAX_METADATA = 16 * 2**20


def find_files(path: Path) -> list[Path]:
    """Storage files of a bag in the order of their numbers.

    Args:
        path: a folder, or one file.

    Raises:
        DataError: no such path, or no bag in it.
    """
    if path.is_file():
        if not _is_storage(path):
            raise DataError(f'{path} is not a bag; allowed are a folder, .mcap and .db3, also with .zstd or .lz4')
        return [path]
    if not path.is_dir():
        raise DataError(f'there is no bag {path}')
    try:
        found = [file for file in path.iterdir() if file.is_file() and _is_storage(file)]
    except OSError as err:
        raise DataError(f'cannot read the folder {path}: {err.strerror}') from None
    # File compression leaves the packed file beside the one it is made from when the recorder is killed.
    whole = {file.name for file in found}
    found = [file for file in found if not (file.suffix in PACKED and file.stem in whole)]
    if not found:
        raise DataError(f'{path} is not a bag: it holds no {" or ".join(SUFFIXES)} file')
    return sorted(found, key=_order)


def read_metadata(path: Path, files: list[Path], problems: Problems) -> Mapping[str, Any]:
    """Content of ``metadata.yaml``, {} when there is none or it is damaged: a bag can be read without.

    Files it names that are not there are noted.
    """
    file = path / METADATA
    if path.is_file():
        return {}
    if not file.is_file():
        problems.add(Problem(METADATA, 'is missing: the recorder did not end properly; reading the files themselves'))
        return {}
    try:
        if file.stat().st_size > _MAX_METADATA:
            raise ValueError('too large')
        loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
        content = yaml.load(file.read_text(encoding='utf-8'), Loader=loader)['rosbag2_bagfile_information']
        named = [Path(str(name)).name for name in content['relative_file_paths']]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as err:
        problems.add(Problem(METADATA, f'cannot be read ({type(err).__name__}); reading the files themselves'))
        return {}
    have = {f.name for f in files} | {f.stem for f in files if f.suffix in PACKED}
    for name in named:
        if name not in have and Path(name).stem not in have:
            problems.add(Problem(METADATA, f'names {name}, which is missing'))
    return dict(content)


def unpacked(file: Path, folder: Path, problems: Problems) -> Path:
    """The file without its file compression, in ``folder``.

    Raises:
        DataError: nothing could be unpacked.
    """
    target = folder / file.stem
    try:
        problem = unpack_file(file, target)
    except OSError as err:
        raise DataError(f'cannot unpack {file} to {folder}: {err.strerror}') from None
    if problem:
        problems.add(Problem(file.name, problem))
    return target


def _is_storage(file: Path) -> bool:
    name = Path(file.stem) if file.suffix in PACKED else file
    return name.suffix in SUFFIXES


def _order(file: Path) -> list[tuple[int, int, str]]:
    """Natural order: bag_9 before bag_10."""
    return [(1, int(p), '') if p.isdigit() else (0, 0, p) for p in re.split(r'(\d+)', file.name)]
