"""What ``instructvla replay`` does: every recording through every checkpoint, results in a folder as they come."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import resources
from ..errors import ConfigError, DataError, InstructVLAError
from . import machine, replay_limits, replay_trace
from .replay import ReplayOptions
from .replay_asking import TOGETHER
from .replay_camera import load_calibration
from .replay_compare import compare
from .replay_limits import FAILED, PASSED, Check, Limits
from .replay_pictures import Pictures
from .replay_report import write_report
from .replay_session import RECORDED, Outcome, Replayer, deployment, episodes_of, open_recording
from .runlog import plain, write_json

METRICS, JUNIT = 'metrics.json', 'junit.xml'
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Job:
    """Arguments of the verb; see its help."""

    recordings: tuple[str, ...]
    checkpoints: tuple[str, ...] = ('',)
    policy: str = ''
    embodiment: str = 'franka.yaml'
    instruction: str = ''
    topics: Mapping[str, str] = field(default_factory=dict)
    episode: str = ''
    overrides: Mapping[str, Any] = field(default_factory=dict)
    start: float = 0.0
    duration: float = float('inf')
    latency: float = 0.0
    at: str = 'rate'
    judge: bool = True
    one_by_one: bool = False
    limits: str = 'replay.yaml'
    out: str = ''
    video: bool = True
    calibration: str = ''
    command: str = ''


@dataclass
class Entry:
    """One recording through one checkpoint; ``outcome`` is None when that was not possible, ``error`` says why."""

    name: str
    label: str
    folder: Path
    outcome: Outcome | None = None
    error: str = ''
    seconds: float = 0.0

    @property
    def checks(self) -> tuple[Check, ...]:
        """Checks; a recording that could not be replayed is one failed check."""
        if self.outcome is None:
            return (Check('replay', FAILED, self.error),)
        return (Check('replay', PASSED, f'{len(self.outcome.trace.chunks)} chunks'), *self.outcome.checks)


@dataclass
class Results:
    """Everything a job came to."""

    folder: Path
    entries: list[Entry] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    labels: tuple[str, ...] = ('',)

    @property
    def passed(self) -> bool:
        """No check of the last checkpoint failed: with two, the second one is the candidate."""
        return all(c.result != FAILED for e in self._judged for c in e.checks)

    @property
    def _judged(self) -> list[Entry]:
        return [e for e in self.entries if e.label == self.labels[-1]]

    def junit(self) -> str:
        """JUnit XML."""
        names = {id(e): e.name if len(self.labels) == 1 else f'{e.name} [{e.label}]' for e in self._judged}
        return replay_limits.junit(
            {names[id(e)]: e.checks for e in self._judged}, {names[id(e)]: e.seconds for e in self._judged}
        )

    def plain(self) -> dict[str, Any]:
        """JSON data."""
        return {
            'passed': self.passed,
            'folder': str(self.folder),
            'replays': [
                {
                    'name': e.name,
                    'checkpoint': e.label,
                    'error': e.error,
                    'report': str(e.folder / 'report.html') if e.outcome is not None else None,
                    **(e.outcome.plain() if e.outcome is not None else {}),
                }
                for e in self.entries
            ],
            'comparisons': self.comparisons,
        }

    def table(self) -> str:
        """Text for a terminal."""
        names = ('recording', 'chunks', 'skill', 'end mm', 'grip', 'refused', 'x real')
        lines = ['{:28s}{:>7s}{:>8s}{:>8s}{:>7s}{:>9s}{:>8s}  result'.format(*names)]
        for e in self.entries:
            title = e.name if len(self.labels) == 1 else f'{e.name} {e.label}'
            if e.outcome is None:
                lines.append(f'{title[:27]:28s} cannot be replayed: {e.error}')
                continue
            m = e.outcome.metrics
            skill, end = m['action']['translation_skill_over_hold'], m['path']['rebased_end']['p50']
            grip = m['gripper']['recall']
            lines.append(
                f'{title[:27]:28s}{m["chunks"]["count"]:7d}{_cell(skill, 1, "8.2f")}{_cell(end, 1e3, "8.0f")}'
                f'{_cell(grip, 1, "7.2f")}{m["chunks"]["refused"]:9d}{_cell(m["speed"]["times_real_time"], 1, "8.1f")}'
                f'  {"passed" if e.outcome.passed else "FAILED"}'
            )
            for c in e.outcome.checks:
                if c.result == FAILED:
                    lines.append(f'    {c.name}: {c.text}')
            for text in e.outcome.trace.missing:
                lines.append(f'    missing: {text}')
        for found in self.comparisons:
            lines.append(f'  {found["recording"]}: {found["text"]}')
        return '\n'.join(lines)


def run(job: Job, progress: Progress | None = None) -> Results:
    """Replay everything; a recording that cannot be replayed is reported and does not end the job.

    Raises:
        ConfigError, CheckpointError, SetupError: the job itself is not possible.
    """
    if len(set(job.checkpoints)) != len(job.checkpoints):
        raise ConfigError('the two checkpoints to compare are the same')
    limits = replay_limits.load_limits(resources.config_file(job.limits))
    calibration = load_calibration(job.calibration)
    targets = _targets(job)
    folder = _folder(job.out)
    labels = _labels(job)
    results = Results(folder, labels=labels)
    for checkpoint, label in zip(job.checkpoints, labels, strict=True):
        plan = deployment(
            job.policy,
            checkpoint,
            job.embodiment,
            ReplayOptions(
                job.instruction, job.latency, job.judge, job.at, job.start, job.duration,
                together=1 if job.one_by_one else TOGETHER,
            ),  # fmt: skip
            job.topics,
            job.overrides,
        )
        replayer = Replayer(plan)
        for path, episode, name in targets:
            place = folder / name / label if len(labels) > 1 else folder / name if len(targets) > 1 else folder
            place.mkdir(parents=True, exist_ok=True)
            entry = Entry(name, label, place)
            results.entries.append(entry)
            began = time.perf_counter()
            try:
                with open_recording(path, plan.embodiment, plan.topics, episode) as recording:
                    entry.outcome = _one(replayer, recording, limits, job, place, calibration, name, progress)
            except DataError as err:
                entry.error = str(err)
            except InstructVLAError as err:
                # What the policy itself refuses would fail for every recording of this kind: say it here.
                if plan.policy != RECORDED and len(targets) == 1:
                    raise
                entry.error = str(err)
            entry.seconds = time.perf_counter() - began
            write_json(folder / METRICS, results.plain())
            (folder / JUNIT).write_text(results.junit(), encoding='utf-8')
        replayer.close()
        del replayer
        gc.collect()
    if len(labels) == 2:
        _compare(results, targets)
        write_json(folder / METRICS, results.plain())
    return results


def _one(
    replayer: Replayer,
    recording: Any,
    limits: Limits,
    job: Job,
    place: Path,
    calibration: Any,
    name: str,
    progress: Progress | None,
) -> Outcome:
    total = min(float(getattr(recording, 'duration', 0.0)), job.duration)
    report = (lambda done: progress(name, done, total)) if progress is not None else None
    forward = recording.forward or replayer.kinematics.forward
    pictures = Pictures(recording.embodiment, forward, place / 'video.mp4', calibration) if job.video else None
    try:
        outcome = replayer.run(
            recording,
            limits,
            witness=pictures,
            progress=report,
        )
    finally:
        video = pictures.close() if pictures is not None else {}
    outcome.trace.meta.update(
        plain(
            {
                'video': video,
                'command': job.command,
                'created': time.strftime('%Y-%m-%d %H:%M:%S'),
                'machine': machine.facts(),
                'versions': machine.versions(),
                'limits': job.limits,
            }
        )
    )
    replay_trace.save(outcome.trace, place)
    write_json(place / METRICS, outcome.plain())
    write_report(place, outcome)
    return outcome


def _compare(results: Results, targets: list[tuple[str, str, str]]) -> None:
    first, second = results.labels
    outcomes = {(e.name, e.label): e.outcome for e in results.entries}
    for _, _, name in targets:
        a, b = outcomes.get((name, first)), outcomes.get((name, second))
        if a is not None and b is not None:
            results.comparisons.append(plain({'recording': name, **compare(a.trace, b.trace, (first, second))}))
            entry = next(e for e in results.entries if (e.name, e.label) == (name, second))
            write_report(entry.folder, b, against=a, comparison=results.comparisons[-1], labels=(first, second))


def _targets(job: Job) -> list[tuple[str, str, str]]:
    """Path, episode and name of everything to replay."""
    out: list[tuple[str, str, str]] = []
    used: dict[str, int] = {}
    for path in job.recordings:
        episodes = episodes_of(path) if job.episode == 'all' else [job.episode]
        for episode in episodes if episodes else ['']:
            name = Path(path).resolve().name.replace('.mcap', '').replace('.db3', '')
            name = f'{name}-{episode}' if episode else name
            used[name] = used.get(name, 0) + 1
            out.append((path, episode, name if used[name] == 1 else f'{name}-{used[name]}'))
    return out


def _labels(job: Job) -> tuple[str, ...]:
    if len(job.checkpoints) == 1:
        return ('',)
    names = [Path(c).name or c for c in job.checkpoints]
    return tuple(names) if len(set(names)) == len(names) else ('A', 'B')


def _folder(out: str) -> Path:
    place = Path(out) if out else Path('runs') / time.strftime('replay-%Y%m%d-%H%M%S')
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f'{place} cannot be made ({err.strerror}); choose another folder with --out') from None
    return place


def _cell(value: float | None, scale: float, form: str) -> str:
    width = int(form.split('.')[0])
    return f'{value * scale:{form}}' if value is not None else f'{"-":>{width}s}'
