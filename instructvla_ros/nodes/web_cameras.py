"""Pictures for the operator's page: each view with the predicted path drawn in, as JPEG, at a bounded rate."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image as Pillow
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ..annotate import annotate, project
from ..datatypes import Image as Rgb
from ..operator_page.desk import Desk
from ..settings import View, Web
from . import qos
from .convert import intrinsics_from_msg, stamp_from_msg
from .convert_image import compressed_from_msg, image_from_msg
from .runtime import BaseNode

Show = Callable[[str, dict[str, Any], bytes], None]


class Camera:
    """One view; listens only between :meth:`open` and :meth:`close`.

    Args:
        show: called with the view's name, the content of the message and the JPEG, on an executor thread.
    """

    def __init__(self, node: BaseNode, name: str, view: View, web: Web, desk: Desk, show: Show) -> None:
        self._node, self._name, self._view, self._web, self._desk, self._show = node, name, view, web, desk, show
        self._kind: type = CompressedImage if view.topic.endswith('/compressed') else Image
        self._group = MutuallyExclusiveCallbackGroup()
        self._subscriptions: list[Any] = []
        self._intrinsics: tuple[Any, int, int] | None = None
        self._next = 0.0

    def open(self) -> None:
        """Begin to listen."""
        if self._subscriptions:
            return
        # Pictures come as bytes: most are dropped, and unpacking a megabyte keeps every other thread waiting.
        for message, topic, callback, raw in (
            (CameraInfo, self._view.info_topic, self._on_info, False),
            (self._kind, self._view.topic, self._on_image, True),
        ):
            if topic:
                guarded = self._node.guard(f'view {self._name}', callback)
                self._subscriptions.append(
                    self._node.create_subscription(
                        message, topic, guarded, qos.SENSOR, callback_group=self._group, raw=raw
                    )
                )

    def close(self) -> None:
        """Stop listening."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _on_info(self, message: CameraInfo) -> None:
        self._intrinsics = intrinsics_from_msg(message)

    def _on_image(self, packed_message: bytes) -> None:
        arrived = time.monotonic()
        if arrived < self._next:
            return
        message = deserialize_message(packed_message, self._kind)
        self._next = arrived + 1.0 / self._web.image_rate
        lag = (self._node.now_ns() - stamp_from_msg(message.header.stamp)) * 1e-9
        rgb = compressed_from_msg(message) if isinstance(message, CompressedImage) else image_from_msg(message)
        mounted = self._view.frame_id if self._view.mount.link else ''
        drawn, problem = self._drawn(rgb, mounted or message.header.frame_id or self._view.frame_id)
        picture = Pillow.fromarray(drawn)
        if picture.width > self._web.image_width:
            size = (self._web.image_width, max(1, round(picture.height * self._web.image_width / picture.width)))
            picture = picture.resize(size, Pillow.Resampling.BILINEAR)
        packed = io.BytesIO()
        picture.save(packed, 'JPEG', quality=self._web.image_quality)
        note = f'{rgb.shape[1]} x {rgb.shape[0]}, {1e3 * lag:.0f} ms after its stamp'
        # What was old when it came does not become new by coming.
        age = max(lag, 0.0) + time.monotonic() - arrived
        content = {'view': self._name, 'age': age, 'note': f'{note}; {problem}' if problem else note}
        self._show(self._name, content, packed.getvalue())
        took = time.monotonic() - arrived
        # On a machine that is slow at this, words and STOP share the interpreter with it: rest as long as it took.
        self._next = max(self._next, arrived + 2.0 * took)
        self._node.diagnostics.latency('picture', took)

    def _drawn(self, rgb: Rgb, frame_id: str) -> tuple[Rgb, str]:
        """The picture with the predicted path, and why the path is not drawn."""
        prediction = self._desk.prediction()
        if prediction is None:
            return rgb, ''
        if self._intrinsics is None:
            return rgb, f'no path: no camera info on {self._view.info_topic or "any topic"}'
        k, width, height = self._intrinsics
        if (width, height) != (rgb.shape[1], rgb.shape[0]):
            return rgb, f'no path: the camera info is for {width} x {height}'
        camera = self._desk.camera(frame_id)
        if isinstance(camera, str):
            return rgb, f'no path: {camera}'
        chunk, path = prediction
        pixels = project(path[:, :3, 3], k, camera)
        openness = np.concatenate([chunk.steps[:1, 6], chunk.steps[: len(path) - 1, 6]])
        return annotate(rgb, '', '', pixels, openness)[: rgb.shape[0]], ''  # the page has the words elsewhere
