"""Asking somebody else whether the way of a chunk is free, without making the controller wait.

A chunk that passed the ladder is not played at once: its way is previewed, turned into joint states with our own
kinematics, and asked about (:class:`Clearance`, in practice MoveIt). The controller keeps its pace meanwhile. The
answer admits the chunk, shortens it to what is free, or refuses it. No answer in time, or a failure, makes the arm
brake and hold: what nobody vouches for does not move it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..datatypes import ActionChunk, Verdict, VerdictAction
from ..geometry import Array
from .chunk_player import ChunkPlayer
from .kinematics import Kinematics

MAX_STATES = 48  # asked about per chunk; longer ones are looked at less densely
IK_PERIOD = 0.2  # s: displacement per iteration is what the velocity limits allow in this time
IK_ITERATIONS = 3
IK_NEAR = 2e-3  # m, rad: near enough for a collision check
EARLY = 0.5  # of a step: the curve passes a knot this much before it, see Path


@dataclass(frozen=True)
class Question:
    """The way of one chunk.

    Attributes:
        chunk: as it passed the ladder. q: commanded joints now (n,) [rad]. asked_ns: controller's clock [ns].
        times: (k,) into the path of the chunk [s]. poses: (k, 4, 4) tcp in the base frame at these times [m].
    """

    chunk: ActionChunk
    q: Array
    asked_ns: int
    times: Array
    poses: Array


@dataclass(frozen=True)
class Answer:
    """What was found out about a :class:`Question`.

    Attributes:
        question: that was asked. free: number of its leading samples that are free.
        obstacle: what is in the way at the next one, '' when all are free. subject: short name of it.
        failure: why there is no answer, '' when there is one.
        rule: name of the verdict when something is in the way.
    """

    question: Question
    free: int = 0
    obstacle: str = ''
    subject: str = ''
    failure: str = ''
    rule: str = 'collision'


class Clearance(Protocol):
    """Who answers; from any thread, through ``Controller.on_answer``."""

    def ask(self, question: Question) -> None:
        """Take a question over and return at once. A newer question replaces one that is still open."""


def joint_path(kinematics: Kinematics, q: Array, poses: Array) -> Iterator[Array]:
    """Joint states (n,) [rad] the controller would pass on the way along tcp poses (k, 4, 4) from q (n,) [rad].

    One by one, so that the first can be judged while the next is computed. Where a pose is out of reach the state is
    the one the arm would come to rest in.

    Raises:
        KinematicsError: q or a pose is not usable.
    """
    for pose in poses:
        for _ in range(IK_ITERATIONS):
            step = kinematics.step(q, pose, IK_PERIOD)
            q = step.q
            if step.stalled or max(step.position_error, step.rotation_error) < IK_NEAR:
                break
        yield q


def spaced(path: Iterable[Array], q: Array, resolution: float) -> Iterator[tuple[int, Array]]:
    """States of a way from joints q (n,) [rad] that are close enough to each other to judge the way by, the last one
    always: with each the number of leading samples of ``path`` that it and those before it vouch for.

    Samples that are nearer than ``resolution`` [rad, largest change of a joint] to the state before are left out, and
    states are put between those that are further apart. A resolution of 0 takes the samples as they are.
    """
    held: tuple[int, Array] | None = None
    for count, state in enumerate(path, start=1):
        if held is not None and np.abs(state - q).max() > resolution:
            yield held
            q, held = held[1], None
        parts = int(np.ceil(np.abs(state - q).max() / resolution)) if resolution > 0.0 else 1
        for k in range(1, parts):
            yield count - 1, q + (state - q) * (k / parts)
        if parts > 1:
            q = q + (state - q) * ((parts - 1) / parts)
        held = count, state
    if held is not None:
        yield held


def alike(ours: Array, theirs: Array, bound: float) -> int:
    """Number of leading states (k, n) that are within ``bound`` [rad] per joint of some state of a path (m, n)."""
    if not len(theirs):
        return 0
    for k, q in enumerate(ours):
        if np.abs(theirs - q).max(axis=1).min() > bound:
            return k
    return len(ours)


def describe_contacts(contacts: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Short name and sentence for pairs of bodies that touch; the first pair is named, the others counted."""
    if not contacts:
        return 'state', 'the state is not valid (a joint limit or a constraint, no contact was reported)'
    first, second = contacts[0]
    more = f' (and {len(contacts) - 1} more contacts)' if len(contacts) > 1 else ''
    return f'{first} and {second}', f'{first} would touch {second}{more}'


class Gate:
    """At most one open question. Not thread-safe: the controller holds its lock.

    Args:
        clearance: who answers. timeout: longest wait [s]. spacing: time between two samples of a path [s].
    """

    def __init__(self, clearance: Clearance, timeout: float, spacing: float) -> None:
        self._clearance, self._timeout, self._spacing = clearance, timeout, spacing
        self._open: Question | None = None

    def ask(self, chunk: ActionChunk, player: ChunkPlayer, q: Array, now_ns: int) -> tuple[Verdict, ...]:
        """Ask about the way of a chunk from joints q (n,) [rad]; a REFUSED verdict when it is out of order anyway."""
        times, poses, refused = player.preview(chunk, now_ns, self._spacing, MAX_STATES)
        if refused:
            return refused
        self._open = Question(chunk, np.array(q), now_ns, times, poses)
        self._clearance.ask(self._open)
        return ()

    def drop(self) -> None:
        """Forget the open question."""
        self._open = None

    def overdue(self, now_ns: int) -> Verdict | None:
        """The verdict on a question that was not answered in time, once."""
        question = self._open
        if question is None:
            return None
        waited = (now_ns - question.asked_ns) * 1e-9
        if 0.0 <= waited <= self._timeout:
            return None
        self._open = None
        text = f'no answer within {self._timeout} s to whether the way of the chunk is free; braking and holding'
        return Verdict(
            'moveit_timeout', VerdictAction.HELD, 'chunk', waited, self._timeout, 's', text, question.chunk.id
        )

    def settle(self, answer: Answer) -> tuple[ActionChunk | None, tuple[Verdict, ...]]:
        """The chunk to play, possibly shortened, or None: hold. Late answers give ``(None, ())``."""
        question = answer.question
        if question is not self._open:
            return None, ()
        self._open = None
        chunk = question.chunk

        def verdict(rule: str, action: VerdictAction, text: str, subject: str, value: float, unit: str) -> Verdict:
            return Verdict(rule, action, subject, value, float(chunk.horizon), unit, text, chunk.id)

        if answer.failure:
            text = f'{answer.failure}; braking and holding'
            return None, (Verdict('moveit', VerdictAction.HELD, 'chunk', text=text, chunk_id=chunk.id),)
        if answer.free >= len(question.times):
            return chunk, ()
        reached = float(question.times[answer.free - 1]) if answer.free > 0 else 0.0
        kept = int(reached / chunk.step_period - EARLY) if answer.free > 0 else 0
        if kept < 1 or reached <= float(question.times[0]):
            text = f'{answer.obstacle} at the beginning of the chunk; braking and holding'
            return None, (verdict(answer.rule, VerdictAction.REFUSED, text, answer.subject, 0.0, 'steps'),)
        text = f'{answer.obstacle} after {kept} of {chunk.horizon} steps; the others are cut off'
        cut = verdict(answer.rule, VerdictAction.CLIPPED, text, answer.subject, float(kept), 'steps')
        return replace(chunk, steps=chunk.steps[:kept]), (cut,)
