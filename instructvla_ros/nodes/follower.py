"""System 1 on its own thread: follows one goal at a time from observation to chunk. No ROS in here.

Callbacks of the node only hand over what arrived; the policy runs here. Each turn takes the newest observation there is
(frames that came while the policy was busy are dropped), and a chunk that is ready after its goal has ended is dropped.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ..datatypes import ActionChunk, Observation, Reasoning, Verdict
from ..goals import ControllerMode, Goal, Outcome
from ..observing import Pacer, Stale
from ..policy import HoldPolicy, PolicyHost
from ..settings import PolicySettings
from .pacing import seconds
from .thinker import Sentences

_TICK = 0.05  # longest time between two looks at a running goal [s]


class Surroundings(Protocol):
    """What a :class:`Follower` needs from its node; called from the follower's thread."""

    def observe(self, instruction: str) -> Observation | Stale:
        """Newest observation, or why there is none."""

    def publish(self, chunk: ActionChunk) -> None:
        """Send a chunk to the controller."""

    def prepare(self, goal: Goal) -> str:
        """Called before the first observation of a goal: '' or why it cannot start."""

    def held_openness(self) -> float | None:
        """Openness 0..1 the gripper is commanded to, None when unknown."""

    def finish(self, goal: Goal) -> None:
        """Called once per goal, after it has ended and the arm was told to stay."""

    def report(self, what: str, error: Exception) -> None:
        """Log an exception of the policy or of the node."""


class Follower:
    """Runs the policy for the current goal. Every method may be called from any thread."""

    def __init__(
        self, host: PolicyHost, sentences: Sentences, surroundings: Surroundings, settings: PolicySettings
    ) -> None:
        """Start the thread."""
        self._host = host
        self._sentences = sentences
        self._around = surroundings
        self._settings = settings
        self._seconds = seconds(settings.sim_speed)
        self._pacer = Pacer(settings.chunk_rate)
        self._hold = HoldPolicy(settings.step_period, settings.horizon)
        self._changed = threading.Condition(threading.RLock())
        self._goal: Goal | None = None
        self._over: deque[Goal] = deque()
        self._ready: Goal | None = None
        self._last_stamp = 0
        self._openness: float | None = None
        self._stopped = False
        self._woken = False
        self._closing = False
        sentences.listen(self.wake)  # the first chunk of an instruction waits for its sentence
        self._thread = threading.Thread(target=self._run, name='follower', daemon=True)
        self._thread.start()

    @property
    def goal(self) -> Goal | None:
        """Goal that runs now."""
        with self._changed:
            return self._goal

    def follow(self, goal: Goal, by: str = 'a newer goal') -> None:
        """Start a goal; the one that runs ends PREEMPTED."""
        with self._changed:
            self.end(Outcome.PREEMPTED, f'{by} took over: {goal.instruction!r}')
            self._goal = goal
            self._sentences.start(goal.instruction)
            self.wake()

    def end(self, outcome: Outcome, reason: str, goal: Goal | None = None) -> None:
        """End the running goal; with ``goal`` only when that is the one."""
        with self._changed:
            if self._goal is not None and goal in (None, self._goal):
                self._goal.end(outcome, reason, self._seconds())
                self._collect()

    def fail(self, instruction: str, error: Exception) -> None:
        """The policy raised while it was thinking about ``instruction``."""
        with self._changed:
            if self._goal is not None and self._goal.instruction == instruction:
                self._goal.on_policy_error(error, self._seconds())
                self._collect()

    def wake(self) -> None:
        """Something new arrived: look at it now."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def on_controller(self, mode: ControllerMode, chunk_id: str, verdicts: Sequence[Verdict]) -> None:
        """What the controller does."""
        with self._changed:
            self._stopped = mode is ControllerMode.STOPPED
            if self._goal is not None:
                self._goal.on_controller(mode, chunk_id, verdicts, self._seconds())
                self._collect()

    def close(self, reason: str = 'the policy node shuts down') -> None:
        """End the goal and the thread; an inference that runs is waited for, at most two seconds."""
        with self._changed:
            self.end(Outcome.STOPPED, reason)
            self._closing = True
            self.wake()
        self._thread.join(timeout=2.0)

    def _collect(self) -> None:
        """Move an ended goal to those that still have to be finished (lock held)."""
        if self._goal is not None and self._goal.ending is not None:
            self._over.append(self._goal)
            self._goal = None
            self.wake()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._woken and not self._closing:
                    self._changed.wait(_TICK if self._goal is not None else None)
                self._woken = False
                if self._closing and not self._over:
                    return
            try:
                self._bury()
                goal = self.goal
                if goal is not None:
                    self._turn(goal)
                self._bury()
            except Exception as err:  # a defect of the node ends the goal, not the thread
                self._around.report('following the instruction', err)
                self.end(Outcome.POLICY_FAILED, f'{type(err).__name__}: {err}')

    def _turn(self, goal: Goal) -> None:
        if goal is not self._ready and not self._start(goal):
            return
        seen = self._around.observe(goal.instruction)
        now = self._seconds()
        with self._changed:
            goal.tick(now)
            if isinstance(seen, Stale):
                goal.on_stale(seen, now)
            else:
                scene = seen.privileged
                # The simulator scores the words of its last reset; they say nothing about other words.
                if scene is None or scene.instruction.strip() != goal.instruction:
                    goal.on_observation(now)
                else:
                    goal.on_observation(now, scene.success, scene.progress)
            self._collect()
            if goal.ending is not None or isinstance(seen, Stale):
                return
        said, more = self._sentences.newest()
        if goal.chunks == 0 and more and self._settings.reasoning != 'off':
            if goal.elapsed(now) < self._settings.reasoning_wait:
                with self._changed:
                    goal.on_thinking()
                return
        if seen.stamp_ns != self._last_stamp:
            self._last_stamp = seen.stamp_ns
            if self._pacer.take(now):
                self._act(goal, seen, said)

    def _start(self, goal: Goal) -> bool:
        problem = self._around.prepare(goal)
        if problem:
            self.end(Outcome.REJECTED, problem, goal)
            return False
        self._ready = goal
        self._pacer.reset()
        self._last_stamp = 0
        try:
            self._host.current.reset()
        except Exception as err:  # whatever a policy raises ends this goal, not the node
            self._policy_failed(goal, err)
            return False
        return True

    def _act(self, goal: Goal, seen: Observation, said: Reasoning | None) -> None:
        try:
            chunk = self._host.current.infer(seen, said)
            with self._changed:
                if goal is not self._goal:
                    return
                # Inside the lock: nothing of a goal follows the chunk that ends its motion.
                self._around.publish(chunk)
                self._openness = float(chunk.steps[-1, 6])
                goal.on_chunk(chunk, self._seconds())
                self._collect()
        except Exception as err:  # whatever a policy raises ends this goal, not the node
            self._policy_failed(goal, err)

    def _policy_failed(self, goal: Goal, error: Exception) -> None:
        self._around.report(f'policy {self._host.current.name!r}', error)
        with self._changed:
            goal.on_policy_error(error, self._seconds())
            self._collect()

    def _bury(self) -> None:
        while True:
            with self._changed:
                if not self._over:
                    return
                goal = self._over.popleft()
            try:
                if goal.chunks and not self._stopped:
                    self._stay(goal)
            except Exception as err:  # the arm also comes to rest when the last chunk runs out
                self._around.report('holding at the end of an instruction', err)
            try:
                self._around.finish(goal)
            except Exception as err:  # the client waits for its result, the next goal for its turn
                self._around.report('finishing an instruction', err)

    def _stay(self, goal: Goal) -> None:
        """Replace what is left of the last chunk: the arm comes to rest, the gripper keeps what it was told."""
        seen = self._around.observe(goal.instruction)
        if isinstance(seen, Stale):
            return
        chunk = self._hold.infer(seen, None)
        openness = self._around.held_openness()
        openness = self._openness if openness is None else openness
        if openness is not None and math.isfinite(openness):
            chunk.steps[:, 6] = openness
        self._around.publish(replace(chunk, done=True))
