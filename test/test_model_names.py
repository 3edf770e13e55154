"""Names and shapes of the released format, against tables written here from specification section 8."""

from __future__ import annotations

import model_doubles as doubles
import pytest

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.config import replace  # noqa: E402
from instructvla_ros.model.checkpoint import parameter_shapes  # noqa: E402
from instructvla_ros.model.config import preset  # noqa: E402
from instructvla_ros.model.released import entries  # noqa: E402
from instructvla_ros.model.sizes import infer_config  # noqa: E402
from instructvla_ros.model.tensors import assemble, check_released  # noqa: E402


def full(stage, proprio=False, horizon=16, views=1):
    base = preset('eagle2_2b')
    adapters = replace(base.adapters, count=stage)
    return replace(base, adapters=adapters, proprio=proprio, horizon=horizon, views=views)


def language_table(stage):
    p = {0: '', 1: 'base_model.model.', 2: 'base_model.lora_model.model.'}[stage]
    table = {f'{p}model.embed_tokens.weight': (151738, 1536), f'{p}lm_head.weight': (151738, 1536)}
    table[f'{p}model.norm.weight'] = (1536,)
    linears = {
        'self_attn.q_proj': (1536, 1536),
        'self_attn.k_proj': (256, 1536),
        'self_attn.v_proj': (256, 1536),
        'self_attn.o_proj': (1536, 1536),
        'mlp.up_proj': (8960, 1536),
        'mlp.down_proj': (1536, 8960),
    }
    middle = '.base_layer' if stage else ''
    for i in range(28):
        at = f'{p}model.layers.{i}.'
        table[at + 'input_layernorm.weight'] = table[at + 'post_attention_layernorm.weight'] = (1536,)
        table[at + 'mlp.gate_proj.weight'] = (8960, 1536)
        for name, (out, inp) in linears.items():
            table[f'{at}{name}{middle}.weight'] = (out, inp)
            if name[-6] in 'qkv':
                table[f'{at}{name}{middle}.bias'] = (out,)
            for a in {0: (), 1: ('default',), 2: ('0', '1')}[stage]:
                table[f'{at}{name}.lora_A.{a}.weight'] = (128, inp)
                table[f'{at}{name}.lora_B.{a}.weight'] = (out, 128)
    if stage == 2:
        for n, shape in {0: (128, 1536), 3: (128, 128), 6: (128, 128), 9: (2, 128)}.items():
            table[f'base_model.internal_xlora_classifier.layers.{n}.weight'] = shape
            table[f'base_model.internal_xlora_classifier.layers.{n}.bias'] = shape[:1]
    return table


def vision_table():
    table = {
        'embeddings.patch_embedding.weight': (1152, 3, 14, 14),
        'embeddings.patch_embedding.bias': (1152,),
        'embeddings.position_embedding.weight': (1024, 1152),
        'post_layernorm.weight': (1152,),
        'post_layernorm.bias': (1152,),
    }
    for j in range(27):
        at = f'encoder.layers.{j}.'
        for name, shape in {
            **{f'self_attn.{x}_proj': (1152, 1152) for x in ('q', 'k', 'v', 'out')},
            **{f'layer_norm{n}': (1152,) for n in (1, 2)},
            'mlp.fc1': (4304, 1152),
            'mlp.fc2': (1152, 4304),
        }.items():
            table[f'{at}{name}.weight'], table[f'{at}{name}.bias'] = shape, shape[:1]
    return {'vision_model.' + k: v for k, v in table.items()}


def action_table(horizon, state):
    table = {'VideoGPT.model.norm.weight': (768,)}
    for k in range(12):
        at = f'VideoGPT.model.layers.{k}.'
        table |= {f'{at}self_attn.{x}_proj.weight': (768, 768) for x in 'qkvo'}
        table |= {f'{at}mlp.{x}_proj.weight': (3072, 768) for x in ('gate', 'up')}
        table |= {f'{at}{x}_layernorm.weight': (768,) for x in ('input', 'post_attention')}
        table[f'{at}mlp.down_proj.weight'] = (768, 3072)
    pairs = {
        'action_head.0': (3072, 768 * horizon),
        'action_head.2': (1536, 3072),
        'action_head.4': (384, 1536),
        'action_head.6': (7 * horizon, 384),
        'visual_projector.0': (768, 1024),
        'visual_projector.2': (768, 768),
        'cog_projector.0': (768, 1536),
        'cog_projector.2': (768, 768),
        'action_embed.linear_1': (768, 7),
        'action_embed.linear_2': (768, 1536),
        'action_embed.linear_3': (768, 768),
    }
    if state:
        pairs |= {'state_embed.0': (768, 8), 'state_embed.2': (768, 768)}
    root = 'film_vision_model.vision_model.'
    table |= {root + 'cls_token': (1, 1, 1024), root + 'reg_token': (1, 4, 1024), root + 'pos_embed': (1, 256, 1024)}
    pairs |= {root + 'patch_embed.proj': (1024, 3, 14, 14), root + 'norm': (1024,)}
    for b in range(24):
        at = f'{root}blocks.{b}.'
        pairs |= {at + 'block.norm1': (1024,), at + 'block.norm2': (1024,)}
        pairs |= {at + 'block.attn.qkv': (3072, 1024), at + 'block.attn.proj': (1024, 1024)}
        pairs |= {at + 'block.mlp.fc1': (4096, 1024), at + 'block.mlp.fc2': (1024, 4096)}
        pairs |= {at + 'scale': (1024, 1536), at + 'shift': (1024, 1536)}
        table |= {at + 'block.ls1.gamma': (1024,), at + 'block.ls2.gamma': (1024,)}
    for name, shape in pairs.items():
        table[name + '.weight'], table[name + '.bias'] = shape, shape[:1]
    return table


def found(config, group):
    return {e.key: e.shape for e in entries(config) if e.group == group}


@pytest.mark.parametrize(('stage', 'count'), [(0, 339), (1, 675), (2, 1019)])
def test_language_model_of_the_full_size(stage, count):
    table = language_table(stage)
    assert len(table) == count
    assert found(full(stage), 'language_model') == table


@pytest.mark.parametrize(('horizon', 'state', 'count'), [(16, False, 570), (16, True, 574), (8, False, 570)])
def test_action_model_of_the_full_size(horizon, state, count):
    table = action_table(horizon, state)
    assert len(table) == count
    assert found(full(1, state, horizon), 'action_model') == table


def test_vision_model_and_projector_of_the_full_size():
    config = full(1)
    assert found(config, 'vision_model') == vision_table()
    assert found(config, 'mlp1') == {
        '0.weight': (4608,),
        '0.bias': (4608,),
        '1.weight': (1536, 4608),
        '1.bias': (1536,),
        '3.weight': (1536, 1536),
        '3.bias': (1536,),
    }


@pytest.mark.parametrize('stage', [0, 1, 2])
@pytest.mark.parametrize(('proprio', 'horizon', 'views'), [(False, 16, 1), (True, 16, 1), (False, 8, 2)])
def test_full_size_on_meta_is_exactly_what_the_released_tensors_make(stage, proprio, horizon, views):
    config = full(stage, proprio, horizon, views)
    groups = {g: {} for g in ('language_model', 'vision_model', 'action_model', 'mlp1')}
    for entry in entries(config):
        groups[entry.group][entry.key] = torch.empty(entry.shape, device='meta')
    groups['vision_model']['vision_model.head.probe'] = torch.empty(1, 1, 1152, device='meta')
    groups['action_model']['future_queries'] = torch.empty(16, 768, device='meta')
    unused = check_released(groups, config)
    assert 'vision_model.vision_model.head.probe' in unused and 'action_model.future_queries' in unused
    # 14 pairs and 2 gammas of each of the 21 dead blocks (8 pairs), the final norm, and the two extras
    assert len(unused) == 21 * (8 * 2 + 2) + 2 + 2
    made = {n: tuple(t.shape) for n, t in assemble(groups, config).items()}
    assert made == parameter_shapes(config)

    shapes = {g: {k: tuple(t.shape) for k, t in v.items()} for g, v in groups.items()}
    run = {'stage': 'stage2' if stage == 2 else 'stage1', 'num_of_meta_query': 64}
    inferred = infer_config(shapes, run, views=views)
    for part in ('vision', 'language', 'dino', 'expert', 'queries', 'horizon', 'views', 'proprio'):
        assert getattr(inferred, part) == getattr(config, part), part
    assert inferred.adapters.count == stage
    if stage:
        assert inferred.adapters == config.adapters


@pytest.mark.parametrize(
    ('stage', 'proprio', 'horizon', 'millions'), [(1, False, 16, 209.4), (1, True, 16, 210.0), (1, False, 8, 190.5)]
)
def test_used_action_parameters_are_those_of_the_specification(stage, proprio, horizon, millions):
    shapes = parameter_shapes(full(stage, proprio, horizon))
    count = sum(torch.Size(s).numel() for n, s in shapes.items() if n.startswith('expert.'))
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_trainable_language_parameters_are_those_of_the_specification():
    shapes = parameter_shapes(full(2))
    lora = sum(torch.Size(s).numel() for n, s in shapes.items() if '.lora_' in n)
    gate = sum(torch.Size(s).numel() for n, s in shapes.items() if n.startswith('vlm.gate.'))
    assert lora / 1e6 == pytest.approx(220.2, abs=0.05) and gate == 230_018


def test_medium_has_about_200_million_and_tiny_a_few():
    counts = {n: sum(torch.Size(s).numel() for s in parameter_shapes(preset(n)).values()) for n in ('medium', 'tiny')}
    assert 170e6 < counts['medium'] < 230e6
    assert 1e6 < counts['tiny'] < 6e6
