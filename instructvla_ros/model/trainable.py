"""What is trained in each stage, and how a stage-1 model becomes a stage-2 model (specification 4 and 9.1)."""

from __future__ import annotations

import torch
from torch import nn

from ..config import replace
from ..errors import ConfigError, suggest
from .checkpoint import Bundle
from .config import RECIPES
from .instructvla import InstructVLA
from .lora import LoraLinear


def set_trainable(model: InstructVLA, recipe: str, expert: bool | None = None, dino: bool = True) -> list[str]:
    """Freeze what a recipe does not train.

    Args:
        recipe: 'stage1': adapters, query rows, expert. 'stage2': adapters, gate, query rows. 'scratch': everything
            that has an effect, for small models without pretrained parts. 'stage0': the same without adapters, which
            keep no effect: what a small model knows before it acts. 'onsite': adapters, query rows and expert of a
            model of either stage, the gate as it is.
        expert: train the action expert, instead of what the recipe says. dino: with it, the tower it sees with.

    Returns:
        Names of the trainable parameters.

    Raises:
        ConfigError: unknown recipe, or one that does not fit the adapters of the model.
    """
    if recipe not in RECIPES:
        raise ConfigError(f'training recipe {recipe!r}.{suggest(recipe, RECIPES)}')
    if recipe == 'stage2' and model.config.stage != 2:
        raise ConfigError('recipe stage2 needs two gated adapters; make them with to_stage2')
    if recipe == 'stage1' and model.config.adapters.count != 1:
        raise ConfigError(f'recipe stage1 needs one adapter, the model has {model.config.adapters.count}')
    everything = recipe in ('scratch', 'stage0')
    for parameter in model.parameters():
        parameter.requires_grad_(everything)
    vlm = model.vlm
    for query in (vlm.query_embed, vlm.query_head):
        query.requires_grad_(True)
    for module in vlm.decoder.modules():
        if isinstance(module, LoraLinear) and module.lora_a is not None and module.lora_b is not None:
            module.lora_a.requires_grad_(recipe != 'stage0')
            module.lora_b.requires_grad_(recipe != 'stage0')
    if vlm.gate is not None:
        _toggle(vlm.gate, recipe in ('stage2', 'scratch'))
    _toggle(model.expert, recipe != 'stage2' if expert is None else expert)
    if not dino:
        _toggle(model.expert.dino, False)
    return [n for n, p in model.named_parameters() if p.requires_grad]


@torch.no_grad()
def to_stage2(bundle: Bundle, gate_depth: int = 4, gate_size: int = 128, seed: int = 0) -> Bundle:
    """Stage-2 model from a stage-1 model: slot 1 is its adapter, slot 0 a language adapter without effect yet.

    Raises:
        ConfigError: the model has not exactly one adapter.
    """
    old = bundle.model
    if old.config.adapters.count != 1:
        raise ConfigError(f'stage 2 starts from a model with one adapter, this one has {old.config.adapters.count}')
    adapters = replace(old.config.adapters, count=2, gate_depth=gate_depth, gate_size=gate_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = InstructVLA(replace(old.config, adapters=adapters)).to(old.vlm.dtype)
    rank = adapters.rank
    source = old.state_dict()
    for name, target in new.state_dict().items():
        if name.endswith('.lora_a'):
            target[rank:] = source[name].cpu()
        elif name.endswith('.lora_b'):
            target.zero_()
            target[:, rank:] = source[name].cpu()
        elif name in source:
            target.copy_(source[name])
    new.vlm.image_id = old.vlm.image_id
    return Bundle(new.to(old.device), bundle.prompts, bundle.statistics, '', bundle.tokenizer_file)


def _toggle(module: nn.Module, on: bool) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(on)
