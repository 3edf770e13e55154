"""Recorded against predicted motion as the page gets it: remembers what the player of a recording told; no ROS.

What comes is JSON of :mod:`~instructvla_ros.evaluation.replay_timeline`. It is checked here only as far as this module
uses it; the page draws what it understands.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

from ..errors import ObservationError

RECORDED, PREDICTED = 'replay/recorded', 'replay/predicted'  # topics of the player, relative to the namespace
MOST = 4000  # of each kind for a browser that comes late


class Timeline:
    """Everything a browser needs to draw the timeline of a recording. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recorded: dict[str, Any] | None = None
        self._kept: dict[str, OrderedDict[Any, dict[str, Any]]] = {}
        self._now = 0.0
        self._number = 0
        self._early: list[dict[str, Any]] = []

    def on_recorded(self, text: str) -> dict[str, Any]:
        """Take the recorded motion, which begins a new timeline; returns the content of the event ``timeline``.

        Raises:
            ObservationError: it is not what a player sends.
        """
        recorded = _object(text)
        if not isinstance(recorded.get('t'), list) or not isinstance(recorded.get('rows'), list):
            raise ObservationError('the recorded motion lacks the lists `t` and `rows`')
        with self._lock:
            self._recorded, self._now = recorded, 0.0
            self._kept = {name: OrderedDict() for name in ('chunks', 'sentences', 'verdicts')}
            for news in self._early:
                self._keep(news)
            self._early = []
            return self._all()

    def on_news(self, text: str) -> dict[str, Any] | None:
        """Take what came since; returns the content of the event ``news``, None before the recorded motion is known.

        Raises:
            ObservationError: it is not what a player sends.
        """
        news = _object(text)
        if not isinstance(news.get('now'), (int, float)):
            raise ObservationError('news of a replay without the time `now`')
        with self._lock:
            if self._recorded is None:
                self._early = [*self._early, news][-MOST:]
                return None
            self._keep(news)
            return {**news, 'number': self._number}

    def whole(self) -> dict[str, Any] | None:
        """Everything so far for a new browser; None while nothing is replayed."""
        with self._lock:
            return self._all() if self._recorded is not None else None

    def _keep(self, news: dict[str, Any]) -> None:
        self._number += 1  # a browser that misses one asks for everything
        self._now = float(news['now'])
        for name, key in (('chunks', 'id'), ('sentences', 'id'), ('verdicts', 'n')):
            kept = self._kept[name]
            for row in news.get(name) or []:
                if isinstance(row, dict) and key in row:
                    kept[row[key]] = row
            while len(kept) > MOST:
                kept.popitem(last=False)

    def _all(self) -> dict[str, Any]:
        kept = {name: list(rows.values()) for name, rows in self._kept.items()}
        return {'recorded': self._recorded, 'now': self._now, 'number': self._number, **kept}


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ObservationError('the player sent something that is not JSON') from None
    if not isinstance(data, dict):
        raise ObservationError('the player sent JSON that is not an object')
    return data
