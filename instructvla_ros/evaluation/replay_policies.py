"""Policies that only a replay can have: the one that answers with what was really done."""

from __future__ import annotations

import time

import numpy as np

from ..control.kinematics import Kinematics
from ..datatypes import ActionChunk, Observation, Reasoning, new_id
from ..errors import ConfigError, DataError
from ..geometry import pose_from_xyz_rpy
from ..settings import PolicySettings
from .replay_source import GripperEvent, Recording, SaidEvent, StateEvent
from .replay_trace import Track, TrackBuilder, deltas


def track_of(recording: Recording, kinematics: Kinematics | None = None) -> tuple[Track, list[tuple[int, str]]]:
    """The recorded motion, and the recorded or annotated sentences (stamp [ns], text), in one pass without pictures.

    Raises:
        DataError: the recording holds no joint states.
    """
    forward = recording.forward or (kinematics or Kinematics(recording.embodiment)).forward
    motion = TrackBuilder()
    said: list[tuple[int, str]] = []
    for event in recording.events(pictures=False):
        if isinstance(event, StateEvent):
            if np.isfinite(event.state.q).all():
                pose = event.pose if event.pose is not None else forward(event.state.q)
                motion.state(event.stamp_ns, pose, event.state.gripper)
        elif isinstance(event, GripperEvent):
            motion.command(event.stamp_ns, event.openness)
        elif isinstance(event, SaidEvent) and event.text:
            said.append((event.stamp_ns, event.text))
    if not len(motion):
        raise DataError(f'{recording.name} holds no usable joint state; nothing can be compared with it')
    return motion.track(), said


class RecordedPolicy:
    """Answers with the motion that followed the observation, and with the sentence that was recorded then.

    It is the reference of a replay: every error is near zero, so whatever a report shows about it is the recording's.

    Args:
        noise: standard deviation added to each step: [m], [rad], openness; drawn from the seed of the settings.
    """

    name = 'recorded'
    privileged = False
    checkpoint_revision = ''

    def __init__(
        self,
        recording: Recording,
        settings: PolicySettings,
        noise: tuple[float, float, float] = (0.0, 0.0, 0.0),
        kinematics: Kinematics | None = None,
    ) -> None:
        self._track, self._said = track_of(recording, kinematics)
        self._settings, self._embodiment = settings, recording.embodiment
        self._noise = np.repeat(np.asarray(noise, dtype=np.float64), (3, 3, 1))
        self.reset()

    def reset(self) -> None:
        """Start the noise over."""
        self._rng = np.random.default_rng(self._settings.seed)

    def think(self, observation: Observation) -> Reasoning | None:
        """The newest sentence recorded until the observation."""
        text = next((t for stamp, t in reversed(self._said) if stamp <= observation.stamp_ns), '')
        if not text:
            return None
        return Reasoning(new_id('say'), observation.stamp_ns, observation.instruction, text, source=self.name)

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        """The recorded steps; still with the openness kept where the recording is over."""
        began = time.perf_counter()
        s, robot = self._settings, self._embodiment
        ahead = np.round(np.arange(s.horizon + 1) * s.step_period * 1e9).astype(np.int64)
        times = observation.stamp_ns + ahead
        frame, rotation = robot.delta_frame, robot.rotation
        steps = np.zeros((s.horizon, 7))
        recorded = deltas(self._track.poses(times), frame, 'rotvec' if rotation == 'rotvec' else 'rpy')
        steps[:, :6] = np.nan_to_num(recorded)
        openness = self._track.gripper(times[:-1])
        steps[:, 6] = np.where(np.isfinite(openness), openness, observation.proprio[7])
        steps += self._rng.normal(0.0, 1.0, steps.shape) * self._noise
        steps[:, 6] = np.clip(steps[:, 6], 0.0, 1.0)
        return ActionChunk(
            id=new_id('chunk'),
            observation_stamp_ns=observation.stamp_ns,
            created_stamp_ns=observation.stamp_ns,
            step_period=s.step_period,
            steps=steps,
            frame_id=observation.frame_id,
            reference_pose=pose_from_xyz_rpy(observation.proprio[:6]),
            delta_frame='tool' if frame == 'tool' else 'base',
            rotation='rotvec' if rotation == 'rotvec' else 'rpy',
            instruction=observation.instruction,
            policy=self.name,
            reasoning_id=reasoning.id if reasoning is not None else '',
            model_latency=time.perf_counter() - began,
        )

    def answer(self, observation: Observation, question: str) -> Reasoning:
        """Raise: a recording answers no questions."""
        raise ConfigError("policy 'recorded' has no words of its own; ask a checkpoint")
