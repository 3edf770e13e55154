"""The two image transforms, the same in training and on the robot (specification 2).

The reference resizes with Pillow. ``quick`` takes the bicubic of torch instead, the same filter with weights of 15
bits for 22: up to two grey levels of 255 beside it, most values equal, in a fifth of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from ..datatypes import Image
from ..errors import ObservationError

Floats = NDArray[np.float32]
DINO_CROP = 0.875
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def check_image(image: Image, name: str = 'image') -> Image:
    """Return ``image`` when it is uint8 RGB (H, W, 3).

    Raises:
        ObservationError: another dtype or shape.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise ObservationError(f'{name} must be uint8 RGB (H, W, 3), got {kind}')
    if min(image.shape[:2]) < 2:
        raise ObservationError(f'{name} is too small: {image.shape[1]} x {image.shape[0]} px')
    return image


def join_views(views: Sequence[Image]) -> Image:
    """Views side by side, (H, W1 + W2 + ..., 3): the single image the VLM sees.

    Raises:
        ObservationError: the heights differ.
    """
    heights = {v.shape[0] for v in views}
    if len(heights) != 1:
        raise ObservationError(
            f'views must have one height to be joined, got {sorted(heights)} px; resize the cameras to one height'
        )
    return views[0] if len(views) == 1 else np.concatenate(list(views), axis=1)


def bicubic(image: Image, width: int, height: int, quick: bool = False) -> Image:
    """(height, width, 3) uint8, with antialiasing."""
    if not quick:
        return np.asarray(PilImage.fromarray(image).resize((width, height), PilImage.Resampling.BICUBIC))
    import torch  # who only resizes exactly needs none

    # Torch warns of memory that it may not write, such as that of a message.
    planes = torch.from_numpy(np.require(image, requirements=['C', 'W'])).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(planes, (height, width), mode='bicubic', antialias=True)
    return np.asarray(small[0].permute(1, 2, 0).numpy())


def siglip_square(image: Image, size: int, quick: bool = False) -> Image:
    """(size, size, 3) uint8: squashed."""
    return bicubic(check_image(image), size, size, quick)


def siglip_scale(pixels: NDArray[np.uint8]) -> Floats:
    """(..., S, S, 3) uint8 -> (..., 3, S, S) float32 in [-1, 1]."""
    scaled = np.moveaxis(pixels, -1, -3).astype(np.float32) / np.float32(255.0)
    return np.ascontiguousarray((scaled - np.float32(0.5)) / np.float32(0.5))


def siglip_pixels(image: Image, size: int, quick: bool = False) -> Floats:
    """(3, size, size) float32: squashed, scaled to [-1, 1]."""
    return siglip_scale(siglip_square(image, size, quick))


def dino_place(width: int, height: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) a picture is resized to, and (left, top) of the crop, [px]: shorter side floor(size / 0.875)."""
    short = math.floor(size / DINO_CROP)
    new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    return new, (round((new[0] - size) / 2.0), round((new[1] - size) / 2.0))  # round half to even


def dino_square(image: Image, size: int, quick: bool = False) -> Image:
    """(size, size, 3) uint8: shorter side to floor(size / 0.875), centre crop."""
    height, width = check_image(image).shape[:2]
    new, (left, top) = dino_place(width, height, size)
    return bicubic(image, *new, quick)[top : top + size, left : left + size]


def dino_scale(pixels: NDArray[np.uint8]) -> Floats:
    """(..., S, S, 3) uint8 -> (..., 3, S, S) float32 with ImageNet mean and deviation."""
    scaled = (pixels.astype(np.float32) / np.float32(255.0) - IMAGENET_MEAN) / IMAGENET_STD
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def dino_pixels(image: Image, size: int, quick: bool = False) -> Floats:
    """(3, size, size) float32: shorter side to floor(size / 0.875), centre crop, ImageNet scaling."""
    return dino_scale(dino_square(image, size, quick))
