"""Who answers the controller's questions about the ways of chunks: a thread that asks MoveIt, one chunk at a time.

Poses become joints by our own kinematics in the controller's pace, as with ``direct``; MoveIt is asked once per chunk
and its word decides whether the chunk plays (``control/clearance.py``). Two ways to MoveIt share this: the services of
move_group (``moveit_backend``) and moveit_py in a process of its own (``moveit_py_backend``).
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from ..control.bounds import Bounds
from ..control.clearance import Answer, Question, joint_path
from ..control.kinematics import Kinematics
from ..control.route import Route
from ..errors import InstructVLAError
from ..geometry import Array
from ..settings import Control, Embodiment


class AskingBackend(ABC):
    """Answers questions (:class:`instructvla_ros.control.clearance.Clearance`) from a thread of its own.

    Args:
        embodiment, control: configuration. answer: called with each answer, from that thread.
        latency: called with the time each answer took [s].
    """

    def __init__(
        self,
        embodiment: Embodiment,
        control: Control,
        answer: Callable[[Answer], None],
        latency: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.embodiment, self.control = embodiment, control
        self.group = planning_group(embodiment, control)
        self._settings = control.moveit
        self._answer, self._latency = answer, latency
        bounds = Bounds.from_settings(embodiment, control)
        self.source = Kinematics(embodiment)
        self._kinematics = self.source.limited(bounds.lower, bounds.upper, bounds.velocity)
        self._lock = threading.Condition()
        self._next: tuple[Question, float] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name='moveit', daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join(timeout=1.0)

    def ask(self, question: Question) -> None:
        """Take a question over; a newer one replaces one that was not begun."""
        with self._lock:
            self._next = question, time.monotonic()
            self._lock.notify()

    @abstractmethod
    def plan(self, start: Array, goal: Array) -> Route:
        """A collision-free route between joints (n,) [rad] at ``home_speed``. Blocks.

        Raises:
            MoveItError, KinematicsError: no answer, or no way.
        """

    @abstractmethod
    def check(self, question: Question, path: Iterable[Array], timeout: float) -> Answer:
        """Judge the joint states (n,) [rad] of a way, which are computed as they are taken, within ``timeout`` [s].

        Blocks.

        Raises:
            MoveItError: no answer. KinematicsError: of the path.
        """

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or self._next is not None)
                if self._closing:
                    return
                assert self._next is not None
                (question, begun), self._next = self._next, None
            try:
                path = joint_path(self._kinematics, question.q, question.poses)
                left = max(begun + self._settings.timeout - time.monotonic(), 0.001)
                answer = self.check(question, path, left)
            except InstructVLAError as err:
                answer = Answer(question, failure=str(err))
            except Exception as err:  # whatever went wrong, the arm must not wait for an answer that never comes
                answer = Answer(question, failure=f'the check of the chunk failed: {type(err).__name__}: {err}')
            self._latency(time.monotonic() - begun)
            self._answer(answer)


def planning_group(embodiment: Embodiment, control: Control) -> str:
    """Name of the planning group of the arm."""
    return f'{embodiment.name}_arm' if control.moveit.group == 'auto' else control.moveit.group
