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
    ``unit``, ``chunk_id``, and ``value``, ``limit`` and ``text`` of the worst.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._newest: dict[tuple[str, VerdictAction, str], dict[str, Any]] = {}

    def add(self, stamp_ns: int, verdict: Verdict) -> None:
        """One verdict; stamps of an arm's clock [ns]."""
        key = verdict.rule, verdict.action, verdict.subject
        entry = self._newest.get(key)
        if (
            entry is not None
            and entry['chunk_id'] == verdict.chunk_id
            and 0 <= stamp_ns - entry['until_ns'] <= TOGETHER * 1e9
        ):
            entry['until_ns'] = stamp_ns
            entry['count'] += 1
            if excess(verdict.value, verdict.limit) <= excess(entry['value'], entry['limit']):
                return
        else:
            entry = self._newest[key] = {
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
