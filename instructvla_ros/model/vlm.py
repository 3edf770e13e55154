"""System 2: the Eagle2 vision-language model with latent queries (specification 3 and 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ObservationError
from .config import ModelConfig
from .decoder import KVCache, qwen2_decoder
from .lora import AdapterGate, Gate
from .prompt import IGNORE
from .stem import ConvStem


def pixel_shuffle(grid: Tensor) -> Tensor:
    """Stack 2x2 neighbours on the channels: (n, h, w, c) -> (n, h/2 * w/2, 4c), row-major (specification 3.2)."""
    n, h, w, c = grid.shape
    cells = grid.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    return cells.reshape(n, (h // 2) * (w // 2), 4 * c)


class Eagle2(nn.Module):
    """SigLIP tower, projector, Qwen2 decoder, adapters, and the latent queries as parameters of their own.

    The rows of the latent queries in the embedding and in the output layer are separate small parameters: only they
    are trained, so nothing of the size of the vocabulary needs a gradient.
    """

    def __init__(self, config: ModelConfig) -> None:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        super().__init__()
        v, t = config.vision, config.language
        self.config = config
        self.tower = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=v.hidden_size,
                intermediate_size=v.intermediate_size,
                num_hidden_layers=v.layers,
                num_attention_heads=v.heads,
                image_size=v.image_size,
                patch_size=v.patch_size,
                layer_norm_eps=v.layer_norm_eps,
                hidden_act='gelu_pytorch_tanh',
                vision_use_head=False,
            )
        )
        if v.stem == 'conv':
            self.tower.get_submodule('embeddings').patch_embedding = ConvStem(v.patch_size, v.hidden_size)
        self.projector = nn.Sequential(
            nn.LayerNorm(4 * v.hidden_size),
            nn.Linear(4 * v.hidden_size, t.hidden_size),
            nn.GELU(),
            nn.Linear(t.hidden_size, t.hidden_size),
        )
        self.embed_tokens = nn.Embedding(t.vocab_size, t.hidden_size)
        self.decoder = qwen2_decoder(t, config.adapters)
        self.lm_head = nn.Linear(t.hidden_size, t.vocab_size, bias=False)
        self.query_embed = nn.Parameter(torch.randn(config.queries, t.hidden_size) * 0.02)
        self.query_head = nn.Parameter(torch.randn(config.queries, t.hidden_size) * 0.02)
        self.gate = AdapterGate(t.hidden_size, config.adapters) if config.stage == 2 else None
        self.image_id = -1  # set from the tokenizer by the composition

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the decoder."""
        return self.query_embed.dtype

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) in [-1, 1] -> (n, image_tokens, d)."""
        return self.project(self.image_features(pixels))

    def image_features(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) in [-1, 1] -> (n, patches, width) of the tower."""
        size = self.config.vision.image_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise ObservationError(f'VLM pixels must be (n, 3, {size}, {size}), got {tuple(pixels.shape)}')
        out: Tensor = self.tower(pixels.to(self.dtype)).last_hidden_state
        return out

    def project(self, features: Tensor) -> Tensor:
        """Tower features (n, patches, width) -> image tokens (n, image_tokens, d)."""
        grid = self.config.vision.grid
        out: Tensor = self.projector(pixel_shuffle(features.unflatten(1, (grid, grid))))
        return out

    def lookup(self, ids: Tensor) -> Tensor:
        """Embeddings (B, N, d) of ids (B, N) by table alone, latent queries included."""
        vocab = self.embed_tokens.num_embeddings
        words: Tensor = self.embed_tokens(ids.clamp(max=vocab - 1))
        queries = F.embedding((ids - vocab).clamp(min=0), self.query_embed)
        return torch.where((ids >= vocab)[..., None], queries, words)

    def embed(self, ids: Tensor, images: Tensor | None = None) -> Tensor:
        """Embeddings (B, N, d) of ids (B, N); image placeholders take the rows of ``images`` (n, tokens, d) in order.

        Raises:
            ObservationError: placeholders and image tokens do not match in number.
        """
        x = self.lookup(ids)
        place = ids == self.image_id
        rows = 0 if images is None else images.shape[0] * images.shape[1]
        if int(place.sum()) != rows:
            raise ObservationError(f'the prompt has {int(place.sum())} image tokens, the images give {rows}')
        if images is not None and rows:
            x = x.masked_scatter(place[..., None], images.to(x.dtype))
        return x

    def rank_gate(self, x: Tensor, cache: KVCache | None = None, **kwargs: Tensor | None) -> Gate:
        """Gate of every token of embeddings x (B, N, d): stage 1 the LoRA scale, stage 2 from the base pass.

        The base pass carries no gradient (specification 4.4). ``kwargs``: mask, positions.
        """
        if self.gate is None:
            return self.config.adapters.scale if self.config.adapters.count else None
        with torch.no_grad():
            hidden = self.decoder(x, cache=cache, **kwargs)
        return self.gate.rank_weights(hidden)

    def hidden(
        self, x: Tensor, rows: Tensor | None = None, lengths: Tensor | None = None, groups: int = 1
    ) -> Tensor:
        """Final-norm output of embeddings x (B, N, d); right padding needs no mask under causality.

        Args:
            rows: (B, R) positions whose output is wanted; the last layer computes no others.
            lengths: (B,) tokens of each row that matter, beyond all of ``rows``. groups: of equally many rows, by
                length, each computed only as far as its longest. Their number is always the same, so that processes
                that share the weights stay together.

        Returns:
            (B, N, d), or (B, R, d) with ``rows``.
        """
        if rows is None or lengths is None or groups < 2:
            out: Tensor = self.decoder(x, gate=self.rank_gate(x), rows=rows)
            return out
        order = lengths.argsort(stable=True)
        some = order.tensor_split(min(groups, len(x)))
        parts = [self.hidden(x[k, : int(lengths[k].max())], rows[k]) for k in some]
        return torch.cat(parts)[order.argsort()]

    def read_rows(self, ids: Tensor, labels: Tensor) -> Tensor:
        """(B, R) positions that a loss reads: of latent queries, and those before a supervised token.

        Where a row has fewer than the others, its last one (or the first position) is repeated.
        """
        read = ids >= self.embed_tokens.num_embeddings
        read[:, :-1] |= labels[:, 1:] != IGNORE
        counts = read.sum(1)
        most = max(int(counts.max()), 1)
        # Read positions first, in their order; the places behind them are filled.
        order = (~read).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        last = (counts - 1).clamp(min=0)[:, None]
        return order.gather(1, torch.arange(most, device=ids.device).minimum(last))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., vocabulary + queries)."""
        return torch.cat((self.lm_head(hidden), F.linear(hidden, self.query_head)), dim=-1)

    def query_rows(self, ids: Tensor) -> Tensor:
        """(B, queries) positions of the latent queries in ids (B, N).

        Raises:
            ObservationError: a row does not hold each query exactly once.
        """
        q = self.config.queries
        found = ids >= self.embed_tokens.num_embeddings
        counts = found.sum(1)
        if not bool((counts == q).all()):
            raise ObservationError(f'each prompt needs the {q} latent queries once, got {counts.tolist()} of them')
        return found.nonzero()[:, 1].view(ids.shape[0], q)

    @staticmethod
    def places(rows: Tensor, wanted: Tensor) -> Tensor:
        """(B, Q) where in rows (B, R), ascending, the positions ``wanted`` (B, Q) stand."""
        return torch.searchsorted(rows, wanted)

    def latent(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Gather (B, queries, d) of hidden (B, N, d) at rows (B, queries)."""
        return hidden.gather(1, rows[:, :, None].expand(-1, -1, hidden.shape[-1]))

    def cross_entropy(self, hidden: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean next-token loss in float32 over supervised positions; logits only where they are needed.

        Args:
            hidden: (B, N, d), or (B, R, d) of the positions ``rows`` (B, R) that :meth:`read_rows` gives.

        Returns 0 (connected to the graph) when nothing is supervised.
        """
        target = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        if rows is not None:
            again = F.pad(rows[:, 1:] == rows[:, :-1], (1, 0))
            target = target.gather(1, rows).masked_fill(again, IGNORE)
        wanted = target != IGNORE
        if not bool(wanted.any()):
            return hidden.sum() * 0.0
        return F.cross_entropy(self.logits(hidden[wanted]).float(), target[wanted])
