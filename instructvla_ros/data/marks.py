"""Marks in a recording: where a demonstration begins and ends, and whether it is one to learn from.

A mark is a ``std_msgs/String`` with JSON on ``/instructvla/episode_mark``:
``{"mark": "start", "instruction": "put the red cube in the bowl", "episode": 3}``. ``start`` and ``stop`` enclose an
episode; ``success`` and ``discard`` judge the one that ended last. Nothing is ever deleted: a discarded episode is only
marked, and stays discarded, so that a second ``discard`` cannot hit the episode before it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from ..errors import DataError, suggest

MARK_NAME = 'episode_mark'
MARK_TOPIC = f'/instructvla/{MARK_NAME}'
MARKS = ('start', 'stop', 'success', 'discard')


@dataclass(frozen=True)
class Mark:
    """One mark; ``episode`` counts from 1 in each recording, 0 when the writer did not say."""

    kind: str
    instruction: str = ''
    episode: int = 0

    def to_json(self) -> str:
        """Text of the message."""
        return json.dumps({'mark': self.kind, 'instruction': self.instruction, 'episode': self.episode})


@dataclass(frozen=True)
class Span:
    """One episode of a recording.

    Attributes:
        index: counts from 1. start_ns: stamp of its start mark. stop_ns: of its stop mark, None while it runs.
        result: 'success', 'discard', or '' when nobody judged it.
    """

    index: int
    instruction: str
    start_ns: int
    stop_ns: int | None = None
    result: str = ''


class Episodes:
    """What has been marked so far, and which mark may come next."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @property
    def running(self) -> bool:
        """Whether an episode has begun and not ended."""
        return bool(self.spans) and self.spans[-1].stop_ns is None

    def mark(self, kind: str, stamp_ns: int, instruction: str = '') -> list[Mark]:
        """Marks to be written for this request: judging an episode that still runs ends it first.

        Raises:
            DataError: there is nothing to mark in this way; the message says what would be possible.
        """
        if kind not in MARKS:
            raise DataError(f'unknown mark {kind!r}.{suggest(kind, MARKS)}')
        if kind == 'start':
            if self.running:
                raise DataError(f'episode {len(self.spans)} is running; mark its stop, success or discard first')
            self.spans.append(Span(len(self.spans) + 1, instruction, stamp_ns))
            return [Mark('start', instruction, len(self.spans))]
        if not self.spans:
            raise DataError(f'{kind}: no episode has begun; mark a start first')
        if kind == 'stop' and not self.running:
            raise DataError(f'stop: episode {len(self.spans)} has ended already; mark success or discard, or a start')
        if self.spans[-1].result == 'discard':
            raise DataError(f'{kind}: episode {len(self.spans)} is discarded already; mark a start')
        last = self.spans[-1]
        out = []
        if self.running:
            last = replace(last, stop_ns=stamp_ns)
            out.append(Mark('stop', last.instruction, last.index))
        if kind != 'stop':
            last = replace(last, result=kind)
            out.append(Mark(kind, last.instruction, last.index))
        self.spans[-1] = last
        return out
