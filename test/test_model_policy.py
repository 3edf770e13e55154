"""The learned policy: state, periods, threads, and what a chunk says about where it came from."""

from __future__ import annotations

import dataclasses
import threading

import model_doubles as doubles
import numpy as np
import pytest

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.config import load as load_config  # noqa: E402
from instructvla_ros.config import replace  # noqa: E402
from instructvla_ros.datatypes import Ask, Observation, Reasoning, ReasoningKind  # noqa: E402
from instructvla_ros.errors import CheckpointError, ConfigError, ObservationError  # noqa: E402
from instructvla_ros.model import policy as policy_module  # noqa: E402
from instructvla_ros.model.checkpoint import convert, save  # noqa: E402
from instructvla_ros.model.config import Adapters  # noqa: E402
from instructvla_ros.model.device import pick_device  # noqa: E402
from instructvla_ros.model.images import dino_pixels, join_views, siglip_pixels  # noqa: E402
from instructvla_ros.model.packed import PackedLinear  # noqa: E402
from instructvla_ros.model.policy import InstructVLAPolicy  # noqa: E402
from instructvla_ros.policy import (  # noqa: E402
    BatchPolicy,
    Policy,
    PreparingPolicy,
    SharedPolicy,
    act_alone,
    make_policy,
)
from instructvla_ros.resources import config_file  # noqa: E402
from instructvla_ros.settings import Embodiment, PolicySettings  # noqa: E402


@pytest.fixture(scope='module')
def embodiment():
    return load_config(Embodiment, config_file('franka.yaml'))


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return doubles.small_bundle(tmp_path_factory.mktemp('small'))


def settings(**changes):
    return PolicySettings(policy='instructvla', checkpoint='x', horizon=6, **changes)


@pytest.fixture
def policy(bundle, embodiment):
    return InstructVLAPolicy(bundle, settings(), embodiment)


def observation(embodiment, stamp=1_000, seed=0, instruction='put the red cube in the bowl', **changes):
    names = list(embodiment.views)
    values = {
        'stamp_ns': stamp,
        'views': {n: doubles.image(48, 64, seed + i) for i, n in enumerate(names)},
        'proprio': np.array([0.4, 0.1, 0.2, 0.0, 0.1, 0.2, 0.0, 1.0]),
        'q': np.zeros(7),
        'dq': np.zeros(7),
        'frame_id': embodiment.base_frame,
        'instruction': instruction,
    }
    return Observation(**{**values, **changes})


def test_chunk_is_the_plain_model_on_the_same_noise(bundle, embodiment, policy):
    seen, config = observation(embodiment), bundle.config
    chunk = policy.with_settings(resize='exact').infer(seen, None)
    frames = [seen.views[n] for n in embodiment.views]
    pixels = torch.from_numpy(siglip_pixels(join_views(frames), config.vision.image_size))[None]
    views = torch.from_numpy(np.stack([dino_pixels(f, config.dino.image_size) for f in frames]))[None]
    statistics = bundle.dataset()
    proprio = torch.from_numpy(statistics.normalize_proprio(seen.proprio).astype(np.float32))[None]
    latent = bundle.model.latent(torch.from_numpy(bundle.prompts.action(seen.instruction))[None], pixels)
    noise = bundle.model.noise(1, torch.Generator().manual_seed(0))
    raw = bundle.model.chunk(latent, views, proprio, noise)[0].numpy().astype(np.float64)
    expected = statistics.unnormalize(statistics.finish(raw))
    np.testing.assert_allclose(chunk.steps, expected, atol=1e-5)
    assert set(chunk.steps[:, 6]) <= {0.0, 1.0}
    assert chunk.steps.shape == (6, 7) and chunk.policy == 'instructvla' and chunk.reasoning_id == ''
    assert chunk.observation_stamp_ns == 1_000 and chunk.created_stamp_ns > 1_000 and chunk.model_latency > 0
    np.testing.assert_allclose(chunk.reference_pose[:3, 3], [0.4, 0.1, 0.2])


def test_without_noise_equal_pictures_give_equal_actions(bundle, embodiment, policy):
    seen = observation(embodiment)
    still = policy.with_settings(noise=0.0)
    first = still.infer(seen, None)
    np.testing.assert_array_equal(still.infer(seen, None).steps, first.steps)
    assert (first.steps != policy.infer(seen, None).steps).any()


def test_the_quick_resize_changes_a_chunk_less_than_the_arm_can_show(embodiment, policy):
    statistics = policy._statistics
    span = (statistics.q99 - statistics.q01)[:6]
    for seed in range(5):
        seen = observation(embodiment, seed=seed, views={n: doubles.image(480, 640, seed) for n in embodiment.views})
        quick, exact = (policy.with_settings(resize=r).infer(seen, None).steps for r in ('quick', 'exact'))
        assert (quick != exact).any()
        assert (np.abs(quick - exact)[:, :6] < 0.01 * span).all()


def test_the_checkpoint_says_how_many_euler_steps_unless_the_settings_do(bundle, embodiment):
    short = dataclasses.replace(bundle.model.config, euler_steps=3)
    asked = []
    for config, wanted in ((bundle.model.config, 0), (short, 0), (short, 7)):
        bundle.model.config, usual = config, bundle.model.config
        made = InstructVLAPolicy(bundle, settings(euler_steps=wanted, realtime='guided', realtime_beta=5.0), embodiment)
        bundle.model.config = usual
        plain = made._engine.chunk
        made._engine.chunk = lambda *a, plain=plain, **k: asked.append((k['steps'], k['guide'])) or plain(*a, **k)
        made.infer(observation(embodiment, stamp=1_000), None)
        made.infer(observation(embodiment, stamp=200_001_000), None)
    assert [steps for steps, _ in asked] == [10, 10, 3, 3, 7, 7]
    assert [guide.beta for _, guide in asked if guide is not None] == [5.0, 3.0, 5.0]  # never beyond the steps


@pytest.mark.parametrize(('realtime', 'packed'), [('off', True), ('guided', False)])
def test_guided_chunks_need_the_derivative_of_the_expert(realtime, packed, tmp_path, embodiment, monkeypatch):
    doubles.needs_packing()
    monkeypatch.setattr('instructvla_ros.model.fast.pays_from', lambda number: 0)
    own = doubles.small_bundle(tmp_path / 'small')
    InstructVLAPolicy(own, settings(realtime=realtime), embodiment)
    assert isinstance(own.model.expert.head[0], PackedLinear) == packed
    assert own.model.vlm.decoder.layers[0].mlp.up_proj.weight is None


def test_prepared_pictures_are_used_once_and_change_nothing(embodiment, policy, monkeypatch):
    seen, other = observation(embodiment), observation(embodiment, seed=9)
    expected = policy.infer(seen, None).steps
    made = []
    monkeypatch.setattr(policy_module, 'siglip_pixels', lambda *a: made.append(1) or siglip_pixels(*a))
    policy.reset()
    assert isinstance(policy, PreparingPolicy)
    policy.prepare(seen)
    policy.prepare(other)
    np.testing.assert_array_equal(policy.infer(seen, None).steps, expected)
    policy.think(seen)
    assert len(made) == 2
    with pytest.raises(ObservationError, match='lacks the views'):
        policy.prepare(observation(embodiment, views={}))
    twin = observation(embodiment)  # equal, but another object
    policy.prepare(twin)
    assert len(made) == 3


@pytest.mark.parametrize(
    'changes',
    # The measured time of the model would decide how much of a chunk is kept.
    [{}, {'latent_period': 3}, {'realtime': 'blend', 'realtime_measured': False}, {'noise': 0.0}],
    ids=('each', 'reused', 'chain', 'still'),
)
def test_many_observations_at_once_give_what_they_give_one_by_one(bundle, embodiment, changes):
    words = ['pick up the red cube'] * 22 + ['put it into the bowl'] * 5
    asks = [
        Ask(observation(embodiment, stamp=(k + 1) * 10**8, seed=k, instruction=text), think=k % 4 == 1)
        for k, text in enumerate(words)
    ]
    one, many = (InstructVLAPolicy(bundle, settings(**changes), embodiment) for _ in range(2))
    old = one.think(asks[0].observation)
    expected = list(one._one_by_one(asks, old))
    assert isinstance(many, BatchPolicy)
    for ask in asks:
        many.prepare(ask.observation, keep=len(asks))
    half = list(many.act_many(asks[:6], old))  # state goes on from call to call
    found = half + list(many.act_many(asks[6:], next(a.said for a in reversed(half) if a.said)))
    texts = [[a.said.text if a.said else None for a in acts] for acts in (expected, found)]
    assert texts[0] == texts[1] and sum(t is not None for t in texts[0]) == 7
    known = {old.id: -1, '': -2}
    said_at = [{a.said.id: k for k, a in enumerate(acts) if a.said} | known for acts in (expected, found)]
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a.chunk.steps, b.chunk.steps, atol=1e-5)
        assert said_at[0][a.chunk.reasoning_id] == said_at[1][b.chunk.reasoning_id]
        assert a.chunk.observation_stamp_ns == b.chunk.observation_stamp_ns
        assert a.chunk.instruction == b.chunk.instruction
    after = observation(embodiment, stamp=10**10, seed=99, instruction=words[-1])
    last = [next(a.said for a in reversed(acts) if a.said) for acts in (expected, found)]
    np.testing.assert_allclose(one.infer(after, last[0]).steps, many.infer(after, last[1]).steps, atol=1e-5)
    assert len(many._prepared) <= 2  # pictures are not kept behind their use


def test_it_is_a_policy(policy):
    assert isinstance(policy, Policy) and not policy.privileged and policy.name == 'instructvla'


def test_reset_makes_everything_start_over(embodiment, policy):
    first = policy.infer(observation(embodiment), None).steps
    second = policy.infer(observation(embodiment), None).steps
    assert np.abs(first - second).max() > 0  # the noise went on
    policy.reset()
    np.testing.assert_array_equal(policy.infer(observation(embodiment), None).steps, first)


def test_a_sentence_conditions_the_chunk_that_names_it(bundle, embodiment, policy):
    seen = observation(embodiment)
    partial = []
    policy.stream = partial.append
    said = policy.think(seen)
    assert said.kind is ReasoningKind.PLAN and said.instruction == seen.instruction and said.stamp_ns == seen.stamp_ns
    assert 0 < said.tokens <= bundle.config.max_new_tokens and said.latency > 0
    assert partial[-1].text == said.text and [p.tokens for p in partial] == list(range(1, said.tokens + 1))
    assert {p.id for p in partial} == {said.id} and said.final and not any(p.final for p in partial)
    chunk = policy.infer(seen, said)
    assert chunk.reasoning_id == said.id
    policy.reset()
    plain = policy.infer(seen, None)
    assert np.abs(plain.steps - chunk.steps).max() > 0 and plain.reasoning_id == ''
    policy.reset()
    np.testing.assert_allclose(policy.infer(seen, said).steps, chunk.steps, atol=1e-6)  # the same without the caches


def test_the_tower_runs_once_for_sentence_and_latent_of_one_frame(bundle, embodiment, policy):
    runs = []
    hook = bundle.model.vlm.tower.register_forward_hook(lambda *_: runs.append(1))
    seen = observation(embodiment)
    said = policy.think(seen)
    policy.infer(seen, said)
    assert len(runs) == 1
    policy.infer(observation(embodiment, stamp=2_000, seed=9), said)
    hook.remove()
    assert len(runs) == 2


def test_a_sentence_from_elsewhere_or_about_something_else(embodiment, policy):
    seen = observation(embodiment)
    foreign = Reasoning(id='say-1', stamp_ns=5, instruction=seen.instruction, text='I will move to the red cube.')
    assert policy.infer(seen, foreign).reasoning_id == 'say-1'
    other = Reasoning(id='say-2', stamp_ns=5, instruction='open the drawer', text='I will pull the handle.')
    policy.reset()
    assert policy.infer(seen, other).reasoning_id == ''


def test_latent_period(bundle, embodiment):
    policy = InstructVLAPolicy(bundle, settings(latent_period=3), embodiment)
    runs = []
    hook = bundle.model.vlm.tower.register_forward_hook(lambda *_: runs.append(1))
    for k in range(7):
        policy.infer(observation(embodiment, stamp=k), None)
    assert len(runs) == 3
    policy.infer(observation(embodiment, instruction='lift the bowl'), None)
    assert len(runs) == 4  # a new instruction needs a new latent
    policy.reset()
    policy.infer(observation(embodiment, instruction='lift the bowl'), None)
    hook.remove()
    assert len(runs) == 5


def test_answer_is_in_the_models_words_and_leaves_the_plan_alone(embodiment, policy):
    seen = observation(embodiment)
    said = policy.think(seen)
    answer = policy.answer(seen, 'What is on the table?')
    assert answer.kind is ReasoningKind.ANSWER and answer.instruction == 'What is on the table?' and answer.tokens > 0
    assert policy.infer(seen, said).reasoning_id == said.id
    policy.reset()
    assert policy.infer(seen, answer).reasoning_id == ''


def test_a_model_without_words_does_not_think(tmp_path, embodiment):
    silent = doubles.small_bundle(tmp_path, adapters=Adapters(count=1, rank=4, alpha=8.0), reasons=False)
    assert InstructVLAPolicy(silent, settings(), embodiment).think(observation(embodiment)) is None


def test_thinking_and_acting_at_the_same_time(bundle, embodiment, policy):
    seen = observation(embodiment)
    alone = policy.think(seen).text
    policy.reset()
    errors, texts = [], []

    def think():
        try:
            texts.extend(policy.think(seen).text for _ in range(5))
        except Exception as err:  # reported in the main thread
            errors.append(err)

    thread = threading.Thread(target=think)
    thread.start()
    chunks = [policy.infer(seen, None).steps for _ in range(10)]
    thread.join()
    assert not errors and texts == [alone] * 5
    policy.reset()
    for steps in chunks:
        np.testing.assert_allclose(policy.infer(seen, None).steps, steps, atol=1e-6)


def test_reset_cuts_a_sentence_short(embodiment, policy):
    policy.stream = lambda draft: policy.reset()
    seen = observation(embodiment)
    cut = policy.think(seen)
    assert cut.tokens == 1 and not cut.final
    policy.stream = None
    assert policy.think(seen).final


def test_reset_leaves_an_answer_alone(bundle, embodiment, policy):
    seen = observation(embodiment)
    whole = policy.answer(seen, 'What is on the table?')
    engine = policy._engine
    sentence, heard = engine.sentence, []

    def interrupted(*args, on_token, **kwargs):
        return sentence(*args, on_token=lambda token: (heard.append(token), policy.reset(), on_token(token)), **kwargs)

    engine.sentence = interrupted
    answer = policy.answer(seen, 'What is on the table?')
    assert answer.final and answer.text == whole.text and len(heard) == whole.tokens > 1


def test_bad_observations(embodiment, policy):
    seen = observation(embodiment)
    name = next(iter(embodiment.views))
    with pytest.raises(ObservationError, match=f'lacks the views {name}'):
        policy.infer(observation(embodiment, views={k: v for k, v in seen.views.items() if k != name}), None)
    with pytest.raises(ObservationError, match='one height'):
        policy.infer(observation(embodiment, views={**seen.views, name: doubles.image(20, 30)}), None)
    for text, message in (('', 'empty'), ('x' * 10_000, '10000 characters')):
        with pytest.raises(ObservationError, match=message):
            policy.infer(observation(embodiment, instruction=text), None)
        with pytest.raises(ObservationError, match=message):
            policy.think(observation(embodiment, instruction=text))
    assert policy.infer(seen, None).steps.shape == (6, 7)


def test_more_views_than_cameras(tmp_path, embodiment):
    many = doubles.small_bundle(tmp_path, views=len(embodiment.views) + 1)
    with pytest.raises(CheckpointError, match='add cameras'):
        InstructVLAPolicy(many, settings(), embodiment)


def test_made_from_settings(bundle, embodiment, tmp_path):
    folder = save(bundle, tmp_path / 'small')
    made = make_policy(replace(settings(mask='block', device='cpu', euler_steps=4), checkpoint=str(folder)), embodiment)
    assert made.checkpoint_revision and made.infer(observation(embodiment), None).checkpoint_revision
    made.warm_up()
    with pytest.raises(CheckpointError, match='no checkpoint at'):
        make_policy(replace(settings(), checkpoint=str(tmp_path / 'none')), embodiment)


def test_released_checkpoint_on_the_robot(embodiment, tmp_path):
    folder = convert(doubles.golden('wrist_stage1'), tmp_path / 'wrist', views=2)
    made = make_policy(replace(settings(), checkpoint=str(folder), dtype='bfloat16'), embodiment)
    chunk = made.infer(observation(embodiment), None)
    assert chunk.steps.shape == (6, 7) and np.isfinite(chunk.steps).all()
    assert made.answer(observation(embodiment), 'What is it?').tokens > 0


def test_devices():
    assert pick_device('cpu').type == 'cpu'
    with pytest.raises(ConfigError, match='allowed are'):
        pick_device('toaster')
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match='0 usable GPUs'):
            pick_device('cuda')
        assert pick_device('auto').type == 'cpu'


@pytest.mark.parametrize('changes', [{}, {'latent_period': 2}, {'realtime': 'guided', 'realtime_measured': False}])
def test_members_asked_together_do_what_each_does_alone(bundle, embodiment, changes):
    words = ('pick up the red cube', 'put the ball into the bowl', 'pick up the red cube')
    shared = InstructVLAPolicy(bundle, settings(**changes), embodiment)
    assert isinstance(shared, SharedPolicy)
    members = [shared, shared.member(), shared.member()]
    alone = [InstructVLAPolicy(bundle, settings(**changes), embodiment) for _ in members]
    said = [[None] * 3, [None] * 3]
    for k in range(5):
        # The third member joins late and the first starts over: rounds of every size, memories of unlike age.
        here = [m for m in range(3) if m < 2 or k > 1]
        if k == 3:
            members[0].reset()
            alone[0].reset()
            said[0][0] = said[1][0] = None
        seen = [observation(embodiment, stamp=(k + 1) * 10**8, seed=10 * k + m, instruction=words[m]) for m in here]
        asks = [Ask(o, think=(k + m) % 3 == 0) for m, o in zip(here, seen, strict=True)]
        found = shared.act_each([members[m] for m in here], asks, [said[0][m] for m in here])
        expected = [act_alone(alone[m], a, said[1][m]) for m, a in zip(here, asks, strict=True)]
        for m, a, b in zip(here, found, expected, strict=True):
            assert (a.said.text if a.said else None) == (b.said.text if b.said else None)
            np.testing.assert_allclose(a.chunk.steps, b.chunk.steps, atol=1e-5)
            said[0][m], said[1][m] = a.said or said[0][m], b.said or said[1][m]
            assert (a.chunk.reasoning_id == '') == (b.chunk.reasoning_id == '')
            assert a.chunk.reasoning_id in ('', getattr(said[0][m], 'id', ''))
    assert len({id(m._bundle.model) for m in members}) == 1, 'one copy of the weights'
