"""Calls to move_group's services from any thread, each with a deadline.

A node and executor thread of its own: no callback group of the owner is involved, and a slow answer keeps nobody else
waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from ..errors import InstructVLAError, SetupError
from .moveit_messages import MISSING, SERVICES

IN_FLIGHT = 8  # the queue of a service holds 10 requests or answers; more at once are lost without a word


class MoveItError(InstructVLAError):
    """move_group did not answer, or not in a way that can be used."""


class MoveItLink:
    """Clients of move_group.

    Args:
        namespace: of move_group, '' for none. name: of the node that calls.

    Raises:
        SetupError: moveit_msgs is not installed.
    """

    def __init__(self, namespace: str, name: str = 'moveit_link') -> None:
        if MISSING:
            raise SetupError(MISSING)
        prefix = f'/{namespace.strip("/")}' if namespace.strip('/') else ''
        self._node = Node(
            name, namespace='/instructvla', use_global_arguments=False, start_parameter_services=False,
            enable_rosout=False,
        )  # fmt: skip
        self._clients: dict[str, Any] = {
            key: self._node.create_client(kind, f'{prefix}/{key}') for key, kind in SERVICES.items()
        }
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='moveit link', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the executor; open calls fail."""
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(timeout=1.0)
        self._node.destroy_node()

    @property
    def node(self) -> Node:
        """The node that calls, to look at the graph with."""
        return self._node

    def missing(self, names: Sequence[str] = ()) -> list[str]:
        """Full names of those services (all when none is given) that nobody offers now."""
        wanted = [self._clients[n] for n in names or self._clients]
        return [c.srv_name for c in wanted if not c.service_is_ready()]

    def wait(self, names: Sequence[str], timeout: float) -> list[str]:
        """Wait until services are there; full names of those that are not after ``timeout`` [s]."""
        deadline = time.monotonic() + timeout
        absent = self.missing(names)
        while absent and time.monotonic() < deadline:
            time.sleep(0.05)
            absent = self.missing(names)
        return absent

    def call(self, name: str, request: Any, timeout: float) -> Any:
        """Answer to one request.

        Raises:
            MoveItError: the service is not there, or did not answer within ``timeout`` [s].
        """
        return self.call_many(name, [request], timeout)[0]

    def call_many(self, name: str, requests: Iterable[Any], timeout: float) -> list[Any]:
        """Answers to several requests, sent without waiting for the answer to the one before.

        Requests may take time to make: those before are answered meanwhile.

        Raises:
            MoveItError: as for :meth:`call`, for all together. What making a request raises.
        """
        client = self._clients[name]
        if not client.service_is_ready():
            raise MoveItError(f'the service {client.srv_name} is not there; is move_group running?')
        done = threading.Semaphore(0)
        deadline = time.monotonic() + timeout
        futures: list[Any] = []

        def finish(count: int) -> None:
            for _ in range(count):
                if not done.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
                    answered = sum(f.done() for f in futures)
                    raise MoveItError(
                        f'{client.srv_name} answered {answered} of {len(futures)} questions sent within '
                        f'{1e3 * timeout:.0f} ms'
                    )

        try:
            for request in requests:
                if len(futures) >= IN_FLIGHT:
                    finish(1)
                future = client.call_async(request)
                future.add_done_callback(lambda _: done.release())
                futures.append(future)
            finish(min(len(futures), IN_FLIGHT))
        except BaseException:
            for future in futures:
                client.remove_pending_request(future)
            raise
        return [future.result() for future in futures]

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass  # the context ended first
