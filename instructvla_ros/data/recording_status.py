"""What a person has to know while recording: rates, silent topics, losses, disk; and the summary at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .marks import Span


@dataclass(frozen=True)
class Watched:
    """A topic that is recorded.

    Attributes:
        periodic: it comes all the time once it has begun, so that silence is a fault. required: it has to come.
    """

    name: str
    periodic: bool = False
    required: bool = False


@dataclass
class Counter:
    """Numbers of one topic. ``seen`` counts what arrived, ``stored`` what was handed to the writer."""

    watched: Watched
    msgtype: str = ''
    seen: int = 0
    stored: int = 0
    dropped: int = 0
    bytes: int = 0
    rate: float = 0.0
    last_seen: float = -math.inf  # monotonic [s]
    last_count: int = 0  # `seen` when the rate was measured last

    def silence(self, now: float, since: float) -> float:
        """How long nothing came, counted from the start of the recording if nothing ever came [s]."""
        return now - max(self.last_seen, since)


@dataclass(frozen=True)
class TopicStatus:
    """One topic: messages stored, bytes, rate [Hz], messages dropped, silence [s] (0 when that is no fault)."""

    name: str
    msgtype: str
    messages: int
    bytes: int
    rate: float
    dropped: int
    silent: float


@dataclass(frozen=True)
class Status:
    """State of a recording.

    Attributes:
        seconds: since it began. bytes: on the disk. rate: bytes per second of late. free: bytes the disk has left.
        seconds_left: until the disk reaches its margin at this rate, infinite when nothing comes.
        backlog: share of the queue that waits for the disk. safe_ns: newest stamp that is on the disk.
        ended: why it ended, '' while it runs.
    """

    path: str
    seconds: float
    bytes: int
    rate: float
    free: int
    seconds_left: float
    backlog: float
    safe_ns: int
    instruction: str
    episodes: tuple[Span, ...]
    topics: tuple[TopicStatus, ...]
    ended: str = ''
    problems: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        """Whether an episode is being recorded."""
        return bool(self.episodes) and self.episodes[-1].stop_ns is None

    def plain(self) -> dict[str, Any]:
        """As JSON has it; numbers that JSON has not become None."""
        data = asdict(self)
        data['seconds_left'] = self.seconds_left if math.isfinite(self.seconds_left) else None
        data['topics'] = [asdict(t) for t in self.topics]
        data['episodes'] = [asdict(e) for e in self.episodes]
        return data


@dataclass
class Meter:
    """Counters of all topics, and what they say about silence."""

    began: float
    silent_after: float
    counters: dict[str, Counter] = field(default_factory=dict)
    measured: float = 0.0

    def watch(self, watched: Iterable[Watched]) -> None:
        """Add topics."""
        for topic in watched:
            self.counters.setdefault(topic.name, Counter(topic))

    def counter(self, name: str) -> Counter:
        """Counter of a topic, made when it is new."""
        if name not in self.counters:
            self.counters[name] = Counter(Watched(name))
        return self.counters[name]

    def measure(self, now: float) -> None:
        """Compute the rates since the last call."""
        elapsed = now - (self.measured or self.began)
        self.measured = now
        if elapsed > 0.0:
            for counter in self.counters.values():
                counter.rate = (counter.seen - counter.last_count) / elapsed
                counter.last_count = counter.seen

    def silent(self, now: float) -> dict[str, float]:
        """Topics that should speak and do not, and for how long [s]."""
        out = {}
        for name, counter in self.counters.items():
            expected = counter.watched.periodic and (counter.seen or counter.watched.required)
            if expected and counter.silence(now, self.began) > self.silent_after:
                out[name] = counter.silence(now, self.began)
        return out

    def never(self) -> list[str]:
        """Topics that had to come and never did."""
        return [n for n, c in self.counters.items() if c.watched.required and not c.seen]

    def topics(self, now: float) -> tuple[TopicStatus, ...]:
        """Every topic that was announced, came, or should have."""
        silent = self.silent(now)
        return tuple(
            TopicStatus(n, c.msgtype, c.stored, c.bytes, round(c.rate, 2), c.dropped, round(silent.get(n, 0.0), 1))
            for n, c in self.counters.items()
            if c.seen or c.msgtype or c.watched.required
        )


def problems(silent: Mapping[str, float], counters: Mapping[str, Counter]) -> tuple[str, ...]:
    """Sentences about silent topics and dropped messages."""
    out = [
        f'{name} silent for {seconds:.0f} s' if counters[name].seen else f'{name} has not come for {seconds:.0f} s'
        for name, seconds in silent.items()
    ]
    out += [f'{name}: {c.dropped} messages dropped, the disk is too slow' for name, c in counters.items() if c.dropped]
    return tuple(out)
