"""Tabletop-Instruct: what is asked in which scene. Suites of ``config/suites/tabletop_*.yaml`` and files of sentences.

A suite becomes a list of :class:`Case`: one scene, one sentence, one way to make it harder. Everything is drawn from
seeds from :data:`TEST_SEED` on, which training never uses, so the same suite is the same list anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import config, resources
from ..config import option
from ..errors import ConfigError, TaskError, suggest
from ..settings import Randomization
from ..sim.annotations import FAMILIES, instructions
from ..sim.tasks import TASKS, Episode, make_episode
from .rollout import Disturbance

TEST_SEED = 1_000_000
"""Smallest seed of a test; training uses smaller ones."""
NAMES = ('plain', 'aggregation', 'situated', 'robustness')
DEFAULT = NAMES[:3]
SPARE = 50
"""Seeds that may be skipped for every one that is used, because a scene has no sentence of the family."""


@dataclass(frozen=True)
class Variant:
    """One way to make a suite harder; what is left out stays as in the simulator's configuration."""

    name: str = option('', 'in tables')
    latency: float = option(0.0, 'from the camera to the arm', unit='s', ge=0.0, le=2.0)
    frame_drop: float = option(0.0, 'share of the camera frames that is lost', ge=0.0, le=0.95)
    chunk_drop: float = option(0.0, 'share of the chunks that is lost', ge=0.0, le=0.95)
    camera: float | None = option(None, 'largest shift of the fixed camera', unit='m')
    light: float | None = option(None, 'spread of light position and brightness')
    table: float | None = option(None, 'spread of table colour and texture')
    color: float | None = option(None, 'spread of object colours')
    distractors: int | None = option(None, 'objects that no instruction names')

    def randomization(self, base: Randomization) -> Randomization:
        """Randomisation of the scenes.

        Raises:
            ConfigError: a strength is out of bounds.
        """
        names = ('camera', 'light', 'table', 'color', 'distractors')
        return config.replace(base, **{n: getattr(self, n) for n in names if getattr(self, n) is not None})

    def disturbance(self, seed: int) -> Disturbance:
        """What happens to frames and chunks."""
        return Disturbance(latency=self.latency, drop=self.chunk_drop, frame_drop=self.frame_drop, seed=seed)


@dataclass(frozen=True)
class Suite:
    """One suite (config/suites/tabletop_*.yaml)."""

    name: str = option('', 'in results and on the command line')
    title: str = option('', 'in tables')
    note: str = option('', 'one line on what it asks for')
    family: str = option('plain', 'of the sentences', choices=FAMILIES)
    split: str = option('held_out', 'of the sentences', choices=('train', 'held_out', 'all'))
    tasks: dict[str, int] = option({}, 'episodes per task')
    seed: int = option(TEST_SEED, 'first scene', ge=TEST_SEED)
    variants: tuple[Variant, ...] = option((Variant(),), 'how each scene is tried')

    def __post_init__(self) -> None:
        for task, count in self.tasks.items():
            if task not in TASKS:
                raise ConfigError(f'suite {self.name}: unknown task {task!r}.{suggest(task, TASKS)}')
            if count < 1:
                raise ConfigError(f'suite {self.name}: {count} episodes of {task}; at least one is needed')
        if not self.name or not self.tasks or not self.variants:
            raise ConfigError(f'suite {self.name!r}: name, tasks and variants must not be empty')
        names = [v.name for v in self.variants]
        if len(set(names)) < len(names):
            raise ConfigError(f'suite {self.name}: every variant needs a name of its own')


@dataclass(frozen=True)
class Case:
    """One episode to run.

    Attributes:
        kind: rule that made the sentence. sentence: the policy may think. strategy: of the chunks, see
            :data:`~instructvla_ros.evaluation.suite_cell.STRATEGIES`; '' for the configured one.
    """

    suite: str
    variant: Variant
    episode: Episode
    kind: str
    sentence: bool = True
    strategy: str = ''

    @property
    def key(self) -> str:
        """Names this case among those of a run."""
        e = self.episode
        words = 'with sentence' if self.sentence else 'without sentence'
        return ' | '.join((self.suite, self.variant.name, e.task, str(e.seed), e.instruction, words, self.strategy))


def read_suite(name: str) -> Suite:
    """A suite by name or the YAML file of one.

    Raises:
        ConfigError: no such suite, or one that is not valid. TaskError: unknown task.
    """
    if name in NAMES:
        return config.load(Suite, resources.config_file(f'suites/tabletop_{name}.yaml'))
    if not Path(name).expanduser().is_file():
        raise ConfigError(f'no suite {name!r}, and no such file.{suggest(name, NAMES)}')
    return config.load(Suite, Path(name).expanduser())


def cases(suite: Suite, base: Randomization, episodes: int = 0) -> list[Case]:
    """Episodes of a suite, variant by variant over the same seeds.

    Args:
        base: randomisation of the simulator. episodes: per task instead of the suite's own counts; 0: those.
    """
    out = []
    for variant in suite.variants:
        for task, count in suite.tasks.items():
            out += _of_task(suite, variant, task, episodes or count, base)
    return out


def _of_task(suite: Suite, variant: Variant, task: str, count: int, base: Randomization) -> list[Case]:
    found: list[Case] = []
    look = variant.randomization(base)
    for seed in range(suite.seed, suite.seed + count * (1 + SPARE)):
        episode = make_episode(task, seed, randomization=look)
        spoken = _spoken(suite, episode)
        if spoken is not None:
            text, kind = spoken
            found.append(Case(suite.name, variant, replace(episode, instruction=text), kind))
        if len(found) == count:
            return found
    raise TaskError(f'suite {suite.name}: too few scenes of {task} have a sentence of the family {suite.family}')


def _spoken(suite: Suite, episode: Episode) -> tuple[str, str] | None:
    """Sentence and its kind; kinds are drawn first, so that those with many wordings do not crowd out the others."""
    if suite.family == 'plain':
        return episode.instruction, 'plain'
    rng = np.random.default_rng([episode.seed, list(TASKS).index(episode.task)])
    phrases = instructions(episode, suite.family, rng, suite.split)
    if not phrases:
        return None
    kind = str(rng.choice(sorted({p.kind for p in phrases})))
    group = [p for p in phrases if p.kind == kind]
    return group[int(rng.integers(len(group)))].text, kind


def multiplied(
    found: Sequence[Case], sentences: Sequence[bool], strategies: Sequence[str], latency: float | None = None
) -> list[Case]:
    """Every case with every choice of sentence and strategy; ``latency`` [s] replaces that of the variants."""
    out = []
    for case in found:
        variant = case.variant if latency is None else config.replace(case.variant, latency=latency)
        out += [replace(case, variant=variant, sentence=s, strategy=c) for c in strategies or ('',) for s in sentences]
    return out


def held_out(suite: Suite) -> Mapping[str, Sequence[str]]:
    """The lines that sentences of this suite are made from and training never uses, by rule."""
    from ..sim.phrasebook import HELD_OUT

    if suite.family == 'plain' or suite.split != 'held_out':
        return {}
    out: dict[str, Sequence[str]] = {}
    for rule, lines in vars(HELD_OUT).items():
        for end, group in lines.items() if isinstance(lines, Mapping) else (('', lines),):
            out[f'{rule} {end}'.strip().replace('_', ' ')] = group
    return out


__all__ = [
    'DEFAULT',
    'NAMES',
    'TEST_SEED',
    'Case',
    'Suite',
    'Variant',
    'cases',
    'held_out',
    'multiplied',
    'read_suite',
]
