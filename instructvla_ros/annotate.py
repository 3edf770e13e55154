"""Draws a sentence and the path of a chunk into a camera image with Pillow; no ROS."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from .datatypes import Image
from .geometry import Array, inverse
from .visual import CLOSED, OPEN, time_colors, wrap

NEAREST = 0.02  # m in front of the camera; nearer points are not drawn


def project(points: Array, intrinsics: Array, camera: Array) -> Array:
    """Pixels (N, 2) of points (N, 3) [m] in the base frame; NaN for points behind the camera.

    Args:
        intrinsics: (3, 3) pinhole matrix [px]; distortion is not modelled.
        camera: T_base_optical (4, 4) (REP 103: x right, y down, z forward).
    """
    to_camera = inverse(camera)
    seen = points @ to_camera[:3, :3].T + to_camera[:3, 3]
    depth = seen[:, 2]
    front = depth > NEAREST
    out = np.full((len(points), 2), np.nan)
    rays = seen[front] / depth[front, None]
    out[front] = (rays @ intrinsics.T)[:, :2]
    return out


def annotate(
    image: Image, sentence: str, small: str = '', pixels: Array | None = None, openness: Array | None = None
) -> Image:
    """(H + B, W, 3) uint8 RGB: an (H, W, 3) image with a path drawn in and a caption of constant height B below it.

    Args:
        sentence: what the model says. small: line below it (ids, remarks).
        pixels: (N, 2) path from now (blue) to its end (yellow); NaN interrupts it.
        openness: (N,) gripper 0 closed .. 1 open at these points, drawn as the colour of their rims.
    """
    height, width = image.shape[:2]
    size = max(9, height // 26)
    below = 5 * size + size // 2  # three lines and a small one
    seen = Pillow.fromarray(np.asarray(image)).convert('RGB')
    if pixels is not None:
        _draw_path(ImageDraw.Draw(seen), pixels, openness, max(2, width // 200))
    canvas = Pillow.new('RGB', (width, height + below), (24, 24, 24))
    canvas.paste(seen, (0, 0))
    _draw_caption(ImageDraw.Draw(canvas), sentence, small, width, height, size)
    return np.asarray(canvas)


def _draw_path(draw: ImageDraw.ImageDraw, pixels: Array, openness: Array | None, thick: int) -> None:
    colors = [tuple(int(255 * v) for v in c[:3]) for c in time_colors(len(pixels))]
    # Pillow's coordinates are 32-bit; a point far outside the image would overflow them.
    usable = np.all(np.isfinite(pixels), axis=1) & np.all(np.abs(np.nan_to_num(pixels)) < 1e5, axis=1)
    for k in range(len(pixels) - 1):
        if usable[k] and usable[k + 1]:
            draw.line([tuple(pixels[k]), tuple(pixels[k + 1])], fill=colors[k], width=thick)
    for k in np.flatnonzero(usable).tolist():
        (x, y), radius = pixels[k], 1.5 * thick
        rim = colors[k]
        if openness is not None:
            share = float(np.clip(np.nan_to_num(openness[k]), 0.0, 1.0))
            mixed = share * np.array(OPEN) + (1.0 - share) * np.array(CLOSED)
            rim = tuple(int(255 * v) for v in mixed)
        box = [x - radius, y - radius, x + radius, y + radius]
        draw.ellipse(box, fill=colors[k], outline=rim, width=thick // 2 + 1)


def _draw_caption(draw: ImageDraw.ImageDraw, sentence: str, small: str, width: int, top: int, size: int) -> None:
    little = max(8, int(size * 0.7))
    margin = size // 2
    y = top + size // 3
    for text, tall, most, color in ((sentence, size, 3, (255, 255, 255)), (small, little, 1, (170, 185, 200))):
        font = _font(tall)
        for line in _fit(draw, text, font, width - 2 * margin, most):
            draw.text((margin, y), line, font=font, fill=color)
            y += int(1.3 * tall)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: Any, room: int, most: int) -> list[str]:
    if not text.strip():
        return []
    typical = max(draw.textlength('abcdefghij klmnop', font=font) / 17, 1.0)
    columns = max(int(room / typical), 8)
    lines = wrap(text, columns, most)
    while columns > 8 and any(draw.textlength(_plain(line), font=font) > room for line in lines):
        columns -= max(columns // 10, 1)
        lines = wrap(text, columns, most)
    return [_plain(line) for line in lines]


def _plain(text: str) -> str:
    if isinstance(_font(12), ImageFont.FreeTypeFont):
        return text
    return text.encode('latin-1', 'replace').decode('latin-1')


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # before Pillow 10.1, or built without FreeType: one size, Latin-1 only
        return ImageFont.load_default()
