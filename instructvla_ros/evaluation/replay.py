"""Yesterday's recording through today's policy, without ROS: deterministic, and as fast as this machine can.

The clock is the recording's. Observations come out of the same ``Synchronizer`` as in the graph, the policy is asked
at its own rate, the first chunk of an instruction waits for its sentence, and the controller of the graph runs in
dry-run over the recorded joint states and says what it would have refused, scaled, clipped or held. The arm follows
the recording, never the policy: that is what an open-loop comparison can and cannot say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Protocol

import numpy as np

from ..control.kinematics import Kinematics
from ..datatypes import ActionChunk, Image, Observation, Reasoning, RobotState
from ..errors import ConfigError, DataError, InstructVLAError, ObservationError
from ..observing import Pacer, Stale, Synchronizer
from ..policy import Policy, PreparingPolicy
from ..settings import Control, PolicySettings
from .replay_asking import TOGETHER, Answer, Asking, WaitingJudge
from .replay_judge import Judge, JudgeProcess, RemoteJudge
from .replay_source import (
    ChunkEvent,
    Event,
    FrameEvent,
    GripperEvent,
    Recording,
    SaidEvent,
    SceneEvent,
    StateEvent,
    WordsEvent,
    due_ns,
)
from .replay_trace import Judged, Trace, TrackBuilder
from .runlog import plain

_PLACE_HOLDER = np.zeros((1, 1, 3), dtype=np.uint8)
_KEPT = 16  # encoded pictures per view that may still be asked for

@dataclass(frozen=True)
class ReplayOptions:
    """How to replay.

    Attributes:
        instruction: instead of the recorded ones. latency: from the observation's arrival until the chunk reaches the
            controller, on the clock of the recording [s]. judge: run the controller in dry-run.
        at: 'rate' asks the policy at its own rate, 'recorded' for exactly the observations that the recorded chunks
            rest on. stamps: ask it for exactly these observations [ns]. start, duration: part of the recording [s].
        together: observations that a policy which can is asked about at once; 1: one after the other, as on the robot.
    """

    instruction: str = ''
    latency: float = 0.0
    judge: bool = True
    at: str = 'rate'
    start: float = 0.0
    duration: float = float('inf')
    stamps: frozenset[int] | None = None
    together: int = TOGETHER

    def __post_init__(self) -> None:
        if self.at not in ('rate', 'recorded'):
            raise ConfigError(f"at {self.at!r}: allowed are 'rate' and 'recorded'")
        if not (self.latency >= 0.0 and self.start >= 0.0 and self.duration > 0.0):
            raise ConfigError('latency and start have to be at least 0 s, duration above 0 s')
        if self.together < 1:
            raise ConfigError(f'together {self.together}: at least one observation is asked about')


class Witness(Protocol):
    """Somebody who looks on while a recording is replayed."""

    def watch(self, event: Event) -> None:
        """Every event, before it is used."""

    def glance(self, seen: Observation) -> None:
        """An observation that the policy is asked about, at its time."""

    def look(self, seen: Observation, chunk: ActionChunk, said: Reasoning | None) -> None:
        """The same observation with its chunk and the sentence behind it, when they are known."""


Progress = Callable[[float], None]


def replay(
    recording: Recording,
    policy: Policy,
    settings: PolicySettings,
    control: Control,
    options: ReplayOptions | None = None,
    *,
    witness: Witness | None = None,
    progress: Progress | None = None,
    kinematics: Kinematics | None = None,
    judging: JudgeProcess | None = None,
) -> Trace:
    """Replay a recording once.

    Args:
        witness: looks on (pictures, report). progress: called with the seconds of the recording done so far.
        judging: runs the controller, with the same result as here; left open, unless something goes wrong.

    Returns:
        The trace; without chunks when the policy never had an observation (``stale`` and ``missing`` say why).

    Raises:
        ConfigError: no instruction is known, or 'recorded' is asked of a recording without chunks.
        DataError: the recording cannot be read. Whatever the policy raises.
    """
    options = options or ReplayOptions()
    started = time.perf_counter()
    run = _Run(recording, policy, settings, control, options, witness, kinematics, judging)
    try:
        try:
            for event in recording.events():
                if witness is not None:
                    witness.watch(event)
                if not run.take(event):
                    break
                if progress is not None:
                    progress(run.elapsed)
        except InstructVLAError as err:
            run.asking.settle()
            if not isinstance(err, DataError) or not run.chunks:
                raise
            recording.trouble.add(f'the rest cannot be read: {err}')  # what was readable is used
        return run.finish(started)
    finally:
        run.asking.close()
        run.judge.close()


class _Run:
    def __init__(
        self,
        recording: Recording,
        policy: Policy,
        settings: PolicySettings,
        control: Control,
        options: ReplayOptions,
        witness: Witness | None,
        kinematics: Kinematics | None,
        judging: JudgeProcess | None,
    ) -> None:
        self.recording, self.policy, self.settings, self.options = recording, policy, settings, options
        embodiment = recording.embodiment
        self.kinematics = kinematics or Kinematics(embodiment)
        self.forward = recording.forward or self.kinematics.forward
        self.joints = len(embodiment.arm_joints)
        self.views = tuple(v for v in embodiment.views if v in recording.views)
        if not self.views:
            raise DataError(
                f'{recording.name} has none of the views {", ".join(embodiment.views)}; '
                'name the topics of its cameras in the embodiment'
            )
        self.sync = Synchronizer(self.views, self.forward, embodiment.base_frame, settings, policy.privileged)
        if judging is not None and options.judge:
            self.judge = WaitingJudge(RemoteJudge(embodiment, control, judging))
        else:
            self.judge = WaitingJudge(Judge(embodiment, control, options.judge, self.kinematics))
        self.asking = Asking(policy, options.together)
        self.witness = witness
        self.pacer = Pacer(settings.chunk_rate)
        self.pictures: dict[tuple[str, int], FrameEvent] = {}
        self.instruction = ''
        self.words = bool(options.instruction)
        self.first_ns: int | None = None
        self.now_ns = 0
        self.last_stamp = 0
        self.next_think = -float('inf')
        self.reasoning: Reasoning | None = None
        self.sentence = -1
        self.chunks: list[Judged] = []
        self.sentences: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.stale: dict[str, int] = {}
        self.recorded: list[ActionChunk] = []
        self.due = _recorded_stamps(recording) if options.at == 'recorded' else options.stamps
        self.segment = 0  # first chunk of the instruction
        self.frames = dict.fromkeys(self.views, 0)
        self.motion = TrackBuilder()

    @property
    def elapsed(self) -> float:
        """Seconds of the recording done."""
        return (self.now_ns - self.first_ns) * 1e-9 if self.first_ns is not None else 0.0

    def take(self, event: Event) -> bool:
        """Use one event; False when the part that was asked for is over."""
        self.now_ns = due_ns(event)
        if self.first_ns is None:
            self.first_ns = self.now_ns
        if self.elapsed > self.options.start + self.options.duration:
            return False
        self.judge.advance(self.now_ns)
        if isinstance(event, StateEvent):
            self._take_state(event)
        elif isinstance(event, FrameEvent):
            self._take_frame(event)
        elif isinstance(event, GripperEvent):
            self.motion.command(event.stamp_ns, event.openness)
        elif isinstance(event, WordsEvent):
            self.words = True
            if not self.options.instruction:
                self._start(event.instruction.strip())
        elif isinstance(event, SceneEvent):
            if self.policy.privileged:
                self._note(self.sync.feed_privileged(event.scene))
        elif isinstance(event, SaidEvent):
            if event.text:
                self.notes.append({'stamp_ns': event.stamp_ns, 'text': event.text})
        elif isinstance(event, ChunkEvent):
            self.recorded.append(event.chunk)
        return True

    def _note(self, problem: str) -> None:
        if problem:
            self.recording.trouble.add(problem.split(' stamped ')[0].split(' by ')[0])

    def _take_state(self, event: StateEvent) -> None:
        self._note(problem := self.sync.feed_state(event.state))
        if problem:
            return
        pose = event.pose if event.pose is not None else self.forward(event.state.q)
        if not self.motion.state(event.stamp_ns, pose, event.state.gripper):
            return
        q = event.state.q[: self.joints]
        if len(q) == self.joints and np.isfinite(q).all():
            self.judge.state(RobotState(event.stamp_ns, q, event.state.dq[: self.joints], event.state.gripper))

    def _take_frame(self, event: FrameEvent) -> None:
        if event.view not in self.frames:
            return
        self.frames[event.view] += 1
        problem = self.sync.feed(event.view, event.stamp_ns, _PLACE_HOLDER)
        self._note(problem)
        if problem:
            return
        self.pictures[event.view, event.stamp_ns] = event
        while len(self.pictures) > _KEPT * len(self.views):
            del self.pictures[next(iter(self.pictures))]
        if self.elapsed >= self.options.start:
            self._see()

    def _start(self, instruction: str) -> None:
        """Begin an instruction as the node does: everything about the one before is forgotten."""
        if instruction == self.instruction:
            return
        self.asking.settle()
        self._end_segment()
        self.instruction = instruction
        self.policy.reset()
        self.asking.forget()
        self.pacer.reset()
        self.next_think = -float('inf')
        self.reasoning, self.sentence, self.last_stamp = None, -1, 0
        self.judge.drop('another instruction')

    def _end_segment(self) -> None:
        for k in range(self.segment, len(self.chunks)):
            self.chunks[k] = replace(self.chunks[k], until_ns=self.now_ns)
        self.segment = len(self.chunks)

    def _see(self) -> None:
        if self.options.instruction and not self.instruction:
            self._start(self.options.instruction)
        if not self.instruction:
            return
        while True:
            seen = self.sync.wanted(self.now_ns, self._due, self.instruction)
            if seen is None:
                return
            if isinstance(seen, Stale):
                kind = f'{seen.input}: {_without_numbers(seen.reason)}'
                self.stale[kind] = self.stale.get(kind, 0) + 1
                return
            began = time.perf_counter()
            complete = self._with_pictures(seen)
            if complete is not None:
                if isinstance(self.policy, PreparingPolicy):
                    self.policy.prepare(complete, keep=2 * self.asking.together)
                self.last_stamp = seen.stamp_ns
                self._act(complete, time.perf_counter() - began)
                return
            self.pacer.reset()  # a picture of it is broken: take the newest whole one instead

    def _due(self, stamp_ns: int) -> bool:
        """Whether the policy is to be asked about the observation of this stamp, which nobody looked at before."""
        if stamp_ns == self.last_stamp:
            return False
        take = stamp_ns in self.due if self.due is not None else self.pacer.take(self.now_ns * 1e-9)
        if not take:
            self.last_stamp = stamp_ns
        return take

    def _with_pictures(self, seen: Observation) -> Observation | None:
        images: dict[str, Image] = {}
        for view, stamp in seen.view_stamps_ns.items():
            try:
                images[view] = self.pictures[view, stamp].seen()
            except (ObservationError, DataError) as err:
                at = (stamp - (self.first_ns or 0)) * 1e-9
                self.recording.trouble.add(f'view {view!r} at {at:.2f} s: {err}')
                self.sync.discard(view, stamp)
                return None
        q, dq = seen.q[: self.joints], seen.dq[: self.joints]
        if self.recording.forward is not None and len(seen.q) != self.joints + 6:
            q, dq = np.zeros(0), np.zeros(0)
        return replace(seen, views=images, q=q, dq=dq)

    def _act(self, seen: Observation, decode: float) -> None:
        now_ns = self.now_ns
        now = now_ns * 1e-9
        think = self.settings.reasoning != 'off' and now >= self.next_think - 1e-9
        if think:
            self.next_think = now + self.settings.reasoning_period
        self.judge.hold()
        if self.witness is not None:
            self.witness.glance(seen)
        self.asking.ask(seen, think, lambda answer: self._take_answer(seen, answer, decode, now_ns))

    def _take_answer(self, seen: Observation, answer: Answer, decode: float, now_ns: int) -> None:
        said = answer.said
        if said is not None:
            self.reasoning = said
            self.sentence = len(self.sentences)
            self.sentences.append(
                {
                    'id': f'say-{self.sentence:05d}',
                    'stamp_ns': said.stamp_ns,
                    'text': said.text,
                    'instruction': said.instruction,
                    'tokens': said.tokens,
                    'latency': answer.think if isfinite(answer.think) else None,
                }
            )
        number = len(self.chunks)
        chunk = replace(
            answer.chunk,
            id=f'chunk-{number:05d}',
            created_stamp_ns=now_ns,
            reasoning_id=f'say-{self.sentence:05d}' if answer.chunk.reasoning_id else '',
            # The time of the machine does not belong into what has to repeat bit for bit; it is kept beside it.
            model_latency=0.0,
        )
        sentence = self.sentence if chunk.reasoning_id else -1
        self.chunks.append(Judged(chunk, '', answer.think, answer.infer, decode, sentence))
        self.judge.chunk(number, chunk, now_ns + round(self.options.latency * 1e9), now_ns)
        if self.witness is not None:
            self.witness.look(seen, chunk, self.reasoning if sentence >= 0 else None)

    def finish(self, started: float) -> Trace:
        """Everything so far as a trace."""
        self.asking.settle()
        if not self.words:
            raise ConfigError(
                f'{self.recording.name}: no instruction is recorded; say what was asked with --instruction "..."'
            )
        self._end_segment_at_end()
        verdicts, refused = self.judge.finish()
        for number, rule in refused.items():
            self.chunks[number] = replace(self.chunks[number], refused=rule)
        meta = {
            'recording': self.recording.name,
            'policy': self.policy.name,
            'checkpoint': self.settings.checkpoint,
            'revision': self.policy.checkpoint_revision,
            'seed': self.settings.seed,
            'mode': 'direct',
            'at': self.options.at,
            'latency': self.options.latency,
            'chunk_rate': self.settings.chunk_rate,
            'reasoning': self.settings.reasoning,
            'judged': self.options.judge,
            'together': self.asking.together,
            'privileged': self.policy.privileged,
            'frames': self.frames,
            'states': len(self.motion),
            'duration': self.elapsed,
            'wall': time.perf_counter() - started,
            'instructions': list(dict.fromkeys(c.chunk.instruction for c in self.chunks)),
        }
        return Trace(
            meta=plain(meta),
            track=self.motion.track(),
            chunks=tuple(self.chunks),
            sentences=tuple(self.sentences),
            notes=tuple(self.notes),
            verdicts=tuple(plain(verdicts)),
            stale=self.stale,
            trouble=dict(self.recording.trouble.counts),
            missing=tuple(self.recording.missing),
            recorded_chunks=tuple(self.recorded),
        )

    def _end_segment_at_end(self) -> None:
        self.segment = len(self.chunks)  # the last instruction lasts to the end of the recording


def _recorded_stamps(recording: Recording) -> frozenset[int]:
    events = recording.events(pictures=False)
    stamps = frozenset(e.chunk.observation_stamp_ns for e in events if isinstance(e, ChunkEvent))
    if not stamps:
        raise ConfigError(f'{recording.name} holds no recorded chunks; leave --at recorded out')
    return stamps


def _without_numbers(text: str) -> str:
    """Reason without its numbers, so that equal reasons are counted together."""
    words = text.split(';')[0].split(':')[0].split('(')[0].split()
    return ' '.join(w for w in words if not any(c.isdigit() for c in w)).replace(' s old, allowed s', '').strip(' ,')
