"""A measurement that ends: its script runs once more as a child that is killed when its time is over.

A thread or a signal handler cannot promise this. A call that blocks inside the middleware holds them up, and so does
an interpreter that waits for native threads at its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from ..graph import bind_to_parent

EXIT_LATE = 3  # exit code of a measurement that did not end by itself
_INSIDE = 'INSTRUCTVLA_TIME_LIMIT_CHILD'
_POLITE, _LAST_WORDS = 25.0, 5.0  # from SIGINT to SIGABRT, from there to SIGKILL [s]


def limited(main: Callable[[], int], seconds: float) -> int:
    """Exit code of ``main``, which runs in a child with the same command line.

    After ``seconds`` the child is asked to end (SIGINT), then made to print where each of its threads is (SIGABRT),
    then killed. What it starts has to die with it: :func:`instructvla_ros.graph.bind_to_parent` for a process group
    of its own; the rest is in the child's group and is killed with it.

    Returns:
        The child's exit code; :data:`EXIT_LATE` when its time was over; 128 + n when signal n ended it.
    """
    if os.environ.pop(_INSIDE, ''):
        return main()
    child = subprocess.Popen(
        [sys.executable, *sys.argv],
        env={**os.environ, _INSIDE: '1', 'PYTHONFAULTHANDLER': '1', 'PYTHONUNBUFFERED': '1'},
        start_new_session=True,
        preexec_fn=bind_to_parent(os.getpid()),
    )
    handlers = {n: signal.signal(n, _interrupt) for n in (signal.SIGTERM, signal.SIGHUP)}
    code = 128 + signal.SIGINT
    try:
        try:
            code = _code(child.wait(timeout=seconds))
        except subprocess.TimeoutExpired:
            print(f'error: {sys.argv[0]} did not end within {seconds:.0f} s and is stopped; what it waits for follows '
                  'unless it still ends by itself', file=sys.stderr, flush=True)  # fmt: skip
            code = EXIT_LATE
        except KeyboardInterrupt:
            pass
        _end(child)
    finally:
        _signal(child.pid, signal.SIGKILL)  # what the child left in its group
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code


def _end(child: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGINT, _POLITE), (signal.SIGABRT, _LAST_WORDS), (signal.SIGKILL, _LAST_WORDS)):
        if child.poll() is not None:
            return
        # The script itself first: it stops what it started in the right order.
        child.send_signal(number)
        deadline = time.monotonic() + patience
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has gone already


def _code(returned: int) -> int:
    return returned if returned >= 0 else 128 - returned


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
