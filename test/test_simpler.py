"""SimplerEnv: conversions against examples computed by hand, and the policy against direct calls."""

from __future__ import annotations

import io
import math
from pathlib import Path

import model_doubles as doubles
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from simpler_doubles import Scripted

from instructvla_ros.control.ensemble import ensemble_step
from instructvla_ros.datatypes import Observation
from instructvla_ros.errors import CheckpointError, ConfigError, ObservationError
from instructvla_ros.evaluation.simpler_policy import (
    SETUPS,
    VIEW,
    ActionConverter,
    SimplerPolicy,
    find_setup,
    proprio_of,
)
from instructvla_ros.policy import HoldPolicy

GOOGLE, WIDOWX = SETUPS['google_robot'], SETUPS['widowx_bridge']
REALDATA = Path(__file__).resolve().parents[2] / 'shared' / 'realdata'
HALF = math.pi / 2


# -- conversions ------------------------------------------------------------------------------------------------


def test_translation_and_rotation_by_hand():
    """Roll, then pitch of 90 degrees about the fixed axes.

    Roll 90 about x: e_x -> e_x, e_y -> e_z, e_z -> -e_y. Pitch 90 about the fixed y: e_x -> -e_z, e_y -> e_y,
    e_z -> e_x. One after the other: e_x -> -e_z, e_y -> e_x, e_z -> -e_y, the columns of R below. Its trace is 0, so
    the angle is acos(-1/2) = 120 degrees; the axis is (R32 - R23, R13 - R31, R21 - R12) = (1, 1, -1), over sqrt 3. In
    the other order it would be (1, 1, 1).
    """
    r = np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]])
    np.testing.assert_allclose([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]], [1, 1, -1])
    out = ActionConverter(WIDOWX).convert([0.01, -0.02, 0.03, HALF, HALF, 0.0, 1.0])
    np.testing.assert_allclose(out['world_vector'], [0.01, -0.02, 0.03])
    np.testing.assert_allclose(out['rot_axangle'], np.array([1, 1, -1]) / math.sqrt(3) * 2 * math.pi / 3, atol=1e-12)
    np.testing.assert_array_equal(out['terminate_episode'], [0.0])


def test_scale_applies_to_motion_only():
    out = ActionConverter(WIDOWX, scale=0.5).convert([0.02, 0, 0, 0, 0, 0.4, 1.0])
    np.testing.assert_allclose(out['world_vector'], [0.01, 0, 0])
    np.testing.assert_allclose(out['rot_axangle'], [0, 0, 0.2])
    np.testing.assert_array_equal(out['gripper'], [1.0])


def test_widowx_gripper_is_absolute_with_a_threshold():
    convert = ActionConverter(WIDOWX).convert
    openness = [1.0, 0.51, 0.5, 0.0, 0.6]
    assert [convert([0] * 6 + [g])['gripper'][0] for g in openness] == [1.0, 1.0, -1.0, -1.0, 1.0]


def test_google_gripper_is_relative_and_sticky_by_hand():
    """Openness 1 1 0.45 ... : the worked example of the rule.

    step 0: nothing before it -> 0. step 1: 1 - 1 = 0. step 2: 1 - 0.45 = 0.55 > 0.5: held for ten steps (2 to 11)
    whatever comes, and 0.45 becomes 'previous'. step 12 is free again: 0.45 - 0.45 = 0; step 13: 0.45 - 0 = 0.45 does
    not stick, and 'previous' stays 0.45; step 14: 0.45 - 1 = -0.55 sticks for ten steps (14 to 23); step 24: 1 - 1 = 0.
    """
    openness = [1.0, 1.0, 0.45, *[0.0] * 9, 0.45, 0.0, 1.0, *[1.0] * 9, 1.0]
    expected = [0.0, 0.0, *[0.55] * 10, 0.0, 0.45, *[-0.55] * 10, 0.0]
    converter = ActionConverter(GOOGLE)
    got = [converter.convert([0] * 6 + [g])['gripper'][0] for g in openness]
    np.testing.assert_allclose(got, expected, atol=1e-12)
    converter.convert([0] * 6 + [0.0])
    converter.reset()
    assert converter.convert([0] * 6 + [0.0])['gripper'][0] == 0.0  # nothing of the episode before


def test_proprio_by_hand():
    """Quaternion wxyz (1, -1, 1, 1) / 2 of the simulator is a yaw of 90 degrees of Bridge.

    Its matrix is R = [[0, -1, 0], [0, 0, 1], [-1, 0, 0]], which is Rz(90) M with M = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    and Rz(90) = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]. So R M^T = Rz(90): roll 0, pitch 0, yaw 90 degrees.
    """
    eef = np.array([0.1, 0.2, 0.3, 0.5, -0.5, 0.5, 0.5, 0.25])
    np.testing.assert_allclose(proprio_of(WIDOWX, eef), [0.1, 0.2, 0.3, 0.0, 0.0, HALF, 0.0, 0.25], atol=1e-12)
    np.testing.assert_allclose(proprio_of(GOOGLE, eef), [0.1, 0.2, 0.3, -0.5, 0.5, 0.5, 0.5, 0.75])


@pytest.mark.parametrize('eef', [np.zeros(8), np.full(8, np.nan), np.ones(7)])
def test_a_bad_state_is_refused(eef):
    with pytest.raises(ObservationError, match='eef_pos'):
        proprio_of(WIDOWX, eef)


def test_setups_have_two_names():
    assert find_setup('widowx') is WIDOWX and find_setup('google_robot') is GOOGLE
    with pytest.raises(ConfigError, match='google_robot'):
        find_setup('google')


# -- the policy -------------------------------------------------------------------------------------------------


def test_ensemble_takes_the_prediction_for_now():
    """Chunk n predicts n + k for its step k, so all stored chunks agree about now; a wrong shift would not."""

    def ramp(n):
        steps = np.zeros((9, 7))
        steps[:, 0] = 0.001 * (n + np.arange(9))
        steps[:, 6] = 1.0
        return steps

    policy = SimplerPolicy(Scripted(ramp), WIDOWX, sentence_period=0)
    policy.reset('go')
    for n in range(12):
        raw, action = policy.step(doubles.image(20, 30))
        np.testing.assert_allclose(raw['world_vector'], [0.001 * n, 0, 0], atol=1e-12)
        np.testing.assert_allclose(action['world_vector'], raw['world_vector'])


def test_ensemble_of_two_by_hand():
    """Newest (3, 0, ...) and older (0, 4, ...), openness 0: cosines 1 and 0 (the 1e-7 takes 1e-8 off).

    With alpha 0.1: weights e^0.1 and 1, over their sum 2.105171: 0.524979 and 0.475021, so (1.574938, 1.900083).
    """
    chunks = [np.zeros((3, 7)), np.zeros((3, 7))]
    chunks[0][1, 1] = 4.0
    chunks[1][0, 0] = 3.0
    policy = SimplerPolicy(Scripted(lambda n: chunks[n]), GOOGLE, sentence_period=0)
    policy.reset('go')
    policy.step(doubles.image(8, 8))
    raw, _ = policy.step(doubles.image(8, 8))
    np.testing.assert_allclose(raw['world_vector'], [1.574938, 1.900083, 0.0], atol=1e-6)


def test_a_short_chunk_leaves_the_ensemble_when_it_is_used_up():
    policy = SimplerPolicy(Scripted(lambda n: np.full((1, 7), n / 100)), WIDOWX, sentence_period=0)
    policy.reset('go')
    assert [policy.step(doubles.image(8, 8))[0]['world_vector'][0] for _ in range(4)] == [0.0, 0.01, 0.02, 0.03]


def test_sentences_every_k_steps_and_resets():
    inner = Scripted(lambda n: np.zeros((8, 7)))
    policy = SimplerPolicy(inner, WIDOWX, sentence_period=4)
    with pytest.raises(ObservationError, match='instruction'):
        policy.step(doubles.image(8, 8))
    policy.reset('put the spoon down')
    said = []
    for _ in range(9):
        policy.step(doubles.image(8, 8), 'put the spoon down')
        said.append(policy.reasoning.text)
    assert said == ['words 1'] * 4 + ['words 2'] * 4 + ['words 3'] and inner.resets == 1
    assert [o.stamp_ns for o in inner.seen[:3]] == [0, 200_000_000, 400_000_000]
    policy.step(doubles.image(8, 8), 'now the carrot')  # another task text starts over
    assert inner.resets == 2 and policy.reasoning.text == 'words 4' and policy.steps == 1
    quiet = SimplerPolicy(Scripted(lambda n: np.zeros((8, 7))), WIDOWX, sentence_period=0)
    quiet.step(doubles.image(8, 8), 'go')
    assert quiet.policy.thoughts == 0 and quiet.reasoning is None


def test_a_policy_with_state_needs_it():
    policy = SimplerPolicy(HoldPolicy(0.2, 2), WIDOWX, state=True)
    policy.reset('go')
    with pytest.raises(ObservationError, match='eef_pos'):
        policy.step(doubles.image(8, 8))
    policy.step(doubles.image(8, 8), eef_pos=[0, 0, 0, 0.5, -0.5, 0.5, 0.5, 1])


def recorded(count):
    """Frames of a recorded WidowX (Bridge, the JPEG pictures of a TFRecord) where they are at hand, else noise."""
    file = REALDATA / 'bridge_octo_rlds/bridge_dataset/1.0.0/bridge_dataset-train.tfrecord-00000-of-00001'
    if not file.is_file():
        return [doubles.image(48, 64, seed) for seed in range(count)]
    data, frames, at = file.read_bytes(), {}, -1
    while len(frames) < count and (at := data.find(b'\xff\xd8\xff\xe0', at + 1)) >= 0:
        picture = np.asarray(Image.open(io.BytesIO(data[at : at + 200_000])).convert('RGB'))
        frames[picture.tobytes()] = picture
    assert len(frames) == count
    return list(frames.values())


@pytest.mark.parametrize('setup', [GOOGLE, WIDOWX], ids=lambda s: s.name)
@pytest.mark.parametrize('state', [False, True], ids=['no state', 'state'])
def test_actions_equal_direct_calls_and_the_conversion_exactly(tmp_path, setup, state):
    """Everything SimplerPolicy does, written out again over direct calls of the policy: bit for bit."""
    doubles.needs_model()
    from instructvla_ros.evaluation.simpler_policy import embodiment_of, policy_settings
    from instructvla_ros.model.policy import InstructVLAPolicy

    bundle = doubles.small_bundle(tmp_path, views=1, proprio=state)
    settings = policy_settings(setup, 'x', dataset='toy')
    frames = recorded(12)
    turns = [np.roll(Rotation.from_euler('xyz', [0, 1 + k / 40, 0]).as_quat(), 1) for k in range(12)]
    eef = [np.array([0.3, 0.1 * k / 12, 0.2, *turn, k % 2]) for k, turn in enumerate(turns)]
    instruction, period = 'put the red cube in the bowl', 5

    wrapped = SimplerPolicy(InstructVLAPolicy(bundle, settings, embodiment_of(setup)), setup, state=state,
                            sentence_period=period)  # fmt: skip
    wrapped.reset(instruction)
    got = [wrapped.step(f, instruction, e if state else None) for f, e in zip(frames, eef, strict=True)]

    direct = InstructVLAPolicy(bundle, settings, embodiment_of(setup))
    direct.reset()
    chunks, reasoning, openness = [], None, []
    for k, (frame, e) in enumerate(zip(frames, eef, strict=True)):
        observation = Observation(
            stamp_ns=round(k * 1e9 / setup.control_freq),
            views={VIEW: frame},
            proprio=proprio_of(setup, e) if state else np.zeros(8),
            q=np.zeros(0),
            dq=np.zeros(0),
            frame_id='any',
            instruction=instruction,
        )
        if k % period == 0:
            reasoning = direct.think(observation)
        chunks.insert(0, direct.infer(observation, reasoning).steps)
        kept = chunks[: setup.ensemble]
        now = ensemble_step([c[i] for i, c in enumerate(kept) if i < len(c)], 0.1)
        openness.append(now[6])
        raw, action = got[k]
        np.testing.assert_array_equal(np.concatenate(list(raw.values())), now)
        np.testing.assert_array_equal(action['world_vector'], now[:3])
        np.testing.assert_array_equal(action['rot_axangle'], Rotation.from_euler('xyz', now[3:6]).as_rotvec())
    assert len({c.tobytes() for c in chunks}) == 12  # the frames matter
    told = [a['gripper'][0] for _, a in got]
    if setup is WIDOWX:
        assert told == [2.0 * (g > 0.5) - 1.0 for g in openness]
        return
    previous, held, left, wanted = openness[0], 0.0, 0, []
    for g in openness:
        change = previous - g
        if left == 0 and abs(change) > 0.5:
            previous, held, left = g, change, 10
        wanted.append(held if left else change)
        left -= left > 0
    assert told == wanted


def test_a_checkpoint_with_two_cameras_is_refused(tmp_path):
    doubles.needs_model()
    from instructvla_ros.evaluation.simpler_policy import load_policies
    from instructvla_ros.model.checkpoint import save

    two = save(doubles.small_bundle(tmp_path / 'a', views=2), tmp_path / 'two')
    with pytest.raises(CheckpointError, match='2 views'):
        load_policies(str(two), SETUPS, device='cpu')
    one = save(doubles.small_bundle(tmp_path / 'b', views=1), tmp_path / 'one')
    with pytest.raises(CheckpointError, match='fractal20220817_data'):
        load_policies(str(one), SETUPS, device='cpu')
    made = load_policies(str(one), SETUPS, device='cpu', dataset='toy', sentence_period=7)
    assert made['google_robot'].state and made['google_robot'].policy.checkpoint_revision
