"""Run the tests in the order in which they are most useful, and sum them up.

Plain tests first, in two processes where there are two cores. Then each file of ``test/ros`` in a process of its own,
one after the other: a node or an rclpy context that one of them leaves behind must not decide about the next, and
nothing else shall take the processor from a graph that keeps time. A machine that others share may still make one miss
a deadline: what failed in ``test/ros`` runs once more, and the summary names what needed that. A process that has
written its results and does not end is ended: threads of Fast DDS 3.2 can wait for each other when a client goes at the
moment in which its server does. The summary names it, and the results count. Arguments are handed to
pytest; with those that want one process (``-x``, ``-s``, ``--pdb``, ...) the plain tests run in one and nothing runs
twice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 900  # per process; a hanging graph must not hang the whole run
LEAVE_S = 60  # to end once the results are written
NAMES = {'failure': 'failed', 'error': 'errors', 'skipped': 'skipped'}  # JUnit element, pytest's word
FAILED = 1  # exit code of pytest when tests failed: not when it was killed, did not end or could not collect
NO_TESTS = 5  # when a filter leaves nothing to run
STAYED = 256  # all passed, and the process had to be ended; no process or signal gives this code
# Arguments of pytest that mean something else, or nothing, in two processes.
ALONE = {'-x', '--exitfirst', '-s', '--capture=no', '--pdb', '--trace'}


def run(groups: list[list[str]], arguments: list[str], results: list[Path]) -> list[int]:
    """Run pytest on groups of files at once, each in a process group of its own; return their exit codes.

    The first one writes to this terminal; what the others say follows when they have ended.
    """
    processes, said, codes = [], [], []
    try:
        for index, (files, result) in enumerate(zip(groups, results, strict=True)):
            result.unlink(missing_ok=True)  # of a first try
            command = [sys.executable, '-m', 'pytest', *files, f'--junitxml={result}', *arguments]
            if len(groups) > 1:  # at its end pytest writes the whole cache, which must not be that of another one
                command += ['-o', f'cache_dir=.pytest_cache/{index}']
            out = open(result.with_suffix('.txt'), 'w+') if index else None
            said.append(out)
            processes.append(subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=out, stderr=out))
        deadline = time.monotonic() + LIMIT_S
        for process, files, out, result in zip(processes, groups, said, results, strict=True):
            code = wait(process, result, deadline)
            if code == 124:
                print(f'\n{" ".join(files)} did not end within {LIMIT_S} s', flush=True)
            codes.append(code)
            if out is not None:
                out.seek(0)
                print(out.read(), flush=True)
        return codes
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for out in said:
            if out is not None:
                out.close()


def wait(process: subprocess.Popen[bytes], result: Path, deadline: float) -> int:
    """Exit code; 124 after ``deadline`` (monotonic), :data:`STAYED` or 1 when only the end did not come."""
    written = 0.0
    while time.monotonic() < deadline:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if result.is_file() and result.stat().st_size:
                written = written or time.monotonic()
                if time.monotonic() - written > LEAVE_S:
                    return FAILED if failing(result) else STAYED
    return 124


def count(result: Path) -> Counter[str]:
    """Outcomes in a JUnit file; empty when pytest died before it could write one."""
    outcomes: Counter[str] = Counter()
    if result.is_file() and result.stat().st_size:
        for case in ElementTree.parse(result).iter('testcase'):
            kinds = {child.tag for child in case}
            named = [word for tag, word in NAMES.items() if tag in kinds]
            outcomes[named[0] if named else 'passed'] += 1
    return outcomes


def failing(result: Path) -> list[str]:
    """Names of the tests that did not pass in a JUnit file."""
    cases = ElementTree.parse(result).iter('testcase')
    return [case.get('name', '') for case in cases if {'failure', 'error'} & {child.tag for child in case}]


def once_more(file: str, arguments: list[str], result: Path) -> tuple[int, Counter[str], str]:
    """Run what failed in a file of ``test/ros`` again: exit code, outcomes of the whole file, what to say of it."""
    before, names = count(result), failing(result)
    print(f'\n{file}: once more: {", ".join(names)}', flush=True)
    (code,) = run([[file]], [*arguments, '--last-failed', '--last-failed-no-failures=none'], [result])
    if code not in (0, STAYED):
        return code, before, ''
    before.subtract(Counter({word: before[word] for word in ('failed', 'errors')}))
    return code, before + Counter(passed=len(names)), f'{file}: {", ".join(names)}'


def main(arguments: list[str]) -> int:
    """Run every group; return 0 when all of them passed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored when a shell started us in the background
    plain = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'test').glob('test_*.py'))
    watched = any(a in ALONE or a.startswith('--maxfail') for a in arguments)
    alone = watched or (os.cpu_count() or 1) < 2
    graph = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'test' / 'ros').glob('test_*.py'))
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    second: list[str] = []
    stayed: list[str] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # There and back (0 1 1 0): neighbours in the alphabet take about as long as each other.
        first = [plain] if alone else [plain[0::4] + plain[3::4], plain[1::4] + plain[2::4]]
        for step, groups in enumerate([first, *([[f]] for f in graph)]):
            results = [Path(folder) / f'{step}-{k}.xml' for k in range(len(groups))]
            for files, result, code in zip(groups, results, run(groups, arguments, results), strict=True):
                if code == FAILED and files[0] in graph and not watched:
                    code, outcome, told = once_more(files[0], arguments, result)
                    second += [told] if told else []
                else:
                    outcome = count(result)
                outcomes += outcome
                if code == STAYED:
                    stayed += files
                elif code not in (0, NO_TESTS):
                    bad.append(f'{files[0] if len(files) == 1 else "plain tests"} (exit code {code})')
    total = ', '.join(f'{outcomes[k]} {k}' for k in ('passed', 'failed', 'errors', 'skipped') if outcomes[k])
    print(f'\n=== all tests: {total or "none"} in {time.monotonic() - started:.0f} s ===')
    for name in second:
        print(f'passed at the second try: {name}')
    for name in stayed:
        print(f'passed, and did not end by itself: {name}')
    for name in bad:
        print(f'not passed: {name}')
    return 1 if bad or not outcomes else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
