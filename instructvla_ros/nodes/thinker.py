"""System 2 on its own thread: a sentence for the current instruction, at its own rate. No ROS in here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..datatypes import Observation, Reasoning, ReasoningKind
from ..observing import Stale
from ..policy import PolicyHost, StreamingPolicy

_POLL = 0.05  # how often a missing observation is looked for again [s]
_DRAFT_PERIOD = 0.1  # shortest time between two drafts of a sentence [s]


class Sentences:
    """The newest sentence about the current instruction, wherever it comes from."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._instruction = ''
        self._newest: Reasoning | None = None
        self._silent = False
        self._on_news: Callable[[], None] = lambda: None

    def listen(self, on_news: Callable[[], None]) -> None:
        """Call ``on_news`` from now on when a sentence has come, or will not come."""
        self._on_news = on_news

    def start(self, instruction: str) -> None:
        """Forget the sentences so far; only those about ``instruction`` are kept from now on."""
        with self._lock:
            self._instruction, self._newest, self._silent = instruction, None, False

    def put(self, reasoning: Reasoning) -> None:
        """Offer a sentence; answers, captions, drafts and sentences about something else are not kept."""
        with self._lock:
            if reasoning.kind is not ReasoningKind.PLAN or not reasoning.final:
                return
            if reasoning.instruction != self._instruction:
                return
            self._newest = reasoning
        self._on_news()

    def put_silence(self, instruction: str) -> None:
        """The policy has no words for ``instruction``: nobody has to wait for them."""
        with self._lock:
            if instruction != self._instruction:
                return
            self._silent = True
        self._on_news()

    def newest(self) -> tuple[Reasoning | None, bool]:
        """The sentence, or None, and whether one may still come."""
        with self._lock:
            return self._newest, self._newest is None and not self._silent


class Thinker:
    """Asks the policy for a sentence when the instruction changes and then every ``period``."""

    def __init__(
        self,
        host: PolicyHost,
        observe: Callable[[str], Observation | Stale],
        say: Callable[[Reasoning], None],
        silence: Callable[[str], None],
        fail: Callable[[str, Exception], None],
        period: float,
        speed: float = 1.0,
    ) -> None:
        """Start the thread.

        Args:
            observe: newest observation for an instruction, or why there is none.
            say: called with each sentence, and up to ten times a second with its beginning (``final`` False) while a
                policy that streams is still making it. silence: called with an instruction the policy has no words for.
            fail: called with the instruction and what the policy raised; it is not asked again for that instruction.
            period: between two sentences [s], simulated when ``speed``, simulated seconds per second, is not 1.
        """
        self._host = host
        self._observe = observe
        self._say = say
        self._silence = silence
        self._fail = fail
        self._period = period / speed
        self._changed = threading.Condition()
        self._instruction = ''
        self._due = 0.0
        self._drafted = -_DRAFT_PERIOD
        self._closing = False
        self._thread = threading.Thread(target=self._run, name='thinker', daemon=True)
        self._thread.start()

    def follow(self, instruction: str) -> None:
        """Think about ``instruction`` from now on; '' for nothing."""
        with self._changed:
            self._instruction = instruction
            self._due = time.monotonic()
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; a sentence in the making is waited for, at most two seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing:
                    wait = self._due - time.monotonic() if self._instruction else None
                    if wait is not None and wait <= 0.0:
                        break
                    self._changed.wait(wait)
                if self._closing:
                    return
                instruction = self._instruction
                # Set before thinking: a change of instruction meanwhile sets it to now and is not overwritten.
                self._due = time.monotonic() + self._period
            self._think(instruction)

    def _think(self, instruction: str) -> None:
        try:
            seen = self._observe(instruction)
            if isinstance(seen, Stale):
                self._again(instruction, _POLL)
                return
            policy = self._host.current
            if isinstance(policy, StreamingPolicy):
                policy.stream = self._draft
            said = policy.think(seen)
        except Exception as err:  # whatever a policy raises ends this instruction, not the node
            self._again(instruction, None)
            self._fail(instruction, err)
            return
        if said is None:
            self._again(instruction, None)
            self._silence(instruction)
        elif not said.final:  # a reset cut it short
            self._again(instruction, 0.0)
        elif instruction == self._instruction:
            self._say(said)

    def _draft(self, said: Reasoning) -> None:
        now = time.monotonic()
        if said.text and said.instruction == self._instruction and now - self._drafted >= _DRAFT_PERIOD:
            self._drafted = now
            self._say(said)

    def _again(self, instruction: str, delay: float | None) -> None:
        """Think about the same instruction again after ``delay`` [s], or never."""
        with self._changed:
            if self._instruction == instruction:
                if delay is None:
                    self._instruction = ''
                else:
                    self._due = time.monotonic() + delay
