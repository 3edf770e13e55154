"""Pictures to MP4 files that several episodes share, and back by time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..datatypes import Image
from ..errors import DataError, SetupError
from .lerobot import CHUNK_FILES, VIDEO_PATH, video_library

CODECS = {'h264': ('libx264', 18), 'av1': ('libsvtav1', 24)}
"""Name -> (encoder, quality: lower is better and larger)."""
KEYFRAMES = 2  # as in LeRobot: any frame is at most one frame from a key frame, so that random access is fast


class VideoSink:
    """Writes the frames of one camera, episode after episode; a new file begins when one is full.

    Args:
        folder: of the dataset. key: feature. fps: a frame every 1 / fps s. size: (width, height) [px].
        limit_mb: an episode that begins beyond this size begins a new file.
    """

    def __init__(
        self, folder: Path, key: str, fps: Fraction, size: tuple[int, int], codec: str, quality: int, limit_mb: float
    ) -> None:
        self.folder, self.key, self.fps, self.size = folder, key, fps, size
        self.codec, self.quality, self.limit = codec, quality, limit_mb * 2**20
        odd = size[0] % 2 or size[1] % 2
        if odd and codec == 'av1':
            raise DataError(f'{key}: {size[0]} x {size[1]} pixels cannot be stored as av1, which needs even sizes')
        # Chroma of half the resolution needs even sizes.
        self.pixels = 'yuv444p' if odd else 'yuv420p'
        self._number = -1
        self._frames = 0
        self._file: Path | None = None
        self._container: Any = None
        self._stream: Any = None

    def episode(self, images: Iterable[Image]) -> dict[str, int | float]:
        """Append an episode; returns chunk_index, file_index, from_timestamp and to_timestamp [s]."""
        if self._container is None or self._size() >= self.limit:
            self._next_file()
        start = self._frames
        av = video_library()
        for image in images:
            if image.shape[:2] != (self.size[1], self.size[0]):
                raise DataError(
                    f'{self.key}: a picture has {image.shape[1]} x {image.shape[0]} pixels, the dataset '
                    f'{self.size[0]} x {self.size[1]}'
                )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
            frame.pts, frame.time_base = self._frames, 1 / self.fps
            self._container.mux(self._stream.encode(frame))
            self._frames += 1
        return {
            'chunk_index': self._number // CHUNK_FILES,
            'file_index': self._number % CHUNK_FILES,
            'from_timestamp': float(start / self.fps),
            'to_timestamp': float(self._frames / self.fps),
        }

    def close(self) -> None:
        """Finish the file. Safe to call twice."""
        if self._container is not None:
            container, self._container = self._container, None
            try:
                container.mux(self._stream.encode(None))
            finally:
                container.close()

    def info(self) -> dict[str, Any]:
        """Description for the ``info`` of the feature."""
        rate = float(self.fps)
        return {
            'video.height': self.size[1], 'video.width': self.size[0], 'video.codec': self.codec,
            'video.pix_fmt': self.pixels, 'video.is_depth_map': False, 'is_depth_map': False,
            'video.fps': int(rate) if rate.is_integer() else rate, 'video.channels': 3, 'has_audio': False,
            'video.g': KEYFRAMES, 'video.crf': self.quality,
        }  # fmt: skip

    def _size(self) -> int:
        # The file appears when the encoder gives its first packet.
        return self._file.stat().st_size if self._file and self._file.exists() else 0

    def _next_file(self) -> None:
        self.close()
        self._number += 1
        self._frames = 0
        at = {'chunk_index': self._number // CHUNK_FILES, 'file_index': self._number % CHUNK_FILES}
        self._file = self.folder / VIDEO_PATH.format(video_key=self.key, **at)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        av = video_library()
        encoder = CODECS[self.codec][0]
        self._container = av.open(str(self._file), 'w')
        try:
            self._stream = self._container.add_stream(encoder, rate=self.fps)
        except (ValueError, av.FFmpegError) as err:  # UnknownCodecError is a ValueError
            raise SetupError(f'this build of av cannot encode {encoder} ({err}); one of: {", ".join(CODECS)}') from None
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = self.pixels
        self._stream.codec_context.gop_size = KEYFRAMES
        options = {'crf': str(self.quality), 'preset': 'veryfast'}
        if self.codec == 'av1':
            options['preset'] = '10'
            os.environ.setdefault('SVT_LOG', '1')  # errors only; the encoder writes a page per file otherwise
        self._stream.codec_context.options = options


def check_codec(codec: str, quality: int | None) -> tuple[str, int]:
    """Codec and quality; the codec's own quality for None.

    Raises:
        DataError: not one of CODECS, or a quality outside 0 .. 51.
    """
    if codec not in CODECS:
        raise DataError(f'video codec {codec!r}; allowed: {", ".join(CODECS)}')
    chosen = CODECS[codec][1] if quality is None else quality
    if not 0 <= chosen <= 51:
        raise DataError(f'video quality (CRF) {chosen}: 0 (exact) .. 51 is allowed')
    return codec, chosen


class VideoSource:
    """Reads frames of video files by time. Goes on where it stopped when the next time is ahead, else seeks."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._here: Any = None
        self._next: Any = None

    def frames(self, file: Path, times: Sequence[float], tolerance: float) -> Iterator[Image]:
        """The frame nearest to each of the times, which must not go back.

        Args:
            times: [s] in the file. tolerance: largest distance between wanted and found [s].

        Raises:
            DataError: the file is missing or damaged, or has no frame near a time.
        """
        av = video_library()
        try:
            if not len(times):
                return
            self._go_to(file, times[0])
            for time in times:
                while self._next is not None and abs(_time(self._next) - time) <= abs(_time(self._here) - time):
                    self._step()
                found = _time(self._here) if self._here is not None else None
                if found is None or abs(found - time) > tolerance:
                    near = 'none' if found is None else f'the nearest at {found:.3f} s'
                    raise DataError(f'{file} has no frame at {time:.3f} s, {near}; was the download complete?')
                yield self._here.to_ndarray(format='rgb24')
        except (av.FFmpegError, OSError) as err:
            self.close()
            raise DataError(f'{file} cannot be read as a video: {err}') from None

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._container is not None:
            self._container.close()
        self._file = self._container = self._here = self._next = None

    def _go_to(self, file: Path, time: float) -> None:
        if file != self._file:
            self.close()
            av = video_library()
            if not file.is_file():
                raise DataError(f'{file} is missing; was the download complete?')
            self._container = av.open(str(file))
            if not self._container.streams.video:
                raise DataError(f'{file} has no video in it')
            self._file = file
            self._container.streams.video[0].thread_type = 'AUTO'
            self._start()
            if time <= 1.0:
                return
        # Reading on is cheaper than a jump while the target is near.
        if self._here is not None and _time(self._here) <= time <= _time(self._here) + 1.0:
            return
        stream = self._container.streams.video[0]
        self._container.seek(max(0, int(time / stream.time_base) - 1), stream=stream)
        self._start()

    def _start(self) -> None:
        self._frames = (f for f in self._container.decode(video=0) if f.pts is not None)
        self._here = next(self._frames, None)
        self._next = next(self._frames, None)

    def _step(self) -> None:
        self._here, self._next = self._next, next(self._frames, None)


def _time(frame: Any) -> float:
    return float(frame.pts * frame.time_base)
