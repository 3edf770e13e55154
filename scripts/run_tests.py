"""Run the tests in the order in which they are most useful, and sum them up.

Plain tests first, in one process. Then each file of ``test/ros`` in a process of its own: a node or an rclpy context
that one of them leaves behind must not decide about the next. Arguments are handed to pytest.
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
NAMES = {'failure': 'failed', 'error': 'errors', 'skipped': 'skipped'}  # JUnit element, pytest's word
NO_TESTS = 5  # exit code of pytest when a filter leaves nothing to run


def run(files: list[str], arguments: list[str], result: Path) -> int:
    """Run pytest on some files in a process group of its own; return its exit code."""
    command = [sys.executable, '-m', 'pytest', *files, f'--junitxml={result}', *arguments]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f'\n{" ".join(files)} did not end within {LIMIT_S} s', flush=True)
        return 124
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def count(result: Path) -> Counter[str]:
    """Outcomes in a JUnit file; empty when pytest died before it could write one."""
    outcomes: Counter[str] = Counter()
    if result.is_file() and result.stat().st_size:
        for case in ElementTree.parse(result).iter('testcase'):
            kinds = {child.tag for child in case}
            named = [word for tag, word in NAMES.items() if tag in kinds]
            outcomes[named[0] if named else 'passed'] += 1
    return outcomes


def main(arguments: list[str]) -> int:
    """Run every group; return 0 when all of them passed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored when a shell started us in the background
    plain = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'test').glob('test_*.py'))
    graph = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'test' / 'ros').glob('test_*.py'))
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for index, files in enumerate([plain, *([f] for f in graph)]):
            result = Path(folder) / f'{index}.xml'
            code = run(files, arguments, result)
            outcomes += count(result)
            if code not in (0, NO_TESTS):
                bad.append(f'{files[0] if len(files) == 1 else "plain tests"} (exit code {code})')
    total = ', '.join(f'{outcomes[k]} {k}' for k in ('passed', 'failed', 'errors', 'skipped') if outcomes[k])
    print(f'\n=== all tests: {total or "none"} in {time.monotonic() - started:.0f} s ===')
    for name in bad:
        print(f'not passed: {name}')
    return 1 if bad or not outcomes else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
