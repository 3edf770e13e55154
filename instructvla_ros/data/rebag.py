"""Writes bags without ROS: single messages, or an episode as "data, re-encoded as a bag" for tests and replay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer, WriterError

from .. import camera_view
from ..datatypes import STEP_DIM, ActionChunk, Image
from ..decoding import FRAMES, ROTATIONS, SECOND
from ..errors import DataError
from ..geometry import Array, quat_from_pose
from ..settings import Embodiment
from .bag_types import standard_types
from .bag_values import CAMERA_INFO, CLOCK, COMPRESSED, GRIPPER, IMAGE, JOINT_STATE, STRING
from .episodes import Episode
from .marks import MARK_TOPIC, Mark

INSTRUCTION_TOPIC = '/instructvla/instruction'
CHUNK_TOPIC = '/instructvla/action_chunk'
STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}
COMPRESSIONS = {
    '': CompressionMode.NONE,
    'message': CompressionMode.MESSAGE,
    'file': CompressionMode.FILE,
    'chunk': CompressionMode.STORAGE,
}
_NEVER = QosTime(2147483647, 4294967295)
_QOS = Qos(
    QosHistory.KEEP_LAST, 10, QosReliability.RELIABLE, QosDurability.VOLATILE, _NEVER, _NEVER,
    QosLiveliness.AUTOMATIC, _NEVER, False,
)  # fmt: skip


class BagWriter:
    """Writes one bag; a ``with`` statement closes it. Times are nanoseconds.

    Every method takes the header stamp and, where it differs, the time of recording.

    Args:
        path: new folder. storage: 'mcap' or 'sqlite3'.
        compression: zstd of '' nothing, each 'message', the whole 'file', or each 'chunk' (mcap).

    Raises:
        DataError: the folder exists, cannot be made, or the options do not fit together.
    """

    def __init__(self, path: str | Path, storage: str = 'mcap', compression: str = '') -> None:
        if storage not in STORAGES or compression not in COMPRESSIONS:
            raise DataError(
                f'storage {storage!r}, compression {compression!r}; allowed are {", ".join(STORAGES)} and '
                f'{", ".join(repr(c) for c in COMPRESSIONS)}'
            )
        self.path = Path(path)
        self._store = standard_types()
        self._connections: dict[str, Any] = {}
        try:
            self._writer = Writer(self.path, version=9, storage_plugin=STORAGES[storage])
            if compression:
                self._writer.set_compression(COMPRESSIONS[compression], CompressionFormat.ZSTD)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer.open()
        except WriterError as err:
            raise DataError(f'cannot write the bag {self.path}: {err}') from None
        except OSError as err:
            raise DataError(f'cannot write the bag {self.path}: {err.strerror}') from None

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._writer.close()
        else:
            self._writer.abort()

    def make(self, kind: str, /, **fields: Any) -> Any:
        """A message; fields that are left out are zero."""
        return self._store.types[kind](**{**_zeros(self._store, kind), **fields})

    def header(self, stamp_ns: int, frame_id: str = '') -> Any:
        """std_msgs/Header."""
        return self.make('std_msgs/msg/Header', stamp=self.time(stamp_ns), frame_id=frame_id)

    def time(self, stamp_ns: int) -> Any:
        """builtin_interfaces/Time."""
        seconds, rest = divmod(int(stamp_ns), SECOND)
        return self.make('builtin_interfaces/msg/Time', sec=seconds, nanosec=rest)

    def write(self, topic: str, kind: str, recorded_ns: int, message: Any) -> None:
        """Write a message made by :meth:`make`."""
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._writer.add_connection(topic, kind, typestore=self._store, offered_qos_profiles=[_QOS])
            self._connections[topic] = connection
        self._writer.write(connection, int(recorded_ns), self._store.serialize_cdr(message, kind))

    def image(self, topic: str, stamp_ns: int, rgb: Image, frame_id: str = '', recorded_ns: int = 0) -> None:
        """Write (H, W, 3) uint8 RGB as sensor_msgs/Image rgb8."""
        height, width = rgb.shape[:2]
        message = self.make(
            IMAGE, header=self.header(stamp_ns, frame_id), height=height, width=width, encoding='rgb8',
            step=3 * width, data=np.ascontiguousarray(rgb).reshape(-1),
        )  # fmt: skip
        self.write(topic, IMAGE, recorded_ns or stamp_ns, message)

    def compressed(self, topic: str, stamp_ns: int, data: bytes, frame_id: str = '', recorded_ns: int = 0) -> None:
        """Write JPEG or PNG bytes as sensor_msgs/CompressedImage."""
        kind = 'png' if data[:4] == b'\x89PNG' else 'jpeg'
        message = self.make(
            COMPRESSED, header=self.header(stamp_ns, frame_id), format=f'rgb8; {kind} compressed bgr8',
            data=np.frombuffer(data, np.uint8),
        )  # fmt: skip
        self.write(topic, COMPRESSED, recorded_ns or stamp_ns, message)

    def camera(
        self, topic: str, stamp_ns: int, k: Array, width: int, height: int, frame_id: str = '', recorded_ns: int = 0
    ) -> None:
        """Write sensor_msgs/CameraInfo of a pinhole camera; k: (3, 3) [px]."""
        k = np.asarray(k, np.float64)
        message = self.make(
            CAMERA_INFO, header=self.header(stamp_ns, frame_id), width=width, height=height,
            distortion_model='plumb_bob', d=np.zeros(5), k=k.reshape(9), r=np.eye(3).reshape(9),
            p=np.hstack([k, np.zeros((3, 1))]).reshape(12),
        )  # fmt: skip
        self.write(topic, CAMERA_INFO, recorded_ns or stamp_ns, message)

    def joints(
        self, topic: str, stamp_ns: int, names: tuple[str, ...], position: Any, velocity: Any = (), recorded_ns: int = 0
    ) -> None:
        """Write sensor_msgs/JointState."""
        message = self.make(
            JOINT_STATE, header=self.header(stamp_ns), name=list(names), position=np.asarray(position, np.float64),
            velocity=np.asarray(velocity, np.float64),
        )  # fmt: skip
        self.write(topic, JOINT_STATE, recorded_ns or stamp_ns, message)

    def gripper(self, topic: str, stamp_ns: int, width: float, recorded_ns: int = 0) -> None:
        """Write instructvla_ros/GripperCommand; width between the fingers [m]."""
        message = self.make(GRIPPER, header=self.header(stamp_ns), width=float(width))
        self.write(topic, GRIPPER, recorded_ns or stamp_ns, message)

    def text(self, topic: str, recorded_ns: int, text: str) -> None:
        """Write std_msgs/String."""
        self.write(topic, STRING, recorded_ns, self.make(STRING, data=text))

    def mark(self, recorded_ns: int, mark: str, instruction: str = '', topic: str = MARK_TOPIC) -> None:
        """Write an episode mark: start, stop, success or discard."""
        self.text(topic, recorded_ns, Mark(mark, instruction).to_json())

    def clock(self, stamp_ns: int, recorded_ns: int = 0) -> None:
        """Write /clock."""
        message = self.make(CLOCK, clock=self.time(stamp_ns))
        self.write('/clock', CLOCK, recorded_ns or stamp_ns, message)

    def chunk(self, chunk: ActionChunk, topic: str = CHUNK_TOPIC, recorded_ns: int = 0) -> None:
        """Write instructvla_ros/ActionChunk."""
        kind = 'instructvla_ros/msg/ActionChunk'
        x, y, z, w = (float(v) for v in quat_from_pose(chunk.reference_pose))
        px, py, pz = (float(v) for v in chunk.reference_pose[:3, 3])
        pose = self.make(
            'geometry_msgs/msg/Pose', position=self.make('geometry_msgs/msg/Point', x=px, y=py, z=pz),
            orientation=self.make('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w),
        )  # fmt: skip
        message = self.make(
            kind, header=self.header(chunk.created_stamp_ns, chunk.frame_id), id=chunk.id,
            reasoning_id=chunk.reasoning_id, instruction=chunk.instruction, policy=chunk.policy,
            checkpoint_revision=chunk.checkpoint_revision, observation_stamp=self.time(chunk.observation_stamp_ns),
            model_latency=chunk.model_latency, step_period=chunk.step_period,
            delta_frame=next(k for k, v in FRAMES.items() if v == chunk.delta_frame),
            rotation=next(k for k, v in ROTATIONS.items() if v == chunk.rotation), horizon=chunk.horizon,
            steps=np.asarray(chunk.steps, np.float64).reshape(chunk.horizon * STEP_DIM), reference_pose=pose,
            done=chunk.done,
        )  # fmt: skip
        self.write(topic, kind, recorded_ns or chunk.created_stamp_ns, message)


def write_bag(
    episode: Episode,
    path: str | Path,
    embodiment: Embodiment,
    *,
    storage: str = 'mcap',
    compression: str = '',
    joint_rate: float = 0.0,
    marks: bool = True,
    cameras: Mapping[str, Array] | None = None,
) -> Path:
    """Write an episode as a bag with the topics of an embodiment; returns the folder.

    Views become raw images, or, for topics that end in ``/compressed``, the encoded bytes as they are. The gripper's
    commands are written on change, instruction and marks at start and end.

    Args:
        joint_rate: joint states per second, interpolated; 0: one per frame [Hz].
        cameras: view -> (3, 3) intrinsic matrix [px], written as CameraInfo once per frame.

    Raises:
        DataError: the episode has other views or joints than the embodiment, a view of it is cropped, flipped or
            turned, or the bag cannot be written.
    """
    twice = camera_view.changed(embodiment.views)
    if twice:
        raise DataError(
            f'the pictures of episode {episode.id} are as the policy sees them; a bag holds those of the camera, and '
            f'{", ".join(twice)} would be cropped, flipped or turned again: give an embodiment that does not'
        )
    missing = sorted(set(embodiment.views) - set(episode.views))
    if missing:
        raise DataError(f'episode {episode.id} has no view {", ".join(missing)}; it has {", ".join(episode.views)}')
    if episode.q.shape[1] != len(embodiment.arm_joints):
        raise DataError(
            f'episode {episode.id} has {episode.q.shape[1]} joints, {embodiment.name} {len(embodiment.arm_joints)}'
        )
    stamps = np.asarray(episode.stamps_ns, np.int64)
    start, end = int(stamps[0]), int(stamps[-1])
    events: list[tuple[int, int, Any]] = []  # time, order at the same time, what to do
    with BagWriter(path, storage, compression) as bag:
        events.append((start - 2, 0, lambda: bag.text(INSTRUCTION_TOPIC, start - 2, episode.instruction)))
        if marks:
            events.append((start - 1, 1, lambda: bag.mark(start - 1, 'start', episode.instruction)))
            last = {True: 'success', False: 'stop', None: 'stop'}[episode.success]
            events.append((end + 1, 9, lambda: bag.mark(end + 1, last, episode.instruction)))
        rows = _joint_rows(episode, joint_rate)
        events += [(t, 2, _joints(bag, embodiment, t, q, dq, openness)) for t, q, dq, openness in rows]
        events += [(int(stamps[k]), 3, _gripper(bag, embodiment, int(stamps[k]), o)) for k, o in _commands(episode)]
        for name, view in embodiment.views.items():
            for k, stamp in enumerate(stamps):
                k_matrix = (cameras or {}).get(name)
                events.append((int(stamp), 4, _picture(bag, episode, name, view, k, int(stamp), k_matrix)))
        for _, _, act in sorted(events, key=lambda e: e[:2]):
            act()
    return Path(path)


def _joint_rows(episode: Episode, rate: float) -> list[tuple[int, Array, Array, float]]:
    stamps = np.asarray(episode.stamps_ns, np.int64)
    times = stamps
    if rate > 0.0 and len(stamps) > 1:
        times = np.arange(stamps[0], stamps[-1] + 1, round(SECOND / rate), dtype=np.int64)
    base = stamps[0]

    def at(values: Array) -> Array:
        columns = values.reshape(len(stamps), -1).T
        return np.stack([np.interp(times - base, stamps - base, c) for c in columns], axis=1)

    q, dq, openness = at(episode.q), at(episode.dq), at(episode.proprio[:, 7])
    return [(int(t), q[k], dq[k], float(openness[k, 0])) for k, t in enumerate(times)]


def _joints(bag: BagWriter, embodiment: Embodiment, stamp: int, q: Array, dq: Array, openness: float) -> Any:
    fingers = embodiment.gripper.joints
    travel = openness * embodiment.gripper.max_width / 2.0
    names = (*embodiment.arm_joints, *fingers)
    position = [*q.tolist(), *[travel] * len(fingers)]
    velocity = [*dq.tolist(), *[0.0] * len(fingers)]
    return lambda: bag.joints(embodiment.topics.joint_states, stamp, names, position, velocity)


def _commands(episode: Episode) -> list[tuple[int, float]]:
    openness = episode.actions[:, 6]
    changed = np.flatnonzero(np.diff(openness, prepend=np.nan) != 0.0)
    return [(int(k), float(openness[k])) for k in changed]


def _gripper(bag: BagWriter, embodiment: Embodiment, stamp: int, openness: float) -> Any:
    width = min(max(openness, 0.0), 1.0) * embodiment.gripper.max_width
    return lambda: bag.gripper(embodiment.topics.gripper_command, stamp, width)


def _picture(bag: BagWriter, episode: Episode, name: str, view: Any, k: int, stamp: int, matrix: Array | None) -> Any:
    def write() -> None:
        frames = episode.views[name]
        if view.topic.endswith('/compressed'):
            bag.compressed(view.topic, stamp, frames.encoded(k), view.frame_id)
        else:
            bag.image(view.topic, stamp, frames[k], view.frame_id)
        if matrix is not None and view.info_topic:
            height, width = frames[k].shape[:2]
            bag.camera(view.info_topic, stamp, matrix, width, height, view.frame_id)

    return write


def _zeros(store: Any, kind: str) -> dict[str, Any]:
    """Zero values of every field of a message type."""
    out: dict[str, Any] = {}
    for name, (node, rest) in store.fielddefs[kind][1]:
        label = str(node.name)
        if label == 'BASE':
            out[name] = '' if rest[0] == 'string' else False if rest[0] == 'bool' else 0.0 if 'float' in rest[0] else 0
        elif label == 'NAME':
            out[name] = store.types[rest](**_zeros(store, rest))
        else:
            (inner, about), size = rest
            count = size if label == 'ARRAY' else 0
            if inner.name == 'BASE' and about[0] != 'string':
                kind_ = {'bool': 'bool', 'byte': 'uint8', 'char': 'uint8'}.get(about[0], about[0])
                out[name] = np.zeros(count, kind_)
            elif inner.name == 'BASE':
                out[name] = [''] * count
            else:
                out[name] = [store.types[about](**_zeros(store, about)) for _ in range(count)]
    return out
