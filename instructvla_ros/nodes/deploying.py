"""Give a new checkpoint to a policy node that runs: the last step of training on site."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import rclpy
from rclpy.node import Node

from instructvla_ros.srv import LoadCheckpoint

from ..errors import SetupError

SERVICE = '/instructvla/load_checkpoint'


def deploy(checkpoint: str | Path, service: str = SERVICE, wait: float = 5.0, loading: float = 600.0) -> str:
    """Ask the policy node to change its weights and return what it answered.

    Args:
        checkpoint: folder; the policy node has to see it under the same path.
        service: name of the service, with the namespace of the graph when it has one.
        wait: for a policy node to appear [s]. loading: for the weights to be read [s].

    Raises:
        SetupError: no policy node runs, it did not answer in time, or it refused; its old weights stay.
    """
    own = not rclpy.ok()
    if own:
        rclpy.init()
    node = Node('deploy_checkpoint')
    try:
        return _ask(node, str(Path(checkpoint).resolve()), service, wait, loading)
    finally:
        node.destroy_node()
        if own:
            rclpy.shutdown()


def _ask(node: Node, path: str, service: str, wait: float, loading: float) -> str:
    client: Any = node.create_client(LoadCheckpoint, service)
    by_hand = f'ros2 service call {client.srv_name} instructvla_ros/srv/LoadCheckpoint "{{path: \'{path}\'}}"'
    if not client.wait_for_service(timeout_sec=wait):
        raise SetupError(
            f'no policy node offers {client.srv_name} (ROS_DOMAIN_ID, namespace?). The checkpoint is {path}; '
            f'once the graph runs: {by_hand}'
        )
    answer = client.call_async(LoadCheckpoint.Request(path=path))
    end = time.monotonic() + loading
    while not answer.done() and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
    if not answer.done():
        raise SetupError(f'{client.srv_name} did not answer in {loading:.0f} s; ask again: {by_hand}')
    response: Any = answer.result()
    if not response.success:
        raise SetupError(f'the policy node did not take {path}: {response.message}')
    return f'{response.message} (revision {response.checkpoint_revision})'
