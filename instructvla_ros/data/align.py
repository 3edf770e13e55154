"""One pass over a bag: stamps of pictures, joint states, commands and words, put in order by header stamp.

Which images and which joint state make an observation is the rule of the live node (:mod:`instructvla_ros.pairing`),
applied to the messages in the order of recording; no picture is decoded here except the first of each view.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .. import camera_view, pairing
from ..config import option
from ..datatypes import RobotState
from ..decoding import JointReader
from ..errors import DataError, ObservationError
from ..geometry import Array
from ..settings import Embodiment
from .bag_source import Problem
from .bag_values import GRIPPER, JOINT_STATE, PICTURES, STRING, Picture
from .bags import Bag, Record
from .marks import MARK_TOPIC
from .rebag import INSTRUCTION_TOPIC

_NS = 1e-9
Stamps = NDArray[np.int64]
"""Times [ns]."""


@dataclass(frozen=True)
class BuildOptions:
    """How a bag becomes episodes. The first four are those of the live node, so that both see the same."""

    step_period: float = option(0.1, 'time between two frames', unit='s', ge=0.01, le=2.0)
    sync_slop: float = option(0.05, 'largest spread of the stamps of one observation', unit='s', ge=0.0, le=1.0)
    max_state_age: float = option(0.2, 'largest gap between joint states', unit='s', ge=0.01, le=10.0)
    max_gap: float = option(0.3, 'longest silence of a camera that is bridged by its last picture', unit='s', ge=0.0)
    jump: float = option(1.0, 'stamps that go back by more than this are a clock jump', unit='s', ge=0.0)
    on_gap: str = option('split', 'what a gap or clock jump does to an episode', choices=('split', 'refuse'))
    min_frames: int = option(8, 'shorter episodes are left out', ge=2)
    quality: int = option(95, 'JPEG quality of the pictures; 0: PNG, exact', ge=0, le=100)
    instruction_topic: str = option(INSTRUCTION_TOPIC, 'std_msgs/String with the instruction')
    mark_topic: str = option(MARK_TOPIC, 'std_msgs/String with episode marks')


@dataclass(frozen=True)
class Candidate:
    """Pictures that make an observation.

    Attributes:
        stamp_ns: of the oldest. frames: view -> stamp [ns] and index of the message in its topic.
        spread_ns: from the oldest to the newest.
    """

    stamp_ns: int
    frames: Mapping[str, tuple[int, int]]

    @property
    def spread_ns(self) -> int:
        """From the oldest picture to the newest."""
        return max(s for s, _ in self.frames.values()) - self.stamp_ns


class States:
    """Joint states of one part of a time line, in arrays that grow."""

    def __init__(self, joints: int) -> None:
        self.count = 0
        self._rows = np.empty((1024, 2 * joints + 1))
        self._times = np.empty((1024, 2), np.int64)
        self._n = joints

    def add(self, state: RobotState, recorded_ns: int) -> None:
        """Append a state; stamps increase."""
        if self.count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
            self._times = np.concatenate([self._times, np.empty_like(self._times)])
        n = self._n
        row = self._rows[self.count]
        row[:n], row[n : 2 * n], row[2 * n] = state.q, state.dq, state.gripper
        self._times[self.count] = state.stamp_ns, recorded_ns
        self.count += 1

    @property
    def stamps(self) -> Stamps:
        """(N,) header stamps [ns]."""
        return self._times[: self.count, 0]

    @property
    def recorded(self) -> tuple[int, int]:
        """Time of recording of the first and last state [ns]."""
        return int(self._times[0, 1]), int(self._times[self.count - 1, 1])

    @property
    def openness(self) -> Array:
        """(N,) measured openness 0..1."""
        return self._rows[: self.count, 2 * self._n]

    def get(self, k: int) -> RobotState:
        """State number k."""
        n, row = self._n, self._rows[k]
        return RobotState(int(self._times[k, 0]), row[:n].copy(), row[n : 2 * n].copy(), float(row[2 * n]))

    def at(self, stamp_ns: int, limit_ns: int) -> RobotState | None:
        """State at a stamp by the rule of the live node, or None when the nearest is further than the limit."""
        k = int(np.searchsorted(self.stamps, stamp_ns, side='right'))
        before = self.get(k - 1) if k else None
        after = self.get(k) if k < self.count else None
        found = pairing.state_between(before, after, stamp_ns, limit_ns)
        return found if found is not None and abs(found.stamp_ns - stamp_ns) <= limit_ns else None

    def known(self, stamp_ns: int, limit_ns: int) -> bool:
        """Whether the state at a stamp is measured: exactly there, or between two at most ``limit_ns`` apart."""
        k = int(np.searchsorted(self.stamps, stamp_ns, side='right'))
        if k and self.stamps[k - 1] == stamp_ns:
            return True
        return 0 < k < self.count and int(self.stamps[k] - self.stamps[k - 1]) <= limit_ns

    def nearest(self, stamps_ns: Stamps) -> Stamps:
        """(K,) distance from each stamp to the nearest joint state [ns]."""
        k = np.clip(np.searchsorted(self.stamps, stamps_ns), 1, max(self.count - 1, 1))
        low, high = self.stamps[k - 1], self.stamps[np.minimum(k, self.count - 1)]
        return np.asarray(np.minimum(np.abs(stamps_ns - low), np.abs(stamps_ns - high)))

    def to_stamp(self, recorded_ns: int) -> int:
        """Header time of an instant of recording: what the clock of the stamps showed then [ns]."""
        recorded, stamps = self._times[: self.count, 1], self.stamps
        k = int(np.searchsorted(recorded, recorded_ns))
        if 0 < k < self.count and recorded[k] > recorded[k - 1]:
            share = (recorded_ns - int(recorded[k - 1])) / (int(recorded[k]) - int(recorded[k - 1]))
            return int(stamps[k - 1]) + round(share * (int(stamps[k]) - int(stamps[k - 1])))
        k = min(k, self.count - 1)
        return recorded_ns + int(stamps[k]) - int(recorded[k])


@dataclass
class Part:
    """A stretch of a bag in which no clock went back."""

    states: States
    began_ns: int = 0  # time of recording of its first and last message
    ended_ns: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    commands: list[tuple[int, float]] = field(default_factory=list)  # stamp [ns], openness

    def span(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        """Header stamps [ns] of a stretch given in times of recording, cut to this part; empty when start > end."""
        first, last = self.states.recorded
        start, end = max(start_ns, self.began_ns or first), min(end_ns, self.ended_ns or last)
        return (self.states.to_stamp(start), self.states.to_stamp(end)) if start <= end else (1, 0)


@dataclass
class Timeline:
    """What one pass over a bag found.

    Attributes:
        sizes: view -> (width, height) [px]. counts: input -> messages that were used.
        dropped: (input, why) -> how many messages. marks, instructions: time of recording and text.
    """

    parts: list[Part]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    marks: list[tuple[int, str]] = field(default_factory=list)
    instructions: list[tuple[int, str]] = field(default_factory=list)


def read_timeline(bag: Bag, embodiment: Embodiment, options: BuildOptions) -> Timeline:
    """Read everything but the pictures themselves.

    Raises:
        DataError: a topic that is needed is missing (named), a view has no colours or changes its size, or no joint
            state could be used.
    """
    return _Reader(bag, embodiment, options).run()


class _Reader:
    def __init__(self, bag: Bag, embodiment: Embodiment, options: BuildOptions) -> None:
        self._bag = bag
        self._options = options
        self._slop_ns = int(options.sync_slop * 1e9)
        self._jump_ns = int(options.jump * 1e9)
        self._joints = JointReader(embodiment)
        self._width = embodiment.gripper.max_width
        self._names = len(embodiment.arm_joints)
        self._views = {view.topic: name for name, view in embodiment.views.items()}
        self._cameras = dict(embodiment.views)
        self._topics = embodiment.topics
        if not self._views:
            raise DataError('the embodiment has no views; an episode needs at least one')
        self._formats: dict[str, str] = {}
        self._newest: dict[str, int] = {}
        self._out = Timeline([])

    def run(self) -> Timeline:
        bag, options = self._bag, self._options
        for topic in self._views:
            bag.require(topic, PICTURES)
        bag.require(self._topics.joint_states, (JOINT_STATE,))
        wanted = [*self._views, self._topics.joint_states]
        for topic, kind in (
            (self._topics.gripper_command, GRIPPER),
            (options.instruction_topic, STRING),
            (options.mark_topic, STRING),
        ):
            if topic in bag.topics and bag.topics[topic].type == kind:
                wanted.append(topic)
        self._begin()
        for record in bag.messages(wanted):
            if record.topic in self._views:
                self._picture(self._views[record.topic], record)
            elif record.topic == self._topics.joint_states:
                self._state(record)
            elif record.topic == self._topics.gripper_command:
                self._command(record)
            elif record.topic == options.instruction_topic:
                self._out.instructions.append((record.recorded_ns, record.value))
            else:
                self._out.marks.append((record.recorded_ns, record.value))
        self._check()
        return self._out

    def _begin(self) -> None:
        self._frames: dict[str, deque[tuple[int, int]]] = {
            name: deque(maxlen=pairing.FRAMES_KEPT) for name in self._views.values()
        }
        self._newest.clear()
        self._part = Part(States(self._names))
        self._out.parts.append(self._part)

    def _picture(self, name: str, record: Record) -> None:
        picture: Picture = record.value
        try:
            size = self._usable(name, picture, record)
        except ObservationError as err:
            self._drop(name, 'picture that cannot be used', record, str(err))
            return
        if self._out.sizes.setdefault(name, size) != size:
            old = self._out.sizes[name]
            raise DataError(
                f'{self._bag.path}: view {name!r} ({record.topic}) changes from {old[0]} x {old[1]} to '
                f'{size[0]} x {size[1]} pixels at t = {record.recorded_ns * _NS:.3f} s; split the bag there'
            )
        if self._order(name, record):
            frames = self._frames[name]
            frames.append((record.stamp_ns, record.index))
            chosen = pairing.newest_set(self._frames, self._slop_ns)
            if chosen is not None:
                stamp = min(s for s, _ in chosen.values())
                found = self._part.candidates
                if not found or stamp > found[-1].stamp_ns:
                    found.append(Candidate(stamp, chosen))

    def _usable(self, name: str, picture: Picture, record: Record) -> tuple[int, int]:
        """Size of what the policy sees of a picture, after the checks that do not need its pixels."""
        size = picture.size
        message = record.message
        if name not in self._formats:
            picture.rgb()  # says in words when a view is depth or has an unknown encoding
            self._formats[name] = picture.format
        elif picture.compressed:
            tail = bytes(message.data[-64:])
            if b'\xff\xd9' not in tail and b'IEND' not in tail:
                raise ObservationError(f'compressed image of {len(message.data)} bytes has no end')
        else:
            if picture.format != self._formats[name]:
                raise ObservationError(f'encoding {picture.format!r} instead of {self._formats[name]!r}')
            needed = int(message.height) * int(message.step)
            if len(message.data) < needed or int(message.step) < size[0]:
                raise ObservationError(f'{len(message.data)} bytes of data, step and height need {needed}')
        return camera_view.size(self._cameras[name], *size)

    def _state(self, record: Record) -> None:
        try:
            state = self._joints.read(record.message)
        except ObservationError as err:
            self._drop('joint_states', 'joint state that cannot be used', record, str(err))
            return
        if state is not None and self._order('joint_states', record):
            self._part.states.add(state, record.recorded_ns)

    def _command(self, record: Record) -> None:
        width = record.value.width
        if not np.isfinite(width) or not -1e-6 <= width <= self._width + 1e-6:
            self._drop('gripper', 'gripper command that cannot be used', record, f'width {width} m')
            return
        if self._order('gripper', record):
            self._part.commands.append((record.stamp_ns, float(np.clip(width / self._width, 0.0, 1.0))))

    def _order(self, name: str, record: Record) -> bool:
        """Whether a message is in order; one that goes far back begins a new part, as in the live node."""
        stamp, newest = record.stamp_ns, self._newest.get(name)
        if stamp <= 0:
            self._drop(name, 'message without a header stamp', record)
            return False
        if newest is not None and stamp <= newest:
            if stamp == newest:
                self._drop(name, 'duplicate', record)
                return False
            if newest - stamp <= self._jump_ns:
                self._drop(name, 'out of order', record)
                return False
            back = (newest - stamp) * _NS
            self._note(record, f'the stamps go back by {back:.3f} s: a new time line begins')
            self._begin()
        self._newest[name] = stamp
        self._part.began_ns = self._part.began_ns or record.recorded_ns
        self._part.ended_ns = record.recorded_ns
        self._out.counts[name] = self._out.counts.get(name, 0) + 1
        return True

    def _drop(self, name: str, why: str, record: Record, detail: str = '') -> None:
        key = (name, why)
        self._out.dropped[key] = self._out.dropped.get(key, 0) + 1
        self._note(record, f'{why}: {detail}' if detail else why)

    def _note(self, record: Record, text: str) -> None:
        self._bag.note(Problem(self._bag.path.name, text, record.topic, record.recorded_ns))

    def _check(self) -> None:
        """Refuse a bag in which an input was there but never usable."""
        needed = [*self._views.values(), 'joint_states']
        for name in needed:
            if not self._out.counts.get(name):
                why = [f'{n} x {reason}' for (of, reason), n in self._out.dropped.items() if of == name]
                first = next((str(p) for p in self._bag.problems if why), '')
                raise DataError(
                    f'{self._bag.path}: no message of {name} can be used ({", ".join(why) or "none was readable"})'
                    + (f'; first: {first}' if first else '')
                )
