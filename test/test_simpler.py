"""SimplerEnv: conversions against examples by hand, the policy against direct calls, the loop against a stand-in."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import model_doubles as doubles
import numpy as np
import pytest
import simpler_doubles
from PIL import Image
from scipy.spatial.transform import Rotation

from instructvla_ros import cli
from instructvla_ros.control.ensemble import ensemble_step
from instructvla_ros.datatypes import Observation
from instructvla_ros.errors import CheckpointError, ConfigError, ObservationError, SetupError, TaskError
from instructvla_ros.evaluation import simpler, simpler_report
from instructvla_ros.evaluation.benchmark_page import published
from instructvla_ros.evaluation.simpler_policy import (
    SETUPS,
    VIEW,
    ActionConverter,
    SimplerPolicy,
    find_setup,
    proprio_of,
)
from instructvla_ros.evaluation.simpler_tasks import (
    column_rates,
    plain_mean,
    read_suite,
    resolve_env,
    robot_mean,
)
from instructvla_ros.policy import HoldPolicy, make_chunk

GOOGLE, WIDOWX = SETUPS['google_robot'], SETUPS['widowx_bridge']
REALDATA = Path(__file__).resolve().parents[2] / 'shared' / 'realdata'
HALF = math.pi / 2


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
        from instructvla_ros.datatypes import Reasoning

        self.thoughts += 1
        words = f'words {self.thoughts}'
        return Reasoning(f'say-{self.thoughts}', observation.stamp_ns, observation.instruction, words)

    def infer(self, observation, reasoning):
        self.seen.append(observation)
        steps = np.asarray(self.chunks(self.calls), float)
        self.calls += 1
        return make_chunk(self, observation, steps, 0.2, 0.0, reasoning)

    def answer(self, observation, question):
        raise NotImplementedError


# -- conversions ------------------------------------------------------------------------------------------------


def test_translation_and_rotation_by_hand():
    """Roll, then pitch of 90 degrees about the fixed axes.

    Roll 90 about x takes (x, y, z) to (x, z, -y); pitch 90 about the fixed y takes (x, y, z) to (z, y, -x). After both,
    e_x -> e_x -> -e_z, e_y -> e_z -> e_x, e_z -> -e_y -> -e_y: the matrix with columns (0,0,-1), (1,0,0), (0,-1,0).
    Its trace is 0, so the angle is acos(-1/2) = 120 degrees; the axis is the vector of the skew part
    (R32-R23, R13-R31, R21-R12) = (-1-0, 0+1, 0-1) / sqrt 3 = (-1, 1, -1) / sqrt 3. Wrong order would give another sign.
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
    if setup is WIDOWX:
        assert [a['gripper'][0] for _, a in got] == [2.0 * (g > 0.5) - 1.0 for g in openness]


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


# -- the task lists ---------------------------------------------------------------------------------------------


def test_task_lists_have_the_published_counts():
    suite = read_suite('simplerenv_instruct')
    counts = {c.name: [len(x.trials()) for x in suite.of(c.name)] for c in suite.columns}
    assert (len(counts['aggregation']), sum(counts['aggregation'])) == (50, 745)
    assert (len(counts['situated']), sum(counts['situated'])) == (30, 393)
    classic = read_suite('simplerenv')
    trials = {c.name: sum(len(x.trials()) for x in classic.of(c.name)) for c in classic.columns}
    # Visual matching as SimplerEnv's paper counts it; WidowX 24 each.
    assert [trials[c] for c in ('coke_vm', 'near_vm', 'drawer_vm', 'put_vm')] == [300, 240, 216, 108]
    assert [trials[c] for c in ('spoon', 'carrot', 'stack', 'eggplant')] == [24] * 4
    steps = {x.max_steps for x in classic.launches if x.setup == 'google_robot'}
    assert steps == {80, 113, 200} and {x.max_steps for x in classic.of('spoon')} == {120}


def test_robot_start_by_hand():
    """Base quaternion wxyz (0, 0, 0, 1) is a half turn about z; a yaw of -0.09 on top leaves pi - 0.09."""
    near = read_suite('simplerenv').of('near_vm')[0].trials()[0]
    np.testing.assert_allclose(near.robot_quat, [math.cos((math.pi - 0.09) / 2), 0, 0, math.sin((math.pi - 0.09) / 2)])
    options = near.reset_options()
    assert options['obj_init_options'] == {'episode_id': 0}
    np.testing.assert_allclose(options['robot_init_options']['init_xy'], [0.35, 0.21])


def test_environments_are_found_by_their_stem():
    suite = read_suite('simplerenv_instruct')
    by = {x.env: x for x in suite.launches}
    ids = ['AltOpenTopDrawerCustomInScene-v0', 'AltOpenTopDrawer2CustomInScene-v0', 'FreeGraspSinglePearInScene-v1']
    assert resolve_env(by['AltOpenTopDrawer'], ids) == ids[0]
    assert resolve_env(by['AltOpenTopDrawer2'], ids) == ids[1]
    pears = [x for x in suite.launches if x.env == 'FreeGraspSinglePear']
    assert resolve_env(pears[1], ids) == ids[2]
    with pytest.raises(TaskError, match='FreeGraspSinglePear'):
        resolve_env(pears[0], ids)
    with pytest.raises(TaskError, match='several'):
        resolve_env(by['AltOpenTopDrawer'], [*ids, 'AltOpenTopDrawerOther-v0'])
    exact = read_suite('simplerenv').launches[0]
    assert resolve_env(exact, [exact.env, exact.env + '0']) == exact.env


def test_a_suite_file_is_checked(tmp_path):
    file = tmp_path / 'mine.yaml'
    for text, what in (
        ('a: [', 'not YAML'),
        ('name: x', 'not a suite'),
        ('name: x\ntitle: x\ncolumns: {}\ntasks: [{name: a, steps: 3}]', 'unknown key'),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=what):
            read_suite(file)
    with pytest.raises(ConfigError, match='cannot read'):
        read_suite(tmp_path / 'none.yaml')
    with pytest.raises(TaskError, match='drawer_vm'):
        read_suite('simplerenv').choose(['drawer'])


def test_published_means_are_reproduced():
    """The averages that the paper prints, from its own columns, by the rule that fits each row."""
    suite, source = read_suite('simplerenv'), published()['simplerenv']
    columns = source['columns']
    rows = {r['name']: (dict(zip(columns, r['values'], strict=True)), r['printed_mean']) for r in source['rows']}
    for name in ('RT-1-X', 'OpenVLA-7B', 'SpatialVLA-3B', 'GR00T-N1.5-3B (S)'):
        assert plain_mean(suite, rows[name][0]) == pytest.approx(rows[name][1], abs=0.1)
    for name in ('OpenVLA (FT)', 'Magma-8B (sampling)', 'InstructVLA-Generalist'):
        assert robot_mean(suite, rows[name][0]) == pytest.approx(rows[name][1], abs=0.1)
    assert robot_mean(suite, rows['RT-2-X'][0]) is None
    instruct = read_suite('simplerenv_instruct')
    for row in published()['simplerenv_instruct']['rows']:
        scores = dict(zip(('aggregation', 'situated'), row['values'], strict=True))
        assert plain_mean(instruct, scores) == pytest.approx(row['printed_mean'], abs=0.21)


def test_a_column_is_the_mean_of_its_launches_not_of_its_trials():
    suite = read_suite('simplerenv_instruct')
    rates = {x.name: 0.5 for x in suite.launches}
    first = suite.of('aggregation')[0].name
    rates[first] = 1.0
    assert column_rates(suite, rates)['aggregation'] == pytest.approx(100 * (49 * 0.5 + 1) / 50)
    del rates[first]
    assert column_rates(suite, rates) == {'aggregation': None, 'situated': 50.0}


# -- the loop ---------------------------------------------------------------------------------------------------


@pytest.fixture
def coke(monkeypatch, tmp_path):
    """SimplerEnv's stand-in with the coke can, and the suite cut to one launch of four trials and six steps."""
    gym = simpler_doubles.Gym(['GraspSingleOpenedCokeCanInScene-v0'])
    gym.install(monkeypatch, tmp_path / 'assets')
    suite = read_suite('simplerenv')
    launch = replace(suite.of('coke_vm')[0], object_x=(0.0, 0.1), object_y=(0.2, 0.3), max_steps=6)
    return gym, replace(suite, launches=(launch,))


def forward(speed):
    def chunk(n):
        steps = np.zeros((4, 7))
        steps[:, 0], steps[:, 6] = speed, 1.0
        return steps

    return chunk


def test_the_loop_asks_the_environment_what_simplerenv_asks(coke, tmp_path):
    gym, suite = coke
    inner = Scripted(forward(0.01))
    policy = SimplerPolicy(inner, GOOGLE, sentence_period=4)
    job = simpler.Run(suite, tmp_path / 'run', lambda setup, seed: policy, {'policy': 'x'}, simpler.SimplerEnv().make,
                      simpler.Options(videos='none'))  # fmt: skip
    rows = list(job.run())
    assert len(rows) == job.total == 4 and all(r['success'] for r in rows) and not job.missing()
    kind, env_id, arguments = gym.log[0]
    assert (kind, env_id) == ('make', 'GraspSingleOpenedCokeCanInScene-v0')
    assert arguments['obs_mode'] == 'rgbd' and arguments['robot'] == 'google_robot_static'
    assert arguments['control_freq'] == 3 and arguments['sim_freq'] == 513 and arguments['max_episode_steps'] == 6
    assert arguments['lr_switch'] is True and arguments['urdf_version'] is None
    assert arguments['rgb_overlay_path'].endswith('real_inpainting/google_coke_can_real_eval_1.png')
    assert arguments['rgb_overlay_cameras'] == ['overhead_camera']
    resets = [e for e in gym.log if e[0] == 'reset']
    spots = [tuple(e[2]['obj_init_options']['init_xy']) for e in resets]
    assert spots == [(0.0, 0.2), (0.0, 0.3), (0.1, 0.2), (0.1, 0.3)]
    np.testing.assert_allclose(resets[0][2]['robot_init_options']['init_rot_quat'], [0, 0, 0, 1])
    steps = [e for e in gym.log if e[0] == 'step']
    assert len(steps) == 4 * 6  # solved or not, until the environment truncates
    np.testing.assert_allclose(steps[0][1], [0.01, 0, 0, 0, 0, 0, 0])
    assert gym.log[-1] == ('close', env_id)
    row = rows[0]
    assert row['steps'] == 6 and row['solved_at'] == 6 and row['stats']['moved'] is True
    assert row['instructions'] == ['open top drawer', 'place the apple into the drawer']
    assert [s[0] for s in row['sentences']] == [0, 3]  # the new instruction starts over
    np.testing.assert_allclose(inner.seen[1].proprio[:3], [0.51, 0.1, 0.9])  # the arm's state of that moment


def test_success_is_what_holds_at_the_end(coke, tmp_path):
    gym, suite = coke
    gym.goal = 0.025

    def there_and_back(n):
        steps = np.zeros((1, 7))
        steps[0, 0] = 0.01 if n < 3 else -0.01
        return steps

    policy = SimplerPolicy(Scripted(there_and_back), GOOGLE, sentence_period=0)
    env = simpler.SimplerEnv().make(suite.launches[0])
    # The stand-in renames its task after three steps, which resets the policy: keep one instruction here.
    env.unwrapped.get_language_instruction = lambda: 'pick coke can'
    result = simpler.run_episode(env, policy, suite.launches[0], suite.launches[0].trials()[0])
    assert not result.success and result.solved_at == 3


def test_a_run_continues_where_it_was_killed(coke, tmp_path):
    gym, suite = coke
    policy = SimplerPolicy(Scripted(forward(0.01)), GOOGLE, sentence_period=0)

    def job():
        return simpler.Run(suite, tmp_path / 'run', lambda setup, seed: policy, {'policy': 'x'},
                           simpler.SimplerEnv().make, simpler.Options(seeds=(0, 1), videos='none'))  # fmt: skip

    first = job().run()
    done = [next(first)['trial'] for _ in range(3)]
    first.close()
    file = tmp_path / 'run' / simpler.RESULTS
    with file.open('a') as out:
        out.write('{"launch": "pick co')  # the line that a kill cut short
    again = job()
    assert len(again.rows) == 3 and len(again.missing()) == 5
    rest = list(again.run())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rest) == 5 and len({simpler.row_key(r) for r in lines}) == len(lines) == 8
    assert [r['trial'] for r in lines[:3]] == done and not job().missing()
    with pytest.raises(ConfigError, match="policy was 'x', is 'y'"):
        simpler.Run(suite, tmp_path / 'run', lambda a, b: policy, {'policy': 'y'}, simpler.SimplerEnv().make,
                    simpler.Options())  # fmt: skip


def test_a_failure_leaves_a_video_that_plays(coke, tmp_path):
    pytest.importorskip('imageio_ffmpeg')
    import imageio.v2 as imageio

    gym, suite = coke
    gym.goal = 1.0
    policy = SimplerPolicy(Scripted(forward(0.01)), GOOGLE, sentence_period=0)
    job = simpler.Run(suite, tmp_path / 'run', lambda a, b: policy, {}, simpler.SimplerEnv().make,
                      simpler.Options(limit=1))  # fmt: skip
    (row,) = job.run()
    assert not row['success'] and row['video']
    with imageio.get_reader(tmp_path / 'run' / row['video']) as reader:
        assert sum(1 for _ in reader) == 7  # six steps and the last picture


def test_an_environment_that_is_not_there_does_not_end_the_run(coke, tmp_path):
    gym, suite = coke
    odd = replace(suite.launches[0], name='pick coke can: gone', env='NoSuchScene')
    suite = replace(suite, launches=(odd, suite.launches[0]))
    policy = SimplerPolicy(Scripted(forward(0.01)), GOOGLE, sentence_period=0)
    job = simpler.Run(suite, tmp_path / 'run', lambda a, b: policy, {}, simpler.SimplerEnv().make,
                      simpler.Options(videos='none'))  # fmt: skip
    assert len(list(job.run())) == 4 and len(job.missing()) == 4
    assert 'NoSuchScene' in job.unavailable['pick coke can: gone']


def test_without_simpler_env_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, 'simpler_env', None)
    with pytest.raises(SetupError, match='git clone --recurse-submodules'):
        simpler.SimplerEnv()


def test_pictures_that_are_missing_are_named():
    with pytest.raises(SetupError, match='image/overhead_camera/rgb, only: other'):
        simpler.image_of({'image': {'other': {}}}, 'overhead_camera')


# -- the numbers and the page -----------------------------------------------------------------------------------


def rows_of(suite, success, seed=0, launches=None):
    return [
        {'launch': x.name, 'column': x.column, 'trial': t.key, 'seed': seed, 'success': success(x, k)}
        for x in (launches if launches is not None else suite.launches)
        for k, t in enumerate(x.trials())
    ]


def test_summary_counts_only_complete_columns():
    suite = read_suite('simplerenv_instruct')
    rows = rows_of(suite, lambda x, k: k % 2 == 0, launches=suite.of('situated'))
    rows += rows_of(suite, lambda x, k: True, launches=suite.of('aggregation')[:3])
    got = simpler_report.summarize(suite, rows)
    assert got['columns']['aggregation']['score'] is None and got['means']['plain'] is None
    # Even counts give 50 %, nine trials 5 of 9: 12 + 3 + 2 launches of the former, 13 of the latter.
    expected = 100 * (17 * 0.5 + 13 * 5 / 9) / 30
    assert got['columns']['situated']['score'] == pytest.approx(expected)
    assert got['columns']['aggregation']['trials'] == 48 and got['columns']['aggregation']['wanted'] == 745
    assert got['columns']['situated']['deviation'] is None


def test_summary_over_seeds_has_the_deviation():
    suite = read_suite('simplerenv_instruct')
    rows = [r for s, good in ((0, 1), (1, 0), (2, 1)) for r in rows_of(suite, lambda x, k, g=good: bool(g), seed=s)]
    got = simpler_report.summarize(suite, rows)
    assert got['seeds'] == [0, 1, 2] and got['columns']['situated']['score'] == pytest.approx(200 / 3)
    assert got['columns']['situated']['deviation'] == pytest.approx(100 * math.sqrt(1 / 3))
    low, high = got['columns']['situated']['interval']
    assert low < 200 / 3 < high and high - low < 6


def test_page_has_every_system_and_says_what_was_not_measured(tmp_path):
    suite = read_suite('simplerenv_instruct')
    summary = simpler_report.summarize(suite, rows_of(suite, lambda x, k: True, launches=suite.of('situated')))
    page = simpler_report.write(tmp_path, {suite.name: summary}, name='mine <1>', unavailable={'a': 'not there'})
    text = page.read_text()
    for system in ('OpenVLA-7B', 'OpenVLA (FT)', 'OpenVLA (FT &amp; GPT-4o)', 'SpatialVLA-3B', 'Magma-8B',
                   'InstructVLA-Expert (S)', 'InstructVLA-Generalist', 'mine &lt;1&gt;'):  # fmt: skip
        assert f'<td>{system}' in text, system
    row = [line for line in text.splitlines() if 'mine &lt;1&gt;' in line]
    assert row[0].count('not measured') == 14  # SimplerEnv: twelve columns and two means
    assert row[1].count('not measured') == 2 and '100.0' in row[1]
    assert 'http' not in text.split('<main', 1)[1]
    assert json.loads((tmp_path / 'summary.json').read_text())['unavailable'] == {'a': 'not there'}


def test_command_line_lists_runs_and_continues(coke, tmp_path, capsys, monkeypatch):
    assert cli.main(['evaluate', 'simpler', '--list', '--json']) == 0
    listed = json.loads(capsys.readouterr().out)
    assert sum(listed['simplerenv_instruct'].values()) == 1138
    out = str(tmp_path / 'out')
    command = ['evaluate', 'simpler', '--policy', 'hold', '--only', 'coke_vm', '--limit', '1', '--videos', 'none']
    command += ['--out', out]
    assert cli.main([*command, '--json']) == 0
    got = json.loads(capsys.readouterr().out)
    column = got['suites']['simplerenv']['columns']['coke_vm']
    assert column['trials'] == 12 and column['score'] is None and column['wanted'] == 300
    gym, _ = coke
    made = len(gym.made)
    assert cli.main(command) == 0 and len(gym.made) == made  # nothing left to do
    assert 'not measured' in capsys.readouterr().out
    assert cli.main(['evaluate', 'simpler', '--policy', 'hold', '--only', 'teapot', '--out', out]) == 2
    assert 'teapot' in capsys.readouterr().err
    assert cli.main(['evaluate', 'simpler', '--out', out]) == 2
    assert '--checkpoint' in capsys.readouterr().err
