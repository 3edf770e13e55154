"""A trace of a replay in which the policy and the controller are the running graph. No ROS in here.

The player gives every event it publishes, its subscriptions give what the graph answers; both threads may call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import camera_view
from ..config import option
from ..control.bounds import Bounds
from ..control.safety_chunk import check_chunk
from ..datatypes import ActionChunk, Reasoning, ReasoningKind, Verdict, VerdictAction
from ..errors import ConfigError
from ..geometry import Array
from .replay_judge import NO_MOTION
from .replay_source import ChunkEvent, EpisodeRecording, Event, GripperEvent, Recording, SaidEvent, StateEvent
from .replay_trace import Judged, Trace, TrackBuilder
from .replay_verdicts import Verdicts
from .runlog import plain


@dataclass(frozen=True)
class Playback:
    """Parameters of replay_node."""

    bag: str = option('', 'recording to play: a bag, or a dataset of episodes')
    episode: str = option('', 'episode of a dataset; empty: the first')
    instruction: str = option('', 'instead of the recorded instructions')
    rate: float = option(1.0, 'seconds of the recording per second', ge=0.01, le=100.0)
    duration: float = option(3600.0, 'how much to play', unit='s', ge=0.1)
    wait: float = option(30.0, 'longest time to wait until the graph listens', unit='s', ge=0.0, le=3600.0)
    out: str = option('', 'folder for report.html and metrics.json; empty: none')
    stay: bool = option(False, 'go on showing it when everything was played, until Ctrl-C')
    limits: str = option('replay.yaml', 'limits for the report, a file of config/ or a path')


class LiveTrace:
    """Collects a replay; ``forward`` is joints (n,) -> tcp pose (4, 4).

    Args:
        bounds: for chunks that the controller cannot judge; None: those stay without verdicts.

    Raises:
        ConfigError: the nodes would crop, flip or turn the pictures of an episode a second time.
    """

    def __init__(
        self, recording: Recording, forward: Callable[[Array], Array], bounds: Bounds | None = None
    ) -> None:
        twice = camera_view.changed(recording.embodiment.views)
        if twice and isinstance(recording, EpisodeRecording):
            raise ConfigError(
                f'{recording.name}: the pictures of an episode are as the policy sees them, and the nodes would change '
                f'{", ".join(twice)} again; play the bag it was built from, use `instructvla replay`, or give an '
                'embodiment without crop, flip and rotate'
            )
        self._recording = recording
        self._forward = recording.forward or forward
        self._bounds = bounds
        self._judged_alone: set[str] = set()
        self._lock = threading.Lock()
        self._motion = TrackBuilder()
        self._notes: list[dict[str, Any]] = []
        self._recorded: list[ActionChunk] = []
        self._chunks: dict[str, ActionChunk] = {}
        self._sentences: dict[str, dict[str, Any]] = {}
        self._verdicts = Verdicts()
        self._refused: dict[str, str] = {}

    def played(self, event: Event) -> None:
        """An event was published."""
        with self._lock:
            if isinstance(event, StateEvent):
                if np.isfinite(event.state.q).all():
                    pose = event.pose if event.pose is not None else self._forward(event.state.q)
                    self._motion.state(event.stamp_ns, pose, event.state.gripper)
            elif isinstance(event, GripperEvent):
                self._motion.command(event.stamp_ns, event.openness)
            elif isinstance(event, SaidEvent) and event.text:
                self._notes.append({'stamp_ns': event.stamp_ns, 'text': event.text})
            elif isinstance(event, ChunkEvent):
                self._recorded.append(event.chunk)

    def chunk(self, chunk: ActionChunk) -> bool:
        """The policy sent a chunk; True when it is kept: one that only holds the arm after an instruction is not."""
        with self._lock:
            kept = chunk.policy != 'hold' or not self._chunks or next(iter(self._chunks.values())).policy == 'hold'
            if kept:
                self._chunks[chunk.id] = chunk
            return kept

    def said(self, said: Reasoning) -> None:
        """The policy said something; the same sentence may come again with more known about it."""
        if said.kind is ReasoningKind.PLAN and said.final:
            with self._lock:
                self._sentences[said.id] = {
                    'id': said.id,
                    'stamp_ns': said.stamp_ns,
                    'text': said.text,
                    'instruction': said.instruction,
                    'tokens': said.tokens,
                    'latency': said.latency,
                }

    def verdict(self, stamp_ns: int, verdict: Verdict) -> Sequence[Verdict]:
        """The controller decided something; returns what counts of it.

        A controller that cannot begin because the recorded arm moves says nothing about the chunk: then the rungs that
        look at the chunk alone are asked instead, as in the direct replay.
        """
        if verdict.action is VerdictAction.PASSED:
            return ()
        with self._lock:
            counted: Sequence[Verdict] = (verdict,)
            if verdict.rule in NO_MOTION:
                counted = self._alone(stamp_ns, verdict.chunk_id)
            for each in counted:
                self._verdicts.add(stamp_ns, each)
                if each.action is VerdictAction.REFUSED and each.chunk_id:
                    self._refused.setdefault(each.chunk_id, each.rule)
            return counted

    def _alone(self, stamp_ns: int, chunk_id: str) -> Sequence[Verdict]:
        chunk = self._chunks.get(chunk_id)
        if chunk is None or self._bounds is None or chunk_id in self._judged_alone:
            return ()
        self._judged_alone.add(chunk_id)
        found = check_chunk(chunk, max(stamp_ns, chunk.created_stamp_ns), self._bounds)[1]
        return [v for v in found if v.action is not VerdictAction.PASSED]

    @property
    def chunks(self) -> int:
        """How many chunks have come."""
        with self._lock:
            return len(self._chunks)

    def finish(self, **meta: Any) -> Trace:
        """Everything so far."""
        with self._lock:
            order = {name: k for k, name in enumerate(self._sentences)}
            thinking: dict[str, float] = {name: s['latency'] for name, s in self._sentences.items()}
            judged = []
            for chunk in sorted(self._chunks.values(), key=lambda c: c.observation_stamp_ns):
                # The time a sentence took belongs to the first chunk it conditions.
                think = thinking.pop(chunk.reasoning_id, 0.0)
                sentence = order.get(chunk.reasoning_id, -1)
                refused = self._refused.get(chunk.id, '')
                judged.append(Judged(chunk, refused, think, chunk.model_latency, 0.0, sentence))
            for k in range(len(judged) - 1):
                if judged[k + 1].chunk.instruction != judged[k].chunk.instruction:
                    end = judged[k + 1].chunk.observation_stamp_ns
                    for j in range(k, -1, -1):
                        if judged[j].chunk.instruction != judged[k].chunk.instruction:
                            break
                        judged[j] = replace(judged[j], until_ns=min(end, judged[j].until_ns))
            track = self._motion.track()
            return Trace(
                meta=plain(
                    {
                        'recording': self._recording.name,
                        'policy': judged[0].chunk.policy if judged else '',
                        'revision': judged[0].chunk.checkpoint_revision if judged else '',
                        'mode': 'live',
                        'judged': True,
                        'duration': track.duration,
                        'instructions': list(dict.fromkeys(j.chunk.instruction for j in judged)),
                        'frames': {},
                        **meta,
                    }
                ),
                track=track,
                chunks=tuple(judged),
                sentences=tuple(self._sentences.values()),
                notes=tuple(self._notes),
                verdicts=tuple(plain(self._verdicts.entries)),
                trouble=dict(self._recording.trouble.counts),
                missing=tuple(self._recording.missing),
                recorded_chunks=tuple(self._recorded),
            )
