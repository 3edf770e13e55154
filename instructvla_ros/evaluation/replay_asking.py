"""The policy in a thread of its own while the recording is read on, with the same result as without.

A recording does not do what the policy says, so a policy that works faster on many observations than on one is asked
about many. While it computes, the recording is read on and the next pictures are decoded; what the judge is told
meanwhile waits behind the chunks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import nan
from queue import SimpleQueue
from typing import Any

from ..datatypes import ActionChunk, Ask, Observation, Reasoning, RobotState
from ..policy import BatchPolicy, Policy
from .replay_judge import Judgement, Judging

TOGETHER = 40
"""Observations a policy is asked about at once: of 8 s at the usual rate, with four sentences."""
FIRST = 8
"""Of the first ones fewer, so that the policy has something to do soon; then twice as many each time."""
ALONE = 2
"""Those that it is asked alone of the first ones and of each full number: with a sentence, and resting on one."""
TIMED = 8
"""So many in all, of one instruction: enough to know how long it takes."""
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
    """Asks a policy in the background and hands its answers over, in the order of the questions.

    A policy that can is asked about ``together`` observations at once, at the beginning about fewer. Some it is asked
    alone (:data:`ALONE`, :data:`TIMED`), as on the robot: that is how long it takes there. The others take no time of
    their own (nan).

    Args:
        together: 1 asks any policy about one observation after the other.
    """

    def __init__(self, policy: Policy, together: int = 1) -> None:
        self._policy = policy
        self.together = together if isinstance(policy, BatchPolicy) else 1
        self._size = min(FIRST, self.together)
        self._alone_left, self._full = TIMED, True
        self._worker = ThreadPoolExecutor(1, 'policy')
        self._reasoning: Reasoning | None = None
        self._waiting: list[tuple[Ask, Then]] = []
        self._open: deque[Then] = deque()  # asked, and not answered yet
        self._answers: SimpleQueue[tuple[int, Answer | BaseException]] = SimpleQueue()
        self._era = 0  # of questions; a failure ends one

    def ask(self, seen: Observation, think: bool, then: Then) -> None:
        """Ask about an observation; ``then`` gets the answer, in the thread that calls this or :meth:`settle`.

        Args:
            think: ask for a new sentence first, which takes the place of the one so far.
        """
        self._waiting.append((Ask(seen, think), then))
        asked = len(self._waiting)
        if asked < self._size:
            while self._open and not self._answers.empty():
                self._hand_over()
            return
        self._send()
        while len(self._open) > asked:  # it goes on with these meanwhile
            self._hand_over()

    def settle(self) -> None:
        """Wait for the answers to all open questions. Raises what the policy raised."""
        self._send()
        while self._open:
            self._hand_over()

    def forget(self) -> None:
        """The sentence so far is about another instruction. To be called when nothing is open."""
        self._reasoning = None
        self._size, self._alone_left, self._full = min(FIRST, self.together), TIMED, True

    def close(self) -> None:
        """End the thread; open questions are forgotten."""
        self._open.clear()
        self._worker.shutdown(cancel_futures=True)

    def _send(self) -> None:
        if not self._waiting:
            return
        asks, thens = zip(*self._waiting, strict=True)
        self._waiting = []
        self._open += thens
        timed = min(ALONE, self._alone_left) if self._full else 0
        self._alone_left -= timed
        alone = len(asks) if self.together == 1 else timed
        self._worker.submit(self._answer, asks, alone, self._era)
        self._size = min(2 * self._size, self.together)
        self._full = self._size == self.together

    def _hand_over(self) -> None:
        era, answer = self._answers.get()
        if era != self._era:
            return
        if isinstance(answer, BaseException):
            self._open.clear()  # without this answer those behind it have no place
            self._waiting = []
            self._era += 1
            raise answer
        self._open.popleft()(answer)

    def _answer(self, asks: Sequence[Ask], alone: int, era: int) -> None:
        try:
            for ask in asks[:alone]:
                self._answers.put((era, self._alone(ask)))
            rest = asks[alone:]
            if rest:
                assert isinstance(self._policy, BatchPolicy)
                for act in self._policy.act_many(rest, self._reasoning):
                    self._answers.put((era, Answer(act.said, nan, act.chunk, nan)))
                    self._reasoning = act.said or self._reasoning
        except BaseException as err:  # raised where the answer is waited for
            self._answers.put((era, err))

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
