"""A checkpoint is handed to a policy node that runs, or the reason why not is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from instructvla_ros.errors import SetupError
from instructvla_ros.nodes.deploying import deploy
from instructvla_ros.srv import LoadCheckpoint


class Policy(Node):
    """Answers load_checkpoint: takes what exists."""

    def __init__(self) -> None:
        super().__init__('some_policy')
        self.asked: list[str] = []
        self.slow = 0.0
        self.create_service(LoadCheckpoint, '/instructvla/load_checkpoint', self._load)

    def _load(self, request: LoadCheckpoint.Request, response: LoadCheckpoint.Response) -> LoadCheckpoint.Response:
        self.asked.append(request.path)
        time.sleep(self.slow)
        response.success = Path(request.path).is_dir()
        response.message = 'taken' if response.success else 'no weights there. The weights in use stay.'
        response.checkpoint_revision = 'r7'
        return response


@pytest.fixture
def policy() -> Iterator[Any]:
    rclpy.init()
    node = Policy()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown(timeout_sec=2.0)
    thread.join(timeout=5.0)
    node.destroy_node()
    rclpy.shutdown()


def test_the_policy_node_gets_the_whole_path(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'checkpoint').mkdir()
    monkeypatch.chdir(tmp_path)
    assert deploy('checkpoint', wait=30.0) == 'taken (revision r7)'
    assert policy.asked == [str(tmp_path / 'checkpoint')], 'the policy node runs in another folder'


def test_a_refusal_and_silence_are_told(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match='did not take .*The weights in use stay'):
        deploy(tmp_path / 'nothing', wait=30.0)
    policy.slow = 2.0
    with pytest.raises(SetupError, match='did not answer in 0 s; ask again: ros2 service call'):
        deploy(tmp_path, wait=30.0, loading=0.2)
    time.sleep(2.0)


def test_without_a_policy_node_the_command_for_later_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match='no policy node offers /nobody/load_checkpoint.*ros2 service call'):
        deploy(tmp_path, '/nobody/load_checkpoint', wait=0.5)
    assert not rclpy.ok(), 'what was started is ended'
