"""What a node publishes about its health on /diagnostics, once a second.

One status per node: rates of what comes in and goes out, latencies (p50, p99), counts of what was dropped or refused
with the last reason. The level is the worst of what happened since the last message.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from . import qos

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE
_WORST = (OK, WARN, STALE, ERROR)
_LATENCIES = 1000  # samples kept per latency


class Diagnostics:
    """Collects numbers from any thread and publishes them as one DiagnosticStatus per second."""

    def __init__(self, node: Node, hardware_id: str = '', period: float = 1.0) -> None:
        """Start publishing.

        Args:
            node: owner; its full name is the name of the status.
            hardware_id: robot, device or policy the numbers belong to.
            period: between two messages [s].
        """
        self._node = node
        self._hardware_id = hardware_id
        self._lock = threading.Lock()
        self._ticks: dict[str, int] = defaultdict(int)
        self._last_tick: dict[str, float] = {}
        self._expected: dict[str, float] = {}
        self._latencies: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_LATENCIES))
        self._counts: dict[str, int] = defaultdict(int)
        self._reasons: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._events: dict[str, tuple[bytes, str]] = {}
        self._conditions: dict[str, tuple[bytes, str]] = {}
        self._since = time.monotonic()
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', qos.EVENT)
        # Steady: a stopped or jumping ROS clock is one of the things to be reported.
        self._timer = node.create_timer(period, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def tick(self, name: str) -> None:
        """Count one event of a stream; published as ``<name> [Hz]``."""
        with self._lock:
            self._ticks[name] += 1
            self._last_tick[name] = time.monotonic()

    def expect(self, name: str, timeout: float) -> None:
        """Report STALE when the stream ``name`` is silent for longer than ``timeout`` [s]."""
        with self._lock:
            self._expected[name] = timeout
            self._ticks[name] += 0

    def silence(self, name: str) -> float:
        """Time since the last :meth:`tick` of ``name`` [s]; infinite before the first."""
        with self._lock:
            last = self._last_tick.get(name)
        return float('inf') if last is None else time.monotonic() - last

    def latency(self, name: str, seconds: float) -> None:
        """Add one sample [s]; published as p50 and p99 of the last 1000 [ms]."""
        with self._lock:
            self._latencies[name].append(seconds)

    def count(self, name: str, reason: str = '', level: bytes = WARN) -> None:
        """Count something dropped or refused; the level holds until the next message, the count for ever."""
        with self._lock:
            self._counts[name] += 1
            if reason:
                self._reasons[name] = reason
            self._events[name] = (level, reason or name)

    def counted(self, name: str) -> int:
        """How often ``name`` was counted."""
        with self._lock:
            return self._counts.get(name, 0)

    def value(self, name: str, value: object) -> None:
        """Publish a plain key and value."""
        with self._lock:
            self._values[name] = f'{value:.4g}' if isinstance(value, float) else str(value)

    def condition(self, name: str, level: bytes, text: str = '') -> None:
        """Set a lasting condition; level OK clears it."""
        with self._lock:
            if level == OK:
                self._conditions.pop(name, None)
            else:
                self._conditions[name] = (level, text or name)

    def status(self) -> DiagnosticStatus:
        """Build the status and start a new measuring interval."""
        now = time.monotonic()
        with self._lock:
            elapsed = max(now - self._since, 1e-3)
            self._since = now
            problems = [p for p in (*self._conditions.values(), *self._events.values()) if p[0] != OK]
            for name, timeout in self._expected.items():
                last = self._last_tick.get(name)
                if last is None:
                    problems.append((STALE, f'waiting for {name}'))
                elif now - last > timeout:
                    problems.append((STALE, f'{name} silent for {now - last:.1f} s'))
            values = [KeyValue(key=k, value=v) for k, v in self._values.items()]
            values += [KeyValue(key=f'{k} [Hz]', value=f'{n / elapsed:.1f}') for k, n in self._ticks.items()]
            for name, samples in self._latencies.items():
                if samples:
                    p50, p99 = np.percentile(np.fromiter(samples, dtype=np.float64), (50, 99)) * 1e3
                    values.append(KeyValue(key=f'{name} p50/p99 [ms]', value=f'{p50:.2f} / {p99:.2f}'))
            values += [KeyValue(key=f'{k} [count]', value=str(n)) for k, n in self._counts.items()]
            values += [KeyValue(key=f'{k} [last reason]', value=v) for k, v in self._reasons.items()]
            self._ticks = defaultdict(int, dict.fromkeys(self._ticks, 0))
            self._events.clear()
        problems.sort(key=lambda p: _WORST.index(p[0]), reverse=True)
        return DiagnosticStatus(
            level=problems[0][0] if problems else OK,
            name=self._node.get_fully_qualified_name(),
            message='; '.join(dict.fromkeys(text for _, text in problems)) or 'running',
            hardware_id=self._hardware_id,
            values=values,
        )

    def publish(self) -> None:
        """Publish now (also called by the timer)."""
        message = DiagnosticArray(status=[self.status()])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
