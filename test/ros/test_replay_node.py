"""A bag played into the running graph: the same chunks as in the direct replay for the same observations."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import EMBODIMENT, eventually
from rclpy.parameter import Parameter

from instructvla_ros import config, resources
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.datatypes import ActionChunk, Observation, Reasoning
from instructvla_ros.errors import ConfigError
from instructvla_ros.evaluation.replay import ReplayOptions, replay
from instructvla_ros.evaluation.replay_bag import BagRecording
from instructvla_ros.nodes.policy_node import PolicyNode
from instructvla_ros.nodes.replay_node import ReplayNode
from instructvla_ros.policy import make_chunk
from instructvla_ros.settings import Control, PolicySettings

BAG = Path(__file__).resolve().parents[1] / 'data' / 'sim_put'
SECONDS = 150.0  # a loaded machine may take that long


class Digest:
    """Steps that depend on every pixel and every number it sees, and on how often it was asked before."""

    name, privileged, checkpoint_revision = 'digest', False, 'r1'

    def __init__(self) -> None:
        self.seen: dict[int, str] = {}
        self.reset()

    def reset(self) -> None:
        self._rng = np.random.default_rng(5)

    def think(self, observation: Observation) -> Reasoning | None:
        return None

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        h = hashlib.sha256()
        for name in sorted(observation.views):
            h.update(np.ascontiguousarray(observation.views[name]).tobytes())
        for values in (observation.proprio, observation.q, observation.dq):
            h.update(np.asarray(values, dtype=np.float64).tobytes())
        h.update(observation.instruction.encode())
        self.seen[observation.stamp_ns] = h.hexdigest()
        rng = np.random.default_rng(int.from_bytes(h.digest()[:8], 'little'))
        steps = rng.normal(0.0, 0.002, (8, 7)) + self._rng.normal(0.0, 1e-4, (8, 7))
        steps[:, 6] = 1.0
        return make_chunk(self, observation, steps, 0.1, time.perf_counter())

    def answer(self, observation: Observation, question: str) -> Reasoning:
        raise ConfigError('no words')


def parameters(**values: Any) -> list[Parameter]:
    return [Parameter(name, value=value) for name, value in values.items()]


def test_live_and_direct_give_the_same_chunks_for_the_same_observations(spin, tmp_path):
    live = Digest()
    policy = PolicyNode(
        live,
        parameter_overrides=parameters(
            use_sim_time=True, chunk_rate=3.0, reasoning='off', max_view_age=5.0, max_state_age=5.0, input_timeout=60.0
        ),
    )
    spin(policy)
    # Slow enough that a loaded machine loses no joint state: sensors are best effort with a queue of one.
    player = ReplayNode(
        parameter_overrides=parameters(bag=str(BAG), rate=0.15, duration=2.5, wait=60.0, out=str(tmp_path / 'out'))
    )
    spin(player)
    eventually(player.done.is_set, SECONDS, 'the bag is played')
    assert not player.problem
    assert player.outcome is not None
    made = [row.chunk for row in player.outcome.trace.chunks if row.chunk.policy == 'digest']
    answered = {chunk.observation_stamp_ns: chunk for chunk in made}
    assert len(answered) >= 5
    assert (tmp_path / 'out' / 'report.html').is_file() and (tmp_path / 'out' / 'metrics.json').is_file()

    direct = Digest()
    changes = {'chunk_rate': 3.0, 'reasoning': 'off', 'max_view_age': 5.0, 'max_state_age': 5.0}
    settings = config.load(PolicySettings, resources.config_file('policy.yaml'), changes)
    control = config.load(Control, resources.config_file('controller.yaml'))
    stamps = frozenset(live.seen)
    with BagRecording(BAG, EMBODIMENT) as bag:
        options = ReplayOptions(stamps=stamps, judge=False)
        trace = replay(bag, direct, settings, control, options, kinematics=Kinematics(EMBODIMENT))
    again = {c.chunk.observation_stamp_ns: c.chunk for c in trace.chunks}
    assert list(again) == sorted(stamps), 'the direct replay makes every observation that the graph made'
    same = [s for s in stamps if live.seen[s] == direct.seen[s] and s in answered]
    # A joint state that was lost all the same makes another observation.
    assert len(same) >= max(2, len(answered) // 4), f'{len(same)} of {len(answered)} observations are bit for bit equal'
    for stamp in same:
        assert answered[stamp].steps.tobytes() == again[stamp].steps.tobytes()
        np.testing.assert_allclose(answered[stamp].reference_pose, again[stamp].reference_pose, atol=1e-12)
        assert answered[stamp].instruction == again[stamp].instruction


def test_a_recording_that_is_not_there_is_refused(ros):
    with pytest.raises(ConfigError, match='`bag`'):
        ReplayNode()
    with pytest.raises(Exception, match='nowhere'):
        ReplayNode(parameter_overrides=parameters(bag='/nowhere/at/all'))
