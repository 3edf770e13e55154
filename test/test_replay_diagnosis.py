"""Faults planted into a good policy are named, and nothing is said about the good one."""

from __future__ import annotations

from dataclasses import replace as changed
from functools import lru_cache

import numpy as np
import pytest
import replay_doubles as doubles

from instructvla_ros.config import replace as configured
from instructvla_ros.evaluation.replay import ReplayOptions, replay
from instructvla_ros.evaluation.replay_diagnosis import CLEAR, FAULT, UNKNOWN, diagnose
from instructvla_ros.evaluation.replay_metrics import summarize
from instructvla_ros.evaluation.replay_policies import RecordedPolicy
from instructvla_ros.evaluation.replay_source import EpisodeRecording
from instructvla_ros.evaluation.replay_trace import Trace
from instructvla_ros.policy import HoldPolicy

NOISE = (0.002, 0.01, 0.03)  # about a third of the recorded steps


@lru_cache(maxsize=4)
def recording(seed: int = 0, still: bool = False, events: bool = True) -> EpisodeRecording:
    episode, meta = doubles.moving_episode(seed=seed, still=still, events=events, pictures=False)
    return EpisodeRecording(episode, meta, doubles.embodiment())


def run(policy, source: EpisodeRecording | None = None) -> Trace:
    source = source or recording()
    options = ReplayOptions(judge=False)
    return replay(source, policy, doubles.settings(), doubles.control(), options, kinematics=doubles.kinematics())


def good(noise=(0.0, 0.0, 0.0), source: EpisodeRecording | None = None, seed: int = 0) -> RecordedPolicy:
    return RecordedPolicy(source or recording(), doubles.settings(seed=seed), noise, doubles.kinematics())


def faults(trace: Trace) -> set[str]:
    return {d.name for d in diagnose(trace) if d.result == FAULT}


def named(trace: Trace, name: str):
    return next(d for d in diagnose(trace) if d.name == name)


@pytest.mark.parametrize('noise', [(0.0, 0.0, 0.0), NOISE, (0.006, 0.03, 0.1)])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_a_good_policy_is_not_accused(noise, seed: int) -> None:
    source = recording(seed)
    found = faults(run(good(noise, source, seed), source))
    # With more noise than motion the error is larger than that of a mean: that is said, and it is true.
    assert found <= ({'no_better_than_mean'} if noise[0] > NOISE[0] else set())


@pytest.mark.parametrize('noise', [(0.0, 0.0, 0.0), NOISE])
def test_an_inverted_gripper_is_named(noise) -> None:
    trace = run(doubles.Planted(good(noise), doubles.gripper_inverted))
    assert faults(trace) == {'gripper_inverted'}
    assert summarize(trace)['action']['translation_skill_over_hold'] > 0.5  # the motion looks as good as before


@pytest.mark.parametrize('noise', [(0.0, 0.0, 0.0), NOISE])
def test_a_delay_of_one_step_is_named(noise) -> None:
    trace = run(doubles.Planted(good(), doubles.one_step_late(good(noise))))
    assert faults(trace) == {'action_delay'}
    delay = named(trace, 'action_delay').numbers
    assert delay['best_lag_steps'] == pytest.approx(1.0, abs=0.26)
    assert delay['lag_steps'] == pytest.approx(1.0, abs=0.2)
    assert summarize(trace)['action']['translation_skill_over_hold'] > 0.5


@pytest.mark.parametrize(
    ('frame', 'rotation', 'noise'),
    [
        ('base', 'rotvec', (0.0, 0.0, 0.0)),
        ('base', 'rotvec', (0.002, 0.0003, 0.03)),
        ('tool', 'rpy', (0.0, 0.0, 0.0)),
        ('tool', 'rpy', NOISE),
        ('tool', 'rotvec', (0.0, 0.0, 0.0)),
    ],
)
def test_a_wrong_convention_is_named(frame: str, rotation: str, noise) -> None:
    trace = run(doubles.Planted(good(noise), doubles.meant_as(frame, rotation)))
    assert 'rotation_convention' in faults(trace)
    numbers = named(trace, 'rotation_convention').numbers
    assert (numbers['fits_frame'], numbers['fits_rotation']) == (frame, rotation)
    if frame == 'base':  # the error itself shows nothing
        assert summarize(trace)['action']['rotation_skill_over_hold'] > 0.99
        assert faults(trace) == {'rotation_convention'}


def test_a_fault_does_not_hide_another() -> None:
    late = doubles.Planted(good(), doubles.one_step_late(good()))
    both = doubles.Planted(doubles.Planted(late, doubles.meant_as('tool', 'rpy')), doubles.gripper_inverted)
    assert {'gripper_inverted', 'action_delay', 'rotation_convention'} <= faults(run(both))


@pytest.mark.parametrize('scale', [0.6, 0.85])
def test_a_timid_policy_is_not_called_late_or_turned(scale: float) -> None:
    def shy(chunk):
        return changed(chunk, steps=chunk.steps * np.array([scale] * 6 + [1.0]))

    assert not faults(run(doubles.Planted(good(NOISE), shy)))


def test_a_policy_in_millimetres_is_named() -> None:
    def large(chunk):
        return changed(chunk, steps=chunk.steps * np.array([1000.0] * 3 + [1.0] * 4))

    assert 'wrong_scale' in faults(run(doubles.Planted(good(NOISE), large)))


def test_mirrored_axes_are_named() -> None:
    def mirrored(chunk):
        return changed(chunk, steps=chunk.steps * np.array([1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0]))

    assert 'axes_mixed' in faults(run(doubles.Planted(good(NOISE), mirrored)))


def test_standing_still_is_named() -> None:
    found = run(HoldPolicy(0.1, 8))
    assert {'stays_at_start', 'no_better_than_mean'} <= faults(found)
    assert not {'action_delay', 'rotation_convention', 'gripper_inverted'} & faults(found)


def test_a_recording_without_motion_tells_nothing() -> None:
    source = recording(still=True, events=False)
    results = {d.name: d.result for d in diagnose(run(good(source=source), source))}
    assert FAULT not in results.values()
    assert results['action_delay'] == results['rotation_convention'] == results['stays_at_start'] == UNKNOWN
    assert results['gripper_inverted'] == CLEAR


def test_a_gripper_that_is_closed_all_along_is_named_without_events() -> None:
    source = recording(events=False)
    trace = run(doubles.Planted(good(source=source), doubles.gripper_inverted), source)
    assert 'gripper_inverted' in faults(trace)


def test_declared_conventions_of_a_dataset_are_used() -> None:
    episode, meta = doubles.moving_episode(120, pictures=False)
    source = EpisodeRecording(episode, changed(meta, delta_frame='tool', rotation='rotvec'), doubles.embodiment())
    trace = run(RecordedPolicy(source, doubles.settings(), kinematics=doubles.kinematics()), source)
    assert trace.chunks[0].chunk.delta_frame == 'tool' and trace.chunks[0].chunk.rotation == 'rotvec'
    assert not faults(trace)
    assert configured(doubles.embodiment(), delta_frame='tool').delta_frame == 'tool'
