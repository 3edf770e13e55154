"""The video of a replay: what the policy saw, where it wanted to go, and where the arm really went.

A picture is held back until the recording has passed the end of its chunk, so that both ways can be drawn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from ..annotate import annotate, project
from ..datatypes import ActionChunk, Image, Observation, Reasoning
from ..errors import SetupError
from ..geometry import Array, integrate
from ..settings import Embodiment
from .replay_camera import Calibration, Cameras
from .replay_source import Event, StateEvent
from .video import VideoError, VideoWriter

WIDEST, LEAST_WIDE = 640, 360  # px per view
MOST_HELD = 64
AHEAD = 20  # pictures that may wait for the encoder
WHITE, DARK = (255, 255, 255), (20, 20, 24)


Views = dict[str, tuple[Image, Array | None, Array | None]]
"""View -> image, intrinsics or None, T_base_optical or None."""


@dataclass(frozen=True)
class _Held:
    """A picture that waits for its future."""

    stamp_ns: int
    end_ns: int
    views: Views
    chunk: ActionChunk
    sentence: str


class Pictures:
    """Makes the video while a replay runs, as its :class:`~.replay.Witness`."""

    def __init__(
        self,
        embodiment: Embodiment,
        forward: Callable[[Array], Array],
        file: Path,
        calibration: Calibration | None = None,
    ) -> None:
        self._views = tuple(embodiment.views)
        self._forward = forward
        self._cameras = Cameras(embodiment, calibration)
        self._file = file
        self._video: VideoWriter | None = None
        self._rate = 0.0
        self._last_ns = 0
        self._seen: deque[tuple[int, Views]] = deque()  # without a chunk so far
        self._held: deque[_Held] = deque()
        self._way: deque[tuple[int, Array]] = deque()
        self._drawn: set[str] = set()

    def watch(self, event: Event) -> None:
        """Take an event of the recording."""
        self._cameras.take(event)
        if isinstance(event, StateEvent):
            pose = event.pose if event.pose is not None else self._forward(event.state.q)
            self._way.append((event.stamp_ns, pose[:3, 3]))
            while self._held and event.stamp_ns > self._held[0].end_ns:
                self._draw(self._held.popleft())
            first = [h.stamp_ns for h in self._held] or [stamp for stamp, _ in self._seen] or [event.stamp_ns]
            oldest = first[0]
            while self._way and self._way[0][0] < oldest - 100_000_000:
                self._way.popleft()

    def glance(self, seen: Observation) -> None:
        """Take an observation, with the cameras where they are now."""
        views = {}
        for name in self._views:
            if name in seen.views:
                image = _fitting(seen.views[name])
                height, width = image.shape[:2]
                views[name] = (image, self._cameras.intrinsics(name, width, height), self._cameras.pose(name))
        self._seen.append((seen.stamp_ns, views))

    def look(self, seen: Observation, chunk: ActionChunk, said: Reasoning | None) -> None:
        """Take the chunk of the oldest observation that has none."""
        _, views = self._seen.popleft()
        if not views:
            return
        end = seen.stamp_ns + round(chunk.duration * 1e9)
        self._held.append(_Held(seen.stamp_ns, end, views, chunk, said.text if said is not None else ''))
        if self._rate == 0.0 and self._last_ns:
            self._rate = float(np.clip(1e9 / max(seen.stamp_ns - self._last_ns, 1), 1.0, 30.0))
        self._last_ns = seen.stamp_ns
        if len(self._held) > MOST_HELD:
            self._draw(self._held.popleft())

    def close(self) -> dict[str, Any]:
        """Finish the file; what ``RunLog.video`` holds, with the views that show a path, or ``{'error': why}``."""
        try:
            while self._held:
                self._draw(self._held.popleft())
            if self._video is None:
                return {}
            out = self._video.close()
        except (VideoError, SetupError) as err:
            return {'error': str(err)}
        return {**out, 'drawn': sorted(self._drawn)} if out else {}

    def _draw(self, held: _Held) -> None:
        if self._video is None:
            self._video = VideoWriter(self._file, [v for v in self._views if v in held.views], self._rate or 5.0)
        chunk = held.chunk
        ahead = integrate(chunk.reference_pose, np.nan_to_num(chunk.steps), chunk.delta_frame, chunk.rotation)
        points = np.vstack([chunk.reference_pose[None, :3, 3], ahead[:, :3, 3]])
        openness = np.concatenate([chunk.steps[:1, 6], chunk.steps[:, 6]])
        way = np.array([xyz for stamp, xyz in self._way if held.stamp_ns <= stamp <= held.end_ns])
        # The first view sets the pace of the video: it comes last.
        for k, (name, (image, matrix, camera)) in reversed(list(enumerate(held.views.items()))):
            pixels = None
            if matrix is not None and camera is not None:
                pixels = project(points, matrix, camera)
                image = _with_way(image, project(way, matrix, camera) if len(way) > 1 else None)
                self._drawn.add(name)
            small = 'predicted: blue to yellow, recorded: white' if k == 0 and pixels is not None else ''
            picture = annotate(image, held.sentence if k == 0 else '', small, pixels, openness)
            while self._video.waiting > AHEAD:
                time.sleep(0.002)  # nobody waits for a replay: rather wait for the encoder than lose pictures
            self._video.add(name, held.stamp_ns, picture)


def _fitting(image: Image) -> Image:
    """At most :data:`WIDEST` pixels wide; small ones enlarged, because path and words are drawn into them."""
    width = image.shape[1]
    if LEAST_WIDE <= width <= WIDEST:
        return image
    wide = WIDEST if width > WIDEST else width * int(np.ceil(LEAST_WIDE / width))
    size = (wide, round(image.shape[0] * wide / width))
    return np.asarray(Pillow.fromarray(np.asarray(image)).resize(size, Pillow.Resampling.BILINEAR))


def _with_way(image: Image, pixels: Array | None) -> Image:
    if pixels is None:
        return image
    canvas = Pillow.fromarray(np.asarray(image)).convert('RGB')
    draw = ImageDraw.Draw(canvas)
    thick = max(2, image.shape[1] // 200)
    # Pillow's coordinates are 32-bit; a point far outside the image would overflow them.
    good = np.asarray(np.isfinite(pixels).all(axis=1) & (np.abs(np.nan_to_num(pixels)) < 1e5).all(axis=1))
    for color, width in ((DARK, thick + 2), (WHITE, thick)):
        for k in range(len(pixels) - 1):
            if good[k] and good[k + 1]:
                draw.line([tuple(pixels[k]), tuple(pixels[k + 1])], fill=color, width=width)
    return np.asarray(canvas)
