"""Latency of messages between two processes: the role ``send`` publishes, ``receive`` prints what it measured as JSON.

Stamps are of the monotonic clock, which all processes of a machine share. An image counts from before its message is
filled until the receiver has it as an array, as between simulator and policy; a joint state from publish to callback.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from ..config import option
from ..errors import SetupError
from . import params, qos
from .convert import stamp_from_msg, stamp_to_msg
from .convert_image import ImageWriter, image_from_msg
from .runtime import BaseNode, run

IMAGE, SMALL, END = 'bench/image', 'bench/joint_states', 'bench/end'
SMALL_RATE, IMAGE_RATE = 100.0, 15.0  # messages per second, as of the simulator
WARM_UP = 5  # messages of each kind that are not counted: the first ones wait for page faults
PATIENCE = 30.0  # for the other process to appear [s]
JOINTS = tuple(f'fr3_joint{k}' for k in range(1, 10))


@dataclass(frozen=True)
class Transport:
    """Parameters of both roles."""

    role: str = option('receive', 'which half of the measurement', choices=('send', 'receive'))
    seconds: float = option(5.0, 'time for each kind of message', unit='s', ge=0.1, le=600.0)
    width: int = option(640, 'of the image', unit='px', ge=16, le=4096)
    height: int = option(480, 'of the image', unit='px', ge=16, le=4096)


class TransportNode(BaseNode):
    """One of the two processes."""

    def __init__(self) -> None:
        super().__init__('transport_bench')
        settings = params.declare(self, Transport, Transport())
        if settings.role == 'receive':
            self._role: _Sender | _Receiver = _Receiver(self)
        else:
            self._role = _Sender(self, settings)

    def close(self) -> None:
        """End the sending thread."""
        self._role.close()


class _Receiver:
    def __init__(self, node: BaseNode) -> None:
        self.latency: dict[str, list[float]] = {'joint state': [], 'image': []}
        node.create_subscription(Image, IMAGE, self._on_image, qos.SENSOR)
        node.create_subscription(JointState, SMALL, lambda m: self._count('joint state', m), qos.SENSOR)
        node.create_subscription(String, END, self._on_end, qos.EVENT)

    def _on_image(self, message: Image) -> None:
        image_from_msg(message)
        self._count('image', message)

    def _count(self, name: str, message: Image | JointState) -> None:
        self.latency[name].append((time.monotonic_ns() - stamp_from_msg(message.header.stamp)) * 1e-9)

    def _on_end(self, message: String) -> None:
        facts: dict[str, dict[str, Any]] = json.loads(message.data)
        for name, fact in facts.items():
            times = self.latency[name][WARM_UP:]
            fact['received'] = len(self.latency[name])
            if times:
                fact.update(p50=float(np.percentile(times, 50)), p99=float(np.percentile(times, 99)), max=max(times))
        print(json.dumps(facts), flush=True)
        rclpy.try_shutdown()

    def close(self) -> None:
        """Nothing runs."""


class _Sender:
    def __init__(self, node: BaseNode, settings: Transport) -> None:
        self._settings = settings
        self._image = node.create_publisher(Image, IMAGE, qos.SENSOR_PUBLISHER)
        self._small = node.create_publisher(JointState, SMALL, qos.SENSOR_PUBLISHER)
        self._end = node.create_publisher(String, END, qos.EVENT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='sender', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        try:
            self._send()
        except SetupError as err:
            print(f'error: {err}', file=sys.stderr, flush=True)
        finally:
            rclpy.try_shutdown()

    def _send(self) -> None:
        self._wait_for_receiver()
        size = (self._settings.height, self._settings.width, 3)
        picture = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        writer = ImageWriter('camera')
        message = JointState(name=list(JOINTS), position=[0.1] * len(JOINTS), velocity=[0.0] * len(JOINTS))

        def small() -> None:
            message.header.stamp = stamp_to_msg(time.monotonic_ns())
            self._small.publish(message)

        facts = {
            'joint state': {'rate': SMALL_RATE, 'sent': self._pace(SMALL_RATE, small)},
            'image': {
                'rate': IMAGE_RATE,
                'bytes': picture.nbytes,
                'sent': self._pace(IMAGE_RATE, lambda: self._image.publish(writer(picture, time.monotonic_ns()))),
            },
        }
        self._stop.wait(0.3)  # the last image is still on its way
        self._end.publish(String(data=json.dumps(facts)))
        self._end.wait_for_all_acked(Duration(seconds=5.0))

    def _wait_for_receiver(self) -> None:
        deadline = time.monotonic() + PATIENCE
        publishers: tuple[Publisher, ...] = (self._image, self._small, self._end)
        while not all(p.get_subscription_count() for p in publishers):
            if time.monotonic() > deadline:
                raise SetupError(f'no receiver within {PATIENCE:.0f} s')
            if self._stop.wait(0.05):
                return
        self._stop.wait(0.3)  # matched here does not yet mean matched there

    def _pace(self, rate: float, publish: Callable[[], None]) -> int:
        """Publish at ``rate`` [Hz] for the time of one kind; returns how often."""
        count, started = max(WARM_UP + 1, round(self._settings.seconds * rate)), time.monotonic()
        for k in range(count):
            if self._stop.wait(max(0.0, started + k / rate - time.monotonic())):
                return k
            publish()
        return count


def main(args: list[str] | None = None) -> int:
    """Run one role until it is done or a signal arrives; see :func:`runtime.run`."""
    return run(TransportNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
