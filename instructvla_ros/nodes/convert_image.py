"""sensor_msgs images <-> uint8 RGB arrays.

cv_bridge does the demosaicing and YUV conversion when it can be imported, because it is faster; without it
:mod:`instructvla_ros.imaging` gives the same pixels.
"""

from __future__ import annotations

import array
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image as ImageMsg

from .. import decoding, imaging
from ..datatypes import Image
from ..decoding import compressed_from_msg as compressed_from_msg
from ..errors import ObservationError
from .convert import stamp_to_msg

try:
    from cv_bridge import CvBridge

    _bridge: Any = CvBridge()
except Exception:  # absent, or built against another NumPy: both mean that our converter does the work
    _bridge = None

_FASTER_WITH_BRIDGE = ('bayer_', 'yuv422')


def image_from_msg(message: ImageMsg) -> Image:
    """Colour image (H, W, 3) uint8 RGB; plain rgb8 shares the memory of the message.

    Raises:
        ObservationError: size, step and data do not fit together, or the encoding holds no colours.
    """
    encoding = message.encoding
    if _bridge is not None and encoding.startswith(_FASTER_WITH_BRIDGE) and encoding in imaging.COLOR_ENCODINGS:
        # cv_bridge trusts the header: a wrong step would read past the buffer.
        row_bytes = message.width * (2 if encoding.startswith('yuv') or encoding.endswith('16') else 1)
        imaging.check_layout(len(message.data), message.height, message.width, message.step, row_bytes, encoding)
        return np.asarray(_bridge.imgmsg_to_cv2(message, 'rgb8'))
    return decoding.image_from_msg(message)


def compressed_to_msg(rgb: Image, stamp_ns: int, frame_id: str, quality: int) -> CompressedImage:
    """JPEG message of an (H, W, 3) uint8 RGB image."""
    message = CompressedImage(format='rgb8; jpeg compressed bgr8')
    message.header.stamp = stamp_to_msg(stamp_ns)
    message.header.frame_id = frame_id
    message.data = array.array('B', imaging.encode_jpeg(rgb, quality))
    return message


class ImageWriter:
    """Fills one reused sensor_msgs/Image from arrays, without a Python loop over bytes.

    The message is overwritten by the next call: publish it before.
    """

    def __init__(self, frame_id: str) -> None:
        """Write images of the optical frame ``frame_id``."""
        self._message = ImageMsg(encoding='rgb8', is_bigendian=0)
        self._message.header.frame_id = frame_id
        self._view = np.empty((0, 0, 3), dtype=np.uint8)

    def __call__(self, rgb: Image, stamp_ns: int) -> ImageMsg:
        """Message of an (H, W, 3) uint8 RGB image.

        Raises:
            ObservationError: not uint8 RGB.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            raise ObservationError(f'image must be uint8 RGB (H, W, 3), got {rgb.dtype} {rgb.shape}')
        if rgb.shape != self._view.shape:
            # rclpy copies an array.array at memory speed, an ndarray element by element (56 ms for 640 x 480).
            self._message.height, self._message.width = rgb.shape[:2]
            self._message.step = rgb.shape[1] * 3
            self._message.data = array.array('B', bytes(rgb.size))
            # The message may keep a copy of what it was given: write into what it holds.
            self._view = np.frombuffer(self._message.data, dtype=np.uint8).reshape(rgb.shape)
        np.copyto(self._view, rgb)
        self._message.header.stamp = stamp_to_msg(stamp_ns)
        return self._message


def image_to_msg(rgb: Image, stamp_ns: int, frame_id: str) -> ImageMsg:
    """New sensor_msgs/Image (rgb8) of an (H, W, 3) uint8 RGB image."""
    return ImageWriter(frame_id)(rgb, stamp_ns)
