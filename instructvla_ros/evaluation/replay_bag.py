"""A bag as a recording: which of its topics are what, on one clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..data import bag_values, marks
from ..data.bags import Bag, Record, TopicInfo, open_bag
from ..data.recording_topics import NAMESPACE, absolute
from ..decoding import JointReader
from ..errors import DataError, InstructVLAError
from ..geometry import Array, pose_from_xyz_quat
from ..settings import Embodiment
from .replay_source import (
    CameraEvent,
    ChunkEvent,
    DescriptionEvent,
    Event,
    FrameEvent,
    FrameTreeEvent,
    GripperEvent,
    SaidEvent,
    SceneEvent,
    StateEvent,
    Trouble,
    WordsEvent,
    in_order,
)

_COMPRESSED = '/compressed'
_TF_STATIC, _SIM_STATE = '/tf_static', '/sim/state'
_TF = 'tf2_msgs/msg/TFMessage'


class BagRecording:
    """A bag opened for replay. Close it, or use it in a ``with`` statement.

    Cameras, joints and words are found by the topic names of the embodiment; ``topics`` maps a wanted name to the one
    in the bag. A view whose raw topic was not recorded is read from its compressed one, and the other way round. Times
    are header stamps; messages without one get the time of recording on the clock of the stamps around them.

    Raises:
        DataError: not a bag, or it has neither pictures nor joint states of this robot; names what it has.
    """

    def __init__(self, path: str | Path, embodiment: Embodiment, topics: Mapping[str, str] | None = None) -> None:
        self.bag: Bag = open_bag(path, topics)
        self.name = Path(path).name
        self.embodiment = embodiment
        self.forward: Callable[[Array], Array] | None = None
        self.missing: list[str] = []
        self.trouble = Trouble()
        try:
            self._view_of = self._find_views()
            self.views = tuple(v for v in embodiment.views if v in self._view_of.values())
            self._plan = self._find_topics()
        except BaseException:
            self.bag.close()
            raise

    def __enter__(self) -> BagRecording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self.bag.close()

    @property
    def duration(self) -> float:
        """Length of the bag [s]."""
        return self.bag.duration

    def events(self, pictures: bool = True) -> Iterator[Event]:
        """Events in the order of :func:`~.replay_source.due_ns`; without pictures faster."""
        return in_order(self._raw(pictures))

    def _find_views(self) -> dict[str, str]:
        found, absent = {}, []
        for name, view in self.embodiment.views.items():
            plain = view.topic.removesuffix(_COMPRESSED)
            options = [view.topic, plain, plain + _COMPRESSED]
            topic = next((t for t in options if self._has(t, bag_values.PICTURES)), '')
            if topic:
                found[topic] = name
            else:
                absent.append(f'{name} ({view.topic})')
        if absent:
            cameras = [t for kind in bag_values.PICTURES for t in self.bag.find(kind)]
            have = f'the bag has pictures on {", ".join(cameras)}' if cameras else 'the bag has no pictures'
            self.missing.append(f'views {", ".join(absent)}: {have}')
        return found

    def _find_topics(self) -> dict[str, Callable[[Record, int], Iterator[Event]]]:
        topics = self.embodiment.topics
        if not self._has(topics.joint_states, (bag_values.JOINT_STATE,)):
            others = ', '.join(self.bag.find(bag_values.JOINT_STATE)) or 'none'
            raise DataError(
                f'{self.bag.path} has no joint states on {topics.joint_states} (topics of that type: {others}); '
                'the motion is needed for every comparison. Map it with --topic WANTED=RECORDED, or choose --embodiment'
            )
        if not self._view_of:
            raise DataError(f'{self.bag.path}: {self.missing[0]}; map one with --topic WANTED=RECORDED')
        self._joints = JointReader(self.embodiment)
        plan: dict[str, Callable[[Record, int], Iterator[Event]]] = {topics.joint_states: self._on_joints}
        plan |= dict.fromkeys(self._view_of, self._on_picture)
        self._info_of = {v.info_topic: n for n, v in self.embodiment.views.items() if v.info_topic}
        optional = {
            absolute(topics.gripper_command, NAMESPACE): (bag_values.GRIPPER, self._on_gripper),
            absolute('action_chunk'): ('instructvla_ros/msg/ActionChunk', self._on_chunk),
            absolute('reasoning'): ('instructvla_ros/msg/Reasoning', self._on_said),
            _SIM_STATE: ('instructvla_ros/msg/SimState', self._on_scene),
            _TF_STATIC: (_TF, self._on_tf),
            topics.robot_description: (bag_values.STRING, self._on_description),
            **dict.fromkeys(self._info_of, (bag_values.CAMERA_INFO, self._on_info)),
        }
        words = (
            (absolute('current_instruction'), self._on_words),
            (absolute('instruction'), self._on_words),
            (marks.MARK_TOPIC, self._on_mark),
        )
        spoken = next(((t, on) for t, on in words if self._has(t, (bag_values.STRING,))), None)
        self._words_of_chunks = spoken is None
        if spoken is not None:
            plan[spoken[0]] = spoken[1]
        for topic, (kind, callback) in optional.items():
            if self._has(topic, (kind,)):
                plan[topic] = callback
        if absolute(topics.gripper_command, NAMESPACE) not in plan:
            self.missing.append('gripper commands: the measured openness stands in, which comes later than its command')
        return plan

    def _has(self, topic: str, kinds: tuple[str, ...]) -> bool:
        info: TopicInfo | None = self.bag.topics.get(topic)
        return info is not None and info.type in kinds and info.count > 0

    def _raw(self, pictures: bool) -> Iterator[Event]:
        names = [t for t in self._plan if pictures or t not in self._view_of]
        self._last_words = ''
        offset: int | None = None
        early: list[Record] = []
        for record in self.bag.messages(names):
            if record.stamp_ns:
                offset = record.stamp_ns - record.recorded_ns
                if abs(offset) < 5_000_000_000:
                    offset = 0  # one clock: what is left is transport
                for held in early:
                    yield from self._convert(held, held.recorded_ns + offset)
                early = []
                yield from self._convert(record, record.stamp_ns)
            elif offset is None:
                early.append(record)
            else:
                yield from self._convert(record, record.recorded_ns + offset)
        for problem in self.bag.problems:
            if str(problem) not in self.trouble.counts:
                self.trouble.add(str(problem))

    def _convert(self, record: Record, stamp: int) -> Iterator[Event]:
        try:
            yield from self._plan[record.topic](record, stamp)
        except InstructVLAError as err:
            at = (stamp - self.bag.start_ns) * 1e-9
            when = f' at {at:.2f} s' if abs(at) < 1e6 else ''
            self.trouble.add(f'{record.topic}{when}: {err}')

    def _on_joints(self, record: Record, stamp: int) -> Iterator[Event]:
        state = self._joints.read(record.message)
        if state is not None:
            yield StateEvent(stamp, state)

    def _on_picture(self, record: Record, stamp: int) -> Iterator[Event]:
        if not record.stamp_ns:
            self.trouble.add(f'{record.topic}: pictures without a header stamp')
            return
        name = self._view_of[record.topic]
        yield FrameEvent(stamp, name, record.value.rgb, record.value.encoded, self.embodiment.views[name])

    def _on_gripper(self, record: Record, stamp: int) -> Iterator[Event]:
        widest = self.embodiment.gripper.max_width
        yield GripperEvent(stamp, float(np.clip(record.value.width / widest, 0.0, 1.0)))

    def _on_chunk(self, record: Record, stamp: int) -> Iterator[Event]:
        chunk = record.value
        if self._words_of_chunks and chunk.instruction and chunk.instruction != self._last_words:
            self._last_words = chunk.instruction
            # It was said before the observation that the first chunk rests on.
            yield WordsEvent(chunk.observation_stamp_ns, chunk.instruction)
        yield ChunkEvent(stamp, chunk)

    def _on_said(self, record: Record, stamp: int) -> Iterator[Event]:
        said = record.value
        if said.final and said.kind.name == 'PLAN':
            yield SaidEvent(said.stamp_ns or stamp, said.text, said)

    def _on_scene(self, record: Record, stamp: int) -> Iterator[Event]:
        yield SceneEvent(stamp, record.value)

    def _on_words(self, record: Record, stamp: int) -> Iterator[Event]:
        yield WordsEvent(stamp, str(record.value))

    def _on_mark(self, record: Record, stamp: int) -> Iterator[Event]:
        try:
            mark = json.loads(str(record.value))
            kind, words = str(mark['mark']), str(mark.get('instruction') or '')
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise DataError(f'not an episode mark: {str(record.value)[:80]!r} ({err})') from None
        if kind == 'start' and words:
            yield WordsEvent(stamp, words)
        elif kind == 'stop':
            yield WordsEvent(stamp, '')

    def _on_info(self, record: Record, stamp: int) -> Iterator[Event]:
        camera, view = record.value, self._info_of[record.topic]
        frame = str(getattr(getattr(record.message, 'header', None), 'frame_id', ''))
        yield CameraEvent(stamp, view, camera.k, (camera.width, camera.height), frame)

    def _on_description(self, record: Record, stamp: int) -> Iterator[Event]:
        yield DescriptionEvent(stamp, str(record.value))

    def _on_tf(self, record: Record, stamp: int) -> Iterator[Event]:
        for each in record.message.transforms:
            t, r = each.transform.translation, each.transform.rotation
            values: Any = (t.x, t.y, t.z, r.x, r.y, r.z, r.w)
            if not np.isfinite(values).all() or np.linalg.norm(values[3:]) < 1e-3:
                self.trouble.add(f'{record.topic}: transform {each.child_frame_id} is not a pose')
                continue
            pose = pose_from_xyz_quat(values[:3], values[3:])
            yield FrameTreeEvent(stamp, each.header.frame_id, each.child_frame_id, pose)
