"""What the operator's page shows: remembers what arrived and makes the messages of it; no ROS, no network.

Times are seconds of a steady clock, given by the caller. Everything that was heard has an age, and what never arrived
has none: the page greys what is old. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import camera_view
from ..control.frames import LinkFrames
from ..datatypes import ActionChunk, Reasoning, Verdict, VerdictAction
from ..errors import SetupError
from ..geometry import Array
from ..goals import ControllerMode
from ..settings import Embodiment, Safety, Visual
from ..visual import Board, Shape
from .arm import Solid, bones, solids
from .ledger import Durations, VerdictList

_THOUGHTS = 40  # sentences a new browser gets
_ON_THE_PAGE = ('thought', 'thought_ids', 'thoughts', 'chunk_label')  # texts of RViz that have their own place here


@dataclass(frozen=True)
class ControllerReport:
    """ControllerState without ROS.

    Attributes:
        stamp_ns: of the command [ns]. tcp: measured (4, 4) [m] or None before the first joint state.
        joints: measured positions [rad] by name. commanded_speed, measured_speed: largest of all joints [rad/s].
        gripper: commanded openness 0..1.
        chunk_id, reasoning_id, step_index, observation_stamp_ns: of the chunk that plays; '' and -1 for none.
    """

    stamp_ns: int
    mode: ControllerMode
    dry_run: bool
    tcp: Array | None = None
    joints: Mapping[str, float] = field(default_factory=dict)
    commanded_speed: float = 0.0
    measured_speed: float = 0.0
    gripper: float = float('nan')
    chunk_id: str = ''
    reasoning_id: str = ''
    step_index: int = -1
    observation_stamp_ns: int = 0
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True)
class GoalNews:
    """The instruction that was given on a page: how it goes. ``outcome`` is '' while it runs."""

    instruction: str
    phase: str = ''
    elapsed: float = 0.0
    progress: float = float('nan')
    outcome: str = ''
    reason: str = ''


class Desk:
    """Collects for the page.

    Args:
        robot: names of frames, joints and views. safety, visual: bounds and fading of what is drawn.
        stale_after: age from which the page greys something [s].
    """

    def __init__(self, robot: Embodiment, safety: Safety, visual: Visual, stale_after: float) -> None:
        self._robot, self._safety, self._stale_after = robot, safety, stale_after
        self._lock = threading.RLock()
        self._board = Board(visual, safety, robot.gripper.max_width)
        self._frames: LinkFrames | None = None
        self._solids: tuple[Solid, ...] = ()
        self._links: tuple[str, ...] = ()
        self._bones: tuple[tuple[str, str], ...] = ()
        self._joints_known = False
        self._heard: dict[str, float] = {}
        self._controller: ControllerReport | None = None
        self._chunk: ActionChunk | None = None
        self._commanded = ''
        self._goal: GoalNews | None = None
        self._thoughts: OrderedDict[str, tuple[Reasoning, float]] = OrderedDict()
        self._verdicts = VerdictList()
        self._durations = Durations()

    # -- what arrives ---------------------------------------------------------------------------------------------

    def on_description(self, urdf: str) -> dict[str, Any]:
        """Take the robot description; returns the content of the event ``arm``.

        Raises:
            SetupError: it cannot be read, or lacks the base frame.
        """
        shapes = solids(urdf)
        frames = LinkFrames(urdf, self._robot.base_frame, camera_view.mounts(self._robot.views))
        drawn = frozenset(s.link for s in shapes)
        lines = bones(urdf, drawn)
        wanted = drawn | {name for pair in lines for name in pair}
        links = tuple(n for n in frames.links if n in wanted and n != frames.base)
        with self._lock:
            self._frames, self._solids, self._links, self._bones = frames, shapes, links, lines
            self._joints_known = False
            return self._arm()

    def on_joints(self, positions: Mapping[str, float], now: float) -> None:
        """Take joint positions [rad or m] by name."""
        with self._lock:
            self._heard['joints'] = now
            self._move(positions)

    def on_chunk(self, chunk: ActionChunk, now: float) -> None:
        """Take a predicted chunk."""
        with self._lock:
            self._heard['chunk'] = now
            self._chunk = chunk
            self._board.on_chunk(chunk, now)
            self._durations.add('camera to chunk', (chunk.created_stamp_ns - chunk.observation_stamp_ns) * 1e-9)
            self._durations.add('of it the policy', chunk.model_latency)

    def on_reasoning(self, said: Reasoning, now: float, age: float = 0.0) -> dict[str, Any]:
        """Take a sentence or its beginning, said ``age`` [s] ago; returns the content of the event ``thought``."""
        with self._lock:
            if said.final:
                self._heard['thought'] = now - age
            self._board.on_reasoning(said)
            self._thoughts[said.id] = (said, now - age)
            while len(self._thoughts) > _THOUGHTS:
                self._thoughts.popitem(last=False)
            return self._thought(said, now - age, now)

    def on_controller(self, report: ControllerReport, now: float) -> None:
        """Take what the controller does."""
        with self._lock:
            self._heard['controller'] = now
            self._controller = report
            self._move(report.joints)
            self._board.on_state(
                report.stamp_ns,
                report.tcp,
                report.chunk_id,
                report.reasoning_id,
                report.step_index,
                report.verdicts,
                now,
            )
            for verdict in report.verdicts:
                self._verdicts.add(verdict, now)
            if report.chunk_id and report.chunk_id != self._commanded:
                self._commanded = report.chunk_id
                self._durations.add('camera to command', (report.stamp_ns - report.observation_stamp_ns) * 1e-9)

    def on_goal(self, news: GoalNews) -> None:
        """Take how the instruction of a page goes."""
        with self._lock:
            self._goal = news

    def forget_path(self) -> None:
        """Drop the executed path and the durations: nobody listened for a while."""
        with self._lock:
            self._board.executed.clear()
            self._durations.clear()
            self._heard.clear()

    def _move(self, positions: Mapping[str, float]) -> None:
        if self._frames is not None and positions:
            self._frames.set_joints(positions)
            self._joints_known = True

    # -- what is asked for ----------------------------------------------------------------------------------------

    def prediction(self) -> tuple[ActionChunk, Array] | None:
        """Newest chunk that is still shown and its poses (n + 1, 4, 4) [m]."""
        with self._lock:
            return self._board.prediction

    def camera(self, frame_id: str) -> Array | str:
        """T_base_optical (4, 4) [m] of a camera now, or why it is not known."""
        with self._lock:
            if self._frames is None:
                return f'no robot description on {self._robot.topics.robot_description}'
            try:
                if not self._joints_known and not self._frames.is_fixed(frame_id):
                    return 'no joint positions yet, and this camera moves with the arm'
                return self._frames.pose(frame_id)
            except SetupError:
                return f'the robot description has no frame {frame_id!r}'

    def mode(self) -> ControllerMode | None:
        """Mode the controller reported last, None before the first."""
        with self._lock:
            return self._controller.mode if self._controller is not None else None

    def hello(self, now: float) -> dict[str, Any]:
        """First message of a new browser: what does not change, and the sentences so far."""
        with self._lock:
            return {
                'robot': self._robot.name,
                'views': list(self._robot.views),
                'stale_after': self._stale_after,
                'workspace': [list(self._safety.workspace_lower), list(self._safety.workspace_upper)],
                'arm': self._arm(),
                'thoughts': [self._thought(said, at, now) for said, at in self._thoughts.values()],
            }

    def state(self, now: float) -> dict[str, Any]:
        """Everything that changes, but pictures and sentences."""
        with self._lock:
            shapes, _ = self._board.update(now)
            return {
                'ages': {name: round(now - at, 3) for name, at in self._heard.items()},
                'controller': self._controller_row(),
                'chunk': self._chunk_row(),
                'goal': None if self._goal is None else vars(self._goal),
                'links': self._link_rows(),
                'shapes': [shape_row(s) for s in shapes if _in_space(s)],
                'path': _flat(np.array([pose[:3, 3] for _, pose in self._board.executed])),
                'verdicts': self._verdicts.rows(now),
                'latency': self._durations.rows(),
                'ties': {k: self._board.caption(v[0]) for k, v in list(self._thoughts.items())[-8:]},
            }

    def _arm(self) -> dict[str, Any]:
        at = {name: k for k, name in enumerate(self._links)}
        base = len(at)  # one further pose, the identity, for the base
        return {
            'links': list(self._links),
            'solids': [
                {
                    'link': at.get(s.link, base),
                    'kind': s.kind,
                    'size': list(s.size),
                    'origin': _rows(s.origin),
                    'color': list(s.color),
                }
                for s in self._solids
                if s.link in at or s.link == self._robot.base_frame
            ],
            'bones': [[at.get(a, base), at.get(b, base)] for a, b in self._bones],
        }

    def _link_rows(self) -> list[list[float]] | None:
        if self._frames is None or not self._joints_known:
            return None
        poses = self._frames.poses()
        return [_rows(poses[name]) for name in self._links]

    def _controller_row(self) -> dict[str, Any] | None:
        report = self._controller
        if report is None:
            return None
        return {
            'mode': report.mode.name,
            'enabled': report.mode not in (ControllerMode.DISABLED, ControllerMode.STOPPED),
            'dry_run': report.dry_run,
            'commanded_speed': round(report.commanded_speed, 4),
            'measured_speed': round(report.measured_speed, 4),
            'gripper': report.gripper,
            'tcp': None if report.tcp is None else [round(float(v), 4) for v in report.tcp[:3, 3]],
            'chunk': report.chunk_id,
            'thought': report.reasoning_id,
            'step': report.step_index,
        }

    def _chunk_row(self) -> dict[str, Any] | None:
        chunk = self._chunk
        if chunk is None:
            return None
        return {
            'id': chunk.id,
            'horizon': chunk.horizon,
            'period': chunk.step_period,
            'policy': chunk.policy,
            'instruction': chunk.instruction,
            'done': chunk.done,
        }

    def _thought(self, said: Reasoning, at: float, now: float) -> dict[str, Any]:
        return {
            'id': said.id,
            'kind': said.kind.name,
            'text': said.text,
            'instruction': said.instruction,
            'final': said.final,
            'tokens': said.tokens,
            'latency': said.latency,
            'source': said.source,
            'caption': self._board.caption(said),
            'age': round(now - at, 3),
        }


def _in_space(shape: Shape) -> bool:
    if shape.namespace == 'verdict':  # its numbers are in the list; what never moved the arm has no other place
        return f' {VerdictAction.REFUSED.name}' in shape.text
    return shape.namespace not in _ON_THE_PAGE


def shape_row(shape: Shape) -> dict[str, Any]:
    """A shape as the page draws it: points in mm precision, colours as bytes."""
    return {
        'kind': shape.kind.name,
        'space': shape.namespace,
        'at': [round(float(v), 4) for v in shape.position],
        'scale': [round(float(v), 4) for v in shape.scale],
        'color': [round(float(v), 3) for v in shape.color],
        'points': _flat(shape.points),
        'colors': [] if shape.colors is None else (np.clip(shape.colors, 0, 1) * 255).astype(int).ravel().tolist(),
        'text': shape.text,
    }


def _flat(points: Array) -> list[float]:
    return [round(v, 4) for v in np.asarray(points, dtype=np.float64).ravel().tolist()]


def _rows(pose: Array) -> list[float]:
    """First three rows of a pose, row by row."""
    return [round(v, 5) for v in pose[:3].ravel().tolist()]
