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
        noise: (B, H, 7) and t: (B,); or (B, R, H, 7) and (B, R): R draws per row, block mask only.
        valid: (B, H) bool, False after the end of the episode.
        picture: (k,) row of ``pixels`` for every image of ``ids``, so that several dialogues share one; None: in order.
        All of views .. valid is None for language-only batches; with views alone the features are computed.
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
    picture: Tensor | None = None

    def lengths(self) -> Tensor:
        """(B,) tokens of each row up to the last that is supervised or differs from the last of the row (padding)."""
        places = torch.arange(1, self.ids.shape[1] + 1, device=self.ids.device)
        matters = (self.ids != self.ids[:, -1:]) | (self.labels != -100)
        return (matters * places).amax(1).clamp(min=1)

    def to(self, device: torch.device) -> Batch:
        """Copy on a device."""
        moved: dict[str, Any] = {k: None if v is None else v.to(device) for k, v in vars(self).items()}
        return Batch(**moved)


@dataclass(frozen=True)
class Losses:
    """Scalars, and what auxiliary losses may be made from.

    Attributes:
        flow: 0 for language-only batches. ce: cross entropy.
        latent: (B, queries, d). features: (B, patches * views, width) of DINO.
        image_features: (n, patches, width) of the SigLIP tower. image_tokens: (n, tokens, d) as the decoder reads them.
        velocity: (B, H, 7), or (B * R, H, 7). Each is None where a batch has no such part.
    """

    flow: Tensor
    ce: Tensor
    latent: Tensor | None = None
    features: Tensor | None = None
    image_features: Tensor | None = None
    velocity: Tensor | None = None
    image_tokens: Tensor | None = None

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

    def forward(
        self, batch: Batch, *, mask: str | None = None, mask_padding: bool = True, length_groups: int = 1
    ) -> Losses:
        """Losses of a batch.

        Args:
            length_groups: parts, by length, in which the decoder runs through the rows (:meth:`.Eagle2.hidden`).
            mask: 'bias' or 'block' instead of the configured mask of the expert.
            mask_padding: leave steps after the end of an episode out of the flow loss; False matches the reference.
        """
        seen = None if batch.pixels is None else self.vlm.image_features(batch.pixels)
        images = None if seen is None else self.vlm.project(seen)
        if seen is not None and images is not None and batch.picture is not None:
            seen, images = seen[batch.picture], images[batch.picture]
        lengths = batch.lengths() if length_groups > 1 else None
        rows = self.vlm.read_rows(batch.ids, batch.labels)
        hidden = self.vlm.hidden(self.vlm.embed(batch.ids, images), rows, lengths, length_groups)
        ce = self.vlm.cross_entropy(hidden, batch.labels, rows)
        if batch.views is None and batch.actions is None:
            return Losses(ce.new_zeros(()), ce, image_features=seen, image_tokens=images)
        if batch.views is None or (batch.actions is not None and (batch.noise is None or batch.t is None)):
            raise ObservationError('an action batch needs views, noise and t')
        latent = self.vlm.latent(hidden, self.vlm.places(rows, self.vlm.query_rows(batch.ids)))
        features = self.expert.features(latent, batch.views)
        if batch.actions is None or batch.noise is None or batch.t is None:
            return Losses(ce.new_zeros(()), ce, latent, features, seen, image_tokens=images)
        prefix = self.expert.join(features, latent, batch.proprio)
        noise, t, actions, valid = batch.noise, batch.t, batch.actions, batch.valid if mask_padding else None
        if noise.dim() == 4:
            if (mask or self.config.expert.mask) != 'block':
                raise ObservationError("several draws of noise per row need the expert mask 'block'")
            draws = noise.shape[1]
            actions, noise = actions.repeat_interleave(draws, dim=0), noise.flatten(0, 1)
            valid = None if valid is None else valid.repeat_interleave(draws, dim=0)
            noisy = interpolate(noise, actions, t.flatten()).unflatten(0, (-1, draws))
            velocity = self.expert.velocity_of_draws(prefix, noisy, t).flatten(0, 1)
        else:
            velocity = self.expert.velocity(prefix, interpolate(noise, actions, t), t, mask)
        return Losses(flow_loss(velocity, noise, actions, valid), ce, latent, features, seen, velocity, images)

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
