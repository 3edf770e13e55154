"""Sizes of a model read from the tensors of a released checkpoint (specification 8.1, 14)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..config import replace
from ..errors import CheckpointError, ConfigError
from .config import Adapters, Dino, Expert, Language, ModelConfig, Vision

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]


def infer_config(
    shapes: Shapes, run: Mapping[str, Any], architecture: Mapping[str, Any] | None = None, views: int | None = None
) -> ModelConfig:
    """Work out the variant and every size.

    Args:
        shapes: group -> key -> shape of the checkpoint.
        run: ``config.json`` of the run; only ``stage`` is required.
        architecture: what the file does not say (heads, rotary bases, variant); needed for sizes other than the
            released ones. Layout of ``tiny_architecture.json`` in the golden vectors.
        views: number of cameras; the file does not say it. Default 1, or 2 for the variant 'wrist'.

    Raises:
        CheckpointError: a tensor that fixes a size is missing, or the stage contradicts the tensors.
    """
    arch = architecture or {}
    language, vision, action = shapes['language_model'], shapes['vision_model'], shapes['action_model']
    count = _adapter_count(language)
    _check_stage(run, count)
    root = ('', 'base_model.model.', 'base_model.lora_model.model.')[count]
    linear = '.base_layer.weight' if count else '.weight'
    layer = f'{root}model.layers.0'
    rows, width = _need(language, f'{root}model.embed_tokens.weight')
    kv = _need(language, f'{layer}.self_attn.k_proj{linear}')[0]
    queries = int(run.get('num_of_meta_query') or 64)
    lm = arch.get('llm', {})
    heads = int(lm.get('num_attention_heads') or _default('language heads', width, {1536: 12}))
    language_config = Language(
        vocab_size=rows - queries,
        hidden_size=width,
        intermediate_size=_need(language, f'{layer}.mlp.gate_proj.weight')[0],
        layers=_layers(language, r'\.layers\.(\d+)\.mlp\.gate_proj'),
        heads=heads,
        kv_heads=kv * heads // width,
        rope_theta=float(lm.get('rope_theta', 1e6)),
        rms_norm_eps=float(lm.get('rms_norm_eps', 1e-6)),
    )
    adapters = Adapters(count=count)
    if count:
        name = 'default' if count == 1 else '0'
        rank = _need(language, f'{layer}.self_attn.q_proj.lora_A.{name}.weight')[0]
        gate = 'base_model.internal_xlora_classifier.layers.'
        # alpha is not in the file: 2 r in every released run (specification 14)
        adapters = Adapters(
            count=count,
            rank=rank,
            alpha=float(arch.get('lora', {}).get('alpha', 2 * rank)),
            gate_depth=sum(1 for k in language if k.startswith(gate) and k.endswith('.weight')) or 4,
            gate_size=_need(language, f'{gate}0.weight')[0] if count == 2 else 128,
        )
    variant = arch.get('variant', '')
    head, last = _need(action, 'action_head.0.weight'), _need(action, 'action_head.6.weight')
    expert = _expert(action, arch, head[0] // 4)
    try:
        return ModelConfig(
            name=str(run.get('run_id') or variant or 'released'),
            vision=_vision(vision, arch),
            language=language_config,
            adapters=adapters,
            dino=_dino(action, arch),
            expert=expert,
            queries=queries,
            horizon=last[0] // 7,
            views=views or (2 if variant == 'wrist' else 1),
            proprio='state_embed.0.weight' in action,
            reasons=count == 2 and 'state_embed.0.weight' in action,
        )
    except ConfigError as err:
        raise CheckpointError(f'the sizes of this checkpoint do not fit together: {err}') from None


def with_mask(config: ModelConfig, mask: str) -> ModelConfig:
    """Same model with the expert mask 'bias' or 'block'."""
    return replace(config, expert=replace(config.expert, mask=mask))


def _adapter_count(language: Mapping[str, Any]) -> int:
    if any('lora_A.1.' in k for k in language):
        return 2
    return 1 if any('lora_A.' in k for k in language) else 0


def _check_stage(run: Mapping[str, Any], count: int) -> None:
    stage = str(run.get('stage', ''))
    if stage not in ('stage1', 'stage2'):
        raise CheckpointError(f"config.json must say stage: 'stage1' or 'stage2', got {stage!r}")
    if (stage == 'stage2') != (count == 2):
        found = ('no adapter', 'one adapter (stage 1)', 'two gated adapters (stage 2)')[count]
        raise CheckpointError(f'config.json says {stage}, but the language model holds {found}')


def _vision(vision: Mapping[str, Any], arch: Mapping[str, Any]) -> Vision:
    given = arch.get('vision', {})
    width, _, patch, _ = _need(vision, 'vision_model.embeddings.patch_embedding.weight')
    positions = _need(vision, 'vision_model.embeddings.position_embedding.weight')[0]
    return Vision(
        hidden_size=width,
        intermediate_size=_need(vision, 'vision_model.encoder.layers.0.mlp.fc1.weight')[0],
        layers=_layers(vision, r'encoder\.layers\.(\d+)\.mlp\.fc1'),
        heads=int(given.get('num_attention_heads') or _default('vision heads', width, {1152: 16})),
        image_size=math.isqrt(positions) * patch,
        patch_size=patch,
        layer_norm_eps=float(given.get('layer_norm_eps', 1e-6)),
    )


def _dino(action: Mapping[str, Any], arch: Mapping[str, Any]) -> Dino:
    root = 'film_vision_model.vision_model'
    width, _, patch, _ = _need(action, f'{root}.patch_embed.proj.weight')
    heads = arch.get('dino', {}).get('num_heads') or _default('DINO heads', width, {1024: 16})
    return Dino(
        width=width,
        depth=_layers(action, r'vision_model\.blocks\.(\d+)\.block\.attn\.qkv'),
        heads=int(heads),
        image_size=math.isqrt(_need(action, f'{root}.pos_embed')[1]) * patch,
        patch_size=patch,
        registers=_need(action, f'{root}.reg_token')[1],
    )


def _expert(action: Mapping[str, Any], arch: Mapping[str, Any], width: int) -> Expert:
    given = arch.get('expert', {})
    return Expert(
        hidden_size=width,
        intermediate_size=_need(action, 'VideoGPT.model.layers.0.mlp.gate_proj.weight')[0],
        layers=_layers(action, r'VideoGPT\.model\.layers\.(\d+)\.mlp\.gate_proj'),
        heads=int(given.get('num_attention_heads') or _default('expert heads', width, {768: 12, 1024: 16})),
        rope_theta=float(given.get('rope_theta', 1000.0)),
        rms_norm_eps=float(given.get('rms_norm_eps', 1e-6)),
        dropout=float(given.get('attention_dropout', 0.1)),
    )


def _need(group: Mapping[str, tuple[int, ...]], key: str) -> tuple[int, ...]:
    if key not in group:
        raise CheckpointError(
            f'the checkpoint lacks {key!r}, which fixes the sizes of the model; is it an InstructVLA checkpoint?'
        )
    return group[key]


def _layers(group: Mapping[str, Any], pattern: str) -> int:
    found = {int(m.group(1)) for k in group if (m := re.search(pattern, k))}
    return max(found, default=-1) + 1


def _default(what: str, width: int, known: Mapping[int, int]) -> int:
    if width not in known:
        raise CheckpointError(
            f'the number of {what} is not stored in the file, and width {width} is not one of the released sizes '
            f'({", ".join(map(str, known))}); put an architecture.json with it next to config.json'
        )
    return known[width]
