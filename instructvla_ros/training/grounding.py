"""Losses that teach where the named thing is. They exist only in training and leave no weights in the checkpoint.

A released model starts from a VLM and a DINO that already know objects. A model trained from scratch on a few
thousand scenes does not, and the flow loss alone teaches it to go to some object, not to the named one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.config import ModelConfig
from ..model.instructvla import Losses
from ..model.prompt import PromptEncoder
from .examples import CLASSES, COLORS, SHAPES, SIZES, Labels

CELLS = 2
"""Pointing is this many times finer than the patches, along each side."""
RARE = -6.0
"""First logit of a patch label: about one in four hundred is true."""
WORDS = (*COLORS, *SHAPES, 'drawer', *SIZES)
PATCH_LABELS = CLASSES + len(SIZES)


class Grounding(nn.Module):
    """Heads on the SigLIP patches, the DINO patches and the latent.

    Args:
        words: token ids of :data:`WORDS`, for the loss 'words'; empty without it.
    """

    words: Tensor

    def __init__(self, config: ModelConfig, words: Sequence[int] = ()) -> None:
        super().__init__()
        self.config = config
        self.register_buffer('words', torch.tensor(list(words), dtype=torch.long), persistent=False)
        self.sharpness = nn.Parameter(torch.tensor([8.0, -4.0]))
        width = config.dino.width
        self.seen = nn.Linear(config.vision.hidden_size, PATCH_LABELS)
        self.felt = nn.Linear(width, PATCH_LABELS)
        self.pointer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * CELLS * CELLS))
        self.where = nn.Sequential(nn.Linear(config.language.hidden_size, width), nn.GELU(), nn.Linear(width, 4))
        self.what = nn.Linear(config.language.hidden_size, 2 * CLASSES)
        for head in (self.seen, self.felt):
            nn.init.constant_(head.bias, RARE)

    def maps(self, features: Tensor) -> Tensor:
        """(B, V, 2, n, n) logits of where target and destination are, from DINO features (B, patches * V, width)."""
        views, grid = self.config.views, self.config.dino.image_size // self.config.dino.patch_size
        cells = self.pointer(features).unflatten(1, (grid, grid, views)).unflatten(-1, (2, CELLS, CELLS))
        # (B, row, column, V, 2, sub-row, sub-column) -> (B, V, 2, row, sub-row, column, sub-column)
        return cells.permute(0, 3, 4, 1, 5, 2, 6).flatten(3, 4).flatten(4, 5)

    def forward(self, losses: Losses, labels: Labels, embeddings: Tensor) -> dict[str, Tensor]:
        """Losses by name: 'pointing', 'patches', 'words', 'latent', 'naming', as far as the batch has the parts.

        Args:
            embeddings: (vocabulary, d) of the decoder.
        """
        if losses.image_features is None:
            raise ValueError('grounding needs the features of the pictures')
        out = {'patches': self._patches(losses, labels)}
        if len(self.words) and losses.image_tokens is not None:
            out['words'] = self._words(losses.image_tokens, labels, embeddings)
        if losses.latent is not None and losses.features is not None:
            out['pointing'] = self._pointing(losses.features, labels)
            out['latent'] = self._latent(losses.latent, labels)
            out['naming'] = self._naming(losses.latent, labels)
        return out

    def _words(self, tokens: Tensor, labels: Labels, embeddings: Tensor) -> Tensor:
        """Image tokens as if they were words: what the decoder has learned from text then works on pictures too."""
        cells, views = self.config.vision.grid // 2, self.config.views
        kinds, sizes = (x.repeat(1, views) for x in (labels.kinds, labels.sizes))
        wanted = patch_labels(labels.joined.flatten(1, 2), kinds, sizes, cells)
        spoken = wanted @ _spelling(wanted.device)
        table = F.normalize(embeddings.detach()[self.words].float(), dim=-1)
        logits = self.sharpness[0] * (F.normalize(tokens.float(), dim=-1) @ table.T) + self.sharpness[1]
        return _many_zeros(logits, spoken.clamp(max=1.0))

    def _naming(self, latent: Tensor, labels: Labels) -> Tensor:
        guess = self.what(latent.mean(1)).unflatten(-1, (2, CLASSES))
        asked = torch.stack((labels.target, labels.destination), dim=1)
        kinds = labels.kinds.gather(1, asked.clamp(min=0)).masked_fill(asked < 0, -1)
        if not bool((kinds >= 0).any()):
            return guess.sum() * 0.0
        return F.cross_entropy(guess.flatten(0, 1), kinds.flatten(), ignore_index=-1)

    def _pointing(self, features: Tensor, labels: Labels) -> Tensor:
        maps = self.maps(features)
        places = torch.stack([pick(labels.crops, w) for w in (labels.target, labels.destination)], dim=2)
        wanted, known = soft_cells(places, maps.shape[-1])
        entropy = -(wanted * maps.flatten(3).log_softmax(-1)).sum(-1)
        return (entropy * known).sum() / known.sum().clamp(min=1.0)

    def _patches(self, losses: Losses, labels: Labels) -> Tensor:
        assert losses.image_features is not None
        grid, views = self.config.vision.grid, self.config.views
        flat = labels.joined.flatten(1, 2)
        kinds, sizes = (x.repeat(1, views) for x in (labels.kinds, labels.sizes))
        seen = patch_labels(flat, kinds, sizes, grid)
        total = _many_zeros(self.seen(losses.image_features), seen)
        if losses.features is None:
            return total
        grid = self.config.dino.image_size // self.config.dino.patch_size
        felt = self.felt(losses.features).unflatten(1, (grid * grid, views))
        for v in range(views):
            wanted = patch_labels(labels.crops[:, v], labels.kinds, labels.sizes, grid)
            total = total + _many_zeros(felt[:, :, v], wanted)
        return total

    def _latent(self, latent: Tensor, labels: Labels) -> Tensor:
        guess = self.where(latent.mean(1)).unflatten(-1, (2, 2))
        first = labels.joined[:, :1] * self.config.views
        places = torch.stack([pick(first, w)[:, 0] for w in (labels.target, labels.destination)], dim=1)
        known = ~places.isnan().any(-1)
        error = F.smooth_l1_loss(guess, places.nan_to_num(), reduction='none', beta=0.05).sum(-1)
        return (error * known).sum() / known.sum().clamp(min=1.0)


def _spelling(device: torch.device) -> Tensor:
    """(patch labels, words) 0 or 1: which words name a label."""
    table = torch.zeros(PATCH_LABELS, len(WORDS), device=device)
    for shape, noun in enumerate(SHAPES):
        for color, name in enumerate(COLORS):
            table[shape * len(COLORS) + color, [WORDS.index(name), WORDS.index(noun)]] = 1.0
    table[CLASSES - 1, WORDS.index('drawer')] = 1.0
    for k, name in enumerate(SIZES):
        table[CLASSES + k, WORDS.index(name)] = 1.0
    return table


def word_ids(prompts: PromptEncoder) -> list[int]:
    """Token of each of :data:`WORDS` inside a sentence; empty when the tokenizer splits one of them."""
    ids = [prompts.encode(f' {word}') for word in WORDS]
    return [i[0] for i in ids] if all(len(i) == 1 for i in ids) else []


def pick(points: Tensor, which: Tensor) -> Tensor:
    """(B, V, 2) of points (B, V, objects, 2) at object ``which`` (B,); nan where it is -1."""
    index = which.clamp(min=0)[:, None, None, None].expand(-1, points.shape[1], 1, 2)
    found = points.gather(2, index)[:, :, 0]
    return torch.where((which >= 0)[:, None, None], found, torch.full_like(found, torch.nan))


def soft_cells(places: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Bilinear weights (..., n * n) of places (..., 2) 0..1 on an n x n grid, and whether they are known (...)."""
    known = ~places.isnan().any(-1)
    at = (places.nan_to_num() * n - 0.5).clamp(0.0, n - 1.0)
    ramp = torch.arange(n, device=places.device)
    weights = (1.0 - (at[..., None] - ramp).abs()).clamp(min=0.0)  # (..., 2, n)
    cells = weights[..., 1, :, None] * weights[..., 0, None, :]
    return cells.flatten(-2), known.to(places.dtype)


def patch_labels(points: Tensor, kinds: Tensor, sizes: Tensor, grid: int) -> Tensor:
    """(B, grid * grid, classes + sizes) 0 or 1: what lies in each patch.

    Args:
        points: (B, n, 2). kinds, sizes: (B, n).
    """
    known = ~points.isnan().any(-1) & (kinds >= 0)
    cell = (points.nan_to_num() * grid).long().clamp(0, grid - 1)
    patch = cell[..., 1] * grid + cell[..., 0]
    out = torch.zeros(len(points), grid * grid, PATCH_LABELS, device=points.device)
    rows = torch.arange(len(points), device=points.device)[:, None].expand_as(patch)
    out[rows[known], patch[known], kinds[known]] = 1.0
    sized = known & (sizes >= 0)
    out[rows[sized], patch[sized], CLASSES + sizes[sized]] = 1.0
    return out


def _many_zeros(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross entropy per object: almost all entries are 0, so the sum is divided by the number of ones."""
    entropy = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction='sum')
    return entropy / wanted.sum().clamp(min=1.0)
