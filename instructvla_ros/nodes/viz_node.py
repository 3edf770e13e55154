"""The model's thoughts, its chunks and the verdicts of the safety ladder for RViz, Foxglove or a recording.

Only looks: it sends nothing to the arm. While nobody subscribes to one of its topics it listens to sentences and the
robot description only, so it may always run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from nav_msgs.msg import Path
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String
from visualization_msgs.msg import MarkerArray

from instructvla_ros.msg import ActionChunk, ControllerState, Reasoning

from .. import camera_view, config, resources
from ..annotate import annotate, project
from ..control.frames import LinkFrames
from ..errors import ConfigError, ObservationError, SetupError, suggest
from ..geometry import Array
from ..settings import Control, Safety, Visual
from ..visual import Board
from . import params, qos, runtime
from .convert import (
    chunk_from_msg,
    intrinsics_from_msg,
    pose_from_msg,
    reasoning_from_msg,
    stamp_from_msg,
    verdict_from_msg,
)
from .convert_image import ImageWriter, compressed_from_msg, image_from_msg
from .convert_visual import markers_to_msg, path_to_msg, pose_stamped_to_msg, transforms_to_msg
from .diagnostics import OK, WARN
from .viz_overlay import Overlay

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # not among the wheels of the package index; every full ROS 2 has it
    TFMessage = None

_COMPRESSED = '/compressed'


class VizNode(runtime.BaseNode):
    """Sentences, chunks and controller states in; markers, paths and an annotated image out."""

    def __init__(self, **kwargs: Any) -> None:
        """Create the node.

        Raises:
            ConfigError, SetupError: the settings or this machine do not allow it.
        """
        super().__init__('viz_node', **kwargs)
        self._embodiment = params.load_embodiment(self)
        name = params.text_parameter(
            self, 'config', 'controller.yaml', 'settings of the controller, whose bounds are shown'
        )
        control = config.load(Control, resources.config_file(name))
        safety = params.declare(self, Safety, control.safety, prefix='safety')
        self._visual = params.declare(self, Visual, Visual())
        wanted, views = self._visual.view, self._embodiment.views
        if wanted not in views:
            raise ConfigError(f'view {wanted!r} is not one of {self._embodiment.name}.{suggest(wanted, views)}')
        self._view = views[wanted]
        self._board = Board(self._visual, safety, self._embodiment.gripper.max_width)
        self._base = self._embodiment.base_frame
        self._frames: LinkFrames | None = None
        self._intrinsics: tuple[Array, int, int] | None = None
        self._joints_seen = False
        self._joints_ns = 0
        self._cleared = False
        self._predicted = ''
        self._executed: dict[int, Any] = {}
        self._next_image = 0.0
        self._writer: ImageWriter | None = None
        self._lazy: dict[str, Any] = {}

        self._markers_pub = self.create_publisher(MarkerArray, 'markers', qos.EVENT)
        self._predicted_pub = self.create_publisher(Path, 'predicted_path', qos.LATCHED)
        self._executed_pub = self.create_publisher(Path, 'executed_path', qos.SENSOR_PUBLISHER)
        self._image_pub = self.create_publisher(Image, 'annotated_image', qos.SENSOR_PUBLISHER)
        self._overlay = Overlay(self.create_publisher, self._visual)
        self._tf_pub = self._advertise_tf()
        self._mounts_pub = self._announce_mounts()
        self.create_subscription(Reasoning, 'reasoning', self.guard('reasoning', self._on_reasoning), qos.REASONING)
        self.create_subscription(
            String,
            self._embodiment.topics.robot_description,
            self.guard('robot_description', self._on_description),
            qos.LATCHED,
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a stopped ROS clock must not freeze what is shown
        self.create_timer(1.0 / self._visual.rate, self._guarded_tick, clock=steady)

    def _advertise_tf(self) -> Any:
        if not self._visual.publish_tf:
            return None
        if TFMessage is None:
            self.get_logger().warning('tf2_msgs is not installed: the links of the robot are not published on /tf')
            return None
        return self.create_publisher(TFMessage, '/tf', qos.TRANSFORMS)

    def _announce_mounts(self) -> Any:
        """Put cameras whose place is configured on /tf_static; on /tf they are among the links already."""
        mounts = camera_view.mounts(self._embodiment.views)
        if not mounts or self._visual.publish_tf or TFMessage is None:
            return None
        stamp, found = self.now_ns(), []
        for frame, (link, pose) in mounts.items():
            found += transforms_to_msg({frame: pose}, link, stamp)
        publisher = self.create_publisher(TFMessage, '/tf_static', qos.LATCHED)
        publisher.publish(TFMessage(transforms=found))
        return publisher

    # -- what arrives ---------------------------------------------------------------------------------------------

    def _on_reasoning(self, message: Reasoning) -> None:
        self._board.on_reasoning(reasoning_from_msg(message))

    def _on_description(self, message: String) -> None:
        self._frames = LinkFrames(message.data, self._base, camera_view.mounts(self._embodiment.views))

    def _on_chunk(self, message: ActionChunk) -> None:
        chunk = chunk_from_msg(message)
        if chunk.frame_id != self._base:
            raise ObservationError(f'chunk {chunk.id}: frame {chunk.frame_id!r}, only {self._base!r} is shown')
        self._board.on_chunk(chunk, time.monotonic())

    def _on_state(self, message: ControllerState) -> None:
        tcp = None
        if message.measured_positions:  # the pose means nothing before the first joint state
            tcp = pose_from_msg(message.measured_pose, 'measured_pose')
            self._move_joints(message.joint_names, message.measured_positions)
        self._board.on_state(
            stamp_from_msg(message.header.stamp),
            tcp,
            message.chunk_id,
            message.reasoning_id,
            message.step_index,
            [verdict_from_msg(v) for v in message.verdicts],
            time.monotonic(),
        )

    def _on_joints(self, message: JointState) -> None:
        self._move_joints(message.name, message.position)
        self._joints_ns = stamp_from_msg(message.header.stamp)

    def _move_joints(self, names: Any, positions: Any) -> None:
        if self._frames is not None:
            self._frames.set_joints(dict(zip(names, positions, strict=False)))
            self._joints_seen = True

    def _on_info(self, message: CameraInfo) -> None:
        self._intrinsics = intrinsics_from_msg(message)

    # -- what goes out --------------------------------------------------------------------------------------------

    def _guarded_tick(self) -> None:
        try:
            self._tick()
        except Exception as err:  # one thing that cannot be drawn must not end the node; it is warned about
            self.drop('drawing', err)

    def _tick(self) -> None:
        publishers = (self._markers_pub, self._predicted_pub, self._executed_pub)
        watched = self._overlay.watched or any(p.get_subscription_count() > 0 for p in publishers)
        pictured = self._image_pub.get_subscription_count() > 0
        moving = self._tf_pub is not None and self._tf_pub.get_subscription_count() > 0
        self._listen(watched or pictured, pictured, moving)
        now = time.monotonic()
        if self._markers_pub.get_subscription_count() > 0:
            shapes, gone = self._board.update(now)
            self._markers_pub.publish(markers_to_msg(shapes, gone, self._base, clear=not self._cleared))
            self._cleared = True
        else:
            self._board.advance(now)
        said = self._board.thought
        self._overlay.show(said.text if said else '', self._board.caption(said) if said else '', now)
        if watched:
            self._publish_paths()
        if moving and self._frames is not None and self._joints_ns:
            poses = self._frames.poses()
            self._tf_pub.publish(TFMessage(transforms=transforms_to_msg(poses, self._base, self._joints_ns)))

    def _listen(self, watched: bool, pictured: bool, moving: bool) -> None:
        topics, view = self._embodiment.topics, self._view
        if not watched:
            self._board.executed.clear()  # a later path must not jump over the time in which nobody looked
        self._keep('action_chunk', watched, ActionChunk, 'action_chunk', self._on_chunk, qos.CHUNK)
        self._keep('controller_state', watched, ControllerState, 'controller_state', self._on_state, qos.STATE)
        self._keep('joint_states', moving, JointState, topics.joint_states, self._on_joints, qos.SENSOR)
        kind = CompressedImage if view.topic.endswith(_COMPRESSED) else Image
        self._keep('image', pictured, kind, view.topic, self._on_image, qos.SENSOR)
        self._keep('camera_info', pictured and bool(view.info_topic), CameraInfo, view.info_topic, self._on_info,
                   qos.SENSOR)  # fmt: skip

    def _keep(
        self, name: str, wanted: bool, kind: Any, topic: str, callback: Callable[[Any], None], profile: QoSProfile
    ) -> None:
        if wanted and name not in self._lazy:
            self._lazy[name] = self.create_subscription(kind, topic, self.guard(name, callback), profile)
        elif not wanted and name in self._lazy:
            self.destroy_subscription(self._lazy.pop(name))

    def _publish_paths(self) -> None:
        prediction = self._board.prediction
        newest = prediction[0].id if prediction is not None else ''
        if newest != self._predicted:
            self._predicted = newest
            poses = []
            if prediction is not None:
                chunk, path = prediction
                period = round(chunk.step_period * 1e9)
                poses = [
                    pose_stamped_to_msg(pose, chunk.observation_stamp_ns + k * period, self._base)
                    for k, pose in enumerate(path)
                ]
            self._predicted_pub.publish(path_to_msg(poses, self._base))
        if self._executed_pub.get_subscription_count() > 0:
            have = self._executed
            current = {
                stamp: have.get(stamp) or pose_stamped_to_msg(pose, stamp, self._base)
                for stamp, pose in self._board.executed
            }
            if current.keys() != have.keys():
                self._executed = current
                self._executed_pub.publish(path_to_msg(list(current.values()), self._base))

    def _on_image(self, message: Any) -> None:
        now = time.monotonic()
        if now < self._next_image:
            return
        self._next_image = now + 1.0 / self._visual.image_rate
        rgb = compressed_from_msg(message) if isinstance(message, CompressedImage) else image_from_msg(message)
        width, height = rgb.shape[1], rgb.shape[0]
        rgb = camera_view.prepare(self._view, rgb)  # what the policy sees
        mounted = self._view.frame_id if self._view.mount.link else ''
        frame_id = mounted or message.header.frame_id or self._view.frame_id
        said = self._board.thought
        small = self._board.caption(said) if said is not None else ''
        pixels = openness = None
        prediction = self._board.prediction
        if prediction is not None:
            chunk, path = prediction
            camera = self._camera(frame_id, width, height)
            small = f'{small}   chunk {chunk.id}' if said is None or chunk.reasoning_id != said.id else small
            if isinstance(camera, str):
                small = f'{small}   (no path: {camera})'
            else:
                pixels = project(path[:, :3, 3], *camera)
                openness = np.concatenate([chunk.steps[:1, 6], chunk.steps[: len(path) - 1, 6]])
            self.diagnostics.condition('projection', *((WARN, camera) if isinstance(camera, str) else (OK, '')))
        drawn = annotate(rgb, said.text if said is not None else '', small.strip(), pixels, openness)
        if self._writer is None:
            self._writer = ImageWriter(frame_id)
        self._image_pub.publish(self._writer(drawn, stamp_from_msg(message.header.stamp)))
        self.diagnostics.latency('annotate', time.monotonic() - now)

    def _camera(self, frame_id: str, width: int, height: int) -> tuple[Array, Array] | str:
        """(3, 3) into the prepared picture and T_base_optical (4, 4) of the camera, or why they are not known.

        Args:
            width, height: of the camera's own picture [px].
        """
        if self._intrinsics is None:
            return f'no camera info on {self._view.info_topic or "any topic"}'
        k, info_width, info_height = self._intrinsics
        if (info_width, info_height) != (width, height):
            return f'the camera info is for {info_width} x {info_height}, the image has {width} x {height}'
        k = camera_view.intrinsics(self._view, k, width, height)
        if self._frames is None:
            return f'no robot description on {self._embodiment.topics.robot_description}'
        try:
            if not self._joints_seen and not self._frames.is_fixed(frame_id):
                return 'no joint positions yet, and this camera moves with the arm'
            return k, self._frames.pose(frame_id)
        except SetupError:
            return f'the robot description has no frame {frame_id!r}'


def main(args: list[str] | None = None) -> int:
    """Run the node until a signal arrives; returns the exit code."""
    return runtime.run(VizNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
