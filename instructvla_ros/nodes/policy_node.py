"""System 1 as a node: cameras and joints in, action chunks out, for one instruction at a time.

Instructions come from the action /instructvla/execute or the topic /instructvla/instruction. The policy runs on the
follower's thread; callbacks only convert and hand over.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from std_msgs.msg import String

from instructvla_ros.msg import ActionChunk as ActionChunkMsg
from instructvla_ros.msg import Reasoning as ReasoningMsg
from instructvla_ros.srv import LoadCheckpoint

from ..datatypes import ActionChunk, Observation
from ..errors import InstructVLAError
from ..goals import Goal
from ..observing import Stale
from ..policy import Policy, PolicyHost
from ..settings import PolicySettings
from . import params, qos
from .asking import SceneQuestions
from .background import in_thread
from .controller_link import ControllerLink
from .convert import chunk_to_msg, reasoning_from_msg, reasoning_to_msg
from .diagnostics import ERROR
from .follower import Follower
from .goal_server import GoalServer
from .inputs import Inputs
from .reasoning_node import CURRENT_INSTRUCTION, ReasoningNode, Shared
from .runtime import BaseNode, run_nodes
from .thinker import Sentences


class PolicyNode(BaseNode):
    """Follows instructions with the policy named by the parameter ``policy``."""

    def __init__(self, policy: Policy | None = None, **kwargs: Any) -> None:
        """Create the node.

        Args:
            policy: used instead of the one the parameters name.
        """
        super().__init__('policy_node', **kwargs)
        self._embodiment = params.load_embodiment(self)
        self._settings = params.load_settings(self, PolicySettings, 'policy.yaml')
        self._host = PolicyHost(self._settings, self._embodiment, policy)
        self._sentences = Sentences()
        self._chunks = self.create_publisher(ActionChunkMsg, 'action_chunk', qos.CHUNK_PUBLISHER)
        self._current = self.create_publisher(String, CURRENT_INSTRUCTION, qos.LATCHED)
        self._link = ControllerLink(self)
        self._inputs = Inputs(
            self, self._embodiment, self._settings, self._host.current.privileged, wake=lambda: self._follower.wake()
        )
        self._follower = Follower(self._host, self._sentences, self, self._settings)
        self._link.report_to(self._follower)
        self._goals = GoalServer(self, self._follower, self._settings, lambda: self._sentences.newest()[0])
        self.create_service(
            LoadCheckpoint, 'load_checkpoint', self._on_load, callback_group=ReentrantCallbackGroup()
        )
        if self._settings.reasoning == 'off':
            self._offer_answers()
        elif self._settings.reasoning == 'separate':
            self.create_subscription(ReasoningMsg, 'reasoning', self.guard('reasoning', self._on_reasoning), qos.EVENT)
        self._describe()
        self.get_logger().info(f'policy {self._host.current.name!r}, reasoning {self._settings.reasoning}: waiting')

    def share(self) -> Shared | None:
        """What a reasoning node in this process needs; None when the sentences come from elsewhere or not at all."""
        if self._settings.reasoning != 'shared':
            return None
        return Shared(
            self._embodiment, self._settings, self._host, self.observe, self._sentences, self._follower.fail
        )

    def close(self) -> None:
        """End the running goal, tell the arm to stay, and end the thread."""
        self._follower.close()

    def destroy_node(self) -> None:
        """Take the action off the graph as well; only now, because the executor waited on it until it ended."""
        goals: GoalServer | None = getattr(self, '_goals', None)  # a node that was refused half built has none
        if goals is not None:
            goals.close()
        super().destroy_node()

    # What the follower asks for, on its thread.

    def observe(self, instruction: str) -> Observation | Stale:
        """Newest observation, or why there is none."""
        return self._inputs.observe(instruction)

    def publish(self, chunk: ActionChunk) -> None:
        """Stamp a chunk with this node's clock and send it."""
        now = self.now_ns()
        self._chunks.publish(chunk_to_msg(replace(chunk, created_stamp_ns=now)))
        self.diagnostics.tick('chunks')
        self.diagnostics.latency('policy', chunk.model_latency)
        self.diagnostics.latency('camera to chunk', (now - chunk.observation_stamp_ns) * 1e-9)

    def prepare(self, goal: Goal) -> str:
        """Announce the instruction; put the controller into dry-run when the goal asks for it."""
        problem = self._link.begin_dry_run() if goal.dry_run else ''
        if not problem:
            self._current.publish(String(data=goal.instruction))
        return problem

    def held_openness(self) -> float | None:
        """Openness 0..1 the gripper is commanded to, None when unknown."""
        return self._link.held_openness()

    def finish(self, goal: Goal) -> None:
        """Take back what :meth:`prepare` did and answer the client."""
        self._current.publish(String())
        if goal.dry_run:
            longest = self._settings.horizon * self._settings.step_period
            self._link.end_dry_run(longest / self._settings.sim_speed)
        self._goals.finished(goal)

    def report(self, what: str, error: Exception) -> None:
        """Log an exception with its traceback and count it."""
        self.diagnostics.count(f'{what} failed', f'{type(error).__name__}: {error}', ERROR)
        self.get_logger().error(f'{what} failed: {"".join(traceback.format_exception(error))}')

    # Callbacks.

    def _on_reasoning(self, message: ReasoningMsg) -> None:
        self._sentences.put(reasoning_from_msg(message))

    async def _on_load(
        self, request: LoadCheckpoint.Request, response: LoadCheckpoint.Response
    ) -> LoadCheckpoint.Response:
        try:
            policy = await in_thread(self, lambda: self._host.load(request.path, request.revision))
            response.success = True
            response.message = f'policy {policy.name!r} uses {request.path}'
            self.get_logger().info(response.message)
        except Exception as err:  # the caller gets the reason, the old weights stay
            reason = str(err) if isinstance(err, InstructVLAError) else f'{type(err).__name__}: {err}'
            response.message = f'{reason}. The weights in use stay.'
            self.drop('load_checkpoint', err)
        response.checkpoint_revision = self._host.current.checkpoint_revision
        self._describe()
        return response

    def _offer_answers(self) -> None:
        frame = next(iter(self._embodiment.views.values())).frame_id
        publisher = self.create_publisher(ReasoningMsg, 'reasoning', qos.REASONING)
        self._questions = SceneQuestions(
            self,
            self._host,
            self.observe,
            lambda said: publisher.publish(reasoning_to_msg(said, frame)),
            self._settings.max_instruction_length,
        )

    def _describe(self) -> None:
        self.diagnostics.value('policy', self._host.current.name)
        self.diagnostics.value('checkpoint', self._host.current.checkpoint_revision or 'none')
        self.diagnostics.value('reasoning', self._settings.reasoning)


def build() -> list[Callable[[], BaseNode | None]]:
    """Factories of the nodes of this process: the policy node and, when it shares, the reasoning node."""
    made: list[PolicyNode] = []

    def policy_node() -> BaseNode:
        made.append(PolicyNode())
        return made[0]

    def reasoning_node() -> BaseNode | None:
        shared = made[0].share()
        return None if shared is None else ReasoningNode(shared)

    return [policy_node, reasoning_node]


def main(args: list[str] | None = None) -> int:
    """Run the node until a signal arrives; see :func:`runtime.run`."""
    return run_nodes(build(), args)


if __name__ == '__main__':
    raise SystemExit(main())
