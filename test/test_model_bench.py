"""The path the benchmark measures against gives the same numbers and does the work it claims to do."""

from __future__ import annotations

import model_doubles as doubles
import pytest

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.model.bench import measure, with_stage  # noqa: E402
from instructvla_ros.model.config import Adapters  # noqa: E402
from instructvla_ros.model.fast import FastPath  # noqa: E402
from instructvla_ros.model.plain import ReferenceOrder  # noqa: E402


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


def test_a_budget_ends_the_repeats_but_not_before_the_first():
    found = measure(with_stage(doubles.small_config(), 2), repeats=10_000, sentence=3, budget=0.05)
    assert all(1 <= t.repeats < 1000 for t in found)
