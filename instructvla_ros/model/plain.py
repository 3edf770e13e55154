"""Inference in the reference's order of work, to measure the fast path against (specification 11).

The tower runs for the sentence and again for the latent; the base pass executes its adapters on zeroed inputs; both
passes of the action prompt make full-vocabulary logits and include the tokens behind the queries; the expert computes
its whole sequence in every Euler step; the DINO blocks behind the tap run and are thrown away. Numbers that come out
are those of :class:`InstructVLA`. What the reference additionally loses in Python hooks and unfused adapter pairs is
not imitated, so a speed-up measured against this class is on the safe side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder import KVCache
from .dino import FilmBlock
from .fast import FastPath, Session
from .flow import integrate
from .instructvla import InstructVLA


class ReferenceOrder:
    """Same calls as :class:`~.fast.FastPath`, nothing reused between them. For one prompt at a time."""

    def __init__(self, model: InstructVLA) -> None:
        self.model = model
        config = model.config
        like = model.vlm.query_embed
        dead = (  # one at a time: in float32 all of them are 1.3 GB at full size
            FilmBlock(config.dino.width, config.dino.heads, config.language.hidden_size).to(like.device, like.dtype)
            for _ in range(config.dino.depth - config.dino.tap_block - 1)
        )
        self.dead = nn.ModuleList(dead).eval()

    @torch.no_grad()
    def begin(self, pixels: Tensor) -> Session:
        """Start on images (B, 3, S, S)."""
        return FastPath(self.model).begin(pixels)

    @torch.no_grad()
    def sentence(self, pixels: Tensor, ids: Tensor, *, end_id: int, limit: int | None = None) -> list[list[int]]:
        """Greedy sentence with a cache of its own, forgotten afterwards."""
        model, vlm = self.model, self.model.vlm
        limit = limit or model.config.max_new_tokens
        caches = [vlm.decoder.new_cache(len(ids), ids.shape[1] + limit, vlm.query_embed) for _ in range(2)]
        x = vlm.embed(ids, vlm.image_tokens(pixels))
        out: list[list[int]] = [[] for _ in range(len(ids))]
        for _ in range(limit):
            token = vlm.logits(self._pass(x, caches)[:, -1]).argmax(-1)
            for row, value in enumerate(token.tolist()):
                out[row].append(value)
            if out[0][-1] in (end_id, model.config.language.vocab_size):
                break
            x = vlm.lookup(token[:, None])
        return out

    @torch.no_grad()
    def latent(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Latent (B, queries, d) of the whole action prompt."""
        vlm = self.model.vlm
        hidden = self._pass(vlm.embed(ids, vlm.image_tokens(pixels)), None, logits=True)
        return vlm.latent(hidden, vlm.query_rows(ids))

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
    ) -> Tensor:
        """Normalised actions (B, H, 7); every row of every layer in every step."""
        expert = self.model.expert
        features = expert.dino(views, latent.to(expert.dtype))
        condition = latent.mean(1).repeat_interleave(views.shape[1], dim=0).to(expert.dtype)
        behind = features.reshape(len(condition), -1, features.shape[-1])
        for block in self.dead:
            behind = block(behind, condition)
        prefix = expert.join(features, latent, proprio)
        return integrate(lambda x, t: expert.velocity(prefix, x, t, mask, whole=True), noise, steps)

    def _pass(self, x: Tensor, caches: list[KVCache] | None, logits: bool = False) -> Tensor:
        vlm = self.model.vlm
        base, adapted = caches or (None, None)
        if vlm.gate is None:
            gate = vlm.rank_gate(x)
        else:
            hidden = vlm.decoder(x, gate=0.0, cache=base)
            if logits:
                vlm.logits(hidden)
            gate = vlm.gate.rank_weights(hidden)
        hidden = vlm.decoder(x, gate=gate, cache=adapted)
        if logits:
            vlm.logits(hidden)
        out: Tensor = hidden
        return out
