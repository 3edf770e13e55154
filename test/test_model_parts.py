"""Parts of the model against formulas written here."""

from __future__ import annotations

import math

import model_doubles as doubles
import pytest

doubles.needs_model()

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from instructvla_ros.config import replace  # noqa: E402
from instructvla_ros.errors import ConfigError, ObservationError  # noqa: E402
from instructvla_ros.model.config import Adapters, Expert, Language, Vision, preset  # noqa: E402
from instructvla_ros.model.decoder import llama_decoder, qwen2_decoder  # noqa: E402
from instructvla_ros.model.expert import time_embedding  # noqa: E402
from instructvla_ros.model.flow import flow_loss, integrate, interpolate, sample_time, target_velocity  # noqa: E402
from instructvla_ros.model.lora import LoraLinear  # noqa: E402
from instructvla_ros.model.vlm import pixel_shuffle  # noqa: E402


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return doubles.small_bundle(tmp_path_factory.mktemp('small'))


def test_pixel_shuffle_stacks_the_four_neighbours_in_row_order():
    grid = torch.arange(2 * 4 * 6 * 3).float().view(2, 4, 6, 3)
    out = pixel_shuffle(grid)
    assert out.shape == (2, 6, 12)
    for i in range(2):
        for j in range(3):
            r, c = 2 * i, 2 * j
            cells = [grid[:, r, c], grid[:, r, c + 1], grid[:, r + 1, c], grid[:, r + 1, c + 1]]
            torch.testing.assert_close(out[:, 3 * i + j], torch.cat(cells, dim=-1), rtol=0, atol=0)


def test_fused_gated_adapters_equal_gating_each_input():
    torch.manual_seed(0)
    layer = LoraLinear(10, 7, True, Adapters(count=2, rank=3, alpha=6.0)).eval()
    torch.nn.init.normal_(layer.lora_b)
    x, gates = torch.randn(2, 5, 10), torch.rand(2, 5, 2)
    expected = F.linear(x, layer.weight, layer.bias)
    for a in range(2):
        low = F.linear(x * gates[..., a : a + 1], layer.lora_a[3 * a : 3 * a + 3])
        expected = expected + 2.0 * F.linear(low, layer.lora_b[:, 3 * a : 3 * a + 3])
    found = layer(x, (gates * 2.0).repeat_interleave(3, dim=-1))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=0)


def test_new_adapters_have_no_effect_and_merging_keeps_the_output():
    layer = LoraLinear(10, 7, False, Adapters(count=1, rank=3, alpha=6.0)).eval()
    x = torch.randn(2, 5, 10)
    torch.testing.assert_close(layer(x, 2.0), layer(x), rtol=0, atol=0)
    torch.nn.init.normal_(layer.lora_b)
    before = layer(x, 2.0)
    layer.merge(2.0)
    torch.testing.assert_close(layer(x, 2.0), before, rtol=1e-5, atol=1e-5)
    assert [n for n, _ in layer.named_parameters()] == ['weight']


@torch.no_grad()
def test_stage_2_equals_a_two_pass_formula_on_transformers_own_qwen2(bundle):
    """Base pass and adapted pass through ``Qwen2Model.forward`` with hooks that add the adapters by the formula."""
    from transformers import Qwen2Config, Qwen2Model

    vlm, t, a = bundle.model.vlm, bundle.config.language, bundle.config.adapters
    reference = Qwen2Model(
        Qwen2Config(
            vocab_size=t.vocab_size,
            hidden_size=t.hidden_size,
            intermediate_size=t.intermediate_size,
            num_hidden_layers=t.layers,
            num_attention_heads=t.heads,
            num_key_value_heads=t.kv_heads,
            rope_parameters={'rope_type': 'default', 'rope_theta': t.rope_theta},
            rms_norm_eps=t.rms_norm_eps,
        )
    ).eval()
    weights = {k: v for k, v in vlm.decoder.state_dict().items() if '.lora_' not in k}
    reference.load_state_dict({**weights, 'embed_tokens.weight': vlm.embed_tokens.weight}, strict=True)
    x = torch.randn(2, 9, t.hidden_size)
    base = reference(inputs_embeds=x, use_cache=False).last_hidden_state
    gates = torch.softmax(vlm.gate.layers(base), -1)

    def hook(ours):
        def add(module, args, output):
            for i in range(2):
                rows = slice(i * a.rank, (i + 1) * a.rank)
                low = F.linear(args[0] * gates[..., i : i + 1], ours.lora_a[rows])
                output = output + a.scale * F.linear(low, ours.lora_b[:, rows])
            return output

        return add

    for name, module in vlm.decoder.named_modules():
        if isinstance(module, LoraLinear):
            reference.get_submodule(name).register_forward_hook(hook(module))
    expected = reference(inputs_embeds=x, use_cache=False).last_hidden_state
    torch.testing.assert_close(vlm.hidden(x), expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_decoder_rows_cache_and_padding_do_not_change_the_numbers(bundle):
    decoder = bundle.model.vlm.decoder
    x = torch.randn(2, 11, bundle.config.language.hidden_size)
    whole = decoder(x, gate=2.0)
    rows = torch.tensor([[3, 10], [0, 7]])
    wanted = whole.gather(1, rows[:, :, None].expand(-1, -1, whole.shape[-1]))
    torch.testing.assert_close(decoder(x, gate=2.0, rows=rows), wanted, rtol=1e-5, atol=1e-5)
    cache = decoder.new_cache(2, 11, x)
    parts = [decoder(x[:, a:b], gate=2.0, cache=cache) for a, b in ((0, 4), (4, 5), (5, 11))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
    cache.length = 4  # crop and read on
    again = decoder(x[:, 4:], gate=2.0, cache=cache, rows=torch.full((2, 1), 6))
    torch.testing.assert_close(again[:, 0], whole[:, -1], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='11 positions'):
        decoder(x[:, :1], cache=cache)
    padded = torch.cat((x, torch.randn(2, 3, x.shape[-1])), dim=1)
    torch.testing.assert_close(decoder(padded, gate=2.0)[:, :11], whole, rtol=1e-5, atol=1e-5)


def test_expert_masks_mean_what_their_names_say(bundle):
    expert, config = bundle.model.expert, bundle.config
    visual, prefix = config.dino.patches * config.views, config.prefix_length
    total = prefix + config.horizon
    allowed = expert.allowed(total, torch.device('cpu'))
    assert allowed[:visual, :visual].all() and not allowed[:visual, visual:].any()
    assert allowed[visual:prefix, :prefix].all() and not allowed[visual:prefix, prefix:].any()
    assert allowed[prefix:].all()
    assert expert.mask(total, torch.device('cpu'), 'bias').dtype == torch.float32
    assert expert.mask(total, torch.device('cpu'), 'block').dtype == torch.bool


@torch.no_grad()
def test_block_is_minus_infinity_and_bias_adds_one_on_transformers_own_llama():
    from transformers import LlamaConfig, LlamaModel

    sizes = Expert(hidden_size=24, intermediate_size=32, layers=3, heads=2)
    ours = llama_decoder(sizes).eval()
    reference = LlamaModel(
        LlamaConfig(
            vocab_size=4,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            rope_parameters={'rope_type': 'default', 'rope_theta': 1000.0},
            rms_norm_eps=1e-6,
            attn_implementation='eager',
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    reference.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(2, 9, 24)
    allowed = torch.rand(9, 9) > 0.4
    allowed |= torch.eye(9, dtype=torch.bool)
    for mask, float_mask in (
        (allowed.float(), allowed.float()),
        (allowed, torch.zeros(9, 9).masked_fill(~allowed, -math.inf)),
    ):
        expected = reference(inputs_embeds=x, attention_mask=float_mask.expand(2, 1, 9, 9), use_cache=False)
        torch.testing.assert_close(ours(x, mask=mask), expected.last_hidden_state, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prefix_ignores_the_actions_under_block_and_not_under_bias(bundle):
    expert, config = bundle.model.expert, bundle.config
    _, views, proprio, noise = doubles.inputs(config)
    prefix = expert.prefix(torch.randn(1, config.queries, config.language.hidden_size), views, proprio)
    out = {}
    for kind in ('bias', 'block'):
        for name, steps in (('a', noise), ('b', noise + 3)):
            x = torch.cat((prefix, expert.action_embed(steps, torch.tensor([0.5]))), 1)
            out[kind, name] = expert.decoder(x, mask=expert.mask(x.shape[1], x.device, kind))[:, : prefix.shape[1]]
    assert (out['block', 'a'] - out['block', 'b']).abs().max() == 0
    assert (out['bias', 'a'] - out['bias', 'b']).abs().max() > 1e-3


@torch.no_grad()
def test_views_are_interleaved_by_patch_and_conditioned_alike(bundle):
    dino, config = bundle.model.expert.dino, bundle.config
    _, views, _, _ = doubles.inputs(config, batch=2)
    latent = torch.randn(2, config.queries, config.language.hidden_size)
    both = dino(views, latent)
    assert both.shape == (2, config.dino.patches * 2, config.dino.width)
    for v in range(2):
        torch.testing.assert_close(both[:, v::2], dino(views[:, v : v + 1], latent), rtol=1e-5, atol=1e-5)
    assert len(dino.blocks) == 3  # the tap; deeper blocks are never built


def test_time_embedding_formula():
    t = torch.tensor([0.0, 0.3, 1.0])
    out = time_embedding(t, 768)
    k = 100
    frequency = math.exp(-k * math.log(100) / 383)
    torch.testing.assert_close(out[:, k], torch.sin(t * frequency))
    torch.testing.assert_close(out[:, 384 + k], torch.cos(t * frequency))


def test_rotary_frequencies_stay_float32_unless_asked_to_be_rounded():
    sizes = Language(vocab_size=8, hidden_size=128, heads=1, kv_heads=1, layers=1, intermediate_size=8)
    for rounded, second in ((False, 0.80584), (True, 0.8046875)):
        decoder = qwen2_decoder(replace(sizes, rope_bf16=rounded), Adapters(count=0)).bfloat16()
        cos, sin = decoder.rotary(torch.tensor([1]), torch.float32)
        assert torch.atan2(sin, cos)[0, 0, 1].item() == pytest.approx(second, abs=1e-5)


def test_flow_path_target_and_integration_fit_together():
    torch.manual_seed(0)
    x0, x1 = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    torch.testing.assert_close(interpolate(x0, x1, torch.zeros(3)), x0)
    torch.testing.assert_close(interpolate(x0, x1, torch.ones(3)), x1 + 0.001 * x0)
    t = torch.full((3,), 0.4)
    slope = (interpolate(x0, x1, t + 1e-2) - interpolate(x0, x1, t)) / 1e-2
    torch.testing.assert_close(slope, target_velocity(x0, x1), rtol=1e-3, atol=1e-3)
    trace = []
    end = integrate(lambda x, t: target_velocity(x0, x1), x0, 10, trace)
    torch.testing.assert_close(end, x1 + 0.001 * x0, rtol=1e-5, atol=1e-5)
    assert len(trace) == 10
    assert flow_loss(target_velocity(x0, x1), x0, x1) == 0


def test_padded_steps_leave_the_loss_or_count_as_in_the_reference():
    x0, x1, v = torch.zeros(1, 4, 7), torch.zeros(1, 4, 7), torch.zeros(1, 4, 7)
    v[0, 2:] = 1.0
    valid = torch.tensor([[True, True, True, False]])
    assert flow_loss(v, x0, x1).item() == pytest.approx(0.5)
    assert flow_loss(v, x0, x1, valid).item() == pytest.approx(1 / 3)
    assert flow_loss(v, x0, x1, torch.zeros(1, 4, dtype=torch.bool)) == 0


def test_times_follow_the_beta_distribution():
    t = sample_time(200_000, torch.Generator().manual_seed(0))
    assert 0 <= t.min() and t.max() <= 0.999
    # t = 0.999 (1 - z), z ~ Beta(1.5, 1): mean z = 0.6, P(z < q) = q^1.5
    assert t.mean().item() == pytest.approx(0.999 * 0.4, abs=3e-3)
    assert (t < 0.999 * 0.2).float().mean().item() == pytest.approx(1 - 0.8**1.5, abs=5e-3)


def test_wrong_shapes_are_refused_by_name(bundle):
    model, config = bundle.model, bundle.config
    pixels, views, proprio, noise = doubles.inputs(config)
    latent = torch.zeros(1, config.queries, config.language.hidden_size)
    with pytest.raises(ObservationError, match=r'VLM pixels must be \(n, 3, 56, 56\)'):
        model.vlm.image_tokens(pixels[..., :30])
    with pytest.raises(ObservationError, match='sees 2 views, got 1'):
        model.chunk(latent, views[:, :1], proprio, noise)
    with pytest.raises(ObservationError, match='proprio must be'):
        model.chunk(latent, views, None, noise)
    with pytest.raises(ObservationError, match='image tokens'):
        model.latent(torch.tensor([[1, 2, 3]]), pixels)
    with pytest.raises(ObservationError, match='the 4 latent queries once'):
        model.vlm.query_rows(torch.tensor([[1, 400, 401]]))


@pytest.mark.parametrize('name', ['eagle2_2b', 'medium', 'tiny'])
def test_presets_load_under_their_names(name):
    assert preset(name).name == name


def test_bad_sizes_are_configuration_errors():
    with pytest.raises(ConfigError, match="Did you mean 'tiny'"):
        preset('tiney')
    with pytest.raises(ConfigError, match='multiple of two patches'):
        Vision(image_size=70, patch_size=14)
    with pytest.raises(ConfigError, match='multiple of heads 5'):
        Expert(heads=5)
