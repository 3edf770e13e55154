"""Environment of the tests that need ROS 2: a domain of their own, this machine only, transport for full images."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything creates a ROS context. Another test run on this machine must not see our topics.
os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
_PROFILE = Path(__file__).resolve().parents[2] / 'config' / 'fastdds.xml'
if _PROFILE.is_file():
    os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(_PROFILE))


def _missing() -> str:
    if importlib.util.find_spec('rclpy') is None:
        return 'rclpy is not installed (make setup, or source a ROS 2)'
    if importlib.util.find_spec('instructvla_ros.msg') is None:
        return 'the messages of instructvla_ros are not built (pip install -e ., or colcon build)'
    return ''


class _Skipped(pytest.Module):
    def collect(self) -> Any:
        pytest.skip(_missing(), allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> Any:
    """Replace every test module of this folder by a skip that says why."""
    return _Skipped.from_parent(parent, path=module_path) if _missing() else None


@pytest.fixture
def ros() -> Iterator[None]:
    """ROS context for one test."""
    import rclpy

    rclpy.init()
    try:
        yield
    finally:
        rclpy.try_shutdown()


@pytest.fixture
def spin(ros: None) -> Iterator[Callable[..., None]]:
    """Function that spins nodes in a thread of their own until the test ends, then closes and destroys them."""
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    running: list[tuple[Any, threading.Thread, list[Any]]] = []

    def start(*nodes: Any) -> None:
        executor = SingleThreadedExecutor()
        for node in nodes:
            executor.add_node(node)

        def work() -> None:
            try:
                executor.spin()
            except ExternalShutdownException:
                pass  # the context ended first

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        running.append((executor, thread, list(nodes)))

    yield start
    for executor, thread, nodes in reversed(running):
        for node in nodes:
            if hasattr(node, 'close'):
                node.close()
        executor.shutdown(timeout_sec=2.0)
        thread.join(timeout=2.0)
        for node in nodes:
            node.destroy_node()
