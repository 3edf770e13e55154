"""System 2 as a node: says on /instructvla/reasoning what the policy is going to do, and answers ask_scene.

In the process of policy_node it shares the policy, the weights and the observations; alone (``reasoning: separate``) it
has its own, and learns from the topics what is asked for and which chunk a sentence conditions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from std_msgs.msg import String

from instructvla_ros.msg import ActionChunk as ActionChunkMsg
from instructvla_ros.msg import Reasoning as ReasoningMsg

from ..datatypes import Observation, Reasoning
from ..errors import ConfigError
from ..observing import Stale
from ..policy import Policy, PolicyHost
from ..settings import Embodiment, PolicySettings
from . import params, qos
from .asking import SceneQuestions
from .convert import reasoning_to_msg
from .inputs import Inputs
from .runtime import BaseNode, run
from .thinker import Sentences, Thinker

CURRENT_INSTRUCTION = 'current_instruction'
_REMEMBERED = 10  # sentences whose first chunk may still come


@dataclass(frozen=True)
class Shared:
    """What a policy node in the same process lends: one policy, one set of observations."""

    embodiment: Embodiment
    settings: PolicySettings
    host: PolicyHost
    observe: Callable[[str], Observation | Stale]
    sentences: Sentences
    fail: Callable[[str, Exception], None]


class ReasoningNode(BaseNode):
    """Publishes a Reasoning when the instruction changes and every ``reasoning_period``."""

    def __init__(self, shared: Shared | None = None, policy: Policy | None = None, **kwargs: Any) -> None:
        """Create the node; without ``shared`` it uses ``policy``, or loads the one the parameters name."""
        super().__init__('reasoning_node', **kwargs)
        embodiment = params.load_embodiment(self)
        settings = params.load_settings(self, PolicySettings, 'policy.yaml')
        self._sentences = Sentences() if shared is None else shared.sentences
        self._fail = self._report if shared is None else shared.fail
        if shared is None:
            host = PolicyHost(settings, embodiment, policy)
            observe = Inputs(self, embodiment, settings, host.current.privileged).observe
        else:
            embodiment, settings, host, observe = shared.embodiment, shared.settings, shared.host, shared.observe
        self._frame = next(iter(embodiment.views.values())).frame_id
        self._lock = threading.Lock()
        self._unconditioned: OrderedDict[str, Reasoning] = OrderedDict()
        self._publisher = self.create_publisher(ReasoningMsg, 'reasoning', qos.REASONING)
        self._thinker = Thinker(
            host,
            observe,
            self._say,
            self._sentences.put_silence,
            self._on_failure,
            settings.reasoning_period,
            settings.sim_speed,
        )
        self._questions = SceneQuestions(self, host, observe, self._publish, settings.max_instruction_length)
        self.create_subscription(
            String, CURRENT_INSTRUCTION, self.guard(CURRENT_INSTRUCTION, self._on_instruction), qos.LATCHED
        )
        self.create_subscription(ActionChunkMsg, 'action_chunk', self.guard('action_chunk', self._on_chunk), qos.CHUNK)
        self.diagnostics.value('policy', host.current.name)
        self.diagnostics.value('mode', 'separate' if shared is None else 'shared')

    def close(self) -> None:
        """End the thinking thread."""
        self._thinker.close()

    def _on_instruction(self, message: String) -> None:
        self._thinker.follow(message.data)

    def _say(self, said: Reasoning) -> None:
        if not said.final:
            self._publisher.publish(reasoning_to_msg(said, self._frame))
            return
        self._sentences.put(said)
        with self._lock:
            self._unconditioned[said.id] = said
            while len(self._unconditioned) > _REMEMBERED:
                self._unconditioned.popitem(last=False)
        self.diagnostics.latency('sentence', said.latency)
        self._publish(said)

    def _publish(self, said: Reasoning) -> None:
        self._publisher.publish(reasoning_to_msg(said, self._frame))
        self.diagnostics.tick('sentences')

    def _on_chunk(self, message: ActionChunkMsg) -> None:
        with self._lock:
            said = self._unconditioned.pop(message.reasoning_id, None)
        if said is not None:
            self._publisher.publish(reasoning_to_msg(replace(said, first_chunk_id=message.id), self._frame))

    def _on_failure(self, instruction: str, error: Exception) -> None:
        self.drop('sentence', error)
        self._fail(instruction, error)

    def _report(self, instruction: str, error: Exception) -> None:
        self.get_logger().error(f'no sentence for {instruction!r}: {type(error).__name__}: {error}')


def _alone() -> ReasoningNode:
    node = ReasoningNode()
    mode = node.get_parameter('reasoning').value
    if mode != 'separate':
        node.close()
        raise ConfigError(
            f"reasoning is {mode!r}: this process is only needed with reasoning:='separate' here and in policy_node"
        )
    return node


def main(args: list[str] | None = None) -> int:
    """Run the node in a process of its own; see :func:`runtime.run`."""
    return run(_alone, args)


if __name__ == '__main__':
    raise SystemExit(main())
