"""Times the control path alone: one period of the controller and its parts, on an arm that follows perfectly."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np

from ..control.controller import Controller
from ..control.kinematics import Kinematics
from ..datatypes import ActionChunk, RobotState
from ..geometry import Array
from ..settings import Control, Embodiment

CHUNK_EVERY = 0.2  # [s]
STEP_PERIOD, HORIZON = 0.1, 8
AMPLITUDE = 0.012  # largest translation of one step [m]


def measure_control(embodiment: Embodiment, control: Control, seconds: float = 20.0) -> dict[str, Any]:
    """Time every period of ``seconds`` of tracking, then of holding.

    Chunks with smoothly turning deltas arrive five times a second, as from a policy. Inverse kinematics and limits are
    timed inside the very periods; admission is what :meth:`Controller.on_chunk` does with a chunk.

    Returns:
        ``period`` [s] and ``parts``: name -> ``count, p50, p99, max`` [s].
    """
    period = 1.0 / control.rate
    times: dict[str, list[float]] = {}
    controller = Controller(embodiment, control, Kinematics(embodiment))
    controller.backend.track = _timed(controller.backend.track, times, 'inverse kinematics')  # type: ignore[method-assign]
    controller.law.advance = _timed(controller.law.advance, times, 'limits and collision')  # type: ignore[method-assign]
    tick = _timed(controller.tick, times, 'period while tracking')
    admit = _timed(controller.on_chunk, times, 'chunk admission')
    now, q, dq = time.time_ns(), np.array(embodiment.home, dtype=np.float64), np.zeros(len(embodiment.home))
    controller.tick(now, RobotState(now, q, dq, 1.0))
    controller.enable(True)
    names = count()
    for k in range(round(seconds * control.rate)):
        now += round(period * 1e9)
        if k % max(1, round(CHUNK_EVERY * control.rate)) == 0:
            admit(_chunk(next(names), k * period, now, controller.backend.forward(q), embodiment.base_frame), now)
        command = tick(now, RobotState(now, q, dq, 1.0)).command
        if command is not None:
            q, dq = command.q, command.dq
    hold = _timed(controller.tick, times, 'period while holding')
    controller.drop_chunk('the measurement of tracking is over')
    for _ in range(round(min(seconds, 5.0) * control.rate)):
        now += round(period * 1e9)
        command = hold(now, RobotState(now, q, dq, 1.0)).command
        if command is not None:
            q, dq = command.q, command.dq
    order = (
        'period while tracking',
        'inverse kinematics',
        'limits and collision',
        'period while holding',
        'chunk admission',
    )
    return {'period': period, 'parts': {name: spread(times[name]) for name in order}}


def spread(times: list[float]) -> dict[str, float]:
    """Count, median, 99th percentile and maximum [s]."""
    return {
        'count': len(times),
        'p50': float(np.percentile(times, 50)),
        'p99': float(np.percentile(times, 99)),
        'max': float(np.max(times)),
    }


def _timed(function: Callable[..., Any], times: dict[str, list[float]], name: str) -> Callable[..., Any]:
    found = times.setdefault(name, [])

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            found.append(time.perf_counter() - started)

    return timed


def _chunk(number: int, at: float, now_ns: int, pose: Array, frame: str) -> ActionChunk:
    """Steps along a slow figure of eight around the start, with a little rotation."""
    phase = 0.5 * np.pi * (at + STEP_PERIOD * np.arange(HORIZON))
    steps = np.zeros((HORIZON, 7))
    steps[:, 0], steps[:, 1] = AMPLITUDE * np.cos(2 * phase), AMPLITUDE * np.cos(phase)
    steps[:, 5] = 0.02 * np.sin(phase)
    steps[:, 6] = 1.0
    return ActionChunk(f'bench-{number}', now_ns, now_ns, STEP_PERIOD, steps, frame, pose)
