"""The action ExecuteInstruction and the instruction topic: both turn words into goals for the follower."""

from __future__ import annotations

import math
from collections.abc import Callable

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from std_msgs.msg import String

from instructvla_ros.action import ExecuteInstruction

from ..datatypes import Reasoning
from ..errors import InstructionError
from ..goals import Ending, Goal, Outcome, check_duration, check_instruction
from ..settings import PolicySettings
from . import qos
from .background import Promise
from .diagnostics import OK, WARN
from .follower import Follower
from .pacing import seconds
from .runtime import BaseNode

_FEEDBACK_PERIOD = 0.2  # [s]


class GoalServer:
    """Turns words into goals. An action goal that is not valid is accepted and aborted: its client gets the reason.

    Args:
        sentence: newest sentence about the running goal, or None.
    """

    def __init__(
        self, node: BaseNode, follower: Follower, settings: PolicySettings, sentence: Callable[[], Reasoning | None]
    ) -> None:
        self._node = node
        self._follower = follower
        self._settings = settings
        self._seconds = seconds(settings.sim_speed)
        self._sentence = sentence
        self._promises: dict[Goal, Promise] = {}
        self._handles: dict[Goal, ServerGoalHandle] = {}
        group = ReentrantCallbackGroup()
        node.create_subscription(
            String, 'instruction', node.guard('instruction', self._on_topic), qos.EVENT, callback_group=group
        )
        self._server = ActionServer(
            node,
            ExecuteInstruction,
            'execute',
            self._execute,
            callback_group=group,
            goal_callback=lambda _: GoalResponse.ACCEPT,
            cancel_callback=self._on_cancel,
        )
        self._timer = node.create_timer(
            _FEEDBACK_PERIOD, self._send_feedback, callback_group=group, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def finished(self, goal: Goal) -> None:
        """The follower is done with a goal: answer its client. Called from the follower's thread."""
        promise = self._promises.get(goal)
        if promise is not None:
            promise.set()
        ending = goal.ending or Ending(Outcome.STOPPED, 'ended without a reason')
        text = f'{goal.instruction!r}: {ending.outcome.name} after {goal.elapsed(0.0):.1f} s, {ending.reason}'
        self._node.diagnostics.value('last goal', text)
        self._node.diagnostics.count(f'goals {ending.outcome.name}', level=OK)
        # Two statements: rclpy ties the severity to the calling line.
        if ending.outcome is Outcome.SUCCEEDED:
            self._node.get_logger().info(text)
        else:
            self._node.get_logger().warning(text)

    def close(self) -> None:
        """Take the action off the graph."""
        self._server.destroy()

    def _on_topic(self, message: String) -> None:
        running = self._follower.goal
        if not message.data.strip():
            self._follower.end(Outcome.STOPPED, 'an empty instruction on the topic ends what was running')
            return
        instruction = check_instruction(message.data, self._settings.max_instruction_length)
        if running is not None and running.instruction == instruction:
            return  # somebody publishes the same words at a rate
        self._node.get_logger().info(f'instruction from the topic: {instruction!r}')
        goal = Goal(instruction, math.inf, False, self._seconds(), self._settings)
        self._follower.follow(goal, by='an instruction on the topic')

    async def _execute(self, handle: ServerGoalHandle) -> ExecuteInstruction.Result:
        request = handle.request
        try:
            instruction = check_instruction(request.instruction, self._settings.max_instruction_length)
            duration = check_duration(request.max_duration, self._settings.default_duration)
        except InstructionError as err:
            self._node.diagnostics.count('goals REJECTED', str(err), WARN)
            self._node.warn('rejected', f'goal rejected: {err}')
            handle.abort()
            return ExecuteInstruction.Result(outcome=Outcome.REJECTED.value, reason=str(err))
        goal = Goal(instruction, duration, bool(request.dry_run), self._seconds(), self._settings)
        promise = self._promises[goal] = Promise(self._node)
        self._handles[goal] = handle
        try:
            if handle.is_cancel_requested:
                goal.end(Outcome.STOPPED, 'cancelled by the client before it started', self._seconds())
            else:
                self._node.get_logger().info(
                    f'goal: {instruction!r}, at most {duration:.1f} s{", dry run" if goal.dry_run else ""}'
                )
                self._follower.follow(goal)
                await promise.wait()
        finally:
            del self._promises[goal], self._handles[goal]
        return self._conclude(handle, goal)

    def _conclude(self, handle: ServerGoalHandle, goal: Goal) -> ExecuteInstruction.Result:
        ending = goal.ending or Ending(Outcome.STOPPED, 'ended without a reason')
        if handle.is_cancel_requested:
            handle.canceled()
        elif ending.outcome is Outcome.SUCCEEDED:
            handle.succeed()
        else:
            handle.abort()
        return ExecuteInstruction.Result(
            outcome=ending.outcome.value,
            reason=ending.reason,
            duration=goal.elapsed(self._seconds()),
            chunks=goal.chunks,
        )

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        for goal, owner in list(self._handles.items()):
            if owner == handle:
                self._follower.end(Outcome.STOPPED, 'cancelled by the client', goal)
        return CancelResponse.ACCEPT

    def _send_feedback(self) -> None:
        goal = self._follower.goal
        handle = self._handles.get(goal) if goal is not None else None
        if goal is None or handle is None or not handle.is_active:
            return
        said = self._sentence()
        handle.publish_feedback(
            ExecuteInstruction.Feedback(
                state=goal.phase.value,
                reasoning=said.text if said is not None else '',
                reasoning_id=said.id if said is not None else '',
                chunk_id=goal.chunk_id,
                progress=float(goal.progress),
                elapsed=goal.elapsed(self._seconds()),
            )
        )
