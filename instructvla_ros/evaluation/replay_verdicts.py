"""Verdicts of a replay: equal ones of period after period are one entry with a count and its worst number.

A controller at 100 Hz that corrects a chunk says so in every period, which over a long recording would be most of
what a replay keeps.
"""

from __future__ import annotations

from math import inf, isfinite
from typing import Any

from ..datatypes import Verdict, VerdictAction

TOGETHER = 0.05
"""Pause within which equal verdicts are one entry [s]."""


def excess(value: float | None, limit: float | None) -> float:
    """How far a value is beyond its limit, -inf where one of them is not known."""
    if value is None or limit is None or not (isfinite(value) and isfinite(limit)):
        return -inf
    return abs(value) - abs(limit)


class Verdicts:
    """Collects them; :attr:`entries` are dicts in the order of their beginnings.

    An entry has ``stamp_ns`` and ``until_ns`` (first and last time), ``count``, ``action``, ``rule``, ``subject``,
    ``unit``, ``chunk_id``, and ``value``, ``limit`` and ``text``.

    Args:
        pause: within which equal verdicts are one entry [s].
        per_chunk: an entry is about one chunk and has its worst number; otherwise it goes on from chunk to chunk and
            has the first.
    """

    def __init__(self, pause: float = TOGETHER, per_chunk: bool = True) -> None:
        self.entries: list[dict[str, Any]] = []
        self._pause_ns, self._per_chunk = pause * 1e9, per_chunk
        self._newest: dict[tuple[str, VerdictAction, str], int] = {}

    def add(self, stamp_ns: int, verdict: Verdict) -> int:
        """Take one verdict, with the time of an arm's clock [ns]; returns the number of its entry."""
        key = verdict.rule, verdict.action, verdict.subject
        k = self._newest.get(key, -1)
        entry = self.entries[k] if k >= 0 else None
        if (
            entry is not None
            and (not self._per_chunk or entry['chunk_id'] == verdict.chunk_id)
            and 0 <= stamp_ns - entry['until_ns'] <= self._pause_ns
        ):
            entry['until_ns'] = stamp_ns
            entry['count'] += 1
            worse = excess(verdict.value, verdict.limit) > excess(entry['value'], entry['limit'])
            if not (self._per_chunk and worse):
                return k
        else:
            k = self._newest[key] = len(self.entries)
            entry = {
                'stamp_ns': stamp_ns,
                'until_ns': stamp_ns,
                'count': 1,
                'action': verdict.action.name,
                'rule': verdict.rule,
                'subject': verdict.subject,
                'unit': verdict.unit,
                'chunk_id': verdict.chunk_id,
            }
            self.entries.append(entry)
        entry['value'], entry['limit'], entry['text'] = verdict.value, verdict.limit, verdict.text
        return k
