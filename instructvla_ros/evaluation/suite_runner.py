"""Runs the cases of Tabletop-Instruct, in several processes and so that an interrupted run can go on.

Every finished episode is one line of ``episodes.jsonl``. Its ``id`` covers the case with its scene, the configuration
and the content of the checkpoint: what has been measured with anything else is left in the file and not counted.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import config
from ..control.kinematics import Kinematics
from ..datatypes import Image
from ..errors import ConfigError, SetupError, suggest
from ..policy import Policy, make_policy
from ..resources import local_checkpoint
from ..settings import Control, Embodiment, PolicySettings, Sim
from ..sim.reasons import decision
from ..sim.references import View, named
from ..sim.relations import scene_objects
from ..sim.tasks import Episode
from ..sim.world import World
from . import runlog
from .machine import usable_cores
from .rollout import START_NS, Moment, RolloutResult, run_episode
from .seams import Seams
from .simpler import write_video
from .suites import Case

RESULTS = 'episodes.jsonl'
STRATEGIES = ('replace', 'ensemble', 'blend', 'realtime')
"""What a new chunk does to the old one: three ways of the controller, and real-time chunking inside the model."""
VIDEOS = ('none', 'failures', 'all')
READABLE = 1 << 28
"""Largest file that is read to tell whether it is the same [bytes]."""
SHRINK = 2
"""Pictures of videos are this much smaller than those of the camera."""


@dataclass(frozen=True)
class Setup:
    """Everything a worker needs, besides the case.

    Attributes:
        videos: which episodes get one. folder: of the run.
    """

    embodiment: Embodiment
    sim: Sim
    control: Control
    policy: PolicySettings
    folder: str = ''
    videos: str = 'none'

    def identity(self) -> str:
        """Hash of the configuration and of the checkpoint's files, wherever they lie; its card does not count."""
        data = [config.to_dict(part) for part in (self.embodiment, self.sim, self.control, self.policy)]
        data[-1].pop('checkpoint', None)
        place = local_checkpoint(self.policy.checkpoint) if self.policy.checkpoint else None
        if place is None or not place.is_dir():
            stats: Any = self.policy.checkpoint
        else:
            files = sorted(f for f in place.rglob('*') if f.is_file() and f.suffix != '.md')
            stats = [(str(f.relative_to(place)), _content(f)) for f in files]
        return hashlib.sha256(json.dumps([data, stats], sort_keys=True).encode()).hexdigest()[:16]


def _content(file: Path) -> str:
    """Hash of a file; of one that would take seconds to read its size and time."""
    size = file.stat().st_size
    if size > READABLE:
        return f'{size} {file.stat().st_mtime_ns}'
    return hashlib.sha256(file.read_bytes()).hexdigest()


def case_id(case: Case, identity: str) -> str:
    """Hash of a case with its scene, and of what it is run with."""
    return hashlib.sha256('\n'.join([identity, case.key, repr(case.variant), repr(case.episode)]).encode()).hexdigest()[
        :20
    ]


class Cell:
    """World, kinematics and policies of one process, reused from case to case.

    Args:
        policy: to use instead of the one that the settings name.
    """

    def __init__(self, setup: Setup, policy: Policy | None = None) -> None:
        self.setup, self._identity = setup, setup.identity()
        self._policy = policy if policy is not None else make_policy(setup.policy, setup.embodiment)
        self._realtime: dict[float, Policy] = {}
        looks = not self._policy.privileged and self._policy.name != 'hold'
        self._views = looks or setup.videos != 'none'
        self._world = World(setup.sim, setup.embodiment, render=self._views)
        self._kinematics = Kinematics(setup.embodiment)

    def close(self) -> None:
        """Give the graphics back."""
        self._world.close()

    def run(self, case: Case) -> dict[str, Any]:
        """Run one case and return its row."""
        control, settings, policy = self._arranged(case)
        watch = _Watch(self.setup.videos != 'none')
        started = time.monotonic()
        result = run_episode(
            case.episode,
            policy,
            sim=self.setup.sim,
            embodiment=self.setup.embodiment,
            control=control,
            policy_settings=settings,
            record=watch,
            views=self._views,
            disturbance=case.variant.disturbance(case.episode.seed),
            world=self._world,
            kinematics=self._kinematics,
            linger=0.0,
            sentence=case.sentence,
        )
        row = _row(case, result, watch, settings.step_period, control.rate)
        row['id'] = case_id(case, self._identity)
        row['revision'] = policy.checkpoint_revision
        row['wall'] = time.monotonic() - started
        if watch.frames and (self.setup.videos == 'all' or not result.success):
            row['video'] = f'videos/{row["id"]}.mp4'
            write_video(Path(self.setup.folder) / row['video'], watch.frames)
        return row

    def _arranged(self, case: Case) -> tuple[Control, PolicySettings, Policy]:
        control, settings = self.setup.control, self.setup.policy
        if case.strategy in ('replace', 'ensemble', 'blend'):
            return config.replace(control, strategy=case.strategy), settings, self._policy
        if case.strategy != 'realtime':
            return control, settings, self._policy
        # The model sees the latency that is injected, not how fast this machine happens to be.
        latency = case.variant.latency
        changes = {'realtime': 'guided', 'realtime_latency': latency, 'realtime_measured': False}
        if latency not in self._realtime:
            make = getattr(self._policy, 'with_settings', None)
            if make is None:
                raise ConfigError(
                    f'policy {self._policy.name!r} has no real-time chunking; leave the strategy realtime out'
                )
            self._realtime[latency] = make(**changes)
        return config.replace(control, strategy='replace'), config.replace(settings, **changes), self._realtime[latency]


@dataclass
class _Watch:
    """What is kept of an episode besides its result."""

    video: bool
    said: list[str] = field(default_factory=list)
    speeds: list[np.ndarray] = field(default_factory=list)
    frames: list[Image] = field(default_factory=list)
    seams: Seams = field(default_factory=Seams)

    def __call__(self, moment: Moment) -> None:
        command = moment.output.command
        dq = None if command is None else command.dq
        self.seams.period(START_NS + round(moment.time * 1e9), moment.output.chunk_id, dq, moment.chunk)
        if command is not None:
            self.speeds.append(np.array(command.dq))
        if moment.reasoning is not None and moment.reasoning.text not in self.said[-1:]:
            self.said.append(moment.reasoning.text)
        if self.video and moment.observation is not None and moment.observation.views:
            first = next(iter(moment.observation.views.values()))
            self.frames.append(np.ascontiguousarray(first[::SHRINK, ::SHRINK]))

    def jerk(self, rate: float) -> float:
        """Root mean square jerk of the commanded joints [rad/s^3]."""
        if len(self.speeds) < 3:
            return 0.0
        jerk = np.diff(np.array(self.speeds), n=2, axis=0) * rate * rate
        return float(np.sqrt(np.mean(jerk**2)))


def _row(case: Case, result: RolloutResult, watch: _Watch, step_period: float, rate: float) -> dict[str, Any]:
    counts = {action: 0 for action in ('scaled', 'clipped', 'refused', 'held')}
    for name, count in result.verdicts.items():
        action = name.rsplit('/', 1)[-1]
        counts[action if action in counts else 'refused'] += count
    return {
        'suite': case.suite,
        'variant': case.variant.name,
        'latency': case.variant.latency,
        'task': result.task,
        'seed': result.seed,
        'instruction': result.instruction,
        'kind': case.kind,
        'sentence': case.sentence,
        'strategy': case.strategy,
        'target': case.episode.target,
        'destination': case.episode.destination,
        'policy': result.policy,
        'success': result.success,
        'outcome': 'solved' if result.success else result.failure,
        'reason': result.detail,
        'progress': 1.0 if result.success else result.best_progress,
        'duration': result.time,
        'success_after': result.time if result.success else None,
        'steps': round(result.time / step_period),
        'chunks': result.chunks,
        'table_touches': result.table_touches,
        'bumped': list(result.bumped),
        'collisions': result.table_touches + len(result.bumped),
        'limits': counts,
        'limit_hits': sum(counts.values()),
        'path_length': result.path_length,
        'jerk': watch.jerk(rate),
        **watch.seams.result(rate),
        'said': watch.said[:8],
        'said_right': names_target(case.episode, watch.said[0]) if watch.said else None,
        'video': '',
    }


def names_target(episode: Episode, sentence: str) -> bool:
    """Whether the decision of a sentence has every word of the plain description of the target."""
    words = named(View.of(scene_objects(episode.scene), episode.target, episode.destination)).split()
    said = ''.join(c if c.isalnum() else ' ' for c in decision(sentence).lower()).split()
    return all(word in said for word in words)


def check(found: Sequence[Case], setup: Setup, workers: int) -> None:
    """Refuse what cannot run before anything is started.

    Raises:
        ConfigError: nothing to run, an unknown strategy, no workers.
    """
    if not found:
        raise ConfigError('there is nothing to run')
    for case in found:
        if case.strategy and case.strategy not in STRATEGIES:
            raise ConfigError(f'unknown strategy {case.strategy!r}.{suggest(case.strategy, STRATEGIES)}')
    if setup.videos not in VIDEOS:
        raise ConfigError(f'videos {setup.videos!r}.{suggest(setup.videos, VIDEOS)}')
    if workers < 1:
        raise ConfigError(f'{workers} workers; at least one is needed')


def earlier(file: Path) -> list[dict[str, Any]]:
    """Rows of a results file; a line cut off by a crash is left out."""
    if not file.is_file():
        return []
    out = []
    for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and 'id' in row and 'success' in row:
            out.append(row)
    return out


def run_cases(
    found: Sequence[Case],
    setup: Setup,
    workers: int = 1,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    policy: Policy | None = None,
) -> list[dict[str, Any]]:
    """Run what has not been run yet, and return the rows of all cases in their order.

    Args:
        on_row: called for every new row. policy: to use in this process, which then is the only one.

    Raises:
        ConfigError: see :func:`check`. SetupError: a worker died. Whatever an episode raises; what was finished before
            is in the results file.
    """
    check(found, setup, workers)
    folder = Path(setup.folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity = setup.identity()
    wanted = {case_id(case, identity): case for case in found}
    rows = {r['id']: r for r in earlier(folder / RESULTS) if r['id'] in wanted}
    missing = [case for key, case in wanted.items() if key not in rows]
    file = folder / RESULTS
    torn = file.is_file() and file.stat().st_size > 0 and not file.read_bytes().endswith(b'\n')
    with file.open('a', encoding='utf-8') as out:
        if torn:
            out.write('\n')
        source = (
            _here(missing, setup, policy) if workers == 1 or policy is not None else _beside(missing, setup, workers)
        )
        for row in source:
            plain = runlog.plain(row)
            out.write(json.dumps(plain, allow_nan=False) + '\n')
            out.flush()
            rows[row['id']] = plain
            if on_row is not None:
                on_row(plain)
    return [rows[key] for key in wanted]


def _here(missing: Sequence[Case], setup: Setup, policy: Policy | None) -> Iterator[dict[str, Any]]:
    if not missing:
        return
    cell = Cell(setup, policy)
    try:
        for case in missing:
            yield cell.run(case)
    finally:
        cell.close()


def _beside(missing: Sequence[Case], setup: Setup, workers: int) -> Iterator[dict[str, Any]]:
    if not missing:
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context('spawn')  # a fork would share locks and graphics with this process
    threads = max(1, usable_cores() // workers)
    pool = ProcessPoolExecutor(min(workers, len(missing)), context, _start, (setup, threads))
    try:
        for done in as_completed([pool.submit(_in_worker, case) for case in missing]):
            yield done.result()
        pool.shutdown()
    except BrokenProcessPool as err:
        raise SetupError(
            'a worker process died, often for want of memory. Finished episodes are kept: continue with fewer --workers'
        ) from err
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


_SETUP: Setup | None = None
_CELL: Cell | None = None


def _start(setup: Setup, threads: int) -> None:
    """First thing in a worker. The cell is made with the first case, so that its errors reach the caller."""
    global _SETUP
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    os.environ['OMP_NUM_THREADS'] = str(threads)
    _SETUP = setup


def _in_worker(case: Case) -> dict[str, Any]:
    global _CELL
    if _CELL is None:
        if _SETUP is None:
            raise SetupError('a worker was not set up')
        _CELL = Cell(_SETUP)
        torch = sys.modules.get('torch')
        if torch is not None:
            torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    return _CELL.run(case)


def default_workers() -> int:
    """One per core that this process may use, at most eight."""
    return min(8, usable_cores())


__all__ = [
    'RESULTS',
    'STRATEGIES',
    'VIDEOS',
    'Cell',
    'Setup',
    'case_id',
    'check',
    'default_workers',
    'earlier',
    'run_cases',
]
