"""One case of Tabletop-Instruct, or several at once, in this process: scene, policy, and the row of the result.

A model needs less time for eight observations at once than for one after the other, so episodes are played in
lockstep: each runs to its next question, the questions are answered together.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import config
from ..control.kinematics import Kinematics
from ..datatypes import Act, Ask, Image, Reasoning
from ..errors import ConfigError
from ..policy import Policy, SharedPolicy, act_alone, make_policy
from ..resources import local_checkpoint
from ..settings import Control, Embodiment, PolicySettings, Sim
from ..sim.reasons import decision
from ..sim.references import View, named
from ..sim.relations import scene_objects
from ..sim.tasks import Episode
from ..sim.world import World
from .rollout import START_NS, EpisodeRun, Moment, Play, RolloutResult
from .seams import Seams
from .simpler import write_video
from .suites import Case

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
        together: episodes that a process plays at once, where the policy can; the result is the same up to rounding.
    """

    embodiment: Embodiment
    sim: Sim
    control: Control
    policy: PolicySettings
    folder: str = ''
    videos: str = 'none'
    together: int = 1

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


@dataclass
class _Seat:
    """Place of one episode: its world and arm, reused from case to case, and the episode that is under way."""

    world: World
    kinematics: Kinematics
    plain: Policy
    realtime: dict[float, Policy] = field(default_factory=dict)
    policy: Policy | None = None
    play: Play | None = None
    ask: Ask | None = None
    reasoning: Reasoning | None = None
    settle: Callable[[RolloutResult], dict[str, Any]] | None = None


class Cell:
    """Everything that one process needs to run cases, reused from case to case.

    Args:
        policy: to use instead of the one that the settings name.
    """

    def __init__(self, setup: Setup, policy: Policy | None = None) -> None:
        self.setup, self._identity = setup, setup.identity()
        self._policy = policy if policy is not None else make_policy(setup.policy, setup.embodiment)
        self._shared = self._policy if isinstance(self._policy, SharedPolicy) else None
        looks = not self._policy.privileged and self._policy.name != 'hold'
        self._views = looks or setup.videos != 'none'
        self._seats = [self._seat(self._policy)]

    @property
    def together(self) -> int:
        """Episodes that are played at once."""
        return self.setup.together if self._shared is not None else 1

    def close(self) -> None:
        """Give the graphics back."""
        for seat in self._seats:
            seat.world.close()

    def run(self, case: Case) -> dict[str, Any]:
        """Run one case and return its row."""
        return next(iter(self.run_many([case])))

    def run_many(self, cases: Iterable[Case]) -> Iterator[dict[str, Any]]:
        """Run cases, :attr:`together` of them at once, and give the row of each when it ends.

        Which cases share a round depends on the cases alone, so the same list gives the same rows.
        """
        for seat in self._seats:
            seat.ask = seat.play = None  # of an earlier call that ended with an error
        waiting = iter(cases)
        while True:
            for number in range(self.together):
                # A case may end before it asks anything.
                while (number >= len(self._seats) or self._seats[number].ask is None) and (
                    case := next(waiting, None)
                ) is not None:
                    if number == len(self._seats):
                        assert self._shared is not None
                        self._seats.append(self._seat(self._shared.member()))
                    row = self._begin(self._seats[number], case)
                    if row is not None:
                        yield row
            busy = [seat for seat in self._seats if seat.ask is not None]
            if not busy:
                return
            for seat, act in zip(busy, self._act(busy), strict=True):
                row = self._go_on(seat, act)
                if row is not None:
                    yield row

    def _seat(self, policy: Policy) -> _Seat:
        world = World(self.setup.sim, self.setup.embodiment, render=self._views)
        return _Seat(world, Kinematics(self.setup.embodiment), policy)

    def _begin(self, seat: _Seat, case: Case) -> dict[str, Any] | None:
        """Start a case up to its first ask; its row when there is none."""
        control, settings, policy = self._arranged(seat, case)
        watch = _Watch(self.setup.videos != 'none')
        started = time.monotonic()
        run = EpisodeRun(
            case.episode,
            policy,
            self.setup.sim,
            self.setup.embodiment,
            control,
            settings,
            case.variant.disturbance(case.episode.seed),
            seat.world,
            seat.kinematics,
            self._views,
            watch,
            case.sentence,
        )

        def settle(result: RolloutResult) -> dict[str, Any]:
            row = _row(case, result, watch, settings.step_period, control.rate)
            row['id'] = case_id(case, self._identity)
            row['revision'] = policy.checkpoint_revision
            row['wall'] = time.monotonic() - started
            if watch.frames and (self.setup.videos == 'all' or not result.success):
                row['video'] = f'videos/{row["id"]}.mp4'
                write_video(Path(self.setup.folder) / row['video'], watch.frames)
            return row

        seat.policy, seat.reasoning, seat.settle = policy, None, settle
        seat.play = run.play(linger=0.0)
        return self._go_on(seat, None)

    def _go_on(self, seat: _Seat, act: Act | None) -> dict[str, Any] | None:
        """Play to the next ask; the row when the episode ended before it."""
        assert seat.play is not None and seat.settle is not None
        try:
            if act is None:
                seat.ask = next(seat.play)
            else:
                seat.reasoning = act.said or seat.reasoning
                seat.ask = seat.play.send(act)
        except StopIteration as end:
            seat.ask = seat.play = None
            return seat.settle(end.value)
        return None

    def _act(self, busy: Sequence[_Seat]) -> list[Act]:
        """What the policy of each seat says and does."""
        told = [(s.policy, s.ask, s.reasoning) for s in busy if s.policy is not None and s.ask is not None]
        if self._shared is not None:
            policies, asks, reasonings = zip(*told, strict=True)
            return self._shared.act_each(policies, asks, reasonings)
        return [act_alone(*one) for one in told]

    def _arranged(self, seat: _Seat, case: Case) -> tuple[Control, PolicySettings, Policy]:
        control, settings = self.setup.control, self.setup.policy
        if case.strategy in ('replace', 'ensemble', 'blend'):
            return config.replace(control, strategy=case.strategy), settings, seat.plain
        if case.strategy != 'realtime':
            return control, settings, seat.plain
        # The model sees the latency that is injected, not how fast this machine happens to be.
        latency = case.variant.latency
        changes = {'realtime': 'guided', 'realtime_latency': latency, 'realtime_measured': False}
        if latency not in seat.realtime:
            make = getattr(seat.plain, 'with_settings', None)
            if make is None:
                raise ConfigError(
                    f'policy {seat.plain.name!r} has no real-time chunking; leave the strategy realtime out'
                )
            seat.realtime[latency] = make(**changes)
        return config.replace(control, strategy='replace'), config.replace(settings, **changes), seat.realtime[latency]


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
