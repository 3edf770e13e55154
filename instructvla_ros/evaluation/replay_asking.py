"""The policy in a thread of its own while the recording is read on, with the same result as without.

A policy is asked one observation at a time, in order. While it computes, the recording is read up to the next
observation and the pictures of that one are decoded; what the judge is told meanwhile waits behind the chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..datatypes import ActionChunk, Observation, Reasoning, RobotState
from ..policy import Policy
from .replay_judge import Judgement, Judging


@dataclass(frozen=True)
class Answer:
    """What a policy said and did about one observation.

    Attributes:
        said: the new sentence, None when it was not asked for one or has no words. think, infer: time of each [s].
    """

    said: Reasoning | None
    think: float
    chunk: ActionChunk
    infer: float


class Asking:
    """Asks a policy in the background, one question at a time; :meth:`settle` hands the answer over."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._worker = ThreadPoolExecutor(1, 'policy')
        self._open: tuple[Future[Answer], Callable[[Answer], None]] | None = None

    def ask(self, seen: Observation, reasoning: Reasoning | None, think: bool, then: Callable[[Answer], None]) -> None:
        """Ask about an observation; ``then`` gets the answer, in the thread that calls :meth:`settle`.

        Args:
            reasoning: the sentence so far. think: ask for a new one first, which takes its place.
        """
        self.settle()
        self._open = self._worker.submit(self._answer, seen, reasoning, think), then

    def settle(self) -> None:
        """Wait for the answer to the open question, if there is one. Raises what the policy raised."""
        if self._open is not None:
            (answer, then), self._open = self._open, None
            then(answer.result())

    def close(self) -> None:
        """End the thread; an open question is forgotten."""
        self._worker.shutdown(cancel_futures=True)

    def _answer(self, seen: Observation, reasoning: Reasoning | None, think: bool) -> Answer:
        began = time.perf_counter()
        said = self._policy.think(seen) if think else None
        thought = time.perf_counter()
        chunk = self._policy.infer(seen, said or reasoning)
        return Answer(said, thought - began if think else 0.0, chunk, time.perf_counter() - thought)


class WaitingJudge:
    """A judge who is told things in their order although a chunk is known only after what followed it.

    From :meth:`hold` on calls are kept back; the next :meth:`chunk` goes before them.
    """

    def __init__(self, judge: Judging) -> None:
        self._judge = judge
        self._kept: list[tuple[str, Any]] | None = None

    def hold(self) -> None:
        """A chunk belongs here that is not known yet."""
        self._kept = []

    def state(self, state: RobotState) -> None:
        """See :class:`~.replay_judge.Judging`."""
        self._tell('state', state)

    def advance(self, now_ns: int) -> None:
        """See :class:`~.replay_judge.Judging`."""
        self._tell('advance', now_ns)

    def drop(self, why: str) -> None:
        """See :class:`~.replay_judge.Judging`."""
        self._tell('drop', why)

    def chunk(self, number: int, chunk: ActionChunk, arrival_ns: int, now_ns: int) -> None:
        """See :class:`~.replay_judge.Judging`."""
        self._judge.chunk(number, chunk, arrival_ns, now_ns)
        kept, self._kept = self._kept or [], None
        for name, argument in kept:
            self._tell(name, argument)

    def finish(self) -> Judgement:
        """See :class:`~.replay_judge.Judging`."""
        return self._judge.finish()

    def close(self) -> None:
        """See :class:`~.replay_judge.Judging`."""
        self._judge.close()

    def _tell(self, name: str, argument: Any) -> None:
        if self._kept is None:
            getattr(self._judge, name)(argument)
        else:
            self._kept.append((name, argument))
