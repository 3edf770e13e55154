"""Camera frames to an H.264 file that every browser plays, encoded beside the caller.

The encoder is the ffmpeg program of ``imageio-ffmpeg``, fed by a thread from a short queue: whoever records is never
held up, and frames that the machine cannot encode in time are dropped and counted.
"""

from __future__ import annotations

import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datatypes import Image
from ..errors import InstructVLAError, SetupError

QUEUE = 45  # frames that may wait


class VideoError(InstructVLAError):
    """The encoder failed."""


class VideoWriter:
    """Writes the views side by side, on the time of the header stamps.

    The first view sets the pace: each of its frames makes one picture together with the newest frame of every other
    view. Gaps are filled by repeating the last picture so that video time stays real time.

    Args:
        file: target, replaced. views: names, left to right. rate: pictures per second.
    """

    def __init__(self, file: str | Path, views: Sequence[str], rate: float = 15.0):
        self._file = Path(file)
        self._views = tuple(views)
        self._rate = rate
        self._queue: queue.Queue[tuple[int, str, Image] | None] = queue.Queue(QUEUE)
        self._newest: dict[str, Image] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._messages = tempfile.TemporaryFile()
        self._size = (0, 0)
        self._failure = ''
        self.start_ns = 0
        self.frames = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name='video', daemon=True)
        self._thread.start()

    def add(self, view: str, stamp_ns: int, image: Image) -> None:
        """Take one frame (H, W, 3) uint8 RGB; returns at once. The image must not change afterwards."""
        try:
            self._queue.put_nowait((stamp_ns, view, image))
        except queue.Full:
            self.dropped += 1

    @property
    def waiting(self) -> int:
        """Frames that are not encoded yet."""
        return self._queue.qsize()

    def close(self) -> dict[str, Any]:
        """Finish the file.

        Returns:
            What :class:`RunLog` keeps as ``video``; empty when no frame of the first view ever came.

        Raises:
            VideoError: the encoder failed.
        """
        self._queue.put(None)
        self._thread.join(timeout=60.0)
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.close()
                self._process.wait(timeout=30.0)
            except (OSError, subprocess.TimeoutExpired) as err:
                self._process.kill()
                self._failure = self._failure or str(err)
            if self._process.returncode and not self._failure:
                self._failure = f'exit code {self._process.returncode}'
        self._messages.seek(0)
        said = self._messages.read().decode(errors='replace').strip()[-400:]
        self._messages.close()
        if self._failure:
            raise VideoError(f'cannot encode {self._file.name}: {self._failure}. {said}'.strip())
        if not self.frames:
            return {}
        shown = [v for v in self._views if v in self._sizes]
        return {
            'file': self._file.name,
            'views': shown,
            'start_ns': self.start_ns,
            'frames': self.frames,
            'dropped': self.dropped,
            'size': list(self._size),
            'rate': self._rate,
        }

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._failure:
                continue
            stamp_ns, view, image = item
            self._newest[view] = image
            if view != self._views[0]:
                continue
            try:
                self._write(stamp_ns)
            except (OSError, InstructVLAError) as err:
                self._failure = str(err)

    def _write(self, stamp_ns: int) -> None:
        if self._process is None:
            # The other cameras get a moment to show up: the size of the picture is fixed from here on.
            if len(self._newest) < len(self._views) and not self.start_ns:
                self.start_ns = stamp_ns
                return
            if len(self._newest) < len(self._views) and stamp_ns - self.start_ns < 500_000_000:
                return
            self.start_ns = stamp_ns
            self._open()
        due = round((stamp_ns - self.start_ns) / 1e9 * self._rate) + 1
        picture = self._compose().tobytes() if due > self.frames else b''
        stdin = self._process.stdin if self._process is not None else None
        # A jump of the clock must not fill the disk with copies of one picture.
        for _ in range(min(due - self.frames, int(self._rate * 10))):
            if stdin is not None:
                stdin.write(picture)
        self.frames = max(self.frames, due)

    def _compose(self) -> Image:
        height, width = self._size[1], self._size[0]
        canvas = np.zeros((height, width, 3), dtype=np.uint8)
        left = 0
        for view in self._views:
            if view in self._sizes:
                image, (h, w) = self._newest[view], self._sizes[view]
                rows, columns = min(h, image.shape[0]), min(w, image.shape[1])
                canvas[:rows, left : left + columns] = image[:rows, :columns]
                left += w
        return canvas

    def _open(self) -> None:
        try:
            import imageio_ffmpeg

            program = imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError) as err:
            raise SetupError(f'no ffmpeg: {err}. Install imageio-ffmpeg, or run with --no-video') from err
        self._sizes = {v: self._newest[v].shape[:2] for v in self._views if v in self._newest}
        width = sum(w for _, w in self._sizes.values())
        height = max(h for h, _ in self._sizes.values())
        self._size = (width + width % 2, height + height % 2)  # H.264 with 4:2:0 colour wants even sizes
        command = [
            program,
            '-y',
            '-loglevel',
            'error',
            '-nostdin',
            '-f',
            'rawvideo',
            '-pix_fmt',
            'rgb24',
            '-s',
            f'{self._size[0]}x{self._size[1]}',
            '-r',
            f'{self._rate:g}',
            '-i',
            '-',
            '-an',
            '-c:v',
            'libx264',
            '-preset',
            'veryfast',
            '-threads',
            '1',
            '-crf',
            '25',
            '-pix_fmt',
            'yuv420p',
            '-movflags',
            '+faststart',
            str(self._file),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            start_new_session=True,  # Ctrl-C is for whoever records: the encoder ends when its input does
        )
