"""What a person should see in 3D: thoughts, predicted chunks, verdicts and bounds as plain shapes; no ROS.

Everything is in the robot base frame [m] with identity orientation. :class:`Board` remembers what arrived and answers
at any time which shapes are visible and which disappeared since the last answer; times are seconds of any steady clock.
"""

from __future__ import annotations

import math
import textwrap
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from .datatypes import ActionChunk, Reasoning, ReasoningKind, Verdict, VerdictAction
from .geometry import Array, integrate
from .settings import Safety, Visual

MAX_CHUNKS = 20
MAX_VERDICTS = 12
MAX_POINTS = 64  # drawn per chunk; the path topic has all of them
MAX_EXECUTED = 500
_TIES = 64  # sentences whose chunks are counted
_SAME_PLACE = 0.05  # m: equal verdicts nearer than this are one marker with a count
_CROWDED = 0.3  # m: texts of verdicts nearer than this stand above each other
_EXECUTED_STEP = 0.003  # m
_THOUGHT_WIDTH, _HISTORY_WIDTH, _VERDICT_WIDTH = 36, 46, 44  # characters
_LINE = 1.25  # line height per text height
_FAINTEST = 0.02  # alpha below which a shape is gone

# Blue (now) over cyan and green to yellow (end of the chunk); red is kept for refusals.
_TIME_RAMP = np.array([[0.15, 0.40, 1.0], [0.05, 0.80, 0.90], [0.35, 0.90, 0.35], [1.0, 0.85, 0.10]])
OPEN, CLOSED, REFUSED = (0.30, 1.0, 0.45), (1.0, 0.45, 0.10), (1.0, 0.10, 0.15)
_WHITE, _GREY, _ANSWER = (1.0, 1.0, 1.0), (0.70, 0.72, 0.75), (0.55, 0.85, 1.0)
_VERDICT_COLORS = {
    VerdictAction.PASSED: _GREY,
    VerdictAction.SCALED: (1.0, 0.85, 0.2),
    VerdictAction.CLIPPED: (1.0, 0.60, 0.1),
    VerdictAction.REFUSED: REFUSED,
    VerdictAction.HELD: (0.95, 0.25, 0.75),
}
_EDGES = ((0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7), (6, 7))


class Kind(Enum):
    """Form of a shape; the values are those of visualization_msgs/Marker."""

    CUBE = 1
    SPHERE = 2
    LINE_STRIP = 4
    LINE_LIST = 5
    SPHERE_LIST = 7
    TEXT = 9


@dataclass(frozen=True)
class Shape:
    """One marker.

    Attributes:
        namespace, id: identity; the same pair replaces what was shown before.
        position: of the centre (3,) [m]. scale: (3,) [m], all positive. color: red green blue alpha 0..1.
        points: (N, 3) [m] of lines and lists. colors: (N, 4) or None for one colour.
        text: what a TEXT says; for the other kinds the ids they belong to.
    """

    namespace: str
    id: int
    kind: Kind
    scale: tuple[float, float, float]
    color: tuple[float, float, float, float]
    position: Array = field(default_factory=lambda: np.zeros(3))
    points: Array = field(default_factory=lambda: np.empty((0, 3)))
    colors: Array | None = None
    text: str = ''

    @property
    def key(self) -> tuple[str, int]:
        """Namespace and id."""
        return self.namespace, self.id


def chunk_poses(chunk: ActionChunk) -> Array:
    """Poses (n + 1, 4, 4) [m] of a chunk in its ``frame_id``: the reference, then the pose after each step.

    n is the number of leading steps that are finite; a chunk with others is refused, but its beginning can be shown.
    """
    finite = np.all(np.isfinite(chunk.steps), axis=1)
    count = chunk.horizon if finite.all() else int(np.argmin(finite))
    reference = np.asarray(chunk.reference_pose, dtype=np.float64)[None]
    if count == 0:
        return reference
    return np.concatenate([reference, integrate(reference[0], chunk.steps[:count], chunk.delta_frame, chunk.rotation)])


def time_colors(count: int, alpha: float = 1.0) -> Array:
    """Colours (count, 4) from the beginning of a chunk (blue) to its end (yellow)."""
    at = np.linspace(0.0, 1.0, max(count, 1))[:count]
    knots = np.linspace(0.0, 1.0, len(_TIME_RAMP))
    rgb = np.column_stack([np.interp(at, knots, _TIME_RAMP[:, k]) for k in range(3)])
    return np.column_stack([rgb, np.full(count, alpha)])


def wrap(text: str, width: int, lines: int) -> list[str]:
    """At most ``lines`` lines of at most ``width`` characters; what does not fit ends in '...'."""
    clean = ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())
    return textwrap.wrap(clean, width, max_lines=lines, placeholder=' ...') or ['']


def describe(verdict: Verdict, count: int = 1) -> list[str]:
    """Rule, action and numbers of a verdict in lines for a person; the last names its chunk."""
    head = f'{verdict.rule} {verdict.action.name}' + (f' x{count}' if count > 1 else '')
    if math.isfinite(verdict.value):
        subject = f'{verdict.subject} ' if verdict.subject else ''
        limit = f' (limit {verdict.limit:.4g})' if math.isfinite(verdict.limit) else ''
        body = [f'{subject}{verdict.value:.4g} {verdict.unit}{limit}'.replace('  ', ' ')]
    else:
        body = wrap(verdict.text or verdict.subject, _VERDICT_WIDTH, 2)
    return [head, *(line for line in body if line), *([verdict.chunk_id] if verdict.chunk_id else [])]


@dataclass
class _Chunk:
    serial: int
    chunk: ActionChunk
    poses: Array
    until: float  # fades from then on [s]
    refused: bool = False


@dataclass
class _Event:
    serial: int
    verdict: Verdict
    position: Array
    level: int
    born: float
    count: int = 1


@dataclass
class Tie:
    """Chunks that a sentence conditioned, as far as they were seen."""

    first: str
    last: str
    count: int = 1


class Board:
    """Everything that is on show. Not thread-safe.

    Args:
        visual, safety: settings. max_width: of the open gripper [m].
    """

    def __init__(self, visual: Visual, safety: Safety, max_width: float) -> None:
        self._visual, self._safety, self._max_width = visual, safety, max_width
        self._chunks: deque[_Chunk] = deque(maxlen=MAX_CHUNKS)
        self._thoughts: OrderedDict[str, Reasoning] = OrderedDict()
        self._ties: OrderedDict[str, Tie] = OrderedDict()
        self._events: deque[_Event] = deque(maxlen=MAX_VERDICTS)
        self._serial = 0
        self._tcp: Array | None = None
        self._playing = ('', '', -1)
        self._shown: set[tuple[str, int]] = set()
        self.executed: deque[tuple[int, Array]] = deque(maxlen=MAX_EXECUTED)
        """Measured tcp: stamp [ns] and pose (4, 4), oldest first."""

    # -- what arrives ---------------------------------------------------------------------------------------------

    def on_chunk(self, chunk: ActionChunk, now: float) -> None:
        """Show a chunk; the one before it begins to fade at ``now`` [s]."""
        if any(c.chunk.id == chunk.id for c in self._chunks):
            return
        for old in self._chunks:
            old.until = min(old.until, now)
        self._chunks.append(_Chunk(self._next(), chunk, chunk_poses(chunk), now + chunk.duration))
        if chunk.reasoning_id:
            tie = self._ties.get(chunk.reasoning_id)
            if tie is None:
                self._ties[chunk.reasoning_id] = Tie(chunk.id, chunk.id)
            else:
                tie.last, tie.count = chunk.id, tie.count + 1
            while len(self._ties) > _TIES:
                self._ties.popitem(last=False)

    def on_reasoning(self, said: Reasoning) -> None:
        """Show a sentence; a second one with the same id replaces the first (tokens that still arrive)."""
        self._thoughts[said.id] = said
        while len(self._thoughts) > self._visual.thoughts + 1:
            self._thoughts.popitem(last=False)

    def on_state(
        self,
        stamp_ns: int,
        tcp: Array | None,
        chunk_id: str,
        reasoning_id: str,
        step_index: int,
        verdicts: Sequence[Verdict],
        now: float,
    ) -> None:
        """Take what the controller reports: measured tcp (4, 4) or None, the chunk it plays, and its verdicts."""
        self._playing = (chunk_id, reasoning_id, step_index)
        if tcp is not None and np.all(np.isfinite(tcp)):
            self._tcp = tcp
            self._executed(stamp_ns, tcp)
        for verdict in verdicts:
            self._verdict(verdict, now)

    def _executed(self, stamp_ns: int, tcp: Array) -> None:
        if self.executed and stamp_ns < self.executed[-1][0]:
            self.executed.clear()  # the clock went back: another world
        oldest = stamp_ns - int(self._visual.executed_time * 1e9)
        while self.executed and self.executed[0][0] < oldest:
            self.executed.popleft()
        if not self.executed or np.linalg.norm(tcp[:3, 3] - self.executed[-1][1][:3, 3]) >= _EXECUTED_STEP:
            self.executed.append((stamp_ns, tcp))

    def _verdict(self, verdict: Verdict, now: float) -> None:
        of = next((c for c in self._chunks if verdict.chunk_id and c.chunk.id == verdict.chunk_id), None)
        refused = verdict.action is VerdictAction.REFUSED
        if of is not None and refused:
            of.refused = True
        # A refused chunk never moved the arm: it happened where the chunk begins.
        place = of.poses[0] if of is not None and refused else self._tcp
        where = np.array(place[:3, 3]) if place is not None else self._above()
        near = [e for e in self._events if np.linalg.norm(e.position - where) < _CROWDED]
        for event in near:
            old, here = event.verdict, np.linalg.norm(event.position - where) < _SAME_PLACE
            if here and (old.rule, old.action, old.subject) == (verdict.rule, verdict.action, verdict.subject):
                event.verdict, event.born, event.count = verdict, now, event.count + 1
                return
        taken = {e.level for e in near}
        level = next(k for k in range(MAX_VERDICTS + 1) if k not in taken)
        self._events.append(_Event(self._next(), verdict, where, level, now))

    def _next(self) -> int:
        self._serial = (self._serial + 1) % 1_000_000
        return self._serial

    # -- what is asked for ----------------------------------------------------------------------------------------

    @property
    def thought(self) -> Reasoning | None:
        """Newest plan, or None."""
        return next((t for t in reversed(self._thoughts.values()) if t.kind is ReasoningKind.PLAN), None)

    @property
    def prediction(self) -> tuple[ActionChunk, Array] | None:
        """Newest chunk that is still shown, and its poses (n + 1, 4, 4)."""
        return (self._chunks[-1].chunk, self._chunks[-1].poses) if self._chunks else None

    def ties(self, reasoning_id: str) -> Tie | None:
        """Chunks that a sentence conditioned."""
        return self._ties.get(reasoning_id)

    def caption(self, said: Reasoning) -> str:
        """Id of a sentence and of the chunks it led to."""
        tie = self._ties.get(said.id)
        if tie is None:
            return f'{said.id} -> {said.first_chunk_id}' if said.first_chunk_id else said.id
        if tie.count == 1:
            return f'{said.id} -> {tie.first}'
        return f'{said.id} -> {tie.first} .. {tie.last} ({tie.count})'

    def advance(self, now: float) -> None:
        """Forget what has faded away at ``now`` [s]."""
        fade, remember = self._visual.fade_time, self._visual.verdict_time
        self._chunks = deque((c for c in self._chunks if _faded(now, c.until, fade) > _FAINTEST), MAX_CHUNKS)
        self._events = deque((e for e in self._events if _faded(now, e.born, remember) > _FAINTEST), MAX_VERDICTS)

    def update(self, now: float) -> tuple[list[Shape], list[tuple[str, int]]]:
        """Visible shapes at ``now`` [s], and the keys of those shown by the last call that are gone."""
        self.advance(now)
        shapes = self._bounds()
        for entry in self._chunks:
            shapes += self._chunk(entry, _faded(now, entry.until, self._visual.fade_time))
        if self._chunks:
            shapes += self._newest(self._chunks[-1], _faded(now, self._chunks[-1].until, self._visual.fade_time))
        for event in self._events:
            shapes += self._event(event, _faded(now, event.born, self._visual.verdict_time))
        shapes += self._thought() + self._history()
        shown = {s.key for s in shapes}
        gone = sorted(self._shown - shown)
        self._shown = shown
        return shapes, gone

    def forget_shown(self) -> None:
        """Start over for viewers whose markers were all deleted."""
        self._shown = set()

    def _above(self) -> Array:
        lower, upper = np.array(self._safety.workspace_lower), np.array(self._safety.workspace_upper)
        out = 0.5 * (lower + upper)
        out[2] = upper[2]
        return np.asarray(out, dtype=np.float64)

    def _bounds(self) -> list[Shape]:
        lower, upper = np.array(self._safety.workspace_lower), np.array(self._safety.workspace_upper)
        corners = np.array([[(lower, upper)[k >> a & 1][a] for a in range(3)] for k in range(8)])
        edges = corners[[k for edge in _EDGES for k in edge]]
        thick = 0.002
        middle = 0.5 * (lower + upper)
        middle[2] = self._safety.table_height - 0.5 * thick
        size = upper - lower + 0.2
        return [
            Shape('workspace', 0, Kind.LINE_LIST, (0.003,) * 3, (0.3, 0.8, 1.0, 0.5), points=edges, text='workspace'),
            Shape(
                'table', 0, Kind.CUBE, (float(size[0]), float(size[1]), thick), (0.55, 0.50, 0.42, 0.35),
                position=middle, text=f'table z = {self._safety.table_height:.3f} m',
            ),
        ]

    def _chunk(self, entry: _Chunk, alpha: float) -> list[Shape]:
        pick = _thin(len(entry.poses))
        points = entry.poses[pick][:, :3, 3]
        ids = f'{entry.chunk.id} {entry.chunk.reasoning_id}'.strip()
        if entry.refused:
            colors = np.tile([*REFUSED, alpha], (len(points), 1))
        else:
            colors = time_colors(len(entry.poses), alpha)[pick]
        first = (*colors[0][:3], alpha)
        out = [
            Shape('chunk_points', entry.serial, Kind.SPHERE_LIST, (0.012,) * 3, first, points=points, colors=colors,
                  text=ids)
        ]  # fmt: skip
        if len(points) > 1:
            out.append(
                Shape('chunk_path', entry.serial, Kind.LINE_STRIP, (0.005,) * 3, first, points=points, colors=colors,
                      text=ids)
            )  # fmt: skip
        return out

    def _newest(self, entry: _Chunk, alpha: float) -> list[Shape]:
        """Gripper opening along the path as bars between the fingers, and the ids at its end."""
        chunk, end = entry.chunk, entry.poses[-1][:3, 3]
        state = ' REFUSED' if entry.refused else ' done' if chunk.done else ''
        label = f'{chunk.id}{state}' + (f'\nfrom {chunk.reasoning_id}' if chunk.reasoning_id else '')
        out = [
            Shape('chunk_label', 0, Kind.TEXT, (0.026,) * 3, (*(REFUSED if entry.refused else _GREY), alpha),
                  position=end + [0.0, 0.0, -0.05], text=label)
        ]  # fmt: skip
        pick = _thin(len(entry.poses) - 1)
        if len(pick):
            openness = np.clip(chunk.steps[pick, 6], 0.0, 1.0)[:, None]
            poses = entry.poses[pick + 1]
            half = 0.5 * self._max_width * np.maximum(openness, 0.05) * poses[:, :3, 1]
            points = np.stack([poses[:, :3, 3] - half, poses[:, :3, 3] + half], axis=1).reshape(-1, 3)
            rgb = openness * np.array(OPEN) + (1.0 - openness) * np.array(CLOSED)
            colors = np.repeat(np.column_stack([rgb, np.full(len(rgb), alpha)]), 2, axis=0)
            out.append(
                Shape('chunk_gripper', 0, Kind.LINE_LIST, (0.006,) * 3, (*OPEN, alpha), points=points, colors=colors,
                      text=chunk.id)
            )  # fmt: skip
        return out

    def _event(self, event: _Event, alpha: float) -> list[Shape]:
        color = (*_VERDICT_COLORS[event.verdict.action], alpha)
        height = 0.028
        lift = 0.02 + event.level * 3.5 * height * _LINE
        return [
            Shape('verdict_place', event.serial, Kind.SPHERE, (0.025,) * 3, color, position=event.position,
                  text=event.verdict.chunk_id),
            Shape('verdict', event.serial, Kind.TEXT, (height,) * 3, color,
                  position=event.position + [0.0, -0.28, lift], text='\n'.join(describe(event.verdict, event.count))),
        ]  # fmt: skip

    def _thought(self) -> list[Shape]:
        said = self.thought
        if said is None:
            return []
        at = self._tcp[:3, 3] if self._tcp is not None else self._above()
        lines = wrap(said.text, _THOUGHT_WIDTH, 5) if said.final else [*wrap(said.text, _THOUGHT_WIDTH, 5)[:5], '...']
        height = 0.045
        above = 0.24 + 0.5 * height * _LINE * len(lines)
        chunk_id, reasoning_id, step = self._playing
        playing = f'\nplays {chunk_id} step {step}' if chunk_id else ''
        if chunk_id and reasoning_id and reasoning_id != said.id:
            playing += f' of {reasoning_id}'
        return [
            Shape('thought', 0, Kind.TEXT, (height,) * 3, (*_WHITE, 1.0), position=at + [0.0, 0.0, above],
                  text='\n'.join(lines)),
            Shape('thought_ids', 0, Kind.TEXT, (0.026,) * 3, (*_GREY, 1.0), position=at + [0.0, 0.0, 0.2],
                  text=self.caption(said) + playing),
        ]  # fmt: skip

    def _history(self) -> list[Shape]:
        upper, lower = self._safety.workspace_upper, self._safety.workspace_lower
        newest = self.thought
        older = [t for t in reversed(self._thoughts.values()) if newest is None or t.id != newest.id]
        out: list[Shape] = []
        height, z = 0.03, upper[2]
        for slot, said in enumerate(older[: self._visual.thoughts]):
            answer = said.kind is ReasoningKind.ANSWER
            text = f'{said.instruction} - {said.text}' if answer and said.instruction else said.text
            lines = [*wrap(text, _HISTORY_WIDTH, 3), self.caption(said)]
            tall = height * _LINE * len(lines)
            alpha = max(1.0 - 0.7 * slot / max(self._visual.thoughts, 1), 0.25)
            place = np.array([0.5 * (lower[0] + upper[0]), upper[1] + 0.45, z - 0.5 * tall])
            out.append(
                Shape('thoughts', slot, Kind.TEXT, (height,) * 3, (*(_ANSWER if answer else _WHITE), alpha),
                      position=place, text='\n'.join(lines))
            )  # fmt: skip
            z -= tall + height
        return out


def _faded(now: float, since: float, time: float) -> float:
    """1 until ``since``, then linearly to 0 within ``time``."""
    return float(np.clip(1.0 - (now - since) / time, 0.0, 1.0))


def _thin(count: int) -> NDArray[np.intp]:
    """Indices of at most MAX_POINTS of ``count`` points, the first and the last among them."""
    if count <= MAX_POINTS:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, MAX_POINTS).round().astype(np.intp))
