"""Listens to the graph and makes a :class:`RunLog` of what it hears; images go to a video file beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from instructvla_ros.msg import ActionChunk, ControllerState, Reasoning, SimState

from ..datatypes import SceneState
from ..evaluation.runlog import (
    MODES,
    ChunkRows,
    CommandRows,
    ControllerRows,
    FrameRows,
    JointRows,
    RunLog,
    Table,
    TaskRows,
)
from ..evaluation.video import VideoWriter
from ..settings import Embodiment
from . import qos
from .convert import chunk_from_msg, reasoning_from_msg, scene_from_msg, stamp_from_msg, verdict_from_msg
from .convert_image import compressed_from_msg, image_from_msg
from .convert_robot import JointReader
from .runtime import BaseNode

# A recorder wants every message, a control loop only the newest: a queue instead of a depth of one.
_ALL = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
_IMAGES = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=4, reliability=ReliabilityPolicy.BEST_EFFORT)


class Recorder:
    """Records between :meth:`start` and :meth:`stop`; what arrives otherwise only updates the newest values.

    Args:
        node: gets the subscriptions; its executor runs the callbacks.
        images: subscribe to the cameras too.

    Attributes:
        scene: newest ground truth, or None. mode: newest controller mode, or -1. sentence: newest reasoning text.
    """

    def __init__(self, node: BaseNode, embodiment: Embodiment, images: bool) -> None:
        self._node = node
        self._robot = embodiment
        self._joints = JointReader(embodiment)
        self._views = tuple(embodiment.views)
        self._lock = threading.Lock()
        self._video: VideoWriter | None = None
        self._active = False
        self._seen: dict[str, int] = {}
        self.scene: SceneState | None = None
        self.mode = -1
        self.sentence = ''
        self._clear()
        topics = embodiment.topics
        self._listen(JointState, topics.joint_states, 'joint states', self._on_joints, _ALL)
        self._listen(JointTrajectory, topics.joint_trajectory, 'joint trajectory', self._on_command, _ALL)
        self._listen(ControllerState, 'controller_state', 'controller state', self._on_controller, _ALL)
        self._listen(ActionChunk, 'action_chunk', 'action chunk', self._on_chunk, qos.EVENT)
        self._listen(Reasoning, 'reasoning', 'reasoning', self._on_reasoning, qos.EVENT)
        self._listen(SimState, '/sim/state', 'simulator state', self._on_scene, _ALL)
        if images:
            for index, (name, view) in enumerate(embodiment.views.items()):
                kind = CompressedImage if view.topic.endswith('/compressed') else Image
                self._listen(kind, view.topic, f'view {name}', self._image_callback(index), _IMAGES)

    def silent(self, names: tuple[str, ...]) -> list[str]:
        """Which of the named inputs never arrived."""
        return [name for name in names if not self._seen.get(name)]

    def count(self, name: str) -> int:
        """Messages of one input so far."""
        return self._seen.get(name, 0)

    def start(self, folder: Path | None = None) -> int:
        """Forget what was recorded and begin; returns the start [ns]. With a folder, images become a video there."""
        video = VideoWriter(folder / 'video.mp4', self._views) if folder is not None else None
        with self._lock:
            self._clear()
            self.sentence = ''  # that of the instruction before says nothing about this one
            self._video, self._active = video, True
            self._start_ns = self._node.now_ns()
            return self._start_ns

    def verdict_counts(self) -> dict[str, int]:
        """How often each rule has interfered since :meth:`start`."""
        counts: dict[str, int] = {}
        with self._lock:
            for verdict in self._verdicts:
                if verdict['action'] != 'PASSED':
                    counts[verdict['rule']] = counts.get(verdict['rule'], 0) + 1
        return counts

    def stop(self, meta: Mapping[str, Any]) -> RunLog:
        """End recording and build the log.

        Args:
            meta: see :class:`RunLog`; the start stamp is added.

        Raises:
            VideoError: the encoder failed; the recorder is ready for the next start all the same.
        """
        with self._lock:
            self._active = False
            video, self._video = self._video, None
        described = video.close() if video is not None else {}
        with self._lock:
            rows = {chunk_id: row for row, chunk_id in enumerate(self._chunk_ids)}
            for row, chunk_id in zip(self._controller_rows, self._controller_chunks, strict=True):
                row['chunk'] = rows.get(chunk_id, -1)
                self._tables['controller'].append(**row)
            tables: dict[str, Any] = {name: table.build() for name, table in self._tables.items()}
            log = RunLog(
                meta={'start_ns': self._start_ns, **meta},
                joint_names=self._robot.arm_joints,
                views=self._views,
                steps=np.concatenate(self._steps) if self._steps else np.empty((0, 7)),
                chunk_ids=tuple(self._chunk_ids),
                chunk_reasoning=tuple(self._chunk_reasoning),
                reasoning=tuple(self._reasoning.values()),
                verdicts=tuple(self._verdicts),
                objects=self._objects(),
                video=described,
                **tables,
            )
            self._clear()
        return log

    def abort(self) -> None:
        """End recording and keep nothing but what the encoder already wrote."""
        with self._lock:
            self._active = False
            video, self._video = self._video, None
        if video is not None:
            video.close()

    def _clear(self) -> None:
        joints = len(self._robot.arm_joints)
        self._tables: dict[str, Table[Any]] = {
            'controller': Table(ControllerRows, joints),
            'joints': Table(JointRows, joints),
            'commands': Table(CommandRows, joints),
            'chunks': Table(ChunkRows, joints),
            'frames': Table(FrameRows, joints),
            'task': Table(TaskRows, joints),
        }
        self._start_ns = 0
        self._steps: list[Any] = []
        self._step_rows = 0
        self._chunk_ids: list[str] = []
        self._chunk_reasoning: list[str] = []
        self._reasoning: dict[str, dict[str, Any]] = {}
        self._verdicts: list[dict[str, Any]] = []
        self._controller_rows: list[dict[str, Any]] = []
        self._controller_chunks: list[str] = []
        self._first_scene: SceneState | None = None

    def _listen(
        self, kind: Any, topic: str, name: str, callback: Callable[[Any, int], None], profile: QoSProfile
    ) -> None:
        def on_message(message: Any) -> None:
            received = self._node.now_ns()
            self._seen[name] = self._seen.get(name, 0) + 1
            callback(message, received)

        self._node.create_subscription(kind, topic, self._node.guard(name, on_message), profile)

    def _on_joints(self, message: JointState, received: int) -> None:
        state = self._joints.read(message)
        with self._lock:
            if state is not None and self._active:
                self._tables['joints'].append(
                    stamp_ns=state.stamp_ns, received_ns=received, q=state.q, gripper=state.gripper
                )

    def _on_command(self, message: JointTrajectory, received: int) -> None:
        with self._lock:
            if self._active:
                self._tables['commands'].append(
                    stamp_ns=stamp_from_msg(message.header.stamp) or received, received_ns=received
                )

    def _on_controller(self, message: ControllerState, received: int) -> None:
        self.mode = int(message.mode) if message.mode < len(MODES) else -1
        if not self._active:
            return
        stamp = stamp_from_msg(message.header.stamp)
        commanded, measured = message.commanded_pose.position, message.measured_pose.position
        row = {
            'stamp_ns': stamp,
            'received_ns': received,
            'mode': self.mode,
            'commanded_q': self._vector(message.commanded_positions),
            'measured_q': self._vector(message.measured_positions),
            'commanded_dq': self._vector(message.commanded_velocities),
            'commanded_xyz': (commanded.x, commanded.y, commanded.z),
            'measured_xyz': (measured.x, measured.y, measured.z),
            'gripper': message.gripper_command,
            'step': message.step_index,
            'loop_period': message.loop_period,
        }
        verdicts = [verdict_from_msg(v) for v in message.verdicts]
        with self._lock:
            if not self._active:
                return
            self._controller_rows.append(row)
            self._controller_chunks.append(message.chunk_id)
            for v in verdicts:
                words = {k: getattr(v, k) for k in ('rule', 'subject', 'value', 'limit', 'unit', 'text', 'chunk_id')}
                self._verdicts.append({'stamp_ns': stamp, 'action': v.action.name, **words})

    def _on_chunk(self, message: ActionChunk, received: int) -> None:
        chunk = chunk_from_msg(message)
        with self._lock:
            if not self._active or chunk.id in self._chunk_ids[-4:]:
                return
            self._tables['chunks'].append(
                observation_ns=chunk.observation_stamp_ns,
                created_ns=chunk.created_stamp_ns,
                received_ns=received,
                model_latency=chunk.model_latency,
                step_period=chunk.step_period,
                tool_frame=chunk.delta_frame == 'tool',
                rotvec=chunk.rotation == 'rotvec',
                reference_pose=chunk.reference_pose,
                first=self._step_rows,
                horizon=chunk.horizon,
            )
            self._chunk_ids.append(chunk.id)
            self._chunk_reasoning.append(chunk.reasoning_id)
            self._steps.append(chunk.steps)
            self._step_rows += chunk.horizon

    def _on_reasoning(self, message: Reasoning, received: int) -> None:
        said = reasoning_from_msg(message)
        if said.final:  # a sentence that still grows would be shown in pieces
            self.sentence = said.text
        with self._lock:
            if self._active:
                # The same id comes again while its sentence still grows: the last one counts.
                self._reasoning[said.id] = {
                    'id': said.id,
                    'stamp_ns': said.stamp_ns,
                    'received_ns': received,
                    'text': said.text,
                    'kind': said.kind.name,
                    'tokens': said.tokens,
                    'latency': said.latency,
                    'source': said.source,
                    'instruction': said.instruction,
                }

    def _on_scene(self, message: SimState, received: int) -> None:
        scene = scene_from_msg(message)
        with self._lock:
            self.scene = scene
            if self._active:
                self._first_scene = self._first_scene or scene
                self._tables['task'].append(
                    stamp_ns=scene.stamp_ns,
                    progress=scene.progress,
                    success=scene.success,
                    tcp_xyz=scene.tcp_pose[:3, 3],
                )

    def _image_callback(self, index: int) -> Callable[[Any, int], None]:
        def on_image(message: Any, received: int) -> None:
            if not self._active:
                return
            stamp = stamp_from_msg(message.header.stamp)
            decode = compressed_from_msg if isinstance(message, CompressedImage) else image_from_msg
            image = decode(message)
            with self._lock:
                if self._active:
                    self._tables['frames'].append(stamp_ns=stamp, received_ns=received, view=index)
                    if self._video is not None:
                        self._video.add(self._views[index], stamp, image)

        return on_image

    def _vector(self, values: Any) -> Any:
        joints = len(self._robot.arm_joints)
        return np.asarray(values, dtype=np.float64) if len(values) == joints else np.full(joints, np.nan)

    def _objects(self) -> dict[str, Any]:
        if self._first_scene is None or self.scene is None:
            return {}
        first, last = self._first_scene, self.scene
        return {
            'start': _describe(first),
            'end': _describe(last),
            'target': first.target,
            'destination': first.destination,
        }


def _describe(scene: SceneState) -> list[dict[str, Any]]:
    return [
        {
            'name': o.name,
            'category': o.category,
            'color': o.color,
            'size': o.size,
            'xyz': o.pose[:3, 3].tolist(),
            'extent': np.asarray(o.extent).tolist(),
            'opening': o.opening,
        }
        for o in scene.objects.values()
    ]
