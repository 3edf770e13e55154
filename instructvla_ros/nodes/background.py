"""Long work for a service or action without blocking the executor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, cast

from rclpy.node import Node
from rclpy.task import Future

T = TypeVar('T')


class Promise:
    """A result that some thread delivers and a coroutine of the executor awaits."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._future: Future = Future()

    def set(self, result: object = None) -> None:
        """Deliver the result."""
        self._future.set_result(result)
        self._wake()

    def fail(self, error: Exception) -> None:
        """Deliver an error."""
        self._future.set_exception(error)
        self._wake()

    async def wait(self) -> object:
        """Result, or the error raised here."""
        return await self._future

    def _wake(self) -> None:
        # A future set from another thread does not wake an executor that waits for messages.
        executor = self._node.executor
        if executor is not None:
            executor.wake()


async def in_thread(node: Node, work: Callable[[], T]) -> T:
    """Run ``work`` on a thread of its own; returns its result or raises what it raised."""
    promise = Promise(node)

    def run() -> None:
        try:
            promise.set(work())
        except Exception as err:  # belongs to whoever awaits
            promise.fail(err)

    threading.Thread(target=run, name='background', daemon=True).start()
    return cast(T, await promise.wait())
