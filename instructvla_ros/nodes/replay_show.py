"""Shows recorded against predicted motion while a recording is played: RViz markers, news for the operator's page."""

from __future__ import annotations

import json
import threading
from typing import Any

from rclpy.clock import Clock, ClockType
from std_msgs.msg import String

from ..control.kinematics import Kinematics
from ..datatypes import ActionChunk, Reasoning, Verdict
from ..errors import InstructVLAError
from ..evaluation import replay_marks
from ..evaluation.replay_live import Playback
from ..evaluation.replay_session import open_recording
from ..evaluation.replay_timeline import Timeline, read_motion
from ..operator_page.timeline import PREDICTED, RECORDED
from ..settings import Embodiment
from . import qos
from .runtime import BaseNode

try:
    from visualization_msgs.msg import MarkerArray

    from .convert_visual import markers_to_msg
except ImportError:  # a ROS 2 without the messages of RViz: the page still gets its news
    MarkerArray = None

MARKERS = 'replay/markers'
_PERIOD = 0.2  # between two pieces of news and two sets of markers [s]


class ReplayShow:
    """Publishers of a player. The motion is read ahead on a thread, from the files and without pictures."""

    def __init__(self, node: BaseNode, playback: Playback, robot: Embodiment) -> None:
        self._node, self._playback, self._robot = node, playback, robot
        self.timeline = Timeline()
        self.now_ns = 0
        self._told = -1.0
        self._cleared = False
        self._gone: set[tuple[str, int]] = set()
        self._recorded = node.create_publisher(String, RECORDED, qos.LATCHED)
        self._predicted = node.create_publisher(String, PREDICTED, qos.HISTORY)
        self._markers: Any = None
        if MarkerArray is not None:
            self._markers = node.create_publisher(MarkerArray, MARKERS, qos.EVENT)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(_PERIOD, self._guarded_tick, clock=steady)
        self._reader = threading.Thread(target=self._read, name='motion', daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Wait for the reader, which does not outlive the recording."""
        self._reader.join(timeout=5.0)

    def chunk(self, chunk: ActionChunk) -> None:
        """The policy sent a chunk."""
        self.timeline.chunk(chunk)

    def said(self, said: Reasoning) -> None:
        """The policy said something."""
        self.timeline.said(said)

    def verdict(self, stamp_ns: int, verdict: Verdict) -> None:
        """The controller decided something."""
        self.timeline.verdict(stamp_ns, verdict)

    def _read(self) -> None:
        try:
            # Files and kinematics of its own: the player uses its own at the same time.
            with open_recording(self._playback.bag, self._robot, episode=self._playback.episode) as recording:
                forward = Kinematics(self._robot).forward
                motion = read_motion(recording, forward, self._playback.duration, self._playback.instruction)
            self._recorded.publish(String(data=json.dumps(motion.plain(), allow_nan=False)))
            self.timeline.motion = motion
        except InstructVLAError as err:
            self._node.get_logger().warning(f'no timeline of recorded against predicted motion: {err}')
        except Exception as err:  # the recording is played all the same
            self._node.drop('timeline', err)

    def _guarded_tick(self) -> None:
        try:
            self.tick()
        except Exception as err:  # what cannot be shown must not end the playing; it is warned about
            self._node.drop('timeline', err)

    def tick(self) -> None:
        """Publish what is new."""
        motion = self.timeline.motion
        if motion is None or not self.now_ns:
            return
        news = self.timeline.news(self.now_ns)
        # Silence says that nothing is played any more.
        if news is not None and (news['now'] != self._told or any(v for v in news.values() if isinstance(v, list))):
            self._told = news['now']
            self._predicted.publish(String(data=json.dumps(news, allow_nan=False)))
        if self._markers is None or self._markers.get_subscription_count() == 0:
            return
        shapes = replay_marks.shapes(self.timeline, (self.now_ns - motion.start_ns) * 1e-9)
        shown = {s.key for s in shapes}
        message = markers_to_msg(shapes, sorted(self._gone - shown), self._robot.base_frame, clear=not self._cleared)
        self._markers.publish(message)
        self._gone, self._cleared = shown, True
