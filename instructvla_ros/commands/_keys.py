"""Single keys from a terminal, without waiting for a line; the terminal is put back however the program ends."""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
from collections.abc import Callable
from types import TracebackType


class Keys:
    """Calls ``pressed`` with each key, on a thread of its own, while the context is open.

    Does nothing when standard input is not a terminal, or when this process is not in its foreground (a program in the
    background that asks for keys would be stopped by the shell).

    Attributes:
        active: whether keys are read.
    """

    def __init__(self, pressed: Callable[[str], None]):
        self._pressed = pressed
        self._before: list[object] | None = None
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self.active = False

    def __enter__(self) -> Keys:
        if not _foreground():
            return self
        import termios
        import tty

        self._fd = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._fd)
        atexit.register(self._restore)  # a defect elsewhere must not leave a terminal without echo
        tty.setcbreak(self._fd)  # Ctrl-C stays a signal
        self.active = True
        self._thread = threading.Thread(target=self._read, name='keys', daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            import termios

            before, self._before = self._before, None
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)  # type: ignore[arg-type]
            atexit.unregister(self._restore)
        self.active = False

    def _read(self) -> None:
        while not self._end.is_set():
            if select.select([self._fd], [], [], 0.2)[0]:
                data = os.read(self._fd, 64)
                if not data:  # the terminal is gone
                    return
                for key in data.decode(errors='ignore'):
                    self._pressed(key)


def _foreground() -> bool:
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # closed, replaced, or no terminals on this system
        return False
