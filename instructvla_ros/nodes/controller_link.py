"""What the policy node knows of the controller, and how it asks it for dry-run."""

from __future__ import annotations

import threading
import time

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from std_srvs.srv import SetBool

from instructvla_ros.msg import ControllerState

from ..goals import ControllerMode
from . import qos
from .convert import verdict_from_msg
from .follower import Follower
from .runtime import BaseNode

_ANSWER = 2.0  # longest wait for the dry_run service [s]
_SILENT = 1.0  # age at which the controller's state counts as unknown [s]


class ControllerLink:
    """Passes the controller's state to the follower; sets and restores its dry-run."""

    def __init__(self, node: BaseNode) -> None:
        self._node = node
        self._follower: Follower | None = None
        self._lock = threading.Lock()
        self._state: ControllerState | None = None
        self._heard = 0.0
        self._restore = False
        group = MutuallyExclusiveCallbackGroup()
        node.create_subscription(
            ControllerState, 'controller_state', node.guard('controller_state', self._on_state), qos.STATE,
            callback_group=group,
        )
        self._client = node.create_client(SetBool, 'dry_run', callback_group=group)

    def report_to(self, follower: Follower) -> None:
        """Start passing the state on."""
        self._follower = follower

    def _on_state(self, message: ControllerState) -> None:
        with self._lock:
            self._state, self._heard = message, time.monotonic()
        if self._follower is not None:
            verdicts = [verdict_from_msg(v) for v in message.verdicts]
            self._follower.on_controller(ControllerMode(message.mode), message.chunk_id, verdicts)

    def state(self) -> ControllerState | None:
        """Newest state, or None when the controller is silent."""
        with self._lock:
            return self._state if time.monotonic() - self._heard < _SILENT else None

    def held_openness(self) -> float | None:
        """Openness 0..1 the gripper is commanded to, None when unknown."""
        state = self.state()
        return None if state is None else float(state.gripper_command)

    def begin_dry_run(self) -> str:
        """Put the controller into dry-run: '' or why that did not work. Blocks."""
        state = self.state()
        if state is not None and state.dry_run:
            return ''
        problem = self._set(True)
        self._restore = not problem
        return problem and f'dry_run was asked for, but {problem}'

    def end_dry_run(self, longest_chunk: float) -> None:
        """Undo :meth:`begin_dry_run` once nothing of the rehearsed motion is left to play. Blocks.

        Args:
            longest_chunk: time after which every chunk has run out [s].
        """
        if not self._restore:
            return
        deadline = time.monotonic() + longest_chunk + 1.0
        while time.monotonic() < deadline:
            state = self.state()
            if state is not None and state.mode not in (ControllerState.TRACKING, ControllerState.DECELERATING):
                break
            time.sleep(0.02)
        self._restore = False
        problem = self._set(False)
        if problem:
            self._node.get_logger().error(f'the controller stays in dry-run: {problem}; call its dry_run service')

    def _set(self, on: bool) -> str:
        if not self._client.wait_for_service(timeout_sec=_ANSWER):
            return f'the service {self._client.srv_name} is not there; start controller_node'
        answered = threading.Event()
        future = self._client.call_async(SetBool.Request(data=on))
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(_ANSWER):
            self._client.remove_pending_request(future)
            return f'the service {self._client.srv_name} did not answer within {_ANSWER:.0f} s'
        response = future.result()
        if response is None or not response.success:
            return f'it was refused: {"" if response is None else response.message}'
        return ''
