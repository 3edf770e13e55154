"""What a run would train and the memory it needs, without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.episodes import Dataset
from ..model.checkpoint import open_source
from ..model.config import ModelConfig, preset
from ..model.frozen import frozen_matrices
from ..model.instructvla import InstructVLA
from ..model.trainable import set_trainable
from .optimizer import inner_matrices
from .precision import mixed_precision
from .settings import Training

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """Answer of ``--dry-run``.

    Attributes:
        parameters, trainable: counts. parts: trainable parameters by part of the model.
        weights_gb, packed_gb, gradients_gb, optimizer_gb, activations_gb: of one process without sharding; packed are
            the copies by which a CPU multiplies (:mod:`~instructvla_ros.model.frozen`). The activations are an estimate
            from the shapes (kept inputs of linears and attention), good to about a factor of two.
    """

    recipe: str
    model: str
    parameters: int
    trainable: int
    parts: dict[str, int]
    episodes: int
    frames: int
    samples: int
    epochs: float
    weights_gb: float
    packed_gb: float
    gradients_gb: float
    optimizer_gb: float
    activations_gb: float

    @property
    def total_gb(self) -> float:
        """Sum of the five."""
        return self.weights_gb + self.packed_gb + self.gradients_gb + self.optimizer_gb + self.activations_gb

    def text(self) -> str:
        """For people."""
        lines = [
            f'{self.recipe} of {self.model}: {self.trainable / 1e6:.2f} of {self.parameters / 1e6:.2f} M parameters',
            *(f'  {name:<22} {count / 1e6:8.2f} M' for name, count in self.parts.items() if count),
            f'{self.episodes} episodes, {self.frames} frames; {self.samples} samples are {self.epochs:.1f} epochs'
            if self.frames
            else f'no dataset named yet; {self.samples} samples',
            f'memory of one process: {self.total_gb:.1f} GB = weights {self.weights_gb:.1f} + packed copies '
            f'{self.packed_gb:.1f} + gradients {self.gradients_gb:.1f} + optimiser {self.optimizer_gb:.1f} '
            f'+ activations ~{self.activations_gb:.1f}',
        ]
        return '\n'.join(lines)


def plan(options: Training) -> Plan:
    """Work it out on the meta device; nothing is loaded.

    Raises:
        ConfigError, DataError, CheckpointError: as the run itself would.
    """
    config = open_source(options.init).config if options.init else preset(options.model)
    if options.gains_adapter(config.stage):
        from ..config import replace

        config = replace(config, adapters=replace(config.adapters, count=2))
    with torch.device('meta'):
        model = InstructVLA(config)
    names = set(set_trainable(model, options.recipe, dino=options.dino))
    parts: dict[str, int] = {}
    total = trained = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if name in names:
            trained += parameter.numel()
            part = _part(name)
            parts[part] = parts.get(part, 0) + parameter.numel()
    # AdamW keeps two numbers of each weight, Muon one.
    single = sum(p.numel() for p in inner_matrices(model)) if options.optimizer == 'muon' else 0
    datasets = [Dataset.open(d) for d in options.datasets]
    frames = sum(d.frames for d in datasets)
    samples = options.steps * options.batch
    width = 2 if mixed_precision(options.precision) == 'bf16' else 4
    return Plan(
        options.recipe,
        options.init or options.model,
        total,
        trained,
        dict(sorted(parts.items(), key=lambda item: -item[1])),
        sum(len(d) for d in datasets),
        frames,
        samples,
        samples / max(1, frames),
        total * 4 / GB,
        _packed(model, options) * width / GB,
        trained * 4 / GB,
        (trained * 2 - single) * 4 / GB,
        _activations(config, options) * width / GB,
    )


def _packed(model: InstructVLA, options: Training) -> int:
    """Numbers in packed copies: of each matrix forward and transposed."""
    if torch.cuda.is_available() or options.sharded:
        return 0
    return 2 * sum(layer.weight.numel() for _, _, layer in frozen_matrices(model))


def _part(name: str) -> str:
    if 'lora' in name:
        return 'adapters'
    for start, part in (
        ('vlm.gate', 'gate'),
        ('vlm.query', 'latent queries'),
        ('vlm.tower', 'SigLIP'),
        ('vlm.projector', 'projector'),
        ('vlm.', 'language model'),
        ('expert.dino', 'FiLM-DINOv2'),
        ('expert.', 'action expert'),
    ):
        if name.startswith(start):
            return part
    return 'other'


def _activations(config: ModelConfig, options: Training) -> float:
    """Numbers kept for the backward pass of one part of a batch."""
    rows = max(1, options.batch // options.accumulate)
    text = config.vision.image_tokens + 64 + config.queries
    passes = config.stage
    one = options.checkpoint_activations

    def stack(tokens: int, layers: int, width: int, inner: int) -> float:
        return tokens * layers * (width if one else 8 * width + 3 * inner)

    language, vision, expert, dino = config.language, config.vision, config.expert, config.dino
    total = passes * stack(text, language.layers, language.hidden_size, language.intermediate_size)
    if options.recipe in ('stage0', 'scratch'):
        total += stack(vision.grid**2, vision.layers, vision.hidden_size, vision.intermediate_size)
    tokens = config.prefix_length + options.draws * config.horizon
    total += stack(tokens, expert.layers, expert.hidden_size, expert.intermediate_size)
    blocks = dino.tap_block + 1
    total += config.views * (dino.patches + 1 + dino.registers) * blocks * 16 * dino.width
    return rows * (total + 2 * text * language.vocab_size * (0.2 if config.reasons else 0.1))
