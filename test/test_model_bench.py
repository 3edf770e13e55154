"""The path the benchmark measures against gives the same numbers and does the work it claims to do."""

from __future__ import annotations

import model_doubles as doubles
import pytest

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.model.bench import STEPS, measure, random_model, twin, with_stage  # noqa: E402
from instructvla_ros.model.config import Adapters, preset  # noqa: E402
from instructvla_ros.model.fast import FastPath  # noqa: E402
from instructvla_ros.model.memory import Births, serving_memory  # noqa: E402
from instructvla_ros.model.plain import ReferenceOrder  # noqa: E402
from instructvla_ros.model.static import make_engine  # noqa: E402


@pytest.mark.parametrize('count', [1, 2])
def test_reference_order_gives_the_same_numbers(tmp_path, count):
    adapters = Adapters(count=count, rank=4, alpha=8.0, gate_depth=3, gate_size=8)
    bundle = doubles.small_bundle(tmp_path, adapters=adapters)
    model, prompts = bundle.model, bundle.prompts
    pixels, views, proprio, noise = doubles.inputs(bundle.config)
    question = torch.from_numpy(prompts.reason('lift up'))[None]
    action = torch.from_numpy(prompts.action('lift up', 'I will move.'))[None]
    plain, fast = ReferenceOrder(model), FastPath(model)
    session = fast.begin(pixels)
    sentence = plain.sentence(pixels, question, end_id=prompts.end_id)
    assert sentence == fast.sentence(session, question, end_id=prompts.end_id)
    latent = plain.latent(pixels, action)
    torch.testing.assert_close(fast.latent(session, action), latent, rtol=1e-4, atol=2e-5)
    for mask in ('bias', 'block'):
        torch.testing.assert_close(
            fast.chunk(latent, views, proprio, noise, mask=mask),
            plain.chunk(latent, views, proprio, noise, mask=mask),
            rtol=1e-4,
            atol=2e-5,
        )


def test_reference_order_runs_the_dead_blocks_and_the_tower_twice(tmp_path):
    bundle = doubles.small_bundle(tmp_path)
    pixels, views, proprio, noise = doubles.inputs(bundle.config)
    plain, runs = ReferenceOrder(bundle.model), []
    assert len(plain.dead) == 2
    hooks = [plain.dead[-1].register_forward_hook(lambda *_: runs.append('dead'))]
    hooks += [bundle.model.vlm.tower.register_forward_hook(lambda *_: runs.append('tower'))]
    hooks += [bundle.model.vlm.lm_head.register_forward_hook(lambda _, args, out: runs.append(args[0].shape[1]))]
    action = torch.from_numpy(bundle.prompts.action('lift up'))[None]
    plain.chunk(plain.latent(pixels, action), views, proprio, noise)
    for hook in hooks:
        hook.remove()
    assert runs == ['tower', action.shape[1], action.shape[1], 'dead']


@pytest.mark.parametrize('stage', [1, 2])
def test_measure_times_every_step(stage):
    found = measure(with_stage(doubles.small_config(), stage), repeats=1, sentence=3)
    assert [t.step for t in found] == [
        'action only, bias',
        'action only, block',
        'sentence of 3 + action',
        'latent reused every second step',
    ]
    for timing in found:
        assert timing.plain > 0 and timing.fast > 0 and timing.ratio == timing.plain / timing.fast
        assert timing.repeats == 1 and timing.difference < 1e-4 and timing.to_dict()['step'] == timing.step
        assert timing.bfloat16 is None and timing.to_dict()['bfloat16_ratio'] is None


@pytest.mark.parametrize('stage', [1, 2])
def test_bfloat16_beside_float32(stage):
    config = with_stage(doubles.small_config(), stage)
    found = measure(config, repeats=1, sentence=3, only=('bias', 'reuse'), bfloat16=True)
    assert [t.step for t in found] == ['action only, bias', 'latent reused every second step']
    for timing in found:
        assert timing.bfloat16 and timing.difference < 1e-4 < timing.rounding < 0.5
        assert timing.to_dict()['bfloat16_ratio'] == timing.fast / timing.bfloat16


def test_fixed_shapes_side_by_side():
    found = measure(with_stage(doubles.small_config(), 2), repeats=1, sentence=3, capture='on')
    assert all(t.difference < 1e-4 for t in found) and len(found) == 4


@pytest.mark.parametrize('merged', [False, True])
def test_a_twin_has_the_same_weights_and_does_not_touch_the_first(merged):
    model = random_model(with_stage(doubles.small_config(), 1), torch.device('cpu'), torch.float32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    other = twin(model, merged=merged)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert len(shared) == len(list(model.parameters())) - (18 * 3 if merged else 0)  # base, A and B of 3 layers of 6
    assert len(list(other.parameters())) == len(list(model.parameters())) - (36 if merged else 0)


def test_births_are_counted_while_they_live():
    with Births() as births:
        x = torch.empty(1000)
        y = x.view(10, 100)
        assert births.live == 4000
        z = x + 1
        x.add_(1)
        assert births.live == births.peak == 8000
        del z, x
        assert births.live == 4000, 'the view keeps it'
        del y
    assert births.live == 0 and births.peak == 8000


@pytest.mark.parametrize('stage', [1, 2])
def test_memory_is_what_a_step_really_holds(stage):
    config = with_stage(doubles.small_config(), stage)
    need = serving_memory(config, torch.float32, sessions=1)
    assert need['total'] == need['weights'] + need['caches'] + need['activations']
    model = random_model(config, torch.device('cpu'), torch.float32)
    model = twin(model, merged=True) if stage == 1 else model
    assert need['weights'] == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    engine = make_engine(model, 'on')
    pixels, views, proprio, noise = doubles.inputs(config)
    latent = torch.randn(1, config.queries, config.language.hidden_size)
    with torch.no_grad(), Births() as births:
        session = engine.begin(pixels)
    made = births.peak - births.live
    assert sum(c.data.nbytes for c in session.slot.caches) == need['caches']
    assert 0 < made <= need['vision tower activations'] <= births.peak
    with torch.no_grad(), Births() as births:
        engine._act(latent, views, noise, proprio, steps=10, mask='bias')
    given = sum(t.nbytes for t in (latent, views, noise, proprio))
    # Fused attention on a real device holds no scores: less, but not by much.
    assert 0.5 * need['chunk activations'] < births.peak + given <= need['chunk activations']


def test_the_full_model_fits_into_six_and_a_half_gigabytes():
    for stage in (1, 2):
        need = serving_memory(with_stage(preset('eagle2_2b'), stage), torch.bfloat16)
        assert 4.5e9 < need['weights'] < need['total'] < 6.5e9


def test_a_budget_ends_the_repeats_but_not_before_the_first():
    found = measure(with_stage(doubles.small_config(), 2), repeats=10_000, sentence=3, budget=0.05)
    assert all(1 <= t.repeats < 1000 for t in found)


def test_the_command_offers_the_steps_there_are():
    from instructvla_ros.commands import bench

    assert bench.STEPS == STEPS
