#!/usr/bin/env python3
"""Measure the operator's page: from a sentence's token to the screen, and from a press of STOP to an arm at rest.

    python scripts/bench_web.py --tokens 100 --stops 10 --out runs/bench_web.json

Starts the simulated graph with web_node, opens the page in headless Chromium, publishes a growing sentence, and stops
the moving arm again and again with a real mouse press. Times end when the browser has painted, and when the controller
commands zero velocities (the stamp of that command). For each stop the way is told: when the page had handled the
press, web_node had sent the stop, the controller had latched it, commanded rest, and this script had heard of that.
Needs chromium; without a GPU the page is drawn in software.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test'))
from browser import CHROMIUM, Browser  # noqa: E402

from instructvla_ros.errors import SetupError  # noqa: E402
from instructvla_ros.evaluation import machine  # noqa: E402
from instructvla_ros.evaluation.time_limit import limited  # noqa: E402
from instructvla_ros.graph import Graph, node  # noqa: E402

TOKEN_LIMIT, STOP_LIMIT = 0.150, 0.200  # what an operator should not have to wait longer for [s]
_MOVING = 0.3  # commanded joint speed from which a stop counts [rad/s]
_WATCH = """
(() => {
  window.painted = {};
  const node = document.querySelector('#thought');
  new MutationObserver(() => {
    const text = node.textContent;
    const note = () => { window.painted[text] ??= performance.timeOrigin + performance.now(); };
    requestAnimationFrame(() => setTimeout(note));
  }).observe(node, { childList: true, characterData: true, subtree: true });
  return true;
})()
"""
_PRESS = """
(() => {
  window.handled = 0;
  document.querySelector('#stop').addEventListener('pointerdown', () => {
    window.handled = performance.timeOrigin + performance.now();
  });
  return true;
})()
"""
_PRESSED = 'STOP was pressed'
_WAY = ('page', 'web_node', 'latch', 'rest', 'heard')  # what a press passes


def wait(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    """Value of a condition as soon as it is true."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SetupError(f'not within {timeout:.0f} s: {what}')
        time.sleep(0.002)
    return value


class Probe:
    """ROS side of the measurement."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from std_srvs.srv import SetBool, Trigger

        from instructvla_ros.msg import ControllerState, Reasoning
        from instructvla_ros.nodes import qos
        from instructvla_ros.srv import ResetWorld

        rclpy.init()
        self.node = rclpy.create_node('bench_web', namespace='/instructvla')
        self.states: list[tuple[float, Any]] = []
        self.node.create_subscription(
            ControllerState, 'controller_state', lambda m: self.states.append((time.time(), m)), qos.STATE
        )
        self._says = self.node.create_publisher(Reasoning, 'reasoning', qos.REASONING)
        kinds = {'enable': SetBool, 'reset': Trigger, '/sim/reset': ResetWorld}
        self._clients = {name: self.node.create_client(kind, name) for name, kind in kinds.items()}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        threading.Thread(target=self._executor.spin, daemon=True).start()

    def say(self, text: str) -> float:
        """Publish the beginning of a sentence; returns when [s, system time]."""
        from instructvla_ros.datatypes import Reasoning
        from instructvla_ros.nodes.convert import reasoning_to_msg

        said = Reasoning('say-bench', self.node.get_clock().now().nanoseconds, 'bench', text, final=False)
        message = reasoning_to_msg(said)
        now = time.time()
        self._says.publish(message)
        return now

    def call(self, name: str, **fields: Any) -> Any:
        """Response of a service."""
        client = self._clients[name]
        if not client.wait_for_service(30.0):
            raise SetupError(f'no service {name}')
        future = client.call_async(client.srv_type.Request(**fields))
        wait(future.done, f'the answer of {name}', 30.0)
        return future.result()

    def speed(self) -> float:
        """Largest commanded joint speed now [rad/s]."""
        velocities = self.states[-1][1].commanded_velocities if self.states else ()
        return max((abs(v) for v in velocities), default=0.0)

    def close(self) -> None:
        """Leave the graph."""
        import rclpy

        self._executor.shutdown(timeout_sec=2.0)
        self.node.destroy_node()
        rclpy.try_shutdown()


def tokens(page: Browser, probe: Probe, count: int) -> list[float]:
    """Times from publishing to paint [s]."""
    page.js(_WATCH)
    sent: dict[str, float] = {}
    text = ''
    for k in range(count):
        text = f'{text} word{k}' if k % 20 else f'Sentence {k}:'
        sent[text] = probe.say(text)
        time.sleep(0.1)
    time.sleep(1.0)
    seen = page.js('window.painted')
    lost = [t for t in sent if t not in seen]
    print(f'{len(lost)} of {count} sentences were replaced before they were painted')
    return [seen[t] / 1e3 - at for t, at in sent.items() if t in seen]


def released(probe: Probe) -> None:
    """Clear the stop and enable, again and again as a person would: a repeated STOP may still be on its way."""
    said: list[str] = []

    def enabled() -> bool:
        said[:] = [probe.call('reset').message]
        answer = probe.call('enable', data=True)
        said.append(answer.message)
        return bool(answer.success)

    try:
        wait(enabled, 'the controller to be enabled', 20.0)
    except SetupError as err:
        raise SetupError(f'{err} (reset: {said[0]}; enable: {said[1]})') from None


def stops(page: Browser, probe: Probe, count: int, check: Callable[[], None], log: Path) -> list[dict[str, float]]:
    """For each stop: speed at the press [rad/s] and how long after it each place of ``_WAY`` was reached [s].

    Args:
        log: of web_node, whose line about the press has a time.
    """
    page.js(_PRESS)
    rows = []
    for k in range(count):
        world = probe.call('/sim/reset', task='pick', seed=k)
        time.sleep(0.5)
        released(probe)
        page.type('#instruction', world.instruction)
        page.press('#go')
        x, y = page.centre('#stop')
        page.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)
        begun = looked = time.monotonic()
        while (speed := probe.speed()) < _MOVING:
            check()
            now = time.monotonic()
            if now - begun > 60.0:
                raise SetupError(f'the arm does not move: {page.text("#goal")} {page.text("#note")}')
            if now - looked > 0.5:
                looked = now
                if page.js('document.querySelector("#goal").classList.contains("error")'):
                    time.sleep(1.0)  # a loaded machine: an input was silent for too long
                    page.press('#go')
                    page.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)
                    page.until('!document.querySelector("#goal").classList.contains("error")', 20.0)
            time.sleep(0.01)
        pressed = time.time()
        page.call('Input.dispatchMouseEvent', type='mousePressed', x=x, y=y, button='left', clickCount=1)
        page.call('Input.dispatchMouseEvent', type='mouseReleased', x=x, y=y, button='left', clickCount=1)

        def after(rest: bool, since: float = pressed) -> tuple[float, float] | None:
            fits = (
                (s.header.stamp.sec + 1e-9 * s.header.stamp.nanosec, at)
                for at, s in probe.states[-400:]
                if at >= since and s.mode == s.STOPPED and not (rest and any(s.commanded_velocities))
            )
            return next(fits, None)

        rest = wait(lambda: after(True), 'the arm to rest', 10.0)
        latch = after(False)
        assert latch is not None  # no rest without a stop
        handled = float(page.js('window.handled')) / 1e3
        times = (handled, said_at(log, _PRESSED, pressed), latch[0], rest[0], rest[1])
        rows.append({'speed': speed, **{name: at - pressed for name, at in zip(_WAY, times, strict=True)}})
        way = ', '.join(f'{name} {1e3 * rows[-1][name]:.0f}' for name in _WAY)
        print(f'stop {k + 1}: {speed:.2f} rad/s; ms after the press: {way}', flush=True)
    return rows


def said_at(log: Path, words: str, since: float) -> float:
    """When a node logged a line with these words first after ``since`` [s]; NaN when it did not."""
    for line in log.read_text(encoding='utf-8', errors='replace').splitlines():
        found = re.match(r'\[\w+\] \[(\d+\.\d+)\]', line)
        if found and words in line and float(found[1]) >= since:
            return float(found[1])
    return float('nan')


def summary(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest [s]."""
    p50, p95 = np.percentile(values, [50, 95]).tolist() if values else (float('nan'), float('nan'))
    return {'count': len(values), 'p50': p50, 'p95': p95, 'max': max(values, default=float('nan'))}


def logs_of(arguments: argparse.Namespace) -> AbstractContextManager[str]:
    """New folder for the logs of the nodes, which goes afterwards unless a place for it was named."""
    if not arguments.logs:
        return tempfile.TemporaryDirectory()
    Path(arguments.logs).mkdir(parents=True, exist_ok=True)
    return nullcontext(tempfile.mkdtemp(prefix='bench_web-', dir=arguments.logs))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers of one run.

    Raises:
        SetupError: chromium is missing, a node ended, or something did not happen in time.
    """
    if not CHROMIUM:
        raise SetupError('chromium is not installed')
    specs = [
        node('sim_node', {'task': 'pick', 'seed': 0}),
        node('controller_node', {'start_enabled': True, 'state_rate': 100.0}),
        node('policy_node', {'policy': 'expert'}),
        node('web_node', {'port': 0}),
    ]
    with logs_of(arguments) as logs, Graph(specs, logs) as graph:
        os.environ.update(ROS_DOMAIN_ID=str(graph.domain), ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST')
        log = Path(logs) / 'web_node.log'

        def address() -> str | None:
            graph.check()
            return next((word for word in log.read_text().split() if word.startswith('http://')), None)

        url = wait(address, 'web_node')
        probe = Probe()
        try:
            with Browser(url) as page:
                page.until('document.querySelector("#mode-pill").textContent === "holding"', 60.0, graph.check)
                said = tokens(page, probe, arguments.tokens)
                stopped = stops(page, probe, arguments.stops, graph.check, log)
        finally:
            probe.close()
    return {
        'token_to_screen': summary(said),
        **{f'stop_to_{name}': summary([r[name] for r in stopped]) for name in _WAY},
        'stops': stopped,
        'machine': machine.facts(),
    }


def arguments_of() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--tokens', type=int, default=100)
    parser.add_argument('--stops', type=int, default=10)
    parser.add_argument('--timeout', type=float, default=600.0, help='seconds after which it is given up')
    parser.add_argument('--out', default='', help='JSON file for the numbers')
    parser.add_argument('--logs', default='', help='folder in which a new one keeps the logs of the nodes')
    return parser.parse_args()


def main() -> int:
    """Measure and print: 0 when the median sentence and every stop were in time, 1 when not, 2 when it failed."""
    arguments = arguments_of()
    try:
        result = measure(arguments)
    except (SetupError, AssertionError) as err:
        print(f'error: {err}', file=sys.stderr)
        return 2
    for name in ('token_to_screen', *(f'stop_to_{name}' for name in _WAY)):
        row = result[name]
        print(f'{name:16s} p50 {1e3 * row["p50"]:6.1f} ms   p95 {1e3 * row["p95"]:6.1f} ms   '
              f'max {1e3 * row["max"]:6.1f} ms   n {row["count"]}')  # fmt: skip
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    good = result['token_to_screen']['p50'] < TOKEN_LIMIT and result['stop_to_rest']['max'] < STOP_LIMIT
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(limited(main, arguments_of().timeout))
