"""Time one optimiser step against the same step in the reference's order of work, side by side, on random weights.

What the reference does and this package does not, without a difference in what is learned (specification 4.2, 5.2, 11):
the DINO blocks behind the tap run and are thrown away; the whole embedding and output matrices carry gradients and Adam
state for the few rows of the latent queries, whose other rows a hook sets to zero; every position of the sequence gets
logits over the whole vocabulary, in stage 2 also in the base pass of the gate, which runs the adapters on zeros and
evaluates a loss that nobody uses; the last layers compute rows that nobody reads; AdamW passes over every weight once
per operation, not once in all; matrices that are not trained are multiplied by rows; each adapter multiplies its own
copy of the input, scaled by its gate, and is added by itself (4.4). The parameters that move are the same, and so is
the loss, which is compared. What Python hooks cost the reference is not imitated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.bench import IMAGE_ID, random_model, with_stage
from ..model.config import ModelConfig, preset
from ..model.device import pick_device
from ..model.dino import FilmBlock
from ..model.flow import flow_loss, interpolate
from ..model.frozen import pack_frozen
from ..model.instructvla import Batch, InstructVLA
from ..model.lora import Gate, LoraLinear
from ..model.prompt import IGNORE
from ..model.trainable import set_trainable

WORDS_BEFORE, WORDS_AFTER, ANSWER = 15, 26, 16


@dataclass(frozen=True)
class StepTiming:
    """Median seconds of an optimiser step both ways.

    Attributes:
        difference: of the two losses in the first step, relative. trained: parameters with gradients, plain and ours.
        repeats: how often each was measured.
    """

    size: str
    recipe: str
    batch: int
    plain: float
    fast: float
    difference: float
    trained_plain: int
    trained_fast: int
    repeats: int

    @property
    def ratio(self) -> float:
        """How many times faster."""
        return self.plain / self.fast

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.__dict__, 'ratio': self.ratio}

    def text(self) -> str:
        """For people."""
        return (
            f'{self.size}, {self.recipe}, batch {self.batch}: {self.plain:.3f} s in the reference order, '
            f'{self.fast:.3f} s here, {self.ratio:.2f} times faster (median of {self.repeats}; loss differs by '
            f'{self.difference:.1e}; gradients for {self.trained_plain / 1e6:.2f} and {self.trained_fast / 1e6:.2f} M)'
        )


class PlainStep(nn.Module):
    """The forward pass of a training step in the reference's order of work."""

    def __init__(self, model: InstructVLA) -> None:
        super().__init__()
        self.model = model
        config, vlm = model.config, model.vlm
        like = vlm.query_embed
        self.dead = nn.ModuleList(
            FilmBlock(config.dino.width, config.dino.heads, config.language.hidden_size)
            for _ in range(config.dino.depth - config.dino.tap_block - 1)
        ).to(like.device, like.dtype)
        for parameter in self.dead.parameters():
            parameter.requires_grad_(model.expert.action_embed.linear_1.weight.requires_grad)
        vlm.query_embed.requires_grad_(False)
        vlm.query_head.requires_grad_(False)
        self.embedding = nn.Parameter(torch.cat((vlm.embed_tokens.weight, vlm.query_embed)).detach())
        self.head = nn.Parameter(torch.cat((vlm.lm_head.weight, vlm.query_head)).detach())
        for module in vlm.decoder.modules():
            if isinstance(module, LoraLinear):
                module.forward = MethodType(one_by_one, module)  # type: ignore[method-assign]
        for weight in (self.embedding, self.head):
            weight.register_hook(self._only_queries)

    def _only_queries(self, gradient: Tensor) -> Tensor:
        mask = torch.zeros_like(gradient)
        mask[-self.model.config.queries :] = 1.0
        return gradient * mask

    def forward(self, batch: Batch) -> Tensor:
        """Flow loss and cross entropy, summed."""
        vlm, expert = self.model.vlm, self.model.expert
        assert batch.pixels is not None and batch.views is not None
        assert batch.actions is not None and batch.noise is not None and batch.t is not None
        x = self._embed(batch)
        if vlm.gate is not None:
            with torch.no_grad():
                base = vlm.decoder(x, gate=0.0)
                self._words(base, batch.labels)
            gate: Any = vlm.gate.rank_weights(base)
        else:
            gate = vlm.config.adapters.scale
        hidden = vlm.decoder(x, gate=gate)
        ce = self._words(hidden, batch.labels)
        latent = vlm.latent(hidden, vlm.query_rows(batch.ids))
        features = expert.features(latent, batch.views)
        condition = latent.mean(1).repeat_interleave(batch.views.shape[1], dim=0).to(expert.dtype)
        behind = features.reshape(len(condition), -1, features.shape[-1])
        for block in self.dead:
            behind = block(behind, condition)
        prefix = expert.join(features, latent, batch.proprio)
        noisy = interpolate(batch.noise, batch.actions, batch.t)
        velocity = expert.velocity(prefix, noisy, batch.t, whole=True)
        return flow_loss(velocity, batch.noise, batch.actions, batch.valid) + ce

    def _words(self, hidden: Tensor, labels: Tensor) -> Tensor:
        scores = F.linear(hidden, self.head).float()
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)

    def _embed(self, batch: Batch) -> Tensor:
        assert batch.pixels is not None
        images = self.model.vlm.image_tokens(batch.pixels)
        x = F.embedding(batch.ids, self.embedding)
        return x.masked_scatter((batch.ids == IMAGE_ID)[..., None], images.to(x.dtype))


def one_by_one(layer: LoraLinear, x: Tensor, gate: Gate = None) -> Tensor:
    """:meth:`LoraLinear.forward` adapter by adapter: of several the input is scaled, of a single one the output."""
    out, a, b = layer.base(x), layer.lora_a, layer.lora_b
    if gate is None or a is None or b is None:
        return out
    if layer.count == 1:
        return out + F.linear(F.linear(x, a), b) * (gate if isinstance(gate, float) else gate[..., :1])
    for first in range(0, layer.count * layer.rank, layer.rank):
        own = slice(first, first + layer.rank)
        factor = gate if isinstance(gate, float) else gate[..., first : first + 1]
        out = out + F.linear(F.linear(x * factor, a[own]), b[:, own])
    return out


class OurStep(nn.Module):
    """The forward pass as `instructvla train` runs it."""

    def __init__(self, model: InstructVLA) -> None:
        super().__init__()
        self.model = model
        pack_frozen(model)

    def forward(self, batch: Batch) -> Tensor:
        """Flow loss and cross entropy, summed."""
        out: Tensor = self.model(batch).total
        return out


def measure_step(
    size: str = 'medium',
    recipe: str = 'stage1',
    *,
    batch: int = 4,
    repeats: int = 5,
    device: str = 'auto',
    threads: int = 0,
    progress: Callable[[str], None] | None = None,
) -> StepTiming:
    """Median time of an optimiser step (forward, backward, clip, AdamW) both ways, alternating.

    Args:
        size: preset. recipe: stage1, stage2 or onsite. threads: of torch on a CPU; 0 leaves them.

    Raises:
        ConfigError: unknown preset or recipe.
    """
    say = progress or (lambda what: None)
    if threads:
        torch.set_num_threads(threads)
    place = pick_device(device)
    config = with_stage(preset(size), 2 if recipe == 'stage2' else 1)
    config = replace(config, adapters=replace(config.adapters, dropout=0.0, gate_dropout=0.0))
    config = replace(config, expert=replace(config.expert, dropout=0.0))
    data = make_batch(config, batch, place)
    steps = []
    for name, kind in (('reference order', PlainStep), ('ours', OurStep)):
        say(f'making the weights, {name}')
        model = random_model(config, place, torch.float32)
        set_trainable(model, recipe)
        steps.append(_Stepper(kind(model).train(), data, fused=kind is OurStep))
    say('one step of each to warm up')
    losses = [s.step() for s in steps]
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(repeats):
        say(f'step {k + 1} of {repeats}')
        for stepper, found in zip(steps, times, strict=True):
            _wait(place)
            began = time.perf_counter()
            stepper.step()
            _wait(place)
            found.append(time.perf_counter() - began)
    return StepTiming(
        size,
        recipe,
        batch,
        statistics.median(times[0]),
        statistics.median(times[1]),
        abs(losses[0] - losses[1]) / max(abs(losses[1]), 1e-9),
        steps[0].trained,
        steps[1].trained,
        repeats,
    )


class _Stepper:
    def __init__(self, module: nn.Module, data: Batch, fused: bool) -> None:
        self.module, self.data = module, data
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-6, weight_decay=0.0, fused=fused)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.module(self.data)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return float(loss.detach())


def make_batch(config: ModelConfig, rows: int, device: torch.device) -> Batch:
    """Random frames with prompts of the usual lengths: one picture, an instruction, an answer, the queries."""
    g = torch.Generator().manual_seed(2)
    vocab, size, dino = config.language.vocab_size, config.vision.image_size, config.dino.image_size
    parts = [
        torch.randint(6, vocab, (rows, WORDS_BEFORE), generator=g),
        torch.full((rows, config.vision.image_tokens), IMAGE_ID),
        torch.randint(6, vocab, (rows, WORDS_AFTER + ANSWER), generator=g),
        torch.arange(vocab, vocab + config.queries).expand(rows, -1),
        torch.randint(6, vocab, (rows, 2), generator=g),
    ]
    ids = torch.cat(parts, dim=1)
    labels = torch.full_like(ids, IGNORE)
    labels[:, -(ANSWER + config.queries + 2) : -1] = ids[:, -(ANSWER + config.queries + 2) : -1]
    made = Batch(
        ids=ids,
        labels=labels,
        pixels=torch.rand(rows, 3, size, size, generator=g) * 2 - 1,
        views=torch.randn(rows, config.views, 3, dino, dino, generator=g),
        actions=torch.rand(rows, config.horizon, 7, generator=g) * 2 - 1,
        proprio=torch.rand(rows, 8, generator=g) * 2 - 1 if config.proprio else None,
        noise=torch.randn(rows, config.horizon, 7, generator=g),
        t=torch.rand(rows, generator=g),
        valid=torch.ones(rows, config.horizon, dtype=torch.bool),
    )
    return made.to(device)


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
