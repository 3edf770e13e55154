"""Where the package's own files are, and the robot description made from them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path

from .errors import SetupError

PACKAGE = 'instructvla_ros'
TINY = 'tiny'
LEARNED = ('pick', 'put')  # tasks of the simulator that it has learned


def share_directory() -> Path:
    """Folder that holds ``config/``, ``urdf/`` and ``launch/``: source checkout, ament prefix or Python prefix.

    Raises:
        SetupError: none of them has the files.
    """
    source = Path(__file__).resolve().parent.parent
    places = [source] if (source / 'package.xml').is_file() else []
    # Layout of colcon and of pip: <prefix>/lib/pythonX.Y/site-packages/<package>/ beside <prefix>/share/<package>/.
    places += [p / 'share' / PACKAGE for p in Path(__file__).resolve().parents]
    places += [
        Path(p) / 'share' / PACKAGE for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p
    ]
    places.append(Path(sys.prefix) / 'share' / PACKAGE)
    for place in places:
        if (place / 'config' / 'franka.yaml').is_file():
            return place
    raise SetupError(
        f'the files of {PACKAGE} (config, urdf) were not found in: '
        + ', '.join(dict.fromkeys(str(p) for p in places))
        + '. Install the package again with `make setup` or `pip install .`'
    )


def config_file(name: str) -> Path:
    """Path of a file in ``config/``, or of an existing file given by path.

    Raises:
        SetupError: no such file; the message lists what there is.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    folder = share_directory() / 'config'
    file = folder / name
    if not file.is_file():
        have = ', '.join(sorted(p.name for p in folder.glob('*') if p.is_file()))
        raise SetupError(f'no configuration {name!r}: neither a file nor one of {have} in {folder}')
    return file


def shipped_models() -> dict[str, Path]:
    """Checkpoints that come with the package, by name."""
    folder = share_directory() / 'models'
    return {p.name: p for p in sorted(folder.glob('*')) if (p / 'config.json').is_file()}


def local_checkpoint(name: str | Path) -> Path | None:
    """Folder or file on this machine that a checkpoint's name means, or None.

    The name of one that comes with the package means a folder of the working directory only where that one holds a
    checkpoint: a run, a bag or a log may have the same name.
    """
    given = Path(name).expanduser()
    shipped = shipped_models().get(str(name))
    if shipped is not None and not (given / 'config.json').is_file():
        return shipped
    return given if given.exists() else None


def choose_policy(task: str, policy: str = 'auto', checkpoint: str = '') -> tuple[str, str]:
    """Who decides in the simulator, and with which checkpoint.

    ``auto`` is a checkpoint that was named; else the one that comes with the package, for the tasks it has learned and
    where PyTorch is installed; else the scripted expert, which reads the ground truth. ``instructvla`` without a
    checkpoint takes the one of the package too.
    """
    if policy == 'auto':
        shipped = task in LEARNED and TINY in shipped_models() and importlib.util.find_spec('torch') is not None
        policy = 'instructvla' if checkpoint or shipped else 'expert'
    return policy, (checkpoint or TINY) if policy == 'instructvla' else checkpoint


def transport_profile() -> Path:
    """Fast DDS profile for camera images, for ``FASTDDS_DEFAULT_PROFILES_FILE``.

    The one with small segments where ``/dev/shm`` has little room, as in a container: seven nodes with the segments
    of the other need 250 MB, and a node that gets none loses most images.
    """
    try:
        small = shutil.disk_usage('/dev/shm').free < 512 * 2**20
    except OSError:
        small = True
    return config_file('fastdds_small.xml' if small else 'fastdds.xml')


@lru_cache(maxsize=16)
def robot_description(robot: str = 'fr3', source: str = 'builtin', arguments: tuple[tuple[str, str], ...] = ()) -> str:
    """URDF text of the arm, expanded from xacro.

    Args:
        robot: 'fr3' or 'panda'.
        source: 'builtin' for ``urdf/franka.urdf.xacro`` of this package, 'franka_description' for the vendor's
            package when it is installed, or the path of a URDF or xacro file.
        arguments: further xacro arguments as (name, value) pairs.

    Raises:
        SetupError: the source is not there, or does not expand.
    """
    import xacro

    mappings = {'robot': robot, **dict(arguments)}
    if source == 'builtin':
        file = share_directory() / 'urdf' / 'franka.urdf.xacro'
    elif source == 'franka_description':
        file = _vendor_description(robot)
        mappings = {'robot_type': robot if robot != 'panda' else 'fer', 'hand': 'true', **dict(arguments)}
    else:
        file = Path(source).expanduser()
        if not file.is_file():
            raise SetupError(f"robot description {source!r}: use 'builtin', 'franka_description' or an existing file")
        if file.suffix == '.urdf':
            return file.read_text(encoding='utf-8')
    try:
        return str(xacro.process_file(str(file), mappings=mappings).toxml())
    except Exception as err:  # xacro raises many unrelated types; the user needs the file and the reason
        raise SetupError(f'cannot expand {file} with {mappings}: {err}') from err


def _vendor_description(robot: str) -> Path:
    kind = 'fer' if robot == 'panda' else robot
    for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep):
        file = Path(prefix) / 'share' / 'franka_description' / 'robots' / kind / f'{kind}.urdf.xacro'
        if prefix and file.is_file():
            return file
    raise SetupError(
        f'franka_description (robots/{kind}) is not in AMENT_PREFIX_PATH. '
        "Build it in your workspace and source it, or use the description 'builtin'"
    )
