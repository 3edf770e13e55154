"""The composition: one class for every variant (cameras, arm state, stage, sizes are configuration)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..datatypes import STEP_DIM
from ..errors import ObservationError
from .config import ModelConfig
from .expert import FlowExpert
from .flow import flow_loss, integrate, interpolate
from .prompt import PromptEncoder
from .vlm import Eagle2


@dataclass(frozen=True)
class Batch:
    """Training batch; tensors on one device.

    Attributes:
        ids: (B, N) right-padded. labels: (B, N), -100 where nothing is supervised.
        pixels: (n, 3, S, S) of the images in the order of their placeholders in ``ids``; None without images.
        views: (B, V, 3, S', S') for DINO. actions: (B, H, 7) normalised. proprio: (B, 8) normalised, or None.
        noise: (B, H, 7). t: (B,). valid: (B, H) bool, False after the end of the episode.
        The action part (views .. valid) is None for language-only batches.
    """

    ids: Tensor
    labels: Tensor
    pixels: Tensor | None = None
    views: Tensor | None = None
    actions: Tensor | None = None
    proprio: Tensor | None = None
    noise: Tensor | None = None
    t: Tensor | None = None
    valid: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """Scalars; ``flow`` is 0 for language-only batches. ``latent`` (B, queries, d) for auxiliary losses, or None."""

    flow: Tensor
    ce: Tensor
    latent: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """Flow + cross entropy, 1 : 1."""
        return self.flow + self.ce


class InstructVLA(nn.Module):
    """Eagle2 with latent queries, and the flow expert they feed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vlm = Eagle2(config)
        self.expert = FlowExpert(config)
        self.initialize()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vlm.query_embed.device

    @torch.no_grad()
    def initialize(self) -> None:
        """Initial values of a model trained from scratch: linears and embeddings of the decoders N(0, 0.02)."""
        if self.vlm.query_embed.is_meta:
            return
        for decoder in (self.vlm.decoder, self.expert.decoder):
            for module in decoder.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        for table in (self.vlm.embed_tokens, self.vlm.lm_head):
            nn.init.normal_(table.weight, std=0.02)

    def use_tokenizer(self, prompts: PromptEncoder) -> None:
        """Take the id of the image placeholder from the tokenizer.

        Raises:
            ObservationError: the vocabulary is not the one of this model.
        """
        first = self.config.language.vocab_size
        if prompts.first_query_id != first or prompts.queries != self.config.queries:
            raise ObservationError(
                f'the tokenizer has {prompts.first_query_id} rows and {prompts.queries} queries, '
                f'the model {first} and {self.config.queries}: they do not belong together'
            )
        self.vlm.image_id = prompts.image_id

    def checkpoint_activations(self, on: bool = True) -> None:
        """Trade compute for memory in training: keep only the input of each decoder layer."""
        self.vlm.decoder.checkpointing = on
        self.expert.decoder.checkpointing = on

    def forward(self, batch: Batch, *, mask: str | None = None, mask_padding: bool = True) -> Losses:
        """Losses of a batch.

        Args:
            mask: 'bias' or 'block' instead of the configured mask of the expert.
            mask_padding: leave steps after the end of an episode out of the flow loss; False matches the reference.
        """
        images = None if batch.pixels is None else self.vlm.image_tokens(batch.pixels)
        hidden = self.vlm.hidden(self.vlm.embed(batch.ids, images))
        ce = self.vlm.cross_entropy(hidden, batch.labels)
        if batch.actions is None:
            return Losses(ce.new_zeros(()), ce)
        if batch.views is None or batch.noise is None or batch.t is None:
            raise ObservationError('an action batch needs views, noise and t')
        latent = self.vlm.latent(hidden, self.vlm.query_rows(batch.ids))
        prefix = self.expert.prefix(latent, batch.views, batch.proprio)
        velocity = self.expert.velocity(prefix, interpolate(batch.noise, batch.actions, batch.t), batch.t, mask)
        valid = batch.valid if mask_padding else None
        return Losses(flow_loss(velocity, batch.noise, batch.actions, valid), ce, latent)

    # -- inference, plain: every call recomputes everything; the definition the fast path is tested against -------

    @torch.no_grad()
    def latent(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """(B, queries, d) of action-pass ids (B, N) with one image each, pixels (B, 3, S, S)."""
        hidden = self.vlm.hidden(self.vlm.embed(ids, self.vlm.image_tokens(pixels)))
        return self.vlm.latent(hidden, self.vlm.query_rows(ids))

    @torch.no_grad()
    def sentence(
        self, ids: Tensor, pixels: Tensor, *, end_id: int, limit: int | None = None, logits: list[Tensor] | None = None
    ) -> list[list[int]]:
        """Greedy sentences of prompts (B, N) of one length: each token from a pass over the whole sequence.

        A sentence ends with (and includes) ``end_id`` or the first latent query, or at ``limit`` tokens.
        ``logits`` receives (B, vocabulary) of every step.
        """
        x = self.vlm.embed(ids, self.vlm.image_tokens(pixels))
        stops = torch.tensor([end_id, self.config.language.vocab_size], device=ids.device)
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        out: list[list[int]] = [[] for _ in range(len(ids))]
        for _ in range(limit or self.config.max_new_tokens):
            hidden = self.vlm.hidden(x)
            scores = self.vlm.logits(hidden[:, -1])
            if logits is not None:
                logits.append(scores)
            token = scores.argmax(-1)
            for row, alive in enumerate((~done).tolist()):
                if alive:
                    out[row].append(int(token[row]))
            done |= torch.isin(token, stops)
            if bool(done.all()):
                break
            x = torch.cat((x, self.vlm.lookup(token[:, None])), dim=1)
        return out

    @torch.no_grad()
    def chunk(
        self,
        latent: Tensor,
        views: Tensor,
        proprio: Tensor | None,
        noise: Tensor,
        *,
        steps: int = 10,
        mask: str | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """Normalised actions (B, H, 7) before clipping, from noise (B, H, 7)."""
        prefix = self.expert.prefix(latent, views, proprio)
        step: Callable[[Tensor, Tensor], Tensor] = lambda x, t: self.expert.velocity(prefix, x, t, mask)  # noqa: E731
        return integrate(step, noise, steps, trace)

    def noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, H, 7) standard normal float32, drawn on the generator's device (CPU by default) for reproducibility."""
        device: Any = generator.device if generator else 'cpu'
        drawn = torch.randn(batch, self.config.horizon, STEP_DIM, generator=generator, device=device)
        return drawn.to(self.device)
