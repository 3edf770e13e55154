"""What every node of this package shares: start, spin, stop, and surviving a bad message.

``main`` of a node is ``return runtime.run(TheNode, args)``. Exit codes: 0 after SIGINT or SIGTERM, 2 when the
configuration or this machine does not allow a start (one line on stderr), 1 after a defect (traceback).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.executors import Executor, ExternalShutdownException, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from ..errors import InstructVLAError
from ..resources import config_file
from . import logs, params
from .diagnostics import ERROR, WARN, Diagnostics

NAMESPACE = '/instructvla'
_TRANSPORT_CHOICES = (
    'FASTDDS_DEFAULT_PROFILES_FILE',
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    'FASTDDS_BUILTIN_TRANSPORTS',
    'FASTDDS_ENVIRONMENT_FILE',
)
_THROTTLE = 2.0  # between two equal warnings [s]
_ECHO = 1.0  # a second signal within this time is the first one again, from a process group and a launch file [s]
_RACES = 200  # of the executor with a subscription that is taken away, within a second; more are a defect
_SWITCH_INTERVAL = 0.001  # a paced thread gets the interpreter after at most this, instead of 5 ms [s]


_begun: weakref.WeakSet[BaseNode] = weakref.WeakSet()  # all that live, whole or not


class BaseNode(Node):
    """A node under ``/instructvla`` with diagnostics whose callbacks survive bad messages.

    Attributes:
        diagnostics: health of this node, published once a second.
        leave: ends the process, from any thread. The context is not shut down under an executor that still spins:
            that destroys the node while its entities are being waited for.
    """

    def __init__(self, name: str, hardware_id: str = '', **kwargs: Any) -> None:
        """Create the node; ``kwargs`` go to :class:`rclpy.node.Node` (tests use ``parameter_overrides``)."""
        kwargs.setdefault('namespace', NAMESPACE)
        super().__init__(
            name, allow_undeclared_parameters=True, automatically_declare_parameters_from_overrides=True, **kwargs
        )
        _begun.add(self)
        self.diagnostics = Diagnostics(self, hardware_id)
        self.leave: Callable[[], None] = lambda: rclpy.try_shutdown(context=self.context)
        self._warned: dict[str, float] = {}

    def now_ns(self) -> int:
        """Node clock (ROS time) [ns]."""
        return int(self.get_clock().now().nanoseconds)

    def close(self) -> None:
        """Last words while publishers still work: called once before the node is destroyed. Stop own threads here."""

    def guard(self, name: str, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """Wrap a subscription callback: an exception drops that message, with a throttled warning and a count.

        Args:
            name: of the input; the count is published as ``<name> dropped``.
        """

        def guarded(message: Any) -> None:
            self.diagnostics.tick(name)
            try:
                callback(message)
            except Exception as err:  # one bad message must never end the node; it is warned about and counted
                self.drop(name, err)

        return guarded

    def guard_service(self, name: str, callback: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Wrap a service callback: an exception becomes ``success = False`` and ``message``."""

        def guarded(request: Any, response: Any) -> Any:
            try:
                return callback(request, response)
            except Exception as err:  # the caller gets the reason, the node lives
                self.drop(name, err)
                response.success = False
                response.message = str(err) or type(err).__name__
                return response

        return guarded

    def drop(self, name: str, err: Exception) -> None:
        """Report that one message of ``name`` was not used because of ``err``."""
        if isinstance(err, InvalidHandle) and not self.context.ok():
            return  # a thread of a node that a signal ended while it was being built
        expected = isinstance(err, InstructVLAError)
        text = str(err) if expected else f'{type(err).__name__}: {err}'
        self.diagnostics.count(f'{name} dropped', text, WARN if expected else ERROR)
        detail = text if expected else f'{text}\n{"".join(traceback.format_exception(err))}'
        self.warn(f'{name} dropped', f'{name} dropped: {detail}')

    def warn(self, key: str, text: str) -> None:
        """Log a warning at most every two seconds per ``key``."""
        now = time.monotonic()
        if now - self._warned.get(key, -_THROTTLE) >= _THROTTLE:
            self._warned[key] = now
            self.get_logger().warning(text)


def run(factory: Callable[[], BaseNode], args: list[str] | None = None, *, threads: int = 1) -> int:
    """Run one node until a signal arrives.

    Args:
        factory: builds the node (usually its class).
        args: command line without the program name; None takes ``sys.argv``.
        threads: executor threads; more than one lets callbacks of different groups run side by side.

    Returns:
        Exit code of the process.
    """
    return run_nodes([factory], args, threads=threads)


def run_nodes(
    factories: Sequence[Callable[[], BaseNode | None]], args: list[str] | None = None, *, threads: int = 1
) -> int:
    """Run several nodes in one process and one executor; see :func:`run`. A factory may decide to make none."""
    try:
        return _run_nodes(factories, args, threads)
    finally:
        # Nodes are full of reference cycles, and C++ bindings complain on stderr about what is left when Python ends.
        gc.unfreeze()
        gc.collect()


def _run_nodes(factories: Sequence[Callable[[], BaseNode | None]], args: list[str] | None, threads: int) -> int:
    argv = list(sys.argv) if args is None else [sys.argv[0], *args]
    # Signals are ours: ROS would shut the context down at once, and a node could not send its last command.
    stop = threading.Event()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    building = threading.Event()
    came: set[int] = set()
    restore = _catch_signals(stop, building, came)
    nodes: list[BaseNode] = []
    before = set(_begun)
    executor: Executor | None = None
    code = 0
    try:
        try:
            use_transport_profile()
            rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
            logs.forward()
            rest = rclpy.utilities.remove_ros_args(argv)[1:]
            if rest:
                return _refuse(f'unknown argument {rest[0]!r}; parameters are given as --ros-args -p name:=value')
            for factory in factories:
                building.set()
                if stop.is_set():  # a signal between two of them
                    return 0
                node = factory()
                building.clear()
                if node is not None:
                    nodes.append(node)
                    node.leave = stop.set
                    params.seal(node)
        except _Leave:
            return 0
        except InstructVLAError as err:
            return _refuse(str(err))
        except Exception as err:
            if _is_bad_start(err):
                return _refuse(str(err))
            raise
        finally:
            building.clear()
        executor = SingleThreadedExecutor() if threads <= 1 else MultiThreadedExecutor(num_threads=threads)
        for node in nodes:
            executor.add_node(node)
        failure: list[BaseException] = []
        spinner = threading.Thread(target=_spin, args=(executor, stop, failure), name='executor', daemon=True)
        spinner.start()
        stop.wait()
        for node in reversed(nodes):
            try:
                node.close()
            except Exception:  # the others still have to close
                traceback.print_exc()
                code = 1
        executor.shutdown(timeout_sec=2.0)
        spinner.join(timeout=2.0)
        if failure:
            traceback.print_exception(failure[0])
            code = 1
        return code
    finally:
        for node in [n for n in _begun - before if n not in nodes]:
            _give_up(node)
        for node in reversed(nodes):
            if executor is None:  # refused at start: threads of nodes already built have to end too
                node.close()
            node.destroy_node()
        rclpy.try_shutdown()
        for number, handler in restore.items():
            # The echo of the signal that ended the node may come as late as while Python ends.
            signal.signal(number, signal.SIG_IGN if number in came else handler)


def use_transport_profile() -> None:
    """Let Fast DDS carry camera images, unless the user has chosen a transport; call before ``rclpy.init``.

    Without the profile a best-effort subscriber gets hardly any image above 512 KB, and nothing says so.
    """
    if os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp').startswith('rmw_fastrtps'):
        if not any(name in os.environ for name in _TRANSPORT_CHOICES):
            os.environ['FASTDDS_DEFAULT_PROFILES_FILE'] = str(config_file('fastdds.xml'))


def raise_priority(priority: int) -> str:
    """Give every thread of this process the real-time priority ``priority`` (SCHED_FIFO) if that is permitted.

    All threads, because one without it could be preempted while it holds the interpreter the paced thread waits for.

    Returns:
        What the process runs with now, in words.
    """
    if priority <= 0 or not hasattr(os, 'sched_setscheduler'):
        return 'ordinary'
    for thread in os.listdir('/proc/self/task'):
        try:
            os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(priority))
        except ProcessLookupError:
            continue  # that thread has just ended
        except OSError as err:
            return f'ordinary (real-time priority {priority}: {err.strerror})'
    return f'SCHED_FIFO {priority}'


def _spin(executor: Executor, stop: threading.Event, failure: list[BaseException]) -> None:
    raced: list[float] = []
    try:
        while not stop.is_set():
            try:
                executor.spin()
                break
            except InvalidHandle:
                # rclpy's executor looks at a subscription's events once more while another thread takes it away, and
                # at its own guard condition once it is told to stop.
                now = time.monotonic()
                raced = [t for t in raced if now - t < 1.0] + [now]
                if len(raced) > _RACES:
                    raise
    except ExternalShutdownException:
        pass  # the context was shut down by somebody else: an ordinary end
    except BaseException as err:  # a callback without guard failed: the process ends with its traceback
        # An executor that is told to stop takes its pool from under the thread that spins it.
        if not (stop.is_set() and isinstance(err, RuntimeError) and 'after shutdown' in str(err)):
            failure.append(err)
    finally:
        stop.set()


def _give_up(node: BaseNode) -> None:
    """End what a constructor that was interrupted or failed has begun: Python must not end beside its threads."""
    try:
        node.close()
        node.destroy_node()
    except Exception:  # it lacks what was not made any more
        pass


class _Leave(BaseException):
    """A signal while a node is being built: that may take a minute, and there is nothing to bring to an end."""


def _catch_signals(stop: threading.Event, building: threading.Event, came: set[int]) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    first = -float('inf')

    def on_signal(number: int, _frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        came.add(number)
        if not stop.is_set():
            first = now
            stop.set()
            if building.is_set():
                raise _Leave
        elif now - first > _ECHO:  # somebody who does not want to wait
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    return {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}


def _is_bad_start(err: Exception) -> bool:
    # What rclpy raises for malformed --ros-args, names, namespaces and parameter files.
    names = {kind.__name__ for kind in type(err).__mro__}
    return bool(
        names
        & {
            'RCLError',
            'RCLInvalidROSArgsError',
            'UnknownROSArgsError',
            'InvalidParameterException',
            'InvalidParameterTypeException',
            'InvalidNamespaceException',
            'InvalidNodeNameException',
            'NameValidationException',
        }
    )


def _refuse(text: str) -> int:
    print(f'error: {" ".join(text.split())}', file=sys.stderr, flush=True)
    return 2
