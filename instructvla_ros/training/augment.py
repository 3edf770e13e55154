"""Augmentation of the resized pictures: light and colour; the crop of the released recipe by choice (spec. 9.4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def augment(joined: Pictures, views: Pictures, kind: str, rng: np.random.Generator) -> tuple[Pictures, Pictures]:
    """Change brightness (0.2), contrast and saturation (0.8 .. 1.2) of every sample, alike in all its pictures.

    Args:
        joined: (B, S, S, 3). views: (B, V, S', S', 3).
        kind: 'none', or 'color'. 'full' also crops 90 % of the area; the crop is the same in all pictures of a
            sample, and labels of places must not be used with it.
    """
    if kind == 'none':
        return joined, views
    out_joined, out_views = np.empty_like(joined), np.empty_like(views)
    for b in range(len(joined)):
        brightness, contrast, saturation = 1.0 + rng.uniform(-0.2, 0.2, 3)
        offset = rng.uniform(0.0, 1.0, 2) if kind == 'full' else None
        out_joined[b] = _change(joined[b], brightness, contrast, saturation, offset)
        for v in range(views.shape[1]):
            out_views[b, v] = _change(views[b, v], brightness, contrast, saturation, offset)
    return out_joined, out_views


def _change(
    picture: Pictures, brightness: float, contrast: float, saturation: float, offset: NDArray[np.float64] | None
) -> Pictures:
    x = picture.astype(np.float32)
    if offset is not None:
        x = _crop(x, offset)
    mean = float((x @ _GREY).mean())
    grey = (x @ _GREY)[..., None]
    # Brightness, contrast about the mean, saturation about the grey of each pixel: one affine map.
    lit = brightness * (saturation * x + (1.0 - saturation) * grey)
    sharp = contrast * lit + (1.0 - contrast) * brightness * mean
    return np.asarray(np.clip(sharp + 0.5, 0.0, 255.0), np.uint8)


def _crop(x: NDArray[np.float32], offset: NDArray[np.float64]) -> NDArray[np.float32]:
    from PIL import Image as PilImage

    h, w = x.shape[:2]
    side = 0.9**0.5
    left, top = offset * (1.0 - side) * (w, h)
    box = (float(left), float(top), float(left + side * w), float(top + side * h))
    picture = PilImage.fromarray(x.astype(np.uint8)).resize((w, h), PilImage.Resampling.BILINEAR, box=box)
    return np.asarray(picture, np.float32)
