"""Plays a bag, or an episode of a dataset, into the running graph as the robot would be, with its clock.

Pictures, joint states, camera infos and the robot description go out under the topic names of the embodiment with their
recorded stamps; ``/clock`` follows, so every other node runs with ``use_sim_time:=true``. What the graph answers is
compared with the recording at the end. Commands to the arm are not played: the controller runs in dry-run beside it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String

from instructvla_ros.msg import ActionChunk, ControllerState, Reasoning, SimState

from .. import config, resources
from ..control.bounds import Bounds
from ..control.kinematics import Kinematics
from ..datatypes import RobotState
from ..errors import ConfigError, InstructVLAError
from ..evaluation import machine, replay_trace
from ..evaluation.replay_limits import load_limits
from ..evaluation.replay_live import LiveTrace, Playback
from ..evaluation.replay_report import write_report
from ..evaluation.replay_session import Outcome, judge, open_recording
from ..evaluation.replay_source import (
    CameraEvent,
    DescriptionEvent,
    Event,
    FrameEvent,
    Recording,
    SceneEvent,
    StateEvent,
    WordsEvent,
    due_ns,
)
from ..evaluation.runlog import plain, write_json
from ..settings import Control
from . import params, qos
from .convert import (
    camera_info_to_msg,
    chunk_from_msg,
    reasoning_from_msg,
    scene_to_msg,
    stamp_to_msg,
    verdict_from_msg,
)
from .convert_image import ImageWriter, compressed_to_msg
from .convert_robot import robot_state_to_msg
from .replay_show import ReplayShow
from .runtime import BaseNode, run

CLOCK_NS = 10_000_000
LINGER = 1.5  # s for the last answers
LONGEST_SLEEP = 0.1  # s between two looks at whether to stop
QUALITY = 95  # of raw pictures for a compressed topic
_COMPRESSED = '/compressed'


class ReplayNode(BaseNode):
    """See the module. ``done`` is set when everything was played; ``outcome`` is then the judged replay."""

    def __init__(self, end_process: bool = False, **kwargs: Any) -> None:
        """Open the recording and start to play as soon as the graph listens.

        Args:
            end_process: interrupt this process when everything was played.

        Raises:
            ConfigError, DataError, SetupError: the parameters or the recording are not usable.
        """
        super().__init__('replay_node', **kwargs)
        robot = params.load_embodiment(self)
        self._set = params.declare(self, Playback, Playback())
        if not self._set.bag:
            raise ConfigError('no recording: set the parameter `bag` to a bag or a dataset')
        control = config.load(Control, resources.config_file('controller.yaml'))
        self._limits = load_limits(resources.config_file(self._set.limits))
        self._open = contextlib.ExitStack()
        source = open_recording(self._set.bag, robot, episode=self._set.episode)
        self._recording: Recording = self._open.enter_context(source)
        self._robot = robot
        self._end_process = end_process
        self._trace = LiveTrace(self._recording, Kinematics(robot).forward, Bounds.from_settings(robot, control))
        self._clock_ns = 0
        self._stop = threading.Event()
        self.done = threading.Event()
        self.outcome: Outcome | None = None
        self.problem = ''
        self._advertise()
        self._show = ReplayShow(self, self._set, robot)
        self.create_subscription(ActionChunk, 'action_chunk', self.guard('action_chunk', self._on_chunk), qos.CHUNK)
        self.create_subscription(Reasoning, 'reasoning', self.guard('reasoning', self._on_said), qos.REASONING)
        self.create_subscription(
            ControllerState, 'controller_state', self.guard('controller_state', self._on_state), qos.STATE
        )
        for text in self._recording.missing:
            self.get_logger().warning(f'{self._recording.name} lacks {text}')
        self._thread = threading.Thread(target=self._run, name='player', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop playing."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        self._show.close()
        self._open.close()

    def _advertise(self) -> None:
        robot = self._robot
        self._clock_pub = self.create_publisher(Clock, '/clock', qos.SENSOR)
        self._joints_pub = self.create_publisher(JointState, robot.topics.joint_states, qos.SENSOR_PUBLISHER)
        self._words_pub = self.create_publisher(String, 'instruction', qos.EVENT)
        self._urdf_pub = self.create_publisher(String, robot.topics.robot_description, qos.LATCHED)
        self._scene_pub = self.create_publisher(SimState, '/sim/state', qos.SENSOR_PUBLISHER)
        self._images: dict[str, Any] = {}
        self._infos: dict[str, Any] = {}
        self._writers: dict[str, ImageWriter] = {}
        for name in self._recording.views:
            view = robot.views[name]
            kind = CompressedImage if view.topic.endswith(_COMPRESSED) else Image
            self._images[name] = self.create_publisher(kind, view.topic, qos.SENSOR_PUBLISHER)
            self._writers[name] = ImageWriter(view.frame_id)
            if view.info_topic:
                self._infos[name] = self.create_publisher(CameraInfo, view.info_topic, qos.SENSOR_PUBLISHER)

    def _on_chunk(self, message: ActionChunk) -> None:
        chunk = chunk_from_msg(message)
        if self._trace.chunk(chunk):
            self._show.chunk(chunk)

    def _on_said(self, message: Reasoning) -> None:
        said = reasoning_from_msg(message)
        self._trace.said(said)
        self._show.said(said)

    def _on_state(self, message: ControllerState) -> None:
        for verdict in map(verdict_from_msg, message.verdicts):
            for counted in self._trace.verdict(self._clock_ns, verdict):
                self._show.verdict(self._clock_ns, counted)

    def _run(self) -> None:
        try:
            self._play()
            if not self._stop.is_set():
                self._finish()
        except InstructVLAError as err:
            self.problem = str(err)
            self.get_logger().error(str(err))
        except Exception:  # the process has to end with the reason, not to wait for ever
            self.problem = traceback.format_exc()
            self.get_logger().error(self.problem)
        self.done.set()
        if self._end_process and not self._stop.is_set() and (self.problem or not self._set.stay):
            os.kill(os.getpid(), signal.SIGINT)

    def _play(self) -> None:
        start: float | None = None
        first = 0
        for event in self._recording.events():
            due = due_ns(event)
            if start is None:
                first = due
                self._wait_for_listeners(first)
                start = time.monotonic()
                if self._set.instruction:
                    self._words_pub.publish(String(data=self._set.instruction))
            self._advance(start, first, due)
            if self._stop.is_set():
                return
            if due - first > self._set.duration * 1e9:
                break
            self._publish(event)
            self._trace.played(event)
        self.get_logger().info(f'{self._recording.name}: played; {self._trace.chunks} chunks came')
        until = time.monotonic() + LINGER
        while time.monotonic() < until and not self._stop.is_set():
            self._tick(self._clock_ns + CLOCK_NS)
            self._stop.wait(CLOCK_NS * 1e-9)

    def _wait_for_listeners(self, first: int) -> None:
        wanted = [self._joints_pub, self._words_pub, *self._images.values()]
        began = time.monotonic()
        while not self._stop.is_set():
            self._tick(first)  # nodes that run on this clock need a time to start with
            silent = [p.topic_name for p in wanted if p.get_subscription_count() == 0]
            if not silent:
                return
            if time.monotonic() - began > self._set.wait:
                self.get_logger().warning(f'nobody listens to {", ".join(silent)}; playing all the same')
                return
            self._stop.wait(0.05)

    def _advance(self, start: float, first: int, due: int) -> None:
        """Let the clock run until an event is due."""
        if due < self._clock_ns - 1_000_000_000:
            self._clock_ns = due  # the recording was rewound; its clock goes back with it
        while not self._stop.is_set():
            target = min(self._clock_ns + CLOCK_NS, due)
            ahead = start + (target - first) * 1e-9 / self._set.rate - time.monotonic()
            if ahead > LONGEST_SLEEP:
                self._stop.wait(LONGEST_SLEEP)
                continue
            if ahead > 0.0:
                self._stop.wait(ahead)
            if target > self._clock_ns:
                self._tick(target)
            if target >= due:
                return

    def _tick(self, stamp_ns: int) -> None:
        self._clock_ns = self._show.now_ns = stamp_ns
        self._clock_pub.publish(Clock(clock=stamp_to_msg(stamp_ns)))

    def _publish(self, event: Event) -> None:
        try:
            self._send(event)
        except InstructVLAError as err:
            self._recording.trouble.add(str(err))
            self.warn('not playable', f'{type(event).__name__} at {event.stamp_ns} ns: {err}')

    def _send(self, event: Event) -> None:
        robot = self._robot
        if isinstance(event, FrameEvent):
            if event.view not in self._images:
                return
            view = robot.views[event.view]
            if view.topic.endswith(_COMPRESSED):
                data = event.encoded()
                message = compressed_to_msg(event.decode(), event.stamp_ns, view.frame_id, QUALITY)
                if data is not None:
                    message.format, message.data = 'rgb8; png' if data[:4] == b'\x89PNG' else 'rgb8; jpeg', data
            else:
                message = self._writers[event.view](event.decode(), event.stamp_ns)
            self._images[event.view].publish(message)
        elif isinstance(event, StateEvent):
            count = len(robot.arm_joints)
            if len(event.state.q) >= count:
                s = event.state
                state = RobotState(event.stamp_ns, s.q[:count], s.dq[:count], s.gripper)
                self._joints_pub.publish(robot_state_to_msg(state, robot))
        elif isinstance(event, WordsEvent):
            if not self._set.instruction:
                self._words_pub.publish(String(data=event.instruction))
        elif isinstance(event, CameraEvent):
            if event.view in self._infos:
                info = camera_info_to_msg(event.intrinsics, *event.size, event.frame_id, event.stamp_ns)
                self._infos[event.view].publish(info)
        elif isinstance(event, SceneEvent):
            self._scene_pub.publish(scene_to_msg(event.scene, robot.base_frame))
        elif isinstance(event, DescriptionEvent):
            self._urdf_pub.publish(String(data=event.urdf))

    def _finish(self) -> None:
        trace = self._trace.finish(
            rate=self._set.rate,
            created=time.strftime('%Y-%m-%d %H:%M:%S'),
            machine=machine.facts(),
            versions=machine.versions(),
        )
        self.outcome = judge(trace, self._limits)
        failed = [c.name for c in self.outcome.checks if c.result == 'failed']
        verdict = f'failed: {", ".join(failed)}' if failed else 'all limits kept'
        self.get_logger().info(f'{self._recording.name}: {len(trace.chunks)} chunks, {verdict}')
        if self._set.out:
            place = Path(self._set.out)
            replay_trace.save(trace, place)
            write_json(place / 'metrics.json', plain(self.outcome.plain()))
            write_report(place, self.outcome)
            self.get_logger().info(f'report: {place / "report.html"}')


def main(args: list[str] | None = None) -> int:
    """Play once, then end: 1 when a limit was not kept or it could not be played; see :func:`runtime.run`."""
    made: list[ReplayNode] = []

    def node() -> BaseNode:
        made.append(ReplayNode(end_process=True))
        return made[0]

    code = run(node, args)
    if code == 0 and made and made[0].done.is_set():
        outcome = made[0].outcome
        return 1 if made[0].problem or (outcome is not None and not outcome.passed) else 0
    return code


if __name__ == '__main__':
    raise SystemExit(main())
