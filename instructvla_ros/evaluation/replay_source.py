"""What a recording gives to a replay: a stream of typed events in the order in which a running graph would get them.

An event is due ``TRANSPORT`` seconds after the header stamp of a picture and at the header stamp of everything else:
a picture is bigger than a joint state and comes later, so the joint states on both sides of it are known, on a robot
as here. Pictures stay encoded until somebody looks at them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from .. import camera_view
from ..data.episodes import Episode, Frames, Meta
from ..datatypes import ActionChunk, Image, Reasoning, RobotState, SceneState
from ..geometry import Array, pose_from_xyz_rpy
from ..settings import Embodiment, View

TRANSPORT = 0.03
"""Seconds from the header stamp of a picture until the policy has it."""


@dataclass(frozen=True)
class StateEvent:
    """A joint state. ``pose``: tcp (4, 4) in the base frame [m] when the recording says it itself."""

    stamp_ns: int
    state: RobotState
    pose: Array | None = None


@dataclass(frozen=True)
class FrameEvent:
    """A picture; ``decode`` gives uint8 RGB (H, W, 3) or raises ObservationError or DataError.

    ``encoded`` gives its JPEG or PNG bytes, None for a raw picture. ``camera``: of a recording that has the camera's
    own pictures, what the policy sees of them; None where they were cropped, flipped and turned before.
    """

    stamp_ns: int
    view: str
    decode: Callable[[], Image]
    encoded: Callable[[], bytes | None] = lambda: None
    camera: View | None = None

    def seen(self) -> Image:
        """What the policy sees, uint8 RGB (H, W, 3); raises as ``decode``."""
        image = self.decode()
        return image if self.camera is None else camera_view.prepare(self.camera, image)


@dataclass(frozen=True)
class WordsEvent:
    """The instruction from now on; '' ends it."""

    stamp_ns: int
    instruction: str


@dataclass(frozen=True)
class GripperEvent:
    """Openness 0 closed .. 1 open the gripper was told."""

    stamp_ns: int
    openness: float


@dataclass(frozen=True)
class ChunkEvent:
    """A chunk of the policy that was running during the recording."""

    stamp_ns: int
    chunk: ActionChunk


@dataclass(frozen=True)
class SaidEvent:
    """A sentence of the policy that was running, or of a person who annotated the recording."""

    stamp_ns: int
    text: str
    reasoning: Reasoning | None = None


@dataclass(frozen=True)
class SceneEvent:
    """Ground truth of the simulator."""

    stamp_ns: int
    scene: SceneState


@dataclass(frozen=True)
class CameraEvent:
    """Calibration of a view: intrinsics (3, 3) [px], size [px], optical frame."""

    stamp_ns: int
    view: str
    intrinsics: Array
    size: tuple[int, int]
    frame_id: str = ''


@dataclass(frozen=True)
class FrameTreeEvent:
    """A fixed transform: ``pose`` is T_parent_child (4, 4) [m]."""

    stamp_ns: int
    parent: str
    child: str
    pose: Array


@dataclass(frozen=True)
class DescriptionEvent:
    """URDF of the robot that was recorded."""

    stamp_ns: int
    urdf: str


Event = (
    StateEvent
    | FrameEvent
    | WordsEvent
    | GripperEvent
    | ChunkEvent
    | SaidEvent
    | SceneEvent
    | CameraEvent
    | FrameTreeEvent
    | DescriptionEvent
)


@dataclass
class Trouble:
    """What could not be used of a recording: sentences with how often, in the order of their first occurrence."""

    counts: dict[str, int] = field(default_factory=dict)
    MOST = 200

    def add(self, text: str) -> None:
        """Count one more."""
        if text in self.counts or len(self.counts) < self.MOST:
            self.counts[text] = self.counts.get(text, 0) + 1
        else:
            self.counts['further problems of other kinds'] = self.counts.get('further problems of other kinds', 0) + 1


class Recording(Protocol):
    """A bag or an episode. Iterating twice gives the same events twice.

    Attributes:
        name: for people. embodiment: the robot it is read as, with the conventions of its actions.
        views: names of the views of the embodiment that it has.
        forward: joints of its ``StateEvent`` -> tcp pose (4, 4), None: kinematics of the embodiment.
        missing: what a replay cannot judge for lack of data, in sentences.
    """

    name: str
    embodiment: Embodiment
    views: tuple[str, ...]
    forward: Callable[[Array], Array] | None
    missing: list[str]
    trouble: Trouble

    def events(self, pictures: bool = True) -> Iterator[Event]:
        """Events in the order of :func:`due_ns`; without pictures faster."""
        ...


def due_ns(event: Event) -> int:
    """When an event reaches the policy, on the clock of the recording [ns]."""
    return event.stamp_ns + (round(TRANSPORT * 1e9) if isinstance(event, FrameEvent) else 0)


def in_order(events: Iterable[Event], window: float = 0.5) -> Iterator[Event]:
    """Sort a nearly sorted stream by :func:`due_ns` while it is read.

    Args:
        window: by how much an event may come late in the stream and still be sorted in [s]; one that comes later is
            passed on where it is, as a live system would get it.
    """
    heap: list[tuple[int, int, Event]] = []
    newest, number = None, 0
    span = int(window * 1e9)
    for event in events:
        due = due_ns(event)
        # A stamp that leaps (a clock that was set, a bag that was rewound) starts a new time line.
        if newest is not None and abs(due - newest) > 20 * span:
            while heap:
                yield heapq.heappop(heap)[2]
            newest = due
        newest = due if newest is None else max(newest, due)
        heapq.heappush(heap, (due, number, event))
        number += 1
        while heap and heap[0][0] <= newest - span:
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]


class EpisodeRecording:
    """One episode of a dataset as a recording. Its poses are those of the dataset, not the kinematics of a robot."""

    def __init__(self, episode: Episode, meta: Meta, embodiment: Embodiment) -> None:
        from ..config import replace

        self.name = f'{meta.name}/{episode.id}'
        self.trouble = Trouble()
        self._episode = episode
        self._meta = meta
        self._joints = len(embodiment.arm_joints)
        self._has_joints = episode.q.shape[1] == self._joints
        self.embodiment = replace(embodiment, delta_frame=meta.delta_frame, rotation=meta.rotation)
        self.missing = []
        if not self._has_joints:
            self.missing.append(
                f'joint positions: the episode has {episode.q.shape[1]}, {embodiment.name} has {self._joints}; '
                'only the rungs of the safety ladder that look at a chunk alone are judged'
            )
        absent = [v for v in embodiment.views if v not in episode.views]
        if absent:
            self.missing.append(f'views {", ".join(absent)}: the episode has {", ".join(episode.views) or "none"}')
        self.views = tuple(v for v in embodiment.views if v in episode.views)
        self.forward: Callable[[Array], Array] | None = self._pose

    @staticmethod
    def _pose(q: Array) -> Array:
        return pose_from_xyz_rpy(q[-6:])

    def events(self, pictures: bool = True) -> Iterator[Event]:
        """Events frame by frame. The joints of a state are followed by xyz and rpy of the tcp."""
        return in_order(self._raw(pictures))

    def _raw(self, pictures: bool) -> Iterator[Event]:
        e = self._episode
        said = _primitives(e)
        yield WordsEvent(int(e.stamps_ns[0]), e.instruction)
        for k in range(len(e)):
            stamp = int(e.stamps_ns[k])
            joints = e.q[k] if self._has_joints else np.zeros(0)
            q = np.concatenate([joints, e.proprio[k, :6]])
            dq = np.concatenate([e.dq[k] if self._has_joints else np.zeros(0), np.zeros(6)])
            state = RobotState(stamp, q, dq, float(e.proprio[k, 7]))
            yield StateEvent(stamp, state, pose_from_xyz_rpy(e.proprio[k, :6]))
            yield GripperEvent(stamp, float(e.actions[k, 6]))
            if k < len(said) and said[k] and (k == 0 or said[k] != said[k - 1]):
                yield SaidEvent(stamp, said[k])
            if pictures:
                for view, frames in e.views.items():
                    yield FrameEvent(stamp, view, partial(_picture, frames, k), partial(frames.encoded, k))


def _picture(frames: Frames, k: int) -> Image:
    return np.asarray(frames[k])


def _primitives(episode: Episode) -> list[str]:
    features = episode.annotations.get('features', {}) if isinstance(episode.annotations, dict) else {}
    found = features.get('move_primitive', []) if isinstance(features, dict) else []
    return [str(text) for text in found]
