"""Runs the cases of Tabletop-Instruct, in several processes and so that an interrupted run can go on.

Every finished episode is one line of ``episodes.jsonl``. Its ``id`` covers the case with its scene, the configuration
and the content of the checkpoint: what has been measured with anything else is left in the file and not counted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ..errors import ConfigError, SetupError, suggest
from ..policy import Policy
from . import runlog
from .machine import usable_cores
from .suite_cell import STRATEGIES, VIDEOS, Cell, Setup, case_id
from .suites import Case

RESULTS = 'episodes.jsonl'
TOGETHER = 8
"""Episodes of one process that a learned policy is asked about at once."""
BLOCK = 4
"""A worker is given so many times the episodes that it plays at once: then it can fill the places that get free."""
POLL = 0.2
"""How often new rows of the workers are looked for [s]."""


def check(found: Sequence[Case], setup: Setup, workers: int) -> None:
    """Refuse what cannot run before anything is started.

    Raises:
        ConfigError: nothing to run, an unknown strategy, no workers.
    """
    if not found:
        raise ConfigError('there is nothing to run')
    for case in found:
        if case.strategy and case.strategy not in STRATEGIES:
            raise ConfigError(f'unknown strategy {case.strategy!r}.{suggest(case.strategy, STRATEGIES)}')
    if setup.videos not in VIDEOS:
        raise ConfigError(f'videos {setup.videos!r}.{suggest(setup.videos, VIDEOS)}')
    if workers < 1:
        raise ConfigError(f'{workers} workers; at least one is needed')
    if setup.together < 1:
        raise ConfigError(f'{setup.together} episodes together; at least one is needed')


def earlier(file: Path) -> list[dict[str, Any]]:
    """Rows of a results file; a line cut off by a crash is left out."""
    if not file.is_file():
        return []
    out = []
    for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and 'id' in row and 'success' in row:
            out.append(row)
    return out


def run_cases(
    found: Sequence[Case],
    setup: Setup,
    workers: int = 1,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    policy: Policy | None = None,
) -> list[dict[str, Any]]:
    """Run what has not been run yet, and return the rows of all cases in their order.

    Args:
        on_row: called for every new row. policy: to use in this process, which then is the only one.

    Raises:
        ConfigError: see :func:`check`. SetupError: a worker died. Whatever an episode raises; what was finished before
            is in the results file.
    """
    check(found, setup, workers)
    folder = Path(setup.folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity = setup.identity()
    wanted = {case_id(case, identity): case for case in found}
    rows = {r['id']: r for r in earlier(folder / RESULTS) if r['id'] in wanted}
    missing = [case for key, case in wanted.items() if key not in rows]
    file = folder / RESULTS
    torn = file.is_file() and file.stat().st_size > 0 and not file.read_bytes().endswith(b'\n')
    with file.open('a', encoding='utf-8') as out:
        if torn:
            out.write('\n')
        source = (
            _here(missing, setup, policy) if workers == 1 or policy is not None else _beside(missing, setup, workers)
        )
        for row in source:
            plain = runlog.plain(row)
            out.write(json.dumps(plain, allow_nan=False) + '\n')
            out.flush()
            rows[row['id']] = plain
            if on_row is not None:
                on_row(plain)
    return [rows[key] for key in wanted]


def _here(missing: Sequence[Case], setup: Setup, policy: Policy | None) -> Iterator[dict[str, Any]]:
    if not missing:
        return
    cell = Cell(setup, policy)
    try:
        for block in _blocks(missing, setup, 1):
            yield from cell.run_many(block)
    finally:
        cell.close()


def _blocks(missing: Sequence[Case], setup: Setup, workers: int) -> list[Sequence[Case]]:
    """Cases that are run in one go. They share rounds of the policy: not by who is free, but by place in the list."""
    size = max(1, min(BLOCK * setup.together if setup.together > 1 else 1, -(-len(missing) // workers)))
    return [missing[k : k + size] for k in range(0, len(missing), size)]


def _beside(missing: Sequence[Case], setup: Setup, workers: int) -> Iterator[dict[str, Any]]:
    if not missing:
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context('spawn')  # a fork would share locks and graphics with this process
    threads = max(1, usable_cores() // workers)
    blocks = _blocks(missing, setup, workers)
    rows = context.SimpleQueue()  # a row comes when its episode ends, not with the last one of its block
    pool = ProcessPoolExecutor(min(workers, len(blocks)), context, _start, (setup, threads, rows))
    try:
        running: set[Future[None]] = {pool.submit(_in_worker, block) for block in blocks}
        while running:
            done, running = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
            while not rows.empty():
                yield rows.get()
            for one in done:
                one.result()
        pool.shutdown()
    except BrokenProcessPool as err:
        raise SetupError(
            'a worker process died, often for want of memory. Finished episodes are kept: continue with fewer '
            '--workers, or a smaller --together'
        ) from err
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


_SETUP: Setup | None = None
_CELL: Cell | None = None
_ROWS: Any = None


def _start(setup: Setup, threads: int, rows: Any) -> None:
    """First thing in a worker. The cell is made with the first case, so that its errors reach the caller."""
    global _SETUP, _ROWS
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    os.environ['OMP_NUM_THREADS'] = str(threads)
    _SETUP, _ROWS = setup, rows


def _in_worker(block: Sequence[Case]) -> None:
    global _CELL
    if _CELL is None:
        if _SETUP is None:
            raise SetupError('a worker was not set up')
        _CELL = Cell(_SETUP)
        torch = sys.modules.get('torch')
        if torch is not None:
            torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    for row in _CELL.run_many(block):
        _ROWS.put(row)


def default_workers() -> int:
    """One per core that this process may use, at most eight."""
    return min(8, usable_cores())
