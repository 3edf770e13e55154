"""One call from a path to a judged replay: opens the recording, makes the policy, replays, measures, checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import config, resources
from ..control.kinematics import Kinematics
from ..data.episodes import META, Dataset
from ..errors import ConfigError, DataError
from ..policy import Policy, make_policy
from ..settings import Control, Embodiment, PolicySettings
from . import replay_diagnosis, replay_limits, replay_metrics
from .machine import usable_cores
from .replay import ReplayOptions, Witness, replay
from .replay_bag import BagRecording
from .replay_diagnosis import Diagnosis
from .replay_judge import JudgeProcess
from .replay_limits import FAILED, Check, Limits
from .replay_policies import RecordedPolicy
from .replay_source import EpisodeRecording, Recording
from .replay_trace import Trace
from .runlog import plain

RECORDED = 'recorded'
_WORTH_A_PROCESS = 20.0  # length of a bag from which the controller gets a process of its own [s]


@dataclass(frozen=True)
class Deployment:
    """The robot and the policy as they would be used.

    Attributes:
        policy: name in the settings, or 'recorded' for the policy that answers with the recorded motion.
    """

    policy: str
    settings: PolicySettings
    embodiment: Embodiment
    control: Control
    options: ReplayOptions = field(default_factory=ReplayOptions)
    topics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A judged replay. ``passed`` is False when a check failed."""

    trace: Trace
    metrics: dict[str, Any]
    diagnoses: tuple[Diagnosis, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """No check failed."""
        return all(c.result != FAILED for c in self.checks)

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            'recording': self.trace.meta.get('recording', ''),
            'passed': self.passed,
            'meta': self.trace.meta,
            'metrics': self.metrics,
            'diagnoses': [plain(d.plain()) for d in self.diagnoses],
            'checks': [{'name': c.name, 'result': c.result, 'text': c.text} for c in self.checks],
        }


def deployment(
    policy: str = '',
    checkpoint: str = '',
    embodiment: str = 'franka.yaml',
    options: ReplayOptions | None = None,
    topics: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Deployment:
    """Settings of the package with the choices of a user on top.

    Args:
        policy: '' takes 'instructvla' with a checkpoint, and refuses without one. overrides: keys of policy.yaml.

    Raises:
        ConfigError, SetupError: a file or a value is not valid.
    """
    name = policy or ('instructvla' if checkpoint else '')
    if not name:
        raise ConfigError('say whom to replay: --checkpoint FOLDER, or --policy hold, expert or recorded')
    changes = {'policy': 'hold' if name == RECORDED else name, 'checkpoint': checkpoint, **(overrides or {})}
    return Deployment(
        name,
        config.load(PolicySettings, resources.config_file('policy.yaml'), changes),
        config.load(Embodiment, resources.config_file(embodiment)),
        config.load(Control, resources.config_file('controller.yaml')),
        options or ReplayOptions(),
        dict(topics or {}),
    )


@contextmanager
def open_recording(
    path: str | Path, embodiment: Embodiment, topics: Mapping[str, str] | None = None, episode: str = ''
) -> Iterator[Recording]:
    """A bag, or an episode of a dataset (the first one when none is named).

    Raises:
        DataError: neither, or damaged beyond use.
    """
    place = Path(path)
    if (place / META).is_file():
        dataset = Dataset.open(place)
        if not len(dataset):
            raise DataError(f'{place} holds no episodes')
        yield EpisodeRecording(dataset.read(episode or 0), dataset.meta, embodiment)
        return
    if episode:
        raise ConfigError(f'{place} is a bag; --episode is for datasets')
    with BagRecording(place, embodiment, topics) as bag:
        yield bag


def episodes_of(path: str | Path) -> list[str]:
    """Ids of the episodes of a dataset; empty for a bag."""
    place = Path(path)
    return [e.id for e in Dataset.open(place).index] if (place / META).is_file() else []


class Replayer:
    """Replays recordings one after the other with one policy; its weights are loaded once."""

    def __init__(self, plan: Deployment) -> None:
        self.plan = plan
        self.kinematics = Kinematics(plan.embodiment)
        self._policy: Policy | None = None
        self._judging: JudgeProcess | None = None

    def close(self) -> None:
        """End the process of the controller, if there is one; it also ends with this object."""
        if self._judging is not None:
            self._judging.close()

    def policy(self, recording: Recording) -> Policy:
        """The policy for a recording.

        Raises:
            CheckpointError, ConfigError, SetupError: as ``make_policy``.
        """
        if self.plan.policy == RECORDED:
            return RecordedPolicy(recording, self.plan.settings, kinematics=self.kinematics)
        if self._policy is None:
            self._policy = make_policy(self.plan.settings, recording.embodiment)
        return self._policy

    def run(
        self,
        recording: Recording,
        limits: Limits | None = None,
        *,
        witness: Witness | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Outcome:
        """Replay, measure, diagnose, check.

        Raises:
            DataError: the recording is not usable, or the policy could never be asked. Whatever the policy raises.
        """
        plan = self.plan
        judging = self._process(recording)  # it starts while the weights are loaded
        policy = self.policy(recording)
        policy.reset()
        trace = replay(
            recording,
            policy,
            plan.settings,
            plan.control,
            plan.options,
            witness=witness,
            progress=progress,
            kinematics=self.kinematics,
            judging=judging,
        )
        return judge(trace, limits)

    def _process(self, recording: Recording) -> JudgeProcess | None:
        """A process for the controller where it pays: two cores, and a recording that takes longer than its start."""
        if not self.plan.options.judge or usable_cores() < 2:
            return None
        if self._judging is None or not self._judging.usable:
            if getattr(recording, 'duration', 0.0) < _WORTH_A_PROCESS:
                return None
            self._judging = JudgeProcess()
        return self._judging


def judge(trace: Trace, limits: Limits | None = None) -> Outcome:
    """Measure, diagnose and check a finished replay.

    Raises:
        DataError: the policy was never asked.
    """
    metrics = plain(replay_metrics.summarize(trace))
    diagnoses = replay_diagnosis.diagnose(trace)
    checks: Sequence[Check] = replay_limits.check(limits, metrics, diagnoses) if limits is not None else ()
    return Outcome(trace, metrics, tuple(diagnoses), tuple(checks))
