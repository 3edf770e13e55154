"""Training forward: what learns, what does not, and how a stage-1 model becomes a stage-2 model."""

from __future__ import annotations

import dataclasses

import model_doubles as doubles
import pytest

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.errors import ConfigError, ObservationError  # noqa: E402
from instructvla_ros.model.config import Adapters  # noqa: E402
from instructvla_ros.model.flow import flow_loss, interpolate, sample_time  # noqa: E402
from instructvla_ros.model.instructvla import Batch  # noqa: E402
from instructvla_ros.model.trainable import set_trainable, to_stage2  # noqa: E402

ONE = Adapters(count=1, rank=4, alpha=8.0)


@pytest.fixture
def stage2(tmp_path):
    return doubles.small_bundle(tmp_path)


@pytest.fixture
def stage1(tmp_path):
    return doubles.small_bundle(tmp_path, adapters=ONE)


def batch_of(bundle, **changes):
    prompts, config = bundle.prompts, bundle.config
    samples = [
        prompts.dialog(prompts.action_messages('lift up')),
        prompts.dialog(prompts.action_messages('put the red cube in the bowl', 'I will move.')),
    ]
    ids, labels = (torch.from_numpy(a) for a in prompts.collate(samples))
    pixels, views, proprio, noise = doubles.inputs(config, 2)
    generator = torch.Generator().manual_seed(1)
    actions = torch.rand(noise.shape, generator=generator)
    batch = Batch(ids, labels, pixels, views, actions, proprio, noise, sample_time(2, generator))
    return dataclasses.replace(batch, **changes)


def gradients(bundle, **changes):
    bundle.model.zero_grad(set_to_none=True)
    losses = bundle.model(batch_of(bundle, **changes))
    losses.total.backward()
    return {n for n, p in bundle.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_stage_1_trains_adapters_query_rows_and_expert(stage1):
    names = set(set_trainable(stage1.model, 'stage1'))
    assert {n for n in names if n.startswith('vlm.') and '.lora_' not in n} == {'vlm.query_embed', 'vlm.query_head'}
    assert {n for n, _ in stage1.model.named_parameters() if n.startswith('expert.')} <= names
    assert gradients(stage1) == names
    assert stage1.model.vlm.query_embed.shape == (4, 24)


def test_stage_2_trains_gate_and_adapters_and_freezes_the_expert(stage2):
    names = set(set_trainable(stage2.model, 'stage2'))
    assert not any(n.startswith('expert.') for n in names) and any(n.startswith('vlm.gate.') for n in names)
    assert gradients(stage2) == names
    assert any(n.startswith('expert.') for n in set_trainable(stage2.model, 'stage2', expert=True))


def test_from_scratch_everything_learns(stage2):
    names = set(set_trainable(stage2.model, 'scratch'))
    assert names == {n for n, _ in stage2.model.named_parameters()}
    assert gradients(stage2) == names


def test_recipes_that_do_not_fit_are_refused(stage1, stage2):
    with pytest.raises(ConfigError, match='two gated adapters'):
        set_trainable(stage1.model, 'stage2')
    with pytest.raises(ConfigError, match='needs one adapter'):
        set_trainable(stage2.model, 'stage1')
    with pytest.raises(ConfigError, match='Did you mean'):
        set_trainable(stage1.model, 'stage3')


def test_the_base_pass_that_feeds_the_gate_carries_no_gradient(stage2):
    """With the adapters cut off, the gate has nothing to weigh: a gradient could only come through the base pass."""
    model = stage2.model
    set_trainable(model, 'scratch')
    x = model.vlm.lookup(torch.tensor([[5, 6, 7]])).detach().requires_grad_()
    gate = model.vlm.rank_gate(x)
    gate.sum().backward()
    assert x.grad is None and all(p.grad is None for p in model.vlm.decoder.parameters())
    assert model.vlm.gate.layers[0].weight.grad is not None


def test_checkpointed_activations_give_the_same_gradients(stage2):
    model = stage2.model
    set_trainable(model, 'scratch')
    # Dropout off but training mode on: checkpointing acts in training mode only.
    model.train()
    for module in model.modules():
        if hasattr(module, 'dropout'):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = []
    for on in (False, True):
        model.checkpoint_activations(on)
        model.zero_grad(set_to_none=True)
        model(batch_of(stage2)).total.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_rows_sorted_by_length_give_the_same_losses_and_gradients(stage2):
    """Three dialogues of unlike length, the longest in the middle; what is saved is the width of the others."""
    texts = ['lift up', 'put the red cube that is left of the blue ball in the bowl', 'lift the cube up']
    prompts = stage2.prompts
    ids, labels = (
        torch.from_numpy(a) for a in prompts.collate([prompts.dialog(prompts.action_messages(t)) for t in texts])
    )
    pixels, views, proprio, noise = doubles.inputs(stage2.config, 3)
    generator = torch.Generator().manual_seed(1)
    actions = torch.rand(noise.shape, generator=generator)
    batch = Batch(ids, labels, pixels, views, actions, proprio, noise, sample_time(3, generator))
    real = [len(prompts.dialog(prompts.action_messages(t)).ids) for t in texts]
    assert batch.lengths().tolist() == [pytest.approx(n, abs=1) for n in real]

    widths, decoder = [], stage2.model.vlm.decoder
    decoder.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    set_trainable(stage2.model, 'stage2')

    def run(groups):
        stage2.model.zero_grad(set_to_none=True)
        losses = stage2.model(batch, length_groups=groups)
        losses.total.backward()
        grown = {n: p.grad.clone() for n, p in stage2.model.named_parameters() if p.grad is not None}
        return losses, grown

    (whole, grown), first = run(1), len(widths)
    for groups in (2, 3, 8):
        parts, same = run(groups)
        for a, b in ((parts.flow, whole.flow), (parts.ce, whole.ce), (parts.latent, whole.latent)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert same.keys() == grown.keys()
        for name in grown:
            torch.testing.assert_close(same[name], grown[name], rtol=1e-3, atol=1e-5)
    assert set(widths[:first]) == {max(real)} and min(widths) <= min(real) < max(real)


def test_dropout_acts_in_training_only(stage2):
    model, batch = stage2.model, batch_of(stage2)
    assert model(batch).total == model(batch).total
    model.train()
    assert model(batch).total != model(batch).total


def test_steps_after_the_end_do_not_count_unless_asked(stage2):
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 2:] = False
    batch = batch_of(stage2, valid=valid)
    with torch.no_grad():
        reference = stage2.model(batch, mask_padding=False).flow
        assert reference == stage2.model(dataclasses.replace(batch, valid=None)).flow
        assert stage2.model(batch).flow != reference


def test_language_only_batch_with_and_without_an_image(stage2):
    prompts, model = stage2.prompts, stage2.model
    dialog = [{'role': 'user', 'content': 'What is there?'}, {'role': 'assistant', 'content': 'A cube.'}]
    ids, labels = (
        torch.from_numpy(a) for a in prompts.collate([prompts.dialog(dialog), prompts.dialog(dialog, images=0)])
    )
    pixels, *_ = doubles.inputs(stage2.config)  # one image for two samples: the second has none
    losses = model(Batch(ids, labels, pixels))
    assert losses.flow == 0 and losses.ce > 0 and losses.latent is None
    nothing = model(Batch(ids, torch.full_like(labels, -100), pixels))
    assert nothing.total == 0
    nothing.total.backward()


def test_cross_entropy_is_the_mean_over_supervised_tokens(stage2):
    model, batch = stage2.model, batch_of(stage2)
    with torch.no_grad():
        hidden = model.vlm.hidden(model.vlm.embed(batch.ids, model.vlm.image_tokens(batch.pixels)))
        logits = model.vlm.logits(hidden)
        expected = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), batch.labels[:, 1:].flatten(), ignore_index=-100
        )
        torch.testing.assert_close(model(batch).ce, expected, rtol=1e-5, atol=1e-6)
    assert logits.shape[-1] == 404


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('mask', ['bias', 'block'])
def test_rows_that_nobody_reads_are_left_out_without_a_difference(stage2, mask, groups):
    model, batch = stage2.model, batch_of(stage2)

    def all_rows():
        hidden = model.vlm.hidden(model.vlm.embed(batch.ids, model.vlm.image_tokens(batch.pixels)))
        latent = model.vlm.latent(hidden, model.vlm.query_rows(batch.ids))
        prefix = model.expert.prefix(latent, batch.views, batch.proprio)
        noisy = interpolate(batch.noise, batch.actions, batch.t)
        velocity = model.expert.velocity(prefix, noisy, batch.t, mask, whole=True)
        return flow_loss(velocity, batch.noise, batch.actions) + model.vlm.cross_entropy(hidden, batch.labels)

    seen = []
    original = model.vlm.decoder.forward
    model.vlm.decoder.forward = lambda x, **k: seen.append(original(x, **k)) or seen[-1]
    found = {}
    for name, loss in (('all', all_rows), ('read', lambda: model(batch, mask=mask, length_groups=groups).total)):
        model.zero_grad(set_to_none=True)
        total = loss()
        total.backward()
        found[name] = total.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found['read'][0], found['all'][0], rtol=1e-5, atol=1e-6)
    assert found['read'][1].keys() == found['all'][1].keys()
    for name, expected in found['all'][1].items():
        torch.testing.assert_close(found['read'][1][name], expected, rtol=1e-3, atol=1e-5, msg=name)
    wide, narrow = batch.ids.shape[1], model.vlm.read_rows(batch.ids, batch.labels).shape[1]
    widths = [x.shape[1] for x in seen]
    assert widths[:2] == [wide, wide] and widths[3] == narrow < wide, 'base pass and adapted pass, before and after'


def test_rows_that_a_loss_reads(stage2):
    vlm = stage2.model.vlm
    first = vlm.embed_tokens.num_embeddings
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, first, first + 1, 9, 9], [1, 1, 1, 1, 1, 1]])
    labels = torch.full_like(ids, -100)
    labels[0, 3:5] = ids[0, 3:5]
    labels[1, 2] = ids[1, 2]
    rows = vlm.read_rows(ids, labels)
    assert rows.tolist() == [[2, 3, 3], [1, 2, 3], [0, 0, 0]]
    assert vlm.places(rows[1:2], torch.tensor([[2, 3]])).tolist() == [[1, 2]]
    hidden = torch.randn(3, 6, vlm.config.language.hidden_size)
    picked = hidden.gather(1, rows[:, :, None].expand(-1, -1, hidden.shape[-1]))
    torch.testing.assert_close(vlm.cross_entropy(picked, labels, rows), vlm.cross_entropy(hidden, labels))
    nothing = torch.full_like(ids, -100)
    none = vlm.read_rows(ids[:1], nothing[:1])
    assert none.tolist() == [[0]] and vlm.cross_entropy(hidden[:1, :1], nothing[:1], none) == 0


def test_action_batch_without_noise_is_refused(stage2):
    with pytest.raises(ObservationError, match='needs views, noise and t'):
        stage2.model(batch_of(stage2, noise=None))


@torch.no_grad()
def test_stage_2_starts_as_the_gated_stage_1_adapter(stage1):
    bundle = to_stage2(stage1, gate_depth=2, gate_size=8)
    model = bundle.model.eval()
    assert bundle.config.stage == 2 and model.vlm.gate is not None
    gate = model.vlm.gate.layers
    gate[-1].weight.zero_()
    gate[-1].bias.copy_(torch.tensor([-60.0, 60.0]))  # all weight on the action adapter
    batch = batch_of(stage1)
    torch.testing.assert_close(model(batch).total, stage1.model(batch).total, rtol=1e-5, atol=1e-6)
    gate[-1].bias.copy_(torch.tensor([60.0, -60.0]))  # on the language adapter: no effect yet
    for module in stage1.model.vlm.decoder.modules():
        if getattr(module, 'lora_b', None) is not None:
            module.lora_b.zero_()
    torch.testing.assert_close(model(batch).total, stage1.model(batch).total, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match='one adapter'):
        to_stage2(bundle)


def test_a_few_steps_lower_the_loss(stage1):
    model = stage1.model
    set_trainable(model, 'scratch')
    batch = batch_of(stage1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = None
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(batch).total
        first = first or loss.item()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first
