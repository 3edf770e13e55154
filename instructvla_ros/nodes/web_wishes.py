"""Carries out what is asked for on the operator's page: services and the action, none of them waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from std_srvs.srv import SetBool, Trigger

from instructvla_ros.action import ExecuteInstruction
from instructvla_ros.srv import AskScene

from ..errors import SetupError
from ..goals import ControllerMode, Outcome, Phase
from ..operator_page.desk import Desk, GoalNews
from ..operator_page.intents import Do, Intent
from .runtime import BaseNode

Tell = Callable[[str, dict[str, Any]], None]
_ON_ITS_WAY = 0.05  # s
_STOP_AGAIN, _STOP_UNTIL = 0.1, 3.0  # a STOP is repeated at this period, until confirmed or this old [s]


class Wishes:
    """Turns intents into calls. :meth:`carry_out` may be called from any thread and returns at once.

    Args:
        tell: sends an event to the browsers.
    """

    def __init__(self, node: BaseNode, desk: Desk, tell: Tell) -> None:
        self._node, self._desk, self._tell = node, desk, tell
        group = ReentrantCallbackGroup()
        # A group of its own: no answer of another service and no message stands before that of the stop.
        self._stop = node.create_client(Trigger, 'stop', callback_group=MutuallyExclusiveCallbackGroup())
        self._enable = node.create_client(SetBool, 'enable', callback_group=group)
        self._dry_run = node.create_client(SetBool, 'dry_run', callback_group=group)
        self._reset = node.create_client(Trigger, 'reset', callback_group=group)
        self._ask = node.create_client(AskScene, 'ask_scene', callback_group=group)
        self._execute = ActionClient(node, ExecuteInstruction, 'execute', callback_group=group)
        self._goal: Any = None
        self._goal_number = 0
        self._stopping = threading.Event()
        self._confirmed = threading.Event()
        self._confirmed.set()
        self._asked = 0.0
        self._closing = False
        self._repeater = threading.Thread(target=self._repeat_stop, name='stop', daemon=True)
        self._repeater.start()

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._stopping.set()
        self._repeater.join(timeout=1.0)
        self._execute.destroy()

    def carry_out(self, wish: Intent) -> None:
        """Begin what is asked for.

        Raises:
            SetupError: the part of the graph that could do it is not there.
        """
        if wish.do is Do.STOP:
            self._stop_now()
        elif wish.do is Do.ENABLE:
            self._call(self._enable, SetBool.Request(data=wish.on), 'enable')
        elif wish.do is Do.DRY_RUN:
            self._call(self._dry_run, SetBool.Request(data=wish.on), 'dry_run')
        elif wish.do is Do.RESET:
            self._confirmed.set()
            self._call(self._reset, Trigger.Request(), 'reset')
        elif wish.do is Do.INSTRUCTION:
            self._follow(wish.text, wish.seconds)
        elif wish.do is Do.CANCEL:
            self._cancel()
        else:
            self._question(wish.text)

    # -- stop -----------------------------------------------------------------------------------------------------

    def on_mode(self, mode: ControllerMode) -> None:
        """Take the controller's mode: a stop that it reports needs no repetition."""
        # A state that was on its way when the button was pressed says nothing about it.
        if mode is ControllerMode.STOPPED and time.monotonic() - self._asked > _ON_ITS_WAY:
            self._confirmed.set()

    def _stop_now(self) -> None:
        self._asked = time.monotonic()
        self._confirmed.clear()
        self._send_stop()
        self._stopping.set()
        self._node.get_logger().warning('STOP was pressed on the operator page')

    def _send_stop(self) -> None:
        # No check whether the service is there: a request nobody hears is repeated.
        self._stop.call_async(Trigger.Request()).add_done_callback(self._stop_answered)

    def _stop_answered(self, future: Any) -> None:
        if future.cancelled() or future.exception() is not None:
            return  # it is repeated
        answer = future.result()
        if answer is not None and answer.success:
            self._confirmed.set()
            took = time.monotonic() - self._asked
            self._note('ok', 'stop', f'stopped: the controller answered after {1e3 * took:.0f} ms. '
                       'Clear the stop, then enable')  # fmt: skip

    def _repeat_stop(self) -> None:
        while True:
            self._stopping.wait()
            self._stopping.clear()
            if self._closing:
                return
            while not self._confirmed.wait(_STOP_AGAIN) and not self._closing:
                if time.monotonic() - self._asked > _STOP_UNTIL:
                    self._note('error', 'stop', 'THE CONTROLLER DID NOT CONFIRM THE STOP: use the emergency stop')
                    self._node.get_logger().error('the controller did not confirm the stop of the operator page')
                    self._confirmed.set()
                    break
                try:
                    self._send_stop()
                except Exception as err:  # the context may be going down; the next try or the note above follows
                    self._node.warn('stop', f'STOP could not be sent: {err}')

    # -- everything else ------------------------------------------------------------------------------------------

    def _call(self, client: Any, request: Any, name: str) -> None:
        if not client.service_is_ready():
            raise SetupError(f'{name}: the service {client.srv_name} is not there; is controller_node running?')

        def answered(future: Any) -> None:
            answer = future.result()
            if answer is not None:
                self._note('ok' if answer.success else 'error', name, answer.message or name)

        client.call_async(request).add_done_callback(self._safely(name, answered))

    def _question(self, text: str) -> None:
        if not self._ask.service_is_ready():
            raise SetupError(f'the service {self._ask.srv_name} is not there; is the policy running with reasoning?')

        def answered(future: Any) -> None:
            answer = future.result()
            if answer is not None:
                said = answer.answer if answer.success else f'no answer: {answer.message}'
                self._tell('answer', {'question': text, 'text': said, 'latency': answer.latency})

        self._ask.call_async(AskScene.Request(question=text)).add_done_callback(self._safely('question', answered))

    def _follow(self, text: str, seconds: float) -> None:
        if not self._execute.server_is_ready():
            raise SetupError('the action execute is not there; is policy_node running?')
        self._goal_number += 1
        number = self._goal_number

        def news(**fields: Any) -> None:
            if number == self._goal_number:  # a newer instruction has the line
                self._desk.on_goal(GoalNews(text, **fields))

        def feedback(message: Any) -> None:
            said = message.feedback
            news(phase=Phase(said.state).name, elapsed=float(said.elapsed), progress=float(said.progress))

        def accepted(future: Any) -> None:
            handle = future.result()
            if not handle.accepted:
                news(outcome='REJECTED', reason='the policy node did not take it')
                return
            if number == self._goal_number:
                self._goal = handle
            handle.get_result_async().add_done_callback(self._safely('instruction', ended))

        def ended(future: Any) -> None:
            result = future.result().result
            news(outcome=Outcome(result.outcome).name, reason=result.reason, elapsed=float(result.duration))

        news(phase='SENT')
        goal = ExecuteInstruction.Goal(instruction=text, max_duration=seconds)
        self._execute.send_goal_async(goal, feedback_callback=self._safely('instruction', feedback)).add_done_callback(
            self._safely('instruction', accepted)
        )

    def _cancel(self) -> None:
        if self._goal is None:
            raise SetupError('no instruction of this page runs')
        self._goal.cancel_goal_async()

    def _safely(self, about: str, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """Callback whose errors are shown on the page instead of ending the executor."""

        def safe(argument: Any) -> None:
            try:
                callback(argument)
            except Exception as err:
                self._node.drop(about, err)
                self._note('error', about, f'{about}: {err}')

        return safe

    def _note(self, level: str, about: str, text: str) -> None:
        self._tell('note', {'level': level, 'about': about, 'text': text})
