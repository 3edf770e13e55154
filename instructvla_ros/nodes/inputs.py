"""Subscriptions to cameras, joint states and, for privileged policies, the simulator's ground truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from sensor_msgs.msg import CompressedImage, Image, JointState

from instructvla_ros.msg import SimState

from .. import camera_view
from ..control.kinematics import Kinematics
from ..datatypes import Observation
from ..errors import ConfigError
from ..observing import JOINT_STATES, SIM_STATE, Stale, Synchronizer
from ..settings import Embodiment, PolicySettings, View
from . import qos
from .convert import scene_from_msg, stamp_from_msg
from .convert_image import compressed_from_msg, image_from_msg
from .convert_robot import JointReader
from .diagnostics import STALE
from .runtime import BaseNode

SIM_STATE_TOPIC = '/sim/state'


class Inputs:
    """Feeds a :class:`Synchronizer` from the topics of an embodiment.

    Args:
        privileged: also subscribe to the simulator's ground truth; warns, because no robot has it.
        wake: called after each image, from the executor.
    """

    def __init__(
        self,
        node: BaseNode,
        embodiment: Embodiment,
        settings: PolicySettings,
        privileged: bool,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._node = node
        self._wake = wake
        self._joints = JointReader(embodiment)
        self._sync = Synchronizer(
            tuple(embodiment.views), Kinematics(embodiment).forward, embodiment.base_frame, settings, privileged
        )
        self._jumps = 0
        group = MutuallyExclusiveCallbackGroup()

        def listen(kind: Any, topic: str, name: str, callback: Callable[[Any], None], timeout: float) -> None:
            node.create_subscription(kind, topic, node.guard(name, callback), qos.SENSOR, callback_group=group)
            node.diagnostics.expect(name, timeout)

        for name, view in embodiment.views.items():
            if not view.topic:
                raise ConfigError(f'view {name!r} has no topic; set views.{name}.topic in the embodiment')
            kind = CompressedImage if view.topic.endswith('/compressed') else Image
            listen(kind, view.topic, f'view {name}', self._image_callback(name, view), settings.max_view_age)
        listen(JointState, embodiment.topics.joint_states, JOINT_STATES, self._on_joints, settings.max_state_age)
        if privileged:
            listen(SimState, SIM_STATE_TOPIC, SIM_STATE, self._on_scene, settings.max_view_age)
            node.get_logger().warning(
                f'this policy reads {SIM_STATE_TOPIC}, the ground truth of the simulator: no robot has this topic, '
                'so it works in simulation only'
            )

    def observe(self, instruction: str = '') -> Observation | Stale:
        """Newest observation at this moment of the node's clock, or why there is none."""
        seen = self._sync.latest(self._node.now_ns(), instruction)
        if isinstance(seen, Stale):
            self._node.diagnostics.count('no observation', seen.reason, STALE)
        return seen

    def _image_callback(self, name: str, view: View) -> Callable[[Any], None]:
        def on_image(message: Any) -> None:
            decode = compressed_from_msg if isinstance(message, CompressedImage) else image_from_msg
            image = camera_view.prepare(view, decode(message))
            self._note(self._sync.feed(name, stamp_from_msg(message.header.stamp), image), f'view {name}')
            self._wake()

        return on_image

    def _on_joints(self, message: JointState) -> None:
        state = self._joints.read(message)
        if state is not None:
            self._note(self._sync.feed_state(state), JOINT_STATES)

    def _on_scene(self, message: SimState) -> None:
        self._note(self._sync.feed_privileged(scene_from_msg(message)), SIM_STATE)

    def _note(self, problem: str, name: str) -> None:
        if problem:
            self._node.diagnostics.count(f'{name} dropped', problem)
            self._node.warn(f'{name} dropped', problem)
        if self._sync.jumps != self._jumps:
            self._jumps = self._sync.jumps
            self._node.diagnostics.count('time jumps', f'the stamps of {name} went back')
            self._node.get_logger().warning(f'the stamps of {name} went back: starting over with new messages only')
