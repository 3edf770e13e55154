"""The controller of the graph over a recording, in dry-run: what it would have refused, scaled, clipped or held.

Nothing of it comes back into the replay before the end, so it may run in a process of its own (:class:`RemoteJudge`)
while the policy thinks: the same calls in the same order, hence the same verdicts. A process may judge one recording
after the other, because it takes half a second to start.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
import weakref
from collections.abc import Iterable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

from ..config import replace as changed
from ..control.bounds import Bounds
from ..control.controller import Controller
from ..control.kinematics import Kinematics
from ..control.safety_chunk import check_chunk
from ..datatypes import ActionChunk, RobotState, Verdict, VerdictAction
from ..errors import SetupError
from ..settings import Control, Embodiment
from .replay_verdicts import Verdicts

NO_MOTION = ('joint_state', 'anchor')
"""Rules that say why the controller has no starting point, which is no judgement of the chunk itself."""

Judgement = tuple[list[dict[str, Any]], dict[int, str]]
"""Entries of :class:`~.replay_verdicts.Verdicts`, and for every refused chunk (by its number) the rule."""

_LEAP = 2_000_000_000  # ns by which a clock that leaps is told from one that runs
_BATCH = 256  # calls that go to the other process together
_NICE = 10  # of that process: it has time until the policy, which needs the longest, is done


class Judging(Protocol):
    """What a replay tells its judge; stamps in ns on the clock of the recording."""

    def state(self, state: RobotState) -> None:
        """The arm was there."""

    def advance(self, now_ns: int) -> None:
        """Run the periods up to now, with what was known before."""

    def chunk(self, number: int, chunk: ActionChunk, arrival_ns: int, now_ns: int) -> None:
        """A chunk was made; it reaches the controller at ``arrival_ns``."""

    def drop(self, why: str) -> None:
        """Forget the chunks of the instruction before."""

    def finish(self) -> Judgement:
        """Everything so far; the last call but :meth:`close`."""
        ...

    def close(self) -> None:
        """Give up what it holds; may be called again."""


class Judge:
    """Judges in this process. Without the control loop (``loop`` False) only the rungs that look at a chunk alone."""

    def __init__(
        self, embodiment: Embodiment, control: Control, loop: bool = True, kinematics: Kinematics | None = None
    ) -> None:
        self._bounds = Bounds.from_settings(embodiment, control)
        self._controller: Controller | None = None
        if loop:
            dry = changed(control, start_enabled=True, dry_run=True)
            self._controller = Controller(embodiment, dry, kinematics or Kinematics(embodiment))
        self._period_ns = round(1e9 / control.rate)
        self._next_tick = 0
        self._state: RobotState | None = None
        self._waiting: list[tuple[int, int, ActionChunk]] = []
        self._verdicts = Verdicts()
        self._refused: dict[int, str] = {}

    def state(self, state: RobotState) -> None:
        """See :class:`Judging`."""
        self._state = state

    def advance(self, now_ns: int) -> None:
        """See :class:`Judging`."""
        self._deliver(now_ns)
        if self._controller is None or self._state is None:
            self._next_tick = now_ns
            return
        if abs(now_ns - self._next_tick) > _LEAP:
            self._next_tick = now_ns  # the clock leapt; the controller says so itself
        while self._next_tick <= now_ns:
            output = self._controller.tick(self._next_tick, self._state)
            self._keep(output.verdicts, self._next_tick)
            self._next_tick += self._period_ns

    def chunk(self, number: int, chunk: ActionChunk, arrival_ns: int, now_ns: int) -> None:
        """See :class:`Judging`."""
        self._waiting.append((arrival_ns, number, replace(chunk, created_stamp_ns=arrival_ns)))
        if arrival_ns <= now_ns:
            self._deliver(now_ns)

    def drop(self, why: str) -> None:
        """See :class:`Judging`."""
        self._waiting.clear()
        if self._controller is not None:
            self._controller.drop_chunk(why)

    def finish(self) -> Judgement:
        """See :class:`Judging`."""
        return self._verdicts.entries, self._refused

    def close(self) -> None:
        """See :class:`Judging`."""

    def _deliver(self, now_ns: int) -> None:
        while self._waiting and self._waiting[0][0] <= now_ns:
            arrival, number, chunk = self._waiting.pop(0)
            found: list[Verdict] = []
            if self._controller is not None and self._state is not None:
                found = self._controller.on_chunk(chunk, arrival)
            if self._controller is None or self._state is None or any(v.rule in NO_MOTION for v in found):
                # The controller has no starting point: the rungs that look at the chunk alone still do.
                found = list(check_chunk(chunk, arrival, self._bounds)[1])
                self._keep(found, arrival)
            refused = [v.rule for v in found if v.action is VerdictAction.REFUSED]
            if refused:
                self._refused[number] = refused[0]

    def _keep(self, verdicts: Iterable[Verdict], stamp_ns: int) -> None:
        for v in verdicts:
            if v.action is not VerdictAction.PASSED and v.rule not in NO_MOTION:
                self._verdicts.add(stamp_ns, v)


class JudgeProcess:
    """A process that judges one recording after the other. It ends with :meth:`close` or with this process."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        with there:
            command = [sys.executable, '-m', __name__, str(there.fileno())]
            # One thread: the other core belongs to the policy.
            calm = {**os.environ, 'OMP_NUM_THREADS': '1'}
            self.process = subprocess.Popen(
                command, pass_fds=(there.fileno(),), env=calm, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        self.link = Connection(here.detach())
        self.close = weakref.finalize(self, _end, self.link, self.process)

    @property
    def usable(self) -> bool:
        """Whether it can judge another recording."""
        return self.close.alive and self.process.poll() is None


def _end(link: Connection, process: subprocess.Popen[bytes]) -> None:
    link.close()
    if process.poll() is None:
        process.kill()
    process.wait()


class RemoteJudge:
    """The same in a process of its own, which is ended unless :meth:`finish` gave what it found."""

    def __init__(self, embodiment: Embodiment, control: Control, process: JudgeProcess) -> None:
        self._process = process
        self._finished = False
        self._calls: list[tuple[Any, ...]] = [('begin', embodiment, control)]
        self._send()

    def state(self, state: RobotState) -> None:
        """See :class:`Judging`."""
        self._add('state', state)

    def advance(self, now_ns: int) -> None:
        """See :class:`Judging`."""
        self._add('advance', now_ns)

    def chunk(self, number: int, chunk: ActionChunk, arrival_ns: int, now_ns: int) -> None:
        """See :class:`Judging`."""
        self._add('chunk', number, chunk, arrival_ns, now_ns)

    def drop(self, why: str) -> None:
        """See :class:`Judging`."""
        self._add('drop', why)

    def finish(self) -> Judgement:
        """See :class:`Judging`.

        Raises:
            SetupError: the process ended early, or the controller failed in it.
        """
        self._add('finish')
        self._send()
        try:
            answer = self._process.link.recv()
        except (EOFError, OSError):
            answer = f'it ended with {self._process.process.wait()}'
        if isinstance(answer, str):
            self.close()
            raise SetupError(f'the process that judges the chunks failed: {answer}')
        self._finished = True
        verdicts, refused = answer
        return verdicts, refused

    def close(self) -> None:
        """See :class:`Judging`."""
        if not self._finished:
            self._process.close()  # it is in the middle of a recording that nobody will end

    def _add(self, *call: Any) -> None:
        self._calls.append(call)
        if len(self._calls) >= _BATCH:
            self._send()

    def _send(self) -> None:
        calls, self._calls = self._calls, []
        try:
            self._process.link.send(calls)  # waits when the other side is far behind: memory stays flat
        except OSError:
            pass  # it ended; finish says so


def _serve(link: Connection) -> None:
    judge: Judge | None = None
    known: tuple[Embodiment, Kinematics] | None = None
    while True:
        for name, *arguments in link.recv():
            if name == 'begin':
                embodiment, control = arguments
                if known is None or known[0] != embodiment:
                    known = embodiment, Kinematics(embodiment)
                judge = Judge(embodiment, control, kinematics=known[1])
            elif judge is not None:
                result = getattr(judge, name)(*arguments)
                if name == 'finish':
                    link.send(result)
                    judge = None


def main() -> int:
    """Judge for the process that started this one, over the socket given by its number."""
    os.nice(_NICE)
    with Connection(int(sys.argv[1])) as link:
        try:
            _serve(link)
        except EOFError:
            return 0  # nothing more to judge, or it was given up
        except Exception:  # the other process reports it
            link.send(traceback.format_exc())
            return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
