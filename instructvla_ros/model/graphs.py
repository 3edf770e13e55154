"""Work on tensors of fixed shapes, recorded once as a CUDA graph and replayed: one launch instead of thousands.

A graph reads and writes the addresses it was recorded with. So every input is copied into a buffer of its own first,
every result is copied out of the graph's memory at its end, and one caller at a time uses a :class:`Slot`. Slots are
lent from a :class:`Pool`, so threads never share buffers. Work that cannot be recorded runs as it is, from the same
buffers, after one warning.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...]
Work = Callable[..., Tensors]
"""Takes and returns tensors on one device; never waits for the device and never looks at a value on the host."""
Options = tuple[tuple[str, Any], ...]
"""Keyword arguments of work that are no tensors; they are part of what is recorded."""

REHEARSALS = 2  # runs before a recording: libraries choose kernels and allocate workspaces on the first


class Recorder(Protocol):
    """Turns work into something that can be replayed; one per slot."""

    def record(self, work: Work, arguments: Tensors, results: Tensors) -> Callable[[], None]:
        """Recorded work: reads ``arguments`` and writes ``results`` in place whenever it is called."""
        ...


class CudaRecorder:
    """CUDA graphs that share one memory pool and one recording stream; they may not run at the same time.

    The stream is the slot's own because cuBLAS keeps its workspace per stream, and a graph remembers its address.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work, arguments: Tensors, results: Tensors) -> Callable[[], None]:
        """See :class:`Recorder`."""

        def run() -> None:
            _copy(work(*arguments), results)

        with self._one_at_a_time, torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                for _ in range(REHEARSALS):
                    run()
            here.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # 'thread_local': another thread may allocate memory or wait for its own stream meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode='thread_local'):
                run()
        return graph.replay


class Graphs:
    """How the pieces of one engine run: compiled or not, recorded or not.

    Args:
        device: where the tensors are.
        compile: pass every piece through ``torch.compile``.
        recorder: makes the recorder of a slot; by default CUDA graphs on a GPU and nothing elsewhere.
    """

    def __init__(
        self, device: torch.device, compile: bool = False, recorder: Callable[[], Recorder] | None = None
    ) -> None:
        self.device, self._compile = device, compile
        if recorder is None and device.type == 'cuda':
            recorder = lambda: CudaRecorder(device)  # noqa: E731
        self._recorder = recorder
        self._lock = threading.Lock()
        self._compiled: dict[Work, Work] = {}

    @property
    def recording(self) -> bool:
        """Whether pieces are recorded; False where there is nothing to record with, and after a failure."""
        return self._recorder is not None

    def recorder(self) -> Recorder | None:
        """Recorder of a new slot."""
        make = self._recorder
        return None if make is None else make()

    def failed(self, what: str, error: Exception) -> None:
        """Give up recording, once and for all pieces: a GPU that refuses one graph will refuse the next."""
        with self._lock:
            if self._recorder is None:
                return
            self._recorder = None
        log.warning(
            '%s could not be recorded as a CUDA graph (%s); everything runs without graphs, with the same numbers '
            "but slower. Set capture to 'off' to silence this",
            what,
            _first_line(error),
        )

    def prepared(self, work: Work) -> Work:
        """The work, compiled when that is wanted and possible."""
        if not self._compile:
            return work
        with self._lock:
            if work not in self._compiled:
                self._compiled[work] = self._guarded(work)
            return self._compiled[work]

    def _guarded(self, work: Work) -> Work:
        compiled: Work = torch.compile(work)

        def run(*arguments: Tensor, **options: Any) -> Tensors:
            if self._compile:
                try:
                    return compiled(*arguments, **options)
                except Exception as err:  # no compiler, or something it does not know: the work itself still runs
                    out = work(*arguments, **options)  # and an error of its own is raised here
                    self._compile = False
                    log.warning(
                        'torch.compile failed (%s); the model runs uncompiled. Set compile to false to silence this',
                        _first_line(err),
                    )
                    return out
            return work(*arguments, **options)

        return run


class Piece:
    """One work at one set of shapes, with its buffers.

    Args:
        work: takes the given tensors, then the state. given: of the first call. state: tensors of the slot that the
            work may change, in a way that does no harm when repeated; always the same.
    """

    def __init__(self, name: str, work: Work, given: Tensors, state: Tensors, options: Options, graphs: Graphs) -> None:
        self._name, self._graphs = name, graphs
        self._work = partial(graphs.prepared(work), **dict(options))
        self._inputs = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in given)
        self._arguments = (*self._inputs, *state)
        self._results: Tensors = ()
        self._replay: Callable[[], None] | None = None

    def run(self, given: Tensors, recorder: Recorder | None) -> Tensors:
        """Results for inputs of the shapes this piece was made for; they are the caller's to keep."""
        _copy(given, self._inputs)
        if self._replay is None:
            out = self._work(*self._arguments)
            if recorder is not None and self._graphs.recording:
                self._record(recorder, out)
            return out
        self._replay()
        return tuple(r.clone() for r in self._results)

    def _record(self, recorder: Recorder, out: Tensors) -> None:
        results = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in out)
        try:
            self._replay = recorder.record(self._work, self._arguments, results)
            self._results = results
        except RuntimeError as err:  # what CUDA, the allocator and torch raise; the results are there already
            self._graphs.failed(self._name, err)


class Slot:
    """Buffers and recorded pieces for one caller at a time."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self._recorder = graphs.recorder()
        self._pieces: dict[Hashable, Piece] = {}
        self._event: Any = torch.cuda.Event() if graphs.device.type == 'cuda' else None

    @property
    def pieces(self) -> int:
        """Shapes seen so far."""
        return len(self._pieces)

    @torch.no_grad()
    def run(self, name: str, work: Work, given: Tensors, state: Tensors = (), options: Options = ()) -> Tensors:
        """Run work on ``given`` and the slot's own ``state``; the first time with new shapes it is also recorded."""
        key = (name, options, tuple((t.shape, t.dtype) for t in given))
        self.wait()
        piece = self._pieces.get(key) or Piece(name, work, given, state, options, self._graphs)
        out = piece.run(given, self._recorder)
        self._pieces[key] = piece  # only work that went well is worth keeping
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._graphs.device))
        return out

    def wait(self) -> None:
        """Let this thread's stream wait for what the slot's last user started, perhaps on another stream."""
        if self._event is not None:
            torch.cuda.current_stream(self._graphs.device).wait_event(self._event)


S = TypeVar('S')


class Pool(Generic[S]):
    """Lends slots, the one returned last first, so that few of them have to record anything.

    Args:
        make: a new slot. most: slots that may exist; beyond, nothing is lent.
    """

    def __init__(self, make: Callable[[], S], most: int) -> None:
        self._make, self._most = make, most
        # Given back by the garbage collector, perhaps while this very thread is in take(): a lock could deadlock.
        self._free: deque[S] = deque()
        self._lock = threading.Lock()
        self._made = 0

    @property
    def made(self) -> int:
        """Slots that exist."""
        return self._made

    def take(self) -> S | None:
        """A slot for this caller alone; None when all are lent."""
        try:
            return self._free.pop()
        except IndexError:
            pass  # none is free: make one
        with self._lock:
            if self._made >= self._most:
                return None
            self._made += 1
        return self._make()

    def give(self, slot: S) -> None:
        """Give a slot back."""
        self._free.append(slot)


class Lanes:
    """A CUDA stream per kind of work, so that a chunk does not queue behind a sentence; nothing on a CPU."""

    def __init__(self, device: torch.device, urgent: str = '') -> None:
        self._device, self._urgent = device, urgent
        self._streams: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        """Work inside runs on the stream of ``name``; what it returns must have been waited for."""
        if self._device.type != 'cuda':
            return nullcontext()
        with self._lock:
            if name not in self._streams:
                self._streams[name] = torch.cuda.Stream(self._device, priority=-1 if name == self._urgent else 0)
        return torch.cuda.stream(self._streams[name])


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for it: from pinned memory, which stays reserved until the copy is done."""
    if device.type != 'cuda' or tensor.device.type != 'cpu':
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _copy(source: Tensors, target: Tensors) -> None:
    for s, t in zip(source, target, strict=True):
        t.copy_(s)


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else "no reason given"}'
