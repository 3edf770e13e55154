"""Which stretches of a bag are episodes: marks of the recorder, instructions that change, or the whole bag.

The meaning of the marks is that of :mod:`instructvla_ros.data.marks`: ``start`` and ``stop`` enclose an episode,
``success`` and ``discard`` judge the one that ended last or end the one that runs; what is discarded stays so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..errors import DataError
from .marks import MARKS, Mark

MAX_INSTRUCTION = 1000

Text = tuple[int, str]
"""Time of recording [ns] and text of a std_msgs/String."""


@dataclass(frozen=True)
class Segment:
    """One episode to be made, in times of recording [ns]; both ends belong to it."""

    start_ns: int
    end_ns: int
    instruction: str
    success: bool | None = None
    origin: str = 'bag'


@dataclass
class Segments:
    """The episodes of a bag, and in words what was left out."""

    found: list[Segment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_segments(
    marks: Sequence[Text], instructions: Sequence[Text], start_ns: int, end_ns: int, instruction: str = ''
) -> Segments:
    """Cut a bag into episodes.

    Args:
        marks, instructions: texts of the two topics in the order of recording.
        start_ns, end_ns: of the bag. instruction: for all episodes, instead of what was recorded.
    """
    spoken = [(t, clean(text)) for t, text in instructions if clean(text)]
    out = Segments()
    parsed: list[tuple[int, Mark]] = []
    for time_ns, text in marks:
        try:
            parsed.append((time_ns, parse_mark(text)))
        except DataError as err:
            out.notes.append(f't = {time_ns * 1e-9:.3f} s: {err}')
    if parsed:
        _from_marks(parsed, spoken, end_ns, out)
    elif len({text for _, text in spoken}) > 1:
        _from_instructions(spoken, start_ns, end_ns, out)
    else:
        out.found.append(Segment(start_ns, end_ns, spoken[0][1] if spoken else ''))
    if instruction:
        out.found = [replace(s, instruction=clean(instruction)) for s in out.found]
    return out


def parse_mark(text: str) -> Mark:
    """Mark from the text of its message.

    Raises:
        DataError: not JSON, or not a mark.
    """
    try:
        content = json.loads(text)
        kind, words, episode = content['mark'], content.get('instruction') or '', content.get('episode') or 0
        if kind in MARKS and isinstance(words, str) and isinstance(episode, int):
            return Mark(kind, words, episode)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # named below
    raise DataError(f'not a mark: {text[:120]!r}; expected JSON with "mark": {", ".join(MARKS)}')


def clean(text: str) -> str:
    """Instruction on one line without control characters, at most 1000 characters."""
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())[:MAX_INSTRUCTION]


def _from_marks(marks: Sequence[tuple[int, Mark]], spoken: Sequence[Text], end_ns: int, out: Segments) -> None:
    ended: list[tuple[Segment, str]] = []  # with its judgement
    running: Segment | None = None

    def end(at_ns: int, mark: Mark | None = None) -> None:
        nonlocal running
        if running is not None:
            words = (clean(mark.instruction) if mark is not None else '') or running.instruction
            ended.append((replace(running, end_ns=max(at_ns, running.start_ns), instruction=words), ''))
            running = None

    for time_ns, mark in marks:
        when = f't = {time_ns * 1e-9:.3f} s'
        if mark.kind == 'start':
            if running is not None:
                out.notes.append(f'the episode before {when} was started but not stopped; it ends there')
                end(time_ns - 1)
            words = clean(mark.instruction) or _last(spoken, time_ns)
            running = Segment(time_ns, time_ns, words, None, 'marks')
        elif running is not None:
            end(time_ns, mark)
        elif not ended or mark.kind == 'stop':
            out.notes.append(f'{mark.kind} at {when} without a start')
        if mark.kind in ('success', 'discard') and ended and running is None and ended[-1][1] != 'discard':
            ended[-1] = (ended[-1][0], mark.kind)
    if running is not None:
        out.notes.append('the last episode was started but not stopped; it ends with the bag')
        end(end_ns)
    for number, (segment, judged) in enumerate(ended, 1):
        if judged == 'discard':
            out.notes.append(f'episode {number} of {len(ended)} was discarded by its mark')
        elif segment.end_ns > segment.start_ns:
            out.found.append(replace(segment, success=True if judged == 'success' else None))


def _from_instructions(spoken: Sequence[Text], start_ns: int, end_ns: int, out: Segments) -> None:
    changes = [(t, text) for k, (t, text) in enumerate(spoken) if k == 0 or text != spoken[k - 1][1]]
    if changes[0][0] > start_ns:
        seconds = (changes[0][0] - start_ns) * 1e-9
        out.notes.append(f'{seconds:.1f} s before the first instruction were left out')
    ends = [t - 1 for t, _ in changes[1:]] + [end_ns]
    for (t, text), end in zip(changes, ends, strict=True):
        if end > t:
            out.found.append(Segment(t, end, text, None, 'instructions'))


def _last(spoken: Sequence[Text], time_ns: int) -> str:
    before = [text for t, text in spoken if t <= time_ns]
    return before[-1] if before else ''
