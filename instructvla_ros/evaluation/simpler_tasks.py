"""Task lists of SimplerEnv and SimplerEnv-Instruct, and how their success rates become the published numbers.

A suite is a YAML file (``config/suites/``). Each entry of ``tasks`` with each combination of its ``vary`` is a
*launch*: one environment built one way. A launch has trials: robot position times object position, or numbered
episodes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from ..errors import ConfigError, TaskError, suggest
from ..resources import config_file

SUITES = ('simplerenv', 'simplerenv_instruct')


@dataclass(frozen=True)
class Trial:
    """Start of one episode.

    Attributes:
        robot_xy: robot base in the scene [m]. robot_quat: its orientation, **wxyz** as SAPIEN wants it.
        object_xy: object position [m], or None when ``episode`` numbers a predefined arrangement.
    """

    key: str
    robot_xy: tuple[float, float]
    robot_quat: tuple[float, float, float, float]
    object_xy: tuple[float, float] | None = None
    episode: int | None = None

    def reset_options(self) -> dict[str, Any]:
        """``options`` of the environment's ``reset``."""
        if self.object_xy is not None:
            target: dict[str, Any] = {'init_xy': np.array(self.object_xy)}
        else:
            target = {'episode_id': self.episode}
        robot = {'init_xy': np.array(self.robot_xy), 'init_rot_quat': np.array(self.robot_quat)}
        return {'robot_init_options': robot, 'obj_init_options': target}


@dataclass(frozen=True)
class Launch:
    """One environment, built one way.

    Attributes:
        name: unique in the suite. column: whose score it counts for. setup: of :data:`.simpler_policy.SETUPS`.
        env: registered id, or the stem of one. version: of a stem; None: whichever there is.
        build: further arguments of the environment. robot_x, robot_y, object_x, object_y: positions [m]; yaw [rad].
        episodes: numbered arrangements instead of object positions. overlay: photograph behind the scene.
        assumed: parts of the protocol that are not published.
    """

    name: str
    column: str
    setup: str
    env: str
    scene: str
    robot: str
    control_mode: str
    control_freq: int
    sim_freq: int
    max_steps: int
    camera: str
    base_quaternion: tuple[float, ...]
    robot_x: tuple[float, ...]
    robot_y: tuple[float, ...]
    yaw: tuple[float, ...] = (0.0,)
    object_x: tuple[float, ...] = ()
    object_y: tuple[float, ...] = ()
    episodes: int = 0
    version: int | None = None
    overlay: str = ''
    build: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    def trials(self) -> list[Trial]:
        """Every start, in the order of SimplerEnv's evaluation loop."""
        out = []
        turned = Rotation.from_quat(np.roll(self.base_quaternion, -1))
        for x, y, yaw in itertools.product(self.robot_x, self.robot_y, self.yaw):
            w, i, j, k = np.roll((Rotation.from_euler('z', yaw) * turned).as_quat(), 1)
            quat = (float(w), float(i), float(j), float(k))
            where = f'robot {x:g} {y:g} {yaw:g}'
            if self.episodes:
                out += [Trial(f'{where} episode {e}', (x, y), quat, episode=e) for e in range(self.episodes)]
            else:
                spots = itertools.product(self.object_x, self.object_y)
                out += [Trial(f'{where} object {a:g} {b:g}', (x, y), quat, (a, b)) for a, b in spots]
        return out


@dataclass(frozen=True)
class Column:
    """One number of the result table. ``in_mean``: it counts in the mean of its family."""

    name: str
    title: str
    family: str
    in_mean: bool = True


@dataclass(frozen=True)
class Suite:
    """A task list. ``launches`` in file order."""

    name: str
    title: str
    columns: tuple[Column, ...]
    launches: tuple[Launch, ...]

    def of(self, column: str) -> list[Launch]:
        """Launches of a column."""
        return [launch for launch in self.launches if launch.column == column]

    @property
    def trials(self) -> int:
        """Episodes of one pass over everything."""
        return sum(len(launch.trials()) for launch in self.launches)

    def choose(self, names: Iterable[str]) -> tuple[Launch, ...]:
        """Launches whose column, task or own name is one of ``names``; all of them when there are no names.

        Raises:
            TaskError: a name fits nothing.
        """
        wanted = list(names)
        if not wanted:
            return self.launches
        chosen: list[Launch] = []
        for name in wanted:
            found = [x for x in self.launches if name in (x.column, x.name, x.name.split(': ')[0])]
            if not found:
                known = {c.name for c in self.columns} | {x.name.split(': ')[0] for x in self.launches}
                raise TaskError(f'{self.title} has no task {name!r}.{suggest(name, known)}')
            chosen += [x for x in found if x not in chosen]
        return tuple(chosen)


def read_suite(name: str | Path) -> Suite:
    """Read a suite of this package by name, or a YAML file.

    Raises:
        ConfigError: missing, not YAML, unknown keys or columns, a launch without trials, or two of the same name.
    """
    file = Path(name) if str(name).endswith(('.yaml', '.yml')) else config_file(f'suites/{name}.yaml')
    try:
        data = yaml.safe_load(file.read_text(encoding='utf-8'))
        columns = tuple(Column(k, **v) for k, v in data['columns'].items())
        launches = tuple(x for task in data['tasks'] for x in _launches(task, str(file)))
        suite = Suite(data['name'], data['title'], columns, launches)
    except OSError as err:
        raise ConfigError(f'cannot read suite {file}: {err.strerror}') from None
    except yaml.YAMLError as err:
        raise ConfigError(f'{file} is not YAML: {err}') from None
    except (KeyError, TypeError, AttributeError) as err:
        raise ConfigError(f'{file} is not a suite (name, title, columns, tasks): {err!r}') from None
    seen: set[str] = set()
    for launch in launches:
        if launch.column not in {c.name for c in columns}:
            raise ConfigError(
                f'{file}: {launch.name}: column {launch.column!r}.{suggest(launch.column, data["columns"])}'
            )
        if launch.name in seen:
            raise ConfigError(f'{file}: two launches are called {launch.name!r}')
        if not launch.trials():
            raise ConfigError(f'{file}: {launch.name} has no trials: give object_x and object_y, or episodes')
        seen.add(launch.name)
    return suite


def _launches(task: Mapping[str, Any], where: str) -> Iterable[Launch]:
    base = {k: v for k, v in task.items() if k != 'vary'}
    known = {f.name for f in fields(Launch)}
    for combination in itertools.product(*task.get('vary') or [[{}]]):
        values: dict[str, Any] = {**base, 'build': dict(base.get('build') or {})}
        parts = []
        for change in combination:
            parts += [change['name']] if 'name' in change else []
            values['build'].update(change.get('build') or {})
            values.update({k: v for k, v in change.items() if k not in ('name', 'build')})
        values['name'] = ': '.join([base['name'], *([', '.join(parts)] if parts else [])])
        for key in values:
            if key not in known:
                raise ConfigError(f'{where}: {values["name"]}: unknown key {key!r}.{suggest(key, known)}')
        for key in ('robot_x', 'robot_y', 'object_x', 'object_y'):
            values[key] = _range(values.get(key, ()))
        for key in ('yaw', 'base_quaternion', 'assumed'):
            if key in values:
                values[key] = tuple(values[key])
        yield Launch(**values)


def _range(values: Sequence[float]) -> tuple[float, ...]:
    """``[value]``, or ``[from, to, count]`` spread evenly."""
    if len(values) == 3:
        return tuple(float(v) for v in np.linspace(values[0], values[1], int(values[2])))
    return tuple(float(v) for v in values)


def resolve_env(launch: Launch, registered: Iterable[str]) -> str:
    """Registered environment id of a launch.

    The id itself when it is registered; else the only id that begins with the stem, followed by no digit, and ends with
    the version. So ``AltOpenTopDrawer`` does not match ``AltOpenTopDrawer2...``.

    Raises:
        TaskError: none, or several.
    """
    ids = sorted(set(registered))
    if launch.env in ids:
        return launch.env
    tail = r'\d+' if launch.version is None else str(launch.version)
    found = [i for i in ids if re.fullmatch(rf'{re.escape(launch.env)}(?!\d)[A-Za-z0-9_]*-v{tail}', i)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise TaskError(
            f'no environment {launch.env!r} is registered.{suggest(launch.env, ids) if len(ids) < 40 else ""}'
        )
    raise TaskError(f'{launch.env!r} fits several environments: {", ".join(found)}; name one in a suite file (--suite)')


def column_rates(suite: Suite, rates: Mapping[str, float]) -> dict[str, float | None]:
    """Percent per column: the unweighted mean over its launches; None while one of them has no rate.

    Args:
        rates: success rate 0..1 by launch name.
    """
    out: dict[str, float | None] = {}
    for column in suite.columns:
        found = [rates[x.name] for x in suite.of(column.name) if x.name in rates]
        out[column.name] = 100.0 * float(np.mean(found)) if found and len(found) == len(suite.of(column.name)) else None
    return out


def plain_mean(suite: Suite, scores: Mapping[str, float | None]) -> float | None:
    """Unweighted mean of the columns that count; None when one is missing."""
    values = [scores.get(c.name) for c in suite.columns if c.in_mean]
    return float(np.mean([v for v in values if v is not None])) if values and None not in values else None


def robot_mean(suite: Suite, scores: Mapping[str, float | None]) -> float | None:
    """2/3 of the mean of the Google robot's columns plus 1/3 of the mean of WidowX's; None when one is missing."""
    parts = []
    for family in ('google', 'widowx'):
        values = [scores.get(c.name) for c in suite.columns if c.in_mean and c.family == family]
        if not values or None in values:
            return None
        parts.append(float(np.mean([v for v in values if v is not None])))
    return 2.0 / 3.0 * parts[0] + 1.0 / 3.0 * parts[1]
