"""The service ask_scene: a question about what the cameras see now, answered in the policy's words."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rclpy.callback_groups import ReentrantCallbackGroup

from instructvla_ros.srv import AskScene

from ..datatypes import Observation, Reasoning
from ..errors import InstructionError, InstructVLAError, ObservationError
from ..goals import check_instruction
from ..observing import Stale
from ..policy import PolicyHost
from .background import in_thread
from .convert import stamp_to_msg
from .runtime import BaseNode


class SceneQuestions:
    """Offers ``ask_scene`` on a node; one question at a time, the executor stays free."""

    def __init__(
        self,
        node: BaseNode,
        host: PolicyHost,
        observe: Callable[[str], Observation | Stale],
        say: Callable[[Reasoning], None],
        max_length: int,
    ) -> None:
        self._node = node
        self._host = host
        self._observe = observe
        self._say = say
        self._max_length = max_length
        self._busy = threading.Lock()
        node.create_service(AskScene, 'ask_scene', self._on_question, callback_group=ReentrantCallbackGroup())

    async def _on_question(self, request: AskScene.Request, response: AskScene.Response) -> AskScene.Response:
        started = time.monotonic()
        try:
            said = await in_thread(self._node, lambda: self._answer(request.question))
            response.success = True
            response.answer = said.text
            response.image_stamp = stamp_to_msg(said.stamp_ns)
        except Exception as err:  # the caller gets the reason, the node lives
            response.message = str(err) if isinstance(err, InstructVLAError) else f'{type(err).__name__}: {err}'
            self._node.drop('ask_scene', err)
        response.latency = time.monotonic() - started
        return response

    def _answer(self, question: str) -> Reasoning:
        clean = check_instruction(question, self._max_length, 'question')
        if not self._busy.acquire(blocking=False):
            raise InstructionError('another question is being answered; ask again when it is done')
        try:
            seen = self._observe('')
            if isinstance(seen, Stale):
                raise ObservationError(f'there is nothing to look at: {seen.reason}')
            said = self._host.current.answer(seen, clean)
        finally:
            self._busy.release()
        self._say(said)
        return said
