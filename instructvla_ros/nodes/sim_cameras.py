"""The simulated cameras: a thread that draws snapshots of the world and publishes them like a camera driver.

Views nobody listens to are not drawn. When drawing is slower than the cameras' rate the oldest frame is dropped and
counted, so an image is never older than one drawing.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ..errors import ConfigError, SetupError, suggest
from ..settings import Embodiment, Sim
from ..sim.camera import CameraModel
from ..sim.render import CameraRig, Snapshot
from . import qos
from .convert import camera_info_to_msg, stamp_to_msg
from .convert_image import ImageWriter, compressed_to_msg
from .runtime import BaseNode

_COMPRESSED = '/compressed'
_START_TIMEOUT = 60.0  # the first drawing may have to compile the driver's shaders [s]


@dataclass(frozen=True)
class _Camera:
    raw: Any
    compressed: Any  # None when no JPEG is published
    info: Any
    info_message: CameraInfo
    writer: ImageWriter
    frame_id: str

    def wanted(self) -> bool:
        return self.pixels_wanted() or self.info.get_subscription_count() > 0

    def pixels_wanted(self) -> bool:
        return self.raw.get_subscription_count() > 0 or self.compressed_wanted()

    def compressed_wanted(self) -> bool:
        return self.compressed is not None and self.compressed.get_subscription_count() > 0


class Cameras:
    """Publishers of all views and the thread that feeds them.

    Args:
        models: camera model of each view, for CameraInfo. first: drawn once at start, to fail early.

    Raises:
        ConfigError: the embodiment has no topic for a view, or wants JPEG that is not made.
        SetupError: this machine cannot render.
    """

    def __init__(
        self, node: BaseNode, sim: Sim, embodiment: Embodiment, models: dict[str, CameraModel], first: Snapshot
    ) -> None:
        self._node = node
        self._sim = sim
        self._cameras = {c.view: self._advertise(c.view, embodiment, models[c.view]) for c in sim.cameras}
        self._next_due = dict.fromkeys(self._cameras, 0.0)
        self._period = {c.view: 1.0 / c.rate for c in sim.cameras}
        self._wake = threading.Condition()
        self._pending: tuple[Snapshot, int, list[str]] | None = None
        self._stopping = False
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(first,), name='cameras', daemon=True)
        self._thread.start()
        try:
            if not self._ready.wait(_START_TIMEOUT):
                raise SetupError(f'the first image was not drawn within {_START_TIMEOUT:.0f} s')
            if self._failure is not None:
                raise self._failure
        except BaseException:  # interrupted too
            self.close()
            raise

    def due(self, time_s: float) -> list[str]:
        """Views whose next frame is due at the simulated time [s] and that somebody listens to."""
        out = []
        for view, at in self._next_due.items():
            if time_s >= at - 1e-9:
                # Due times stay on their own grid; after a stall it starts again from now.
                late = time_s - at > 2.0 * self._period[view]
                self._next_due[view] = (time_s if late else at) + self._period[view]
                if self._cameras[view].wanted():
                    out.append(view)
        return out

    def submit(self, snapshot: Snapshot, stamp_ns: int, views: list[str]) -> None:
        """Draw and publish ``views`` of one instant soon."""
        with self._wake:
            if self._pending is not None:
                self._node.diagnostics.count('frames dropped', 'drawing is slower than the cameras')
            self._pending = (snapshot, stamp_ns, views)
            self._wake.notify()

    def close(self) -> None:
        """End the thread and free the OpenGL context."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=5.0)

    def _advertise(self, view: str, embodiment: Embodiment, model: CameraModel) -> _Camera:
        if view not in embodiment.views:
            raise ConfigError(
                f'simulated camera {view!r} is not a view of {embodiment.name}.{suggest(view, embodiment.views)}'
            )
        names = embodiment.views[view]
        topic = names.topic.removesuffix(_COMPRESSED)
        if topic != names.topic and self._sim.jpeg_quality == 0:
            raise ConfigError(f'view {view!r} is read from {names.topic}, but jpeg_quality is 0: set it to 90, say')
        node = self._node
        compressed = None
        if self._sim.jpeg_quality > 0:
            compressed = node.create_publisher(CompressedImage, topic + _COMPRESSED, qos.SENSOR_PUBLISHER)
        return _Camera(
            raw=node.create_publisher(Image, topic, qos.SENSOR_PUBLISHER),
            compressed=compressed,
            info=node.create_publisher(CameraInfo, names.info_topic, qos.SENSOR_PUBLISHER),
            info_message=camera_info_to_msg(model.K, model.width, model.height, names.frame_id, 0),
            writer=ImageWriter(names.frame_id),
            frame_id=names.frame_id,
        )

    def _run(self, first: Snapshot) -> None:
        rig = CameraRig(self._sim.cameras, self._sim.shadows)
        try:
            for view in self._cameras:
                rig.render(first, view)
        except Exception as err:  # handed to the constructor, which raises it
            self._failure = err
            return
        finally:
            self._ready.set()
        while True:
            with self._wake:
                while self._pending is None and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    break
                job, self._pending = self._pending, None
            for view in job[2]:
                try:
                    self._publish(rig, view, job[0], job[1])
                except Exception as err:  # one failed frame must not end the camera; it is warned about and counted
                    self._node.drop(f'frame of {view}', err)
        rig.close()

    def _publish(self, rig: CameraRig, view: str, snapshot: Snapshot, stamp_ns: int) -> None:
        camera = self._cameras[view]
        camera.info_message.header.stamp = stamp_to_msg(stamp_ns)
        camera.info.publish(camera.info_message)
        if not camera.pixels_wanted():
            return
        begin = time.monotonic()
        image = rig.render(snapshot, view)
        self._node.diagnostics.latency(f'render {view}', time.monotonic() - begin)
        if camera.raw.get_subscription_count() > 0:
            camera.raw.publish(camera.writer(image, stamp_ns))
        if camera.compressed_wanted():
            camera.compressed.publish(compressed_to_msg(image, stamp_ns, camera.frame_id, self._sim.jpeg_quality))
        self._node.diagnostics.tick(f'image {view}')
