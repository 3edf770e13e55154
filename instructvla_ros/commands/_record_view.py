"""What a person sees while recording: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from ..data.recording_status import Status

_LIVE, _PLAIN = 0.25, 10.0  # between two updates [s]


class RecordView:
    """Shows the status of a recording until the context ends.

    Args:
        quiet: show nothing. stream: where to; standard error keeps standard output free for the summary.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None):
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Any = None
        self._console: Any = None

    def __enter__(self) -> RecordView:
        if not self._quiet:
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def follow(self, status: Callable[[], Status], hint: str) -> None:
        """Begin to show; ``hint`` names the keys."""
        if self._console is None:
            return
        self.note(f'recording to {status().path}')
        if hint:
            self.note(hint)
        self._thread = threading.Thread(target=self._run, args=(status,), name='record view', daemon=True)
        self._thread.start()

    def note(self, text: str) -> None:
        """One line that stays."""
        if self._console is not None:
            self._console.print(text, soft_wrap=True, markup=False)

    def _run(self, status: Callable[[], Status]) -> None:
        if not self._console.is_terminal:
            last, said = time.monotonic(), set[str]()
            while not self._end.wait(0.5):
                now = status()
                names = {p.split(' ')[0] for p in now.problems}
                if names - said or time.monotonic() - last >= _PLAIN:
                    last = time.monotonic()
                    self.note(line(now))
                said = names
            return
        from rich.live import Live
        from rich.text import Text

        with Live(console=self._console, refresh_per_second=8, transient=True) as live:
            while not self._end.wait(_LIVE):
                now = status()
                style = 'bold red' if now.running else 'yellow' if now.problems else ''
                live.update(Text(line(now), style=style, overflow='ellipsis', no_wrap=True))


def line(status: Status) -> str:
    """The whole state in one line, the most urgent first."""
    minutes, seconds = divmod(int(status.seconds), 60)
    parts = [f'{"●" if status.running else "○"} {minutes:02d}:{seconds:02d}']
    if status.running:
        parts.append(f'episode {len(status.episodes)} “{status.episodes[-1].instruction}”')
    elif status.episodes:
        parts.append(f'{len(status.episodes)} episodes')
    parts += status.problems[:2]
    if len(status.problems) > 2:
        parts.append(f'and {len(status.problems) - 2} more problems')
    rate = sum(t.rate for t in status.topics)
    parts.append(f'{sum(1 for t in status.topics if t.rate)} topics {rate:.0f}/s')
    parts.append(f'{status.bytes / 1e6:.0f} MB at {status.rate / 1e6:.1f} MB/s')
    if status.seconds_left < 1e6:
        hours, rest = divmod(int(status.seconds_left), 3600)
        parts.append(f'disk for {hours} h {rest // 60} min')
    if status.backlog > 0.25:
        parts.append(f'queue {100 * status.backlog:.0f} %')
    return '  '.join(parts)
