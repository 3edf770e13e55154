"""A stand-in for SimplerEnv: its interface, a point that must be pushed over a line, and a log of what was asked."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from instructvla_ros.datatypes import Observation, Reasoning
from instructvla_ros.policy import make_chunk


class Scene:
    """The environment under gymnasium's wrappers. Solved while the summed x of the actions is over ``goal``."""

    def __init__(self, env_id: str, arguments: dict[str, Any], log: list[Any], goal: float, state: bool) -> None:
        self.env_id, self.arguments, self.log, self.goal, self.state = env_id, arguments, log, goal, state
        self.camera = 'overhead_camera' if 'google' in arguments['robot'] else '3rd_view_camera'
        self.x, self.steps, self.options = 0.0, 0, {}

    def get_language_instruction(self) -> str:
        return 'open top drawer' if self.steps < 3 else 'place the apple into the drawer'

    def is_final_subtask(self) -> bool:
        return self.steps >= 3

    def advance_to_next_subtask(self) -> None:
        raise AssertionError('this policy never terminates')


class Wrapper:
    """What ``gymnasium.make`` returns: attributes of the scene are only reachable through ``unwrapped``."""

    def __init__(self, scene: Scene) -> None:
        self.unwrapped = scene
        self.closed = False

    def reset(self, *, seed=None, options=None):
        self.unwrapped.x, self.unwrapped.steps, self.unwrapped.options = 0.0, 0, options
        self.unwrapped.log.append(('reset', self.unwrapped.env_id, options))
        return self._observation(), {}

    def step(self, action):
        scene = self.unwrapped
        assert np.shape(action) == (7,) and np.all(np.isfinite(action))
        scene.log.append(('step', np.array(action)))
        scene.x += float(action[0])
        scene.steps += 1
        done = scene.x > scene.goal
        truncated = scene.steps >= scene.arguments['max_episode_steps']
        info = {'episode_stats': {'moved': np.bool_(scene.x != 0.0), 'x': np.float32(scene.x)}}
        return self._observation(), float(done), done, truncated, info

    def close(self):
        assert not self.closed
        self.closed = True
        self.unwrapped.log.append(('close', self.unwrapped.env_id))

    def _observation(self):
        scene = self.unwrapped
        picture = np.random.default_rng(scene.steps).integers(0, 255, (32, 40, 3), dtype=np.uint8)
        eef = np.array([0.5 + scene.x, 0.1, 0.9, 0.5, 0.5, 0.5, 0.5, 1.0])
        agent = {'qpos': np.zeros(9), **({'eef_pos': eef} if scene.state else {})}
        return {'agent': agent, 'image': {scene.camera: {'rgb': picture}}}


@dataclass
class Gym:
    """The module ``gymnasium`` with ``make`` and ``envs.registry``; ``log`` says what happened."""

    registered: list[str]
    goal: float = 0.05
    state: bool = True
    log: list[Any] = field(default_factory=list)
    made: list[Wrapper] = field(default_factory=list)

    def make(self, env_id: str, **arguments):
        assert env_id in self.registered, env_id
        self.log.append(('make', env_id, arguments))
        self.made.append(Wrapper(Scene(env_id, arguments, self.log, self.goal, self.state)))
        return self.made[-1]

    def install(self, monkeypatch, root) -> None:
        """Put it where ``import`` finds it, with photographs below ``root``."""
        module = types.ModuleType('gymnasium')
        module.make = self.make
        module.envs = types.SimpleNamespace(registry=dict.fromkeys(self.registered))
        envs = types.ModuleType('mani_skill2_real2sim')
        envs.ASSET_DIR = root
        folder = root / 'real_inpainting'
        folder.mkdir(parents=True, exist_ok=True)
        for name in ('google_coke_can_real_eval_1.png', 'bridge_real_eval_1.png'):
            (folder / name).write_bytes(b'')
        for name, content in (
            ('gymnasium', module),
            ('mani_skill2_real2sim', envs),
            ('simpler_env', types.ModuleType('simpler_env')),
        ):
            monkeypatch.setitem(sys.modules, name, content)


class Scripted:
    """A policy whose chunk number n is ``chunks(n)``."""

    name, privileged, checkpoint_revision = 'scripted', False, ''

    def __init__(self, chunks) -> None:
        self.chunks, self.calls, self.resets, self.thoughts = chunks, 0, 0, 0
        self.seen: list[Observation] = []

    def reset(self):
        self.resets += 1
        self.calls = 0

    def think(self, observation):
        self.thoughts += 1
        words = f'words {self.thoughts}'
        return Reasoning(f'say-{self.thoughts}', observation.stamp_ns, observation.instruction, words)

    def infer(self, observation, reasoning):
        self.seen.append(observation)
        steps = np.asarray(self.chunks(self.calls), float)
        self.calls += 1
        return make_chunk(self, observation, steps, 0.2, 0.0, reasoning)

    def answer(self, observation, question):
        raise AssertionError('SimplerEnv asks no questions')
