"""The operator's page in a browser: cameras, arm, plans, thoughts and verdicts; instruction, question, STOP.

While no browser looks it listens to sentences and the robot description only. A press of STOP goes from the thread of
the web server straight into the service call: it waits for no executor, no picture and no other wish, and is repeated
until the controller says that it is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from instructvla_ros.msg import ActionChunk, ControllerState, Reasoning

from .. import config, resources
from ..errors import ObservationError
from ..goals import ControllerMode
from ..operator_page.desk import ControllerReport, Desk
from ..operator_page.server import Server
from ..operator_page.timeline import PREDICTED, RECORDED, Timeline
from ..settings import Control, Safety, Visual, Web
from . import params, qos, runtime
from .convert import chunk_from_msg, pose_from_msg, reasoning_from_msg, stamp_from_msg, verdict_from_msg
from .web_cameras import Camera
from .web_wishes import Wishes

_LOOKED_AWAY = 2.0  # time without a browser after which the topics are left [s]
_STATE_PERIOD = 0.02  # shortest time between two controller states that are taken unless something changed [s]


class WebNode(runtime.BaseNode):
    """Topics, services and actions on one side, browsers on the other."""

    def __init__(self, **kwargs: Any) -> None:
        """Create the node and listen on the web address.

        Raises:
            ConfigError, SetupError: the settings or this machine do not allow it.
        """
        super().__init__('web_node', **kwargs)
        self._robot = params.load_embodiment(self)
        name = params.text_parameter(
            self, 'config', 'controller.yaml', 'settings of the controller, whose bounds are shown'
        )
        control = config.load(Control, resources.config_file(name))
        safety = params.declare(self, Safety, control.safety, prefix='safety')
        self.web = params.declare(self, Web, Web())
        self.desk = Desk(self._robot, safety, Visual(), self.web.stale_after)
        self.timeline = Timeline()
        self._listening: list[Any] = []
        self._watched = -float('inf')
        self._taken = 0.0
        self._last: tuple[Any, ...] = ()
        self._groups = {n: MutuallyExclusiveCallbackGroup() for n in ('words', 'motion', 'tick')}
        self.wishes = Wishes(self, self.desk, self._tell)
        self.server = Server(self.web, self._greet, self.wishes.carry_out)
        self._cameras = [Camera(self, n, v, self.web, self.desk, self._show) for n, v in self._robot.views.items()]
        words = self._groups['words']
        self.create_subscription(
            Reasoning, 'reasoning', self.guard('reasoning', self._on_reasoning), qos.REASONING, callback_group=words
        )
        self.create_subscription(
            String,
            self._robot.topics.robot_description,
            self.guard('robot_description', self._on_description),
            qos.LATCHED,
            callback_group=words,
        )
        for topic, callback, profile in (
            (RECORDED, self._on_recorded, qos.LATCHED),
            (PREDICTED, self._on_news, qos.HISTORY),
        ):
            self.create_subscription(String, topic, self.guard(topic, callback), profile, callback_group=words)
        self.server.start()
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a stopped ROS clock must not freeze the page
        self.create_timer(1.0 / self.web.rate, self._guarded_tick, callback_group=self._groups['tick'], clock=steady)
        self.get_logger().info(f'operator page on {self.web.host}, port {self.server.port}')  # /rosout: no token

    def close(self) -> None:
        """Send the browsers away."""
        self.wishes.close()
        self.server.close()

    # -- what goes to the browsers --------------------------------------------------------------------------------

    def _greet(self) -> dict[str, Any]:
        return {**self.desk.hello(time.monotonic()), 'timeline': self.timeline.whole()}

    def _tell(self, kind: str, content: dict[str, Any]) -> None:
        self.server.event(kind, content)

    def _show(self, view: str, content: dict[str, Any], jpeg: bytes) -> None:
        self.server.latest(f'image {view}', 'image', content, jpeg)

    def _guarded_tick(self) -> None:
        try:
            self._tick()
        except Exception as err:  # one thing that cannot be shown must not end the node; it is warned about
            self.drop('page', err)

    def _tick(self) -> None:
        now = time.monotonic()
        viewers = self.server.viewers
        self.diagnostics.value('browsers', viewers)
        if viewers:
            self._watched = now
        self._listen(now - self._watched < _LOOKED_AWAY)
        if viewers:
            self.server.latest('state', 'state', self.desk.state(now))

    def _listen(self, wanted: bool) -> None:
        if wanted == bool(self._listening):
            return
        for camera in self._cameras:
            (camera.open if wanted else camera.close)()
        if not wanted:
            while self._listening:
                self.destroy_subscription(self._listening.pop())
            self.desk.forget_path()
            return
        motion = self._groups['motion']

        def add(kind: Any, topic: str, callback: Callable[[Any], None], profile: Any) -> None:
            guarded = self.guard(topic.strip('/'), callback)
            self._listening.append(self.create_subscription(kind, topic, guarded, profile, callback_group=motion))

        add(ActionChunk, 'action_chunk', self._on_chunk, qos.CHUNK)
        add(ControllerState, 'controller_state', self._on_state, qos.STATE)
        add(JointState, self._robot.topics.joint_states, self._on_joints, qos.SENSOR)

    # -- what arrives ---------------------------------------------------------------------------------------------

    def _on_reasoning(self, message: Reasoning) -> None:
        said = reasoning_from_msg(message)
        # The topic is latched: what comes at the start may be long said.
        age = max((self.now_ns() - said.stamp_ns) * 1e-9 - said.latency, 0.0) if said.final else 0.0
        self._tell('thought', self.desk.on_reasoning(said, time.monotonic(), age))

    def _on_description(self, message: String) -> None:
        self._tell('arm', self.desk.on_description(message.data))

    def _on_recorded(self, message: String) -> None:
        self._tell('timeline', self.timeline.on_recorded(message.data))

    def _on_news(self, message: String) -> None:
        news = self.timeline.on_news(message.data)
        if news is not None:
            self._tell('news', news)

    def _on_joints(self, message: JointState) -> None:
        self.desk.on_joints(dict(zip(message.name, message.position, strict=False)), time.monotonic())

    def _on_chunk(self, message: ActionChunk) -> None:
        chunk = chunk_from_msg(message)
        if chunk.frame_id != self._robot.base_frame:
            raise ObservationError(
                f'chunk {chunk.id}: frame {chunk.frame_id!r}, only {self._robot.base_frame!r} is shown'
            )
        self.desk.on_chunk(chunk, time.monotonic())

    def _on_state(self, message: ControllerState) -> None:
        now = time.monotonic()
        brief = (message.mode, message.dry_run, message.chunk_id)
        if now - self._taken < _STATE_PERIOD and brief == self._last and not message.verdicts:
            return
        self._taken, self._last = now, brief
        measured = list(message.measured_positions)
        report = ControllerReport(
            stamp_from_msg(message.header.stamp),
            ControllerMode(message.mode),
            bool(message.dry_run),
            # The pose means nothing before the first joint state.
            pose_from_msg(message.measured_pose, 'measured_pose') if measured else None,
            dict(zip(message.joint_names, measured, strict=False)),
            _largest(message.commanded_velocities),
            _largest(message.measured_velocities),
            float(message.gripper_command),
            message.chunk_id,
            message.reasoning_id,
            int(message.step_index),
            stamp_from_msg(message.observation_stamp),
            [verdict_from_msg(v) for v in message.verdicts],
        )
        self.desk.on_controller(report, now)
        self.wishes.on_mode(report.mode)


def _largest(values: Any) -> float:
    speeds = np.abs(np.asarray(values, dtype=np.float64))
    return float(speeds.max()) if speeds.size else 0.0


def main(args: list[str] | None = None) -> int:
    """Run the node until a signal arrives; returns the exit code."""
    made: list[WebNode] = []

    def build() -> WebNode:
        made.append(WebNode())
        # The address with the token is said once, to whoever started this, and on no topic.
        print(f'operator page: {made[0].server.url}', flush=True)
        return made[0]

    # One thread for each thing that may be slow, and some to spare for answers of services.
    return runtime.run(build, args, threads=8)


if __name__ == '__main__':
    raise SystemExit(main())
