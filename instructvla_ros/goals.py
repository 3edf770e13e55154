"""One instruction from its start to its end: a state machine without clock, threads or ROS.

A :class:`Goal` is told what happens (an observation, a chunk, what the controller says, time) and decides when it is
over and why. Times are seconds of a steady clock given by the caller. Not thread-safe: the caller holds a lock.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .datatypes import ActionChunk, Verdict, VerdictAction
from .errors import InstructionError, TaskError
from .observing import Stale
from .settings import PolicySettings


class Outcome(Enum):
    """How a goal ended; the numbers are those of ExecuteInstruction.action."""

    SUCCEEDED = 0
    STOPPED = 1
    TIMEOUT = 2
    UNSAFE = 3
    STALE_INPUT = 4
    PREEMPTED = 5
    POLICY_FAILED = 6
    REJECTED = 7


class Phase(Enum):
    """What a running goal does; the numbers are those of ExecuteInstruction.action."""

    WAITING_INPUT = 0
    THINKING = 1
    ACTING = 2
    HOLDING = 3


class ControllerMode(Enum):
    """Mode of the controller; the numbers are those of ControllerState.msg."""

    DISABLED = 0
    HOLDING = 1
    TRACKING = 2
    DECELERATING = 3
    STOPPED = 4


@dataclass(frozen=True)
class Ending:
    """Why a goal is over: ``reason`` is one sentence with the numbers."""

    outcome: Outcome
    reason: str


# Invisible characters that change how the rest is read; a person would not see what the robot is told.
_BIDI = set('\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')


def check_instruction(text: str, max_length: int, what: str = 'instruction') -> str:
    """Instruction or question without the spaces around it.

    Raises:
        InstructionError: empty, longer than ``max_length`` characters, or with a control character.
    """
    clean = text.strip()
    if not clean:
        raise InstructionError(f'the {what} is empty; say it in words, for example: put the red cube in the bowl')
    if len(clean) > max_length:
        raise InstructionError(
            f'the {what} has {len(clean)} characters, allowed are {max_length} (max_instruction_length)'
        )
    for at, char in enumerate(clean):
        if unicodedata.category(char) in ('Cc', 'Cs', 'Co', 'Cn') or char in _BIDI:
            raise InstructionError(
                f'the {what} has the control character U+{ord(char):04X} at position {at}; use plain text on one line'
            )
    return clean


def check_duration(seconds: float, default: float) -> float:
    """Time limit of a goal [s]: ``default`` for 0.

    Raises:
        InstructionError: negative or not finite.
    """
    if not math.isfinite(seconds) or seconds < 0.0:
        raise InstructionError(f'max_duration is {seconds} s; give a positive number of seconds, or 0 for {default} s')
    return seconds if seconds > 0.0 else default


# Refusals that say what the controller was told, not that a chunk is dangerous.
_NOT_UNSAFE = ('disabled', 'stop_latch')


class Goal:
    """Follows one instruction until it is done, stopped, or out of time.

    Args:
        instruction: checked text.
        max_duration: time limit [s]; inf for none.
        dry_run: publish everything, move nothing.
        started: [s].
        settings: ``input_timeout``, ``done_chunks``, ``max_refusals``.
        success_hold: how long the simulator's success must last before it counts [s].

    Attributes:
        ending: None while it runs. chunks: published for it. phase: what it does now.
    """

    def __init__(
        self,
        instruction: str,
        max_duration: float,
        dry_run: bool,
        started: float,
        settings: PolicySettings,
        success_hold: float = 0.2,
    ) -> None:
        self.instruction = instruction
        self.max_duration = max_duration
        self.dry_run = dry_run
        self.started = started
        self.ending: Ending | None = None
        self.ended = math.nan
        self.chunks = 0
        self.phase = Phase.WAITING_INPUT
        self.chunk_id = ''
        self.progress = math.nan
        self._settings = settings
        self._success_hold = success_hold
        self._success_since: float | None = None
        self._fresh_at = started
        self._stale: Stale | None = None
        self._done = 0
        self._ids: list[str] = []
        self._refused: list[str] = []
        self._last_refusal = ''
        self._mode: ControllerMode | None = None

    def elapsed(self, now: float) -> float:
        """Seconds since the start, until now or until the end."""
        return (now if self.ending is None else self.ended) - self.started

    def end(self, outcome: Outcome, reason: str, now: float) -> bool:
        """End it; the first ending stays. Returns whether this call ended it."""
        if self.ending is not None:
            return False
        self.ending = Ending(outcome, reason)
        self.ended = now
        return True

    def on_stale(self, stale: Stale, now: float) -> None:
        """No observation now. STALE_INPUT when that lasts longer than ``input_timeout``."""
        self._stale = stale
        self.phase = Phase.WAITING_INPUT
        silent = now - self._fresh_at
        if silent > self._settings.input_timeout:
            self.end(
                Outcome.STALE_INPUT,
                f'{stale.reason}; no usable observation for {silent:.1f} s, '
                f'allowed {self._settings.input_timeout:.1f} s',
                now,
            )

    def on_observation(self, now: float, success: bool | None = None, progress: float = math.nan) -> None:
        """A usable observation. ``success`` and ``progress`` come from the simulator, None and NaN on a robot."""
        self._fresh_at = now
        self._stale = None
        if self.phase is Phase.WAITING_INPUT:
            self.phase = Phase.THINKING
        self.progress = progress
        if not success:
            self._success_since = None
            return
        if self._success_since is None:
            self._success_since = now
        held = now - self._success_since
        if held >= self._success_hold:
            self.end(
                Outcome.SUCCEEDED,
                f'the simulator saw the task fulfilled for {held:.1f} s, {self.elapsed(now):.1f} s after the start',
                now,
            )

    def on_thinking(self) -> None:
        """The policy is making the sentence its first chunk needs."""
        self.phase = Phase.THINKING

    def on_chunk(self, chunk: ActionChunk, now: float) -> None:
        """A chunk was published. SUCCEEDED after ``done_chunks`` in a row that say done."""
        self.chunks += 1
        self.chunk_id = chunk.id
        self._ids = [*self._ids[-63:], chunk.id]
        self.phase = Phase.HOLDING if self._mode is ControllerMode.DISABLED else Phase.ACTING
        self._done = self._done + 1 if chunk.done else 0
        if self._done >= self._settings.done_chunks:
            self.end(
                Outcome.SUCCEEDED,
                f'policy {chunk.policy!r} said done in {self._done} chunks in a row, '
                f'{self.elapsed(now):.1f} s after the start',
                now,
            )

    def on_policy_error(self, error: Exception, now: float) -> None:
        """The policy raised: REJECTED when the instruction does not fit what it sees, else POLICY_FAILED."""
        if isinstance(error, (InstructionError, TaskError)):
            self.end(Outcome.REJECTED, str(error), now)
        else:
            self.end(Outcome.POLICY_FAILED, f'{type(error).__name__}: {error}', now)

    def on_controller(self, mode: ControllerMode, chunk_id: str, verdicts: Sequence[Verdict], now: float) -> None:
        """What the controller does. STOPPED when its latch is set, UNSAFE when it keeps refusing chunks."""
        self._mode = mode
        if mode is ControllerMode.STOPPED:
            why = next((f' ({v.text})' for v in verdicts if v.rule == 'stop_latch' and v.text), '')
            self.end(Outcome.STOPPED, f'the stop latch of the controller is set{why}; call reset, then enable', now)
            return
        refusals = [
            v
            for v in verdicts
            if v.action is VerdictAction.REFUSED and v.chunk_id in self._ids and v.rule not in _NOT_UNSAFE
        ]
        for verdict in refusals:
            self._last_refusal = verdict.text or f'{verdict.rule}: {verdict.value:g} {verdict.unit}'
            if verdict.chunk_id not in self._refused:
                self._refused.append(verdict.chunk_id)
        if mode is ControllerMode.TRACKING and chunk_id in self._ids and chunk_id not in self._refused:
            self._refused.clear()
        if len(self._refused) >= self._settings.max_refusals:
            self.end(
                Outcome.UNSAFE,
                f'the controller refused {len(self._refused)} chunks in a row, last: {self._last_refusal}',
                now,
            )

    def tick(self, now: float) -> None:
        """Let time pass. TIMEOUT when ``max_duration`` is over; the reason says what it was waiting for."""
        if self.ending is None and self.elapsed(now) > self.max_duration:
            self.end(Outcome.TIMEOUT, f'{self.max_duration:.1f} s are over{self._obstacle()}', now)

    def _obstacle(self) -> str:
        if self._stale is not None:
            return f'; {self._stale.reason}'
        if self._mode is ControllerMode.DISABLED:
            return '; the controller was not enabled, call enable'
        if self._mode is None and self.chunks:
            return '; no controller state was received, is controller_node running?'
        if self._refused:
            return f'; the controller refused the last {len(self._refused)} chunks: {self._last_refusal}'
        return f' after {self.chunks} chunks'
