"""The fast path equals the plain one, and really leaves work out."""

from __future__ import annotations

import sys

import model_doubles as doubles
import numpy as np
import pytest

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.config import replace  # noqa: E402
from instructvla_ros.errors import CheckpointError  # noqa: E402
from instructvla_ros.model.checkpoint import save  # noqa: E402
from instructvla_ros.model.config import Adapters  # noqa: E402
from instructvla_ros.model.fast import FastPath, lay_out_weights  # noqa: E402
from instructvla_ros.model.packed import PackedLinear, can_pack, pays_from  # noqa: E402
from instructvla_ros.model.realtime import Guide  # noqa: E402

CLOSE = {'rtol': 1e-4, 'atol': 2e-5}
VARIANTS = {
    'stage 2': {},
    'stage 1': {'adapters': Adapters(count=1, rank=4, alpha=8.0), 'views': 1, 'proprio': False},
    'no adapters': {'adapters': Adapters(count=0)},
}


@pytest.fixture(scope='module', params=VARIANTS)
def bundle(request, tmp_path_factory):
    return doubles.small_bundle(tmp_path_factory.mktemp('small'), **VARIANTS[request.param])


def ids_of(bundle, instruction, response=None, batch=1):
    return torch.from_numpy(bundle.prompts.action(instruction, response))[None].expand(batch, -1)


@pytest.mark.parametrize('batch', [1, 3])
def test_sentence_and_logits(bundle, batch):
    pixels, *_ = doubles.inputs(bundle.config, batch)
    ids = torch.from_numpy(bundle.prompts.reason('put the red cube in the bowl'))[None].expand(batch, -1)
    plain, fast = [], []
    end = bundle.prompts.end_id
    expected = bundle.model.sentence(ids, pixels, end_id=end, logits=plain)
    engine = FastPath(bundle.model)
    assert engine.sentence(engine.begin(pixels), ids, end_id=end, logits=fast) == expected
    torch.testing.assert_close(torch.stack(fast), torch.stack(plain), **CLOSE)
    assert len(fast) == bundle.config.max_new_tokens or all(len(s) <= len(fast) for s in expected)


def test_weights_laid_out_for_serving_are_the_same_weights(tmp_path):
    bundle = doubles.small_bundle(tmp_path / 'small')
    model = bundle.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pixels, *_ = doubles.inputs(bundle.config, 1)
    ids = ids_of(bundle, 'lift up', None, 1)
    expected = model.latent(ids, pixels)
    lay_out_weights(model)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    moved = model.vlm.decoder.layers[0].mlp.up_proj.weight
    assert moved.t().is_contiguous() and not moved.is_contiguous()
    torch.testing.assert_close(model.latent(ids, pixels), expected, **CLOSE)


@pytest.mark.parametrize('variant', VARIANTS)
def test_packed_weights_give_the_same_and_cannot_be_saved(variant, tmp_path):
    doubles.needs_packing()
    bundle = doubles.small_bundle(tmp_path / 'small', **VARIANTS[variant])
    model, config = bundle.model, bundle.config
    pixels, views, proprio, noise = doubles.inputs(config, 2)
    question = torch.from_numpy(bundle.prompts.reason('lift up'))[None].expand(2, -1)
    ids = ids_of(bundle, 'lift up', None, 2)

    def run(engine):
        said = engine.sentence(engine.begin(pixels), question, end_id=bundle.prompts.end_id)
        latent = engine.latent(engine.begin(pixels), ids)
        return said, latent, *(engine.chunk(latent, views, proprio, noise, mask=m) for m in ('bias', 'block'))

    before = sum(p.numel() for p in model.parameters())
    expected = run(FastPath(model))
    lay_out_weights(model, pack_from=0)
    assert sum(p.numel() for p in model.parameters()) < before / 2
    assert not isinstance(model.expert.head[0], torch.nn.Linear)
    lay_out_weights(model, pack_from=0)  # nothing is left to do
    said, *found = run(FastPath(model))
    assert said == expected[0]
    for ours, theirs in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    with pytest.raises(CheckpointError, match='packed for serving'):
        save(bundle, tmp_path / 'again')
    assert not (tmp_path / 'again').exists()


@pytest.mark.parametrize('number', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', [(1, 96), (2, 5, 96), (0, 96)])
def test_a_packed_product_is_the_product(number, shape):
    doubles.needs_packing(number)
    layer = torch.nn.Linear(96, 64).to(getattr(torch, number))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(layer.weight.dtype)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(layer)(x), layer(x))


def test_a_packed_product_passes_gradients_on():
    doubles.needs_packing()
    layer = torch.nn.Linear(96, 64).requires_grad_(False)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    found = []
    for way in (layer, PackedLinear(layer)):
        start = x.clone().requires_grad_()
        found.append(torch.autograd.grad(way(start).square().sum(), start)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('whole_expert', [False, True])
@pytest.mark.filterwarnings('error::UserWarning')  # torch only warns when it loses a gradient
def test_guided_chunks_are_the_same_with_packed_weights(whole_expert, tmp_path):
    doubles.needs_packing()
    bundle = doubles.small_bundle(tmp_path / 'small')
    model, config = bundle.model, bundle.config
    _, views, proprio, noise = doubles.inputs(config, 1)
    latent = torch.randn(1, config.queries, config.language.hidden_size, generator=torch.Generator().manual_seed(1))
    guide = Guide(np.full((config.horizon, 7), 0.4, np.float32), delay_steps=2, execution_steps=4, beta=5.0)
    expected = FastPath(model).chunk(latent, views, proprio, noise, guide=guide)
    free = FastPath(model).chunk(latent, views, proprio, noise)
    lay_out_weights(model, pack_from=0, expert=not whole_expert)
    assert isinstance(model.expert.head[0], torch.nn.Linear) == whole_expert
    found = FastPath(model).chunk(latent, views, proprio, noise, guide=guide)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert float((free - expected).abs().max()) > 1e-3


def test_nothing_is_packed_where_it_was_not_found_to_pay(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    assert pays_from(torch.float32) == pays_from(torch.bfloat16) == sys.maxsize
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')
    assert pays_from(torch.bfloat16) < pays_from(torch.float32) < 1 << 20 and pays_from(torch.float16) == sys.maxsize


def test_nothing_is_packed_where_torch_cannot(tmp_path, monkeypatch):
    bundle = doubles.small_bundle(tmp_path / 'small')
    monkeypatch.setattr('instructvla_ros.model.packed._mkldnn', None)
    assert not can_pack(torch.float32)
    lay_out_weights(bundle.model, pack_from=0)
    assert isinstance(bundle.model.expert.head[0], torch.nn.Linear)
    save(bundle, tmp_path / 'again')


def test_rows_of_a_batch_are_independent(bundle):
    pixels, *_ = doubles.inputs(bundle.config, 3)
    ids = torch.from_numpy(bundle.prompts.reason('lift up'))[None]
    engine, end = FastPath(bundle.model), bundle.prompts.end_id
    together = engine.sentence(engine.begin(pixels), ids.expand(3, -1), end_id=end)
    alone = [engine.sentence(engine.begin(pixels[i : i + 1]), ids, end_id=end)[0] for i in range(3)]
    assert together == alone


@pytest.mark.parametrize('batch', [1, 2])
def test_latent_after_a_sentence_reuses_the_caches(bundle, batch):
    model, prompts = bundle.model, bundle.prompts
    pixels, *_ = doubles.inputs(bundle.config, batch)
    question = torch.from_numpy(prompts.reason('lift up'))[None].expand(batch, -1)
    act = ids_of(bundle, 'lift up', 'I will move to the red cube.', batch)
    expected = model.latent(act, pixels)
    engine = FastPath(model)
    towers = []
    handle = model.vlm.tower.register_forward_hook(lambda *_: towers.append(1))
    session = engine.begin(pixels)
    engine.sentence(session, question, end_id=prompts.end_id)
    lengths = []
    hook = model.vlm.decoder.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    found = engine.latent(session, act)
    handle.remove()
    hook.remove()
    torch.testing.assert_close(found, expected, **CLOSE)
    assert len(towers) == 1
    # Only what follows the common prompt is read: not the image, not the question.
    assert max(lengths) <= act.shape[1] - question.shape[1] and len(lengths) == (2 if model.vlm.gate else 1)


def test_a_session_can_read_another_prompt_of_the_same_image(bundle):
    pixels, *_ = doubles.inputs(bundle.config)
    engine = FastPath(bundle.model, headroom=0)  # every prompt outgrows the cache
    session = engine.begin(pixels)
    for instruction in ('lift up', 'put the red cube in the bowl, then go home', 'stop', 'stop'):
        ids = ids_of(bundle, instruction)
        torch.testing.assert_close(engine.latent(session, ids), bundle.model.latent(ids, pixels), **CLOSE)


def test_prompts_of_different_length_in_one_batch(bundle):
    pixels, *_ = doubles.inputs(bundle.config, 2)
    short, long = ids_of(bundle, 'go'), ids_of(bundle, 'put the red cube in the bowl')
    pad = torch.full((1, long.shape[1] - short.shape[1]), bundle.prompts.pad_id)
    ids = torch.cat((torch.cat((short, pad), 1), long))
    engine = FastPath(bundle.model)
    found = engine.latent(engine.begin(pixels), ids)
    torch.testing.assert_close(found, bundle.model.latent(ids, pixels), **CLOSE)
    torch.testing.assert_close(found[:1], bundle.model.latent(short, pixels[:1]), **CLOSE)


def test_a_model_that_says_image_tokens_is_not_confused(bundle, monkeypatch):
    model, prompts = bundle.model, bundle.prompts
    said = iter([prompts.image_id, prompts.first_query_id + 1, prompts.end_id])

    def scripted(hidden):
        scores = torch.zeros(*hidden.shape[:-1], bundle.config.language.vocab_size + bundle.config.queries)
        scores[..., next(said)] = 1
        return scores

    monkeypatch.setattr(model.vlm, 'logits', scripted)
    pixels, *_ = doubles.inputs(bundle.config)
    engine = FastPath(model)
    session = engine.begin(pixels)
    ids = torch.from_numpy(prompts.reason('lift up'))[None]
    tokens = engine.sentence(session, ids, end_id=prompts.end_id)[0]
    assert tokens == [prompts.image_id, prompts.first_query_id + 1, prompts.end_id]
    assert engine.latent(session, ids_of(bundle, 'lift up', prompts.response(tokens))).isfinite().all()


def test_a_sentence_stops_at_the_first_query_streams_and_can_be_cut(bundle, monkeypatch):
    model, prompts = bundle.model, bundle.prompts
    said = iter([5, 6, prompts.first_query_id, 9, 9])

    def scripted(hidden):
        return torch.nn.functional.one_hot(torch.tensor([next(said)]), 404).float()

    monkeypatch.setattr(model.vlm, 'logits', scripted)
    pixels, *_ = doubles.inputs(bundle.config)
    engine, heard = FastPath(model), []
    ids = torch.from_numpy(prompts.reason('lift up'))[None]
    out = engine.sentence(engine.begin(pixels), ids, end_id=prompts.end_id, on_token=heard.append)
    assert out == [[5, 6, prompts.first_query_id]] and heard == out[0]
    said = iter([5] * 99)
    session = engine.begin(pixels)
    out = engine.sentence(session, ids, end_id=prompts.end_id, stop=lambda: len(heard) >= 5, on_token=heard.append)
    assert out == [[5, 5]]


@pytest.mark.parametrize('mask', ['bias', 'block'])
@pytest.mark.parametrize(('batch', 'steps'), [(1, 10), (3, 4)])
def test_chunk(bundle, mask, batch, steps):
    config = bundle.config
    _, views, proprio, noise = doubles.inputs(config, batch)
    latent = torch.randn(batch, config.queries, config.language.hidden_size)
    plain = bundle.model.chunk(latent, views, proprio, noise, steps=steps, mask=mask)
    fast = FastPath(bundle.model).chunk(latent, views, proprio, noise, steps=steps, mask=mask)
    torch.testing.assert_close(fast, plain, **CLOSE)
    other = bundle.model.chunk(latent, views, proprio, noise, steps=steps, mask='block' if mask == 'bias' else 'bias')
    assert (plain - other).abs().max() > 1e-4


def test_chunk_does_not_run_the_prefix_in_every_step(bundle):
    config, expert = bundle.config, bundle.model.expert
    _, views, proprio, noise = doubles.inputs(config)
    latent = torch.randn(1, config.queries, config.language.hidden_size)
    lengths = []
    hook = expert.decoder.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    FastPath(bundle.model).chunk(latent, views, proprio, noise, mask='block')
    hook.remove()
    assert lengths == [config.prefix_length] + [config.horizon] * 10


def test_bfloat16_stays_near_float32(bundle):
    config = bundle.config
    model = type(bundle.model)(replace(config, name='bf16')).eval()
    model.load_state_dict(bundle.model.state_dict())
    model.vlm.image_id = bundle.model.vlm.image_id
    model.bfloat16()
    pixels, views, proprio, noise = doubles.inputs(config)
    ids = ids_of(bundle, 'lift up')
    engine = FastPath(model)
    latent = engine.latent(engine.begin(pixels), ids)
    chunk = engine.chunk(latent, views, proprio, noise)
    assert latent.dtype == torch.bfloat16 and chunk.dtype == torch.float32
    exact = bundle.model.latent(ids, pixels)
    assert (latent.float() - exact).norm() / exact.norm() < 0.1
    assert (chunk - bundle.model.chunk(exact, views, proprio, noise)).abs().max() < 0.3
