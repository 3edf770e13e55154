"""Many observations at once: for recordings, where the next observation does not depend on what the model does.

A small model, and a large one on a GPU, spends most of its time on being called. Rows of equal length are read in one
call; the numbers differ from those of single calls only by the rounding of larger matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .checkpoint import Bundle
from .fast import FastPath

MOST = 16
"""Rows of one call; more do not make it faster, and every row of a sentence has its caches."""

Prompt = tuple[Tensor, np.ndarray]
"""Pixels (1, 3, S, S) and token ids (N,)."""


class Together:
    """Batches of the fast path.

    Args:
        bundle: weights and prompts. euler_steps: of a chunk; 0: as the model has it.
    """

    def __init__(self, bundle: Bundle, euler_steps: int = 0) -> None:
        self._model, self._end = bundle.model, bundle.prompts.end_id
        self._path, self._steps = FastPath(bundle.model), euler_steps or bundle.config.euler_steps

    def sentences(self, prompts: Sequence[Prompt], total: int = 0) -> list[list[int]]:
        """Tokens of the greedy sentence of each prompt.

        Args:
            total: most tokens of prompt and sentence together; 0: as long as the model lets a sentence be.
        """
        out: list[list[int]] = [[]] * len(prompts)
        for rows, pixels, ids in self._groups(prompts):
            limit = max(1, total - ids.shape[1]) if total else None
            told = self._path.sentence(self._path.begin(pixels), ids, end_id=self._end, limit=limit)
            for row, tokens in zip(rows, told, strict=True):
                out[row] = tokens
        return out

    def latents(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Latent (1, queries, d) of each action prompt."""
        out: list[Tensor] = [torch.empty(0)] * len(prompts)
        for rows, pixels, ids in self._groups(prompts):
            for row, latent in zip(rows, self._path.latent(self._path.begin(pixels), ids).split(1), strict=True):
                out[row] = latent
        return out

    def chunks(
        self,
        latents: Sequence[Tensor],
        views: Sequence[Tensor],
        proprio: Sequence[Tensor | None],
        noise: Sequence[Tensor],
    ) -> Tensor:
        """Normalised actions (n, H, 7) before clipping, of lists of n rows as :meth:`FastPath.chunk` takes them."""
        out = []
        for first in range(0, len(latents), MOST):
            part = slice(first, first + MOST)
            known = [p for p in proprio[part] if p is not None]
            out.append(
                self._path.chunk(
                    torch.cat(tuple(latents[part])),
                    torch.cat(tuple(views[part])),
                    torch.cat(known) if known else None,
                    torch.cat(tuple(noise[part])),
                    steps=self._steps,
                )
            )
        return torch.cat(out)

    def _groups(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Positions, pixels (B, 3, S, S) and ids (B, N) of prompts of one length, at most :data:`MOST` at a time."""
        lengths: dict[int, list[int]] = {}
        for row, (_, ids) in enumerate(prompts):
            lengths.setdefault(len(ids), []).append(row)
        for rows in lengths.values():
            for first in range(0, len(rows), MOST):
                part = rows[first : first + MOST]
                stacked = torch.from_numpy(np.stack([prompts[r][1] for r in part]))
                yield part, torch.cat([prompts[r][0] for r in part]), stacked.to(self._model.device)
