"""Policies: what each chunk carries, clear errors, and weights that are swapped safely."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from instructvla_ros import config, policy, resources
from instructvla_ros.datatypes import Observation, Reasoning, SceneObject, SceneState
from instructvla_ros.errors import (
    CheckpointError,
    ConfigError,
    InstructVLAError,
    ObservationError,
    SetupError,
    TaskError,
)
from instructvla_ros.geometry import pose, pose_from_xyz_rpy
from instructvla_ros.policy import HoldPolicy, Policy, PolicyHost, make_policy
from instructvla_ros.policy_expert import ExpertPolicy
from instructvla_ros.settings import Embodiment, PolicySettings

EMBODIMENT = config.load(Embodiment, resources.config_file('franka.yaml'))


def scene() -> SceneState:
    cube = SceneObject('red_cube_1', 'cube', 'red', 'medium', pose((0.5, 0.1, 0.02)), np.full(3, 0.04))
    tcp = pose_from_xyz_rpy([0.4, 0.0, 0.3, np.pi, 0.0, 0.0])
    return SceneState(
        5, {'red_cube_1': cube}, tcp, 1.0, target='red_cube_1', task='pick', instruction='pick the red cube'
    )


def observation(privileged: SceneState | None = None) -> Observation:
    return Observation(
        stamp_ns=123_456_789,
        views={'third_person': np.zeros((4, 4, 3), np.uint8)},
        proprio=np.array([0.4, 0.0, 0.3, np.pi, 0.0, 0.0, 0.0, 0.62]),
        q=np.zeros(7),
        dq=np.zeros(7),
        frame_id='fr3_link0',
        instruction='pick the red cube',
        privileged=privileged,
    )


def expert() -> ExpertPolicy:
    return ExpertPolicy(0.1, 8)


def test_hold_stays_and_keeps_the_gripper() -> None:
    said = Reasoning('say-1', 1, 'x', 'I wait.')
    chunk = HoldPolicy(0.2, 5).infer(observation(), said)
    assert chunk.steps.shape == (5, 7) and not chunk.steps[:, :6].any() and (chunk.steps[:, 6] == 0.62).all()
    assert chunk.observation_stamp_ns == 123_456_789 and chunk.reasoning_id == 'say-1' and chunk.step_period == 0.2
    assert chunk.model_latency > 0.0 and chunk.created_stamp_ns >= chunk.observation_stamp_ns
    np.testing.assert_allclose(chunk.reference_pose, pose_from_xyz_rpy(observation().proprio[:6]))
    assert chunk.policy == 'hold' and chunk.frame_id == 'fr3_link0' and chunk.instruction == 'pick the red cube'


def test_hold_has_no_words() -> None:
    hold = HoldPolicy(0.1, 8)
    assert hold.think(observation()) is None
    with pytest.raises(ConfigError, match='no words'):
        hold.answer(observation(), 'what is there?')


def test_expert_moves_towards_the_target_and_says_where_it_knows_it_from() -> None:
    clever = expert()
    said = clever.think(observation(scene()))
    assert said is not None and said.text and 'simulator' in said.source and said.stamp_ns == 123_456_789
    chunk = clever.infer(observation(scene()), said)
    assert chunk.steps.shape == (8, 7) and np.isfinite(chunk.steps).all()
    assert chunk.steps[:, 0].sum() > 0.0 and chunk.steps[:, 1].sum() > 0.0, 'the cube is ahead and to the left'
    assert chunk.reasoning_id == said.id and chunk.policy == 'expert' and not chunk.done
    assert (chunk.delta_frame, chunk.rotation) == ('base', 'rpy')
    assert 'medium red cube' in clever.answer(observation(scene()), 'what is there?').text


def test_expert_without_the_simulator_says_so() -> None:
    clever = expert()
    for call in (
        lambda: clever.think(observation()),
        lambda: clever.infer(observation(), None),
        lambda: clever.answer(observation(), 'x'),
    ):
        with pytest.raises(ObservationError, match='no robot has'):
            call()


def test_expert_follows_other_words_than_those_of_the_reset() -> None:
    green = SceneObject('green_cube_1', 'cube', 'green', 'medium', pose((0.5, -0.2, 0.02)), np.full(3, 0.04))
    both = replace(scene(), objects={**scene().objects, 'green_cube_1': green})
    chunk = expert().infer(replace(observation(both), instruction='grab the green block'), None)
    assert chunk.steps[:, 1].sum() < 0.0, 'the green cube is to the right'
    with pytest.raises(TaskError, match='the blue ball is not in the scene; it has a medium red cube'):
        expert().infer(replace(observation(both), instruction='pick up the blue ball'), None)
    with pytest.raises(TaskError, match='verb'):
        expert().think(replace(observation(both), instruction='sing a song'))
    twins = replace(both, target='', objects={k: replace(o, color='red') for k, o in both.objects.items()})
    with pytest.raises(TaskError, match='any of red_cube_1, green_cube_1'):
        expert().infer(replace(observation(twins), instruction='lift the red cube'), None)


def test_policies_fit_the_protocol() -> None:
    assert isinstance(HoldPolicy(0.1, 8), Policy)
    assert isinstance(expert(), Policy)


def test_make_policy_names_the_nearest() -> None:
    assert make_policy(PolicySettings(policy='hold'), EMBODIMENT).name == 'hold'
    with pytest.raises(ConfigError, match="Did you mean 'expert'"):
        make_policy(replace(PolicySettings(), policy='expart'), EMBODIMENT)


def test_learned_policy_needs_a_checkpoint_and_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match='checkpoint'):
        make_policy(PolicySettings(policy='instructvla'), EMBODIMENT)
    monkeypatch.setattr(policy, 'MODEL_MODULE', 'instructvla_ros.model.not_there')
    with pytest.raises(SetupError, match='not_there'):
        make_policy(PolicySettings(policy='instructvla', checkpoint='runs/x'), EMBODIMENT)


class Weights(HoldPolicy):
    """A policy with weights whose revision is the path it came from."""

    name = 'instructvla'

    def __init__(self, settings: PolicySettings) -> None:
        super().__init__(settings.step_period, settings.horizon)
        if 'bad' in settings.checkpoint:
            raise CheckpointError(f'{settings.checkpoint} has no weights')
        self.checkpoint_revision = f'{settings.checkpoint}@{settings.revision or "newest"}'


@pytest.fixture
def model_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType('fake_model_policy')
    module.load = lambda settings, embodiment: Weights(settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, 'fake_model_policy', module)
    monkeypatch.setattr(policy, 'MODEL_MODULE', 'fake_model_policy')


def test_new_weights_replace_the_old_and_bad_ones_do_not(model_module: None) -> None:
    host = PolicyHost(PolicySettings(policy='instructvla', checkpoint='runs/a'), EMBODIMENT)
    assert host.current.checkpoint_revision == 'runs/a@newest'
    assert host.load('runs/b', 'r7').checkpoint_revision == 'runs/b@r7'
    with pytest.raises(CheckpointError):
        host.load('runs/bad')
    assert host.current.checkpoint_revision == 'runs/b@r7' and host.settings.checkpoint == 'runs/b'
    chunk = host.current.infer(observation(), None)
    assert chunk.checkpoint_revision == 'runs/b@r7'


def test_a_policy_without_weights_refuses_a_checkpoint() -> None:
    host = PolicyHost(PolicySettings(policy='hold'), EMBODIMENT)
    with pytest.raises(InstructVLAError, match='no weights'):
        host.load('runs/a')
    assert host.current.name == 'hold'
