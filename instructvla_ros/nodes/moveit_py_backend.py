"""Backend ``moveit_py``: the ways of chunks are checked by moveit_py in a process of its own; no move_group is needed.

The same questions as with ``moveit``, without a service call per state. The process is asked over a pipe; when it dies,
or does not answer in time, the arm holds as it does when move_group is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import config
from ..control.clearance import Answer, Question, spaced
from ..control.route import Route
from ..errors import KinematicsError, SetupError
from ..geometry import Array
from ..settings import Control, Embodiment
from .moveit_asking import AskingBackend
from .moveit_link import MoveItError

WORKER = 'instructvla_ros.nodes.moveit_py_worker'
END = 3.0  # s for the process to leave


class MoveItPyProcess:
    """The process and its pipe. Calls may come from several threads; one is answered after the other.

    Raises:
        SetupError: the process says what is missing, or is not ready in time.
    """

    def __init__(self, embodiment: Embodiment, control: Control) -> None:
        read, write = os.pipe()
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1'}
        try:
            self._process = subprocess.Popen(
                [sys.executable, '-m', WORKER, str(write)], stdin=subprocess.PIPE, text=True, pass_fds=(write,),
                env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as err:
            os.close(read)
            raise SetupError(f'the process of moveit_py cannot be started: {err}') from None
        finally:
            os.close(write)
        self._lock = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._awaited: set[int] = {0}
        self._next = 0
        self._gone = ''
        self._reader = threading.Thread(target=self._read, args=(read,), name='moveit_py', daemon=True)
        self._reader.start()
        first = {'embodiment': config.to_dict(embodiment), 'control': config.to_dict(control)}
        try:
            self._send(json.dumps(first))
            ready = self._wait(0, control.moveit.startup_wait)
        except MoveItError as err:
            self.close()
            raise SetupError(f'{err}; choose backend moveit or direct, or raise moveit.startup_wait') from None
        if 'error' in ready:
            self.close()
            raise SetupError(ready['error'])

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def call(self, op: str, timeout: float, **fields: Any) -> dict[str, Any]:
        """Answer to one question.

        Raises:
            MoveItError: none within ``timeout`` [s], the process is gone, or it says ``error``.
        """
        with self._lock:
            self._next += 1
            number = self._next
            self._awaited.add(number)
        self._send(json.dumps({'id': number, 'op': op, **fields}))
        found = self._wait(number, timeout)
        if 'error' in found:
            raise MoveItError(found['error'])
        return found

    def close(self) -> None:
        """End the process."""
        process = self._process
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(timeout=END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(timeout=1.0)

    def _send(self, line: str) -> None:
        try:
            with self._lock:
                assert self._process.stdin is not None
                self._process.stdin.write(line + '\n')
                self._process.stdin.flush()
        except (OSError, ValueError):
            raise MoveItError(self._gone or 'the process of moveit_py is gone') from None

    def _wait(self, number: int, timeout: float) -> dict[str, Any]:
        with self._lock:
            self._lock.wait_for(lambda: number in self._answers or bool(self._gone), timeout)
            self._awaited.discard(number)
            if number in self._answers:
                return self._answers.pop(number)
            if self._gone:
                raise MoveItError(self._gone)
        raise MoveItError(f'moveit_py did not answer within {1e3 * timeout:.0f} ms')

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding='utf-8') as pipe:
            for line in pipe:
                try:
                    found = json.loads(line)
                    number = int(found['id'])
                except (ValueError, KeyError, TypeError):
                    continue  # whatever MoveIt wrote there is not ours
                with self._lock:
                    if number in self._awaited:  # a late answer is of no use
                        self._answers[number] = found
                        self._lock.notify_all()
        code = self._process.wait()
        with self._lock:
            self._gone = f'the process of moveit_py ended (exit code {code})'
            self._lock.notify_all()


class MoveItPyBackend(AskingBackend):
    """Asks moveit_py.

    Raises:
        SetupError: moveit_py is not installed, does not start, or refuses the scene.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        control: Control,
        answer: Callable[[Answer], None],
        latency: Callable[[float], None] = lambda _: None,
    ) -> None:
        super().__init__(embodiment, control, answer, latency)
        if self._settings.check == 'cartesian':
            raise SetupError('moveit.check: cartesian needs backend moveit; moveit_py has no Cartesian paths')
        self.process = MoveItPyProcess(embodiment, control)
        self.start()

    def close(self) -> None:
        """End the thread and the process."""
        super().close()
        self.process.close()

    def check(self, question: Question, path: Iterable[Array], timeout: float) -> Answer:
        """Ask about states along the way, all at once."""
        states = list(spaced(path, question.q, self._settings.resolution))
        found = self.process.call('states', timeout, path=[q.tolist() for _, q in states])
        free = int(found['free'])
        return Answer(question, states[free - 1][0] if free else 0, str(found['text']), str(found['subject']))

    def plan(self, start: Array, goal: Array) -> Route:
        """A collision-free route between joints (n,) [rad] at ``home_speed``. Blocks.

        Raises:
            MoveItError, KinematicsError: no answer, or no way.
        """
        time = self._settings.planning_time
        found = self.process.call(
            'plan', 4.0 * time + 1.0, start=start.tolist(), goal=goal.tolist(), speed=self.control.home_speed, time=time
        )
        joints = len(self.embodiment.arm_joints)
        try:
            shape = (len(found['times']), joints)
            positions = np.array(found['positions'], dtype=np.float64).reshape(shape)
            velocities = np.array(found['velocities'], dtype=np.float64).reshape(shape)
        except (KeyError, TypeError, ValueError) as err:
            raise KinematicsError(f'the plan of moveit_py cannot be used: {err}') from None
        return Route.of_points(np.array(found['times']), positions, velocities, joints)
