"""Raw camera buffers to uint8 RGB and back, in numpy (REP 118, sensor_msgs image encodings); no ROS, no OpenCV.

The results equal those of cv_bridge asked for ``rgb8``: 16-bit colours are scaled by 255/65535, bilinear demosaicing
and BT.601 rounding are OpenCV's, and encodings without a colour meaning (8UC3, 16UC1, 32FC1, ...) are refused.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .datatypes import Image
from .errors import ObservationError, suggest

# encoding -> (channels, numpy type, indices of R, G, B)
_PLAIN: dict[str, tuple[int, str, tuple[int, int, int]]] = {
    'rgb8': (3, 'u1', (0, 1, 2)),
    'bgr8': (3, 'u1', (2, 1, 0)),
    'rgba8': (4, 'u1', (0, 1, 2)),
    'bgra8': (4, 'u1', (2, 1, 0)),
    'mono8': (1, 'u1', (0, 0, 0)),
    'rgb16': (3, 'u2', (0, 1, 2)),
    'bgr16': (3, 'u2', (2, 1, 0)),
    'rgba16': (4, 'u2', (0, 1, 2)),
    'bgra16': (4, 'u2', (2, 1, 0)),
    'mono16': (1, 'u2', (0, 0, 0)),
}
# The name spells the upper left 2x2 block row by row.
_BAYER = {
    f'bayer_{p}{bits}': (p.upper(), f'u{bits // 8}') for p in ('rggb', 'bggr', 'gbrg', 'grbg') for bits in (8, 16)
}
# encoding -> positions of Y0, U, Y1, V in four bytes that hold two pixels
_YUV = {
    'yuv422': (1, 0, 3, 2),
    'uyvy': (1, 0, 3, 2),
    'yuv422_yuy2': (0, 1, 2, 3),
    'yuyv': (0, 1, 2, 3),
}
COLOR_ENCODINGS: tuple[str, ...] = (*_PLAIN, *_BAYER, *_YUV)
"""Every encoding :func:`to_rgb` understands."""
_MAX_PIXELS = 2**27  # 134 million; beyond that a header is broken, not a camera
MAX_DECODED = 64_000_000
"""Pixels of a compressed picture from which it counts as made to exhaust memory."""


def to_rgb(
    data: Any, height: int, width: int, step: int, encoding: str, bigendian: bool = False
) -> Image:
    """Colour image (height, width, 3) uint8 RGB of a raw buffer; rgb8 may share its memory.

    Args:
        data: any buffer of bytes. step: bytes from one row to the next, padding included.
        encoding: as in sensor_msgs/Image. bigendian: byte order of 16-bit samples.

    Raises:
        ObservationError: size and buffer do not fit together (with the numbers), or the encoding holds no colours.
    """
    if encoding in _PLAIN:
        channels, kind, order = _PLAIN[encoding]
        pixels = _samples(data, height, width, step, channels, kind, bigendian, encoding)
        if kind == 'u2':
            pixels = to_8_bit(pixels)
        if order == (0, 1, 2):
            return np.ascontiguousarray(pixels[..., :3])
        return np.ascontiguousarray(pixels[..., list(order)])
    if encoding in _BAYER:
        pattern, kind = _BAYER[encoding]
        mosaic = _samples(data, height, width, step, 1, kind, bigendian, encoding)[..., 0]
        rgb = demosaic(mosaic, pattern)
        return rgb if kind == 'u1' else to_8_bit(rgb)
    if encoding in _YUV:
        if width % 2:
            raise ObservationError(f'{encoding} image: width must be even, got {width}')
        pairs = _samples(data, height, width, step, 2, 'u1', bigendian, encoding).reshape(height, width // 2, 4)
        return _yuv_to_rgb(pairs, _YUV[encoding])
    raise ObservationError(f'image encoding {encoding!r} has no colour meaning here.{_hint(encoding)}')


def check_layout(size: int, height: int, width: int, step: int, row_bytes: int, encoding: str) -> None:
    """Refuse a header that does not fit its buffer.

    Args:
        size: bytes in the buffer. row_bytes: bytes of one row without padding.

    Raises:
        ObservationError: with the numbers.
    """
    if height <= 0 or width <= 0 or height * width > _MAX_PIXELS:
        raise ObservationError(f'{encoding} image: impossible size {width} x {height}')
    if step < row_bytes:
        raise ObservationError(
            f'{encoding} image: step {step} is too small, {width} pixels need {row_bytes} bytes per row'
        )
    if size < height * step:
        raise ObservationError(
            f'{encoding} image: {size} bytes of data, {height} rows of step {step} need {height * step}'
        )


def to_8_bit(samples: NDArray[np.uint16]) -> Image:
    """16-bit samples scaled to 8 bit: round(v * 255 / 65535)."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def demosaic(mosaic: NDArray[Any], pattern: str) -> NDArray[Any]:
    """Bilinear demosaicing (H, W) -> (H, W, 3) RGB of the same type, border pixels copied from their neighbours.

    Args:
        pattern: colours of the upper left 2x2 block row by row, for example 'RGGB'.

    Raises:
        ObservationError: smaller than 3 x 3.
    """
    height, width = mosaic.shape
    if height < 3 or width < 3:
        raise ObservationError(f'bayer image: at least 3 x 3 pixels are needed, got {width} x {height}')
    m = mosaic.astype(np.int32)
    centre = m[1:-1, 1:-1]
    horizontal = m[1:-1, :-2] + m[1:-1, 2:]
    vertical = m[:-2, 1:-1] + m[2:, 1:-1]
    diagonal = (m[:-2, :-2] + m[:-2, 2:] + m[2:, :-2] + m[2:, 2:] + 2) >> 2
    cross = (horizontal + vertical + 2) >> 2
    horizontal, vertical = (horizontal + 1) >> 1, (vertical + 1) >> 1
    out = np.empty((height - 2, width - 2, 3), dtype=mosaic.dtype)
    for row in (0, 1):
        for column in (0, 1):
            # The inner image starts at (1, 1), so its parity is shifted by one.
            at = np.s_[(row + 1) % 2 :: 2, (column + 1) % 2 :: 2]
            colour = pattern[2 * row + column]
            if colour == 'G':
                in_row = pattern[2 * row + 1 - column]  # R or B, whichever shares the row
                red, blue = (horizontal, vertical) if in_row == 'R' else (vertical, horizontal)
                planes = (red, centre, blue)
            else:
                planes = (centre, cross, diagonal) if colour == 'R' else (diagonal, cross, centre)
            for k, plane in enumerate(planes):
                out[at + (k,)] = plane[at]
    return np.pad(out, ((1, 1), (1, 1), (0, 0)), mode='edge')


def decode(data: Any, format_: str = '') -> Image:
    """Colour image (H, W, 3) uint8 RGB of JPEG or PNG bytes, recognised by content.

    Args:
        format_: the field of sensor_msgs/CompressedImage, used to refuse depth images by name.

    Raises:
        ObservationError: not an image, depth, or of more than :data:`MAX_DECODED` pixels.
    """
    from PIL import Image as Pillow

    if 'compressedDepth' in format_ or format_.startswith(('16UC1', '32FC1')):
        raise ObservationError(f'compressed image of format {format_!r} is depth, a colour image is needed')
    try:
        with Pillow.open(io.BytesIO(bytes(data)), formats=('JPEG', 'PNG')) as image:
            if image.mode.startswith(('I', 'F')):
                raise ObservationError(f'compressed image with {image.mode} samples is depth, not colours')
            if image.width * image.height > MAX_DECODED:
                raise ObservationError(
                    f'compressed image of {image.width} x {image.height} pixels, allowed are {MAX_DECODED}'
                )
            # Pillow copies the picture in converting it to what it is already.
            return np.array(image if image.mode == 'RGB' else image.convert('RGB'))
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as err:
        raise ObservationError(
            f'compressed image of format {format_!r} ({len(data)} bytes) cannot be decoded: {err}'
        ) from None


def encode_jpeg(rgb: Image, quality: int) -> bytes:
    """JPEG bytes of an (H, W, 3) uint8 RGB image; quality 1 .. 95."""
    from PIL import Image as Pillow

    out = io.BytesIO()
    Pillow.fromarray(rgb).save(out, format='JPEG', quality=min(quality, 95))
    return out.getvalue()


def _samples(
    data: Any, height: int, width: int, step: int, channels: int, kind: str, bigendian: bool, encoding: str
) -> NDArray[Any]:
    raw = np.frombuffer(data, dtype=np.uint8)
    itemsize = int(kind[1])
    row_bytes = width * channels * itemsize
    check_layout(raw.size, height, width, step, row_bytes, encoding)
    rows = raw[: height * step].reshape(height, step)[:, :row_bytes]
    if itemsize > 1:
        rows = np.ascontiguousarray(rows).view(np.dtype(kind).newbyteorder('>' if bigendian else '<'))
        rows = rows.astype(kind, copy=False)
    return rows.reshape(height, width, channels)


def _yuv_to_rgb(pairs: NDArray[np.uint8], order: tuple[int, int, int, int]) -> Image:
    # BT.601 limited range in 20-bit fixed point, rounded as OpenCV does.
    y0, u, y1, v = (pairs[..., k].astype(np.int32) for k in order)
    u, v = u - 128, v - 128
    half = 1 << 19
    colour = np.stack([half + 1673527 * v, half - 852492 * v - 409993 * u, half + 2116026 * u], axis=-1)
    out = np.empty((*y0.shape, 2, 3), dtype=np.uint8)
    for k, y in enumerate((y0, y1)):
        light = np.maximum(y - 16, 0) * 1220542
        out[..., k, :] = np.clip((light[..., None] + colour) >> 20, 0, 255)
    return out.reshape(y0.shape[0], -1, 3)


def _hint(encoding: str) -> str:
    if encoding.startswith(('16UC', '32FC', '16SC', '64FC', '32SC')) or encoding in ('16UC1', '32FC1'):
        return f' It looks like depth or raw numbers; take the colour topic. Allowed: {", ".join(COLOR_ENCODINGS)}.'
    return suggest(encoding, COLOR_ENCODINGS)
