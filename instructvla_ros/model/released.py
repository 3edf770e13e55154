"""Names and shapes of the released checkpoint format, and how they map onto our parameters (specification 8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..datatypes import PROPRIO_DIM, STEP_DIM
from .config import ADAPTED, ModelConfig

GROUPS = ('action_model', 'vision_model', 'language_model', 'mlp1')
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Part of a released tensor and where it goes.

    Attributes:
        name: our parameter.
        dim, source, target: along this dimension, ``source`` of the released tensor becomes ``target`` of ours;
            None: all of it.
    """

    name: str
    dim: int = 0
    source: tuple[int, int] | None = None
    target: tuple[int, int] | None = None


@dataclass(frozen=True)
class Entry:
    """One tensor of a released checkpoint; without pieces it is dead and skipped."""

    group: str
    key: str
    shape: Shape
    pieces: tuple[Piece, ...] = ()


def language_prefix(config: ModelConfig) -> str:
    """What precedes ``model.`` and ``lm_head.`` in the language model's keys."""
    return ('', 'base_model.model.', 'base_model.lora_model.model.')[config.adapters.count]


def entries(config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of a released checkpoint of this variant, dead ones included, in no particular order."""
    yield from _language(config)
    yield from _vision(config)
    c, d = 4 * config.vision.hidden_size, config.language.hidden_size
    for index, shape in ((0, (c,)), (1, (d, c)), (3, (d, d))):
        yield from _pair('mlp1', str(index), shape, f'vlm.projector.{index}', shape[:1])
    yield from _action(config)


def _one(group: str, key: str, shape: Shape, name: str = '') -> Entry:
    return Entry(group, key, shape, (Piece(name),) if name else ())


def _pair(group: str, key: str, weight: Shape, name: str, bias: Shape) -> Iterator[Entry]:
    yield _one(group, f'{key}.weight', weight, f'{name}.weight' if name else '')
    yield _one(group, f'{key}.bias', bias, f'{name}.bias' if name else '')


def _language(config: ModelConfig) -> Iterator[Entry]:
    t, a, group = config.language, config.adapters, 'language_model'
    prefix, d, ff = language_prefix(config), t.hidden_size, t.intermediate_size
    kv = t.kv_heads * t.head_dim
    rows, all_rows = t.vocab_size, t.vocab_size + config.queries
    for key, table, query in (
        ('model.embed_tokens.weight', 'vlm.embed_tokens.weight', 'vlm.query_embed'),
        ('lm_head.weight', 'vlm.lm_head.weight', 'vlm.query_head'),
    ):
        parts = (Piece(table, 0, (0, rows)), Piece(query, 0, (rows, all_rows)))
        yield Entry(group, prefix + key, (all_rows, d), parts)
    yield _one(group, f'{prefix}model.norm.weight', (d,), 'vlm.decoder.norm.weight')
    linears: dict[str, tuple[int, int, bool]] = {
        'self_attn.q_proj': (d, d, True),
        'self_attn.k_proj': (kv, d, True),
        'self_attn.v_proj': (kv, d, True),
        'self_attn.o_proj': (d, d, False),
        'mlp.gate_proj': (ff, d, False),
        'mlp.up_proj': (ff, d, False),
        'mlp.down_proj': (d, ff, False),
    }
    names = ('default',) if a.count == 1 else tuple(str(i) for i in range(a.count))
    for i in range(t.layers):
        key, ours = f'{prefix}model.layers.{i}', f'vlm.decoder.layers.{i}'
        for norm in ('input_layernorm', 'post_attention_layernorm'):
            yield _one(group, f'{key}.{norm}.weight', (d,), f'{ours}.{norm}.weight')
        for module, (out, inp, bias) in linears.items():
            adapted = a.count > 0 and module in ADAPTED
            base = f'{key}.{module}.base_layer' if adapted else f'{key}.{module}'
            yield _one(group, f'{base}.weight', (out, inp), f'{ours}.{module}.weight')
            if bias:
                yield _one(group, f'{base}.bias', (out,), f'{ours}.{module}.bias')
            for slot, name in enumerate(names if adapted else ()):
                span = (slot * a.rank, (slot + 1) * a.rank)
                lora_a = Piece(f'{ours}.{module}.lora_a', 0, None, span)
                lora_b = Piece(f'{ours}.{module}.lora_b', 1, None, span)
                yield Entry(group, f'{key}.{module}.lora_A.{name}.weight', (a.rank, inp), (lora_a,))
                yield Entry(group, f'{key}.{module}.lora_B.{name}.weight', (out, a.rank), (lora_b,))
    if a.count == 2:
        inputs = d
        for depth in range(a.gate_depth):
            out = a.count if depth == a.gate_depth - 1 else a.gate_size
            key = f'base_model.internal_xlora_classifier.layers.{3 * depth}'
            yield from _pair(group, key, (out, inputs), f'vlm.gate.layers.{3 * depth}', (out,))
            inputs = out


def _vision(config: ModelConfig) -> Iterator[Entry]:
    v, group = config.vision, 'vision_model'
    d, ff, p = v.hidden_size, v.intermediate_size, v.patch_size
    key, ours = 'vision_model', 'vlm.tower'
    patch = 'embeddings.patch_embedding'
    yield from _pair(group, f'{key}.{patch}', (d, 3, p, p), f'{ours}.{patch}', (d,))
    table = 'embeddings.position_embedding.weight'
    yield _one(group, f'{key}.{table}', (v.grid**2, d), f'{ours}.{table}')
    yield from _pair(group, f'{key}.post_layernorm', (d,), f'{ours}.post_layernorm', (d,))
    for i in range(v.layers):
        at = f'encoder.layers.{i}'
        for norm in ('layer_norm1', 'layer_norm2'):
            yield from _pair(group, f'{key}.{at}.{norm}', (d,), f'{ours}.{at}.{norm}', (d,))
        for proj in ('q_proj', 'k_proj', 'v_proj', 'out_proj'):
            name = f'{at}.self_attn.{proj}'
            yield from _pair(group, f'{key}.{name}', (d, d), f'{ours}.{name}', (d,))
        yield from _pair(group, f'{key}.{at}.mlp.fc1', (ff, d), f'{ours}.{at}.mlp.fc1', (ff,))
        yield from _pair(group, f'{key}.{at}.mlp.fc2', (d, ff), f'{ours}.{at}.mlp.fc2', (d,))


def _action(config: ModelConfig) -> Iterator[Entry]:
    e, group = config.expert, 'action_model'
    d, ff, c, h = e.hidden_size, e.intermediate_size, config.language.hidden_size, config.horizon
    for i in range(e.layers):
        key, ours = f'VideoGPT.model.layers.{i}', f'expert.decoder.layers.{i}'
        for proj in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
            yield _one(group, f'{key}.self_attn.{proj}.weight', (d, d), f'{ours}.self_attn.{proj}.weight')
        for proj, shape in (('gate_proj', (ff, d)), ('up_proj', (ff, d)), ('down_proj', (d, ff))):
            yield _one(group, f'{key}.mlp.{proj}.weight', shape, f'{ours}.mlp.{proj}.weight')
        for norm in ('input_layernorm', 'post_attention_layernorm'):
            yield _one(group, f'{key}.{norm}.weight', (d,), f'{ours}.{norm}.weight')
    yield _one(group, 'VideoGPT.model.norm.weight', (d,), 'expert.decoder.norm.weight')
    widths = (d * h, 4 * d, 2 * d, d // 2, STEP_DIM * h)
    for i in range(4):
        shape = (widths[i + 1], widths[i])
        yield from _pair(group, f'action_head.{2 * i}', shape, f'expert.head.{2 * i}', shape[:1])
    projectors = {'visual_projector': ('visual_projector', config.dino.width), 'cog_projector': ('latent_projector', c)}
    if config.proprio:
        projectors['state_embed'] = ('state_embed', PROPRIO_DIM)
    for key, (ours, inputs) in projectors.items():
        yield from _pair(group, f'{key}.0', (d, inputs), f'expert.{ours}.0', (d,))
        yield from _pair(group, f'{key}.2', (d, d), f'expert.{ours}.2', (d,))
    for i, inputs in ((1, STEP_DIM), (2, 2 * d), (3, d)):
        name = f'action_embed.linear_{i}'
        yield from _pair(group, name, (d, inputs), f'expert.{name}', (d,))
    yield from _dino(config)


def _dino(config: ModelConfig) -> Iterator[Entry]:
    o, c, group = config.dino, config.language.hidden_size, 'action_model'
    w, root, mine = o.width, 'film_vision_model.vision_model', 'expert.dino'
    tokens: dict[str, Shape] = {
        'cls_token': (1, 1, w),
        'reg_token': (1, o.registers, w),
        'pos_embed': (1, o.patches, w),
    }
    for name, shape in tokens.items():
        yield _one(group, f'{root}.{name}', shape, f'{mine}.{name}')
    patch = (w, 3, o.patch_size, o.patch_size)
    yield from _pair(group, f'{root}.patch_embed.proj', patch, f'{mine}.patch_embed.proj', (w,))
    yield from _pair(group, f'{root}.norm', (w,), '', (w,))
    modules: Mapping[str, Shape] = {
        'norm1': (w,),
        'norm2': (w,),
        'attn.qkv': (3 * w, w),
        'attn.proj': (w, w),
        'mlp.fc1': (4 * w, w),
        'mlp.fc2': (w, 4 * w),
    }
    for b in range(o.depth):
        live = b <= o.tap_block
        key, ours = f'{root}.blocks.{b}', f'{mine}.blocks.{b}' if live else ''
        for module, shape in modules.items():
            yield from _pair(group, f'{key}.block.{module}', shape, f'{ours}.{module}' if live else '', shape[:1])
        for scale in ('ls1', 'ls2'):
            name = f'{ours}.{scale}.gamma' if live else ''
            yield _one(group, f'{key}.block.{scale}.gamma', (w,), name)
        for film in ('scale', 'shift'):
            yield from _pair(group, f'{key}.{film}', (w, c), f'{ours}.{film}' if live else '', (w,))


def ignorable(group: str, key: str) -> bool:
    """Tensors some released files hold beside the live ones: pooling head, stored position ids, old future queries."""
    return (group == 'vision_model' and (key.startswith('vision_model.head.') or key.endswith('.position_ids'))) or (
        group == 'action_model' and key == 'future_queries'
    )
