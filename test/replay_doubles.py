"""Made-up episodes and faulty policies for the tests of the replay. No robot made these motions."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from instructvla_ros import config, resources
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.data.episodes import Episode, Frames, Meta
from instructvla_ros.datatypes import ActionChunk, Observation, Reasoning
from instructvla_ros.geometry import delta_between, integrate, xyz_rpy_from_pose
from instructvla_ros.settings import Control, Embodiment, PolicySettings

START_NS = 1_700_000_000_000_000_000
PERIOD = 0.1


@lru_cache(maxsize=1)
def embodiment() -> Embodiment:
    return config.load(Embodiment, resources.config_file('franka.yaml'))


@lru_cache(maxsize=1)
def kinematics() -> Kinematics:
    return Kinematics(embodiment())


def control() -> Control:
    return config.load(Control, resources.config_file('controller.yaml'))


def settings(**changes) -> PolicySettings:
    return config.load(PolicySettings, resources.config_file('policy.yaml'), changes)


def moving_episode(
    frames: int = 200, *, seed: int = 0, still: bool = False, events: bool = True, pictures: bool = True
) -> tuple[Episode, Meta]:
    """A smooth wandering arm around its home that opens and closes its gripper every four seconds."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames) * PERIOD
    q = np.tile(np.asarray(embodiment().home), (frames, 1))
    if not still:
        rise = np.clip(t / 2.0, 0.0, 1.0) ** 2
        for joint, reach in enumerate((0.25, 0.2, 0.25, 0.2, 0.4, 0.4, 0.7)):
            for speed in (0.35, 0.8, 1.5):
                wave = np.sin(speed * (1 + 0.2 * rng.random()) * t + 6.3 * rng.random())
                q[:, joint] += rise * reach * 0.5 / (speed / 0.35) ** 0.5 * (wave - wave[0])
    dq = np.gradient(q, PERIOD, axis=0)
    poses = [kinematics().forward(row) for row in q]
    openness = np.where((t // 4.0) % 2 == 0, 1.0, 0.0) if events else np.ones(frames)
    proprio = np.zeros((frames, 8))
    proprio[:, :6] = [xyz_rpy_from_pose(p) for p in poses]
    proprio[:, 7] = np.convolve(np.pad(openness, (4, 0), mode='edge'), np.ones(5) / 5, mode='valid')
    actions = np.zeros((frames, 7))
    actions[:-1, :6] = [delta_between(a, b) for a, b in zip(poses[:-1], poses[1:], strict=True)]
    actions[:, 6] = openness
    names = ('third_person', 'wrist')
    blank = Frames.encode([np.full((8, 12, 3), 90, np.uint8)], 0).encoded(0)
    if pictures:
        views = {n: Frames.encode([_picture(k, len(n)) for k in range(frames)], 90) for n in names}
    else:
        views = {n: Frames([blank] * frames) for n in names}
    stamps = START_NS + np.round(t * 1e9).astype(np.int64)
    meta = Meta('made_up', 'fr3', PERIOD, {n: (48, 36) if pictures else (12, 8) for n in names}, frame_id='fr3_link0')
    said = ['move to the cube' if o > 0.5 else 'close the gripper' for o in openness]
    episode = Episode(
        f'e{seed:03d}', 'put the red cube in the bowl', PERIOD, stamps, proprio, q, dq, actions, views,
        annotations={'features': {'move_primitive': said}}, success=True, source='made up',
    )  # fmt: skip
    return episode, meta


def _picture(k: int, salt: int) -> np.ndarray:
    y, x = np.mgrid[0:36, 0:48]
    return np.stack([(x * 5 + k * 3) % 256, (y * 7 + salt * 20) % 256, (x + y + k) % 256], axis=-1).astype(np.uint8)


class Planted:
    """A policy with a fault put into an otherwise good one."""

    def __init__(self, good, change) -> None:
        self.good, self.change = good, change
        self.name, self.privileged, self.checkpoint_revision = 'planted', False, ''

    def reset(self) -> None:
        self.good.reset()

    def think(self, observation: Observation) -> Reasoning | None:
        return self.good.think(observation)

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        return self.change(self.good.infer(observation, reasoning))

    def answer(self, observation: Observation, question: str) -> Reasoning:
        return self.good.answer(observation, question)


def gripper_inverted(chunk: ActionChunk) -> ActionChunk:
    steps = chunk.steps.copy()
    steps[:, 6] = 1.0 - steps[:, 6]
    return replace(chunk, steps=steps)


def one_step_late(policy):
    """Steps as they were recorded one step before; ``policy`` is the recorded one."""

    def shift(chunk: ActionChunk) -> ActionChunk:
        earlier = chunk.observation_stamp_ns - round(chunk.step_period * 1e9)
        seen = Observation(earlier, {}, np.zeros(8), np.zeros(0), np.zeros(0), chunk.frame_id, chunk.instruction)
        return replace(chunk, steps=policy.infer(seen, None).steps)

    return shift


def meant_as(frame: str, rotation: str):
    """Numbers of another convention under the declared one, as when the data was made in it."""

    def rewrite(chunk: ActionChunk) -> ActionChunk:
        poses = [chunk.reference_pose, *integrate(chunk.reference_pose, chunk.steps, chunk.delta_frame, chunk.rotation)]
        steps = chunk.steps.copy()
        steps[:, :6] = [delta_between(a, b, frame, rotation) for a, b in zip(poses[:-1], poses[1:], strict=True)]
        return replace(chunk, steps=steps)

    return rewrite


