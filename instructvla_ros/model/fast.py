"""The fast inference path: same numbers as :class:`InstructVLA`'s plain methods, with nothing computed twice.

What it leaves out (specification 11.1): the SigLIP tower runs once per frame; prompt, sentence and latent share key and
value caches, one for the base pass that feeds the gate and one for the adapted pass; the base pass runs without
adapters; logits exist only for the token being chosen; the last layer runs only for the rows that are read; tokens
behind the latent queries are dropped; in 'block' mode the prefix of the expert is computed once for all Euler steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .decoder import KVCache
from .flow import integrate
from .instructvla import InstructVLA
from .lora import Gate, LoraLinear
from .packed import PackedLinear, can_pack, pays_from
from .realtime import Guide, sample_guided

OnToken = Callable[[int], None]
_SMALL_MATRIX = 1 << 20  # numbers; larger ones stay in the file they are mapped from


@dataclass
class Session:
    """One frame (or B frames): its image tokens, and what the decoder has read so far.

    Attributes:
        images: (B, tokens, d). ids: (B, N) token ids in the caches. base, adapted: the two caches.
    """

    images: Tensor
    ids: Tensor
    base: KVCache | None = None
    adapted: KVCache | None = None
    tower_runs: int = field(default=1)

    @property
    def length(self) -> int:
        """Tokens in the caches."""
        return self.ids.shape[1]


class FastPath:
    """Inference on a model in evaluation mode. Sessions are independent, so threads may work on one each.

    Args:
        model: the weights; not changed.
        headroom: positions kept free in the caches for a sentence and the latent queries.
    """

    def __init__(self, model: InstructVLA, headroom: int | None = None) -> None:
        self.model = model
        config = model.config
        self.headroom = config.max_new_tokens + config.queries + 16 if headroom is None else headroom
        self._masks: dict[tuple[str, int], Tensor] = {}

    # -- System 2 ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, pixels: Tensor) -> Session:
        """Start on images (B, 3, S, S), one per row."""
        images = self.model.vlm.image_tokens(pixels)
        return Session(images, torch.zeros(len(pixels), 0, dtype=torch.long, device=images.device))

    @torch.no_grad()
    def sentence(
        self,
        session: Session,
        ids: Tensor,
        *,
        end_id: int,
        limit: int | None = None,
        on_token: OnToken | None = None,
        logits: list[Tensor] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[list[int]]:
        """Greedy sentences of prompts (B, N) of one length. See :meth:`InstructVLA.sentence`.

        Args:
            on_token: called with every token of row 0 as it is chosen.
            stop: asked before every token; True ends the sentence early.
        """
        config = self.model.config
        first_query = config.language.vocab_size
        out: list[list[int]] = [[] for _ in range(len(ids))]
        done = [False] * len(ids)
        scores, token = self._choose(self._read(session, ids, self._last(ids)))
        for step in range(limit or config.max_new_tokens):
            if stop is not None and stop():
                break
            if logits is not None:
                logits.append(scores)
            chosen = token.tolist()  # the one synchronisation per token
            for row, value in enumerate(chosen):
                if not done[row]:
                    out[row].append(value)
                    done[row] = value == end_id or value == first_query
            if on_token is not None and len(out[0]) == step + 1:
                on_token(chosen[0])
            if all(done) or step + 1 == (limit or config.max_new_tokens):
                break
            scores, token = self._next(session, token)
        return out

    @torch.no_grad()
    def latent(self, session: Session, ids: Tensor) -> Tensor:
        """Latent (B, queries, d) of action-pass ids (B, N), reusing what the session has read of the same prompt."""
        rows = self.model.vlm.query_rows(ids)
        ids = ids[:, : int(rows.max()) + 1]  # nothing behind the queries can influence them
        return self._read(session, ids, rows)

    def _choose(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, vocabulary) of the last of hidden states (B, n, d), and the best token (B,)."""
        scores = self.model.vlm.logits(hidden[:, -1])
        return scores, scores.argmax(-1)

    def _next(self, session: Session, token: Tensor) -> tuple[Tensor, Tensor]:
        """Append tokens (B,) and choose the ones that follow."""
        ids = token[:, None]
        return self._choose(self._extend(session, ids, self.model.vlm.lookup(ids), None))

    def _read(self, session: Session, ids: Tensor, rows: Tensor) -> Tensor:
        """Hidden states (B, R, d) at ``rows`` of ids (B, N), continuing from the common prefix with the session."""
        vlm = self.model.vlm
        n = min(session.length, ids.shape[1], int(rows.min()))
        same = (session.ids[:, :n] == ids[:, :n]).all(0)
        common = n if bool(same.all()) else int((~same).nonzero()[0])
        place = (ids == vlm.image_id).any(0).nonzero()
        if common and len(place) and common <= int(place[-1]):
            common = 0  # image rows are handed out from the first placeholder on
        session.ids = session.ids[:, :common]
        fresh = ids[:, common:]
        x = vlm.embed(fresh, session.images if not common else None)
        self._make_room(session, ids.shape[1])
        for cache in (session.base, session.adapted):
            if cache is not None:
                cache.length = common
        return self._extend(session, fresh, x, rows - common)

    def _extend(self, session: Session, ids: Tensor, x: Tensor, rows: Tensor | None) -> Tensor:
        """Append embeddings x (B, n, d) of ids (B, n) to both caches; hidden states at ``rows`` (default all)."""
        vlm = self.model.vlm
        self._make_room(session, session.length + ids.shape[1])
        gate: Gate = vlm.rank_gate(x, session.base)
        hidden: Tensor = vlm.decoder(x, gate=gate, cache=session.adapted, rows=rows)
        session.ids = torch.cat((session.ids, ids), dim=1)
        return hidden

    def _make_room(self, session: Session, length: int) -> None:
        if session.adapted is not None and session.adapted.capacity >= length:
            return
        decoder, capacity = self.model.vlm.decoder, length + self.headroom
        for name in ('base', 'adapted') if self.model.vlm.gate is not None else ('adapted',):
            new = decoder.new_cache(len(session.images), capacity, self.model.vlm.query_embed)
            old = getattr(session, name)
            if old is not None:
                new.copy_prefix(old, old.length)
            setattr(session, name, new)

    def _last(self, ids: Tensor) -> Tensor:
        return torch.full((len(ids), 1), ids.shape[1] - 1, device=ids.device)

    # -- System 1 ----------------------------------------------------------------------------------------------------

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
        guide: Guide | None = None,
    ) -> Tensor:
        """Normalised actions (B, H, 7) before clipping. See :meth:`InstructVLA.chunk`.

        ``guide`` makes every row continue the chunk being executed (:func:`~.realtime.sample_guided`).
        """
        prefix = self.model.expert.prefix(latent, views, proprio)
        velocity = self._blocked(prefix) if (mask or self.model.config.expert.mask) == 'block' else self._biased(prefix)
        if guide is None:
            return integrate(velocity, noise, steps, trace)
        previous = torch.from_numpy(guide.previous)[None]
        return sample_guided(
            velocity, noise, previous, guide.delay_steps, guide.execution_steps, guide.beta, steps, trace
        )

    def _blocked(self, prefix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Under the block mask the prefix does not see the actions: its keys and values serve every Euler step."""
        expert = self.model.expert
        batch, length, _ = prefix.shape
        cache = expert.decoder.new_cache(batch, length + self.model.config.horizon, prefix)
        # Of the last layer only keys and values are needed; one row is the least it can compute.
        nothing = torch.zeros(batch, 1, dtype=torch.long, device=prefix.device)
        expert.decoder(prefix, mask=self._mask('block', length, prefix), cache=cache, rows=nothing)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            cache.length = length
            return expert.read(expert.decoder(expert.action_embed(x, t), causal=False, cache=cache))

        return velocity

    def _biased(self, prefix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Under the bias all tokens see the actions: the sequence is computed anew, its last layer for the actions."""
        expert = self.model.expert
        batch, length, _ = prefix.shape
        total = length + self.model.config.horizon
        mask = self._mask('bias', total, prefix)
        rows = torch.arange(length, total, device=prefix.device).expand(batch, -1)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            tokens = torch.cat((prefix, expert.action_embed(x, t)), dim=1)
            return expert.read(expert.decoder(tokens, mask=mask, rows=rows))

        return velocity

    def _mask(self, kind: str, rows: int, like: Tensor) -> Tensor:
        key = (f'{kind}{like.dtype}{like.device}', rows)
        if key not in self._masks:
            mask = self.model.expert.mask(rows, like.device, kind)
            self._masks[key] = mask.to(like.dtype) if kind == 'bias' else mask
        return self._masks[key]


@torch.no_grad()
def merge_adapters(model: InstructVLA) -> None:
    """Fold the stage-1 adapter into the weights, for serving. The model can no longer be trained or saved as stage 1.

    Equal up to the rounding of one sum of weights. A stage-2 model is left alone: its gate differs per token.
    """
    if model.config.adapters.count != 1:
        return
    for module in model.vlm.decoder.modules():
        if isinstance(module, LoraLinear):
            module.merge(model.config.adapters.scale)


@torch.no_grad()
def lay_out_weights(
    model: InstructVLA, *, pack: bool = True, expert: bool = True, pack_from: int | None = None
) -> None:
    """Store the matrices of a model on a CPU in the order in which they are multiplied fastest, for serving.

    Large ones are packed (:mod:`~.packed`): the model can no longer be trained or saved. In float32 the others, and
    the output layer, which reads one row at a time, are stored by inputs: a product of few rows then takes half the
    time. Values stay; results change by rounding.

    Args:
        pack: False: no matrix is packed. expert: False: none of the action expert, for guided chunks, which need its
            derivative.
        pack_from: numbers in a matrix from which it is packed; None: :func:`~.packed.pays_from`.
    """
    number, head = model.vlm.dtype, model.vlm.lm_head
    if model.device.type != 'cpu':
        return
    if pack_from is None:
        pack_from = pays_from(number)
    if not pack or not can_pack(number):
        pack_from = sys.maxsize
    # With a bias that wants a gradient oneDNN takes its slow reference kernel in bfloat16, unless under no_grad.
    model.requires_grad_(False)
    whole = set() if expert else set(model.expert.modules())
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.Linear) or layer.weight is None:
                continue
            one_row = layer is head and number == torch.float32
            if layer.weight.numel() >= pack_from and not one_row and layer not in whole:
                if not isinstance(layer, LoraLinear):
                    setattr(parent, name, PackedLinear(layer))
                    continue
                layer.pack()
            for key in ('weight', 'lora_a', 'lora_b'):
                weight = getattr(layer, key, None)
                if weight is not None and number == torch.float32 and (one_row or weight.numel() <= _SMALL_MATRIX):
                    weight.data = weight.data.t().contiguous().t()
