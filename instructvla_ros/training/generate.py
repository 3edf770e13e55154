"""Many demonstrations in parallel: processes act, one writer stores; interrupted, it goes on where it stopped."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import config, resources
from ..data.episodes import Episode, Writer
from ..errors import ConfigError, InstructVLAError
from ..settings import Control, Embodiment, PolicySettings, Sim

_SEARCH = 50  # seeds looked at for each scene with twins
_WORKER: dict[str, Any] = {}


@dataclass(frozen=True)
class Job:
    """One episode to make: a task and a seed; ``still`` takes only a picture of the scene.

    Attributes:
        alike: share of distractors in the colour of the target. slip: see :class:`~.demonstrations.Noise`.
    """

    task: str
    seed: int
    still: bool = False
    alike: float = 0.0
    slip: float = 0.0

    @property
    def id(self) -> str:
        """Id of the episode."""
        return f'{self.task}-{self.seed:06d}'


@dataclass(frozen=True)
class Made:
    """What became of the jobs: episodes written, frames, demonstrations that failed, and sentences about errors."""

    episodes: int
    frames: int
    failed: int
    errors: tuple[str, ...] = ()


def jobs(
    tasks: Sequence[str],
    count: int,
    first_seed: int = 0,
    still: bool = False,
    alike: float = 0.0,
    twins: bool = False,
    slip: float = 0.0,
) -> list[Job]:
    """``count`` jobs, the tasks in turn.

    Args:
        twins: only seeds of scenes where something differs from the target in nothing but its size (one in six).

    Raises:
        ConfigError: these tasks have (next to) no such scenes.
    """
    seeds = count * _SEARCH if twins else count
    wanted = (Job(tasks[k % len(tasks)], first_seed + k, still, alike, slip) for k in range(seeds))
    found = list(itertools.islice(filter(_has_twin, wanted) if twins else wanted, count))
    if len(found) < count:
        raise ConfigError(
            f'{len(found)} of {count} scenes with the target in two sizes found for {", ".join(dict.fromkeys(tasks))}; '
            'tasks that name a graspable object have them, such as pick and put'
        )
    return found


def _has_twin(job: Job) -> bool:
    from .demonstrations import training_task

    task = training_task(job.task, job.seed, job.alike)
    kinds = {o.name: (o.category, o.color) for o in task.scene.objects}
    return list(kinds.values()).count(kinds[task.target]) > 1


def generate(out: str | Path, wanted: Iterable[Job], workers: int = 0, progress: bool = True) -> Made:
    """Make the episodes that ``out`` does not have yet. Failed demonstrations are stored with ``success`` False.

    Args:
        workers: processes; 0 takes one per core.

    Raises:
        DataError: ``out`` holds another dataset, or the disk is full. KeyboardInterrupt: what is done is safe.
    """
    from .demonstrations import dataset_meta

    sim, embodiment, _, settings = _settings()
    writer = Writer(out, dataset_meta(Path(out).name, sim, embodiment, settings))
    todo = [j for j in wanted if not writer.has(j.id)]
    episodes = frames = failed = 0
    errors: list[str] = []
    if not todo:
        return Made(0, 0, 0)
    context = multiprocessing.get_context('spawn')
    bar = tqdm(total=len(todo), unit='episode', desc=Path(out).name, disable=None if progress else True)
    count = min(workers or os.cpu_count() or 1, len(todo))
    with context.Pool(count, _prepare) as pool, bar:
        for result in pool.imap_unordered(_make, todo, chunksize=1):
            bar.update()
            if isinstance(result, str):
                errors.append(result)
                continue
            writer.add(result)
            episodes, frames = episodes + 1, frames + len(result)
            failed += int(result.success is False)
    return Made(episodes, frames, failed, tuple(errors))


def _settings() -> tuple[Sim, Embodiment, Control, PolicySettings]:
    load, file = config.load, resources.config_file
    settings = load(PolicySettings, file('policy.yaml'), {'policy': 'expert'})
    sim = load(Sim, file('sim.yaml'))
    # A picture per decision is all that is kept; more would only cost time.
    cameras = tuple(config.replace(c, rate=settings.chunk_rate) for c in sim.cameras)
    embodiment = load(Embodiment, file('franka.yaml'))
    return config.replace(sim, cameras=cameras), embodiment, load(Control, file('controller.yaml')), settings


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    from ..control.kinematics import Kinematics
    from ..sim.world import World

    sim, embodiment, control, settings = _settings()
    _WORKER.update(
        sim=sim,
        embodiment=embodiment,
        control=control,
        settings=settings,
        world=World(sim, embodiment),
        kinematics=Kinematics(embodiment),
    )


def _make(job: Job) -> Episode | str:
    from .demonstrations import Noise, demonstrate, still_life, training_task

    w = _WORKER
    try:
        task = training_task(job.task, job.seed, job.alike)
        if job.still:
            period = 1.0 / w['settings'].chunk_rate
            episode = still_life(task, w['world'], w['embodiment'], w['kinematics'], period)
        else:
            episode = demonstrate(task, noise=Noise(slip=job.slip), **w)
        # With task and seed, what it takes to make the scene again.
        return replace(episode, info={**episode.info, 'alike': job.alike})
    except InstructVLAError as err:
        return f'{job.id}: {err}'
