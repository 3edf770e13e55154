"""The policy in a thread of its own while the recording is read on, with the same result as without.

A recording does not do what the policy says, so a policy that works faster on many observations than on one is asked
about many. While it computes, the recording is read on and the next pictures are decoded; what the judge is told
meanwhile waits behind the chunks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import nan
from typing import Any

from ..datatypes import ActionChunk, Ask, Observation, Reasoning, RobotState
from ..policy import BatchPolicy, Policy
from .replay_judge import Judgement, Judging

TOGETHER = 40
"""Observations a policy is asked about at once: of 8 s at the usual rate, with four sentences."""
FIRST = 8
"""Of the first ones fewer, so that the policy has something to do soon; then twice as many each time."""
ALONE = 3
"""Those that it is asked alone of the first ones and of every full number: one with a sentence, two that rest on it."""
_HOLD = 'hold'


@dataclass(frozen=True)
class Answer:
    """What a policy said and did about one observation.

    Attributes:
        said: the new sentence, None when it was not asked for one or has no words. think, infer: time of each [s],
            nan when it was asked about many at once.
    """

    said: Reasoning | None
    think: float
    chunk: ActionChunk
    infer: float


Then = Callable[[Answer], None]


class Asking:
    """Asks a policy in the background; :meth:`settle` hands the answers over.

    A policy that can is asked about ``together`` observations at once, at the beginning about fewer. Some it is asked
    alone (:data:`ALONE`), as on the robot: that is how long it takes there. The others take no time of their own (nan).

    Args:
        together: 1 asks any policy about one observation after the other.
    """

    def __init__(self, policy: Policy, together: int = 1) -> None:
        self._policy = policy
        self.together = together if isinstance(policy, BatchPolicy) else 1
        self._size = min(FIRST, self.together)
        self._timed = True
        self._worker = ThreadPoolExecutor(1, 'policy')
        self._reasoning: Reasoning | None = None
        self._waiting: list[tuple[Ask, Then]] = []
        self._open: tuple[Future[list[Answer]], list[Then]] | None = None

    def ask(self, seen: Observation, think: bool, then: Then) -> None:
        """Ask about an observation; ``then`` gets the answer, in the thread that calls this or :meth:`settle`.

        Args:
            think: ask for a new sentence first, which takes the place of the one so far.
        """
        self._waiting.append((Ask(seen, think), then))
        if len(self._waiting) >= self._size:
            self._send()

    def settle(self) -> None:
        """Wait for the answers to all open questions. Raises what the policy raised."""
        self._send()
        last, self._open = self._open, None
        self._hand_over(last)

    def forget(self) -> None:
        """The sentence so far is about another instruction. To be called when nothing is open."""
        self._reasoning = None
        self._size, self._timed = min(FIRST, self.together), True

    def close(self) -> None:
        """End the thread; open questions are forgotten."""
        self._worker.shutdown(cancel_futures=True)

    def _send(self) -> None:
        before, self._open = self._open, None
        if self._waiting:
            asks, thens = zip(*self._waiting, strict=True)
            self._waiting = []
            alone = len(asks) if self.together == 1 else ALONE if self._timed else 0
            self._open = self._worker.submit(self._answer, asks, alone), list(thens)
            self._size = min(2 * self._size, self.together)
            self._timed = self._size == self.together
        # Only now, so that the policy goes on meanwhile.
        self._hand_over(before)

    def _hand_over(self, done: tuple[Future[list[Answer]], list[Then]] | None) -> None:
        if done is None:
            return
        answers, thens = done
        try:
            got = answers.result()
        except BaseException:
            self._open = None  # without these answers those behind them have no place
            raise
        for answer, then in zip(got, thens, strict=True):
            then(answer)

    def _answer(self, asks: Sequence[Ask], alone: int) -> list[Answer]:
        answers = [self._alone(ask) for ask in asks[:alone]]
        rest = asks[alone:]
        if rest:
            assert isinstance(self._policy, BatchPolicy)
            acts = self._policy.act_many(rest, self._reasoning)
            answers += [Answer(act.said, nan, act.chunk, nan) for act in acts]
            self._reasoning = next((act.said for act in reversed(acts) if act.said is not None), self._reasoning)
        return answers

    def _alone(self, ask: Ask) -> Answer:
        began = time.perf_counter()
        said = self._policy.think(ask.observation) if ask.think else None
        self._reasoning = said or self._reasoning
        thought = time.perf_counter()
        chunk = self._policy.infer(ask.observation, self._reasoning)
        return Answer(said, thought - began if ask.think else 0.0, chunk, time.perf_counter() - thought)


class WaitingJudge:
    """A judge who is told things in their order although a chunk is known only after what followed it.

    Behind a :meth:`hold` calls are kept back until its chunk is known; chunks come in the order of the holds.
    """

    def __init__(self, judge: Judging) -> None:
        self._judge = judge
        self._kept: deque[tuple[str, Any]] = deque()

    def hold(self) -> None:
        """A chunk belongs here that is not known yet."""
        self._kept.append((_HOLD, None))

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
        if self._kept:
            self._kept.popleft()  # always a hold: everything before one is told at once
        self._judge.chunk(number, chunk, arrival_ns, now_ns)
        while self._kept and self._kept[0][0] != _HOLD:
            name, argument = self._kept.popleft()
            getattr(self._judge, name)(argument)

    def finish(self) -> Judgement:
        """See :class:`~.replay_judge.Judging`."""
        return self._judge.finish()

    def close(self) -> None:
        """See :class:`~.replay_judge.Judging`."""
        self._judge.close()

    def _tell(self, name: str, argument: Any) -> None:
        if self._kept:
            self._kept.append((name, argument))
        else:
            getattr(self._judge, name)(argument)
