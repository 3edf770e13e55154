"""Records demonstrations: subscribes to the topics of a robot as they are on the wire and hands them to a recording.

Services ``record/start``, ``record/stop``, ``record/success``, ``record/discard`` mark episodes; ``record/status``
says once a second how it goes, as JSON. A topic is subscribed to when somebody publishes or expects it, with the type
and the quality of service found there.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rclpy.clock import Clock, ClockType
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from std_srvs.srv import Trigger

from .. import config
from ..config import option
from ..data.bag_writer import Qos
from ..data.marks import MARKS
from ..data.message_definitions import definition, split_type
from ..data.recording import Recording, RecordingOptions
from ..data.recording_topics import watched_topics
from ..errors import DataError, SetupError
from . import params, qos
from .diagnostics import ERROR, OK, WARN
from .runtime import BaseNode, run

_LOOK = 0.5  # between two looks at who publishes what [s]
_DEPTH = 100  # a recorder wants every message; at 1 kHz this is 0.1 s
_IMAGE_DEPTH = 10
_IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')


@dataclass(frozen=True)
class RecordSettings(RecordingOptions):
    """Parameters of the record node."""

    out: str = option('', 'folder of the bag, which must not exist; empty: <folder>/<date and time>')
    folder: str = option('recordings', 'where bags go that are not given a folder of their own')
    topics: tuple[str, ...] = option((), 'further topics to record')
    skip: tuple[str, ...] = option((), 'topics to leave out')
    instruction: str = option('', 'what is demonstrated, until another instruction is heard')


@dataclass
class _Input:
    subscription: Any
    msgtype: str
    qos: Qos
    messages: int = 0

    @property
    def reliable(self) -> bool:
        return self.qos.reliability == 'reliable'

    @property
    def latched(self) -> bool:
        return self.qos.durability == 'transient_local'


class RecordNode(BaseNode):
    """One recording from the start of the node to its end.

    Attributes:
        recording: it. code: exit code of the process.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Start recording; see :class:`BaseNode` for ``kwargs``."""
        super().__init__('record_node', **kwargs)
        robot = params.load_embodiment(self)
        settings = params.declare(
            self, RecordSettings, RecordSettings(), live=('instruction',), on_change=self._settings_changed
        )
        watched = watched_topics(robot, settings.topics, settings.skip, self.resolve_topic_name)
        params.seal(self)  # before a folder is made: a misspelled parameter must not leave one behind
        self.code = 0
        self.recording = Recording(
            bag_folder(settings),
            settings,
            watched,
            embodiment=yaml.safe_dump(config.to_dict(robot), sort_keys=False),
            robot=robot.name,
            instruction=settings.instruction,
            namespace=self.get_namespace().rstrip('/'),
        )
        self._wanted = [topic.name for topic in watched]
        self._inputs: dict[str, _Input] = {}
        self._refused: set[str] = set()
        self._reported: set[str] = set()
        self._finishing = False
        self._status_pub = self.create_publisher(String, 'record/status', qos.EVENT)
        self._mark_pub = self.create_publisher(String, 'episode_mark', qos.EVENT)
        for kind in MARKS:
            name = f'record/{kind}'
            self.create_service(Trigger, name, self.guard_service(name, self._on_service(kind)))
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(_LOOK, self._look, clock=steady)
        self.create_timer(1.0, self._report, clock=steady)
        self._look()
        self.get_logger().info(f'recording to {self.recording.path}')

    def close(self) -> None:
        """End the recording and say what is in it."""
        if self._finishing:
            return
        self._finishing = True
        summary = self.recording.close(self.now_ns())
        if summary['ended'] not in ('stopped', '') and not summary['ended'].startswith('the time limit'):
            self.code = 1
        self.get_logger().info(describe(summary))
        for name in summary['never_came']:
            self.get_logger().warning(f'{name} never came')

    def mark(self, kind: str, instruction: str = '') -> str:
        """Mark ``start``, ``stop``, ``success`` or ``discard``; what was done, in words.

        Raises:
            DataError: not possible now.
        """
        marks = self.recording.mark(kind, self.now_ns(), instruction)
        for mark in marks:
            self._mark_pub.publish(String(data=mark.to_json()))
        last = marks[-1]
        done = {
            'start': f'episode {last.episode} begins: {last.instruction!r}',
            'stop': f'episode {last.episode} ended; mark success or discard',
            'success': f'episode {last.episode} is a success',
            'discard': f'episode {last.episode} is marked as discarded; its data stays in the bag',
        }[kind]
        if kind == 'start' and not last.instruction:
            done = f'episode {last.episode} begins without an instruction'
        self.get_logger().info(done)
        return done

    # Topics.

    def _look(self) -> None:
        """Subscribe to what has appeared."""
        if self._finishing:
            return
        if self.recording.ended.is_set():
            self._report()
            return
        types = dict(self.get_topic_names_and_types())
        for topic in self._wanted:
            if topic in types and topic not in self._refused:
                try:
                    self._follow(topic, types[topic])
                except DataError as err:
                    self._refused.add(topic)
                    self.diagnostics.condition(f'not recorded {topic}', WARN, f'{topic} is not recorded: {err}')
                    self.get_logger().warning(f'{topic} is not recorded: {err}')

    def _follow(self, topic: str, types: list[str]) -> None:
        offered = self.get_publishers_info_by_topic(topic)
        found = self._inputs.get(topic)
        # A reliable subscriber gets nothing from a best-effort publisher, a transient local one nothing from a
        # volatile publisher: what all of them offer decides.
        reliable = bool(offered) and all(p.qos_profile.reliability == ReliabilityPolicy.RELIABLE for p in offered)
        latched = bool(offered) and all(
            p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in offered
        )
        if found is not None:
            better = (reliable and not found.reliable) or (latched and not found.latched and not found.messages)
            worse = bool(offered) and ((found.reliable and not reliable) or (found.latched and not latched))
            if not better and not worse:
                return
            self.destroy_subscription(found.subscription)
        msgtype = found.msgtype if found is not None else offered[0].topic_type if offered else types[0]
        if len(set(types)) > 1:
            self.warn(f'types {topic}', f'{topic} has several types ({", ".join(types)}); recording {msgtype}')
        kind = message_class(msgtype)
        definition(msgtype)  # refused now and not at its first message
        profile = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=_IMAGE_DEPTH if msgtype in _IMAGES else _DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        offer = Qos(
            'reliable' if reliable else 'best_effort',
            'transient_local' if latched else 'volatile',
            (offered[0].qos_profile.depth if offered else 0) or _DEPTH,
        )
        entry = _Input(None, msgtype, offer, found.messages if found is not None else 0)
        self._inputs[topic] = entry
        entry.subscription = self.create_subscription(
            kind, topic, self.guard(topic, self._taker(topic, entry)), profile, raw=True
        )

    def _taker(self, topic: str, entry: _Input) -> Callable[[bytes], None]:
        write, now = self.recording.write, self.now_ns

        def take(data: bytes) -> None:
            stamp = now()
            if stamp > 0:  # with use_sim_time there is no time before the first clock message
                if not entry.messages:  # not before: by now its publishers are known, and what they offer
                    self.recording.add_topic(topic, entry.msgtype, entry.qos)
                entry.messages += 1
                write(topic, stamp, data)

        return take

    # People.

    def _on_service(self, kind: str) -> Callable[[Any, Any], Any]:
        def called(_request: Any, response: Any) -> Any:
            response.message = self.mark(kind)
            response.success = True
            return response

        return called

    def _settings_changed(self, settings: RecordSettings) -> None:
        self.recording.set_instruction(settings.instruction)

    def _report(self) -> None:
        status = self.recording.status()
        if self._finishing:
            return
        self._status_pub.publish(String(data=json.dumps(status.plain(), allow_nan=False)))
        values = self.diagnostics.value
        values('bag', status.path)
        values('duration [s]', status.seconds)
        values('size [MB]', status.bytes / 1e6)
        values('rate [MB/s]', status.rate / 1e6)
        values('free disk [MB]', status.free / 1e6)
        values('episodes', len(status.episodes))
        values('dropped', sum(topic.dropped for topic in status.topics))
        level = WARN if status.problems else OK
        self.diagnostics.condition('recording', level, '; '.join(status.problems))
        silent = {topic.name for topic in status.topics if topic.silent}
        for name in sorted(silent - self._reported):
            came = self._inputs.get(name)
            self.get_logger().warning(f'{name} is silent' if came and came.messages else f'{name} has not come yet')
        for name in sorted(self._reported - silent):
            self.get_logger().info(f'{name} speaks')
        self._reported = silent
        if self.recording.ended.is_set():
            self.diagnostics.condition('recording', ERROR, status.ended)
            self.diagnostics.publish()
            self.get_logger().warning(status.ended)
            self.finish()

    def finish(self) -> None:
        """End the recording, and with it the process."""
        self.close()
        self.leave()


def message_class(msgtype: str) -> Any:
    """Class of a message type of the running graph.

    Raises:
        DataError: its package is not installed here.
    """
    package, name = split_type(msgtype)
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError) as err:
        raise DataError(f'{msgtype} is not installed here ({err}); source the workspace that has {package}') from err


def bag_folder(settings: RecordSettings) -> Path:
    """Folder of the bag, not taken yet.

    Raises:
        SetupError: the one that was asked for exists.
    """
    if settings.out:
        folder = Path(settings.out).expanduser().absolute()
        if folder.exists():
            raise SetupError(f'{folder} exists; a recording never overwrites one. Choose another folder')
        return folder
    parent = Path(settings.folder).expanduser().absolute()
    stamp = time.strftime('%Y%m%d-%H%M%S')
    return next(f for k in range(1000) if not (f := parent / (f'{stamp}-{k}' if k else stamp)).exists())


def describe(summary: dict[str, Any]) -> str:
    """Summary of a recording in one line."""
    size = f'{summary["bytes"] / 1e6:.1f} MB'
    parts = [f'{summary["path"]}: {summary["seconds"]:.1f} s, {summary["messages"]} messages, {size}']
    if summary['episodes']:
        parts.append(
            f'{len(summary["episodes"])} episodes ({summary["successes"]} success, {summary["discarded"]} discarded)'
        )
    if summary['dropped']:
        parts.append(f'{summary["dropped"]} messages dropped')
    if summary['unwritten']:
        parts.append(f'{summary["unwritten"]} messages not written')
    if summary['ended'] not in ('', 'stopped'):
        parts.append(summary['ended'])
    return ', '.join(parts)


def record(arguments: list[str], started: Callable[[RecordNode], None]) -> tuple[int, dict[str, Any] | None]:
    """Run the node in this process until a signal, :meth:`RecordNode.finish`, or the end of the recording.

    Args:
        arguments: ROS arguments. started: called with the node when it records.

    Returns:
        Exit code and summary, None when nothing was recorded.
    """
    made: list[RecordNode] = []

    def build() -> RecordNode:
        made.append(RecordNode())
        started(made[0])
        return made[0]

    code = run(build, arguments)
    return (code or made[0].code, made[0].recording.close()) if made else (code, None)


def main(args: list[str] | None = None) -> int:
    """Exit codes: 0 recorded, 1 the disk ended it, 2 it could not begin."""
    made: list[RecordNode] = []

    def build() -> RecordNode:
        made.append(RecordNode())
        return made[0]

    code = run(build, args)
    return code or (made[0].code if made else code)


if __name__ == '__main__':
    raise SystemExit(main())
