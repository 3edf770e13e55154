"""Running lists for a person: what the safety ladder did, and how long things took."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datatypes import Verdict, VerdictAction

_KEPT_TIME = 120.0  # s
_KEPT = 30  # lines
_SAME = 10.0  # s: equal verdicts nearer in time are one line with a count
_SAMPLES = 100


@dataclass
class _Line:
    verdict: Verdict
    at: float
    count: int = 1


class VerdictList:
    """Verdicts, newest first; equal ones in a row are counted. Times are seconds of a steady clock."""

    def __init__(self) -> None:
        self._lines: OrderedDict[tuple[str, str, str], _Line] = OrderedDict()

    def add(self, verdict: Verdict, now: float) -> None:
        """Take one."""
        if verdict.action is VerdictAction.PASSED:
            return
        key = (verdict.rule, verdict.action.name, verdict.subject)
        old = self._lines.pop(key, None)
        count = old.count + 1 if old is not None and now - old.at < _SAME else 1
        self._lines[key] = _Line(verdict, now, count)
        while len(self._lines) > _KEPT:
            self._lines.popitem(last=False)

    def rows(self, now: float) -> list[dict[str, Any]]:
        """Lines for the page, newest first."""
        return [
            {
                'rule': line.verdict.rule,
                'action': line.verdict.action.name,
                'subject': line.verdict.subject,
                'value': line.verdict.value,
                'limit': line.verdict.limit,
                'unit': line.verdict.unit,
                'text': line.verdict.text,
                'chunk': line.verdict.chunk_id,
                'count': line.count,
                'age': round(now - line.at, 2),
            }
            for line in reversed(self._lines.values())
            if now - line.at < _KEPT_TIME
        ]


class Durations:
    """Last hundred values of each of several durations [s]."""

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        """Take one; what is not finite is left out."""
        if np.isfinite(seconds):
            self._values.setdefault(name, deque(maxlen=_SAMPLES)).append(float(seconds))

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()

    def rows(self) -> list[dict[str, Any]]:
        """Name, newest, median, 95th percentile [s] and count, in the order of their first value."""
        out = []
        for name, values in self._values.items():
            p50, p95 = np.percentile(values, [50, 95]).tolist()
            out.append({'name': name, 'last': values[-1], 'p50': p50, 'p95': p95, 'count': len(values)})
        return out
