"""Several training processes on this machine, started, interrupted and ended as one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ..errors import ConfigError
from ..evaluation.machine import usable_cores
from ..graph import bind_to_parent
from .settings import Training

INTERRUPTED = 130
_GRACE = 10.0  # s that the others have to end by themselves when one has failed
_LOOK = 0.2  # s between two looks at them


def share(options: Training, processes: int) -> list[str]:
    """Changes ``KEY=VALUE`` that give each process its part of a batch, so that a step stays what it is with one.

    Raises:
        ConfigError: a batch cannot be divided, or this process already is one of several.
    """
    if 'RANK' in os.environ:
        raise ConfigError('--processes inside of torchrun or accelerate launch: leave one of the two out')
    changes = []
    for key in ('batch', 'general_batch'):
        value = int(getattr(options, key))
        if value % processes:
            nearest = -(-value // processes) * processes
            raise ConfigError(f'{key} {value} cannot be shared by {processes} processes; --set {key}={nearest}, say')
        changes.append(f'{key}={value // processes}')
    return changes


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``instructvla`` with these arguments in several processes that train together.

    Ctrl-C and SIGTERM reach all of them; when one fails the others are ended. On a CPU the cores are shared out, unless
    ``OMP_NUM_THREADS`` says otherwise.

    Returns:
        0, or the exit code of the first one that failed; 130 when they were interrupted.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    shared = {'OMP_NUM_THREADS': str(max(1, usable_cores() // processes)), **os.environ}
    shared |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    shared |= {'WORLD_SIZE': str(processes), 'LOCAL_WORLD_SIZE': str(processes)}
    command = [sys.executable, '-m', 'instructvla_ros.cli', *arguments]
    running: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        for process in running:
            if process.poll() is None:
                process.send_signal(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(processes):
            # In a session of its own a terminal's Ctrl-C does not reach it a second time, beside the one passed on.
            running.append(
                subprocess.Popen(
                    command,
                    env={**shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    preexec_fn=bind_to_parent(os.getpid()),
                )
            )
        return _outcome(running)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(running: Sequence[subprocess.Popen[bytes]]) -> int:
    failed: int | None = None
    since = time.monotonic()
    while None in (codes := [p.poll() for p in running]):
        if failed is None:
            failed, since = _failure(codes), time.monotonic()
        elif time.monotonic() - since > _GRACE:
            break  # they wait for one that is gone
        time.sleep(_LOOK)
    failed = _failure(codes) if failed is None else failed
    if failed is not None:
        return failed if failed > 0 else 128 - failed
    return INTERRUPTED if INTERRUPTED in codes else 0


def _failure(codes: Sequence[int | None]) -> int | None:
    """The first exit code of one that neither finished nor was interrupted."""
    return next((c for c in codes if c not in (None, 0, INTERRUPTED)), None)
