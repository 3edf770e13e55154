"""Starts and stops the processes of the ROS 2 graph, so that nothing of it outlives whoever started it.

Each node is a process of its own in its own session, logs into its own file and dies with its parent, however that
ends (on Linux; elsewhere it is stopped on every way out except SIGKILL of the parent).
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from . import resources
from .errors import SetupError

NODES = 'instructvla_ros.nodes'
DOMAINS = range(1, 101)  # higher domains use ports that Linux hands out to other programs
_POLITE, _FIRM = 6.0, 2.0  # seconds after SIGINT, after SIGTERM
_PR_SET_PDEATHSIG = 1


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised in the main thread so that ``finally`` blocks run; ``number`` is the signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class NodeDied(SetupError):
    """A process of the graph ended although nobody asked it to."""


@dataclass(frozen=True)
class NodeSpec:
    """One process.

    Attributes:
        name: of the log file and in messages.
        module: run with ``python -m``. parameters: ROS parameters. arguments: further arguments before ``--ros-args``.
        piped: its standard output is read by the parent (:meth:`Graph.lines`) instead of going to the log.
        ends: it may end by itself with exit code 0.
    """

    name: str
    module: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    piped: bool = False
    ends: bool = False

    def command(self) -> list[str]:
        """Command line."""
        out = [sys.executable, '-m', self.module, *self.arguments, '--ros-args']
        for name, value in self.parameters.items():
            out += ['-p', f'{name}:={yaml_value(value)}']
        return out


def node(name: str, parameters: Mapping[str, Any] | None = None, **options: Any) -> NodeSpec:
    """Node of this package, for example ``node('sim_node', {'seed': 3})``."""
    return NodeSpec(name, f'{NODES}.{name}', parameters or {}, **options)


def yaml_value(value: Any) -> str:
    """Value of a ROS parameter on a command line; text is quoted so that it stays text."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return '[' + ', '.join(yaml_value(v) for v in value) + ']'
    text = str(value).replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n').replace('\t', '\\t')
    return f'"{text}"'


class Domain:
    """A ROS_DOMAIN_ID that nobody on this machine uses, kept until :meth:`release` or the end of the process."""

    def __init__(self) -> None:
        """Take a free domain.

        Raises:
            SetupError: all of them are in use.
        """
        self._lock: IO[str] | None = None
        for number in random.sample(DOMAINS, len(DOMAINS)):
            if self._take(number):
                self.number = number
                return
        raise SetupError(
            f'every ROS_DOMAIN_ID of {DOMAINS[0]} .. {DOMAINS[-1]} is in use on this machine; '
            'stop other ROS programs, or choose one with ROS_DOMAIN_ID=<n>'
        )

    def _take(self, number: int) -> bool:
        import fcntl

        lock = None
        try:
            # Two graphs starting together would both find the ports free: the lock settles who takes it.
            lock = (Path(tempfile.gettempdir()) / f'instructvla_domain_{number}.lock').open('a')
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            base = 7400 + 250 * number
            for port in (base + 10, base + 11, base + 12, base + 13):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind(('0.0.0.0', port))
        except OSError:
            if lock is not None:
                lock.close()
            return False
        self._lock = lock
        return True

    def release(self) -> None:
        """Give it back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def environment(domain: int | None = None) -> dict[str, str]:
    """Environment for the nodes: what the user has set stays, the rest suits one machine with cameras.

    Args:
        domain: ROS_DOMAIN_ID to use when the user has set none.
    """
    env = dict(os.environ)
    if not env.get('FASTRTPS_DEFAULT_PROFILES_FILE'):
        env.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(resources.transport_profile()))
    env.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    if domain is not None:
        env.setdefault('ROS_DOMAIN_ID', str(domain))
    env.setdefault('RCUTILS_COLORIZED_OUTPUT', '0')
    # Small matrices on several threads are slower, and the nodes would fight for the cores.
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
        env.setdefault(name, '1')
    env['PYTHONUNBUFFERED'] = '1'
    return env


class Graph:
    """The running processes. Use as a context manager; leaving it stops everything.

    Args:
        specs: in the order of starting; stopped in reverse.
        logs: folder for ``<name>.log``.
    """

    def __init__(self, specs: Sequence[NodeSpec], logs: str | Path):
        self._specs = {spec.name: spec for spec in specs}
        self._logs = Path(logs).resolve()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._domain: Domain | None = None
        self._handlers: dict[int, Any] = {}
        self._stopping = False

    @property
    def domain(self) -> int:
        """ROS_DOMAIN_ID of the running graph."""
        return int(self._env['ROS_DOMAIN_ID'])

    def __enter__(self) -> Graph:
        self._catch_signals()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every process.

        Raises:
            SetupError: no free domain, or Python cannot be started.
        """
        given = os.environ.get('ROS_DOMAIN_ID', '')
        if not given:
            self._domain = Domain()
        elif not given.isdecimal():
            raise SetupError(f'ROS_DOMAIN_ID is {given!r}; use a number from 0 to 101, or unset it')
        self._env = environment(self._domain.number if self._domain else None)
        self._logs.mkdir(parents=True, exist_ok=True)
        for spec in self._specs.values():
            self._launch(spec)

    def restart(self, name: str) -> None:
        """Stop one process and start it again."""
        self._end([name])
        self._launch(self._specs[name])

    def _launch(self, spec: NodeSpec) -> None:
        parent = os.getpid()
        try:
            with (self._logs / f'{spec.name}.log').open('ab') as log:
                self._processes[spec.name] = subprocess.Popen(
                    spec.command(),
                    env=self._env,
                    # A checkout in the working directory would shadow the installed package.
                    cwd=self._logs,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if spec.piped else log,
                    stderr=log,
                    text=spec.piped,
                    start_new_session=True,
                    preexec_fn=bind_to_parent(parent),
                )
        except OSError as err:
            raise SetupError(f'cannot start {spec.name} with {sys.executable}: {err.strerror}') from err

    def pid(self, name: str) -> int:
        """Process id of a node."""
        return self._processes[name].pid

    def exit_code(self, name: str) -> int | None:
        """Exit code of a node, None while it runs; minus the signal's number when one ended it."""
        return self._processes[name].poll()

    def check(self) -> None:
        """Raise when a node ended by itself.

        Raises:
            NodeDied: naming the node, how it ended and the last lines of its log.
        """
        for name, process in self._processes.items():
            code = process.poll()
            if code is None or self._stopping or (code == 0 and self._specs[name].ends):
                continue
            how = f'was ended by {signal.Signals(-code).name}' if code < 0 else f'ended with exit code {code}'
            raise NodeDied(f'{name} {how}. The end of {self._logs / (name + ".log")}:\n{self.tail(name)}')

    def tail(self, name: str, lines: int = 12) -> str:
        """Last lines of a node's log, indented; says so when there are none."""
        try:
            text = (self._logs / f'{name}.log').read_text(encoding='utf-8', errors='replace')
        except OSError as err:
            return f'  (no log: {err.strerror})'
        return '\n'.join(f'  {line}' for line in text.rstrip().splitlines()[-lines:]) or '  (it said nothing)'

    def lines(self, name: str) -> Iterator[str]:
        """Lines a piped node prints, until it closes its output; an empty one now and then so that the caller can act.

        Raises:
            NodeDied: another node ended by itself.
        """
        stream = self._processes[name].stdout
        if stream is None:
            raise SetupError(f'{name} is not piped')
        arrived: list[str | None] = []
        ready = threading.Condition()

        def read() -> None:
            for line in stream:
                with ready:
                    arrived.append(line.rstrip('\n'))
                    ready.notify()
            with ready:
                arrived.append(None)
                ready.notify()

        threading.Thread(target=read, name=f'read {name}', daemon=True).start()
        while True:
            with ready:
                if not arrived:
                    ready.wait(0.25)
                batch, arrived[:] = list(arrived), []
            for line in batch:
                if line is None:
                    self._processes[name].wait(timeout=_POLITE)
                    self.check()
                    return
                yield line
            self.check()
            if not batch:
                yield ''

    def stop(self) -> None:
        """End every process: SIGINT, then SIGTERM, then SIGKILL. Safe to call twice."""
        self._stopping = True
        try:
            # A second Ctrl-C must not leave the rest running.
            with _deaf():
                self._end(list(reversed(self._processes)))
        finally:
            if self._domain is not None:
                self._domain.release()
            self._restore_signals()
            self._stopping = False

    def _end(self, names: Sequence[str]) -> None:
        for number, patience in ((signal.SIGINT, _POLITE), (signal.SIGTERM, _FIRM), (signal.SIGKILL, _FIRM)):
            alive = [self._processes[n] for n in names if self._processes[n].poll() is None]
            for process in alive:
                _signal_group(process.pid, number)
            deadline = time.monotonic() + patience
            while any(p.poll() is None for p in alive) and time.monotonic() < deadline:
                time.sleep(0.02)
        for name in names:
            process = self._processes.pop(name)
            _signal_group(process.pid, signal.SIGKILL)  # children of a node, if it had any
            if process.stdout is not None:
                process.stdout.close()

    def _catch_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._handlers[number] = signal.signal(number, _interrupt)

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has gone already


def bind_to_parent(parent: int, number: int = signal.SIGKILL) -> Callable[[], None] | None:
    """``preexec_fn`` of a child that gets signal ``number`` when process ``parent`` dies (on Linux; elsewhere None)."""
    if not sys.platform.startswith('linux'):
        return None
    libc = ctypes.CDLL(None)

    def bind() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell that starts us in the background has it ignored
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return bind


class _deaf:
    """Ignore SIGINT, SIGTERM and SIGHUP for a moment (main thread only)."""

    def __enter__(self) -> None:
        self._old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
