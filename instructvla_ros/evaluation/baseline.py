"""A policy that knows nothing: what a score is worth is seen against it."""

from __future__ import annotations

import time

import numpy as np

from ..datatypes import ActionChunk, Observation, Reasoning
from ..errors import ConfigError
from ..policy import make_chunk
from ..settings import PolicySettings


class RandomPolicy:
    """Wanders: each chunk drifts in a random direction at up to ``speed`` and toggles the gripper now and then.

    Args:
        seed: of the wandering; ``reset`` starts it over. speed: [m/s].
    """

    name = 'random'
    privileged = False
    checkpoint_revision = ''

    def __init__(self, settings: PolicySettings, seed: int = 0, speed: float = 0.2) -> None:
        self._settings, self._seed, self._speed = settings, seed, speed
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self._rng = np.random.default_rng(self._seed)
        self._open = True

    def think(self, observation: Observation) -> Reasoning | None:
        """No words."""
        return None

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        """A random direction; over the table rather than out of the workspace."""
        started = time.perf_counter()
        s = self._settings
        goal = self._rng.uniform((0.40, -0.28, 0.0), (0.66, 0.28, 0.35))
        way = goal - observation.proprio[:3]
        length = float(np.linalg.norm(way))
        steps = np.zeros((s.horizon, 7))
        steps[:, :3] = way * min(1.0 / s.horizon, self._speed * s.step_period / max(length, 1e-6))
        steps[:, 5] = self._rng.uniform(-0.05, 0.05)
        self._open = self._open if self._rng.random() < 0.8 else not self._open
        steps[:, 6] = float(self._open)
        return make_chunk(self, observation, steps, s.step_period, started, reasoning)

    def answer(self, observation: Observation, question: str) -> Reasoning:
        """Raise: this policy has no words."""
        raise ConfigError("the random policy has no words; ask policy 'instructvla'")
